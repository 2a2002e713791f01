// SPDX-License-Identifier: MPL-2.0

//go:build amd64 || arm64

package verifier

import "unsafe"

// prefetch has two cache lines on their way. A read would do so, too, but
// nothing after it is done with before it is; so the hash of the token would
// wait for memory instead of being computed in that time.
//
//go:noescape
func prefetch(p unsafe.Pointer)
