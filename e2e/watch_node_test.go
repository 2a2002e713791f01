// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// nodeReceiver is the receiver of testdata/webhook-receiver, which verifies
// with the package standardwebhooks for Node.
type nodeReceiver struct {
	t    testing.TB
	dir  string
	port string

	mu  sync.Mutex
	cmd *exec.Cmd
	got []nodeMessage
}

// nodeMessage is a line that the receiver prints for a request.
type nodeMessage struct {
	message
	Port       int   `json:"port"`
	Refused    bool  `json:"refused"`
	Accepted   bool  `json:"accepted"`
	SignedBy   []int `json:"signed_by"`
	Signatures int   `json:"signatures"`
}

// needsNode skips a test, or fails it where nothing may be missing, and
// returns the receiver with its packages as the lockfile has them.
func needsNode(t testing.TB) *nodeReceiver {
	t.Helper()
	r := &nodeReceiver{t: t, dir: t.TempDir(), port: "0"}
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc", "receiver.mjs"} {
		content, err := os.ReadFile(filepath.Join("testdata", "webhook-receiver", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := exec.LookPath("node")
	if err == nil {
		install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
		install.Dir = r.dir
		var said []byte
		if said, err = install.CombinedOutput(); err != nil {
			err = fmt.Errorf("npm ci: %w\n%s", err, said)
		}
	}
	switch {
	case err == nil:
	case os.Getenv("APIKEYS_E2E_REQUIRE") == "1":
		t.Fatalf("no receiver in another language to test with: %v", err)
	default:
		t.Skipf("SKIP: no receiver in another language to test with: %v", err)
	}
	return r
}

// start starts the receiver with its secrets, on the port that it had before.
func (r *nodeReceiver) start(secrets ...string) {
	r.t.Helper()
	cmd := exec.Command("node", append([]string{"receiver.mjs", r.port}, secrets...)...)
	cmd.Dir = r.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Fatalf("start the receiver: %v", err)
	}
	r.mu.Lock()
	r.cmd = cmd
	r.mu.Unlock()
	r.t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() {
		_ = cmd.Wait()
		r.t.Fatalf("the receiver did not start: %s", stderr.String())
	}
	var first nodeMessage
	if err := json.Unmarshal(lines.Bytes(), &first); err != nil || first.Port == 0 {
		r.t.Fatalf("the receiver said %q: %v", lines.Text(), err)
	}
	r.port = fmt.Sprint(first.Port)
	go func() {
		for lines.Scan() {
			var m nodeMessage
			if err := json.Unmarshal(lines.Bytes(), &m); err == nil {
				r.mu.Lock()
				r.got = append(r.got, m)
				r.mu.Unlock()
			}
		}
		_ = cmd.Wait()
	}()
}

// kill ends the receiver as a crash would.
func (r *nodeReceiver) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, 10*time.Second, func() error {
		if resp, err := http.Get(r.url()); err == nil {
			_ = resp.Body.Close()
			return fmt.Errorf("it still answers")
		}
		return nil
	})
}

func (r *nodeReceiver) url() string { return "http://127.0.0.1:" + r.port + "/" }

// behaves sets how the receiver answers from now on.
func (r *nodeReceiver) behaves(how string) {
	r.t.Helper()
	resp, err := http.Post(r.url()+"behave", "application/json", strings.NewReader(how))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusNoContent {
		r.t.Fatalf("behave: %s", resp.Status)
	}
}

// all are the requests so far.
func (r *nodeReceiver) all() []nodeMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// accepted are the messages that were accepted, each id once.
func (r *nodeReceiver) accepted() []message {
	var list []message
	for _, m := range r.all() {
		if m.Accepted && !slices.ContainsFunc(list, func(o message) bool { return o.ID == m.ID }) {
			list = append(list, m.message)
		}
	}
	return list
}

// seen waits for a request of which is true, among those from the first on.
func (r *nodeReceiver) seen(what string, first int, which func(nodeMessage) bool) nodeMessage {
	r.t.Helper()
	var found nodeMessage
	eventually(r.t, 30*time.Second, func() error {
		for _, m := range r.all()[first:] {
			if which(m) {
				found = m
				return nil
			}
		}
		return fmt.Errorf("no %s among %d requests", what, len(r.all()))
	})
	return found
}

// webhookSecret is a signing secret that is not random: it is no secret.
func webhookSecret(fill string) string {
	return "whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat(fill, 32)))
}

func TestAReceiverInAnotherLanguageIsToldEverythingInOrder(t *testing.T) {
	t.Parallel()
	r := needsNode(t)
	m := onRaft(t)
	m.role("trading")
	first, second := webhookSecret("a"), webhookSecret("b")
	r.start(first)
	m.write("webhooks/node", fields("url", r.url(), "allow_private", true, "secret", first, "keys", []string{"acme*"}))
	if test := m.write("webhooks/node/test", nil); test["delivered"] != true || test["status"] != 204.0 || test["result"] != "delivered" {
		t.Errorf("the test message: %v", test)
	}
	if m := r.seen("test message", 0, func(m nodeMessage) bool { return m.Type == "webhook.test" }); m.Signatures != 1 || m.Data["webhook"] != "node" {
		t.Errorf("the test message arrived as %+v", m)
	}

	m.key("acme", "trading", "custom_metadata", fields("owner", "blue"))
	told := r.seen("version.activated", 0, func(m nodeMessage) bool { return m.Type == "version.activated" })
	metadata, _ := told.Data["custom_metadata"].(map[string]any)
	if told.text("name") != "acme" || told.text("role") != "trading" || metadata["owner"] != "blue" || told.Data["version"] != 1.0 {
		t.Errorf("a message: %+v", told)
	}

	// Down, wrong, slow: what happens meanwhile arrives when it is back.
	r.kill()
	m.rotate("acme")
	failedWith := func(result string) {
		t.Helper()
		eventually(t, 40*time.Second, func() error {
			for _, d := range m.hookInfo("node").Deliveries {
				if strings.HasPrefix(d.Result, result) {
					return nil
				}
			}
			return fmt.Errorf("no delivery has failed with %s: %+v", result, m.hookInfo("node").Deliveries)
		})
	}
	failedWith("connect")
	r.start(first)
	r.behaves(`{"status": 500}`)
	m.key("acme2", "trading") // its first attempt is not behind a long wait
	failedWith("status 500")
	r.behaves(`{"slow": true}`)
	m.key("acme3", "trading")
	failedWith("timeout")
	r.behaves(`{}`)
	// What has failed twice would be tried again in five minutes: the hook
	// that is written as enabled begins anew.
	m.must(http.MethodPatch, "webhooks/node", fields("enabled", false))
	m.must(http.MethodPatch, "webhooks/node", fields("enabled", true))
	for _, name := range []string{"acme", "acme2", "acme3"} {
		id := m.info(name).KeyID
		eventually(t, 30*time.Second, func() error { return sameAsHistory(m.history(name), byKey(r.accepted(), id)) })
	}

	// The secret is rotated with an overlap, as our own keys are.
	issued.add(first, "the first secret of a webhook")
	issued.add(second, "the second secret of a webhook")
	m.write("webhooks/node", fields("secret", second, "secret_overlap_period", "1h"))
	at := len(r.all())
	m.rotate("acme2")
	r.seen("message with two signatures", at, func(m nodeMessage) bool { return m.Accepted && m.Signatures == 2 && slices.Equal(m.SignedBy, []int{0}) })
	r.kill()
	r.start(second)
	at = len(r.all())
	m.rotate("acme3")
	r.seen("message that the new secret signed", at, func(m nodeMessage) bool { return m.Accepted && m.Signatures == 2 })
	m.write("webhooks/node", fields("secret", webhookSecret("c"), "secret_overlap_period", 0))
	at = len(r.all())
	m.write("webhooks/node/test", nil)
	// The one before is still within its overlap; the former current one is not.
	r.seen("refusal", at, func(m nodeMessage) bool { return m.Refused })
	m.write("webhooks/node", fields("secret", second))

	// It wants no more.
	r.behaves(`{"status": 410}`)
	m.rotate("acme")
	eventually(t, 30*time.Second, func() error {
		if h := m.hookInfo("node"); h.Enabled || !strings.Contains(h.DisabledReason, "410 Gone") || h.Pending == 0 {
			return fmt.Errorf("the webhook after 410: %+v", h)
		}
		return nil
	})
	r.behaves(`{}`)
	m.must(http.MethodPatch, "webhooks/node", fields("enabled", true))
	id := m.info("acme").KeyID
	eventually(t, 30*time.Second, func() error { return sameAsHistory(m.history("acme"), byKey(r.accepted(), id)) })
	if h := m.hookInfo("node"); !h.Enabled || h.DisabledReason != "" || h.Dropped != 0 || h.Failed != 0 {
		t.Errorf("the webhook in the end: %+v", h)
	}
	for _, other := range r.all() {
		if other.Refused {
			continue
		}
		for _, same := range r.all() {
			if keyID, seq := same.of(); same.ID != other.ID && keyID != "test" {
				if otherKey, otherSeq := other.of(); keyID == otherKey && seq == otherSeq {
					t.Errorf("one event came as %s and as %s", same.ID, other.ID)
				}
			}
		}
	}
}
