// SPDX-License-Identifier: MPL-2.0

//go:build apikeys_uncounted

package backend

// countsUse: see the build without this tag.
const countsUse = false
