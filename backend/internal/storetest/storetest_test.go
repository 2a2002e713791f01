// SPDX-License-Identifier: MPL-2.0

package storetest_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

func put(t *testing.T, s logical.Storage, path, value string) {
	t.Helper()
	if err := s.Put(t.Context(), &logical.StorageEntry{Key: path, Value: []byte(value)}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s logical.Storage, path string) string {
	t.Helper()
	entry, err := s.Get(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if entry == nil {
		return "<none>"
	}
	return string(entry.Value)
}

// TestMemoryIsTheSDKs: the same operations give the same answers as those of
// the storage in Vault's SDK.
func TestMemoryIsTheSDKs(t *testing.T) {
	t.Parallel()
	mine, model := storetest.NewMemory(), &logical.InmemStorage{}
	random := rand.New(rand.NewPCG(1, 2))
	paths := []string{"a", "a/b", "a/b/c", "a/b/d", "a/e", "f/g", "h", "h/i/j/k"}
	for range 2000 {
		path := paths[random.IntN(len(paths))]
		if random.IntN(2) == 0 {
			put(t, mine, path, path)
			put(t, model, path, path)
		} else {
			if err := errors.Join(mine.Delete(t.Context(), path), model.Delete(t.Context(), path)); err != nil {
				t.Fatal(err)
			}
		}
		for _, prefix := range []string{"", "a/", "a/b/", "f/", "h/", "h/i/", "x/"} {
			got, err := mine.List(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			want, err := model.List(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("List(%q) = %q, want %q", prefix, got, want)
			}
		}
		for _, path := range paths {
			if got, want := get(t, mine, path), get(t, model, path); got != want {
				t.Fatalf("Get(%q) = %q, want %q", path, got, want)
			}
		}
	}
}

func TestMemoryRefusesWhatVaultRefuses(t *testing.T) {
	t.Parallel()
	m := storetest.NewMemory()
	if err := m.Put(t.Context(), &logical.StorageEntry{Key: "name/a..b"}); err == nil {
		t.Error(`a path with ".." was stored`)
	}
	if _, err := m.List(t.Context(), "name"); err == nil {
		t.Error("a prefix without a slash was listed")
	}
}

func TestCloneIsApart(t *testing.T) {
	t.Parallel()
	m := storetest.NewMemory()
	put(t, m, "a/b", "1")
	put(t, m, "a/c/d", "1")
	clone := m.Clone()
	second := clone.Clone()
	put(t, m, "a/b", "2")
	put(t, clone, "a/c/d", "3")
	if err := second.Delete(t.Context(), "a/b"); err != nil {
		t.Fatal(err)
	}
	for name, check := range map[string]struct {
		m    *storetest.Memory
		b, d string
	}{"original": {m, "2", "1"}, "clone": {clone, "1", "3"}, "second": {second, "<none>", "1"}} {
		if b, d := get(t, check.m, "a/b"), get(t, check.m, "a/c/d"); b != check.b || d != check.d {
			t.Errorf("%s holds %s and %s, want %s and %s", name, b, d, check.b, check.d)
		}
	}
	if m.Len() != 2 || second.Len() != 1 {
		t.Errorf("lengths are %d and %d, want 2 and 1", m.Len(), second.Len())
	}
	if got := m.Paths("a/"); !slices.Equal(got, []string{"a/b", "a/c/d"}) {
		t.Errorf("Paths = %q", got)
	}
}

func TestMemoryIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	m := storetest.NewMemory()
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 200 {
				path := fmt.Sprintf("x/%d/%d", g, i%10)
				put(t, m, path, "v")
				_ = get(t, m.Clone(), path)
				if _, err := m.List(t.Context(), "x/"); err != nil {
					t.Error(err)
				}
				if err := m.Delete(t.Context(), path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if m.Len() != 0 {
		t.Errorf("%d entries are left", m.Len())
	}
}

func TestCounting(t *testing.T) {
	t.Parallel()
	c := storetest.NewCounting(storetest.NewMemory())
	put(t, c, "key/1", "")
	put(t, c, "config", "")
	get(t, c, "key/1")
	if _, err := c.List(t.Context(), "due/1/"); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), "key/1"); err != nil {
		t.Fatal(err)
	}
	for first, want := range map[string]storetest.Counts{"key/": {Get: 1, Put: 1, Delete: 1}, "config": {Put: 1}, "due/": {List: 1}, "x/": {}} {
		if got := c.Under(first); got != want {
			t.Errorf("Under(%q) = %v, want %v", first, got, want)
		}
	}
	if got := c.Total(); got.Writes() != 3 || got.Reads() != 2 || got.All() != 5 {
		t.Errorf("Total = %v", got)
	}
	c.Reset()
	if c.Total().All() != 0 || len(c.Ops()) != 0 {
		t.Error("Reset forgot nothing")
	}
}

func TestFaulty(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault storetest.Fault
		// what the writes a, b, c answer, and which of them are stored.
		fails, stored [3]bool
	}{
		"none":    {storetest.Fault{}, [3]bool{}, [3]bool{true, true, true}},
		"refused": {storetest.Fault{At: 2}, [3]bool{1: true}, [3]bool{true, false, true}},
		"applied": {storetest.Fault{At: 2, Applied: true}, [3]bool{1: true}, [3]bool{true, true, true}},
		"crash":   {storetest.Fault{At: 2, Rest: true}, [3]bool{1: true, 2: true}, [3]bool{0: true}},
		"crash after": {storetest.Fault{At: 2, Applied: true, Rest: true}, [3]bool{1: true, 2: true},
			[3]bool{true, true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := storetest.NewMemory()
			f := storetest.NewFaulty(m)
			var before, after []string
			f.Before(func(op storetest.Op) { before = append(before, op.String()) })
			f.After(func(op storetest.Op) { after = append(after, op.String()) })
			c.fault.WritesOnly = true
			f.Inject(c.fault)
			want := 0
			for i, path := range []string{"a", "b", "c"} {
				if _, err := f.Get(t.Context(), path); err != nil {
					t.Fatalf("a read failed: %v", err)
				}
				err := f.Put(t.Context(), &logical.StorageEntry{Key: path, Value: []byte("1")})
				if errors.Is(err, storetest.ErrInjected) != c.fails[i] {
					t.Errorf("Put(%q) = %v", path, err)
				}
				if stored := get(t, m, path) == "1"; stored != c.stored[i] {
					t.Errorf("%q is stored: %v", path, stored)
				}
				if c.fails[i] {
					want++
				}
			}
			if f.Failed() != want {
				t.Errorf("Failed = %d, want %d", f.Failed(), want)
			}
			if len(before) != 6 || len(after) < 4 || before[1] != "put a" {
				t.Errorf("hooks saw %q and %q", before, after)
			}
		})
	}
}

func TestFaultyReads(t *testing.T) {
	t.Parallel()
	f := storetest.NewFaulty(storetest.NewMemory())
	put(t, f, "a", "1")
	f.Inject(storetest.Fault{At: 1, Applied: true})
	if entry, err := f.Get(t.Context(), "a"); entry != nil || !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("a failed Get answered %v, %v", entry, err)
	}
	f.Heal()
	if got := get(t, f, "a"); got != "1" {
		t.Errorf("after Heal Get answered %q", got)
	}
}

func TestScanFindsEveryForm(t *testing.T) {
	t.Parallel()
	const secret = `live_k3y"<with>&odd`
	quoted, err := json.Marshal(map[string]string{"x": secret})
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{
		"plain": "before " + secret + " after", "json": string(quoted), "hex": "x" + hex.EncodeToString([]byte(secret)),
	}
	for before := range 4 {
		text := []byte("abcd"[:before] + secret + "tail")
		forms[fmt.Sprintf("std after %d", before)] = base64.StdEncoding.EncodeToString(text)
		forms[fmt.Sprintf("url after %d", before)] = base64.URLEncoding.EncodeToString(text)
		forms[fmt.Sprintf("last after %d", before)] = base64.StdEncoding.EncodeToString(text[:before+len(secret)])
	}
	for name, value := range forms {
		m := storetest.NewMemory()
		put(t, m, "some/where", value)
		if storetest.Scan(m, "another secret", secret) == nil {
			t.Errorf("%s: the secret in %q was not found", name, value)
		}
		if err := storetest.Scan(m, "another secret"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := storetest.NewMemory()
	put(t, m, "name/"+hex.EncodeToString([]byte(secret))+"/x", "")
	if storetest.Scan(m, secret) == nil {
		t.Error("the secret in a path was not found")
	}
	if storetest.Scan(m, "short") == nil {
		t.Error("a secret too short to look for was accepted")
	}
}

// TestLateWritesTakeEffectAtRelease: a write that fails late is not there until
// then, and holds what it held when it was made.
func TestLateWritesTakeEffectAtRelease(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	f := storetest.NewFaulty(memory)
	f.Inject(storetest.Fault{At: 1, Rest: true, Late: true, WritesOnly: true, Only: func(op storetest.Op) bool { return op.Path != "b" }})
	entry := &logical.StorageEntry{Key: "a", Value: []byte("1")}
	ctx, cancel := context.WithCancel(t.Context())
	if err := f.Put(ctx, entry); !errors.Is(err, storetest.ErrInjected) {
		t.Fatal(err)
	}
	cancel()
	entry.Value[0] = '2'
	put(t, f, "b", "1")
	if got := get(t, memory, "a") + get(t, memory, "b"); got != "<none>1" {
		t.Errorf("before the release there is %s", got)
	}
	if err := f.Release(); err != nil || get(t, memory, "a") != "1" {
		t.Errorf("after the release there is %s: %v", get(t, memory, "a"), err)
	}
}
