// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// ownCluster is a cluster of three with the engine at apikeys/, used through
// its leader.
func ownCluster(t testing.TB) (*harness.Cluster, *mount) {
	t.Helper()
	cluster := harness.StartCluster(t, 3, harness.Options{LogLevel: "debug"})
	leader := cluster.Leader(t)
	withEngine(t, leader)
	plugin := harness.Plugin(t, harness.PluginOptions{Version: pluginVersion, Commit: "e2e"})
	for _, node := range cluster.Nodes {
		if node != leader {
			// Every node needs the file: each of them may lead one day.
			node.RegisterPlugin(t, harness.PluginName, plugin.Version, plugin.Path, plugin.SHA256)
			t.Cleanup(func() { searchForSecrets(t, node, 1) })
		}
	}
	return cluster, enable(t, leader, "apikeys")
}

func TestClusterKeepsKeysAliveAndRotatingOverFailovers(t *testing.T) {
	t.Parallel()
	cluster, m := ownCluster(t)
	m.role("trading", "overlap_period", "1h", "ttl", "1h")
	m.role("often", "rotation_period", "1m", "overlap_period", 0)
	p := midOverlap(m)

	// A standby answers whatever the leader answers.
	for _, node := range cluster.Nodes {
		if node == m.srv {
			continue
		}
		standby := m.at(node)
		p.m = standby
		eventually(t, 20*time.Second, func() error { _, err := standby.tryVerify(p.current); return err })
		p.holdsAfter("asking a standby")
		p.old, p.current = p.current, standby.rotate("acme", "force", true)
		p.deadline = m.accepts(p.old).AcceptedUntil
		m.accepts(p.current)
		l := standby.creds("trading")
		m.accepts(l.apiKey)
		standby.accepts(standby.rotateLeased(l.keyID).apiKey)
		standby.must(http.MethodPatch, "keys/acme", fields("custom_metadata", fields("via", "standby")))
		if names := standby.list("keys"); !slices.Contains(names, "acme") {
			t.Errorf("a standby lists %v", names)
		}
	}

	// The leader steps down in mid-overlap.
	old := m.srv
	if err := old.Client.Sys().StepDown(); err != nil {
		t.Fatalf("step down: %v", err)
	}
	eventually(t, 30*time.Second, func() error {
		if m.srv = cluster.Leader(t); m.srv == old {
			return fmt.Errorf("%s still leads", old.Addr)
		}
		return nil
	})
	p.m = m
	p.holdsAfter("a step-down")

	// The next leader dies, with a rotation planned.
	m.key("often", "often")
	old = m.srv
	old.Kill(t)
	m.srv = cluster.Leader(t)
	p.holdsAfter("the death of the leader")
	p.old, p.current = p.current, m.rotate("acme", "force", true)
	p.deadline = m.accepts(p.old).AcceptedUntil
	eventually(t, 4*time.Minute, func() error {
		if got := m.info("often").CurrentVersion; got != 2 {
			return fmt.Errorf("the scheduled rotation has not happened: version %d", got)
		}
		return nil
	})
	p.holdsAfter("a scheduled rotation by the new leader")
}
