// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const mountSchema = 1

// mountState is the one entry that a mount needs at its start.
type mountState struct {
	Schema int `json:"schema"`
	// DataKey encrypts the plaintext of versions, AES-256-GCM.
	DataKey []byte `json:"data_key"`
	// IndexKey is the HMAC-SHA-256 key of the index of imported tokens.
	IndexKey []byte `json:"index_key"`
	// HasImports is set before the first import and never unset.
	HasImports bool `json:"has_imports,omitempty"`
	// HasHooks is set before the first webhook and never unset.
	HasHooks bool `json:"has_hooks,omitempty"`

	extra jsonkeep.Extra
	stale bool
}

// mountKeyLength is the length in bytes of the mount's keys.
const mountKeyLength = 32

type mountFields mountState

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (m mountState) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(mountFields(m), m.extra) }

// UnmarshalJSON reads a stored mountState and refuses one that this code must
// not use. The schema is judged first: a newer one may change everything else.
func (m *mountState) UnmarshalJSON(data []byte) error {
	if err := jsonkeep.CheckSchema(data, mountSchema); err != nil {
		return fmt.Errorf("the mount's storage: %w", err)
	}
	extra, err := jsonkeep.Unmarshal(data, (*mountFields)(m))
	if err != nil {
		return err
	}
	if len(m.DataKey) != mountKeyLength || len(m.IndexKey) != mountKeyLength {
		return errors.New("a key of the mount is missing or has a wrong length")
	}
	m.extra = extra
	return nil
}

func (s *Store) openMount(ctx context.Context, rand io.Reader, writable bool) error {
	var m mountState
	found, err := s.get(ctx, mountPath, &m)
	if err != nil {
		return err
	}
	if !found {
		if !writable {
			return ErrReadOnly
		}
		m = mountState{Schema: mountSchema, DataKey: make([]byte, mountKeyLength), IndexKey: make([]byte, mountKeyLength)}
		for _, key := range [][]byte{m.DataKey, m.IndexKey} {
			if _, err := io.ReadFull(rand, key); err != nil {
				return fmt.Errorf("make the mount's keys: %w", err)
			}
		}
		if err := s.put(ctx, mountPath, m); err != nil {
			return err
		}
	}
	b, err := newBox(m.DataKey, rand)
	if err != nil {
		return err
	}
	s.mount, s.box, s.indexKey = m, b, m.IndexKey
	return nil
}

// HasImports tells whether any token of this mount may have been made
// elsewhere. It costs no storage access, except once after another node wrote.
func (s *Store) HasImports(ctx context.Context) (bool, error) {
	s.mountMu.RLock()
	m := s.mount
	s.mountMu.RUnlock()
	if !m.stale {
		return m.HasImports, nil
	}
	s.mountMu.Lock()
	defer s.mountMu.Unlock()
	var fresh mountState
	if found, err := s.get(ctx, mountPath, &fresh); err != nil || !found {
		return false, err
	}
	s.mount = fresh
	return fresh.HasImports, nil
}

// markImports sets the flag before the first import. The flag is harmless
// where the import then fails.
func (s *Store) markImports(ctx context.Context) error {
	return s.setFlag(ctx, func(m *mountState) *bool { return &m.HasImports })
}

// setFlag sets a flag of the mount, which costs a write the first time only.
func (s *Store) setFlag(ctx context.Context, flag func(*mountState) *bool) error {
	s.mountMu.Lock()
	defer s.mountMu.Unlock()
	if *flag(&s.mount) {
		return nil
	}
	m := s.mount
	*flag(&m) = true
	if err := s.put(ctx, mountPath, m); err != nil {
		return err
	}
	s.mount = m
	return nil
}

// importedPath hides the digest of an imported token, which may have little
// entropy, because Vault does not encrypt storage paths.
func (s *Store) importedPath(d token.Digest) string {
	mac := hmac.New(sha256.New, s.indexKey)
	_, _ = mac.Write(d[:])
	return importedPrefix + hex.EncodeToString(mac.Sum(nil))
}

// box encrypts the plaintext of versions.
type box struct {
	aead cipher.AEAD
	rand io.Reader
}

func newBox(key []byte, rand io.Reader) (*box, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("the mount's data key is damaged: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("the mount's data key is damaged: %w", err)
	}
	return &box{aead: aead, rand: rand}, nil
}

// Seal encrypts the token of one version of one key. What it returns opens
// only for that version.
func (s *Store) Seal(keyID string, version int, plaintext string) ([]byte, error) {
	nonce := make([]byte, s.box.aead.NonceSize())
	if _, err := io.ReadFull(s.box.rand, nonce); err != nil {
		return nil, fmt.Errorf("encrypt version %d: %w", version, err)
	}
	return s.box.aead.Seal(nonce, nonce, []byte(plaintext), sealContext(keyID, version)), nil
}

// Unseal decrypts what Seal returned.
func (s *Store) Unseal(keyID string, version int, sealed []byte) (string, error) {
	size := s.box.aead.NonceSize()
	if len(sealed) < size {
		return "", fmt.Errorf("the stored token of version %d is damaged", version)
	}
	plaintext, err := s.box.aead.Open(nil, sealed[:size], sealed[size:], sealContext(keyID, version))
	if err != nil {
		return "", fmt.Errorf("the stored token of version %d is damaged: %w", version, err)
	}
	return string(plaintext), nil
}

func sealContext(keyID string, version int) []byte {
	return fmt.Appendf(nil, "apikeys/v1/%s/%d", keyID, version)
}
