// SPDX-License-Identifier: MPL-2.0

// Package keyring is the state machine of one API key and its versions.
//
// It holds values only: no storage, no clock, no randomness, no Vault. A
// transition (Rotate, Promote, Rollback, Extend, Retire, Revoke, Advance)
// takes a Key and a Cause that says when, who and why, and returns a new Key
// or a Refusal; the Key it was given stays as it was. The caller commits the
// new Key with one write, so there is never anything to undo.
//
// What is accepted is computed from the time of the question, never from a
// flag that some job must have set: a retiring version past AcceptedUntil is
// refused whether or not Advance has recorded its retirement yet.
//
// # States
//
//	         Rotate (with a delay)            Promote, Advance
//	            ┌─────────┐                      ┌────────┐
//	────────────▶ pending ├──────────────────────▶ active ◀───────┐
//	Rotate      └────┬────┘                      └───┬────┘       │ Rollback
//	─────────────────┼──────────────▶ active         │ superseded │
//	                 │ Rollback                  ┌───▼──────┐     │
//	                 │            ┌──────────────▶ retiring ├─────┤
//	                 │            │ Extend       └───┬──────┘     │
//	                 │      ┌─────┴────┐             │ its end    │
//	                 └──────▶ retired  ◀─────────────┘            │
//	                        └─────┬────┘                          │
//	                              └───────────────────────────────┘
//	Revoke leads from every state to revoked or compromised, which are
//	final; of the moves between them only revoked → compromised exists.
package keyring
