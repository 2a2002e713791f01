// SPDX-License-Identifier: MPL-2.0

package store_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// gate holds the first operation that matches, until it is opened.
type gate struct {
	reached, open chan struct{}
	once          sync.Once
}

func newGate() *gate { return &gate{reached: make(chan struct{}), open: make(chan struct{})} }

// hold returns a hook that blocks the first operation of this kind and path.
func (g *gate) hold(want storetest.Op) func(storetest.Op) {
	return func(op storetest.Op) {
		if op == want {
			g.once.Do(func() {
				close(g.reached)
				<-g.open
			})
		}
	}
}

// TestAReaderThatOverlapsAWriterLeavesNothingStale: the reader has the old
// value in hand at every point of the write.
func TestAReaderThatOverlapsAWriterLeavesNothingStale(t *testing.T) {
	t.Parallel()
	key := storetest.Op{Kind: storetest.Get, Path: "key/a"}
	write := storetest.Op{Kind: storetest.Put, Path: "key/a"}
	for _, fails := range []bool{false, true} {
		for _, ends := range []string{"before the write lands", "after the write landed", "after the write returned"} {
			t.Run(fmt.Sprintf("%s, failing %v", ends, fails), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				k := w.create("a", minutes(5))
				w.restart()
				reader, early, late := newGate(), newGate(), newGate()
				w.faulty.After(func(op storetest.Op) {
					reader.hold(key)(op)
					late.hold(write)(op)
				})
				w.faulty.Before(early.hold(write))
				read := make(chan struct{})
				go func() {
					defer close(read)
					if got, err := w.store.Key(t.Context(), "a"); err != nil || got == nil {
						t.Errorf("Key = %v, %v", got, err)
					}
				}()
				<-reader.reached // it holds the old value
				next := k.Clone()
				next.Job = "new"
				if fails {
					w.faulty.Inject(storetest.Fault{At: 1, WritesOnly: true, Applied: true})
				}
				written := make(chan error)
				go func() { written <- w.store.CommitKey(t.Context(), k, next, minutes(5)) }()
				finish := func(here string) {
					if here == ends {
						close(reader.open)
						<-read
					}
				}
				<-early.reached
				finish("before the write lands")
				close(early.open)
				<-late.reached
				finish("after the write landed")
				close(late.open)
				if err := <-written; (err != nil) != fails {
					t.Fatalf("CommitKey = %v", err)
				}
				finish("after the write returned")
				if got := w.key("a"); got.Job != "new" {
					t.Error("the cache kept the old value")
				}
			})
		}
	}
}

// TestAReaderThatOverlapsADeletion: the same for a key that is removed.
func TestAReaderThatOverlapsADeletion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("a", minutes(5))
	w.restart()
	reader := newGate()
	w.faulty.After(reader.hold(storetest.Op{Kind: storetest.Get, Path: "key/a"}))
	read := make(chan struct{})
	go func() {
		defer close(read)
		if _, err := w.store.Key(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	}()
	<-reader.reached
	tomb := k.EndAll(keyring.Cause{Now: start}, w.store.Cleanup(k))
	if err := w.store.CommitKey(t.Context(), k, tomb, start); err != nil {
		t.Fatal(err)
	}
	if err := w.store.FinishDelete(t.Context(), tomb); err != nil {
		t.Fatal(err)
	}
	close(reader.open)
	<-read
	if got := w.key("a"); got != nil {
		t.Errorf("the deleted key is still cached: %+v", got)
	}
}

// TestInvalidationUnderARead: what another node wrote while this one was
// reading is not kept.
func TestInvalidationUnderARead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(5))
	w.restart()
	reader := newGate()
	w.faulty.After(reader.hold(storetest.Op{Kind: storetest.Get, Path: "key/a"}))
	read := make(chan struct{})
	go func() {
		defer close(read)
		if _, err := w.store.Key(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	}()
	<-reader.reached
	w.raw("key/a", strings.Replace(w.stored("key/a"), `"role":"r"`, `"role":"other"`, 1))
	w.store.Invalidate("key/a")
	close(reader.open)
	<-read
	if got := w.key("a"); got.Role != "other" {
		t.Error("the cache kept what another node had overwritten")
	}
}

// TestConcurrentReadersAndWriters: after any write has returned, no reader
// sees less than it wrote. Run with -race.
func TestConcurrentReadersAndWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		w.create(id, minutes(5))
	}
	var mu sync.Mutex
	written := map[string]int{}
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			k := w.key(id)
			for i := 1; i <= 200; i++ {
				next := k.Clone()
				next.RotateAt = minutes(i)
				if err := w.store.CommitKey(t.Context(), k, next, minutes(5)); err != nil {
					t.Error(err)
					return
				}
				k = next
				mu.Lock()
				written[id] = i
				mu.Unlock()
			}
		})
		for range 2 {
			all.Go(func() {
				for i := range 300 {
					mu.Lock()
					least := written[id]
					mu.Unlock()
					k, err := w.store.KeyByName(t.Context(), "name-"+id)
					if err != nil || k == nil {
						t.Errorf("KeyByName = %v, %v", k, err)
						return
					}
					if k.RotateAt.Before(minutes(least)) && least > 0 {
						t.Errorf("read %s after %d was written", k.RotateAt, least)
						return
					}
					if i%10 == 0 {
						w.store.Invalidate("key/" + id)
						w.store.Invalidate("name/name-" + id)
					}
				}
			})
		}
	}
	all.Wait()
}

// TestInvalidateForgetsWhatTheStoreWrote: for each kind of entry, the path is
// the one that the store wrote, not one that the test knows.
func TestInvalidateForgetsWhatTheStoreWrote(t *testing.T) {
	t.Parallel()
	imported := token.Sum("imported-elsewhere-1")
	kinds := map[string]struct {
		write func(w *world) error
		// read says what the store sees.
		read func(w *world) (string, error)
	}{
		"key/": {
			func(w *world) error { return w.store.CreateKey(w.t.Context(), testKey("a"), minutes(5)) },
			func(w *world) (string, error) {
				k, err := w.store.Key(w.t.Context(), "a")
				if k == nil {
					return "none", err
				}
				return k.ID, err
			},
		},
		"name/": {
			func(w *world) error { return w.store.CreateKey(w.t.Context(), testKey("a"), minutes(5)) },
			func(w *world) (string, error) {
				// The key itself stays: only the name is gone.
				k, err := w.store.KeyByName(w.t.Context(), "name-a")
				if k == nil {
					return "none", err
				}
				return k.ID, err
			},
		},
		"imported/": {
			func(w *world) error {
				k := testKey("a")
				k.Imported, k.Versions[0].Imported, k.Versions[0].Digest = true, true, imported
				return w.store.CreateKey(w.t.Context(), k, minutes(5))
			},
			func(w *world) (string, error) {
				k, err := w.store.KeyByImport(w.t.Context(), imported, func() error { return nil })
				if k == nil {
					return "none", err
				}
				return k.ID, err
			},
		},
		"role/": {
			func(w *world) error { return w.store.PutRole(w.t.Context(), role.New("r")) },
			func(w *world) (string, error) {
				r, err := w.store.Role(w.t.Context(), "r")
				if r == nil {
					return "none", err
				}
				return r.Name, err
			},
		},
	}
	for kind, c := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if err := c.write(w); err != nil {
				t.Fatal(err)
			}
			var path string
			for _, op := range w.counting.Ops() {
				if op.Kind == storetest.Put && strings.HasPrefix(op.Path, kind) {
					path = op.Path
				}
			}
			for range 2 { // the second time from the cache
				if got, err := c.read(w); err != nil || got == "none" {
					t.Fatalf("before: %q, %v", got, err)
				}
			}
			if err := w.memory.Delete(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			if got, err := c.read(w); err != nil || got == "none" {
				t.Fatalf("not cached: %q, %v", got, err)
			}
			w.store.Invalidate(path)
			if got, err := c.read(w); err != nil || got != "none" {
				t.Errorf("after the invalidation of %q: %q, %v", path, got, err)
			}
		})
	}
}

// TestInvalidationOfAnotherNodesImport: a negative answer does not outlive the
// import that another node made, nor does the flag that saves the lookup.
func TestInvalidationOfAnotherNodesImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := &world{t: t, clock: w.clock, memory: w.memory}
	other.open()
	imported := token.Sum("imported-elsewhere-2")
	k, err := other.store.KeyByImport(t.Context(), imported, func() error { return nil })
	if k != nil || err != nil {
		t.Fatalf("KeyByImport = %v, %v", k, err)
	}
	if has, err := other.store.HasImports(t.Context()); has || err != nil {
		t.Fatalf("HasImports = %v, %v", has, err)
	}
	n := testKey("a")
	n.Imported, n.Versions[0].Imported, n.Versions[0].Digest = true, true, imported
	if err := w.store.CreateKey(t.Context(), n, minutes(5)); err != nil {
		t.Fatal(err)
	}
	for _, op := range w.counting.Ops() {
		if op.Kind == storetest.Put {
			other.store.Invalidate(op.Path)
		}
	}
	if has, err := other.store.HasImports(t.Context()); !has || err != nil {
		t.Errorf("HasImports = %v, %v", has, err)
	}
	if k, err := other.store.KeyByImport(t.Context(), imported, func() error { return nil }); k == nil || err != nil {
		t.Errorf("KeyByImport = %v, %v", k, err)
	}
}

func TestInvalidateForgetsConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.store.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.raw("config", `{"leak_rate":5}`)
	w.store.Invalidate("config")
	if c, err := w.store.Config(t.Context()); err != nil || c.LeakRate != 5 {
		t.Errorf("Config = %+v, %v", c, err)
	}
	for _, odd := range []string{"", "/", "unknown", "due/1/x", "dueh/1"} {
		w.store.Invalidate(odd)
	}
}

// TestConcurrentImportsAndLookups has the race detector look at the mount's
// own entry.
func TestConcurrentImportsAndLookups(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			d := token.Sum(fmt.Sprintf("imported-elsewhere-%d", i))
			k := testKey(fmt.Sprintf("k%d", i))
			k.Imported, k.Versions[0].Imported, k.Versions[0].Digest = true, true, d
			if err := w.store.CreateKey(t.Context(), k, minutes(5)); err != nil {
				t.Error(err)
			}
			if got, err := w.store.KeyByImport(t.Context(), d, func() error { return nil }); err != nil || got != k {
				t.Errorf("KeyByImport = %v, %v", got, err)
			}
		})
		all.Go(func() {
			w.store.Invalidate("mount/state")
			if _, err := w.store.HasImports(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestASuccessorSharesLocksAndCaches: what is still under way on the store that
// it takes the place of excludes what comes next, which sees what that wrote.
func TestASuccessorSharesLocksAndCaches(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("a", minutes(5))
	former := w.store
	w.open()
	w.store.Succeed(former)
	w.counting.Reset()
	if w.key("a"); w.counting.Under("key/").Get != 1 {
		t.Error("the successor trusts what its predecessor had cached")
	}
	unlock := former.LockKey("a")
	locked := make(chan func())
	go func() { locked <- w.store.LockKey("a") }()
	next := k.Clone()
	next.Disabled = true
	if err := former.CommitKey(t.Context(), k, next, minutes(5)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-locked:
		t.Fatal("both hold the lock of the key")
	default:
	}
	unlock()
	defer (<-locked)()
	if !w.key("a").Disabled {
		t.Error("the successor does not see what its predecessor wrote")
	}
}
