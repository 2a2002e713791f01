// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

const (
	oneSecret   = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	otherSecret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
)

// signedBy tells which of the secrets have signed a message.
func signedBy(t *testing.T, p arrival, secrets ...string) (by []int) {
	t.Helper()
	for i, secret := range secrets {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		if w.VerifyIgnoringTimestamp(p.body, p.header) == nil {
			by = append(by, i)
		}
	}
	return by
}

// TestWebhooksReadBackWhatWasWritten: writing what was read changes nothing,
// absent fields keep their value, null brings back the default, and no secret
// is ever shown again.
func TestWebhooksReadBackWhatWasWritten(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	written := object{
		"url": "https://example.com/in?x=1", "events": []any{"version.*", "key.created"}, "roles": []any{"z", "a*"}, "keys": []any{"k"},
		"metadata": object{"team": "pay*"}, "deliver": "claim", "allow_private": true, "enabled": false,
	}
	made := m.write("webhooks/ops", written)
	secret := m.secret(text(t, made["secret"]))
	if !strings.HasPrefix(secret, "whsec_") || len(made) != 1 {
		t.Errorf("creating answers %d fields", len(made))
	}
	m.mu.Lock()
	delete(m.secrets, secret) // it is stored, under Vault's barrier
	m.mu.Unlock()
	read := m.read("webhooks/ops")
	for field, want := range written {
		if !same(read[field], want) {
			t.Errorf("%s reads %v, want %v", field, read[field], want)
		}
	}
	again := maps.Clone(written)
	for field := range again {
		again[field] = read[field]
	}
	before := m.snapshot()
	if data := m.write("webhooks/ops", again); data != nil {
		t.Error("an update shows something")
	}
	m.write("webhooks/ops", nil)
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("writing what was read changes %s", diff)
	}
	for field, value := range map[string]any{"events": []any{"*"}, "roles": []any{}, "keys": []any{}, "metadata": object{}, "deliver": "event", "enabled": true} {
		m.patch("webhooks/ops", object{field: nil})
		if got := m.read("webhooks/ops")[field]; !same(got, value) {
			t.Errorf("%s at null reads %v, want %v", field, got, value)
		}
	}
	if strings.Contains(toJSON(m.read("webhooks/ops")), secret[6:]) || strings.Contains(m.logs.String(), secret[6:]) {
		t.Error("the secret is shown")
	}
	if names := m.list("webhooks", nil); !slices.Equal(names, []string{"ops"}) {
		t.Errorf("listed are %v", names)
	}
	m.remove("webhooks/ops")
	m.remove("webhooks/ops")
	if a := m.request(logical.ReadOperation, "webhooks/ops", nil); a.data != nil {
		t.Errorf("a deleted webhook reads %v", a.data)
	}
	m.refused(http.StatusNotFound, logical.PatchOperation, "webhooks/ops", object{"enabled": true}, "no webhook")
	m.refused(http.StatusNotFound, logical.UpdateOperation, "webhooks/ops/test", nil, "no webhook")
}

// TestWebhooksThatCannotBe: each error names the field and says what is
// accepted, and nothing is stored; a URL or a secret is not repeated.
func TestWebhooksThatCannotBe(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("webhooks/ops", object{"url": "https://example.com/"})
	for i, c := range []struct {
		data  object
		words []string
	}{
		{object{"url": ""}, []string{"url"}},
		{object{"url": "file:///etc/passwd"}, []string{"url", "https://"}},
		{object{"url": "http://example.com/"}, []string{"url", "https://", "allow_private"}},
		{object{"url": "https://u:t0ps3cret@example.com/"}, []string{"url", "credentials"}},
		{object{"url": "https://localhost/"}, []string{"url", "localhost", "allow_private"}},
		{object{"url": "https://127.0.0.1/"}, []string{"url", "private"}},
		{object{"url": "https://[::1]/"}, []string{"url", "private"}},
		{object{"url": "https://169.254.169.254/latest"}, []string{"url", "private"}},
		{object{"url": "https://[::ffff:10.0.0.1]/"}, []string{"url", "private"}},
		{object{"url": "https://example.com:0/"}, []string{"url", "port"}},
		{object{"url": "https://example.com/#t0ps3cret"}, []string{"url", "fragment"}},
		{object{"url": "https://example.com/" + strings.Repeat("x", 3000)}, []string{"url", "2048"}},
		{object{"secret": "t0ps3cret"}, []string{"secret", "whsec_"}},
		{object{"secret": "whsec_t0ps3cret"}, []string{"secret", "base64"}},
		{object{"secret": "whsec_c2hvcnQ="}, []string{"secret", "24 to 64"}},
		{object{"events": "none.such"}, []string{"events", "matches no event", "key.created"}},
		{object{"events": "key.*,key.*"}, []string{"events", "twice"}},
		{object{"roles": "a b"}, []string{"roles"}},
		{object{"keys": strings.Repeat("k,", 64) + "k"}, []string{"keys", "64"}},
		{object{"metadata": object{"": "x"}}, []string{"metadata"}},
		{object{"deliver": "mail"}, []string{"deliver", "event or claim"}},
		{object{"allow_private": "perhaps"}, []string{"allow_private"}},
		{object{"enabled": []any{1}}, []string{"enabled"}},
		{object{"secret_overlap_period": "-1h"}, []string{"secret_overlap_period"}},
		{object{"colour": "red"}, []string{"colour"}},
		{object{"url": object{"t0ps3cret": "t0ps3cret"}}, []string{"url"}},
		{object{"events": strings.Repeat("x", 10<<20)}, []string{"events"}},
	} {
		for _, path := range []string{"webhooks/ops", "webhooks/new"} {
			data := maps.Clone(c.data)
			if _, given := data["url"]; !given {
				data["url"] = "https://example.com/"
			}
			m.refused(badStatus, logical.UpdateOperation, path, data, c.words...)
			if a := m.request(logical.UpdateOperation, path, data); strings.Contains(a.errText, "t0ps3cret") {
				t.Errorf("case %d repeats what it refuses: %s", i, a.errText)
			}
		}
	}
	m.refused(badStatus, logical.UpdateOperation, "webhooks/new", nil, "url")
	if strings.Contains(m.logs.String(), "t0ps3cret") {
		t.Error("the log repeats what was refused")
	}
}

// TestSecretsOfWebhooksOverlap: while one is changed a message is signed by
// both, at once by one alone if that is asked, and later by the new one.
func TestSecretsOfWebhooksOverlap(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	check := func(when string, want ...int) {
		t.Helper()
		n := len(b.posts())
		if got := m.write("webhooks/ops/test", nil); got["delivered"] != true || got["result"] != "delivered" || got["status"] != 204.0 {
			t.Fatalf("%s the test answers %v", when, got)
		}
		p := b.posts()[n]
		if by := signedBy(t, p, oneSecret, otherSecret); !slices.Equal(by, want) || p.kind != "webhook.test" {
			t.Errorf("%s a %s is signed by %v, want %v", when, p.kind, by, want)
		}
	}
	m.write("webhooks/ops", object{"url": b.URL, "allow_private": true, "secret": oneSecret})
	check("at first", 0)
	m.patch("webhooks/ops", object{"secret": otherSecret, "secret_overlap_period": "1h"})
	check("while it is changed", 0, 1)
	m.clock.Advance(time.Hour)
	check("after the overlap", 1)
	m.patch("webhooks/ops", object{"secret": oneSecret, "secret_overlap_period": 0})
	check("without an overlap", 0)
	m.write("webhooks/ops", object{"secret": oneSecret})
	check("with the same again", 0)
	m.patch("webhooks/ops", object{"enabled": false})
	check("while it is disabled", 0)
}

// TestAWebhookThatIsGoneIsDisabledAndGoesOn when it is enabled again; what it
// is to be told waits, up to a bound.
func TestAWebhookThatIsGoneIsDisabledAndGoesOn(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.write("webhooks/claims", object{"url": b.URL, "allow_private": true, "roles": "r"})
	m.role(nil)
	b.answers(http.StatusGone)
	m.key("acme", nil)
	m.tell()
	eventually(t, "the webhook disabled", func() bool { return m.read("webhooks/claims")["enabled"] == false })
	read := m.read("webhooks/claims")
	if reason := text(t, read["disabled_reason"]); !strings.Contains(reason, "410") {
		t.Errorf("disabled because %q", reason)
	}
	log := list(t, read["deliveries"])
	if one := aMap(t, log[0]); one["status"] != 410.0 || one["result"] != "status 410" || one["type"] != "key.created" {
		t.Errorf("the log has %v", one)
	}
	if number(t, read["pending"]) != 3 || number(t, read["dropped"]) != 0 {
		t.Errorf("%v wait and %v were dropped", read["pending"], read["dropped"])
	}
	b.answers(http.StatusOK)
	m.patch("webhooks/claims", object{"enabled": true})
	m.delivered()
	read = m.read("webhooks/claims")
	if read["disabled_reason"] != "" || read["enabled"] != true || number(t, read["pending"]) != 0 {
		t.Errorf("enabled again: %v", read)
	}
	var ids []string
	for _, p := range b.posts()[1:] {
		ids = append(ids, p.header.Get("webhook-id"))
	}
	id := m.keyID("acme")
	if want := []string{id + "_1", id + "_2", id + "_3"}; !slices.Equal(ids, want) {
		t.Errorf("it was told %v, want %v", ids, want)
	}
}

// TestAFilterThatMatchesNothingNowIsAccepted: roles, keys and metadata may match
// what comes later.
func TestAFilterThatMatchesNothingNowIsAccepted(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	for name, filter := range map[string]object{"role": {"roles": "nobody"}, "key": {"keys": "nobody"}, "data": {"metadata": object{"team": "nobody"}}} {
		data := object{"url": "https://example.com/", "enabled": false}
		maps.Copy(data, filter)
		m.write("webhooks/"+name, data)
	}
	m.write("webhooks/all", object{"url": "https://example.com/", "enabled": false})
	m.key("acme", nil)
	m.tell()
	for name, want := range map[string]int{"role": 0, "key": 0, "data": 0, "all": 3} {
		if got := number(t, m.read("webhooks/" + name)["pending"]); got != want {
			t.Errorf("%d events wait for %s, want %d", got, name, want)
		}
	}
	m.remove("webhooks/all")
	if left := m.memory.Paths("outbox/"); len(left) != 0 {
		t.Errorf("the deleted webhook leaves %v", left)
	}
}

// TestWhatWebhooksCost: N of them add N writes for each event to the two that
// end what a transition owes; the request itself costs what it does without. An
// idle minute costs nothing.
func TestWhatWebhooksCost(t *testing.T) {
	t.Parallel()
	for _, hooks := range []int{1, 3} {
		memory := storetest.NewMemory()
		counting := storetest.NewCounting(memory)
		m := newMountOn(t, memory, counting, clock.NewManual(epoch.Add(30*time.Second)))
		for i := range hooks {
			m.write(fmt.Sprintf("webhooks/h%d", i), object{"url": "https://example.com/", "enabled": false})
		}
		m.role(object{"overlap_period": "1h", "rotation_period": "240h"})
		cost := func(what string, request, perEvent int, do func()) {
			t.Helper()
			counting.Reset()
			do()
			if got := counting.Total(); got.Writes() > request {
				t.Errorf("%d webhooks: %s costs %s, want at most %d writes", hooks, what, got, request)
			}
			counting.Reset()
			m.tell()
			got := counting.Total()
			if outbox := counting.Under("outbox/").Writes(); outbox != perEvent*hooks {
				t.Errorf("%d webhooks: %s costs %d writes to outboxes, want %d", hooks, what, outbox, perEvent*hooks)
			}
			// The key, its new filing with a marker, and the old filing.
			if rest := got.Writes() - perEvent*hooks; rest > 4 || got.Reads() > 0 {
				t.Errorf("%d webhooks: telling of %s costs %s", hooks, what, got)
			}
		}
		cost("create", 5, 3, func() { m.key("acme", nil) })
		m.clock.Advance(7 * time.Minute)
		cost("rotate", 5, 3, func() { m.rotate("acme", nil) })
		m.pass(2 * time.Minute)
		m.flush()
		for range 5 {
			counting.Reset()
			m.clock.Advance(time.Minute)
			m.tick()
			m.flush()
			if got := counting.Total(); got.All() != 0 {
				t.Errorf("%d webhooks: an idle minute costs %s", hooks, got)
			}
		}
		counting.Reset()
		m = m.reopen()
		if got := counting.Total(); got.All() > 6 {
			t.Errorf("%d webhooks: a start costs %s", hooks, got)
		}
		m.flush()
		counting.Reset()
		m.flush()
		if got := counting.Total(); got.All() != 0 {
			t.Errorf("%d webhooks: an idle flush after a start costs %s", hooks, got)
		}
	}
}
