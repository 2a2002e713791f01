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

// none is an identity field that there is nothing for.
var none = []string{""}

// identifyAll is identify with every field, empty where there is nothing: a
// proxy that copies what an answer has then overwrites what the client sent,
// and one that writes a placeholder for what it has not writes none.
func (d *decision) identifyAll(h http.Header) {
	h[FieldID], h[FieldName], h[FieldScopes], h[FieldVersion] = none, none, none, none
	d.identify(h)
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
