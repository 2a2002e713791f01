// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"reflect"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
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

// Verify judges q at now. It compares the digest with that of every version,
// each in constant time. The decision is the one that verifiers elsewhere make
// on the VerifierRecord of the key.
func (k *Key) Verify(now time.Time, limits Limits, q record.Query) record.Verdict {
	var v *Version
	for i := range k.Versions {
		if k.Versions[i].Digest.Equal(q.Digest) {
			v = &k.Versions[i]
		}
	}
	if v == nil {
		return record.Verdict{Code: record.CodeNotFound}
	}
	r := k.header(limits)
	told := v.record(r.Scopes, limits)
	return r.Judge(now, &told, q)
}

// VerifierRecord is what verifiers are told of the key: never a plaintext, and the
// digest of a version that was made elsewhere only where it is among
// presented.
func (k *Key) VerifierRecord(limits Limits, presented []token.Digest) *record.Record {
	r := k.header(limits)
	r.Versions = make([]record.Version, len(k.Versions))
	for i := range k.Versions {
		v := &k.Versions[i]
		r.Versions[i] = v.record(r.Scopes, limits)
		if v.Imported && !containsDigest(presented, v.Digest) {
			r.Versions[i].Digest = token.Digest{}
		}
	}
	return &r
}

// header is the record without its versions.
func (k *Key) header(limits Limits) record.Record {
	return record.Record{
		KeyID: k.ID, Name: k.Name, Role: k.Role, Enabled: !k.Disabled, Imported: k.Imported, Deleted: !k.Deleted.IsZero(),
		Scopes: k.GrantedScopes(limits), BoundCIDRs: k.BoundCIDRs, RoleBoundCIDRs: limits.BoundCIDRs,
		CustomMetadata: k.CustomMetadata, Recorded: k.Recorded,
	}
}

// record is what verifiers are told of the version, of a key with these
// scopes.
func (v *Version) record(granted []string, limits Limits) record.Version {
	told := record.Version{
		Number: v.Number, Digest: v.Digest, Imported: v.Imported, Life: *v.life(), SupersededBy: v.SupersededBy,
	}
	if v.OverlapScopes != nil {
		granted = record.Intersect(granted, v.OverlapScopes)
		told.Scopes = &granted
	}
	if limits.OverlapScopes != nil && v.State == StateRetiring {
		late := record.Intersect(granted, limits.OverlapScopes)
		told.LateScopes = &late
	}
	return told
}

func containsDigest(digests []token.Digest, d token.Digest) bool {
	found := false
	for _, one := range digests {
		found = one.Equal(d) || found
	}
	return found
}

// GrantedScopes returns the scopes that key and role both grant now.
func (k *Key) GrantedScopes(limits Limits) []string {
	if k.Scopes == nil {
		return limits.Scopes
	}
	return record.Intersect(*k.Scopes, limits.Scopes)
}

// Equal tells whether both allow the same.
func (l Limits) Equal(o Limits) bool {
	return slices.Equal(l.Scopes, o.Scopes) && slices.Equal(l.BoundCIDRs, o.BoundCIDRs) &&
		(l.OverlapScopes == nil) == (o.OverlapScopes == nil) && slices.Equal(l.OverlapScopes, o.OverlapScopes)
}

// SameToVerifiers tells whether verifiers are told the same of k and o,
// whatever the role and the tokens that they know, except when it was recorded.
// Where in doubt it says that they are not.
func (k *Key) SameToVerifiers(o *Key) bool {
	return (k.Scopes == nil) == (o.Scopes == nil) && reflect.DeepEqual(k.told(), o.told())
}

// told is the record of the key for a role that allows everything and narrows
// nothing, with all digests.
func (k *Key) told() *record.Record {
	all := []string{"*"}
	r := k.VerifierRecord(Limits{Scopes: all, OverlapScopes: all}, nil)
	for i := range r.Versions {
		r.Versions[i].Digest = k.Versions[i].Digest
	}
	r.Recorded = time.Time{}
	return r
}
