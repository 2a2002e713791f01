// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// pair is a key in mid-overlap: both versions have to stay accepted, and the
// deadline of the old one may not move, whatever happens to the server.
type pair struct {
	m        *mount
	name     string
	old      string
	current  string
	deadline time.Time
}

// midOverlap makes the key "acme" of the role "trading", and rotates it.
func midOverlap(m *mount) pair {
	m.t.Helper()
	p := pair{m: m, name: "acme"}
	p.old = m.key(p.name, "trading")
	p.current = m.rotate(p.name)
	p.deadline = m.accepts(p.old).AcceptedUntil
	return p
}

// holdsAfter checks the pair, once the server serves the mount again.
func (p pair) holdsAfter(what string) {
	p.m.t.Helper()
	eventually(p.m.t, 30*time.Second, func() error {
		_, err := p.m.tryVerify(p.current)
		return err
	})
	for _, apiKey := range []string{p.old, p.current} {
		if v := p.m.verify(apiKey); !v.Valid {
			p.m.t.Fatalf("after %s version %d of %s is %s", what, v.Version, p.name, v.Code)
		}
	}
	if got := p.m.verify(p.old).AcceptedUntil; !got.Equal(p.deadline) {
		p.m.t.Fatalf("after %s the deadline of %s moved from %s to %s", what, p.name, p.deadline, got)
	}
	if creds := p.m.read("static-creds/" + p.name); creds["api_key"] != p.current {
		p.m.t.Fatalf("after %s static-creds answers version %v of %s", what, creds["version"], p.name)
	}
}

func TestRolloverOnRaft(t *testing.T) {
	t.Parallel()
	m := onRaft(t)
	m.role("trading", "overlap_period", "5s")
	v1 := m.key("acme", "trading")
	startClient(t, m)
	v2 := m.rotate("acme")
	m.accepts(v2)
	m.endsOnTime(v1)
	m.write("rollback/acme", nil)
	m.accepts(v1)
	m.endsOnTime(v2)
}

func TestKeysOutliveSealRestartAndKill(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	m.role("trading", "overlap_period", "1h")
	p := midOverlap(m)
	short := m.key("short", "trading")
	m.rotate("short", "overlap_period", "1s")

	srv.Seal(t)
	if _, err := m.tryVerify(p.current); err == nil {
		t.Error("a sealed server verifies")
	}
	srv.Unseal(t)
	p.holdsAfter("seal and unseal")
	srv.Restart(t)
	p.holdsAfter("a restart")
	srv.Kill(t)
	srv.Start(t)
	srv.Unseal(t)
	p.holdsAfter("a power cut")
	// What ended in the meantime has ended, by itself.
	m.rejects("RETIRED", short)

	// And the key goes on from there.
	m.write("retire/acme", fields("force", true))
	m.rejects("RETIRED", p.old)
	m.accepts(m.rotate("acme"))
	m.accepts(p.current)
}

func TestKeysOutliveTheirPluginProcess(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	m.role("trading", "overlap_period", "1h")
	p := midOverlap(m)

	killPlugin(t, srv)
	p.holdsAfter("the kill of the plugin")
	p.old, p.current = p.current, m.rotate("acme", "force", true)
	p.deadline = m.accepts(p.old).AcceptedUntil
	p.holdsAfter("a rotation after the kill of the plugin")

	srv.ReloadPlugin(t, harness.PluginName)
	p.holdsAfter("a reload")
	if m.write("sweep", nil)["suspended"] != false {
		t.Error("nothing runs by itself after a reload")
	}
}

// killPlugin kills the plugin processes of a server as a crash would.
func killPlugin(t testing.TB, srv *harness.Server) {
	t.Helper()
	pids := pluginPIDs(t, srv)
	if len(pids) == 0 {
		t.Fatal("the server runs no plugin process")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill the plugin: %v", err)
		}
	}
	eventually(t, 10*time.Second, func() error {
		for _, pid := range pids {
			for _, left := range pluginPIDs(t, srv) {
				if left == pid {
					return fmt.Errorf("process %d still runs", pid)
				}
			}
		}
		return nil
	})
}

// pluginPIDs finds the processes that run from the server's plugin directory,
// which no other server shares.
func pluginPIDs(t testing.TB, srv *harness.Server) []int {
	t.Helper()
	out, err := exec.Command("ps", "-axww", "-o", "pid=,stat=,command=").Output()
	if err != nil {
		t.Fatalf("ps: %v", err)
	}
	var pids []int
	for line := range bytes.Lines(out) {
		f := strings.Fields(string(line))
		if len(f) < 3 || strings.HasPrefix(f[1], "Z") || !strings.HasPrefix(f[2], srv.PluginDir+"/") {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatalf("ps: %v", err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func TestKeysOutliveAnUpgradeInPlaceAndADowngrade(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	m.role("trading", "overlap_period", "1h", "ttl", "1h")
	p := midOverlap(m)
	lease := m.call("GET", "creds/trading", nil)
	leased, _ := lease.data["api_key"].(string)
	runs := func(version string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if got := m.read("info")["version"]; got != version {
				return fmt.Errorf("%v answers, not %s", got, version)
			}
			return nil
		})
	}

	runs(pluginVersion)
	next := harness.Plugin(t, harness.PluginOptions{Version: "v0.2.0", Commit: "e2e"})
	srv.RegisterPlugin(t, harness.PluginName, next.Version, next.Path, next.SHA256)
	srv.UpgradeEngine(t, "apikeys", next.Version)
	runs("v0.2.0")
	p.holdsAfter("an upgrade")
	p.old, p.current = p.current, m.rotate("acme")
	p.deadline = m.accepts(p.old).AcceptedUntil

	srv.UpgradeEngine(t, "apikeys", pluginVersion)
	runs(pluginVersion)
	p.holdsAfter("a downgrade")
	m.accepts(leased)
	if err := srv.Client.Sys().Revoke(lease.lease); err != nil {
		t.Errorf("revoke a lease from before the upgrade: %v", err)
	}
	m.rejects("REVOKED", leased)
}

func TestScheduledRotationHappensByItself(t *testing.T) {
	t.Parallel()
	m := onRaft(t)
	m.role("hourly", "rotation_period", "1m", "overlap_period", 0)
	v1 := m.key("acme", "hourly")
	creds := m.read("static-creds/acme")
	if ttl, _ := creds["ttl"].(float64); ttl < 1 || ttl > 60 || creds["rotation_period"] != 60.0 {
		t.Errorf("ttl %v, rotation_period %v", creds["ttl"], creds["rotation_period"])
	}
	planned := m.info("acme").NextRotation

	// Nobody sweeps: it is the server's own tick, once a minute.
	eventually(t, 4*time.Minute, func() error {
		if got := m.info("acme").CurrentVersion; got != 2 {
			return fmt.Errorf("the current version is %d", got)
		}
		return nil
	})
	m.rejects("RETIRED", v1)
	v2, _ := m.read("static-creds/acme")["api_key"].(string)
	m.accepts(v2)
	for _, e := range activations(m.history("acme"))[1:] {
		if e.Actor != "periodic" || e.Time.Before(planned) {
			t.Errorf("rotated at %s by %s, planned for %s", e.Time, e.Actor, planned)
		}
	}
}

func TestAnOutageOfSeveralPeriodsIsOneRotation(t *testing.T) {
	t.Parallel()
	outages := map[string]struct {
		down, up func(*testing.T, *harness.Server)
	}{
		"sealed": {
			func(t *testing.T, s *harness.Server) { s.Seal(t) },
			func(t *testing.T, s *harness.Server) { s.Unseal(t) },
		},
		"stopped": {
			func(t *testing.T, s *harness.Server) { s.Stop(t) },
			func(t *testing.T, s *harness.Server) { s.Start(t); s.Unseal(t) },
		},
	}
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const period = 15 * time.Second
			srv := ownRaft(t)
			m := enable(t, srv, "apikeys")
			m.role("often", "rotation_period", period.String(), "overlap_period", 0)
			v1 := m.key("acme", "often")
			created := m.info("acme").LastRotation

			outage.down(t, srv)
			// Four periods, and the minute in which the key is filed is over.
			reaches(t, created.Add(5*period+time.Second))
			outage.up(t, srv)
			back := time.Now()

			eventually(t, 150*time.Second, func() error {
				info, err := m.tryInfo("acme")
				if err == nil && info.CurrentVersion < 2 {
					err = errors.New("not rotated since the outage")
				}
				return err
			})
			// Nothing is left to catch up with.
			m.write("sweep", nil)
			m.rejects("RETIRED", v1)
			history := activations(m.history("acme"))
			for i := 1; i < len(history); i++ {
				if apart := history[i].Time.Sub(history[i-1].Time); apart < period {
					t.Errorf("version %d came %s after version %d, the period is %s", history[i].Version, apart, history[i-1].Version, period)
				}
			}
			if first := history[1].Time; first.Before(back.Add(-30 * time.Second)) {
				t.Errorf("rotated at %s, the server was back at %s", first, back)
			}
		})
	}
}

func TestNamedKeyOutlivesTheTokenOfItsMaker(t *testing.T) {
	t.Parallel()
	m := onRaft(t)
	m.role("trading")
	m.srv.Policy(t, m.path, fmt.Sprintf(`path "%s/*" { capabilities = ["create", "read", "update"] }`, m.path))
	maker := newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{m.path}, TTL: "1h"})
	apiKey := m.as(maker.ClientToken).key("acme", "trading")
	if err := m.srv.Client.Auth().Token().RevokeTree(maker.ClientToken); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if a := m.as(maker.ClientToken).call("GET", "keys/acme", nil); a.status != 403 {
			return fmt.Errorf("the token still answers %d", a.status)
		}
		return nil
	})
	m.accepts(apiKey)
	if m.read("static-creds/acme")["api_key"] != apiKey {
		t.Error("static-creds answers another key")
	}
}
