// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"time"
)

// Extend moves the end of the overlap of a retiring version to now plus by:
// later, never earlier, and at most p.MaxOverlap after it was superseded. A
// retired version inside its rollback window is retiring again. version 0
// means the only candidate.
func (k *Key) Extend(c Cause, p Policy, version int, by time.Duration) (*Key, error) {
	n, c := k.begin(c)
	if k.Leased() {
		return nil, refuse(ErrLeased, "%s lives by its leases and cannot be extended: renew them", k.Label())
	}
	number, err := n.candidate(version, func(v *Version) bool {
		return v.StateAt(c.Now) == StateRetiring || v.RestorableAt(c.Now)
	}, "retiring or restorable")
	if err != nil {
		return nil, err
	}
	v := n.at(number)
	state := v.StateAt(c.Now)
	switch {
	case state.Final():
		return nil, refuse(ErrFinal, "version %d of %s is %s and cannot be extended", number, k.Label(), state)
	case state == StateRetired && !v.RestorableAt(c.Now):
		return nil, refuse(ErrNotRestorable, "version %d of %s is retired and outside its rollback window", number, k.Label())
	case state == StateActive || state == StatePending:
		return nil, refuse(ErrWrongState, "version %d of %s is %s and has no overlap to extend", number, k.Label(), state)
	}
	end := c.Now.Add(by)
	limit, why := v.SupersededTime.Add(p.MaxOverlap), fmt.Sprintf("max_overlap_period, %s after it was superseded", p.MaxOverlap)
	if !v.ExpireTime.IsZero() && v.ExpireTime.Before(limit) {
		limit, why = v.ExpireTime, "its version_ttl"
	}
	if end.After(limit) {
		most := limit.Sub(c.Now).Truncate(time.Second)
		if most <= 0 {
			return nil, refuse(ErrOverlapTooLong, "version %d of %s cannot be accepted past %s (%s): roll back to it, or let its clients take the active version", number, k.Label(), formatTime(limit), why)
		}
		return nil, refuse(ErrOverlapTooLong, "overlap_period must be at most %s: version %d of %s can be accepted until %s (%s)", most, number, k.Label(), formatTime(limit), why)
	}
	if state == StateRetiring && !end.After(v.OverlapEnds) {
		return nil, refuse(ErrNotLater, "the overlap of version %d of %s ends at %s; extend moves it later, never earlier", number, k.Label(), formatTime(v.OverlapEnds))
	}
	if !end.After(c.Now) {
		return nil, refuse(ErrNotLater, "overlap_period must be above 0s to extend version %d of %s", number, k.Label())
	}
	if state == StateRetired {
		if err := n.makeRoom(c, p, false, "wait, or retire it", "raise max_accepted_versions"); err != nil {
			return nil, err
		}
		v.AcceptedUntil = time.Time{}
	}
	v.State = StateRetiring
	v.EndedTime, v.RestorableUntil, v.Reason = time.Time{}, time.Time{}, ""
	v.OverlapEnds = end
	v.Reminded, v.Looked = 0, 0
	if v.AcceptedUntil.Before(end) {
		v.AcceptedUntil = end
	}
	n.Record(c, EventOverlapExtended, number, fmt.Sprintf("accepted until %s", formatTime(v.AcceptedUntil)))
	return n, nil
}

// storeSlack is how long it may take to store a transition before the overlap
// that it began is made longer by that.
const storeSlack = time.Second

// storeMost is the longest for which storing is believed to have taken: what looks
// like more is a leap of the wall clock.
const storeMost = time.Hour

// Stored moves the ends of the overlaps that k has begun or extended since prev, where
// to store k took until now: a client may have been given the former version
// up to this moment, and has the whole overlap from then on. They are never
// moved past the age of a version, or the longest life of its lease. It tells
// whether there was any: then k is to be stored again.
func (k *Key) Stored(prev *Key, now time.Time) bool {
	late := now.Sub(k.Recorded)
	if prev == nil || late < storeSlack || late > storeMost {
		return false
	}
	moved := false
	owes := len(k.Owed) > 0
	for i := range k.Versions {
		v := &k.Versions[i]
		before, _ := prev.Version(v.Number)
		if v.State != StateRetiring {
			continue
		}
		limit := v.ExpireTime
		if k.Leased() {
			limit = k.Lease.MaxExpireTime
		}
		until, ends := v.AcceptedUntil, v.OverlapEnds
		if before.State != StateRetiring || !before.AcceptedUntil.Equal(until) {
			until = later(until, earlier(until.Add(late), limit))
		}
		if before.State != StateRetiring || !before.OverlapEnds.Equal(ends) {
			ends = later(ends, earlier(ends.Add(late), until))
		}
		if until.Equal(v.AcceptedUntil) && ends.Equal(v.OverlapEnds) {
			continue
		}
		v.AcceptedUntil, v.OverlapEnds = until, ends
		k.Record(Cause{Now: now, Actor: ActorPeriodic}, EventOverlapExtended, v.Number, fmt.Sprintf("it took %s to store; accepted until %s", late, formatTime(until)))
		moved = true
	}
	if !moved {
		return false
	}
	k.Recorded = now
	if !owes { // nobody is to be told of anything
		k.ForgetOwed()
	}
	return true
}

// DrainVerdict says whether a version is still in use.
type DrainVerdict struct {
	Drained bool
	// Why is the evidence, in words for a person.
	Why string
	// Next is the earliest moment at which the answer can change to drained.
	Next time.Time
}

// DrainCheck judges the use of a version. Unknown use is not drained.
type DrainCheck func(version int) DrainVerdict

// Retire ends the overlap of a retiring version now. It is refused unless the
// version is drained, or force is set. version 0 means the only candidate.
func (k *Key) Retire(c Cause, version int, drained DrainCheck, force bool) (*Key, error) {
	n, c := k.begin(c)
	number, err := n.candidate(version, func(v *Version) bool { return v.StateAt(c.Now) == StateRetiring }, "retiring")
	if err != nil {
		return nil, err
	}
	v := n.at(number)
	if state := v.StateAt(c.Now); state != StateRetiring {
		return nil, refuse(ErrWrongState, "version %d of %s is %s: only a retiring version can be retired", number, k.Label(), state)
	}
	reason := "retired by force"
	if !force {
		verdict := drained(number)
		if !verdict.Drained {
			return nil, refuse(ErrNotDrained, "version %d of %s is not drained (%s): wait, or set force=true to end it all the same", number, k.Label(), verdict.Why)
		}
		reason = "drained: " + verdict.Why
		n.Record(c, EventVersionDrained, number, verdict.Why)
	}
	if c.Reason != "" {
		reason = c.Reason
	}
	v.retire(c.Now, reason)
	v.OverlapEnds = earlier(v.OverlapEnds, c.Now)
	n.Record(c, EventVersionRetired, number, reason)
	return n, nil
}

// candidate returns version, which must exist, or the only one that fits
// where version is 0.
func (k *Key) candidate(version int, fits func(*Version) bool, what string) (int, error) {
	if version != 0 {
		if k.index(version) < 0 {
			return 0, refuse(ErrNoSuchVersion, "%s has no version %d", k.Label(), version)
		}
		return version, nil
	}
	var found []int
	for i := range k.Versions {
		if fits(&k.Versions[i]) {
			found = append(found, k.Versions[i].Number)
		}
	}
	switch len(found) {
	case 0:
		return 0, refuse(ErrWrongState, "%s has no %s version", k.Label(), what)
	case 1:
		return found[0], nil
	}
	return 0, refuse(ErrVersionNeeded, "version is required: versions %v of %s are %s", found, k.Label(), what)
}
