// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// running is a gateway that is served in this process.
type running struct {
	*testGateway
	http, admin *http.Client
	grpc        authv3.AuthorizationClient
	stop        context.CancelFunc
	ended       chan error
	reload      chan os.Signal
	dir         string
}

// shortDir is a folder for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw") //nolint:usetesting // the path of a socket is at most 104 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start serves a gateway on sockets in a folder.
func start(t *testing.T, config string) *running {
	t.Helper()
	dir := shortDir(t)
	config = strings.NewReplacer("127.0.0.1:0", "unix:"+dir+"/http", "127.0.0.1:1", "unix:"+dir+"/grpc").Replace(config) +
		`listener "admin" { address = "unix:` + dir + `/admin" }` + "\n"
	r := &running{testGateway: newTestGateway(t, config), dir: dir, ended: make(chan error, 1), reload: make(chan os.Signal, 1)}
	file := filepath.Join(dir, "gateway.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.paths = []string{file}
	r.acted = lookOf(r.read())
	r.http, r.admin = overSocket(dir+"/http"), overSocket(dir+"/admin")
	conn, err := grpc.NewClient("unix:"+dir+"/grpc", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.grpc = authv3.NewAuthorizationClient(conn)
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	ready := make(chan struct{})
	go func() { r.ended <- r.Run(ctx, r.reload, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-r.ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if r.ended == nil {
			return // the test has seen it end
		}
		if err := <-r.ended; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	return r
}

func overSocket(path string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}

func get(t testing.TB, client *http.Client, path string, fields map[string]string) (status int, body string) {
	t.Helper()
	status, body, err := tryGet(client, path, fields)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func tryGet(client *http.Client, path string, fields map[string]string) (status int, body string, err error) {
	r, err := http.NewRequest(http.MethodGet, "http://gateway"+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	for k, v := range fields {
		r.Header.Set(k, v)
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

var ordersWithKey = map[string]string{"X-Api-Key": goodKey, "X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/v1/orders"}

func ordersCheck() *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/v1/orders", Headers: map[string]string{"x-api-key": goodKey}},
	}}}
}

func TestProbesAndMetrics(t *testing.T) {
	t.Parallel()
	g := start(t, testConfig)
	if status, _ := get(t, g.http, AuthPath, ordersWithKey); status != http.StatusOK {
		t.Fatalf("auth: %d", status)
	}
	if answer, err := g.grpc.Check(t.Context(), ordersCheck()); err != nil || codes.Code(answer.GetStatus().GetCode()) != codes.OK {
		t.Fatalf("ext_authz: %v, %v", answer, err)
	}
	if status, body := get(t, g.admin, "/-/healthy", nil); status != http.StatusOK || body != "healthy\n" {
		t.Errorf("healthy: %d %s", status, body)
	}
	if status, body := get(t, g.admin, "/-/ready", nil); status != http.StatusOK || !strings.Contains(body, `"ready":true`) {
		t.Errorf("ready: %d %s", status, body)
	}
	status, body := get(t, g.admin, "/metrics", nil)
	for _, line := range []string{
		`apikeys_gateway_requests_total{code="VALID",protocol="http",route="orders"} 1`,
		`apikeys_gateway_requests_total{code="VALID",protocol="grpc",route="orders"} 1`,
		`apikeys_gateway_request_duration_seconds_count{protocol="http"} 1`,
		`apikeys_gateway_config_reloads_total{result="failure"} 0`,
		`apikeys_gateway_build_info{`, `go_goroutines`,
	} {
		if status != http.StatusOK || !strings.Contains(body, line) {
			t.Errorf("metrics have no %s", line)
		}
	}
	if status, _ := get(t, g.http, "/metrics", nil); status != http.StatusNotFound {
		t.Errorf("where proxies ask, metrics are answered with %d", status)
	}
}

func TestDrainAnswersWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	g := start(t, strings.Replace(testConfig, "\n", "\ndrain_delay = \"200ms\"\n", 1))
	g.keys.asking, g.keys.hold = make(chan struct{}), make(chan struct{})
	type result struct {
		status int
		err    error
	}
	results := make(chan result, 2)
	go func() {
		status, _, err := tryGet(g.http, AuthPath, ordersWithKey)
		results <- result{status, err}
	}()
	go func() {
		answer, err := g.grpc.Check(context.WithoutCancel(t.Context()), ordersCheck())
		results <- result{int(answer.GetStatus().GetCode()) + 200, err}
	}()
	<-g.keys.asking
	<-g.keys.asking
	g.stop()

	// In the delay probes fail, and who comes late is served.
	eventually(t, func() bool {
		status, body := get(t, g.admin, "/-/ready", nil)
		return status == http.StatusServiceUnavailable && strings.Contains(body, `"draining":true`)
	})
	late := make(chan result, 1)
	go func() {
		status, _, err := tryGet(overSocket(g.dir+"/http"), AuthPath, ordersWithKey)
		late <- result{status, err}
	}()
	<-g.keys.asking

	// Then nobody is let in, and the admin's listener still answers.
	eventually(t, func() bool {
		_, err := net.Dial("unix", g.dir+"/http")
		return err != nil
	})
	if status, _ := get(t, g.admin, "/-/healthy", nil); status != http.StatusOK {
		t.Errorf("healthy: %d", status)
	}
	select {
	case err := <-g.ended:
		t.Fatalf("it ended with requests under way: %v", err)
	default:
	}
	close(g.keys.hold)
	for range 2 {
		if r := <-results; r.err != nil || r.status != http.StatusOK {
			t.Errorf("a request under way: %d, %v", r.status, r.err)
		}
	}
	if r := <-late; r.err != nil || r.status != http.StatusOK {
		t.Errorf("a request in the delay: %d, %v", r.status, r.err)
	}
	if err := <-g.ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	g.ended = nil
}

// TestTheVerifierIsClosedAfterTheDrain, in a time of its own, while the way to
// Vault is still there, and what it could not report is logged.
func TestTheVerifierIsClosedAfterTheDrain(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	g.static.Listeners = []Listener{{Type: ListenHTTP, Address: "unix:" + shortDir(t) + "/http", SocketMode: 0o600, MaxConnections: 1}}
	var background context.Context
	started := make(chan struct{})
	g.client = func(ctx context.Context) error {
		background = ctx
		close(started)
		<-ctx.Done()
		return ctx.Err()
	}
	closed := 0
	g.close = func(ctx context.Context) error {
		closed++
		end, bounded := ctx.Deadline()
		if left := time.Until(end); !bounded || left > reportTimeout || left < reportTimeout/2 {
			t.Errorf("it has %s, bounded %v", left, bounded)
		}
		if !g.draining.Load() || background.Err() != nil {
			t.Errorf("it is closed while draining is %v, and the way to Vault says %v", g.draining.Load(), background.Err())
		}
		return errors.New("7 uses could not be reported")
	}
	ctx, stop := context.WithCancel(t.Context())
	if err := g.Run(ctx, nil, func() { <-started; stop() }); err != nil {
		t.Fatal(err)
	}
	if closed != 1 || strings.Count(g.log.String(), "7 uses could not be reported") != 1 {
		t.Errorf("closed %d times, logged %s", closed, g.log)
	}
}

func eventually(t testing.TB, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still not so after 10 s")
		}
	}
}

// TestStrangersCannotFillIt sends what is too much.
func TestStrangersCannotFillIt(t *testing.T) {
	t.Parallel()
	g := start(t, testConfig)
	// The connection may be closed before the client has read why.
	status, _, err := tryGet(g.http, AuthPath, map[string]string{"X-Api-Key": strings.Repeat("k", 80<<10)})
	if err == nil && status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 80 KiB: %d", status)
	}
	_, err = g.grpc.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Body: strings.Repeat("b", 2<<20)},
	}}})
	if err == nil {
		t.Error("a message of 2 MiB was taken")
	}
}

func TestSocketsAreReplacedOnlyIfLeft(t *testing.T) {
	t.Parallel()
	g := start(t, testConfig)
	if info, err := os.Stat(g.dir + "/http"); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	second := newTestGateway(t, `listener "http" { address = "unix:`+g.dir+`/http" }`)
	if _, err := second.listen(t.Context()); err == nil || !strings.Contains(err.Error(), "answers") {
		t.Errorf("the socket of another: %v", err)
	}

	left := filepath.Join(g.dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	third := newTestGateway(t, `listener "http" { address = "unix:`+left+`" }`)
	servers, err := third.listen(t.Context())
	if err != nil {
		t.Fatalf("a socket that was left: %v", err)
	}
	_ = servers[0].listener.Close()

	file := filepath.Join(g.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fourth := newTestGateway(t, `listener "http" { address = "unix:`+file+`" }`)
	if _, err := fourth.listen(t.Context()); err == nil {
		t.Error("a file was replaced by a socket")
	}
	fifth := newTestGateway(t, `listener "http" { address = "systemd:http" }`)
	if _, err := fifth.listen(t.Context()); err == nil || !strings.Contains(err.Error(), "systemd passed 0 sockets") {
		t.Errorf("a socket that nobody passed: %v", err)
	}
}

// TestVaultThatIsNotThere starts the real thing in front of nothing: it serves,
// answers 503, and is not ready.
func TestVaultThatIsNotThere(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "not-a-token")
	dir := shortDir(t)
	file := filepath.Join(dir, "gateway.hcl")
	config := "vault {\n address = \"http://127.0.0.1:1\"\n timeout = 1\n}\nlistener \"http\" { address = \"unix:" + dir + "/http\" }\nlistener \"admin\" { address = \"unix:" + dir + "/admin\" }\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	g, err := New([]string{file}, slog.New(slog.NewJSONHandler(log, nil)), slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, nil, func() { close(ready) }) }()
	<-ready
	for key, want := range map[string]int{
		"key_0123456789ab_0123456789012345678901234567890100000000": http.StatusServiceUnavailable, // it may be an imported one
		"too short": http.StatusUnauthorized,
	} {
		status, _ := get(t, overSocket(dir+"/http"), AuthPath, map[string]string{"X-Api-Key": key, "X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/"})
		if status != want {
			t.Errorf("%s: %d, want %d", key, status, want)
		}
	}
	if status, body := get(t, overSocket(dir+"/admin"), "/-/ready", nil); status != http.StatusServiceUnavailable || !strings.Contains(body, `"feed_age_seconds":-1`) {
		t.Errorf("ready: %d %s", status, body)
	}
	if status, body := get(t, overSocket(dir+"/admin"), "/metrics", nil); status != http.StatusOK || !strings.Contains(body, "apikeys_verifier_") {
		t.Errorf("metrics have nothing of the verifier: %d", status)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
