// SPDX-License-Identifier: MPL-2.0

package chaos

import "time"

// reach is how far a fault goes. The zero value forgives the least.
type reach int

const (
	// aside: the leader and its plugin go on, and break nothing off.
	aside reach = iota
	// breaks: what the leader does can be broken off, and be done again by what
	// takes its place. So a refusal may follow on what was done, and nothing is
	// owed of the schedule for a while.
	breaks
	// twoLeaders: besides, a node can go on as the leader while another one
	// leads, because it does not hear of it, or was paused, or cannot write:
	// docs/adr/0013-who-is-in-charge.md.
	twoLeaders
)

// spell is the time of a fault: from just before it struck until the cluster
// was whole again. Until then it has no end.
type spell struct {
	from, until time.Time
	reach       reach
}

// spells are in order, and do not overlap.
type spells []spell

// struck tells whether a fault that reaches so far was on at any moment from
// one to the other, both included.
func (ss spells) struck(from, to time.Time, least reach) bool {
	for i := len(ss) - 1; i >= 0; i-- {
		s := ss[i]
		if !s.until.IsZero() && s.until.Before(from) {
			return false
		}
		if s.reach >= least && !s.from.After(to) {
			return true
		}
	}
	return false
}

// quiet is the longest time between two moments in which no fault was on that
// reaches so far.
func (ss spells) quiet(from, to time.Time, least reach) time.Duration {
	longest := time.Duration(0)
	for _, s := range ss {
		if s.reach < least || !from.Before(to) {
			continue
		}
		if s.from.After(from) {
			end := s.from
			if end.After(to) {
				end = to
			}
			longest = max(longest, end.Sub(from))
		}
		if s.until.IsZero() {
			return longest
		}
		if s.until.After(from) {
			from = s.until
		}
	}
	return max(longest, to.Sub(from))
}

// supersededBound is how long a node that has lost its place without noticing may
// answer from its cache: docs/adr/0013-who-is-in-charge.md.
const supersededBound = 2 * time.Second

// settled is how long after a fault nothing of it is left: no call that was
// sent before is still under way, and whoever was cut off has asked again.
const settled = 2 * time.Second

// struck tells whether a fault that reaches so far was on between two moments.
func (w *world) struck(from, to time.Time, least reach) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.spells.struck(from, to, least)
}

// late is how long after its end Vault may accept a version, or hand it out, in
// a call: not at all where there can be one leader only.
func (w *world) late(sent, answered time.Time) time.Duration {
	if w.struck(sent, answered, twoLeaders) {
		return supersededBound
	}
	return 0
}

// calm tells whether nothing that went wrong in a call can have come of a fault.
func (w *world) calm(sent, answered time.Time) bool {
	return !w.struck(sent.Add(-settled), answered, aside)
}

func (w *world) spellBegins(r reach) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spells = append(w.spells, spell{from: now(), reach: r})
}

func (w *world) spellEnds() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spells[len(w.spells)-1].until = now()
}
