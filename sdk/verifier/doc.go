// SPDX-License-Identifier: MPL-2.0

// Package verifier verifies API keys without asking Vault for each.
package verifier
