// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"strings"
	"time"
)

// minRecheck is the shortest time between two looks at whether a version has
// drained: the periodic function's own interval.
const minRecheck = time.Minute

// Advance does everything that is due at c.Now, in one transition: it records
// retirements, promotes, drops plaintext and prunes. It returns k itself where
// nothing is due.
//
// A promotion happens when it is committed: its overlap counts from c.Now,
// however late that is. A retirement is recorded with the deadline at which
// it took effect.
func (k *Key) Advance(c Cause, p Policy, drained DrainCheck) *Key {
	n, c := k.copyAt(c)
	// What has ended is recorded before anything is superseded, so that a
	// version whose age is over is never given an overlap.
	changed := n.settle(c)
	_, hasActive := n.Active()
	if pending, ok := n.Pending(); ok && !n.Disabled && !n.Dormant() && (!hasActive || !pending.PromoteAt.After(c.Now)) {
		n.promote(c, p)
		changed = true
	}
	for i := range n.Versions {
		changed = n.retireDrained(c, &n.Versions[i], drained) || changed
	}
	kept := len(n.Versions)
	n.prune(c.Now, p.MaxVersions)
	if !changed && kept == len(n.Versions) {
		return k
	}
	return n
}

// settle records what time alone has ended, and drops the plaintext of what
// cannot be restored, nor is watched, any more. It changes no verdict. It reports whether there
// was anything to record.
func (k *Key) settle(c Cause) (changed bool) {
	for i := range k.Versions {
		v := &k.Versions[i]
		if end, timed := v.timedEnd(); timed && !c.Now.Before(end) {
			k.lapse(c, v, end)
			changed = true
		}
		if v.State == StateRetired && (v.Watched || len(v.Sealed) > 0) && !c.Now.Before(v.RestorableUntil) {
			v.Sealed, v.Watched = nil, false
			changed = true
		}
	}
	return changed
}

// lapse records that the acceptance of v was over at end.
func (k *Key) lapse(c Cause, v *Version, end time.Time) {
	reason := "overlap over"
	if v.life().AgedOut() {
		reason = "version_ttl reached"
		if k.Leased() {
			reason = "lease expired"
		}
	}
	if _, waiting := k.Pending(); v.State == StateActive && !waiting && !k.Leased() {
		// A key that rotates by itself has lost its active version: it is not
		// left without one for the rest of a period.
		k.RotateAt = c.Now
	}
	v.retire(end, reason)
	k.Record(c, EventVersionRetired, v.Number, reason)
}

// retireDrained retires a version that is accepted past the end of its overlap
// only until it has drained.
func (k *Key) retireDrained(c Cause, v *Version, drained DrainCheck) bool {
	if v.State != StateRetiring || c.Now.Before(v.OverlapEnds) {
		return false
	}
	verdict := drained(v.Number)
	if !verdict.Drained {
		return k.holdOpen(c, v, verdict.Why)
	}
	v.retire(c.Now, "drained: "+verdict.Why)
	k.Record(c, EventVersionDrained, v.Number, verdict.Why)
	k.Record(c, EventVersionRetired, v.Number, "drained")
	return true
}

// notDrained begins the reason of a version that is accepted past the end of
// its overlap.
const notDrained = "not drained: "

// holdOpen notes why a version is accepted past the end of its overlap, and
// tells of it the first time.
func (k *Key) holdOpen(c Cause, v *Version, why string) bool {
	if v.Reason == notDrained+why {
		return false
	}
	told := v.heldOpen()
	v.Reason = notDrained + why
	if !told {
		k.Record(c, EventOverlapExtended, v.Number, fmt.Sprintf("%s; accepted until %s at the latest", v.Reason, formatTime(v.AcceptedUntil)))
	}
	return true
}

// heldOpen tells whether holdOpen has noted this.
func (v *Version) heldOpen() bool { return strings.HasPrefix(v.Reason, notDrained) }

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
	_, hasActive := k.Active()
	for i := range k.Versions {
		v := &k.Versions[i]
		switch v.State {
		case StatePending:
			if !k.Disabled && !k.Dormant() {
				if !hasActive {
					want(now)
				}
				want(v.PromoteAt)
			}
			want(v.ExpireTime)
		case StateActive:
			want(v.ExpireTime)
		case StateRetiring:
			want(v.AcceptedUntil)
			want(v.ExpireTime)
			if v.OverlapEnds.Before(v.AcceptedUntil) {
				want(k.drainDue(now, v, drained))
			}
		case StateRetired:
			if v.Watched || len(v.Sealed) > 0 {
				want(v.RestorableUntil)
			}
		case StateUnknown, StateRevoked, StateCompromised:
		}
		if over && i < len(k.Versions)-1 && v.prunable() {
			want(later(now, v.RestorableUntil))
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
	if now.Before(v.OverlapEnds) || !v.heldOpen() {
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

// PutOff moves the promotion of the pending version, which must exist, to at,
// and records why the first time. Without a reason it records nothing.
func (k *Key) PutOff(c Cause, reason string, at time.Time) *Key {
	n, c := k.begin(c)
	pending, ok := n.Pending()
	if !ok {
		return k // its time was over
	}
	n.at(pending.Number).PromoteAt = at
	if reason != "" && n.Blocked != reason {
		n.Blocked = reason
		n.Record(c, EventRotationBlocked, pending.Number, reason)
	}
	return n
}
