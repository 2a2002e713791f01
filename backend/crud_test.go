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

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// roleDefaults is what a role reads back where nothing was written.
func roleDefaults() object {
	return object{
		"prefix": "key", "secret_length": 32, "scopes": []any{}, "overlap_scopes": []any{}, "rotation_period": 0, "rotation_schedule": "",
		"rotation_window": 0, "disable_automated_rotation": false, "rotation_jitter": 0, "overlap_period": 86400, "max_overlap_period": 2592000,
		"extend_until_drained": false, "drain_quiet_period": 3600, "activation_delay": 0, "max_accepted_versions": 3, "max_versions": 10,
		"rollback_window": 86400, "version_ttl": 0, "ttl": 0, "max_ttl": 0, "refresh_interval": 3600, "retrievable": true, "bound_cidrs": []any{},
		"notify_before": 0, "reminders": []any{50, 80, 95}, "leak_response": "alert", "custom_metadata": object{},
	}
}

// roleValues has for each field a value other than its default. They fit
// together and each fits the defaults.
func roleValues() object {
	return object{
		"prefix": "tm_live", "secret_length": 40, "scopes": []any{"b:write", "a:read", "c/*"}, "overlap_scopes": []any{}, "rotation_period": 604800,
		"disable_automated_rotation": true, "rotation_jitter": 10, "overlap_period": 43200, "max_overlap_period": 172800, "extend_until_drained": true,
		"drain_quiet_period": 1800, "activation_delay": 600, "max_accepted_versions": 4, "max_versions": 12, "rollback_window": 7200, "version_ttl": 1209600,
		"ttl": 1200, "max_ttl": 2400, "refresh_interval": 120, "retrievable": false, "bound_cidrs": []any{"2001:db8::/32", "10.0.0.0/8", "192.0.2.7"},
		"notify_before": 7200, "reminders": []any{10, 90}, "leak_response": "rotate", "custom_metadata": object{"team": "billing", "env": ""},
	}
}

// without is m without some of its fields.
func without(m object, names ...string) object {
	rest := maps.Clone(m)
	maps.DeleteFunc(rest, func(name string, _ any) bool { return slices.Contains(names, name) })
	return rest
}

func (m *mount) wantFields(path string, want object, ignore ...string) {
	m.t.Helper()
	got := without(m.read(path), ignore...)
	for name, v := range want {
		if !same(got[name], v) {
			m.t.Errorf("%s of %s reads back as %s, want %s", name, path, toJSON(got[name]), toJSON(v))
		}
	}
	if len(got) != len(want) {
		m.t.Errorf("%s has the fields %s, want %s", path, toJSON(sortedNames(got)), toJSON(sortedNames(want)))
	}
}

func TestRolesReadBackWhatWasWritten(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.wantFields("roles/r", roleDefaults(), "name", "scan_pattern")
	values := roleValues()
	m.role(values)
	want := roleDefaults()
	maps.Copy(want, values)
	m.wantFields("roles/r", want, "name", "scan_pattern")
	m.role(nil)
	m.wantFields("roles/r", want, "name", "scan_pattern") // absent fields keep their value
	m.role(values)
	m.wantFields("roles/r", want, "name", "scan_pattern")
	m = m.reopen()
	m.wantFields("roles/r", want, "name", "scan_pattern")

	if len(roleSchema) != len(roleDefaults()) {
		t.Errorf("a role has %d fields and %d are tested", len(roleSchema), len(roleDefaults()))
	}
}

// TestEachRoleFieldAlone writes one field at a time, by create, update and
// PATCH, and sets it back by null.
func TestEachRoleFieldAlone(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	values := roleValues()
	values["rotation_schedule"], values["overlap_scopes"] = "30 4 * * 1", []any{}
	for name, value := range values {
		base, want := object{}, roleDefaults()
		switch name {
		case "version_ttl":
			want["version_ttl"] = value
		case "max_ttl":
		}
		want[name] = value
		if name == "overlap_period" {
			want["refresh_interval"] = 3600
		}
		if name == "rotation_period" {
			want["notify_before"] = 60480
		}
		if name == "rotation_schedule" {
			want["notify_before"] = 60480
		}
		url := "roles/of-" + strings.ReplaceAll(name, "_", "-")
		base[name] = value
		m.write(url, base)
		m.wantFields(url, want, "name", "scan_pattern")
		m.patch("roles/r", base)
		m.wantFields("roles/r", want, "name", "scan_pattern")
		m.patch("roles/r", object{name: nil})
		m.wantFields("roles/r", roleDefaults(), "name", "scan_pattern")
		m.write("roles/r", base)
		m.wantFields("roles/r", want, "name", "scan_pattern")
		m.patch("roles/r", object{})
		m.wantFields("roles/r", want, "name", "scan_pattern")
		m.patch("roles/r", object{name: nil})
	}
}

func TestRolesTakeWhatTheCLISends(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": "b,a", "reminders": "10, 20", "custom_metadata": []any{"x=1", "y=a=b"}, "rotation_period": "168h", "bound_cidrs": "10.0.0.0/8,::1", "retrievable": "true", "max_versions": "20", "overlap_period": "6h"})
	want := roleDefaults()
	maps.Copy(want, object{"scopes": []any{"b", "a"}, "reminders": []any{10, 20}, "custom_metadata": object{"x": "1", "y": "a=b"}, "rotation_period": 604800, "bound_cidrs": []any{"10.0.0.0/8", "::1"}, "max_versions": 20, "overlap_period": 21600, "notify_before": 60480})
	m.wantFields("roles/r", want, "name", "scan_pattern")
	m.role(object{"custom_metadata": "z=3,w=4", "scopes": "", "reminders": []any{"5", 6}})
	maps.Copy(want, object{"custom_metadata": object{"z": "3", "w": "4"}, "scopes": []any{}, "reminders": []any{5, 6}})
	m.wantFields("roles/r", want, "name", "scan_pattern")
}

func TestRolesAreReadWithTheirNameAndScanPattern(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"prefix": "tm_live", "secret_length": 40})
	r := m.read("roles/r")
	if r["name"] != "r" || r["scan_pattern"] != token.ScanPattern(token.Format{Prefix: "tm_live", SecretLength: 40}) {
		t.Errorf("role is %v", r)
	}
	made := m.key("acme", nil)
	if !strings.HasPrefix(made, "tm_live_") || len(made) != len("tm_live_")+12+1+40+6 {
		t.Error("the token does not have the form that the role asks for")
	}
}

func TestRotationPeriodGivesWayToAScheduleByNull(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "168h"})
	m.refused(badStatus, logical.UpdateOperation, "roles/r", object{"rotation_schedule": "0 4 * * 1"}, "rotation_period", "rotation_schedule")
	m.patch("roles/r", object{"rotation_schedule": "0 4 * * 1", "rotation_window": "2h", "rotation_period": nil})
	r := m.read("roles/r")
	if number(t, r["rotation_period"]) != 0 || r["rotation_schedule"] != "0 4 * * 1" || number(t, r["rotation_window"]) != 7200 {
		t.Errorf("role is %v", r)
	}
	m.write("roles/r", object{"rotation_schedule": "", "rotation_window": 0, "rotation_period": "168h"})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	defaults := object{"report_leak": false, "leak_rate": 60, "usage_retention": 604800}
	m.wantFields("config", defaults)
	values := object{"report_leak": true, "leak_rate": 90, "usage_retention": 7200}
	m.write("config", values)
	m.wantFields("config", values)
	m.write("config", object{"leak_rate": "91"})
	values["leak_rate"] = 91
	m.wantFields("config", values)
	m = m.reopen()
	m.wantFields("config", values)
	for name, d := range defaults {
		m.patch("config", object{name: nil})
		values[name] = d
		m.wantFields("config", values)
	}
	m.patch("config", object{"usage_retention": "1h"})
	values["usage_retention"] = 3600
	m.wantFields("config", values)
}

func TestKeysReadBackWhatWasWritten(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": []any{"a", "b", "c/*"}, "rotation_period": "168h"})
	made := m.write("keys/acme", object{"role": "r"})
	fresh := object{
		"key_id": made["key_id"], "name": "acme", "role": "r", "enabled": true, "imported": false, "scopes": []any{"a", "b", "c/*"}, "bound_cidrs": []any{},
		"custom_metadata": object{}, "current_version": 1, "created_time": "2026-01-05T00:00:00Z", "last_vault_rotation": "2026-01-05T00:00:00Z",
		"next_vault_rotation": "2026-01-12T00:00:00Z",
	}
	m.wantFields("keys/acme", fresh, "versions")
	if number(t, made["version"]) != 1 || made["state"] != "active" || made["overlap_ends"] != nil {
		t.Errorf("create answers %v", without(made, "api_key"))
	}
	values := object{"scopes": []any{"c/d", "a"}, "bound_cidrs": []any{"192.0.2.0/24", "::1"}, "custom_metadata": object{"owner": "x"}, "enabled": false}
	m.write("keys/full", join2(values, object{"role": "r"}))
	for _, name := range []string{"acme", "full"} {
		if name == "acme" {
			m.write("keys/acme", values)
		}
		want := maps.Clone(fresh)
		maps.Copy(want, values)
		want["name"], want["key_id"] = name, m.read("keys/" + name)["key_id"]
		delete(want, "next_vault_rotation") // a disabled key is not rotated
		m.wantFields("keys/"+name, want, "versions")
		m.write("keys/"+name, object{"role": "r"})
		m.wantFields("keys/"+name, want, "versions")
	}
	defaults := object{"scopes": []any{"a", "b", "c/*"}, "bound_cidrs": []any{}, "custom_metadata": object{}, "enabled": true}
	want := maps.Clone(fresh)
	maps.Copy(want, values)
	delete(want, "next_vault_rotation")
	for name, d := range defaults {
		m.patch("keys/acme", object{name: nil})
		want[name] = d
		if name == "enabled" {
			want["next_vault_rotation"] = fresh["next_vault_rotation"]
		}
		m.wantFields("keys/acme", want, "versions")
	}
	for name, v := range values {
		m.patch("keys/acme", object{name: v})
		want[name] = v
		if name == "enabled" {
			delete(want, "next_vault_rotation")
		}
		m.wantFields("keys/acme", want, "versions")
	}
	m = m.reopen()
	m.wantFields("keys/acme", want, "versions")
	m.patch("keys/acme", object{"scopes": []any{}})
	want["scopes"] = []any{}
	m.wantFields("keys/acme", want, "versions") // none, not those of the role
}

func join2(a, b object) object {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func TestUpdatesOfAKeyNeverShowIt(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	secret := m.key("acme", nil)
	for _, a := range []*answer{
		m.request(logical.UpdateOperation, "keys/acme", object{"role": "r"}), m.request(logical.PatchOperation, "keys/acme", object{"enabled": true}),
		m.request(logical.ReadOperation, "keys/acme", nil), m.request(logical.ReadOperation, "history/acme", nil), m.request(logical.DeleteOperation, "keys/acme", nil),
	} {
		if a.status >= 300 || strings.Contains(toJSON(a.data), secret) || strings.Contains(toJSON(a.data), secret[20:]) {
			t.Errorf("an answer shows the key or fails: status %d", a.status)
		}
	}
}

func TestVersionsInAKeysRead(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "rollback_window": "2h", "version_ttl": "720h"})
	v1 := m.key("acme", nil)
	m.code(v1)
	m.clock.Advance(time.Minute)
	m.rotate("acme", object{"reason": "why not"})
	m.rotate("acme", object{"activation_delay": "30m"})
	want := []object{
		{"version": 3, "state": "pending", "created_time": "2026-01-05T00:01:00Z", "promote_time": "2026-01-05T00:31:00Z", "use_count": 0},
		{"version": 2, "state": "active", "created_time": "2026-01-05T00:01:00Z", "activated_time": "2026-01-05T00:01:00Z", "expire_time": "2026-02-04T00:01:00Z", "use_count": 0},
		{"version": 1, "state": "retiring", "created_time": "2026-01-05T00:00:00Z", "activated_time": "2026-01-05T00:00:00Z", "superseded_by": 2, "overlap_ends": "2026-01-05T01:01:00Z",
			"accepted_until": "2026-01-05T01:01:00Z", "expire_time": "2026-02-04T00:00:00Z", "use_count": 1, "last_used_time": "2026-01-05T00:00:00Z"},
	}
	check := func(at int, v object) {
		t.Helper()
		got := versions(t, m.read("keys/acme"))[at]
		if v["fingerprint"] = got["fingerprint"]; len(fmt.Sprint(v["fingerprint"])) != 12 || !same(got, v) {
			t.Errorf("version is\n%s, want\n%s", toJSON(got), toJSON(v))
		}
	}
	for i, v := range want {
		check(i, v)
	}
	if got := versions(t, m.read("keys/acme"))[2]["fingerprint"]; got != token.Sum(v1).Fingerprint() {
		t.Errorf("the fingerprint is %v, want that of the digest", got)
	}
	m.clock.Advance(2 * time.Hour) // over, but nothing has recorded it
	if got := versions(t, m.read("keys/acme"))[2]; got["state"] != "retired" || got["ended_time"] != "2026-01-05T01:01:00Z" {
		t.Errorf("a version past its overlap reads %s", toJSON(got))
	}
	m.sweep()
	want[2]["state"], want[2]["ended_time"], want[2]["restorable_until"], want[2]["reason"] = "retired", "2026-01-05T01:01:00Z", "2026-01-05T03:01:00Z", "overlap over"
	check(2, want[2])
}

func TestHistoryTellsWhoWhenAndWhy(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	m.key("acme", nil)
	m.display = "token-alice"
	m.clock.Advance(time.Minute)
	m.rotate("acme", object{"reason": "a laptop was lost"})
	m.clock.Advance(61 * time.Minute)
	m.sweep()
	h := m.read("history/acme")
	transitions, _ := h["transitions"].([]any)
	var got []string
	for _, x := range transitions {
		e := aMap(t, x)
		got = append(got, fmt.Sprintf("%v %v %v %v %v", e["time"], e["type"], e["version"], e["actor"], e["reason"]))
	}
	want := []string{
		"2026-01-05T01:02:00Z rollover.completed 1 periodic <nil>",
		"2026-01-05T01:02:00Z version.retired 1 periodic <nil>",
		"2026-01-05T00:01:00Z version.activated 2 token-alice a laptop was lost",
		"2026-01-05T00:01:00Z version.retiring 1 token-alice a laptop was lost",
		"2026-01-05T00:01:00Z version.created 2 token-alice a laptop was lost",
		"2026-01-05T00:00:00Z version.activated 1 token-tester <nil>",
		"2026-01-05T00:00:00Z version.created 1 token-tester <nil>",
		"2026-01-05T00:00:00Z key.created <nil> token-tester <nil>",
	}
	if !slices.Equal(got, want) {
		t.Errorf("history is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i := range 120 {
		m.write("keys/acme", object{"custom_metadata": object{"n": fmt.Sprint(i)}})
	}
	if transitions, _ := m.read("history/acme")["transitions"].([]any); len(transitions) != 100 {
		t.Errorf("history has %d transitions, want the last 100", len(transitions))
	}
}

func TestDeletingWhatIsAbsentSucceeds(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	m.remove("keys/acme")
	before := m.snapshot()
	for _, path := range []string{"keys/acme", "keys/never", "roles/never"} {
		m.remove(path)
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("deleting what is absent changed %s", diff)
	}
	m.remove("roles/r")
	m.remove("roles/r")
}

func TestDeletingAKeyLeavesNothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "rotation_period": "168h"})
	before := m.snapshot()
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	m.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	m.remove("keys/acme")
	m.remove("keys/brought")
	m.wantCodes("NOT_FOUND NOT_FOUND NOT_FOUND", v1, v2, "legacy-token-0123456789")
	m.refused(http.StatusNotFound, logical.ReadOperation, "keys/acme", nil)
	for path := range m.snapshot() {
		if _, there := before[path]; !there && !strings.HasPrefix(path, "dueh/") {
			t.Errorf("a deleted key left %s", path)
		}
	}
	if names := m.list("keys/", nil); len(names) != 0 {
		t.Errorf("LIST keys is %v", names)
	}
	m.write("keys/acme", object{"role": "r"}) // the name is free again
	m.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	m.wantCodes("NOT_FOUND VALID", v1, "legacy-token-0123456789")
}

func TestACompromisedVersionOutlivesItsKey(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	m.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	m.write("revoke/acme", object{"version": 1, "compromised": true})
	m.write("revoke/brought", object{"all": true, "compromised": true, "force": true})
	m.remove("keys/acme")
	m.remove("keys/brought")
	m.wantCodes("COMPROMISED NOT_FOUND COMPROMISED", v1, v2, "legacy-token-0123456789")
	for _, again := range []string{v1, "legacy-token-0123456789"} {
		m.refused(badStatus, logical.UpdateOperation, "keys/again", object{"role": "r", "import_key": again}, "import_key")
	}
	m.refused(badStatus, logical.UpdateOperation, "keys/again", object{"role": "r", "import_sha256": token.Sum("legacy-token-0123456789").Hex()}, "import_sha256")
	// A digest does not tell which key a token of our own form belonged to.
	// Importing it makes a key, but the token is compromised all the same.
	m.write("keys/again", object{"role": "r", "import_sha256": token.Sum(v1).Hex()})
	m.wantCodes("COMPROMISED", v1)
	m.remove("keys/again")
	m.remove("roles/r")
	m = m.reopen()
	m.wantCodes("COMPROMISED NOT_FOUND COMPROMISED", v1, v2, "legacy-token-0123456789")
}

func TestARoleWithKeysIsNotDeleted(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	for i := range 3 {
		m.key(fmt.Sprintf("k%d", i), nil)
	}
	m.ok(logical.ReadOperation, "creds/r", nil)
	m.refused(badStatus, logical.DeleteOperation, "roles/r", nil, "4 keys", "LIST keys", "role=r", "creds/r")
	for i := range 3 {
		m.remove(fmt.Sprintf("keys/k%d", i))
	}
	m.refused(badStatus, logical.DeleteOperation, "roles/r", nil, "1 key")
}

func TestListsComeInPages(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.write("roles/other", nil)
	var names []string
	for i := range 25 {
		name := fmt.Sprintf("k%02d", i)
		names = append(names, name)
		m.key(name, nil)
	}
	m.write("keys/of-other", object{"role": "other"})
	m.ok(logical.ReadOperation, "creds/r", nil)
	for _, c := range []struct {
		data object
		want []string
	}{
		{nil, append(slices.Clone(names), "of-other")}, {object{"role": "r"}, names}, {object{"role": "other"}, []string{"of-other"}}, {object{"role": "never"}, []string{}},
		{object{"limit": 3}, names[:3]}, {object{"limit": 0, "role": "r"}, names}, {object{"after": "k10", "limit": 2}, names[11:13]}, {object{"after": "k10x", "limit": 2}, names[11:13]},
		{object{"after": "k24"}, []string{"of-other"}}, {object{"after": "zzz"}, []string{}}, {object{"after": "a", "limit": 1}, names[:1]}, {object{"role": "r", "after": "k22", "limit": 100}, names[23:]},
	} {
		if got := m.list("keys/", c.data); !slices.Equal(got, c.want) {
			t.Errorf("LIST keys %v is %v, want %v", c.data, got, c.want)
		}
	}
	if got := m.list("roles/", object{"after": "other"}); !slices.Equal(got, []string{"r"}) {
		t.Errorf("LIST roles is %v", got)
	}
	var all []string
	for after := ""; ; {
		page := m.list("keys", object{"after": after, "limit": 7})
		if len(page) == 0 {
			break
		}
		all, after = append(all, page...), page[len(page)-1]
	}
	if !slices.Equal(all, append(slices.Clone(names), "of-other")) {
		t.Errorf("the pages together are %v", all)
	}
}

func TestImportedKeysAreVerifiedAndRotated(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	const legacy, hashed = "sk_legacy_0123456789!#%", "legacy/with+signs=0123456789"
	m.write("keys/plain", object{"role": "r", "import_key": legacy})
	m.secret(hashed)
	a := m.write("keys/hashed", object{"role": "r", "import_sha256": strings.ToUpper(token.Sum(hashed).Hex())})
	if a["api_key"] != nil || number(t, a["version"]) != 1 {
		t.Errorf("an import answers %v", a)
	}
	m.wantCodes("VALID VALID MALFORMED", legacy, hashed, "short")
	m.wantCodes("NOT_FOUND", legacy+"x")
	if got := m.read("static-creds/plain")["api_key"]; got != legacy {
		t.Error("static-creds does not return the imported key")
	}
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/hashed", nil, "not stored")
	if k := m.read("keys/hashed"); k["imported"] != true {
		t.Errorf("an imported key reads imported=%v", k["imported"])
	}
	next := m.rotate("hashed", nil)
	m.wantCodes("VALID VALID", hashed, next)
	if got := m.read("static-creds/hashed")["api_key"]; got != next {
		t.Error("static-creds does not return the rotated key")
	}
	m.clock.Advance(time.Hour)
	m.wantCodes("RETIRED VALID VALID", hashed, next, legacy)
	m = m.reopen()
	m.wantCodes("RETIRED VALID VALID NOT_FOUND", hashed, next, legacy, legacy+"x")
}

// TestAnImportCanBeRepeatedForEver: also when version 1 has been forgotten. Its
// token is then free, as the index is, and another one is still refused.
func TestAnImportCanBeRepeatedForEver(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("roles/r", object{"overlap_period": 0, "rollback_window": 0, "max_versions": 3})
	key := object{"role": "r", "import_key": "legacy-token-0123456789", "custom_metadata": object{"n": "1"}}
	m.write("keys/a", key)
	for range 4 {
		m.write("rotate/a", nil)
	}
	for range 2 {
		key["custom_metadata"] = object{"n": "2"}
		m.write("keys/a", key)
		batch := m.write("import", object{"batch_input": []any{object{"name": "a", "role": "r", "import_key": "legacy-token-0123456789"}}})
		if number(t, batch["imported"]) != 1 {
			t.Errorf("repeating the import answers %v", batch)
		}
		m = m.reopen()
	}
	m.refused(http.StatusBadRequest, logical.UpdateOperation, "keys/a", object{"role": "r", "import_key": "another-token-0123456789"}, "not made with this token")
	m.write("keys/b", object{"role": "r", "import_key": "legacy-token-0123456789"})
	m.wantCodes("VALID", "legacy-token-0123456789")
}

func TestHistoryTellsPeopleApart(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.display, m.entity, m.accessor = "oidc", "entity-ann", "accessor-ann"
	m.key("acme", nil)
	m.entity = "entity-bob"
	m.write("roles/r/rotate", nil)
	if err := m.opened().bulk.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.entity, m.accessor = "", "accessor-ci"
	m.patch("keys/acme", object{"enabled": false})
	m = m.reopen()
	m.clock.Advance(25 * time.Hour)
	m.write("sweep", nil)
	type who struct{ actor, entity, accessor any }
	want := map[string]who{
		"key.created": {"oidc", "entity-ann", nil}, "version.retiring": {"oidc", "entity-bob", nil},
		"key.updated": {"oidc", nil, "accessor-ci"}, "version.retired": {"periodic", nil, nil},
	}
	transitions, _ := m.read("history/acme")["transitions"].([]any)
	for _, item := range transitions {
		e, _ := item.(object)
		got := who{e["actor"], e["entity_id"], e["accessor"]}
		if w, asked := want[text(t, e["type"])]; asked && got != w {
			t.Errorf("%s was by %v, want %v", e["type"], got, w)
		}
		delete(want, text(t, e["type"]))
	}
	if len(want) > 0 {
		t.Errorf("history lacks %v", want)
	}
}
