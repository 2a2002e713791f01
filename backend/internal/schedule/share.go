// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"math/bits"
	"time"
)

// A salt per purpose, so that the keys that jitter puts last are not also
// those that catching up puts last.
const (
	jitterSalt  = "jitter\x00"
	catchUpSalt = "catch-up\x00"
)

// share returns a whole number of seconds in [0, span), fixed by keyID and
// spread evenly over the keys; 0 if span is under a second. Changing it moves
// the due time of every key with jitter: TestShareIsFixedForEver guards it.
func share(span time.Duration, keyID, salt string) time.Duration {
	seconds := span / time.Second
	if seconds <= 0 {
		return 0
	}
	hi, _ := bits.Mul64(hash(salt, keyID), uint64(seconds))
	return time.Duration(hi) * time.Second //nolint:gosec // G115: hi is less than seconds
}

// hash is FNV-1a over salt and keyID, then the finalizer of MurmurHash3: the
// high bits of FNV alone, which share uses, hardly change with the last
// characters.
func hash(salt, keyID string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(salt) {
		h = (h ^ uint64(salt[i])) * prime
	}
	for i := range len(keyID) {
		h = (h ^ uint64(keyID[i])) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}
