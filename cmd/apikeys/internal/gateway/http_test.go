// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// keys stands for a verifier: it knows keys by their text.
type keys struct {
	mu    sync.Mutex
	known map[string]verifier.Result
	asked []verifier.Check
	// hold, if it is set, is waited for.
	hold chan struct{}
	// asking hears of each question before that.
	asking chan struct{}
}

const (
	goodKey     = "tm_live_0aB3dE6gH9jK_goodgoodgoodgood"
	retiringKey = "tm_live_0aB3dE6gH9jK_retiringretiring"
	leasedKey   = "tm_live_Leased000001_leasedleased"
	revokedKey  = "tm_live_0aB3dE6gH9jK_revokedrevoked"
	boundKey    = "tm_live_Bound0000001_boundbound"
	lostKey     = "tm_live_0aB3dE6gH9jK_lostlost"
)

var since = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func someKeys() *keys {
	acme := &record.Record{KeyID: "0aB3dE6gH9jK", Name: "acme", Role: "partner", Enabled: true}
	leased := &record.Record{KeyID: "Leased000001", Role: "partner", Enabled: true}
	bound := &record.Record{KeyID: "Bound0000001", Name: "bound", Role: "partner", Enabled: true, BoundCIDRs: []string{"203.0.113.0/24"}}
	scopes := []string{"orders:read", "rates"}
	version := func(n int, state record.State) *record.Version {
		return &record.Version{Number: n, Life: record.Life{State: state, SupersededTime: since, OverlapEnds: since.Add(time.Hour)}}
	}
	accepted := func(key *record.Record, n int, state record.State, scopes []string) verifier.Result {
		return verifier.Result{Verdict: verifier.Accepted, Code: record.CodeValid, State: state, Key: key, Version: version(n, state), Scopes: scopes}
	}
	return &keys{known: map[string]verifier.Result{
		goodKey:     accepted(acme, 4, record.StateActive, scopes),
		retiringKey: accepted(acme, 3, record.StateRetiring, scopes),
		leasedKey:   accepted(leased, 1, record.StateActive, nil),
		boundKey:    accepted(bound, 1, record.StateActive, scopes),
		revokedKey:  {Verdict: verifier.Refused, Code: record.CodeRevoked, State: record.StateRevoked, Key: acme, Version: version(2, record.StateRevoked)},
		lostKey:     {Verdict: verifier.Unavailable, RetryAfter: 1500 * time.Millisecond},
	}}
}

func (k *keys) Verify(_ context.Context, apiKey string, check verifier.Check) (verifier.Result, error) {
	if k.asking != nil {
		k.asking <- struct{}{}
		<-k.hold
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, check)
	result, known := k.known[apiKey]
	switch {
	case !known:
		return verifier.Result{Verdict: verifier.Refused, Code: record.CodeNotFound}, nil
	case result.Verdict == verifier.Unavailable:
		return result, verifier.ErrUnavailable
	case result.Verdict == verifier.Accepted && !record.AllowedFrom(result.Key.BoundCIDRs, check.SourceIP):
		result.Verdict, result.Code = verifier.Refused, record.CodeForbiddenSource
	case result.Verdict == verifier.Accepted && !record.CoversAll(result.Scopes, check.Scopes):
		result.Verdict, result.Code = verifier.Refused, record.CodeInsufficientScope
	}
	return result, nil
}

const testConfig = `
listener "http" { address = "127.0.0.1:0" }
listener "grpc" { address = "127.0.0.1:1" }
trusted_proxies  = ["127.0.0.0/8", "192.0.2.0/24"]
access_log       = "all"
deprecation_link = "https://example.com/rotation"
key {
  headers = ["Authorization", "X-API-Key"]
  query   = "api_key"
  hide    = true
}
route "health" {
  path   = "/health"
  public = true
}
route "orders" {
  path    = "/v1/orders"
  methods = ["GET"]
  scopes  = ["orders:read"]
  source  = "shop"
}
route "write" {
  path   = "/v1/orders"
  scopes = ["orders:write"]
}
route "rates" {
  path   = "/v1/rates"
  scopes = ["rates"]
}
`

// testGateway is one that is asked in this process.
type testGateway struct {
	*Gateway
	keys        *keys
	log, access *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newTestGateway(t testing.TB, config string) *testGateway {
	t.Helper()
	c, err := parse([]source{{"test.hcl", []byte(config)}})
	if err != nil {
		t.Fatal(err)
	}
	tg := &testGateway{keys: someKeys(), log: &lockedBuffer{}, access: &lockedBuffer{}}
	certificates, err := readCertificates(c.Static.Listeners)
	if err != nil {
		t.Fatal(err)
	}
	tg.Gateway, err = newGateway(c, certificates, slog.New(slog.NewJSONHandler(tg.log, nil)), slog.New(slog.NewJSONHandler(tg.access, nil)))
	if err != nil {
		t.Fatal(err)
	}
	tg.verifier = tg.keys
	tg.health = func() verifier.Health { return verifier.Health{Ready: true} }
	tg.run = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tg.client = tg.run
	tg.close = func(context.Context) error { return nil }
	return tg
}

// ask asks as a trusted proxy does, with fields of the client's added.
func (g *testGateway) ask(method, uri string, client http.Header) *http.Response {
	r := httptest.NewRequest(http.MethodGet, "http://gateway"+AuthPath, http.NoBody)
	r.RemoteAddr = "127.0.0.1:5555"
	maps.Copy(r.Header, client)
	for field, value := range map[string]string{"X-Forwarded-Method": method, "X-Forwarded-Uri": uri, "X-Forwarded-Host": "api.example.com"} {
		r.Header[field] = append(r.Header[field], value)
	}
	if r.Header["X-Forwarded-For"] == nil {
		r.Header["X-Forwarded-For"] = []string{"203.0.113.9"}
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w.Result()
}

func TestForwardAuth(t *testing.T) {
	t.Parallel()
	key := func(k string) http.Header { return http.Header{"X-Api-Key": {k}} }
	bearer := func(k string) http.Header { return http.Header{"Authorization": {"Bearer " + k}} }
	for _, c := range []struct {
		name, method, uri string
		client            http.Header
		status            int
		code              string
		want              http.Header // beside Content-Length
	}{
		{"valid", "GET", "/v1/orders/7?x=1", key(goodKey), 200, "VALID", http.Header{
			"X-Consumer-Id": {"0aB3dE6gH9jK"}, "X-Consumer-Name": {"acme"}, "X-Consumer-Scopes": {"orders:read rates"}, "X-Key-Version": {"4"},
		}},
		{"valid bearer", "GET", "/v1/orders", bearer(goodKey), 200, "VALID", http.Header{
			"X-Consumer-Id": {"0aB3dE6gH9jK"}, "X-Consumer-Name": {"acme"}, "X-Consumer-Scopes": {"orders:read rates"}, "X-Key-Version": {"4"},
		}},
		{"valid in the URL", "GET", "/v1/orders?api_key=" + goodKey, nil, 200, "VALID", http.Header{
			"X-Consumer-Id": {"0aB3dE6gH9jK"}, "X-Consumer-Name": {"acme"}, "X-Consumer-Scopes": {"orders:read rates"}, "X-Key-Version": {"4"},
		}},
		{"retiring", "GET", "/v1/orders", key(retiringKey), 200, "VALID", http.Header{
			"X-Consumer-Id": {"0aB3dE6gH9jK"}, "X-Consumer-Name": {"acme"}, "X-Consumer-Scopes": {"orders:read rates"}, "X-Key-Version": {"3"},
			"Deprecation": {"@1767268800"}, "Sunset": {"Thu, 01 Jan 2026 13:00:00 GMT"}, "Link": {`<https://example.com/rotation>; rel="deprecation"`},
		}},
		{"public", "POST", "/health", nil, 200, "PUBLIC", http.Header{}},
		{"public, with a key", "GET", "/health", key(goodKey), 200, "PUBLIC", http.Header{}},
		{"no key", "GET", "/v1/orders", nil, 401, "NO_KEY", nil},
		{"of 0 characters", "GET", "/v1/orders", key(""), 401, "NO_KEY", nil},
		{"of 1", "GET", "/v1/orders", key("k"), 401, "NOT_FOUND", nil},
		{"of 10,000", "GET", "/v1/orders", key(strings.Repeat("k", 10_000)), 401, "NOT_FOUND", nil},
		{"binary", "GET", "/v1/orders", key("\x80\xff\xfe" + goodKey), 401, "NOT_FOUND", nil},
		{"look-alikes", "GET", "/v1/orders", key(strings.ReplaceAll(goodKey, "o", "о")), 401, "NOT_FOUND", nil},
		{"unknown", "GET", "/v1/orders", key(goodKey + "x"), 401, "NOT_FOUND", nil},
		{"revoked", "GET", "/v1/orders", key(revokedKey), 401, "REVOKED", nil},
		{"several", "GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey}, "Authorization": {"Bearer " + goodKey}}, 401, "SEVERAL_KEYS", nil},
		{"one field twice", "GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey, goodKey}}, 401, "SEVERAL_KEYS", nil},
		{"in the URL too", "GET", "/v1/orders?api_key=" + goodKey, key(goodKey), 401, "SEVERAL_KEYS", nil},
		{"tabs", "GET", "/v1/orders", http.Header{"Authorization": {"Bearer\t" + goodKey}}, 401, "BAD_AUTHORIZATION", nil},
		{"wrong scope", "POST", "/v1/orders", key(goodKey), 403, "INSUFFICIENT_SCOPE", nil},
		{"no scopes", "GET", "/v1/orders", key(leasedKey), 403, "INSUFFICIENT_SCOPE", nil},
		{"no route", "GET", "/v2", key(goodKey), 403, "NO_ROUTE", nil},
		{"a path of several readings", "GET", "/v1/rates/../orders", key(goodKey), 403, "AMBIGUOUS_PATH", nil},
		{"bound, from there", "GET", "/v1/orders", key(boundKey), 200, "VALID", http.Header{
			"X-Consumer-Id": {"Bound0000001"}, "X-Consumer-Name": {"bound"}, "X-Consumer-Scopes": {"orders:read rates"}, "X-Key-Version": {"1"},
		}},
		{"bound, from elsewhere", "GET", "/v1/orders", http.Header{"X-Api-Key": {boundKey}, "X-Forwarded-For": {"198.51.100.1"}}, 403, "FORBIDDEN_SOURCE", nil},
		{"bound, and it says that it is there", "GET", "/v1/orders", http.Header{"X-Api-Key": {boundKey}, "X-Forwarded-For": {"203.0.113.9, 198.51.100.1"}}, 403, "FORBIDDEN_SOURCE", nil},
		{"unavailable", "GET", "/v1/orders", key(lostKey), 503, "UNAVAILABLE", nil},
		{"the client adds a field of the proxy's", "GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey}, "X-Forwarded-Uri": {"/health"}}, 403, "REQUEST_NOT_TOLD", nil},
		{"the client adds a method", "GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey}, "X-Forwarded-Method": {"GET"}}, 403, "REQUEST_NOT_TOLD", nil},
		{"the client adds a host", "GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey}, "X-Forwarded-Host": {"x"}}, 403, "REQUEST_NOT_TOLD", nil},
		{"the proxy tells nothing", "", "", key(goodKey), 403, "REQUEST_NOT_TOLD", nil},
	} {
		g := newTestGateway(t, testConfig)
		answer := g.ask(c.method, c.uri, c.client)
		body, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != c.status || !strings.Contains(g.access.String(), `"code":"`+c.code+`"`) {
			t.Errorf("%s: %d, log %s; want %d, %s", c.name, answer.StatusCode, g.access, c.status, c.code)
		}
		checkAnswer(t, c.name, answer, string(body), c.want)
		for _, secret := range []string{goodKey, retiringKey, boundKey, revokedKey, "goodgood", "kkkk", "?x=1", "/v1/orders"} {
			if strings.Contains(g.access.String()+g.log.String()+string(body), secret) {
				t.Errorf("%s: %s is told in %s%s%s", c.name, secret, g.access, g.log, body)
			}
		}
		if n := testutil.ToFloat64(g.metrics.requests.WithLabelValues("http", routeIn(g.access.String()), c.code)); n != 1 {
			t.Errorf("%s: counted %v times", c.name, n)
		}
	}
}

func routeIn(log string) string {
	_, rest, _ := strings.Cut(log, `"route":"`)
	route, _, _ := strings.Cut(rest, `"`)
	return route
}

// checkAnswer compares an answer with all that there may be in one.
func checkAnswer(t *testing.T, name string, answer *http.Response, body string, want http.Header) {
	t.Helper()
	got := answer.Header.Clone()
	length := got.Get("Content-Length")
	got.Del("Content-Length")
	if answer.StatusCode == http.StatusOK {
		if body != "" || length != "0" {
			t.Errorf("%s: a body of %s: %q", name, length, body)
		}
		want = want.Clone()
		for _, field := range IdentityFields() {
			if want[field] == nil {
				want[field] = []string{""} // for proxies that copy what there is
			}
		}
	} else {
		want = http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Cache-Control": {"no-store"}}
		text := "forbidden\n"
		switch answer.StatusCode {
		case 401:
			text = "unauthorized\n"
			want["Www-Authenticate"] = []string{"Bearer"}
		case 503:
			text = "unavailable\n"
			want["Retry-After"] = []string{"2"}
		}
		if body != text {
			t.Errorf("%s: %q, want %q", name, body, text)
		}
	}
	if !maps.EqualFunc(got, want, func(a, b []string) bool { return strings.Join(a, "|") == strings.Join(b, "|") }) {
		t.Errorf("%s: answered %v, want %v", name, got, want)
	}
}

func TestOnlyTrustedProxiesMayAsk(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	for peer, status := range map[string]int{"127.0.0.1:1": 200, "192.0.2.7:1": 200, "198.51.100.1:1": 403, "[2001:db8::1]:1": 403, "@": 200} {
		r := httptest.NewRequest(http.MethodGet, AuthPath, http.NoBody)
		r.RemoteAddr = peer
		r.Header = http.Header{"X-Api-Key": {goodKey}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/v1/orders"}}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("%s: %d, want %d", peer, w.Code, status)
		}
	}
	if !strings.Contains(g.access.String(), `"code":"UNTRUSTED_PROXY"`) {
		t.Errorf("the log says %s", g.access)
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/auth/x", http.NoBody))
	if w.Code != http.StatusNotFound {
		t.Errorf("another path: %d", w.Code)
	}
}

func TestWhatAVerifierIsAsked(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	_ = g.ask("GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey}}).Body.Close()
	if len(g.keys.asked) != 1 {
		t.Fatalf("asked %d times", len(g.keys.asked))
	}
	if c := g.keys.asked[0]; c.Source != "shop" || len(c.Scopes) != 1 || c.Scopes[0] != "orders:read" || c.SourceIP.String() != "203.0.113.9" {
		t.Errorf("asked %+v", c)
	}
}

// TestEveryReasonHasAStatus keeps a code that is added from passing.
func TestEveryReasonHasAStatus(t *testing.T) {
	t.Parallel()
	for _, r := range Reasons() {
		d := decision{reason: r, result: verifier.Result{Verdict: verifier.Accepted}}
		if passes := r == "VALID" || r == "PUBLIC"; d.passes() != passes || (r.Status() == http.StatusOK) != passes {
			t.Errorf("%s: passes %v with %d", r, d.passes(), r.Status())
		}
	}
	if Reason("NEWLY_INVENTED").Status() != http.StatusUnauthorized {
		t.Error("a code that is not known is not refused")
	}
	d := decision{reason: "VALID", result: verifier.Result{Verdict: verifier.Refused}}
	if d.passes() {
		t.Error("a refused result passes by its code")
	}
}

func TestAccessLogLevels(t *testing.T) {
	t.Parallel()
	for level, want := range map[string]int{"off": 0, "refused": 1, "all": 2} {
		g := newTestGateway(t, strings.Replace(testConfig, `"all"`, `"`+level+`"`, 1))
		_ = g.ask("GET", "/v1/orders", http.Header{"X-Api-Key": {goodKey}}).Body.Close()
		_ = g.ask("GET", "/v1/orders", nil).Body.Close()
		if got := strings.Count(g.access.String(), "\n"); got != want {
			t.Errorf("%s: %d lines, want %d", level, got, want)
		}
	}
}

func BenchmarkForwardAuth(b *testing.B) {
	g := newTestGateway(b, strings.Replace(testConfig, `"all"`, `"refused"`, 1))
	r := httptest.NewRequest(http.MethodGet, AuthPath, http.NoBody)
	r.RemoteAddr = "127.0.0.1:5555"
	r.Header = http.Header{
		"X-Api-Key": {goodKey}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Uri": {"/v1/orders/17"}, "X-Forwarded-Host": {"api.example.com"}, "X-Forwarded-For": {"203.0.113.9"},
	}
	b.ReportAllocs()
	for b.Loop() {
		w := discard{h: http.Header{}}
		g.ServeHTTP(&w, r)
		if w.status != http.StatusOK {
			b.Fatal(w.status)
		}
		g.keys.asked = g.keys.asked[:0]
	}
}

type discard struct {
	h      http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
