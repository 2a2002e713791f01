// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// The addresses in the files of docs/how-to/gateway, which tests replace.
const (
	docsGateway  = "127.0.0.1:9180"
	docsGRPC     = "127.0.0.1:9181"
	docsAdmin    = "127.0.0.1:9182"
	docsProxy    = "127.0.0.1:8000"
	docsUpstream = "127.0.0.1:8080"

	// clientAddr is where clients come from: not a trusted proxy's address.
	clientAddr = "127.0.0.2"
)

// edge is a gateway in front of a mount, configured by the file of the docs.
type edge struct {
	t                 testing.TB
	m                 *mount
	vault             *line
	gateway           *harness.Program
	http, grpc, admin string
	config            string // path of its file
	dir               string
}

// gatewayEdge is gatewayEdgeOn with an engine of its own, and the configuration
// of the docs.
func gatewayEdge(t testing.TB) *edge {
	t.Helper()
	return gatewayEdgeOn(t, onDev(t), func(config string) string { return config })
}

// gatewayEdgeOn starts `apikeys gateway`, with a line to Vault that can be cut.
func gatewayEdgeOn(t testing.TB, m *mount, change func(config string) string) *edge {
	t.Helper()
	e := &edge{t: t, m: m, dir: harness.NewDir(t)}
	e.vault = newLine(t, strings.TrimPrefix(m.srv.Addr, "http://"))
	m.role("partner", "prefix", "tm_live", "scopes", "orders:read,orders:write", "overlap_period", "10m")

	// It logs in as production would, with nothing but the policy of the docs.
	client, name := m.srv.Client, "gateway-"+m.path
	m.srv.Policy(t, name, strings.ReplaceAll(policy(t, "verifier"), `"apikeys/`, `"`+m.path+`/`))
	enableOnce(t, m.srv, "approle")
	write := func(path string, body map[string]any) map[string]any {
		t.Helper()
		secret, err := client.Logical().Write(path, body)
		if err != nil {
			t.Fatal(err)
		}
		if secret == nil {
			return nil
		}
		return secret.Data
	}
	write("auth/approle/role/"+name, map[string]any{"token_policies": name, "token_ttl": "1h"})
	role, err := client.Logical().Read("auth/approle/role/" + name + "/role-id")
	if err != nil {
		t.Fatal(err)
	}
	secret := write("auth/approle/role/"+name+"/secret-id", map[string]any{})
	e.file("role-id", fmt.Sprint(role.Data["role_id"]))
	e.file("secret-id", fmt.Sprint(secret["secret_id"]))

	e.http, e.grpc, e.admin = harness.FreeAddr(t), harness.FreeAddr(t), harness.FreeAddr(t)
	e.config = e.file("gateway.hcl", change(e.fit(docsFile(t, "gateway.hcl"))))
	e.start()
	t.Cleanup(func() {
		for _, name := range issued.FindIn([]byte(e.gateway.Log())) {
			t.Errorf("the gateway's log has %s in clear", name)
		}
	})
	return e
}

// start starts the gateway, again if it had ended.
func (e *edge) start() {
	e.t.Helper()
	e.gateway = harness.StartProgram(e.t, harness.ProgramOptions{
		Bin: harness.Apikeys(e.t), Args: []string{"gateway", "-config=" + e.config}, Dir: e.dir,
		Ready: func() error { return answers("http://"+e.admin+"/-/ready", http.StatusOK) },
	})
}

func answers(url string, want int) error {
	answer, err := httpClient.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != want {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return nil
}

var approle sync.Mutex

// enableOnce enables an auth method, which tests on the shared server share.
func enableOnce(t testing.TB, srv *harness.Server, method string) {
	t.Helper()
	approle.Lock()
	defer approle.Unlock()
	mounts, err := srv.Client.Sys().ListAuth()
	if err != nil {
		t.Fatal(err)
	}
	if mounts[method+"/"] != nil {
		return
	}
	if _, err := srv.Client.Logical().Write("sys/auth/"+method, map[string]any{"type": method}); err != nil {
		t.Fatal(err)
	}
}

func docsFile(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "docs", "how-to", "gateway", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// fit puts this test's addresses and folder into a file of the docs. Each must
// be there, or the test would run something else.
func (e *edge) fit(content string, more ...string) string {
	e.t.Helper()
	pairs := append([]string{
		docsGateway, e.http, docsGRPC, e.grpc, docsAdmin, e.admin, "https://vault.example.com:8200", "http://" + e.vault.addr,
		`"apikeys"`, `"` + e.m.path + `"`, "/etc/apikeys/", e.dir + "/", "/etc/haproxy/", e.dir + "/",
	}, more...)
	return strings.NewReplacer(pairs...).Replace(content)
}

func (e *edge) file(name, content string) string {
	e.t.Helper()
	path := filepath.Join(e.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		e.t.Fatal(err)
	}
	return path
}

// line is a connection to Vault that can be cut, held up, slowed down, and led to
// another node.
type line struct {
	addr  string
	mu    sync.Mutex
	to    string
	cut   bool
	delay time.Duration // of what Vault answers
	hold  chan struct{}
	open  map[net.Conn]bool
}

func newLine(t testing.TB, to string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{addr: listener.Addr().String(), to: to, open: map[net.Conn]bool{}}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go l.serve(conn)
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		l.release()
		l.setCut(true)
	})
	return l
}

func (l *line) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	l.mu.Lock()
	to := l.to
	l.mu.Unlock()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	l.mu.Lock()
	if l.cut {
		l.mu.Unlock()
		return
	}
	l.open[conn], l.open[server] = true, true
	l.mu.Unlock()
	done := make(chan struct{}, 2)
	go func() { l.copy(server, conn, false); done <- struct{}{} }()
	go func() { l.copy(conn, server, true); done <- struct{}{} }()
	<-done
	l.mu.Lock()
	delete(l.open, conn)
	delete(l.open, server)
	l.mu.Unlock()
}

// copy passes on what comes, not while the line is held up.
func (l *line) copy(to, from net.Conn, answers bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		hold, delay := l.hold, l.delay
		l.mu.Unlock()
		if answers {
			time.Sleep(delay)
		}
		if hold != nil {
			<-hold
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *line) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for conn := range l.open {
			_ = conn.Close()
		}
	}
}

func (l *line) slow(delay time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
}

// leadTo leads new connections to another address.
func (l *line) leadTo(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = addr
}

func (l *line) holdUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold = make(chan struct{})
}

func (l *line) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hold != nil {
		close(l.hold)
		l.hold = nil
	}
}

// upstream is the API: it answers with what it was asked.
type upstream struct {
	*httptest.Server
	requests atomic.Int64
}

// seen is a request as the upstream saw it.
type seen struct {
	Method, URI, Body string
	Fields            http.Header
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.requests.Add(1)
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/v1/orders/fails" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_ = json.NewEncoder(w).Encode(seen{Method: r.Method, URI: r.RequestURI, Body: string(body), Fields: r.Header})
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) addr() string { return u.Listener.Addr().String() }

// proxied is a real proxy between a client and the upstream.
type proxied struct {
	*edge
	name   string
	url    string
	api    *upstream
	client *http.Client
}

// behind starts a proxy with its file of the docs.
func behind(t testing.TB, name string) *proxied {
	t.Helper()
	const hint = "on Debian: apt-get install nginx caddy haproxy"
	bin := harness.Tool(t, name, hint)
	p := &proxied{edge: gatewayEdge(t), name: name, api: newUpstream(t)}
	listen := harness.FreeAddr(t)
	p.url = "http://" + listen
	fit := func(file string) string {
		content := docsFile(t, file)
		for _, must := range []string{docsGateway, docsProxy, docsUpstream} {
			if !strings.Contains(content, must) {
				t.Fatalf("%s does not name %s", file, must)
			}
		}
		return p.fit(content, docsProxy, listen, docsUpstream, p.api.addr())
	}
	var args []string
	switch name {
	case "nginx":
		// The file belongs into a folder of nginx's own configuration, which is
		// this.
		p.file("api.conf", fit("nginx.conf"))
		args = []string{"-p", p.dir, "-e", "stderr", "-c", p.file("nginx-main.conf", `
daemon off;
pid nginx.pid;
worker_processes 2;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	include api.conf;
}`)}
	case "caddy":
		args = []string{"run", "--adapter", "caddyfile", "--config", p.file("Caddyfile", fit("Caddyfile"))}
	case "haproxy":
		p.file("apikeys.lua", docsFile(t, "apikeys.lua"))
		args = []string{"-db", "-f", p.file("haproxy.cfg", fit("haproxy.cfg"))}
	}
	harness.StartProgram(t, harness.ProgramOptions{
		Bin: bin, Args: args, Dir: p.dir, Ready: func() error { return answers(p.url+"/health", http.StatusOK) },
	})
	p.client = clientFrom(t, clientAddr)
	return p
}

// clientFrom is a client with an address of its own.
func clientFrom(t testing.TB, addr string) *http.Client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}, Timeout: 10 * time.Second}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 16}}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// result is an answer that the client got, and what the upstream saw of the
// request, if it came there.
type result struct {
	status int
	fields http.Header
	seen   *seen
}

func (p *proxied) try(method, path, body string, fields http.Header) (result, error) {
	r, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		return result{}, err
	}
	for name, values := range fields {
		r.Header[name] = values // as it is written, not in canonical form
	}
	answer, err := p.client.Do(r)
	if err != nil {
		return result{}, err
	}
	defer func() { _ = answer.Body.Close() }()
	got := result{status: answer.StatusCode, fields: answer.Header}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return result{}, err
	}
	if s := (&seen{}); json.Unmarshal(text, s) == nil && s.Method != "" {
		got.seen = s
	}
	return got, nil
}

func (p *proxied) get(path string, fields http.Header) result {
	p.t.Helper()
	got, err := p.try(http.MethodGet, path, "", fields)
	if err != nil {
		p.t.Fatalf("GET %s: %v", path, err)
	}
	return got
}

func withKey(apiKey string, pairs ...string) http.Header {
	h := http.Header{"X-Api-Key": {apiKey}}
	for i := 0; i+1 < len(pairs); i += 2 {
		h[pairs[i]] = append(h[pairs[i]], pairs[i+1])
	}
	return h
}

// expect checks the status of an answer, and that the upstream saw the request
// if and only if it is 200.
func (p *proxied) expect(what string, got result, status int) {
	p.t.Helper()
	if got.status != status || (got.seen != nil) != (status == http.StatusOK) {
		p.t.Errorf("%s: %d, seen by the upstream: %v; want %d", what, got.status, got.seen != nil, status)
	}
}

func TestGatewayBehindNginx(t *testing.T) {
	t.Parallel()
	behind(t, "nginx").judgeAll()
}

func TestGatewayBehindCaddy(t *testing.T) {
	t.Parallel()
	behind(t, "caddy").judgeAll()
}

func TestGatewayBehindHAProxy(t *testing.T) {
	t.Parallel()
	behind(t, "haproxy").judgeAll()
}

func (p *proxied) judgeAll() {
	p.passes()
	p.refuses()
	p.announces()
	p.forgeries()
	p.addresses()
	p.rotates()
	p.revokes()
	p.withoutVault()
}

// identity is what the upstream is told of a client.
func identity(s *seen) []string {
	var all []string
	for name, values := range s.Fields {
		plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		if strings.HasPrefix(plain, "x-consumer") || plain == "x-key-version" {
			for _, v := range values {
				if v != "" {
					all = append(all, plain+"="+v)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

func (p *proxied) passes() {
	apiKey := p.m.key("passes", "partner", "scopes", "orders:read,orders:write")
	id := p.m.info("passes").KeyID
	want := []string{"x-consumer-id=" + id, "x-consumer-name=passes", "x-consumer-scopes=orders:read orders:write", "x-key-version=1"}
	for what, fields := range map[string]http.Header{"X-API-Key": withKey(apiKey), "bearer": {"Authorization": {"Bearer " + apiKey}}} {
		got := p.get("/v1/orders/17?x=1", fields)
		p.expect(what, got, http.StatusOK)
		if got.seen == nil {
			continue
		}
		if got.seen.URI != "/v1/orders/17?x=1" || !slices.Equal(identity(got.seen), want) {
			p.t.Errorf("%s: the upstream saw %s of %v, want %v", what, got.seen.URI, identity(got.seen), want)
		}
		if got.seen.Fields.Get("X-Api-Key") != "" || got.seen.Fields.Get("Authorization") != "" {
			p.t.Errorf("%s: the upstream saw the key", what)
		}
		if got.fields.Get("Deprecation") != "" || got.fields.Get("Sunset") != "" {
			p.t.Errorf("%s: the client of an active version was told %v", what, got.fields)
		}
	}
	got, err := p.try(http.MethodPost, "/v1/orders", "the body", withKey(apiKey))
	if err != nil {
		p.t.Fatal(err)
	}
	p.expect("POST", got, http.StatusOK)
	if got.seen != nil && (got.seen.Method != http.MethodPost || got.seen.Body != "the body") {
		p.t.Errorf("the upstream saw %s with %q", got.seen.Method, got.seen.Body)
	}
	// What the API itself answers stays.
	if got := p.get("/v1/orders/fails", withKey(apiKey)); got.status != http.StatusInternalServerError || got.seen == nil {
		p.t.Errorf("a failure of the API: %d", got.status)
	}
}

func (p *proxied) refuses() {
	apiKey := p.m.key("refuses", "partner", "scopes", "orders:read")
	before := p.api.requests.Load()
	for what, c := range map[string]struct {
		path   string
		fields http.Header
		status int
	}{
		"no key":            {"/v1/orders", nil, http.StatusUnauthorized},
		"a key of nothing":  {"/v1/orders", withKey(""), http.StatusUnauthorized},
		"one character":     {"/v1/orders", withKey("k"), http.StatusUnauthorized},
		"garbage":           {"/v1/orders", withKey("\x80\xfe"), http.StatusUnauthorized},
		"a look-alike":      {"/v1/orders", withKey(strings.Replace(apiKey, "tm_live", "tm_lіve", 1)), http.StatusUnauthorized},
		"wrong":             {"/v1/orders", withKey(apiKey[:len(apiKey)-1] + "_"), http.StatusUnauthorized},
		"twice":             {"/v1/orders", http.Header{"X-Api-Key": {apiKey, apiKey}}, http.StatusUnauthorized},
		"in two places":     {"/v1/orders", withKey(apiKey, "Authorization", "Bearer "+apiKey), http.StatusUnauthorized},
		"authorized twice":  {"/v1/orders", http.Header{"Authorization": {"Bearer " + apiKey, "Bearer " + apiKey}}, http.StatusUnauthorized},
		"bearer with a tab": {"/v1/orders", http.Header{"Authorization": {"Bearer\t" + apiKey}}, http.StatusUnauthorized},
		"no route":          {"/v2/orders", withKey(apiKey), http.StatusForbidden},
		"another path told": {"/v1/orders", http.Header{"X-Forwarded-Uri": {"/health"}, "X-Original-Uri": {"/health"}, "X-Forwarded-Method": {"GET"}}, http.StatusUnauthorized},
		"dots":              {"/health/../v1/orders", nil, http.StatusForbidden},
		"dots, encoded":     {"/health/%2e%2e/v1/orders", nil, http.StatusForbidden},
		"slashes, encoded":  {"/health%2f..%2fv1/orders", nil, http.StatusForbidden},
	} {
		got := p.get(c.path, c.fields)
		// nginx and others refuse some of these themselves.
		refused := got.status == c.status || got.status == http.StatusBadRequest
		if !refused || got.seen != nil {
			p.t.Errorf("%s: %d, seen by the upstream: %v; want %d", what, got.status, got.seen != nil, c.status)
		}
		if got.status == http.StatusUnauthorized && got.fields.Get("Www-Authenticate") == "" {
			p.t.Errorf("%s: 401 without a challenge", what)
		}
	}
	// 10,000 characters are too much for the header of some proxies, and a
	// connection may be closed on them.
	if got, err := p.try(http.MethodGet, "/v1/orders", "", withKey(strings.Repeat("k", 10_000))); err == nil && (got.status < 400 || got.status >= 500 || got.seen != nil) {
		p.t.Errorf("10,000 characters: %d", got.status)
	}
	got, err := p.try(http.MethodPost, "/v1/orders", "x", withKey(apiKey))
	if err != nil {
		p.t.Fatal(err)
	}
	p.expect("wrong scope", got, http.StatusForbidden)
	if n := p.api.requests.Load() - before; n != 0 {
		p.t.Errorf("the upstream saw %d requests that were refused", n)
	}
}

func (p *proxied) announces() {
	first := p.m.key("announces", "partner", "scopes", "orders:read")
	second := p.m.rotate("announces")
	got := p.get("/v1/orders", withKey(second))
	p.expect("the new version", got, http.StatusOK)
	if got.fields.Get("Deprecation") != "" {
		p.t.Errorf("the new version was announced: %v", got.fields)
	}
	eventually(p.t, 10*time.Second, func() error {
		got = p.get("/v1/orders", withKey(first))
		if got.fields.Get("Deprecation") == "" {
			return fmt.Errorf("the old version is answered %d without Deprecation", got.status)
		}
		return nil
	})
	p.expect("the old version", got, http.StatusOK)
	var unix int64
	if _, err := fmt.Sscanf(got.fields.Get("Deprecation"), "@%d", &unix); err != nil || time.Since(time.Unix(unix, 0)).Abs() > time.Minute {
		p.t.Errorf("Deprecation: %s", got.fields.Get("Deprecation"))
	}
	ends := p.m.info("announces").Versions[1].OverlapEnds
	if sunset, err := http.ParseTime(got.fields.Get("Sunset")); err != nil || sunset.Sub(ends).Abs() > time.Second {
		p.t.Errorf("Sunset: %s, want %s", got.fields.Get("Sunset"), ends)
	}
	if link := got.fields.Get("Link"); link != `<https://example.com/docs/rotating-keys>; rel="deprecation"` {
		p.t.Errorf("Link: %s", link)
	}
	if got.seen != nil {
		for name := range got.seen.Fields {
			if strings.Contains(name, "Deprecation") || strings.Contains(name, "Sunset") {
				p.t.Errorf("the upstream saw %s", name)
			}
		}
	}
}

func (p *proxied) forgeries() {
	apiKey := p.m.key("forger", "partner", "scopes", "orders:read")
	id := p.m.info("forger").KeyID
	forged := http.Header{}
	for _, name := range []string{"Consumer-ID", "Consumer-Name", "Consumer-Scopes", "Key-Version"} {
		hyphens := "X-" + name
		forged[hyphens] = []string{"forged"}
		forged[strings.ToLower(hyphens)] = []string{"forged"}
		forged[strings.ReplaceAll(hyphens, "-", "_")] = []string{"forged"}
		forged["X_"+name] = []string{"forged"}
		forged["X-"+strings.ReplaceAll(name, "-", "_")] = []string{"forged"}
	}
	got := p.get("/health", forged)
	p.expect("forged, where no key is asked for", got, http.StatusOK)
	if got.seen != nil && len(identity(got.seen)) > 0 {
		p.t.Errorf("the upstream of a public route was told %v", identity(got.seen))
	}
	forged["X-Api-Key"] = []string{apiKey}
	got = p.get("/v1/orders", forged)
	p.expect("forged, with a key", got, http.StatusOK)
	want := []string{"x-consumer-id=" + id, "x-consumer-name=forger", "x-consumer-scopes=orders:read", "x-key-version=1"}
	if got.seen != nil && !slices.Equal(identity(got.seen), want) {
		p.t.Errorf("the upstream was told %v, want %v", identity(got.seen), want)
	}
	// What Connection lists is for the next hop alone: a client must not have its
	// identity taken away so, here or by the proxy after this one.
	forged["Connection"] = []string{"close, X-Consumer-ID, X-Consumer-Name, X-Consumer-Scopes, X-Key-Version"}
	got = p.get("/v1/orders", forged)
	p.expect("with its identity listed in Connection", got, http.StatusOK)
	if got.seen != nil {
		if !slices.Equal(identity(got.seen), want) {
			p.t.Errorf("with its identity listed in Connection the upstream was told %v, want %v", identity(got.seen), want)
		}
		if listed := strings.Join(got.seen.Fields["Connection"], ","); strings.Contains(listed, "X-") {
			p.t.Errorf("the upstream was told Connection: %s", listed)
		}
	}
	delete(forged, "Connection")

	// A leased key has no name, and the client's must not stand in for it.
	leased, _ := p.m.read("creds/partner")["api_key"].(string)
	forged["X-Api-Key"] = []string{leased}
	got = p.get("/v1/orders", forged)
	p.expect("forged, with a leased key", got, http.StatusOK)
	if got.seen != nil {
		for _, told := range identity(got.seen) {
			if strings.Contains(told, "forged") || strings.HasPrefix(told, "x-consumer-name") {
				p.t.Errorf("the upstream of a leased key was told %s", told)
			}
		}
	}
}

func (p *proxied) addresses() {
	here := p.m.key("here", "partner", "scopes", "orders:read", "bound_cidrs", clientAddr+"/32")
	elsewhere := p.m.key("elsewhere", "partner", "scopes", "orders:read", "bound_cidrs", "203.0.113.0/24")
	p.expect("bound to the client's address", p.get("/v1/orders", withKey(here)), http.StatusOK)
	p.expect("and it says that it is elsewhere", p.get("/v1/orders", withKey(here, "X-Forwarded-For", "203.0.113.9")), http.StatusOK)
	p.expect("bound to another", p.get("/v1/orders", withKey(elsewhere)), http.StatusForbidden)
	for _, spoof := range []string{"203.0.113.9", "203.0.113.9, 127.0.0.1", "203.0.113.9, 203.0.113.9, 203.0.113.9"} {
		p.expect("and it says that it is there: "+spoof, p.get("/v1/orders", withKey(elsewhere, "X-Forwarded-For", spoof, "X-Real-Ip", "203.0.113.9", "Forwarded", "for=203.0.113.9")), http.StatusForbidden)
	}
}

// rotates has clients that behave send without a pause while their key rotates.
func (p *proxied) rotates() {
	var current atomic.Pointer[string]
	first := p.m.key("rotates", "partner", "scopes", "orders:read")
	current.Store(&first)
	ctx, cancel := context.WithCancel(p.t.Context())
	defer cancel()
	var clients sync.WaitGroup
	var sent, failed atomic.Int64
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				got, err := p.try(http.MethodGet, "/v1/orders", "", withKey(*current.Load()))
				sent.Add(1)
				if err != nil || got.status != http.StatusOK {
					failed.Add(1)
					p.t.Errorf("a client that behaves: %d, %v", got.status, err)
					return
				}
			}
		})
	}
	for range 4 {
		p.sendMore(&sent, 50)
		fresh := p.m.rotate("rotates", "force", true)
		p.sendMore(&sent, 50) // with the old version
		current.Store(&fresh)
	}
	p.sendMore(&sent, 50)
	cancel()
	clients.Wait()
	p.t.Logf("%s: %d requests through 4 rotations, %d failed", p.name, sent.Load(), failed.Load())
}

func (p *proxied) sendMore(sent *atomic.Int64, n int64) {
	until := sent.Load() + n
	eventually(p.t, 60*time.Second, func() error {
		if got := sent.Load(); got < until && !p.t.Failed() {
			return fmt.Errorf("%d requests sent, not %d", got, until)
		}
		return nil
	})
}

// revokeBound is the bound of the feed, a second and 250 ms, and what a busy
// machine may add.
const revokeBound = 1250*time.Millisecond + 2*time.Second

func (p *proxied) revokes() {
	apiKey := p.m.key("revokes", "partner", "scopes", "orders:read")
	p.expect("before the revocation", p.get("/v1/orders", withKey(apiKey)), http.StatusOK)
	p.m.write("revoke/revokes", fields("version", 1, "force", true))
	revoked := time.Now()
	for {
		began := time.Now()
		got := p.get("/v1/orders", withKey(apiKey))
		if got.status == http.StatusUnauthorized {
			break
		}
		if after := began.Sub(revoked); after > revokeBound {
			p.t.Fatalf("a revoked key passes after %s: %d", after, got.status)
		}
	}
	p.t.Logf("%s: refused %s after the revocation", p.name, time.Since(revoked).Round(time.Millisecond))
}

func (p *proxied) withoutVault() {
	known := p.m.key("known", "partner", "scopes", "orders:read")
	unknown := p.m.key("unknown", "partner", "scopes", "orders:read")
	p.expect("before", p.get("/v1/orders", withKey(known)), http.StatusOK)
	p.vault.setCut(true)
	for range 20 {
		p.expect("a known key without Vault", p.get("/v1/orders", withKey(known)), http.StatusOK)
	}
	got := p.get("/v1/orders", withKey(unknown))
	p.expect("an unknown key without Vault", got, http.StatusServiceUnavailable)
	if got.fields.Get("Retry-After") == "" {
		p.t.Errorf("unavailable without Retry-After: %v", got.fields)
	}
	p.vault.setCut(false)
	eventually(p.t, 40*time.Second, func() error {
		if got := p.get("/v1/orders", withKey(unknown)); got.status != http.StatusOK {
			return fmt.Errorf("Vault is back, and the key is answered %d", got.status)
		}
		return nil
	})

	p.hangs(known)
	// Without the gateway nobody passes.
	p.gateway.Signal(p.t, syscall.SIGTERM)
	if code := p.gateway.Wait(p.t, 30*time.Second); code != 0 {
		p.t.Errorf("the gateway ended with %d", code)
	}
	got = p.get("/v1/orders", withKey(known))
	if got.seen != nil || got.status != http.StatusServiceUnavailable && got.status != http.StatusBadGateway {
		p.t.Errorf("without the gateway: %d, seen by the upstream: %v", got.status, got.seen != nil)
	}
}

// hangs stops the gateway while it holds its connections: whoever asks is told
// so in time.
func (p *proxied) hangs(apiKey string) {
	thaw := p.gateway.Freeze(p.t)
	got := p.get("/v1/orders", withKey(apiKey)) // in less than the client's 30 s
	thaw()
	if got.seen != nil || got.status < http.StatusBadGateway || got.status > http.StatusGatewayTimeout {
		p.t.Errorf("with a gateway that does not answer: %d, seen by the upstream: %v", got.status, got.seen != nil)
	}
	eventually(p.t, 20*time.Second, func() error {
		if got := p.get("/v1/orders", withKey(apiKey)); got.status != http.StatusOK {
			return fmt.Errorf("the gateway goes on, and the key is answered %d", got.status)
		}
		return nil
	})
}

// askDirectly asks the gateway about orders as a proxy does, from a trusted address.
func (e *edge) askDirectly(apiKey string) (int, error) {
	status, _, err := e.askFully(apiKey)
	return status, err
}

func (e *edge) askFully(apiKey string) (int, http.Header, error) {
	r, err := http.NewRequest(http.MethodGet, "http://"+e.http+"/auth", http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	r.Header = http.Header{"X-Api-Key": {apiKey}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/v1/orders"}, "X-Forwarded-For": {"203.0.113.9"}}
	answer, err := httpClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	return answer.StatusCode, answer.Header, answer.Body.Close()
}

func (e *edge) asks(status int, apiKey string) {
	e.t.Helper()
	got, err := e.askDirectly(apiKey)
	if err != nil || got != status {
		e.t.Errorf("orders are answered %d, %v; want %d", got, err, status)
	}
}

func TestGatewayReloadsItsRoutes(t *testing.T) {
	t.Parallel()
	e := gatewayEdge(t)
	apiKey := e.m.key("acme", "partner", "scopes", "orders:read")
	e.asks(http.StatusOK, apiKey)
	config := e.fit(docsFile(t, "gateway.hcl"))

	e.file("gateway.hcl", strings.Replace(config, `["orders:read"]`, `["orders:delete"]`, 1))
	e.gateway.Signal(t, syscall.SIGHUP)
	e.becomes(http.StatusForbidden, apiKey)

	e.file("gateway.hcl", config+"nonsense = true\n")
	e.gateway.Signal(t, syscall.SIGHUP)
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(e.gateway.Log(), "the one in force stays") {
			return errors.New("a bad reload is not told")
		}
		return nil
	})
	e.asks(http.StatusForbidden, apiKey)

	e.file("gateway.hcl", config) // no signal
	e.becomes(http.StatusOK, apiKey)
}

// becomes waits until orders are answered so.
func (e *edge) becomes(status int, apiKey string) {
	e.t.Helper()
	eventually(e.t, 15*time.Second, func() error {
		got, err := e.askDirectly(apiKey)
		if err != nil || got != status {
			return fmt.Errorf("%d, want %d: %w", got, status, err)
		}
		return nil
	})
}

func TestGatewayDrainsOnSIGTERM(t *testing.T) {
	t.Parallel()
	e := gatewayEdge(t)
	apiKey := e.m.key("acme", "partner", "scopes", "orders:read")
	e.vault.holdUp()
	const requests = 5
	type answered struct {
		status int
		err    error
	}
	results := make(chan answered, requests)
	for range requests {
		go func() {
			status, err := e.askDirectly(apiKey)
			results <- answered{status, err}
		}()
	}
	// They are under way once the gateway holds their connections.
	eventually(t, 10*time.Second, func() error { return e.holds(requests) })
	e.gateway.Signal(t, syscall.SIGTERM)
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(e.gateway.Log(), "draining") {
			return errors.New("it does not drain")
		}
		return nil
	})
	e.vault.release()
	for range requests {
		if a := <-results; a.err != nil || a.status != http.StatusOK {
			t.Errorf("a request under way: %d, %v", a.status, a.err)
		}
	}
	if code := e.gateway.Wait(t, 30*time.Second); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	// What was used is reported before the end.
	eventually(t, 10*time.Second, func() error {
		if n := e.m.info("acme").Versions[0].UseCount; n != requests {
			return fmt.Errorf("%d uses are counted, want %d", n, requests)
		}
		return nil
	})
}

// holds tells whether so many connections to the gateway are established.
func (e *edge) holds(n int) error {
	content, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(e.http, ":")
	var number int
	if _, err := fmt.Sscan(port, &number); err != nil {
		return err
	}
	const established = "01"
	got := 0
	for _, row := range strings.Split(string(content), "\n") {
		cells := strings.Fields(row)
		if len(cells) > 3 && strings.HasSuffix(cells[1], fmt.Sprintf(":%04X", number)) && cells[3] == established {
			got++
		}
	}
	if got < n {
		return fmt.Errorf("%d connections, want %d", got, n)
	}
	return nil
}

// TestGatewayOnAVaultThatIsSlowAndAwayForLong slows Vault down, takes it away for
// longer than max_stale, and brings it back as another node. A valid key passes
// until max_stale is over, is answered 503 then, and is never refused.
func TestGatewayOnAVaultThatIsSlowAndAwayForLong(t *testing.T) {
	t.Parallel()
	const (
		maxStale = 6 * time.Second
		late     = 600 * time.Millisecond
	)
	cluster, m := ownCluster(t)
	e := gatewayEdgeOn(t, m, func(config string) string {
		return strings.Replace(config, "verifier {", "verifier {\n  max_stale = \""+maxStale.String()+"\"", 1)
	})
	key := func(name string) string { return m.key(name, "partner", "scopes", "orders:read") }
	known, other := key("known"), key("other")
	e.asks(http.StatusOK, known)
	// valid asks about a valid key, which may be unavailable, and is never refused.
	valid := func(what, apiKey string) int {
		t.Helper()
		status, fields, err := e.askFully(apiKey)
		switch {
		case err != nil:
			t.Fatalf("%s: %v", what, err)
		case status == http.StatusServiceUnavailable && fields.Get("Retry-After") == "":
			t.Errorf("%s: unavailable without Retry-After", what)
		case status != http.StatusOK && status != http.StatusServiceUnavailable:
			t.Errorf("%s: a valid key is answered %d", what, status)
		}
		return status
	}

	// Slow: the feed, and what must be asked for, take as long as they take.
	e.vault.slow(late)
	for began := time.Now(); time.Since(began) < maxStale+2*time.Second; time.Sleep(50 * time.Millisecond) {
		e.asks(http.StatusOK, known)
	}
	made := key("made-meanwhile")
	e.asks(http.StatusOK, made)
	e.asks(http.StatusUnauthorized, otherSecret(t, known))
	e.vault.slow(0)

	// Away.
	old := m.srv
	e.vault.setCut(true)
	old.Kill(t)
	cut := time.Now()
	var lastPass, firstFail time.Time
	for firstFail.IsZero() || time.Since(firstFail) < 2*time.Second {
		asked := time.Now()
		switch valid("without Vault", known) {
		case http.StatusOK:
			lastPass = asked
			if !firstFail.IsZero() {
				t.Error("without Vault: a key passes again")
			}
		case http.StatusServiceUnavailable:
			if firstFail.IsZero() {
				firstFail = asked
			}
		}
		if got := valid("an unknown key without Vault", other); got != http.StatusServiceUnavailable {
			t.Errorf("an unknown key without Vault: %d", got)
		}
		if time.Since(cut) > 2*maxStale {
			t.Fatalf("a known key passes %s after Vault is gone; max_stale is %s", time.Since(cut), maxStale)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("without Vault the last request passed after %s, the first was unavailable after %s", lastPass.Sub(cut), firstFail.Sub(cut))
	if lastPass.Sub(cut) >= maxStale {
		t.Errorf("a request passed %s after Vault was gone, which is more than max_stale", lastPass.Sub(cut))
	}
	if firstFail.Sub(cut) < maxStale/2 {
		t.Errorf("a valid key was unavailable %s after Vault was gone", firstFail.Sub(cut))
	}
	if err := answers("http://"+e.admin+"/-/ready", http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}

	// Back, as another node.
	m.srv = cluster.Leader(t)
	e.vault.leadTo(strings.TrimPrefix(m.srv.Addr, "http://"))
	e.vault.setCut(false)
	eventually(t, time.Minute, func() error {
		for _, apiKey := range []string{known, other, made} {
			if got := valid("Vault is back", apiKey); got != http.StatusOK {
				return fmt.Errorf("Vault is back, and a valid key is answered %d", got)
			}
		}
		return answers("http://"+e.admin+"/-/ready", http.StatusOK)
	})
	m.write("revoke/other", fields("version", 1, "force", true))
	e.becomes(http.StatusUnauthorized, other)
	e.asks(http.StatusOK, known)
}

// otherSecret is a key of the same id that nobody has given out.
func otherSecret(t testing.TB, apiKey string) string {
	t.Helper()
	parsed, err := token.Parse(apiKey)
	if err != nil {
		t.Fatal("the key cannot be parsed")
	}
	other, err := token.New(rand.Reader, token.Format{Prefix: parsed.Prefix}, parsed.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	return other
}
