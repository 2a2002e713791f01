// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// policies are the files that the documentation shows, by actor.
var policies = []string{"operator", "rotator", "client", "api-server", "verifier", "leased-client", "metrics"}

func policy(t testing.TB, actor string) string {
	t.Helper()
	hcl, err := os.ReadFile(filepath.Join("..", "docs", "policies", actor+".hcl"))
	if err != nil {
		t.Fatal(err)
	}
	return string(hcl)
}

// request is one request of the table below.
type request struct {
	method string
	path   string // below the mount
	body   map[string]any
	// route is the path as OpenAPI has it.
	route string
	// actors are those who may.
	actors []string
}

// everyRequest has each route and operation of the engine, in an order in
// which they can be made, and who may make them.
func everyRequest(leasedID string) []request {
	none := map[string]any{}
	role := map[string]any{"overlap_period": 60}
	hook := map[string]any{"url": "http://127.0.0.1:1/", "allow_private": true, "enabled": false} // nobody listens there
	return []request{
		{"GET", "config", nil, "config", []string{"operator"}},
		{"POST", "config", none, "config", []string{"operator"}},
		{"PATCH", "config", none, "config", []string{"operator"}},
		{"LIST", "roles", nil, "roles/", []string{"operator"}},
		{"POST", "roles/new", role, "roles/{role}", []string{"operator"}},
		{"POST", "roles/trading", none, "roles/{role}", []string{"operator"}},
		{"PATCH", "roles/new", none, "roles/{role}", []string{"operator"}},
		{"GET", "roles/new", nil, "roles/{role}", []string{"operator"}},
		{"DELETE", "roles/new", nil, "roles/{role}", []string{"operator"}},
		{"POST", "roles/trading/rotate", none, "roles/{role}/rotate", []string{"operator", "rotator"}},
		{"GET", "roles/trading/rotate", nil, "roles/{role}/rotate", []string{"operator", "rotator"}},
		{"LIST", "keys", nil, "keys/", []string{"operator", "rotator"}},
		{"POST", "keys/new", map[string]any{"role": "trading"}, "keys/{name}", []string{"operator"}},
		{"POST", "keys/acme", none, "keys/{name}", []string{"operator"}},
		{"PATCH", "keys/acme", none, "keys/{name}", []string{"operator"}},
		{"GET", "keys/acme", nil, "keys/{name}", []string{"operator", "rotator"}},
		{"DELETE", "keys/new", nil, "keys/{name}", []string{"operator"}},
		{"POST", "import", map[string]any{"batch_input": []any{}}, "import", []string{"operator"}},
		{"GET", "history/acme", nil, "history/{name}", []string{"operator", "rotator"}},
		{"GET", "static-creds/acme", nil, "static-creds/{name}", []string{"client"}},
		{"GET", "static-creds/other", nil, "static-creds/{name}", nil},
		{"GET", "creds/trading", nil, "creds/{role}", []string{"leased-client"}},
		{"GET", "creds/other", nil, "creds/{role}", nil},
		{"POST", "rotate-leased/" + leasedID, none, "rotate-leased/{key_id}", []string{"leased-client"}},
		{"POST", "rotate/acme", map[string]any{"force": true, "activation_delay": 60}, "rotate/{name}", []string{"operator", "rotator"}},
		{"POST", "promote/acme", none, "promote/{name}", []string{"operator", "rotator"}},
		{"POST", "rollback/acme", map[string]any{"force": true}, "rollback/{name}", []string{"operator", "rotator"}},
		{"POST", "extend/acme", none, "extend/{name}", []string{"operator", "rotator"}},
		{"POST", "retire/acme", map[string]any{"force": true}, "retire/{name}", []string{"operator", "rotator"}},
		{"POST", "revoke/acme", map[string]any{"version": 1, "rotate": true}, "revoke/{name}", []string{"operator"}},
		{"POST", "verify", map[string]any{"api_key": "nobody's"}, "verify", []string{"api-server"}},
		{"GET", "sync?verifier=eu-1&boot=1&epoch=&seq=0", nil, "sync", []string{"verifier"}},
		{"POST", "lookup", map[string]any{"key_ids": []any{leasedID}}, "lookup", []string{"verifier"}},
		{"LIST", "verifiers", nil, "verifiers/", []string{"operator"}},
		{"GET", "verifiers/eu-1", nil, "verifiers/{id}", []string{"operator"}},
		{"GET", "verifiers/eu/1", nil, "verifiers/{id}", []string{"operator"}},
		{"POST", "usage", map[string]any{"verifier": "eu-1", "boot": "1", "sequence": 1}, "usage", []string{"verifier"}},
		{"GET", "usage/acme", nil, "usage/{name}", []string{"operator", "rotator"}},
		{"POST", "confirm/acme", map[string]any{"version": 1, "instance": "eu-1"}, "confirm/{name}", []string{"client"}},
		{"POST", "confirm/other", map[string]any{"version": 1, "instance": "eu-1"}, "confirm/{name}", nil},
		{"LIST", "rollovers", nil, "rollovers/", []string{"operator", "rotator"}},
		{"GET", "rollovers/acme", nil, "rollovers/{name}", []string{"operator", "rotator"}},
		{"LIST", "webhooks", nil, "webhooks/", []string{"operator"}},
		{"POST", "webhooks/new", hook, "webhooks/{name}", []string{"operator"}},
		{"PATCH", "webhooks/new", none, "webhooks/{name}", []string{"operator"}},
		{"GET", "webhooks/new", nil, "webhooks/{name}", []string{"operator"}},
		{"POST", "webhooks/new/test", none, "webhooks/{name}/test", []string{"operator"}},
		{"DELETE", "webhooks/new", nil, "webhooks/{name}", []string{"operator"}},
		{"POST", "claim", map[string]any{"code": "nobody's"}, "claim", policies}, // a code needs no token
		{"POST", "sweep", none, "sweep", []string{"operator"}},
		{"GET", "info", nil, "info", []string{"operator"}},
		{"GET", "metrics", nil, "metrics", []string{"metrics"}},
	}
}

// The policies are written for a mount at apikeys/. On the Raft server only
// this test has that mount.
func TestPoliciesAllowEachActorItsJobAndNothingElse(t *testing.T) {
	t.Parallel()
	m := enable(t, raftServer(t), "apikeys")
	m.role("trading", "overlap_period", "1h", "max_accepted_versions", 16, "max_versions", 20, "ttl", "1h")
	m.role("other", "ttl", "1h")
	m.key("acme", "trading")
	m.key("other", "other")

	tokens := map[string]string{}
	for _, actor := range policies {
		m.srv.Policy(t, actor, policy(t, actor))
		tokens[actor] = newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{actor}, NoDefaultPolicy: true, TTL: "1h"}).ClientToken
	}
	leasedKey := m.as(tokens["leased-client"]).creds("trading")
	table := everyRequest(leasedKey.keyID)
	for _, r := range table {
		for actor, token := range tokens {
			a := m.as(token).call(r.method, r.path, r.body)
			denied := a.status == http.StatusForbidden
			switch may := slices.Contains(r.actors, actor); {
			case may && denied:
				t.Errorf("%s may not %s %s: %v", actor, r.method, r.path, a.errs)
			case may && a.status >= 500, may && a.status == http.StatusMethodNotAllowed:
				t.Errorf("%s: %s %s: %d %v", actor, r.method, r.path, a.status, a.errs)
			case !may && !denied:
				t.Errorf("%s may %s %s: %d", actor, r.method, r.path, a.status)
			}
		}
	}
	for actor, token := range tokens {
		for _, path := range []string{"sys/mounts", "sys/policies/acl/" + actor, "auth/token/lookup-self"} {
			a, err := m.as(token).send(http.MethodGet, path, nil)
			if err != nil || a.status != http.StatusForbidden {
				t.Errorf("%s: GET %s: %v, %v", actor, path, a, err)
			}
		}
	}

	// The table leaves no route and no operation out.
	covered := map[string]bool{}
	for _, r := range table {
		covered[strings.Replace(r.method, "LIST", "GET", 1)+" "+r.route] = true
	}
	all := operations(t, m)
	for op := range all {
		if !covered[op] {
			t.Errorf("the table of policies has no line for %s", op)
		}
	}
	for op := range covered {
		if !all[op] {
			t.Errorf("the table of policies has %s, which OpenAPI does not", op)
		}
	}
}

func TestEachActorCanDoItsJobWithItsPolicyAlone(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	actor := map[string]*mount{}
	for _, name := range policies {
		hcl := strings.ReplaceAll(policy(t, name), "apikeys/", m.path+"/")
		actor[name] = m.as(newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{writePolicy(t, m, name, hcl)}, NoDefaultPolicy: true, TTL: "1h"}).ClientToken)
	}
	actor["operator"].role("trading", "ttl", "1h")
	first := actor["operator"].key("acme", "trading")
	if actor["client"].read("static-creds/acme")["api_key"] != first {
		t.Error("the client reads another key")
	}
	actor["operator"].write("webhooks/partner", fields("url", "http://127.0.0.1:1/", "allow_private", true, "enabled", false))
	second := actor["rotator"].rotate("acme")
	actor["api-server"].accepts(first)
	actor["api-server"].accepts(second)
	if actor["client"].read("static-creds/acme")["api_key"] != second {
		t.Error("the client reads another key after the rotation")
	}
	actor["client"].write("confirm/acme", fields("version", 2, "instance", "eu-1"))
	actor["verifier"].write("usage", fields("verifier", "eu-1", "boot", "1", "sequence", 1, "entries", []any{
		fields("key_id", actor["operator"].info("acme").KeyID, "version", 1, "source", "eu-1", "count", 3),
	}))
	if r := actor["rotator"].rollover("acme"); r.From != 1 || r.To != 2 || len(r.Instances) != 1 {
		t.Errorf("the rotator reads the rollover %+v", r)
	}
	if use := actor["operator"].use("acme").version(1); use.UseCount != 4 {
		t.Errorf("the operator reads %d uses of version 1, want 1 that was verified and 3 that were reported", use.UseCount)
	}
	if got := actor["operator"].list("webhooks"); !slices.Equal(got, []string{"partner"}) {
		t.Errorf("the operator lists the webhooks %v", got)
	}
	l := actor["leased-client"].creds("trading")
	actor["api-server"].accepts(actor["leased-client"].rotateLeased(l.keyID).apiKey)
	actor["operator"].write("revoke/acme", fields("version", 2, "compromised", true, "rotate", true))
	actor["api-server"].rejects("COMPROMISED", second)
	if out := actor["rotator"].cli("list", m.path+"/keys"); !strings.Contains(out, "acme") {
		t.Errorf("the rotator lists: %s", out)
	}
}

func writePolicy(t testing.TB, m *mount, actor, hcl string) string {
	t.Helper()
	name := m.path + "-" + actor
	m.srv.Policy(t, name, hcl)
	return name
}

// openAPI is what Vault publishes about the engine, by path below the mount.
func openAPI(t testing.TB, m *mount) map[string]map[string]json.RawMessage {
	t.Helper()
	a, err := m.send(http.MethodGet, "sys/internal/specs/openapi", nil)
	if err != nil || !a.ok() {
		t.Fatalf("OpenAPI: %v, %v", a, err)
	}
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal([]byte(a.text), &document); err != nil {
		t.Fatal(err)
	}
	paths := map[string]map[string]json.RawMessage{}
	for path, item := range document.Paths {
		if below, ok := strings.CutPrefix(path, "/"+m.path+"/"); ok {
			paths[below] = item
		}
	}
	if len(paths) == 0 {
		t.Fatalf("OpenAPI has no path below %s/: %v", m.path, slices.Sorted(maps.Keys(document.Paths)))
	}
	return paths
}

// operations are those of OpenAPI, like "GET keys/{name}".
func operations(t testing.TB, m *mount) map[string]bool {
	t.Helper()
	ops := map[string]bool{}
	for path, item := range openAPI(t, m) {
		for _, method := range []string{"get", "post", "patch", "delete"} {
			if _, ok := item[method]; ok {
				ops[strings.ToUpper(method)+" "+path] = true
			}
		}
	}
	return ops
}
