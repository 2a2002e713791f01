// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// endsOnTime verifies a key until it is refused, and checks each answer
// against the deadline that the server had told: accepted before it, refused
// from it on.
func (m *mount) endsOnTime(apiKey string) {
	m.t.Helper()
	deadline := m.accepts(apiKey).AcceptedUntil
	if deadline.IsZero() {
		m.t.Fatal("the version has no accepted_until")
	}
	harness.Eventually(m.t, time.Until(deadline)+10*time.Second, 20*time.Millisecond, func() error {
		asked := time.Now()
		v := m.verify(apiKey)
		answered := time.Now()
		switch {
		case v.Valid && !asked.Before(deadline):
			m.t.Errorf("accepted %s past its accepted_until", asked.Sub(deadline))
		case !v.Valid && answered.Before(deadline):
			m.t.Errorf("refused with %s %s before its accepted_until", v.Code, deadline.Sub(answered))
		case !v.Valid && v.Code != "RETIRED":
			m.t.Errorf("refused with %s, want RETIRED", v.Code)
		case v.Valid:
			return fmt.Errorf("still %s", v.Code)
		}
		return nil
	})
}

func TestRolloverByCLIAsAUserWould(t *testing.T) {
	t.Parallel()
	srv := devServer(t)
	m := &mount{t: t, srv: srv, path: "apikeys", token: srv.RootToken}
	m.cli("secrets", "enable", "-path=apikeys", "-plugin-version="+pluginVersion, harness.PluginName)
	m.cli("write", "apikeys/roles/trading", "scopes=orders:read,orders:write", "overlap_period=5s")
	m.cli("write", "apikeys/keys/acme", "role=trading", "scopes=orders:read", "custom_metadata=team=blue")
	v1, _ := m.cliJSON("read", "apikeys/static-creds/acme")["api_key"].(string)
	startClient(t, m)

	v2, _ := m.cliJSON("write", "-f", "apikeys/rotate/acme")["api_key"].(string)
	if v1 == "" || v1 == v2 {
		t.Fatal("the rotation answered no new key")
	}
	old := m.accepts(v1, "scopes", []string{"orders:read"})
	if old.State != "retiring" || old.SupersededBy != 2 || !old.OverlapEnds.Equal(old.AcceptedUntil) {
		t.Errorf("the old version: %+v", old)
	}
	if current := m.accepts(v2); current.State != "active" || current.Version != 2 || current.Name != "acme" {
		t.Errorf("the new version: %+v", current)
	}
	m.rejects("INSUFFICIENT_SCOPE", v2, "scopes", []string{"orders:write"})
	if out := m.cli("write", "-field=code", "apikeys/verify", "api_key="+v1); strings.TrimSpace(out) != "VALID" {
		t.Errorf("vault write apikeys/verify: %s", out)
	}

	// No tick comes in between: the deadline is enforced by verify itself.
	m.endsOnTime(v1)
	if out := m.cli("write", "-field=code", "apikeys/verify", "api_key="+v1); strings.TrimSpace(out) != "RETIRED" {
		t.Errorf("vault write apikeys/verify after the overlap: %s", out)
	}
	m.accepts(v2)
	if got := m.info("acme"); got.CurrentVersion != 2 || got.version(1).State != "retired" {
		t.Errorf("the key after the overlap: %+v", got)
	}
	if out := m.cli("list", "apikeys/keys"); !strings.Contains(out, "acme") {
		t.Errorf("vault list apikeys/keys: %s", out)
	}
	if out := m.cli("read", "apikeys/keys/acme"); strings.Contains(out, v1) || strings.Contains(out, v2) {
		t.Error("reading the key shows an API key")
	}
}

func TestRollbackMakesTheFormerVersionActiveAgain(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "6s")
	v1 := m.key("acme", "trading")
	c := startClient(t, m)
	v2 := m.rotate("acme")
	c.changesOverTo(2)

	back := m.cliJSON("write", m.path+"/rollback/acme", "reason=clients fail")
	if back["version"] != 1.0 || back["state"] != "active" || back["superseded"] != 2.0 {
		t.Errorf("rollback answered %v", back)
	}
	if v := m.accepts(v1); v.State != "active" || v.SupersededBy != 0 || !v.AcceptedUntil.IsZero() {
		t.Errorf("the version rolled back to: %+v", v)
	}
	if v := m.accepts(v2); v.State != "retiring" || v.SupersededBy != 1 {
		t.Errorf("the version rolled back from: %+v", v)
	}
	c.changesOverTo(1)
	m.endsOnTime(v2)

	// Also from retired, and with the newer one ended at once.
	m.cli("write", m.path+"/rollback/acme", "version=2")
	m.accepts(v2)
	c.changesOverTo(2)
	m.write("rollback/acme", fields("version", 1))
	c.changesOverTo(1)
	m.write("rotate/acme", nil)
	c.changesOverTo(3)
	m.refuses(http.StatusBadRequest, http.MethodPost, "rollback/acme", fields("version", 9), "no version 9")
	m.refuses(http.StatusBadRequest, http.MethodPost, "rollback/acme", fields("version", 3), "active already")
}

func TestEmergencyRevocationEndsTheLeakedVersionAtOnce(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	v1 := m.key("acme", "trading")
	v2 := m.rotate("acme")

	m.refuses(http.StatusBadRequest, http.MethodPost, "revoke/acme", fields("version", 2, "compromised", true), "rotate=true", "force=true")
	m.accepts(v2)
	revoked := m.cliJSON("write", m.path+"/revoke/acme", "version=2", "compromised=true", "rotate=true", "reason=found on GitHub")
	v3, _ := revoked["api_key"].(string)
	if revoked["version"] != 3.0 || revoked["state"] != "active" || v3 == "" {
		t.Fatalf("revoke answered version %v, state %v", revoked["version"], revoked["state"])
	}
	m.rejects("COMPROMISED", v2)
	m.accepts(v1) // what did not leak lives on
	m.accepts(v3)
	if creds := m.read("static-creds/acme"); creds["api_key"] != v3 {
		t.Errorf("static-creds answers version %v", creds["version"])
	}

	// Without a successor: nothing is accepted, and the reason is told.
	m.write("revoke/acme", fields("all", true, "force", true))
	for _, v := range []string{v1, v3} {
		m.rejects("REVOKED", v)
	}
	m.rejects("COMPROMISED", v2)
	m.refuses(http.StatusNotFound, http.MethodGet, "static-creds/acme", nil, "no active version", "revoked")
	m.accepts(m.rotate("acme"))

	// A compromised version is remembered even past its key.
	m.must(http.MethodDelete, "keys/acme", nil)
	m.rejects("COMPROMISED", v2)
	m.rejects("NOT_FOUND", v3)
	m.write("keys/acme", fields("role", "trading"))
	m.rejects("COMPROMISED", v2)
}

func TestExtendRescuesClientsLeftBehind(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "2s", "refresh_interval", "1s")
	v1 := m.key("acme", "trading")
	m.rotate("acme")
	m.endsOnTime(v1)

	rescued := m.cliJSON("write", m.path+"/extend/acme", "overlap_period=1h")
	if rescued["version"] != 1.0 || rescued["state"] != "retiring" {
		t.Errorf("extend answered %v", rescued)
	}
	until := m.accepts(v1).AcceptedUntil
	if left := time.Until(until); left < 59*time.Minute || left > time.Hour {
		t.Errorf("accepted for another %s, want 1h", left)
	}
	m.refuses(http.StatusBadRequest, http.MethodPost, "extend/acme", fields("overlap_period", "30m"), "never earlier")
	m.refuses(http.StatusBadRequest, http.MethodPost, "extend/acme", fields("overlap_period", "721h"), "max_overlap_period")
	if got := m.accepts(v1).AcceptedUntil; !got.Equal(until) {
		t.Errorf("a refused extend moved the deadline from %s to %s", until, got)
	}
}

func TestRetireAsksForADrainedVersionUnlessForced(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	v1 := m.key("acme", "trading")
	m.accepts(v1)
	v2 := m.rotate("acme")

	if _, stderr, code := m.srv.CLI(t, m.token, "write", "-f", m.path+"/retire/acme"); code == 0 || !strings.Contains(stderr, "not drained") {
		t.Errorf("retire of a version in use: exit %d, %s", code, stderr)
	}
	m.accepts(v1)
	m.cli("write", m.path+"/retire/acme", "force=true")
	m.rejects("RETIRED", v1)
	m.accepts(v2)
	m.refuses(http.StatusBadRequest, http.MethodPost, "retire/acme", fields("version", 2, "force", true), "active")
}

func TestActivationDelayHoldsANewVersionBackUntilPromoted(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "1h")
	v1 := m.key("acme", "trading")
	startClient(t, m)

	v2 := m.rotate("acme", "activation_delay", "1h")
	if v := m.accepts(v2); v.State != "pending" {
		t.Errorf("the new version is %s", v.State)
	}
	if v := m.accepts(v1); v.State != "active" || !v.AcceptedUntil.IsZero() {
		t.Errorf("the overlap of version 1 began before the promotion: %+v", v)
	}
	if creds := m.read("static-creds/acme"); creds["api_key"] != v1 {
		t.Errorf("static-creds gives out version %v", creds["version"])
	}
	m.refuses(http.StatusBadRequest, http.MethodPost, "rotate/acme", nil, "promote")

	promoted := m.cliJSON("write", "-f", m.path+"/promote/acme")
	if promoted["version"] != 2.0 || promoted["state"] != "active" || promoted["superseded"] != 1.0 {
		t.Errorf("promote answered %v", promoted)
	}
	if left := time.Until(m.accepts(v1).AcceptedUntil); left < 59*time.Minute || left > time.Hour {
		t.Errorf("the overlap is %s from the promotion, want 1h", left)
	}
	if creds := m.read("static-creds/acme"); creds["api_key"] != v2 {
		t.Errorf("static-creds gives out version %v", creds["version"])
	}
}

func TestHistoryTellsItAll(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "1h")
	m.key("acme", "trading")
	m.rotate("acme", "activation_delay", "1h", "reason", "quarterly")
	m.write("promote/acme", nil)
	m.write("extend/acme", fields("overlap_period", "2h", "reason", "slow clients"))
	m.write("rollback/acme", fields("reason", "clients fail"))
	m.write("retire/acme", fields("force", true))
	m.write("revoke/acme", fields("version", 1, "compromised", true, "rotate", true, "reason", "leaked"))
	m.must(http.MethodPatch, "keys/acme", fields("enabled", false))

	var got []string
	for _, e := range m.history("acme") {
		if e.Actor == "" || e.Time.IsZero() || time.Since(e.Time) > 10*time.Minute {
			t.Errorf("without who or when: %+v", e)
		}
		line := e.Type
		if e.Version > 0 {
			line += fmt.Sprint(" ", e.Version)
		}
		if e.Reason != "" {
			line += " (" + e.Reason + ")"
		}
		got = append(got, line)
	}
	want := []string{
		"key.created", "version.created 1", "version.activated 1",
		"version.created 2 (quarterly)",
		"version.retiring 1", "version.activated 2",
		"overlap.extended 1 (slow clients)",
		"key.rolled_back 1 (clients fail)", "version.retiring 2 (clients fail)", "version.activated 1 (clients fail)",
		"version.retired 2", "rollover.completed 2",
		"version.compromised 1 (leaked)", "version.created 3 (leaked)", "version.activated 3 (leaked)",
		"key.updated",
	}
	if !slices.Equal(got, want) {
		t.Errorf("history:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
