// SPDX-License-Identifier: MPL-2.0

package feed_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/feed"
)

const settle = time.Minute

func newFeed(t testing.TB) (*feed.Feed, *clock.Manual) {
	t.Helper()
	c := clock.NewManual(time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC))
	f, err := feed.New(rand.Reader, c.Elapsed, settle)
	if err != nil {
		t.Fatal(err)
	}
	return f, c
}

func TestEachChangeIsToldOnceToWhoeverDoesNotHaveIt(t *testing.T) {
	t.Parallel()
	f, _ := newFeed(t)
	start := f.Position()
	f.Keys().Changed("a")
	f.Keys().Changed("b")
	f.Roles().Changed("a") // a role may be called like a key
	between := f.Position()
	f.Keys().Changed("a")
	f.Keys().Forgotten("c")
	for _, tc := range []struct {
		from        feed.Position
		keys, roles []string
	}{
		{start, []string{"a", "b", "c"}, []string{"a"}},
		{between, []string{"a", "c"}, nil},
		{f.Position(), nil, nil},
	} {
		d := f.Since(tc.from)
		if d.Reset || d.Position != f.Position() || !slices.Equal(d.Keys, tc.keys) || !slices.Equal(d.Roles, tc.roles) {
			t.Errorf("since %+v: %+v, want keys %v and roles %v", tc.from, d, tc.keys, tc.roles)
		}
	}
	if again := f.Since(start); !slices.Equal(again.Keys, []string{"a", "b", "c"}) {
		t.Errorf("the same question is answered %+v the second time", again)
	}
}

func TestWhatCannotBeToldIsAReset(t *testing.T) {
	t.Parallel()
	f, _ := newFeed(t)
	f.Keys().Changed("a")
	here := f.Position()
	for name, p := range map[string]feed.Position{
		"the first question":     {},
		"an unknown epoch":       {Epoch: "other", Seq: 1},
		"a number never given":   {Epoch: here.Epoch, Seq: here.Seq + 1},
		"the highest number":     {Epoch: here.Epoch, Seq: ^uint64(0)},
		"another engine's epoch": otherEpoch(t),
	} {
		if d := f.Since(p); !d.Reset || d.Position != here || len(d.Keys) > 0 {
			t.Errorf("%s: %+v, want a reset to %+v", name, d, here)
		}
	}
	f.Restart()
	f.Keys().Changed("a")
	if d := f.Since(here); !d.Reset || d.Epoch == here.Epoch {
		t.Errorf("after a new beginning: %+v", d)
	}
}

func otherEpoch(t *testing.T) feed.Position {
	other, _ := newFeed(t)
	other.Keys().Changed("a")
	return other.Position()
}

func TestTheRingWraps(t *testing.T) {
	t.Parallel()
	f, _ := newFeed(t)
	start := f.Position()
	publish := func(n int) {
		for i := range n {
			f.Keys().Changed(fmt.Sprintf("key%d", i%100))
		}
	}
	publish(feed.Size)
	if d := f.Since(start); d.Reset || len(d.Keys) != 100 {
		t.Errorf("with the ring full: reset %t, %d keys, want all 100", d.Reset, len(d.Keys))
	}
	f.Keys().Changed("the last")
	if d := f.Since(start); !d.Reset {
		t.Error("a change that is forgotten was not missed")
	}
	start.Seq++
	if d := f.Since(start); d.Reset || len(d.Keys) != 101 || d.Keys[100] != "the last" {
		t.Errorf("from the oldest change on: reset %t, %d keys", d.Reset, len(d.Keys))
	}
	publish(3 * feed.Size / 2)
	d := f.Since(feed.Position{Epoch: start.Epoch, Seq: f.Position().Seq - 5})
	if want := []string{"key99", "key98", "key97", "key96", "key95"}; d.Reset || len(d.Keys) != 5 {
		t.Errorf("the last five after wrapping: %+v, want some order of %v", d, want)
	}
}

// TestAFailedWriteIsToldUntilItHasSettled: whoever looked it up meanwhile, at
// any moment, is told again once it can no longer take effect.
func TestAFailedWriteIsToldUntilItHasSettled(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		f, c := newFeed(t)
		polls := rapid.SliceOfN(rapid.IntRange(1, 20_000), 1, 200).Draw(rt, "milliseconds between polls")
		f.Keys().Doubtful("a")
		lookedUp := f.Position() // at that moment, and again at each poll
		told := 0
		for _, ms := range polls {
			c.Advance(time.Duration(ms) * time.Millisecond)
			d := f.Since(lookedUp)
			if slices.Contains(d.Keys, "a") {
				told++
			}
			lookedUp = d.Position
		}
		over := c.Elapsed() >= settle
		if told > 8 {
			rt.Fatalf("one failed write was told %d times", told)
		}
		c.Advance(settle)
		if d := f.Since(lookedUp); slices.Contains(d.Keys, "a") == over {
			rt.Fatalf("after the time to settle: %+v; it was told before: %t", d, over)
		}
		if d := f.Since(f.Position()); len(d.Keys) > 0 {
			rt.Fatalf("it goes on: %+v", d)
		}
	})
}

func TestALateEffectIsToldSoon(t *testing.T) {
	t.Parallel()
	const poll = time.Second
	for late := 100 * time.Millisecond; late < settle; late += 700 * time.Millisecond {
		f, c := newFeed(t)
		f.Keys().Doubtful("a")
		c.Advance(late) // it takes effect now, unseen, and somebody has just looked it up
		lookedUp := f.Since(f.Position()).Position
		waited := time.Duration(0)
		for ; !slices.Contains(f.Since(lookedUp).Keys, "a"); waited += poll {
			c.Advance(poll)
		}
		if waited > late+time.Second+poll {
			t.Errorf("it took effect after %s and was told %s later", late, waited)
		}
	}
}

func TestASuccessfulWriteSettlesADoubt(t *testing.T) {
	t.Parallel()
	f, c := newFeed(t)
	at := f.Position()
	f.Keys().Unchanged("a")
	if d := f.Since(at); len(d.Keys) > 0 {
		t.Errorf("nothing changed, and %v was told", d.Keys)
	}
	for _, settled := range []func(){func() { f.Keys().Changed("a") }, func() { f.Keys().Unchanged("a") }} {
		f.Keys().Doubtful("a")
		at = f.Position()
		settled()
		if d := f.Since(at); !slices.Equal(d.Keys, []string{"a"}) {
			t.Errorf("the write after a doubtful one was told as %v", d.Keys)
		}
		at = f.Position()
		c.Advance(2 * settle)
		if d := f.Since(at); len(d.Keys) > 0 {
			t.Errorf("a doubt that is settled was told again: %v", d.Keys)
		}
	}
}

// TestDoubtsAreBounded: beyond the bound everybody has to ask for everything.
func TestDoubtsAreBounded(t *testing.T) {
	t.Parallel()
	f, c := newFeed(t)
	for i := range 10_000 {
		f.Keys().Doubtful(fmt.Sprint(i))
	}
	at := f.Position()
	resets := 0
	for range 200 {
		c.Advance(time.Second)
		d := f.Since(at)
		if d.Reset {
			resets++
		}
		at = d.Position
	}
	if resets < 5 || resets > 9 {
		t.Errorf("%d resets", resets)
	}
	c.Advance(time.Hour)
	if d := f.Since(at); d.Reset || len(d.Keys) > 0 {
		t.Errorf("it goes on: %+v", d)
	}
}

// TestDoubtsBeyondTheBoundDoNotPutEachOtherOff: everybody is told while they
// still come.
func TestDoubtsBeyondTheBoundDoNotPutEachOtherOff(t *testing.T) {
	t.Parallel()
	f, c := newFeed(t)
	for i := range 5000 {
		f.Keys().Doubtful(fmt.Sprint(i))
	}
	at := f.Position()
	resets := 0
	for i := range 100 {
		c.Advance(500 * time.Millisecond)
		f.Keys().Doubtful(fmt.Sprint("more", i))
		d := f.Since(at)
		if d.Reset {
			resets++
		}
		at = d.Position
	}
	if resets < 20 {
		t.Errorf("%d resets in 50 seconds", resets)
	}
	c.Advance(settle)
	if d := f.Since(at); !d.Reset {
		t.Error("the last ones were not told when they had settled")
	}
	if d := f.Since(f.Position()); d.Reset {
		t.Error("it goes on")
	}
}

func TestLastOf(t *testing.T) {
	t.Parallel()
	f, _ := newFeed(t)
	if got := f.LastOf("a"); got != f.Position() {
		t.Errorf("a key that never changed: %+v", got)
	}
	f.Keys().Changed("a")
	at := f.Position()
	f.Roles().Changed("a")
	f.Keys().Changed("b")
	if got := f.LastOf("a"); got != at {
		t.Errorf("%+v, want %+v", got, at)
	}
	for range feed.Size {
		f.Keys().Changed("b")
	}
	if got, want := f.LastOf("a").Seq, f.Position().Seq-feed.Size; got != want {
		t.Errorf("a forgotten change is at %d, want the beginning %d", got, want)
	}
}

func TestWithoutRandomnessThereIsNoFeed(t *testing.T) {
	t.Parallel()
	broken := errors.New("no entropy")
	if _, err := feed.New(iotest.ErrReader(broken), func() time.Duration { return 0 }, settle); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if _, err := feed.New(io.LimitReader(strings.NewReader("short"), 5), func() time.Duration { return 0 }, settle); err == nil {
		t.Error("a feed with five bytes of randomness")
	}
}

// TestWhoeverReadsTheNumberFirstMissesNothing plays writers against a verifier
// that reads the number first and the state then, under the race detector.
func TestWhoeverReadsTheNumberFirstMissesNothing(t *testing.T) {
	t.Parallel()
	f, _ := newFeed(t)
	const keys, rounds = 4, 3000
	var mu sync.Mutex
	stored := [keys]int{}
	var writers sync.WaitGroup
	for k := range keys {
		writers.Go(func() {
			for n := 1; n <= rounds; n++ {
				mu.Lock()
				stored[k] = n
				mu.Unlock()
				f.Keys().Changed(fmt.Sprint(k))
			}
		})
	}
	type held struct {
		value int
		seq   uint64
	}
	cached := [keys]held{}
	at := f.Position()
	poll := func() {
		d := f.Since(at)
		at = d.Position
		for k := range keys {
			if !d.Reset && !slices.Contains(d.Keys, fmt.Sprint(k)) {
				continue
			}
			p := f.Position()
			mu.Lock()
			cached[k] = held{stored[k], p.Seq}
			mu.Unlock()
		}
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		poll()
	}
	poll()
	for k, h := range cached {
		if h.value != rounds {
			t.Errorf("key %d is held as of write %d, seq %d, and the last of %d was never told", k, h.value, h.seq, rounds)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	f, _ := newFeed(b)
	keys := f.Keys()
	b.ReportAllocs()
	for b.Loop() {
		keys.Changed("Exam9leKey1d")
	}
}

func BenchmarkSinceNothing(b *testing.B) {
	f, _ := newFeed(b)
	for range feed.Size {
		f.Keys().Changed("Exam9leKey1d")
	}
	at := f.Position()
	b.ReportAllocs()
	for b.Loop() {
		_ = f.Since(at)
	}
}
