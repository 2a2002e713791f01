// SPDX-License-Identifier: MPL-2.0

package lifecycle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// scenario is an operation that is cut off at each of its storage operations.
type scenario struct {
	// prepare makes the world before the operation and returns the id of the
	// key that it is about, "" where the operation makes the key.
	prepare func(w *world) string
	// do is the operation. It may be repeated.
	do func(w *world, id string) error
	// ends tells that the operation ends the key for good, or leaves it without
	// an active version.
	ends bool
	// unfiled tells that the key is missing from the due index beforehand.
	unfiled bool
}

func transition(change func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error)) func(*world, string) error {
	return func(w *world, id string) error {
		_, _, _, err := w.keeper.Update(w.t.Context(), id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
			return change(k, r.Policy(), keyring.Cause{Now: now, Actor: "test"})
		})
		return err
	}
}

func tickAt(d time.Duration) func(w *world, id string) error {
	return func(w *world, _ string) error {
		if at := start.Add(d); w.clock.Now().Before(at) {
			w.clock.Advance(at.Sub(w.clock.Now()))
		}
		return w.tick()
	}
}

func fresh(w *world) string { return w.create(lifecycle.Spec{Name: "client"}).Key.ID }

func rotated(wish lifecycle.RotateWish) func(w *world) string {
	return func(w *world) string {
		id := fresh(w)
		w.clock.Advance(10 * time.Minute)
		w.rotate(id, wish)
		w.clock.Advance(10 * time.Minute)
		return id
	}
}

func leased(w *world) string {
	return w.create(lifecycle.Spec{Lease: &keyring.Lease{EntityID: "e"}, ExpireTime: start.Add(time.Hour)}).Key.ID
}

func remove(w *world, id string) error {
	if k, err := w.keeper.Store.Key(w.t.Context(), id); err != nil || k == nil {
		return err
	}
	return w.keeper.Delete(w.t.Context(), id, byTest())
}

const importedToken = "imported-0123456789"

func scenarios() map[string]scenario {
	minute := func(n int) *time.Duration { return new(time.Duration(n) * time.Minute) }
	return map[string]scenario{
		"create": {
			prepare: func(*world) string { return "" },
			do: func(w *world, _ string) error {
				made, err := w.keeper.Create(w.t.Context(), lifecycle.Spec{Name: "client", Role: "r"}, byTest())
				w.note(made)
				return err
			},
		},
		"import": {
			prepare: func(*world) string { return "" },
			do: func(w *world, _ string) error {
				_, err := w.keeper.Create(w.t.Context(), lifecycle.Spec{Name: "client", Role: "r", ImportToken: importedToken}, byTest())
				return err
			},
		},
		"rotate": {
			prepare: fresh,
			do: func(w *world, id string) error {
				made, err := w.keeper.Rotate(w.t.Context(), id, lifecycle.RotateWish{RequestID: "once"}, byTest())
				w.note(made)
				return err
			},
		},
		"rotate with a delay": {
			prepare: fresh,
			do: func(w *world, id string) error {
				made, err := w.keeper.Rotate(w.t.Context(), id, lifecycle.RotateWish{RequestID: "once", ActivationDelay: minute(30)}, byTest())
				w.note(made)
				return err
			},
		},
		"promote": {
			prepare: rotated(lifecycle.RotateWish{ActivationDelay: minute(60)}),
			do: transition(func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error) {
				if _, pending := k.Pending(); !pending {
					return k, nil
				}
				return k.Promote(c, p, 0)
			}),
		},
		"rollback": {
			prepare: rotated(lifecycle.RotateWish{}),
			do: transition(func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error) {
				if active, _ := k.Active(); active.Number == 1 {
					return k, nil
				}
				return k.Rollback(c, p, keyring.RollbackOptions{Version: 1, Overlap: time.Hour})
			}),
		},
		"extend": {
			prepare: rotated(lifecycle.RotateWish{}),
			do: transition(func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error) {
				if v, _ := k.Version(1); v.OverlapEnds.After(start.Add(3 * time.Hour)) {
					return k, nil
				}
				return k.Extend(c, p, 1, 4*time.Hour)
			}),
		},
		"retire": {
			prepare: rotated(lifecycle.RotateWish{}),
			do: transition(func(k *keyring.Key, _ keyring.Policy, c keyring.Cause) (*keyring.Key, error) {
				if v, _ := k.Version(1); v.State == keyring.StateRetired {
					return k, nil
				}
				return k.Retire(c, 1, nil, true)
			}),
		},
		"revoke with a successor": {
			prepare: fresh,
			do: func(w *world, id string) error {
				made, _, err := w.keeper.Revoke(w.t.Context(), id, keyring.RevokeOptions{Version: 1, Compromised: true}, true, byTest())
				w.note(made)
				return err
			},
		},
		"revoke all": {
			prepare: rotated(lifecycle.RotateWish{}),
			do: func(w *world, id string) error {
				_, _, err := w.keeper.Revoke(w.t.Context(), id, keyring.RevokeOptions{All: true, Force: true}, false, byTest())
				return err
			},
			ends: true,
		},
		"delete": {prepare: fresh, do: remove, ends: true},
		"delete an import": {
			prepare: func(w *world) string {
				return w.create(lifecycle.Spec{Name: "client", ImportToken: importedToken}).Key.ID
			},
			do: remove, ends: true,
		},
		"delete what leaked": {
			prepare: func(w *world) string {
				id := w.create(lifecycle.Spec{Name: "client", ImportToken: importedToken}).Key.ID
				if _, _, err := w.keeper.Revoke(w.t.Context(), id, keyring.RevokeOptions{Version: 1, Compromised: true}, true, byTest()); err != nil {
					w.t.Fatal(err)
				}
				return id
			},
			do: remove, ends: true,
		},
		"finish a deletion": {
			prepare: func(w *world) string {
				id := w.create(lifecycle.Spec{Name: "client", ImportToken: importedToken}).Key.ID
				w.faulty.Inject(storetest.Fault{At: 4, WritesOnly: true, Rest: true})
				_ = w.keeper.Delete(w.t.Context(), id, byTest())
				w.crash()
				if k := w.key(id); k == nil || k.Deleted.IsZero() || k.Cleanup == nil {
					w.t.Fatalf("the deletion is not half done: %+v", k)
				}
				return id
			},
			do: tickAt(2 * time.Minute), ends: true,
		},
		"rotate for a job": {
			prepare: fresh,
			do: func(w *world, id string) error {
				_, err := w.keeper.RotateForJob(w.t.Context(), id, "job", byTest(), lifecycle.RotateWish{})
				return err
			},
		},
		"a tick rotates":            {prepare: fresh, do: tickAt(24 * time.Hour)},
		"a tick rotates what waits": {prepare: fresh, do: tickAt(240 * time.Hour)},
		"a tick promotes":           {prepare: rotated(lifecycle.RotateWish{ActivationDelay: minute(30)}), do: tickAt(40 * time.Minute)},
		"a tick retires":            {prepare: rotated(lifecycle.RotateWish{}), do: tickAt(70 * time.Minute)},
		"a tick drops plaintext": {
			prepare: func(w *world) string {
				id := rotated(lifecycle.RotateWish{})(w)
				w.clock.Advance(time.Hour)
				w.mustTick()
				return id
			},
			do: tickAt(190 * time.Minute),
		},
		"a tick ends a lease": {prepare: leased, do: tickAt(time.Hour), ends: true},
		"a tick forgets a lease": {
			prepare: func(w *world) string {
				id := leased(w)
				w.clock.Advance(time.Hour)
				w.mustTick()
				return id
			},
			do: tickAt(25 * time.Hour), ends: true,
		},
		"reschedule": {
			prepare: func(w *world) string {
				id := fresh(w)
				w.role("r", func(r *role.Role) { r.RotationPeriod = 12 * time.Hour })
				return id
			},
			do: func(w *world, id string) error { return w.keeper.Reschedule(w.t.Context(), id) },
		},
		"refile": {
			prepare: func(w *world) string {
				id := fresh(w)
				for _, path := range append(w.memory.Paths("due/"), w.memory.Paths("dueh/")...) {
					if err := w.memory.Delete(w.t.Context(), path); err != nil {
						w.t.Fatal(err)
					}
				}
				w.crash()
				w.clock.Advance(25 * time.Hour)
				w.mustTick()
				if !w.keeper.Store.LostFiling(w.key(id).NextTick) {
					w.t.Fatal("the filing is not lost")
				}
				return id
			},
			do: func(w *world, id string) error {
				if err := w.tick(); err != nil {
					return err
				}
				return w.keeper.Refile(w.t.Context(), id)
			},
			unfiled: true,
		},
	}
}

// state is what a transition changes of a key, byte for byte. The place in the
// due index is proved apart.
func state(k *keyring.Key) string {
	if k == nil {
		return "none"
	}
	c := k.Clone()
	c.NextTick = 0
	text, err := json.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestEveryCrash cuts off each operation at each of its storage operations,
// with the process lost or going on, and with the operation that failed having
// taken effect or not. In each case the key is in the state before or after a
// commit, an accepted version is there all the time, everything due is done
// later, and the operation can be repeated.
func TestEveryCrash(t *testing.T) {
	t.Parallel()
	for name, sc := range scenarios() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := newWorld(t)
			id := sc.prepare(base)
			moment := base.clock.Now()
			branch := func(t *testing.T) *world {
				w := &world{t: t, clock: clock.NewManual(moment), memory: base.memory.Clone(), rand: newRepeatable(9), issued: slices.Clone(base.issued)}
				w.open()
				return w
			}
			allowed := commits(branch(t), sc, id)
			for _, rest := range []bool{true, false} {
				for _, applied := range []bool{false, true} {
					for n := 1; ; n++ {
						reached := true
						t.Run(fmt.Sprintf("operation %d, lost %v, applied %v", n, rest, applied), func(t *testing.T) {
							w := branch(t)
							w.faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: rest})
							err := sc.do(w, id)
							reached = w.faulty.Failed() > 0
							w.faulty.Heal()
							if err != nil && !errors.Is(err, storetest.ErrInjected) {
								t.Fatalf("the operation answered %v", err)
							}
							recovered(w, sc, id, rest, allowed)
						})
						if !reached {
							break
						}
					}
				}
			}
		})
	}
}

// commits runs the operation undisturbed and returns the states that the key
// was in, each a commit.
func commits(w *world, sc scenario, id string) []string {
	w.t.Helper()
	states := []string{state(w.stored(clientID(w, id)))}
	w.faulty.After(func(op storetest.Op) {
		if op.Kind.Write() {
			if s := state(w.stored(clientID(w, id))); s != states[len(states)-1] {
				states = append(states, s)
			}
		}
	})
	if err := sc.do(w, id); err != nil {
		w.t.Fatalf("undisturbed, the operation fails: %v", err)
	}
	w.faulty.After(nil)
	w.check()
	return states
}

// clientID is the id of the key that a scenario is about, also where it is the
// operation that makes it.
func clientID(w *world, id string) string {
	if id != "" {
		return id
	}
	for _, id := range w.ids() {
		if k := w.stored(id); k.Deleted.IsZero() && k.Name == "client" {
			return id
		}
	}
	return "none"
}

func recovered(w *world, sc scenario, id string, lost bool, allowed []string) {
	w.t.Helper()
	t := w.t
	if lost {
		w.crash()
	}
	// What the process believes is what is stored, and is old or new.
	now := clientID(w, id)
	stored := w.stored(now)
	if got := state(w.key(now)); got != state(stored) {
		t.Errorf("the process believes %s, and stored is %s", got, state(stored))
	}
	if !slices.Contains(allowed, state(stored)) {
		t.Errorf("the key is in none of the states %q, but %s", allowed, state(stored))
	}
	if !sc.unfiled {
		w.check()
	}
	living := func() bool {
		k := w.stored(clientID(w, id))
		return k != nil && k.Deleted.IsZero() && !k.Leased()
	}
	if living() && !sc.ends {
		w.checkServed(now)
	}
	// A minute later the tick has caught up, and the operation is repeated.
	w.clock.Advance(time.Minute)
	w.mustTick()
	switch err := sc.do(w, id); {
	case errors.Is(err, lifecycle.ErrExists):
		// Created, but never answered: its client gets its key by a rotation.
		made := w.rotate(clientID(w, id), lifecycle.RotateWish{})
		if code := w.verify(made.Token); code != record.CodeValid {
			t.Errorf("after a rotation the token is %s", code)
		}
	case errors.Is(err, lifecycle.ErrNoKey) && sc.ends:
	case err != nil:
		t.Fatalf("repeated, the operation answers %v", err)
	}
	w.check()
	// Days later everything due has been done.
	days := 51 * time.Hour
	if raceEnabled {
		days = 27 * time.Hour
	}
	w.run(days, func() {
		w.check()
		if living() && !sc.ends {
			w.checkServed(clientID(w, id))
		}
	})
	if !sc.ends && !living() {
		t.Fatal("the key is gone")
	}
	for _, id := range w.ids() {
		k := w.stored(id)
		if k.Deleted.IsZero() && !k.Leased() && !k.Dormant() && w.clock.Now().Sub(k.LastRotation) > 24*time.Hour+2*time.Minute {
			t.Errorf("%s was last rotated at %s, and it is %s", k.Label(), k.LastRotation, w.clock.Now())
		}
		if !k.Deleted.IsZero() && (k.Cleanup != nil || k.NextTick != 0) {
			t.Errorf("the deletion of %s was never finished", id)
		}
		if k.Leased() {
			t.Errorf("an ended leased key is still there: %s", state(k))
		}
	}
	for _, path := range w.memory.Paths("name/") {
		if living() != (path == "name/client") {
			t.Errorf("a name is left: %q", path)
		}
	}
	if err := storetest.Scan(w.memory, w.issued...); err != nil {
		t.Error(err)
	}
}
