// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// metric is a line of the gateway's metrics.
func (g *testGateway) metric(t *testing.T, line string) {
	t.Helper()
	if body := g.adminAnswer("/metrics"); !strings.Contains(body, line+"\n") {
		t.Errorf("metrics have no %s", line)
	}
}

func (g *testGateway) adminAnswer(path string) string {
	w := httptest.NewRecorder()
	g.admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	return w.Body.String()
}

// orders is the status of a good question.
func (g *testGateway) orders() int {
	answer := g.ask(http.MethodGet, "/v1/orders", http.Header{"X-Api-Key": {goodKey}})
	_ = answer.Body.Close()
	return answer.StatusCode
}

func TestReloadBySignal(t *testing.T) {
	t.Parallel()
	g := start(t, testConfig)
	content, err := os.ReadFile(g.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, g.paths[0], strings.Replace(string(content), `["orders:read"]`, `["orders:delete"]`, 1))
	g.reload <- syscall.SIGHUP
	eventually(t, func() bool { return g.orders() == http.StatusForbidden })

	writeFile(t, g.paths[0], strings.Replace(string(content), `route "orders" {`, `route "orders" { nonsense = 1`, 1))
	g.reload <- syscall.SIGHUP
	eventually(t, func() bool { return strings.Contains(g.log.String(), "the one in force stays") })
	if got := g.orders(); got != http.StatusForbidden {
		t.Errorf("after a bad reload: %d", got)
	}
	g.metric(t, `apikeys_gateway_config_reloads_total{result="failure"} 1`)
	g.metric(t, `apikeys_gateway_config_last_reload_successful 0`)
	if ready := g.adminAnswer("/-/ready"); !strings.Contains(ready, `"ready":true`) || !strings.Contains(ready, `"config_current":false`) {
		t.Errorf("ready after a bad reload: %s", ready)
	}

	// What needs a restart stays, and is said.
	writeFile(t, g.paths[0], string(content)+"drain_timeout = \"1h\"\n")
	g.reload <- syscall.SIGHUP
	eventually(t, func() bool { return strings.Contains(g.log.String(), "needs a restart") && g.orders() == http.StatusOK })
	g.metric(t, `apikeys_gateway_config_last_reload_successful 1`)
	if ready := g.adminAnswer("/-/ready"); !strings.Contains(ready, `"config_current":true`) {
		t.Errorf("ready after a good reload: %s", ready)
	}
}

func TestFilesAreWatched(t *testing.T) {
	t.Parallel()
	g := start(t, testConfig)
	content, err := os.ReadFile(g.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, g.paths[0], string(content)+"\n# changed\n")
	eventually(t, func() bool { return strings.Contains(g.log.String(), "is reloaded") })
}

// TestWatchWaitsForWholeFiles looks as the ticker does.
func TestWatchWaitsForWholeFiles(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	file := filepath.Join(t.TempDir(), "gateway.hcl")
	writeFile(t, file, testConfig)
	g.paths = []string{file}
	g.acted = lookOf(g.read())
	g.seen = g.acted
	look := func(what, want string) {
		t.Helper()
		before := g.log.String()
		err := g.reloadIfChanged()
		said := strings.TrimPrefix(g.log.String(), before)
		if want == "" && (err != nil || said != "") {
			t.Errorf("%s: %v, log: %s", what, err, said)
		}
		if !strings.Contains(said, want) {
			t.Errorf("%s: log %q, want %s", what, said, want)
		}
	}
	changed := strings.Replace(testConfig, `["orders:read"]`, `["orders:delete"]`, 1)

	look("nothing is changed", "")
	writeFile(t, file, changed[:len(changed)/2])
	look("a file that is being written", "")
	writeFile(t, file, changed)
	look("a file that is written just now", "")
	look("a file that is written", "is reloaded")
	look("once", "")
	if got := g.orders(); got != http.StatusForbidden {
		t.Errorf("after a change: %d", got)
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	look("a file that is being replaced", "")
	look("a file that is gone", "the one in force stays")
	look("that is said once", "")
	if g.outdated.Load() == false || g.orders() != http.StatusForbidden {
		t.Error("without the file, what was read before must stay, and must not count as current")
	}
	if err := g.Reload(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a signal without the file: %v", err)
	}
	writeFile(t, file, changed)
	look("a file that is back just now", "")
	look("a file that is back", "is reloaded")
	if g.outdated.Load() {
		t.Error("with the file back, the configuration must be current")
	}
}

// TestNoReloadOpensAllRoutes empties a file of routes in place, and takes it away.
func TestNoReloadOpensAllRoutes(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	dir := t.TempDir()
	rest, routes, found := strings.Cut(testConfig, `route "health"`)
	if !found {
		t.Fatal("no routes to take away")
	}
	routes = `route "health"` + routes
	writeFile(t, dir+"/gateway.hcl", rest)
	writeFile(t, dir+"/routes.hcl", routes)
	g.paths = []string{dir}
	g.acted = lookOf(g.read())
	g.seen = g.acted
	status := func() int {
		answer := g.ask(http.MethodPost, "/v1/orders", http.Header{"X-Api-Key": {goodKey}}) // without orders:write
		_ = answer.Body.Close()
		return answer.StatusCode
	}

	writeFile(t, dir+"/routes.hcl", "")
	if err := g.reloadIfChanged(); err != nil {
		t.Fatal(err)
	}
	for _, reload := range []func() error{g.reloadIfChanged, g.Reload} { // the second look, and a signal
		if err := reload(); err == nil || !strings.Contains(err.Error(), "restart if that is meant") {
			t.Errorf("no routes: %v", err)
		}
	}
	if err := os.Remove(dir + "/routes.hcl"); err != nil {
		t.Fatal(err)
	}
	if err := g.Reload(); err == nil {
		t.Error("no file of routes was taken")
	}
	if !g.outdated.Load() || status() != http.StatusForbidden {
		t.Errorf("without routes: %d, outdated %v", status(), g.outdated.Load())
	}

	writeFile(t, dir+"/routes.hcl", routes)
	if err := g.Reload(); err != nil || g.outdated.Load() || status() != http.StatusForbidden {
		t.Errorf("with them again: %v, %d", err, status())
	}

	// Who began without routes may go on so, and may add some.
	open := newTestGateway(t, rest)
	open.paths = []string{dir}
	writeFile(t, dir+"/routes.hcl", "")
	if err := open.Reload(); err != nil {
		t.Errorf("from no routes to none: %v", err)
	}
	writeFile(t, dir+"/routes.hcl", routes)
	if err := open.Reload(); err != nil {
		t.Errorf("from no routes to some: %v", err)
	}
}

// TestNoReloadOpensTheRoutesOfAFile empties one of several files of routes.
func TestNoReloadOpensTheRoutesOfAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const admin = `route "admin" {
  path   = "/admin"
  scopes = ["admin"]
}
`
	writeFile(t, dir+"/admin.hcl", admin)
	writeFile(t, dir+"/gateway.hcl", testConfig)
	writeFile(t, dir+"/rest.hcl", `route "rest" {}`)
	config, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := newTestGateway(t, testConfig)
	g.policy.Store(newPolicy(config.Policy, nil))
	g.paths = []string{dir}
	status := func() int {
		answer := g.ask(http.MethodGet, "/admin", http.Header{"X-Api-Key": {goodKey}}) // without admin
		_ = answer.Body.Close()
		return answer.StatusCode
	}
	for _, content := range []string{"", "# " + strings.ReplaceAll(admin, "\n", "\n# "), `drain_delay = "0s"`} {
		writeFile(t, dir+"/admin.hcl", content)
		for range 2 { // the routes that it had are not forgotten
			if err := g.Reload(); err == nil || !strings.Contains(err.Error(), dir+"/admin.hcl has no routes any more") {
				t.Errorf("%q: %v", content, err)
			}
		}
		if !g.outdated.Load() || status() != http.StatusForbidden {
			t.Errorf("%q: %d, outdated %v", content, status(), g.outdated.Load())
		}
	}
	writeFile(t, dir+"/admin.hcl", strings.Replace(admin, `"admin"]`, `"admin", "more"]`, 1))
	if err := g.Reload(); err != nil || g.outdated.Load() || status() != http.StatusForbidden {
		t.Errorf("with other routes: %v, %d", err, status())
	}

	// Deleting a file says that it is meant.
	if err := os.Remove(dir + "/admin.hcl"); err != nil {
		t.Fatal(err)
	}
	if err := g.Reload(); err != nil || status() != http.StatusOK {
		t.Errorf("without the file: %v, %d", err, status())
	}
	writeFile(t, dir+"/admin.hcl", "")
	if err := g.Reload(); err != nil {
		t.Errorf("a new file without routes: %v", err)
	}
}

// tlsGateway is one that is served with a certificate of ca's in dir.
func tlsGateway(t *testing.T, dir string) (g *testGateway, ask func(ca *authority, certs ...tls.Certificate) (int, error)) {
	t.Helper()
	config := testConfig + `
listener "http" {
  address            = "127.0.0.1:0"
  tls_cert_file      = "` + dir + `/server.pem"
  tls_key_file       = "` + dir + `/server.key"
  tls_client_ca_file = "` + dir + `/ca.pem"
}`
	config = strings.NewReplacer("address = \"127.0.0.1:0\"", "address = \"unix:"+dir+"/h\"", "127.0.0.1:1", "unix:"+dir+"/g").Replace(config)
	g = newTestGateway(t, config)
	writeFile(t, dir+"/gateway.hcl", config)
	g.paths = []string{dir + "/gateway.hcl"}
	g.acted = lookOf(g.read())
	g.seen = g.acted
	servers, err := g.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := servers[2]
	go func() { _ = s.serve() }()
	t.Cleanup(func() {
		_ = s.http.Close()
		for _, s := range servers {
			_ = s.listener.Close()
		}
	})
	return g, func(ca *authority, certs ...tls.Certificate) (int, error) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, Certificates: certs, ServerName: "localhost", MinVersion: tls.VersionTLS12}}}
		defer client.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.listener.Addr().String()+AuthPath, http.NoBody)
		if err != nil {
			return 0, err
		}
		for k, v := range ordersWithKey {
			r.Header.Set(k, v)
		}
		answer, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		return answer.StatusCode, answer.Body.Close()
	}
}

func TestCertificatesAreWatched(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "gw") //nolint:usetesting // the path of a socket is at most 104 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	first := newAuthority(t, dir)
	first.issue(t, dir, "server")
	client := first.issue(t, dir, "client")
	g, ask := tlsGateway(t, dir)
	if status, err := ask(first, client); err != nil || status != http.StatusOK {
		t.Errorf("with a certificate: %d, %v", status, err)
	}
	if status, err := ask(first); err == nil {
		t.Errorf("without a certificate: %d", status)
	}

	// A new authority, but the key of the server is yet to come, and so is half of
	// the configuration. All stays.
	config, err := os.ReadFile(g.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	oldKey, err := os.ReadFile(dir + "/server.key")
	if err != nil {
		t.Fatal(err)
	}
	second := newAuthority(t, dir)
	second.issue(t, dir, "server")
	newKey, err := os.ReadFile(dir + "/server.key")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/server.key", string(oldKey))
	writeFile(t, g.paths[0], strings.Replace(string(config), `["orders:read"]`, `["orders:delete"]`, 1))
	_ = g.reloadIfChanged()
	if err := g.reloadIfChanged(); err == nil || !strings.Contains(err.Error(), "server.key") {
		t.Errorf("a certificate without its key: %v", err)
	}
	if status, err := ask(first, client); err != nil || status != http.StatusOK {
		t.Errorf("after a reload that failed: %d, %v", status, err)
	}
	g.metric(t, `apikeys_gateway_config_last_reload_successful 0`)

	// The key is there: certificate, authority and routes change together.
	writeFile(t, dir+"/server.key", string(newKey))
	for range 2 {
		if err := g.reloadIfChanged(); err != nil {
			t.Fatal(err)
		}
	}
	if status, err := ask(first, client); err == nil {
		t.Errorf("with the old authority: %d", status)
	}
	if status, err := ask(second, second.issue(t, dir, "client")); err != nil || status != http.StatusForbidden {
		t.Errorf("with the new authority: %d, %v, want %d", status, err, http.StatusForbidden)
	}

	// A good certificate does not help a configuration that cannot be used.
	newAuthority(t, dir).issue(t, dir, "server")
	writeFile(t, g.paths[0], "nonsense = 1")
	if err := g.Reload(); err == nil {
		t.Error("nonsense was taken")
	}
	if status, err := ask(second, second.issue(t, t.TempDir(), "client")); err != nil || status != http.StatusForbidden {
		t.Errorf("after nonsense: %d, %v, want %d", status, err, http.StatusForbidden)
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", der)
	return a
}

func (a *authority) issue(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "EC PRIVATE KEY", keyDER)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
