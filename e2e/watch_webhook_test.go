// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAClaimGivesTheNewKeyOnceToAClientWithoutAToken(t *testing.T) {
	t.Parallel()
	m := onRaft(t)
	partner, operator := startReceiver(t, nil), startReceiver(t, nil)
	partner.hook(m, "partner", "deliver", "claim", "events", []string{"version.activated"}, "metadata", fields("owner", "blue"))
	operator.hook(m, "operator", "events", []string{"claim.*", "version.activated"})
	m.role("trading", "overlap_period", "1h")
	m.key("other", "trading")
	m.key("acme", "trading", "custom_metadata", fields("owner", "blue"))
	v2 := m.rotate("acme")

	var code string
	eventually(t, 20*time.Second, func() error {
		for _, told := range partner.messages() {
			issued.add(told.text("claim_code"), "a claim code")
			if told.Data["version"] == 2.0 {
				code = told.text("claim_code")
			}
			if told.text("name") != "acme" || told.Type != "version.activated" {
				t.Errorf("the filter let %s of %s through", told.Type, told.text("name"))
			}
		}
		if code == "" {
			return fmt.Errorf("no code for version 2 in %d messages", len(partner.messages()))
		}
		return nil
	})
	expires, err := time.Parse(time.RFC3339, partner.messages()[len(partner.messages())-1].text("claim_expires"))
	if left := time.Until(expires); err != nil || left > time.Hour || left < 59*time.Minute {
		t.Errorf("the code expires in %s, want the overlap of 1h: %v", left, err)
	}
	for _, told := range operator.messages() {
		if told.Data["claim_code"] != nil {
			t.Error("a webhook with deliver=event was given a claim code")
		}
	}

	stranger := m.as("")
	got := stranger.write("claim", fields("code", code))
	if got["api_key"] != v2 || got["version"] != 2.0 || got["name"] != "acme" {
		t.Errorf("the claim answered version %v of %v", got["version"], got["name"])
	}
	redeemed := operator.waitFor("claim.redeemed")
	if redeemed.text("name") != "acme" || redeemed.Data["version"] != 2.0 || !strings.HasPrefix(redeemed.text("detail"), "delivered by webhook partner as message ") {
		t.Errorf("claim.redeemed: %+v", redeemed)
	}

	// A second time it is as good as unknown, and somebody is told.
	again := stranger.call(http.MethodPost, "claim", fields("code", code))
	unknown := stranger.call(http.MethodPost, "claim", fields("code", code[:len(code)-4]+"AAAA"))
	junk := stranger.call(http.MethodPost, "claim", fields("code", "junk"))
	if again.status != http.StatusBadRequest || again.status != unknown.status || !slices.Equal(again.errs, unknown.errs) || !slices.Equal(again.errs, junk.errs) || junk.status != again.status {
		t.Errorf("used: %d %v, unknown: %d %v, junk: %d %v", again.status, again.errs, unknown.status, unknown.errs, junk.status, junk.errs)
	}
	if reused := operator.waitFor("claim.reused"); reused.text("name") != "acme" || reused.Data["version"] != 2.0 {
		t.Errorf("claim.reused: %+v", reused)
	}
	stranger.refuses(http.StatusBadRequest, http.MethodPost, "claim", fields("code", code, "colour", "red"), `"colour"`)
	stranger.refuses(http.StatusBadRequest, http.MethodPost, "claim", fields("code", []any{[]any{code}}), "code")
	m.accepts(v2)

	// A code for a version that has ended is none.
	m.rotate("acme")
	eventually(t, 20*time.Second, func() error {
		all := partner.messages()
		if last := all[len(all)-1]; last.Data["version"] == 3.0 {
			code = last.text("claim_code")
			issued.add(code, "a claim code")
			return nil
		}
		return fmt.Errorf("no code for version 3")
	})
	m.write("revoke/acme", fields("version", 3, "rotate", true))
	if a := stranger.call(http.MethodPost, "claim", fields("code", code)); a.status != again.status || !slices.Equal(a.errs, again.errs) {
		t.Errorf("a code for a revoked version: %d %v", a.status, a.errs)
	}
}

// A webhook must not be a way into the network that Vault stands in.
func TestWebhooksReachNoPrivateAddressUnlessAllowed(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	const bad = http.StatusBadRequest
	for url, words := range map[string][]string{
		"https://localhost/":                  {"url", "localhost", "allow_private"},
		"https://LOCALHOST.:8200/":            {"url", "localhost"},
		"https://a.localhost/":                {"url", "localhost"},
		"https://127.0.0.1/":                  {"url", "private"},
		"https://127.1.2.3:8200/":             {"url", "private"},
		"https://10.1.2.3/":                   {"url", "private"},
		"https://172.16.0.1/":                 {"url", "private"},
		"https://192.168.1.1/":                {"url", "private"},
		"https://169.254.169.254/latest/":     {"url", "private"},
		"https://0.0.0.0/":                    {"url", "private"},
		"https://[::1]/":                      {"url", "private"},
		"https://[::ffff:169.254.169.254]/":   {"url", "private"},
		"https://[fd00:ec2::254]/":            {"url", "private"},
		"https://[fe80::1%25eth0]/":           {"url"},
		"http://hooks.example.com/":           {"url", "https", "allow_private"},
		"file:///etc/passwd":                  {"url", "https"},
		"gopher://hooks.example.com/":         {"url", "https"},
		"hooks.example.com":                   {"url", "https"},
		"https:///path":                       {"url", "host"},
		"https://user:pw@hooks.example.com/":  {"url", "credentials"},
		"https://user:pw@hooks.example.com/#": {"url", "credentials"},
		"https://hooks.example.com/#part":     {"url", "fragment"},
		"https://hooks.example.com:0/":        {"url", "port"},
		"https://hooks.example.com:99999/":    {"url"},
		"":                                    {"url"},
		"https://hooks.example.com/" + strings.Repeat("x", 2048): {"url", "2048"},
	} {
		m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "enabled", false), words...)
	}
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", "file:///etc/passwd", "allow_private", true), "url")
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", "http://u:p@127.0.0.1/", "allow_private", true), "credentials")
	if got := m.list("webhooks"); len(got) != 0 {
		t.Errorf("refused webhooks were made: %v", got)
	}

	var hits atomic.Int64
	private := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	t.Cleanup(private.Close)
	address, err := netip.ParseAddrPort(strings.TrimPrefix(private.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}

	// A name is judged by what it leads to, when it is dialled.
	if name := privateName(); name == "" {
		t.Log("this machine has no name of its own that leads to a private address: not tried")
	} else {
		m.write("webhooks/name", fields("url", fmt.Sprintf("https://%s:%d/", name, address.Port())))
		m.delivers("name", "address")
	}

	// A redirect is not followed, whatever it leads to.
	redirect := httptest.NewServer(http.RedirectHandler(private.URL, http.StatusTemporaryRedirect))
	t.Cleanup(redirect.Close)
	m.write("webhooks/redirect", fields("url", redirect.URL, "allow_private", true))
	m.delivers("redirect", "redirect 307")
	if hits.Load() != 0 {
		t.Errorf("a private address was asked %d times", hits.Load())
	}

	// What was allowed is not when the permission goes.
	m.write("webhooks/private", fields("url", private.URL, "allow_private", true))
	m.delivers("private", "delivered")
	m.refuses(bad, http.MethodPatch, "webhooks/private", fields("allow_private", false), "url")
	m.delivers("private", "delivered")
}

// delivers checks what becomes of a test message to a webhook.
func (m *mount) delivers(hook, result string) {
	m.t.Helper()
	began := time.Now()
	got := m.write("webhooks/"+hook+"/test", nil)
	if got["result"] != result || got["delivered"] != (result == "delivered") {
		m.t.Errorf("%s: %v, want %s", hook, got, result)
	}
	if took := time.Since(began); took > 25*time.Second {
		m.t.Errorf("%s took %s", hook, took)
	}
	if last := m.hookInfo(hook).Deliveries[0]; last.Type != "webhook.test" || last.Result != result {
		m.t.Errorf("%s remembers %+v, want %s", hook, last, result)
	}
}

// privateName is the machine's own name where it leads to private addresses
// alone, as it mostly does, or empty.
func privateName() string {
	name, err := os.Hostname()
	if err != nil || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return ""
	}
	found, err := net.LookupHost(name)
	if err != nil || len(found) == 0 {
		return ""
	}
	for _, text := range found {
		ip, err := netip.ParseAddr(text)
		if err != nil || !ip.IsPrivate() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			return ""
		}
	}
	return name
}

func TestAReceiverThatMisbehavesHoldsNothingUp(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	endless := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			part := []byte(strings.Repeat("x", 64<<10))
			for range 16384 { // a gigabyte
				if _, err := w.Write(part); err != nil {
					return
				}
			}
			panic("the sender reads a gigabyte")
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		result  string
	}{
		"endless":      {endless(http.StatusOK), "delivered"},
		"endlesserror": {endless(http.StatusInternalServerError), "status 500"},
		"longheader": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		}, "header_too_large"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "timeout"},
		"drip": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		}, "delivered"},
		"hangsup": {func(w http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_ = conn.Close()
			}
		}, "connection_lost"},
		"nohttp": {func(w http.ResponseWriter, _ *http.Request) {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_, _ = conn.Write([]byte("SSH-2.0-nobody\r\n\r\n"))
				_ = conn.Close()
			}
		}, "bad_answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // only then a server sees that the client has gone
				c.handler(w, r)
			}))
			t.Cleanup(server.Close)
			one := *m
			one.t = t
			one.write("webhooks/"+name, fields("url", server.URL, "allow_private", true, "keys", []string{"nobody"}))
			one.delivers(name, c.result)
		})
	}

	// Others are told meanwhile, and verifying does not wait.
	good := startReceiver(t, nil)
	good.hook(m, "good")
	began := time.Now()
	m.accepts(m.key("acme", "trading"))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a key took %s to make and verify", took)
	}
	good.tellsHistoryOf(m, 20*time.Second, "acme")
}

func TestAFilterThatMatchesNothingTellsNothing(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	m.role("other")
	const bad = http.StatusBadRequest
	url := "https://hooks.example.com/"
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "events", []string{"nothing.*"}), "events", "nothing.*", "version.activated")
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "events", []string{"key.*", "key.*"}), "events", "twice")
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "roles", []string{"a b"}), "roles")
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "deliver", "everything"), "deliver", "event", "claim")
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "secret", "whsec_short"), "secret")
	m.refuses(bad, http.MethodPost, "webhooks/new", fields("url", url, "secret", "no prefix"), "secret", "whsec_")
	m.refuses(http.StatusNotFound, http.MethodPatch, "webhooks/absent", fields("url", url), "absent")
	m.refuses(http.StatusNotFound, http.MethodPost, "webhooks/absent/test", map[string]any{}, "absent")

	nobody, keyed, all := startReceiver(t, nil), startReceiver(t, nil), startReceiver(t, nil)
	nobody.hook(m, "nobody", "roles", []string{"no-such-role"}, "metadata", fields("owner", "*"))
	keyed.hook(m, "keyed", "keys", []string{"acme"}, "events", []string{"key.*"})
	all.hook(m, "all")
	m.key("acme", "trading")
	m.key("other", "other")
	all.tellsHistoryOf(m, 20*time.Second, "acme", "other")
	eventually(t, 10*time.Second, func() error {
		if len(keyed.messages()) == 0 {
			return fmt.Errorf("the webhook for acme was told nothing")
		}
		return nil
	})
	if got := nobody.messages(); len(got) != 0 || m.hookInfo("nobody").Pending != 0 {
		t.Errorf("a filter that matches nothing let %d messages through", len(got))
	}
	if got := keyed.messages(); len(got) != 1 || got[0].Type != "key.created" || got[0].text("name") != "acme" {
		t.Errorf("a filter for key.* of acme let through: %+v", got)
	}
	for range 2 {
		m.must(http.MethodDelete, "webhooks/all", nil)
	}
	if a := m.call(http.MethodGet, "webhooks/all", nil); a.status != http.StatusNotFound {
		t.Errorf("a deleted webhook: %d", a.status)
	}
}

const allOfAWebhook = `{
	"url": "https://hooks.example.com/apikeys?tenant=1",
	"events": ["version.*", "key.created"],
	"roles": ["trading", "a*"],
	"keys": ["acme-*"],
	"metadata": {"owner": "blue", "region": "eu-*"},
	"deliver": "claim",
	"allow_private": true,
	"enabled": false
}`

func TestWhatTerraformWritesToAWebhookReadsBackEqual(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.must(http.MethodPut, "webhooks/plain", fields("url", "https://hooks.example.com/", "enabled", false))
	plain := m.read("webhooks/plain")
	m.generic("webhooks/full", allOfAWebhook)
	m.generic("webhooks/full", allOfAWebhook)
	m.differsFrom("webhooks/full", allOfAWebhook, plain, "enabled") // true by default, but then it would be told

	// The secret is never read back: data_json that holds it needs
	// ignore_absent_fields.
	secret := webhookSecret("t")
	issued.add(secret, "the secret of a webhook")
	for range 2 {
		m.must(http.MethodPut, "webhooks/full", fields("secret", secret, "secret_overlap_period", "1h"))
		read := m.read("webhooks/full")
		for _, field := range []string{"secret", "secrets", "secret_overlap_period"} {
			if read[field] != nil {
				t.Errorf("webhooks/full reads %s", field)
			}
		}
	}

	// What is left out keeps its value, and null restores the default.
	m.generic("webhooks/full", `{"roles": [], "metadata": {}, "deliver": "event"}`)
	m.readsBack("webhooks/full", `{"events": ["version.*", "key.created"], "keys": ["acme-*"], "enabled": false, "allow_private": true}`)
	m.must(http.MethodPatch, "webhooks/full", fields("events", nil, "keys", nil, "allow_private", nil))
	m.readsBack("webhooks/full", `{"events": ["*"], "keys": [], "allow_private": false, "enabled": false, "disabled_reason": "an operator disabled it"}`)
	if got := m.list("webhooks"); !slices.Equal(got, []string{"full", "plain"}) {
		t.Errorf("webhooks: %v", got)
	}
}
