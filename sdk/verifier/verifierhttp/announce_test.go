// SPDX-License-Identifier: MPL-2.0

package verifierhttp_test

import (
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

func TestAnnounceRetiringVersions(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 1, 1, 12, 0, 0, 500, time.UTC)
	v := &record.Version{Number: 1, Life: record.Life{State: record.StateRetiring, SupersededTime: since, OverlapEnds: since.Add(time.Hour)}}
	h := http.Header{}
	if !verifierhttp.Announce(h, record.StateRetiring, v, "https://example.com/keys") {
		t.Error("a retiring version was not announced")
	}
	want := http.Header{
		"Deprecation": {"@1767268800"}, "Sunset": {"Thu, 01 Jan 2026 13:00:00 GMT"},
		"Link": {`<https://example.com/keys>; rel="deprecation"`},
	}
	if !maps.EqualFunc(h, want, func(a, b []string) bool { return len(a) == 1 && len(b) == 1 && a[0] == b[0] }) {
		t.Errorf("got %v, want %v", h, want)
	}

	for _, state := range []record.State{record.StateActive, record.StatePending, record.StateRetired} {
		h := http.Header{}
		if verifierhttp.Announce(h, state, v, "https://example.com") || len(h) > 0 {
			t.Errorf("%v announced %v", state, h)
		}
	}
	if h := (http.Header{}); verifierhttp.Announce(h, record.StateRetiring, nil, "") || len(h) > 0 {
		t.Errorf("no version announced %v", h)
	}
}
