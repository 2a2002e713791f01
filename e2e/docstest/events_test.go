// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

const (
	eventsPage   = "docs/reference/events.md"
	receiversDir = "docs/how-to/examples/webhook-receiver"
	webhooksPage = "docs/how-to/webhooks.md"
)

// engineAt returns a server with the engine, and a function that writes to it.
func engineAt(t *testing.T) (*harness.Server, func(path string, data map[string]any) map[string]any) {
	t.Helper()
	srv := harness.StartDev(t, harness.Options{})
	plugin := harness.Plugin(t, harness.PluginOptions{Version: firstVersion})
	srv.RegisterPlugin(t, harness.PluginName, "", plugin.Path, plugin.SHA256)
	srv.EnableEngine(t, "apikeys", harness.PluginName)
	return srv, func(path string, data map[string]any) map[string]any {
		t.Helper()
		secret, err := srv.Client.Logical().WriteWithContext(t.Context(), "apikeys/"+path, data)
		if err != nil {
			t.Fatalf("write %s: %v", path, err)
		}
		if secret == nil {
			return nil
		}
		return secret.Data
	}
}

// TestDocsEventsAreThoseOfTheCode compares the table of types with those that
// the engine names where it refuses a filter, and the fields of messages with
// those of messages that it sends.
func TestDocsEventsAreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	page := readFile(t, repoRoot(t), eventsPage)
	_, types, _ := strings.Cut(page, "\n## Types\n")
	types, _, _ = strings.Cut(types, "\n## ")
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+\\.[a-z_]+)` \\|").FindAllStringSubmatch(types, -1) {
		listed = append(listed, m[1])
	}
	srv, write := engineAt(t)

	_, err := srv.Client.Logical().WriteWithContext(t.Context(), "apikeys/webhooks/bad", map[string]any{"url": "https://example.com", "events": "none.such"})
	if err == nil {
		t.Fatal("a filter that matches no event is accepted")
	}
	_, rest, _ := strings.Cut(err.Error(), "there are ")
	declared := regexp.MustCompile(`[a-z_]+\.[a-z_]+`).FindAllString(rest, -1)
	if !slices.Equal(declared, listed) {
		t.Errorf("%s lists the events\n%v, the engine has\n%v", eventsPage, listed, declared)
	}

	var mu sync.Mutex
	seen := map[string]bool{}
	claim := ""
	secret := "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		var message struct {
			Type, Timestamp string
			Data            map[string]any
		}
		if err == nil {
			err = json.Unmarshal(body, &message)
		}
		if err != nil {
			t.Errorf("a message: %v", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for name := range message.Data {
			seen[name] = true
		}
		if code, ok := message.Data["claim_code"].(string); ok && message.Data["version"] == float64(2) {
			claim = code
		}
		seen[message.Type] = true
	}))
	t.Cleanup(receiver.Close)
	hook := map[string]any{"url": receiver.URL, "allow_private": true, "secret": secret}
	write("webhooks/all", hook)
	hook["deliver"] = "claim"
	write("webhooks/claims", hook)
	write("webhooks/all/test", nil)
	write("roles/partner", map[string]any{"overlap_period": "1h"})
	write("keys/acme", map[string]any{"role": "partner", "custom_metadata": map[string]any{"tier": "gold"}})
	write("rotate/acme", map[string]any{"reason": "test"})
	deadline := time.Now().Add(30 * time.Second)
	for code := ""; code == ""; {
		if time.Now().After(deadline) {
			t.Fatal("no claim code within 30 s")
		}
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		code = claim
		mu.Unlock()
	}
	write("claim", map[string]any{"code": claim})
	for redeemed := false; !redeemed; {
		if time.Now().After(deadline) {
			t.Fatal("claim.redeemed did not come within 30 s")
		}
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		redeemed = seen["claim.redeemed"]
		mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	_, fields, _ := strings.Cut(page, "In `data`, where they apply:")
	fields, _, _ = strings.Cut(fields, "\n## ")
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(fields, -1) {
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[m[1]] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if !strings.Contains(name, ".") && !documented[name] {
			t.Errorf("%s does not tell of the field %q of messages", eventsPage, name)
		}
	}
	for name := range documented {
		if !seen[name] && name != "truncated" && name != "events_missed" {
			t.Errorf("%s tells of the field %q, which no message had", eventsPage, name)
		}
	}
}

// TestDocsHealthIsThatOfTheCode compares the tables of health values with the
// answer that the engine declares.
func TestDocsHealthIsThatOfTheCode(t *testing.T) {
	t.Parallel()
	var declared []string
	for _, p := range paths(t) {
		if pathName(p.Pattern) != "rollovers/:name" {
			continue
		}
		for _, op := range p.Operations {
			declared = regexp.MustCompile(`[a-z]+(?:_[a-z]+)*`).FindAllString(strings.ReplaceAll(op.Properties().Responses[200][0].Fields["health"].Description, " or ", " "), -1)
		}
	}
	if len(declared) == 0 {
		t.Fatal("rollovers/:name declares no health")
	}
	for page, head := range map[string]string{referencePage: "\n| health | when |\n", "docs/how-to/watch-a-rollover.md": "\n| `health` | when | what to do |\n"} {
		_, table, _ := strings.Cut(readFile(t, repoRoot(t), page), head)
		table, _, _ = strings.Cut(table, "\n\n")
		var listed []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(table, -1) {
			listed = append(listed, m[1])
		}
		if !slices.Equal(declared, listed) {
			t.Errorf("%s lists the health %v, the engine has %v", page, listed, declared)
		}
	}
}

// TestDocsReceiversAreWhatThePageShows finds the functions of the page in the
// receivers that the next test runs.
func TestDocsReceiversAreWhatThePageShows(t *testing.T) {
	t.Parallel()
	page := readFile(t, repoRoot(t), webhooksPage)
	for lang, file := range map[string]string{"javascript": "receiver.mjs", "python": "receiver.py"} {
		shown := 0
		for _, b := range blocks(t, webhooksPage, page) {
			if b.lang != lang {
				continue
			}
			shown++
			if !strings.Contains(readFile(t, repoRoot(t), receiversDir, file), strings.Join(b.body, "\n")) {
				t.Errorf("%s:%d: %s has another function", webhooksPage, b.line, file)
			}
		}
		if shown == 0 {
			t.Errorf("%s shows no %s", webhooksPage, lang)
		}
	}
}

// TestDocsReceiversCheckMessages sends each example receiver what it must
// take, and what it must not.
func TestDocsReceiversCheckMessages(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(repoRoot(t), receiversDir)
	built := filepath.Join(t.TempDir(), "receiver")
	if out, err := exec.Command("go", "build", "-o", built, dir).CombinedOutput(); err != nil {
		t.Fatalf("build the receiver in Go: %v\n%s", err, out)
	}
	for name, args := range map[string][]string{
		"go": {built}, "node": {"node", filepath.Join(dir, "receiver.mjs")}, "python": {"python3", filepath.Join(dir, "receiver.py")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := exec.LookPath(args[0])
			switch {
			case err == nil:
			case os.Getenv("APIKEYS_E2E_REQUIRE") == "1":
				t.Fatalf("%s is not installed, so its receiver is not tested", args[0])
			default:
				t.Skipf("SKIP: %s is not installed, so its receiver is not tested", args[0])
			}
			checkReceiver(t, args)
		})
	}
}

func checkReceiver(t *testing.T, args []string) {
	t.Helper()
	work := t.TempDir()
	cmd := exec.Command(args[0], args[1:]...)
	var log bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = work, &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the receiver said:\n%s", log.String())
		}
	})
	url := ""
	for deadline := time.Now().Add(30 * time.Second); !strings.HasSuffix(url, "\n"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the receiver did not start within 30 s")
		}
		content, _ := os.ReadFile(filepath.Join(work, "receiver.url"))
		url = string(content)
	}
	url = strings.TrimSpace(url)
	const secret, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	const body = `{"type":"webhook.test","timestamp":"2026-01-01T12:00:00Z","data":{"webhook":"é"}}`
	sign := func(secret, id string, at time.Time) string {
		wh, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := wh.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	send := func(what, id, body, signature string, at time.Time, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("webhook-id", id)
		req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		req.Header.Set("webhook-signature", signature)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: status %d, want %d", what, res.StatusCode, want)
		}
	}
	now := time.Now()
	send("without a secret", "a_1", body, sign(secret, "a_1", now), now, http.StatusServiceUnavailable)
	if err := os.WriteFile(filepath.Join(work, "webhook-secret"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	send("a good message", "a_1", body, sign(secret, "a_1", now), now, http.StatusNoContent)
	send("its repetition", "a_1", body, sign(secret, "a_1", now), now, http.StatusNoContent)
	send("two signatures", "a_2", body, sign(other, "a_2", now)+" "+sign(secret, "a_2", now), now, http.StatusNoContent)
	send("another secret", "a_3", body, sign(other, "a_3", now), now, http.StatusUnauthorized)
	send("another id", "a_3", body, sign(secret, "a_4", now), now, http.StatusUnauthorized)
	send("another body", "a_3", body+" ", sign(secret, "a_3", now), now, http.StatusUnauthorized)
	old := now.Add(-10 * time.Minute)
	send("an old message", "a_3", body, sign(secret, "a_3", old), old, http.StatusUnauthorized)
	send("no signature", "a_3", body, "", now, http.StatusUnauthorized)

	events, err := os.Open(filepath.Join(work, "events.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = events.Close() })
	lines := 0
	for s := bufio.NewScanner(events); s.Scan(); lines++ {
		if s.Text() != body {
			t.Errorf("events.log holds %q", s.Text())
		}
	}
	if lines != 2 {
		t.Errorf("events.log has %d messages, want 2", lines)
	}
}
