// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// TestWhoTakesACountKnowsItsLastUse has uses counted while others are taken: a
// report that tells of a use and not of its time would have the version look
// unused, and drained.
func TestWhoTakesACountKnowsItsLastUse(t *testing.T) {
	t.Parallel()
	const uses = 200_000
	var c counter
	var adding sync.WaitGroup
	adding.Go(func() {
		for i := range uses {
			c.add(1, tick(i+1))
		}
	})
	for taken := uint64(0); taken < uses; {
		n, last := c.take()
		if taken += n; uint64(last) < taken {
			t.Fatalf("%d uses were taken, and the last is that of tick %d", taken, last)
		}
	}
	adding.Wait()
}

// TestTheLastUseNeverGoesBack has older uses counted beside newer ones.
func TestTheLastUseNeverGoesBack(t *testing.T) {
	t.Parallel()
	var c counter
	var adding sync.WaitGroup
	for first := range 4 {
		adding.Go(func() {
			for i := first; i < 100_000; i += 4 {
				c.add(1, tick(i+1))
				if last := c.lastUse(); last < tick(i+1) {
					t.Errorf("the last use is that of tick %d after one at %d", last, i+1)
					return
				}
			}
		})
	}
	adding.Wait()
	if n, last := c.take(); n != 100_000 || last != 100_000 {
		t.Errorf("%d uses, the last at tick %d; want 100000 of both", n, last)
	}
}

// answers is an engine whose feed gives these answers, one after the other.
type answers struct {
	Engine
	syncs []SyncAnswer
}

func (a *answers) Sync(context.Context, SyncRequest) (SyncAnswer, error) {
	next := a.syncs[0]
	a.syncs = a.syncs[1:]
	return next, nil
}

func (a *answers) Lookup(context.Context, LookupRequest) (LookupAnswer, error) {
	return LookupAnswer{}, errBadAnswer
}

// TestTheFeedWaitsForNobodyWhoCounts polls while somebody is about to take in
// all counts, and somebody else those of a report: what the feed tells has to be
// refused within the poll and a round trip.
func TestTheFeedWaitsForNobodyWhoCounts(t *testing.T) {
	t.Parallel()
	id, _ := parseID("0123456789ab")
	e := &answers{}
	v, err := New(Config{Engine: e, Name: "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range []SyncAnswer{{Epoch: "e", Reset: true}, {Epoch: "e", Seq: 1, Changed: []string{id.String()}}, {Epoch: "f", Reset: true}} {
		a.Now = time.Now()
		e.syncs = append(e.syncs, a)
		v.usage.mu.Lock()
		v.usage.collecting.Lock()
		polled := make(chan struct{})
		go func() {
			v.poll(t.Context())
			close(polled)
		}()
		select {
		case <-polled:
		case <-time.After(time.Minute):
			t.Fatalf("answer %d is not taken in while uses are counted", i)
		}
		if f := v.feed.Load(); f.epoch != a.Epoch || f.seq != a.Seq {
			t.Errorf("the feed is at %d of %s, want %d of %s", f.seq, f.epoch, a.Seq, a.Epoch)
		}
		v.usage.collecting.Unlock()
		v.usage.mu.Unlock()
	}
	v.background.Wait()
}

// TestReportsAreMadeBesideWhatIsCounted: whoever is judged by a fresh record
// counts that at once, however much there is to report. There is time for that while
// what was pending is neither there any more nor in a report.
func TestReportsAreMadeBesideWhatIsCounted(t *testing.T) {
	t.Parallel()
	const kinds = 50_000
	v, err := New(Config{Engine: &answers{}, Name: "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	u := v.usage
	for try := range 20 {
		for i := range kinds {
			u.add(useKey{key: strconv.Itoa(i), version: 1}, v.now(), 1, 0)
		}
		made := make(chan struct{})
		go func() {
			u.prepare()
			close(made)
		}()
		between := 0
		for over := false; !over; {
			select {
			case <-made:
				over = true
			default:
			}
			if u.mu.TryLock() {
				if len(u.pending) == 0 && len(u.unsent) == 0 {
					between++
				}
				u.mu.Unlock()
			}
		}
		if u.total().unreported != kinds {
			t.Fatalf("%d uses are unreported, want %d", u.total().unreported, kinds)
		}
		if between >= 100 {
			return
		}
		t.Logf("try %d: somebody could count %d times while reports were made", try, between)
		for len(u.unsent) > 0 {
			u.taken(&u.unsent[0], nil)
		}
	}
	t.Error("hardly anybody can count while reports are made")
}

// TestTheClockMayGoBackWhileReportsAreMade: they tell of no time that has yet to
// come. Where it does not, another start of the engine makes them tell no less.
func TestTheClockMayGoBackWhileReportsAreMade(t *testing.T) {
	t.Parallel()
	for _, by := range []time.Duration{-time.Hour, 0, time.Hour} {
		v, err := New(Config{Engine: &answers{}, Name: "edge-1"})
		if err != nil {
			t.Fatal(err)
		}
		u, now := v.usage, time.Now()
		v.apply(v.feed.Load(), &SyncAnswer{Epoch: "e", Now: now, Reset: true}, 0, 0)
		u.add(useKey{key: "0123456789ab", version: 1}, v.now(), 1, 0)
		f, pending := u.takePending()
		then := now.Add(by)
		v.apply(f, &SyncAnswer{Epoch: "f", Now: then, Reset: true}, 0, 0)
		u.ready(entriesOf(pending, f, v.now()), f, v.now())
		if len(u.unsent) != 1 || len(u.unsent[0].Entries) != 1 {
			t.Fatalf("reports %+v", u.unsent)
		}
		r := u.unsent[0]
		if last := r.Entries[0].LastUsed; last.After(then.Add(time.Minute)) || r.ReportedThrough.IsZero() != (by < 0) {
			t.Errorf("by %s: used at %s and reported through %s, at %s", by, last, r.ReportedThrough, then)
		}
		v.background.Wait()
	}
}

// TestReportsThatAreSentAreNotKept until all are: after an outage there may be a
// thousand.
func TestReportsThatAreSentAreNotKept(t *testing.T) {
	t.Parallel()
	const reports = 3
	v, err := New(Config{Engine: &answers{}, Name: "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	u := v.usage
	for i := range reports * reportEntries {
		u.add(useKey{key: strconv.Itoa(i), version: 1}, v.now(), 1, 0)
	}
	u.prepare()
	if len(u.unsent) != reports {
		t.Fatalf("%d reports, want %d", len(u.unsent), reports)
	}
	made := u.unsent
	for i := range made {
		r := made[i]
		u.taken(&r, nil)
		if made[i].Entries != nil {
			t.Errorf("the entries of report %d are kept", i+1)
		}
	}
	if u.unsent != nil || u.unreported != 0 {
		t.Errorf("%d reports and %d uses are left", len(u.unsent), u.unreported)
	}
}

// TestSlotsCountForTheirEntries has uses counted in a slot while it changes
// from one entry to another, and while they are taken: each is counted once, for
// the entry that it was of.
func TestSlotsCountForTheirEntries(t *testing.T) {
	t.Parallel()
	const uses = 50_000
	x := newIndex(1)
	s := &x.slots[0]
	entries := []*entry{{record: &record.Record{}}, {record: &record.Record{}}}
	for _, e := range entries {
		e.first.in = e
	}
	x.uncounted = func(e *entry, n uint64, last tick) { e.first.add(n, last) }
	rewrite := func(e *entry) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.write(s, e)
	}
	take := func() {
		if e, n, last := s.take(); n > 0 {
			e.first.add(n, last)
		}
	}
	var counting, others sync.WaitGroup
	var done atomic.Bool
	others.Go(func() {
		for i := 0; !done.Load(); i++ {
			rewrite(append(entries, nil)[i%3])
		}
	})
	others.Go(func() {
		for !done.Load() {
			take()
		}
	})
	for range 2 {
		for _, e := range entries {
			counting.Go(func() {
				for range uses {
					if counted, _ := s.count(&e.first, 1, 7); !counted {
						e.first.add(1, 7)
					}
				}
			})
		}
	}
	counting.Wait()
	done.Store(true)
	others.Wait()
	take()
	for i, e := range entries {
		if n, last := e.first.take(); n != 2*uses || last != 7 {
			t.Errorf("entry %d has %d uses, the last at tick %d; want %d, at 7", i, n, last, 2*uses)
		}
	}
}

func TestASlotCountsUpToItsBound(t *testing.T) {
	t.Parallel()
	x := newIndex(1)
	s := &x.slots[0]
	e := &entry{}
	e.first.in = e
	other := &entry{}
	x.uncounted = func(*entry, uint64, tick) { t.Error("uses that were taken are counted again") }
	if counted, _ := s.count(&e.first, 1, 1); counted {
		t.Error("an empty slot counts")
	}
	x.write(s, e)
	for _, c := range []struct {
		of             *entry
		n              uint64
		at             tick
		counted, first bool
	}{
		{other, 1, 1, false, false}, {e, maxTally - 1, 9, true, true}, {e, 2, 9, false, false}, {e, 1, 5, true, false}, {e, 1, 9, false, false},
	} {
		if counted, first := s.count(&c.of.first, c.n, c.at); counted != c.counted || first != c.first {
			t.Errorf("%d uses at %d: counted %v, first %v", c.n, c.at, counted, first)
		}
	}
	if of, n, last := s.take(); of != e || n != maxTally || last != 9 {
		t.Errorf("%d uses, the last at %d; want %d, at 9", n, last, maxTally)
	}
	if _, n, _ := s.take(); n != 0 {
		t.Errorf("%d uses are taken twice", n)
	}
	if counted, first := s.count(&e.first, 1, 10); !counted || !first {
		t.Error("a slot does not count after a take")
	}
	s.take()
	x.write(s, nil)
}
