// SPDX-License-Identifier: MPL-2.0

package lifecycle_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// TestVersionTTLNeverLeavesAGap: an engine that ticks, if late, gives a key a
// successor before the age of its active version ends it, whatever delayed the
// rotation.
func TestVersionTTLNeverLeavesAGap(t *testing.T) {
	t.Parallel()
	daily := func(ttl time.Duration, change func(*role.Role)) func(*role.Role) {
		return func(r *role.Role) {
			r.RotationPeriod, r.VersionTTL = 24*time.Hour, ttl
			if change != nil {
				change(r)
			}
		}
	}
	rollback := func(w *world, id string) {
		w.update(id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
			return k.Rollback(keyring.Cause{Now: now}, r.Policy(), keyring.RollbackOptions{Overlap: r.OverlapPeriod})
		})
	}
	for name, c := range map[string]struct {
		role func(*role.Role)
		// down is how long nothing runs at first; then do happens.
		down time.Duration
		do   func(w *world, id string)
	}{
		"nothing":                   {role: daily(25*time.Hour, nil)},
		"an age of just the period": {role: daily(24*time.Hour, func(r *role.Role) { r.OverlapPeriod = 0 })},
		"a short period": {role: func(r *role.Role) {
			r.RotationPeriod, r.VersionTTL, r.OverlapPeriod = 10*time.Minute, 10*time.Minute, 0
		}},
		"an activation delay": {role: daily(26*time.Hour, func(r *role.Role) { r.ActivationDelay = time.Hour })},
		"catching up":         {role: daily(25*time.Hour, nil), down: 24*time.Hour + 30*time.Minute},
		"a missed window": {role: func(r *role.Role) {
			r.RotationPeriod, r.RotationSchedule, r.RotationWindow = 0, "0 0 * * *", time.Hour
			r.OverlapPeriod, r.VersionTTL = 6*time.Hour, 30*time.Hour
		}, down: 25*time.Hour + 10*time.Minute},
		"a rollback": {role: daily(25*time.Hour, nil), down: 24 * time.Hour, do: func(w *world, id string) {
			w.mustTick()
			w.rotate(id, lifecycle.RotateWish{})
			rollback(w, id)
		}},
		"a late rollback": {role: daily(48*time.Hour, nil), down: 47*time.Hour + 50*time.Minute, do: func(w *world, id string) {
			w.rotate(id, lifecycle.RotateWish{})
			rollback(w, id)
		}},
		"a long delay": {role: daily(25*time.Hour, nil), down: 22 * time.Hour, do: func(w *world, id string) {
			w.rotate(id, lifecycle.RotateWish{ActivationDelay: new(10 * time.Hour)})
		}},
		"a full window": {role: daily(25*time.Hour, func(r *role.Role) { r.MaxAcceptedVersions, r.MaxOverlapPeriod = 2, 72*time.Hour }), down: 20 * time.Hour, do: func(w *world, id string) {
			// The new version lives until hour 45, the old one until hour 60.
			w.update(id, func(k *keyring.Key, _ *role.Role, _ time.Time) (*keyring.Key, error) {
				k = k.Clone()
				k.Versions[0].ExpireTime = time.Time{}
				return k, nil
			})
			w.rotate(id, lifecycle.RotateWish{Overlap: new(40 * time.Hour)})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.role("aging", c.role)
			w.clock.Advance(7 * time.Second)
			var ids []string
			for i := range 10 {
				ids = append(ids, w.create(lifecycle.Spec{Name: fmt.Sprintf("key-%d", i), Role: "aging"}).Key.ID)
			}
			w.clock.Advance(c.down)
			if c.do != nil {
				for _, id := range ids {
					c.do(w, id)
				}
			}
			w.crash()
			end := w.clock.Now().Add(55 * time.Hour)
			w.mustTick() // the first after an outage
			for step := 0; w.clock.Now().Before(end) && !t.Failed(); step++ {
				w.clock.Advance(20 * time.Second)
				for _, id := range ids {
					k := w.key(id)
					if active, ok := k.Active(); !ok || !active.AcceptedAt(w.clock.Now()) {
						t.Errorf("%s after the start %s has no accepted active version: %s", w.clock.Now().Sub(start), k.Label(), w.states(id))
					}
				}
				if step%3 == 0 {
					w.mustTick()
				}
			}
			for _, id := range ids {
				if k := w.key(id); k.Latest() < 2 || k.Latest() > 8 && name != "a short period" {
					t.Errorf("%s is at version %d", k.Label(), k.Latest())
				}
			}
			w.check()
		})
	}
}

// TestAPendingVersionTakesThePlaceOfOneThatAgeHasEnded: also where it was
// stored with a later promotion.
func TestAPendingVersionTakesThePlaceOfOneThatAgeHasEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.role("aging", func(r *role.Role) { r.RotationPeriod, r.VersionTTL = 0, 2*time.Hour })
	id := w.create(lifecycle.Spec{Name: "a", Role: "aging"}).Key.ID
	w.rotate(id, lifecycle.RotateWish{ActivationDelay: new(time.Hour)})
	w.update(id, func(k *keyring.Key, _ *role.Role, now time.Time) (*keyring.Key, error) {
		k = k.Clone()
		k.Versions[1].PromoteAt = now.Add(6 * time.Hour)
		return k, nil
	})
	w.run(2*time.Hour+time.Minute, nil)
	w.expectStates(id, "1 retired, 2 active")
}

// TestARollbackIsNotUndoneAtOnce: a version that comes back with less than an
// overlap left of its age is not replaced in the next minute.
func TestARollbackIsNotUndoneAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.role("aging", func(r *role.Role) { r.VersionTTL = 25 * time.Hour })
	id := w.create(lifecycle.Spec{Name: "a", Role: "aging"}).Key.ID
	w.run(24*time.Hour+20*time.Minute, nil)
	w.update(id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		return k.Rollback(keyring.Cause{Now: now}, r.Policy(), keyring.RollbackOptions{Overlap: r.OverlapPeriod})
	})
	w.run(19*time.Minute, nil)
	w.expectStates(id, "1 active, 2 retiring")
	w.run(3*time.Minute, nil)
	w.expectStates(id, "1 retiring, 2 retiring, 3 active")
}
