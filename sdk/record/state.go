// SPDX-License-Identifier: MPL-2.0

package record

import "fmt"

// State is what a version is now. The zero State is StateUnknown, which no
// stored version may have.
type State uint8

// The states of a version; the names in the API are those of String.
const (
	// StateUnknown is the zero value and always invalid.
	StateUnknown State = iota
	// StatePending is made but not yet handed out. It is accepted.
	StatePending
	// StateActive is the current one.
	StateActive
	// StateRetiring is superseded and accepted until its AcceptedUntil.
	StateRetiring
	// StateRetired is past its overlap and may be restored for a while.
	StateRetired
	// StateRevoked was ended by an operator or a lease. It is final.
	StateRevoked
	// StateCompromised has leaked. It is final, and remembered for ever.
	StateCompromised
)

var stateNames = [...]string{"unknown", "pending", "active", "retiring", "retired", "revoked", "compromised"}

// States lists every valid state.
func States() []State {
	return []State{StatePending, StateActive, StateRetiring, StateRetired, StateRevoked, StateCompromised}
}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Final tells whether a version in this state can never be accepted again.
func (s State) Final() bool { return s == StateRevoked || s == StateCompromised }

// Ended tells whether a version in this state is refused.
func (s State) Ended() bool { return s == StateRetired || s.Final() }

// MarshalText writes the name that the API uses.
func (s State) MarshalText() ([]byte, error) {
	if s == StateUnknown || int(s) >= len(stateNames) {
		return nil, fmt.Errorf("state %d is not valid", uint8(s))
	}
	return []byte(s.String()), nil
}

// UnmarshalText reads a name written by MarshalText.
func (s *State) UnmarshalText(text []byte) error {
	for _, known := range States() {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("state is not one of %v", States())
}
