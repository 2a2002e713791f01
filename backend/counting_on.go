// SPDX-License-Identifier: MPL-2.0

//go:build !apikeys_uncounted

package backend

// countsUse is whether verifications are counted. They always are: the other
// build is what e2e/bench measures the cost of counting against.
const countsUse = true
