// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// maxKey bounds an API key, in bytes. The engine's own and imported ones are
// shorter.
const maxKey = 2048

// errBadKey tells nothing of what was there instead of a key.
var errBadKey = fmt.Errorf("an API key is 1 to %d printable characters without spaces", maxKey)

// Key is one version of an API key. It prints, logs and encodes without its
// secret, which only Reveal gives. The zero Key is none.
type Key struct {
	secret  string
	id      string
	version int
}

// NewKey makes a Key of a text, for one that a program has stored itself. The
// version is 0 if it is not known. It returns an error unless apiKey is 1 to
// 2048 printable characters without spaces.
func NewKey(apiKey string, version int) (Key, error) {
	if apiKey == "" || len(apiKey) > maxKey {
		return Key{}, errBadKey
	}
	for i := range len(apiKey) {
		if c := apiKey[i]; c <= ' ' || c == 0x7f {
			return Key{}, errBadKey
		}
	}
	if version < 0 {
		return Key{}, errors.New("a version must not be negative")
	}
	k := Key{secret: apiKey, version: version}
	if parsed, err := token.Parse(apiKey); err == nil {
		k.id = parsed.KeyID
	}
	return k, nil
}

// Reveal returns the API key itself.
func (k Key) Reveal() string { return k.secret }

// ID is the public id of the key, the same for all its versions; empty where
// it is not known.
func (k Key) ID() string { return k.id }

// Version is the number of the version; 0 where it is not known.
func (k Key) Version() int { return k.version }

// IsZero tells whether there is no key.
func (k Key) IsZero() bool { return k.secret == "" }

// String names the key without its secret.
func (k Key) String() string {
	if k.IsZero() {
		return "no key"
	}
	id, version := k.id, "?"
	if id == "" {
		id = "?"
	}
	if k.version > 0 {
		version = fmt.Sprint(k.version)
	}
	return "key " + id + " version " + version
}

// GoString keeps the secret out of %#v.
func (k Key) GoString() string { return "consumer.Key(" + k.String() + ")" }

// Format keeps the secret out of every verb.
func (k Key) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		_, _ = fmt.Fprint(f, k.GoString())
		return
	}
	_, _ = fmt.Fprint(f, k.String())
}

// LogValue logs the id and the version.
func (k Key) LogValue() slog.Value {
	return slog.GroupValue(slog.String("key_id", k.id), slog.Int("version", k.version))
}

// MarshalText names the key without its secret, so that no encoder shows it.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
