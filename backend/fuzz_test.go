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

// fuzzed makes a write with any body: it is done, or refused and changes
// nothing.
func (m *mount) fuzzed(path string, data object) *answer {
	m.t.Helper()
	return m.fuzzedBy(logical.UpdateOperation, path, data)
}

func (m *mount) fuzzedBy(op logical.Operation, path string, data object) *answer {
	m.t.Helper()
	before := m.snapshot()
	a := m.send(op, path, data)
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

// fuzzVerbs are those that FuzzVerbs sends any body to.
var fuzzVerbs = []string{"revoke", "extend", "rollback", "promote", "retire", "confirm"}

// FuzzVerbs sends any body to a verb, for a key with a version in each state
// that a verb can change. What it shows then is what verify says.
func FuzzVerbs(f *testing.F) {
	verb := uint8(0)
	for _, body := range []string{
		`{"version":2,"compromised":true,"reason":"why"}`, `{"version":2,"overlap_period":"3h"}`, `{"version":1,"revoke_newer":true,"force":true}`, `{"version":4}`, `{"force":"true"}`, `{"version":3,"instance":"eu-1"}`,
	} {
		f.Add(verb, []byte(body))
		f.Add(verb, []byte(`{}`))
		verb++
	}
	f.Add(uint8(0), []byte(`{"all":1,"rotate":true}`))
	f.Add(uint8(0), []byte(`{"all":true,"force":true,"version":null}`))
	f.Add(uint8(1), []byte(`{"version":"1","overlap_period":"-1s"}`))
	f.Fuzz(func(t *testing.T, verb uint8, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		m := newMount(t)
		m.role(object{"overlap_period": "1h", "rollback_window": "4h", "max_overlap_period": "12h", "max_accepted_versions": 4})
		tokens := []string{m.key("acme", nil), m.rotate("acme", object{"overlap_period": "10m"})}
		m.clock.Advance(minutes(15))
		tokens = append(tokens, m.rotate("acme", nil), m.rotate("acme", object{"activation_delay": "2h"}))
		m.wantStates("acme", "retired retiring active pending")
		name := fuzzVerbs[int(verb)%len(fuzzVerbs)]
		a := m.fuzzed(name+"/acme", data)
		if presented, made := a.data[fieldAPIKey].(string); made {
			tokens = append(tokens, presented)
		}
		codes := map[string]string{"pending": "VALID", "active": "VALID", "retiring": "VALID", "retired": "RETIRED", "revoked": "REVOKED", "compromised": "COMPROMISED"}
		for _, v := range versions(t, m.read("keys/acme")) {
			if got, want := m.code(tokens[number(t, v[fieldVersion])-1]), codes[text(t, v[fieldState])]; got != want {
				t.Errorf("after %s, version %v is shown as %v and verified as %s", name, v[fieldVersion], v[fieldState], got)
			}
		}
		if got := m.request(logical.ReadOperation, "static-creds/acme", nil); got.status != http.StatusOK && (name != "revoke" || a.status >= 300) {
			t.Errorf("after %s, %d: static-creds answers %s", name, a.status, got)
		}
	})
}

// FuzzConfig configures the mount by any body. What is accepted reads back as it
// can be written again.
func FuzzConfig(f *testing.F) {
	for _, body := range []string{`{}`, `{"report_leak":"1","leak_rate":"7","usage_retention":"8760h"}`, `{"usage_retention":3600}`, `{"leak_rate":null}`, `{"leak_rate":1e3}`, `{"leak_rate":0}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		m := newMount(t)
		if a := m.fuzzed("config", data); a.status >= 300 {
			return
		}
		shown := m.read("config")
		m.write("config", shown)
		if now := m.read("config"); !same(now, shown) {
			t.Errorf("a configuration that is written as it reads is %s, and was %s", toJSON(now), toJSON(shown))
		}
	})
}

// FuzzPatch sends any patch. One that is accepted can be repeated, and changes
// nothing then.
func FuzzPatch(f *testing.F) {
	routes := []string{"roles/r", "keys/acme", "config", "webhooks/hook"}
	for route, bodies := range [][]string{
		{`{"scopes":["a"],"overlap_period":null}`, `{"rotation_period":"24h","rotation_jitter":null}`, `{"custom_metadata":{"a":"b","c":null}}`, `{"retrievable":false}`},
		{`{"enabled":false}`, `{"scopes":null,"bound_cidrs":["::1/128"]}`, `{"custom_metadata":null}`, `{"role":"r","import_key":null}`},
		{`{"leak_rate":null}`, `{"usage_retention":"2h","report_leak":true}`},
		{`{"events":null,"metadata":{"a":"*"}}`, `{"url":null}`, `{"deliver":"claim","roles":"r"}`, `{"secret":"whsec_` + strings.Repeat("QUJD", 8) + `","secret_overlap_period":"1h"}`},
	} {
		for _, body := range bodies {
			f.Add(uint8(route), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, route uint8, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		m := newMount(t)
		m.still()
		m.role(object{"scopes": []any{"a", "b"}})
		m.key("acme", nil)
		m.write("webhooks/hook", object{"url": "https://example.com/", "enabled": false})
		path := routes[int(route)%len(routes)]
		if path == "webhooks/hook" {
			data[fieldEnabled] = false // nothing is sent
		}
		if a := m.fuzzedBy(logical.PatchOperation, path, data); a.status >= 300 {
			return
		}
		shown := m.read(path)
		if a := m.fuzzedBy(logical.PatchOperation, path, data); a.status >= 300 {
			t.Fatalf("%s: the same patch is accepted, and then answered %s", path, a)
		}
		if now := m.read(path); !same(now, shown) {
			t.Errorf("%s: patched again it is\n%s\nand was\n%s", path, toJSON(now), toJSON(shown))
		}
	})
}

// FuzzClaim redeems any code: only the right one is answered, once.
func FuzzClaim(f *testing.F) {
	for _, code := range []string{keptCode, keptCode + "=", keptCode[:len(keptCode)-1] + "x", " " + keptCode, strings.ToUpper(keptCode), "claim_20458_", "claim_020458_" + keptCode[12:], "claim_-1_x", "claim_99999999999999999999_x", ""} {
		f.Add([]byte(`{"code":` + toJSON(code) + `}`))
	}
	f.Add([]byte(`{"code":["x"]}`))
	f.Add([]byte(`{"code":7}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		data := fuzzBody(body)
		if data == nil {
			return
		}
		w := &cutWorld{}
		w.mount = newMount(t)
		w.role(nil)
		token := w.key("acme", nil)
		offered(w, "acme", "")
		a := w.fuzzed("claim", data)
		if right := data["code"] == keptCode; a.status < 300 && !right || right && len(data) == 1 && a.data[fieldAPIKey] != token {
			t.Errorf("%s is answered %d", toJSON(data), a.status)
		}
		if again := w.send(logical.UpdateOperation, "claim", data); again.status < 300 {
			t.Errorf("%s is answered %d, and then %d", toJSON(data), a.status, again.status)
		}
		if code := w.code(token); code != "VALID" {
			t.Errorf("the key is %s", code)
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

// fuzzKinds are the kinds of entries that FuzzStoredEntry replaces. Their numbers
// stand in the corpus: new ones come last.
var fuzzKinds = []string{"config", "role", "key", "name", "imported", "member", "due", "dueh", "rollover", "usage", "firstuse", "webhook", "outbox", "claim", "reports", "work", "done", "mount", "claimend", "charge"}

// fuzzNames are the kinds of entries whose names say all. FuzzStoredEntry adds
// one with another name.
var fuzzNames = []string{"claimend", "charge"}

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
	number := uint8(0)
	for _, kind := range fuzzKinds {
		value := state.Entries[paths[kind]]
		f.Add(number, "", []byte(value))
		f.Add(number, "", []byte(value[:len(value)/2]))
		f.Add(number, "", newer(value))
		for _, other := range []string{"", "null", "[]", "{}", `"x"`, "0", `{"schema":1}`} {
			f.Add(number, "", []byte(other))
		}
		number++
	}
	for _, name := range []string{"x", "-1/x", "29459632/x", "29459632/20458." + strings.Repeat("0", 32), "29459632/20458." + strings.Repeat("0", 32) + "/x", "99999999999999999999/x", "0/", "29459632/20458.."} {
		f.Add(uint8(slices.Index(fuzzKinds, "claimend")), name, []byte{})
	}
	for _, name := range []string{"x", "0000000000-", "0000000007-x", "-000000001-x", "2147483647-x", "99999999999999999999-x", "7/x"} {
		f.Add(uint8(slices.Index(fuzzKinds, "charge")), name, []byte{})
	}
	// The state is older than pages of schema 2.
	f.Add(uint8(slices.Index(fuzzKinds, "usage")), "", []byte(`{"schema":2,"serial":7,"keys":{"`+id+`":{"v":{"1":{"c|eu":{"c":12,"l":1767574200000,"f":490992,"h":"8PsdDA=="}}},"t":"8PsdDA=="}}}`))
	f.Fuzz(func(t *testing.T, number uint8, name string, value []byte) {
		kind := fuzzKinds[int(number)%len(fuzzKinds)]
		memory := storetest.NewMemory()
		if slices.Contains(fuzzNames, kind) && name != "" {
			if memory.Put(t.Context(), &logical.StorageEntry{Key: kind + "/" + name, Value: value}) != nil {
				return // no such name can be
			}
		}
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
			newer := struct{ Schema int }{}
			if kind != "mount" && (kind != "reports" || json.Unmarshal(value, &newer) != nil || newer.Schema <= 1 || !strings.Contains(err.Error(), "newer plugin")) {
				t.Fatalf("with an entry of the kind %s as %q the mount cannot be opened: %v", kind, value, err)
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
		w.send(logical.UpdateOperation, "claim", object{"code": keptCode})
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
