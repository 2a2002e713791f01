// SPDX-License-Identifier: MPL-2.0

// Package verifierhttp is how HTTP requests present API keys, and how answers
// tell what became of them.
//
// [Places] finds the one key of a request. A request that presents several is
// refused, also where they are equal.
package verifierhttp
