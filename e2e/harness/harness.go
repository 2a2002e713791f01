// SPDX-License-Identifier: MPL-2.0

// Package harness starts real servers for the end-to-end tests: Vault (or
// OpenBao) in dev mode, on Raft storage, as a cluster, and Vault Agent.
//
// Every server has ports, a HOME, a temporary folder, a log and a root token of
// its own, so that tests run in parallel with each other and with whatever else
// is on the machine. Nothing is read from the user's environment but PATH and
// the variables named here:
//
//	VAULT_BIN           the server to test with; else what scripts/vault.sh finds
//	APIKEYS_E2E_LOG     trace, debug, info: the servers' log level (default info)
//	APIKEYS_E2E_REQUIRE set to 1, a missing server fails the test, never skips it
//
// The harness stops only processes that it started, by their process group, and
// it does so even when the test binary itself is killed. A failed test shows the
// end of its servers' logs.
//
// A test in ten lines:
//
//	srv := harness.StartDev(t, harness.Options{})
//	plugin := harness.Plugin(t, harness.PluginOptions{Version: "v0.1.0"})
//	srv.RegisterPlugin(t, harness.PluginName, plugin.Version, plugin.Path, plugin.SHA256)
//	srv.EnableEngine(t, "apikeys", harness.PluginName, plugin.Version)
//	stdout, stderr, code := srv.CLI(t, srv.RootToken, "read", "apikeys/info")
package harness

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Options are what a test may change about a server. The zero value is fine.
type Options struct {
	// Config is HCL that is added to the server's configuration file.
	Config string
	// Env is added to the server's environment, which has nothing of the user's but PATH.
	Env []string
	// LogLevel is trace, debug, info, warn or error; info if empty.
	LogLevel string
	// RootToken is the root token of a dev server; a random one if empty.
	RootToken string
	// Patience is Raft's performance_multiplier: how many times as long a node
	// waits before it gives its leader up. 1 if zero: a failover takes less of a
	// test's time, but happens by itself where the machine is very busy.
	Patience int
	// Places say where the nodes of a cluster run, the first one first; those
	// without one run like any server.
	Places []Place
}

// Binary returns the server to test with: VAULT_BIN, else a vault or bao that
// scripts/vault.sh finds without building one. Where there is none, or in
// -short mode, the test is skipped, here and nowhere else.
func Binary(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP: -short leaves out what needs a real Vault")
	}
	if bin := os.Getenv("VAULT_BIN"); bin != "" {
		path, err := exec.LookPath(bin)
		if err != nil {
			t.Fatalf("VAULT_BIN=%s cannot be run: %v", bin, err)
		}
		return path
	}
	bin, err := findBinary()
	switch {
	case err == nil:
		return bin
	case os.Getenv("APIKEYS_E2E_REQUIRE") == "1":
		t.Fatalf("no Vault to test with: %v", err)
	default:
		t.Skipf("SKIP: no Vault to test with (%v); set VAULT_BIN, or run: make e2e", err)
	}
	return ""
}

var findBinary = sync.OnceValues(func() (string, error) {
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "scripts", "vault.sh"), "--no-build")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", errors.New(strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
})

// IsOpenBao tells whether the server under test is OpenBao.
func IsOpenBao(t testing.TB) bool {
	t.Helper()
	bin := Binary(t)
	flavours.Lock()
	defer flavours.Unlock()
	if bao, known := flavours.isBao[bin]; known {
		return bao
	}
	cmd := exec.Command(bin, "version")
	cmd.Env = []string{"HOME=" + t.TempDir()}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s version: %v", bin, err)
	}
	bao := strings.Contains(string(out), "OpenBao")
	flavours.isBao[bin] = bao
	return bao
}

var flavours = struct {
	sync.Mutex
	isBao map[string]bool // by path of the binary
}{isBao: map[string]bool{}}

// Eventually calls check every so often until it returns nil, and fails the
// test with its last error once timeout is over.
func Eventually(t testing.TB, timeout, every time.Duration, check func() error) {
	t.Helper()
	start := time.Now()
	err := poll(timeout, every, check)
	if err != nil {
		t.Fatalf("still not so after %s: %v", time.Since(start).Round(time.Millisecond), err)
	}
}

func poll(timeout, every time.Duration, check func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil || time.Now().Add(every).After(deadline) {
			return err
		}
		time.Sleep(every)
	}
}

// repoRoot is the folder of the module's go.mod: the first one above the
// working directory, which in a test is the folder of its package.
func repoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(mod), "module "+modulePath+"\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod of " + modulePath + " above the working directory")
		}
		dir = up
	}
}

// tempDir makes a folder that goes when the test ends. Unlike t.TempDir its
// path is short, because plugins put Unix sockets below it, whose paths may be
// no longer than 104 bytes, and free of symbolic links, which Vault refuses in
// a plugin directory.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "apikeys-e2e-") //nolint:usetesting // t.TempDir is too long, see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A process that is just ending may still write into it.
		if err := poll(5*time.Second, 50*time.Millisecond, func() error { return os.RemoveAll(dir) }); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	return resolved
}

func subdir(t testing.TB, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}

func logLevel(opts Options) string {
	if opts.LogLevel != "" {
		return opts.LogLevel
	}
	if level := os.Getenv("APIKEYS_E2E_LOG"); level != "" {
		return level
	}
	return "info"
}
