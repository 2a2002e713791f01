// SPDX-License-Identifier: MPL-2.0

package vaultclient_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

type colour struct {
	Colour string `json:"colour"`
}

func read(t *testing.T, c *vaultclient.Client) error {
	t.Helper()
	var out colour
	err := c.Read(t.Context(), "static-creds/acme", nil, &out)
	if err == nil && out.Colour != "crimson" {
		t.Errorf("read %q", out.Colour)
	}
	return err
}

func mustRead(t *testing.T, c *vaultclient.Client) {
	t.Helper()
	if err := read(t, c); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsWaitForTheFirstLogin(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		c := v.client(appRole)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := read(t, c); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(3 * time.Second)
		run(t, c)
		wg.Wait()
		if logins, _, _, served := v.counts(); logins != 1 || served != 20 {
			t.Errorf("%d logins and %d requests", logins, served)
		}
	})
}

func TestWithoutALoginARequestIsUnavailableAndSaysWhy(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		c := v.client(vaultclient.AppRole{RoleID: "role", SecretID: "wr0ng"})
		err := read(t, c)
		if !vaultclient.IsUnavailable(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without Run: %v", err)
		}
		run(t, c)
		err = read(t, c)
		if err == nil || !strings.Contains(err.Error(), "login approle: vault answered 400: invalid role or secret ID") || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("a refused login is told as: %v", err)
		}
	})
}

func TestATokenIsRenewedAndReplacedBeforeItDies(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		v.ttl, v.maxTTL = time.Hour, 4*time.Hour
		c := v.client(appRole)
		run(t, c)
		for range 24 * 6 { // a day
			mustRead(t, c)
			time.Sleep(10 * time.Minute)
		}
		logins, renewals, lookups, _ := v.counts()
		if logins < 6 || logins > 12 || renewals < 24 || lookups != 0 {
			t.Errorf("in a day of tokens that live 4 hours: %d logins, %d renewals, %d look-ups", logins, renewals, lookups)
		}
	})
}

func TestATokenThatCannotBeRenewedIsReplacedBeforeItDies(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		c := v.client(appRole)
		run(t, c)
		for range 24 * 6 {
			mustRead(t, c)
			time.Sleep(10 * time.Minute)
		}
		if logins, _, lookups, _ := v.counts(); logins < 24 || logins > 48 || lookups != 0 {
			t.Errorf("in a day of tokens that live an hour: %d logins, %d look-ups", logins, lookups)
		}
	})
}

func TestARevokedTokenIsReplacedWithoutAFailedRequest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		c := v.client(appRole)
		run(t, c)
		mustRead(t, c)
		for range 5 {
			time.Sleep(2 * time.Minute)
			v.revokeAll()
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if err := read(t, c); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		if logins, _, lookups, _ := v.counts(); logins != 6 || lookups != 5 {
			t.Errorf("5 revocations took %d logins and %d look-ups", logins, lookups)
		}
	})
}

func TestARefusalByPolicyDoesNotLogInAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		v.answer = func(w http.ResponseWriter, _ *http.Request) { deny(w) }
		c := v.client(appRole)
		run(t, c)
		for range 100 {
			err := read(t, c)
			status := (*vaultclient.StatusError)(nil)
			if !errors.As(err, &status) || status.Status != 403 || vaultclient.IsUnavailable(err) {
				t.Fatalf("refused with %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if logins, _, lookups, _ := v.counts(); logins != 1 || lookups > 11 {
			t.Errorf("in 10 s of refusals: %d logins, %d look-ups", logins, lookups)
		}
	})
}

func TestATokenThatMayNotLookItselfUpDoesNotMakeAStormOfLogins(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		v.noLookup = true
		v.answer = func(w http.ResponseWriter, _ *http.Request) { deny(w) }
		c := v.client(appRole)
		run(t, c)
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
			if read(t, c) == nil {
				t.Fatal("not refused")
			}
			time.Sleep(time.Second)
		}
		if logins, _, _, _ := v.counts(); logins > 60 {
			t.Errorf("%d logins in 10 minutes", logins)
		}
	})
}

func TestLoginsBackOffWhileVaultIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		c := v.client(appRole)
		run(t, c)
		mustRead(t, c)
		v.mu.Lock()
		v.down = true
		v.mu.Unlock()
		if err := read(t, c); !vaultclient.IsUnavailable(err) || !strings.Contains(err.Error(), "read apikeys/static-creds/acme: dial tcp: connection refused") {
			t.Errorf("a Vault that is down is: %v", err)
		}
		time.Sleep(2 * time.Hour) // the token is dead now
		v.mu.Lock()
		v.down = false
		v.mu.Unlock()
		time.Sleep(31 * time.Second)
		mustRead(t, c)
	})
}

func TestKubernetesReadsTheJWTAnewForEachLogin(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		file := filepath.Join(t.TempDir(), "token")
		write(t, file, "jwt-1\n")
		c := v.client(vaultclient.Kubernetes{Role: "web", TokenFile: file})
		run(t, c)
		mustRead(t, c)
		write(t, file, "jwt-2")
		v.revokeAll()
		time.Sleep(2 * time.Minute)
		mustRead(t, c)
		if strings.Join(v.jwts, " ") != "jwt-1 jwt-2" {
			t.Errorf("logged in with %q", v.jwts)
		}
	})
}

func TestATokenFileIsReadAgainWhenItChanges(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		file := filepath.Join(t.TempDir(), "sink")
		c := v.client(vaultclient.TokenFile(file))
		run(t, c)
		time.Sleep(time.Minute)
		v.issue("hvs.one")
		write(t, file, "hvs.one")
		time.Sleep(30 * time.Second)
		mustRead(t, c)

		v.revokeAll()
		v.issue("hvs.two")
		go func() {
			time.Sleep(2 * time.Second) // Agent is a little late
			write(t, file, "hvs.two\n")
		}()
		mustRead(t, c)

		v.revokeAll()
		if err := read(t, c); !vaultclient.IsUnavailable(err) {
			t.Errorf("while there is no other token: %v", err)
		}
		write(t, file, `{"token":"hvs.wrapped"}`)
		if err := read(t, c); !vaultclient.IsUnavailable(err) || strings.Contains(err.Error(), "hvs.") {
			t.Errorf("with a wrapped token: %v", err)
		}
	})
}

func TestAStaticTokenIsRenewedAndItsDeathIsFinal(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		v.maxTTL = 24 * time.Hour
		v.issue("hvs.static")
		c := v.client(vaultclient.Token("hvs.static"))
		mustRead(t, c) // needs no Run
		run(t, c)
		time.Sleep(20 * time.Hour)
		mustRead(t, c)
		v.revokeAll()
		for range 3 {
			if err := read(t, c); err == nil || vaultclient.IsUnavailable(err) {
				t.Errorf("a dead static token: %v", err)
			}
		}
	})
}

func TestTheTokenOfTheEnvironment(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "")
	if _, err := vaultclient.New(vaultclient.Config{}); err == nil || !strings.Contains(err.Error(), "VAULT_TOKEN") {
		t.Errorf("without a token: %v", err)
	}
	t.Setenv("VAULT_TOKEN", "hvs.environment")
	v := newFakeVault(t)
	v.issue("hvs.environment")
	mustRead(t, v.client(nil))
	if err := read(t, v.client(vaultclient.Anonymous{})); err == nil {
		t.Error("an anonymous client sends the token of the environment")
	}
}

func TestAnswersAreBoundedAndTheirTextIsNotRepeated(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "")
	const secret = "s3cr3t-in-the-answer"
	endless := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest) // such bodies are read whole
		_, _ = io.WriteString(w, `{"errors":["`)
		for range 17 << 4 {
			_, _ = io.WriteString(w, strings.Repeat("a", 1<<16))
		}
		_, _ = io.WriteString(w, `"]}`)
	}
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, test := range map[string]struct {
		answer             http.HandlerFunc
		read, write        string // the errors; empty for none
		unavailable        bool
		writeIsUnavailable bool
	}{
		"too long":      {endless, "the answer is longer than 16777216 bytes", "the answer is longer than 16777216 bytes", true, true},
		"not JSON":      {status(200, secret), "the answer is not the JSON that was expected", "the answer is not the JSON that was expected", true, true},
		"wrong type":    {status(200, `{"data":{"colour":["`+secret+`"]}}`), "not the JSON", "not the JSON", true, true},
		"no content":    {status(204, ""), "", "", false, false},
		"an error page": {status(502, "<html>"+secret), "vault answered 502", "vault answered 502", true, true},
		"bad request":   {status(400, `{"errors":["bad value `+secret+`"]}`), "vault answered 400: bad value " + secret, "vault answered 400", false, false},
		"with token":    {status(400, `{"errors":["header hvs.static"]}`), "vault answered 400", "vault answered 400", false, false},
		"sealed":        {status(503, `{"errors":["Vault is sealed"]}`), "vault answered 503: Vault is sealed", "vault answered 503: Vault is sealed", true, true},
		"limited":       {status(429, `{"errors":[]}`), "vault answered 429", "vault answered 429", true, true},
		"not found":     {status(404, `{"errors":["there is no such key"]}`), "vault answered 404: there is no such key", "vault answered 404", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := newFakeVault(t)
			v.issue("hvs.static")
			v.answer = test.answer
			c := v.client(vaultclient.Token("hvs.static"))
			var out colour
			check := func(op string, err error, want string, unavailable bool) {
				t.Helper()
				if want == "" {
					if err != nil {
						t.Errorf("%s: %v", op, err)
					}
					return
				}
				if err == nil || !strings.HasSuffix(err.Error(), want) && want != "not the JSON" || vaultclient.IsUnavailable(err) != unavailable {
					t.Errorf("%s: %v (unavailable: %t)", op, err, vaultclient.IsUnavailable(err))
				}
				if op == "write" && strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "hvs.") {
					t.Errorf("%s tells a secret: %v", op, err)
				}
			}
			check("read", c.Read(t.Context(), "x", nil, &out), test.read, test.unavailable)
			check("write", c.Write(t.Context(), "x", map[string]string{"api_key": secret}, &out), test.write, test.writeIsUnavailable)
		})
	}
}

func TestRequestsAreWhatVaultExpects(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "")
	v := newFakeVault(t)
	v.issue("hvs.static")
	var got []string
	v.answer = func(w http.ResponseWriter, r *http.Request) {
		var body []byte
		if r.Body != nil {
			body, _ = io.ReadAll(r.Body)
		}
		got = append(got, r.Method+" "+r.URL.String()+" "+r.Header.Get("X-Vault-Namespace")+" "+string(body))
		_, _ = io.WriteString(w, `{"data":{"keys":["a","b"]}}`)
	}
	c, err := vaultclient.New(vaultclient.Config{
		Address: "http://vault.test:8200", Namespace: "team", Mount: "/teams/keys/", Auth: vaultclient.Token("hvs.static"), Transport: v,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Read(t.Context(), "sync", url.Values{"seq": {"7"}}, nil); err != nil {
		t.Error(err)
	}
	if err := c.Write(t.Context(), "usage", map[string]int{"sequence": 1}, nil); err != nil {
		t.Error(err)
	}
	if err := c.Write(t.Context(), "sweep", nil, nil); err != nil {
		t.Error(err)
	}
	keys, err := c.List(t.Context(), "verifiers", url.Values{"limit": {"2"}})
	if err != nil || strings.Join(keys, " ") != "a b" {
		t.Errorf("listed %v, %v", keys, err)
	}
	want := []string{
		"GET http://vault.test:8200/v1/teams/keys/sync?seq=7 team ",
		`PUT http://vault.test:8200/v1/teams/keys/usage team {"sequence":1}`,
		"PUT http://vault.test:8200/v1/teams/keys/sweep team {}",
		"GET http://vault.test:8200/v1/teams/keys/verifiers?limit=2&list=true team ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	v.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		_, _ = io.WriteString(w, `{"errors":[]}`)
	}
	if keys, err := c.List(t.Context(), "verifiers", nil); err != nil || len(keys) != 0 {
		t.Errorf("listed nothing as %v, %v", keys, err)
	}
	for _, path := range []string{"", "/x", "x/", "x/../y", "../sys/seal", "a?b=c", "a b", "a%2fb", "a#b"} {
		if err := c.Read(t.Context(), path, nil, nil); err == nil || vaultclient.IsUnavailable(err) {
			t.Errorf("path %q: %v", path, err)
		}
	}
}

// Over a connection, where the body of an answer arrives after its header.
func TestLongAnswersArriveWhole(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("crimson ", 100_000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":{"colour":"`)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, long+`"}}`)
	}))
	t.Cleanup(server.Close)
	c, err := vaultclient.New(vaultclient.Config{Address: server.URL, Auth: vaultclient.Anonymous{}})
	if err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func(out any) error{
		"read":  func(out any) error { return c.Read(t.Context(), "x", nil, out) },
		"write": func(out any) error { return c.Write(t.Context(), "x", nil, out) },
	} {
		var out colour
		if err := ask(&out); err != nil || out.Colour != long {
			t.Errorf("%s: %d bytes, %v", name, len(out.Colour), err)
		}
	}
}

func TestTLSByVaultsEnvironment(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":{"colour":"crimson"}}`)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it says that clients do not trust it
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	t.Setenv("VAULT_ADDR", server.URL)
	ask := func() error {
		c, err := vaultclient.New(vaultclient.Config{Auth: vaultclient.Anonymous{}})
		if err != nil {
			t.Fatal(err)
		}
		return read(t, c)
	}
	if err := ask(); !vaultclient.IsUnavailable(err) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without a CA: %v", err)
	}
	t.Run("skip", func(t *testing.T) {
		t.Setenv("VAULT_SKIP_VERIFY", "true")
		if err := ask(); err != nil {
			t.Error(err)
		}
	})
	t.Run("CA", func(t *testing.T) {
		t.Setenv("VAULT_CACERT", ca)
		if err := ask(); err != nil {
			t.Error(err)
		}
		t.Setenv("VAULT_TLS_SERVER_NAME", "vault.invalid")
		if err := ask(); err == nil {
			t.Error("the name of the server is not checked")
		}
	})
	t.Run("a CA that is not there", func(t *testing.T) {
		t.Setenv("VAULT_CACERT", ca+".none")
		if _, err := vaultclient.New(vaultclient.Config{Auth: vaultclient.Anonymous{}}); err == nil {
			t.Error("it is left out")
		}
	})
}

// silenced passes connections on, and swallows what comes over those that were
// open when it was told to: as where a host or a path is lost without a word.
type silenced struct {
	net.Listener
	to string

	mu    sync.Mutex
	age   int
	conns []net.Conn
}

func (s *silenced) run() {
	for {
		in, err := s.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", s.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		s.mu.Lock()
		s.conns = append(s.conns, in, out)
		age := s.age
		s.mu.Unlock()
		go s.copy(out, in, age)
		go s.copy(in, out, age)
	}
}

func (s *silenced) copy(to, from net.Conn, age int) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		s.mu.Lock()
		swallow := s.age > age
		s.mu.Unlock()
		if !swallow {
			_, _ = to.Write(buffer[:n])
		}
	}
}

func (s *silenced) lose() (connections int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age++
	return len(s.conns) / 2
}

func TestAConnectionThatIsLostWithoutAWordIsReplaced(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("asked by %s, want HTTP/2: the test is about nothing", r.Proto)
		}
		_, _ = io.WriteString(w, `{"data":{"colour":"crimson"}}`)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	path := &silenced{Listener: listener, to: server.Listener.Addr().String()}
	go path.run()
	t.Cleanup(func() {
		_ = listener.Close()
		path.mu.Lock()
		defer path.mu.Unlock()
		for _, conn := range path.conns {
			_ = conn.Close()
		}
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	c, err := vaultclient.New(vaultclient.Config{
		Address: "https://" + listener.Addr().String(), Auth: vaultclient.Anonymous{}, Timeout: time.Second, TLS: &api.TLSConfig{CACert: ca},
	})
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, c)
	if n := path.lose(); n != 1 {
		t.Fatalf("%d connections", n)
	}
	const patience = 30 * time.Second // 4 are to be expected
	for began := time.Now(); read(t, c) != nil; {
		if time.Since(began) > patience {
			t.Fatalf("after %s nobody has dialled again", patience)
		}
	}
}

func TestAHangingVaultIsUnavailableWhenTheTimeoutIsOver(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		v := newFakeVault(t)
		v.issue("hvs.static")
		v.answer = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		c := v.client(vaultclient.Token("hvs.static"))
		began := time.Now()
		err := read(t, c)
		if took := time.Since(began); took != vaultclient.DefaultTimeout || !vaultclient.IsUnavailable(err) {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

func TestBadConfigurationSaysWhatIsWrong(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "hvs.environment")
	for want, c := range map[string]vaultclient.Config{
		"mount":                             {Mount: "a//b"},
		"timeout must not be negative":      {Timeout: -1},
		"one of RoleID and RoleIDFile":      {Auth: vaultclient.AppRole{SecretID: "x"}},
		"one of SecretID, SecretIDFile":     {Auth: vaultclient.AppRole{RoleID: "x", SecretID: "s3cret", SecretIDEnv: "y"}},
		"Kubernetes takes a Role":           {Auth: vaultclient.Kubernetes{}},
		"the path of the token file":        {Auth: vaultclient.TokenFile("")},
		"characters that are not printable": {Auth: vaultclient.Token("hvs.s3cret\n")},
		"the address of vault":              {Address: "http://user:s3cret@[:8200"},
	} {
		_, err := vaultclient.New(c)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func write(t testing.TB, file, content string) {
	t.Helper()
	next := file + ".new"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.Rename(next, file); err != nil {
		t.Error(err)
	}
}
