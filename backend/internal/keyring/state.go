// SPDX-License-Identifier: MPL-2.0

package keyring

import "github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"

// State is what a version is now. Verifiers know the same states.
type State = record.State

// The states of a version.
const (
	StateUnknown     = record.StateUnknown
	StatePending     = record.StatePending
	StateActive      = record.StateActive
	StateRetiring    = record.StateRetiring
	StateRetired     = record.StateRetired
	StateRevoked     = record.StateRevoked
	StateCompromised = record.StateCompromised
)
