// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"net/http"
	"slices"
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

var identityFields = [...]string{FieldID, FieldName, FieldScopes, FieldVersion}

// IdentityFields lists them.
func IdentityFields() []string { return slices.Clone(identityFields[:]) }

// identity are the values of identityFields, empty where there is nothing: a
// leased key has no name, and a public route nobody.
func (d *decision) identity() (values [len(identityFields)]string) {
	key, version := d.result.Key, d.result.Version
	if key == nil || d.reason == ReasonPublic {
		return values
	}
	values[0], values[1] = key.KeyID, key.Name
	switch scopes := d.result.Scopes; len(scopes) {
	case 0:
	case 1:
		values[2] = scopes[0]
	default:
		values[2] = strings.Join(scopes, " ")
	}
	if version != nil {
		values[3] = strconv.Itoa(version.Number)
	}
	return values
}

// identify sets the fields for which there is something.
func (d *decision) identify(h http.Header) {
	for i, value := range d.identity() {
		if value != "" {
			h[identityFields[i]] = []string{value}
		}
	}
}

// identifyAll sets every field, also to nothing: a proxy that copies what an
// answer has then overwrites what the client sent, and one that writes a
// placeholder for what it has not writes none.
func (d *decision) identifyAll(h http.Header) {
	values := d.identity()
	for i, field := range identityFields {
		h[field] = values[i : i+1 : i+1] // one allocation for all
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
