// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
)

// Webhooks keeps the hooks and outboxes of the mount.
func (s *Store) Webhooks() webhook.Storage { return webhooks{s} }

// Claims keeps the claim codes of the mount, as hashes.
func (s *Store) Claims() webhook.ClaimStorage { return webhooks{s} }

// HasHooks tells, without storage access, whether the mount ever had a
// webhook.
func (s *Store) HasHooks() bool {
	s.mountMu.RLock()
	defer s.mountMu.RUnlock()
	return s.mount.HasHooks
}

// MarkHooks is called before the first webhook is stored.
func (s *Store) MarkHooks(ctx context.Context) error {
	return s.setFlag(ctx, func(m *mountState) *bool { return &m.HasHooks })
}

type webhooks struct{ s *Store }

func (w webhooks) read(ctx context.Context, path string) ([]byte, error) {
	entry, err := w.s.storage.Get(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kindOf(path), err)
	}
	if entry == nil {
		return nil, nil
	}
	return entry.Value, nil
}

func (w webhooks) write(ctx context.Context, path string, value []byte) error {
	if err := w.s.storage.Put(ctx, &logical.StorageEntry{Key: path, Value: value}); err != nil {
		return fmt.Errorf("write %s: %w", kindOf(path), err)
	}
	return nil
}

func (w webhooks) ListHooks(ctx context.Context) ([]string, error) { return w.s.list(ctx, hookPrefix) }

func (w webhooks) GetHook(ctx context.Context, name string) ([]byte, error) {
	return w.read(ctx, hookPrefix+name)
}

func (w webhooks) PutHook(ctx context.Context, name string, entry []byte) error {
	return w.write(ctx, hookPrefix+name, entry)
}

func (w webhooks) DeleteHook(ctx context.Context, name string) error {
	return w.s.remove(ctx, hookPrefix+name)
}

func (w webhooks) ListOutbox(ctx context.Context, hook string) ([]string, error) {
	return w.s.list(ctx, outboxPrefix+hook+"/")
}

func (w webhooks) GetOutbox(ctx context.Context, hook, position string) ([]byte, error) {
	return w.read(ctx, outboxPrefix+hook+"/"+position)
}

func (w webhooks) PutOutbox(ctx context.Context, hook, position string, entry []byte) error {
	return w.write(ctx, outboxPrefix+hook+"/"+position, entry)
}

func (w webhooks) DeleteOutbox(ctx context.Context, hook, position string) error {
	return w.s.remove(ctx, outboxPrefix+hook+"/"+position)
}

func (w webhooks) ListClaimDays(ctx context.Context) ([]string, error) {
	return w.s.list(ctx, claimPrefix)
}

func (w webhooks) ListClaims(ctx context.Context, day string) ([]string, error) {
	return w.s.list(ctx, claimPrefix+day+"/")
}

func (w webhooks) GetClaim(ctx context.Context, day, id string) ([]byte, error) {
	return w.read(ctx, claimPrefix+day+"/"+id)
}

func (w webhooks) PutClaim(ctx context.Context, day, id string, entry []byte) error {
	return w.write(ctx, claimPrefix+day+"/"+id, entry)
}

func (w webhooks) DeleteClaim(ctx context.Context, day, id string) error {
	return w.s.remove(ctx, claimPrefix+day+"/"+id)
}

func (w webhooks) ListClaimEnds(ctx context.Context) ([]string, error) {
	return w.s.list(ctx, claimEndPrefix)
}

func (w webhooks) ListClaimEnd(ctx context.Context, minute string) ([]string, error) {
	return w.s.list(ctx, claimEndPrefix+minute+"/")
}

func (w webhooks) PutClaimEnd(ctx context.Context, minute, name string) error {
	return w.write(ctx, claimEndPrefix+minute+"/"+name, nil)
}

func (w webhooks) DeleteClaimEnd(ctx context.Context, minute, name string) error {
	return w.s.remove(ctx, claimEndPrefix+minute+"/"+name)
}
