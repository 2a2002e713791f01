// SPDX-License-Identifier: MPL-2.0

package token

import (
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Lengths are in characters, which here are bytes too.
const (
	// DefaultPrefix is the prefix of a Format that names none.
	DefaultPrefix = "key"
	// IDLength is the length of every key id: 71 bits.
	IDLength = 12
	// DefaultSecretLength is that of a Format that names none: 190 bits.
	DefaultSecretLength = 32
	// MinSecretLength is the least with over 128 bits (130.9).
	MinSecretLength = 22
	// MaxSecretLength keeps a token well inside one header line.
	MaxSecretLength = 128
	// ChecksumLength is what a 32-bit number takes in base62.
	ChecksumLength = 6

	maxPrefixLength = 32
	// maxLength is that of the longest token: prefix, key id and tail, with
	// the underscores between them.
	maxLength = maxPrefixLength + 1 + IDLength + 1 + MaxSecretLength + ChecksumLength
)

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Format is what a role decides about the tokens of its keys. The zero Format
// is valid and means the defaults.
type Format struct {
	Prefix       string // DefaultPrefix if empty
	SecretLength int    // DefaultSecretLength if zero
}

// Validate returns an error that names the field at fault, `prefix` or
// `secret_length`, and what it accepts.
func (f Format) Validate() error {
	f = f.withDefaults()
	if !validPrefix(f.Prefix) {
		const rule = "prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _"
		// No key is as short as what is shown here, not even one made
		// elsewhere, so it cannot be a key that landed in the wrong field.
		if len(f.Prefix) >= minImportLength {
			return fmt.Errorf("%s, got %d characters", rule, len(f.Prefix))
		}
		return fmt.Errorf("%s, got %q", rule, f.Prefix)
	}
	if f.SecretLength < MinSecretLength || f.SecretLength > MaxSecretLength {
		return fmt.Errorf("secret_length must be between %d and %d, got %d",
			MinSecretLength, MaxSecretLength, f.SecretLength)
	}
	return nil
}

func (f Format) withDefaults() Format {
	if f.Prefix == "" {
		f.Prefix = DefaultPrefix
	}
	if f.SecretLength == 0 {
		f.SecretLength = DefaultSecretLength
	}
	return f
}

// NewID returns a new key id, taking its randomness from rand. An error means
// that rand failed.
func NewID(rand io.Reader) (string, error) {
	id := make([]byte, IDLength)
	if err := fillBase62(rand, id); err != nil {
		return "", fmt.Errorf("make key id: %w", err)
	}
	return string(id), nil
}

// New returns a new token of the form f for the key keyID, taking the secret
// from rand. It fails if f or keyID is invalid or rand fails, and then returns
// no part of a token.
func New(rand io.Reader, f Format, keyID string) (string, error) {
	if err := f.Validate(); err != nil {
		return "", err
	}
	if !ValidID(keyID) {
		return "", fmt.Errorf("key_id must be %d characters of 0-9, A-Z and a-z, got %d characters", IDLength, len(keyID))
	}
	f = f.withDefaults()
	b := make([]byte, 0, maxLength)
	defer clear(b[:cap(b)])
	b = append(b, f.Prefix...)
	b = append(b, '_')
	b = append(b, keyID...)
	b = append(b, '_')
	secret := len(b)
	b = b[:secret+f.SecretLength]
	if err := fillBase62(rand, b[secret:]); err != nil {
		return "", fmt.Errorf("make secret: %w", err)
	}
	sum := checksum(b)
	b = append(b, sum[:]...)
	return string(b), nil
}

// ValidID says whether s has the form of a key id. It says nothing about
// whether such a key exists.
func ValidID(s string) bool {
	return len(s) == IDLength && isBase62(s)
}

// ScanPattern returns a regular expression for secret scanners that matches
// the tokens of the form f, and no longer word that contains one. It keeps to
// what RE2, PCRE and Hyperscan share. A scanner cannot compute the checksum;
// [Parse] then tells a token from a look-alike. For an invalid f it returns "",
// which is not a pattern to install.
func ScanPattern(f Format) string {
	if f.Validate() != nil {
		return ""
	}
	f = f.withDefaults()
	return `\b` + f.Prefix +
		`_[0-9A-Za-z]{` + strconv.Itoa(IDLength) +
		`}_[0-9A-Za-z]{` + strconv.Itoa(f.SecretLength+ChecksumLength) + `}\b`
}

// rejectFrom is the greatest multiple of 62 in a byte. Reducing a byte from
// here on modulo 62 would favour the first eight characters of the alphabet.
const rejectFrom = 256 - 256%len(alphabet)

// errStuckReader is met by a broken random source only: each round leaves one
// byte in 32 to the next, so that 64 rounds fail with a chance under 2^-300.
var errStuckReader = errors.New("the random source yields no usable bytes")

// fillBase62 fills dst with uniformly random base62 characters. It reads only
// as many bytes as are still missing, and uses dst itself as the buffer so
// that no second copy of a secret is left behind.
func fillBase62(rand io.Reader, dst []byte) error {
	n := 0
	for range 64 {
		missing := dst[n:]
		if len(missing) == 0 {
			return nil
		}
		if _, err := io.ReadFull(rand, missing); err != nil {
			return fmt.Errorf("read random bytes: %w", err)
		}
		for _, b := range missing {
			if int(b) < rejectFrom {
				dst[n] = alphabet[int(b)%len(alphabet)]
				n++
			}
		}
	}
	if n < len(dst) {
		return errStuckReader
	}
	return nil
}
