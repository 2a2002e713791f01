// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// fuzzBody reads a request's body as Vault does. It is nil for what is no JSON
// object, and so never reaches a plugin.
func fuzzBody(body []byte) object {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var data object
	if decoder.Decode(&data) != nil {
		return nil
	}
	return data
}

// fuzzed makes a request with any body: it is done, or refused and changes
// nothing.
func (m *mount) fuzzed(path string, data object) *answer {
	m.t.Helper()
	before := m.snapshot()
	a := m.send(logical.UpdateOperation, path, data)
	switch {
	case a.status >= 500:
		m.t.Fatalf("%s is answered %s", path, a)
	case a.status >= 400:
		if diff := before.diff(m.snapshot()); diff != "" {
			m.t.Errorf("%s was refused and changed %s", path, diff)
		}
		if a.errText == "" || len(a.errText) > 4000 {
			m.t.Errorf("%s was refused with %d bytes", path, len(a.errText))
		}
	}
	if strings.Contains(m.logs.String(), "panic") {
		m.t.Errorf("%s panics", path)
	}
	return a
}

// FuzzRole writes a role. One that is accepted reads back as it can be written
// again, and gives keys that are accepted.
func FuzzRole(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"overlap_period":"1h","rotation_period":86400,"scopes":["a","b:*"],"max_accepted_versions":4}`,
		`{"rotation_schedule":"0 6 * * 1","rotation_window":"2h","rotation_jitter":10,"overlap_scopes":"a","scopes":"a,b"}`,
		`{"prefix":"tm_live","secret_length":"64","version_ttl":"90d","custom_metadata":{"a":"b"},"bound_cidrs":["192.0.2.0/24","2001:db8::/32"]}`,
		`{"reminders":[50,80],"leak_response":"rotate","ttl":"1h","max_ttl":"2h","notify_before":1e3,"refresh_interval":null}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		m := newMount(t)
		if a := m.fuzzed("roles/r", data); a.status >= 300 {
			return
		}
		shown := m.read("roles/r")
		again := object{}
		for field, value := range shown {
			if _, written := roleSchema[field]; written {
				again[field] = value
			}
		}
		m.write("roles/r", again)
		if now := m.read("roles/r"); !same(now, shown) {
			t.Errorf("a role that is written as it reads is\n%s\nand was\n%s", toJSON(now), toJSON(shown))
		}
		made := m.write("keys/acme", object{fieldRole: "r"})
		if code := m.write("verify", object{fieldAPIKey: made[fieldAPIKey], fieldSourceIP: "192.0.2.1"})["code"]; code != "VALID" && code != "FORBIDDEN_SOURCE" {
			t.Errorf("a new key of the role %s is %v", toJSON(shown), code)
		}
	})
}

// FuzzKey makes a key, changes it and rotates it by any bodies.
func FuzzKey(f *testing.F) {
	f.Add([]byte(`{"role":"r"}`), []byte(`{"scopes":["a"]}`), []byte(`{"overlap_period":"10m"}`))
	f.Add([]byte(`{"role":"r","scopes":"a,b","enabled":"false","custom_metadata":{"a":"b"}}`), []byte(`{"enabled":true,"custom_metadata":"x=y"}`), []byte(`{"activation_delay":60,"request_id":"x"}`))
	f.Add([]byte(`{"role":"r","import_key":"elsewhere-0123456789"}`), []byte(`{"import_key":"elsewhere-0123456789"}`), []byte(`{"force":1,"overlap_scopes":["a"]}`))
	f.Add([]byte(`{"role":"r","import_sha256":"`+strings.Repeat("a1", 32)+`","bound_cidrs":["::1"]}`), []byte(`{"bound_cidrs":null}`), []byte(`{"overlap_period":0,"reason":"why"}`))
	f.Fuzz(func(t *testing.T, create, change, rotate []byte) {
		made, changed, rotated := fuzzBody(create), fuzzBody(change), fuzzBody(rotate)
		if made == nil || changed == nil || rotated == nil {
			return
		}
		m := newMount(t)
		m.role(object{"scopes": []any{"a", "b"}})
		if a := m.fuzzed("keys/acme", made); a.status >= 300 {
			return
		}
		m.fuzzed("keys/acme", changed)
		a := m.fuzzed("rotate/acme", rotated)
		if presented, shown := a.data[fieldAPIKey].(string); shown {
			code := m.send(logical.UpdateOperation, "verify", object{fieldAPIKey: presented, fieldSourceIP: "192.0.2.1"}).data["code"]
			if code != "VALID" && code != "FORBIDDEN_SOURCE" && code != "DISABLED" {
				t.Errorf("a new version is %v", code)
			}
		}
	})
}

// FuzzBatches sends any body to the routes that take many items: each is
// answered for itself.
func FuzzBatches(f *testing.F) {
	routes := []string{"verify", "import", "usage", "lookup"}
	route := uint8(0)
	for _, body := range []string{
		`{"batch_input":[{"api_key":"key_EXAMPLEkey01_x"},{"api_key":"a","scopes":"b","source_ip":"::1","source":"eu"},{"n":1},7]}`,
		`{"batch_input":[{"name":"b1","role":"r","import_key":"elsewhere-0123456789"},{"name":"b1","role":"x","import_sha256":"00"},null]}`,
		`{"verifier":"edge","boot":"b","sequence":1,"reported_through":"2026-01-05T00:00:00Z","entries":[{"key_id":"EXAMPLEkey01","version":1,"count":3,"last_used":"2026-01-04T00:00:00Z"},{}]}`,
		`{"key_ids":["EXAMPLEkey01"],"digests":["` + strings.Repeat("a1", 32) + `"]}`,
	} {
		f.Add(route, []byte(body))
		route++
	}
	f.Add(uint8(0), []byte(`{"api_key":"key_EXAMPLEkey01_x","scopes":["a"],"source_ip":"192.0.2.1"}`))
	f.Add(uint8(3), []byte(`{"after":"","limit":"10"}`))
	f.Fuzz(func(t *testing.T, route uint8, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		m := newMount(t)
		m.role(nil)
		m.key("acme", nil)
		path := routes[int(route)%len(routes)]
		a := m.fuzzed(path, data)
		items, _ := data[fieldBatchInput].([]any)
		if results, batch := a.data[fieldBatchResults].([]any); batch && len(results) != len(items) {
			t.Errorf("%s answers %d of %d items", path, len(results), len(items))
		}
		m.tick()
		m.flush()
	})
}

// FuzzWebhook writes a webhook. One that is accepted is read without its
// secret, and can be told of a key.
func FuzzWebhook(f *testing.F) {
	for _, body := range []string{
		`{"url":"https://example.com/x","enabled":false}`, `{"url":"https://192.0.2.1:8443/","events":"key.*,version.created","roles":["r"],"metadata":{"team":"*"},"enabled":0}`,
		`{"url":"http://127.0.0.1/","allow_private":true,"deliver":"claim","secret":"whsec_` + strings.Repeat("QUJD", 8) + `","secret_overlap_period":"1h"}`,
		`{"url":"https://user:pass@example.com"}`, `{"url":"https://[::1%25lo]/"}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		data[fieldEnabled] = false // nothing is sent
		m := newMount(t)
		m.still()
		if a := m.fuzzed("webhooks/hook", data); a.status >= 300 {
			return
		}
		shown := toJSON(m.read("webhooks/hook"))
		if secret, given := data[fieldSecret].(string); given && strings.Contains(shown, secret) {
			t.Error("a webhook shows its secret")
		}
		m.role(nil)
		m.key("acme", nil)
		m.tell()
	})
}

// fuzzKinds are the kinds of entries that FuzzStoredEntry replaces.
var fuzzKinds = []string{"config", "role", "key", "name", "imported", "member", "due", "dueh", "rollover", "usage", "firstuse", "webhook", "outbox", "claim", "reports", "work", "done", "mount"}

// FuzzStoredEntry replaces an entry by anything. Nothing panics, and a key that
// has nothing to do with it goes on.
func FuzzStoredEntry(f *testing.F) {
	data, err := os.ReadFile(stateFolder + "/v0-unreleased/state.json")
	if err != nil {
		f.Fatal(err)
	}
	state := &keptState{}
	if err := json.Unmarshal(data, state); err != nil {
		f.Fatal(err)
	}
	id := fmt.Sprint(state.Answers["keys/auto"][fieldKeyID])
	paths := map[string]string{}
	for _, path := range slices.Sorted(maps.Keys(state.Entries)) {
		kind, _, _ := strings.Cut(path, "/")
		if !strings.Contains(path, id) && !strings.HasSuffix(path, "/auto") && (paths[kind] == "" || len(state.Entries[path]) > len(state.Entries[paths[kind]])) {
			paths[kind] = path
		}
	}
	paths["firstuse"] = "firstuse/00000000000000000007" // there is one only until the next flush
	state.Entries[paths["firstuse"]] = json.RawMessage(`{"schema":1,"uses":[{"k":"` + id + `","v":1,"s":"c|eu","l":1767463200000}]}`)
	number := uint8(0)
	for _, kind := range fuzzKinds {
		value := state.Entries[paths[kind]]
		f.Add(number, []byte(value))
		f.Add(number, []byte(value[:len(value)/2]))
		f.Add(number, newer(value))
		for _, other := range []string{"", "null", "[]", "{}", `"x"`, "0", `{"schema":1}`} {
			f.Add(number, []byte(other))
		}
		number++
	}
	// The state is older than pages of schema 2.
	f.Add(uint8(slices.Index(fuzzKinds, "usage")), []byte(`{"schema":2,"serial":7,"keys":{"`+id+`":{"v":{"1":{"c|eu":{"c":12,"l":1767574200000,"f":490992,"h":"8PsdDA=="}}},"t":"8PsdDA=="}}}`))
	f.Fuzz(func(t *testing.T, number uint8, value []byte) {
		kind := fuzzKinds[int(number)%len(fuzzKinds)]
		memory := storetest.NewMemory()
		for path, stored := range state.Entries {
			if string(stored) == "null" {
				stored = nil
			}
			if path == paths[kind] {
				stored = value
			}
			if err := memory.Put(t.Context(), &logical.StorageEntry{Key: path, Value: stored}); err != nil {
				t.Fatal(err)
			}
		}
		w := &cutWorld{faulty: storetest.NewFaulty(memory)}
		w.mount = newIdleMount(t, memory, w.faulty, clock.NewManual(state.Time))
		w.damaged = true
		if err := w.initialize(); err != nil {
			if kind != "mount" && kind != "reports" {
				t.Fatalf("the mount cannot be opened: %v", err)
			}
			return
		}
		for _, path := range []string{"config", "keys/states", "keys/plain", "keys/brought", "roles/r", "roles/r/rotate", "usage/states", "webhooks/log", "webhooks/claims", "rollovers/states", "metrics"} {
			w.send(logical.ReadOperation, path, nil)
		}
		for _, path := range []string{"keys/", "roles/", "webhooks/", "rollovers/"} {
			w.send(logical.ListOperation, path, nil)
		}
		for _, path := range []string{"rotate/states", "rotate/plain", "claim"} {
			w.send(logical.UpdateOperation, path, object{})
		}
		for presented := range state.Codes {
			w.send(logical.UpdateOperation, "verify", object{fieldAPIKey: presented})
		}
		if kind == "mount" {
			return // what is encrypted cannot be read any more
		}
		before := w.send(logical.ReadOperation, "keys/auto", nil)
		for range 30 {
			w.clock.Advance(minutes(59))
			_ = w.oneTick()
		}
		a := w.send(logical.ReadOperation, "static-creds/auto", nil)
		if a.status != http.StatusOK || before.status != http.StatusOK {
			t.Fatalf("with an entry of the kind %s as %q another key reads %s", kind, value, a)
		}
		if code := w.code(text(t, a.data[fieldAPIKey])); code != "VALID" {
			t.Errorf("with an entry of the kind %s as %q another key is %s", kind, value, code)
		}
		if was, ok := before.data["current_version"].(float64); !ok || w.current("auto") <= int(was) {
			t.Errorf("with an entry of the kind %s as %q another key is not rotated any more", kind, value)
		}
		if logs := w.logs.String(); strings.Contains(logs, "panic") {
			t.Errorf("with an entry of the kind %s as %q something panics:\n%s", kind, value, logs[strings.Index(logs, "panic"):min(len(logs), strings.Index(logs, "panic")+3000)])
		}
	})
}
