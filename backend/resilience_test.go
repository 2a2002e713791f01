// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// faultyMount is a mount whose storage fails, hangs or panics where a test
// says so.
func faultyMount(t *testing.T) (*mount, *storetest.Faulty) {
	t.Helper()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	return newMountOn(t, memory, faulty, clock.NewManual(epoch)), faulty
}

// soon waits for what must happen without anything being waited for. The
// limit is there so that a failure says what it was.
func soon(t *testing.T, limit time.Duration, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-clock.System().After(limit):
		t.Errorf("%s takes over %s", what, limit)
		<-done
	}
}

func TestDueWorkIsDoneOldestFirst(t *testing.T) {
	t.Parallel()
	m, faulty := faultyMount(t)
	m.role(object{"rotation_period": "2h", "overlap_period": "30m"})
	var ids []string
	for i := range 5 {
		m.key(fmt.Sprintf("k%d", i), nil)
		ids = append(ids, text(t, m.read(fmt.Sprintf("keys/k%d", i))["key_id"]))
		m.clock.Advance(2 * time.Minute)
	}
	m.clock.Advance(2 * time.Hour)
	var mu sync.Mutex
	var order []string
	faulty.After(func(op storetest.Op) {
		mu.Lock()
		defer mu.Unlock()
		if id, ok := strings.CutPrefix(op.Path, "key/"); ok && op.Kind == storetest.Put {
			order = append(order, id)
		}
	})
	m.tick()
	faulty.After(nil)
	if !slices.Equal(order, ids) {
		t.Errorf("keys were worked on in the order %v, want %v", order, ids)
	}
}

// TestAStorageFailureLosesNothing fails each storage operation of a tick in
// turn, as an error and as a crash, and wants the next tick to finish the work.
func TestAStorageFailureLosesNothing(t *testing.T) {
	t.Parallel()
	base := newMount(t)
	base.role(object{"rotation_period": "1h", "overlap_period": "10m"})
	var tokens []string
	for i := range 3 {
		tokens = append(tokens, base.key(fmt.Sprintf("k%d", i), nil))
	}
	base.Cleanup(t.Context())
	at := epoch.Add(time.Hour + 2*time.Minute)
	for n := 1; ; n++ {
		failed := false
		for _, fault := range []storetest.Fault{{At: n}, {At: n, Applied: true}, {At: n, Rest: true}, {At: n, Rest: true, Applied: true}} {
			memory := base.memory.Clone()
			faulty := storetest.NewFaulty(memory)
			m := newMountOn(t, memory, faulty, clock.NewManual(at))
			faulty.Inject(fault)
			_, err := m.engineNow().ticker.Tick(t.Context())
			failed = faulty.Failed() > 0
			// Deleting an index entry that has become stale may fail unseen.
			if err != nil && !failed {
				t.Fatalf("fault %+v: the tick says %v", fault, err)
			}
			faulty.Heal()
			if fault.Rest {
				m = m.reopen()
			}
			m.wantCodes("VALID VALID VALID", tokens...)
			m.pass(2 * time.Minute)
			for i := range tokens {
				if got := m.current(fmt.Sprintf("k%d", i)); got != 2 {
					t.Errorf("fault %+v: key %d has version %d", fault, i, got)
				}
			}
			m.pass(13 * time.Minute)
			m.wantCodes("RETIRED RETIRED RETIRED", tokens...)
			for i := range tokens {
				m.wantStates(fmt.Sprintf("k%d", i), "retired active")
			}
			m.Cleanup(t.Context())
		}
		if !failed {
			if n < 10 {
				t.Errorf("a tick makes only %d operations", n)
			}
			return
		}
	}
}

// TestAFailedRequestLosesNothing fails each write of each verb in turn. What
// was answered with an error may have happened or not, but never by half.
func TestAFailedRequestLosesNothing(t *testing.T) {
	t.Parallel()
	base := newMount(t)
	base.role(object{"overlap_period": "1h", "rotation_period": "24h"})
	v1 := base.key("acme", nil)
	v2 := base.rotate("acme", nil)
	base.Cleanup(t.Context())
	for _, c := range []struct {
		path string
		data object
		old  string // verdicts on v1 and v2 where it did not happen
		done string // and where it did
	}{
		{"rotate/acme", object{"overlap_period": 0}, "VALID VALID", "VALID RETIRED"}, {"revoke/acme", object{"version": 1}, "VALID VALID", "REVOKED VALID"},
		{"revoke/acme", object{"all": true, "rotate": true}, "VALID VALID", "REVOKED REVOKED"}, {"retire/acme", object{"force": true}, "VALID VALID", "RETIRED VALID"},
		{"rollback/acme", object{"revoke_newer": true}, "VALID VALID", "VALID REVOKED"}, {"keys/acme", object{"enabled": false}, "VALID VALID", "DISABLED DISABLED"},
		{"keys/new", object{"role": "r"}, "VALID VALID", "VALID VALID"}, {"keys/new", object{"role": "r", "import_key": "legacy-token-0123456789"}, "VALID VALID", "VALID VALID"},
	} {
		for n := 1; ; n++ {
			failed := false
			for _, applied := range []bool{false, true} {
				memory := base.memory.Clone()
				faulty := storetest.NewFaulty(memory)
				m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
				faulty.Inject(storetest.Fault{At: n, WritesOnly: true, Applied: applied, Rest: true})
				a := m.request(logical.UpdateOperation, c.path, c.data)
				failed = faulty.Failed() > 0
				if a.status != http.StatusInternalServerError && a.status >= 300 {
					t.Errorf("%s with write %d failed is answered %s: a storage failure is not the caller's", c.path, n, a)
				}
				faulty.Heal()
				next := m.reopen()
				got := next.code(v1) + " " + next.code(v2)
				if got != c.done && (a.status < 300 || got != c.old) {
					t.Errorf("%s with write %d failed (applied: %v): verify answers %s after status %d", c.path, n, applied, got, a.status)
				}
				// It can be repeated, or says why not.
				if again := next.request(logical.UpdateOperation, c.path, c.data); again.status == http.StatusInternalServerError {
					t.Errorf("%s again: %s", c.path, again)
				}
				m.Cleanup(t.Context())
				next.Cleanup(t.Context())
			}
			if !failed {
				break
			}
		}
	}
}

// TestAKeyWhoseCreationFailedIsNotThere also wants LIST to know nothing of it.
func TestAKeyWhoseCreationFailedIsNotThere(t *testing.T) {
	t.Parallel()
	m, faulty := faultyMount(t)
	m.role(object{"rotation_period": "24h", "overlap_period": "1h"})
	for n := 1; n <= 5; n++ {
		faulty.Inject(storetest.Fault{At: n, WritesOnly: true})
		a := m.request(logical.UpdateOperation, "keys/acme", object{"role": "r"})
		if faulty.Failed() == 0 {
			break // it was made
		}
		if a.status != http.StatusInternalServerError || !strings.Contains(a.errText, "injected") {
			t.Errorf("create with write %d failed is answered %s", n, a)
		}
		faulty.Heal()
		m.refused(http.StatusNotFound, logical.ReadOperation, "keys/acme", nil)
		if names := m.list("keys/", object{"role": "r"}); len(names) != 0 {
			t.Errorf("LIST keys of the role is %v after write %d of a create failed", names, n)
		}
		// Its name may stand in LIST keys, which reads no keys, until it is made
		// or deleted.
		if n%2 == 0 {
			m.remove("keys/acme")
			if names := m.list("keys/", nil); len(names) != 0 {
				t.Errorf("LIST keys is %v after what write %d of a create left was deleted", names, n)
			}
		}
	}
	faulty.Heal()
	m.rotate("acme", nil)
	m.remove("keys/acme")
	m.remove("roles/r")
}

// damage overwrites a key's entry with what cannot be read.
func (m *mount) damage(name, with string) {
	m.t.Helper()
	id := text(m.t, m.read("keys/" + name)["key_id"])
	if err := m.memory.Put(m.t.Context(), &logical.StorageEntry{Key: "key/" + id, Value: []byte(with)}); err != nil {
		m.t.Fatal(err)
	}
}

func TestADamagedKeyDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{"not json", "", "{}", `{"schema":99}`, `{"schema":1,"versions":[{"version":1,"state":"s3cr3tMARKER-state"}]}`, `{"schema":1,"created_time":"s3cr3tMARKER-time"}`, "null", "[]"} {
		m := newMount(t)
		m.secret("s3cr3tMARKER-state")
		m.secret("s3cr3tMARKER-time")
		m.role(object{"rotation_period": "1h", "overlap_period": "10m"})
		for i := range 10 {
			m.key(fmt.Sprintf("k%d", i), nil)
		}
		m.damage("k3", damage)
		m = m.reopen()
		m.secret("s3cr3tMARKER-state")
		m.secret("s3cr3tMARKER-time")
		if a := m.request(logical.ReadOperation, "keys/k3", nil); a.status != http.StatusInternalServerError {
			t.Errorf("a key damaged by %q reads as %s", damage, a)
		}
		m.pass(62 * time.Minute)
		for i := range 10 {
			if i != 3 && m.current(fmt.Sprintf("k%d", i)) != 2 {
				t.Errorf("damage by %q: key %d was not rotated", damage, i)
			}
		}
		m.write("roles/r/rotate", nil)
		m.tick()
		if job := m.read("roles/r/rotate"); job["state"] != "finished" || number(t, job["rotated"]) != 9 || number(t, job["failed"]) != 1 {
			t.Errorf("damage by %q: the job is %v", damage, job)
		}
		// Nothing of what is tried for it again and again costs the others.
		m.pass(3 * time.Hour)
		if got := m.current("k9"); got < 4 {
			t.Errorf("damage by %q: after hours another key has version %d", damage, got)
		}
		// What stands there now was put there by this test, not by the engine.
		if err := m.memory.Put(t.Context(), &logical.StorageEntry{Key: "key/gone", Value: nil}); err != nil {
			t.Fatal(err)
		}
		for _, path := range m.memory.Paths("key/") {
			if e, err := m.memory.Get(t.Context(), path); err == nil && string(e.Value) == damage {
				if err := m.memory.Delete(t.Context(), path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestAPanicInOneKeyDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	m, faulty := faultyMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "10m"})
	for i := range 10 {
		m.key(fmt.Sprintf("k%d", i), nil)
	}
	bad := "key/" + text(t, m.read("keys/k3")["key_id"])
	m.secret("s3cr3tMARKER-in-a-panic")
	faulty.Before(func(op storetest.Op) {
		if op.Path == bad && op.Kind == storetest.Put {
			panic("s3cr3tMARKER-in-a-panic")
		}
	})
	m.pass(62 * time.Minute)
	for i := range 10 {
		if got := m.current(fmt.Sprintf("k%d", i)); (got == 2) != (i != 3) {
			t.Errorf("key %d has version %d", i, got)
		}
	}
	m.write("roles/r/rotate", nil)
	m.tick()
	job := m.read("roles/r/rotate")
	if failures := toJSON(job["failures"]); number(t, job["rotated"]) != 9 || number(t, job["failed"]) != 1 || strings.Contains(failures, "goroutine") {
		t.Errorf("the job is %v", job)
	}
	if a := m.request(logical.UpdateOperation, "rotate/k3", nil); a.status != http.StatusInternalServerError || a.errText != "internal error" {
		t.Errorf("a request that panics is answered %s", a)
	}
	faulty.Before(nil)
	m.pass(62 * time.Minute) // it is tried again within an hour
	if got := m.current("k3"); got < 2 {
		t.Errorf("once nothing panics, the key has version %d", got)
	}
}

func TestALeapOfTheClockSuspendsAutomation(t *testing.T) {
	t.Parallel()
	for _, leap := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		m := newMount(t)
		m.role(object{"rotation_period": "90m", "overlap_period": "30m"})
		m.clock.Advance(3 * time.Hour)
		m.tick()
		m.key("acme", nil)
		m.clock.Advance(time.Minute)
		m.tick()
		m.clock.Leap(leap)
		if got := m.sweep(); got["suspended"] != true {
			t.Errorf("after a leap of %s sweep answers %v", leap, got)
		}
		for i, want := range []string{"suspended", "suspended", ""} {
			m.clock.Advance(time.Minute)
			_, err := m.engineNow().ticker.Tick(t.Context())
			if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) {
				t.Errorf("tick %d after a leap of %s says %v", i+1, leap, err)
			}
			if err != nil && m.current("acme") != 1 {
				t.Errorf("the key was rotated while automation was suspended")
			}
		}
		if got := m.sweep(); got["suspended"] != false {
			t.Errorf("after two ticks that agree sweep answers %v", got)
		}
		m.code(m.rotate("acme", nil)) // people are not held up
		if n := strings.Count(m.logs.String(), "leapt"); n != 1 {
			t.Errorf("the leap is in the log %d times", n)
		}
	}
	m := newMount(t)
	m.role(object{"rotation_period": "90m", "overlap_period": "30m"})
	m.key("acme", nil)
	for range 100 { // a clock that is adjusted bit by bit
		m.clock.Advance(time.Minute)
		m.clock.Leap(30 * time.Second)
		m.tick()
	}
	if m.current("acme") != 2 {
		t.Error("a clock that drifts slowly suspends automation")
	}
}

func TestTimeNeverRunsBelowWhatWasRecorded(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	m.clock.Advance(10 * time.Hour)
	v1 := m.key("acme", nil)
	m.clock.Leap(-5 * time.Hour)
	a := m.write("rotate/acme", nil)
	if a["overlap_ends"] != "2026-01-05T11:00:00Z" {
		t.Errorf("the overlap ends at %v, want an hour after the latest that was recorded", a["overlap_ends"])
	}
	m.wantCodes("VALID VALID", v1, text(t, a["api_key"]))
}

// hangingMount is a mount whose storage hangs in its background work.
func hangingMount(t *testing.T) *mount {
	t.Helper()
	m, faulty := faultyMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "10m"})
	m.key("acme", nil)
	m.clock.Advance(2 * time.Hour)
	hanging, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	faulty.Before(func(storetest.Op) {
		once.Do(func() { close(hanging) })
		<-release
	})
	t.Cleanup(func() { close(release) })
	if err := m.PeriodicFunc(t.Context(), &logical.Request{Storage: m.storage}); err != nil {
		t.Fatal(err)
	}
	<-hanging // a worker has begun
	return m
}

func TestPeriodicReturnsAtOnceWhileStorageHangs(t *testing.T) {
	t.Parallel()
	m := hangingMount(t)
	soon(t, 5*time.Second, "periodic", func() {
		for range 100 {
			if err := m.PeriodicFunc(t.Context(), &logical.Request{Storage: m.storage}); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestCleanReturnsWhileStorageHangs(t *testing.T) {
	t.Parallel()
	m := hangingMount(t)
	soon(t, 3*time.Second, "clean", func() { m.Cleanup(t.Context()) })
}

// TestCleanReturnsWhileTheEngineIsBeingOpened is about storage that hangs from
// the start.
func TestCleanReturnsWhileTheEngineIsBeingOpened(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newIdleMount(t, memory, faulty, clock.NewManual(epoch))
	hanging, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	faulty.Before(func(storetest.Op) {
		once.Do(func() { close(hanging) })
		<-release
	})
	opened := make(chan error)
	go func() {
		opened <- m.Initialize(context.WithoutCancel(t.Context()), &logical.InitializationRequest{Storage: faulty})
	}()
	<-hanging
	soon(t, 3*time.Second, "clean", func() { m.Cleanup(t.Context()) })
	close(release)
	if err := <-opened; err == nil {
		t.Error("an engine was opened after clean")
	}
	if m.opened() != nil {
		t.Error("an engine is open after clean")
	}
}

func TestAnEngineThatCouldNotOpenIsOpenedLater(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 4; n++ {
		memory := storetest.NewMemory()
		faulty := storetest.NewFaulty(memory)
		m := newIdleMount(t, memory, faulty, clock.NewManual(epoch))
		faulty.Inject(storetest.Fault{At: n})
		if err := m.Initialize(t.Context(), &logical.InitializationRequest{Storage: faulty}); !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("with operation %d failed initialize says %v", n, err)
		}
		m.role(nil)
		m.wantCodes("VALID", m.key("acme", nil))
	}
}

// TestCleanEndsAllGoroutines is not parallel, because it counts the workers
// of the whole process.
func TestCleanEndsAllGoroutines(t *testing.T) {
	before := workers()
	for range 20 {
		memory := storetest.NewMemory()
		m := newMountOn(t, memory, memory, clock.NewManual(epoch))
		m.role(nil)
		m.key("acme", nil)
		if err := m.PeriodicFunc(t.Context(), &logical.Request{Storage: m.storage}); err != nil {
			t.Fatal(err)
		}
		if workers() <= before {
			t.Fatal("the workers cannot be told from other goroutines: mend this test")
		}
		m.Cleanup(t.Context())
		m.Cleanup(t.Context()) // twice is fine
	}
	// A goroutine that has said that it is done has still to return.
	limit := clock.System().After(10 * time.Second)
	for workers() > before {
		select {
		case <-limit:
			t.Fatalf("there were %d workers and are %d", before, workers())
		default:
			runtime.Gosched()
		}
	}
}

// workers counts the goroutines that were started in backend/internal/jobs.
func workers() int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte("created by github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs."))
}

func TestMountsShareNothing(t *testing.T) {
	t.Parallel()
	a, b := newMount(t), newMount(t)
	a.role(object{"prefix": "aaa"})
	b.role(object{"prefix": "bbb"})
	inA, inB := a.key("acme", nil), b.key("acme", nil)
	a.wantCodes("VALID NOT_FOUND", inA, inB)
	b.wantCodes("NOT_FOUND VALID", inA, inB)
	a.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	b.wantCodes("MALFORMED", "legacy-token-0123456789")
	a.write("config", object{"leak_rate": 7})
	if got := number(t, b.read("config")["leak_rate"]); got != 60 {
		t.Errorf("leak_rate of the other mount is %d", got)
	}
	a.Cleanup(t.Context())
	b.sweep()
	b.rotate("acme", nil)
}

// TestInvalidation gives a standby what the active node wrote, by the keys
// that the storage really wrote.
func TestInvalidation(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	c := clock.NewManual(epoch)
	active := newMountOn(t, memory, faulty, c)
	other := newMountOn(t, memory, memory, c)
	faulty.After(func(op storetest.Op) {
		if op.Kind.Write() {
			other.InvalidateKey(context.WithoutCancel(t.Context()), op.Path)
		}
	})
	active.role(object{"overlap_period": "1h", "scopes": []any{"a"}})
	other.read("roles/r")
	v1 := active.key("acme", nil)
	other.wantCodes("VALID", v1)
	other.read("keys/acme")
	active.write("revoke/acme", object{"version": 1, "rotate": true})
	other.wantCodes("REVOKED", v1)
	active.role(object{"scopes": []any{"b"}})
	if got := toJSON(other.read("roles/r")["scopes"]); got != `["b"]` {
		t.Errorf("the other node reads the scopes %s", got)
	}
	other.wantCodes("MALFORMED", "legacy-token-0123456789")
	active.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	other.wantCodes("VALID", "legacy-token-0123456789")
	other.read("config")
	active.write("config", object{"leak_rate": 7})
	if got := number(t, other.read("config")["leak_rate"]); got != 7 {
		t.Errorf("the other node reads leak_rate %d", got)
	}
	active.remove("keys/acme")
	other.wantCodes("NOT_FOUND", v1)
	other.refused(http.StatusNotFound, logical.ReadOperation, "keys/acme", nil)
	faulty.After(nil)
}

// TestRandomOperationsAtOnce lets many goroutines do anything. Besides the
// race detector, it wants no failure of the engine, and that in the end every
// key that is not disabled has exactly one version that static-creds gives out
// and that is accepted.
func TestRandomOperationsAtOnce(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	storage := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, storage, clock.NewManual(epoch))
	m.role(object{"rotation_period": "1h", "overlap_period": "20m", "scopes": []any{"a", "b"}})
	names := []string{"a", "b", "c", "d", "e", "f"}
	for _, name := range names {
		m.key(name, nil)
	}
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	storage.Before(pauses(seed))
	var all sync.WaitGroup
	for g := range 20 {
		random := rand.New(rand.NewPCG(seed, uint64(g)))
		all.Go(func() {
			for range 60 {
				m.randomOperation(random, names[random.IntN(len(names))])
			}
		})
	}
	all.Wait()
	storage.Before(nil)
	m.tick()
	for _, name := range names {
		a := m.request(logical.ReadOperation, "keys/"+name, nil)
		if a.status == http.StatusNotFound || a.data[fieldEnabled] == false {
			continue
		}
		active := 0
		for _, v := range versions(t, a.data) {
			if v[fieldState] == "active" {
				active++
			}
		}
		served := m.request(logical.ReadOperation, "static-creds/"+name, nil)
		if active != 1 || served.status != http.StatusOK {
			t.Errorf("%s has %d active versions, and static-creds answers %s", name, active, served)
			continue
		}
		m.wantCodes("VALID", text(t, served.data[fieldAPIKey]))
	}
	for _, name := range names {
		m.remove("keys/" + name)
		v1 := m.key(name, nil)
		v2 := m.rotate(name, nil)
		m.wantCodes("VALID VALID", v1, v2)
	}
}

func (m *mount) randomOperation(random *rand.Rand, name string) {
	flip := func() bool { return random.IntN(2) == 0 }
	version := 1 + random.IntN(4)
	var a *answer
	switch random.IntN(18) {
	case 0:
		a = m.request(logical.UpdateOperation, "keys/"+name, object{"role": "r", "custom_metadata": object{"n": "v"}})
	case 1, 2, 3:
		a = m.request(logical.UpdateOperation, "rotate/"+name, object{"force": flip(), "request_id": []string{"", "x", "y"}[random.IntN(3)]})
	case 4:
		a = m.request(logical.UpdateOperation, "revoke/"+name, object{"version": version, "rotate": true, "compromised": flip()})
	case 5:
		a = m.request(logical.UpdateOperation, "rollback/"+name, object{"force": flip()})
	case 6:
		a = m.request(logical.UpdateOperation, "extend/"+name, object{"version": version, "overlap_period": "25m"})
	case 7:
		a = m.request(logical.UpdateOperation, "retire/"+name, object{"force": true})
	case 8:
		a = m.request(logical.UpdateOperation, "roles/r", object{"rotation_period": []string{"1h", "2h"}[random.IntN(2)], "scopes": []any{"a"}})
	case 9:
		a = m.request(logical.DeleteOperation, "keys/"+name, nil)
	case 10:
		a = m.request(logical.PatchOperation, "keys/"+name, object{"enabled": flip()})
	case 11:
		a = m.request(logical.UpdateOperation, "sweep", nil)
	case 12:
		a = m.request(logical.UpdateOperation, "roles/r/rotate", object{"force": true})
	case 13:
		a = m.request(logical.ListOperation, "keys/", object{"role": "r"})
	case 14:
		if a = m.request(logical.ReadOperation, "creds/r", nil); a.secret != nil {
			m.request(logical.UpdateOperation, "rotate-leased/"+fmt.Sprint(a.data["key_id"]), nil)
			m.endLease(a.secret)
		}
	case 15:
		m.clock.Advance(time.Minute)
		if err := m.PeriodicFunc(m.t.Context(), &logical.Request{Storage: m.storage}); err != nil {
			m.t.Error(err)
		}
		return
	default:
		a = m.request(logical.ReadOperation, "static-creds/"+name, nil)
		if presented, ok := a.data["api_key"].(string); ok {
			// Between the two somebody may have ended it, but it is known.
			if v := m.request(logical.UpdateOperation, "verify", object{"api_key": presented}); v.data["code"] == "MALFORMED" {
				m.t.Errorf("a key that static-creds gave out is answered %s", v)
			}
		}
	}
	if a.status >= 500 {
		m.t.Errorf("a request is answered %s", a)
	}
}
