// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"slices"
	"time"
)

// RotateOptions are the wishes of one rotation, with the role's defaults
// filled in.
type RotateOptions struct {
	// Overlap is how long the former version stays accepted; 0 cuts over now
	// and does not wait for drain.
	Overlap time.Duration
	// OverlapScopes, where not nil, narrow the former version at once.
	OverlapScopes []string
	// ActivationDelay, where not 0, makes the new version pending first.
	ActivationDelay time.Duration
	// Force retires the oldest retiring version where the window is full.
	Force bool
}

// Create returns a new key whose version 1 is m, active from now. The fields
// of k that describe the key are taken over.
func Create(k Key, c Cause, p Policy, m Material) *Key {
	k.Schema = Schema
	k.CreatedTime = c.Now
	k.Recorded = c.Now
	k.LastRotation = c.Now
	n := &k
	n.Record(c, EventKeyCreated, 0, "")
	n.append(c, m)
	n.Versions[0].Imported = k.Imported
	n.activate(c, p, 1)
	return n
}

// Rotate makes m the next version. Without a delay it becomes active and the
// former one is accepted until now plus the overlap; with one it is pending
// until the delay ends. A key without an active version gets one at once.
//
// It is refused while the key is disabled (ErrDisabled), while another version
// is pending (ErrPendingExists), and where more than p.MaxAccepted versions
// would be accepted (ErrWindowFull).
func (k *Key) Rotate(c Cause, p Policy, m Material, o RotateOptions) (*Key, error) {
	n, c := k.begin(c)
	if k.Disabled {
		return nil, refuse(ErrDisabled, "%s is disabled and is not rotated: set enabled=true first", k.Label())
	}
	if pending, ok := k.Pending(); ok {
		return nil, refuse(ErrPendingExists, "version %d of %s is pending: promote it before the next rotation", pending.Number, k.Label())
	}
	if err := n.checkOverlap(p, o.Overlap); err != nil {
		return nil, err
	}
	active, hasActive := n.Active()
	delay := o.ActivationDelay
	if !hasActive || active.ExpiredAt(c.Now) {
		delay = 0
	}
	leaves := hasActive && delay == 0 && o.Overlap == 0
	if err := n.makeRoom(c, p, leaves, 0, o.Force); err != nil {
		return nil, err
	}
	next := n.append(c, m)
	n.LastRotation = c.Now
	n.RotateAt = time.Time{}
	n.Blocked = ""
	if delay > 0 {
		v := n.at(next)
		v.PromoteAt = c.Now.Add(delay)
		v.PlannedOverlap = o.Overlap
		v.PlannedScopes = slices.Clone(o.OverlapScopes)
		n.prune(c.Now, p.MaxVersions)
		return n, nil
	}
	if hasActive {
		n.supersede(c, p, active.Number, next, o.Overlap, o.OverlapScopes)
	}
	n.activate(c, p, next)
	n.prune(c.Now, p.MaxVersions)
	return n, nil
}

// Promote makes the pending version active now; the overlap of the former one
// counts from now. version 0 means the pending one, whichever it is.
func (k *Key) Promote(c Cause, p Policy, version int) (*Key, error) {
	pending, ok := k.Pending()
	if !ok {
		return nil, refuse(ErrWrongState, "%s has no pending version to promote", k.Label())
	}
	if version != 0 && version != pending.Number {
		return nil, refuse(ErrWrongState, "version %d of %s is not pending: version %d is", version, k.Label(), pending.Number)
	}
	if k.Disabled {
		return nil, refuse(ErrDisabled, "%s is disabled and is not rotated: set enabled=true first", k.Label())
	}
	n, c := k.begin(c)
	n.promote(c, p)
	n.prune(c.Now, p.MaxVersions)
	return n, nil
}

// promote makes the pending version, which must exist, the active one.
func (k *Key) promote(c Cause, p Policy) {
	pending, _ := k.Pending()
	if active, ok := k.Active(); ok {
		k.supersede(c, p, active.Number, pending.Number, pending.PlannedOverlap, pending.PlannedScopes)
	}
	v := k.at(pending.Number)
	v.PromoteAt = time.Time{}
	v.PlannedOverlap = 0
	v.PlannedScopes = nil
	k.activate(c, p, pending.Number)
}

// append adds m as the next version, still pending.
func (k *Key) append(c Cause, m Material) int {
	number := k.Latest() + 1
	k.Versions = append(k.Versions, Version{
		Number: number, State: StatePending, Digest: m.Digest, Sealed: m.Sealed, CreatedTime: c.Now,
	})
	k.Record(c, EventVersionCreated, number, "")
	return number
}

// activate makes the version active. Its hard age counts from its first
// activation and is never set anew.
func (k *Key) activate(c Cause, p Policy, number int) {
	v := k.at(number)
	first := v.ActivatedTime.IsZero()
	v.State = StateActive
	v.ActivatedTime = c.Now
	v.SupersededBy = 0
	v.SupersededTime, v.OverlapEnds, v.AcceptedUntil = time.Time{}, time.Time{}, time.Time{}
	v.EndedTime, v.RestorableUntil = time.Time{}, time.Time{}
	v.OverlapScopes = nil
	v.Reason = ""
	if first && p.VersionTTL > 0 && !k.Leased() {
		v.ExpireTime = c.Now.Add(p.VersionTTL)
	}
	k.Record(c, EventVersionActivated, number, "")
}

// supersede starts the overlap of the active version number. It can only
// shorten what the version's own age allows.
func (k *Key) supersede(c Cause, p Policy, number, by int, overlap time.Duration, scopes []string) {
	v := k.at(number)
	v.SupersededBy = by
	v.SupersededTime = c.Now
	v.RollbackWindow = p.RollbackWindow
	v.OverlapScopes = slices.Clone(scopes)
	v.OverlapEnds = c.Now.Add(overlap)
	v.AcceptedUntil = v.OverlapEnds
	if p.ExtendUntilDrained && overlap > 0 && p.MaxOverlap > overlap {
		v.AcceptedUntil = c.Now.Add(p.MaxOverlap)
	}
	if k.Leased() {
		v.AcceptedUntil = earlier(v.AcceptedUntil, k.Lease.MaxExpireTime)
	} else {
		v.AcceptedUntil = earlier(v.AcceptedUntil, v.ExpireTime)
	}
	v.OverlapEnds = earlier(v.OverlapEnds, v.AcceptedUntil)
	if !v.AcceptedUntil.After(c.Now) {
		v.retire(v.AcceptedUntil, "superseded with no overlap")
		k.Record(c, EventVersionRetired, number, fmt.Sprintf("superseded by version %d with no overlap", by))
		return
	}
	v.State = StateRetiring
	k.Record(c, EventVersionRetiring, number, fmt.Sprintf("superseded by version %d, accepted until %s", by, formatTime(v.AcceptedUntil)))
}

// makeRoom checks that one more accepted version fits the window. leaving
// tells that the active version leaves it in the same step; keep is a version
// that must not be retired to make room, 0 for none.
func (k *Key) makeRoom(c Cause, p Policy, leaving bool, keep int, force bool) error {
	accepted := k.Accepted(c.Now)
	after := len(accepted) + 1
	if leaving {
		after--
	}
	for ; after > p.MaxAccepted; after-- {
		oldest := k.oldestRetiring(c.Now, keep)
		if oldest == nil {
			return refuse(ErrWindowFull, "%s would have %d accepted versions, and max_accepted_versions is %d: give overlap_period=0, or raise max_accepted_versions",
				k.Label(), after, p.MaxAccepted)
		}
		if !force {
			return refuse(ErrWindowFull, "version %d of %s is still accepted until %s and max_accepted_versions is %d: wait, retire it, or set force=true to retire it early",
				oldest.Number, k.Label(), formatTime(oldest.AcceptedUntil), p.MaxAccepted)
		}
		oldest.retire(c.Now, "retired early to make room")
		k.Record(c, EventVersionRetired, oldest.Number, "retired early to make room")
	}
	return nil
}

func (k *Key) oldestRetiring(now time.Time, except int) *Version {
	for i := range k.Versions {
		v := &k.Versions[i]
		if v.StateAt(now) == StateRetiring && v.Number != except {
			return v
		}
	}
	return nil
}

func (k *Key) checkOverlap(p Policy, overlap time.Duration) error {
	if overlap < 0 || overlap > p.MaxOverlap {
		return refuse(ErrOverlapTooLong, "overlap_period must be between 0s and the role's max_overlap_period of %s, got %s", p.MaxOverlap, overlap)
	}
	return nil
}

// earlier returns the earlier of t and limit; a zero limit is none.
func earlier(t, limit time.Time) time.Time {
	if !limit.IsZero() && limit.Before(t) {
		return limit
	}
	return t
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
