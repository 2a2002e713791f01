// SPDX-License-Identifier: MPL-2.0

package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// late fails every write below prefix, and lets it take effect at Release.
func (w *world) late(prefix string) {
	w.faulty.Inject(storetest.Fault{At: 1, Rest: true, Late: true, WritesOnly: true,
		Only: func(op storetest.Op) bool { return strings.HasPrefix(op.Path, prefix) }})
}

// TestAFailedWriteThatLandsLaterIsSeen: a write was sent, its caller got an
// error, somebody read, and then the write arrived. What is answered from then
// on is what storage holds, at once, and it is kept again after a while.
func TestAFailedWriteThatLandsLaterIsSeen(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]struct {
		prefix string
		write  func(w *world) error
		seen   func(w *world) bool
	}{
		"key": {"key/", func(w *world) error {
			k, err := w.store.Key(w.t.Context(), "k")
			if err != nil {
				return err
			}
			next := k.Clone()
			next.Disabled = true
			return w.store.CommitKey(w.t.Context(), k, next, time.Time{})
		}, func(w *world) bool {
			k, err := w.store.Key(w.t.Context(), "k")
			return err == nil && k != nil && k.Disabled
		}},
		"role": {"role/", func(w *world) error {
			r := role.New("r")
			r.Prefix = "other"
			return w.store.PutRole(w.t.Context(), r)
		}, func(w *world) bool {
			r, err := w.store.Role(w.t.Context(), "r")
			return err == nil && r != nil && r.Prefix == "other"
		}},
		"deleted role": {"role/", func(w *world) error {
			return w.store.DeleteRole(w.t.Context(), "r")
		}, func(w *world) bool {
			r, err := w.store.Role(w.t.Context(), "r")
			return err == nil && r == nil
		}},
		"config": {"config", func(w *world) error {
			return w.store.UpdateConfig(w.t.Context(), func(c *store.Config) error { c.LeakRate = 7; return nil })
		}, func(w *world) bool {
			c, err := w.store.Config(w.t.Context())
			return err == nil && c.LeakRate == 7
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if err := w.store.PutRole(t.Context(), role.New("r")); err != nil {
				t.Fatal(err)
			}
			w.create("k", time.Time{})
			w.late(kind.prefix)
			if err := kind.write(w); !errors.Is(err, storetest.ErrInjected) {
				t.Fatalf("the write answers %v", err)
			}
			w.faulty.Heal()
			if kind.seen(w) {
				t.Fatal("the write took effect already")
			}
			w.clock.Advance(59 * time.Second)
			kind.seen(w) // nor does a later read before the end of the doubt
			if err := w.faulty.Release(); err != nil {
				t.Fatal(err)
			}
			if !kind.seen(w) {
				t.Fatal("after the write arrived, what was there before is still answered")
			}
			w.clock.Advance(2 * time.Second)
			kind.seen(w)
			w.counting.Reset()
			if !kind.seen(w) || name != "deleted role" && w.counting.Total().All() != 0 {
				t.Errorf("once the doubt is over a read costs %s", w.counting.Total())
			}
		})
	}
}

// TestASuccessfulWriteEndsTheDoubt: the entry is kept again at once.
func TestASuccessfulWriteEndsTheDoubt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := w.create("k", time.Time{})
	w.late("key/")
	if err := w.store.CommitKey(t.Context(), k, k.Clone(), time.Time{}); err == nil {
		t.Fatal("the write succeeded")
	}
	w.faulty.Heal()
	w.commit(k, time.Time{})
	w.counting.Reset()
	if _, err := w.store.Key(t.Context(), "k"); err != nil || w.counting.Total().All() != 0 {
		t.Errorf("a read after the next write costs %s: %v", w.counting.Total(), err)
	}
}

// TestACallerWhoLeavesDoesNotCutItsWrites: whatever write of a transition is
// under way when the caller's context ends, it and the rest are made.
func TestACallerWhoLeavesDoesNotCutItsWrites(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(ctx context.Context, w *world) error{
		"create": func(ctx context.Context, w *world) error {
			return w.store.CreateKey(ctx, testKey("new"), start.Add(2*time.Hour))
		},
		"commit": func(ctx context.Context, w *world) error {
			k, err := w.store.Key(context.WithoutCancel(ctx), "k")
			if err != nil {
				return err
			}
			return w.store.CommitKey(ctx, k, k.Clone(), start.Add(3*time.Hour))
		},
		"delete": func(ctx context.Context, w *world) error {
			k := testKey("k")
			tomb := k.EndAll(keyring.Cause{Now: start}, w.store.Cleanup(k))
			return w.store.FinishDelete(ctx, tomb)
		},
		"role":   func(ctx context.Context, w *world) error { return w.store.PutRole(ctx, role.New("r")) },
		"finish": func(ctx context.Context, w *world) error { return w.store.FinishWork(ctx, "job", 1) },
		"config": func(ctx context.Context, w *world) error {
			return w.store.UpdateConfig(ctx, func(*store.Config) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.create("k", start.Add(time.Hour))
			ctx, cancel := context.WithCancel(t.Context())
			w.faulty.Before(func(op storetest.Op) {
				if op.Kind.Write() {
					cancel()
				}
			})
			if err := do(ctx, w); err != nil {
				t.Errorf("a caller who left in the middle gets %v", err)
			}
			w.counting.Reset()
			if err := do(ctx, w); !errors.Is(err, context.Canceled) || w.counting.Total().Writes() != 0 {
				t.Errorf("for a caller who is gone already %s are made: %v", w.counting.Total(), err)
			}
		})
	}
}
