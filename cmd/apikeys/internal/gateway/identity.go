// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"net/http"
	"strconv"
	"strings"
)

// The fields that tell an upstream who asks. Nobody but the gateway may set
// them.
const (
	FieldID      = "X-Consumer-Id"
	FieldName    = "X-Consumer-Name"
	FieldScopes  = "X-Consumer-Scopes"
	FieldVersion = "X-Key-Version"
)

// IdentityFields lists them.
func IdentityFields() []string {
	return []string{FieldID, FieldName, FieldScopes, FieldVersion}
}

// identify sets the fields that tell who asks. A leased key has no name, and a
// public route nobody.
func (d *decision) identify(h http.Header) {
	key, version := d.result.Key, d.result.Version
	if key == nil || d.reason == ReasonPublic {
		return
	}
	h[FieldID] = []string{key.KeyID}
	if key.Name != "" {
		h[FieldName] = []string{key.Name}
	}
	if len(d.result.Scopes) > 0 {
		h[FieldScopes] = []string{strings.Join(d.result.Scopes, " ")}
	}
	if version != nil {
		h[FieldVersion] = []string{strconv.Itoa(version.Number)}
	}
}

// forges tells whether a server may take a field for one of IdentityFields:
// many take underscores for hyphens.
func forges(field string) bool {
	canonical := http.CanonicalHeaderKey(strings.ReplaceAll(field, "_", "-"))
	switch canonical {
	case FieldID, FieldName, FieldScopes, FieldVersion:
		return true
	}
	return false
}
