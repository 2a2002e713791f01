// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

func TestAReportCountsOnceAndInAnyOrder(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	for i, c := range []struct {
		boot     string
		sequence uint64
		fresh    bool
	}{
		{"a", 1, true}, {"a", 1, false}, {"a", 3, true}, {"a", 2, true}, {"a", 3, false}, {"b", 1, true}, {"a", 2, false}, {"a", 4, true},
		{"b", 200, true}, {"b", 72, false}, {"b", 73, true}, {"b", 73, false}, {"b", 1 << 60, true}, {"b", 200, false},
	} {
		if got := r.Accept("v", c.boot, c.sequence, start, start, func() {}); got != c.fresh {
			t.Errorf("report %d, %s %d: fresh is %v", i, c.boot, c.sequence, got)
		}
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		r = usage.NewReports(data, start) // a restart forgets nothing
	}
}

func TestUseIsKnownOnlyUpToAMissingReport(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	known := func(want, wantFrom time.Time) {
		t.Helper()
		if through, from, _ := r.Known(start, at(time.Hour)); !through.Equal(want) || !from.Equal(wantFrom) {
			t.Errorf("known through %s from %s, want %s from %s", through, from, want, wantFrom)
		}
	}
	known(at(time.Hour), time.Time{})
	r.Accept("v", "a", 1, at(time.Minute), at(time.Minute), func() {})
	r.Accept("v", "a", 3, at(3*time.Minute), at(3*time.Minute), func() {})
	known(at(time.Minute), time.Time{})
	r.Accept("v", "a", 2, at(2*time.Minute), at(4*time.Minute), func() {})
	known(at(3*time.Minute), time.Time{})
	r.Accept("v", "a", 5, at(5*time.Minute), at(5*time.Minute), func() {})
	r.Accept("v", "a", 6, at(20*time.Minute), at(20*time.Minute), func() {}) // the fourth is given up
	known(at(20*time.Minute), at(20*time.Minute))
	r.Accept("v", "b", 1, at(30*time.Minute), at(30*time.Minute), func() {}) // what the former start had seen is lost
	known(at(30*time.Minute), at(30*time.Minute))
	r.Accept("silent", "a", 1, time.Time{}, at(30*time.Minute), func() {})
	known(time.Time{}, at(30*time.Minute))
}

// TestWhatCannotBeCountedIsLost, also where it closes a gap that held up what
// others have told.
func TestWhatCannotBeCountedIsLost(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	r.Accept("v", "a", 1, at(time.Minute), at(time.Minute), func() {})
	r.Accept("v", "a", 3, at(3*time.Minute), at(3*time.Minute), func() {})
	r.Lost("v", at(4*time.Minute))
	r.Accept("v", "a", 2, time.Time{}, at(4*time.Minute), func() {})
	r.Lost("new", at(-time.Hour))
	r.Accept("new", "a", 1, at(4*time.Minute), at(4*time.Minute), func() {})
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*usage.Reports{r, usage.NewReports(data, at(5*time.Minute))} {
		if through, from, _ := r.Known(start, at(5*time.Minute)); !through.Equal(at(3*time.Minute)) || !from.Equal(at(4*time.Minute)) {
			t.Errorf("known through %s from %s, want %s from %s", through, from, at(3*time.Minute), at(4*time.Minute))
		}
	}
}

func TestReportsAreBounded(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	for i := range 1500 {
		for boot := range 4 {
			r.Accept(fmt.Sprintf("%s%d", strings.Repeat("v", 120), i), fmt.Sprintf("%s%d", strings.Repeat("b", 120), boot), 1<<50, start, at(time.Duration(i)*time.Second), func() {})
		}
	}
	if data, err := r.Encode(); err != nil || len(data) > 448<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// unknown tells whether use since then counts as unknown up to now.
func unknown(r *usage.Reports, since, now time.Time) bool {
	through, _, _ := r.Known(since, now)
	return through.Before(now)
}

// TestAVerifierThatIsForgottenStillDelaysDrained: it may have seen use, before
// it was last heard from, that it never reported. What was superseded later it
// has no say in.
func TestAVerifierThatIsForgottenStillDelaysDrained(t *testing.T) {
	t.Parallel()
	for name, crowd := range map[string]func(r *usage.Reports){
		"too many": func(r *usage.Reports) {
			for i := range 1000 {
				r.Heard(fmt.Sprintf("c|%d", i), "b", at(2*time.Minute))
			}
		},
		"too large": func(r *usage.Reports) {
			for i := range 999 {
				for boot := range 3 {
					r.Heard(fmt.Sprintf("c|%s%d", strings.Repeat("v", 400), i), fmt.Sprintf("%s%d", strings.Repeat("b", 120), boot), at(2*time.Minute))
				}
			}
		},
		"silent for too long": func(r *usage.Reports) {
			for i := range 1000 {
				r.Heard(fmt.Sprintf("c|%d", i), "b", at(32*24*time.Hour))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := usage.NewReports(nil, start)
			r.Accept("c|edge", "a", 1, at(time.Minute), at(time.Minute), func() {})
			crowd(r)
			data, err := r.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, known := r.Verifier("c|edge"); known {
				t.Fatal("it is still remembered")
			}
			end := at(40 * 24 * time.Hour)
			for _, r := range []*usage.Reports{r, usage.NewReports(data, end)} {
				for _, v := range r.Verifiers() { // the others have reported
					r.Accept(v.Name, v.Boot, 1, end, end, func() {})
				}
				through, _, why := r.Known(start, end)
				if !through.Equal(at(time.Minute)) && name != "too large" || through.Equal(end) || !strings.Contains(why, "not remembered any more") {
					t.Errorf("of a version superseded before, use is known through %s: %q", through, why)
				}
				if unknown(r, at(33*24*time.Hour), end) {
					t.Error("it has a say in what was superseded after it was last heard from")
				}
			}
		})
	}
}

func TestReportsThatAreDamagedAreNotTakenForNone(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"no JSON": "{", "null": "null", "another type": `[1]`, "a verifier that is none": `{"schema":1,"verifiers":{"c|v": null}}`, "a boot that is none": `{"schema":1,"verifiers":{"c|v": {"boots": [null]}}}`,
		"a field of another type":          `{"schema":1,"verifiers":{"c|v": {"last_seen": 5}, "c|w": {"last_seen": "2030-01-01T12:00:00Z", "reported_through": "2030-01-01T13:00:00Z"}}}`,
		"the forgotten ones that are none": `{"schema":1,"verifiers":{"": null}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := usage.NewReports([]byte(data), at(time.Hour))
			for range 2 {
				if !unknown(r, at(59*time.Minute), at(time.Hour)) {
					t.Error("use before they were read counts as known")
				}
				if unknown(r, at(61*time.Minute), at(2*time.Hour)) {
					t.Error("use after they were read counts as unknown")
				}
				stored, err := r.Encode()
				if err != nil || stored == nil {
					t.Fatalf("there is nothing to store of it, %v", err)
				}
				r = usage.NewReports(stored, at(2*time.Hour)) // and that outlives a restart
				r.Accept("c|other", "a", 1, at(3*time.Hour), at(2*time.Hour), func() {})
			}
		})
	}
}

// TestWhatIsStillToComeIsNotReported: once the clock has gone back, a verifier
// has to report anew.
func TestWhatIsStillToComeIsNotReported(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	r.Accept("c|edge", "a", 1, at(time.Hour), at(time.Hour), func() {})
	stored, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]*usage.Reports{"the same process": r, "after a start": usage.NewReports(stored, at(10*time.Minute))} {
		if through, _, why := r.Known(start, at(20*time.Minute)); !through.IsZero() || !strings.Contains(why, "clock went back") {
			t.Errorf("%s: once the clock went back, use is known through %s: %q", what, through, why)
		}
		r.Accept("c|edge", "a", 2, at(25*time.Minute), at(20*time.Minute), func() {})
		if through, _, why := r.Known(start, at(30*time.Minute)); !through.Equal(at(20 * time.Minute)) {
			t.Errorf("%s: after a report that is ahead of the clock, use is known through %s: %q", what, through, why)
		}
		r.Accept("c|edge", "a", 4, at(25*time.Minute), at(25*time.Minute), func() {})
		if through, _, why := r.Known(start, at(30*time.Minute)); !through.Equal(at(20 * time.Minute)) {
			t.Errorf("%s: with a report missing, use is known through %s: %q", what, through, why)
		}
		r.Accept("c|edge", "a", 3, at(24*time.Minute), at(25*time.Minute), func() {})
		if through, _, why := r.Known(start, at(25*time.Minute)); !through.Equal(at(25 * time.Minute)) {
			t.Errorf("%s: after the reports, use is known through %s: %q", what, through, why)
		}
	}
}

func TestAVerifierThatIsHeardDelaysDrainedUntilItReports(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	r.Heard("c|edge", "a", at(time.Minute))
	if !unknown(r, start, at(2*time.Minute)) {
		t.Error("what it saw counts as known")
	}
	if _, _, why := r.Known(start, at(2*time.Minute)); why != "verifier edge has not reported" {
		t.Errorf("why is %q", why)
	}
	if unknown(r, at(90*time.Second), at(2*time.Minute)) {
		t.Error("it has a say in what was superseded later")
	}
	r.Accept("c|edge", "a", 1, at(2*time.Minute), at(2*time.Minute), func() {})
	if unknown(r, start, at(2*time.Minute)) {
		t.Error("it has reported")
	}
	// It starts again: what it had seen since it reported is lost.
	r.Heard("c|edge", "b", at(3*time.Minute))
	r.Accept("c|edge", "b", 1, at(4*time.Minute), at(4*time.Minute), func() {})
	if _, from, _ := r.Known(start, at(4*time.Minute)); !from.Equal(at(3 * time.Minute)) {
		t.Errorf("use is known from %s", from)
	}
	// A poll that does not say which start it is of changes nothing.
	r.Heard("c|edge", "", at(5*time.Minute))
	want := usage.Verifier{Name: "c|edge", Boot: "b", LastSeen: at(5 * time.Minute), ReportedThrough: at(4 * time.Minute)}
	if got, known := r.Verifier("c|edge"); !known || got != want || len(r.Verifiers()) != 1 || r.Verifiers()[0] != want {
		t.Errorf("known is %+v, %v; all are %+v", got, known, r.Verifiers())
	}
	if _, known := r.Verifier("c|other"); known {
		t.Error("a verifier that nobody heard from is known")
	}
}

// TestAThousandVerifiersAreRemembered with three starts each and names as long
// as they may be, over a restart as well.
func TestAThousandVerifiersAreRemembered(t *testing.T) {
	t.Parallel()
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	r := usage.NewReports(nil, start)
	name := func(i int) string { return fmt.Sprintf("entity:%s|%s%04d", uuid, strings.Repeat("v", 124), i) }
	now := at(time.Minute + 123456789)
	for i := range 1000 {
		for boot := range 3 {
			for sequence := range 5 {
				r.Accept(name(i), fmt.Sprint(uuid[1:], boot), uint64(sequence+1), now, now, func() {})
			}
			r.Heard(name(i), fmt.Sprint(uuid[1:], boot), now)
		}
	}
	data, err := r.Encode()
	if err != nil || len(data) > 448<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	for _, r := range []*usage.Reports{r, usage.NewReports(data, now)} {
		if n := len(r.Verifiers()); n != 1000 {
			t.Fatalf("%d of 1000 are remembered", n)
		}
		for i := range 1000 {
			if r.Accept(name(i), uuid[1:]+"2", 4, now, now, func() {}) {
				t.Fatal("a report that is sent again counts twice")
			}
			if !r.Accept(name(i), uuid[1:]+"2", 6, at(time.Hour), at(time.Hour), func() {}) {
				t.Fatal("a new report does not count")
			}
		}
		if through, from, why := r.Known(start, at(time.Hour)); !through.Equal(at(time.Hour)) || from.Before(now) || from.After(now.Add(time.Second)) {
			t.Errorf("use is known through %s, from %s: %s", through, from, why)
		}
	}
}

// TestAStartThatDiedBlocksDrainedForAWhile: another process of the same name
// lives on, and is the present one again once that was silent.
func TestAStartThatDiedBlocksDrainedForAWhile(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	r.Heard("c|edge", "canary", start.Add(-time.Second))
	r.Heard("c|edge", "lives", start.Add(-time.Second))
	r.Heard("c|edge", "canary", start) // they take turns
	r.Heard("c|edge", "second canary", start)
	for minute := 1; minute <= 60; minute++ {
		now := at(time.Duration(minute) * time.Minute)
		r.Heard("c|edge", "lives", now)
		r.Accept("c|edge", "lives", uint64(minute), now, now, func() {})
		if minute < 15 && !unknown(r, start, now) {
			t.Fatalf("after %d minutes of two that report, or might, use is known", minute)
		}
		if minute%7 == 0 { // also over restarts
			data, err := r.Encode()
			if err != nil {
				t.Fatal(err)
			}
			r = usage.NewReports(data, now)
		}
	}
	through, from, why := r.Known(start, at(time.Hour))
	if !through.Equal(at(time.Hour)) || from.After(at(16*time.Minute)) || from.Before(at(15*time.Minute)) {
		t.Errorf("use is known through %s, from %s: %s", through, from, why)
	}
}

// TestNoCallerMakesItForgetTheVerifiersOfOthers by names that it makes up.
func TestNoCallerMakesItForgetTheVerifiersOfOthers(t *testing.T) {
	t.Parallel()
	for what, length := range map[string]int{"too many": 10, "too large": 600} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := usage.NewReports(nil, start)
			r.Accept("a|edge", "a", 1, at(time.Minute), at(time.Minute), func() {})
			r.Accept("b|edge", "a", 1, at(time.Minute), at(time.Minute), func() {})
			for i := range 3000 {
				r.Heard(fmt.Sprintf("stranger|%s%d", strings.Repeat("v", length), i), "b", at(2*time.Minute))
			}
			if _, err := r.Encode(); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"a|edge", "b|edge"} {
				if _, known := r.Verifier(name); !known || r.Accept(name, "a", 1, at(time.Minute), at(time.Minute), func() {}) {
					t.Errorf("%s is forgotten", name)
				}
			}
		})
	}
}

// TestWhoAsksWithoutANameDelaysDrainedForAWhile: it cannot report, and what it
// was told it accepts for 10 minutes.
func TestWhoAsksWithoutANameDelaysDrainedForAWhile(t *testing.T) {
	t.Parallel()
	for what, ask := range map[string]func(r *usage.Reports, now time.Time){
		"follows":  func(r *usage.Reports, now time.Time) { r.HeardUnnamed("token:accessor", now) },
		"looks up": func(r *usage.Reports, now time.Time) { r.LookedUp("token:accessor", now) },
		"looks up, long after its verifier": func(r *usage.Reports, now time.Time) {
			r.Accept("token:accessor|edge", "a", 1, at(-time.Minute), at(-time.Minute), func() {})
			r.LookedUp("token:accessor", now)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := usage.NewReports(nil, start)
			ask(r, at(20*time.Minute))
			data, err := r.Encode()
			if err != nil || data == nil {
				t.Fatalf("there is nothing to store of it, %v", err)
			}
			crashed := usage.NewReports(data, at(21*time.Minute))
			for _, r := range []*usage.Reports{r, crashed} {
				if _, _, why := r.Known(start, at(29*time.Minute)); !unknown(r, start, at(29*time.Minute)) || strings.Contains(why, "accessor") || !strings.Contains(why, "without the name") {
					t.Errorf("what it accepts counts as known: %q", why)
				}
				if through, from, why := r.Known(start, at(31*time.Minute)); r != crashed && (!through.Equal(at(31*time.Minute)) || !from.Equal(at(30*time.Minute))) {
					t.Errorf("once its cache is over, use is known through %s, from %s: %s", through, from, why)
				}
				if _, from, _ := r.Known(at(40*time.Minute), at(50*time.Minute)); !from.Before(at(40 * time.Minute)) {
					t.Error("it has a say in what was superseded after its cache was over")
				}
			}
		})
	}
}

func TestALookUpOfAVerifierThatReportsDelaysNothing(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	r.Accept("c|edge", "a", 1, at(time.Minute), at(time.Minute), func() {})
	r.LookedUp("c", at(time.Minute))
	if through, from, why := r.Known(start, at(time.Minute)); !through.Equal(at(time.Minute)) || !from.IsZero() {
		t.Errorf("use is known through %s, from %s: %s", through, from, why)
	}
}

// TestHearingOfAVerifierIsStoredNowAndThen: not at each poll, and often enough
// that a crash does not hide that it was at work after a rotation.
func TestHearingOfAVerifierIsStoredNowAndThen(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil, start)
	var stored []byte
	writes := 0
	for second := range 3600 {
		now := at(time.Duration(second) * time.Second)
		r.Heard("c|edge", "a", now)
		if second%60 != 59 {
			continue
		}
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if data != nil {
			writes++
			stored = data
		}
		again := usage.NewReports(stored, now.Add(time.Minute))
		if superseded := now.Add(-time.Second); !unknown(again, superseded, now.Add(time.Minute)) {
			t.Fatalf("after a crash at %s a version that was superseded at %s counts as unused", now, superseded)
		}
	}
	if writes > 4 {
		t.Errorf("an hour of polls was stored %d times", writes)
	}
	if again := usage.NewReports(stored, at(48*time.Hour)); unknown(again, at(2*time.Hour), at(48*time.Hour)) {
		t.Error("a restart makes it heard from again")
	}
}

func BenchmarkHeard(b *testing.B) {
	r := usage.NewReports(nil, start)
	r.Heard("c|edge", "a", start)
	b.ReportAllocs()
	for b.Loop() {
		r.Heard("c|edge", "a", start)
	}
}

func BenchmarkLookedUp(b *testing.B) {
	r := usage.NewReports(nil, start)
	r.Heard("c|edge", "a", start)
	b.ReportAllocs()
	for b.Loop() {
		r.LookedUp("c", start)
		r.LookedUp("d", start)
	}
}
