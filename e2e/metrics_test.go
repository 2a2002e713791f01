// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

var deployDir = filepath.Join("..", "deploy")

func deployed(t testing.TB, parts ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(append([]string{deployDir}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// metricsToken is a token for Prometheus, with the policy that is shipped.
func metricsToken(t testing.TB, m *mount) string {
	t.Helper()
	hcl := strings.ReplaceAll(policy(t, "metrics"), "apikeys/", m.path+"/")
	return newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{writePolicy(t, m, "metrics", hcl)}, NoDefaultPolicy: true, Period: "1h"}).ClientToken
}

// replace is strings.Replace for what must be there.
func replace(t testing.TB, text, from, to string) string {
	t.Helper()
	if !strings.Contains(text, from) {
		t.Fatalf("the example has no %q", from)
	}
	return strings.Replace(text, from, to, 1)
}

// scrapeConfig is the example configuration with what differs in a test.
func scrapeConfig(t testing.TB, m *mount) string {
	t.Helper()
	config := deployed(t, "prometheus", "prometheus.yml")
	config = replace(t, config, "scrape_interval: 30s", "scrape_interval: 1s")
	config = replace(t, config, "evaluation_interval: 30s", "evaluation_interval: 1s")
	config = replace(t, config, "scheme: https", "scheme: http")
	config = replace(t, config, "/v1/apikeys/metrics", "/v1/"+m.path+"/metrics")
	config = replace(t, config, "/etc/prometheus/apikeys-token", "apikeys-token")
	config = replace(t, config, "vault.example.com:8200", strings.TrimPrefix(m.srv.Addr, "http://"))
	return replace(t, config, "mount: apikeys", "mount: "+m.path)
}

func TestPrometheusScrapesTheMetricsThroughVault(t *testing.T) {
	t.Parallel()
	harness.Tool(t, "prometheus", "on Debian: apt-get install prometheus")
	m := onDev(t)
	m.role("trading", "overlap_period", "1h")
	m.write("webhooks/siem", fields("url", "http://127.0.0.1:1/", "allow_private", true)) // nobody listens there
	first := m.key("acme", "trading")
	prometheus := harness.StartPrometheus(t, map[string]string{
		"prometheus.yml":    scrapeConfig(t, m),
		"apikeys.rules.yml": deployed(t, "prometheus", "apikeys.rules.yml"),
		"apikeys-token":     metricsToken(t, m) + "\n",
	})

	// What happens before the first scrape is no increase.
	eventually(t, 60*time.Second, func() error {
		samples, err := prometheus.Query(`apikeys_verifications_total{role="trading",code="COMPROMISED"}`)
		if err == nil && (len(samples) != 1 || samples[0].Value != "0") {
			err = fmt.Errorf("not scraped yet: %v", samples)
		}
		return err
	})
	for range 3 {
		m.accepts(first)
	}
	second := m.rotate("acme")
	m.accepts(second)
	m.accepts(first)
	m.rejects("MALFORMED", "nobody's")
	m.write("revoke/acme", fields("version", 1, "compromised", true))
	m.rejects("COMPROMISED", first)

	eventually(t, 60*time.Second, func() error {
		for expr, want := range map[string]string{
			`apikeys_verifications_total{role="trading",code="VALID"}`:                     "5",
			`apikeys_verifications_total{role="trading",code="COMPROMISED"}`:               "1",
			`apikeys_verifications_total{role="",code="MALFORMED"}`:                        "1",
			`apikeys_verifications_total{role="trading",code="RETIRED"}`:                   "0",
			`apikeys_rotations_total{role="trading",trigger="manual"}`:                     "1",
			`sum(apikeys_rotations_total)`:                                                 "1",
			`apikeys_transitions_total{type="version.activated"}`:                          "2",
			`apikeys_build_info{version="` + pluginVersion + `",commit="e2e"}`:             "1",
			`apikeys_outbox_depth{hook="siem"} > bool 0`:                                   "1",
			`count(apikeys_rollovers)`:                                                     "5",
			`sum(apikeys_cache_requests_total{cache="keys",result="hit"}) > bool 0`:        "1",
			`up{mount="` + m.path + `"}`:                                                   "1",
			`sum(increase(apikeys_verifications_total{code="COMPROMISED"}[10m])) > bool 0`: "1",
		} {
			samples, err := prometheus.Query(expr)
			if err != nil {
				return err
			}
			if len(samples) != 1 || samples[0].Value != want {
				return fmt.Errorf("%s is %v, want %s", expr, samples, want)
			}
		}
		return nil
	})

	// The alert for it goes off, and nothing is wrong with any other rule.
	eventually(t, 60*time.Second, func() error {
		samples, err := prometheus.Query(`ALERTS{alertname="ApikeysCompromisedKeyUsed",alertstate="firing"}`)
		if err == nil && len(samples) != 1 {
			err = fmt.Errorf("the alert does not fire: %v", samples)
		}
		return err
	})
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	eventually(t, 60*time.Second, func() error {
		if err := prometheus.Get("rules", nil, &rules); err != nil {
			return err
		}
		for _, group := range rules.Groups {
			for _, rule := range group.Rules {
				if rule.Health != "ok" {
					return fmt.Errorf("rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
				}
			}
		}
		return nil
	})
	if len(rules.Groups) == 0 {
		t.Error("Prometheus has no rules")
	}
	checkDashboard(t, prometheus)

	// Prometheus saw names of metrics, roles, codes: no key.
	for _, label := range []string{"__name__", "role", "code", "type", "hook"} {
		var values []string
		if err := prometheus.Get("label/"+label+"/values", nil, &values); err != nil {
			t.Fatal(err)
		}
		for _, value := range values {
			if strings.Contains(value, "acme") || strings.Contains(value, m.info("acme").KeyID) {
				t.Errorf("label %s has %q", label, value)
			}
		}
	}
}

// checkDashboard runs every query of the dashboard.
func checkDashboard(t *testing.T, prometheus *harness.Prometheus) {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(deployed(t, "grafana", "apikeys.json")), &board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$__range", "6h", "$job", ".*", "$mount", ".*", "$role", ".*")
	answered := 0
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			samples, err := prometheus.Query(variables.Replace(target.Expr))
			if err != nil {
				t.Errorf("panel %q: %v", panel.Title, err)
			}
			if len(samples) > 0 {
				answered++
			}
		}
	}
	if answered < 10 {
		t.Errorf("%d queries of the dashboard have an answer", answered)
	}
}

func TestPromtoolIsContentWithMetricsRulesAndConfig(t *testing.T) {
	t.Parallel()
	harness.Tool(t, "promtool", "on Debian: apt-get install prometheus")
	m := onDev(t)
	m.role("trading", "overlap_period", "1h")
	apiKey := m.key("acme", "trading")
	m.rotate("acme")
	m.accepts(apiKey)

	scraper := m.as(metricsToken(t, m))
	a := scraper.call(http.MethodGet, "metrics", nil)
	if a.status != http.StatusOK || !strings.HasPrefix(a.text, "# HELP apikeys_") {
		t.Fatalf("metrics: %d %s", a.status, shorten(a.text))
	}
	if out, err := harness.Promtool(t, ".", a.text, "check", "metrics"); err != nil || out != "" {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	if !strings.Contains(a.text, "apikeys_rollovers{health=") || !strings.Contains(a.text, "\napikeys_overlap_seconds_left_min 35") {
		t.Errorf("nothing of the rollover in:\n%s", a.text)
	}
	if out := m.cli("read", "-format=raw", m.path+"/metrics"); !strings.Contains(out, "\napikeys_build_info{") {
		t.Errorf("the CLI shows %s", shorten(out))
	}

	dir := filepath.Join(deployDir, "prometheus")
	for _, args := range [][]string{
		{"check", "rules", "apikeys.rules.yml"},
		{"test", "rules", "apikeys.rules.test.yml"},
		{"check", "config", "--syntax-only", "prometheus.yml"},
	} {
		if out, err := harness.Promtool(t, dir, "", args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func TestMetricsPolicyReadsTheMetricsAndNothingElse(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	scraper := m.as(metricsToken(t, m))
	request, err := http.NewRequest(http.MethodGet, m.srv.Addr+"/v1/"+m.path+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+scraper.token)
	resp, err := httpClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("metrics: %s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	if a, err := scraper.send(http.MethodPost, "auth/token/renew-self", map[string]any{}); err != nil || !a.ok() {
		t.Errorf("renew-self: %v, %v", a, err)
	}
	for _, path := range []string{"info", "config", "keys/acme", "rollovers/acme", "metrics/x"} {
		if a := scraper.call(http.MethodGet, path, nil); a.status != http.StatusForbidden {
			t.Errorf("GET %s: %d", path, a.status)
		}
	}
	if a := scraper.call(http.MethodPost, "verify", fields("api_key", "nobody's")); a.status != http.StatusForbidden {
		t.Errorf("verify: %d", a.status)
	}
	m.refuses(http.StatusBadRequest, http.MethodGet, "metrics?"+url.Values{"nonsense": {"1"}}.Encode(), nil, "nonsense")
}
