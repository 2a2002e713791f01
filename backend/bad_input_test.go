// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	notFoundStatus = http.StatusNotFound
	badStatus      = http.StatusBadRequest
)

// marker looks like a secret that landed in the wrong field. It is long
// enough that nothing can hold it by accident.
const marker = "s3cr3tMARKER-9f8e7d6c5b4a39281706-thatMustNotBeEchoed"

// furnished is a mount with a bit of everything, for requests that must not
// change it.
func furnished(t *testing.T) (m *mount, leasedID string) {
	t.Helper()
	m = newMount(t)
	m.role(object{"scopes": []any{"read", "write"}, "overlap_period": "1h"})
	m.write("roles/manual", object{"overlap_period": "1h"})
	m.key("acme", nil)
	m.rotate("acme", nil)
	m.key("off", object{"enabled": false})
	m.key("brought", object{"import_key": "legacy-token-0123456789"})
	leased := m.ok(logical.ReadOperation, "creds/r", nil)
	return m, text(t, leased[fieldKeyID])
}

// target is a path of a furnished mount that matches a pattern.
func target(pattern, leasedID string) string {
	return strings.NewReplacer("^", "", "$", "", "/?", "/", "(?P<role>.+)", "r", "(?P<name>.+)", "acme", "(?P<key_id>.+)", leasedID, "(?P<id>.+)", "eu-1").Replace(pattern)
}

// wrongKinds are values that a field of this type must refuse, each with the
// marker somewhere inside.
func wrongKinds(kind framework.FieldType) map[string]any {
	wrong := map[string]any{
		"as the value of a map":   object{"x": marker},
		"as the name in a map":    object{marker: "x"},
		"nested in maps":          object{"x": object{"y": object{marker: marker}}},
		"in a list in a list":     []any{[]any{marker}},
		"in a map in a list":      []any{object{marker: marker}},
		"beside numbers in lists": []any{1, true, marker, nil},
	}
	text, list := any(marker), any([]any{marker})
	switch kind {
	case framework.TypeString:
		wrong["in a list"] = list
	case framework.TypeBool, framework.TypeInt, framework.TypeInt64, framework.TypeDurationSecond, framework.TypeCommaIntSlice:
		wrong["as a text"], wrong["in a list"] = text, list
	case framework.TypeCommaStringSlice:
	case framework.TypeKVPairs:
		wrong["as a text"], wrong["in a list"] = text, list
		delete(wrong, "as the value of a map")
		delete(wrong, "as the name in a map")
		wrong["as the value of a map in a map"] = object{"x": []any{marker}}
	case framework.TypeSlice:
		wrong["as a text"] = text
		delete(wrong, "in a list in a list") // an item is answered for itself
		delete(wrong, "in a map in a list")
		delete(wrong, "beside numbers in lists")
	default:
		panic(fmt.Sprintf("a field has type %s, which no input has so far", kind))
	}
	return wrong
}

// TestNoFieldEchoesASecretOfTheWrongKind puts a secret where a value of
// another kind belongs, into every field of every operation of every path.
func TestNoFieldEchoesASecretOfTheWrongKind(t *testing.T) {
	t.Parallel()
	m, leasedID := furnished(t)
	m.secret(marker) // the log and all answers are searched for it at the end
	before := m.snapshot()
	cases := 0
	for _, path := range m.Paths {
		url := target(path.Pattern, leasedID)
		captures := m.captures(path, url)
		for op := range path.Operations {
			for name, field := range path.Fields {
				if _, inURL := captures[name]; inURL {
					continue
				}
				for how, value := range wrongKinds(field.Type) {
					cases++
					data := overTheWire(t, object{name: value})
					a := m.rawRequest(sent(op), url, data)
					if a.status != badStatus || !strings.Contains(a.errText, name) {
						t.Errorf("%s %s with a secret in %s %s: got %s, want 400 and the name of the field", op, path.Pattern, name, how, a)
					}
					m.existenceCheck(op, url, data)
				}
			}
		}
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("requests that were refused changed %s", diff)
	}
	if cases < 500 {
		t.Errorf("only %d cases were made: the generator is broken", cases)
	}
}

// sent is the operation as a client sends it.
func sent(op logical.Operation) logical.Operation {
	if op == logical.CreateOperation {
		return logical.UpdateOperation
	}
	return op
}

// existenceCheck makes the check alone: its errors would be logged by Vault.
func (m *mount) existenceCheck(op logical.Operation, url string, data object) {
	m.t.Helper()
	if op != logical.CreateOperation && op != logical.UpdateOperation {
		return
	}
	if _, _, err := m.HandleExistenceCheck(m.t.Context(), m.newRequest(op, url, data)); err != nil {
		m.heard(err.Error())
		m.t.Errorf("existence check of %s: %v", url, err)
	}
}

// TestNoBatchItemEchoesASecret does the same for the items of a batch.
func TestNoBatchItemEchoesASecret(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.secret(marker)
	before := m.snapshot()
	for path, schema := range map[string]fields{"import": m.Route("keys/acme").Fields, "verify": m.Route("verify").Fields} {
		items := []any{marker, []any{marker}, object{marker: marker}}
		for name, field := range schema {
			if name == fieldBatchInput {
				continue
			}
			for _, value := range wrongKinds(field.Type) {
				items = append(items, object{name: value, "nonsense": marker})
				items = append(items, object{name: value})
			}
		}
		data := m.write(path, object{"batch_input": items})
		results, _ := data["batch_results"].([]any)
		if len(results) != len(items) {
			t.Fatalf("%s: %d results for %d items", path, len(results), len(items))
		}
		for i, r := range results {
			one, _ := r.(object)
			if s, _ := one["error"].(string); s == "" {
				t.Errorf("%s: item %s was answered %v", path, toJSON(items[i]), r)
			}
		}
		if strings.Contains(toJSON(data), marker) {
			t.Errorf("%s echoes a secret: %s", path, toJSON(data))
		}
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("items that were refused changed %s", diff)
	}
}

// TestValuesOfTheRightKindAreNotEchoedEither covers secrets that are texts
// where a text of some other form belongs.
func TestValuesOfTheRightKindAreNotEchoedEither(t *testing.T) {
	t.Parallel()
	m, leasedID := furnished(t)
	secret := m.secret(m.key("leaky", nil))
	lines := secret + "\nsecond line"
	for _, c := range []struct {
		path  string
		field string
		value any
	}{
		{"roles/r", "prefix", secret}, {"roles/r", "rotation_schedule", secret}, {"roles/r", "leak_response", secret},
		{"roles/r", "scopes", []any{lines}}, {"roles/r", "overlap_scopes", []any{secret}}, {"roles/r", "bound_cidrs", []any{secret}},
		{"roles/r", "custom_metadata", object{lines: "x"}}, {"roles/r", "reminders", secret},
		{"keys/acme", "scopes", []any{secret}}, {"keys/acme", "bound_cidrs", secret}, {"keys/acme", "custom_metadata", object{lines: "x"}},
		{"keys/acme", "import_sha256", secret}, {"keys/acme", "import_key", lines}, {"keys/new", "role", lines},
		{"rotate/acme", "overlap_scopes", secret}, {"rotate/acme", "request_id", lines}, {"rotate/acme", "reason", lines},
		{"rotate-leased/" + leasedID, "reason", lines},
		{"roles/r/rotate", "overlap_scopes", secret}, {"verify", "source", lines}, {"verify", "source_ip", secret}, {"verify", "scopes", lines},
	} {
		data := object{c.field: c.value}
		if c.path == "keys/new" {
			data["import_key"] = "an-importable-token-1"
		}
		if c.path == "verify" {
			data[fieldAPIKey] = secret
		}
		m.refused(badStatus, logical.UpdateOperation, c.path, data, c.field)
	}
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	t.Parallel()
	m, leasedID := furnished(t)
	m.secret(marker)
	for _, path := range m.Paths {
		url := target(path.Pattern, leasedID)
		for op := range path.Operations {
			if lenientPaths[strings.Trim(path.Pattern, "^$")] {
				continue
			}
			m.refused(badStatus, sent(op), url, object{"nonsense": "x"}, `"nonsense" is not a field`)
			m.refused(badStatus, sent(op), url, object{marker: marker}, "is not a field")
		}
	}
}

func TestVerifyIgnoresUnknownFieldsWithAWarning(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.secret(marker)
	secret := m.key("mine", nil)
	for _, data := range []object{
		{fieldAPIKey: secret, "later": "x", marker: marker},
		{"batch_input": []any{object{fieldAPIKey: secret, "later": "x", marker: marker}}},
		{"batch_input": []any{object{fieldAPIKey: secret}}, "later": "x"},
	} {
		a := m.request(logical.UpdateOperation, "verify", data)
		if a.status != http.StatusOK || !strings.Contains(strings.Join(a.warnings, " "), `"later"`) {
			t.Errorf("verify answers %s, want a warning that names the field", a)
		}
	}
	wide := object{fieldAPIKey: secret}
	for i := range 5000 {
		wide[fmt.Sprintf("later%d", i)] = "x"
	}
	if a := m.request(logical.UpdateOperation, "verify", wide); a.status != http.StatusOK || len(a.warnings[0]) > 300 {
		t.Errorf("verify with many unknown fields answers %s", a)
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	names := []string{
		"a/b", "..", "a..b", "../../etc", "é", "日本", "a b", "a\x00b", "-a", ".a", "_a", "a\nb", "a%2Fb", "a?b", "a*",
		strings.Repeat("a", 129), strings.Repeat("a", 10_000), strings.Repeat("é", 5000),
	}
	for _, path := range m.Paths {
		for _, capture := range []string{"role", "name", "key_id", "id"} {
			group := "(?P<" + capture + ">.+)"
			if !strings.Contains(path.Pattern, group) {
				continue
			}
			for op := range path.Operations {
				for _, name := range names {
					url := strings.NewReplacer("^", "", "$", "", group, name).Replace(path.Pattern)
					before := m.snapshot()
					a := m.rawRequest(sent(op), url, nil)
					if a.status != badStatus && a.status != notFoundStatus {
						t.Errorf("%s %.60q: got %s, want 400 or 404", op, url, a)
					}
					if len(a.errText) > 400 {
						t.Errorf("%s %.60q: the error echoes %d bytes", op, url, len(a.errText))
					}
					if diff := before.diff(m.snapshot()); diff != "" {
						t.Errorf("%s %.60q changed %s", op, url, diff)
					}
				}
				// A name of no characters is the collection, or nothing.
				url := strings.NewReplacer("^", "", "$", "", group, "").Replace(path.Pattern)
				if a := m.rawRequest(sent(op), url, nil); a.status != notFoundStatus && a.status != http.StatusMethodNotAllowed && a.status != badStatus {
					t.Errorf("%s %q: got %s", op, url, a)
				}
			}
		}
	}
	for _, name := range append(names, "") {
		m.refused(badStatus, logical.UpdateOperation, "keys/new", object{"role": name}, "role")
	}
}

// TestNamesInBodies takes the names that a body can hold.
func TestNamesInBodies(t *testing.T) {
	t.Parallel()
	m, leasedID := furnished(t)
	for url, field := range map[string]string{"roles/r": "role", "keys/acme": "name", "rotate/acme": "name"} {
		name := "acme"
		if field == "role" {
			name = "r"
		}
		if a := m.request(logical.UpdateOperation, url, object{field: name}); a.status >= 300 {
			t.Errorf("%s with an equal %s: %s", url, field, a)
		}
		m.secret(marker)
		for _, other := range []any{"other", marker, "", []any{marker}, object{marker: marker}, 5, nil} {
			m.refused(badStatus, logical.UpdateOperation, url, object{field: other}, field)
		}
	}
	m.refused(badStatus, logical.UpdateOperation, "rotate-leased/"+leasedID, object{"key_id": "other"}, "key_id")
	m.refused(badStatus, logical.UpdateOperation, "rotate-leased/short", nil, "key_id")
	m.refused(badStatus, logical.ListOperation, "keys/", object{"role": "a/b"}, "role")
	m.refused(badStatus, logical.ListOperation, "keys/", object{"role": strings.Repeat("a", 10_000)}, "role")
}

func TestDurationsThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	bad := []any{
		-1, -1.0, "-1", "-5m", "-0.5s", 1.5, "1.5", "1.5s", "500ms", "1h0m0.5s", "99999999999999999999", "9223372036854775807", "9223372036854775808",
		1e300, -1e300, math.MaxInt64, "2540400h", "1e400h", "", " ", "soon", "24", "24hours", "h", "1d2", "0x10", "1_000", "١h", true, false,
		[]any{}, []any{"1h"}, object{}, strings.Repeat("9", 1000), strings.Repeat("1h", 1000),
	}
	// A text of digits is seconds, and a day is a day, as elsewhere in Vault.
	bad = slices.DeleteFunc(bad, func(v any) bool { return v == "24" })
	for path, names := range map[string][]string{"roles/r": {"max_overlap_period", "drain_quiet_period", "ttl", "refresh_interval"}, "rotate/acme": {"overlap_period", "activation_delay"}} {
		for _, name := range names {
			for _, v := range bad {
				m.refused(badStatus, logical.UpdateOperation, path, object{name: v}, name)
			}
		}
	}
	for _, v := range []any{json.Number("1.5"), json.Number("-1"), json.Number("1e3000"), json.Number("99999999999999999999"), int64(-1), int64(math.MaxInt64), float32(1), math.NaN(), math.Inf(1), uint(3)} {
		m.rawRefused(badStatus, logical.UpdateOperation, "roles/r", object{"drain_quiet_period": v}, "drain_quiet_period")
		m.rawRefused(badStatus, logical.UpdateOperation, "roles/r", object{"max_versions": v}, "max_versions")
	}
}

func TestDurationsInEveryForm(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	for v, want := range map[any]int{
		"24h": 86400, "90s": 90, "3600": 3600, "1h30m": 5400, "1d": 86400, 7200: 7200, 3600.0: 3600, 0: 0, "0": 0, "0s": 0,
		json.Number("60"): 60, int64(61): 61, " 62s ": 62,
	} {
		if a := m.rawRequest(logical.UpdateOperation, "roles/r", object{"drain_quiet_period": v}); a.status != http.StatusNoContent {
			t.Errorf("%v (%T): %s", v, v, a)
			continue
		}
		if got := number(t, m.read("roles/r")["drain_quiet_period"]); got != want {
			t.Errorf("%v (%T) reads back as %d, want %d", v, v, got, want)
		}
	}
}

func TestNumbersAndFlagsThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	for _, v := range []any{"x", "", "1.5", 1.5, 1e300, "1e2", "0x10", true, "99999999999", nil, []any{3}, object{}} {
		if v == nil {
			continue
		}
		m.refused(badStatus, logical.UpdateOperation, "roles/r", object{"max_versions": v}, "max_versions")
	}
	for _, v := range []any{"x", "", "yes", 2, 1.5, "2", []any{true}, object{}} {
		m.refused(badStatus, logical.UpdateOperation, "roles/r", object{"retrievable": v}, "retrievable")
		m.refused(badStatus, logical.UpdateOperation, "keys/acme", object{"enabled": v}, "enabled")
		m.refused(badStatus, logical.UpdateOperation, "revoke/acme", object{"version": 1, "force": v}, "force")
	}
	for _, v := range []any{"true", "false", true, false, "1", "0"} {
		if a := m.request(logical.UpdateOperation, "roles/manual", object{"retrievable": v}); a.status != http.StatusNoContent {
			t.Errorf("retrievable=%v: %s", v, a)
		}
	}
}

func TestRolesThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	long := strings.Repeat("x", 1<<20)
	m.secret(long)
	many := func(n int, format string) []any {
		var all []any
		for i := range n {
			all = append(all, fmt.Sprintf(format, i))
		}
		return all
	}
	pairs := object{}
	for i := range 65 {
		pairs[fmt.Sprintf("n%d", i)] = "v"
	}
	for _, c := range []struct {
		data  object
		words string
	}{
		{object{"rotation_period": "24h", "rotation_schedule": "0 0 * * *", "overlap_period": "1h"}, "rotation_period rotation_schedule"},
		{object{"rotation_window": "1h"}, "rotation_window rotation_schedule"},
		{object{"rotation_window": "1h", "rotation_period": "24h", "overlap_period": "1h"}, "rotation_window rotation_schedule"},
		{object{"rotation_schedule": "0 0 * * *", "rotation_window": "30s", "overlap_period": "1h"}, "rotation_window"},
		{object{"rotation_schedule": "0 0 * * *", "rotation_window": "25h", "overlap_period": "1h"}, "rotation_window"},
		{object{"rotation_schedule": "0 0 * *"}, "rotation_schedule"}, {object{"rotation_schedule": "61 0 * * *"}, "rotation_schedule"},
		{object{"rotation_schedule": "@daily"}, "rotation_schedule"}, {object{"rotation_schedule": "0 0 30 2 *"}, "rotation_schedule"},
		{object{"rotation_schedule": "CRON_TZ=UTC 0 0 * * *"}, "rotation_schedule"}, {object{"rotation_schedule": long}, "rotation_schedule"},
		{object{"rotation_period": "87601h"}, "rotation_period"},
		{object{"overlap_period": "721h"}, "overlap_period max_overlap_period"},
		{object{"max_overlap_period": "30m"}, "overlap_period max_overlap_period"},
		{object{"version_ttl": "30m"}, "version_ttl overlap_period"},
		{object{"version_ttl": "25h", "rotation_period": "24h", "overlap_period": "2h"}, "version_ttl"},
		{object{"rotation_period": "24h", "overlap_period": "49h"}, "overlap_period max_accepted_versions"},
		{object{"rotation_period": "24h", "overlap_period": "4m59s"}, "overlap_period 5m"},
		{object{"rotation_period": "10m", "overlap_period": "5m", "activation_delay": "10m"}, "activation_delay"},
		{object{"max_accepted_versions": 0}, "max_accepted_versions"}, {object{"max_accepted_versions": 1}, "max_accepted_versions"},
		{object{"max_accepted_versions": 17, "max_versions": 20}, "max_accepted_versions"}, {object{"max_accepted_versions": -1}, "max_accepted_versions"},
		{object{"max_accepted_versions": 1 << 40}, "max_accepted_versions"},
		{object{"max_versions": 2}, "max_versions max_accepted_versions"}, {object{"max_versions": 101}, "max_versions"},
		{object{"rotation_jitter": 51}, "rotation_jitter"}, {object{"rotation_jitter": -1}, "rotation_jitter"},
		{object{"prefix": "tm-live"}, "prefix"}, {object{"prefix": "Live"}, "prefix"}, {object{"prefix": ""}, "prefix"}, {object{"prefix": "1a"}, "prefix"},
		{object{"prefix": "_a"}, "prefix"}, {object{"prefix": "é"}, "prefix"}, {object{"prefix": strings.Repeat("a", 33)}, "prefix"}, {object{"prefix": long}, "prefix"},
		{object{"secret_length": 21}, "secret_length"}, {object{"secret_length": 129}, "secret_length"}, {object{"secret_length": 0}, "secret_length"},
		{object{"scopes": []any{"a", "a"}}, "scopes"}, {object{"scopes": []any{"a b"}}, "scopes"}, {object{"scopes": []any{""}}, "scopes"},
		{object{"scopes": []any{"a*b"}}, "scopes"}, {object{"scopes": many(129, "s%d")}, "scopes"}, {object{"scopes": many(2000, "s%d")}, "scopes"},
		{object{"scopes": []any{strings.Repeat("a", 129)}}, "scopes"}, {object{"scopes": []any{long}}, "scopes"},
		{object{"overlap_scopes": []any{"admin"}}, "overlap_scopes"}, {object{"scopes": []any{"read"}, "overlap_scopes": []any{"write"}}, "overlap_scopes"},
		{object{"bound_cidrs": []any{"10.0.0.0/33"}}, "bound_cidrs"}, {object{"bound_cidrs": []any{"10.0.0"}}, "bound_cidrs"}, {object{"bound_cidrs": "nonsense"}, "bound_cidrs"},
		{object{"bound_cidrs": []any{"10.0.0.0/8", "10.0.0.0/8"}}, "bound_cidrs"}, {object{"bound_cidrs": many(129, "10.0.0.%d")}, "bound_cidrs"},
		{object{"bound_cidrs": []any{"fe80::1%eth0"}}, "bound_cidrs"}, {object{"bound_cidrs": []any{"10.0.0.1/"}}, "bound_cidrs"},
		{object{"ttl": "2h", "max_ttl": "1h"}, "ttl max_ttl"},
		{object{"refresh_interval": 0}, "refresh_interval"}, {object{"refresh_interval": "1h", "rotation_period": "24h"}, "refresh_interval overlap_period"},
		{object{"reminders": []any{0}}, "reminders"}, {object{"reminders": []any{80, 50}}, "reminders"}, {object{"reminders": []any{100}}, "reminders"}, {object{"reminders": []any{50, 50}}, "reminders"},
		{object{"reminders": []any{1.5}}, "reminders"},
		{object{"leak_response": "panic"}, "leak_response"}, {object{"leak_response": ""}, "leak_response"},
		{object{"retrievable": false, "rotation_period": "24h"}, "retrievable"},
		{object{"custom_metadata": object{"": "x"}}, "custom_metadata"}, {object{"custom_metadata": object{"a b": "x"}}, "custom_metadata"}, {object{"custom_metadata": pairs}, "custom_metadata"},
		{object{"custom_metadata": object{"a": long}}, "custom_metadata"}, {object{"custom_metadata": object{"a": 5}}, "custom_metadata"}, {object{"custom_metadata": []any{"a=1", "a=2"}}, "custom_metadata"},
	} {
		for _, op := range []logical.Operation{logical.UpdateOperation, logical.PatchOperation} {
			m.refused(badStatus, op, "roles/r", c.data, strings.Fields(c.words)...)
		}
		data := object{"scopes": []any{"read", "write"}, "overlap_period": "1h"}
		for name, v := range c.data {
			data[name] = v
		}
		m.refused(badStatus, logical.UpdateOperation, "roles/new", data, strings.Fields(c.words)...)
	}
	if a := m.request(logical.UpdateOperation, "roles/one", object{"max_accepted_versions": 1, "overlap_period": 0}); a.status != http.StatusNoContent {
		t.Errorf("max_accepted_versions=1 with overlap_period=0: %s", a)
	}
	m.refused(notFoundStatus, logical.PatchOperation, "roles/absent", object{"prefix": "a"}, "absent")
}

func TestConfigsThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	for _, data := range []object{
		{"leak_rate": 0}, {"leak_rate": 6001}, {"leak_rate": -1}, {"usage_retention": "59m"}, {"usage_retention": "8761h"}, {"usage_retention": 0}, {"report_leak": "maybe"},
	} {
		for name := range data {
			m.refused(badStatus, logical.UpdateOperation, "config", data, name)
			m.refused(badStatus, logical.PatchOperation, "config", data, name)
		}
	}
}

func TestKeysThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	digest := token.Sum("some-other-token-123").Hex()
	long := strings.Repeat("y", 1<<20)
	m.secret(long)
	for _, c := range []struct {
		data  object
		words string
	}{
		{object{}, "role"}, {object{"role": "absent"}, "role absent"}, {object{"role": ""}, "role"},
		{object{"role": "r", "scopes": []any{"admin"}}, "scopes"}, {object{"role": "r", "scopes": []any{"read", "read"}}, "scopes"},
		{object{"role": "r", "scopes": []any{"*"}}, "scopes"}, {object{"role": "manual", "scopes": []any{"read"}}, "scopes"},
		{object{"role": "r", "bound_cidrs": []any{"10.0.0.0/99"}}, "bound_cidrs"}, {object{"role": "r", "bound_cidrs": "::1/129"}, "bound_cidrs"},
		{object{"role": "r", "custom_metadata": object{"a": long}}, "custom_metadata"}, {object{"role": "r", "custom_metadata": "novalue"}, "custom_metadata"},
		{object{"role": "r", "import_key": "short"}, "import_key"}, {object{"role": "r", "import_key": "fifteen-chars-x"}, "import_key"},
		{object{"role": "r", "import_key": "a-key-with-a-line\nbreak-in-it"}, "import_key"}, {object{"role": "r", "import_key": "a key with spaces in it"}, "import_key"},
		{object{"role": "r", "import_key": strings.Repeat("k", 513)}, "import_key"}, {object{"role": "r", "import_key": long}, "import_key"}, {object{"role": "r", "import_key": ""}, "import_key"},
		{object{"role": "r", "import_key": "clé-importée-0123456789"}, "import_key"},
		{object{"role": "r", "import_key": "legacy-token-0123456789"}, "import_key"},
		{object{"role": "r", "import_sha256": token.Sum("legacy-token-0123456789").Hex()}, "import_sha256"},
		{object{"role": "r", "import_sha256": "abc"}, "import_sha256"}, {object{"role": "r", "import_sha256": digest + "00"}, "import_sha256"}, {object{"role": "r", "import_sha256": ""}, "import_sha256"},
		{object{"role": "r", "import_sha256": strings.Repeat("z", 64)}, "import_sha256"},
		{object{"role": "r", "import_sha256": digest, "import_key": "some-other-token-123"}, "import_key import_sha256"},
	} {
		m.refused(badStatus, logical.UpdateOperation, "keys/new", c.data, strings.Fields(c.words)...)
	}
	m.refused(notFoundStatus, logical.PatchOperation, "keys/new", object{"enabled": false}, "new")
}

func TestWritesOfKeysThatExist(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	for _, op := range []logical.Operation{logical.UpdateOperation, logical.PatchOperation} {
		m.refused(badStatus, op, "keys/acme", object{"role": "manual"}, "role")
		m.refused(badStatus, op, "keys/acme", object{"role": ""}, "role")
		m.refused(badStatus, op, "keys/acme", object{"scopes": []any{"admin"}}, "scopes")
		m.refused(badStatus, op, "keys/acme", object{"import_key": "another-token-0123456789"}, "import_key")
		m.refused(badStatus, op, "keys/brought", object{"import_key": "another-token-0123456789"}, "import_key")
		m.refused(badStatus, op, "keys/brought", object{"import_sha256": token.Sum("another-token-0123456789").Hex()}, "import_sha256")
		before := m.snapshot()
		for _, data := range []object{
			{"role": "r"}, {"role": "r", "import_key": "legacy-token-0123456789"}, {"import_sha256": token.Sum("legacy-token-0123456789").Hex()}, {},
		} {
			if a := m.request(op, "keys/brought", data); a.status != http.StatusNoContent {
				t.Errorf("%s of what is so already: %s", op, a)
			}
		}
		if diff := before.diff(m.snapshot()); diff != "" {
			t.Errorf("writing what is so already changed %s", diff)
		}
	}
}

func TestOwnTokensCannotBeImported(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	mine := m.key("mine", nil)
	m.refused(badStatus, logical.UpdateOperation, "keys/new", object{"role": "r", "import_key": mine}, "import_key")
}

func TestBatches(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	items := make([]any, 1001)
	for i := range items {
		items[i] = object{"name": fmt.Sprintf("b%d", i), "role": "r", "import_key": fmt.Sprintf("batch-token-%06d", i)}
	}
	m.refused(badStatus, logical.UpdateOperation, "import", object{"batch_input": items}, "batch_input", "1000", "1001")
	m.refused(badStatus, logical.UpdateOperation, "verify", object{"batch_input": items}, "batch_input", "1000", "1001")
	m.refused(badStatus, logical.UpdateOperation, "import", nil, "batch_input")
	m.refused(badStatus, logical.UpdateOperation, "verify", nil, "api_key")
	m.refused(badStatus, logical.UpdateOperation, "verify", object{"batch_input": []any{}, "api_key": marker}, "batch_input", "api_key")
	if a := m.request(logical.UpdateOperation, "import", object{"batch_input": []any{}}); a.status != http.StatusOK || len(list(t, a.data["batch_results"])) != 0 {
		t.Errorf("an empty batch: %s", a)
	}

	good := object{"name": "good", "role": "r", "import_key": m.secret("good-token-0123456789"), "scopes": []any{"read"}}
	bad := []struct {
		item any
		word string
	}{
		{object{"name": "x/y", "role": "r", "import_key": "item-token-0123456789"}, "name"}, {object{"role": "r", "import_key": "item-token-0123456789"}, "name"},
		{object{"name": "x", "import_key": "item-token-0123456789"}, "role"}, {object{"name": "x", "role": "absent", "import_key": "item-token-0123456789"}, "role"},
		{object{"name": "x", "role": "r"}, "import_key"}, {object{"name": "x", "role": "r", "import_key": "short"}, "import_key"}, {object{"name": "x", "role": "r", "import_key": 5}, "import_key"},
		{object{"name": "x", "role": "r", "import_key": "item-token-0123456789", "scopes": []any{"admin"}}, "scopes"},
		{object{"name": "x", "role": "r", "import_key": "item-token-0123456789", "nonsense": 1}, "nonsense"},
		{object{"name": "acme", "role": "r", "import_key": "item-token-0123456789"}, "acme"}, {object{"name": "x", "role": "r", "import_key": "legacy-token-0123456789"}, "import_key"},
		{object{"name": "good", "role": "r", "import_key": "item-token-0123456789"}, "good"}, {"text", "item"}, {nil, "item"}, {5, "item"}, {[]any{}, "item"},
	}
	batch := []any{good}
	for _, b := range bad {
		batch = append(batch, b.item)
	}
	batch = append(batch, good, object{"name": "last", "role": "r", "import_sha256": token.Sum("last-token-0123456789").Hex()})
	data := m.write("import", object{"batch_input": batch})
	if number(t, data["imported"]) != 3 || number(t, data["failed"]) != len(bad) {
		t.Errorf("imported %v, failed %v, want 3 and %d", data["imported"], data["failed"], len(bad))
	}
	results := list(t, data["batch_results"])
	for i, b := range bad {
		one := aMap(t, results[i+1])
		if s, _ := one["error"].(string); !strings.Contains(s, b.word) {
			t.Errorf("item %s is answered %v, want an error about %s", toJSON(b.item), one, b.word)
		}
	}
	if first, again := aMap(t, results[0]), aMap(t, results[len(results)-2]); first["key_id"] == nil || first["key_id"] != again["key_id"] {
		t.Errorf("importing the same again answers %v, first it was %v", again, first)
	}
	m.wantCodes("VALID VALID MALFORMED", "good-token-0123456789", "last-token-0123456789", "short")
	if names := m.list("keys/", nil); !slices.Contains(names, "good") || !slices.Contains(names, "last") || slices.Contains(names, "x") {
		t.Errorf("keys are %v", names)
	}

	verdicts := list(t, m.write("verify", object{"batch_input": []any{
		object{"api_key": "good-token-0123456789"}, "text", object{"api_key": 5}, object{}, object{"api_key": "nonsense"}, object{"api_key": "good-token-0123456789", "scopes": "write"},
		object{"api_key": "good-token-0123456789", "source_ip": "nowhere"},
	}})["batch_results"])
	var got []string
	for _, v := range verdicts {
		one := aMap(t, v)
		switch {
		case one["error"] != nil:
			got = append(got, "error")
		default:
			got = append(got, text(t, one["code"]))
		}
	}
	if strings.Join(got, " ") != "VALID error error error MALFORMED INSUFFICIENT_SCOPE error" {
		t.Errorf("a batch with bad items is answered %v", got)
	}
}

func TestAMegabyteOfJunk(t *testing.T) {
	t.Parallel()
	m, leasedID := furnished(t)
	junk := strings.Repeat("junk", 1<<18)
	m.secret(junk)
	deep := any(junk)
	for range 100 {
		deep = object{"x": []any{deep}}
	}
	wide := object{}
	for i := range 20_000 {
		wide[fmt.Sprintf("junk%d", i)] = junk[:50]
	}
	before := m.snapshot()
	for _, path := range m.Paths {
		url := target(path.Pattern, leasedID)
		for op := range path.Operations {
			for _, data := range []object{{"junk": junk}, {"junk": deep}, {junk: junk}, wide} {
				a := m.rawRequest(sent(op), url, data)
				if url == syncPattern && a.status == http.StatusOK {
					continue // it needs no field, and ignores those that it does not know
				}
				if a.status != badStatus || len(a.errText) > 1000 {
					t.Errorf("%s %s: status %d with an error of %d bytes", op, url, a.status, len(a.errText))
				}
			}
			for name, field := range path.Fields {
				if op != logical.DeleteOperation && field.Type == framework.TypeString && m.captures(path, url)[name] == "" {
					a := m.rawRequest(sent(op), url, object{name: junk})
					if len(a.errText) > 1000 || a.status == http.StatusInternalServerError {
						t.Errorf("%s %s with junk in %s: status %d with an error of %d bytes", op, url, name, a.status, len(a.errText))
					}
				}
			}
		}
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("junk changed %s", diff)
	}
	m.wantCodes("MALFORMED", junk)
}

func TestKeysThatAreNotThere(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.key("gone", nil)
	m.remove("keys/gone")
	for _, name := range []string{"gone", "never"} {
		for _, verb := range []string{"rotate", "promote", "rollback", "extend", "retire", "revoke"} {
			// An unknown key is reported before a missing field.
			m.refused(notFoundStatus, logical.UpdateOperation, verb+"/"+name, nil, name)
		}
		m.refused(notFoundStatus, logical.ReadOperation, "static-creds/"+name, nil, name)
		m.refused(notFoundStatus, logical.ReadOperation, "history/"+name, nil, name)
		m.refused(notFoundStatus, logical.ReadOperation, "keys/"+name, nil)
	}
	m.refused(notFoundStatus, logical.ReadOperation, "creds/absent", nil, "absent")
	m.refused(notFoundStatus, logical.ReadOperation, "roles/absent", nil)
	m.refused(notFoundStatus, logical.ReadOperation, "roles/absent/rotate", nil)
	m.refused(notFoundStatus, logical.UpdateOperation, "roles/absent/rotate", nil, "absent")
	m.refused(notFoundStatus, logical.UpdateOperation, "rotate-leased/"+strings.Repeat("a", token.IDLength), nil)
	m.refused(notFoundStatus, logical.UpdateOperation, "rotate-leased/"+text(t, m.read("keys/acme")[fieldKeyID]), nil)
	m.refused(notFoundStatus, logical.ReadOperation, "nonsense/path", nil)
}

func TestVerbsThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.role(object{"scopes": []any{"read", "write"}, "overlap_period": "1h", "rollback_window": "1h", "max_overlap_period": "2h"})
	m.key("fresh", nil)
	m.key("waiting", nil)
	m.rotate("waiting", object{"activation_delay": "1h"})
	m.key("old", nil)
	m.rotate("old", object{"overlap_period": 0})
	m.key("final", nil)
	m.rotate("final", nil)
	m.write("revoke/final", object{"version": 1})
	m.key("hashed", object{"import_sha256": token.Sum("hashed-token-0123456789").Hex()})
	m.rotate("hashed", nil)
	m.clock.Advance(61 * time.Minute) // past the rollback window of "old"
	m.key("full", nil)
	m.rotate("full", nil)
	m.rotate("full", nil)
	m.key("two", nil)
	m.code(m.rotate("two", nil)) // in use, so not drained
	m.rotate("two", nil)
	for _, c := range []struct {
		path  string
		data  object
		words string
	}{
		{"rotate/off", nil, "disabled enabled"}, {"promote/off", nil, "pending"}, {"rollback/off", nil, "disabled"},
		{"rotate/waiting", nil, "pending promote"}, {"rotate/full", nil, "max_accepted_versions"},
		{"rotate/fresh", object{"overlap_period": "3h"}, "overlap_period max_overlap_period"},
		{"rotate/fresh", object{"overlap_scopes": []any{"admin"}}, "overlap_scopes"}, {"rotate/fresh", object{"overlap_scopes": []any{"read", "read"}}, "overlap_scopes"},
		{"rotate/fresh", object{"request_id": "a b"}, "request_id"}, {"rotate/fresh", object{"request_id": strings.Repeat("a", 129)}, "request_id"},
		{"rotate/fresh", object{"reason": strings.Repeat("a", 257)}, "reason"}, {"rotate/fresh", object{"reason": "a\x7fb"}, "reason"},
		{"promote/fresh", nil, "pending"}, {"promote/waiting", object{"version": 9}, "version"}, {"promote/waiting", object{"version": 1}, "pending"}, {"promote/waiting", object{"version": -1}, "version"},
		{"rollback/fresh", nil, "earlier"}, {"rollback/fresh", object{"version": 1}, "active"}, {"rollback/fresh", object{"version": 2}, "version 2"}, {"rollback/waiting", object{"version": 2}, "pending"},
		{"rollback/old", nil, "rollback window"}, {"rollback/final", nil, "revoked"}, {"rollback/final", object{"version": 1, "force": true}, "revoked"}, {"rollback/hashed", nil, ""},
		{"rollback/full", object{"version": -1}, "version"},
		{"extend/fresh", nil, "retiring"}, {"extend/fresh", object{"version": 1}, "active"}, {"extend/final", object{"version": 1}, "revoked"}, {"extend/old", object{"version": 1}, "rollback window"},
		{"extend/full", nil, "version"}, {"extend/full", object{"version": 1, "overlap_period": "30m"}, "earlier"}, {"extend/full", object{"version": 1, "overlap_period": 0}, "earlier"},
		{"extend/full", object{"version": 1, "overlap_period": "3h"}, "overlap_period max_overlap_period"}, {"extend/full", object{"version": 9}, "version 9"},
		{"retire/fresh", nil, "retiring"}, {"retire/fresh", object{"version": 1, "force": true}, "active"}, {"retire/two", nil, "version"}, {"retire/two", object{"version": 2}, "drained"}, {"retire/two", object{"version": 9}, "version 9"},
		{"revoke/fresh", nil, "version all"}, {"revoke/fresh", object{"version": 1}, "rotate force"}, {"revoke/fresh", object{"all": true}, "rotate force"}, {"revoke/fresh", object{"version": 1, "all": true}, "version all"},
		{"revoke/fresh", object{"version": -1}, "version"}, {"revoke/fresh", object{"version": 2}, "version 2"},
	} {
		m.refused(badStatus, logical.UpdateOperation, c.path, c.data, strings.Fields(c.words)...)
	}
}

func TestNulls(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	before := m.snapshot()
	for _, url := range []string{"roles/r", "keys/acme", "config"} {
		nulls := object{}
		for name := range m.Route(url).Fields {
			if m.captures(m.Route(url), url)[name] == "" {
				nulls[name] = nil
			}
		}
		if a := m.request(logical.UpdateOperation, url, nulls); a.status != http.StatusNoContent {
			t.Errorf("%s with nulls: %s", url, a)
		}
	}
	after := m.snapshot()
	for path := range before {
		if strings.HasPrefix(path, "key/") && before[path] != after[path] {
			t.Errorf("nulls in a write changed %s", path)
		}
	}
	if r := m.read("roles/r"); number(t, r["overlap_period"]) != 3600 || !same(r["scopes"], []any{"read", "write"}) {
		t.Errorf("nulls in a write changed the role: %v", r)
	}
	m.refused(badStatus, logical.UpdateOperation, "verify", object{"api_key": nil}, "api_key")
	m.refused(badStatus, logical.UpdateOperation, "import", object{"batch_input": nil}, "batch_input")
	m.refused(badStatus, logical.UpdateOperation, "revoke/acme", object{"version": nil, "all": nil}, "version")
	m.refused(badStatus, logical.UpdateOperation, "keys/new", object{"role": nil}, "role")
}

func TestLists(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	for _, path := range []string{"keys/", "roles/"} {
		m.refused(badStatus, logical.ListOperation, path, object{"limit": -1}, "limit")
		m.refused(badStatus, logical.ListOperation, path, object{"limit": "many"}, "limit")
		m.refused(badStatus, logical.ListOperation, path, object{"after": []any{"a"}}, "after")
		if names := m.list(path, object{"list": "true", "limit": "1"}); len(names) != 1 {
			t.Errorf("LIST %s with the list parameter is %v", path, names)
		}
	}
}
