// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

// situations are keys with a version, the subject, in each state. A retired
// version counts twice: inside its rollback window, and past it ("spent").
// Each tells the subject and the time at which the transition comes.
var situations = []struct {
	name string
	make func(f *fixture) (subject int, when time.Duration)
}{
	{"pending", func(f *fixture) (int, time.Duration) {
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: 10 * time.Minute}))
		return 2, time.Minute
	}},
	{"active", func(*fixture) (int, time.Duration) { return 1, time.Minute }},
	{"retiring", func(f *fixture) (int, time.Duration) {
		f.must(f.overlap(0, time.Hour))
		return 1, time.Minute
	}},
	{"retired", func(f *fixture) (int, time.Duration) {
		f.must(f.overlap(0, time.Hour))
		f.tick(time.Hour)
		return 1, 2 * time.Hour
	}},
	{"spent", func(f *fixture) (int, time.Duration) {
		f.must(f.overlap(0, time.Hour))
		f.tick(time.Hour)
		return 1, 25 * time.Hour
	}},
	{"revoked", func(f *fixture) (int, time.Duration) {
		f.must(f.overlap(0, time.Hour))
		f.must(f.revoke(0, keyring.RevokeOptions{Version: 1}))
		return 1, time.Minute
	}},
	{"compromised", func(f *fixture) (int, time.Duration) {
		f.must(f.overlap(0, time.Hour))
		f.must(f.revoke(0, keyring.RevokeOptions{Version: 1, Compromised: true}))
		return 1, time.Minute
	}},
}

const (
	pending     = keyring.StatePending
	active      = keyring.StateActive
	retiring    = keyring.StateRetiring
	retired     = keyring.StateRetired
	revoked     = keyring.StateRevoked
	compromised = keyring.StateCompromised
)

// TestEveryStateTimesEveryTransition has an entry for each pair: the state of
// the subject afterwards, or the rule that refuses the transition.
func TestEveryStateTimesEveryTransition(t *testing.T) {
	t.Parallel()
	type apply func(f *fixture, subject int, when time.Duration) change
	for _, row := range []struct {
		transition string
		apply      apply
		// In the order of situations: a State or an error.
		pending, active, retiring, retired, spent, revoked, compromised any
	}{
		{
			"Rotate", func(f *fixture, _ int, w time.Duration) change { return f.overlap(w, time.Hour) },
			keyring.ErrPendingExists, retiring, retiring, retired, retired, revoked, compromised,
		},
		{
			"Rotate without overlap", func(f *fixture, _ int, w time.Duration) change { return f.overlap(w, 0) },
			keyring.ErrPendingExists, retired, retiring, retired, retired, revoked, compromised,
		},
		{
			"Rotate with a delay", func(f *fixture, _ int, w time.Duration) change {
				return f.rotate(w, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour})
			},
			keyring.ErrPendingExists, active, retiring, retired, retired, revoked, compromised,
		},
		{
			"Promote", func(f *fixture, s int, w time.Duration) change { return f.promote(w, s) },
			active, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState,
		},
		{
			"Rollback", func(f *fixture, s int, w time.Duration) change {
				return f.rollback(w, keyring.RollbackOptions{Version: s, Overlap: time.Hour})
			},
			keyring.ErrWrongState, keyring.ErrWrongState, active, active, keyring.ErrNotRestorable, keyring.ErrFinal, keyring.ErrFinal,
		},
		{
			"Rollback by force", func(f *fixture, s int, w time.Duration) change {
				return f.rollback(w, keyring.RollbackOptions{Version: s, Overlap: time.Hour, Force: true})
			},
			keyring.ErrWrongState, keyring.ErrWrongState, active, active, keyring.ErrNotRestorable, keyring.ErrFinal, keyring.ErrFinal,
		},
		{
			"Rollback that revokes newer", func(f *fixture, s int, w time.Duration) change {
				return f.rollback(w, keyring.RollbackOptions{Version: s, Overlap: time.Hour, RevokeNewer: true})
			},
			keyring.ErrWrongState, keyring.ErrWrongState, active, active, keyring.ErrNotRestorable, keyring.ErrFinal, keyring.ErrFinal,
		},
		{
			"Extend", func(f *fixture, s int, w time.Duration) change { return f.extend(w, s, 48*time.Hour) },
			keyring.ErrWrongState, keyring.ErrWrongState, retiring, retiring, keyring.ErrNotRestorable, keyring.ErrFinal, keyring.ErrFinal,
		},
		{
			"Extend to an earlier end", func(f *fixture, s int, w time.Duration) change { return f.extend(w, s, time.Second) },
			keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrNotLater, retiring, keyring.ErrNotRestorable, keyring.ErrFinal, keyring.ErrFinal,
		},
		{
			"Extend past the maximum", func(f *fixture, s int, w time.Duration) change { return f.extend(w, s, 721*time.Hour) },
			keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrOverlapTooLong, keyring.ErrOverlapTooLong, keyring.ErrNotRestorable, keyring.ErrFinal, keyring.ErrFinal,
		},
		{
			"Retire in use", func(f *fixture, s int, w time.Duration) change { return f.retire(w, s, neverDrained, false) },
			keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrNotDrained, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState,
		},
		{
			"Retire drained", func(f *fixture, s int, w time.Duration) change { return f.retire(w, s, drained, false) },
			keyring.ErrWrongState, keyring.ErrWrongState, retired, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState,
		},
		{
			"Retire by force", func(f *fixture, s int, w time.Duration) change { return f.retire(w, s, neverDrained, true) },
			keyring.ErrWrongState, keyring.ErrWrongState, retired, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState, keyring.ErrWrongState,
		},
		{
			"Revoke", func(f *fixture, s int, w time.Duration) change { return f.revoke(w, keyring.RevokeOptions{Version: s}) },
			revoked, keyring.ErrEndsActive, revoked, revoked, revoked, revoked, compromised,
		},
		{
			"Revoke by force", func(f *fixture, s int, w time.Duration) change {
				return f.revoke(w, keyring.RevokeOptions{Version: s, Force: true})
			},
			revoked, revoked, revoked, revoked, revoked, revoked, compromised,
		},
		{
			"Revoke and rotate", func(f *fixture, s int, w time.Duration) change {
				return f.revokeRotate(w, keyring.RevokeOptions{Version: s})
			},
			revoked, revoked, revoked, revoked, revoked, revoked, compromised,
		},
		{
			"Revoke compromised", func(f *fixture, s int, w time.Duration) change {
				return f.revoke(w, keyring.RevokeOptions{Version: s, Compromised: true})
			},
			compromised, keyring.ErrEndsActive, compromised, compromised, compromised, compromised, compromised,
		},
		{
			"Revoke compromised and rotate", func(f *fixture, s int, w time.Duration) change {
				return f.revokeRotate(w, keyring.RevokeOptions{Version: s, Compromised: true})
			},
			compromised, compromised, compromised, compromised, compromised, compromised, compromised,
		},
		{
			"Revoke all by force", func(f *fixture, _ int, w time.Duration) change {
				return f.revoke(w, keyring.RevokeOptions{All: true, Force: true})
			},
			revoked, revoked, revoked, revoked, revoked, revoked, compromised,
		},
		{
			"EndLease", func(f *fixture, s int, w time.Duration) change { return f.endLease(w, s) },
			revoked, revoked, revoked, revoked, revoked, revoked, compromised,
		},
		{
			"Advance", func(f *fixture, _ int, w time.Duration) change {
				return func(k *keyring.Key) (*keyring.Key, error) { return k.Advance(at(w), f.p, neverDrained), nil }
			},
			pending, active, retiring, retired, retired, revoked, compromised,
		},
		{
			"Advance an hour later", func(f *fixture, _ int, w time.Duration) change {
				return func(k *keyring.Key) (*keyring.Key, error) { return k.Advance(at(w+time.Hour), f.p, neverDrained), nil }
			},
			active, active, retired, retired, retired, revoked, compromised,
		},
	} {
		for i, want := range []any{row.pending, row.active, row.retiring, row.retired, row.spent, row.revoked, row.compromised} {
			s := situations[i]
			t.Run(row.transition+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				f := named(t, policy())
				subject, when := s.make(f)
				if err, refusal := want.(error); refusal {
					f.refused(err, row.apply(f, subject, when))
					return
				}
				f.must(row.apply(f, subject, when))
				after, ok := want.(keyring.State)
				if !ok {
					t.Fatalf("the entry is a %T", want)
				}
				f.wantState(subject, after)
				f.k = reload(t, f.k)
				f.wantState(subject, after)
			})
		}
	}
}

// TestVersionsThatDoNotExist: a number that is not there is told as such, by
// every transition that takes one.
func TestVersionsThatDoNotExist(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
	for name, c := range map[string]change{
		"Promote":  f.promote(0, 9),
		"Rollback": f.rollback(0, keyring.RollbackOptions{Version: 9}),
		"Extend":   f.extend(0, 9, time.Hour),
		"Retire":   f.retire(0, 9, drained, false),
		"Revoke":   f.revoke(0, keyring.RevokeOptions{Version: 9}),
		"negative": f.extend(0, -1, time.Hour),
	} {
		if text := f.refused(keyring.ErrNoSuchVersion, c); text == "" {
			t.Errorf("%s: no text", name)
		}
	}
	f.must(f.endLease(0, 9)) // absent is success
}

// TestTheVersionMeantByDefault: the pending one, the one before the active,
// the only candidate, and none for a revocation.
func TestTheVersionMeantByDefault(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.refused(keyring.ErrWrongState, f.promote(0, 0))
	f.refused(keyring.ErrWrongState, f.extend(0, 0, time.Hour))
	f.refused(keyring.ErrWrongState, f.retire(0, 0, drained, false))
	f.refused(keyring.ErrNotRestorable, f.rollback(0, keyring.RollbackOptions{}))
	f.refused(keyring.ErrVersionNeeded, f.revoke(0, keyring.RevokeOptions{Force: true}))

	f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
	f.must(f.promote(0, 0))
	f.wantState(2, active)
	f.must(f.extend(0, 0, 2*time.Hour))
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 2*time.Hour)

	two := &fixture{t, f.k, f.p}
	two.must(two.overlap(time.Minute, time.Hour))
	two.refused(keyring.ErrVersionNeeded, two.extend(time.Minute, 0, 2*time.Hour))
	two.refused(keyring.ErrVersionNeeded, two.retire(time.Minute, 0, drained, false))
	two.must(two.rollback(time.Minute, keyring.RollbackOptions{Overlap: time.Hour}))
	two.wantState(2, active)

	f.must(f.retire(0, 0, drained, false))
	f.wantState(1, retired)
	f.must(f.rollback(0, keyring.RollbackOptions{Overlap: time.Hour}))
	f.wantState(1, active)
}
