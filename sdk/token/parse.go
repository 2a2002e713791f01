// SPDX-License-Identifier: MPL-2.0

package token

import (
	"errors"
	"hash/crc32"
	"strings"
)

// ErrMalformed means that a string is not a token. It is the only error of
// [Parse], whatever the fault: a text that said which part was wrong would
// have to speak of the secret.
var ErrMalformed = errors.New("malformed token: want <prefix>_<key_id>_<secret><checksum> with a matching checksum")

// Parsed is the public part of a token. Both fields are substrings of the
// string that was parsed: clone them before keeping them.
type Parsed struct {
	Prefix string
	KeyID  string
}

// Parse takes a token apart. It returns ErrMalformed unless s has exactly the
// form of the package comment: right alphabets, right lengths, right checksum,
// nothing before or after. It accepts every valid prefix and secret length,
// since a key outlives the format of its role. It allocates nothing, and a
// string that is too long costs one comparison.
func Parse(s string) (Parsed, error) {
	if len(s) > maxLength {
		return Parsed{}, ErrMalformed
	}
	j := strings.LastIndexByte(s, '_')
	if j < 0 {
		return Parsed{}, ErrMalformed
	}
	i := strings.LastIndexByte(s[:j], '_')
	if i < 0 {
		return Parsed{}, ErrMalformed
	}
	prefix, keyID, tail := s[:i], s[i+1:j], s[j+1:]
	if len(tail) < MinSecretLength+ChecksumLength ||
		len(tail) > MaxSecretLength+ChecksumLength ||
		!validPrefix(prefix) || !ValidID(keyID) || !isBase62(tail) {
		return Parsed{}, ErrMalformed
	}
	body, given := s[:len(s)-ChecksumLength], s[len(s)-ChecksumLength:]
	// A plain comparison will do: the checksum is not a secret of its own, and
	// nothing is looked up before it matches.
	if want := checksum(body); string(want[:]) != given {
		return Parsed{}, ErrMalformed
	}
	return Parsed{Prefix: prefix, KeyID: keyID}, nil
}

// Checksum returns the six characters that follow body in a token, where body
// is everything before them.
func Checksum(body string) string {
	sum := checksum(body)
	return string(sum[:])
}

// checksum walks the table itself because hash/crc32 takes a []byte, which
// would have to be allocated: it cannot be seen not to escape.
func checksum[T string | []byte](body T) [ChecksumLength]byte {
	crc := ^uint32(0)
	for i := range len(body) {
		crc = crc32.IEEETable[byte(crc&0xff)^body[i]] ^ crc>>8
	}
	crc = ^crc
	var digits [ChecksumLength]byte
	for i := ChecksumLength - 1; i >= 0; i-- {
		digits[i] = alphabet[crc%uint32(len(alphabet))]
		crc /= uint32(len(alphabet))
	}
	return digits
}

func validPrefix(s string) bool {
	if len(s) == 0 || len(s) > maxPrefixLength || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

func isBase62(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
