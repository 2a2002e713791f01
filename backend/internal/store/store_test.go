// SPDX-License-Identifier: MPL-2.0

package store_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// start is the beginning of an hour.
var start = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// world is a store on a storage that counts, fails and can be copied.
type world struct {
	t        *testing.T
	clock    *clock.Manual
	memory   *storetest.Memory
	faulty   *storetest.Faulty
	counting *storetest.Counting
	store    *store.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, clock: clock.NewManual(start), memory: storetest.NewMemory()}
	w.open()
	return w
}

// open opens a new store on what is stored.
func (w *world) open() {
	w.t.Helper()
	w.faulty = storetest.NewFaulty(w.memory)
	w.counting = storetest.NewCounting(w.faulty)
	s, err := store.Open(w.t.Context(), w.counting, w.clock, rand.Reader, true)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = s
}

// restart continues with a new process.
func (w *world) restart() {
	w.t.Helper()
	w.memory = w.memory.Clone()
	w.open()
}

func testKey(id string) *keyring.Key {
	return &keyring.Key{
		Schema: keyring.Schema, ID: id, Name: "name-" + id, Role: "r", CreatedTime: start,
		Versions: []keyring.Version{{Number: 1, State: keyring.StateActive, Digest: token.Sum(id), CreatedTime: start, ActivatedTime: start}},
	}
}

func (w *world) create(id string, due time.Time) *keyring.Key {
	w.t.Helper()
	k := testKey(id)
	if err := w.store.CreateKey(w.t.Context(), k, due); err != nil {
		w.t.Fatal(err)
	}
	return k
}

func (w *world) commit(k *keyring.Key, due time.Time) *keyring.Key {
	w.t.Helper()
	next := k.Clone()
	if err := w.store.CommitKey(w.t.Context(), k, next, due); err != nil {
		w.t.Fatal(err)
	}
	return next
}

func (w *world) key(id string) *keyring.Key {
	w.t.Helper()
	k, err := w.store.Key(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// tick works off what is due as a job does, and returns the ids it was given.
func (w *world) tick() []string {
	w.t.Helper()
	minutes, err := w.store.DueMinutes(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, m := range minutes {
		ids, err := w.store.DueIn(w.t.Context(), m)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, id := range ids {
			if err := w.store.DropDue(w.t.Context(), m, id); err != nil {
				w.t.Fatal(err)
			}
		}
		all = append(all, ids...)
		if err := w.store.MinuteDone(w.t.Context(), m); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.store.SweepMarkers(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return all
}

// expectTick ticks and compares what was due.
func (w *world) expectTick(want ...string) {
	w.t.Helper()
	if got := w.tick(); !slices.Equal(got, want) {
		w.t.Fatalf("at %s due are %q, want %q", w.clock.Now().Format(time.TimeOnly), got, want)
	}
}

func (w *world) raw(path, value string) {
	w.t.Helper()
	if err := w.memory.Put(w.t.Context(), &logical.StorageEntry{Key: path, Value: []byte(value)}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) stored(path string) string {
	w.t.Helper()
	entry, err := w.memory.Get(w.t.Context(), path)
	if err != nil {
		w.t.Fatal(err)
	}
	if entry == nil {
		return ""
	}
	return string(entry.Value)
}

func minutes(m int) time.Time { return start.Add(time.Duration(m) * time.Minute) }

func minuteOf(t time.Time) int64 { return t.Unix() / 60 }

func TestOpenCostsTheSameForAnyNumberOfKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := w.counting.Total(); got != (storetest.Counts{Get: 1, Put: 1, List: 1}) {
		t.Errorf("the first start cost %v", got)
	}
	for i := range 3000 {
		w.create(fmt.Sprintf("k%d", i), minutes(i))
	}
	w.restart()
	if got := w.counting.Total(); got != (storetest.Counts{Get: 1, List: 1}) {
		t.Errorf("a start cost %v", got)
	}
}

func TestReadOnlyNodeDoesNotSetUp(t *testing.T) {
	t.Parallel()
	m := storetest.NewMemory()
	_, err := store.Open(t.Context(), m, clock.NewManual(start), rand.Reader, false)
	if err == nil || !strings.Contains(err.Error(), store.ErrReadOnly.Error()) || m.Len() != 0 {
		t.Errorf("Open = %v with %d entries stored", err, m.Len())
	}
}

// TestWritesOfEachOperation: the budget of the design.
func TestWritesOfEachOperation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(10)) // the marker of the hour
	w.counting.Reset()
	k := w.create("b", minutes(20))
	if got := w.counting.Total().Writes(); got != 5 {
		t.Errorf("create took %d writes: %v", got, w.counting.Ops())
	}
	w.counting.Reset()
	k = w.commit(k, minutes(90))
	if got := w.counting.Total(); got.Writes() > 4 || got.Reads() > 0 {
		t.Errorf("a new due time took %v: %v", got, w.counting.Ops())
	}
	w.counting.Reset()
	k = w.commit(k, minutes(90))
	if got := w.counting.Total(); got != (storetest.Counts{Put: 1}) {
		t.Errorf("the same due time took %v", got)
	}
	w.counting.Reset()
	for range 3 {
		if got := w.key("b"); got != k {
			t.Fatal("the key is not the one that was stored")
		}
		if got, err := w.store.KeyByName(t.Context(), "name-b"); got != k || err != nil {
			t.Fatalf("KeyByName = %v, %v", got, err)
		}
	}
	if got := w.counting.Total(); got.All() != 1 {
		t.Errorf("cached reads took %v: %v", got, w.counting.Ops())
	}
}

func TestImportsTakeAtMostSixWritesOnceThereWasOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, id := range []string{"a", "b"} {
		w.counting.Reset()
		k := testKey(id)
		k.Imported, k.Versions[0].Imported = true, true
		if err := w.store.CreateKey(t.Context(), k, minutes(10+i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.counting.Total().Writes(); got > 6 {
		t.Errorf("an import took %d writes: %v", got, w.counting.Ops())
	}
}

func TestRolesAndConfigAreReadOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := role.New("r")
	if err := w.store.PutRole(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := w.store.UpdateConfig(t.Context(), func(c *store.Config) error { c.LeakRate = 7; return nil }); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.counting.Reset()
	for range 3 {
		if got, err := w.store.Role(t.Context(), "r"); err != nil || got.Name != "r" {
			t.Fatalf("Role = %v, %v", got, err)
		}
		if got, err := w.store.Config(t.Context()); err != nil || got.LeakRate != 7 || got.UsageRetention != store.DefaultConfig().UsageRetention {
			t.Fatalf("Config = %v, %v", got, err)
		}
	}
	if got := w.counting.Total(); got != (storetest.Counts{Get: 2}) {
		t.Errorf("reads took %v", got)
	}
	if err := w.store.DeleteRole(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	if got, err := w.store.Role(t.Context(), "r"); got != nil || err != nil {
		t.Errorf("a deleted role is still there: %v, %v", got, err)
	}
}

func TestFailedChangeOfConfigWritesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.memory.Len()
	err := w.store.UpdateConfig(t.Context(), func(c *store.Config) error { c.LeakRate = 9; return fmt.Errorf("no") })
	if err == nil || w.memory.Len() != before {
		t.Errorf("err is %v and %d entries were written", err, w.memory.Len()-before)
	}
	if c, err := w.store.Config(t.Context()); err != nil || c.LeakRate != 60 {
		t.Errorf("Config = %v, %v", c, err)
	}
}
