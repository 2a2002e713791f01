// SPDX-License-Identifier: MPL-2.0

package oracle

import (
	"slices"
	"time"
)

// span is a time from one moment up to, and without, another; a zero until is
// for ever.
type span struct{ from, until time.Time }

func (s span) openEnded() bool { return s.until.IsZero() }

// endsBefore tells whether t lies at or after the end.
func (s span) endsBefore(t time.Time) bool { return !s.openEnded() && !t.Before(s.until) }

// spans are disjoint and in order.
type spans []span

// cut leaves nothing at or after a moment.
func (ss spans) cut(at time.Time) spans {
	var left spans
	for _, s := range ss {
		if !s.from.Before(at) {
			break
		}
		if s.openEnded() || s.until.After(at) {
			s.until = at
		}
		left = append(left, s)
	}
	return left
}

// with adds the time from one moment to another; nothing, if it has none.
func (ss spans) with(from, until time.Time) spans {
	if !until.IsZero() && !from.Before(until) {
		return slices.Clone(ss)
	}
	all := append(slices.Clone(ss), span{from, until})
	slices.SortFunc(all, func(a, b span) int { return a.from.Compare(b.from) })
	merged := all[:1]
	for _, s := range all[1:] {
		last := &merged[len(merged)-1]
		switch {
		case last.openEnded():
		case s.from.After(last.until):
			merged = append(merged, s)
		case s.openEnded() || s.until.After(last.until):
			last.until = s.until
		}
	}
	return merged
}

// cover tells whether all from one moment to another, that one included, lies
// within.
func (ss spans) cover(from, to time.Time) bool {
	return slices.ContainsFunc(ss, func(s span) bool { return !from.Before(s.from) && !s.endsBefore(to) })
}

// touch tells whether anything from one moment to another does.
func (ss spans) touch(from, to time.Time) bool {
	return slices.ContainsFunc(ss, func(s span) bool { return !to.Before(s.from) && !s.endsBefore(from) })
}

// endBefore is the last end that is not after a moment; zero if there is none.
func (ss spans) endBefore(t time.Time) time.Time {
	var end time.Time
	for _, s := range ss {
		if s.endsBefore(t) {
			end = s.until
		}
	}
	return end
}
