// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

type pointer struct {
	KeyID string `json:"key_id"`
}

// Key returns the key with this id, or nil where there is none. A tombstone
// is returned as it is, with Deleted set. The result is shared: clone it
// before a change.
func (s *Store) Key(ctx context.Context, id string) (*keyring.Key, error) {
	if k, ok := s.keys.get(id); ok {
		return k, nil
	}
	fill := s.keys.reading(id)
	k := &keyring.Key{}
	found, err := s.get(ctx, keyPrefix+id, k)
	if err != nil {
		return nil, fmt.Errorf("load key %q: %w", id, err)
	}
	if !found {
		return nil, nil
	}
	fill(k)
	if s.OnLost != nil && (s.LostFiling(k.NextTick) || s.mayBeMisfiled(k.NextTick)) {
		s.OnLost(id)
	}
	return k, nil
}

// KeyByName returns the living key of this name, or nil.
func (s *Store) KeyByName(ctx context.Context, name string) (*keyring.Key, error) {
	if id, ok := s.names.get(name); ok {
		if k, err := s.namedKey(ctx, id, name); err != nil || k != nil {
			return k, err
		}
	}
	fill := s.names.reading(name)
	var p pointer
	found, err := s.get(ctx, namePrefix+name, &p)
	if err != nil || !found {
		return nil, err
	}
	k, err := s.namedKey(ctx, p.KeyID, name)
	if k != nil {
		fill(p.KeyID)
	}
	return k, err
}

func (s *Store) namedKey(ctx context.Context, id, name string) (*keyring.Key, error) {
	k, err := s.Key(ctx, id)
	if err != nil || k == nil || !k.Deleted.IsZero() || k.Name != name {
		return nil, err
	}
	return k, nil
}

// KeyByImport returns the key, or its tombstone, that an imported token with
// this digest belongs to, or nil. ask is called before storage is read for a
// digest that is not in the cache; its error is returned.
func (s *Store) KeyByImport(ctx context.Context, d token.Digest, ask func() error) (*keyring.Key, error) {
	id, cached := s.imported.get(d)
	if !cached {
		if err := ask(); err != nil {
			return nil, err
		}
		fill := s.imported.reading(d)
		var p pointer
		if _, err := s.get(ctx, s.importedPath(d), &p); err != nil {
			return nil, err
		}
		id = p.KeyID
		fill(id)
	}
	if id == "" {
		return nil, nil
	}
	k, err := s.Key(ctx, id)
	if err != nil || k == nil || !slices.ContainsFunc(k.Versions, func(v keyring.Version) bool { return v.Digest.Equal(d) }) {
		return nil, err
	}
	return k, nil
}

// CreateKey writes a new key with its index entries. The caller holds the
// locks of its role, name, digest and id. Writes: at most a marker, a due
// entry, a member, a name, an imported digest, and the commit.
func (s *Store) CreateKey(ctx context.Context, k *keyring.Key, due time.Time) error {
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if k.Imported {
		if err := s.markImports(ctx); err != nil {
			return err
		}
		d := k.Versions[0].Digest
		write := s.imported.writing(d)
		err := s.putPointer(ctx, s.importedPath(d), k.ID)
		write.done(err)
		if err != nil {
			return err
		}
	}
	if err := s.put(ctx, memberPath(k.Role, k.ID), struct{}{}); err != nil {
		return err
	}
	if k.Name != "" {
		write := s.names.writing(k.Name)
		err := s.putPointer(ctx, namePrefix+k.Name, k.ID)
		write.done(err)
		if err != nil {
			return err
		}
	}
	return s.CommitKey(ctx, nil, k, due)
}

// CommitKey files next in the due index under due (zero for nothing due) and
// writes it in place of prev; once more where that took so long that an overlap
// which begins with it would be cut short. The caller holds the key's lock. After
// an error either state may be stored, and the next load finds out which.
func (s *Store) CommitKey(ctx context.Context, prev, next *keyring.Key, due time.Time) error {
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	filed := int64(0)
	if prev != nil {
		filed = prev.NextTick
	}
	minute, err := s.due.file(ctx, next.ID, due, filed, s.clock.Now())
	if err != nil {
		return err
	}
	next.NextTick = minute
	before, after := prev != nil && prev.RollingOver(), next.RollingOver()
	if after && !before {
		if err := s.put(ctx, rolloverPrefix+next.ID, struct{}{}); err != nil {
			return err
		}
	}
	write := s.keys.writing(next.ID)
	err = s.put(ctx, keyPrefix+next.ID, next)
	if err == nil && next.Stored(prev, s.Now()) {
		// Until it is stored with the overlap that was asked for, prev is answered.
		// It has the time of a write of its own: the change is made already.
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
		err = s.put(again, keyPrefix+next.ID, next)
		cancel()
	}
	if err != nil {
		write.done(err)
		return fmt.Errorf("store %s: %w", next.Label(), err)
	}
	write.stored(next, prev == nil || !prev.SameToVerifiers(next))
	if filed != 0 && filed != minute {
		s.due.unfile(ctx, filed, next.ID)
	}
	if before && !after {
		// A failure leaves an entry whose key says otherwise.
		_ = s.remove(ctx, rolloverPrefix+next.ID)
	}
	s.forgetPruned(ctx, prev, next)
	return nil
}

// Rollovers returns the ids of keys with a rollover under way. Some may be
// over: ask the key. Its cost grows with those, not with all keys.
func (s *Store) Rollovers(ctx context.Context) ([]string, error) { return s.list(ctx, rolloverPrefix) }

// DropRollover removes an entry whose key says otherwise.
func (s *Store) DropRollover(ctx context.Context, id string) error {
	defer s.LockKey(id)()
	if k, err := s.Key(ctx, id); err != nil || k != nil && k.RollingOver() {
		return err
	}
	return s.remove(ctx, rolloverPrefix+id)
}

// forgetPruned removes the index entries of imported versions that are gone.
func (s *Store) forgetPruned(ctx context.Context, prev, next *keyring.Key) {
	if prev == nil {
		return
	}
	for _, v := range prev.Versions {
		if _, kept := next.Version(v.Number); !v.Imported || kept || !next.Deleted.IsZero() {
			continue
		}
		// A failure leaves an entry that leads to a key without the version.
		_ = s.removePointer(ctx, s.importedPath(v.Digest), next.ID)
	}
}

// putPointer makes path lead to the key id.
func (s *Store) putPointer(ctx context.Context, path, id string) error {
	defer lock(s.pointerLocks, path)()
	return s.put(ctx, path, pointer{id})
}

// removePointer removes path if it leads to the key id. A key that has taken
// the path over keeps it, even if that happens at the same moment.
func (s *Store) removePointer(ctx context.Context, path, id string) error {
	defer lock(s.pointerLocks, path)()
	var p pointer
	found, err := s.get(ctx, path, &p)
	if err != nil || !found || p.KeyID != id {
		return err
	}
	return s.remove(ctx, path)
}

// Cleanup lists the index entries of k that a deletion has to remove. The
// digests of compromised versions stay.
func (s *Store) Cleanup(k *keyring.Key) keyring.Cleanup {
	c := keyring.Cleanup{Name: k.Name, Role: k.Role}
	for _, v := range k.Versions {
		if v.Imported && v.State != keyring.StateCompromised {
			c.Imported = append(c.Imported, s.importedPath(v.Digest)[len(importedPrefix):])
		}
	}
	return c
}

// FinishDelete removes what a tombstone lists, and then the tombstone itself
// unless it has compromised versions to remember. It may be repeated. The
// caller holds the lock of the key. A new key that has taken over its name or
// its imported token keeps them.
func (s *Store) FinishDelete(ctx context.Context, tomb *keyring.Key) error {
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if c := tomb.Cleanup; c != nil {
		if c.Name != "" {
			defer s.names.remove(c.Name)
			if err := s.removePointer(ctx, namePrefix+c.Name, tomb.ID); err != nil {
				return err
			}
		}
		if err := s.remove(ctx, memberPath(c.Role, tomb.ID)); err != nil {
			return err
		}
		// What is cached of these leads to a key that is gone, which is the
		// same answer; an import of the same token forgets it.
		for _, hmac := range c.Imported {
			if err := s.removePointer(ctx, importedPrefix+hmac, tomb.ID); err != nil {
				return err
			}
		}
	}
	if len(tomb.Versions) > 0 {
		next := tomb.Clone()
		next.Cleanup, next.CustomMetadata = nil, nil
		return s.CommitKey(ctx, tomb, next, time.Time{})
	}
	write := s.keys.writing(tomb.ID)
	err = s.remove(ctx, keyPrefix+tomb.ID)
	write.done(err)
	if err != nil {
		return err
	}
	if tomb.NextTick != 0 {
		s.due.unfile(ctx, tomb.NextTick, tomb.ID)
	}
	return nil
}

// ForgetName removes the index entry of a name that no key answers to, which
// a creation that failed has left. The caller holds the lock of the name.
func (s *Store) ForgetName(ctx context.Context, name string) error {
	var p pointer
	found, err := s.get(ctx, namePrefix+name, &p)
	if err != nil || !found {
		return err
	}
	return s.removePointer(ctx, namePrefix+name, p.KeyID)
}

// Names returns the names of keys in order. It walks all names.
func (s *Store) Names(ctx context.Context) ([]string, error) { return s.list(ctx, namePrefix) }

// Members returns the ids of keys in one shard of a role. Some may be gone.
func (s *Store) Members(ctx context.Context, roleName string, shard int) ([]string, error) {
	return s.list(ctx, memberShardPrefix(roleName, shard))
}

// MemberShards returns which shards of a role hold something.
func (s *Store) MemberShards(ctx context.Context, roleName string) ([]int, error) {
	names, err := s.list(ctx, memberPrefix+roleName+"/")
	if err != nil {
		return nil, err
	}
	var shards []int
	for _, n := range names {
		var shard int
		if _, err := fmt.Sscanf(n, "%02x/", &shard); err == nil {
			shards = append(shards, shard)
		}
	}
	return shards, nil
}

// DropMember removes a member entry whose key does not exist.
func (s *Store) DropMember(ctx context.Context, roleName, id string) error {
	return s.remove(ctx, memberPath(roleName, id))
}

func (s *Store) list(ctx context.Context, prefix string) ([]string, error) {
	names, err := s.storage.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", kindOf(prefix), err)
	}
	slices.Sort(names)
	return names, nil
}

// CachedKey returns the key with this id if it is in the cache, else nil. It
// touches no storage.
func (s *Store) CachedKey(id string) *keyring.Key {
	k, _ := s.keys.peek(id)
	return k
}
