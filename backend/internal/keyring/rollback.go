// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"time"
)

// RollbackOptions are the wishes of one rollback.
type RollbackOptions struct {
	// Version is the one to make active; 0 means the one before the active.
	Version int
	// Overlap is what the former active version gets.
	Overlap time.Duration
	// RevokeNewer revokes the former active version and all newer ones
	// instead.
	RevokeNewer bool
	// Force allows a version whose plaintext is gone, and retires the oldest
	// retiring version where the window is full.
	Force bool
}

// Rollback makes a retiring version, or a retired one inside its rollback
// window, active again. The former active version is accepted for a full
// overlap from now, a pending one is retired, other retiring ones keep their
// deadlines, and the next automatic rotation is a full period away.
//
// It is refused for a version that has ended for good (ErrFinal), that is past
// its rollback window (ErrNotRestorable), or that nobody could read any more
// (ErrPlaintextGone, unless forced).
func (k *Key) Rollback(c Cause, p Policy, o RollbackOptions) (*Key, error) {
	n, c := k.begin(c)
	if k.Leased() {
		return nil, refuse(ErrLeased, "%s cannot be rolled back: revoke its lease and read a new key", k.Label())
	}
	if k.Disabled {
		return nil, refuse(ErrDisabled, "%s is disabled: set enabled=true before a rollback", k.Label())
	}
	former, hasFormer := n.Active()
	target, err := n.rollbackTarget(c.Now, o, former.Number)
	if err != nil {
		return nil, err
	}
	if err := n.checkOverlap(p, o.Overlap); err != nil {
		return nil, err
	}
	if pending, ok := n.Pending(); ok && !o.RevokeNewer {
		n.at(pending.Number).retire(c.Now, "rolled back before its promotion")
		n.Record(c, EventVersionRetired, pending.Number, "rolled back before its promotion")
	}
	if o.RevokeNewer {
		n.revokeNewer(c, target, former.Number)
	}
	// Where the former active version leaves the window, the target takes its
	// place, and nothing has to make room.
	leaves := hasFormer && (o.RevokeNewer || o.Overlap == 0)
	if n.at(target).State == StateRetired && !leaves {
		if err := n.makeRoom(c, p, o.Force, "wait, retire it, or set force=true to retire it early", "raise max_accepted_versions"); err != nil {
			return nil, err
		}
	}
	from := "no active version"
	if hasFormer {
		from = fmt.Sprintf("version %d", former.Number)
	}
	n.Record(c, EventKeyRolledBack, target, "from "+from)
	if _, still := n.Active(); still {
		n.supersede(c, p, former.Number, target, o.Overlap, nil)
	}
	n.activate(c, p, target)
	n.LastRotation = c.Now
	n.RotateAt = time.Time{}
	n.Blocked = ""
	n.prune(c.Now, p.MaxVersions)
	return n, nil
}

func (k *Key) rollbackTarget(now time.Time, o RollbackOptions, active int) (int, error) {
	number := o.Version
	if number == 0 {
		number = k.before(now, active)
		if number == 0 {
			return 0, refuse(ErrNotRestorable, "%s has no earlier version to roll back to", k.Label())
		}
	}
	i := k.index(number)
	if i < 0 {
		return 0, refuse(ErrNoSuchVersion, "%s has no version %d", k.Label(), number)
	}
	v := &k.Versions[i]
	switch state := v.StateAt(now); {
	case state.Final():
		return 0, refuse(ErrFinal, "version %d of %s is %s and cannot become active", number, k.Label(), state)
	case state == StateActive:
		return 0, refuse(ErrWrongState, "version %d of %s is active already", number, k.Label())
	case state == StatePending:
		return 0, refuse(ErrWrongState, "version %d of %s is pending: promote it instead", number, k.Label())
	case v.ExpiredAt(now):
		return 0, refuse(ErrNotRestorable, "version %d of %s reached its version_ttl at %s and cannot become active", number, k.Label(), formatTime(v.ExpireTime))
	case state == StateRetired && !v.RestorableAt(now):
		return 0, refuse(ErrNotRestorable, "version %d of %s is retired and outside its rollback window", number, k.Label())
	}
	if len(v.Sealed) == 0 && !o.Force {
		return 0, refuse(ErrPlaintextGone, "the plaintext of version %d of %s is not stored, so static-creds could not return it: set force=true to make it active all the same", number, k.Label())
	}
	return number, nil
}

// before is the newest version below active (below any, where there is no
// active one) that could come back, or else the newest below it at all, so
// that the error can name it.
func (k *Key) before(now time.Time, active int) int {
	fallback := 0
	for i := len(k.Versions) - 1; i >= 0; i-- {
		v := &k.Versions[i]
		if active != 0 && v.Number >= active || v.State == StatePending {
			continue
		}
		if fallback == 0 {
			fallback = v.Number
		}
		if v.StateAt(now) == StateRetiring || v.RestorableAt(now) {
			return v.Number
		}
	}
	return fallback
}

func (k *Key) revokeNewer(c Cause, target, former int) {
	for i := range k.Versions {
		v := &k.Versions[i]
		if v.Number != former && v.Number <= target || v.State.Final() {
			continue
		}
		v.end(StateRevoked, c.Now, "revoked by a rollback")
		k.Record(c, EventVersionRevoked, v.Number, fmt.Sprintf("rolled back to version %d", target))
	}
}
