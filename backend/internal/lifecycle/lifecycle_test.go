// SPDX-License-Identifier: MPL-2.0

package lifecycle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// start is the beginning of an hour.
var start = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// repeatable gives the same bytes in each run, so that two runs of the same
// operation can be compared byte for byte.
type repeatable struct {
	mu     sync.Mutex
	source *rand.ChaCha8
}

func newRepeatable(seed byte) *repeatable {
	return &repeatable{source: rand.NewChaCha8([32]byte{seed})}
}

func (r *repeatable) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.source.Read(p)
}

// world is a mount: its storage, its clock, and the process that serves it.
type world struct {
	t        *testing.T
	clock    *clock.Manual
	memory   *storetest.Memory
	faulty   *storetest.Faulty
	counting *storetest.Counting
	rand     *repeatable
	keeper   *lifecycle.Keeper
	// issued are all tokens that were handed out.
	issued []string
	// decoded are keys by their stored form, for stored.
	decoded map[string]*keyring.Key
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, clock: clock.NewManual(start), memory: storetest.NewMemory(), rand: newRepeatable(1)}
	w.open()
	w.role("r", func(*role.Role) {})
	t.Cleanup(func() {
		if err := storetest.Scan(w.memory, w.issued...); err != nil {
			t.Errorf("a token was stored in the clear: %v", err)
		}
	})
	return w
}

// open starts a new process on what is stored.
func (w *world) open() {
	w.t.Helper()
	w.faulty = storetest.NewFaulty(w.memory)
	w.counting = storetest.NewCounting(w.faulty)
	s, err := store.Open(w.t.Context(), w.counting, w.clock, w.rand, true)
	if err != nil {
		w.t.Fatal(err)
	}
	tracker := usage.New(w.clock.Now())
	w.keeper = &lifecycle.Keeper{
		Store: s, Clock: w.clock, Rand: w.rand, Usage: tracker, Book: usage.NewBook(tracker, s.UsagePages(), s.FirstUses(), w.clock, hclog.NewNullLogger()), Logger: hclog.NewNullLogger(),
	}
	w.keeper.Book.Recover(w.t.Context())
}

// crash loses the process and starts another one.
func (w *world) crash() {
	w.t.Helper()
	w.memory = w.memory.Clone()
	w.open()
}

// role writes a role whose keys rotate daily, with an overlap of an hour.
func (w *world) role(name string, change func(*role.Role)) {
	w.t.Helper()
	r := role.New(name)
	r.Scopes = []string{"read"}
	r.RotationPeriod, r.OverlapPeriod, r.RollbackWindow = 24*time.Hour, time.Hour, 2*time.Hour
	change(r)
	if err := r.Validate(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.keeper.Store.PutRole(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
}

func byTest() keyring.Cause { return keyring.Cause{Actor: "test"} }

func (w *world) create(spec lifecycle.Spec) *lifecycle.Made {
	w.t.Helper()
	if spec.Role == "" {
		spec.Role = "r"
	}
	made, err := w.keeper.Create(w.t.Context(), spec, byTest())
	if err != nil {
		w.t.Fatal(err)
	}
	w.note(made)
	return made
}

func (w *world) note(made *lifecycle.Made) {
	if made != nil && made.Token != "" {
		w.issued = append(w.issued, made.Token)
	}
}

func (w *world) rotate(id string, wish lifecycle.RotateWish) *lifecycle.Made {
	w.t.Helper()
	made, err := w.keeper.Rotate(w.t.Context(), id, wish, byTest())
	if err != nil {
		w.t.Fatal(err)
	}
	w.note(made)
	return made
}

func (w *world) update(id string, change lifecycle.Change) {
	w.t.Helper()
	if _, _, _, err := w.keeper.Update(w.t.Context(), id, change); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) key(id string) *keyring.Key {
	w.t.Helper()
	k, err := w.keeper.Store.Key(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// verify judges a token as the engine does now.
func (w *world) verify(text string) record.Code {
	w.t.Helper()
	parsed, err := token.Parse(text)
	if err != nil {
		w.t.Fatal(err)
	}
	k := w.key(parsed.KeyID)
	if k == nil {
		return record.CodeNotFound
	}
	limits := keyring.Limits{}
	if k.Deleted.IsZero() {
		r, err := w.keeper.RoleOf(w.t.Context(), k)
		if err != nil {
			w.t.Fatal(err)
		}
		limits = r.Limits()
	}
	return k.Verify(w.keeper.Store.Now(), limits, record.Query{Digest: token.Sum(text)}).Code
}

// tick does what is due, as the periodic job does.
func (w *world) tick() error {
	ctx := w.t.Context()
	minutes, err := w.keeper.Store.DueMinutes(ctx)
	if err != nil {
		return err
	}
	for _, minute := range minutes {
		ids, err := w.keeper.Store.DueIn(ctx, minute)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := w.keeper.Apply(ctx, id, minute, false); err != nil {
				return err
			}
		}
		if err := w.keeper.Store.MinuteDone(ctx, minute); err != nil {
			return err
		}
	}
	return w.keeper.Store.SweepMarkers(ctx)
}

func (w *world) mustTick() {
	w.t.Helper()
	if err := w.tick(); err != nil {
		w.t.Fatal(err)
	}
}

// run lets d pass, with a tick now and at every minute in which something is
// filed.
func (w *world) run(d time.Duration, each func()) {
	w.t.Helper()
	end := w.clock.Now().Add(d)
	w.mustTick()
	for {
		now := w.clock.Now()
		next := end
		for _, path := range w.memory.Paths("due/") {
			var minute int64
			if _, err := fmt.Sscanf(path, "due/%08d/", &minute); err != nil {
				w.t.Fatal(err)
			}
			if at := time.Unix(minute*60, 0); at.After(now) && at.Before(next) {
				next = at
			}
		}
		w.clock.Advance(next.Sub(now))
		w.mustTick()
		if each != nil {
			each()
		}
		if !next.Before(end) {
			return
		}
	}
}

// ids are those of all keys stored, tombstones included.
func (w *world) ids() []string {
	var ids []string
	for _, path := range w.memory.Paths("key/") {
		ids = append(ids, strings.TrimPrefix(path, "key/"))
	}
	return ids
}

// stored reads a key past all caches.
func (w *world) stored(id string) *keyring.Key {
	w.t.Helper()
	entry, err := w.memory.Get(w.t.Context(), "key/"+id)
	if err != nil {
		w.t.Fatal(err)
	}
	if entry == nil {
		return nil
	}
	k := w.decoded[string(entry.Value)]
	if k == nil {
		k = &keyring.Key{}
		if err := json.Unmarshal(entry.Value, k); err != nil {
			w.t.Fatal(err)
		}
		if w.decoded == nil {
			w.decoded = map[string]*keyring.Key{}
		}
		w.decoded[string(entry.Value)] = k
	}
	return k
}

func (w *world) has(path string) bool {
	w.t.Helper()
	entry, err := w.memory.Get(w.t.Context(), path)
	if err != nil {
		w.t.Fatal(err)
	}
	return entry != nil
}

// check proves what must hold of storage at any time, whatever happened.
func (w *world) check() {
	w.t.Helper()
	for _, id := range w.ids() {
		k := w.stored(id)
		if err := w.checkFiled(k); err != nil {
			w.t.Error(err)
		}
		if !k.Deleted.IsZero() {
			continue
		}
		if k.Name != "" {
			if found, err := w.keeper.Store.KeyByName(w.t.Context(), k.Name); err != nil || found == nil || found.ID != id {
				w.t.Errorf("the name of %s leads to %v, %v", k.Label(), found, err)
			}
		}
		if len(w.memory.Paths("member/"+k.Role+"/")) == 0 || !slices.ContainsFunc(w.memory.Paths("member/"+k.Role+"/"), func(p string) bool { return strings.HasSuffix(p, "/"+id) }) {
			w.t.Errorf("%s is not a member of its role", k.Label())
		}
		for _, v := range k.Versions {
			if !v.Imported {
				continue
			}
			if found, err := w.keeper.Store.KeyByImport(w.t.Context(), v.Digest, func() error { return nil }); err != nil || found == nil || found.ID != id {
				w.t.Errorf("the imported token of %s leads to %v, %v", k.Label(), found, err)
			}
		}
	}
}

// checkFiled proves that a key is in the due index where it says it is.
func (w *world) checkFiled(k *keyring.Key) error {
	if k.NextTick == 0 {
		return nil
	}
	if !w.has(fmt.Sprintf("due/%08d/%s", k.NextTick, k.ID)) {
		return fmt.Errorf("%s (%s) is not filed in its minute, %d", k.Label(), k.ID, k.NextTick)
	}
	entry, err := w.memory.Get(w.t.Context(), fmt.Sprintf("dueh/%06d", k.NextTick/60))
	if err != nil {
		return err
	}
	var bits uint64
	if entry != nil {
		if err := json.Unmarshal(entry.Value, &bits); err != nil {
			return err
		}
	}
	if bits&(1<<uint(k.NextTick%60)) == 0 {
		return fmt.Errorf("the minute of %s (%s) is not marked", k.Label(), k.ID)
	}
	return nil
}

// checkServed proves rule 1 for a key: it has an active version, which is
// accepted, and whose token can be read.
func (w *world) checkServed(id string) {
	w.t.Helper()
	k := w.key(id)
	if k == nil || !k.Deleted.IsZero() {
		w.t.Errorf("key %s is gone", id)
		return
	}
	active, ok := k.Active()
	if !ok {
		w.t.Errorf("at %s %s has no active version", w.clock.Now(), k.Label())
		return
	}
	if k.Imported && active.Number == 1 {
		if !active.AcceptedAt(w.keeper.Store.Now()) {
			w.t.Errorf("at %s the imported version of %s is refused", w.clock.Now(), k.Label())
		}
		return
	}
	text, err := w.keeper.Reveal(k, active)
	if err != nil || text == "" {
		w.t.Errorf("the active token of %s cannot be read: %v", k.Label(), err)
		return
	}
	if code := w.verify(text); code != record.CodeValid {
		w.t.Errorf("at %s the active token of %s is refused: %s", w.clock.Now(), k.Label(), code)
	}
}

func (w *world) states(id string) string {
	w.t.Helper()
	k := w.key(id)
	var all []string
	for _, v := range k.Versions {
		all = append(all, fmt.Sprintf("%d %s", v.Number, v.StateAt(k.Now(w.keeper.Store.Now()))))
	}
	return strings.Join(all, ", ")
}

func (w *world) expectStates(id, want string) {
	w.t.Helper()
	if got := w.states(id); got != want {
		w.t.Errorf("versions are %q, want %q", got, want)
	}
}

func events(k *keyring.Key, kind keyring.EventType) int {
	n := 0
	for _, e := range k.History {
		if e.Type == kind {
			n++
		}
	}
	return n
}

// TestBudget: what the design allows each operation, at some thousands of keys.
func TestBudget(t *testing.T) {
	t.Parallel()
	population := 3000
	if !testing.Short() && !raceEnabled {
		population = 100_000
	}
	w := newWorld(t)
	for i := range population {
		w.create(lifecycle.Spec{Name: fmt.Sprintf("key-%06d", i)})
		if i%100 == 0 {
			w.clock.Advance(time.Minute)
		}
	}
	w.issued = w.issued[:100] // enough to look for
	w.create(lifecycle.Spec{Name: "first-import", ImportToken: "imported-0123456789"})
	w.crash()
	if got := w.counting.Total().All(); got > 6 {
		t.Errorf("a start took %d operations", got)
	}
	w.create(lifecycle.Spec{Name: "warm"})
	var made *lifecycle.Made
	for _, c := range []struct {
		what   string
		writes int
		do     func()
	}{
		{"create", 5, func() { made = w.create(lifecycle.Spec{Name: "new"}) }},
		{"import", 6, func() { w.create(lifecycle.Spec{Name: "imported", ImportToken: "another-imported-0123456789"}) }},
		{"rotate", 5, func() { w.rotate(made.Key.ID, lifecycle.RotateWish{}) }},
		{"rotate again", 5, func() { w.rotate(made.Key.ID, lifecycle.RotateWish{RequestID: "x"}) }},
		{"replay", 0, func() { w.rotate(made.Key.ID, lifecycle.RotateWish{RequestID: "x"}) }},
	} {
		w.counting.Reset()
		c.do()
		if got := w.counting.Total().Writes(); got > c.writes {
			t.Errorf("%s took %d writes, and %d are allowed: %v", c.what, got, c.writes, w.counting.Ops())
		}
	}
	w.counting.Reset()
	for range 3 {
		if code := w.verify(w.issued[len(w.issued)-1]); code != record.CodeValid {
			t.Fatal(code)
		}
	}
	if got := w.counting.Total().All(); got != 0 {
		t.Errorf("cached verifications took %v", w.counting.Ops())
	}
	w.mustTick()
	w.clock.Advance(time.Minute)
	w.mustTick()
	w.counting.Reset()
	w.mustTick()
	if got := w.counting.Total().All(); got != 0 {
		t.Errorf("an idle tick took %v", w.counting.Ops())
	}
}

func TestCreateRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(lifecycle.Spec{Name: "a"})
	w.create(lifecycle.Spec{Name: "i", ImportToken: "imported-0123456789"})
	own := w.issued[0]
	for what, c := range map[string]struct {
		spec lifecycle.Spec
		want error
	}{
		"no role":             {lifecycle.Spec{Name: "b", Role: "none"}, lifecycle.ErrNoRole},
		"taken name":          {lifecycle.Spec{Name: "a", Role: "r"}, lifecycle.ErrExists},
		"token of an import":  {lifecycle.Spec{Name: "b", Role: "r", ImportToken: "imported-0123456789"}, lifecycle.ErrImported},
		"token made here":     {lifecycle.Spec{Name: "b", Role: "r", ImportToken: own}, lifecycle.ErrImported},
		"digest of an import": {lifecycle.Spec{Name: "b", Role: "r", ImportDigest: new(token.Sum("imported-0123456789"))}, lifecycle.ErrImported},
	} {
		before := w.memory.Len()
		if _, err := w.keeper.Create(t.Context(), c.spec, byTest()); !errors.Is(err, c.want) || strings.Contains(err.Error(), "imported-") {
			t.Errorf("%s: %v", what, err)
		}
		if w.memory.Len() != before {
			t.Errorf("%s: something was stored", what)
		}
	}
}

// TestALeakedImportCannotComeBack: neither while its key lives nor after.
func TestALeakedImportCannotComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const leaked = "imported-0123456789"
	made := w.create(lifecycle.Spec{Name: "a", ImportToken: leaked})
	if _, _, err := w.keeper.Revoke(t.Context(), made.Key.ID, keyring.RevokeOptions{Version: 1, Compromised: true, Force: true}, false, byTest()); err != nil {
		t.Fatal(err)
	}
	if err := w.keeper.Delete(t.Context(), made.Key.ID, byTest()); err != nil {
		t.Fatal(err)
	}
	w.crash()
	if _, err := w.keeper.Create(t.Context(), lifecycle.Spec{Name: "b", Role: "r", ImportToken: leaked}, byTest()); !errors.Is(err, lifecycle.ErrImported) {
		t.Errorf("Create = %v", err)
	}
	w.create(lifecycle.Spec{Name: "a"}) // the name is free
	w.check()
}
