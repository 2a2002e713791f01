// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat"
)

const (
	hoursOfDay  = 24
	hoursOfWeek = 7 * hoursOfDay
	// maxHours is how much history is looked at: four weeks.
	maxHours = 4 * hoursOfWeek
	// minHours is the history below which nothing is judged. A season by hour of
	// day is used from minDaily on, by hour of week from minWeekly on.
	minHours  = 2 * hoursOfDay
	minDaily  = 3 * hoursOfDay
	minWeekly = 2 * hoursOfWeek
	// minQuiet is the history below which no hour is too quiet: it has to have a
	// weekend in it.
	minQuiet = hoursOfWeek

	// A busy hour has at least timesHigh the expected uses and leastHigh more; a
	// quiet one at most 1/timesLow of them. Quiet is judged over lowHours, and
	// needs leastLow uses missing in them.
	timesHigh = 3
	leastHigh = 20
	timesLow  = 4
	lowHours  = 3
	leastLow  = 30
	// minScore is the deviation, in standard deviations, from which an hour is
	// unusual; for a key that often jumps, spikes times what it exceeds in the
	// jumpiest 2 % of its own hours.
	minScore = 5
	spikes   = 1.5
	jumpy    = 0.02
	// The level of an hour is at least leastMean, for a few zeros do not prove
	// that there will never be a use; the variance of a rate beyond Poisson's is
	// at least leastSpread of its square (about 17 %), at most mostSpread.
	leastMean   = 0.5
	leastSpread = 0.03
	mostSpread  = 4
	// countable is the mean from which on logarithms of counts are compared and
	// an hour can be too quiet; fewCountable is the number of such hours that the
	// comparison takes.
	countable    = 5
	fewCountable = 2 * hoursOfDay

	// One finding for a change; if it does not become usual, again after 30
	// hours (longer than the day after which a new level is), doubling up to a
	// week. High and low have separate cool-downs.
	ratePaceFirst = 30 * time.Hour
	ratePaceMost  = 7 * 24 * time.Hour
)

// rates is the cool-down of a key's findings about its rate.
type rates struct{ high, low pace }

// Hour judges the full hour that ended last, as JudgeHour does, and keeps back
// what was reported already.
func (d *Detector) Hour(now time.Time, keyID string, hours []uint64, count uint64) (Finding, bool) {
	v, ok := judge(hours, count)
	if !ok {
		return Finding{}, false
	}
	t := d.since(now)
	s := d.lock(keyID)
	defer s.mu.Unlock()
	r, known := s.rates.Get(keyID)
	if !known {
		r = &rates{}
		s.rates.Add(strings.Clone(keyID), r)
	}
	p := &r.low
	if v.high {
		p = &r.high
	}
	held, due := p.due(t, ratePaceFirst, ratePaceMost)
	if !due {
		return Finding{}, false
	}
	f := v.finding(now.Truncate(time.Hour))
	f.Time, f.KeyID = now, keyID
	if held > 0 {
		f.Evidence += fmt.Sprintf("; so were %d hours since the last finding about it", held)
	}
	return f, true
}

// JudgeHour judges the full hour up to end, in which a key was used count
// times, against the hours right before it: consecutive, oldest first. Of
// those only the last four weeks are looked at, and with less than two days it
// finds nothing. It changes nothing and depends on nothing else.
//
// An hour is unusual only if nothing explains it: not this hour of the week (or
// of the day, while there are less than two weeks of history) nor the hours
// beside it, not the level of the last 24 hours, not this hour of the last few
// days. A quiet hour is also explained by any day of the week, for a holiday
// looks like a Sunday; it must be the third in a row, and takes a week of
// history. A busy hour of a key that often jumps is also explained by its
// busiest hour so far.
//
// The caller must not have an hour judged that, or one of the two before it, was
// not fully counted, and must put what is usual for such hours of the history: to
// the rule, an outage of the counter is a key that fell silent.
func JudgeHour(hours []uint64, end time.Time, count uint64) (Finding, bool) {
	v, ok := judge(hours, count)
	if !ok {
		return Finding{}, false
	}
	return v.finding(end), true
}

// verdict is an unusual hour.
type verdict struct {
	high bool
	// count and expected are over span hours.
	count, expected float64
	span            int
	score           float64
	season          int
	history         int
}

func (v verdict) finding(end time.Time) Finding {
	season := "in an hour"
	switch v.season {
	case hoursOfDay:
		season = "at this hour of the day"
	case hoursOfWeek:
		season = "at this hour of the week"
	}
	direction := "at least"
	if v.high {
		direction = "at most"
	}
	span := "hour"
	if v.span > 1 {
		span = fmt.Sprintf("%d hours", v.span)
	}
	return Finding{
		Time: end, Kind: UnusualRate, Score: v.score,
		Evidence: fmt.Sprintf("%.0f uses in the %s up to %s; %s %.0f were to be expected %s, by %d hours of history (%.1f standard deviations)",
			v.count, span, end.UTC().Format(time.RFC3339), direction, v.expected, season, v.history, v.score),
	}
}

func judge(hours []uint64, count uint64) (verdict, bool) {
	if len(hours) < minHours {
		return verdict{}, false
	}
	hours = hours[max(0, len(hours)-maxHours):]
	h := history{hours: hours, season: seasonOf(len(hours))}
	switch usual := h.usual(len(hours), 0); {
	case tooHigh(float64(count), usual):
		return h.judgeHigh(float64(count))
	case usual >= countable && tooLow(float64(count), usual):
		return h.judgeLow(float64(count))
	default:
		return verdict{}, false // as nearly always, and cheap
	}
}

func tooHigh(count, expected float64) bool {
	return count >= timesHigh*expected && count >= expected+leastHigh
}

func tooLow(count, expected float64) bool { return count*timesLow <= expected }

// seasonOf is the period after which hours are alike, or 0 while it is unknown.
func seasonOf(n int) int {
	switch {
	case n >= minWeekly:
		return hoursOfWeek
	case n >= minDaily:
		return hoursOfDay
	default:
		return 0
	}
}

// history is the hours before the one that is judged. Levels are logarithms
// of counts plus one.
type history struct {
	hours  []uint64
	season int
	// residual has, once it is needed, what each hour was above the level of its
	// season, and level that level.
	residual, level []float64
}

// usual is the median of the hours that are a number of whole seasons before
// hour at+shift, as a mean count. Where the season is unknown those are all.
func (h *history) usual(at, shift int) float64 {
	if h.season == 0 {
		return h.mean(median(h.logs(0, 1)))
	}
	first := (at + shift) % h.season
	return h.mean(median(h.logs(first, h.season)))
}

func (h *history) mean(level float64) float64 { return max(leastMean, math.Expm1(level)) }

// logs are the levels of every step-th hour from the first on.
func (h *history) logs(first, step int) []float64 {
	logs := make([]float64, 0, len(h.hours)/step+1)
	for i := first; i < len(h.hours); i += step {
		logs = append(logs, math.Log1p(float64(h.hours[i])))
	}
	return logs
}

// fit separates each hour into the level of its season and the rest.
func (h *history) fit() {
	if h.residual != nil {
		return
	}
	n := len(h.hours)
	season := max(1, h.season)
	h.level, h.residual = make([]float64, n), make([]float64, n)
	for slot := range season {
		level := median(h.logs(slot, season))
		for i := slot; i < n; i += season {
			h.level[i] = level
			h.residual[i] = math.Log1p(float64(h.hours[i])) - level
		}
	}
}

// lately is how far the key was above its season: over the last day, and at
// hour at, give or take one, of the last three days.
func (h *history) lately(at int) (lastDay, lastDays, leastDays float64) {
	h.fit()
	n := len(h.hours)
	lastDay = median(slices.Clone(h.residual[n-hoursOfDay:]))
	for shift := -1; shift <= 1; shift++ {
		var same []float64
		for days := 1; days <= 3; days++ {
			if i := at + shift - days*hoursOfDay; i >= 0 && i < n {
				same = append(same, h.residual[i])
			}
		}
		if len(same) == 3 {
			lastDays = max(lastDays, median(slices.Clone(same)))
			leastDays = min(leastDays, median(same))
		}
	}
	return lastDay, lastDays, leastDays
}

// again is what the hour at, give or take one, had yesterday, the day before and
// a week ago, at the least: a new daily job is usual before most weeks have it.
func (h *history) again(at int) float64 {
	most := 0.0
	for shift := -1; shift <= 1; shift++ {
		i := at + shift
		if i < hoursOfWeek {
			continue
		}
		most = max(most, float64(min(h.hours[i-hoursOfDay], h.hours[i-2*hoursOfDay], h.hours[i-hoursOfWeek])))
	}
	return most
}

func (h *history) judgeHigh(count float64) (verdict, bool) {
	n := len(h.hours)
	expected := max(h.usual(n, 0), h.usual(n, -1), h.usual(n, 1))
	if h.season != hoursOfWeek {
		// A job of each week, or of each day, has not been seen often enough yet.
		if expected < countable {
			return verdict{}, false // mostly idle, and nobody knows when it is not
		}
		expected = max(expected, float64(slices.Max(h.hours)))
	}
	if !tooHigh(count, expected) {
		return verdict{}, false
	}
	lastDay, lastDays, _ := h.lately(n)
	expected = max(expected*math.Exp(max(0, lastDay, lastDays)), h.again(n))
	if !tooHigh(count, expected) {
		return verdict{}, false
	}
	if h.jumps() {
		expected = max(expected, float64(slices.Max(h.hours)))
		if !tooHigh(count, expected) {
			return verdict{}, false
		}
	}
	spread := h.spread()
	score := deviation(count, expected, spread)
	if score < max(minScore, spikes*h.extreme(1-jumpy, spread)) {
		return verdict{}, false
	}
	return verdict{high: true, count: count, expected: expected, span: 1, score: score, season: h.season, history: n}, true
}

// jumps tells whether the season explains so little of the key's busy hours
// that only more than the busiest of all is unusual: it leaves more than 2 % of
// all hours, or a fifth of the busy ones, unexplained.
func (h *history) jumps() bool {
	h.fit()
	busy, unexplained := 0, 0
	for i, c := range h.hours {
		if c >= leastHigh {
			busy++
		}
		if tooHigh(float64(c), h.mean(h.level[i])) {
			unexplained++
		}
	}
	return float64(unexplained) > jumpy*float64(len(h.hours)) || 5*unexplained > busy
}

// judgeLow looks at the last lowHours hours together, each of which must be
// low by the history before all of them.
func (h *history) judgeLow(count float64) (verdict, bool) {
	n := len(h.hours)
	earlier := history{hours: h.hours[:n-lowHours+1]}
	if len(earlier.hours) < minQuiet {
		return verdict{}, false
	}
	earlier.season = seasonOf(len(earlier.hours))
	var sum, expected float64
	for at := n; at > n-lowHours; at-- {
		c := count
		if at < n {
			c = float64(h.hours[at])
		}
		e := earlier.least(at)
		if !tooLow(c, e) {
			return verdict{}, false
		}
		sum += c
		expected += e
	}
	if expected-sum < leastLow {
		return verdict{}, false
	}
	spread := earlier.spread()
	score := -deviation(sum, expected, spread)
	if score < max(minScore, -spikes*earlier.extreme(jumpy, spread)) {
		return verdict{}, false
	}
	return verdict{count: sum, expected: expected, span: lowHours, score: score, season: earlier.season, history: len(earlier.hours)}, true
}

// least is the least that explains a quiet hour.
func (h *history) least(at int) float64 {
	least := min(h.usual(at, 0), h.usual(at, -1), h.usual(at, 1))
	lastDay, _, lastDays := h.lately(at)
	least *= math.Exp(min(0, lastDay, lastDays))
	days := h.logs(at%hoursOfDay, hoursOfDay)
	slices.Sort(days)
	return max(leastMean, min(least, h.mean(stat.Quantile(0.1, stat.Empirical, days, nil))))
}

// spread is the variance of the key's rate beyond Poisson's, relative to its
// square: robust, from the median absolute deviation of the residuals, where
// counts are large enough, and otherwise from the moments of the counts without
// the jumpiest.
func (h *history) spread() float64 {
	h.fit()
	var residuals, poisson []float64
	for i, level := range h.level {
		if mean := math.Expm1(level); mean >= countable {
			residuals = append(residuals, math.Abs(h.residual[i]))
			poisson = append(poisson, 1/mean)
		}
	}
	var spread float64
	if len(residuals) >= fewCountable {
		// Residuals from a median of few values are too small by this.
		values := float64(len(h.hours)) / float64(max(1, h.season))
		sigma := 1.4826 * median(residuals)
		spread = sigma*sigma*values/(values-1) - median(poisson)
	} else {
		counts := make([]float64, len(h.hours))
		for i, c := range h.hours {
			counts[i] = float64(c)
		}
		slices.Sort(counts)
		mean, variance := stat.MeanVariance(counts[:len(counts)-int(jumpy*float64(len(counts)))], nil)
		spread = (variance - mean) / max(leastMean*leastMean, mean*mean)
	}
	return min(mostSpread, max(leastSpread, spread))
}

// extreme is the deviation that the given part of the key's own hours stays
// below.
func (h *history) extreme(part, spread float64) float64 {
	h.fit()
	deviations := make([]float64, len(h.hours))
	for i, c := range h.hours {
		deviations[i] = deviation(float64(c), h.mean(h.level[i]), spread)
	}
	slices.Sort(deviations)
	return stat.Quantile(part, stat.Empirical, deviations, nil)
}

// deviation is how far a count is from a mean, in standard deviations: the
// signed root of the deviance of a negative binomial distribution with variance
// mean + spread*mean². Unlike a difference of logarithms it is right for small
// counts too.
func deviation(count, mean, spread float64) float64 {
	size := 1 / spread
	d := (count + size) * math.Log((mean+size)/(count+size))
	if count > 0 {
		d += count * math.Log(count/mean)
	}
	root := math.Sqrt(2 * max(0, d))
	if count < mean {
		return -root
	}
	return root
}

// median sorts its argument.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
