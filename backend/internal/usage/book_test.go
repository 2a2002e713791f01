// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

const week = 168 * time.Hour

// shelf keeps pages in a storage.
type shelf struct {
	logical.Storage
	// puts are the pages written, and largest the size of the largest.
	puts, largest int
}

func (s *shelf) GetPage(ctx context.Context, name string) ([]byte, error) {
	entry, err := s.Get(ctx, "usage/"+name)
	if err != nil || entry == nil {
		return nil, err
	}
	return entry.Value, nil
}

func (s *shelf) PutPage(ctx context.Context, name string, data []byte) error {
	s.puts++
	s.largest = max(s.largest, len(data))
	return s.Put(ctx, &logical.StorageEntry{Key: "usage/" + name, Value: data})
}

func (s *shelf) DeletePage(ctx context.Context, name string) error {
	return s.Delete(ctx, "usage/"+name)
}

func (s *shelf) ListPages(ctx context.Context) ([]string, error) { return s.List(ctx, "usage/") }

// slips keeps notes in the same storage as a shelf its pages.
type slips struct{ logical.Storage }

func (s slips) GetPage(ctx context.Context, name string) ([]byte, error) {
	entry, err := s.Get(ctx, "firstuse/"+name)
	if err != nil || entry == nil {
		return nil, err
	}
	return entry.Value, nil
}

func (s slips) PutPage(ctx context.Context, name string, data []byte) error {
	return s.Put(ctx, &logical.StorageEntry{Key: "firstuse/" + name, Value: data})
}

func (s slips) DeletePage(ctx context.Context, name string) error {
	return s.Delete(ctx, "firstuse/"+name)
}

func (s slips) ListPages(ctx context.Context) ([]string, error) { return s.List(ctx, "firstuse/") }

// opened is a process that knows nothing before since but what is stored.
func opened(storage logical.Storage, since time.Time) (*shelf, *usage.Tracker, *usage.Book) {
	s := &shelf{Storage: storage}
	tracker := usage.New(since)
	return s, tracker, newBook(tracker, s)
}

func newBook(tracker *usage.Tracker, s *shelf) *usage.Book {
	return usage.NewBook(tracker, s, slips{s.Storage}, clock.NewManual(start), hclog.NewNullLogger())
}

func flush(t *testing.T, b *usage.Book, now time.Time) {
	t.Helper()
	if err := b.Flush(t.Context(), now, week); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

func count(t *testing.T, b *usage.Book, id string, now time.Time) uint64 {
	t.Helper()
	use, err := b.Read(t.Context(), id, now)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return use[1].Count
}

// flushAll flushes until nothing is left, and returns how often it took.
func flushAll(t *testing.T, b *usage.Book, s *shelf, now time.Time) (flushes int) {
	t.Helper()
	for !b.Idle() {
		s.puts = 0
		flush(t, b, now.Add(time.Duration(flushes)*time.Minute))
		if s.puts > 64 {
			t.Fatalf("flush %d wrote %d pages", flushes+1, s.puts)
		}
		if flushes++; flushes > 40 {
			t.Fatal("there is always something left")
		}
	}
	return flushes
}

// TestWritesAreBoundedAt100000ActiveKeys measures what the package comment
// says of 100,000 keys, each used from two sources.
func TestWritesAreBoundedAt100000ActiveKeys(t *testing.T) {
	t.Parallel()
	const keys = 100_000
	memory := storetest.NewMemory()
	s := &shelf{Storage: memory}
	tracker := usage.New(start)
	b := newBook(tracker, s)
	id := func(i int) string { return fmt.Sprintf("key%09d", i) }
	use := func(now time.Time) {
		for i := range keys {
			for _, source := range []string{"entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|eu", "entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|us"} {
				tracker.Record(now, id(i), 1, source, true)
			}
		}
	}
	use(start)
	first := flushAll(t, b, s, start)
	use(at(time.Hour))
	second := flushAll(t, b, s, at(time.Hour))
	pages := len(memory.Paths("usage/"))
	t.Logf("%d keys: %d pages, the largest of %d KiB; all stored after %d flushes the first time, %d later", keys, pages, s.largest>>10, first, second)
	if s.largest >= 512<<10 {
		t.Errorf("a page has %d bytes", s.largest)
	}
	if first > 10 || second > 5 {
		t.Errorf("%d and %d flushes", first, second)
	}
	for _, i := range []int{0, 1, 77_777, keys - 1} {
		if got := count(t, b, id(i), at(time.Hour)); got != 4 {
			t.Errorf("key %d was used %d times, want 4", i, got)
		}
	}
	restarted := newBook(usage.New(at(2*time.Hour)), s)
	if got := count(t, restarted, id(4711), at(2*time.Hour)); got != 4 {
		t.Errorf("after a restart a key was used %d times, want 4", got)
	}
}

func TestNothingToFlushCostsNothing(t *testing.T) {
	t.Parallel()
	counting := storetest.NewCounting(storetest.NewMemory())
	tracker := usage.New(start)
	b := newBook(tracker, &shelf{Storage: counting})
	flush(t, b, start)
	if got := counting.Total(); got.All() != 0 {
		t.Errorf("a first flush with nothing to store: %s", got)
	}
	tracker.Record(start, "k", 1, "c|eu", true)
	flush(t, b, start)
	counting.Reset()
	flush(t, b, at(time.Minute))
	if got := counting.Total(); got.All() != 0 || !b.Idle() {
		t.Errorf("a second one: %s", got)
	}
	tracker.Record(at(time.Minute), "k", 1, "c|eu", true)
	flush(t, b, at(2*time.Minute))
	if got := counting.Total(); got.Get != 1 || got.Put != 1 || got.All() != 2 {
		t.Errorf("one key used: %s", got)
	}
}

// TestAFlushThatIsCutOffLosesOnlyWhatWasNotFlushed cuts a flush that splits a
// page off at each of its storage operations, with and without effect of the
// one that fails; the process goes on, or another one does.
func TestAFlushThatIsCutOffLosesOnlyWhatWasNotFlushed(t *testing.T) {
	t.Parallel()
	const keys = 900
	id := func(i int) string { return fmt.Sprintf("key%09d", i) }
	// Long names make a page that is to be split out of few keys.
	source := func(n int) string { return fmt.Sprintf("caller|%s%d", strings.Repeat("s", 100), n) }
	filled := storetest.NewMemory()
	tracker := usage.New(start)
	b := newBook(tracker, &shelf{Storage: filled})
	for i := range keys {
		tracker.Record(start, id(i), 1, source(1), true)
	}
	flush(t, b, start)
	if len(filled.Paths("usage/")) != 1 {
		t.Fatalf("there are %d pages beforehand", len(filled.Paths("usage/")))
	}
	for _, applied := range []bool{false, true} {
		for _, crash := range []bool{false, true} {
			for n := 1; ; n++ {
				what := fmt.Sprintf("operation %d, applied %v, crash %v", n, applied, crash)
				memory := filled.Clone()
				faulty := storetest.NewFaulty(memory)
				s := &shelf{Storage: faulty}
				tracker := usage.New(at(time.Hour))
				b := newBook(tracker, s)
				for i := range keys {
					tracker.Record(at(time.Hour), id(i), 1, source(2), true)
				}
				faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: crash})
				err := b.Flush(t.Context(), at(time.Hour), week)
				hit := faulty.Failed() > 0
				faulty.Heal()
				if hit && !errors.Is(err, storetest.ErrInjected) {
					t.Fatalf("%s: the flush says %v", what, err)
				}
				if crash && hit {
					tracker = usage.New(at(2 * time.Hour))
					b = newBook(tracker, s)
				}
				least := uint64(2)
				if crash && hit {
					least = 1
				}
				for round := range 2 {
					for i := range keys {
						if i%90 != 0 { // each costs the decoding of a page
							continue
						}
						if got := count(t, b, id(i), at(time.Hour)); got < least || got > 2 {
							t.Fatalf("%s, round %d: key %d was used %d times, want %d to 2", what, round, i, got, least)
						}
					}
					// What is left is flushed; it and a restart change nothing.
					flushAll(t, b, s, at(time.Hour))
					b = newBook(usage.New(at(2*time.Hour)), s)
				}
				if s.largest >= 512<<10 {
					t.Fatalf("%s: a page has %d bytes", what, s.largest)
				}
				if !hit {
					if n < 5 || len(memory.Paths("usage/")) < 2 {
						t.Fatalf("%d operations and %d pages: nothing was split", n-1, len(memory.Paths("usage/")))
					}
					break
				}
			}
		}
	}
}

// TestPagesAgainstATwin flushes at random, with failures at random, and
// compares with plain sums.
func TestPagesAgainstATwin(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 1))
		faulty := storetest.NewFaulty(storetest.NewMemory())
		s := &shelf{Storage: faulty}
		tracker := usage.New(start)
		b := newBook(tracker, s)
		twin, stale := map[string]uint64{}, map[string]uint64{}
		now := start
		for range 60 {
			for range random.IntN(400) {
				id := fmt.Sprintf("key%09d", random.IntN(1200))
				n := uint64(random.IntN(3))
				tracker.Add(now, id, 1, "c|"+strings.Repeat("x", random.IntN(120)), usage.Uses{Accepted: n, Refused: 1, Stale: 1})
				twin[id] += n
				stale[id]++
			}
			if random.IntN(2) == 0 {
				faulty.Inject(storetest.Fault{At: 1 + random.IntN(12), Applied: random.IntN(2) == 0, Rest: random.IntN(2) == 0})
			}
			_ = b.Flush(t.Context(), now, week)
			faulty.Heal()
			now = now.Add(time.Minute)
		}
		for id, want := range sample(twin) {
			if got := count(t, b, id, now); got != want {
				t.Fatalf("seed %d: %s was used %d times, want %d", seed, id, got, want)
			}
		}
		flushAll(t, b, s, now)
		b = newBook(usage.New(now), s)
		for id, want := range sample(twin) {
			if got := count(t, b, id, now); got != want {
				t.Fatalf("seed %d, after a restart: %s was used %d times, want %d", seed, id, got, want)
			}
			use, err := b.Read(t.Context(), id, now)
			got := uint64(0)
			for _, s := range use[1].Sources {
				got += s.Stale
			}
			if err != nil || got != stale[id] {
				t.Fatalf("seed %d, after a restart: %s was refused %d times, want %d, %v", seed, id, got, stale[id], err)
			}
		}
		if s.largest >= 512<<10 {
			t.Errorf("seed %d: a page has %d bytes", seed, s.largest)
		}
	}
}

// sample is a part of m: to read one costs the decoding of a page.
func sample(m map[string]uint64) map[string]uint64 {
	part := map[string]uint64{}
	for id, n := range m {
		if len(part) < 60 {
			part[id] = n
		}
	}
	return part
}

func TestMinutesAndHours(t *testing.T) {
	t.Parallel()
	s := &shelf{Storage: storetest.NewMemory()}
	tracker := usage.New(start)
	b := newBook(tracker, s)
	for m := range 200 {
		tracker.Record(at(time.Duration(m)*time.Minute), "k", 1, "c|eu", true)
		if m%50 == 0 {
			flush(t, b, at(time.Duration(m)*time.Minute))
		}
	}
	// A late report, and a later one in between.
	tracker.Add(at(90*time.Minute), "k", 1, "c|eu", usage.Uses{Accepted: 5})
	now := at(199 * time.Minute)
	source := func() usage.Source {
		use, err := b.Read(t.Context(), "k", now)
		if err != nil {
			t.Fatal(err)
		}
		return use[1].Sources["c|eu"]
	}
	got := source()
	hour := func(h int) string { return fmt.Sprint(start.Unix()/3600 + int64(h)) }
	if len(got.Minutes) != 60 || got.Count != 205 || len(got.Hours) != 4 || got.Hours[hour(0)] != 60 || got.Hours[hour(1)] != 65 || got.Hours[hour(3)] != 20 {
		t.Errorf("%d minutes, count %d, hours %v", len(got.Minutes), got.Count, got.Hours)
	}
	if !got.LastUsed.Equal(now) {
		t.Errorf("last used %s", got.LastUsed)
	}
	// Beyond the retention hours go, and totals stay: on reading, and stored.
	now = at(week + 2*time.Hour)
	if got := source(); len(got.Hours) != 2 || got.Count != 205 || len(got.Minutes) != 0 {
		t.Errorf("after a week: %d minutes, count %d, hours %v", len(got.Minutes), got.Count, got.Hours)
	}
	tracker.Record(now, "other", 1, "c|eu", true)
	flush(t, b, now)
	b = newBook(usage.New(now), s)
	if got := source(); len(got.Hours) != 2 || got.Count != 205 {
		t.Errorf("after a restart: count %d, hours %v", got.Count, got.Hours)
	}
}

// TestReportsFromThePastAreBoundedInMemory is for a verifier that reports
// each hour of a century.
func TestReportsFromThePastAreBoundedInMemory(t *testing.T) {
	t.Parallel()
	s := &shelf{Storage: storetest.NewMemory()}
	tracker := usage.New(start)
	b := newBook(tracker, s)
	for h := range 100_000 {
		tracker.Add(start.Add(-time.Duration(h)*time.Hour), "k", 1, "c|eu", usage.Uses{Accepted: 1})
	}
	use, err := b.Read(t.Context(), "k", start)
	if err != nil {
		t.Fatal(err)
	}
	if src := use[1].Sources["c|eu"]; src.Count != 100_000 || len(src.Hours) > 31*24+1 || len(src.Minutes) > 60 {
		t.Errorf("count %d, %d hours, %d minutes", src.Count, len(src.Hours), len(src.Minutes))
	}
	flush(t, b, start)
	if s.largest > 32<<10 {
		t.Errorf("the page has %d bytes", s.largest)
	}
}

func TestADeletedKeyLeavesItsPage(t *testing.T) {
	t.Parallel()
	s, tracker, b := opened(storetest.NewMemory(), start)
	tracker.Record(start, "gone", 1, "c|eu", true)
	tracker.Record(start, "stays", 1, "c|eu", true)
	flush(t, b, start)
	b.Forget("gone")
	b.Forget("unknown")
	flush(t, b, start)
	if !b.Idle() {
		t.Error("there is something left to flush")
	}
	page, err := s.GetPage(t.Context(), "r")
	if err != nil || strings.Contains(string(page), "gone") || !strings.Contains(string(page), "stays") {
		t.Errorf("the page is %s, %v", page, err)
	}
}

// TestADamagedPageHoldsNothingElseUp: its keys keep their counts in memory.
func TestADamagedPageHoldsNothingElseUp(t *testing.T) {
	t.Parallel()
	s := &shelf{Storage: storetest.NewMemory()}
	tracker := usage.New(start)
	b := newBook(tracker, s)
	for i := range 10_000 {
		tracker.Record(start, fmt.Sprintf("key%09d", i), 1, "c|eu", true)
	}
	flushAll(t, b, s, start)
	pages, err := s.ListPages(t.Context())
	if err != nil || len(pages) < 2 {
		t.Fatalf("pages %q, %v", pages, err)
	}
	if err := s.PutPage(t.Context(), pages[0], []byte(`{"schema":1,"keys":[`)); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		tracker.Record(at(time.Minute), fmt.Sprintf("key%09d", i), 1, "c|eu", true)
	}
	s.puts = 0
	if err := b.Flush(t.Context(), at(time.Minute), week); err == nil || s.puts < len(pages)-1 {
		t.Errorf("the flush wrote %d of %d pages and says %v", s.puts, len(pages), err)
	}
}

// TestAPageThatStorageDoesNotReadHoldsNothingElseUp: first uses are noted, on
// that page too, and flushes go on with the others.
func TestAPageThatStorageDoesNotReadHoldsNothingElseUp(t *testing.T) {
	t.Parallel()
	memory := twoPages(t)
	faulty := storetest.NewFaulty(memory)
	s, tracker, b := opened(faulty, start)
	faulty.Inject(storetest.Fault{At: 1, Only: func(op storetest.Op) bool { return op.String() == "put usage/0" }})
	tracker.Record(start, "key0", 1, "c|eu", true)
	tracker.Record(start, "key2", 1, "c|eu", true)
	if err := b.Flush(t.Context(), start, week); err == nil || faulty.Failed() != 1 {
		t.Fatalf("%d writes of the page failed, and the flush says %v", faulty.Failed(), err)
	}
	faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool { return op.String() == "get usage/0" }})
	for i := range 100 {
		answer(t, tracker, b, start, fmt.Sprint("key", i), 1, "c|eu")
	}
	for range 3 {
		s.puts = 0
		tracker.Record(start, "key0", 1, "c|eu", true)
		tracker.Record(start, "key1", 1, "c|eu", true)
		if err := b.Flush(t.Context(), start, week); err == nil {
			t.Error("a flush that cannot read a page says nothing")
		}
	}
	faulty.Heal()
	page, err := memory.Get(t.Context(), "usage/1")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(page.Value), `"key`); n < 20 {
		t.Errorf("the page that can be read has %d keys", n)
	}
	flushAll(t, b, s, start)
	if page, err = memory.Get(t.Context(), "usage/0"); err != nil || strings.Count(string(page.Value), `"key`) < 20 {
		t.Errorf("the other page has %.200s, %v", page.Value, err)
	}
}

// TestANoteThatIsWrittenLateHidesNoOther: storage that gave up a write may do it
// after all.
func TestANoteThatIsWrittenLateHidesNoOther(t *testing.T) {
	t.Parallel()
	faulty := storetest.NewFaulty(storetest.NewMemory())
	s, tracker, b := opened(faulty, start)
	faulty.Inject(storetest.Fault{At: 1, Late: true, Only: func(op storetest.Op) bool { return strings.HasPrefix(op.String(), "put firstuse/") }})
	if err := b.Insist(t.Context(), tracker.Record(start, "k", 1, "c|us", true)); err == nil {
		t.Fatal("a write that fails is said to be done")
	}
	if err := b.Insist(t.Context(), tracker.Record(start, "k", 1, "c|eu", true)); err != nil {
		t.Fatal(err)
	}
	if err := faulty.Release(); err != nil {
		t.Fatal(err)
	}
	crashed := newBook(usage.New(at(time.Hour)), s)
	crashed.Recover(t.Context())
	wantLaggard(t, "after a crash", crashed, rolling("k"), at(100*time.Hour), "eu")
}

// TestNotesThatCouldNotBeWrittenAreBounded, however often a report comes again.
func TestNotesThatCouldNotBeWrittenAreBounded(t *testing.T) {
	t.Parallel()
	counting := storetest.NewCounting(storetest.NewMemory())
	faulty := storetest.NewFaulty(counting)
	s, tracker, b := opened(faulty, start)
	first := tracker.Record(start, "k", 1, "c|us", true)
	faulty.Inject(storetest.Fault{At: 1, Rest: true, WritesOnly: true})
	for range 5000 {
		if err := b.Insist(t.Context(), first); err == nil {
			t.Fatal("a write that fails is said to be done")
		}
	}
	faulty.Heal()
	flushAll(t, b, s, start)
	if n := counting.Total().Delete; n > 2100 {
		t.Errorf("%d notes that were not written are deleted", n)
	}
}

// TestManySourcesOfManyVersionsStayWithinARecord: what had to make room is
// not drained.
func TestManySourcesOfManyVersionsStayWithinARecord(t *testing.T) {
	t.Parallel()
	s := &shelf{Storage: storetest.NewMemory()}
	tracker := usage.New(start.Add(-time.Hour))
	b := newBook(tracker, s)
	for number := 1; number <= 100; number++ {
		for n := range 32 {
			tracker.Record(start.Add(-time.Minute), "k", number, fmt.Sprintf("c|%s%d", strings.Repeat("s", 120), n), true)
		}
	}
	flush(t, b, start)
	if s.largest > 40<<10 {
		t.Errorf("the page has %d bytes", s.largest)
	}
	later := at(24 * time.Hour)
	b = newBook(usage.New(later), s)
	b.Recover(t.Context())
	k := rolling("k")
	if v := b.Drained(t.Context(), k, quiet, later.Add(quiet))(1); v.Drained || !strings.Contains(v.Why, "too many") {
		t.Errorf("%+v", v)
	}
}

// TestTotalsOutliveHours: however short hours are kept, and however many sources
// there are, the search for anomalies is given four weeks.
func TestTotalsOutliveHours(t *testing.T) {
	t.Parallel()
	const hours = 700
	s, tracker, b := opened(storetest.NewMemory(), start)
	var before []uint64
	var count uint64
	b.OnHour = func(_ string, earlier []uint64, _ time.Time, last uint64) { before, count = earlier, last }
	for h := range hours {
		for n := range 32 {
			tracker.Add(at(time.Duration(h)*time.Hour), "k", 1, fmt.Sprint("c|", n), usage.Uses{Accepted: 1_000_000_000 + uint64(h)})
		}
	}
	for _, h := range []int{hours - 1, hours} {
		if err := b.Flush(t.Context(), at(time.Duration(h)*time.Hour), week); err != nil {
			t.Fatal(err)
		}
		tracker.Record(at(time.Duration(h)*time.Hour), "k", 1, "c|0", false)
	}
	if s.largest > 40<<10 {
		t.Errorf("the page has %d bytes", s.largest)
	}
	if len(before) != 672 || count != 32*(1_000_000_000+hours-1) {
		t.Fatalf("%d hours before one of %d", len(before), count)
	}
	for i, n := range before {
		if want := 32 * (1_000_000_000 + uint64(hours-1-672+i)); n != want {
			t.Fatalf("hour %d of %d has %d, want %d", i, len(before), n, want)
		}
	}
	use, err := b.Read(t.Context(), "k", at(hours*time.Hour))
	if n := len(use[1].Sources["c|7"].Hours); err != nil || n == 0 || n > 168 {
		t.Errorf("%d hours of a source are left, %v", n, err)
	}
}
