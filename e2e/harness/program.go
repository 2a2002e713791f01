// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Program is a running program beside the servers: a proxy, a gateway.
type Program struct {
	Dir  string // its folder, which goes when the test ends
	name string
	proc *process
}

// ProgramOptions are how a program is started.
type ProgramOptions struct {
	Bin  string
	Args []string
	Env  []string // beside PATH, HOME and TMPDIR
	// Dir is its folder, of NewDir.
	Dir string
	// Ready returns nil once it can be used.
	Ready func() error
}

// NewDir makes a folder with a short path, which goes when the test ends.
func NewDir(t testing.TB) string {
	t.Helper()
	return tempDir(t)
}

// FreeAddr returns an address on 127.0.0.1 that nobody listens at, and that
// the kernel gives to no connection.
func FreeAddr(t testing.TB) string {
	t.Helper()
	port, _, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	return loopback(port)
}

// StartProgram starts a program, waits until it is ready, and stops it when the
// test ends.
func StartProgram(t testing.TB, opts ProgramOptions) *Program {
	t.Helper()
	p := &Program{Dir: opts.Dir, name: filepath.Base(opts.Bin)}
	p.proc = &process{
		bin: opts.Bin, args: opts.Args, dir: p.Dir, log: filepath.Join(p.Dir, p.name+".log"),
		env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.Dir, "TMPDIR=" + p.Dir}, opts.Env...),
	}
	t.Cleanup(func() {
		p.proc.stop(0)
		p.proc.dumpOnFailure(t, p.name)
	})
	if err := p.proc.start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	err := poll(startTimeout, pollEvery, func() error {
		if !p.proc.alive() {
			return nil
		}
		return opts.Ready()
	})
	if err == nil && !p.proc.alive() {
		err = errors.New("it ended at once")
	}
	if err != nil {
		t.Fatalf("start %s: %v\n%s", p.name, err, p.Log())
	}
	return p
}

// Log is all that the program has written to its standard output and error.
func (p *Program) Log() string { return p.proc.readLog() }

// Signal sends a signal to the program alone.
func (p *Program) Signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	p.proc.mu.Lock()
	defer p.proc.mu.Unlock()
	if p.proc.cmd == nil {
		t.Fatalf("%s does not run", p.name)
	}
	if err := p.proc.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("signal %s: %v", p.name, err)
	}
}

// Freeze stops the program as SIGSTOP does, and waits until all of its threads have
// stopped: the signal comes to them one by one. It needs Linux. thaw lets it go on.
func (p *Program) Freeze(t testing.TB) (thaw func()) {
	t.Helper()
	p.Signal(t, syscall.SIGSTOP)
	if err := poll(startTimeout, pollEvery, func() error { return stopped(p.proc.pid()) }); err != nil {
		t.Fatalf("freeze %s: %v", p.name, err)
	}
	return func() { p.Signal(t, syscall.SIGCONT) }
}

// stopped returns nil once all threads of a process have stopped. See proc(5).
func stopped(pid int) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	if len(threads) == 0 {
		return fmt.Errorf("/proc has no threads of process %d", pid)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// The state follows the name, which is in brackets.
		if _, state, ok := strings.Cut(string(stat), ") "); !ok || state[0] != 'T' {
			return fmt.Errorf("%s is not stopped", path)
		}
	}
	return nil
}

// Wait waits for the end of the program, and returns its exit code.
func (p *Program) Wait(t testing.TB, most time.Duration) int {
	t.Helper()
	p.proc.mu.Lock()
	cmd, ended := p.proc.cmd, p.proc.ended
	p.proc.mu.Unlock()
	select {
	case <-ended:
		return cmd.ProcessState.ExitCode()
	case <-time.After(most):
		t.Fatalf("%s still runs after %s", p.name, most)
	}
	return -1
}

var companion = struct {
	sync.Mutex
	path string
	err  error
}{}

// Apikeys builds cmd/apikeys, once in a test process, and returns its path.
func Apikeys(t testing.TB) string {
	t.Helper()
	companion.Lock()
	defer companion.Unlock()
	if companion.path == "" && companion.err == nil {
		companion.path, companion.err = buildApikeys()
	}
	if companion.err != nil {
		t.Fatalf("build apikeys: %v", companion.err)
	}
	return companion.path
}

func buildApikeys() (string, error) {
	root, err := repoRoot()
	if err != nil {
		return "", err
	}
	cache := os.Getenv("APIKEYS_CACHE")
	if cache == "" {
		cache = filepath.Join(root, ".cache")
	}
	dir := filepath.Join(cache, "e2e-plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	dropOld(dir, 24*time.Hour)
	fresh := filepath.Join(dir, "build-"+randomHex(8))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", fresh, "./cmd/apikeys")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	sum, err := FileSHA256(fresh)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "apikeys-"+sum[:16])
	return path, os.Rename(fresh, path)
}
