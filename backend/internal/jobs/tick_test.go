// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

func TestATickDoesWhatIsDueAndNoMore(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(20)
	f.clock.Advance(59 * time.Minute)
	f.count.Reset()
	if sum := f.tick(); sum.Keys != 0 || f.count.Total().All() != 0 {
		t.Errorf("a tick before anything is due changed %d keys with %s", sum.Keys, f.count.Total())
	}
	f.clock.Advance(2 * time.Minute)
	if sum := f.tick(); sum.Keys != 20 || f.rotated(20) != 20 {
		t.Errorf("the tick changed %d keys, and %d are rotated", sum.Keys, f.rotated(20))
	}
	f.count.Reset()
	if sum := f.tick(); sum.Keys != 0 || f.count.Total().All() != 0 {
		t.Errorf("the next tick changed %d keys with %s", sum.Keys, f.count.Total())
	}
	f.clock.Advance(11 * time.Minute)
	if sum := f.tick(); sum.Keys != 20 || len(f.key(7).Accepted(f.clock.Now())) != 1 {
		t.Errorf("after the overlap the tick changed %d keys", sum.Keys)
	}
}

func TestAnIdleHourCostsOneRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = 100*time.Hour, time.Hour })
	f.keys(3)
	f = f.restart()
	f.tick()
	for range 50 {
		f.count.Reset()
		f.clock.Advance(time.Hour)
		f.tick()
		if got := f.count.Total(); got.Writes() != 0 || got.Reads() > 1 {
			t.Fatalf("at %s an idle tick in a new hour costs %s", f.clock.Now(), got)
		}
	}
}

func TestAFewKeysAreWorkedOnAtATime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(40)
	f.clock.Advance(62 * time.Minute)
	// Keys may share a lock, so that not all eight need to get as far as here
	// at the same time.
	const some = parallel / 2
	var mu sync.Mutex
	busy, most := 0, 0
	met := make(chan struct{})
	f.faulty.Before(func(op storetest.Op) {
		if op.Kind != storetest.Put || !strings.HasPrefix(op.Path, "key/") {
			return
		}
		mu.Lock()
		busy++
		most = max(most, busy)
		if busy == some && most == some {
			select {
			case <-met:
			default:
				close(met)
			}
		}
		mu.Unlock()
		<-met
		mu.Lock()
		busy--
		mu.Unlock()
	})
	f.tick()
	if most < some || most > parallel {
		t.Errorf("up to %d keys were worked on at a time, want %d to %d", most, some, parallel)
	}
}

func TestTicksDoNotOverlap(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(10)
	f.clock.Advance(62 * time.Minute)
	var all sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 8 {
		all.Go(func() {
			sum, err := f.ticker.Sweep(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += sum.Keys
		})
	}
	all.Wait()
	if total != 10 || f.rotated(10) != 10 {
		t.Errorf("ticks at the same time changed %d keys, and %d are rotated", total, f.rotated(10))
	}
}

func TestATickStopsWithItsContextAndLosesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(30)
	f.clock.Advance(62 * time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	puts := 0
	var mu sync.Mutex
	f.faulty.After(func(op storetest.Op) {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == storetest.Put && strings.HasPrefix(op.Path, "key/") {
			if puts++; puts == 5 {
				cancel()
			}
		}
	})
	if _, err := f.ticker.Tick(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the tick says %v", err)
	}
	f.faulty.After(nil)
	if n := f.rotated(30); n < 5 || n == 30 {
		t.Errorf("%d keys were rotated by a tick that was ended after 5", n)
	}
	f.tick()
	if n := f.rotated(30); n != 30 {
		t.Errorf("after the next tick %d keys are rotated", n)
	}
}

// TestLeapsOfTheClock takes the limit to the millisecond.
func TestLeapsOfTheClock(t *testing.T) {
	t.Parallel()
	for _, sign := range []time.Duration{1, -1} {
		f := newFixture(t)
		f.clock.Advance(time.Minute)
		f.tick()
		f.clock.Advance(time.Minute)
		f.clock.Leap(sign * time.Hour)
		if _, err := f.ticker.Tick(t.Context()); err != nil {
			t.Errorf("a leap of %s: %v", sign*time.Hour, err)
		}
		f.clock.Advance(time.Minute)
		f.clock.Leap(sign * (time.Hour + time.Millisecond))
		suspended := func() bool {
			_, err := f.ticker.Tick(t.Context())
			return errors.Is(err, ErrClockLeapt)
		}
		got := fmt.Sprint(suspended(), suspended())
		f.clock.Leap(-sign * 3 * time.Hour) // again, while it is suspended
		got += fmt.Sprint(" ", suspended(), suspended(), suspended(), suspended())
		if want := "true true true true false false"; got != want {
			t.Errorf("after leaps ticks are suspended %s, want %s", got, want)
		}
	}
}

func TestALongPauseIsNoLeap(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(1)
	f.clock.Advance(40 * 24 * time.Hour)
	f.tick()
}

// TestADamagedKeyIsLookedAtAgainInAnHour counts what it costs.
func TestADamagedKeyIsLookedAtAgainInAnHour(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(3)
	id := f.key(1).ID
	if err := f.memory.Put(t.Context(), &logical.StorageEntry{Key: "key/" + id, Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	f = f.restart()
	seen := 0
	for range 200 {
		f.clock.Advance(time.Minute)
		sum := f.tick()
		seen += sum.Damaged
	}
	if seen != 3 {
		t.Errorf("in 200 minutes a damaged key was looked at %d times, want at 61, 122 and 183", seen)
	}
	if n := len(f.memory.Paths("due/")); n != 3 {
		t.Errorf("there are %d entries in the due index, want one for each key", n)
	}
	if sum, err := f.ticker.Sweep(t.Context()); err != nil || sum.Damaged != 0 {
		t.Errorf("a sweep says %+v, %v", sum, err)
	}
}

func TestAnEntryOfAKeyThatIsGoneIsRemoved(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(1)
	filed := f.memory.Paths("due/")[0]
	stray := filed[:strings.LastIndexByte(filed, '/')+1] + "aaaaaaaaaaaa"
	if err := f.memory.Put(t.Context(), &logical.StorageEntry{Key: stray, Value: []byte{}}); err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(62 * time.Minute)
	if sum := f.tick(); sum.Keys != 1 || sum.Damaged != 0 {
		t.Errorf("the tick says %+v", sum)
	}
	for _, path := range f.memory.Paths("due/") {
		if path == stray || path == filed {
			t.Errorf("%s is still there", path)
		}
	}
}

// failing fails every Put of the entries of these keys.
func (f *fixture) failing(ids ...string) {
	f.faulty.Inject(storetest.Fault{At: 1, Rest: true, WritesOnly: true, Only: func(op storetest.Op) bool {
		return slices.Contains(ids, strings.TrimPrefix(op.Path, "key/"))
	}})
}

// TestKeysThatCannotBeWrittenDoNotStopTheOthers: one, and more of them than
// make a run doubt its storage, all due before the others.
func TestKeysThatCannotBeWrittenDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	for _, bad := range []int{1, 3 * maxRow} {
		f := newFixture(t)
		f.role(nil)
		f.keys(bad)
		var ids []string
		for i := range bad {
			ids = append(ids, f.key(i).ID)
		}
		f.clock.Advance(2 * time.Minute)
		for i := range 5 {
			if _, err := f.keeper.Create(t.Context(), lifecycle.Spec{Name: fmt.Sprintf("good%d", i), Role: "r"}, keyring.Cause{}); err != nil {
				t.Fatal(err)
			}
		}
		f.failing(ids...)
		f.clock.Advance(63 * time.Minute)
		if sum, err := f.ticker.Tick(t.Context()); err != nil || sum.Keys != 5 || sum.Failed != bad {
			t.Errorf("with %d bad keys a tick says %+v, %v", bad, sum, err)
		}
		tries := 0
		for range 300 {
			f.clock.Advance(time.Minute)
			sum, err := f.ticker.Sweep(t.Context())
			if err != nil && !errors.Is(err, storetest.ErrInjected) {
				t.Fatal(err)
			}
			tries += sum.Failed
		}
		k, err := f.store.KeyByName(t.Context(), "good3")
		if err != nil || k.Latest() != 7 {
			t.Errorf("after 6 hours a good key has version %d, want 7: %v", k.Latest(), err)
		}
		// At 1, 2, 4 … 60 minutes, and a few more for sweeps of an open minute.
		if tries < 5*bad || tries > 25*bad {
			t.Errorf("%d bad keys were tried %d times in 5 hours", bad, tries)
		}
		f.faulty.Heal()
		for range 63 {
			f.clock.Advance(time.Minute)
			f.tick()
		}
		if f.key(0).Latest() < 2 || f.key(bad-1).Latest() < 2 {
			t.Errorf("an hour after storage takes them the bad keys have versions %d and %d", f.key(0).Latest(), f.key(bad-1).Latest())
		}
		if n := len(f.memory.Paths("due/")); n != bad+5 {
			t.Errorf("there are %d entries in the due index, want one for each key", n)
		}
	}
}

// TestStorageThatIsDownIsLeftAlone: a run notices soon, and all that is due
// happens at the first tick after.
func TestStorageThatIsDownIsLeftAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(300)
	f.clock.Advance(62 * time.Minute)
	f.faulty.Inject(storetest.Fault{At: 1, Rest: true, WritesOnly: true})
	for range 50 {
		f.clock.Advance(time.Minute)
		f.count.Reset()
		if sum, err := f.ticker.Tick(t.Context()); !errors.Is(err, storetest.ErrInjected) || sum.Keys != 0 {
			t.Fatalf("the tick says %+v, %v", sum, err)
		}
		if n := f.count.Total().All(); n > 200 {
			t.Fatalf("while storage is down a tick makes %d requests of it", n)
		}
	}
	f.faulty.Heal()
	// Not all rotate at once after an outage, but none is left out.
	if sum := f.tick(); sum.Keys != 300 {
		t.Errorf("the first tick after changes %d of 300 keys", sum.Keys)
	}
}
