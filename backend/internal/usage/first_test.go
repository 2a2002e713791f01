// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// answer counts a use, as a verification does before it answers.
func answer(t *testing.T, tracker *usage.Tracker, b *usage.Book, now time.Time, id string, version int, source string) {
	t.Helper()
	if first := tracker.Record(now, id, version, source, true); first != nil {
		if err := b.Remember(t.Context(), first); err != nil {
			t.Fatalf("remember: %v", err)
		}
	}
}

func wantLaggard(t *testing.T, what string, b *usage.Book, k *keyring.Key, now time.Time, laggard string) {
	t.Helper()
	if v := b.Drained(t.Context(), k, quiet, now)(1); v.Drained || !strings.Contains(v.Why, laggard) {
		t.Errorf("%s: drained %v: %s", what, v.Drained, v.Why)
	}
}

// TestACrashHidesNoSource cuts a flush, with all that came after the one before
// it, off at each of its storage operations: another process that knows only
// what is stored does not take the old version for unused, however long it is
// quiet. That holds for a use of it before, and after, it was superseded.
func TestACrashHidesNoSource(t *testing.T) {
	t.Parallel()
	for _, used := range []time.Duration{-time.Minute, time.Minute} {
		for _, applied := range []bool{false, true} {
			for n := 1; ; n++ {
				what := fmt.Sprintf("used at %s, operation %d, applied %v", used, n, applied)
				faulty := storetest.NewFaulty(storetest.NewMemory())
				s := &shelf{Storage: faulty}
				tracker := usage.New(at(-time.Hour))
				b := newBook(tracker, s)
				answer(t, tracker, b, at(-30*time.Minute), "k", 1, "c|eu")
				flush(t, b, at(-30*time.Minute))
				answer(t, tracker, b, at(used), "k", 1, "c|us")
				answer(t, tracker, b, at(used), "other", 1, "c|us")
				faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: true})
				err := b.Flush(t.Context(), at(2*time.Minute), week)
				hit := faulty.Failed() > 0
				if hit && !errors.Is(err, storetest.ErrInjected) {
					t.Fatalf("%s: the flush says %v", what, err)
				}
				faulty.Heal()
				for round := range 3 {
					tracker = usage.New(at(3 * time.Minute))
					b = newBook(tracker, s)
					later := at(time.Duration(round+1) * 100 * time.Hour)
					wantLaggard(t, what, b, rolling("k"), later, "not seen on a newer version yet")
					answer(t, tracker, b, at(time.Hour), "k", 2, "c|eu")
					wantLaggard(t, what, b, rolling("k"), later, "us")
					wantLaggard(t, what, b, rolling("other"), later, "us")
					flushAll(t, b, s, at(time.Hour))
					if left, _ := (slips{faulty}).ListPages(t.Context()); len(left) > 0 {
						t.Fatalf("%s: after a flush there are notes: %v", what, left)
					}
					wantLaggard(t, what, b, rolling("k"), later, "us")
				}
				answer(t, tracker, b, at(time.Hour), "k", 2, "c|us")
				if v := b.Drained(t.Context(), rolling("k"), quiet, at(3*time.Hour))(1); !v.Drained {
					t.Errorf("%s: once all have moved: %s", what, v.Why)
				}
				if use, err := b.Read(t.Context(), "k", at(time.Hour)); err != nil || use[1].Sources["c|us"].Count != 1 {
					t.Errorf("%s: us has used version 1 %d times, %v", what, use[1].Sources["c|us"].Count, err)
				}
				if !hit {
					if n < 3 {
						t.Fatalf("a flush has %d operations", n-1)
					}
					break
				}
			}
		}
	}
}

// TestAFirstUseIsStoredOnce and a process that starts anew finds it on the page.
func TestAFirstUseIsStoredOnce(t *testing.T) {
	t.Parallel()
	counting := storetest.NewCounting(storetest.NewMemory())
	_, tracker, b := opened(counting, start)
	writes := func(what string, want int) {
		t.Helper()
		if got := counting.Total(); got.Writes() != want {
			t.Errorf("%s: %s", what, got)
		}
		counting.Reset()
	}
	answer(t, tracker, b, start, "k", 1, "c|eu")
	writes("a first use", 1)
	answer(t, tracker, b, start, "k", 1, "c|eu")
	writes("another one", 0)
	answer(t, tracker, b, start, "k", 1, "c|us")
	writes("another source", 1)
	flush(t, b, start)
	writes("the flush", 2) // the page, and the note that is over
	answer(t, tracker, b, at(time.Minute), "k", 1, "c|us")
	writes("a use after the flush", 0)
	for i := range 100 {
		answer(t, tracker, b, at(time.Minute), "k", 2, fmt.Sprintf("c|%d", i))
	}
	writes("a hundred sources", 33)
	_, tracker, b = opened(counting, at(time.Hour))
	b.Recover(t.Context())
	answer(t, tracker, b, at(time.Hour), "k", 1, "c|us")
	for i := range 100 {
		answer(t, tracker, b, at(time.Hour), "k", 2, fmt.Sprintf("c|%d", i))
	}
	writes("after a start", 0)
	wantLaggard(t, "more than are told apart", b, rolling("k"), at(9*time.Hour), "us")
}

// gate holds writes up until it is opened.
type gate struct {
	logical.Storage
	open chan struct{}
}

func (g gate) Put(ctx context.Context, entry *logical.StorageEntry) error {
	<-g.open
	return g.Storage.Put(ctx, entry)
}

// TestFirstUsesAreStoredTogether: all that come during a write share the next.
func TestFirstUsesAreStoredTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const keys = 500
		counting := storetest.NewCounting(storetest.NewMemory())
		g := gate{counting, make(chan struct{})}
		tracker := usage.New(start)
		b := newBook(tracker, &shelf{Storage: g})
		id := func(i int) string { return fmt.Sprintf("key%09d", i) }
		var answered sync.WaitGroup
		for i := range keys {
			answered.Go(func() { answer(t, tracker, b, start, id(i), 1, "c|eu") })
			if i == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		close(g.open)
		answered.Wait()
		if got := counting.Total(); got.Put != 2 {
			t.Errorf("%d first uses took %s", keys, got)
		}
		restarted := newBook(usage.New(at(time.Hour)), &shelf{Storage: counting})
		restarted.Recover(t.Context())
		for i := range keys {
			wantLaggard(t, id(i), restarted, rolling(id(i)), at(100*time.Hour), "eu")
		}
	})
}

// TestStorageThatHangsHoldsNobodyUp for longer than a moment, and is told of once.
func TestStorageThatHangsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate{storetest.NewMemory(), make(chan struct{})}
		tracker, logs := usage.New(start), &strings.Builder{}
		b := usage.NewBook(tracker, &shelf{Storage: g}, slips{g}, clock.NewManual(start), hclog.New(&hclog.LoggerOptions{Output: logs}))
		var hanging, answered sync.WaitGroup
		remember := func(id string) {
			if err := b.Remember(t.Context(), tracker.Record(start, id, 1, "c|eu", true)); err == nil {
				t.Errorf("the use of %s is said to be stored", id)
			}
		}
		hanging.Go(func() { _ = b.Remember(t.Context(), tracker.Record(start, "first", 1, "c|eu", true)) })
		synctest.Wait()
		for i := range 3 {
			answered.Go(func() { remember(fmt.Sprint(i)) })
		}
		began := time.Now()
		answered.Wait()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
		close(g.open)
		hanging.Wait()
		if told := strings.Count(logs.String(), "could not be stored"); told != 1 {
			t.Errorf("the log says so %d times: %s", told, logs)
		}
	})
}

// TestClientsGoOnWhereAFirstUseCannotBeStored: for a while none waits, one is
// told of, and a later use stores it.
func TestClientsGoOnWhereAFirstUseCannotBeStored(t *testing.T) {
	t.Parallel()
	faulty := storetest.NewFaulty(storetest.NewMemory())
	c, logs := clock.NewManual(start), &strings.Builder{}
	s := &shelf{Storage: faulty}
	tracker := usage.New(start)
	b := usage.NewBook(tracker, s, slips{faulty}, c, hclog.New(&hclog.LoggerOptions{Output: logs}))
	fails := func(what string, operations, told int) {
		t.Helper()
		before := faulty.Failed()
		if err := b.Remember(t.Context(), tracker.Record(start, "k", 1, "c|us", true)); err == nil {
			t.Errorf("%s: the use is said to be stored", what)
		}
		if got := faulty.Failed() - before; got != operations {
			t.Errorf("%s: storage was asked %d times", what, got)
		}
		if got := strings.Count(logs.String(), "could not be stored"); got != told {
			t.Errorf("%s: the log says so %d times: %s", what, got, logs)
		}
	}
	faulty.Inject(storetest.Fault{At: 1, Rest: true})
	fails("a first use", 1, 1)
	for range 10 {
		fails("right after it", 0, 1)
	}
	c.Advance(5 * time.Second)
	fails("later", 1, 2)
	fails("right after that", 0, 2)
	faulty.Heal()
	c.Advance(5 * time.Second)
	answer(t, tracker, b, start, "k", 1, "c|us")
	answer(t, tracker, b, start, "k", 1, "c|eu")
	crashed := newBook(usage.New(at(time.Hour)), s)
	crashed.Recover(t.Context())
	wantLaggard(t, "after a crash", crashed, rolling("k"), at(100*time.Hour), "us")
}

// TestANoteThatCannotBeReadIsNotDrained: whom it would name is not known. It is
// named once, and no longer missed when it is gone.
func TestANoteThatCannotBeReadIsNotDrained(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"{", `{"schema": 99, "uses": []}`, `{"schema": 1, "uses": 7}`} {
		const path = "firstuse/0000000000000007"
		memory, logs := storetest.NewMemory(), &strings.Builder{}
		if err := memory.Put(t.Context(), &logical.StorageEntry{Key: path, Value: []byte(data)}); err != nil {
			t.Fatal(err)
		}
		s := &shelf{Storage: memory}
		tracker := usage.New(at(-time.Hour))
		b := usage.NewBook(tracker, s, slips{memory}, clock.NewManual(start), hclog.New(&hclog.LoggerOptions{Output: logs}))
		answer(t, tracker, b, start, "k", 2, "c|eu")
		for range 3 {
			b.Recover(t.Context())
			wantLaggard(t, data, b, rolling("k"), at(100*time.Hour), "could not be read")
		}
		if strings.Count(logs.String(), path) != 1 {
			t.Errorf("the log says: %s", logs)
		}
		flushAll(t, b, s, start)
		if left := memory.Paths("firstuse/"); len(left) != 1 {
			t.Errorf("of the notes there are %v", left)
		}
		if err := memory.Delete(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		b.Recover(t.Context())
		if v := b.Drained(t.Context(), rolling("k"), quiet, at(100*time.Hour))(1); !v.Drained {
			t.Errorf("with the note gone: %s", v.Why)
		}
	}
}

// TestADeletedKeyLeavesNoNote for a flush to come back to.
func TestADeletedKeyLeavesNoNote(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	s, tracker, b := opened(memory, start)
	answer(t, tracker, b, start, "k", 1, "c|eu")
	b.Forget("k")
	flushAll(t, b, s, start)
	if left := memory.Paths("firstuse/"); len(left) > 0 {
		t.Errorf("there are %v", left)
	}
}

// TestADeletedKeyIsNotBroughtBack by a use that was being answered when it was
// deleted, or by a note that a crash has left.
func TestADeletedKeyIsNotBroughtBack(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	s, tracker, b := opened(memory, start)
	stored := func(what string) {
		t.Helper()
		flushAll(t, b, s, start)
		if page, err := s.GetPage(t.Context(), "r"); err != nil || strings.Contains(string(page), "gone") || !strings.Contains(string(page), "stays") {
			t.Errorf("%s: the page is %s, %v", what, page, err)
		}
		if left := memory.Paths("firstuse/"); len(left) > 0 {
			t.Errorf("%s: there are %v", what, left)
		}
	}
	answer(t, tracker, b, start, "stays", 1, "c|eu")
	b.Forget("gone")
	answer(t, tracker, b, start, "gone", 1, "c|eu")
	stored("a late use")
	answer(t, tracker, b, start, "gone later", 1, "c|eu")
	answer(t, tracker, b, start, "stays", 2, "c|eu")
	_, _, b = opened(memory, at(time.Hour))
	b.Deleted = func(_ context.Context, keyID string) bool { return keyID == "gone later" }
	b.Recover(t.Context())
	stored("a note of a deleted key")
	if got := count(t, b, "stays", start); got != 1 {
		t.Errorf("version 1 of the other key was used %d times", got)
	}
}

// tardy takes a while to read pages, whoever has given up.
type tardy struct {
	usage.PageStore
	d time.Duration
}

func (s tardy) GetPage(ctx context.Context, name string) ([]byte, error) {
	time.Sleep(s.d)
	return s.PageStore.GetPage(ctx, name)
}

// TestWhatIsSaidToBeRememberedIs, also where storage answers when the time is over.
func TestWhatIsSaidToBeRememberedIs(t *testing.T) {
	t.Parallel()
	said := 0
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			memory := storetest.NewMemory()
			tracker := usage.New(start)
			b := usage.NewBook(tracker, tardy{&shelf{Storage: memory}, 2 * time.Second}, slips{memory}, clock.NewManual(start), hclog.NewNullLogger())
			err := b.Insist(t.Context(), tracker.Record(start, "k", 1, "c|eu", true))
			if stored := len(memory.Paths("firstuse/")) > 0; err == nil && !stored {
				t.Error("it is said to be stored, and is not")
			}
			if err != nil {
				said++
			}
			time.Sleep(time.Minute)
		})
	}
	if said == 0 {
		t.Error("storage was never too slow")
	}
}
