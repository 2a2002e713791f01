// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// accepts tells whether the record accepts the secret.
func accepts(r *record.Record, now time.Time, secret string) bool {
	return r != nil && r.Verify(now, record.Query{Digest: token.Sum(secret)}).Code == record.CodeValid
}

// TestARecordFromBeforeARevocationHasALowerSeq stops a revocation and a
// look-up at each storage operation of theirs, and lets the other one run
// through: a record that still accepts must be named by sync afterwards.
func TestARecordFromBeforeARevocationHasALowerSeq(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{true, false} {
		for _, moment := range []string{"before", "after"} {
			for _, stopped := range []string{"revoke", "lookup"} {
				t.Run(fmt.Sprintf("%s stopped %s its access, cached %t", stopped, moment, cached), func(t *testing.T) {
					t.Parallel()
					raceOnce(t, cached, moment, stopped)
				})
			}
		}
	}
}

func raceOnce(t *testing.T, cached bool, moment, stopped string) {
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	m.role(nil)
	secret := m.key("acme", nil)
	id := m.keyID("acme")
	if !cached {
		m = m.reopen()
	}
	lookup := func() *found { return m.lookupIDs(id) }
	revoke := func() { m.write("revoke/acme", object{"version": 1, "force": true}) }

	var got []*found
	var once sync.Once
	hook := func(op storetest.Op) {
		if op.Path != "key/"+id || stopped == "revoke" && op.Kind != storetest.Put || stopped == "lookup" && op.Kind != storetest.Get {
			return
		}
		once.Do(func() {
			faulty.Before(nil)
			faulty.After(nil)
			if stopped == "revoke" {
				got = append(got, lookup())
			} else {
				revoke()
			}
		})
	}
	if moment == "before" {
		faulty.Before(hook)
	} else {
		faulty.After(hook)
	}
	if stopped == "revoke" {
		revoke()
	} else {
		got = append(got, lookup())
	}
	if stopped == "lookup" && cached {
		revoke() // the look-up had nothing to stop at
	}
	got = append(got, lookup())
	published := m.engineNow().store.Feed().LastOf(id).Seq
	for _, f := range got {
		stale := accepts(f.record(id), m.clock.Now(), secret)
		if stale && f.Seq >= published {
			t.Errorf("a record from before the revocation has seq %d, and the revocation %d", f.Seq, published)
		}
		told := m.sync(f.Epoch, f.Seq, nil)
		if stale && !slices.Contains(told.Changed, id) {
			t.Errorf("a verifier with a stale record of seq %d is told %+v", f.Seq, told)
		}
	}
	if last := got[len(got)-1]; accepts(last.record(id), m.clock.Now(), secret) {
		t.Error("the key was not revoked: the test shows nothing")
	}
}

// TestLookupsBesideRevocations does the same at random, under the race
// detector.
func TestLookupsBesideRevocations(t *testing.T) {
	t.Parallel()
	const keys, readers = 40, 4
	m := newMount(t)
	m.role(nil)
	var ids, secrets []string
	for i := range keys {
		secrets = append(secrets, m.key(fmt.Sprint("k", i), nil))
		ids = append(ids, m.keyID(fmt.Sprint("k", i)))
	}
	var stop atomic.Bool
	var group sync.WaitGroup
	// youngest is the highest seq of an accepting record, by key.
	youngest := [readers][keys]uint64{}
	for r := range readers {
		group.Go(func() {
			for !stop.Load() {
				f := m.lookupIDs(ids...)
				for i, id := range ids {
					if accepts(f.record(id), m.clock.Now(), secrets[i]) {
						youngest[r][i] = max(youngest[r][i], f.Seq)
					}
				}
			}
		})
	}
	revoked := [keys]uint64{}
	for i, id := range ids {
		if i%2 == 0 {
			m.invalidate(t.Context(), "key/"+id) // as if another node had written it
		}
		m.write(fmt.Sprint("revoke/k", i), object{"version": 1, "force": true})
		revoked[i] = m.engineNow().store.Feed().LastOf(id).Seq
	}
	stop.Store(true)
	group.Wait()
	for i := range keys {
		for r := range readers {
			if youngest[r][i] >= revoked[i] {
				t.Errorf("key %d was revoked at %d, and a record of seq %d accepts it", i, revoked[i], youngest[r][i])
			}
		}
	}
}

// TestARevocationThatFailedAndTookEffectReachesVerifiers: its caller was told
// of a failure, and storage has it all the same, some time later.
func TestARevocationThatFailedAndTookEffectReachesVerifiers(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{0, 300 * time.Millisecond, 5 * time.Second, 29 * time.Second} {
		memory := storetest.NewMemory()
		faulty := storetest.NewFaulty(memory)
		m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
		m.role(nil)
		secret := m.key("acme", nil)
		id := m.keyID("acme")
		faulty.Inject(storetest.Fault{At: 1, Late: true, Only: func(op storetest.Op) bool { return op.Kind == storetest.Put && strings.HasPrefix(op.Path, "key/") }})
		if a := m.request(logical.UpdateOperation, "revoke/acme", object{"version": 1, "force": true}); a.status < 500 {
			t.Fatalf("the revocation did not fail: %s", a)
		}
		faulty.Heal()

		at := m.sync("", 0, nil)
		held := m.lookupIDs(id)
		if !accepts(held.record(id), m.clock.Now(), secret) {
			t.Fatal("the revocation took effect at once")
		}
		follow := func(d time.Duration) {
			for passed := time.Duration(0); passed < d; passed += 250 * time.Millisecond {
				m.clock.Advance(250 * time.Millisecond)
				next := m.since(at)
				if next.Reset || next.Seq > held.Seq && slices.Contains(next.Changed, id) {
					held = m.lookupIDs(id)
				}
				at = next
			}
		}
		follow(late)
		if err := faulty.Release(); err != nil {
			t.Fatal(err)
		}
		follow(late + 2*time.Second)
		if accepts(held.record(id), m.clock.Now(), secret) {
			t.Errorf("it took effect after %s, and %s later a verifier that follows does not know", late, late+2*time.Second)
		}
		follow(2 * time.Minute)
		quiet := m.since(at)
		m.clock.Advance(time.Hour)
		if s := m.since(quiet); len(s.Changed) > 0 {
			t.Errorf("it is still told an hour later: %+v", s)
		}
	}
}

// TestTheSameForARole whose narrower scopes were written by a request that
// failed.
func TestARoleThatFailedAndTookEffectReachesVerifiers(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	m.role(object{"scopes": "a,b"})
	m.key("acme", nil)
	faulty.Inject(storetest.Fault{At: 1, Late: true, Only: func(op storetest.Op) bool { return op.Kind == storetest.Put && op.Path == "role/r" }})
	if a := m.request(logical.UpdateOperation, "roles/r", object{"scopes": "a"}); a.status < 500 {
		t.Fatalf("the write did not fail: %s", a)
	}
	faulty.Heal()
	at := m.since(m.sync("", 0, nil))
	m.clock.Advance(2 * time.Second)
	if err := faulty.Release(); err != nil {
		t.Fatal(err)
	}
	told := false
	for range 10 {
		m.clock.Advance(time.Second)
		next := m.since(at)
		told = told || slices.Contains(next.Roles, "r")
		at = next
	}
	if !told {
		t.Error("the role is not told")
	}
	if r := m.lookupIDs(m.keyID("acme")).Records[0]; !slices.Equal(r.Scopes, []string{"a"}) {
		t.Errorf("the record has the scopes %v", r.Scopes)
	}
}

// TestEventsThatAreOwedAreNotTold: a webhook makes each transition a second
// commit, which changes nothing for verifiers.
func TestEventsThatAreCopiedAreNotTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	m.write("webhooks/w", object{"url": "http://127.0.0.1:1/", "allow_private": true, "enabled": false})
	m.key("acme", nil)
	m.tell()
	at := m.since(m.sync("", 0, nil))
	m.rotate("acme", nil)
	m.tell() // copies what is owed, which is a commit
	if s := m.since(at); s.Seq != at.Seq+1 {
		t.Errorf("one rotation was told as %d changes", s.Seq-at.Seq)
	}
}

func TestPromoteWarnsOfVerifiersThatLag(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"activation_delay": "1h", "overlap_period": "1h"})
	m.key("acme", nil)
	promote := func() string {
		a := m.request(logical.UpdateOperation, "promote/acme", nil)
		if a.status >= 300 {
			t.Fatalf("promote: %s", a)
		}
		return strings.Join(a.warnings, " ")
	}
	again := func() {
		m.clock.Advance(2 * time.Hour)
		m.tick()
		m.rotate("acme", nil)
	}
	m.rotate("acme", nil)
	if w := promote(); w != "" {
		t.Errorf("without verifiers: %q", w)
	}
	again()
	at := m.sync("", 0, object{"verifier": "eu-1"})
	at = m.sync(at.Epoch, at.Seq, object{"verifier": "eu-1"})
	if w := promote(); w != "" {
		t.Errorf("with one that has followed: %q", w)
	}
	again()
	m.sync(at.Epoch, at.Seq, object{"verifier": "eu-1"})
	for i := range 7 {
		m.sync("", 0, object{"verifier": fmt.Sprint("us-", i)})
	}
	lag := promote()
	for _, word := range []string{"8 of 8", "version 4", "eu-1", "and 3 more"} {
		if !strings.Contains(lag, word) {
			t.Errorf("with eight that lag the warning is %q, want %q in it", lag, word)
		}
	}
	again()
	m.clock.Advance(2 * time.Minute)
	if w := promote(); w != "" {
		t.Errorf("with those that are gone: %q", w)
	}
}
