// SPDX-License-Identifier: MPL-2.0

package record

// Code is the answer to a verification.
type Code string

// The codes, in the order in which they are decided.
const (
	CodeMalformed         Code = "MALFORMED"
	CodeNotFound          Code = "NOT_FOUND"
	CodeCompromised       Code = "COMPROMISED"
	CodeRevoked           Code = "REVOKED"
	CodeDisabled          Code = "DISABLED"
	CodeRetired           Code = "RETIRED"
	CodeExpired           Code = "EXPIRED"
	CodeForbiddenSource   Code = "FORBIDDEN_SOURCE"
	CodeInsufficientScope Code = "INSUFFICIENT_SCOPE"
	CodeValid             Code = "VALID"
)

// Codes lists every code, in the order in which they are decided.
func Codes() []Code {
	return []Code{
		CodeMalformed, CodeNotFound, CodeCompromised, CodeRevoked, CodeDisabled, CodeRetired,
		CodeExpired, CodeForbiddenSource, CodeInsufficientScope, CodeValid,
	}
}
