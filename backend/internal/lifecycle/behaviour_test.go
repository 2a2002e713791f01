// SPDX-License-Identifier: MPL-2.0

package lifecycle_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// TestCatchUpAfterWeeks: each overdue key rotates exactly once, and not all of
// them at the same time. All are served throughout, and so is the old version
// for a full overlap.
func TestCatchUpAfterWeeks(t *testing.T) {
	t.Parallel()
	const keys = 120
	w := newWorld(t)
	var ids []string
	for i := range keys {
		ids = append(ids, w.create(lifecycle.Spec{Name: fmt.Sprintf("key-%03d", i)}).Key.ID)
	}
	w.clock.Advance(3 * 7 * 24 * time.Hour)
	w.crash()
	first := w.clock.Now()
	perMinute := map[int]int{}
	for m := range 75 {
		w.mustTick()
		for i, id := range ids {
			k := w.key(id)
			w.checkServed(id)
			if k.LastRotation.Equal(w.clock.Now()) {
				perMinute[m]++
			}
			if since := w.clock.Now().Sub(k.LastRotation); k.Latest() == 2 && since < time.Hour {
				if code := w.verify(w.issued[i]); code != record.CodeValid {
					t.Errorf("%s after its rotation the old token of %s is %s", since, k.Label(), code)
				}
			}
		}
		if m == 30 {
			w.crash() // which changes nothing
		}
		w.clock.Advance(time.Minute)
	}
	for _, id := range ids {
		if k := w.key(id); k.Latest() != 2 || k.LastRotation.Before(first) {
			t.Errorf("%s has %d versions", k.Label(), k.Latest())
		}
	}
	for m, n := range perMinute {
		if n > keys/10 {
			t.Errorf("%d of %d keys rotated in minute %d", n, keys, m)
		}
	}
	w.check()
	// From then on as ever.
	w.run(24*time.Hour, nil)
	for _, id := range ids {
		if k := w.key(id); k.Latest() != 3 {
			t.Errorf("a day later %s has %d versions", k.Label(), k.Latest())
		}
	}
}

func (w *world) extend(id string, version int, by time.Duration) {
	w.t.Helper()
	w.update(id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		return k.Extend(keyring.Cause{Now: now}, r.Policy(), version, by)
	})
}

// blocked is a key whose rotation has been waiting for room since hour 34: its
// version 1 is accepted until hour 40, and two versions are allowed.
func blocked(t *testing.T) (w *world, id string) {
	t.Helper()
	w = newWorld(t)
	w.role("narrow", func(r *role.Role) { r.MaxAcceptedVersions, r.OverlapPeriod = 2, 24*time.Hour })
	id = w.create(lifecycle.Spec{Name: "a", Role: "narrow"}).Key.ID
	w.run(10*time.Hour, nil)
	w.rotate(id, lifecycle.RotateWish{})
	w.extend(id, 1, 30*time.Hour)
	w.run(25*time.Hour, func() { w.checkServed(id) })
	w.expectStates(id, "1 retiring, 2 active")
	if n := events(w.key(id), keyring.EventRotationBlocked); n != 1 {
		t.Fatalf("rotation.blocked was recorded %d times", n)
	}
	return w, id
}

func TestABlockedRotationGoesOnAsSoonAsThereIsRoom(t *testing.T) {
	t.Parallel()
	w, id := blocked(t)
	w.run(4*time.Hour, nil)
	if n := events(w.key(id), keyring.EventRotationBlocked); n != 1 {
		t.Errorf("rotation.blocked was recorded %d times", n)
	}
	w.expectStates(id, "1 retiring, 2 active")
	w.run(time.Hour, func() { w.checkServed(id) })
	w.expectStates(id, "1 retired, 2 retiring, 3 active")
	k := w.key(id)
	if want := start.Add(40 * time.Hour); k.LastRotation.Sub(want) > time.Minute || k.Blocked != "" {
		t.Errorf("rotated at %s, want %s; blocked: %q", k.LastRotation, want, k.Blocked)
	}
}

func TestABlockedRotationGoesOnWhereSomebodyMakesRoom(t *testing.T) {
	t.Parallel()
	w, id := blocked(t)
	w.update(id, func(k *keyring.Key, _ *role.Role, now time.Time) (*keyring.Key, error) {
		return k.Retire(keyring.Cause{Now: now}, 1, nil, true)
	})
	w.run(2*time.Minute, nil)
	w.expectStates(id, "1 retired, 2 retiring, 3 active")
	w.check()
}

// TestChangesDoNotPutOffARotationThatHasRoom: when each of them comes, the minute
// that the key is filed for is over, and no tick has been.
func TestChangesDoNotPutOffARotationThatHasRoom(t *testing.T) {
	t.Parallel()
	w, id := blocked(t)
	w.update(id, func(k *keyring.Key, _ *role.Role, now time.Time) (*keyring.Key, error) {
		return k.Retire(keyring.Cause{Now: now}, 1, nil, true)
	})
	for n := range 3 {
		w.clock.Advance(65 * time.Second)
		w.update(id, func(k *keyring.Key, _ *role.Role, _ time.Time) (*keyring.Key, error) {
			changed := *k
			changed.CustomMetadata = map[string]string{"note": fmt.Sprint(n)}
			return &changed, nil
		})
	}
	w.mustTick()
	w.expectStates(id, "1 retired, 2 retiring, 3 active")
	w.check()
}

// TestADuePromotionDoesNotBlockARotation: where both are due, after an outage,
// the promotion comes first and nothing waits.
func TestADuePromotionDoesNotBlockARotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	w.rotate(id, lifecycle.RotateWish{ActivationDelay: new(time.Hour)})
	w.clock.Advance(30 * 24 * time.Hour)
	w.crash()
	w.run(2*time.Hour, func() { w.checkServed(id) })
	k := w.key(id)
	if n := events(k, keyring.EventRotationBlocked); n != 0 || k.Latest() != 3 {
		t.Errorf("rotation.blocked was recorded %d times, and there are %d versions", n, k.Latest())
	}
}

func TestWhatWasPutOffKeepsToTheWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.role("nightly", func(r *role.Role) {
		r.RotationPeriod, r.RotationSchedule, r.RotationWindow = 0, "0 2 * * *", 2*time.Hour
	})
	var ids []string
	for i := range 20 {
		ids = append(ids, w.create(lifecycle.Spec{Name: fmt.Sprintf("key-%d", i), Role: "nightly"}).Key.ID)
	}
	at := func(hour, minute int) {
		t.Helper()
		now := w.clock.Now()
		next := time.Date(now.Year(), now.Month(), now.Day(), hour, minute, 0, 0, time.UTC)
		for !next.After(now) {
			next = next.AddDate(0, 0, 1)
		}
		w.clock.Advance(next.Sub(now))
	}
	// Up at 02:30, half an hour into the window: late keys get their turns
	// inside the window. Then down again until after it.
	at(2, 30)
	w.crash()
	w.mustTick()
	waiting := 0
	for _, id := range ids {
		if k := w.key(id); !k.RotateAt.IsZero() {
			waiting++
		}
	}
	if waiting == 0 {
		t.Fatal("no key was put off")
	}
	at(9, 0)
	w.crash()
	w.mustTick()
	w.run(4*time.Hour, nil)
	rotated := 0
	for _, id := range ids {
		if w.key(id).Latest() > 1 {
			rotated++
		}
	}
	if rotated != len(ids)-waiting {
		t.Errorf("%d keys rotated outside the window", rotated-(len(ids)-waiting))
	}
	at(2, 0)
	w.run(2*time.Hour, nil)
	for _, id := range ids {
		k := w.key(id)
		if last := k.LastRotation; last.Hour() < 2 || last.Hour() > 4 || k.Latest() < 2 {
			t.Errorf("%s was rotated at %s", k.Label(), last)
		}
	}
	w.check()
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	wish := lifecycle.RotateWish{RequestID: "r1", Overlap: new(time.Hour)}
	made := w.rotate(id, wish)
	for range 2 {
		again := w.rotate(id, wish)
		if again.Version != 2 || again.Token != made.Token || again.Key.Latest() != 2 {
			t.Errorf("the replay made version %d", again.Version)
		}
		w.crash()
	}
	for what, c := range map[string]struct {
		wish   lifecycle.RotateWish
		reason string
	}{
		"another overlap": {lifecycle.RotateWish{RequestID: "r1", Overlap: new(2 * time.Hour)}, ""},
		"no overlap":      {lifecycle.RotateWish{RequestID: "r1"}, ""},
		"a delay":         {lifecycle.RotateWish{RequestID: "r1", Overlap: new(time.Hour), ActivationDelay: new(time.Minute)}, ""},
		"scopes":          {lifecycle.RotateWish{RequestID: "r1", Overlap: new(time.Hour), OverlapScopes: []string{"read"}}, ""},
		"force":           {lifecycle.RotateWish{RequestID: "r1", Overlap: new(time.Hour), Force: true}, ""},
		"a reason":        {lifecycle.RotateWish{RequestID: "r1", Overlap: new(time.Hour)}, "why"},
	} {
		cause := byTest()
		cause.Reason = c.reason
		if _, err := w.keeper.Rotate(t.Context(), id, c.wish, cause); !errors.Is(err, lifecycle.ErrRequestDiffers) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := w.key(id).Latest(); got != 2 {
		t.Errorf("there are %d versions", got)
	}
	// Once its plaintext is gone, the replay still names the version.
	if _, _, err := w.keeper.Revoke(t.Context(), id, keyring.RevokeOptions{Version: 2}, true, byTest()); err != nil {
		t.Fatal(err)
	}
	if again := w.rotate(id, wish); again.Version != 2 || again.Token != "" {
		t.Errorf("after a revocation the replay named version %d, with a token: %v", again.Version, again.Token != "")
	}
	// A day later the id is forgotten.
	w.run(24*time.Hour, nil)
	before := w.key(id).Latest()
	if again := w.rotate(id, wish); again.Version != before+1 {
		t.Errorf("a day later the replay named version %d, want %d", again.Version, before+1)
	}
}

func TestConcurrentRotatesWithOneRequestIDMakeOneVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	tokens := make([]string, 8)
	var all sync.WaitGroup
	for i := range tokens {
		all.Go(func() {
			made, err := w.keeper.Rotate(t.Context(), id, lifecycle.RotateWish{RequestID: "same"}, byTest())
			if err != nil {
				t.Error(err)
				return
			}
			tokens[i] = made.Token
		})
	}
	all.Wait()
	for _, text := range tokens {
		if text != tokens[0] || text == "" {
			t.Fatal("not all got the same token")
		}
	}
	w.expectStates(id, "1 retiring, 2 active")
}

// TestConcurrentCreatesOfOneNameMakeOneKey: and of one imported token.
func TestConcurrentCreatesOfOneNameMakeOneKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.faulty.Before(func(op storetest.Op) {
		if op.Kind.Write() {
			for range 1000 {
				runtime.Gosched() // the others get as far as they can
			}
		}
	})
	var made, refused int
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			spec := lifecycle.Spec{Name: "same", Role: "r"}
			if i%2 == 0 {
				spec = lifecycle.Spec{Name: fmt.Sprintf("import-%d", i), Role: "r", ImportToken: importedToken}
			}
			_, err := w.keeper.Create(t.Context(), spec, byTest())
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errors.Is(err, lifecycle.ErrExists) || errors.Is(err, lifecycle.ErrImported):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if made != 2 || refused != 14 {
		t.Errorf("%d were made and %d refused", made, refused)
	}
	w.check()
}

// TestConcurrentLifeOfOneName: keys of one name are made, rotated and deleted
// while ticks finish deletions; the name always leads to a living key or to none.
func TestConcurrentLifeOfOneName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := make(chan struct{})
	var ticks, all sync.WaitGroup
	ticks.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				w.clock.Advance(time.Second)
				if err := w.tick(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for range 4 {
		all.Go(func() {
			for range 25 {
				made, err := w.keeper.Create(t.Context(), lifecycle.Spec{Name: "same", Role: "r", ImportToken: importedToken}, byTest())
				if errors.Is(err, lifecycle.ErrExists) || errors.Is(err, lifecycle.ErrImported) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if k, err := w.keeper.Store.KeyByName(t.Context(), "same"); err != nil || k == nil || k.ID != made.Key.ID {
					t.Errorf("a key just made is not found by its name: %v, %v", k, err)
				}
				unlock := w.keeper.Store.LockName("same")
				err = w.keeper.Delete(t.Context(), made.Key.ID, byTest())
				unlock()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	ticks.Wait()
	w.check()
	w.create(lifecycle.Spec{Name: "same", ImportToken: importedToken})
	w.check()
}

func TestDisabledKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	w.rotate(id, lifecycle.RotateWish{})
	disable := func(disabled bool) {
		t.Helper()
		w.update(id, func(k *keyring.Key, _ *role.Role, _ time.Time) (*keyring.Key, error) {
			next := k.Clone()
			next.Disabled = disabled
			return next, nil
		})
	}
	disable(true)
	// Its deadlines run, and it is not rotated.
	w.run(10*24*time.Hour, nil)
	w.expectStates(id, "1 retired, 2 active")
	for _, text := range w.issued {
		if code := w.verify(text); code != record.CodeDisabled {
			t.Errorf("a token is %s", code)
		}
	}
	if _, err := w.keeper.Rotate(t.Context(), id, lifecycle.RotateWish{}, byTest()); !errors.Is(err, keyring.ErrDisabled) {
		t.Errorf("Rotate = %v", err)
	}
	// Enabled again, one overdue rotation happens, and the next a day later.
	disable(false)
	w.run(2*time.Hour, func() { w.checkServed(id) })
	if got := w.key(id).Latest(); got != 3 {
		t.Errorf("after enabling there are %d versions", got)
	}
	w.run(24*time.Hour, nil)
	if got := w.key(id).Latest(); got != 4 {
		t.Errorf("a day later there are %d versions", got)
	}
	w.check()
}

func TestALeasedKeyIsForgottenADayAfterItsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.create(lifecycle.Spec{Lease: &keyring.Lease{EntityID: "e"}, ExpireTime: start.Add(50 * time.Hour)})
	other := w.create(lifecycle.Spec{Lease: &keyring.Lease{EntityID: "e"}, ExpireTime: start.Add(50 * time.Hour)})
	id := made.Key.ID
	w.run(30*time.Hour, nil)
	w.expectStates(id, "1 active") // it does not rotate by itself
	// One is revoked, the other one expires.
	for range 2 {
		if err := w.keeper.EndLease(t.Context(), other.Key.ID, 1); err != nil {
			t.Fatal(err)
		}
	}
	if code := w.verify(other.Token); code != record.CodeRevoked {
		t.Errorf("after the lease was revoked the token is %s", code)
	}
	w.run(23*time.Hour, nil)
	if w.key(other.Key.ID) == nil {
		t.Error("forgotten before a day was over")
	}
	if code := w.verify(made.Token); code == record.CodeValid {
		t.Error("valid after its lease")
	}
	w.run(2*time.Hour, nil)
	if w.key(other.Key.ID) != nil {
		t.Error("not forgotten a day after its end")
	}
	w.run(23*time.Hour, nil)
	if w.key(id) != nil {
		t.Error("not forgotten a day after its expiry")
	}
	if err := w.keeper.EndLease(t.Context(), id, 1); err != nil {
		t.Errorf("ending what is gone: %v", err)
	}
	w.run(2*time.Hour, nil)
	if left := append(append(w.memory.Paths("key/"), w.memory.Paths("member/")...), w.memory.Paths("due/")...); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}

func TestAJobRotatesEachKeyOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	for i := range 3 {
		done, err := w.keeper.RotateForJob(t.Context(), id, "job-1", byTest(), lifecycle.RotateWish{})
		if err != nil || !done || w.key(id).Latest() != 2 {
			t.Errorf("run %d: %v, %v, version %d", i, done, err, w.key(id).Latest())
		}
		w.crash()
	}
	if changed, err := w.keeper.RotateForJob(t.Context(), id, "job-2", byTest(), lifecycle.RotateWish{}); err != nil || !changed {
		t.Errorf("another job: %v, %v", changed, err)
	}
	if got := w.key(id).Latest(); got != 3 {
		t.Errorf("there are %d versions", got)
	}
	leased := w.create(lifecycle.Spec{Lease: &keyring.Lease{}, ExpireTime: start.Add(time.Hour)}).Key.ID
	if changed, err := w.keeper.RotateForJob(t.Context(), leased, "job-2", byTest(), lifecycle.RotateWish{}); err != nil || changed {
		t.Errorf("a leased key: %v, %v", changed, err)
	}
	if _, err := w.keeper.RotateForJob(t.Context(), "nobody", "job-2", byTest(), lifecycle.RotateWish{}); !errors.Is(err, lifecycle.ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
}

// TestAPostponedKeyIsTakenUpAgain: a key that could not be read was filed
// again without it; once it can be read, it goes on.
func TestAPostponedKeyIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	intact, err := w.memory.Get(t.Context(), "key/"+id)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.memory.Put(t.Context(), &logical.StorageEntry{Key: "key/" + id, Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	w.crash()
	w.clock.Advance(24 * time.Hour)
	minute := w.clock.Now().Unix() / 60
	if _, err := w.keeper.Store.DueMinutes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.keeper.Apply(t.Context(), id, minute, false); !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("Apply = %v", err)
	}
	for range 3 {
		later := w.clock.Now().Add(time.Hour)
		if _, err := w.keeper.Store.Postpone(t.Context(), id, minute, later); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Hour)
		minute = later.Unix() / 60
		if err := w.tick(); !errors.Is(err, store.ErrDamaged) {
			t.Fatalf("the tick answered %v", err)
		}
	}
	if err := w.memory.Put(t.Context(), intact); err != nil {
		t.Fatal(err)
	}
	w.run(2*time.Hour, func() { w.checkServed(id) })
	if got := w.key(id).Latest(); got != 2 {
		t.Errorf("there are %d versions", got)
	}
	w.check()
	if left := w.memory.Paths("due/"); len(left) != 1 {
		t.Errorf("filed are %q", left)
	}
}

// TestRefileFindsLostKeys: living ones and unfinished deletions.
func TestRefileFindsLostKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	living := w.create(lifecycle.Spec{Name: "living"}).Key.ID
	gone := w.create(lifecycle.Spec{Name: "gone"}).Key.ID
	w.faulty.Inject(storetest.Fault{At: 4, WritesOnly: true, Rest: true})
	_ = w.keeper.Delete(t.Context(), gone, byTest())
	w.crash()
	if k := w.key(gone); k == nil || k.Cleanup == nil {
		t.Fatalf("the deletion is not half done: %+v", k)
	}
	for _, path := range append(w.memory.Paths("due/"), w.memory.Paths("dueh/")...) {
		if err := w.memory.Delete(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	w.crash()
	w.clock.Advance(30 * time.Hour)
	w.mustTick()
	for _, id := range []string{living, gone, "nobody"} {
		if err := w.keeper.Refile(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.counting.Reset()
	if err := w.keeper.Refile(t.Context(), living); err != nil || w.counting.Total().Writes() != 0 {
		t.Errorf("filed twice: %v, %v", w.counting.Ops(), err)
	}
	w.run(2*time.Hour, func() { w.checkServed(living) })
	if got := w.key(living).Latest(); got != 2 {
		t.Errorf("there are %d versions", got)
	}
	if w.key(gone) != nil || w.has("name/gone") {
		t.Error("the deletion was not finished")
	}
	w.check()
}

// TestClockSetBack: nothing recorded is undone, and nothing happens twice.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	made := w.create(lifecycle.Spec{Name: "a"})
	id := made.Key.ID
	w.rotate(id, lifecycle.RotateWish{})
	w.run(2*time.Hour, nil)
	w.expectStates(id, "1 retired, 2 active")
	w.clock.Leap(-90 * time.Minute)
	w.mustTick()
	w.expectStates(id, "1 retired, 2 active")
	if code := w.verify(made.Token); code != record.CodeRetired {
		t.Errorf("with the clock set back the retired token is %s", code)
	}
	again := w.rotate(id, lifecycle.RotateWish{})
	if v, _ := again.Key.Version(2); v.AcceptedUntil.Before(w.key(id).Recorded.Add(time.Hour)) {
		t.Errorf("the overlap ends at %s and was recorded at %s", v.AcceptedUntil, w.key(id).Recorded)
	}
	w.crash()
	w.mustTick()
	w.check()
	w.run(4*time.Hour, func() { w.checkServed(id) })
	w.expectStates(id, "1 retired, 2 retired, 3 active")
	w.check()
}

// TestExtendUntilDrained: with extend_until_drained the old
// version is accepted as long as it is used, at most for max_overlap_period.
func TestExtendUntilDrained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.role("patient", func(r *role.Role) {
		r.ExtendUntilDrained, r.MaxOverlapPeriod, r.RotationPeriod = true, 10*time.Hour, 0
	})
	for _, drains := range []bool{true, false} {
		made := w.create(lifecycle.Spec{Name: fmt.Sprintf("drains-%v", drains), Role: "patient"})
		id := made.Key.ID
		w.rotate(id, lifecycle.RotateWish{})
		promoted := w.clock.Now()
		source := usage.SourceName("caller", "eu")
		use := func(version int) { w.keeper.Usage.Record(w.clock.Now(), id, version, source, true) }
		use(1)
		w.run(3*time.Hour, func() { use(1) })
		w.expectStates(id, "1 retiring, 2 active")
		if drains {
			use(2)
			w.run(90*time.Minute, nil)
			w.expectStates(id, "1 retired, 2 active")
			if n := events(w.key(id), keyring.EventVersionDrained); n != 1 {
				t.Errorf("version.drained was recorded %d times", n)
			}
			continue
		}
		// A crash forgets all use; that is no drain, within a quiet period.
		w.crash()
		w.run(55*time.Minute, func() { w.checkServed(id) })
		w.expectStates(id, "1 retiring, 2 active")
		use(1)
		left := promoted.Add(10 * time.Hour).Sub(w.clock.Now())
		w.run(left-time.Second, nil)
		w.expectStates(id, "1 retiring, 2 active")
		w.run(time.Minute, nil)
		w.expectStates(id, "1 retired, 2 active")
	}
	w.check()
}

// TestARoleThatIsGone: a key without its role is damage, and can be deleted.
func TestARoleThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	if err := w.keeper.Store.DeleteRole(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	_, err := w.keeper.Rotate(t.Context(), id, lifecycle.RotateWish{}, byTest())
	if !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), `key "a"`) {
		t.Errorf("Rotate = %v", err)
	}
	if err := w.keeper.Delete(t.Context(), id, byTest()); err != nil || w.key(id) != nil {
		t.Errorf("Delete = %v", err)
	}
}

func TestDeletingWhatIsGoneSucceeds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a"}).Key.ID
	for range 3 {
		if err := w.keeper.Delete(t.Context(), id, byTest()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.keeper.Rotate(t.Context(), id, lifecycle.RotateWish{}, byTest()); !errors.Is(err, lifecycle.ErrNoKey) {
		t.Errorf("Rotate = %v", err)
	}
}

// TestRefileBringsBackWhatIsFiledTooLate: a key that is due tomorrow was filed
// for next year while the clock was wrong.
func TestRefileBringsBackWhatIsFiledTooLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.create(lifecycle.Spec{Name: "a", Role: "r"}).Key.ID
	right := w.key(id).NextTick
	if err := w.keeper.Store.CommitKey(t.Context(), w.key(id), w.key(id).Clone(), start.Add(365*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.crash()
	for range 2 {
		if err := w.keeper.Refile(t.Context(), id); err != nil || w.key(id).NextTick != right {
			t.Fatalf("the key is filed %d minutes late: %v", w.key(id).NextTick-right, err)
		}
		w.counting.Reset()
	}
	if n := w.counting.Total().Writes(); n != 0 {
		t.Errorf("a key that is filed as it is due costs %d writes", n)
	}
	w.run(25*time.Hour, func() {})
	if w.key(id).Latest() != 2 {
		t.Errorf("a day later the key has version %d", w.key(id).Latest())
	}
}
