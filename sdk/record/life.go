// SPDX-License-Identifier: MPL-2.0

package record

import "time"

// Life is what decides whether a version is accepted at a moment. Its times
// are as recorded: what a tick has not recorded yet follows from them.
type Life struct {
	State State `json:"state"`
	// SupersededTime is when another version took this one's place.
	SupersededTime time.Time `json:"superseded_time,omitzero"`
	// OverlapEnds is the end that clients were told; AcceptedUntil is the one
	// that verifiers enforce.
	OverlapEnds   time.Time `json:"overlap_ends,omitzero"`
	AcceptedUntil time.Time `json:"accepted_until,omitzero"`
	// ExpireTime is the hard end of the version's age, or of its lease.
	ExpireTime time.Time `json:"expire_time,omitzero"`
	EndedTime  time.Time `json:"ended_time,omitzero"`
}

// StateAt is the state that holds at now: a version whose overlap, hard age or
// lease is over is retired, whether or not that has been recorded.
func (l *Life) StateAt(now time.Time) State {
	if end, timed := l.TimedEnd(); timed && !now.Before(end) {
		return StateRetired
	}
	return l.State
}

// TimedEnd is when time alone ends the acceptance of the version. It tells
// false where nothing does, or where it has ended.
func (l *Life) TimedEnd() (time.Time, bool) {
	switch {
	case l.State.Ended():
		return time.Time{}, false
	case l.State == StateRetiring:
		return earlier(l.AcceptedUntil, l.ExpireTime), true
	}
	return l.ExpireTime, !l.ExpireTime.IsZero()
}

// ExpiredAt tells whether the version is past its hard age or its lease.
func (l *Life) ExpiredAt(now time.Time) bool {
	return !l.ExpireTime.IsZero() && !now.Before(l.ExpireTime)
}

// EndedAt is when the version ended, zero where it has not at now.
func (l *Life) EndedAt(now time.Time) time.Time {
	if end, timed := l.TimedEnd(); timed && !now.Before(end) {
		return end
	}
	return l.EndedTime
}

// AgedOut tells of a retired version whether it was its hard age or its lease
// that ended it, before any overlap was over. The answer is the same before and
// after the retirement is recorded.
func (l *Life) AgedOut() bool {
	end := l.EndedTime
	if timed, ok := l.TimedEnd(); ok {
		end = timed
	}
	return l.ExpiredAt(end) && (l.SupersededTime.IsZero() || end.Before(l.OverlapEnds))
}

// Late tells whether a version is accepted at now past the end of the overlap
// that its clients were told.
func (l *Life) Late(now time.Time) bool {
	return l.StateAt(now) == StateRetiring && !now.Before(l.OverlapEnds)
}

// earlier returns t, or limit where that is set and comes first.
func earlier(t, limit time.Time) time.Time {
	if !limit.IsZero() && limit.Before(t) {
		return limit
	}
	return t
}
