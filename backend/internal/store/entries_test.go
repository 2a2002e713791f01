// SPDX-License-Identifier: MPL-2.0

package store_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// addField adds a field to the JSON object at path.
func (w *world) addField(path, name, value string) {
	w.t.Helper()
	w.raw(path, strings.Replace(w.stored(path), "{", fmt.Sprintf("{%q:%s,", name, value), 1))
}

// TestUnknownFieldsSurviveARewrite: an older plugin that rewrites what a newer
// one wrote loses nothing.
func TestUnknownFieldsSurviveARewrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(5))
	if err := w.store.PutRole(t.Context(), role.New("r")); err != nil {
		t.Fatal(err)
	}
	if err := w.store.UpdateConfig(t.Context(), func(*store.Config) error { return nil }); err != nil {
		t.Fatal(err)
	}
	paths := []string{"mount/state", "config", "role/r", "key/a"}
	for _, path := range paths {
		w.addField(path, "from_the_future", `{"x":[1,"two"]}`)
	}
	w.raw("key/a", strings.Replace(w.stored("key/a"), `"versions":[{`, `"versions":[{"also_new":7,`, 1))
	w.restart()

	// A rewrite of each.
	w.commit(w.key("a"), minutes(90))
	r, err := w.store.Role(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	r = r.Clone()
	r.MaxVersions++
	if err := w.store.PutRole(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := w.store.UpdateConfig(t.Context(), func(c *store.Config) error { c.LeakRate = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	k := testKey("imported")
	k.Imported, k.Versions[0].Imported = true, true
	if err := w.store.CreateKey(t.Context(), k, minutes(5)); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if got := w.stored(path); !strings.Contains(got, `"from_the_future":{"x":[1,"two"]}`) {
			t.Errorf("%s lost a field: %s", path, got)
		}
	}
	if got := w.stored("key/a"); !strings.Contains(got, `"also_new":7`) {
		t.Errorf("a version lost a field: %s", got)
	}
	if !strings.Contains(w.stored("mount/state"), `"has_imports":true`) {
		t.Error("the mount was not rewritten")
	}
}

func TestANewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(5))
	if err := w.store.PutRole(t.Context(), role.New("r")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"key/a", "role/r", "mount/state"} {
		// The rest of a newer entry may look like anything.
		w.raw(path, `{"schema":2,"versions":"none","data_key":{},"name":[]}`)
	}
	w.memory = w.memory.Clone()
	w.store.Invalidate("key/a")
	w.store.Invalidate("role/r")
	_, keyErr := w.store.Key(t.Context(), "a")
	_, roleErr := w.store.Role(t.Context(), "r")
	_, openErr := store.Open(t.Context(), w.memory, w.clock, rand.Reader, true)
	for what, err := range map[string]error{"key": keyErr, "role": roleErr, "mount": openErr} {
		if !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "schema 2") || !strings.Contains(err.Error(), "newer plugin") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if keyErr != nil && !strings.Contains(keyErr.Error(), `key "a"`) || roleErr != nil && !strings.Contains(roleErr.Error(), `role "r"`) {
		t.Errorf("the errors do not say which: %v; %v", keyErr, roleErr)
	}
	if before := w.stored("mount/state"); !strings.Contains(before, `"schema":2`) {
		t.Error("the newer mount was overwritten")
	}
}

// TestDamageIsReportedWithoutItsBytes damages every entry in every place: the
// error, if there is one, shows nothing of what is stored.
func TestDamageIsReportedWithoutItsBytes(t *testing.T) {
	t.Parallel()
	const marker = "SeCrEtByTeS"
	w := newWorld(t)
	k := testKey("a")
	k.Imported, k.Versions[0].Imported = true, true
	k.Lease = &keyring.Lease{EntityID: "e"}
	k.Versions[0].Sealed = []byte("sealed")
	k.Versions[0].ExpireTime = minutes(500)
	k.CustomMetadata = map[string]string{"m": "v"}
	k.Requests = []keyring.Request{{ID: "i", Parameters: "p", Version: 1, Time: start}}
	k.History = []keyring.Event{{Time: start, Type: keyring.EventKeyCreated}}
	if err := w.store.CreateKey(t.Context(), k, minutes(5)); err != nil {
		t.Fatal(err)
	}
	if err := w.store.PutRole(t.Context(), role.New("r")); err != nil {
		t.Fatal(err)
	}
	if err := w.store.UpdateConfig(t.Context(), func(*store.Config) error { return nil }); err != nil {
		t.Fatal(err)
	}
	reads := map[string]func(s *store.Store) error{
		"key/a":       func(s *store.Store) error { _, err := s.Key(t.Context(), "a"); return err },
		"name/name-a": func(s *store.Store) error { _, err := s.KeyByName(t.Context(), "name-a"); return err },
		"role/r":      func(s *store.Store) error { _, err := s.Role(t.Context(), "r"); return err },
		"config":      func(s *store.Store) error { _, err := s.Config(t.Context()); return err },
		"mount/state": func(s *store.Store) error { _, err := s.HasImports(t.Context()); return err },
	}
	for _, path := range w.memory.Paths("imported/") {
		reads[path] = func(s *store.Store) error {
			_, err := s.KeyByImport(t.Context(), token.Sum("a"), func() error { return nil })
			return err
		}
	}
	failed := 0
	for path, read := range reads {
		intact := w.stored(path)
		for _, damaged := range damages(t, intact, marker) {
			w.raw(path, damaged)
			w.store.Invalidate(path)
			err := read(w.store)
			if err == nil {
				continue
			}
			failed++
			if !errors.Is(err, store.ErrDamaged) {
				t.Errorf("%s: %v is not ErrDamaged", path, err)
			}
			if strings.Contains(err.Error(), marker) || strings.Contains(err.Error(), marker[:1]+"'") {
				t.Errorf("%s: the error shows what is stored: %v", path, err)
			}
		}
		w.raw(path, intact)
		w.store.Invalidate(path)
		if err := read(w.store); err != nil {
			t.Errorf("%s, intact: %v", path, err)
		}
	}
	if failed < 100 {
		t.Errorf("only %d damages were seen", failed)
	}
}

// damages returns what becomes of a JSON object if it is truncated, if a byte
// of the marker stands in it anywhere, or if a value is replaced by one of
// another type.
func damages(t *testing.T, intact, marker string) []string {
	t.Helper()
	all := []string{"", "null", "[]", `"` + marker + `"`, marker, "{" + marker, "\x00" + marker}
	for i := 1; i < len(intact); i += 3 {
		all = append(all, intact[:i], intact[:i]+marker, intact[:i]+marker+intact[i:])
	}
	var root any
	if err := json.Unmarshal([]byte(intact), &root); err != nil {
		t.Fatal(err)
	}
	replaced := func() {
		text, err := json.Marshal(root)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(text))
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, old := range v {
				for _, odd := range []any{marker, 1234567890123, true, []any{marker}, map[string]any{marker: marker}, nil} {
					v[name] = odd
					replaced()
				}
				v[name] = old
				walk(old)
			}
		case []any:
			for i, old := range v {
				v[i] = marker
				replaced()
				v[i] = old
				walk(old)
			}
		}
	}
	walk(root)
	return all
}

func TestADamagedMountIsNotOpened(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, damage := range []string{"", "{}", "null", `{"schema":1}`, `{"schema":1,"data_key":"AAAA","index_key":"AAAA"}`,
		strings.Replace(w.stored("mount/state"), `"index_key":"`, `"index_key":"AAAA`, 1), strings.Replace(w.stored("mount/state"), "index_key", "x", 1)} {
		w.raw("mount/state", damage)
		if _, err := store.Open(t.Context(), w.memory, w.clock, rand.Reader, true); err == nil {
			t.Errorf("a mount with %q was opened", damage)
		}
	}
}

// TestStorageErrorsAreNotDamage: they are worth another try.
func TestStorageErrorsAreNotDamage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create("a", minutes(5))
	w.restart()
	w.faulty.Inject(storetest.Fault{At: 1, Rest: true})
	for what, read := range map[string]func(context.Context) error{
		"key":    func(ctx context.Context) error { _, err := w.store.Key(ctx, "a"); return err },
		"name":   func(ctx context.Context) error { _, err := w.store.KeyByName(ctx, "name-a"); return err },
		"role":   func(ctx context.Context) error { _, err := w.store.Role(ctx, "r"); return err },
		"config": func(ctx context.Context) error { _, err := w.store.Config(ctx); return err },
		"import": func(ctx context.Context) error {
			_, err := w.store.KeyByImport(ctx, token.Sum("x"), func() error { return nil })
			return err
		},
		"names":   func(ctx context.Context) error { _, err := w.store.Names(ctx); return err },
		"members": func(ctx context.Context) error { _, err := w.store.Members(ctx, "r", 0); return err },
		"shards":  func(ctx context.Context) error { _, err := w.store.MemberShards(ctx, "r"); return err },
	} {
		if err := read(t.Context()); !errors.Is(err, storetest.ErrInjected) || errors.Is(err, store.ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A failed read is not remembered as an absence.
	w.faulty.Heal()
	if w.key("a") == nil {
		t.Error("the key is gone")
	}
}

func TestSealedTokensOpenOnlyWhereTheyBelong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "tm_live_the-whole-secret-of-a-key"
	sealed, err := w.store.Seal("a", 1, secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.store.Unseal("a", 1, sealed); err != nil || got != secret {
		t.Fatalf("Unseal = %q, %v", got, err)
	}
	again, err := w.store.Seal("a", 1, secret)
	if err != nil || string(again) == string(sealed) {
		t.Errorf("sealing twice gives the same bytes (%v)", err)
	}
	flipped := append([]byte(nil), sealed...)
	flipped[len(flipped)-1] ^= 1
	for what, c := range map[string]struct {
		id      string
		version int
		sealed  []byte
	}{
		"another key": {"b", 1, sealed}, "another version": {"a", 2, sealed}, "a shifted border": {"a/1", 1, sealed}, "eleven": {"a", 11, sealed},
		"flipped": {"a", 1, flipped}, "short": {"a", 1, sealed[:5]}, "empty": {"a", 1, nil}, "truncated": {"a", 1, sealed[:len(sealed)-1]},
	} {
		if got, err := w.store.Unseal(c.id, c.version, c.sealed); err == nil || got != "" {
			t.Errorf("%s: Unseal = %q, %v", what, got, err)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error holds the secret", what)
		}
	}
	// A new process has the same key, another mount has not.
	w.restart()
	if got, err := w.store.Unseal("a", 1, sealed); err != nil || got != secret {
		t.Errorf("after a restart Unseal = %q, %v", got, err)
	}
	if got, err := newWorld(t).store.Unseal("a", 1, sealed); err == nil {
		t.Errorf("another mount opened it: %q", got)
	}
}

func TestNoSecretIsStoredInTheClear(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	secrets := []string{"tm_live_the-whole-secret-of-a-key", "elsewhere-made-secret-0123456789"}
	digests := []string{}
	for i, secret := range secrets {
		k := testKey(fmt.Sprintf("k%d", i))
		sealed, err := w.store.Seal(k.ID, 1, secret)
		if err != nil {
			t.Fatal(err)
		}
		k.Versions[0].Digest, k.Versions[0].Sealed = token.Sum(secret), sealed
		k.Imported, k.Versions[0].Imported = i == 1, i == 1
		if err := w.store.CreateKey(t.Context(), k, minutes(5)); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, token.Sum(secret).Hex())
	}
	if err := storetest.Scan(w.memory, secrets...); err != nil {
		t.Error(err)
	}
	// Storage paths are not encrypted, and an imported token may be guessable:
	// its path is an HMAC under a key of the mount, never its digest.
	paths := w.memory.Paths("imported/")
	if len(paths) != 1 || len(paths[0]) != len("imported/")+64 {
		t.Fatalf("imported paths are %q", paths)
	}
	for _, path := range w.memory.Paths("") {
		for i, d := range digests {
			if strings.Contains(path, d) {
				t.Errorf("the digest of secret %d stands in the path %q", i+1, path)
			}
		}
	}
	other := newWorld(t)
	k := testKey("k1")
	k.Imported, k.Versions[0].Imported, k.Versions[0].Digest = true, true, token.Sum(secrets[1])
	if err := other.store.CreateKey(t.Context(), k, minutes(5)); err != nil {
		t.Fatal(err)
	}
	if got := other.memory.Paths("imported/")[0]; got == paths[0] {
		t.Error("two mounts have the same path for the same token")
	}
	if got := store.SealWrapped(); !slices.Equal(got, []string{"mount/", "webhook/"}) {
		t.Errorf("the mount's keys are not seal-wrapped: %q", got)
	}
}

func TestLookupOfAnImportAsksOnlyOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := token.Sum("never-imported")
	refused := errors.New("too many misses")
	if _, err := w.store.KeyByImport(t.Context(), d, func() error { return refused }); !errors.Is(err, refused) {
		t.Errorf("KeyByImport = %v", err)
	}
	asked := 0
	w.counting.Reset()
	for range 3 {
		if k, err := w.store.KeyByImport(t.Context(), d, func() error { asked++; return nil }); k != nil || err != nil {
			t.Errorf("KeyByImport = %v, %v", k, err)
		}
	}
	if asked != 1 || w.counting.Total().Get != 1 {
		t.Errorf("asked %d times for %v", asked, w.counting.Total())
	}
}

// compromise marks version 1 of a key as leaked.
func (w *world) compromise(k *keyring.Key) *keyring.Key {
	w.t.Helper()
	next, err := k.Revoke(keyring.Cause{Now: w.clock.Now()}, role.New("r").Policy(), keyring.RevokeOptions{Version: 1, Compromised: true, Force: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.CommitKey(w.t.Context(), k, next, time.Time{}); err != nil {
		w.t.Fatal(err)
	}
	return next
}

func (w *world) remove(k *keyring.Key) {
	w.t.Helper()
	tomb := k.EndAll(keyring.Cause{Now: w.clock.Now()}, w.store.Cleanup(k))
	if err := w.store.CommitKey(w.t.Context(), k, tomb, w.clock.Now()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.FinishDelete(w.t.Context(), tomb); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) imported(id, secret string) *keyring.Key {
	w.t.Helper()
	k := testKey(id)
	k.Imported, k.Versions[0].Imported, k.Versions[0].Digest = true, true, token.Sum(secret)
	if err := w.store.CreateKey(w.t.Context(), k, minutes(5)); err != nil {
		w.t.Fatal(err)
	}
	return k
}

func (w *world) byImport(secret string) *keyring.Key {
	w.t.Helper()
	k, err := w.store.KeyByImport(w.t.Context(), token.Sum(secret), func() error { return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

func TestADeletedKeyLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.memory.Paths("")
	w.remove(w.imported("a", "imported-0123456789"))
	k, err := w.store.KeyByName(t.Context(), "name-a")
	if k != nil || err != nil || w.key("a") != nil || w.byImport("imported-0123456789") != nil {
		t.Errorf("something is left: %v, %v", k, err)
	}
	w.clock.Advance(2 * time.Hour)
	w.tick()
	if after := w.memory.Paths(""); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("stored are %q, want %q", after, before)
	}
}

func TestATombstoneRemembersWhatLeaked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const leaked = "imported-and-leaked"
	w.remove(w.compromise(w.imported("a", leaked)))
	w.restart()
	tomb := w.byImport(leaked)
	if tomb == nil || tomb.Deleted.IsZero() || len(tomb.Versions) != 1 || tomb.Versions[0].State != keyring.StateCompromised {
		t.Fatalf("the tombstone is %+v", tomb)
	}
	if tomb.Cleanup != nil || tomb.NextTick != 0 {
		t.Errorf("the tombstone is not finished: %+v, filed at %d", tomb.Cleanup, tomb.NextTick)
	}
	if k, err := w.store.KeyByName(t.Context(), "name-a"); k != nil || err != nil {
		t.Errorf("its name is still taken: %v, %v", k, err)
	}
	if ids := w.memory.Paths("member/"); len(ids) != 0 {
		t.Errorf("it is still a member: %q", ids)
	}
}

// TestAnUnfinishedDeletionTakesNothingFromASuccessor: a new key may have the
// name and the token of one whose deletion is still to be finished.
func TestAnUnfinishedDeletionTakesNothingFromASuccessor(t *testing.T) {
	t.Parallel()
	const secret = "imported-0123456789"
	w := newWorld(t)
	old := w.imported("old", secret)
	old = w.commit(old, minutes(5))
	tomb := old.EndAll(keyring.Cause{Now: start}, w.store.Cleanup(old))
	if err := w.store.CommitKey(t.Context(), old, tomb, start); err != nil {
		t.Fatal(err)
	}
	heir := testKey("heir")
	heir.Name, heir.Imported, heir.Versions[0].Imported, heir.Versions[0].Digest = old.Name, true, true, token.Sum(secret)
	// The heir is made while the deletion goes on: right after it has read
	// whose the entry is.
	for _, path := range []string{"name/" + old.Name, w.memory.Paths("imported/")[0]} {
		w := &world{t: t, clock: clock.NewManual(start), memory: w.memory.Clone()}
		w.open()
		reader := newGate()
		w.faulty.After(reader.hold(storetest.Op{Kind: storetest.Get, Path: path}))
		finished := make(chan error)
		go func() { finished <- w.store.FinishDelete(t.Context(), tomb) }()
		<-reader.reached
		created := make(chan error)
		go func() { created <- w.store.CreateKey(t.Context(), heir.Clone(), minutes(5)) }()
		for range 10_000 {
			runtime.Gosched() // it gets as far as it can
		}
		close(reader.open)
		if err := errors.Join(<-finished, <-created); err != nil {
			t.Fatal(err)
		}
		w.restart()
		if k, err := w.store.KeyByName(t.Context(), old.Name); err != nil || k == nil || k.ID != "heir" {
			t.Errorf("the heir lost its name: %v, %v", k, err)
		}
		if k := w.byImport(secret); k == nil || k.ID != "heir" {
			t.Errorf("the heir lost its token: %v", k)
		}
	}
	// And where the heir came first.
	if err := w.store.CreateKey(t.Context(), heir.Clone(), minutes(5)); err != nil {
		t.Fatal(err)
	}
	if err := w.store.FinishDelete(t.Context(), tomb); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if k, err := w.store.KeyByName(t.Context(), old.Name); err != nil || k == nil || k.ID != "heir" || w.byImport(secret) == nil {
		t.Errorf("the heir lost something: %v, %v", k, err)
	}
}

// TestAPrunedImportTakesNothingFromASuccessor: a key forgets a version that it
// was given from outside, and another key has taken the token over.
func TestAPrunedImportTakesNothingFromASuccessor(t *testing.T) {
	t.Parallel()
	const secret = "imported-0123456789"
	w := newWorld(t)
	old := w.imported("old", secret)
	next := old.Clone()
	next.Versions = []keyring.Version{{Number: 2, State: keyring.StateActive, Digest: token.Sum("2"), CreatedTime: start, ActivatedTime: start}}
	heir := newGate()
	w.faulty.After(heir.hold(storetest.Op{Kind: storetest.Put, Path: "key/old"}))
	done := make(chan error)
	go func() { done <- w.store.CommitKey(t.Context(), old, next, minutes(5)) }()
	<-heir.reached
	k := testKey("heir")
	k.Imported, k.Versions[0].Imported, k.Versions[0].Digest = true, true, token.Sum(secret)
	if err := w.store.CreateKey(t.Context(), k, minutes(5)); err != nil {
		t.Fatal(err)
	}
	close(heir.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.restart()
	if got := w.byImport(secret); got == nil || got.ID != "heir" {
		t.Errorf("the heir lost its token: %v", got)
	}
}

func TestAPrunedImportIsForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.imported("old", "imported-0123456789")
	next := old.Clone()
	next.Versions = []keyring.Version{{Number: 2, State: keyring.StateActive, Digest: token.Sum("2"), CreatedTime: start, ActivatedTime: start}}
	if err := w.store.CommitKey(t.Context(), old, next, minutes(5)); err != nil {
		t.Fatal(err)
	}
	if got := w.memory.Paths("imported/"); len(got) != 0 || w.byImport("imported-0123456789") != nil {
		t.Errorf("left are %q", got)
	}
}

// TestStaleIndexEntriesCountForNothing: a name, a member or a token that leads
// to a key that is not there, or says otherwise.
func TestStaleIndexEntriesCountForNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("a", minutes(5))
	w.raw("name/other", `{"key_id":"a"}`)
	w.raw("name/gone", `{"key_id":"nobody"}`)
	for _, name := range []string{"other", "gone", "never"} {
		if got, err := w.store.KeyByName(t.Context(), name); got != nil || err != nil {
			t.Errorf("KeyByName(%q) = %v, %v", name, got, err)
		}
	}
	w.imported("i", "imported-0123456789")
	w.raw(w.memory.Paths("imported/")[0], `{"key_id":"a"}`)
	w.restart()
	if got := w.byImport("imported-0123456789"); got != nil {
		t.Errorf("KeyByImport = %v", got)
	}
	if k.ID != "a" {
		t.Error("the key changed")
	}
}

func TestMembersAreFoundByShard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := map[string]bool{}
	for i := range 400 {
		id := fmt.Sprintf("k%d", i)
		w.create(id, time.Time{})
		want[id] = true
	}
	shards, err := w.store.MemberShards(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	for _, shard := range shards {
		ids, err := w.store.Members(t.Context(), "r", shard)
		if err != nil || len(ids) == 0 {
			t.Fatalf("Members = %q, %v", ids, err)
		}
		for _, id := range ids {
			if !want[id] {
				t.Errorf("%q is there twice, or not a member", id)
			}
			delete(want, id)
		}
	}
	if len(want) != 0 {
		t.Errorf("%d members are in no shard", len(want))
	}
	if shards, err := w.store.MemberShards(t.Context(), "none"); err != nil || len(shards) != 0 {
		t.Errorf("MemberShards of an empty role = %v, %v", shards, err)
	}
	if err := w.store.DropMember(t.Context(), "r", "k0"); err != nil {
		t.Fatal(err)
	}
	if got := len(w.memory.Paths("member/r/")); got != 399 {
		t.Errorf("%d members are left", got)
	}
	names, err := w.store.Names(t.Context())
	if err != nil || len(names) != 400 {
		t.Errorf("Names gave %d, %v", len(names), err)
	}
}
