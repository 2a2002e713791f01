// SPDX-License-Identifier: MPL-2.0

package store

import (
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// CachedImport returns the key that an imported token with this digest belongs
// to, if both are in the caches, else nil. It touches no storage.
func (s *Store) CachedImport(d token.Digest) *keyring.Key {
	id, ok := s.imported.peek(d)
	if !ok || id == "" {
		return nil
	}
	k := s.CachedKey(id)
	if k == nil {
		return nil
	}
	for i := range k.Versions {
		if k.Versions[i].Digest.Equal(d) {
			return k
		}
	}
	return nil
}
