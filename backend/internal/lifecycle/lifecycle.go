// SPDX-License-Identifier: MPL-2.0

// Package lifecycle is what happens to a key: it loads the key and its role
// under the key's lock, asks the keyring for the transition, mints and
// encrypts the token, works out when the key is due next, and commits.
//
// Requests, the periodic function and bulk jobs all go through it.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// The reasons why a key cannot be found or made. They are the caller's.
var (
	ErrNoKey    = errors.New("there is no such key")
	ErrNoRole   = errors.New("there is no such role")
	ErrExists   = errors.New("the name is taken")
	ErrImported = errors.New("the token is in use already")
)

// Keeper makes and changes the keys of one mount.
type Keeper struct {
	Store  *store.Store
	Clock  clock.Clock
	Rand   io.Reader
	Usage  *usage.Tracker
	Book   *usage.Book
	Logger hclog.Logger
	// Outbox takes events; nil where nobody can be told.
	Outbox Outbox
	// Observe, where set, is told of every commit and its events. prev is nil
	// for a new key. It must not block or lock a key.
	Observe func(prev, next *keyring.Key, events []keyring.Event)

	// copyFails tells that events could not be copied when that was last tried.
	copyFails atomic.Bool
}

// Spec describes a key that is to be made.
type Spec struct {
	// ID is set for keys whose id must be known beforehand; else one is made.
	ID             string
	Name           string
	Role           string
	Disabled       bool
	Scopes         *[]string
	BoundCIDRs     []string
	CustomMetadata map[string]string

	// ImportToken or ImportDigest, where set, is a token made elsewhere.
	ImportToken  string
	ImportDigest *token.Digest

	// Lease and ExpireTime belong to leased keys.
	Lease      *keyring.Lease
	ExpireTime time.Time
}

// Made is a key as it stands after a transition, with the token that the
// transition made, empty if it made none.
type Made struct {
	Key     *keyring.Key
	Role    *role.Role
	Token   string
	Version int
}

// Create makes a key of a role and returns its token, which is empty for an
// imported one. The error is ErrNoRole, ErrExists, ErrImported, or a failure
// of storage.
func (kp *Keeper) Create(ctx context.Context, spec Spec, cause keyring.Cause) (*Made, error) {
	defer kp.Store.RLockRole(spec.Role)()
	r, err := kp.Store.Role(ctx, spec.Role)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("role %q: %w", spec.Role, ErrNoRole)
	}
	if spec.Name != "" {
		defer kp.Store.LockName(spec.Name)()
		if taken, err := kp.Store.KeyByName(ctx, spec.Name); err != nil {
			return nil, err
		} else if taken != nil {
			return nil, fmt.Errorf("key %q: %w", spec.Name, ErrExists)
		}
	}
	id := spec.ID
	if id == "" {
		if id, err = token.NewID(kp.Rand); err != nil {
			return nil, fmt.Errorf("make a key id: %w", err)
		}
	}
	imported := spec.importDigest()
	if imported != nil {
		defer kp.Store.LockDigest(*imported)()
		if err := kp.checkUnused(ctx, *imported, spec.ImportToken); err != nil {
			return nil, err
		}
	}
	defer kp.Store.LockKey(id)()
	made, material, err := kp.material(ctx, spec, r, id, imported)
	if err != nil {
		return nil, err
	}
	cause.Now = kp.Store.Now()
	k := keyring.Create(keyring.Key{
		ID: id, Name: spec.Name, Role: spec.Role, Disabled: spec.Disabled, Imported: imported != nil, ImportDigest: imported,
		Scopes: spec.Scopes, BoundCIDRs: spec.BoundCIDRs, CustomMetadata: spec.CustomMetadata, Lease: spec.Lease,
	}, cause, r.Policy(), material)
	if k.Leased() {
		k.Versions[0].ExpireTime = spec.ExpireTime
	}
	if err := kp.put(ctx, nil, k, kp.due(ctx, k, r, cause.Now)); err != nil {
		return nil, err
	}
	return &Made{Key: k, Role: r, Token: made, Version: 1}, nil
}

// importDigest is the digest of the token that is to be imported, or nil.
func (spec *Spec) importDigest() *token.Digest {
	if spec.ImportToken != "" {
		d := token.Sum(spec.ImportToken)
		return &d
	}
	return spec.ImportDigest
}

// checkUnused refuses a token that some key of the mount has, or had and was
// compromised. It answers ErrImported alone: whose it is, is not told.
func (kp *Keeper) checkUnused(ctx context.Context, d token.Digest, plaintext string) error {
	has, err := kp.Store.HasImports(ctx)
	if err != nil {
		return err
	}
	if has {
		taken, err := kp.Store.KeyByImport(ctx, d, func() error { return nil })
		if err != nil {
			return err
		}
		if taken != nil {
			return ErrImported
		}
	}
	parsed, err := token.Parse(plaintext)
	if err != nil {
		return nil // not of our form: only an import can have it
	}
	own, err := kp.Store.Key(ctx, parsed.KeyID)
	if err != nil {
		return err
	}
	if own != nil && slices.ContainsFunc(own.Versions, func(v keyring.Version) bool { return v.Digest.Equal(d) }) {
		return ErrImported
	}
	return nil
}

// material returns the token of version 1 that the caller is to see, and what
// is stored of it.
func (kp *Keeper) material(ctx context.Context, spec Spec, r *role.Role, id string, imported *token.Digest) (string, keyring.Material, error) {
	if imported == nil {
		return kp.Mint(ctx, r, &keyring.Key{ID: id, Name: spec.Name, Role: spec.Role, CustomMetadata: spec.CustomMetadata, Lease: spec.Lease})
	}
	m := keyring.Material{Digest: *imported}
	if spec.ImportToken != "" && r.Retrievable {
		sealed, err := kp.Store.Seal(id, 1, spec.ImportToken)
		if err != nil {
			return "", m, err
		}
		m.Sealed = sealed
	}
	return "", m, nil
}

// Mint makes the token of the next version of a key, and what is stored of it.
func (kp *Keeper) Mint(ctx context.Context, r *role.Role, k *keyring.Key) (string, keyring.Material, error) {
	made, err := token.New(kp.Rand, r.Format(), k.ID)
	if err != nil {
		return "", keyring.Material{}, fmt.Errorf("make a token: %w", err)
	}
	m := keyring.Material{Digest: token.Sum(made)}
	// What cannot be handed over is not kept for it: whoever asked for the
	// version has the answer.
	hand := &m.Sealed
	if !r.Retrievable {
		if can, _, err := kp.claimable(ctx, k); !can || err != nil {
			return made, m, nil
		}
		hand = &m.Handover
	}
	if *hand, err = kp.Store.Seal(k.ID, k.Latest()+1, made); err != nil {
		return "", m, err
	}
	return made, m, nil
}

// Reveal returns the stored token of a version, or "" where none is stored.
func (kp *Keeper) Reveal(k *keyring.Key, v keyring.Version) (string, error) {
	if len(v.Sealed) == 0 {
		return "", nil
	}
	return kp.Store.Unseal(k.ID, v.Number, v.Sealed)
}

// Change is what a transition does to a key: it returns the changed key, or
// the one it was given where there is nothing to do.
type Change func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error)

// Update applies a transition to the key with this id under its lock and
// commits the result. It returns the key before and after, and its role. The
// error is ErrNoKey, what change returned, or a failure of storage.
func (kp *Keeper) Update(ctx context.Context, id string, change Change) (before, after *keyring.Key, r *role.Role, err error) {
	defer kp.Store.LockKey(id)()
	before, r, err = kp.load(ctx, id)
	if err != nil {
		return nil, nil, nil, err
	}
	now := kp.Store.Now()
	after, err = change(before, r, now)
	if err != nil {
		return before, nil, r, err
	}
	if after == before {
		return before, before, r, nil
	}
	if after.Blocked != "" && after.RotateAt.After(now) && after.RotateAt.Equal(before.RotateAt) {
		// What somebody did may have made room for the rotation that waits.
		after.RotateAt = now
	}
	_, waited := before.Pending()
	if _, waits := after.Pending(); waited && !waits && after.RotateAt.IsZero() {
		after.Blocked = "" // what put its promotion off
	}
	after = kp.startOver(ctx, before, kp.watchEnds(ctx, before, after, now), now)
	if err := kp.commit(ctx, before, after, r, now); err != nil {
		return before, nil, r, err
	}
	return before, kp.pay(ctx, after, r, now), r, nil
}

func (kp *Keeper) commit(ctx context.Context, before, after *keyring.Key, r *role.Role, now time.Time) error {
	if after.Recorded.Before(now) {
		after.Recorded = now
	}
	return kp.put(ctx, before, after, kp.due(ctx, after, r, now))
}

// load returns a living key and its role.
func (kp *Keeper) load(ctx context.Context, id string) (*keyring.Key, *role.Role, error) {
	k, err := kp.Store.Key(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if k == nil || !k.Deleted.IsZero() {
		return nil, nil, ErrNoKey
	}
	r, err := kp.RoleOf(ctx, k)
	return k, r, err
}

// RoleOf returns the role of a key. A key without its role is a fault of
// storage: a role with members cannot be deleted.
func (kp *Keeper) RoleOf(ctx context.Context, k *keyring.Key) (*role.Role, error) {
	r, err := kp.Store.Role(ctx, k.Role)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("role %q of %s is missing from storage: %w", k.Role, k.Label(), store.ErrDamaged)
	}
	return r, nil
}

// Delete ends a key for good. Its compromised versions are remembered. The
// caller holds the lock of its name, if it has one. Deleting what is gone
// succeeds.
func (kp *Keeper) Delete(ctx context.Context, id string, cause keyring.Cause) error {
	defer kp.Store.LockKey(id)()
	k, err := kp.Store.Key(ctx, id)
	if err != nil || k == nil {
		return err
	}
	tomb := k
	if k.Deleted.IsZero() {
		cause.Now = kp.Store.Now()
		tomb = k.EndAll(cause, kp.Store.Cleanup(k))
		// Filed, so that the periodic function finishes what a crash cut off.
		if err := kp.put(ctx, k, tomb, cause.Now); err != nil {
			return err
		}
		kp.Book.Forget(id)
	}
	if err := kp.finishDelete(ctx, tomb); err != nil {
		kp.Logger.Warn("a deleted key's index entries remain for the periodic function", "key_id", id, "error", err)
	}
	return nil
}

// IsDeleted tells whether a key is known to be deleted.
func (kp *Keeper) IsDeleted(ctx context.Context, id string) bool {
	k, err := kp.Store.Key(ctx, id)
	return err == nil && (k == nil || !k.Deleted.IsZero())
}

// Drained is the check of use for one key.
func (kp *Keeper) Drained(ctx context.Context, k *keyring.Key, r *role.Role, now time.Time) keyring.DrainCheck {
	return kp.Book.Drained(ctx, k, r.DrainQuietPeriod, now)
}
