// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"errors"
	"fmt"
	"time"
)

const (
	// maxPeriod keeps every due time within the 8 digits of minutes that the
	// due index has (until 2160), and sums of durations far from overflow.
	maxPeriod = 87600 * time.Hour // ten years
	// minWindow is the distance between two ticks.
	minWindow = time.Minute
	// maxJitterPercent keeps a jittered cron fire clear of the next one.
	maxJitterPercent = 50
)

// Spec says when keys of a role rotate by themselves. The zero Spec never
// rotates. It is a value: comparable, and safe for concurrent use.
type Spec struct {
	Period        time.Duration // rotation_period, 0 if cron or manual
	Cron          string        // rotation_schedule, 5 fields, UTC
	Window        time.Duration // rotation_window, only with Cron, 0 = any time after
	JitterPercent int           // rotation_jitter, 0 to 50
	Disabled      bool          // disable_automated_rotation
}

// Validate returns an error that names the field at fault and what it accepts.
// It never echoes the cron expression, in which anything may have been pasted.
// Disabled makes no difference: what is switched off must be fit to be
// switched on again.
func (s Spec) Validate() error {
	if s.Period < 0 || s.Period > maxPeriod || s.Period%time.Second != 0 {
		return fmt.Errorf("rotation_period must be 0 or between 1s and 87600h in whole seconds, got %s", s.Period)
	}
	if s.Period != 0 && s.Cron != "" {
		return errors.New("rotation_period and rotation_schedule exclude each other: give one of them")
	}
	if s.JitterPercent < 0 || s.JitterPercent > maxJitterPercent {
		return fmt.Errorf("rotation_jitter must be a whole percentage between 0 and %d, got %d", maxJitterPercent, s.JitterPercent)
	}
	if s.Window < 0 || (s.Window > 0 && s.Window < minWindow) || s.Window%time.Second != 0 {
		return fmt.Errorf("rotation_window must be 0 or at least %s in whole seconds, got %s", minWindow, s.Window)
	}
	if s.Cron == "" {
		if s.Window != 0 {
			return errors.New("rotation_window needs rotation_schedule")
		}
		return nil
	}
	c, err := compile(s.Cron)
	if err != nil {
		return err
	}
	if s.Window > c.minGap {
		return fmt.Errorf("rotation_window must be at most %s, the shortest interval of rotation_schedule, got %s", c.minGap, s.Window)
	}
	return nil
}

// Automatic says whether keys rotate by themselves at all: there is a period
// or a cron expression, and it is not disabled.
func (s Spec) Automatic() bool {
	return (s.Period > 0 || s.Cron != "") && !s.Disabled
}

// MinInterval returns the least time that can pass between two rotations that
// are due without jitter: the period, or the least gap between two consecutive
// fires, which is exact for the years 1901 to 2099. It is 0 if there is
// neither. Disabled makes no difference.
func (s Spec) MinInterval() time.Duration {
	if c := s.calendar(); c != nil {
		return c.minGap
	}
	return max(s.Period, 0)
}

// MaxInterval returns the most time that can pass between two rotations that
// are due without jitter, as MinInterval returns the least.
func (s Spec) MaxInterval() time.Duration {
	if c := s.calendar(); c != nil {
		return c.maxGap
	}
	return max(s.Period, 0)
}

// Interval returns the period, or for cron the length of the interval that at
// lies in: from the last fire at or before it to the next one after it. It is
// 0 if there is neither. Disabled makes no difference.
func (s Spec) Interval(at time.Time) time.Duration {
	if c := s.calendar(); c != nil {
		from, to := c.prev(at), c.next(at)
		if from.IsZero() || to.IsZero() {
			return c.minGap // only beyond the years that time.Time can tell
		}
		return to.Sub(from)
	}
	return max(s.Period, 0)
}

// calendar returns nil if there is no cron expression, or an invalid one.
func (s Spec) calendar() *calendar {
	if s.Cron == "" {
		return nil
	}
	c, err := calendars.get(s.Cron)
	if err != nil {
		return nil
	}
	return c
}
