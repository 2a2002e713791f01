// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

// drawer keeps pages in memory.
type drawer map[string][]byte

func (d drawer) GetPage(_ context.Context, name string) ([]byte, error) { return d[name], nil }

func (d drawer) PutPage(_ context.Context, name string, data []byte) error {
	d[name] = slices.Clone(data)
	return nil
}

func (d drawer) DeletePage(_ context.Context, name string) error {
	delete(d, name)
	return nil
}

func (d drawer) ListPages(context.Context) ([]string, error) {
	return slices.Collect(maps.Keys(d)), nil
}

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func drawered() (drawer, *Tracker, *Book) {
	d, tracker := drawer{}, New(noon)
	return d, tracker, NewBook(tracker, d, drawer{}, clock.NewManual(noon), hclog.NewNullLogger())
}

// TestOutlinesAreThoseOfWhatIsStored, whatever flushes add, cut off, remove and
// split.
func TestOutlinesAreThoseOfWhatIsStored(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 1))
	d, tracker, b := drawered()
	lost := 0
	for round := range 60 {
		for range random.IntN(100) {
			id := fmt.Sprint("key", random.IntN(300))
			for n := range random.IntN(40) {
				tracker.Record(noon, id, 1+random.IntN(1+random.IntN(100)), fmt.Sprint("c|", strings.Repeat("s", random.IntN(100)), n), random.IntN(3) > 0)
			}
		}
		for range random.IntN(3) {
			b.Forget(fmt.Sprint("key", random.IntN(1000)))
		}
		if err := b.Flush(t.Context(), noon.Add(time.Duration(round)*time.Hour), 168*time.Hour); err != nil {
			t.Fatal(err)
		}
		for name, data := range d {
			p, err := decodePage(data)
			if err != nil {
				t.Fatal(err)
			}
			got := b.outlines.get(name)
			if got == nil {
				t.Fatalf("round %d: there is no outline of page %s", round, name)
			}
			lost += len(got.lost)
			if want := outlineOf(tracker.seed, p, data); got.of != want.of || !slices.Equal(got.uses, want.uses) || !maps.Equal(got.lost, want.lost) {
				t.Fatalf("round %d: page %s has %d uses and lost %v; the outline has %d and %v", round, name, len(want.uses), want.lost, len(got.uses), got.lost)
			}
		}
	}
	if len(d) < 4 || lost == 0 {
		t.Errorf("there are %d pages, and %d keys had to make room: that is blind", len(d), lost)
	}
}

// TestADamagedRecordHarmsNoOther on its page: the others are read and stored, and
// what is counted of it waits for its repair, its first uses through a crash too.
func TestADamagedRecordHarmsNoOther(t *testing.T) {
	t.Parallel()
	d, notes, tracker := drawer{}, drawer{}, New(noon)
	b := NewBook(tracker, d, notes, clock.NewManual(noon), hclog.NewNullLogger())
	for _, id := range []string{"broken", "sound"} {
		tracker.Record(noon, id, 1, "c|eu", true)
	}
	if err := b.Flush(t.Context(), noon, time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"broken", "sound"} {
		if first := tracker.Record(noon, id, 1, "c|us", true); b.Remember(t.Context(), first) != nil {
			t.Fatalf("a first use of the %s one cannot be stored", id)
		}
	}
	const whole, broken = `"broken":{"v":`, `"broken":{"v":7,"was":`
	d[root] = []byte(strings.Replace(string(d[root]), whole, broken, 1))
	for _, after := range []time.Duration{time.Minute, time.Hour} {
		tracker.Record(noon, "another", 1, "c|eu", true)
		if err := b.Flush(t.Context(), noon.Add(after), time.Hour); !errors.Is(err, errDamaged) {
			t.Errorf("the flush says %v", err)
		}
	}
	if stored := string(d[root]); !strings.Contains(stored, broken) || strings.Count(stored, "c|us") != 1 {
		t.Errorf("it is stored as %s", stored)
	}
	if use, err := b.Read(t.Context(), "sound", noon); err != nil || use[1].Count != 2 {
		t.Errorf("the sound one was used %d times, %v", use[1].Count, err)
	}
	if _, err := b.Read(t.Context(), "broken", noon); !errors.Is(err, errDamaged) {
		t.Errorf("the broken one reads %v", err)
	}
	d[root] = []byte(strings.Replace(string(d[root]), broken, whole, 1))
	crashed := NewBook(New(noon), d, notes, clock.NewManual(noon), hclog.NewNullLogger())
	crashed.Recover(t.Context())
	for what, b := range map[string]*Book{"after a crash": crashed, "without": b} {
		if use, err := b.Read(t.Context(), "broken", noon); err != nil || use[1].Count != 2 {
			t.Errorf("%s, once repaired, it was used %d times, %v", what, use[1].Count, err)
		}
	}
	if err := b.Flush(t.Context(), noon.Add(2*time.Hour), time.Hour); err != nil || !b.Idle() {
		t.Errorf("the flush says %v", err)
	}
}

// TestHoursOfIdleKeysGo with the first flush of their page in an hour; until then
// their records are stored as they were.
func TestHoursOfIdleKeysGo(t *testing.T) {
	t.Parallel()
	d, tracker, b := drawered()
	record := func() string {
		p, err := decodePage(d[root])
		if err != nil {
			t.Fatal(err)
		}
		return string(p.keys["idle"].stored)
	}
	tracker.Record(noon, "idle", 1, "c|eu", true)
	used := func(at time.Time) string {
		tracker.Record(at, "busy", 1, "c|eu", true)
		if err := b.Flush(t.Context(), at, 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		return record()
	}
	first := used(noon)
	if !strings.Contains(first, `"h"`) || used(noon.Add(90*time.Minute)) != first || used(noon.Add(2*time.Hour)) != first {
		t.Errorf("it was\n%s\nand is\n%s", first, record())
	}
	if later := used(noon.Add(3 * time.Hour)); strings.Contains(later, `"h"`) || !strings.Contains(later, `"t"`) {
		t.Errorf("after the retention it is %s", later)
	}
	if later := used(noon.Add((keepTotals + 2) * time.Hour)); strings.Contains(later, `"t"`) || !strings.Contains(later, `"c":1`) {
		t.Errorf("after four weeks it is %s", later)
	}
}

// TestReadsBesideFlushesMissNothing, and count nothing twice.
func TestReadsBesideFlushesMissNothing(t *testing.T) {
	t.Parallel()
	_, tracker, b := drawered()
	var added atomic.Uint64
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range 2000 {
			tracker.Record(noon, "k", 1, "c|eu", true)
			added.Add(1)
			if i%3 == 0 {
				if err := b.Flush(t.Context(), noon, time.Hour); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for added.Load() < 2000 {
		least := added.Load()
		use, err := b.Read(t.Context(), "k", noon)
		if most := added.Load() + 1; err != nil || use[1].Count < least || use[1].Count > most {
			t.Fatalf("used %d to %d times, it reads %d, %v", least, most, use[1].Count, err)
		}
	}
	writing.Wait()
}

// TestOutlinesAreBoundedByWhatTheyTake, not by how many there are.
func TestOutlinesAreBoundedByWhatTheyTake(t *testing.T) {
	t.Parallel()
	os := newOutlines(1000 * 128)
	for i := range 5000 {
		os.put(fmt.Sprint(i), &outline{})
	}
	if n := os.lru.Len(); n != 1000 || os.size != 1000*128 {
		t.Fatalf("there are %d small ones, of %d bytes", n, os.size)
	}
	for range 3 {
		os.put("4999", &outline{uses: make([]uint64, 8000)})
		os.add("4999", &outline{})
	}
	if n := os.lru.Len(); n != 500 || os.size > 1000*128 || len(os.get("4999").uses) != 8000 {
		t.Errorf("beside a large one there are %d, of %d bytes", n, os.size)
	}
	os.put("larger", &outline{uses: make([]uint64, 80_000)})
	if os.lru.Len() != 1 || os.get("larger") == nil {
		t.Error("one that is too large is not kept")
	}
	os.remove("larger")
	os.put("x", &outline{})
	os.purge()
	if os.size != 0 {
		t.Errorf("none take %d bytes", os.size)
	}
}

// TestWhatIsToldIsNotedNoMore, however many flushes it takes until a page has it.
func TestWhatIsToldIsNotedNoMore(t *testing.T) {
	t.Parallel()
	_, tracker, b := drawered()
	use := func(version int, source string) {
		t.Helper()
		if err := b.Remember(t.Context(), tracker.Record(noon, "k", version, source, true)); err != nil {
			t.Fatal(err)
		}
	}
	noted := func(want ...int) {
		t.Helper()
		var got []int
		for _, f := range b.Noted() {
			got = append(got, f.Version)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("versions %v are to be told, want %v", got, want)
		}
	}
	use(1, "c|eu")
	use(1, "c|us")
	noted(1)
	b.Told("k", 1)
	noted()
	use(1, "c|ap")
	use(2, "c|eu")
	noted(2)
}
