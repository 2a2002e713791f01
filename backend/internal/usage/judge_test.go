// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// monday is the beginning of an hour.
var monday = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// hourly is a process that counts, and what it hands over of each hour.
type hourly struct {
	t        *testing.T
	clock    *clock.Manual
	storage  *storetest.Memory
	counting *storetest.Counting
	tracker  *usage.Tracker
	book     *usage.Book
	judged   map[string]judged
	// hours are the hours handed over, by their end since monday.
	hours []string
}

type judged struct {
	before []uint64
	count  uint64
}

func newHourly(t *testing.T) *hourly {
	t.Helper()
	h := &hourly{t: t, clock: clock.NewManual(monday), storage: storetest.NewMemory()}
	h.start()
	return h
}

// start is a process that knows what is stored.
func (h *hourly) start() {
	h.counting = storetest.NewCounting(h.storage)
	s := &shelf{Storage: h.counting}
	h.tracker = usage.New(h.clock.Now())
	h.book = usage.NewBook(h.tracker, s, slips{s.Storage}, h.clock, hclog.NewNullLogger())
	h.judged = map[string]judged{}
	h.book.OnHour = func(id string, before []uint64, end time.Time, count uint64) {
		h.judged[id] = judged{before, count}
		h.hours = append(h.hours, fmt.Sprintf("%s@%g", id, end.Sub(monday).Hours()))
	}
}

// flush is what a minute does.
func (h *hourly) flush() {
	h.t.Helper()
	if h.book.Idle() {
		return
	}
	if err := h.book.Flush(h.t.Context(), h.clock.Now(), week); err != nil {
		h.t.Fatal(err)
	}
}

// pass lets whole hours pass, in which keys are used n times at 20 and 40 minutes
// past.
func (h *hourly) pass(hours, n int, ids ...string) {
	h.t.Helper()
	for range hours {
		for range 3 {
			h.clock.Advance(20 * time.Minute)
			if n > 0 && h.clock.Now().Minute() > 0 {
				for _, id := range ids {
					h.tracker.Add(h.clock.Now(), id, 1, "c|eu", usage.Uses{Accepted: uint64(n)})
				}
			}
			h.flush()
		}
	}
}

// told returns what was handed over since the last call.
func (h *hourly) told() string {
	s := strings.Join(h.hours, " ")
	h.hours = nil
	return s
}

func (h *hourly) want(want string) {
	h.t.Helper()
	if got := h.told(); got != want {
		h.t.Errorf("at hour %g handed over: %q, want %q", h.clock.Now().Sub(monday).Hours(), got, want)
	}
}

// TestHoursReachBackFourWeeks whatever usage_retention is, and not further.
func TestHoursReachBackFourWeeks(t *testing.T) {
	t.Parallel()
	h := newHourly(t)
	for hour := range 5 * 168 {
		h.pass(1, 1+hour%168, "k")
	}
	last := h.judged["k"]
	if len(last.before) != 4*168 || last.count != 2*168 {
		t.Fatalf("%d hours before one with %d uses", len(last.before), last.count)
	}
	for i, n := range last.before {
		if want := uint64(2 * (1 + (i+167)%168)); n != want {
			t.Fatalf("hour %d has %d uses, want %d", i, n, want)
		}
	}
	// A key that paused for longer is known all the same to have been idle.
	h.pass(5*168, 0)
	h.pass(1, 7, "k")
	if last := h.judged["k"]; len(last.before) != 4*168 || last.before[0] != 0 || last.count != 14 {
		t.Fatalf("%d hours before one with %d uses", len(last.before), last.count)
	}
}

// TestAnOutageIsNoSilence: hours that were not counted in full are not judged, nor
// the two after them, and later they are taken for what is usual.
func TestAnOutageIsNoSilence(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"a restart", "the clock leaps"} {
		h := newHourly(t)
		for hour := range 2 * 168 {
			h.pass(1, 10+hour%168, "k")
		}
		h.pass(1, 10, "k")
		h.told()
		h.clock.Advance(30 * time.Minute) // hour 337 is half counted
		h.tracker.Add(h.clock.Now(), "k", 1, "c|eu", usage.Uses{Accepted: 1})
		h.flush()
		if how == "a restart" {
			h.clock.Advance(3 * time.Hour) // up to half past 340
			h.start()
		} else {
			h.clock.Leap(3 * time.Hour)
		}
		h.clock.Advance(10 * time.Minute)
		h.tracker.Add(h.clock.Now(), "k", 1, "c|eu", usage.Uses{Accepted: 1000})
		h.flush()
		h.clock.Advance(20 * time.Minute) // 341
		h.flush()
		h.pass(2, 15, "k") // 343
		h.want("")
		h.pass(1, 16, "k") // 344
		h.want("k@344")
		before := h.judged["k"].before
		// From hour 337 on: half counted, two lost, half counted with more than usual.
		if got, want := fmt.Sprint(before[336:]), "[20 22 24 26 1000 30 30]"; got != want {
			t.Errorf("%s: the last hours are %s, want %s", how, got, want)
		}
		// It stays so for other processes, and on both halves of a page.
		for i := range 1000 {
			for s := range 4 {
				h.tracker.Add(h.clock.Now(), fmt.Sprintf("other%d", i), 1, fmt.Sprintf("entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|%d", s), usage.Uses{Accepted: 1})
			}
		}
		h.flush()
		if pages := len(h.storage.Paths("usage/")); pages < 2 {
			t.Fatalf("%d pages", pages)
		}
		h.start()
		h.pass(3, 12, "k")
		if got, want := fmt.Sprint(h.judged["k"].before[336:343]), "[20 22 24 26 1000 30 30]"; got != want {
			t.Errorf("%s: later the hours are %s, want %s", how, got, want)
		}
	}
}

// TestAStartRightAfterAStopIsNoGap: the hour is judged, once.
func TestAStartRightAfterAStopIsNoGap(t *testing.T) {
	t.Parallel()
	h := newHourly(t)
	h.pass(200, 10, "k")
	h.want(hoursUpTo("k", 2, 200)) // the first hour has none before
	for range 5 {
		h.clock.Advance(9 * time.Minute)
		h.tracker.Add(h.clock.Now(), "k", 1, "c|eu", usage.Uses{Accepted: 4})
		h.flush()
		h.clock.Advance(2 * time.Minute)
		h.start()
		h.tracker.Add(h.clock.Now(), "k", 1, "c|eu", usage.Uses{Accepted: 1})
		h.flush()
	}
	h.want("")
	h.clock.Advance(5 * time.Minute)
	h.flush()
	h.pass(1, 10, "k")
	h.want("k@201 k@202")
	if before := h.judged["k"].before; before[200] != 25 {
		t.Errorf("the hour of the restarts has %d uses, want 25", before[200])
	}
}

func hoursUpTo(id string, from, to int) string {
	var all []string
	for n := from; n <= to; n++ {
		all = append(all, fmt.Sprintf("%s@%d", id, n))
	}
	return strings.Join(all, " ")
}

// TestAPageIsLookedAtForADayAfterItsLastUse, with a read an hour, and then left
// alone.
func TestAPageIsLookedAtForADayAfterItsLastUse(t *testing.T) {
	t.Parallel()
	h := newHourly(t)
	h.pass(200, 10, "k")
	h.told()
	for hour := range 48 {
		h.counting.Reset()
		h.pass(1, 0)
		want := 1
		if hour >= 24 {
			want = 0
		}
		if got := h.counting.Total(); got.Get != want || got.All() != want {
			t.Errorf("hour %d without use costs %s, want a read of %d pages", hour+1, got, want)
		}
	}
	h.want(hoursUpTo("k", 201, 224))
	h.pass(1, 10, "k")
	h.want("k@249")
	if last := h.judged["k"]; last.count != 20 || last.before[len(last.before)-1] != 0 {
		t.Errorf("an hour with %d uses after one with %d", last.count, last.before[len(last.before)-1])
	}
}
