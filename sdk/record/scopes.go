// SPDX-License-Identifier: MPL-2.0

package record

import (
	"slices"
	"strings"
)

// Covers tells whether a granted scope allows want: the same text, or, with a
// trailing *, any that begins with what stands before it.
func Covers(granted, want string) bool {
	if prefix, wild := strings.CutSuffix(granted, "*"); wild {
		return strings.HasPrefix(want, prefix)
	}
	return granted == want
}

// CoversAll tells whether each of want is allowed by one of granted.
func CoversAll(granted, want []string) bool {
	for _, w := range want {
		if !slices.ContainsFunc(granted, func(g string) bool { return Covers(g, w) }) {
			return false
		}
	}
	return true
}

// Intersect returns the scopes that both a and b grant, in the order of a,
// then of b. Where one covers the other the narrower is meant.
func Intersect(a, b []string) []string {
	both := []string{}
	add := func(s string) {
		if !slices.Contains(both, s) {
			both = append(both, s)
		}
	}
	for _, s := range a {
		if CoversAll(b, []string{s}) {
			add(s)
		}
	}
	for _, s := range b {
		if CoversAll(a, []string{s}) {
			add(s)
		}
	}
	return both
}
