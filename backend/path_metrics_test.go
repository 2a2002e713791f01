// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/metrics"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// scrape reads the metrics as Prometheus does.
func (m *mount) scrape() string {
	m.t.Helper()
	data := m.read("metrics")
	if data[logical.HTTPContentType] != metrics.ContentType || data[logical.HTTPStatusCode] != float64(http.StatusOK) {
		m.t.Errorf("answered %v, status %v", data[logical.HTTPContentType], data[logical.HTTPStatusCode])
	}
	encoded, _ := data[logical.HTTPRawBody].(string)
	body, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		m.t.Fatalf("the body is not what Vault decodes: %v", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := parser.TextToMetricFamilies(bytes.NewReader(body)); err != nil {
		m.t.Errorf("Prometheus cannot read this: %v\n%s", err, body)
	}
	m.heard(string(body)) // no API key may stand in it
	return string(body)
}

// shows fails the test unless each line stands among the metrics.
func (m *mount) shows(lines ...string) {
	m.t.Helper()
	text := m.scrape()
	has := strings.Split(text, "\n")
	for _, line := range lines {
		if !slices.Contains(has, line) {
			name, _, _ := strings.Cut(line, "{")
			m.t.Errorf("no line %s among\n%s", line, only(text, name))
		}
	}
}

func only(text, prefix string) string {
	var kept []string
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, prefix) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

func (m *mount) made(path string, data object) string {
	m.t.Helper()
	apiKey, _ := m.write(path, data)[fieldAPIKey].(string)
	if apiKey == "" {
		m.t.Fatalf("%s made no key", path)
	}
	return apiKey
}

func TestMetricsTellWhatAMountDid(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("roles/trading", object{"overlap_period": "1h", "rollback_window": 0})
	m.write("roles/yearly", object{"rotation_period": "240h", "overlap_period": "1h"})
	first := m.made("keys/acme", object{fieldRole: "trading"})
	m.write("keys/globex", object{fieldRole: "yearly"})
	m.shows(
		`apikeys_transitions_total{type="key.created"} 2`, `apikeys_rotations_total{role="trading",trigger="manual"} 0`,
		`apikeys_rollovers{health="on_track"} 0`, `apikeys_verifications_total{code="COMPROMISED",role="trading"} 0`,
	)

	second := m.made("rotate/acme", object{})
	for _, apiKey := range []string{first, second, second} {
		m.write("verify", object{fieldAPIKey: apiKey})
	}
	m.write("verify", object{fieldBatchInput: []any{
		object{fieldAPIKey: second, fieldScopes: []any{"nothing:has:it"}},
		object{fieldAPIKey: "nonsense"},
		object{fieldAPIKey: second[:len(second)-1]},
		object{}, // not a verification
	}})
	m.clock.Advance(30 * time.Second)
	m.shows(
		`apikeys_verifications_total{code="VALID",role="trading"} 3`,
		`apikeys_verifications_total{code="INSUFFICIENT_SCOPE",role="trading"} 1`,
		`apikeys_verifications_total{code="MALFORMED",role=""} 2`,
		`apikeys_rotations_total{role="trading",trigger="manual"} 1`,
		`apikeys_rollovers{health="on_track"} 1`, `apikeys_rollovers{health="unknown"} 0`, `apikeys_overlap_seconds_left_min 3570`,
	)

	m.write("revoke/acme", object{fieldVersion: 2, "compromised": true, "rotate": true})
	m.write("verify", object{fieldAPIKey: second})
	m.write("roles/trading/rotate", object{})
	m.write("sweep", object{})
	m.shows(
		`apikeys_verifications_total{code="COMPROMISED",role="trading"} 1`,
		`apikeys_rotations_total{role="trading",trigger="emergency"} 1`,
		`apikeys_rotations_total{role="trading",trigger="job"} 1`,
		`apikeys_rotations_total{role="trading",trigger="manual"} 1`,
		`apikeys_transitions_total{type="version.compromised"} 1`,
	)

	m.clock.Advance(240 * time.Hour)
	m.write("sweep", object{})
	m.shows(
		`apikeys_rotations_total{role="yearly",trigger="scheduled"} 1`, `apikeys_rotations_total{role="yearly",trigger="manual"} 0`,
		`apikeys_transitions_total{type="version.retiring"} 3`,
	)
	text := m.scrape()
	for _, want := range []string{`apikeys_cache_requests_total{cache="keys",result="hit"} `, `apikeys_tick_duration_seconds_count `} {
		if lines := only(text, want); lines == "" || strings.HasSuffix(lines, " 0") {
			t.Errorf("%s counts nothing: %q", want, lines)
		}
	}
	for _, key := range []string{"acme", "globex", m.keyID("acme")} {
		if strings.Contains(text, key) {
			t.Errorf("the metrics tell of the key %s", key)
		}
	}
}

func (m *mount) keyID(name string) string {
	m.t.Helper()
	id, _ := m.read("keys/" + name)[fieldKeyID].(string)
	return id
}

func TestMetricsTellHowLateDueWorkIs(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("roles/hourly", object{"rotation_period": "1h", "overlap_period": "10m", "notify_before": 0})
	m.write("keys/acme", object{fieldRole: "hourly"})
	m.clock.Advance(time.Hour + 7*time.Minute)
	m.write("sweep", object{})
	m.shows(`apikeys_tick_lag_seconds 420`, `apikeys_tick_keys_total 1`)
	m.write("sweep", object{})
	m.shows(`apikeys_tick_lag_seconds 0`)
}

func TestMetricsAreAnsweredWhereRolloversCannotBeListed(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	storage := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, storage, clock.NewManual(epoch))
	storage.Inject(storetest.Fault{At: 1, Rest: true})
	text := m.scrape()
	if strings.Contains(text, "apikeys_rollovers{") || !strings.Contains(text, "apikeys_build_info{") {
		t.Errorf("answered\n%s", text)
	}
	if !strings.Contains(m.logs.String(), "without the rollovers") {
		t.Error("the log does not say what is missing")
	}
}

func TestMetricsTellHowManyEventsWait(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("roles/trading", object{})
	m.write("webhooks/siem", object{"url": "http://127.0.0.1:1/", "allow_private": true, "enabled": false})
	m.shows(`apikeys_outbox_depth{hook="siem"} 0`)
	m.write("keys/acme", object{fieldRole: "trading"})
	m.tell()
	if strings.Contains(m.scrape(), `apikeys_outbox_depth{hook="siem"} 0`) {
		t.Fatal("no event waits, although its receiver is disabled")
	}
}

func TestEachMountHasMetricsOfItsOwn(t *testing.T) {
	t.Parallel()
	one, other := newMount(t), newMount(t)
	one.write("roles/trading", object{})
	one.write("verify", object{fieldAPIKey: one.made("keys/acme", object{fieldRole: "trading"})})
	if text := other.scrape(); strings.Contains(text, "trading") {
		t.Errorf("one mount tells of another:\n%s", text)
	}
}
