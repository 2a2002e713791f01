// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// Agent is a running `vault agent`.
type Agent struct {
	Dir  string // its working directory: relative paths in its configuration
	proc *process
}

var agents atomic.Int64

// StartAgent runs `vault agent` with the given configuration. The server's
// address comes from the environment, so a vault stanza is needed only for what
// differs. On the test's end Agent gets SIGTERM first, so that a process which
// it supervises ends with it.
func (s *Server) StartAgent(t testing.TB, hcl string) *Agent {
	t.Helper()
	dir := subdir(t, s.Dir, fmt.Sprintf("agent%d", agents.Add(1)))
	config := filepath.Join(dir, "agent.hcl")
	writeFile(t, config, hcl)
	a := &Agent{Dir: dir, proc: &process{
		bin:  s.bin,
		args: []string{"agent", "-config=" + config},
		env:  s.clientEnv(""),
		dir:  dir,
		log:  filepath.Join(dir, "agent.log"),
	}}
	if err := a.proc.start(); err != nil {
		t.Fatalf("start agent: %v", err)
	}
	t.Cleanup(func() {
		a.Stop(t)
		a.proc.dumpOnFailure(t, "agent")
	})
	return a
}

// Log is all that Agent, and what it supervises, has written so far.
func (a *Agent) Log() string { return a.proc.readLog() }

// Running tells whether Agent still runs.
func (a *Agent) Running() bool { return a.proc.alive() }

// Stop ends Agent.
func (a *Agent) Stop(t testing.TB) {
	t.Helper()
	a.proc.stop(10 * time.Second)
}
