// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	startTimeout = 60 * time.Second
	stopGrace    = 20 * time.Second
	pollEvery    = 50 * time.Millisecond
)

// Server is a running Vault or OpenBao.
type Server struct {
	Addr      string      // http://127.0.0.1:port
	RootToken string      // of a Raft server: set once it is initialised
	UnsealKey string      // of a Raft server; a dev server has none
	Client    *api.Client // with the root token, without retries: a refusal is seen
	Dir       string      // all that the server writes is below it
	PluginDir string      // its plugin_directory

	bin     string
	cliHome string
	proc    *process
	raft    bool
	audits  int
}

// newServer lays out the folders of a server and its clean-up.
func newServer(t testing.TB, opts Options) *Server {
	t.Helper()
	bin := Binary(t)
	dir := tempDir(t)
	s := &Server{
		Dir:       dir,
		PluginDir: subdir(t, dir, "plugins"),
		bin:       bin,
		cliHome:   subdir(t, dir, "cli"),
		proc: &process{
			bin: bin,
			env: append([]string{
				"PATH=" + os.Getenv("PATH"),
				"HOME=" + subdir(t, dir, "home"),
				"TMPDIR=" + subdir(t, dir, "tmp"),
			}, opts.Env...),
			dir: dir,
			log: filepath.Join(dir, "server.log"),
		},
	}
	t.Cleanup(func() {
		s.proc.stop(0)
		s.proc.dumpOnFailure(t, s.Addr)
	})
	return s
}

// reachAt sets the server's address and a client for it.
func (s *Server) reachAt(addr string) error {
	s.Addr = "http://" + addr
	client, err := newClient(s.Addr, s.RootToken)
	if err != nil {
		return err
	}
	s.Client = client
	return nil
}

// newClient returns a client that has nothing from the environment and does not
// try again by itself: a test that counts refusals has to see each one.
func newClient(addr, token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	config.Address, config.AgentAddress = addr, ""
	config.MaxRetries = 0
	config.Timeout = 60 * time.Second
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.ClearNamespace()
	client.SetToken(token)
	return client, nil
}

// errPortTaken says that a server did not come up because somebody else had
// one of its ports; it may be tried again on others.
var errPortTaken = errors.New("a port was taken")

// run starts the process and waits until ready returns nil.
func (s *Server) run(ready func() error) error {
	before := len(s.Log())
	if err := s.proc.start(); err != nil {
		return err
	}
	err := poll(startTimeout, pollEvery, func() error {
		if !s.proc.alive() {
			return nil
		}
		return ready()
	})
	if err == nil && s.proc.alive() {
		return nil
	}
	s.proc.stop(0)
	switch log := s.Log()[before:]; {
	case strings.Contains(log, "address already in use"):
		return errPortTaken
	case err != nil:
		return fmt.Errorf("not ready after %s: %w", startTimeout, err)
	default:
		return fmt.Errorf("it ended at once:\n%s", log)
	}
}

// health asks sys/health and returns nil for one of the wanted states.
func (s *Server) health(want ...int) error {
	resp, err := healthClient.Get(s.Addr + "/v1/sys/health")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	for _, code := range want {
		if resp.StatusCode == code {
			return nil
		}
	}
	return fmt.Errorf("sys/health answers %s, want %v", resp.Status, want)
}

// healthClient gives up on a server that does not answer: it may be stopped, or
// out of reach.
var healthClient = &http.Client{Timeout: 5 * time.Second}

// sys/health: what the status code means.
const (
	healthActive        = http.StatusOK
	healthStandby       = http.StatusTooManyRequests
	healthPerfStandby   = 473
	healthUninitialised = http.StatusNotImplemented
	healthSealed        = http.StatusServiceUnavailable
)

// ClientFor returns a client with the given token.
func (s *Server) ClientFor(t testing.TB, token string) *api.Client {
	t.Helper()
	client, err := newClient(s.Addr, token)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Token makes a token with the given policies, for a test of what they allow.
func (s *Server) Token(t testing.TB, policies ...string) string {
	t.Helper()
	secret, err := s.Client.Auth().Token().Create(&api.TokenCreateRequest{
		Policies: policies, NoDefaultPolicy: true, TTL: "1h",
	})
	if err != nil {
		t.Fatalf("create a token with policies %v: %v", policies, err)
	}
	return secret.Auth.ClientToken
}

// Policy writes an ACL policy.
func (s *Server) Policy(t testing.TB, name, hcl string) {
	t.Helper()
	if err := s.Client.Sys().PutPolicy(name, hcl); err != nil {
		t.Fatalf("write policy %q: %v", name, err)
	}
}

// Log is all that the server has written so far, over restarts too.
func (s *Server) Log() string { return s.proc.readLog() }

// LogPath is the file that Log reads.
func (s *Server) LogPath() string { return s.proc.log }

// Command prepares the real CLI with a clean environment, for tests that need
// its standard input or want it in the background. An empty token means none.
func (s *Server) Command(token string, args ...string) *exec.Cmd {
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = s.cliHome
	cmd.Env = s.clientEnv(token)
	return cmd
}

// clientEnv is the environment of a program that talks to the server. OpenBao
// reads both spellings and prefers its own.
func (s *Server) clientEnv(token string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.cliHome, "TMPDIR=" + filepath.Join(s.Dir, "tmp"),
		"VAULT_ADDR=" + s.Addr, "BAO_ADDR=" + s.Addr,
		"VAULT_CLI_NO_COLOR=1", "VAULT_MAX_RETRIES=0", "BAO_MAX_RETRIES=0",
	}
	if token != "" {
		env = append(env, "VAULT_TOKEN="+token, "BAO_TOKEN="+token)
	}
	return env
}

// CLI runs `vault args...` against the server. A command that fails is not a
// failed test: look at the code.
func (s *Server) CLI(t testing.TB, token string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return s.CLIInput(t, token, "", args...)
}

// CLIInput is CLI with something on standard input, as for `policy write x -`.
func (s *Server) CLIInput(t testing.TB, token, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := s.Command(token, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("vault %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// MustCLI is CLI for a command that has to succeed; it returns its output.
func (s *Server) MustCLI(t testing.TB, token string, args ...string) string {
	t.Helper()
	stdout, stderr, code := s.CLI(t, token, args...)
	if code != 0 {
		t.Fatalf("vault %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// Stop ends the server as a service manager would, with SIGTERM, and waits.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.proc.stop(stopGrace)
}

// Kill ends the server and its plugins as a power cut would, with SIGKILL.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	s.proc.stop(0)
}
