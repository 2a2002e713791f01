// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"sync"
	"sync/atomic"
	"testing"

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
