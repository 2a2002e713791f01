// SPDX-License-Identifier: MPL-2.0

// Package token makes, parses and fingerprints API keys as strings. It knows
// their form and nothing else: not whether a key exists, nor whether it is
// accepted. It does no I/O, reads no clock and keeps no state, so the Vault
// plugin, the verifier SDK and the gateway share it.
//
// # Form
//
//	<prefix>_<key_id>_<secret><checksum>
//
//	tm_live_0aB3dE6gH9jK_ [ 32 random characters ][ 6 ]
//	|       |             |                       |
//	|       |             |                       checksum: CRC-32 of all before it
//	|       |             secret: 22 to 128 base62 characters
//	|       key_id: 12 base62 characters, public, safe in logs
//	prefix: [a-z][a-z0-9_]{0,31}, chosen by the role
//
// The alphabet is 0-9A-Za-z in that order. A prefix may contain, and may end
// in, underscores; the other parts cannot, so a token is read from the right:
// the last underscore starts the secret, the one before it starts the key id.
//
// The checksum is the CRC-32 (IEEE, as in gzip) of everything before it, as a
// base62 number of 6 digits, most significant first, padded with zeros. It
// catches typing errors and cut-off copies before anything is looked up. It is
// not a MAC: anybody can compute it, and a token that parses proves nothing.
//
// # Randomness
//
// [NewID] and [New] take their randomness as an argument; outside of tests it
// is crypto/rand.Reader. Bytes of 248 and above are rejected, since 248 is the
// greatest multiple of 62 that fits in a byte: every character is equally
// likely. The default secret of 32 characters has 190 bits.
//
// # Secrets
//
// No error of this package contains any part of a token, and [Parsed] and
// [Digest] cannot give a secret back. Three things are the caller's to mind:
//
//   - The strings in a Parsed are substrings of the token. Clone them
//     (strings.Clone) before keeping them, or they keep the secret in memory.
//   - Tokens are compared by their digests, with [Digest.Equal], never as
//     strings.
//   - A digest of a token made here cannot be inverted. That of an imported
//     key is only as strong as the key, so a Digest prints as its fingerprint.
//
// # Imported keys
//
// A key that another system made may have any form that [ImportableForm]
// accepts. It has no key id; it is found by its digest.
package token
