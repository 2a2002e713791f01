// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// size reads the environment.
func size(t *testing.T) Size {
	t.Helper()
	s := Size{Time: 75 * time.Second, Manual: 40, Bulk: 6, Scheduled: 4, Imported: 4, Rotations: 3, Verifications: 200, Seed: uint64(time.Now().UnixNano())}
	if text := os.Getenv("CHAOS_TIME"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			t.Fatalf("CHAOS_TIME must be a time such as 40m, got %q", text)
		}
		s.Time = d
	}
	if s.Time >= 3*time.Minute {
		// Enough for 5,000 rotations and 1,000,000 verifications in 40 minutes,
		// though a good part of the time there is no leader.
		s.Manual, s.Bulk, s.Scheduled, s.Imported, s.Rotations, s.Verifications = 300, 20, 12, 20, 4.5, 350
	}
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CHAOS_SEED must be a number, got %q", text)
		}
		s.Seed = seed
	}
	if text := os.Getenv("CHAOS_FAULTS"); text != "" {
		re, err := regexp.Compile(text)
		if err != nil {
			t.Fatalf("CHAOS_FAULTS must be a regular expression: %v", err)
		}
		s.Faults = re
	}
	switch text := os.Getenv("CHAOS_NETWORK"); text {
	case "":
	case "proxy":
		s.Proxies = true
	default:
		t.Fatalf("CHAOS_NETWORK must be proxy, or not be set, got %q", text)
	}
	return s
}

func TestChaos(t *testing.T) {
	s := size(t)
	r := Run(t, s)
	if dir := os.Getenv("CHAOS_REPORT"); dir != "" {
		if err := r.write(dir); err != nil {
			t.Errorf("write the report: %v", err)
		}
	}
	t.Logf("\n%s", r.Markdown())
	if n := r.Violated(); n > 0 {
		t.Errorf("%d violations", n)
	}
	for _, lack := range r.shortfalls(s) {
		t.Error(lack)
	}
}
