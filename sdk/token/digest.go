// SPDX-License-Identifier: MPL-2.0

package token

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
)

const (
	minImportLength = 16
	maxImportLength = 512

	fingerprintLength = 12
)

// ErrMalformedDigest means that a text is not a digest. It echoes nothing: a
// key may have been given where its digest belongs.
var ErrMalformedDigest = errors.New("malformed digest: want the SHA-256 as 64 hexadecimal characters")

// ErrUnimportable means that a string cannot be a key, not even one that
// another system made.
var ErrUnimportable = errors.New("a key must be 16 to 512 printable ASCII characters without spaces or line breaks")

// Digest is the SHA-256 of a whole token, prefix and checksum included. In
// text (JSON, too) it is 64 lower-case hexadecimal characters. The zero Digest
// is no token's.
//
// Two digests are compared with Equal, not with ==.
type Digest [sha256.Size]byte

// Sum returns the digest of s, which need not be a token of this package. It
// allocates nothing for up to 512 bytes, the longest key there is.
func Sum(s string) Digest {
	if len(s) > maxImportLength {
		return sha256.Sum256([]byte(s))
	}
	var buf [maxImportLength]byte
	return sha256.Sum256(buf[:copy(buf[:], s)])
}

// Equal compares in constant time.
func (d Digest) Equal(o Digest) bool {
	return subtle.ConstantTimeCompare(d[:], o[:]) == 1
}

// IsZero says whether d was never set.
func (d Digest) IsZero() bool {
	return d.Equal(Digest{})
}

// Hex returns d as 64 lower-case hexadecimal characters.
func (d Digest) Hex() string {
	return hex.EncodeToString(d[:])
}

// Fingerprint returns the first 12 characters of Hex. They tell the versions
// of a key apart for people, and are safe in logs.
func (d Digest) Fingerprint() string {
	return hex.EncodeToString(d[:fingerprintLength/2])
}

// String returns the fingerprint, so that a digest that is printed by accident
// gives away no more than that.
func (d Digest) String() string {
	return d.Fingerprint()
}

// ParseDigest reads what Hex writes, in either case. It returns
// ErrMalformedDigest for anything else.
func ParseDigest(text string) (Digest, error) {
	var d Digest
	if len(text) != hex.EncodedLen(len(d)) {
		return Digest{}, ErrMalformedDigest
	}
	if _, err := hex.Decode(d[:], []byte(text)); err != nil {
		// The error of encoding/hex quotes the byte that it met.
		return Digest{}, ErrMalformedDigest
	}
	return d, nil
}

// MarshalText implements encoding.TextMarshaler by Hex.
func (d Digest) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, d[:]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler by ParseDigest. It leaves
// d unchanged if it fails.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// ImportableForm returns nil if s could be a key that another system made: 16
// to 512 characters from ! to ~, thus ASCII without spaces, line breaks or
// control characters, as a header can carry it unquoted. It returns
// ErrUnimportable otherwise. Tokens of this package have an importable form.
func ImportableForm(s string) error {
	if len(s) < minImportLength || len(s) > maxImportLength {
		return ErrUnimportable
	}
	for i := range len(s) {
		if s[i] < '!' || s[i] > '~' {
			return ErrUnimportable
		}
	}
	return nil
}
