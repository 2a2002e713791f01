// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// grown is what one operation cost at several numbers of keys. `make scale`
// reads it from a file, beside what a real server took: see e2e/scale.
type grown struct {
	Operation string `json:"operation"`
	// Unit is what one of it is: a key, a start, a tick, a page.
	Unit   string  `json:"unit"`
	Points []point `json:"points"`
}

// point is what one unit cost at a number of keys.
type point struct {
	Keys    int     `json:"keys"`
	Reads   float64 `json:"reads"`
	Writes  float64 `json:"writes"`
	Lists   float64 `json:"lists"`
	Seconds float64 `json:"seconds"` // of the engine alone, with storage in memory
	MiB     float64 `json:"mib,omitempty"`
}

func (p point) operations() float64 { return p.Reads + p.Writes + p.Lists }

// scaleKeys is the largest number of keys: SCALE_KEYS, or what a test takes
// little time for.
func scaleKeys(tb testing.TB) int {
	tb.Helper()
	text := os.Getenv("SCALE_KEYS")
	if text == "" {
		return 3_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1_000 {
		tb.Fatalf("SCALE_KEYS must be a number from 1000, got %q", text)
	}
	return n
}

// scaled is an engine whose operations are measured.
type scaled struct {
	*bench
	keys   int
	points map[string]point
	units  map[string]string
	order  []string
}

// measure notes what do costs, for each of so many units.
func (s *scaled) measure(operation, unit string, units int, do func()) {
	s.tb.Helper()
	s.storage.Reset()
	began := time.Now()
	do()
	took := time.Since(began)
	s.note(operation, unit, units, took)
}

func (s *scaled) note(operation, unit string, units int, took time.Duration) {
	n, c := float64(units), s.storage.Total()
	s.points[operation] = point{Keys: s.keys, Reads: float64(c.Get) / n, Writes: float64(c.Writes()) / n, Lists: float64(c.List) / n, Seconds: took.Seconds() / n}
	s.units[operation] = unit
	s.order = append(s.order, operation)
}

// importKeys imports keys of a role in batches of 1000.
func (s *scaled) importKeys(role, prefix string, n int) {
	s.tb.Helper()
	for from := 0; from < n; from += 1000 {
		var items []any
		for i := from; i < min(from+1000, n); i++ {
			items = append(items, map[string]any{"name": fmt.Sprintf("%s-%07d", prefix, i), "role": role, "import_key": fmt.Sprintf("legacy-key-of-%s-%08d", prefix, i)})
		}
		if failed := s.write("import", map[string]any{"batch_input": items})["failed"]; failed != 0 {
			s.tb.Fatalf("%v of %d keys were not imported", failed, len(items))
		}
	}
}

// atScale measures the operations of a mount with n keys.
func atScale(tb testing.TB, n int) *scaled {
	tb.Helper()
	c := clock.NewManual(time.Date(2030, 1, 1, 0, 0, 30, 0, time.UTC))
	s := &scaled{bench: openBench(tb, storetest.NewMemory(), c), keys: n, points: map[string]point{}, units: map[string]string{}}
	s.write("roles/partner", map[string]any{"rotation_period": "720h", "rotation_jitter": 20, "scopes": "read,trade"})
	s.write("roles/hourly", map[string]any{"rotation_period": "1h", "overlap_period": "10m"})
	s.measure("import", "key", n, func() { s.importKeys("partner", "client", n) })
	s.create("first", "partner")

	s.Cleanup(tb.Context())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	s.bench = openBench(tb, s.memory, c)
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	s.note("start", "start", 1, took)
	p := s.points["start"]
	p.MiB = max(0, float64(after.HeapAlloc)-float64(before.HeapAlloc)) / (1 << 20)
	s.points["start"] = p

	s.tick()
	c.Advance(time.Minute)
	s.measure("tick, nothing due", "tick", 1, s.tick)

	// The clock moves no more than this after they have rotated, so that none of
	// them is due again in what is measured next.
	due := func(name string, d int) {
		s.importKeys("hourly", name, d)
		c.Advance(time.Hour)
		// What is due at one moment is spread over minutes of at most 5,000. After
		// a leap over all of them the engine would spread the work anew, as after
		// an outage.
		s.measure(fmt.Sprintf("tick, %d due", d), "key due", d, func() {
			for range d/5_000 + 2 {
				c.Advance(time.Minute)
				s.tick()
			}
		})
		if version := s.read("keys/" + fmt.Sprintf("%s-%07d", name, d-1))["current_version"]; version != 2 {
			tb.Errorf("after a tick with %d due the last one has version %v", d, version)
		}
	}
	due("few", min(1_000, n/3))
	if n >= 100_000 {
		due("many", 100_000)
	}

	// What stands in a cache depends on how many there are: begin without.
	s.Cleanup(tb.Context())
	s.bench = openBench(tb, s.memory, c)
	const some = 200
	s.measure("verify, not cached", "key", some, func() {
		for i := range some {
			s.verify(fmt.Sprintf("legacy-key-of-client-%08d", i*(n/some)+1))
		}
	})
	s.measure("create", "key", some, func() {
		for i := range some {
			s.create(fmt.Sprintf("created-%d", i), "partner")
		}
	})
	s.measure("rotate", "key", some, func() {
		for i := range some {
			s.write(fmt.Sprintf("rotate/client-%07d", i*(n/some)), nil)
		}
	})
	key := s.create("cached", "partner")
	s.verify(key)
	s.tell()
	s.measure("verify, cached", "key", some, func() {
		for range some {
			s.verify(key)
		}
	})
	s.measure("read static-creds", "key", some, func() {
		for i := range some {
			s.read(fmt.Sprintf("static-creds/client-%07d", i*(n/some)))
		}
	})
	return s
}

// TestOperationCountsDoNotGrow counts storage operations at three numbers of
// keys, each ten times the one before. What they are for is constant.
func TestOperationCountsDoNotGrow(t *testing.T) {
	if raceDetector {
		t.Skip("SKIP: the race detector makes it take minutes; counts are the same without it")
	}
	most := scaleKeys(t)
	var all []grown
	index := map[string]int{}
	for _, n := range []int{most / 100, most / 10, most} {
		if n < 300 {
			continue
		}
		s := atScale(t, n)
		for _, operation := range s.order {
			i, known := index[operation]
			if !known {
				i = len(all)
				index[operation] = i
				all = append(all, grown{Operation: operation, Unit: s.units[operation]})
			}
			all[i].Points = append(all[i].Points, s.points[operation])
		}
	}
	for _, g := range all {
		first := g.Points[0]
		for _, p := range g.Points {
			t.Logf("%-22s %8d keys: %6.2f reads %6.2f writes %6.2f lists a %s, %9.1f µs", g.Operation, p.Keys, p.Reads, p.Writes, p.Lists, g.Unit, p.Seconds*1e6)
			// A minute's list is shared by fewer keys where fewer are due.
			if p.operations() > 1.2*first.operations()+0.05 {
				t.Errorf("%s takes %.2f operations a %s at %d keys, and %.2f at %d", g.Operation, p.operations(), g.Unit, p.Keys, first.operations(), first.Keys)
			}
		}
	}
	if path := os.Getenv("SCALE_COUNTS"); path != "" {
		text, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
