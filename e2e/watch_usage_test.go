// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

func TestUseIsCountedByVersionAndSourceAndOutlivesThePlugin(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	m.role("trading", "overlap_period", "1h")
	v1 := m.key("acme", "trading")
	v2 := m.rotate("acme")
	for range 3 {
		m.accepts(v1, "source", "eu")
	}
	m.accepts(v1, "source", "us")
	m.accepts(v2, "source", "eu")
	m.rejects("INSUFFICIENT_SCOPE", v2, "source", "eu", "scopes", []string{"admin"})
	counted := func(when string, eu1, us1, eu2, refused int) {
		t.Helper()
		use := m.use("acme")
		one, two := use.version(1), use.version(2)
		if one.Sources["eu"].Count != eu1 || one.Sources["us"].Count != us1 || two.Sources["eu"].Count != eu2 || two.Refused != refused || one.UseCount != eu1+us1 {
			t.Errorf("%s: %+v", when, use)
		}
		hours := 0
		for _, n := range one.Sources["eu"].Hours {
			hours += n
		}
		if hours != eu1 || one.LastUsed.IsZero() || time.Since(one.LastUsed) > 10*time.Minute {
			t.Errorf("%s: %d uses in hours, want %d; last used %s", when, hours, eu1, one.LastUsed)
		}
	}
	counted("unflushed", 3, 1, 1, 1)
	m.write("sweep", nil)
	counted("flushed", 3, 1, 1, 1)
	srv.ReloadPlugin(t, harness.PluginName)
	counted("after a reload", 3, 1, 1, 1)

	// What other verifiers report.
	srv.Policy(t, "verifier", policy(t, "verifier"))
	verifier := m.as(newToken(t, srv, api.TokenCreateRequest{Policies: []string{"verifier"}, NoDefaultPolicy: true, TTL: "1h"}).ClientToken)
	id := m.info("acme").KeyID
	good := func(count int) map[string]any {
		return fields("key_id", id, "version", 2, "source", "gateway", "count", count, "refused", 1, "last_used", time.Now().UTC().Format(time.RFC3339))
	}
	with := func(field string, value any) map[string]any {
		entry := good(1000)
		entry[field] = value
		return entry
	}
	report := func(boot string, sequence int, entries ...any) map[string]any {
		return fields("verifier", "edge-1", "boot", boot, "sequence", sequence, "entries", entries)
	}
	faults := []any{
		with("key_id", strings.Repeat("0", 12)), with("key_id", "junk"), with("version", 9), with("count", -1), with("refused", -1),
		with("count", 2_000_000_000), with("count", "1e30"), with("last_used", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)),
		with("last_used", "yesterday"), with("source", "a b"), "not a map",
	}
	answer := verifier.write("usage", report("b1", 2, append([]any{good(7)}, faults...)...))
	if errs, _ := answer["errors"].([]any); answer["counted"] != 1.0 || answer["duplicate"] != false || len(errs) != len(faults) {
		t.Errorf("a report with %d bad entries: %v", len(faults), answer)
	}
	gateway := func(want, refused int) {
		t.Helper()
		if got := m.use("acme").version(2).Sources["gateway"]; got.Count != want || got.Refused != refused {
			t.Errorf("the gateway reported %d and %d refused, want %d and %d", got.Count, got.Refused, want, refused)
		}
	}
	gateway(7, 1)
	if again := verifier.write("usage", report("b1", 2, good(7))); again["duplicate"] != true || again["counted"] != 0.0 {
		t.Errorf("a retried report: %v", again)
	}
	gateway(7, 1)
	verifier.write("usage", report("b1", 1, good(5))) // late
	verifier.write("usage", report("b2", 2, good(2))) // after a restart of the verifier
	gateway(14, 3)

	const bad = http.StatusBadRequest
	verifier.refuses(bad, http.MethodPost, "usage", fields("verifier", "edge-1", "boot", "b2"), "sequence")
	verifier.refuses(bad, http.MethodPost, "usage", fields("verifier", "edge-1", "boot", "b2", "sequence", -1), "sequence")
	verifier.refuses(bad, http.MethodPost, "usage", fields("verifier", "a b", "boot", "b2", "sequence", 1), "verifier")
	verifier.refuses(bad, http.MethodPost, "usage", fields("verifier", "edge-1", "boot", "b2", "sequence", 9, "reported_through", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)), "reported_through", "future")
	verifier.refuses(bad, http.MethodPost, "usage", fields("verifier", "edge-1", "boot", "b2", "sequence", 9, "entries", make([]any, 1001)), "entries", "1000")
	began := time.Now()
	large := make([]any, 9000) // Vault itself takes at most 10,000
	for i := range large {
		large[i] = with("source", strings.Repeat("x", 1100))
	}
	verifier.refuses(bad, http.MethodPost, "usage", report("b2", 9, large...), "entries", "1000", "9000")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a report of 10 MB was refused after %s", took)
	}
	gateway(14, 3)

	// A retried report counts once over a crash too, if it was flushed.
	m.write("sweep", nil)
	killPlugin(t, srv)
	eventually(t, 30*time.Second, func() error { _, err := m.tryVerify(v1, "source", "us"); return err })
	counted("after a crash", 3, 2, 1, 1+3)
	if again := verifier.write("usage", report("b2", 2, good(2))); again["duplicate"] != true {
		t.Errorf("a report that was retried after a crash: %v", again)
	}
	gateway(14, 3)
	if got := m.info("acme").version(1).UseCount; got != 5 {
		t.Errorf("keys/acme counts %d uses of version 1, want 5", got)
	}
}
