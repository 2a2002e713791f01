// SPDX-License-Identifier: MPL-2.0

package schedule

import "time"

const (
	// onTime is how late a rotation may be without counting as late: a few
	// ticks, and time for the keys that are before it in the queue.
	onTime = 5 * time.Minute
	// maxSpread bounds how long an overdue key waits for its turn.
	maxSpread = time.Hour
	// minSpread is one tick: less cannot be told apart.
	minSpread = time.Minute
)

// Next returns when a key whose last rotation or activation was at last is
// due. It is strictly after last, and never decreases as last grows. It is the
// zero time if s is not automatic. keyID fixes the jitter.
func (s Spec) Next(last time.Time, keyID string) time.Time {
	last = wholeSecond(last)
	switch {
	case !s.Automatic():
		return time.Time{}
	case s.Cron != "":
		c := s.calendar()
		if c == nil {
			return time.Time{}
		}
		return s.delayed(c.next(last), keyID)
	default:
		period := max(s.Period, time.Second)
		return last.Add(period).Add(s.jitter(period, keyID))
	}
}

// Deadline returns the last instant at which a rotation that was due at due
// may begin: the end of the window of the fire that made it due, whatever its
// jitter. It is the zero time if there is no window, or due is zero.
func (s Spec) Deadline(due time.Time) time.Time {
	c := s.calendar()
	if c == nil || s.Window <= 0 || due.IsZero() {
		return time.Time{}
	}
	// Jitter stays within the interval, so this is the fire that due is of.
	fire := c.prev(due)
	if fire.IsZero() {
		return time.Time{}
	}
	return fire.Add(s.Window)
}

// Due says whether, at now, a key whose last rotation was at last is to be
// rotated. If it is, next is the instant since which it has been due, at or
// before now. If it is not, next is when to look again, after now, or the zero
// time if s is not automatic.
//
// A key that is overdue is due once, however many periods or fires were missed:
// after a rotation at now, it is not due at now. With a window, a key that
// missed it is not due until the next fire.
func (s Spec) Due(last, now time.Time, keyID string) (due bool, next time.Time) {
	now = wholeSecond(now)
	next = s.Next(last, keyID)
	if next.IsZero() || next.After(now) {
		return false, next
	}
	end := s.Deadline(next)
	if end.IsZero() || !now.After(end) {
		return true, next
	}
	// The window of the fire that followed last is over; what counts is that
	// of the latest fire.
	c := s.calendar()
	next = s.delayed(c.prev(now), keyID)
	if next.After(now) {
		return false, next
	}
	if end = s.Deadline(next); !now.After(end) {
		return true, next
	}
	return false, s.delayed(c.next(now), keyID)
}

// CatchUp returns when, from now on, to rotate a key that is due at now: now
// itself, unless it has been due for more than 5 minutes. Then there was an
// outage, other keys are late too, and each gets an instant of its own, fixed
// by its key id, in [now, now+spread), where spread is an hour, but at most a
// tenth of the interval and what is left of the window less 5 minutes. A
// spread under a minute is none. For a key that is not due the answer is now,
// too: ask [Spec.Due] first.
//
// CatchUp has no memory. Asked again at the instant that it gave, it would put
// the key off again, so ask once: a key whose stored tick is later than the
// instant since which Due says it is due has had its answer, and is rotated
// when that tick comes.
func (s Spec) CatchUp(last, now time.Time, keyID string) time.Time {
	now = wholeSecond(now)
	due, since := s.Due(last, now, keyID)
	if !due || now.Sub(since) <= onTime {
		return now
	}
	spread := min(maxSpread, s.Interval(now)/10)
	if end := s.Deadline(since); !end.IsZero() {
		spread = min(spread, end.Sub(now)-onTime)
	}
	if spread < minSpread {
		return now
	}
	return now.Add(share(spread, keyID, catchUpSalt))
}

// delayed adds the jitter of the interval that begins with fire.
func (s Spec) delayed(fire time.Time, keyID string) time.Time {
	if fire.IsZero() || s.JitterPercent <= 0 {
		return fire
	}
	return fire.Add(s.jitter(s.Interval(fire), keyID))
}

func (s Spec) jitter(interval time.Duration, keyID string) time.Duration {
	percent := min(max(s.JitterPercent, 0), maxJitterPercent)
	// Divided first: a percentage of the seconds cannot overflow then, and
	// share drops fractions of a second anyway.
	span := interval / 100 * time.Duration(percent)
	if s.Window > 0 {
		span = min(span, s.Window-max(onTime, s.Window/4))
	}
	return share(span, keyID, jitterSalt)
}

func wholeSecond(t time.Time) time.Time {
	return t.UTC().Truncate(time.Second)
}
