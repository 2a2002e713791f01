// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

func TestALeasedKeyLivesByItsLeases(t *testing.T) {
	t.Parallel()
	f := leased(t, policy())
	f.refused(keyring.ErrLeased, f.promote(0, 0))
	f.refused(keyring.ErrLeased, f.rollback(0, keyring.RollbackOptions{}))
	f.refused(keyring.ErrLeased, f.extend(0, 1, time.Hour))
	f.wantCode(time.Hour-1, 1, record.CodeValid)
	f.wantCode(time.Hour, 1, record.CodeExpired)

	// A lease that ran out reads the same before and after the tick.
	ran := &fixture{t, f.k, f.p}
	ran.tick(2 * time.Hour)
	ran.wantState(1, retired)
	ran.wantCode(2*time.Hour, 1, record.CodeExpired)
	if len(ran.version(1).Sealed) != 0 {
		t.Error("plaintext outlives the lease")
	}
	if !ran.k.RotateAt.IsZero() {
		t.Error("a leased key is to be rotated")
	}
	// The end of the lease itself is final.
	ran.must(ran.endLease(3*time.Hour, 1))
	ran.wantState(1, revoked)
	ran.wantTime("ended_time", ran.version(1).EndedTime, time.Hour)

	f.must(f.endLease(time.Minute, 1))
	f.wantCode(time.Minute, 1, record.CodeRevoked)
	same := f.k
	f.must(f.endLease(time.Hour, 1))
	f.must(f.endLease(time.Hour, 2))
	if f.k != same {
		t.Error("ended twice")
	}
}

// TestOverlappingLeases: each version has a lease of its own, and the old one
// cannot be renewed past the end of its overlap.
func TestOverlappingLeases(t *testing.T) {
	t.Parallel()
	p := policy()
	p.ExtendUntilDrained = true // which says nothing about leases
	f := leased(t, p)
	// A delay is not for leased keys: who asks is who uses it.
	f.must(f.rotate(30*time.Minute, keyring.RotateOptions{Overlap: 3 * time.Hour, ActivationDelay: time.Hour}))
	f.k.Versions[1].ExpireTime = t0.Add(90 * time.Minute)
	f.wantState(2, active)
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 210*time.Minute)
	f.wantTime("the limit of lease 1", f.k.LeaseLimit(1), 210*time.Minute)
	f.wantTime("the limit of lease 2", f.k.LeaseLimit(2), 10*time.Hour)

	f.must(f.renew(31*time.Minute, 1, 8*time.Hour))
	f.wantTime("expire_time", f.version(1).ExpireTime, 210*time.Minute)
	f.must(f.renew(31*time.Minute, 2, 80*time.Hour))
	f.wantTime("expire_time", f.version(2).ExpireTime, 10*time.Hour)

	f.must(f.endLease(time.Hour, 2))
	f.wantAccepted(time.Hour, 1) // its lease goes on
	f.tick(4 * time.Hour)
	f.wantAccepted(4 * time.Hour)
	ended, last := f.k.EndedAll(t0.Add(4 * time.Hour))
	if !ended {
		t.Fatal("a version goes on")
	}
	f.wantTime("the end of the last version", last, 210*time.Minute)
	f.wantTime("due to be forgotten", f.k.NextDue(t0.Add(4*time.Hour), f.p, neverDrained), 210*time.Minute+keyring.LeasedKeepTime)
}

func TestAnOldLeaseEndsBeforeItsOverlap(t *testing.T) {
	t.Parallel()
	f := leased(t, policy())
	f.must(f.overlap(30*time.Minute, 3*time.Hour))
	f.k.Versions[1].ExpireTime = t0.Add(9 * time.Hour)
	f.wantCode(time.Hour, 1, record.CodeExpired)
	if due := f.k.NextDue(t0.Add(31*time.Minute), f.p, neverDrained); !due.Equal(t0.Add(time.Hour)) {
		t.Errorf("due %s", due)
	}
	f.tick(5 * time.Hour) // past the overlap too
	f.wantCode(5*time.Hour, 1, record.CodeExpired)
	f.wantTime("ended_time", f.version(1).EndedTime, time.Hour)
	f.refused(keyring.ErrFinal, f.renew(5*time.Hour, 1, 9*time.Hour))
}

func TestTheOverlapOfALeasedKeyEndsWithItsMaximum(t *testing.T) {
	t.Parallel()
	f := leased(t, policy())
	f.must(f.renew(0, 1, 100*time.Hour))
	f.wantTime("expire_time", f.version(1).ExpireTime, 10*time.Hour)
	f.must(f.overlap(9*time.Hour, 24*time.Hour))
	f.wantTime("accepted_until", f.version(1).AcceptedUntil, 10*time.Hour)
}

// TestTheLastLeaseEndsTheKey: nothing revives it.
func TestTheLastLeaseEndsTheKey(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(f *fixture){
		"revoked":  func(f *fixture) { f.must(f.endLease(time.Minute, 1)) },
		"ran out":  func(*fixture) {},
		"recorded": func(f *fixture) { f.tick(2 * time.Hour) },
		"incident": func(f *fixture) {
			f.must(f.revoke(0, keyring.RevokeOptions{Version: 1, Force: true, Compromised: true}))
		},
		"successor": func(f *fixture) { f.must(f.revokeRotate(0, keyring.RevokeOptions{Version: 1, Compromised: true})) },
		"all":       func(f *fixture) { f.must(f.revokeRotate(0, keyring.RevokeOptions{All: true})) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := leased(t, policy())
			end(f)
			f.wantAccepted(3 * time.Hour)
			if f.k.Latest() != 1 {
				t.Error("a version without a lease was made")
			}
			f.refused(keyring.ErrFinal, f.overlap(3*time.Hour, time.Hour))
			f.refused(keyring.ErrFinal, f.renew(3*time.Hour, 1, 5*time.Hour))
		})
	}
	f := leased(t, policy())
	f.refused(keyring.ErrEndsActive, f.revoke(0, keyring.RevokeOptions{Version: 1}))
	f.refused(keyring.ErrNoSuchVersion, f.renew(0, 7, time.Hour))
	n := named(t, policy())
	n.refused(keyring.ErrWrongState, n.renew(0, 1, time.Hour))
}
