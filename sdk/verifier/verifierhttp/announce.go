// SPDX-License-Identifier: MPL-2.0

package verifierhttp

import (
	"net/http"
	"strconv"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// The fields of an answer that tell a client that its key is being replaced.
const (
	fieldDeprecation = "Deprecation"
	fieldSunset      = "Sunset"
	fieldLink        = "Link"
)

// Announce tells a client that the version it used is being replaced: since
// when by Deprecation (RFC 9745), until when it may go on by Sunset (RFC 8594),
// and where to read on by Link, if link is not empty. It does nothing for a
// version that is not retiring, and tells whether it was.
func Announce(h http.Header, state record.State, v *record.Version, link string) bool {
	if v == nil || state != record.StateRetiring {
		return false
	}
	if !v.SupersededTime.IsZero() {
		h.Set(fieldDeprecation, "@"+strconv.FormatInt(v.SupersededTime.Unix(), 10))
	}
	if !v.OverlapEnds.IsZero() {
		h.Set(fieldSunset, v.OverlapEnds.UTC().Truncate(time.Second).Format(http.TimeFormat))
	}
	if link != "" {
		h.Add(fieldLink, "<"+link+`>; rel="deprecation"`)
	}
	return true
}
