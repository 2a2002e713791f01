// SPDX-License-Identifier: MPL-2.0

package record

import (
	"net/netip"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// Record is what verifiers know of one key. Whoever shares one treats it as
// immutable.
type Record struct {
	KeyID string `json:"key_id"`
	// Name is empty for a leased key.
	Name    string `json:"name,omitempty"`
	Role    string `json:"role"`
	Enabled bool   `json:"enabled"`
	// Imported tells that a version of the key was made elsewhere, and is found
	// by its digest.
	Imported bool `json:"imported,omitempty"`
	// Deleted tells that only the compromised versions of the key are left.
	Deleted bool `json:"deleted,omitempty"`
	// Scopes are those that key and role both grant.
	Scopes []string `json:"scopes,omitempty"`
	// BoundCIDRs and RoleBoundCIDRs must both allow the source of a request;
	// an empty list allows every source.
	BoundCIDRs     []string          `json:"bound_cidrs,omitempty"`
	RoleBoundCIDRs []string          `json:"role_bound_cidrs,omitempty"`
	CustomMetadata map[string]string `json:"custom_metadata,omitempty"`
	// Recorded is the time of the last transition. Time never runs below it.
	Recorded time.Time `json:"recorded,omitzero"`
	// Versions are in ascending order of their numbers.
	Versions []Version `json:"versions,omitempty"`
}

// Version is one secret of a key.
type Version struct {
	Number int `json:"version"`
	// Digest is the SHA-256 of the whole token. It is zero where it is not
	// told, which equals no token's.
	Digest token.Digest `json:"digest,omitzero"`
	// Imported tells that the token was made elsewhere. Its digest, which may
	// be that of a weak secret, is told only to those who presented it.
	Imported bool `json:"imported,omitempty"`
	Life
	// SupersededBy is the version that took this one's place, 0 for none.
	SupersededBy int `json:"superseded_by,omitempty"`
	// Scopes are in force instead of the key's, and LateScopes instead of
	// those once the overlap that clients were told is over. Nil changes
	// nothing; an empty list leaves none.
	Scopes     *[]string `json:"scopes,omitempty"`
	LateScopes *[]string `json:"late_scopes,omitempty"`
}

// Query is what a request presents.
type Query struct {
	Digest token.Digest
	// Scopes are all required.
	Scopes []string
	// SourceIP is the zero Addr where it is not known.
	SourceIP netip.Addr
}

// Verdict is the answer to a Query.
type Verdict struct {
	Code Code
	// Version is the number of the version whose secret was presented, 0 for
	// CodeNotFound: nothing may then be told about the key.
	Version int
	// State is that of the version at the time of the question.
	State State
	// Scopes are those in force for that version. They belong to the record.
	Scopes []string
}

// Verify judges q at now, which must not be before what other verdicts were
// judged at. It compares the digest with that of every version, each in
// constant time, and allocates nothing.
func (r *Record) Verify(now time.Time, q Query) Verdict {
	v := r.Find(q.Digest)
	if v == nil {
		return Verdict{Code: CodeNotFound}
	}
	return r.Judge(now, v, q)
}

// Find returns the version with this digest, or nil.
func (r *Record) Find(d token.Digest) *Version {
	if d.IsZero() {
		return nil
	}
	var found *Version
	for i := range r.Versions {
		if r.Versions[i].Digest.Equal(d) {
			found = &r.Versions[i]
		}
	}
	return found
}

// Judge is Verify for a version that is known to be the one that was
// presented.
func (r *Record) Judge(now time.Time, v *Version, q Query) Verdict {
	if now.Before(r.Recorded) {
		now = r.Recorded
	}
	verdict := Verdict{Code: CodeValid, Version: v.Number, State: v.StateAt(now), Scopes: r.ScopesAt(now, v)}
	switch {
	case verdict.State == StateCompromised:
		verdict.Code = CodeCompromised
	case verdict.State == StateRevoked:
		verdict.Code = CodeRevoked
	case !r.Enabled:
		verdict.Code = CodeDisabled
	case verdict.State == StateRetired && v.AgedOut():
		verdict.Code = CodeExpired
	case verdict.State == StateRetired:
		verdict.Code = CodeRetired
	case !AllowedFrom(r.BoundCIDRs, q.SourceIP) || !AllowedFrom(r.RoleBoundCIDRs, q.SourceIP):
		verdict.Code = CodeForbiddenSource
	case !CoversAll(verdict.Scopes, q.Scopes):
		verdict.Code = CodeInsufficientScope
	}
	return verdict
}

// ScopesAt returns the scopes in force for the version v at now.
func (r *Record) ScopesAt(now time.Time, v *Version) []string {
	switch {
	case v.LateScopes != nil && v.Late(now):
		return *v.LateScopes
	case v.Scopes != nil:
		return *v.Scopes
	}
	return r.Scopes
}

// Version returns the version with this number, or nil.
func (r *Record) Version(number int) *Version {
	for i := range r.Versions {
		if r.Versions[i].Number == number {
			return &r.Versions[i]
		}
	}
	return nil
}
