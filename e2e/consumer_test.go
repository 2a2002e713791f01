// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// apiServer is a server that asks for an API key, and echoes what it is sent.
type apiServer struct {
	*httptest.Server
	refusals atomic.Int64
}

// startAPI starts a server that accepts the keys that check accepts. An error
// of check is a 503.
func startAPI(t testing.TB, check func(ctx context.Context, apiKey string) (accepted bool, err error)) *apiServer {
	t.Helper()
	s := &apiServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			return
		}
		apiKey, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		switch accepted, err := check(r.Context(), apiKey); {
		case err != nil:
			t.Logf("a request could not be verified: %v", err)
			w.WriteHeader(http.StatusServiceUnavailable)
		case !accepted:
			s.refusals.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s
}

// byVerify accepts what verify of a mount accepts.
func byVerify(m *mount) func(context.Context, string) (bool, error) {
	return func(_ context.Context, apiKey string) (bool, error) {
		v, err := m.tryVerify(apiKey, "source", "api")
		return v.Valid, err
	}
}

// load is an API client with some workers, on sdk/consumer.
type load struct {
	t      testing.TB
	source *consumer.Source
	client *http.Client
	url    string

	sent   atomic.Int64
	failed atomic.Int64
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// consume runs a source and lets workers send requests with bodies that can be
// sent again, one after the other. On the test's end, not one may have failed.
func consume(t testing.TB, server *apiServer, workers int, config consumer.Config) *load {
	t.Helper()
	source, err := consumer.New(config)
	if err != nil {
		t.Fatal(err)
	}
	base := &http.Transport{MaxIdleConnsPerHost: workers}
	transport, err := consumer.NewTransport(source, consumer.TransportConfig{Hosts: []string{server.URL}, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, source: source, client: &http.Client{Transport: transport, Timeout: time.Minute}, url: server.URL}
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // it ends when the workers have ended
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = source.Run(ctx)
	}()
	working, stop := context.WithCancel(ctx)
	l.stop = stop
	for worker := range workers {
		l.wg.Go(func() {
			for n := 0; working.Err() == nil; n++ {
				l.request(fmt.Sprintf("worker %d, request %d", worker, n))
			}
		})
	}
	t.Cleanup(func() {
		l.end()
		cancel()
		<-ran
		base.CloseIdleConnections()
	})
	return l
}

func (l *load) request(text string) {
	resp, err := l.client.Post(l.url+"/orders", "text/plain", strings.NewReader(text))
	if err == nil {
		var body []byte
		body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && (resp.StatusCode != http.StatusOK || string(body) != text) {
			err = fmt.Errorf("status %d, %d bytes", resp.StatusCode, len(body))
		}
	}
	l.sent.Add(1)
	if err != nil && l.failed.Add(1) <= 10 {
		l.t.Errorf("%s: %v", text, err)
	}
}

// passes waits until some more requests have been answered.
func (l *load) passes(requests int64) {
	l.t.Helper()
	goal := l.sent.Load() + requests
	harness.Eventually(l.t, 2*time.Minute, 2*time.Millisecond, func() error {
		if now := l.sent.Load(); now < goal {
			return fmt.Errorf("%d requests are still to come", goal-now)
		}
		return nil
	})
}

// changesOverTo waits until requests are sent with a version.
func (l *load) changesOverTo(version int) {
	l.t.Helper()
	eventually(l.t, 30*time.Second, func() error {
		if now := l.source.Current().Version(); now != version {
			return fmt.Errorf("version %d is in use, not %d", now, version)
		}
		return nil
	})
}

// end stops the workers and waits for them.
func (l *load) end() {
	l.stop()
	l.wg.Wait()
}

// sdkClient runs a client of the mount until the test ends.
func (m *mount) sdkClient(auth vaultclient.Auth) *vaultclient.Client {
	m.t.Helper()
	c, err := vaultclient.New(vaultclient.Config{Address: m.srv.Addr, Mount: m.path, Auth: auth})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = c.Run(ctx)
	}()
	m.t.Cleanup(func() {
		cancel()
		<-ran
	})
	return c
}

// appRole is the login of an app, by the SDK.
func (a app) appRole() vaultclient.AppRole {
	return vaultclient.AppRole{Mount: a.mount, RoleID: a.roleID, SecretID: a.secretID}
}

// confirms waits until an instance has confirmed a version of a key whose
// rollover is under way.
func (m *mount) confirms(name, instance string, version int) {
	m.t.Helper()
	eventually(m.t, 20*time.Second, func() error {
		for _, i := range m.rollover(name).Instances {
			if i.Instance == instance && i.Version == version {
				return nil
			}
		}
		return fmt.Errorf("%s has not confirmed version %d yet", instance, version)
	})
}

func TestConsumerOnVaultThroughRotationsWithoutOverlap(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.role("hard", "overlap_period", 0)
	s.key("acme", "hard")
	server := startAPI(t, byVerify(s.mount))
	l := consume(t, server, 8, consumer.Config{Origin: consumer.Vault(s.sdkClient(s.app.appRole()), "acme"), Instance: "eu-1"})
	const rotations = 50
	for range rotations {
		l.passes(20)
		s.rotate("acme")
	}
	// The login's token dies: that must not be noticed either.
	l.passes(20)
	s.srv.MustCLI(t, s.srv.RootToken, "token", "revoke", "-mode=path", "auth/"+s.app.mount)
	s.rotate("acme")
	l.passes(20)
	l.changesOverTo(rotations + 2)
	l.end()
	t.Logf("%d requests through %d rotations, %d refused at first, %d failed", l.sent.Load(), rotations+1, server.refusals.Load(), l.failed.Load())
	if server.refusals.Load() < rotations {
		t.Error("fewer refusals than rotations: this proves nothing")
	}
}

func TestConsumerOnVaultThroughRotationsWithOverlap(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.role("soft", "overlap_period", "30s", "refresh_interval", "1s", "max_accepted_versions", 16, "max_versions", 20)
	s.key("acme", "soft")
	server := startAPI(t, byVerify(s.mount))
	l := consume(t, server, 4, consumer.Config{Origin: consumer.Vault(s.sdkClient(s.app.appRole()), "acme"), Instance: "eu-1"})
	l.passes(20)
	for version := 2; version <= 6; version++ {
		s.rotate("acme")
		l.changesOverTo(version)
		l.passes(20)
	}
	s.confirms("acme", "eu-1", 6)
	l.end()
	t.Logf("%d requests through 5 rotations", l.sent.Load())
	if n := server.refusals.Load(); n > 0 {
		t.Errorf("%d requests were refused at first, in spite of the overlap", n)
	}
}

func TestConsumerOnTheFileOfAgentThroughRotations(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	// As quick as Agent can: it looks ttl and a second after it has looked.
	s.role("quick", "overlap_period", "20s", "refresh_interval", "1s", "max_accepted_versions", 16, "max_versions", 20)
	s.key("acme", "quick")
	file, sink := filepath.Join(s.dir, "creds.json"), filepath.Join(s.dir, "token")
	s.sink = fmt.Sprintf("  sink \"file\" { config = { path = %q } }", sink)
	s.start(fmt.Sprintf(`
template {
  contents    = "{{ with secret \"%s/static-creds/acme\" }}{{ .Data | toJSON }}{{ end }}"
  destination = %q
}`, s.path, file))
	eventually(t, 30*time.Second, func() error {
		_, err := os.Stat(file)
		return err
	})
	server := startAPI(t, byVerify(s.mount))
	l := consume(t, server, 4, consumer.Config{
		Origin:    consumer.File(file),
		Confirmer: consumer.Vault(s.sdkClient(vaultclient.TokenFile(sink)), "acme"),
		Instance:  "eu-1",
	})
	l.changesOverTo(1)
	version := 1
	for _, overlap := range []string{"0s", "0s", "0s", "60s", "60s", "60s"} {
		s.rotate("acme", "overlap_period", overlap)
		version++
		l.changesOverTo(version)
		l.passes(20)
	}
	s.confirms("acme", "eu-1", version) // by the token that Agent left in its sink
	l.end()
	t.Logf("%d requests through 6 rotations, %d refused at first", l.sent.Load(), server.refusals.Load())
}

func TestConsumerOnClaimsThroughRotationsWithoutOverlap(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("hard", "overlap_period", 0)
	first, err := consumer.NewKey(m.key("acme", "hard"), 1)
	if err != nil {
		t.Fatal(err)
	}
	client, err := vaultclient.New(vaultclient.Config{Address: m.srv.Addr, Mount: m.path, Auth: vaultclient.Anonymous{}})
	if err != nil {
		t.Fatal(err)
	}
	claims := consumer.NewClaims(client)
	var handler atomic.Pointer[http.Handler]
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*handler.Load()).ServeHTTP(w, r) }))
	t.Cleanup(hook.Close)
	secret, _ := m.write("webhooks/acme", fields("url", hook.URL, "allow_private", true, "deliver", "claim", "keys", "acme", "events", "version.activated"))["secret"].(string)
	issued.add(secret, "the secret of a webhook")
	receiver, err := claims.Handler(nil, secret)
	if err != nil {
		t.Fatal(err)
	}
	handler.Store(&receiver)

	server := startAPI(t, byVerify(m))
	l := consume(t, server, 4, consumer.Config{Origin: claims, Initial: first})
	for version := 2; version <= 11; version++ {
		l.passes(20)
		m.rotate("acme")
		l.changesOverTo(version)
	}
	l.passes(20)
	l.end()
	t.Logf("%d requests through 10 rotations, %d refused at first", l.sent.Load(), server.refusals.Load())
	for _, step := range m.history("acme") {
		if step.Type == "claim.reused" {
			t.Error("a code was redeemed twice")
		}
	}
}

// A client whose key was revoked gets its 401, and Vault is not asked for
// another key at the pace of the requests.
func TestConsumerWithARevokedKeyDoesNotFloodVault(t *testing.T) {
	t.Parallel()
	s := agentOn(onDev(t))
	s.role("hard", "overlap_period", 0)
	s.key("acme", "hard")
	client := s.sdkClient(s.app.appRole())
	var looks atomic.Int64
	server := startAPI(t, byVerify(s.mount))
	source, err := consumer.New(consumer.Config{Origin: counting{consumer.Vault(client, "acme"), &looks}})
	if err != nil {
		t.Fatal(err)
	}
	transport, err := consumer.NewTransport(source, consumer.TransportConfig{Hosts: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source.Key(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.write("revoke/acme", fields("version", 1, "force", true))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var refused atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
				resp, err := transport.RoundTrip(req)
				if err != nil {
					continue // the time is over
				}
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("status %d", resp.StatusCode)
				}
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d requests refused, %d looks in 10 s", refused.Load(), looks.Load())
	if refused.Load() == 0 || looks.Load() > 25 {
		t.Errorf("%d requests refused, %d looks in 10 s", refused.Load(), looks.Load())
	}
	s.rotate("acme")
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("after the rotation: status %d", resp.StatusCode)
	}
}

type counting struct {
	*consumer.VaultOrigin
	looks *atomic.Int64
}

func (c counting) Fetch(ctx context.Context) (consumer.Fetched, error) {
	c.looks.Add(1)
	return c.VaultOrigin.Fetch(ctx)
}

// A static token that Vault lets live for a few seconds at a time is renewed;
// one that cannot be renewed dies, and that is told.
func TestSDKRenewsATokenOfVault(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("hard", "overlap_period", 0)
	m.key("acme", "hard")
	m.srv.Policy(t, m.path+"-client", strings.ReplaceAll(policy(t, "client"), "apikeys/", m.path+"/"))
	short := func(period, ttl string) string {
		return newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{m.path + "-client"}, Period: period, TTL: ttl, NoParent: true}).ClientToken
	}
	renewed := m.sdkClient(vaultclient.Token(short("4s", "")))
	notRun, err := vaultclient.New(vaultclient.Config{Address: m.srv.Addr, Mount: m.path, Auth: vaultclient.Token(short("", "4s"))})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*vaultclient.Client{renewed, notRun} {
		if err := c.Read(t.Context(), "static-creds/acme", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	reaches(t, began.Add(12*time.Second))
	if err := renewed.Read(t.Context(), "static-creds/acme", nil, nil); err != nil {
		t.Errorf("after three lives: %v", err)
	}
	err = notRun.Read(t.Context(), "static-creds/acme", nil, nil)
	if status := (*vaultclient.StatusError)(nil); !errors.As(err, &status) || status.Status != http.StatusForbidden || vaultclient.IsUnavailable(err) {
		t.Errorf("a dead token: %v", err)
	}
	if err := renewed.Read(t.Context(), "static-creds/other", nil, nil); err == nil || vaultclient.IsUnavailable(err) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("what the policy does not allow: %v", err)
	}
}
