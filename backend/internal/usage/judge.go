// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// judgedHours is how many hours in a row, the one that is judged included,
	// must have been counted in full.
	judgedHours = 3
	// shortStop is how long nobody may have counted without a gap: a restart,
	// and what a page has not been told yet. Pages of keys whose silence matters
	// are written each minute.
	shortStop = 5 * time.Minute
	// maxGaps bounds the gaps of one page; beyond it the oldest become one.
	maxGaps = 32
	// watchHours is how long after its last use a page is still judged each
	// hour, and maxVisits how many such pages one flush reads.
	watchHours = 24
	maxVisits  = 64
)

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }

// counting is since when this process has counted all uses.
type counting struct {
	since time.Time
	// wall and elapsed are what the clock showed when it was last looked at.
	wall    time.Time
	elapsed time.Duration
}

// look takes the hours that the wall clock has leapt over for hours in which
// nobody counted.
func (c *counting) look(clock clock.Clock) {
	wall, elapsed := clock.Now(), clock.Elapsed()
	if wall.Sub(c.wall)-(elapsed-c.elapsed) > shortStop {
		c.since = wall
	}
	c.wall, c.elapsed = wall, elapsed
}

// gap is a range of hours since 1970, its ends included.
type gap [2]int64

// gaps are in ascending order, and do not touch.
type gaps []gap

func (g gaps) size() int { return 32 * len(g) }

// add returns g and one more.
func (g gaps) add(one gap) gaps {
	var sum gaps
	for _, o := range g {
		if o[1]+1 < one[0] || one[1]+1 < o[0] {
			sum = append(sum, o)
			continue
		}
		one = gap{min(one[0], o[0]), max(one[1], o[1])}
	}
	sum = append(sum, one)
	slices.SortFunc(sum, func(a, b gap) int { return int(a[0] - b[0]) })
	for len(sum) > maxGaps {
		sum[1][0] = sum[0][0]
		sum = sum[1:]
	}
	return sum
}

// within returns what of g lies in the hours from first to last: what a clock
// that ran ahead has noted is no gap.
func (g gaps) within(first, last int64) gaps {
	var rest gaps
	for _, o := range g {
		if o = (gap{max(o[0], first), min(o[1], last)}); o[0] <= o[1] {
			rest = append(rest, o)
		}
	}
	return rest
}

// note notes the hours in which nobody counted the uses of a page: from when it was
// written last until this process began to count. What was used just before a stop
// is flushed by it, so that a start right after is no gap.
func (p *page) note(since, now time.Time) {
	p.gaps = p.gaps.within(hourOf(now)-1-keepTotals, hourOf(now))
	if at := time.Unix(p.at, 0); p.at > 0 && since.Sub(at) > shortStop {
		p.gaps = p.gaps.add(gap{hourOf(at), hourOf(since)})
	}
}

// hours gives f the hour last of each key, unless it or one of those right before
// it was not counted in full.
func (p *page) hours(last int64, f func(keyID string, before []uint64, end time.Time, count uint64)) {
	if len(p.gaps.within(last+1-judgedHours, last)) > 0 {
		return
	}
	p.each(func(id string, k *keyPage) bool {
		if before, count := k.hours(last, p.gaps); len(before) > 0 {
			f(id, before, time.Unix((last+1)*3600, 0).UTC(), count)
		}
		return false
	})
}

// hours returns the accepted uses of a key in each hour before last, from the
// first that is known on, and in last. An hour that was not counted in full has at
// least as many as a week before, or a day where no week is known, or half of all
// others: the rest stays in step with the seasons, and no gap looks like silence.
func (k *keyPage) hours(last int64, g gaps) (before []uint64, count uint64) {
	first := max(k.Since, last-keepTotals)
	if k.Since == 0 || first > last {
		return nil, 0
	}
	before = make([]uint64, last-first)
	for _, b := range k.Totals.from(first) {
		switch {
		case b.slot < last:
			before[b.slot-first] = b.count
		case b.slot == last:
			count = b.count
		}
	}
	g = g.within(first, last-1)
	var usual uint64
	if len(g) > 0 {
		usual = medianOutside(before, first, g)
	}
	for _, o := range g {
		for i := o[0] - first; i <= o[1]-first; i++ {
			fill := usual
			for _, season := range []int64{7 * 24, 24} {
				if i >= season {
					fill = before[i-season]
					break
				}
			}
			before[i] = max(before[i], fill)
		}
	}
	return before, count
}

// medianOutside is the median of the counts of the hours from first on that are in
// no gap, 0 where all are.
func medianOutside(counts []uint64, first int64, g gaps) uint64 {
	var counted []uint64
	for i, n := range counts {
		if slot := first + int64(i); len(g.within(slot, slot)) == 0 {
			counted = append(counted, n)
		}
	}
	if len(counted) == 0 {
		return 0
	}
	slices.Sort(counted)
	return counted[len(counted)/2]
}

// watch is when a page was last used, and the last hour that was judged.
type watch struct{ used, judged int64 }

// newWatch is of a page that is used again, or by what this process knows for the
// first time: it is judged from this hour on.
func newWatch(now time.Time) *watch { return &watch{hourOf(now), hourOf(now) - 1} }

// over tells whether the page was not used for so long that it is left alone.
func (w *watch) over(now time.Time) bool { return hourOf(now)-1-w.used > watchHours }

func (w *watch) due(now time.Time) bool { return w.judged < hourOf(now)-1 }

// judge gives f the last full hour of the keys on a page, once.
func (w *watch) judge(p *page, now time.Time, f func(keyID string, before []uint64, end time.Time, count uint64)) {
	due, last := w.due(now), hourOf(now)-1
	w.judged = last
	if due {
		p.hours(last, f)
	}
}

// used has a page judged each hour for a day.
func (b *Book) used(name string, now time.Time) {
	if b.OnHour == nil {
		return
	}
	if b.watched[name] == nil {
		b.watched[name] = newWatch(now)
	}
	b.watched[name].used = hourOf(now)
}

// judge judges a page, where it is its time.
func (b *Book) judge(name string, p *page, now time.Time) {
	if w := b.watched[name]; w != nil {
		w.judge(p, now, b.OnHour)
	}
}

// unjudged returns the pages whose last full hour is not judged yet, and forgets
// those that were not used for long.
func (b *Book) unjudged(now time.Time) []string {
	var names []string
	for name, w := range b.watched {
		switch {
		case w.over(now):
			delete(b.watched, name)
		case w.due(now):
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// visit judges the last full hour of pages that nobody uses any more: it is then
// that a key which fell silent is found. It tries each page once an hour.
func (b *Book) visit(ctx context.Context, now time.Time) error {
	if err := b.paging.take(ctx); err != nil {
		return err
	}
	names := b.unjudged(now)
	b.paging.give()
	var errs []error
	for _, name := range names[:min(len(names), maxVisits)] {
		if err := b.visitPage(ctx, name, now); err != nil {
			if errs = append(errs, err); len(errs) == maxFailed {
				break
			}
		}
	}
	return errors.Join(errs...)
}

func (b *Book) visitPage(ctx context.Context, name string, now time.Time) error {
	if err := b.paging.take(ctx); err != nil {
		return err
	}
	defer b.paging.give()
	data, err := b.fetch(ctx, name)
	p := newPage()
	if err == nil {
		if p, err = decodePage(data); err != nil {
			p = newPage()
		}
	}
	p.note(b.counting.since, now)
	b.judge(name, p, now)
	if errors.Is(err, errDamaged) {
		return nil // it was told when it could not be flushed
	}
	return err
}

// Sheet is a page in no storage, for those who measure what is found by the hours
// that a Book hands over: it keeps, cuts and hands over the same.
type Sheet struct {
	page  *page
	watch *watch
	since time.Time
}

// NewSheet returns an empty one, and counts from since on.
func NewSheet(since time.Time) *Sheet {
	return &Sheet{page: newPage(), since: since}
}

// Restart is as when another process counts from since on.
func (s *Sheet) Restart(since time.Time) { s.watch, s.since = nil, since }

// Add counts accepted uses, the last of them at a time.
func (s *Sheet) Add(keyID string, at time.Time, n uint64) {
	s.page.note(s.since, at)
	hour := hourOf(at)
	var hours series
	hours.add(hour, n, keepHours)
	s.page.add(keyID, delta{1: {"": addition{counts{count: n, hours: hours}, at}}}, oldest{hours: hour, totals: hour - 1 - keepTotals})
	s.page.at = at.Unix()
	if s.watch == nil || s.watch.over(at) {
		s.watch = newWatch(at)
	}
	s.watch.used = hour
}

// Hour is what OnHour of a Book is given at a time, where it was flushed each
// minute up to then.
func (s *Sheet) Hour(now time.Time, f func(keyID string, before []uint64, end time.Time, count uint64)) {
	if s.watch == nil || s.watch.over(now) {
		return
	}
	s.page.note(s.since, now)
	s.watch.judge(s.page, now, f)
}
