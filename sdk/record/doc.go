// SPDX-License-Identifier: MPL-2.0

// Package record is what a verifier knows of a key, and how it decides about
// a request that presents one. The engine and every verifier at the edge use
// this one decision, so that they cannot come to differ.
//
// A [Record] holds digests, states, deadlines, scopes and address ranges,
// never the plaintext of a key. It holds no clock: what is accepted is computed
// from the time of the question, not from a flag that somebody must have set.
// The package does no I/O and keeps no state.
//
// # The decision
//
// [Record.Verify] compares the digest with that of every version, each in
// constant time, and answers with the first [Code] that holds, in the order in
// which the codes are declared. MALFORMED, and NOT_FOUND for an id that does
// not exist, are decided before there is a record to ask.
//
// The vectors of testdata/vectors/verdict.json hold a record, a question and
// the verdict each, for implementations in other languages.
package record
