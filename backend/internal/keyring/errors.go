// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"errors"
	"fmt"
)

// The rules that a transition can run against. A Refusal wraps one of them.
var (
	ErrNoSuchVersion  = errors.New("no such version")
	ErrVersionNeeded  = errors.New("version is required")
	ErrWrongState     = errors.New("the version's state does not allow it")
	ErrFinal          = errors.New("the version has ended for good")
	ErrWindowFull     = errors.New("too many accepted versions")
	ErrPendingExists  = errors.New("a version is pending")
	ErrNotRestorable  = errors.New("outside the rollback window")
	ErrPlaintextGone  = errors.New("the plaintext is no longer stored")
	ErrNotDrained     = errors.New("not drained")
	ErrEndsActive     = errors.New("this would end the active version")
	ErrOverlapTooLong = errors.New("the overlap is too long")
	ErrNotLater       = errors.New("the end would not move later")
	ErrDisabled       = errors.New("the key is disabled")
	ErrLeased         = errors.New("the key is leased")
	ErrNobodyCanRead  = errors.New("nobody could read the new key")
)

// Refusal is the answer to a transition that the rules forbid. Nothing has
// changed. Its text is meant for the caller and holds no secret.
type Refusal struct {
	Rule error
	Text string
}

func (r *Refusal) Error() string { return r.Text }

// Unwrap returns the rule, one of the Err variables of this package.
func (r *Refusal) Unwrap() error { return r.Rule }

func refuse(rule error, format string, args ...any) error {
	return &Refusal{Rule: rule, Text: fmt.Sprintf(format, args...)}
}
