// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, time.March, 2, 0, 0, 0, 0, time.UTC)

func TestASingleWrongSecretIsNothing(t *testing.T) {
	t.Parallel()
	d := New(start)
	for day := range 60 {
		if f, ok := d.WrongSecret(start.Add(time.Duration(day)*8*time.Hour), "k"); ok {
			t.Fatalf("one wrong secret every 8 hours was reported: %+v", f)
		}
	}
}

func TestABurstOfWrongSecretsIsReportedOnceAndThenRarely(t *testing.T) {
	t.Parallel()
	d := New(start)
	var at []time.Duration
	for s := range 3 * 24 * 3600 {
		if f, ok := d.WrongSecret(start.Add(time.Duration(s)*time.Second), "k"); ok {
			at = append(at, time.Duration(s)*time.Second)
			if f.Kind != WrongSecretBurst || f.KeyID != "k" || f.Score != float64(s+1) || !strings.Contains(f.Evidence, fmt.Sprint(s+1)) {
				t.Fatalf("finding %+v after %d", f, s+1)
			}
		}
	}
	if len(at) != 5 || at[0] > 15*time.Second {
		t.Fatalf("three days of attack were reported at %v; want within 15s, then after 6h, 12h, 24h, 24h", at)
	}
}

func TestATrickleOfWrongSecretsIsReportedWithinADay(t *testing.T) {
	t.Parallel()
	d := New(start)
	for n := range 24 * 3 {
		at := time.Duration(n) * 20 * time.Minute
		if f, ok := d.WrongSecret(start.Add(at), "k"); ok {
			t.Logf("after %s: %s", at, f.Evidence)
			return
		}
	}
	t.Fatal("3 an hour for a day were not reported")
}

func TestWrongSecretsOfOneKeySayNothingOfAnother(t *testing.T) {
	t.Parallel()
	d := New(start)
	for n := range 9 * 500 {
		if f, ok := d.WrongSecret(start, fmt.Sprint("k", n%500)); ok {
			t.Fatalf("9 wrong secrets for each key were reported: %+v", f)
		}
	}
}

func TestEndedUse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state string
		ago   time.Duration
		want  bool
	}{
		{"compromised", 0, true},
		{"compromised", time.Hour, true},
		{"retired", 0, false},
		{"retired", endedGrace - 1, false},
		{"retired", endedGrace, true},
		{"revoked", time.Second, false},
		{"revoked", endedGrace, true},
		{"active", time.Hour, false},
		{"pending", time.Hour, false},
		{"retiring", time.Hour, false},
		{"", time.Hour, false},
	} {
		t.Run(c.state+" "+c.ago.String(), func(t *testing.T) {
			t.Parallel()
			f, ok := New(start).EndedUse(start, "k", 3, c.state, "s", c.ago)
			if ok != c.want {
				t.Fatalf("reported: %v, want %v", ok, c.want)
			}
			if ok && (f.Kind != EndedVersionUse || f.Version != 3 || f.Source != "s" || f.KeyID != "k") {
				t.Fatalf("finding %+v", f)
			}
		})
	}
}

func TestEndedUseIsReportedOncePerVersionAndSource(t *testing.T) {
	t.Parallel()
	d := New(start)
	report := func(at time.Duration, version int, state, source string) bool {
		_, ok := d.EndedUse(start.Add(at), "k", version, state, source, time.Hour)
		return ok
	}
	for i, step := range []struct {
		at      time.Duration
		version int
		state   string
		source  string
		want    bool
	}{
		{0, 1, "retired", "a", true},
		{1, 1, "retired", "a", false},
		{2, 1, "retired", "b", true},
		{3, 2, "retired", "a", true},
		{4, 1, "compromised", "a", true}, // it is another thing now
		{5, 1, "compromised", "a", false},
		{24 * time.Hour, 1, "retired", "a", true},
		{48 * time.Hour, 1, "retired", "a", false}, // the cool-down has doubled
		{72 * time.Hour, 1, "retired", "a", true},
		{40 * 24 * time.Hour, 1, "retired", "a", true}, // a new cause
		{41 * 24 * time.Hour, 1, "retired", "a", true},
	} {
		if got := report(step.at, step.version, step.state, step.source); got != step.want {
			t.Fatalf("step %d %+v: reported %v", i, step, got)
		}
	}
}

func TestALeakTriedFromEverywhereIsNoStorm(t *testing.T) {
	t.Parallel()
	d := New(start)
	n := 0
	for i := range 10_000 {
		if _, ok := d.EndedUse(start.Add(time.Duration(i)*time.Second), "k", 1, "compromised", fmt.Sprint("s", i), time.Hour); ok {
			n++
		}
	}
	if n != maxSlots+1 {
		t.Fatalf("%d findings, want %d", n, maxSlots+1)
	}
	// After silence there is room for others again.
	f, ok := d.EndedUse(start.Add(30*24*time.Hour), "k", 1, "compromised", "later", time.Hour)
	if !ok || strings.Contains(f.Evidence, "one by one") {
		t.Fatalf("after a month: %v %+v", ok, f)
	}
}

// live uses a key from its sources, once an hour each, up to a time after start.
func live(t *testing.T, d *Detector, to time.Duration, sources func(hour int) []string) (findings []Finding) {
	t.Helper()
	for at := time.Duration(0); at < to; at += time.Hour {
		for _, s := range sources(int(at.Hours())) {
			if f, ok := d.Use(start.Add(at), "k", 1, s); ok {
				findings = append(findings, f)
			}
		}
	}
	return findings
}

func fixed(int) []string { return []string{"a", "b", "c"} }

func TestAnUnseenSourceOfASettledKeyIsReportedOnce(t *testing.T) {
	t.Parallel()
	d := New(start)
	if fs := live(t, d, 20*day, fixed); len(fs) > 0 {
		t.Fatalf("its own sources were reported: %+v", fs)
	}
	f, ok := d.Use(start.Add(20*day), "k", 4, "elsewhere")
	if !ok || f.Kind != UnseenSource || f.Source != "elsewhere" || f.Version != 4 {
		t.Fatalf("%v %+v", ok, f)
	}
	if strings.Contains(f.Evidence, "elsewhere") {
		t.Fatalf("the evidence has the source in it: %s", f.Evidence)
	}
	if _, ok := d.Use(start.Add(22*day), "k", 4, "elsewhere"); ok {
		t.Fatal("it was reported twice")
	}
}

func TestAYoungKeyIsNotJudgedForItsSources(t *testing.T) {
	t.Parallel()
	d := New(start)
	fs := live(t, d, learnTime, func(hour int) []string {
		if hour == 13*24 {
			return []string{"elsewhere"}
		}
		return fixed(hour)
	})
	if len(fs) > 0 {
		t.Fatalf("%+v", fs)
	}
}

func TestAKeyWhoseSourcesAlwaysChangeIsNotReported(t *testing.T) {
	t.Parallel()
	for _, every := range []int{1, 24, 4 * 24} {
		d := New(start)
		fs := live(t, d, 90*day, func(hour int) []string { return append(fixed(hour), fmt.Sprint("n", hour/every)) })
		if len(fs) > 0 {
			t.Errorf("new ones every %d hours: %d findings, the first %+v", every, len(fs), fs[0])
		}
	}
}

func TestManyNewSourcesAtOnceAreOneFinding(t *testing.T) {
	t.Parallel()
	d := New(start)
	live(t, d, 30*day, fixed)
	n := 0
	for i := range 50 {
		if _, ok := d.Use(start.Add(30*day), "k", 1, fmt.Sprint("new", i)); ok {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d findings, want 1", n)
	}
}

func TestAfterARestartLearnedSourcesAreKnown(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"learn first", "use first"} {
		d := New(start)
		use := func(at time.Duration, s string) bool { _, ok := d.Use(start.Add(at), "k", 1, s); return ok }
		if order == "use first" && use(0, "a") {
			t.Fatal("reported without history")
		}
		d.Learn("k", past(start.Add(-30*day), "a", "b"), true)
		for at := time.Minute; at < 5*day; at += time.Hour {
			if use(at, "a") || use(at, "b") {
				t.Fatalf("%s: a learned source was reported", order)
			}
		}
		if !use(5*day, "elsewhere") {
			t.Fatalf("%s: an unseen source was not reported", order)
		}
	}
}

// past are sources that were all used first at a moment, and often since.
func past(first time.Time, names ...string) []Past {
	var all []Past
	for _, name := range names {
		all = append(all, Past{Name: name, First: first, Last: first.Add(day), Uses: 1000})
	}
	return all
}

// TestARestartChangesNoJudgement: a detector that is made anew and learns what
// is stored finds the same unseen sources as one that goes on, whether new ones
// are rare for the key or not.
func TestARestartChangesNoJudgement(t *testing.T) {
	t.Parallel()
	for _, every := range []int{0, 3, 7, 20} {
		former := New(start)
		kept := map[string]Past{}
		see := func(at time.Duration, source string) {
			now := start.Add(at)
			former.Use(now, "k", 1, source)
			p, ok := kept[source]
			if !ok {
				p = Past{Name: source, First: now.Truncate(time.Hour)}
			}
			p.Last, p.Uses = now, p.Uses+1
			kept[source] = p
		}
		for at := time.Duration(0); at < 40*day; at += time.Hour {
			see(at, "a")
			see(at, "b")
			if days := int(at / day); every > 0 && days > 2 && days%every == 0 {
				see(at, fmt.Sprint("deployed ", days))
			}
		}
		restarted := New(start.Add(40 * day))
		restarted.Learn("k", slices.Collect(maps.Values(kept)), true)
		for days := 41; days < 60; days += 6 {
			now := start.Add(time.Duration(days) * day)
			source := fmt.Sprint("unseen ", days)
			_, want := former.Use(now, "k", 1, source)
			if _, got := restarted.Use(now, "k", 1, source); got != want {
				t.Errorf("with a new source every %d days, on day %d: found is %v, without a restart %v", every, days, got, want)
			}
		}
	}
}

func TestAfterARestartWithoutLearningNothingIsUnseen(t *testing.T) {
	t.Parallel()
	d := New(start)
	for i := range 200 {
		if _, ok := d.Use(start.Add(time.Duration(i)*time.Minute), "k", 1, fmt.Sprint(i)); ok {
			t.Fatal("reported")
		}
	}
}

func TestACutListOfSourcesDoesNotCountAsHistory(t *testing.T) {
	t.Parallel()
	d := New(start)
	d.Learn("k", past(start.Add(-30*day), "a", "b"), false)
	live(t, d, 3*day, fixed)
	if _, ok := d.Use(start.Add(5*day), "k", 1, "elsewhere"); ok {
		t.Fatal("reported, though the list may have been cut")
	}
}

func TestForgetForgetsAll(t *testing.T) {
	t.Parallel()
	d := New(start)
	for range 20 {
		d.WrongSecret(start, "k")
	}
	d.EndedUse(start, "k", 1, "compromised", "a", 0)
	d.Use(start, "k", 1, "a")
	d.Learn("k", past(start, "b"), true)
	d.Hour(start, "k", flat(100, 400), 10_000)
	if m := d.Memory(); m.WrongKeys != 1 || m.EndedKeys != 1 || m.KnownKeys != 1 || m.RateKeys != 1 || m.Sources != 2 || m.Bytes == 0 {
		t.Fatalf("before: %+v", m)
	}
	d.Forget("k")
	if m := d.Memory(); m != (Memory{}) {
		t.Fatalf("after: %+v", m)
	}
}

func TestTheDetectorIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	d := newDetector(start, limits{keys: 2, sources: 10})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				now, key := start.Add(time.Duration(i)*time.Minute), fmt.Sprint((i*7+g)%150)
				d.WrongSecret(now, key)
				d.EndedUse(now, key, g, "retired", fmt.Sprint(i%20), time.Hour)
				d.Use(now, key, 1, fmt.Sprint(i%30))
				switch i % 100 {
				case 0:
					d.Learn(key, past(start, "x", "y"), true)
				case 1:
					d.Forget(key)
				case 2:
					d.Hour(now, key, flat(50, 100), 9000)
				case 3:
					d.Memory()
				}
			}
		})
	}
	wg.Wait()
}
