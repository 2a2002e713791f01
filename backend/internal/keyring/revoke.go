// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"time"
)

// RevokeOptions are the wishes of one revocation.
type RevokeOptions struct {
	// Version is the one to end. All ends every version instead.
	Version int
	All     bool
	// Compromised says that it leaked.
	Compromised bool
	// Successor, where not nil, becomes active in the same commit if the
	// active version is ended, or All is set and there is none, and no pending
	// one can take its place. A leased
	// key has no successor: its holder reads a new one, and it just ends.
	Successor *Material
	// Force allows to leave the key without an active version.
	Force bool
}

// Revoke ends versions at once and for good, whatever their state. Ending the
// active one needs a successor or force. What has ended already as asked
// stays as it is; the result is then k itself.
//
// An emergency never fails for a full window: the successor takes the place
// of the version that ends.
func (k *Key) Revoke(c Cause, p Policy, o RevokeOptions) (*Key, error) {
	n, c := k.begin(c)
	state := StateRevoked
	if o.Compromised {
		state = StateCompromised
	}
	var targets []int
	if o.All {
		for _, v := range n.Versions {
			targets = append(targets, v.Number)
		}
	} else {
		if o.Version == 0 {
			return nil, refuse(ErrVersionNeeded, "version is required (1 to %d), or all=true", k.Latest())
		}
		if n.index(o.Version) < 0 {
			return nil, refuse(ErrNoSuchVersion, "%s has no version %d", k.Label(), o.Version)
		}
		targets = []int{o.Version}
	}
	active, hasActive := n.Active()
	endsActive, changed := false, false
	for _, number := range targets {
		v := n.at(number)
		if v.State == StateCompromised || v.State == state {
			continue
		}
		changed = true
		endsActive = endsActive || hasActive && number == active.Number
		n.endFinally(c, v, state)
	}
	// A key that has no active version gets one, too, where all is ended and a
	// successor is wanted.
	revives := o.All && !hasActive && o.Successor != nil && !k.Leased()
	if !changed && !revives {
		return k, nil
	}
	if endsActive || revives {
		if err := n.succeed(c, p, o, active.Number); err != nil {
			return nil, err
		}
	} else if o.All && o.Successor == nil {
		n.EndedByForce = true
	}
	n.prune(c.Now, p.MaxVersions)
	return n, nil
}

// succeed gives the key an active version after the former one was ended.
func (k *Key) succeed(c Cause, p Policy, o RevokeOptions, former int) error {
	if o.Successor == nil || k.Leased() {
		if o.Force || o.Successor != nil {
			k.EndedByForce = true
			return nil
		}
		return refuse(ErrEndsActive, "version %d of %s is active: set rotate=true to make its successor in the same step, or force=true to leave the key without an active version", former, k.Label())
	}
	k.RotateAt, k.Blocked = time.Time{}, ""
	if _, ok := k.Pending(); ok {
		k.promote(c, p)
		return nil
	}
	next := k.append(c, *o.Successor)
	k.LastRotation = c.Now
	k.activate(c, p, next)
	return nil
}

// EndLease ends the version whose lease was revoked or ran out. It is no error if the
// version is gone or has ended; the result is then k itself.
func (k *Key) EndLease(c Cause, version int) *Key {
	i := k.index(version)
	if i < 0 || k.Versions[i].State.Final() {
		return k
	}
	n, c := k.begin(c)
	c.Reason = "lease ended"
	n.endFinally(c, n.at(version), StateRevoked)
	return n
}

// EndAll returns the tombstone of a deleted key: its compromised versions,
// which stay refused as such for ever, and what is left to remove.
func (k *Key) EndAll(c Cause, cleanup Cleanup) *Key {
	n, c := k.begin(c)
	n.Record(c, EventKeyDeleted, 0, "")
	tomb := &Key{Schema: Schema, ID: n.ID, Name: n.Name, Role: n.Role, CreatedTime: n.CreatedTime, Recorded: n.Recorded,
		NextTick: n.NextTick, Deleted: c.Now, CustomMetadata: n.CustomMetadata, Cleanup: &cleanup, History: n.History[len(n.History)-1:],
		EventSeq: n.EventSeq, Owed: n.Owed, OwedDropped: n.OwedDropped, extra: n.extra}
	for _, v := range n.Versions {
		if v.State == StateCompromised {
			tomb.Versions = append(tomb.Versions, v)
		}
	}
	return tomb
}

func (k *Key) endFinally(c Cause, v *Version, state State) {
	event := EventVersionRevoked
	if state == StateCompromised {
		event = EventVersionCompromised
	}
	from := v.StateAt(c.Now)
	reason := c.Reason
	if reason == "" {
		reason = state.String()
	}
	v.end(state, c.Now, reason)
	k.Record(c, event, v.Number, fmt.Sprintf("was %s", from))
}
