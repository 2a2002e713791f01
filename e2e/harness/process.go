// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program in a process group of its own whose output goes to a
// log file. It can be started again after it has ended; the log goes on.
type process struct {
	bin  string
	args []string
	env  []string
	dir  string
	log  string

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{}
	reaper *reaper
}

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return errors.New("already running")
	}
	// The log is given to the process as a file, not a pipe: a plugin that
	// outlives its server cannot keep Wait from returning.
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()

	cmd := exec.Command(p.bin, p.args...)
	cmd.Env, cmd.Dir = p.env, p.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	reaper, err := startReaper(cmd.Process.Pid)
	if err != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		return fmt.Errorf("start the reaper: %w", err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended, p.reaper = cmd, ended, reaper
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(ended)
	}()
	return nil
}

// run has the program run by another one, such as `ip netns exec`, that becomes
// it: so its process id stays that of the program.
func (p *process) run(by []string) {
	if len(by) > 0 {
		p.args = append(append(by[1:len(by):len(by)], p.bin), p.args...)
		p.bin = by[0]
	}
}

// pid is the process id of the program, 0 if it does not run.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// alive tells whether the program runs.
func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// stop ends the program: with SIGTERM and, after the grace period or if that is
// 0 at once, with SIGKILL to its whole process group. It returns when the
// program is gone, and does nothing if it does not run.
func (p *process) stop(grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	pid := p.cmd.Process.Pid
	if grace > 0 {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(grace):
		}
	}
	// Also after a clean end: plugins that the server left behind share its group.
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-p.ended
	p.reaper.dismiss()
	p.cmd, p.ended, p.reaper = nil, nil, nil
}

func (p *process) readLog() string {
	b, err := os.ReadFile(p.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err.Error()
	}
	return string(b)
}

// dumpOnFailure shows the end of the log if the test has failed.
func (p *process) dumpOnFailure(t testing.TB, what string) {
	t.Helper()
	if !t.Failed() {
		return
	}
	const shown = 60
	lines := strings.Split(strings.TrimRight(p.readLog(), "\n"), "\n")
	if len(lines) > shown {
		lines = lines[len(lines)-shown:]
	}
	t.Logf("the last %d lines of the log of %s:\n%s", len(lines), what, strings.Join(lines, "\n"))
}

// reaper kills a process group if the test binary ends without having stopped
// it: killed, or over its time limit, when no clean-up runs. It waits for the
// end of a pipe that only the test binary holds open.
type reaper struct {
	cmd  *exec.Cmd
	hold *os.File
}

func startReaper(pgid int) (*reaper, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	cmd := exec.Command("/bin/sh", "-c", `read -r _; kill -s KILL -- "-$1"`, "sh", fmt.Sprint(pgid))
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return nil, err
	}
	return &reaper{cmd: cmd, hold: w}, nil
}

// dismiss ends the reaper before its pipe, so that it never signals a group
// whose number may belong to somebody else by now.
func (r *reaper) dismiss() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	_ = r.hold.Close()
}
