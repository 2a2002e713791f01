// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// snapshot is everything that a mount tells of itself, but for the count of
// use, which reading does not change and verifying may.
func (m *mount) snapshot() string {
	m.t.Helper()
	all := map[string]any{"config": m.read("config")}
	for _, kind := range []string{"roles", "keys"} {
		for _, name := range m.list(kind) {
			all[kind+"/"+name] = m.read(kind + "/" + name)
		}
	}
	for _, name := range m.list("keys") {
		all["history/"+name] = m.read("history/" + name)
	}
	raw, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		m.t.Fatal(err)
	}
	return useCount.ReplaceAllString(string(raw), "")
}

var useCount = regexp.MustCompile(`"(use_count|last_used_time)": .*`)

func TestBadInputGetsAClearErrorAndChangesNothing(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "scopes", []string{"orders:read"}, "overlap_period", "1h", "max_overlap_period", "48h")
	v1 := m.key("acme", "trading")
	m.rotate("acme")
	m.key("disabled", "trading", "enabled", false)
	m.key("deleted", "trading")
	m.must(http.MethodDelete, "keys/deleted", nil)
	m.key("pending", "trading")
	m.rotate("pending", "activation_delay", "1h")
	m.write("keys/legacy", fields("role", "trading", "import_key", legacyToken()))
	m.write("revoke/legacy", fields("version", 1, "rotate", true))
	junk := strings.Repeat("x", 1_000_000)
	const bad, gone = http.StatusBadRequest, http.StatusNotFound

	type refusal struct {
		method string
		path   string
		body   any
		status int
		words  []string
	}
	var table []refusal
	add := func(method, path string, body any, status int, words ...string) {
		table = append(table, refusal{method, path, body, status, words})
	}
	role := func(words []string, pairs ...any) {
		add("POST", "roles/new", fields(pairs...), bad, words...)
		add("POST", "roles/trading", fields(pairs...), bad, words...)
		add("PATCH", "roles/trading", fields(pairs...), bad, words...)
	}
	say := func(words ...string) []string { return words }

	// Unknown fields.
	for _, path := range []string{"config", "roles/new", "roles/trading", "roles/trading/rotate", "keys/new", "keys/acme", "import", "rotate/acme",
		"webhooks/new", "promote/pending", "rollback/acme", "extend/acme", "retire/acme", "revoke/acme", "sweep"} {
		add("POST", path, fields("colour", "red"), bad, `"colour"`, "not a field")
	}
	for _, path := range []string{"config", "roles/trading", "keys/acme"} {
		add("PATCH", path, fields("colour", nil), bad, `"colour"`)
		add("GET", path+"?colour=red", nil, bad, `"colour"`)
	}
	add("DELETE", "keys/acme?colour=red", nil, bad, `"colour"`)

	// Names.
	for _, name := range []string{"a/b", "a..b", "..%2fx", "%2e%2e", "%C3%A9", "-a", "a%20b", "%F0%9F%94%91", strings.Repeat("a", 129), strings.Repeat("a", 10_000)} {
		for _, path := range []string{"keys/", "roles/", "rotate/", "static-creds/", "creds/"} {
			method := map[string]string{"static-creds/": "GET", "creds/": "GET"}[path]
			if method == "" {
				method = "POST"
			}
			add(method, path+name, nil, bad, "must be 1 to 128")
		}
	}
	for _, path := range []string{"keys/", "roles/", "rotate/"} {
		add("POST", path, map[string]any{}, bad)
	}
	add("POST", "keys/acme", fields("name", "other"), bad, "name")

	// Durations and numbers.
	for _, value := range []any{-1, "-5m", 1.5, "1.5s", "1h30", "soon", "", "9999999999h", 1e30, "99999999999999999999", true} {
		role(say("overlap_period", "duration"), "overlap_period", value)
	}
	role(say("ttl"), "ttl", "876001h")
	role(say("secret_length", "22"), "secret_length", 21)
	role(say("secret_length", "128"), "secret_length", 129)
	role(say("secret_length", "whole number"), "secret_length", "many")
	role(say("rotation_jitter", "50"), "rotation_jitter", 51)
	role(say("max_accepted_versions", "2"), "max_accepted_versions", 0)
	role(say("max_accepted_versions", "16"), "max_accepted_versions", 17)
	role(say("max_versions"), "max_versions", 2)
	role(say("reminders"), "reminders", []int{80, 50})
	role(say("retrievable", "true or false"), "retrievable", "perhaps")
	role(say("leak_response", "alert, revoke or rotate"), "leak_response", "panic")
	add("POST", "config", fields("leak_rate", 0), bad, "leak_rate")
	add("PATCH", "config", fields("usage_retention", "10s"), bad, "usage_retention", "1h")

	// Fields that do not go together.
	role(say("rotation_period", "rotation_schedule"), "rotation_period", "24h", "rotation_schedule", "0 4 * * *")
	role(say("rotation_window", "rotation_schedule"), "rotation_window", "1h")
	role(say("rotation_schedule"), "rotation_schedule", "every day")
	role(say("overlap_period", "max_overlap_period"), "overlap_period", "72h", "max_overlap_period", "48h")
	role(say("version_ttl", "overlap_period"), "version_ttl", "30m", "overlap_period", "1h")
	role(say("version_ttl"), "version_ttl", "25h", "rotation_period", "24h", "overlap_period", "2h")
	role(say("overlap_period", "max_accepted_versions", "fits"), "rotation_period", "1h", "overlap_period", "24h")
	role(say("overlap_period", "5m"), "rotation_period", "1h", "overlap_period", "1m")
	role(say("activation_delay"), "rotation_period", "1h", "overlap_period", "30m", "activation_delay", "1h")
	role(say("max_accepted_versions"), "max_accepted_versions", 1, "overlap_period", "1h")
	role(say("ttl", "max_ttl"), "ttl", "2h", "max_ttl", "1h")
	role(say("retrievable"), "retrievable", false, "rotation_period", "24h", "overlap_period", "1h")

	// Forms.
	for _, prefix := range []string{"has-dash", "Capital", "1st", "", "_x", strings.Repeat("a", 33)} {
		role(say("prefix"), "prefix", prefix)
	}
	for _, scope := range []string{"with space", "é", "a*b", strings.Repeat("a", 129)} {
		role(say("scopes"), "scopes", []string{scope})
	}
	role(say("scopes", "twice"), "scopes", []string{"a", "a"})
	role(say("overlap_scopes", "not covered"), "overlap_scopes", []string{"admin"})
	for _, cidr := range []string{"10.0.0.0/33", "localhost", "10.0.0"} {
		role(say("bound_cidrs", "CIDR"), "bound_cidrs", []string{cidr})
		add("POST", "keys/new", fields("role", "trading", "bound_cidrs", []string{cidr}), bad, "bound_cidrs", "CIDR")
		add("POST", "keys/acme", fields("bound_cidrs", []string{cidr}), bad, "bound_cidrs", "CIDR")
	}
	add("POST", "keys/new", fields("role", "trading", "scopes", []string{"admin"}), bad, "scopes", "not covered", `"trading"`)
	add("PATCH", "keys/acme", fields("scopes", []string{"admin"}), bad, "scopes", "not covered")
	add("POST", "keys/new", map[string]any{}, bad, "role is required")
	add("POST", "keys/new", fields("role", "nobody"), bad, "role")
	add("POST", "keys/acme", fields("role", "other"), bad, "role cannot be changed")
	add("POST", "keys/new", fields("role", "trading", "custom_metadata", fields("a b", "c")), bad, "custom_metadata")

	// Imports.
	add("POST", "keys/acme", fields("role", "trading", "import_key", legacyToken()), bad, "was not made with this token")
	add("POST", "keys/new", fields("role", "trading", "import_key", v1), bad, "belongs to a key of this mount")
	for _, token := range []string{"short", "fifteen-letters", strings.Repeat("a", 513), legacyToken() + "\n", legacyToken() + "\r\nx", "has spaces in between", "ünïcödé-ünïcödé-ünïcödé"} {
		add("POST", "keys/new", fields("role", "trading", "import_key", token), bad, "import_key", "16 to 512")
	}
	add("POST", "keys/new", fields("role", "trading", "import_sha256", strings.Repeat("g", 64)), bad, "import_sha256", "64 hex")
	add("POST", "keys/new", fields("role", "trading", "import_sha256", "abcd"), bad, "import_sha256", "64 hex")
	add("POST", "keys/new", fields("role", "trading", "import_key", legacyToken(), "import_sha256", digest("x")), bad, "exclude each other")
	add("POST", "import", map[string]any{}, bad, "batch_input")
	add("POST", "import", fields("batch_input", "x"), bad, "batch_input")
	add("POST", "import", fields("batch_input", make([]any, 1001)), bad, "batch_input", "1000", "1001")
	add("POST", "verify", fields("batch_input", make([]any, 1001)), bad, "batch_input", "1000", "1001")
	add("POST", "verify", map[string]any{}, bad, "api_key is required")
	add("POST", "verify", fields("api_key", "x", "batch_input", []any{}), bad, "exclude each other")
	add("POST", "verify", fields("api_key", v1, "source_ip", "here"), bad, "source_ip")
	add("POST", "verify", fields("api_key", v1, "scopes", []string{"a b"}), bad, "scopes")

	// A megabyte of junk.
	add("POST", "roles/new", fields("prefix", junk), bad, "prefix")
	add("POST", "keys/new", fields("role", junk), bad, "role")
	add("POST", "keys/new", fields("role", "trading", "import_key", junk), bad, "import_key")
	add("POST", "rotate/acme", fields("reason", junk), bad, "reason")
	add("POST", "rotate/acme", fields("request_id", junk), bad, "request_id")
	add("POST", "keys/acme", `"`+junk+`"`, bad)
	add("POST", "keys/acme", `["a", "list"]`, bad)

	// Verbs on what cannot be.
	for _, verb := range []string{"rotate", "promote", "rollback", "extend", "retire", "revoke"} {
		for _, name := range []string{"unknown", "deleted"} {
			add("POST", verb+"/"+name, map[string]any{}, gone, fmt.Sprintf("no key named %q", name))
		}
	}
	for _, path := range []string{"static-creds/unknown", "history/deleted"} {
		add("GET", path, nil, gone, "no key named")
	}
	add("POST", "rotate/disabled", map[string]any{}, bad, "disabled", "enabled=true")
	add("POST", "rotate/acme", fields("overlap_period", "49h"), bad, "overlap_period", "48h")
	add("POST", "rotate/acme", fields("overlap_scopes", []string{"admin"}), bad, "overlap_scopes")
	add("POST", "rotate/acme", fields("request_id", "two words"), bad, "request_id")
	add("POST", "rotate/acme", fields("reason", "two\nlines"), bad, "reason")
	add("POST", "rotate/pending", map[string]any{}, bad, "pending", "promote")
	add("POST", "promote/acme", map[string]any{}, bad, "no pending version")
	add("POST", "rollback/disabled", map[string]any{}, bad, "disabled")
	add("POST", "rollback/legacy", map[string]any{}, bad, "revoked")
	add("POST", "rollback/acme", fields("version", 7), bad, "no version 7")
	add("POST", "rollback/acme", fields("version", 2), bad, "active already")
	add("POST", "rollback/acme", fields("version", -1), bad, "version")
	add("POST", "extend/acme", fields("version", 2), bad, "active")
	add("POST", "extend/acme", fields("overlap_period", "1s"), bad, "never earlier")
	add("POST", "retire/acme", fields("version", 2), bad, "active")
	add("POST", "revoke/acme", map[string]any{}, bad, "version", "all=true")
	add("POST", "revoke/acme", fields("version", 1, "all", true), bad, "not both")
	add("POST", "revoke/acme", fields("version", 2), bad, "rotate=true", "force=true")
	add("POST", "roles/nobody/rotate", map[string]any{}, gone, `no role named "nobody"`)
	add("GET", "creds/nobody", nil, gone, `no role named "nobody"`)
	add("DELETE", "roles/trading", nil, bad, "and cannot be deleted")
	add("POST", "rotate-leased/tooshort", map[string]any{}, bad, "key_id")
	add("POST", "rotate-leased/"+strings.Repeat("0", 12), map[string]any{}, gone)

	// Confirming and watching.
	add("POST", "confirm/acme", fields("instance", "eu-1"), bad, "version")
	add("POST", "confirm/acme", fields("version", 9, "instance", "eu-1"), bad, "no version 9")
	add("POST", "confirm/acme", fields("version", "many", "instance", "eu-1"), bad, "version")
	add("POST", "confirm/acme", fields("version", 1, "instance", "two words"), bad, "instance")
	add("POST", "confirm/acme", fields("version", 1, "instance", junk), bad, "instance")
	for _, path := range []string{"usage/unknown", "rollovers/deleted", "rollovers/unknown"} {
		add("GET", path, nil, gone, "no key named")
	}
	add("POST", "confirm/unknown", fields("version", 1, "instance", "eu-1"), gone, "no key named")
	add("GET", "rollovers/disabled", nil, gone, "no rollover under way")
	add("GET", "rollovers?list=true&limit=-1", nil, bad, "limit")
	add("GET", "webhooks?list=true&limit=some", nil, bad, "limit")

	before := m.snapshot()
	for _, r := range table {
		m.refuses(r.status, r.method, r.path, r.body, r.words...)
		if t.Failed() {
			if after := m.snapshot(); after != before {
				t.Fatalf("%s %s changed something", r.method, shorten(r.path))
			}
		}
	}
	if after := m.snapshot(); after != before {
		t.Errorf("one of %d refused requests changed something:\n%s\nbefore:\n%s", len(table), after, before)
	}
	t.Logf("%d bad requests", len(table))
	m.accepts(v1)
	m.rejects("MALFORMED", junk)
	m.rejects("MALFORMED", "")
}

func TestUnknownFieldsOfVerifyAreIgnoredWithAWarning(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	a := m.call(http.MethodPost, "verify", fields("api_key", m.key("acme", "trading"), "colour", "red"))
	if a.data["valid"] != true || !strings.Contains(strings.Join(a.warns, ""), `"colour"`) {
		t.Errorf("%d %v, warnings %v", a.status, a.data["code"], a.warns)
	}
}

// helpField is a line of path-help that names a field.
var helpField = regexp.MustCompile(`(?m)^    ([a-z][a-z0-9_]*) \(`)

// A caller who mixes up fields puts a secret where something else belongs. The
// SDK's own decoding would quote it in the error, the log and the audit.
func TestASecretInTheWrongFieldIsNeverEchoed(t *testing.T) {
	t.Parallel()
	// A server of its own, so that a failure names this test.
	srv := withEngine(t, harness.StartDev(t, harness.Options{LogLevel: "trace"}))
	m := enable(t, srv, "apikeys")
	m.role("trading", "ttl", "1h")
	m.key("acme", "trading")
	leasedKey := m.creds("trading")

	const secret = "misplacedSECRETmisplacedSECRET"
	// What was accepted, such as a scope, may be told back by an answer: only
	// what is written down must not have it.
	defer issued.add(secret, "a secret from the wrong field")
	const inQuery = "queriedSECRETqueriedSECRET"
	shapes := map[string]any{
		"text":            secret,
		"list":            []any{secret},
		"list of lists":   []any{[]any{secret}},
		"list of maps":    []any{fields("x", secret)},
		"map":             fields("x", secret),
		"map of lists":    fields("x", []any{secret}),
		"map of maps":     fields("x", fields("y", secret)),
		"mixed list":      []any{1, true, secret, nil},
		"text with pairs": "a=1," + secret,
		"number and text": "12" + secret,
	}
	tried := 0
	for path, item := range openAPI(t, m) {
		example := strings.NewReplacer("{name}", "acme", "{role}", "trading", "{key_id}", leasedKey.keyID).Replace(path)
		help, _ := m.call(http.MethodGet, example+"?help=1", nil).body["help"].(string)
		names := []string{"colour"}
		for _, found := range helpField.FindAllStringSubmatch(help, -1) {
			names = append(names, found[1])
		}
		if slices.Contains([]string{"sweep", "info", "metrics"}, example) {
			names = append(names, "name")
		} else if len(names) < 2 {
			t.Errorf("%s: no fields in its help: %s", path, help)
		}
		for _, name := range names {
			for shape, value := range shapes {
				if _, isText := value.(string); isText && slices.Contains(textsByRight, name) {
					continue
				}
				for _, method := range []string{"POST", "PATCH"} {
					if _, ok := item[strings.ToLower(method)]; !ok {
						continue
					}
					tried++
					a := m.call(method, example, fields(name, value))
					// What was accepted, such as a scope, may be told back as data.
					if told := strings.Join(append(a.errs, a.warns...), ""); !a.ok() && strings.Contains(a.text, secret) || strings.Contains(told, secret) {
						t.Errorf("%s %s with a %s in %s echoes it: %s", method, example, shape, name, a.text)
					}
					if a.status >= 500 {
						t.Errorf("%s %s with a %s in %s: %d %v", method, example, shape, name, a.status, a.errs)
					}
				}
			}
			if _, ok := item["get"]; ok {
				// Vault itself writes queries to its audit device in clear.
				if a := m.call(http.MethodGet, example+"?"+name+"="+inQuery, nil); strings.Contains(strings.Join(a.errs, ""), inQuery) {
					t.Errorf("GET %s with %s in the query echoes it: %v", example, name, a.errs)
				}
			}
		}
	}
	if strings.Contains(srv.Log(), inQuery) {
		t.Error("the server's log has a query")
	}
	// In a batch each item is a map of its own.
	m.role("fresh")
	items := map[string][]string{
		"import": {"name", "role", "import_key", "import_sha256", "scopes", "bound_cidrs", "custom_metadata", "enabled", "colour"},
		"verify": {"api_key", "scopes", "source", "source_ip", "colour"},
	}
	for path, names := range items {
		for shape, value := range shapes {
			batch := []any{value}
			for _, name := range names {
				if _, isText := value.(string); !isText || !slices.Contains(textsByRight, name) {
					item := fields("name", "x", "role", "fresh", "import_key", legacyToken(), "api_key", "x")
					if path == "import" {
						delete(item, "api_key")
					}
					item[name] = value
					batch = append(batch, item)
				}
			}
			tried += len(batch)
			if a := m.call(http.MethodPost, path, fields("batch_input", batch)); !a.ok() || strings.Contains(a.text, secret) {
				t.Errorf("%s with a %s in its items: %d %s", path, shape, a.status, a.text)
			}
		}
	}
	// A secret as the name of a field. Vault itself writes names to its audit
	// device in clear, so this one is not looked for there.
	const named = "keyLIKEkeyLIKEkeyLIKEkeyLIKE"
	for _, path := range []string{"config", "roles/trading", "keys/acme", "rotate/acme", "verify"} {
		for _, body := range []any{fields(named, "x"), fields("custom_metadata", fields(named+" ", "x"))} {
			if a := m.call(http.MethodPost, path, body); strings.Contains(a.text, named) {
				t.Errorf("POST %s echoes the name of a field: %s", path, a.text)
			}
		}
	}
	if strings.Contains(srv.Log(), named) {
		t.Error("the server's log has the name of a field")
	}
	t.Logf("%d requests, on %d paths", tried, len(slices.Collect(maps.Keys(openAPI(t, m)))))
}

// textsByRight are fields that take a text of any meaning, or a name: what is
// put there is kept, or told back, because it is what they are for.
var textsByRight = []string{"name", "role"}
