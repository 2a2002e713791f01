// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// hold lets operations hang until it is released.
func hold(f *storetest.Faulty, op string) (release func()) {
	open := make(chan struct{})
	f.Before(func(o storetest.Op) {
		if strings.HasPrefix(o.String(), op) {
			<-open
		}
	})
	return func() { close(open) }
}

// twoPages is a storage with a page for each of two keys.
func twoPages(t *testing.T) *storetest.Memory {
	t.Helper()
	memory := storetest.NewMemory()
	for _, name := range []string{"0", "1"} {
		if err := memory.Put(t.Context(), &logical.StorageEntry{Key: "usage/" + name, Value: []byte(`{"schema":1,"keys":{}}`)}); err != nil {
			t.Fatal(err)
		}
	}
	return memory
}

// TestAFlushThatHangsHoldsNoFirstUseUp, neither one of a key whose page it
// writes, nor one whose page has not been read, nor one while it deletes notes.
func TestAFlushThatHangsHoldsNoFirstUseUp(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"put usage/", "delete firstuse/"} {
		synctest.Test(t, func(t *testing.T) {
			faulty := storetest.NewFaulty(twoPages(t))
			_, tracker, b := opened(faulty, start)
			answer(t, tracker, b, start, "k", 1, "c|eu")
			release := hold(faulty, op)
			var flushing sync.WaitGroup
			flushing.Go(func() { _ = b.Flush(t.Context(), start, week) })
			synctest.Wait()
			began := time.Now()
			for i := range 10 {
				answer(t, tracker, b, start, fmt.Sprint("key", i), 1, "c|eu")
			}
			answer(t, tracker, b, start, "k", 1, "c|us")
			b.Forget("k")
			if took := time.Since(began); took > 0 {
				t.Errorf("%s hangs: uses waited for %s", op, took)
			}
			release()
			flushing.Wait()
		})
	}
}

// TestAHerdReadsAPageOnce after a start, and lists the pages once.
func TestAHerdReadsAPageOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		counting := storetest.NewCounting(twoPages(t))
		faulty := storetest.NewFaulty(counting)
		_, tracker, b := opened(faulty, start)
		counting.Reset()
		release := hold(faulty, "get usage/")
		var answered sync.WaitGroup
		for i := range 500 {
			answered.Go(func() { answer(t, tracker, b, start, fmt.Sprint("key", i), 1, "c|eu") })
		}
		synctest.Wait()
		release()
		answered.Wait()
		if got := counting.Total(); got.Get != 2 || got.List != 1 {
			t.Errorf("500 first uses took %s", got)
		}
	})
}

// slow takes a while for each note, or as long as it is given.
type slow struct{ logical.Storage }

func (s slow) Put(ctx context.Context, entry *logical.StorageEntry) error {
	select {
	case <-time.After(1900 * time.Millisecond):
		return s.Storage.Put(ctx, entry)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestAWriteThatHadToWaitHasItsFullTime, though those who wait for it give up.
func TestAWriteThatHadToWaitHasItsFullTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		memory := storetest.NewMemory()
		_, tracker, b := opened(slow{memory}, start)
		var answered sync.WaitGroup
		answered.Go(func() { answer(t, tracker, b, start, "k", 1, "c|eu") })
		synctest.Wait()
		began := time.Now()
		if err := b.Remember(t.Context(), tracker.Record(start, "other", 1, "c|us", true)); err == nil {
			t.Error("two writes of 1.9 s took less than 2 s")
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
		answered.Wait()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		restarted := newBook(usage.New(at(time.Hour)), &shelf{Storage: memory})
		restarted.Recover(t.Context())
		wantLaggard(t, "the second", restarted, rolling("other"), at(100*time.Hour), "us")
	})
}

// TestNotesAreNotReadByRequests but in the background, again where it fails;
// until then nothing counts as drained.
func TestNotesAreNotReadByRequests(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	_, tracker, b := opened(memory, start)
	for i := range 300 {
		answer(t, tracker, b, start, fmt.Sprint("key", i), 1, "c|us")
	}
	counting := storetest.NewCounting(memory)
	faulty := storetest.NewFaulty(counting)
	_, tracker, b = opened(faulty, at(time.Hour))
	counting.Reset()
	answer(t, tracker, b, at(time.Hour), "key7", 2, "c|eu")
	later := at(100 * time.Hour)
	if slices.ContainsFunc(counting.Ops(), func(op storetest.Op) bool { return op.Kind != storetest.Put && strings.HasPrefix(op.Path, "firstuse/") }) {
		t.Errorf("a use took %v", counting.Ops())
	}
	for n := 1; ; n++ {
		faulty.Inject(storetest.Fault{At: n})
		b.Recover(t.Context())
		if faulty.Failed() == 0 {
			break
		}
		wantLaggard(t, "after a failure", b, rolling("key7"), later, "not known yet")
	}
	wantLaggard(t, "at last", b, rolling("key7"), later, "us")
	counting.Reset()
	b.Recover(t.Context())
	if got := counting.Total(); got.All() != 0 {
		t.Errorf("once all are read it takes %s", got)
	}
	_, _, b = opened(memory, at(time.Hour))
	wantLaggard(t, "who asks before the first tick", b, rolling("key7"), later, "us")
	_, _, b = opened(storetest.NewMemory(), start)
	if v := b.Drained(t.Context(), rolling("k"), quiet, later)(1); !v.Drained {
		t.Errorf("where there are no notes: %s", v.Why)
	}
}

// TestASourceFromBeforeACrashIsTold by the flush that stores it, and stored only
// once whoever is told has had time to tell others.
func TestASourceFromBeforeACrashIsTold(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	_, tracker, b := opened(memory, start)
	answer(t, tracker, b, start, "k", 1, "c|eu")
	flush(t, b, start)
	answer(t, tracker, b, at(time.Minute), "k", 1, "c|us")
	s := &shelf{Storage: memory}
	wants := func(what string, wait bool, want string) {
		t.Helper()
		var told []string
		b.OnUse = func(keyID string, stored func() usage.Stored, used []usage.Use) bool {
			for _, u := range used {
				told = append(told, fmt.Sprintf("%s %d %s %s, stored %d", keyID, u.Version, u.Source, u.LastUsed.Sub(start), len(stored().Sources)))
			}
			return wait
		}
		flush(t, b, at(time.Hour))
		if got := strings.Join(told, "; "); got != want {
			t.Errorf("%s: told was %q, want %q", what, got, want)
		}
	}
	const us = "k 1 c|us 1m0s, stored 1"
	wants("before a crash", true, us)
	_, _, b = opened(memory, at(time.Hour))
	b.Recover(t.Context())
	wants("after it", true, us)
	wants("kept", false, us)
	wants("stored", false, "")
	if use, err := b.Read(t.Context(), "k", at(time.Hour)); err != nil || use[1].Sources["c|us"].Count != 1 {
		t.Errorf("us has used it %d times, %v", use[1].Sources["c|us"].Count, err)
	}
	flushAll(t, b, s, at(time.Hour))
}

// void takes all, and counts what it is given.
type void struct {
	logical.Storage
	puts int
}

func (v *void) Put(context.Context, *logical.StorageEntry) error { v.puts++; return nil }
func (v *void) Delete(context.Context, string) error             { return nil }

// TestFirstUsesAreBounded: those of 100,000 keys take few writes and little
// memory, and ask for flushes. One more is not stored until there was one.
// It measures memory, so it has no other test beside it.
func TestFirstUsesAreBounded(t *testing.T) { //nolint:paralleltest // see above
	const keys = 100_000
	notes := &void{}
	s := &shelf{Storage: storetest.NewMemory()}
	tracker := usage.New(start)
	b := usage.NewBook(tracker, s, slips{notes}, clock.NewManual(start), hclog.NewNullLogger())
	asked := 0
	b.OnFull = func() { asked++ }
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	for i := 0; i < keys; i += 1000 {
		firsts := make([]*usage.First, 1000)
		for n := range firsts {
			firsts[n] = &usage.First{KeyID: fmt.Sprintf("key%09d", i+n), Version: 1, Source: fmt.Sprintf("entity:0f5c3e9a-7d10-4c1b-9f0e-%012d|eu", i+n), At: start}
		}
		if err := b.Remember(t.Context(), firsts...); err != nil {
			t.Fatal(err)
		}
	}
	took := heap() - before
	t.Logf("%d first uses: %d writes, %d KiB", keys, notes.puts, took>>10)
	if notes.puts > 2*keys/1000 || took > 30<<20 || asked != 4 {
		t.Errorf("%d writes, %d KiB, asked for %d flushes", notes.puts, took>>10, asked)
	}
	more := tracker.Record(start, "one more", 1, "c|eu", true)
	if err := b.Remember(t.Context(), more); err == nil || asked != 5 {
		t.Errorf("one more: %v, asked for %d flushes", err, asked)
	}
	flushAll(t, b, s, start)
	puts := notes.puts
	if err := b.Remember(t.Context(), more); err != nil || notes.puts != puts {
		t.Errorf("after the flushes: %v, %d writes", err, notes.puts-puts)
	}
}
