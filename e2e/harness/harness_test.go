// SPDX-License-Identifier: MPL-2.0

package harness_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

func TestDevServerWithCLIAndAudit(t *testing.T) {
	t.Parallel()
	srv := harness.StartDev(t, harness.Options{})
	audit := srv.Audit(t)
	srv.EnableEngine(t, "kv1", "kv")

	srv.MustCLI(t, srv.RootToken, "write", "kv1/colour", "value=crimson-octopus")
	if got := srv.MustCLI(t, srv.RootToken, "read", "-field=value", "kv1/colour"); strings.TrimSpace(got) != "crimson-octopus" {
		t.Errorf("read back %q", got)
	}
	if _, stderr, code := srv.CLI(t, "", "read", "kv1/colour"); code != 2 || !strings.Contains(stderr, "permission denied") && !strings.Contains(stderr, "missing client token") {
		t.Errorf("without a token: exit %d, %s", code, stderr)
	}

	srv.Policy(t, "reader", `path "kv1/colour" { capabilities = ["read"] }`)
	token := srv.Token(t, "reader")
	if _, _, code := srv.CLI(t, token, "read", "kv1/colour"); code != 0 {
		t.Errorf("a reader's read: exit %d", code)
	}
	if _, _, code := srv.CLIInput(t, token, `{"value":"x"}`, "write", "kv1/colour", "-"); code != 2 {
		t.Errorf("a reader's write: exit %d, want 2", code)
	}

	lines := audit.Lines(t)
	if len(lines) < 8 {
		t.Errorf("%d audit lines, want a request and a response for each command", len(lines))
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if strings.Contains(audit.Text(t), "crimson-octopus") {
		t.Error("the audit log has the secret in clear")
	}
	if !strings.Contains(srv.Log(), "path=kv1/") {
		t.Error("the server's log does not tell of the mount")
	}
}

func TestServersDoNotShareAnything(t *testing.T) {
	t.Parallel()
	a, b := harness.StartDev(t, harness.Options{}), harness.StartDev(t, harness.Options{})
	if a.Addr == b.Addr || a.RootToken == b.RootToken || a.Dir == b.Dir {
		t.Fatalf("two servers with one address, token or folder: %+v, %+v", a, b)
	}
	if _, _, code := b.CLI(t, a.RootToken, "token", "lookup"); code == 0 {
		t.Error("one server accepts the token of the other")
	}
}

func TestRaftKeepsItsDataOverSealRestartAndKill(t *testing.T) {
	t.Parallel()
	srv := harness.StartRaft(t, harness.Options{})
	srv.EnableEngine(t, "kv1", "kv")
	srv.MustCLI(t, srv.RootToken, "write", "kv1/colour", "value=crimson")
	readBack := func(after string) {
		t.Helper()
		secret, err := srv.Client.Logical().Read("kv1/colour")
		if err != nil || secret == nil || secret.Data["value"] != "crimson" {
			t.Fatalf("after %s: %v, %v", after, secret, err)
		}
	}

	srv.Seal(t)
	if _, err := srv.Client.Logical().Read("kv1/colour"); err == nil {
		t.Error("a sealed server answers")
	}
	srv.Unseal(t)
	readBack("a seal")
	srv.Restart(t)
	readBack("a restart")
	srv.Kill(t)
	if _, err := srv.Client.Logical().Read("kv1/colour"); err == nil {
		t.Error("a killed server answers")
	}
	srv.Start(t)
	srv.Unseal(t)
	readBack("a kill")
}

func TestClusterFailsOver(t *testing.T) {
	t.Parallel()
	cluster := harness.StartCluster(t, 3, harness.Options{})
	for _, node := range cluster.Nodes {
		// More than one loop that waits to lead: see Unseal.
		if n := strings.Count(node.Log(), "entering standby mode"); n != 1 {
			t.Errorf("%s has begun to wait for its lead %d times, want once", node.Addr, n)
		}
	}
	old := cluster.Leader(t)
	old.EnableEngine(t, "kv1", "kv")
	old.MustCLI(t, old.RootToken, "write", "kv1/colour", "value=crimson")
	old.Kill(t)
	leader := cluster.Leader(t)
	if leader == old {
		t.Fatal("a killed node leads")
	}
	secret, err := leader.Client.Logical().Read("kv1/colour")
	if err != nil || secret == nil || secret.Data["value"] != "crimson" {
		t.Fatalf("after the failover: %v, %v", secret, err)
	}
}

func TestAgentRendersASecret(t *testing.T) {
	t.Parallel()
	srv := harness.StartDev(t, harness.Options{})
	srv.EnableEngine(t, "kv1", "kv")
	srv.MustCLI(t, srv.RootToken, "write", "kv1/colour", "value=crimson")
	dir := t.TempDir()
	token, out := filepath.Join(dir, "token"), filepath.Join(dir, "out")
	if err := os.WriteFile(token, []byte(srv.RootToken), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := srv.StartAgent(t, `
auto_auth {
  method "token_file" { config = { token_file_path = "`+token+`" } }
}
template {
  contents    = "{{ with secret \"kv1/colour\" }}{{ .Data.value }}{{ end }}"
  destination = "`+out+`"
}`)
	harness.Eventually(t, 20*time.Second, 50*time.Millisecond, func() error {
		b, err := os.ReadFile(out)
		if err == nil && string(b) != "crimson" {
			err = errors.New("rendered " + string(b))
		}
		return err
	})
	if !agent.Running() || agent.Log() == "" {
		t.Error("agent ended, or its log is empty")
	}
	agent.Stop(t)
	if agent.Running() {
		t.Error("agent still runs")
	}
}

func TestNoServerOutlivesAKilledTest(t *testing.T) {
	t.Parallel()
	if os.Getenv("HARNESS_ABANDON") != "" {
		srv := harness.StartDev(t, harness.Options{})
		if err := os.WriteFile(os.Getenv("HARNESS_ABANDON"), []byte(srv.Addr+" "+srv.Dir), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // no clean-up runs
	}
	harness.Binary(t)
	file := filepath.Join(t.TempDir(), "addr")
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), "HARNESS_ABANDON="+file)
	out, err := child.CombinedOutput()
	b, readErr := os.ReadFile(file)
	if err == nil || readErr != nil {
		t.Fatalf("the child was to start a server and be killed: %v, %v\n%s", err, readErr, out)
	}
	addr, dir, _ := strings.Cut(string(b), " ")
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	harness.Eventually(t, 10*time.Second, 50*time.Millisecond, func() error {
		resp, err := http.Get(addr + "/v1/sys/health")
		if err != nil {
			return nil
		}
		_ = resp.Body.Close()
		return errors.New("the server still answers")
	})
}
