// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

func TestCreateMakesVersionOneActive(t *testing.T) {
	t.Parallel()
	scopes := []string{"read"}
	meta := map[string]string{"team": "a"}
	p := policy()
	p.VersionTTL = 100 * time.Hour
	k := keyring.Create(keyring.Key{
		ID: "EXAMPLEkey01", Name: "billing", Imported: true, Scopes: &scopes, CustomMetadata: meta,
		History: make([]keyring.Event, 3, 10),
	}, at(0), p, material(1))
	scopes[0], meta["team"] = "write", "b"
	f := &fixture{t, k, p}
	f.wantState(1, active)
	f.wantTime("expire_time", f.version(1).ExpireTime, 100*time.Hour)
	f.wantTime("last_rotation", k.LastRotation, 0)
	if (*k.Scopes)[0] != "read" || k.CustomMetadata["team"] != "a" {
		t.Error("the key shares what its maker gave")
	}
	if !f.version(1).Imported || k.Schema != keyring.Schema || len(k.History) != 3 {
		t.Errorf("created %+v", k)
	}
}

func TestRevokedIsFinal(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 1}))
	f.wantCode(0, 1, record.CodeRevoked)
	f.refused(keyring.ErrFinal, f.rollback(0, keyring.RollbackOptions{Version: 1, Force: true}))
	f.refused(keyring.ErrFinal, f.extend(0, 1, time.Hour))
	f.must(f.overlap(0, time.Hour))
	f.tick(1000 * time.Hour)
	f.wantState(1, revoked)
	if len(f.version(1).Sealed) != 0 {
		t.Error("the plaintext of a revoked version is kept")
	}
}

func TestCompromisedIsOnlyReachedNeverLeft(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 1}))
	f.must(f.revoke(time.Minute, keyring.RevokeOptions{Version: 1, Compromised: true}))
	f.wantState(1, compromised)
	f.wantTime("ended_time", f.version(1).EndedTime, 0)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 0)
	same := f.k
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 1}))
	f.must(f.endLease(0, 1))
	f.must(f.revoke(time.Hour, keyring.RevokeOptions{Version: 1, Compromised: true}))
	if f.k != same {
		t.Error("what had ended as asked was changed")
	}
	f.must(f.revoke(time.Hour, keyring.RevokeOptions{All: true, Force: true}))
	f.wantState(1, compromised)
	f.wantState(2, revoked)
}

func TestRollbackThatRevokesNewerLeavesTheCompromised(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.revokeRotate(0, keyring.RevokeOptions{Version: 2, Compromised: true}))
	f.must(f.rollback(0, keyring.RollbackOptions{Version: 1, RevokeNewer: true}))
	f.wantState(2, compromised)
	f.wantState(3, revoked)
}

// TestTheNextPeriodCountsFromTheLastRotation, by whatever way it came.
func TestTheNextPeriodCountsFromTheLastRotation(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.rotate(time.Hour, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
	f.wantTime("last_rotation", f.k.LastRotation, time.Hour)
	f.tick(2 * time.Hour)
	f.wantTime("last_rotation", f.k.LastRotation, time.Hour)
	f.must(f.revokeRotate(3*time.Hour, keyring.RevokeOptions{Version: 2}))
	f.wantTime("last_rotation", f.k.LastRotation, 3*time.Hour)
	f.must(f.revoke(4*time.Hour, keyring.RevokeOptions{Version: 1}))
	f.must(f.overlap(4*time.Hour, 0))
	f.wantTime("last_rotation", f.k.LastRotation, 4*time.Hour)
}

// TestNothingThatShortensALifeLengthensIt ends what has a later or an earlier
// end already, in every way, and looks at the deadline.
func TestNothingThatShortensALifeLengthensIt(t *testing.T) {
	t.Parallel()
	for name, shorten := range map[string]func(f *fixture, when time.Duration) change{
		"retire": func(f *fixture, w time.Duration) change { return f.retire(w, 1, drained, true) },
		"revoke": func(f *fixture, w time.Duration) change { return f.revoke(w, keyring.RevokeOptions{Version: 1}) },
		"lease":  func(f *fixture, w time.Duration) change { return f.endLease(w, 1) },
		"rotate": func(f *fixture, w time.Duration) change { return f.overlap(w, 100*time.Hour) },
		"tick": func(*fixture, time.Duration) change {
			return func(k *keyring.Key) (*keyring.Key, error) { return k, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := named(t, policy())
			f.must(f.overlap(0, time.Hour))
			f.must(shorten(f, 30*time.Minute))
			f.tick(31 * time.Minute)
			if v := f.version(1); v.AcceptedUntil.After(t0.Add(time.Hour)) {
				t.Errorf("accepted until %s", v.AcceptedUntil)
			}
			f.tick(2 * time.Hour)
			if v := f.version(1); v.AcceptedUntil.After(t0.Add(time.Hour)) || v.EndedTime.After(t0.Add(time.Hour)) {
				t.Errorf("accepted until %s, ended %s", v.AcceptedUntil, v.EndedTime)
			}
		})
	}
	t.Run("revoke after the end", func(t *testing.T) {
		t.Parallel()
		f := named(t, policy())
		f.must(f.overlap(0, time.Hour))
		f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{Version: 1}))
		f.wantTime("ended_time", f.version(1).EndedTime, time.Hour)
		f.wantTime("accepted_until", f.version(1).AcceptedUntil, time.Hour)
	})
	t.Run("overlap scopes outlive an extension", func(t *testing.T) {
		t.Parallel()
		f := named(t, policy())
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, OverlapScopes: []string{"read"}}))
		f.tick(time.Hour)
		f.must(f.extend(time.Hour, 1, time.Hour))
		verdict := f.k.Verify(t0, keyring.Limits{Scopes: []string{"read", "write"}}, record.Query{Digest: digest(1)})
		if len(verdict.Scopes) != 1 {
			t.Errorf("scopes after the extension: %v", verdict.Scopes)
		}
	})
}

func TestPromotionCountsTheOverlapFromItsCommit(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.rotate(0, keyring.RotateOptions{Overlap: 24 * time.Hour, ActivationDelay: 30 * time.Minute, OverlapScopes: []string{"read"}}))
	f.wantAccepted(0, 1, 2)
	f.tick(29 * time.Minute)
	f.wantState(2, pending)
	// The tick comes a month late.
	month := 720 * time.Hour
	f.tick(month)
	f.wantState(2, active)
	f.wantState(1, retiring)
	f.wantTime("overlap_ends", f.version(1).OverlapEnds, month+24*time.Hour)
	f.wantTime("activated_time", f.version(2).ActivatedTime, month)
	f.wantAccepted(month, 1, 2)
	v := f.version(1)
	if v.SupersededBy != 2 || len(v.OverlapScopes) != 1 {
		t.Errorf("superseded %+v", v)
	}
	if v := f.version(2); !v.PromoteAt.IsZero() || v.PlannedOverlap != 0 || v.PlannedScopes != nil {
		t.Errorf("the plan outlived the promotion: %+v", v)
	}
}

func TestWindowFullNamesTheVersionInTheWay(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	text := f.refused(keyring.ErrWindowFull, f.overlap(2*time.Hour, 24*time.Hour))
	for _, want := range []string{"version 1 of key \"billing\"", "2026-01-02T00:00:00Z", "force=true", "max_accepted_versions is 3"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
	// Its end, recorded or not, makes room.
	f.must(f.overlap(24*time.Hour, 24*time.Hour))
	f.wantAccepted(24*time.Hour, 2, 3, 4)
}

func TestForceRetiresTheOldestEarly(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	f.must(f.rotate(2*time.Hour, keyring.RotateOptions{Overlap: 24 * time.Hour, Force: true}))
	f.wantAccepted(2*time.Hour, 2, 3, 4)
	f.wantState(1, retired)
	f.wantTime("ended_time", f.version(1).EndedTime, 2*time.Hour)
	f.wantTime("restorable_until", f.version(1).RestorableUntil, 26*time.Hour)
	// A role that lowered its window has several retired.
	f.p.MaxAccepted = 2
	f.must(f.rotate(3*time.Hour, keyring.RotateOptions{Overlap: 24 * time.Hour, Force: true}))
	f.wantAccepted(3*time.Hour, 4, 5)
	// Nothing that is left can be retired.
	f.p.MaxAccepted = 1
	f.k = named(t, f.p).k
	f.refused(keyring.ErrWindowFull, f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, Force: true}))
	f.must(f.overlap(0, 0))
}

func TestEmergencyNeverFailsForAFullWindow(t *testing.T) {
	t.Parallel()
	full := func(t *testing.T) *fixture {
		f := named(t, policy())
		f.must(f.overlap(0, 24*time.Hour))
		f.must(f.overlap(0, 24*time.Hour))
		f.refused(keyring.ErrWindowFull, f.overlap(0, time.Hour))
		f.p.MaxAccepted = 2 // and the role lowered it meanwhile
		return f
	}
	t.Run("cut-over", func(t *testing.T) {
		t.Parallel()
		f := full(t)
		f.must(f.overlap(time.Minute, 0))
		f.wantAccepted(time.Minute, 1, 2, 4)
	})
	t.Run("compromise", func(t *testing.T) {
		t.Parallel()
		f := full(t)
		f.must(f.revokeRotate(time.Minute, keyring.RevokeOptions{Version: 3, Compromised: true}))
		f.wantAccepted(time.Minute, 1, 2, 4)
		f.wantState(4, active)
	})
	t.Run("rollback that revokes newer", func(t *testing.T) {
		t.Parallel()
		f := full(t)
		f.must(f.retire(0, 1, neverDrained, true))
		f.p.MaxAccepted = 1
		f.must(f.rollback(time.Minute, keyring.RollbackOptions{Version: 1, Overlap: time.Hour, RevokeNewer: true}))
		f.wantAccepted(time.Minute, 1)
	})
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		f := full(t)
		f.must(f.revokeRotate(time.Minute, keyring.RevokeOptions{All: true, Compromised: true}))
		f.wantAccepted(time.Minute, 4)
	})
	t.Run("a pending version takes the place", func(t *testing.T) {
		t.Parallel()
		f := named(t, policy())
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
		f.must(f.revokeRotate(time.Minute, keyring.RevokeOptions{Version: 1, Compromised: true}))
		f.wantState(2, active)
		f.wantState(1, compromised)
		if f.k.Latest() != 2 {
			t.Errorf("a version %d was made beside the pending one", f.k.Latest())
		}
	})
	t.Run("disabled", func(t *testing.T) {
		t.Parallel()
		f := full(t)
		f.k = f.k.Clone()
		f.k.Disabled = true
		f.must(f.revoke(time.Minute, keyring.RevokeOptions{Version: 1, Compromised: true}))
		f.must(f.revokeRotate(time.Minute, keyring.RevokeOptions{Version: 3, Compromised: true}))
		f.wantCode(time.Minute, 1, record.CodeCompromised)
		f.wantCode(time.Minute, 3, record.CodeCompromised)
		f.wantCode(time.Minute, 4, record.CodeDisabled)
	})
}

func TestAnOverlapIsWithinTheMaximum(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.refused(keyring.ErrOverlapTooLong, f.overlap(0, 720*time.Hour+1))
	f.refused(keyring.ErrOverlapTooLong, f.overlap(0, -1))
	f.must(f.overlap(0, 720*time.Hour))
	f.refused(keyring.ErrOverlapTooLong, f.rollback(0, keyring.RollbackOptions{Version: 1, Overlap: 721 * time.Hour}))
}

func TestOneVersionIsPendingAtMost(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	wish := keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour, Force: true}
	f.must(f.rotate(0, wish))
	if text := f.refused(keyring.ErrPendingExists, f.rotate(0, wish)); !strings.Contains(text, "promote") {
		t.Errorf("%q does not name promote", text)
	}
	f.refused(keyring.ErrWrongState, f.promote(0, 1))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 2}))
	f.wantState(1, active)
	f.must(f.rotate(0, wish))
	f.wantState(3, pending)
	// A delay below zero is none.
	f.must(f.promote(0, 3))
	f.must(f.rotate(0, keyring.RotateOptions{ActivationDelay: -1}))
	f.wantState(4, active)
	f.wantAccepted(0, 1, 4)
}

func TestExtendMovesLaterNeverEarlier(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.refused(keyring.ErrNotLater, f.extend(time.Hour, 1, 22*time.Hour))
	f.refused(keyring.ErrNotLater, f.extend(time.Hour, 1, 23*time.Hour))
	f.refused(keyring.ErrNotLater, f.extend(time.Hour, 1, -time.Hour))
	f.must(f.extend(time.Hour, 1, 24*time.Hour))
	f.wantTime("overlap_ends", f.version(1).OverlapEnds, 25*time.Hour)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 25*time.Hour)
	// The limit counts from the promotion that superseded it, not from now.
	text := f.refused(keyring.ErrOverlapTooLong, f.extend(20*time.Hour, 1, 701*time.Hour))
	if !strings.Contains(text, "at most 700h0m0s:") {
		t.Errorf("%q does not say what fits", text)
	}
	f.must(f.extend(20*time.Hour, 1, 700*time.Hour))
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 720*time.Hour)
	f.refused(keyring.ErrOverlapTooLong, f.extend(21*time.Hour, 1, 1<<62))
}

func TestExtendRescuesClientsLeftBehind(t *testing.T) {
	t.Parallel()
	for _, recorded := range []bool{true, false} {
		f := named(t, policy())
		f.must(f.overlap(0, 24*time.Hour))
		if recorded {
			f.tick(24 * time.Hour)
		}
		f.wantCode(30*time.Hour, 1, record.CodeRetired)
		f.refused(keyring.ErrNotLater, f.extend(30*time.Hour, 1, 0))
		f.must(f.extend(30*time.Hour, 1, 12*time.Hour))
		f.wantCode(30*time.Hour, 1, record.CodeValid)
		f.wantCode(42*time.Hour, 1, record.CodeRetired)
		// The rollback window starts over at the new end.
		f.tick(50 * time.Hour)
		f.wantTime("restorable_until", f.version(1).RestorableUntil, 66*time.Hour)
		f.tick(66 * time.Hour)
		f.refused(keyring.ErrNotRestorable, f.extend(66*time.Hour, 1, time.Hour))
	}
}

func TestExtendHoldsToTheWindow(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	f.wantAccepted(time.Hour, 2, 3, 4)
	text := f.refused(keyring.ErrWindowFull, f.extend(time.Hour, 1, time.Hour))
	if !strings.Contains(text, "version 2") || strings.Contains(text, "force") {
		t.Errorf("%q", text)
	}
	// One that is accepted already needs no room, not even in a lowered window.
	f.p.MaxAccepted = 2
	f.must(f.extend(time.Hour, 2, 30*time.Hour))
	f.p.MaxAccepted = 1
	f.must(f.retire(time.Hour, 2, drained, true))
	f.must(f.retire(time.Hour, 3, drained, true))
	f.refused(keyring.ErrWindowFull, f.extend(time.Hour, 3, time.Hour))
}

func TestAVersionRetiredEarlyCanBeExtended(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.retire(time.Hour, 1, neverDrained, true))
	f.wantCode(time.Hour, 1, record.CodeRetired)
	f.must(f.extend(2*time.Hour, 1, time.Hour))
	f.wantCode(2*time.Hour, 1, record.CodeValid)
	f.wantTime("overlap_ends", f.version(1).OverlapEnds, 3*time.Hour)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 3*time.Hour)
	if v := f.version(1); !v.EndedTime.IsZero() || v.Reason != "" {
		t.Errorf("the end is still told: %+v", v)
	}
}

func TestRetireNeedsDrainOrForce(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	if text := f.refused(keyring.ErrNotDrained, f.retire(0, 1, neverDrained, false)); !strings.Contains(text, "still in use") {
		t.Errorf("%q does not give the evidence", text)
	}
	f.must(func(k *keyring.Key) (*keyring.Key, error) {
		return k.Retire(keyring.Cause{Now: t0, Reason: "all clients moved"}, 1, neverDrained, true)
	})
	if got := f.version(1).Reason; got != "all clients moved" {
		t.Errorf("reason %q", got)
	}
	f.wantAccepted(0, 2)
}

func TestDrainRetiresOnlyPastTheOverlap(t *testing.T) {
	t.Parallel()
	p := policy()
	p.ExtendUntilDrained = true
	f := named(t, p)
	f.must(f.overlap(0, 24*time.Hour))
	f.wantTime("overlap_ends", f.version(1).OverlapEnds, 24*time.Hour)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 720*time.Hour)
	f.tickWith(23*time.Hour, drained)
	f.wantState(1, retiring)
	f.tick(48 * time.Hour)
	f.wantState(1, retiring)
	f.wantCode(48*time.Hour, 1, record.CodeValid)
	f.tickWith(49*time.Hour, drained)
	f.wantState(1, retired)
	f.wantTime("ended_time", f.version(1).EndedTime, 49*time.Hour)
	f.wantEvents("version.drained v1", "version.retired v1")

	// By hand, while it is waited for.
	f.must(f.overlap(50*time.Hour, time.Hour))
	f.must(f.retire(60*time.Hour, 2, drained, false))
	f.wantState(2, retired)
	// A cut-over does not ask.
	f.must(f.overlap(61*time.Hour, 0))
	f.wantState(3, retired)
	f.wantCode(61*time.Hour, 3, record.CodeRetired)
}

func TestExtendWhileDrainIsWaitedFor(t *testing.T) {
	t.Parallel()
	p := policy()
	p.ExtendUntilDrained = true
	f := named(t, p)
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.extend(30*time.Hour, 1, 10*time.Hour))
	f.wantTime("overlap_ends", f.version(1).OverlapEnds, 40*time.Hour)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 720*time.Hour)
	f.tickWith(39*time.Hour, drained)
	f.wantState(1, retiring)
	f.tickWith(40*time.Hour, drained)
	f.wantState(1, retired)
}

func TestRollbackKeepsOtherDeadlines(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	f.must(f.rollback(2*time.Hour, keyring.RollbackOptions{Overlap: 24 * time.Hour}))
	f.wantState(2, active)
	f.wantTime("the end of version 1", f.version(1).AcceptedUntil, 24*time.Hour)
	f.wantTime("the end of version 3", f.version(3).AcceptedUntil, 26*time.Hour)
	f.wantTime("last_rotation", f.k.LastRotation, 2*time.Hour)
	v := f.version(2)
	if v.SupersededBy != 0 || !v.SupersededTime.IsZero() || !v.OverlapEnds.IsZero() || !v.AcceptedUntil.IsZero() || v.OverlapScopes != nil {
		t.Errorf("the overlap left its traces: %+v", v)
	}
	if got := f.version(3).SupersededBy; got != 2 {
		t.Errorf("version 3 is superseded by %d", got)
	}
	// And forward again.
	f.must(f.rollback(3*time.Hour, keyring.RollbackOptions{Version: 3, Overlap: 24 * time.Hour}))
	f.wantState(3, active)
	f.wantTime("the end of version 2", f.version(2).AcceptedUntil, 27*time.Hour)
	f.wantTime("the end of version 1", f.version(1).AcceptedUntil, 24*time.Hour)
	// The next number is still the next.
	f.must(f.rotate(4*time.Hour, keyring.RotateOptions{Overlap: time.Hour, Force: true}))
	f.wantState(4, active)
}

func TestRollbackRetiresThePendingOne(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
	revoking := &fixture{t, f.k, f.p}
	f.must(f.rollback(0, keyring.RollbackOptions{Overlap: time.Hour}))
	f.wantAccepted(0, 1, 2)
	f.wantState(3, retired)
	f.wantCode(0, 3, record.CodeRetired)
	if len(f.version(3).Sealed) != 0 {
		t.Error("a version that was never handed out keeps its plaintext")
	}
	f.refused(keyring.ErrNotRestorable, f.rollback(0, keyring.RollbackOptions{Version: 3, Force: true}))
	f.refused(keyring.ErrNotRestorable, f.extend(0, 3, time.Hour))

	revoking.must(revoking.rollback(0, keyring.RollbackOptions{RevokeNewer: true}))
	revoking.wantAccepted(0, 1)
	revoking.wantState(2, revoked)
	revoking.wantState(3, revoked)
}

func TestRollbackThatRevokesNewerSparesOlder(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.overlap(0, 24*time.Hour))
	f.must(f.rollback(0, keyring.RollbackOptions{Version: 2, RevokeNewer: true}))
	f.wantState(1, retiring)
	f.wantState(2, active)
	f.wantState(3, revoked)
	// Forward: the former active one goes too, though it is older.
	f.must(f.overlap(time.Hour, 24*time.Hour))
	f.must(f.rollback(time.Hour, keyring.RollbackOptions{Version: 1}))
	f.must(f.rollback(time.Hour, keyring.RollbackOptions{Version: 2, RevokeNewer: true}))
	f.wantState(1, revoked)
	f.wantState(2, active)
	f.wantState(4, revoked)
}

func TestRollbackHoldsToTheWindow(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	f.must(f.overlap(time.Hour, 24*time.Hour))
	back := keyring.RollbackOptions{Version: 1, Overlap: 24 * time.Hour}
	if text := f.refused(keyring.ErrWindowFull, f.rollback(2*time.Hour, back)); !strings.Contains(text, "version 2") {
		t.Errorf("%q does not name the version in the way", text)
	}
	f.wantAccepted(2*time.Hour, 2, 3, 4)
	cut := &fixture{t, f.k, f.p}
	cut.must(cut.rollback(2*time.Hour, keyring.RollbackOptions{Version: 1}))
	cut.wantAccepted(2*time.Hour, 1, 2, 3)
	back.Force = true
	f.must(f.rollback(2*time.Hour, back))
	f.wantAccepted(2*time.Hour, 1, 3, 4)
	f.wantState(2, retired)
}

func TestRollbackOfAVersionWithoutPlaintextNeedsForce(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.k = keyring.Create(keyring.Key{ID: "EXAMPLEkey01", Name: "billing"}, at(0), f.p, keyring.Material{Digest: digest(1)})
	f.must(f.overlap(0, 24*time.Hour))
	if text := f.refused(keyring.ErrPlaintextGone, f.rollback(0, keyring.RollbackOptions{})); !strings.Contains(text, "force=true") {
		t.Errorf("%q", text)
	}
	f.must(f.rollback(0, keyring.RollbackOptions{Force: true}))
	f.wantState(1, active)
}

func TestRollbackPastTheWindowNeedsMoreThanForce(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	for _, recorded := range []bool{false, true} {
		if recorded {
			f.tick(2 * time.Hour)
		}
		f.refused(keyring.ErrNotRestorable, f.rollback(25*time.Hour, keyring.RollbackOptions{Version: 1, Force: true}))
		last := &fixture{t, f.k, f.p}
		last.must(last.rollback(25*time.Hour-1, keyring.RollbackOptions{Version: 1}))
	}
	// A role without a rollback window gives none.
	f.p.RollbackWindow = 0
	f.must(f.overlap(30*time.Hour, time.Hour))
	f.tick(31 * time.Hour)
	if len(f.version(2).Sealed) != 0 {
		t.Error("plaintext is kept for no window")
	}
	f.refused(keyring.ErrNotRestorable, f.rollback(31*time.Hour, keyring.RollbackOptions{Version: 2, Force: true}))
}

// TestDeadlinesDoNotMoveWhenARoleChanges: the rollback window is that of the
// day on which the version was superseded.
func TestDeadlinesDoNotMoveWhenARoleChanges(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.p = keyring.Policy{MaxOverlap: time.Hour, RollbackWindow: time.Hour, MaxAccepted: 2, MaxVersions: 2, ExtendUntilDrained: true, VersionTTL: time.Hour}
	f.tick(2 * time.Hour)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 24*time.Hour)
	f.wantAccepted(2*time.Hour, 1, 2)
	f.tick(24 * time.Hour)
	f.wantTime("restorable_until", f.version(1).RestorableUntil, 48*time.Hour)
}

func TestDisabledKeyIsNotRotatedButItsDeadlinesRun(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
	f.k = f.k.Clone()
	f.k.Disabled = true
	f.refused(keyring.ErrDisabled, f.overlap(0, time.Hour))
	f.refused(keyring.ErrDisabled, f.promote(0, 0))
	f.refused(keyring.ErrDisabled, f.rollback(0, keyring.RollbackOptions{Version: 1}))
	if due := f.k.NextDue(t0.Add(time.Minute), f.p, neverDrained); !due.Equal(t0.Add(time.Hour)) {
		t.Errorf("due %s", due)
	}
	f.tick(2 * time.Hour)
	f.wantState(1, retired)
	f.wantState(3, pending)
	f.wantCode(2*time.Hour, 1, record.CodeDisabled)
	f.wantCode(2*time.Hour, 2, record.CodeDisabled)
	f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{Version: 1, Compromised: true}))
	f.wantCode(2*time.Hour, 1, record.CodeCompromised)
	// On enabling, what waited happens once, from now.
	f.k = f.k.Clone()
	f.k.Disabled = false
	f.tick(3 * time.Hour)
	f.wantState(3, active)
	f.wantTime("the end of version 2", f.version(2).AcceptedUntil, 4*time.Hour)
}

func TestClockSetBackReverdictsNothing(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.tick(2 * time.Hour)
	f.wantCode(0, 1, record.CodeRetired)
	f.wantCode(-1000*time.Hour, 1, record.CodeRetired)
	if got := f.k.Now(t0); !got.Equal(t0.Add(2 * time.Hour)) {
		t.Errorf("time runs below what was recorded: %s", got)
	}
	// Transitions count from what was recorded, not from the clock behind it.
	f.must(f.overlap(0, time.Hour))
	f.wantTime("overlap_ends", f.version(2).OverlapEnds, 3*time.Hour)
	f.wantTime("recorded", f.k.Recorded, 2*time.Hour)
	f.tick(0)
	f.wantAccepted(0, 2, 3)
	f.wantAccepted(2*time.Hour+59*time.Minute, 2, 3)
	// Scopes that were narrowed stay narrow.
	f.k = named(t, policy()).k
	f.p.ExtendUntilDrained = true
	f.must(f.overlap(0, time.Hour))
	f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{Version: 2, Compromised: true, Force: true}))
	narrow := keyring.Limits{Scopes: []string{"read", "write"}, OverlapScopes: []string{"read"}}
	if got := f.k.Verify(t0, narrow, record.Query{Digest: digest(1)}); len(got.Scopes) != 1 {
		t.Errorf("%+v", got)
	}
	f.must(f.overlap(3*time.Hour, time.Hour))
	// A deliberate end holds too, and the key is left alone by automation.
	f.must(f.revoke(-time.Hour, keyring.RevokeOptions{Version: 3, Force: true}))
	f.wantCode(-time.Hour, 3, record.CodeRevoked)
	if !f.k.Dormant() {
		t.Error("equal times hide which version was the last")
	}
}

func TestEndedByForceIsDormantUntilRevived(t *testing.T) {
	t.Parallel()
	dormant := func(t *testing.T) *fixture {
		p := policy()
		p.MaxVersions = 1
		p.RollbackWindow = 0
		f := named(t, p)
		f.must(f.overlap(0, 24*time.Hour))
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
		f.must(f.revoke(time.Minute, keyring.RevokeOptions{Version: 2, Force: true}))
		if _, ok := f.k.Active(); ok || !f.k.Dormant() {
			t.Fatal("there is an active version, or automation goes on")
		}
		return f
	}
	t.Run("automation leaves it alone", func(t *testing.T) {
		t.Parallel()
		f := dormant(t)
		f.tick(100 * time.Hour)
		f.wantState(3, pending)
		f.k = reload(t, f.k)
		if !f.k.Dormant() {
			t.Error("it is forgotten")
		}
		if due := f.k.NextDue(t0.Add(100*time.Hour), f.p, neverDrained); !due.IsZero() {
			t.Errorf("due %s", due)
		}
	})
	t.Run("promote", func(t *testing.T) {
		t.Parallel()
		f := dormant(t)
		f.must(f.promote(time.Hour, 0))
		f.wantState(3, active)
		if f.k.Dormant() {
			t.Error("still dormant")
		}
	})
	t.Run("rollback", func(t *testing.T) {
		t.Parallel()
		f := dormant(t)
		f.must(f.rollback(time.Hour, keyring.RollbackOptions{Version: 1}))
		f.wantEvents("key.rolled_back v1", "version.activated v1")
		if e := f.k.History[len(f.k.History)-2]; e.Detail != "from no active version" {
			t.Errorf("detail %q", e.Detail)
		}
		if f.k.Dormant() {
			t.Error("still dormant")
		}
	})
	t.Run("rotate", func(t *testing.T) {
		t.Parallel()
		f := dormant(t)
		f.must(f.revoke(time.Hour, keyring.RevokeOptions{Version: 3}))
		f.must(f.rotate(time.Hour, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
		f.wantState(4, active)
		if f.k.Dormant() {
			t.Error("still dormant")
		}
		f.wantTime("the end of version 1", f.version(1).AcceptedUntil, 24*time.Hour)
	})
	t.Run("its last active version is pruned", func(t *testing.T) {
		t.Parallel()
		p := keyring.Policy{MaxAccepted: 1, MaxVersions: 1, RollbackWindow: 24 * time.Hour}
		f := named(t, p)
		f.must(f.overlap(0, 0))
		f.must(f.rollback(time.Minute, keyring.RollbackOptions{Version: 1}))
		f.must(f.revoke(time.Hour, keyring.RevokeOptions{Version: 1, Force: true}))
		if _, kept := f.k.Version(1); kept || !f.k.Dormant() {
			t.Errorf("kept %t, dormant %t", kept, f.k.Dormant())
		}
	})
	t.Run("all, where none was active", func(t *testing.T) {
		t.Parallel()
		p := policy()
		p.VersionTTL = time.Hour
		f := named(t, p)
		f.tick(time.Hour)
		if f.k.Dormant() {
			t.Error("age is no force")
		}
		f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{All: true}))
		if !f.k.Dormant() {
			t.Error("automation goes on after all were revoked")
		}
	})
}

func TestPruneKeepsRestorableAndCompromised(t *testing.T) {
	t.Parallel()
	p := policy()
	p.MaxVersions = 3
	f := named(t, p)
	f.must(f.overlap(0, time.Hour))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 1, Compromised: true}))
	for i := range 5 { // versions 3 to 7, an hour apart: all in the rollback window
		f.must(f.overlap(time.Duration(i+1)*time.Hour, time.Hour))
	}
	numbers := func() (n []int) {
		for _, v := range f.k.Versions {
			n = append(n, v.Number)
		}
		return n
	}
	if got := numbers(); len(got) != 7 {
		t.Errorf("kept %v, want all", got)
	}
	// Each window ends a day after the end of the overlap; that of version 2 at 26h.
	f.tick(6 * time.Hour)
	for when, want := range map[time.Duration]int{25: 7, 26: 6, 27: 5, 29: 3, 1000: 3} {
		late := &fixture{t, f.k, f.p}
		late.tick(when * time.Hour)
		if got := len(late.k.Versions); got != want {
			t.Errorf("after %d h: %d versions, want %d", when, got, want)
		}
	}
	f.tick(1000 * time.Hour)
	if got := numbers(); got[0] != 1 || got[1] != 6 || got[2] != 7 {
		t.Errorf("kept %v, want 1 6 7", got)
	}
	f.wantCode(1000*time.Hour, 1, record.CodeCompromised)
	f.wantCode(1000*time.Hour, 2, record.CodeNotFound)
}

func TestNumbersAreNeverGivenOutAgain(t *testing.T) {
	t.Parallel()
	p := keyring.Policy{MaxAccepted: 1, MaxVersions: 1}
	f := named(t, p)
	f.must(f.revoke(0, keyring.RevokeOptions{All: true, Force: true}))
	f.tick(1000 * time.Hour)
	f.must(f.overlap(1000*time.Hour, 0))
	f.wantState(2, active)
	f.must(f.overlap(1000*time.Hour, 0))
	f.must(f.revoke(1000*time.Hour, keyring.RevokeOptions{All: true, Force: true}))
	f.must(f.overlap(1000*time.Hour, 0))
	f.wantState(4, active)
}

func TestPlaintextIsDroppedWhenTheRollbackWindowEnds(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	sealed := func() bool { return len(f.version(1).Sealed) > 0 }
	f.tick(time.Hour)
	if due := f.k.NextDue(t0.Add(time.Hour), f.p, neverDrained); !sealed() || !due.Equal(t0.Add(25*time.Hour)) {
		t.Errorf("sealed %t, due %s", sealed(), due)
	}
	f.tick(25*time.Hour - 1)
	if !sealed() {
		t.Error("dropped early")
	}
	f.tick(25 * time.Hour)
	if due := f.k.NextDue(t0.Add(25*time.Hour), f.p, neverDrained); sealed() || !due.IsZero() {
		t.Errorf("sealed %t, due %s", sealed(), due)
	}
	// Any transition does it, not only the tick.
	f = named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.overlap(30*time.Hour, time.Hour))
	if sealed() {
		t.Error("kept past the window")
	}
}

func TestVersionTTLIsAHardAge(t *testing.T) {
	t.Parallel()
	p := policy()
	p.VersionTTL = 100 * time.Hour
	t.Run("it ends the active version", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.wantCode(100*time.Hour-1, 1, record.CodeValid)
		f.wantCode(100*time.Hour, 1, record.CodeExpired)
		f.tick(101 * time.Hour)
		f.wantState(1, retired)
		f.wantTime("ended_time", f.version(1).EndedTime, 100*time.Hour)
		f.wantCode(101*time.Hour, 1, record.CodeExpired)
		f.refused(keyring.ErrNotRestorable, f.rollback(101*time.Hour, keyring.RollbackOptions{Version: 1, Force: true}))
		f.refused(keyring.ErrNotRestorable, f.extend(101*time.Hour, 1, time.Hour))
		f.wantTime("rotate_at", f.k.RotateAt, 101*time.Hour)
		// The key gets its next version at once, whatever the delay.
		f.must(f.rotate(102*time.Hour, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
		f.wantState(2, active)
		f.wantAccepted(102*time.Hour, 2)
		if !f.k.RotateAt.IsZero() {
			t.Error("rotate_at outlived the rotation")
		}
	})
	t.Run("recorded by a rotation", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.overlap(101*time.Hour, 24*time.Hour))
		f.wantCode(101*time.Hour, 1, record.CodeExpired)
		f.wantTime("ended_time", f.version(1).EndedTime, 100*time.Hour)
	})
	t.Run("recorded by a promotion", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.rotate(99*time.Hour, keyring.RotateOptions{Overlap: 24 * time.Hour, ActivationDelay: 2 * time.Hour}))
		f.wantCode(101*time.Hour, 1, record.CodeExpired)
		f.tick(101 * time.Hour)
		f.wantCode(101*time.Hour, 1, record.CodeExpired)
		f.wantState(2, active)
		if f.version(1).SupersededBy != 0 {
			t.Error("an expired version was given an overlap")
		}
	})
	t.Run("no overlap and no extension outlives it", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.overlap(90*time.Hour, 24*time.Hour))
		f.wantTime("accepted_until", f.version(1).AcceptedUntil, 100*time.Hour)
		f.wantTime("overlap_ends", f.version(1).OverlapEnds, 100*time.Hour)
		f.refused(keyring.ErrOverlapTooLong, f.extend(91*time.Hour, 1, 10*time.Hour))
		// It is both retired and expired; RETIRED is told first.
		f.wantCode(100*time.Hour, 1, record.CodeRetired)
		f.tick(100 * time.Hour)
		f.wantCode(100*time.Hour, 1, record.CodeRetired)
		f.refused(keyring.ErrNotRestorable, f.rollback(100*time.Hour, keyring.RollbackOptions{Version: 1, Force: true}))
	})
	t.Run("a rollback does not renew it", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.overlap(90*time.Hour, time.Hour))
		f.tick(91 * time.Hour)
		f.wantTime("restorable_until", f.version(1).RestorableUntil, 100*time.Hour)
		f.must(f.rollback(92*time.Hour, keyring.RollbackOptions{Version: 1, Overlap: 24 * time.Hour}))
		f.wantTime("expire_time", f.version(1).ExpireTime, 100*time.Hour)
		f.wantCode(100*time.Hour, 1, record.CodeExpired)
		f.wantAccepted(100*time.Hour, 2)
	})
	t.Run("only its end makes a rotation due", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.overlap(0, time.Hour))
		f.tick(2 * time.Hour)
		if !f.k.RotateAt.IsZero() {
			t.Errorf("the end of an overlap makes a rotation due at %s", f.k.RotateAt)
		}
		f.must(f.rotate(99*time.Hour, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: 5 * time.Hour}))
		f.tick(101 * time.Hour)
		if !f.k.RotateAt.IsZero() {
			t.Error("a rotation is due beside the pending version")
		}
	})
	t.Run("it counts from the promotion", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour}))
		f.tick(2 * time.Hour)
		f.wantTime("expire_time", f.version(2).ExpireTime, 102*time.Hour)
	})
}

func TestLateTickAcceptsNothingAndEndsNothingEarly(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	f.tick(24*time.Hour - 1)
	f.wantCode(24*time.Hour-1, 1, record.CodeValid)
	f.wantCode(24*time.Hour, 1, record.CodeRetired) // nothing has ticked
	f.tick(500 * time.Hour)
	f.wantTime("ended_time", f.version(1).EndedTime, 24*time.Hour)
	// The rollback window counts from the deadline, not from the tick.
	f.refused(keyring.ErrNotRestorable, f.rollback(500*time.Hour, keyring.RollbackOptions{Version: 1, Force: true}))
}

func TestARecordedRetirementKeepsTheOutcomeOfTransitions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]func(f *fixture) change{
		"rotate": func(f *fixture) change { return f.overlap(25*time.Hour, time.Hour) },
		"rollback": func(f *fixture) change {
			return f.rollback(25*time.Hour, keyring.RollbackOptions{Version: 1, Overlap: time.Hour})
		},
		"extend":   func(f *fixture) change { return f.extend(25*time.Hour, 1, time.Hour) },
		"revoke":   func(f *fixture) change { return f.revoke(25*time.Hour, keyring.RevokeOptions{Version: 1}) },
		"cut over": func(f *fixture) change { return f.revokeRotate(25*time.Hour, keyring.RevokeOptions{Version: 2}) },
	} {
		ticked, late := named(t, policy()), named(t, policy())
		for _, f := range []*fixture{ticked, late} {
			f.must(f.overlap(0, 24*time.Hour))
			if f == ticked {
				f.tick(25 * time.Hour)
			}
			f.must(c(f))
			f.k.History, f.k.Owed = nil, nil // the two differ in who recorded the end
		}
		if a, b := dump(t, ticked.k), dump(t, late.k); a != b {
			t.Errorf("%s: with a tick before\n%s\nwithout\n%s", name, a, b)
		}
	}
}

func TestAdvanceReturnsTheKeyItselfWhereNothingIsDue(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, 24*time.Hour))
	before := f.k
	f.tick(time.Hour)
	if f.k != before {
		t.Error("nothing was due, and the key changed")
	}
}

func TestNextDueIsTheNextDeadline(t *testing.T) {
	t.Parallel()
	p := policy()
	p.ExtendUntilDrained = true
	f := named(t, p)
	due := func(when time.Duration, check keyring.DrainCheck) time.Time {
		return f.k.NextDue(t0.Add(when), f.p, check)
	}
	if got := due(0, neverDrained); !got.IsZero() {
		t.Errorf("a quiet key is due %s", got)
	}
	f.must(f.rotate(0, keyring.RotateOptions{Overlap: 24 * time.Hour, ActivationDelay: time.Hour}))
	f.wantTime("due while pending", due(0, neverDrained), time.Hour)
	f.tick(time.Hour)
	f.wantTime("due in the overlap", due(time.Hour, neverDrained), 25*time.Hour)
	f.wantTime("due to tell that it is not drained", due(26*time.Hour, neverDrained), 25*time.Hour)
	f.tickWith(26*time.Hour, neverDrained)
	f.tickWith(26*time.Hour, neverDrained)
	f.wantEvents("version.activated v2", "overlap.extended v1") // told once
	f.wantTime("due past the overlap", due(26*time.Hour, neverDrained), 26*time.Hour+time.Minute)
	f.wantTime("due when it can drain", due(26*time.Hour, func(int) keyring.DrainVerdict {
		return keyring.DrainVerdict{Next: t0.Add(30 * time.Hour)}
	}), 30*time.Hour)
	f.wantTime("due at the last", due(721*time.Hour-time.Second, neverDrained), 721*time.Hour)
	f.tick(721 * time.Hour)
	f.wantTime("due for the plaintext", due(721*time.Hour, neverDrained), 745*time.Hour)
}

func TestBlockIsRecordedOnce(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	block := func(when time.Duration, reason string, retry time.Duration) {
		f.Helper()
		f.must(func(k *keyring.Key) (*keyring.Key, error) { return k.Block(at(when), reason, t0.Add(retry)), nil })
	}
	block(0, "full", time.Hour)
	f.wantEvents("version.activated v1", "rotation.blocked v0")
	same := f.k
	block(time.Minute, "full", time.Hour)
	if f.k != same {
		t.Error("recorded twice")
	}
	block(time.Hour, "full", 2*time.Hour)
	f.wantEvents("version.activated v1", "rotation.blocked v0")
	f.wantTime("rotate_at", f.k.RotateAt, 2*time.Hour)
	block(time.Hour, "pending", 2*time.Hour)
	f.wantEvents("rotation.blocked v0", "rotation.blocked v0")
	f.must(f.overlap(2*time.Hour, time.Hour))
	if f.k.Blocked != "" || !f.k.RotateAt.IsZero() {
		t.Error("still blocked after the rotation")
	}
	block(2*time.Hour, "full", 3*time.Hour)
	f.must(f.revokeRotate(2*time.Hour, keyring.RevokeOptions{Version: 2}))
	if f.k.Blocked != "" || !f.k.RotateAt.IsZero() {
		t.Error("still blocked after the successor was made")
	}
	block(2*time.Hour, "full", 3*time.Hour)
	f.must(f.rollback(2*time.Hour, keyring.RollbackOptions{Version: 1}))
	if f.k.Blocked != "" || !f.k.RotateAt.IsZero() {
		t.Error("the rollback did not put the next rotation a period away")
	}
}

// TestWhatCanBePrunedIsDue: a transition that does not prune by itself, or a
// role that lowered max_versions, leaves it to the next tick.
func TestWhatCanBePrunedIsDue(t *testing.T) {
	t.Parallel()
	p := keyring.Policy{MaxOverlap: 48 * time.Hour, MaxAccepted: 2, MaxVersions: 2}
	f := named(t, p)
	f.must(f.overlap(0, time.Hour))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 1}))
	f.p.MaxVersions = 1
	f.wantTime("due", f.k.NextDue(t0.Add(time.Minute), f.p, neverDrained), time.Minute)
	f.tick(time.Minute)
	if _, kept := f.k.Version(1); kept {
		t.Error("version 1 is kept")
	}
	if due := f.k.NextDue(t0.Add(time.Minute), f.p, neverDrained); !due.IsZero() {
		t.Errorf("due again at %s", due)
	}
}
