// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"net/netip"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

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

// Limits are what the role allows now: the scopes and addresses of a key are
// always cut with them.
type Limits struct {
	Scopes []string
	// OverlapScopes narrow a version that is accepted past the end of its
	// overlap. Nil means that they do not.
	OverlapScopes []string
	BoundCIDRs    []string
}

// Query is what a request presents.
type Query struct {
	Digest token.Digest
	// Scopes are all required.
	Scopes []string
	// SourceIP is the zero Addr where the caller did not say.
	SourceIP netip.Addr
}

// Verdict is the answer to a Query.
type Verdict struct {
	Code Code
	// Version is the number of the version whose secret was presented, 0 for
	// CodeNotFound: nothing may then be told about the key.
	Version int
	// Scopes are those in force for that version.
	Scopes []string
}

// Verify judges q at now. It compares the digest with that of every version,
// each in constant time.
func (k *Key) Verify(now time.Time, limits Limits, q Query) Verdict {
	now = k.Now(now)
	var v *Version
	for i := range k.Versions {
		if k.Versions[i].Digest.Equal(q.Digest) {
			v = &k.Versions[i]
		}
	}
	if v == nil {
		return Verdict{Code: CodeNotFound}
	}
	verdict := Verdict{Code: CodeValid, Version: v.Number, Scopes: k.ScopesAt(now, v, limits)}
	state := v.StateAt(now)
	switch {
	case state == StateCompromised:
		verdict.Code = CodeCompromised
	case state == StateRevoked:
		verdict.Code = CodeRevoked
	case k.Disabled:
		verdict.Code = CodeDisabled
	case state == StateRetired && v.agedOut():
		verdict.Code = CodeExpired
	case state == StateRetired:
		verdict.Code = CodeRetired
	case !AllowedFrom(k.BoundCIDRs, q.SourceIP) || !AllowedFrom(limits.BoundCIDRs, q.SourceIP):
		verdict.Code = CodeForbiddenSource
	case !CoversAll(verdict.Scopes, q.Scopes):
		verdict.Code = CodeInsufficientScope
	}
	return verdict
}

// ScopesAt returns the scopes in force for the version v at now: what key and
// role both grant, narrowed by an overlap.
func (k *Key) ScopesAt(now time.Time, v *Version, limits Limits) []string {
	scopes := k.GrantedScopes(limits)
	if v.OverlapScopes != nil {
		scopes = Intersect(scopes, v.OverlapScopes)
	}
	if limits.OverlapScopes != nil && v.StateAt(now) == StateRetiring && !now.Before(v.OverlapEnds) {
		scopes = Intersect(scopes, limits.OverlapScopes)
	}
	return scopes
}

// GrantedScopes returns the scopes that key and role both grant now.
func (k *Key) GrantedScopes(limits Limits) []string {
	if k.Scopes == nil {
		return limits.Scopes
	}
	return Intersect(*k.Scopes, limits.Scopes)
}
