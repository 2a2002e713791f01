// SPDX-License-Identifier: MPL-2.0

package vaultclient_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// fakeVault answers logins, look-ups and renewals as Vault does, and one path
// below the mount with whatever a test wants. It is an http.RoundTripper, so
// that a test's time can be synctest's.
type fakeVault struct {
	t testing.TB

	mu       sync.Mutex
	ttl      time.Duration        // of tokens that a login gives
	maxTTL   time.Duration        // renewal ends here; 0: not renewable
	born     map[string]time.Time // live tokens
	dies     map[string]time.Time
	jwts     []string // that logins presented
	logins   int
	renewals int
	lookups  int
	down     bool // nothing answers
	noLookup bool // tokens may not look themselves up
	answer   http.HandlerFunc
	served   int // requests below the mount that had a live token
}

func newFakeVault(t testing.TB) *fakeVault {
	return &fakeVault{
		t: t, ttl: time.Hour, born: map[string]time.Time{}, dies: map[string]time.Time{},
		answer: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"data":{"colour":"crimson"}}`)
		},
	}
}

func (v *fakeVault) client(auth vaultclient.Auth) *vaultclient.Client {
	v.t.Helper()
	c, err := vaultclient.New(vaultclient.Config{Address: "http://vault.test:8200", Auth: auth, Transport: v})
	if err != nil {
		v.t.Fatal(err)
	}
	return c
}

// run runs a client until the test ends.
func run(t testing.TB, c *vaultclient.Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled { //nolint:errorlint // it is the very error
			t.Errorf("Run returned %v", err)
		}
	})
}

func (v *fakeVault) RoundTrip(r *http.Request) (*http.Response, error) {
	v.mu.Lock()
	down := v.down
	v.mu.Unlock()
	if down {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, fmt.Errorf("dial tcp: connection refused")
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.serve(w, r)
	}()
	select {
	case <-done:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func (v *fakeVault) serve(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("X-Vault-Token")
	v.mu.Lock()
	live := v.alive(token)
	switch {
	case strings.HasPrefix(r.URL.Path, "/v1/auth/") && strings.HasSuffix(r.URL.Path, "/login"):
		defer v.mu.Unlock()
		if token != "" {
			v.t.Error("a login carries a token")
		}
		v.logIn(w, r)
	case r.URL.Path == "/v1/auth/token/lookup-self":
		defer v.mu.Unlock()
		v.lookups++
		if !live || v.noLookup {
			deny(w)
			return
		}
		left := int(time.Until(v.dies[token]).Seconds())
		reply(w, map[string]any{"data": map[string]any{"ttl": left, "renewable": v.maxTTL > 0}})
	case r.URL.Path == "/v1/auth/token/renew-self":
		defer v.mu.Unlock()
		if !live || v.maxTTL == 0 {
			deny(w)
			return
		}
		v.renewals++
		dies := time.Now().Add(v.ttl)
		if last := v.born[token].Add(v.maxTTL); dies.After(last) {
			dies = last
		}
		v.dies[token] = dies
		v.replyAuth(w, token)
	case !live && v.born != nil:
		defer v.mu.Unlock()
		deny(w)
	default:
		v.served++
		answer := v.answer
		v.mu.Unlock()
		answer(w, r)
	}
}

func (v *fakeVault) logIn(w http.ResponseWriter, r *http.Request) {
	var body struct {
		RoleID   string `json:"role_id"`
		SecretID string `json:"secret_id"`
		JWT      string `json:"jwt"`
		Role     string `json:"role"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		v.t.Error(err)
	}
	known := body.RoleID == "role" && body.SecretID == "s3cret" && r.URL.Path == "/v1/auth/approle/login" ||
		body.Role == "web" && strings.HasPrefix(body.JWT, "jwt-") && r.URL.Path == "/v1/auth/kubernetes/login"
	if !known {
		w.WriteHeader(http.StatusBadRequest)
		reply(w, map[string]any{"errors": []string{"invalid role or secret ID", "got " + body.SecretID}})
		return
	}
	if body.JWT != "" {
		v.jwts = append(v.jwts, body.JWT)
	}
	v.logins++
	token := fmt.Sprintf("hvs.token%d", v.logins)
	v.issue(token)
	v.replyAuth(w, token)
}

func (v *fakeVault) issue(token string) {
	v.born[token] = time.Now()
	v.dies[token] = time.Now().Add(v.ttl)
}

func (v *fakeVault) alive(token string) bool {
	dies, ok := v.dies[token]
	return ok && time.Now().Before(dies)
}

func (v *fakeVault) revokeAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.dies)
}

func (v *fakeVault) replyAuth(w http.ResponseWriter, token string) {
	reply(w, map[string]any{"auth": map[string]any{
		"client_token": token, "renewable": v.maxTTL > 0, "lease_duration": int(time.Until(v.dies[token]).Seconds()),
	}})
}

func deny(w http.ResponseWriter) {
	w.WriteHeader(http.StatusForbidden)
	reply(w, map[string]any{"errors": []string{"permission denied"}})
}

func reply(w http.ResponseWriter, body any) {
	_ = json.NewEncoder(w).Encode(body)
}

// counts are what the fake has seen so far.
func (v *fakeVault) counts() (logins, renewals, lookups, served int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.logins, v.renewals, v.lookups, v.served
}

var appRole = vaultclient.AppRole{RoleID: "role", SecretID: "s3cret"}

// inBubble runs a test whose time is moved by sleeping.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Setenv("VAULT_TOKEN", "") // nothing of the developer's
	synctest.Test(t, test)
}
