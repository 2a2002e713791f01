// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/helper/locksutil"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/feed"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// Limits of the caches of one mount. A fresh key takes about 1.4 KB, one with
// ten versions and a full history 28 KB (see BenchmarkLoadKey), so 128 MB hold
// 80,000 of the former or 4,700 of the latter; a further one costs its
// verification a read of storage and a millisecond or two. The others are counted in
// entries: a name or an imported token takes about 200 bytes, a role 1 KB.
const (
	keyCacheBytes     = 128 << 20
	nameCacheSize     = 65536
	roleCacheSize     = 4096
	importedCacheSize = 131072
)

// keyBytes is about what a key takes in memory.
func keyBytes(k *keyring.Key) int {
	n := 100 + 1000*len(k.Versions) + 180*len(k.History) + 150*len(k.Requests) + 40*len(k.BoundCIDRs)
	if k.Scopes != nil {
		n += scopeBytes(*k.Scopes)
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		n += len(v.Reason) + scopeBytes(v.OverlapScopes) + scopeBytes(v.PlannedScopes)
	}
	for i := range k.History {
		n += len(k.History[i].Reason) + len(k.History[i].Detail)
	}
	for name, value := range k.CustomMetadata {
		n += 60 + len(name) + len(value)
	}
	return n
}

func scopeBytes(scopes []string) int {
	n := 0
	for _, s := range scopes {
		n += 16 + len(s)
	}
	return n
}

// ErrReadOnly says that this node may not write and that the mount has not
// been set up by one that may.
var ErrReadOnly = errors.New("the mount has not been initialized yet and this node cannot write")

// ErrDamaged says that an entry was read but cannot be understood: it is not
// JSON, or was written by a newer plugin. Trying again does not help.
var ErrDamaged = errors.New("the stored entry is not readable")

// Store reads and writes the entries of one mount. It is safe for concurrent
// use; transitions of one key must hold its lock.
type Store struct {
	storage logical.Storage
	clock   clock.Clock

	mountMu sync.RWMutex
	mount   mountState
	// box and indexKey never change once the mount is open.
	box      *box
	indexKey []byte

	keys  *cache[string, *keyring.Key]
	names *cache[string, string]
	roles *cache[string, *role.Role]
	// imported leads from a digest to a key id, or to "" where no imported
	// token has that digest.
	imported *cache[token.Digest, string]

	configMu sync.Mutex
	config   *Config
	// configDoubt is until when a failed write of it may still take effect.
	configDoubt time.Duration

	// feed tells what changed; the caches of keys and roles publish there.
	feed *feed.Feed

	due *dueIndex
	// OnLost, where set before first use, is told of keys that were loaded and
	// whose entry in the due index is gone, or is for a day so far ahead that
	// what is due has to be compared with it. It must not block or lock a key.
	OnLost func(id string)

	keyLocks    []*locksutil.LockEntry
	nameLocks   []*locksutil.LockEntry
	digestLocks []*locksutil.LockEntry
	roleLocks   []*locksutil.LockEntry
	// pointerLocks keep the removal of an index entry from removing what a
	// new key has just put there. No other lock is taken under them.
	pointerLocks []*locksutil.LockEntry
}

// Open reads what a mount needs before its first request: the mount's own
// entry, which it makes where there is none, and the list of hours in which
// something is due. Its cost does not depend on the number of keys.
func Open(ctx context.Context, storage logical.Storage, c clock.Clock, rand io.Reader, writable bool) (*Store, error) {
	s := &Store{
		storage:     storage,
		clock:       c,
		keyLocks:    locksutil.CreateLocks(),
		nameLocks:   locksutil.CreateLocks(),
		digestLocks: locksutil.CreateLocks(),
		roleLocks:   locksutil.CreateLocks(),

		pointerLocks: locksutil.CreateLocks(),
	}
	s.keys = newCache[string](keyCacheBytes, keyBytes, c.Elapsed)
	s.names = newCache[string](nameCacheSize, one[string], c.Elapsed)
	s.roles = newCache[string](roleCacheSize, one[*role.Role], c.Elapsed)
	s.imported = newCache[token.Digest](importedCacheSize, one[string], c.Elapsed)
	var err error
	if s.feed, err = feed.New(rand, c.Elapsed, settle); err != nil {
		return nil, err
	}
	s.keys.tell, s.roles.tell = s.feed.Keys(), s.feed.Roles()
	if err := s.openMount(ctx, rand, writable); err != nil {
		return nil, err
	}
	s.due = newDueIndex(storage)
	if err := s.due.open(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Succeed makes s, which nobody uses yet, take the place of former: what is
// still under way on that one shares its locks, the caches, which are emptied,
// and the feed, which begins a new epoch.
func (s *Store) Succeed(former *Store) {
	s.keyLocks, s.nameLocks, s.digestLocks = former.keyLocks, former.nameLocks, former.digestLocks
	s.roleLocks, s.pointerLocks = former.roleLocks, former.pointerLocks
	s.keys, s.names, s.roles, s.imported = former.keys, former.names, former.roles, former.imported
	s.Forget()
	s.feed = former.feed
	s.feed.Restart()
}

// Feed tells which keys and roles have changed. Every write of one is
// published there once it is stored, before the method that wrote it returns.
func (s *Store) Feed() *feed.Feed { return s.feed }

// LockKey locks one key for a transition and returns the unlock.
func (s *Store) LockKey(id string) func() { return lock(s.keyLocks, id) }

// LockName locks a name while a key is made or deleted under it. It is taken
// before LockKey.
func (s *Store) LockName(name string) func() { return lock(s.nameLocks, name) }

// LockRole locks a role for writing. It is taken before all other locks.
func (s *Store) LockRole(name string) func() { return lock(s.roleLocks, name) }

// RLockRole keeps a role from being written or deleted while a key of it is
// made.
func (s *Store) RLockRole(name string) func() {
	l := locksutil.LockForKey(s.roleLocks, name)
	l.RLock()
	return l.RUnlock
}

// LockDigest locks the digest of an imported token. It is taken after
// LockName and before LockKey.
func (s *Store) LockDigest(d token.Digest) func() { return lock(s.digestLocks, d.Hex()) }

func lock(locks []*locksutil.LockEntry, key string) func() {
	l := locksutil.LockForKey(locks, key)
	l.Lock()
	return l.Unlock
}

// Invalidate forgets what is cached of the storage entry path, which another
// node has written, and publishes a key or a role that is concerned.
func (s *Store) Invalidate(path string) {
	switch kind, rest := splitPath(path); kind {
	case keyPrefix:
		s.keys.remove(rest)
	case namePrefix:
		s.names.remove(rest)
	case rolePrefix:
		s.roles.remove(rest)
	case importedPrefix:
		s.imported.purge()
	case "mount/":
		s.mountMu.Lock()
		s.mount.stale = true
		s.mountMu.Unlock()
	default:
		if path == configPath {
			s.configMu.Lock()
			s.config = nil
			s.configMu.Unlock()
		}
	}
}

func splitPath(path string) (kind, rest string) {
	for i := range path {
		if path[i] == '/' {
			return path[:i+1], path[i+1:]
		}
	}
	return "", path
}

func (s *Store) get(ctx context.Context, path string, v any) (bool, error) {
	entry, err := s.storage.Get(ctx, path)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", kindOf(path), err)
	}
	if entry == nil {
		return false, nil
	}
	if err := json.Unmarshal(entry.Value, v); err != nil {
		return false, fmt.Errorf("decode %s: %w: %w", kindOf(path), ErrDamaged, cleanDecodeError(err))
	}
	return true, nil
}

// writeTime bounds the writes of one transition. Vault gives up a request
// after 90 seconds; storage that takes half a minute is as good as down.
const writeTime = 30 * time.Second

type detachedKey struct{}

// detach returns the context for the writes of a transition: it does not end
// with the request or the worker that asked for it. Over gRPC a Put whose
// context ends returns at once, while Vault goes on writing; the two would
// then disagree. Nothing is begun for a caller who is gone already.
func detach(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("nothing was written: %w", err)
	}
	if ctx.Value(detachedKey{}) != nil {
		return ctx, func() {}, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	return context.WithValue(ctx, detachedKey{}, true), cancel, nil
}

func (s *Store) put(ctx context.Context, path string, v any) error {
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return fmt.Errorf("write %s: %w", kindOf(path), err)
	}
	defer cancel()
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", kindOf(path), err)
	}
	if err := s.storage.Put(ctx, &logical.StorageEntry{Key: path, Value: data}); err != nil {
		return fmt.Errorf("write %s: %w", kindOf(path), err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, path string) error {
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return fmt.Errorf("delete %s: %w", kindOf(path), err)
	}
	defer cancel()
	if err := s.storage.Delete(ctx, path); err != nil {
		return fmt.Errorf("delete %s: %w", kindOf(path), err)
	}
	return nil
}

// kindOf names an entry in errors without the part that tells keys apart.
func kindOf(path string) string {
	kind, _ := splitPath(path)
	if kind == "" {
		return path + " entry"
	}
	return kind[:len(kind)-1] + " entry"
}

// cleanDecodeError keeps stored bytes out of an error: syntax errors of the
// JSON package quote a character, type errors and those of times a value.
func cleanDecodeError(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("it is not valid JSON at byte %d", syntax.Offset)
	}
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Errorf("field %q has a wrong type", kind.Field)
	}
	if errors.As(err, new(*time.ParseError)) {
		return errors.New("a time in it cannot be read")
	}
	return err
}

// stampedTime is the time of a transition: UTC in whole milliseconds, which
// is what is stored and shown.
func stampedTime(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// Now is the time that a transition is stamped with.
func (s *Store) Now() time.Time { return stampedTime(s.clock.Now()) }
