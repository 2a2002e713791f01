// SPDX-License-Identifier: MPL-2.0

package health

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var promoted = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// at is a moment of a rollover with an overlap of 24 hours.
func at(d time.Duration) time.Time { return promoted.Add(d) }

func rollover(sources ...Source) Rollover {
	return Rollover{From: 1, To: 2, Promoted: promoted, Planned: at(24 * time.Hour), Deadline: at(24 * time.Hour), KnownSince: at(-time.Hour), Sources: sources}
}

// uses is a source: recent and total uses of the old and the new version, and
// when each was last used.
func uses(name string, oldRecent, oldTotal uint64, oldLast time.Duration, newRecent, newTotal uint64, newLast time.Duration) Source {
	s := Source{Name: name, Old: Use{Recently: oldRecent, Total: oldTotal}, New: Use{Recently: newRecent, Total: newTotal}}
	if oldTotal > 0 {
		s.Old.LastUsed = at(oldLast)
	}
	if newTotal > 0 {
		s.New.LastUsed = at(newLast)
	}
	return s
}

func TestStatus(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	moved := uses("eu", 0, 10, -hour, 10, 10, 12*hour)
	for name, tc := range map[string]struct {
		r        Rollover
		now      time.Duration
		want     Status
		laggards []string
		moved    float64
	}{
		"nothing is known": {r: rollover(), now: hour, want: OnTrack},
		"all have moved":   {r: rollover(moved), now: 12 * hour, want: OnTrack, moved: 1},
		"most is on the old version, but it is early": {
			r: rollover(uses("eu", 100, 500, hour, 1, 1, hour)), now: hour, want: OnTrack, laggards: []string{"eu"}, moved: 1. / 101,
		},
		"most is on the old version late in the overlap": {
			r: rollover(moved, uses("us", 100, 500, 14*hour, 0, 0, 0)), now: 14 * hour, want: Stalled, laggards: []string{"us"}, moved: 10. / 110,
		},
		"a source will be left behind": {
			r: rollover(moved, uses("us", 1, 500, 21*hour, 0, 0, 0)), now: 21 * hour, want: AtRisk, laggards: []string{"us"}, moved: 10. / 11,
		},
		"the retired version was refused": {
			r: func() Rollover {
				r := rollover(moved, uses("us", 0, 500, 23*hour, 0, 0, 0))
				r.Ended = at(24 * hour)
				r.Sources[1].Old.Refused, r.Sources[1].Old.Stale = 5, 3
				return r
			}(), now: 25 * hour, want: Failed, laggards: []string{"us"}, moved: 1,
		},
		"it was refused before it was retired, for another reason": {
			r: func() Rollover {
				r := rollover(moved)
				r.Ended = at(24 * hour)
				r.Sources[0].Old.Refused = 3
				return r
			}(), now: 25 * hour, want: OnTrack, moved: 1,
		},
		"it was refused after an earlier end, from which it was brought back": {
			r: func() Rollover {
				r := rollover(moved)
				r.Ended, r.StaleBefore = at(24*hour), 3
				r.Sources[0].Old.Refused, r.Sources[0].Old.Stale = 3, 3
				return r
			}(), now: 25 * hour, want: OnTrack, moved: 1,
		},
		"the new version was never used": {
			r: func() Rollover {
				r := rollover(uses("eu", 5, 500, 24*hour, 0, 0, 0))
				r.Ended = at(24 * hour)
				return r
			}(), now: 24 * hour, want: Failed, laggards: []string{"eu"},
		},
		"it ended drained, though the last half hour had mostly old uses": {
			r: func() Rollover {
				r := rollover(uses("eu", 100, 500, 23*hour, 1, 1, 23*hour+time.Minute))
				r.Ended = at(23*hour + 10*time.Minute)
				return r
			}(), now: 23*hour + 11*time.Minute, want: OnTrack, moved: 1. / 101,
		},
		"a pending version": {
			r: Rollover{From: 1, To: 2, Sources: []Source{{Name: "eu", Old: Use{Total: 5, Recently: 5, LastUsed: promoted}}}}, now: 0, want: OnTrack, laggards: []string{"eu"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Judge(tc.r, at(tc.now))
			if got.Status != tc.want {
				t.Errorf("status %s, want %s; %s", got.Status, tc.want, strings.Join(got.Evidence, "; "))
			}
			var names []string
			for _, l := range got.Laggards {
				names = append(names, l.Source)
			}
			if !slices.Equal(names, tc.laggards) {
				t.Errorf("laggards %v, want %v", names, tc.laggards)
			}
			if diff := got.Moved - tc.moved; diff > 1e-9 || diff < -1e-9 {
				t.Errorf("moved %v, want %v", got.Moved, tc.moved)
			}
			if len(got.Evidence) == 0 {
				t.Error("there is no evidence")
			}
		})
	}
}

func TestInstancesThatConfirmedOnlyTheOldVersionLag(t *testing.T) {
	t.Parallel()
	r := rollover()
	r.Instances = []Instance{{Name: "a", Version: 1, Time: promoted}, {Name: "b", Version: 2, Time: promoted}}
	got := Judge(r, at(time.Hour)).Laggards
	if len(got) != 1 || got[0].Instance != "a" {
		t.Errorf("laggards %+v", got)
	}
}

func TestTheForecastNamesThoseWhoMoveTooSlowly(t *testing.T) {
	t.Parallel()
	// Three of twelve moved in 16 of 24 hours: one or two more will.
	var sources []Source
	for i := range 12 {
		name := fmt.Sprintf("s%02d", i)
		if i < 3 {
			sources = append(sources, uses(name, 0, 5, time.Hour, 5, 5, 15*time.Hour))
			continue
		}
		sources = append(sources, uses(name, 1, 5, 16*time.Hour-time.Duration(i)*time.Minute, 0, 0, 0))
	}
	got := Judge(rollover(sources...), at(16*time.Hour))
	if len(got.Laggards) != 9 || len(got.Left) != 8 {
		t.Errorf("%d lag and %d are left, want 9 and 8: %v", len(got.Laggards), len(got.Left), got.Left)
	}
	if slices.Contains(got.Left, "s11") {
		t.Errorf("the one seen longest ago is counted as left: %v", got.Left)
	}
}

// TestJudgeHoldsItsPromises: whatever is known, the share is one, those who
// are left are laggards, and who uses only the new version is none.
func TestJudgeHoldsItsPromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		minutes := rapid.IntRange(0, 30*60)
		count := rapid.Uint64Range(0, 1000)
		var sources []Source
		for i := range rapid.IntRange(0, 8).Draw(t, "sources") {
			oldTotal, newTotal := count.Draw(t, "old"), count.Draw(t, "new")
			sources = append(sources, uses(fmt.Sprintf("s%d", i),
				min(oldTotal, count.Draw(t, "old recent")), oldTotal, time.Duration(minutes.Draw(t, "old last"))*time.Minute,
				min(newTotal, count.Draw(t, "new recent")), newTotal, time.Duration(minutes.Draw(t, "new last"))*time.Minute))
		}
		r := rollover(sources...)
		now := at(time.Duration(minutes.Draw(t, "now")) * time.Minute)
		if rapid.Bool().Draw(t, "ended") && now.After(r.Deadline) {
			r.Ended = r.Deadline
		}
		got := Judge(r, now)
		if got.Moved < 0 || got.Moved > 1 {
			t.Fatalf("moved %v", got.Moved)
		}
		lag := map[string]bool{}
		for _, l := range got.Laggards {
			lag[l.Source] = true
		}
		for _, name := range got.Left {
			if !lag[name] {
				t.Fatalf("%s is left and no laggard", name)
			}
		}
		for _, s := range sources {
			if s.Old.Total == 0 && lag[s.Name] {
				t.Fatalf("%s never used the old version and lags", s.Name)
			}
			if s.Old.Total > 0 && s.New.Total == 0 && !lag[s.Name] {
				t.Fatalf("%s was never seen on the new version and does not lag", s.Name)
			}
		}
	})
}
