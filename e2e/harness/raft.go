// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// StartRaft starts a server on Raft storage from a configuration file, as in
// production: initialised with one key share, unsealed and active. Its data and
// ports outlive Stop and Kill.
func StartRaft(t testing.TB, opts Options) *Server {
	t.Helper()
	s := startNode(t, opts, 0, "")
	s.initialise(t)
	s.Unseal(t)
	return s
}

// Cluster is several Raft servers that are one Vault.
type Cluster struct {
	Nodes []*Server
}

// StartCluster starts n servers that share a Raft log; the first is the leader
// until something happens to it. All have the same root token and unseal key.
func StartCluster(t testing.TB, n int, opts Options) *Cluster {
	t.Helper()
	return JoinCluster(t, StartRaft(t, opts), n, startTimeout, opts)
}

// JoinCluster makes a server of StartRaft the leader of a cluster of n, and
// waits for so long until the others have all that it has, its plugins as well,
// and vote.
func JoinCluster(t testing.TB, first *Server, n int, patience time.Duration, opts Options) *Cluster {
	t.Helper()
	// Not by the client's own call: that one sends an Enterprise field.
	_, err := first.Client.Logical().Write("sys/storage/raft/autopilot/configuration", map[string]any{
		"server_stabilization_time": "1s",
	})
	if err != nil {
		t.Fatalf("configure autopilot: %v", err)
	}
	c := &Cluster{Nodes: []*Server{first}}
	for i := 1; i < n; i++ {
		s := startNode(t, opts, i, first.Addr)
		s.installPluginsOf(t, first)
		s.RootToken, s.UnsealKey = first.RootToken, first.UnsealKey
		s.Client.SetToken(s.RootToken)
		s.unseal(t, patience)
		c.Nodes = append(c.Nodes, s)
	}
	Eventually(t, patience, pollEvery, func() error {
		state, err := first.Client.Logical().Read("sys/storage/raft/configuration")
		if err != nil {
			return err
		}
		config, _ := state.Data["config"].(map[string]any)
		servers, _ := config["servers"].([]any)
		voters := 0
		for _, server := range servers {
			if m, ok := server.(map[string]any); ok && m["voter"] == true {
				voters++
			}
		}
		if voters != n {
			return fmt.Errorf("%d of %d nodes are voters", voters, n)
		}
		return nil
	})
	return c
}

// Leader waits until a node is active and returns it.
func (c *Cluster) Leader(t testing.TB) *Server {
	t.Helper()
	var leader *Server
	Eventually(t, startTimeout, pollEvery, func() error {
		err := errors.New("no node runs")
		for _, s := range c.Nodes {
			if !s.proc.alive() {
				continue
			}
			if err = s.health(healthActive); err == nil {
				leader = s
				return nil
			}
		}
		return err
	})
	return leader
}

// startNode brings up one sealed server. With the address of a leader it joins
// that one's cluster as soon as it is unsealed.
func startNode(t testing.TB, opts Options, node int, leader string) *Server {
	t.Helper()
	s := newServer(t, opts)
	s.raft = true
	id := fmt.Sprintf("node%d", node)
	place := opts.place(node)
	data := place.Data
	if data == "" {
		data = subdir(t, s.Dir, "data")
	}
	config := filepath.Join(s.Dir, "server.hcl")
	s.proc.args = []string{"server", "-config=" + config, "-log-level=" + logLevel(opts)}
	s.proc.run(place.Command)
	join := ""
	if leader != "" {
		join = fmt.Sprintf("retry_join {\n    leader_api_addr = %q\n  }", leader)
	}

	err := errPortTaken
	for attempt := 0; attempt < 5 && errors.Is(err, errPortTaken); attempt++ {
		var port, cluster int
		if port, cluster, err = freePorts(); err != nil {
			break
		}
		listenAPI, listenCluster := hostPort(place.Host, port), hostPort(place.ClusterHost, cluster)
		frontAPI, frontCluster := place.front(s, listenAPI, listenCluster)
		if err = s.reachAt(frontAPI); err != nil {
			break
		}
		writeFile(t, config, fmt.Sprintf(`
storage "raft" {
  path    = %q
  node_id = %q
  # A single node elects itself sooner, and a failover takes less of a test's time.
  performance_multiplier = %d
  # A node that joins becomes a voter sooner; the default is to wait for 10 s.
  autopilot_reconcile_interval = "500ms"
  autopilot_update_interval    = "500ms"
  %s
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr         = %q
cluster_addr     = %q
plugin_directory = %q
disable_mlock    = true
%s`, data, id, max(1, opts.Patience), join, listenAPI, listenCluster, s.Addr, "https://"+frontCluster, s.PluginDir, extraConfig(t, opts)))
		err = s.run(s.up)
	}
	if err != nil {
		t.Fatalf("start a Raft server: %v", err)
	}
	return s
}

// up is nil once the server answers, sealed or not.
func (s *Server) up() error {
	return s.health(healthActive, healthStandby, healthPerfStandby, healthUninitialised, healthSealed)
}

func (s *Server) initialise(t testing.TB) {
	t.Helper()
	resp, err := s.Client.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		t.Fatalf("initialise %s: %v", s.Addr, err)
	}
	s.RootToken, s.UnsealKey = resp.RootToken, resp.KeysB64[0]
	s.Client.SetToken(s.RootToken)
}

// Start starts a stopped Raft server again on its data and its ports and
// returns when it answers; it is sealed then.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if !s.raft {
		t.Fatal("a dev server keeps nothing: it cannot be started again")
	}
	err := errPortTaken
	for attempt := 0; attempt < 20 && errors.Is(err, errPortTaken); attempt++ {
		err = s.run(s.up)
	}
	if err != nil {
		t.Fatalf("start %s again: %v", s.Addr, err)
	}
}

// Seal seals the server and returns when it is.
func (s *Server) Seal(t testing.TB) {
	t.Helper()
	if err := s.Client.Sys().Seal(); err != nil {
		t.Fatalf("seal %s: %v", s.Addr, err)
	}
	Eventually(t, startTimeout, pollEvery, func() error { return s.health(healthSealed) })
}

// Unseal unseals a Raft server and returns when it serves requests. A node that
// joins a cluster has to hear from its leader first: so it is tried again until
// it takes the key, and not once more. For a node that joins is sealed for a while
// longer, and each key that it takes starts another loop of Vault's that waits to
// lead. One of them is told that Raft leads here, another that it does not any
// more, and so the node goes on as a second leader until it is restarted.
func (s *Server) Unseal(t testing.TB) {
	t.Helper()
	s.unseal(t, startTimeout)
}

// unseal has patience with a node that has to be sent a large snapshot first.
func (s *Server) unseal(t testing.TB, patience time.Duration) {
	t.Helper()
	ask := func() (*api.SealStatusResponse, error) { return s.Client.Sys().Unseal(s.UnsealKey) }
	Eventually(t, patience, pollEvery, func() error {
		status, err := ask()
		if err != nil {
			return fmt.Errorf("unseal %s: %w", s.Addr, err)
		}
		ask = s.Client.Sys().SealStatus
		if status.Sealed {
			return fmt.Errorf("%s is still sealed", s.Addr)
		}
		return nil
	})
	Eventually(t, patience, pollEvery, func() error {
		if err := s.health(healthActive, healthStandby, healthPerfStandby); err != nil {
			return err
		}
		_, err := s.Client.Auth().Token().LookupSelf()
		return err
	})
}

// Restart is Stop, Start and Unseal.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	s.Start(t)
	s.Unseal(t)
}
