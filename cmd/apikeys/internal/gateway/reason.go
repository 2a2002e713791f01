// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"errors"
	"net/http"
	"slices"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// Reason is why a request passed or not: a code of a verification, or one of
// the gateway's own.
type Reason string

const validReason = Reason(record.CodeValid)

// The gateway's own reasons.
const (
	// ReasonPublic is that of a public route.
	ReasonPublic Reason = "PUBLIC"
	// ReasonNoKey, ReasonSeveralKeys and ReasonBadAuthorization are those of a
	// request without one key to verify.
	ReasonNoKey            Reason = "NO_KEY"
	ReasonSeveralKeys      Reason = "SEVERAL_KEYS"
	ReasonBadAuthorization Reason = "BAD_AUTHORIZATION"
	// ReasonNoRoute means that no route fits, ReasonPath that it depends on the
	// reader of the path, or of the method, which one does.
	ReasonNoRoute Reason = "NO_ROUTE"
	ReasonPath    Reason = "AMBIGUOUS_PATH"
	// ReasonUntrusted means that somebody else than a trusted proxy asks, and
	// ReasonNotTold that the proxy did not tell what the request is, or told it
	// twice.
	ReasonUntrusted Reason = "UNTRUSTED_PROXY"
	ReasonNotTold   Reason = "REQUEST_NOT_TOLD"
	// ReasonUnavailable means that nobody knows now.
	ReasonUnavailable Reason = "UNAVAILABLE"
)

// Reasons lists every reason there is, those of verifications included.
func Reasons() []Reason {
	all := []Reason{
		ReasonPublic, ReasonNoKey, ReasonSeveralKeys, ReasonBadAuthorization, ReasonNoRoute, ReasonPath,
		ReasonUntrusted, ReasonNotTold, ReasonUnavailable,
	}
	for _, code := range record.Codes() {
		all = append(all, Reason(code))
	}
	return all
}

var (
	passes = []Reason{validReason, ReasonPublic}
	forbid = []Reason{
		Reason(record.CodeForbiddenSource), Reason(record.CodeInsufficientScope), ReasonNoRoute, ReasonPath, ReasonUntrusted, ReasonNotTold,
	}
)

// Status is the status that the proxy is answered with.
func (r Reason) Status() int {
	switch {
	case slices.Contains(passes, r):
		return http.StatusOK
	case slices.Contains(forbid, r):
		return http.StatusForbidden
	case r == ReasonUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusUnauthorized
}

// bodies are all that strangers learn.
var bodies = map[int]string{
	http.StatusUnauthorized:       "unauthorized\n",
	http.StatusForbidden:          "forbidden\n",
	http.StatusServiceUnavailable: "unavailable\n",
}

// reasonOf names what is wrong with how a key is presented.
func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, verifierhttp.ErrNoKey):
		return ReasonNoKey
	case errors.Is(err, verifierhttp.ErrNoBearer):
		return ReasonBadAuthorization
	}
	return ReasonSeveralKeys
}
