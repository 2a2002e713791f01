// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// agentSetup is a mount with a key, and an AppRole that may do what client.hcl
// lets it do and nothing else.
type agentSetup struct {
	*mount
	app  app
	dir  string
	sink string // HCL of where Agent leaves its token, if anywhere
}

func agentOn(m *mount) agentSetup {
	m.t.Helper()
	hcl := strings.ReplaceAll(policy(m.t, "client"), "apikeys/", m.path+"/")
	return agentSetup{mount: m, app: newApp(m.t, m.srv, m.path+"-app", writePolicy(m.t, m, "client", hcl)), dir: m.t.TempDir()}
}

// start runs Vault Agent with what it is to render.
func (s agentSetup) start(config string) *harness.Agent {
	s.t.Helper()
	for name, content := range map[string]string{"role-id": s.app.roleID, "secret-id": s.app.secretID} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return s.srv.StartAgent(s.t, fmt.Sprintf(`
auto_auth {
  method "approle" {
    mount_path = "auth/%s"
    config = {
      role_id_file_path                   = %q
      secret_id_file_path                 = %q
      remove_secret_id_file_after_reading = false
    }
  }
%s
}
%s`, s.app.mount, filepath.Join(s.dir, "role-id"), filepath.Join(s.dir, "secret-id"), s.sink, config))
}

// renderedKey watches the key that an agent keeps in a file, as an application
// would use it: whenever it is there, it has to be accepted.
type renderedKey struct {
	m    *mount
	file string

	mu       sync.Mutex
	version  int
	checks   int
	refusals []string
}

// watch begins to read the file. On the test's end not one key that it held
// may have been refused.
func (s agentSetup) watch(file string) *renderedKey {
	s.t.Helper()
	w := &renderedKey{m: s.mount, file: file}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			w.check()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	s.t.Cleanup(func() {
		cancel()
		<-done
		s.t.Logf("the rendered key was verified %d times and refused %d times", w.checks, len(w.refusals))
		for _, refusal := range w.refusals {
			s.t.Errorf("the rendered key was refused: %s", refusal)
		}
	})
	return w
}

func (w *renderedKey) check() {
	apiKey, err := os.ReadFile(w.file)
	if err != nil || len(apiKey) == 0 {
		return // not rendered yet, or being replaced
	}
	v, err := w.m.tryVerify(string(apiKey))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checks++
	if err != nil || !v.Valid {
		w.refusals = append(w.refusals, fmt.Sprintf("%s of version %d, %v", v.Code, v.Version, err))
		return
	}
	w.version = v.Version
}

func (w *renderedKey) becomes(t testing.TB, timeout time.Duration, version int) {
	t.Helper()
	eventually(t, timeout, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.version != version {
			return fmt.Errorf("the rendered key is version %d, not %d", w.version, version)
		}
		return nil
	})
}

// manualRole is a role whose keys are rotated by hand, and whose clients look
// often enough for a short overlap.
func (m *mount) manualRole() {
	m.t.Helper()
	m.role("manual", "overlap_period", "15s", "refresh_interval", "2s")
}

// scheduledRole is a role whose keys rotate every 20 seconds, as fast as an
// overlap of five minutes lets them.
func (m *mount) scheduledRole() {
	m.t.Helper()
	m.role("scheduled", "rotation_period", "20s", "overlap_period", "5m", "refresh_interval", "2s",
		"max_accepted_versions", 16, "max_versions", 20)
}

// rotatesBySchedule waits until the schedule has rotated a key. The sweep does
// at once what the next tick would do.
func (m *mount) rotatesBySchedule(name string, from int) int {
	m.t.Helper()
	now := from
	harness.Eventually(m.t, 3*time.Minute, time.Second, func() error {
		m.write("sweep", nil)
		if now = m.info(name).CurrentVersion; now <= from {
			return errors.New("not rotated yet")
		}
		return nil
	})
	for _, e := range activations(m.history(name)) {
		if e.Version == now && e.Actor != "periodic" {
			m.t.Errorf("version %d was made by %s", now, e.Actor)
		}
	}
	return now
}

// renderInto is the template that an application's file is rendered from.
func (s agentSetup) renderInto(file string) string {
	return fmt.Sprintf(`
template {
  contents    = "{{ with secret \"%s/static-creds/acme\" }}{{ .Data.api_key }}{{ end }}"
  destination = %q
}`, s.path, file)
}

// supervise runs a process with the key in its environment. It writes what it
// was given to a file, and is started anew by Agent with each new key.
func (s agentSetup) supervise(file string) string {
	s.t.Helper()
	script := filepath.Join(s.dir, "app.sh")
	content := "#!/bin/sh\nprintf %s \"$ACME_KEY\" > \"$1.new\" && mv -f \"$1.new\" \"$1\"\nexec sleep 3600\n"
	if err := os.WriteFile(script, []byte(content), 0o700); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf(`
env_template "ACME_KEY" {
  contents             = "{{ with secret \"%s/static-creds/acme\" }}{{ .Data.api_key }}{{ end }}"
  error_on_missing_key = true
}
exec {
  command                   = ["/bin/sh", %q, %q]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}`, s.path, script, file)
}

func TestAgentRendersAKeyThroughManualRotations(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.manualRole()
	s.key("acme", "manual")
	file := filepath.Join(s.dir, "key")
	agent := s.start(s.renderInto(file))
	w := s.watch(file)
	w.becomes(t, 30*time.Second, 1)
	for version := 2; version <= 3; version++ {
		s.rotate("acme")
		w.becomes(t, 14*time.Second, version) // inside the overlap
	}
	s.write("rollback/acme", nil)
	w.becomes(t, 14*time.Second, 2)
	if !agent.Running() {
		t.Error("Agent has ended")
	}
}

func TestAgentRendersAKeyThroughScheduledRotations(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.scheduledRole()
	s.key("acme", "scheduled")
	file := filepath.Join(s.dir, "key")
	s.start(s.renderInto(file))
	w := s.watch(file)
	w.becomes(t, 30*time.Second, 1)
	w.becomes(t, 30*time.Second, s.rotatesBySchedule("acme", 1))
}

func TestAgentSwapsTheEnvironmentOfAProcessThroughManualRotations(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.manualRole()
	s.key("acme", "manual")
	file := filepath.Join(s.dir, "seen")
	agent := s.start(s.supervise(file))
	w := s.watch(file)
	w.becomes(t, 30*time.Second, 1)
	for version := 2; version <= 3; version++ {
		s.rotate("acme")
		w.becomes(t, 14*time.Second, version)
	}
	if !agent.Running() {
		t.Error("Agent has ended")
	}
}

func TestAgentSwapsTheEnvironmentOfAProcessThroughScheduledRotations(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.scheduledRole()
	s.key("acme", "scheduled")
	file := filepath.Join(s.dir, "seen")
	s.start(s.supervise(file))
	w := s.watch(file)
	w.becomes(t, 30*time.Second, 1)
	w.becomes(t, 30*time.Second, s.rotatesBySchedule("acme", 1))
}
