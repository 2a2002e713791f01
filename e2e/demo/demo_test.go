// SPDX-License-Identifier: MPL-2.0

// Package demo runs what `make demo` runs, on a real Vault.
package demo_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// program builds the demo. Unlike `go run` it can be signalled itself.
func program(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", bin, "../../scripts/demo").CombinedOutput(); err != nil {
		t.Fatalf("build the demo: %v\n%s", err, out)
	}
	return bin
}

func command(ctx context.Context, t *testing.T, bin, vault string) (*exec.Cmd, *strings.Builder, string) {
	t.Helper()
	tmp, err := os.MkdirTemp("", "demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	var out strings.Builder
	cmd := exec.CommandContext(ctx, bin, "-fast")
	cmd.Env = append(os.Environ(), "VAULT_BIN="+vault, "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out, tmp
}

func TestTheDemoEndsWithNoRefusal(t *testing.T) {
	t.Parallel()
	vault := harness.Binary(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd, out, tmp := command(ctx, t, program(t), vault)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`\$ \w+ write -f apikeys/rotate/acme\n`,
		`(?m)^planned: .* [1-9]\d* verifications +0 refused$`,
		`(?m)^emergency: requests that failed .* 0 failed$`,
		`(?m)^PASS: `,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("the output has no match of %s", want)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("escape sequences in the output of a demo that does not write to a terminal")
	}
	if t.Failed() {
		t.Log(out)
	}
	noneLeft(t, tmp)
}

func TestAnInterruptedDemoLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	vault := harness.Binary(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd, out, tmp := command(ctx, t, program(t), vault)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, 100*time.Millisecond, func() error {
		_, err := os.Stat(filepath.Join(onlyEntry(tmp), "server.log"))
		return err
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit status %d, want 130\n%s", code, out)
	}
	noneLeft(t, tmp)
}

func onlyEntry(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		return dir
	}
	return filepath.Join(dir, entries[0].Name())
}

// noneLeft checks that the demo removed its folder, and that no process has
// it in its arguments any more.
func noneLeft(t *testing.T, tmp string) {
	t.Helper()
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) > 0 {
		t.Errorf("left in %s: %v, %v", tmp, entries, err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if line, err := os.ReadFile(p); err == nil && strings.Contains(string(line), tmp) {
			t.Errorf("still running: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}
