// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// UsagePages keeps the pages of use of the mount.
func (s *Store) UsagePages() usage.PageStore { return usagePages{s, usagePrefix} }

// FirstUses keeps the first uses of keys that no page has yet.
func (s *Store) FirstUses() usage.PageStore { return usagePages{s, firstUsePrefix} }

// IsUsagePage tells whether a storage path is that of a page of use.
func IsUsagePage(path string) bool { return strings.HasPrefix(path, usagePrefix) }

type usagePages struct {
	s      *Store
	prefix string
}

func (u usagePages) GetPage(ctx context.Context, name string) ([]byte, error) {
	entry, err := u.s.storage.Get(ctx, u.prefix+name)
	if err != nil {
		return nil, fmt.Errorf("read usage entry: %w", err)
	}
	if entry == nil {
		return nil, nil
	}
	return entry.Value, nil
}

func (u usagePages) PutPage(ctx context.Context, name string, data []byte) error {
	if err := u.s.storage.Put(ctx, &logical.StorageEntry{Key: u.prefix + name, Value: data}); err != nil {
		return fmt.Errorf("write usage entry: %w", err)
	}
	return nil
}

func (u usagePages) DeletePage(ctx context.Context, name string) error {
	return u.s.remove(ctx, u.prefix+name)
}

func (u usagePages) ListPages(ctx context.Context) ([]string, error) {
	return u.s.list(ctx, u.prefix)
}

// Reports reads which usage reports were counted, nil where none were.
func (s *Store) Reports(ctx context.Context) ([]byte, error) {
	entry, err := s.storage.Get(ctx, reportsPath)
	if err != nil {
		return nil, fmt.Errorf("read reports entry: %w", err)
	}
	if entry == nil {
		return nil, nil
	}
	return entry.Value, nil
}

// PutReports writes which usage reports were counted.
func (s *Store) PutReports(ctx context.Context, data []byte) error {
	if err := s.storage.Put(ctx, &logical.StorageEntry{Key: reportsPath, Value: data}); err != nil {
		return fmt.Errorf("write reports entry: %w", err)
	}
	return nil
}
