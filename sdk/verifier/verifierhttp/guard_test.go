// SPDX-License-Identifier: MPL-2.0

package verifierhttp_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// judge answers by what was presented, and notes what it was asked.
type judge struct {
	results map[string]verifier.Result
	asked   []verifier.Check
	keys    []string
}

var errAway = errors.New("away")

func (j *judge) Verify(_ context.Context, apiKey string, check verifier.Check) (verifier.Result, error) {
	j.asked, j.keys = append(j.asked, check), append(j.keys, apiKey)
	if r, ok := j.results[apiKey]; ok {
		if r.Verdict == verifier.Unavailable {
			return r, errAway
		}
		return r, nil
	}
	return verifier.Result{Verdict: verifier.Refused, Code: record.CodeNotFound}, nil
}

var ended = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newJudge() *judge {
	key := &record.Record{KeyID: "0123456789ab", Name: "acme"}
	version := func(n int, state record.State) *record.Version {
		return &record.Version{Number: n, Life: record.Life{State: state, SupersededTime: ended.Add(-time.Hour), OverlapEnds: ended}}
	}
	return &judge{results: map[string]verifier.Result{
		"good":      {Verdict: verifier.Accepted, Code: record.CodeValid, State: record.StateActive, Key: key, Version: version(2, record.StateActive)},
		"old":       {Verdict: verifier.Accepted, Code: record.CodeValid, State: record.StateRetiring, Key: key, Version: version(1, record.StateRetiring)},
		"revoked":   {Verdict: verifier.Refused, Code: record.CodeRevoked, Key: key},
		"narrow":    {Verdict: verifier.Refused, Code: record.CodeInsufficientScope, Key: key},
		"elsewhere": {Verdict: verifier.Refused, Code: record.CodeForbiddenSource, Key: key},
		"away":      {Verdict: verifier.Unavailable, RetryAfter: 1500 * time.Millisecond},
		"zero":      {},
	}}
}

func guard(t *testing.T, j *judge, o verifierhttp.Options) http.Handler {
	t.Helper()
	g, err := verifierhttp.New(j, o)
	if err != nil {
		t.Fatal(err)
	}
	return g.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result, ok := verifierhttp.FromContext(r.Context())
		if !ok {
			t.Error("the context of a request that passed has no result")
			return
		}
		_, _ = io.WriteString(w, "hello "+result.Key.Name)
	}))
}

// told is an answer.
type told struct {
	StatusCode int
	Header     http.Header
	body       string
}

func ask(h http.Handler, change func(r *http.Request)) told {
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	change(r)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return told{w.Code, w.Header(), w.Body.String()}
}

func TestGuardAnswersByTheVerdictAlone(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		key    string
		status int
		body   string
		field  string
		value  string
	}{
		{"good", 200, "hello acme", "", ""},
		{"revoked", 401, "unauthorized\n", "WWW-Authenticate", "Bearer"},
		{"never heard of", 401, "unauthorized\n", "WWW-Authenticate", "Bearer"},
		{"unknown", 401, "unauthorized\n", "WWW-Authenticate", "Bearer"},
		{"narrow", 403, "forbidden\n", "", ""},
		{"elsewhere", 403, "forbidden\n", "", ""},
		{"away", 503, "unavailable\n", "Retry-After", "2"},
		{"zero", 503, "unavailable\n", "Retry-After", "1"},
	} {
		j := newJudge()
		resp := ask(guard(t, j, verifierhttp.Options{}), func(r *http.Request) { r.Header.Set("X-API-Key", tc.key) })
		if resp.StatusCode != tc.status || resp.body != tc.body {
			t.Errorf("%s: %d %q, want %d %q", tc.key, resp.StatusCode, resp.body, tc.status, tc.body)
		}
		if tc.field != "" && resp.Header.Get(tc.field) != tc.value {
			t.Errorf("%s: %s is %q, want %q", tc.key, tc.field, resp.Header.Get(tc.field), tc.value)
		}
		if tc.status != 200 && resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: a refusal may be cached", tc.key)
		}
		if len(j.asked) != 1 || len(j.asked[0].Scopes) != 1 || j.asked[0].Scopes[0] != "orders:read" {
			t.Errorf("%s: asked %+v", tc.key, j.asked)
		}
	}
}

func TestGuardTakesOneKeyFromItsPlaces(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		options verifierhttp.Options
		change  func(r *http.Request)
		passes  bool
	}{
		"bearer":         {change: func(r *http.Request) { r.Header.Set("Authorization", "bearer good") }, passes: true},
		"two spaces":     {change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer  good") }, passes: true},
		"a tab":          {change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer\tgood") }},
		"a space behind": {change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer good x") }},
		"another scheme": {change: func(r *http.Request) { r.Header.Set("Authorization", "Basic good") }},
		"twice":          {change: func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer good", "Bearer good"} }},
		"in two places":  {change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer good"); r.Header.Set("X-API-Key", "good") }},
		"none":           {change: func(*http.Request) {}},
		"in the URL":     {change: func(r *http.Request) { r.URL.RawQuery = "api_key=good" }},
		"in the URL, if told": {
			options: verifierhttp.Options{InsecureKeyInQuery: "api_key"},
			change:  func(r *http.Request) { r.URL.RawQuery = "api_key=good" }, passes: true,
		},
		"another field": {
			options: verifierhttp.Options{Fields: []string{"x-exchange-key"}},
			change:  func(r *http.Request) { r.Header.Set("X-Exchange-Key", "good") }, passes: true,
		},
		"not in a field that is not named": {
			options: verifierhttp.Options{Fields: []string{"x-exchange-key"}},
			change:  func(r *http.Request) { r.Header.Set("X-API-Key", "good") },
		},
		"a way of one's own": {
			options: verifierhttp.Options{Key: func(r *http.Request) (string, error) {
				c, err := r.Cookie("key")
				if err != nil {
					return "", verifierhttp.ErrNoKey
				}
				return c.Value, nil
			}},
			change: func(r *http.Request) { r.Header.Set("Cookie", "key=good") }, passes: true,
		},
	} {
		j := newJudge()
		resp := ask(guard(t, j, tc.options), tc.change)
		if passed := resp.StatusCode == http.StatusOK; passed != tc.passes {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
		if !tc.passes && len(j.keys) > 0 && name != "another scheme" {
			t.Errorf("%s: %q was verified", name, j.keys)
		}
	}
}

func TestGuardTellsClientsOfARetiringVersion(t *testing.T) {
	t.Parallel()
	h := guard(t, newJudge(), verifierhttp.Options{DeprecationLink: "https://example.com/rotate", SunsetLink: "https://example.com/end"})
	resp := ask(h, func(r *http.Request) { r.Header.Set("X-API-Key", "old") })
	if got := resp.Header.Get("Deprecation"); got != "@1772362800" {
		t.Errorf("Deprecation: %s", got)
	}
	if got := resp.Header.Get("Sunset"); got != "Sun, 01 Mar 2026 12:00:00 GMT" {
		t.Errorf("Sunset: %s", got)
	}
	if got := strings.Join(resp.Header.Values("Link"), ", "); got != `<https://example.com/rotate>; rel="deprecation", <https://example.com/end>; rel="sunset"` {
		t.Errorf("Link: %s", got)
	}
	resp = ask(h, func(r *http.Request) { r.Header.Set("X-API-Key", "good") })
	for _, field := range []string{"Deprecation", "Sunset", "Link"} {
		if resp.Header.Get(field) != "" {
			t.Errorf("%s for an active version", field)
		}
	}
}

func TestGuardTellsWhereRequestsCameFrom(t *testing.T) {
	t.Parallel()
	j := newJudge()
	h := guard(t, j, verifierhttp.Options{Source: "eu"})
	ask(h, func(r *http.Request) { r.RemoteAddr = "[::ffff:192.0.2.1]:1234"; r.Header.Set("X-API-Key", "good") })
	ask(h, func(r *http.Request) { r.RemoteAddr = "@"; r.Header.Set("X-API-Key", "good") })
	h = guard(t, j, verifierhttp.Options{SourceIP: func(*http.Request) netip.Addr { return netip.MustParseAddr("2001:db8::1") }})
	ask(h, func(r *http.Request) { r.Header.Set("X-API-Key", "good") })
	for i, want := range []verifier.Check{{SourceIP: netip.MustParseAddr("192.0.2.1"), Source: "eu"}, {Source: "eu"}, {SourceIP: netip.MustParseAddr("2001:db8::1")}} {
		if got := j.asked[i]; got.SourceIP != want.SourceIP || got.Source != want.Source {
			t.Errorf("request %d: %+v", i, got)
		}
	}
}

func TestGuardLogsNoKey(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	h := guard(t, newJudge(), verifierhttp.Options{Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for _, key := range []string{"revoked", "a-secret-that-nobody-may-see"} {
		ask(h, func(r *http.Request) { r.Header.Set("X-API-Key", key); r.URL.RawQuery = "k=" + key })
	}
	if !strings.Contains(logged.String(), "REVOKED") || !strings.Contains(logged.String(), "0123456789ab") {
		t.Errorf("the reason is not logged:\n%s", logged.String())
	}
	if strings.Contains(logged.String(), "nobody-may-see") {
		t.Errorf("a key is logged:\n%s", logged.String())
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	if _, err := verifierhttp.New(nil, verifierhttp.Options{}); err == nil {
		t.Error("no verifier was accepted")
	}
	for _, fields := range [][]string{{}, {"bad name"}, {""}} {
		if _, err := verifierhttp.New(newJudge(), verifierhttp.Options{Fields: fields}); err == nil || !strings.Contains(err.Error(), "field") {
			t.Errorf("%q: %v", fields, err)
		}
	}
	if _, err := verifierhttp.New(newJudge(), verifierhttp.Options{Source: "eu west"}); err == nil || !strings.Contains(err.Error(), "source must be") {
		t.Errorf("a source that use cannot be counted under: %v", err)
	}
}
