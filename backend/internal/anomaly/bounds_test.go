// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fill sends more of everything than a Detector may keep.
func fill(d *Detector, keys, sources int) {
	for i := range keys {
		id := fmt.Sprintf("%012d", i)
		d.WrongSecret(start, id)
		d.Hour(start, id, flatWeeks, 1000)
		for s := range sources {
			d.EndedUse(start, id, 1, "compromised", strconv.Itoa(s), 0)
			d.Use(start, id, 1, strconv.Itoa(s))
		}
	}
}

var flatWeeks = flat(10, 48)

// TestMemoryIsBounded is not parallel: it measures the heap.
func TestMemoryIsBounded(t *testing.T) {
	const keys = 4096
	l := limits{keys: keys / shardCount, sources: 10 * keys / shardCount}
	before := heap()
	d := newDetector(start, l)
	fill(d, 2*keys, 12)
	used := int(heap()) - int(before)
	m := d.Memory()
	t.Logf("%+v takes %d bytes, %d for each key", m, used, used/keys)
	if m.WrongKeys > keys || m.EndedKeys > keys || m.KnownKeys > keys || m.RateKeys > keys || m.Sources > 10*keys+shardCount*12 {
		t.Errorf("%+v is more than the limits", m)
	}
	if used > m.Bytes {
		t.Errorf("it takes %d bytes, but says at most %d", used, m.Bytes)
	}
	runtime.KeepAlive(d)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestTheCountsOfMemoryAreRight compares what the shards count with what is
// there, after any sequence of events.
func TestTheCountsOfMemoryAreRight(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := newDetector(start, limits{keys: 2, sources: 12})
		now := start
		for range rapid.IntRange(0, 300).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.IntRange(-60, 3600*48).Draw(t, "seconds")) * time.Second)
			key, source := strconv.Itoa(rapid.IntRange(0, 150).Draw(t, "key")), strconv.Itoa(rapid.IntRange(0, 20).Draw(t, "source"))
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				d.EndedUse(now, key, 1, "compromised", source, 0)
			case 1:
				d.Learn(key, past(now.Add(-time.Hour), source, "x", "x"), true)
			case 2:
				d.Forget(key)
			default:
				d.Use(now, key, 1, source)
			}
		}
		for i := range d.shards {
			s := &d.shards[i]
			slots, sources := 0, 0
			for _, e := range s.ended.Values() {
				slots += len(e.slots)
			}
			for _, k := range s.known.Values() {
				sources += len(k.sources)
			}
			if slots != s.slots || sources != s.sources {
				t.Fatalf("shard %d counts %d and %d, but has %d and %d", i, s.slots, s.sources, slots, sources)
			}
			if s.known.Len() > 2 || s.sources > 12 && s.known.Len() > 1 {
				t.Fatalf("shard %d has %d keys and %d sources", i, s.known.Len(), s.sources)
			}
		}
	})
}

// TestStrangersCannotMakeItForgetSources: wrong secrets for any number of keys
// cost nothing of what accepted uses taught.
func TestStrangersCannotMakeItForgetSources(t *testing.T) {
	t.Parallel()
	d := newDetector(start, limits{keys: 1, sources: 100})
	live(t, d, 30*day, fixed)
	for i := range 10_000 {
		d.WrongSecret(start.Add(30*day), strconv.Itoa(i))
		d.EndedUse(start.Add(30*day), strconv.Itoa(i), 1, "revoked", "s", time.Hour)
	}
	if _, ok := d.Use(start.Add(30*day), "k", 1, "elsewhere"); !ok {
		t.Fatal("an unseen source was not reported after an attack on other keys")
	}
}

func TestAKeyWithTooManySourcesIsNotJudged(t *testing.T) {
	t.Parallel()
	d := New(start)
	for i := range 10_000 {
		d.Use(start.Add(time.Duration(i)*time.Second), "k", 1, strconv.Itoa(i))
	}
	if m := d.Memory(); m.Sources != maxKeySources {
		t.Fatalf("%d sources", m.Sources)
	}
	if _, ok := d.Use(start.Add(20*day), "k", 1, "elsewhere"); ok {
		t.Fatal("judged, though it is full")
	}
	// Those unseen for a month make room.
	d.Use(start.Add(40*day), "k", 1, "elsewhere")
	if m := d.Memory(); m.Sources != 1 {
		t.Fatalf("%d sources after a month", m.Sources)
	}
}

// TestAnOrdinaryEventAllocatesNothing is not parallel: it counts allocations.
func TestAnOrdinaryEventAllocatesNothing(t *testing.T) {
	d := New(start)
	now := start
	for name, event := range map[string]func(){
		"use":          func() { d.Use(now, "k", 1, "s") },
		"wrong secret": func() { d.WrongSecret(now, "k") },
		"ended use":    func() { d.EndedUse(now, "k", 1, "retired", "s", time.Hour) },
	} {
		event()
		now = now.Add(time.Hour)
		if n := testing.AllocsPerRun(100, event); n >= 1 {
			t.Errorf("%s: %g allocations", name, n)
		}
	}
}

func BenchmarkUse(b *testing.B) {
	d, ids := New(start), ids(10_000)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		d.Use(start.Add(time.Duration(i)*time.Millisecond), ids[i%len(ids)], 1, "10.0.0.1")
		i++
	}
}

func BenchmarkUseParallelOfOneKey(b *testing.B) {
	d := New(start)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d.Use(start, "k", 1, "10.0.0.1")
		}
	})
}

func BenchmarkWrongSecret(b *testing.B) {
	d, ids := New(start), ids(10_000)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		d.WrongSecret(start.Add(time.Duration(i)*time.Millisecond), ids[i%len(ids)])
		i++
	}
}

// BenchmarkWrongSecretOfEverOtherKeys is the worst that strangers can do.
func BenchmarkWrongSecretOfEverOtherKeys(b *testing.B) {
	d, ids := New(start), ids(4*maxKeys)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		d.WrongSecret(start, ids[i%len(ids)])
		i++
	}
}

func BenchmarkJudgeUsualHour(b *testing.B) {
	hours := noisy(1, maxHours, office)
	b.ReportAllocs()
	for b.Loop() {
		JudgeHour(hours, start, hours[0])
	}
}

func BenchmarkJudgeUnusualHour(b *testing.B) {
	hours := noisy(1, maxHours, office)
	b.ReportAllocs()
	for b.Loop() {
		JudgeHour(hours, start, 100_000)
	}
}

func ids(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%012d", i)
	}
	return ids
}
