// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

const (
	secretPrefix = "whsec_"
	// Sizes of signing secrets in bytes.
	newSecretSize = 32
	minSecretSize = 24
	maxSecretSize = 64
	// maxSecrets bounds the signatures of a message.
	maxSecrets = 3
)

// Secret signs messages, until Until if that is set.
type Secret struct {
	Value string    `json:"value"`
	Until time.Time `json:"until,omitzero"`

	extra jsonkeep.Extra
}

// same tells whether two secrets sign alike for the same time.
func (s Secret) same(o Secret) bool { return s.Value == o.Value && s.Until.Equal(o.Until) }

type secretFields Secret

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (s Secret) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(secretFields(s), s.extra) }

// UnmarshalJSON reads a stored secret.
func (s *Secret) UnmarshalJSON(data []byte) (err error) {
	s.extra, err = jsonkeep.Unmarshal(data, (*secretFields)(s))
	return err
}

// String keeps the secret out of whatever prints a hook.
func (Secret) String() string { return "[secret]" }

// GoString keeps the secret out of whatever prints a hook.
func (Secret) GoString() string { return "[secret]" }

// NewSecret makes a signing secret from rand.
func NewSecret(rand io.Reader) (string, error) {
	raw := make([]byte, newSecretSize)
	if _, err := io.ReadFull(rand, raw); err != nil {
		return "", fmt.Errorf("make a webhook secret: %w", err)
	}
	return secretPrefix + base64.StdEncoding.EncodeToString(raw), nil
}

// ParseSecret returns the bytes of a signing secret, or a Refusal that does
// not repeat it.
func ParseSecret(s string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(s, secretPrefix)
	if !ok {
		return nil, refuse("secret must begin with %s", secretPrefix)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || strings.ContainsAny(encoded, "\r\n") {
		return nil, refuse("secret must be %s and then base64 with padding", secretPrefix)
	}
	if len(raw) < minSecretSize || len(raw) > maxSecretSize {
		return nil, refuse("secret must hold %d to %d bytes, got %d", minSecretSize, maxSecretSize, len(raw))
	}
	return raw, nil
}

// SetSecret makes value the one that a receiver should use. Messages are
// signed with the one before it too until now+overlap; without an overlap, with
// no other one. The secret that is current already changes nothing.
func (h *Hook) SetSecret(value string, now time.Time, overlap time.Duration) {
	current := Secret{Value: value}
	if len(h.Secrets) > 0 && h.Secrets[0].Value == value {
		return
	}
	secrets := []Secret{current}
	for i, s := range h.Secrets {
		if i == 0 {
			s.Until = now.Add(overlap)
		}
		if s.Value != value && overlap > 0 && now.Before(s.Until) && len(secrets) < maxSecrets {
			secrets = append(secrets, s)
		}
	}
	h.Secrets = secrets
}

var errNoSecret = errors.New("the hook has no usable secret")

// sign returns the value of the webhook-signature header.
func (h *Hook) sign(id string, now time.Time, body []byte) (string, error) {
	var signatures []string
	for i, s := range h.Secrets {
		if i > 0 && !now.Before(s.Until) {
			continue
		}
		key, err := ParseSecret(s.Value)
		if err != nil {
			continue
		}
		signer, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			return "", errNoSecret
		}
		signature, err := signer.Sign(id, now, body)
		if err != nil {
			return "", errNoSecret
		}
		signatures = append(signatures, signature)
	}
	if len(signatures) == 0 {
		return "", errNoSecret
	}
	return strings.Join(slices.Compact(signatures), " "), nil
}
