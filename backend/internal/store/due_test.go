// SPDX-License-Identifier: MPL-2.0

package store_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

func TestFilingNeverChoosesThePresentMinuteOrAClosedOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.clock.Advance(90 * time.Second)
	for name, c := range map[string]struct {
		due  time.Time
		want int64
	}{
		"past":          {minutes(-500), minuteOf(minutes(2))},
		"now":           {w.clock.Now(), minuteOf(minutes(2))},
		"in a second":   {w.clock.Now().Add(time.Second), minuteOf(minutes(2))},
		"next minute":   {minutes(2), minuteOf(minutes(2))},
		"just after it": {minutes(2).Add(time.Millisecond), minuteOf(minutes(3))},
		"never":         {time.Time{}, 0},
	} {
		if k := w.create(strings.ReplaceAll(name, " ", "-"), c.due); k.NextTick != c.want {
			t.Errorf("%s: filed at %d, want %d", name, k.NextTick, c.want)
		}
	}
	// The clock is set back under minutes that are closed.
	w.tick()
	w.clock.Advance(10 * time.Minute)
	w.tick()
	w.clock.Leap(-8 * time.Minute)
	if k := w.create("set-back", w.clock.Now()); k.NextTick != minuteOf(minutes(12)) {
		t.Errorf("with the clock set back, filed at %d, want %d", k.NextTick, minuteOf(minutes(12)))
	}
	w.expectTick()
	w.clock.Advance(9 * time.Minute)
	w.expectTick("set-back")
}

func TestEachKeyComesUpOnceInItsMinute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("b", minutes(61))
	w.create("a", minutes(61))
	k := w.create("moved", minutes(5))
	w.create("never", time.Time{})
	w.commit(k, minutes(61).Add(time.Second))
	for m := 1; m < 200; m++ {
		w.clock.Advance(time.Minute)
		switch m {
		case 61:
			w.expectTick("a", "b")
		case 62:
			w.expectTick("moved")
		default:
			w.expectTick()
		}
	}
	if left := append(w.memory.Paths("due/"), w.memory.Paths("dueh/")...); len(left) != 0 {
		t.Errorf("the index still holds %q", left)
	}
}

// TestChangesDoNotPutOffWhatIsDue: each of them finds the minute of the key open,
// and over.
func TestChangesDoNotPutOffWhatIsDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("busy", minutes(5))
	w.clock.Advance(5*time.Minute + 10*time.Second)
	for range 3 {
		k = w.commit(k, minutes(5))
		w.clock.Advance(10 * time.Second)
	}
	w.expectTick("busy")
	w.clock.Advance(time.Minute)
	w.expectTick()
}

func TestIdleTicksCostNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("soon", minutes(30))
	w.create("later", minutes(330))
	w.restart()
	w.clock.Advance(31 * time.Minute)
	w.expectTick("soon")
	for m := 32; m < 330; m++ {
		w.clock.Advance(time.Minute)
		w.counting.Reset()
		w.expectTick()
		cost := w.counting.Total()
		switch {
		case m == 60 && cost == storetest.Counts{Delete: 1}: // the first hour's marker
		case m == 300 && cost == storetest.Counts{Get: 1}: // the sixth hour's marker
		case cost.All() != 0:
			t.Errorf("minute %d cost %v: %v", m, cost, w.counting.Ops())
		}
	}
	w.clock.Advance(time.Minute)
	w.expectTick("later")
}

func TestRestartFindsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var want []string
	for i := range 50 {
		id := fmt.Sprintf("k%02d", i)
		w.create(id, minutes(1+i*7))
		want = append(want, id)
	}
	w.restart()
	if got := w.counting.Total(); got.List != 1 || got.Get != 1 {
		t.Errorf("the start cost %v", got)
	}
	w.clock.Advance(6 * time.Hour)
	w.counting.Reset()
	w.expectTick(want...)
	if got := w.counting.Under("dueh/"); got.Get != 6 || got.List != 0 {
		t.Errorf("the markers cost %v", got)
	}
	w.restart()
	w.expectTick()
}

// TestRestartInsideATick: what a tick had not finished is found again.
func TestRestartInsideATick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(1))
	w.create("b", minutes(2))
	w.clock.Advance(3 * time.Minute)
	due, err := w.store.DueMinutes(t.Context())
	if err != nil || len(due) != 2 {
		t.Fatalf("DueMinutes = %v, %v", due, err)
	}
	if _, err := w.store.DueIn(t.Context(), due[0]); err != nil {
		t.Fatal(err)
	}
	again, err := w.store.DueMinutes(t.Context())
	if err != nil || !slices.Equal(again, due) {
		t.Errorf("after a tick that broke off, DueMinutes = %v, %v; want %v", again, err, due)
	}
	w.restart()
	w.expectTick("a", "b")
}

func TestAFullMinuteSpills(t *testing.T) {
	t.Parallel()
	const limit = 5000
	w := newWorld(t)
	filed := map[int64]int{}
	for i := range 2*limit + 10 {
		filed[w.create(fmt.Sprintf("k%05d", i), minutes(10)).NextTick]++
	}
	first := minuteOf(minutes(10))
	if filed[first] != limit || filed[first+1] != limit || filed[first+2] != 10 {
		t.Fatalf("filed %v from minute %d on", filed, first)
	}
	// A key that spilled stays where it is.
	w.counting.Reset()
	spilled := w.key(fmt.Sprintf("k%05d", 2*limit))
	if next := w.commit(spilled, minutes(10)); next.NextTick != first+2 || w.counting.Total() != (storetest.Counts{Put: 1}) {
		t.Errorf("a spilled key moved from %d to %d for %v", spilled.NextTick, next.NextTick, w.counting.Total())
	}
	// A new process counts what is there, with one List for each minute.
	w.restart()
	w.counting.Reset()
	if k := w.create("new", minutes(10)); k.NextTick != first+2 {
		t.Errorf("after a restart filed at %d, want %d", k.NextTick, first+2)
	}
	if got := w.counting.Total().List; got != 3 {
		t.Errorf("counting took %d lists", got)
	}
	w.counting.Reset()
	w.create("another", minutes(10))
	if got := w.counting.Total().List; got != 0 {
		t.Errorf("counting again took %d lists", got)
	}
	w.clock.Advance(12 * time.Minute)
	if got := len(w.tick()); got != 2*limit+12 {
		t.Errorf("%d keys came up, want %d", got, 2*limit+12)
	}
}

func TestAMarkerPerHour(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, m := range []int{1, 2, 59, 60, 130} {
		w.create(fmt.Sprint(i), minutes(m))
	}
	hour := start.Unix() / 3600
	want := []string{fmt.Sprintf("dueh/%06d", hour), fmt.Sprintf("dueh/%06d", hour+1), fmt.Sprintf("dueh/%06d", hour+2)}
	if got := w.memory.Paths("dueh/"); !slices.Equal(got, want) {
		t.Fatalf("markers are %q, want %q", got, want)
	}
	// A marker goes once its hour is over and worked off, not before.
	w.clock.Advance(59 * time.Minute)
	w.tick()
	if got := w.memory.Paths("dueh/"); !slices.Equal(got, want) {
		t.Errorf("in the hour, markers are %q", got)
	}
	w.clock.Advance(time.Minute)
	w.tick()
	if got := w.memory.Paths("dueh/"); !slices.Equal(got, want[1:]) {
		t.Errorf("after the hour, markers are %q", got)
	}
	w.clock.Advance(10 * time.Hour)
	if _, err := w.store.DueMinutes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.store.SweepMarkers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.memory.Paths("dueh/"); !slices.Equal(got, want[2:]) && !slices.Equal(got, want[1:]) {
		t.Errorf("markers of what was not worked off are %q", got)
	}
	w.tick()
	if got := w.memory.Paths("dueh/"); len(got) != 0 {
		t.Errorf("markers are left: %q", got)
	}
}

func TestConcurrentFilingsIntoOneHourLoseNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var all sync.WaitGroup
	for i := range 48 {
		all.Go(func() {
			k := testKey(fmt.Sprintf("k%02d", i))
			if err := w.store.CreateKey(t.Context(), k, minutes(60+i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	w.restart()
	w.clock.Advance(3 * time.Hour)
	if got := w.tick(); len(got) != 48 {
		t.Errorf("%d of 48 keys came up", len(got))
	}
}

func TestADamagedMarkerMeansEveryMinute(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{"", "{", "null", "0", `"secret"`, "1152921504606846976", "-1"} {
		w := newWorld(t)
		w.create("a", minutes(61))
		w.raw(w.memory.Paths("dueh/")[0], damage)
		w.restart()
		w.clock.Advance(62 * time.Minute)
		w.expectTick("a")
		w.clock.Advance(2 * time.Hour)
		w.expectTick()
		if got := w.memory.Paths("dueh/"); len(got) != 0 {
			t.Errorf("%q: the marker stays: %q", damage, got)
		}
	}
}

func TestMarkersWithOddNamesAreIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(1))
	for _, name := range []string{"dueh/x", "dueh/-5", "dueh/9/9", "dueh/99999999999999999999"} {
		w.raw(name, "1")
	}
	w.restart()
	w.clock.Advance(2 * time.Hour)
	w.expectTick("a")
}

// TestAnEntryWrittenWhileItsMinuteIsClosed: at whatever point of a tick the
// entry lands, that tick or the next one finds it.
func TestAnEntryWrittenWhileItsMinuteIsClosed(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"before the list", "after the list", "after the minute is done", "after the hour is swept"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.create("other", minutes(59))
			atPut, goOn := make(chan struct{}), make(chan struct{})
			w.faulty.Before(func(op storetest.Op) {
				if op.Kind == storetest.Put && strings.HasPrefix(op.Path, "due/") && strings.HasSuffix(op.Path, "/slow") {
					close(atPut)
					<-goOn
				}
			})
			done := make(chan error)
			go func() { done <- w.store.CreateKey(t.Context(), testKey("slow"), minutes(59)) }()
			<-atPut
			land := func(here string) {
				if here == point {
					close(goOn)
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			}
			w.clock.Advance(60 * time.Minute)
			var found []string
			due, err := w.store.DueMinutes(t.Context())
			if err != nil || len(due) != 1 {
				t.Fatalf("DueMinutes = %v, %v", due, err)
			}
			land("before the list")
			ids, err := w.store.DueIn(t.Context(), due[0])
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, ids...)
			land("after the list")
			if err := w.store.MinuteDone(t.Context(), due[0]); err != nil {
				t.Fatal(err)
			}
			land("after the minute is done")
			if err := w.store.SweepMarkers(t.Context()); err != nil {
				t.Fatal(err)
			}
			land("after the hour is swept")
			w.clock.Advance(time.Minute)
			found = append(found, w.tick()...)
			if !slices.Contains(found, "slow") {
				t.Errorf("the entry was not found: %q", found)
			}
			if w.key("slow") == nil {
				t.Error("the key was not stored")
			}
		})
	}
}

// TestConcurrentSweepsOfAMarker: the second of two sweeps does not take a
// marker that was written in between.
func TestConcurrentSweepsOfAMarker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(59))
	w.clock.Advance(30 * time.Minute)
	w.restart()
	atPut, goOn := make(chan struct{}), make(chan struct{})
	w.faulty.Before(func(op storetest.Op) {
		if op.Kind == storetest.Put && strings.HasSuffix(op.Path, "/slow") && strings.HasPrefix(op.Path, "due/") {
			close(atPut)
			<-goOn
		}
	})
	created := make(chan error)
	go func() { created <- w.store.CreateKey(t.Context(), testKey("slow"), minutes(59)) }()
	<-atPut
	w.clock.Advance(30 * time.Minute)
	w.expectTick("a") // and the marker is gone
	var sweeps sync.WaitGroup
	for range 4 {
		sweeps.Go(func() {
			if err := w.store.SweepMarkers(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	close(goOn)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	sweeps.Wait()
	w.restart()
	w.clock.Advance(time.Minute)
	w.expectTick("slow")
}

func TestDueInLooksOnlyWhereSomethingIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(5))
	w.counting.Reset()
	for _, m := range []int64{0, minuteOf(minutes(4)), minuteOf(minutes(6)), minuteOf(minutes(700))} {
		if ids, err := w.store.DueIn(t.Context(), m); err != nil || len(ids) != 0 {
			t.Errorf("DueIn(%d) = %v, %v", m, ids, err)
		}
	}
	if got := w.counting.Total().All(); got != 0 {
		t.Errorf("it cost %v", w.counting.Ops())
	}
}

// TestSweepDoesNotCloseTheMinute: looking into the open minute takes nothing
// from the tick that will close it.
func TestSweepDoesNotCloseTheMinute(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", start)
	if ids, err := w.store.DueIn(t.Context(), w.store.PresentMinute()); err != nil || !slices.Equal(ids, []string{"a"}) {
		t.Fatalf("DueIn = %q, %v", ids, err)
	}
	w.create("b", start)
	w.clock.Advance(time.Minute)
	w.expectTick("a", "b")
}

func TestLostFiling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("a", minutes(10))
	lost := func() bool { return w.store.LostFiling(k.NextTick) }
	w.clock.Advance(9 * time.Minute)
	if lost() {
		t.Error("lost before its minute")
	}
	w.clock.Advance(10 * time.Minute)
	if lost() {
		t.Error("lost, though the tick was only late")
	}
	due, err := w.store.DueMinutes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.DueIn(t.Context(), due[0]); err != nil {
		t.Fatal(err)
	}
	if lost() {
		t.Error("lost while it was worked on")
	}
	w.tick()
	if !lost() {
		t.Error("not lost, though its minute is done and the key not filed anew")
	}
	if w.store.LostFiling(0) || w.store.LostFiling(minuteOf(w.clock.Now())+5) {
		t.Error("what is not filed, or later, is lost")
	}
	w.clock.Advance(3 * time.Hour)
	w.tick()
	if !lost() {
		t.Error("not lost, though the hour's marker is gone")
	}
}

func TestFiledAt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if !w.store.FiledAt(0, time.Time{}) || w.store.FiledAt(5, time.Time{}) || w.store.FiledAt(0, minutes(5)) {
		t.Error("nothing due and not filed belong together, and only they")
	}
	if !w.store.FiledAt(minuteOf(minutes(5)), minutes(5)) || w.store.FiledAt(minuteOf(minutes(6)), minutes(5)) {
		t.Error("the minute must be that of the due time")
	}
}

func TestPostpone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("a", minutes(1))
	w.clock.Advance(2 * time.Minute)
	if _, err := w.store.Postpone(t.Context(), "a", k.NextTick, minutes(30)); err != nil {
		t.Fatal(err)
	}
	w.expectTick()
	w.clock.Advance(28 * time.Minute)
	w.expectTick("a")
}

// TestEveryFailureOfFiling: whichever operation of a commit fails, in whatever
// way, a key that is stored comes up.
func TestEveryFailureOfFiling(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for _, rest := range []bool{false, true} {
			for n := 1; ; n++ {
				w := newWorld(t)
				k := w.create("a", minutes(5))
				w.faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: rest})
				err := w.store.CommitKey(t.Context(), k, k.Clone(), minutes(65))
				failed := w.faulty.Failed() > 0
				w.faulty.Heal()
				if !rest {
					// The process lives on.
					if err != nil {
						w.commit(w.key("a"), minutes(65))
					}
				} else {
					w.restart()
				}
				want := w.key("a").NextTick
				w.clock.Advance(2 * time.Hour)
				minutes, err := w.store.DueMinutes(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				found := false
				for _, m := range minutes {
					ids, err := w.store.DueIn(t.Context(), m)
					if err != nil {
						t.Fatal(err)
					}
					found = found || m == want && slices.Contains(ids, "a")
				}
				if !found {
					t.Errorf("operation %d (applied %v, crash %v): the key says minute %d and is not there", n, applied, rest, want)
				}
				if !failed {
					break
				}
			}
		}
	}
}

// TestFilingFollowsTheClockBack: after a leap forward that the ticks believed,
// and the way back, keys are filed for when they are due, and what was filed
// before comes up.
func TestFilingFollowsTheClockBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("before", minutes(3*60))
	w.clock.Leap(365 * 24 * time.Hour)
	if _, err := w.store.DueMinutes(t.Context()); err != nil {
		t.Fatal(err)
	}
	ahead := w.create("ahead", w.clock.Now().Add(time.Hour))
	w.clock.Leap(-365 * 24 * time.Hour)
	k := w.create("after", minutes(60))
	if k.NextTick != minuteOf(minutes(60)) {
		t.Errorf("a key due in an hour is filed %d minutes from now", k.NextTick-minuteOf(w.clock.Now()))
	}
	w.tick()
	if k := w.create("later", minutes(61)); k.NextTick != minuteOf(minutes(61)) {
		t.Errorf("after a tick it is filed %d minutes from now", k.NextTick-minuteOf(w.clock.Now()))
	}
	w.clock.Advance(62 * time.Minute)
	w.expectTick("after", "later")
	w.clock.Advance(2 * time.Hour)
	w.expectTick("before")
	w.clock.Advance(time.Unix(ahead.NextTick*60, 0).Sub(w.clock.Now()))
	w.expectTick("ahead")
}

// TestAKeyFiledForLongAfterItIsDueIsReported when it is loaded.
func TestAKeyFiledForLongAfterItIsDueIsReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("far", minutes(365*24*60))
	w.create("near", minutes(60))
	w.restart()
	var told []string
	w.store.OnLost = func(id string) { told = append(told, id) }
	far := w.key("far")
	w.key("near")
	if len(told) != 1 || told[0] != "far" {
		t.Errorf("OnLost was told of %q", told)
	}
	if !w.store.Misfiled(far.NextTick, minutes(24*60)) || w.store.Misfiled(far.NextTick, minutes(365*24*60)) || w.store.Misfiled(far.NextTick, time.Time{}) {
		t.Error("the key is misfiled if it is due tomorrow, and only then")
	}
}
