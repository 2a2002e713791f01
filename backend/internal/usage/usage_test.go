// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

var start = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

const quiet = time.Hour

func at(d time.Duration) time.Time { return start.Add(d) }

// rolling is a key whose version 1 was superseded by version 2 at start.
func rolling(id string) *keyring.Key {
	return &keyring.Key{ID: id, Name: id, Versions: []keyring.Version{
		{Number: 1, State: keyring.StateRetiring, SupersededBy: 2, SupersededTime: start},
		{Number: 2, State: keyring.StateActive, ActivatedTime: start},
	}}
}

func drained(tracker *usage.Tracker, id string, now time.Time) keyring.DrainVerdict {
	return tracker.Drained(rolling(id), quiet, now)(1)
}

func TestDrainedAfterAQuietPeriodWithEverySourceMoved(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	tracker.Record(at(-time.Minute), "k", 1, "c|eu", true)
	tracker.Record(at(10*time.Minute), "k", 1, "c|us", true)
	tracker.Record(at(20*time.Minute), "k", 2, "c|eu", true)
	v := drained(tracker, "k", at(time.Hour))
	if v.Drained || !v.Next.Equal(at(70*time.Minute)) {
		t.Errorf("inside the quiet period: %+v", v)
	}
	// Quiet, but one source was never seen on the new version.
	v = drained(tracker, "k", at(70*time.Minute))
	if v.Drained || v.Why != "not seen on a newer version yet: us" {
		t.Errorf("with a laggard: %+v", v)
	}
	// A refusal is no move.
	tracker.Record(at(75*time.Minute), "k", 2, "c|us", false)
	if v = drained(tracker, "k", at(80*time.Minute)); v.Drained {
		t.Errorf("with a laggard that was refused: %+v", v)
	}
	tracker.Record(at(80*time.Minute), "k", 2, "c|us", true)
	if v = drained(tracker, "k", at(80*time.Minute)); !v.Drained {
		t.Errorf("with all moved: %+v", v)
	}
	// Any later use, refused or not, begins it anew.
	tracker.Record(at(90*time.Minute), "k", 1, "c|us", false)
	if v = drained(tracker, "k", at(95*time.Minute)); v.Drained || !v.Next.Equal(at(150*time.Minute)) {
		t.Errorf("used again: %+v", v)
	}
}

func TestLaggardsAreNamedByTheirLabelAlone(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	for _, source := range []string{usage.SourceName("entity-b", "zurich"), usage.SourceName("entity-a", "athens"), usage.SourceName("entity-c", "")} {
		tracker.Record(start, "k", 1, source, true)
	}
	// The same label under another caller is another source.
	tracker.Record(start, "k", 2, usage.SourceName("entity-x", "zurich"), true)
	v := drained(tracker, "k", at(2*time.Hour))
	if v.Drained || v.Why != "not seen on a newer version yet: athens, default, zurich" {
		t.Errorf("%+v", v)
	}
}

// TestLaggardsAreLookedAtLessAndLess: a key that waits for weeks is not
// written each minute.
func TestLaggardsAreLookedAtLessAndLess(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	tracker.Record(start, "k", 1, "c|eu", true)
	k := rolling("k")
	k.Versions[0].OverlapEnds = at(time.Hour)
	looks := 0
	for now := at(quiet); now.Before(at(30 * 24 * time.Hour)); looks++ {
		v := tracker.Drained(k, quiet, now)(1)
		if v.Drained || !v.Next.After(now) || v.Next.Sub(now) > time.Hour {
			t.Fatalf("at %s: %+v", now, v)
		}
		if late, waited := v.Next.Sub(now), now.Sub(at(time.Hour)); late > max(5*time.Minute, waited/8) {
			t.Fatalf("after %s the next look is %s away", waited, late)
		}
		now = v.Next
	}
	if looks > 800 {
		t.Errorf("%d looks in 30 days", looks)
	}
}

func TestARestartIsNoDrain(t *testing.T) {
	t.Parallel()
	restarted := usage.New(at(10 * time.Hour))
	v := drained(restarted, "k", at(10*time.Hour+quiet-time.Second))
	if v.Drained || !v.Next.Equal(at(10*time.Hour+quiet)) {
		t.Errorf("inside the quiet period after a start: %+v", v)
	}
	if v = drained(restarted, "k", at(10*time.Hour+quiet)); !v.Drained {
		t.Errorf("a quiet period after a start: %+v", v)
	}
	// Not even where the role asks for no quiet time.
	for d, want := range map[time.Duration]bool{0: false, 4 * time.Minute: false, 5 * time.Minute: true} {
		if v := restarted.Drained(rolling("k"), 0, at(10*time.Hour+d))(1); v.Drained != want {
			t.Errorf("%s after a start without a quiet period: %+v", d, v)
		}
	}
	// Where the tracker was there all the time, no quiet time is none.
	if v := usage.New(at(-time.Second)).Drained(rolling("k"), 0, at(time.Second))(1); !v.Drained {
		t.Errorf("known all the time: %+v", v)
	}
}

// TestAnEvictionIsNoDrain: 120,000 other keys push a key out while it is used.
func TestAnEvictionIsNoDrain(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	tracker.Record(at(30*time.Minute), "k", 1, "c|eu", true)
	for i := range 120_000 {
		tracker.Record(at(40*time.Minute), fmt.Sprintf("other-%d", i), 1, "c|eu", true)
	}
	if got := tracker.Version("k", 1).Count; got != 0 {
		t.Fatalf("the key was not evicted: %d", got)
	}
	if v := drained(tracker, "k", at(89*time.Minute)); v.Drained {
		t.Errorf("an evicted key: %+v", v)
	}
	// Seen again, it is known from its eviction on, not from the start on.
	tracker.Record(at(89*time.Minute), "k", 2, "c|eu", true)
	if v := drained(tracker, "k", at(89*time.Minute)); v.Drained {
		t.Errorf("an evicted key that came back: %+v", v)
	}
	// One that stayed is not held up by the evictions of others.
	tracker.Record(at(41*time.Minute), "other-119999", 2, "c|eu", true)
	for i := range 120_000 {
		tracker.Record(at(90*time.Minute), fmt.Sprintf("more-%d", i), 1, "c|eu", true)
		if i%1000 == 0 {
			tracker.Record(at(90*time.Minute), "other-119999", 2, "c|eu", true)
		}
	}
	if v := drained(tracker, "other-119999", at(100*time.Minute)); !v.Drained {
		t.Errorf("a key that stayed: %+v", v)
	}
}

func TestADeletedKeyHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	for i := range 1000 {
		id := fmt.Sprintf("deleted-%d", i)
		tracker.Record(at(2*time.Hour), id, 1, "c|eu", true)
		tracker.Forget(id)
		tracker.Forget(id)
	}
	if v := drained(tracker, "k", at(2*time.Hour)); !v.Drained {
		t.Errorf("%+v", v)
	}
	if got := tracker.Version("deleted-7", 1); got.Count != 0 || !got.LastUsed.IsZero() {
		t.Errorf("a forgotten key is remembered: %+v", got)
	}
}

func TestSourcesAreCappedAndStillToldApart(t *testing.T) {
	t.Parallel()
	source := func(i int) string { return fmt.Sprintf("c|region-%03d", i) }
	tracker := usage.New(at(-24 * time.Hour))
	for i := range 100 {
		tracker.Record(start, "k", 1, source(i), true)
	}
	sources := tracker.Sources("k", 1)
	if len(sources) != 33 || sources[usage.Other].Count != 68 {
		t.Fatalf("%d sources, %d in the rest", len(sources), sources[usage.Other].Count)
	}
	if got := tracker.Version("k", 1); got.Count != 100 || got.Sources != nil {
		t.Errorf("Version = %+v", got)
	}
	// They move in another order: those without a name of their own first.
	for i := 99; i > 0; i-- {
		if i == 60 {
			continue
		}
		tracker.Record(start, "k", 2, source(i), true)
	}
	v := drained(tracker, "k", at(2*time.Hour))
	if v.Drained || v.Why != "not seen on a newer version yet: region-000, 1 of the sources beyond the first 32" {
		t.Errorf("with two laggards: %+v", v)
	}
	tracker.Record(start, "k", 2, source(0), true)
	tracker.Record(start, "k", 2, source(60), true)
	if v = drained(tracker, "k", at(2*time.Hour)); !v.Drained {
		t.Errorf("with all moved: %+v", v)
	}
	// Beyond what can be told apart nothing is known, which is not drained.
	for i := range 2000 {
		tracker.Record(start, "k", 1, source(i), true)
		tracker.Record(start, "k", 2, source(i), true)
	}
	if v = drained(tracker, "k", at(2*time.Hour)); v.Drained || !strings.Contains(v.Why, "an unknown number") {
		t.Errorf("with too many sources: %+v", v)
	}
}

// TestManySourcesEvictOtherKeys: what is remembered is bounded by its weight,
// and the keys that had to go are not drained.
func TestManySourcesEvictOtherKeys(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	tracker.Record(at(time.Hour), "k", 1, "c|eu", true)
	for i := range 20_000 {
		for n := range 40 {
			tracker.Record(at(time.Hour), fmt.Sprintf("other-%d", i), 1, fmt.Sprintf("c|%d", n), true)
		}
	}
	if got := tracker.Version("k", 1).Count; got != 0 {
		t.Fatal("20,000 keys with 33 sources each pushed nothing out")
	}
	if v := drained(tracker, "k", at(119*time.Minute)); v.Drained {
		t.Errorf("%+v", v)
	}
}

func TestOldVersionsOfAKeyAreForgotten(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	for n := 1; n <= 1000; n++ {
		tracker.Record(at(-time.Hour), "k", n, "c|eu", true)
	}
	known := 0
	for n := 1; n <= 1000; n++ {
		if tracker.Version("k", n).Count > 0 {
			known++
		}
	}
	if known != 128 || tracker.Version("k", 1000).Count != 1 {
		t.Errorf("%d versions are remembered", known)
	}
	// Something of the key was forgotten: it is known from then on.
	if v := drained(tracker, "k", at(-time.Minute)); v.Drained {
		t.Errorf("%+v", v)
	}
}

func TestARollbackCountsTheRestoredVersion(t *testing.T) {
	t.Parallel()
	tracker := usage.New(at(-24 * time.Hour))
	k := &keyring.Key{ID: "k", Versions: []keyring.Version{
		{Number: 1, State: keyring.StateActive},
		{Number: 2, State: keyring.StateRetiring, SupersededBy: 1, SupersededTime: start},
	}}
	tracker.Record(start, "k", 2, "c|eu", true)
	if v := tracker.Drained(k, quiet, at(2*time.Hour))(2); v.Drained {
		t.Errorf("%+v", v)
	}
	tracker.Record(start, "k", 1, "c|eu", true)
	if v := tracker.Drained(k, quiet, at(2*time.Hour))(2); !v.Drained {
		t.Errorf("%+v", v)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	tracker := usage.New(start)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 500 {
				id := fmt.Sprintf("k%d", i%7)
				tracker.Record(start, id, 1, fmt.Sprintf("c|%d", g), i%2 == 0)
				_ = drained(tracker, id, at(2*time.Hour))
				_ = tracker.Sources(id, 1)
				if i%100 == 99 {
					tracker.Forget("k6")
				}
			}
		})
	}
	all.Wait()
	total := uint64(0)
	for i := range 6 {
		v := tracker.Version(fmt.Sprintf("k%d", i), 1)
		total += v.Count + v.Refused
	}
	if want := uint64(8 * (500 - 71)); total != want { // k6 was forgotten at times
		t.Errorf("counted %d, want %d", total, want)
	}
}
