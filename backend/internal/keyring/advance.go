// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"time"
)

// minRecheck is the shortest time between two looks at whether a version has
// drained: the periodic function's own interval.
const minRecheck = time.Minute

// Advance does everything that is due at c.Now, in one transition: it
// promotes, records retirements, drops plaintext and prunes. It returns k
// itself where nothing is due.
//
// A promotion happens when it is committed: its overlap counts from c.Now,
// however late that is. A retirement is recorded with the deadline at which
// it took effect.
func (k *Key) Advance(c Cause, p Policy, drained DrainCheck) *Key {
	n, c := k.begin(c)
	changed := false
	if pending, ok := n.Pending(); ok && !n.Disabled && !pending.PromoteAt.After(c.Now) {
		n.promote(c, p)
		changed = true
	}
	for i := range n.Versions {
		changed = n.advanceVersion(c, &n.Versions[i], drained) || changed
	}
	kept := len(n.Versions)
	n.prune(c.Now, p.MaxVersions)
	if !changed && kept == len(n.Versions) {
		return k
	}
	return n
}

func (k *Key) advanceVersion(c Cause, v *Version, drained DrainCheck) bool {
	switch v.State {
	case StateActive, StatePending, StateRetiring:
		if k.Leased() && v.ExpiredAt(c.Now) {
			c.Reason = "lease ended"
			k.endFinally(c, v, StateRevoked)
			return true
		}
		return k.advanceAccepted(c, v, drained)
	case StateRetired:
		if len(v.Sealed) > 0 && !c.Now.Before(v.RestorableUntil) {
			v.Sealed = nil
			return true
		}
	}
	return false
}

func (k *Key) advanceAccepted(c Cause, v *Version, drained DrainCheck) bool {
	switch {
	case v.StateAt(c.Now) == StateRetired:
		v.retire(v.AcceptedUntil, "overlap over")
		if !c.Now.Before(v.RestorableUntil) {
			v.Sealed = nil
		}
		k.Record(c, EventVersionRetired, v.Number, "overlap over")
		return true
	case v.ExpiredAt(c.Now):
		v.retire(v.ExpireTime, "version_ttl reached")
		k.Record(c, EventVersionRetired, v.Number, "version_ttl reached")
		return true
	case v.State == StateRetiring && !c.Now.Before(v.OverlapEnds):
		verdict := drained(v.Number)
		if !verdict.Drained {
			return false
		}
		v.retire(c.Now, "drained: "+verdict.Why)
		k.Record(c, EventVersionDrained, v.Number, verdict.Why)
		k.Record(c, EventVersionRetired, v.Number, "drained")
		return true
	}
	return false
}

// NextDue is when Advance has something to do next, zero for never. Automatic
// rotation is not part of it.
func (k *Key) NextDue(now time.Time, p Policy, drained DrainCheck) time.Time {
	now = k.Now(now)
	var due time.Time
	want := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	over := len(k.Versions) > p.MaxVersions
	for i := range k.Versions {
		v := &k.Versions[i]
		switch v.State {
		case StatePending:
			if !k.Disabled {
				want(v.PromoteAt)
			}
		case StateActive:
			want(v.ExpireTime)
		case StateRetiring:
			want(v.AcceptedUntil)
			want(v.ExpireTime)
			if v.OverlapEnds.Before(v.AcceptedUntil) {
				want(k.drainDue(now, v, drained))
			}
		case StateRetired:
			if len(v.Sealed) > 0 || over && i < len(k.Versions)-1 {
				want(v.RestorableUntil)
			}
		}
	}
	if k.Leased() {
		if ended, last := k.EndedAll(now); ended {
			want(last.Add(LeasedKeepTime))
		}
	}
	return due
}

func (k *Key) drainDue(now time.Time, v *Version, drained DrainCheck) time.Time {
	if now.Before(v.OverlapEnds) {
		return v.OverlapEnds
	}
	next := now.Add(minRecheck)
	if verdict := drained(v.Number); verdict.Next.After(next) {
		next = verdict.Next
	}
	return next
}

// Block records why an automatic rotation waits and when it is tried again.
// It returns k itself where that was recorded before.
func (k *Key) Block(c Cause, reason string, retry time.Time) *Key {
	if k.Blocked == reason && k.RotateAt.Equal(retry) {
		return k
	}
	n, c := k.begin(c)
	n.RotateAt = retry
	if n.Blocked != reason {
		n.Blocked = reason
		n.Record(c, EventRotationBlocked, 0, reason)
	}
	return n
}
