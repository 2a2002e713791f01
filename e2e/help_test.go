// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEveryPathHasHelpAndAppearsInOpenAPI(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	paths := openAPI(t, m)
	want := []string{
		"config", "creds/{role}", "extend/{name}", "history/{name}", "import", "info", "keys/", "keys/{name}",
		"promote/{name}", "retire/{name}", "revoke/{name}", "roles/", "roles/{role}", "roles/{role}/rotate", "rollback/{name}",
		"rotate-leased/{key_id}", "rotate/{name}", "static-creds/{name}", "sweep", "verify",
	}
	for _, path := range want {
		if _, ok := paths[path]; !ok {
			t.Errorf("OpenAPI has no %s", path)
		}
	}
	for path, item := range paths {
		var description string
		_ = json.Unmarshal(item["description"], &description)
		if description == "" {
			t.Errorf("%s has no description", path)
		}
		ids := map[string]bool{}
		for _, method := range []string{"get", "post", "patch", "delete"} {
			raw, ok := item[method]
			if !ok {
				continue
			}
			var op struct {
				Summary     string         `json:"summary"`
				OperationID string         `json:"operationId"`
				Responses   map[string]any `json:"responses"`
				Parameters  []struct {
					Name string `json:"name"`
				} `json:"parameters"`
			}
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatal(err)
			}
			if op.Summary == "" || op.OperationID == "" || len(op.Responses) == 0 || ids[op.OperationID] {
				t.Errorf("%s %s: summary %q, id %q, responses %v", method, path, op.Summary, op.OperationID, op.Responses)
			}
			ids[op.OperationID] = true
			if strings.HasSuffix(path, "s/") {
				params := []string{"after", "limit"}
				if path == "keys/" {
					params = append(params, "role")
				}
				for _, name := range params {
					if !slices.ContainsFunc(op.Parameters, func(p struct {
						Name string `json:"name"`
					}) bool {
						return p.Name == name
					}) {
						t.Errorf("LIST %s does not tell of %s", path, name)
					}
				}
			}
		}
		example := strings.NewReplacer("{name}", "x", "{role}", "x", "{key_id}", strings.Repeat("x", 12)).Replace(path)
		a := m.call(http.MethodGet, example+"?help=1", nil)
		help, _ := a.body["help"].(string)
		if !strings.Contains(help, "Matching Route:") || !strings.Contains(help, "## DESCRIPTION") || strings.Contains(help, "<no synopsis>") || strings.Contains(help, "<no description>") {
			t.Errorf("path-help %s: %s", example, help)
		}
	}
	if out := m.cli("path-help", m.path+"/rotate/x"); !strings.Contains(out, "Rotate a key.") || !strings.Contains(out, "request_id") {
		t.Errorf("vault path-help rotate/x: %s", out)
	}
	if out := m.cli("path-help", m.path); !strings.Contains(out, "without downtime") {
		t.Errorf("vault path-help: %s", out)
	}
}

func TestNewKeyCanBeWrappedAndIsUnwrappedOnce(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	var body map[string]any
	out := m.cli("write", "-format=json", "-wrap-ttl=60s", m.path+"/keys/acme", "role=trading")
	if err := json.Unmarshal([]byte(out), &body); err != nil {
		t.Fatal(err)
	}
	wrap, _ := body["wrap_info"].(map[string]any)
	token, _ := wrap["token"].(string)
	if token == "" || strings.Contains(out, "api_key") {
		t.Fatal("the answer is not wrapped")
	}
	// Whoever is to have the key needs nothing but the wrapping token.
	apiKey, _ := m.as(token).cliJSON("unwrap")["api_key"].(string)
	m.accepts(apiKey)
	if _, stderr, code := m.srv.CLI(t, token, "unwrap"); code == 0 || !strings.Contains(stderr, "wrapping token is not valid") {
		t.Errorf("unwrapped twice: exit %d, %s", code, stderr)
	}

	rotated := m.cli("write", "-f", "-field=wrapping_token", "-wrap-ttl=60s", m.path+"/rotate/acme")
	second, _ := m.as(strings.TrimSpace(rotated)).cliJSON("unwrap")["api_key"].(string)
	m.accepts(second)
	if v := m.accepts(apiKey); v.SupersededBy != 2 || time.Until(v.AcceptedUntil) < 23*time.Hour {
		t.Errorf("the former version: %+v", v)
	}
}
