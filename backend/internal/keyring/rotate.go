// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"maps"
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
// of k that describe the key are taken over, its collections as copies.
func Create(k Key, c Cause, p Policy, m Material) *Key {
	k.Versions, k.Requests, k.History = nil, nil, nil
	k.BoundCIDRs, k.CustomMetadata = slices.Clone(k.BoundCIDRs), maps.Clone(k.CustomMetadata)
	if k.Scopes != nil {
		scopes := slices.Clone(*k.Scopes)
		k.Scopes = &scopes
	}
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
// until the delay ends. A key without an active version gets one at once, and
// so does a leased key, whose holder is the one who asks.
//
// It is refused while the key is disabled (ErrDisabled), while another version
// is pending (ErrPendingExists), where more than p.MaxAccepted versions would
// be accepted (ErrWindowFull), and once all leases of a leased key have ended
// (ErrFinal).
func (k *Key) Rotate(c Cause, p Policy, m Material, o RotateOptions) (*Key, error) {
	n, c := k.begin(c)
	if k.Disabled {
		return nil, refuse(ErrDisabled, "%s is disabled and is not rotated: set enabled=true first", k.Label())
	}
	if k.Leased() && len(n.Accepted(c.Now)) == 0 {
		return nil, refuse(ErrFinal, "%s has ended with its last lease: read a new one from creds/%s", k.Label(), k.Role)
	}
	if pending, ok := n.Pending(); ok {
		return nil, refuse(ErrPendingExists, "version %d of %s is pending: promote it before the next rotation", pending.Number, k.Label())
	}
	if err := n.checkOverlap(p, o.Overlap); err != nil {
		return nil, err
	}
	active, hasActive := n.Active()
	delay := max(0, o.ActivationDelay)
	if !hasActive || k.Leased() {
		delay = 0
	}
	if cutOver := hasActive && delay == 0 && o.Overlap == 0; !cutOver {
		if err := n.makeRoom(c, p, o.Force, "wait, retire it, or set force=true to retire it early", "give overlap_period=0, or raise max_accepted_versions"); err != nil {
			return nil, err
		}
	}
	next := n.append(c, m)
	n.LastRotation = c.Now
	n.RotateAt = time.Time{}
	n.Blocked = ""
	if delay > 0 {
		v := n.at(next)
		v.PromoteAt = promotion(c.Now, delay, o.Overlap, active)
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

// ExpiryLead is how long before its active version is ended by its age a key
// has its successor: time for a tick that is late, and one more.
const ExpiryLead = 3 * time.Minute

// promotion is when a version that is made at now takes the place of active:
// after the delay, but early enough to leave the overlap before active is
// ended by its age, or half of its time where there is less.
func promotion(now time.Time, delay, overlap time.Duration, active Version) time.Time {
	at := now.Add(delay)
	if active.ExpireTime.IsZero() {
		return at
	}
	left := active.ExpireTime.Sub(now)
	return earlier(at, active.ExpireTime.Add(-min(max(overlap, ExpiryLead), left/2)))
}

// Promote makes the pending version active now; the overlap of the former one
// counts from now. version 0 means the pending one, whichever it is.
func (k *Key) Promote(c Cause, p Policy, version int) (*Key, error) {
	n, c := k.begin(c)
	if k.Leased() {
		return nil, refuse(ErrLeased, "%s is leased: its versions are active from the start and there is nothing to promote", k.Label())
	}
	if version != 0 && n.index(version) < 0 {
		return nil, refuse(ErrNoSuchVersion, "%s has no version %d", k.Label(), version)
	}
	pending, ok := n.Pending()
	if !ok {
		return nil, refuse(ErrWrongState, "%s has no pending version to promote", k.Label())
	}
	if version != 0 && version != pending.Number {
		return nil, refuse(ErrWrongState, "version %d of %s is not pending: version %d is", version, k.Label(), pending.Number)
	}
	if k.Disabled {
		return nil, refuse(ErrDisabled, "%s is disabled and is not rotated: set enabled=true first", k.Label())
	}
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
	if k.RotateAt.IsZero() {
		k.Blocked = "" // what kept it from being promoted
	}
	k.activate(c, p, pending.Number)
}

// append adds m as the next version, still pending.
func (k *Key) append(c Cause, m Material) int {
	number := k.Latest() + 1
	k.Versions = append(k.Versions, Version{
		Number: number, State: StatePending, Digest: m.Digest, Sealed: m.Sealed, Handover: m.Handover, CreatedTime: c.Now,
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
	k.EndedByForce, k.Unclaimed = false, false
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
	v.Reminded, v.Looked, v.Health, v.HealthTime = 0, 0, "", time.Time{}
	v.RollbackWindow = p.RollbackWindow
	v.OverlapScopes = slices.Clone(scopes)
	v.OverlapEnds = c.Now.Add(overlap)
	v.AcceptedUntil = v.OverlapEnds
	if k.Leased() {
		// The lease can still be renewed up to the end of the overlap, so its
		// present end does not cut it. A leased version never comes back.
		v.RollbackWindow = 0
		v.AcceptedUntil = earlier(v.AcceptedUntil, k.Lease.MaxExpireTime)
	} else {
		if p.ExtendUntilDrained && overlap > 0 && p.MaxOverlap > overlap {
			v.AcceptedUntil = c.Now.Add(p.MaxOverlap)
		}
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

// makeRoom checks that one more accepted version fits the window, or with
// force retires the oldest early until it does. The remedies tell the caller
// what to do about a retiring version in the way, and what where there is none.
func (k *Key) makeRoom(c Cause, p Policy, force bool, remedy, otherwise string) error {
	for after := len(k.Accepted(c.Now)) + 1; after > p.MaxAccepted; after-- {
		oldest := k.oldestRetiring(c.Now)
		if oldest == nil {
			return refuse(ErrWindowFull, "%s would have %d accepted versions, and max_accepted_versions is %d: %s", k.Label(), after, p.MaxAccepted, otherwise)
		}
		if !force {
			return refuse(ErrWindowFull, "version %d of %s is still accepted until %s and max_accepted_versions is %d: %s",
				oldest.Number, k.Label(), formatTime(oldest.AcceptedUntil), p.MaxAccepted, remedy)
		}
		oldest.retire(c.Now, "retired early to make room")
		oldest.OverlapEnds = earlier(oldest.OverlapEnds, c.Now)
		k.Record(c, EventVersionRetired, oldest.Number, "retired early to make room")
	}
	return nil
}

func (k *Key) oldestRetiring(now time.Time) *Version {
	for i := range k.Versions {
		if v := &k.Versions[i]; v.StateAt(now) == StateRetiring {
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

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
