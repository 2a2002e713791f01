// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"testing"
	"time"
)

func TestMaxIntervalIsTheLongestGap(t *testing.T) {
	t.Parallel()
	for cron, want := range map[string]time.Duration{
		"0 * * * *":    time.Hour,
		"0 0 * * *":    24 * time.Hour,
		"0 9-17 * * *": 16 * time.Hour,
		"0 0 * * 1-5":  72 * time.Hour,
		"0 0 1 * *":    31 * 24 * time.Hour,
		// From 31 January 23:59 to 1 January of the next year, after a leap day.
		"* * * 1 *":  335*24*time.Hour + time.Minute,
		"0 0 29 2 *": 1461 * 24 * time.Hour,
	} {
		s := Spec{Cron: cron}
		if err := s.Validate(); err != nil {
			t.Fatalf("%s: %v", cron, err)
		}
		if got := s.MaxInterval(); got != want {
			t.Errorf("%s: got %s, want %s", cron, got, want)
		}
	}
	if got := (Spec{Period: time.Hour}).MaxInterval(); got != time.Hour {
		t.Errorf("period: got %s", got)
	}
}
