// SPDX-License-Identifier: MPL-2.0

// Package version says which build this is. The Makefile stamps both values
// with -ldflags.
package version

var (
	// Version is the semantic version with a leading v, as Vault's plugin
	// catalogue wants it.
	Version = "v0.1.0-dev"
	// Commit is the abbreviated git commit that was built.
	Commit = "unknown"
)

// String is the version with the commit, as for people.
func String() string { return Version + " (" + Commit + ")" }
