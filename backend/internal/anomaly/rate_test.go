// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
	"pgregory.net/rapid"
)

func flat(count uint64, n int) []uint64 {
	return weekOf(n, func(int) float64 { return float64(count) })
}

// weekOf is n hours from a Monday on.
func weekOf(n int, mean func(h int) float64) []uint64 {
	hours := make([]uint64, n)
	for h := range hours {
		hours[h] = uint64(mean(h))
	}
	return hours
}

// noisy draws Poisson counts with some more noise.
func noisy(seed uint64, n int, mean func(h int) float64) []uint64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	return weekOf(n, func(h int) float64 {
		m := mean(h) * math.Exp(0.2*rng.NormFloat64())
		if m <= 0 {
			return 0
		}
		return distuv.Poisson{Lambda: m, Src: rng}.Rand()
	})
}

func office(h int) float64 {
	if h/24%7 >= 5 || h%24 < 8 || h%24 > 17 {
		return 4
	}
	return 800
}

func nightly(h int) float64 {
	if h%24 == 2 {
		return 5000
	}
	return 0
}

func always(mean float64) func(int) float64 { return func(int) float64 { return mean } }

// then is as before up to hour at, and as after from then on.
func then(at int, before, after func(int) float64) func(int) float64 {
	return func(h int) float64 {
		if h < at {
			return before(h)
		}
		return after(h)
	}
}

func TestJudgeHour(t *testing.T) {
	t.Parallel()
	const high, low, fine = "high", "low", "fine"
	for _, c := range []struct {
		name  string
		hours []uint64
		count uint64
		want  string
	}{
		{"no history", nil, 100_000, fine},
		{"too little history", flat(10, minHours-1), 100_000, fine},
		{"steady", noisy(1, 672, always(100)), 120, fine},
		{"ten times", noisy(1, 672, always(100)), 1000, high},
		{"ten times, with two days of history", noisy(1, 48, always(100)), 1000, high},
		{"less than three times", noisy(1, 672, always(100)), 250, fine},
		{"a few uses of a small key", noisy(1, 672, always(0.5)), 8, fine},
		{"many uses of a small key", noisy(1, 672, always(0.5)), 60, high},
		{"many uses of an idle key", flat(0, 672), 60, high},
		{"first uses of a young idle key", flat(0, 200), 60, fine},
		{"the usual Monday morning", noisy(1, 24*21+9, office), 800, fine},
		{"Monday's uses on a Sunday", noisy(1, 24*27+10, office), 800, high},
		{"day's uses at night", noisy(1, 24*22+3, office), 800, high},
		{"the nightly job", noisy(1, 24*20+2, nightly), 5200, fine},
		{"the nightly job at noon", noisy(1, 24*20+12, nightly), 5200, high},
		{"the nightly job, an hour later than ever (daylight saving)", noisy(1, 24*20+3, nightly), 5200, fine},
		{"the second nightly job", noisy(1, 24*2+2, nightly), 5200, fine},
		{"one silent hour", noisy(1, 672, always(100)), 0, fine},
		{"the third silent hour", append(noisy(1, 669, always(100)), 0, 0), 0, low},
		{"the twentieth silent hour is the new level", append(noisy(1, 652, always(100)), flat(0, 20)...), 0, fine},
		{"the third silent hour of a small key", append(noisy(1, 669, always(3)), 0, 0), 0, fine},
		{"a quiet Saturday", noisy(1, 24*26+12, office), 3, fine},
		{"a holiday", append(noisy(1, 24*21+8, office), 4, 4, 4, 4), 4, fine},
		{"after an outage of two days, back to normal", noisy(1, 672, then(624, always(100), always(0))), 100, fine},
		{"the day after a launch", noisy(1, 672, then(648, always(100), always(1000))), 1000, fine},
		{"a slow drift", noisy(1, 672, func(h int) float64 { return 100 * math.Exp(float64(h)/200) }), 2900, fine},
		{"a new job, the third time", noisy(1, 672+3, then(600, always(100), func(h int) float64 { return 100 + nightly(h-1) })), 5000, fine},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			end := start.Add(5 * time.Hour)
			f, ok := JudgeHour(c.hours, end, c.count)
			got := fine
			if ok {
				got = low
				if strings.Contains(f.Evidence, "at most") {
					got = high
				}
				t.Log(f.Evidence)
			}
			if got != c.want {
				t.Fatalf("%s, want %s", got, c.want)
			}
			if ok && (f.Kind != UnusualRate || !f.Time.Equal(end) || f.Score < minScore) {
				t.Fatalf("%+v", f)
			}
		})
	}
}

// replay gives each hour to a detector, and returns the hours with a finding.
func replay(d *Detector, hours []uint64) (found []int) {
	for h, count := range hours {
		if _, ok := d.Hour(start.Add(time.Duration(h+1)*time.Hour), "k", hours[max(0, h-maxHours):h], count); ok {
			found = append(found, h)
		}
	}
	return found
}

func TestOneFindingForEachCause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mean func(h int) float64
		want []int
	}{
		"a launch in one step":         {then(700, always(100), always(2000)), []int{700}},
		"a stop":                       {then(700, always(100), always(0)), []int{702}},
		"a runaway of six hours":       {then(700, always(100), then(706, always(2000), always(100))), []int{700}},
		"a launch over four days":      {func(h int) float64 { return 100 * math.Exp(3*min(1, max(0, float64(h-700)/96))) }, nil},
		"office hours":                 {office, nil},
		"a nightly job":                {nightly, nil},
		"a new nightly job":            {then(700, always(100), func(h int) float64 { return 100 + nightly(h) }), []int{722}},
		"a month off and back":         {then(700, always(100), then(1420, always(0), always(100))), []int{702, 1420}},
		"a slow drift up":              {func(h int) float64 { return 10 * math.Exp(float64(h)/200) }, nil},
		"a slow drift down":            {func(h int) float64 { return 1e5 * math.Exp(-float64(h)/200) }, nil},
		"three uses an hour":           {always(3), nil},
		"a use every other hour or so": {always(0.5), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := replay(New(start), noisy(7, 1600, c.mean))
			if len(got) != len(c.want) {
				t.Fatalf("findings at hours %v, want %v", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Fatalf("findings at hours %v, want %v", got, c.want)
				}
			}
		})
	}
}

// TestDeviationAgreesWithPoisson holds the deviation, without any spread,
// against the exact tail of a Poisson distribution.
func TestDeviationAgreesWithPoisson(t *testing.T) {
	t.Parallel()
	normal := distuv.UnitNormal
	for _, mean := range []float64{0.5, 1, 3, 10, 100, 1000} {
		for _, z := range []float64{2, 3, 5, 7} {
			count := math.Ceil(mean + z*math.Sqrt(mean))
			p := distuv.Poisson{Lambda: mean}
			// The middle of the probabilities of at least, and of more than, count.
			tail := p.Survival(count) + p.Prob(count)/2
			if tail < 1e-12 {
				continue
			}
			exact, got := normal.Quantile(1-tail), deviation(count, mean, 1e-9)
			if math.Abs(exact-got) > 0.25 {
				t.Errorf("%g uses where %g are expected: %.2f standard deviations, by the exact tail %.2f", count, mean, got, exact)
			}
		}
	}
}

func TestJudgeHourProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		history := rapid.SliceOfN(rapid.OneOf(rapid.Uint64Range(0, 20), rapid.Uint64Range(0, 100_000), rapid.Just(uint64(math.MaxUint64))), 0, 800).Draw(t, "history")
		count := rapid.OneOf(rapid.Uint64Range(0, 1_000_000), rapid.Uint64()).Draw(t, "count")
		before := append([]uint64(nil), history...)
		f, ok := JudgeHour(history, start, count)
		again, okAgain := JudgeHour(history, start, count)
		if ok != okAgain || f != again {
			t.Fatal("the same hours are judged differently")
		}
		for i := range before {
			if history[i] != before[i] {
				t.Fatal("the history was changed")
			}
		}
		if math.IsNaN(f.Score) || math.IsInf(f.Score, 0) {
			t.Fatalf("score %g", f.Score)
		}
		if n := len(history); n > maxHours {
			if g, okLast := JudgeHour(history[n-maxHours:], start, count); okLast != ok || g != f {
				t.Fatal("hours of more than four weeks ago matter")
			}
		}
		for _, h := range history {
			if h == count && ok && strings.Contains(f.Evidence, "at most") && len(history) < minWeekly {
				t.Fatalf("%d uses are too many, though there were as many before: %s", count, f.Evidence)
			}
		}
		if more, okMore := JudgeHour(history, start, count+min(count, math.MaxUint64-count)); ok && strings.Contains(f.Evidence, "at most") && !okMore {
			t.Fatalf("%d uses are too many, but twice as many are not: %+v", count, more)
		}
	})
}
