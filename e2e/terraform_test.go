// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"testing"
)

// generic is what Terraform's vault_generic_endpoint does with data_json: it
// writes it by PUT to create and again to update, and reads the path back.
// Whatever differs from what was written, in value or in type, it would write
// again at every run.
func (m *mount) generic(path, dataJSON string) {
	m.t.Helper()
	if a := m.call(http.MethodPut, path, dataJSON); !a.ok() {
		m.t.Fatalf("PUT %s: %d %v", path, a.status, a.errs)
	}
	m.readsBack(path, dataJSON)
}

func (m *mount) readsBack(path, dataJSON string) {
	m.t.Helper()
	var wrote map[string]any
	if err := json.Unmarshal([]byte(dataJSON), &wrote); err != nil {
		m.t.Fatal(err)
	}
	read := m.read(path)
	for field, want := range wrote {
		if got, ok := read[field]; !ok || !reflect.DeepEqual(got, want) {
			m.t.Errorf("%s: %s was written as %#v and reads back as %#v", path, field, want, got)
		}
	}
}

// allOfARole has a value for each field of a role that is not its default,
// and that the other fields allow.
const allOfARole = `{
	"prefix": "tm_live",
	"secret_length": 40,
	"scopes": ["orders:write", "orders:read", "admin/*"],
	"overlap_scopes": ["orders:read"],
	"rotation_period": 604800,
	"disable_automated_rotation": true,
	"rotation_jitter": 10,
	"overlap_period": 7200,
	"max_overlap_period": 172800,
	"extend_until_drained": true,
	"drain_quiet_period": 1800,
	"activation_delay": 600,
	"max_accepted_versions": 5,
	"max_versions": 12,
	"rollback_window": 3600,
	"version_ttl": 2592000,
	"ttl": 900,
	"max_ttl": 86400,
	"refresh_interval": 300,
	"retrievable": false,
	"bound_cidrs": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"],
	"notify_before": 3600,
	"reminders": [25, 60, 90],
	"leak_response": "rotate",
	"custom_metadata": {"team": "blue", "cost-centre": "4711"}
}`

// cronRole has the fields that allOfARole cannot have beside the others.
const cronRole = `{
	"rotation_schedule": "0 4 * * 1",
	"rotation_window": 7200
}`

const allOfAKey = `{
	"role": "full",
	"scopes": ["orders:write", "orders:read"],
	"bound_cidrs": ["10.2.0.0/16", "10.1.0.0/16"],
	"custom_metadata": {"owner": "acme"},
	"enabled": false
}`

const allOfTheConfig = `{"report_leak": true, "leak_rate": 90, "usage_retention": 86400}`

func TestWhatTerraformWritesReadsBackEqual(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	defaults := m.read("config")
	m.generic("config", allOfTheConfig)
	m.generic("config", allOfTheConfig)
	m.differsFrom("config", allOfTheConfig, defaults)

	m.generic("roles/plain", `{}`)
	defaults = m.read("roles/plain")
	m.generic("roles/full", allOfARole)
	m.generic("roles/full", allOfARole)
	m.differsFrom("roles/full", allOfARole, defaults)
	m.generic("roles/cron", cronRole)
	m.differsFrom("roles/cron", cronRole, defaults)

	// Every field that a role has was tried.
	var full, cron map[string]any
	_, _ = json.Unmarshal([]byte(allOfARole), &full), json.Unmarshal([]byte(cronRole), &cron)
	for field := range defaults {
		if _, tried := full[field]; !tried && cron[field] == nil && field != "name" && field != "scan_pattern" {
			t.Errorf("roles have %s, which is not tried here", field)
		}
	}

	m.generic("keys/acme", allOfAKey)
	m.generic("keys/acme", allOfAKey)
	m.write("keys/plain", fields("role", "full"))
	m.differsFrom("keys/acme", allOfAKey, m.read("keys/plain"), "role")

	// What is left out of an update keeps its value.
	m.generic("roles/full", `{"ttl": 1000}`)
	m.generic("keys/acme", `{"custom_metadata": {}}`)
	m.generic("keys/acme", `{"scopes": []}`)
	m.readsBack("roles/full", `{"prefix": "tm_live", "retrievable": false, "reminders": [25, 60, 90], "ttl": 1000}`)
	m.readsBack("keys/acme", `{"enabled": false, "bound_cidrs": ["10.2.0.0/16", "10.1.0.0/16"], "scopes": [], "custom_metadata": {}}`)
	m.generic("roles/full", `{"scopes": [], "overlap_scopes": [], "bound_cidrs": [], "reminders": [], "custom_metadata": {}, "retrievable": true}`)
}

// differsFrom makes sure that what was written is not the default: a field
// that is ignored would read back equal then.
func (m *mount) differsFrom(path, dataJSON string, defaults map[string]any, but ...string) {
	m.t.Helper()
	var wrote map[string]any
	if err := json.Unmarshal([]byte(dataJSON), &wrote); err != nil {
		m.t.Fatal(err)
	}
	for field, value := range wrote {
		if reflect.DeepEqual(value, defaults[field]) && !slices.Contains(but, field) {
			m.t.Errorf("%s: %v is the default of %s and proves nothing", path, value, field)
		}
	}
}

func TestDurationsReadBackAsSeconds(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("a", "overlap_period", "24h", "ttl", "90s", "max_ttl", "3600", "rollback_window", 60, "max_overlap_period", "40d")
	m.readsBack("roles/a", `{"overlap_period": 86400, "ttl": 90, "max_ttl": 3600, "rollback_window": 60, "max_overlap_period": 3456000}`)
	m.cli("write", m.path+"/roles/a", "overlap_period=2h", "scopes=b,a", "custom_metadata=x=1,y=2")
	m.readsBack("roles/a", `{"overlap_period": 7200, "scopes": ["b", "a"], "custom_metadata": {"x": "1", "y": "2"}}`)
	m.write("config", fields("usage_retention", "36h"))
	m.readsBack("config", `{"usage_retention": 129600}`)
}

func TestPatchChangesWhatItNamesAndNullRestoresTheDefault(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	config := m.read("config")
	m.generic("config", allOfTheConfig)
	m.must(http.MethodPatch, "config", fields("leak_rate", 7))
	m.readsBack("config", `{"report_leak": true, "leak_rate": 7, "usage_retention": 86400}`)
	m.must(http.MethodPatch, "config", fields("leak_rate", nil, "report_leak", nil, "usage_retention", nil))
	if got := m.read("config"); !maps.Equal(got, config) {
		t.Errorf("config after its reset: %v, want %v", got, config)
	}

	m.role("plain")
	plain := m.read("roles/plain")
	m.generic("roles/full", allOfARole)
	m.must(http.MethodPatch, "roles/full", fields("ttl", 60, "scopes", []string{"orders:read"}))
	m.readsBack("roles/full", `{"ttl": 60, "scopes": ["orders:read"], "prefix": "tm_live", "overlap_period": 7200}`)
	var nulls map[string]any
	if err := json.Unmarshal([]byte(allOfARole), &nulls); err != nil {
		t.Fatal(err)
	}
	for field := range nulls {
		nulls[field] = nil
	}
	m.must(http.MethodPatch, "roles/full", nulls)
	reset := m.read("roles/full")
	reset["name"] = "plain"
	reset["scan_pattern"] = plain["scan_pattern"]
	if !reflect.DeepEqual(reset, plain) {
		t.Errorf("the role after its reset: %v, want %v", reset, plain)
	}

	m.generic("roles/full", allOfARole)
	m.generic("keys/acme", allOfAKey)
	m.must(http.MethodPatch, "keys/acme", fields("enabled", true))
	m.readsBack("keys/acme", `{"enabled": true, "scopes": ["orders:write", "orders:read"], "custom_metadata": {"owner": "acme"}}`)
	m.must(http.MethodPatch, "keys/acme", fields("scopes", nil, "bound_cidrs", nil, "custom_metadata", nil))
	m.readsBack("keys/acme", `{"scopes": ["orders:write", "orders:read", "admin/*"], "bound_cidrs": [], "custom_metadata": {}}`)
	for _, path := range []string{"roles/absent", "keys/absent"} {
		m.refuses(http.StatusNotFound, http.MethodPatch, path, map[string]any{}, "absent")
	}
}

func TestDeletingWhatIsAbsentSucceeds(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	m.key("acme", "trading")
	m.refuses(http.StatusBadRequest, http.MethodDelete, "roles/trading", nil, "1 key ", "role=trading")
	for range 2 {
		m.must(http.MethodDelete, "keys/acme", nil)
	}
	for range 2 {
		m.must(http.MethodDelete, "roles/trading", nil)
	}
	for _, path := range []string{"keys/acme", "roles/trading"} {
		if a := m.call(http.MethodGet, path, nil); a.status != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, a.status)
		}
	}
}

func TestListBeginsAfterAndEndsAtLimit(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		m.role(name)
		m.key(name+"1", name)
		m.key(name+"2", "a")
	}
	for query, want := range map[string][]string{
		"roles?list=true":                       {"a", "b", "c", "d"},
		"roles?list=true&after=b":               {"c", "d"},
		"roles?list=true&after=b&limit=1":       {"c"},
		"roles?list=true&after=bb":              {"c", "d"},
		"roles?list=true&limit=0":               {"a", "b", "c", "d"},
		"keys?list=true&after=b2&limit=2":       {"c1", "c2"},
		"keys?list=true&role=a":                 {"a1", "a2", "b2", "c2", "d2"},
		"keys?list=true&role=a&after=b&limit=2": {"b2", "c2"},
		"keys?list=true&role=b":                 {"b1"},
		"keys/?list=true&limit=1":               {"a1"},
	} {
		a := m.call(http.MethodGet, query, nil)
		if got := texts(a.data["keys"]); !slices.Equal(got, want) {
			t.Errorf("GET %s: %d %v, want %v", query, a.status, got, want)
		}
	}
	if got := texts(m.cliJSON("read", m.path+"/roles", "list=true", "after=b", "limit=1")["keys"]); !slices.Equal(got, []string{"c"}) {
		t.Errorf("vault read: %v", got)
	}
	m.refuses(http.StatusBadRequest, http.MethodGet, "roles?list=true&limit=-1", nil, "limit")
	m.refuses(http.StatusBadRequest, http.MethodGet, "roles?list=true&limit=some", nil, "limit")
}
