// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/internal/version"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// published is what the reference promises: each path with its operations.
var published = map[string][]logical.Operation{
	"config":                {logical.ReadOperation, logical.UpdateOperation, logical.PatchOperation},
	"roles/":                {logical.ListOperation},
	"roles/:role":           {logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation, logical.ReadOperation, logical.DeleteOperation},
	"roles/:role/rotate":    {logical.UpdateOperation, logical.ReadOperation},
	"keys/":                 {logical.ListOperation},
	"keys/:name":            {logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation, logical.ReadOperation, logical.DeleteOperation},
	"import":                {logical.UpdateOperation},
	"static-creds/:name":    {logical.ReadOperation},
	"creds/:role":           {logical.ReadOperation},
	"rotate-leased/:key_id": {logical.UpdateOperation},
	"rotate/:name":          {logical.UpdateOperation},
	"promote/:name":         {logical.UpdateOperation},
	"rollback/:name":        {logical.UpdateOperation},
	"extend/:name":          {logical.UpdateOperation},
	"retire/:name":          {logical.UpdateOperation},
	"revoke/:name":          {logical.UpdateOperation},
	"history/:name":         {logical.ReadOperation},
	"verify":                {logical.UpdateOperation},
	"sweep":                 {logical.UpdateOperation},
	"info":                  {logical.ReadOperation},
	"metrics":               {logical.ReadOperation},
	"sync":                  {logical.ReadOperation},
	"lookup":                {logical.UpdateOperation},
	"verifiers/":            {logical.ListOperation},
	"verifiers/:id":         {logical.ReadOperation},
	"usage":                 {logical.UpdateOperation},
	"usage/:name":           {logical.ReadOperation},
	"confirm/:name":         {logical.UpdateOperation},
	"rollovers/":            {logical.ListOperation},
	"rollovers/:name":       {logical.ReadOperation},
	"webhooks/":             {logical.ListOperation},
	"webhooks/:name":        {logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation, logical.ReadOperation, logical.DeleteOperation},
	"webhooks/:name/test":   {logical.UpdateOperation},
	"claim":                 {logical.UpdateOperation},
}

// plainReads may be answered by any node: they read metadata that is stored.
// All other operations must reach the active node of the primary cluster.
var plainReads = []string{
	"read config", "list roles/", "read roles/:role", "list keys/", "read keys/:name", "read history/:name", "read info",
}

var capture = regexp.MustCompile(`\(\?P<([a-z_]+)>[^)]*\)`)

// shown is a pattern as the documentation writes it.
func shown(pattern string) string {
	return strings.Trim(strings.ReplaceAll(capture.ReplaceAllString(pattern, ":$1"), "/?", "/"), "^$")
}

func TestPathsAreThosePublished(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	var local []string
	seen := map[string]bool{}
	for _, path := range m.Paths {
		name := shown(path.Pattern)
		seen[name] = true
		ops := published[name]
		if ops == nil {
			t.Errorf("%s is not published", name)
		}
		for op, handler := range path.Operations {
			if !slices.Contains(ops, op) {
				t.Errorf("%s of %s is not published", op, name)
			}
			standby, secondary := handler.Properties().ForwardPerformanceStandby, handler.Properties().ForwardPerformanceSecondary
			if standby != secondary {
				t.Errorf("%s of %s is forwarded by one kind of node only", op, name)
			}
			if !standby {
				local = append(local, fmt.Sprintf("%s %s", op, name))
			}
		}
		for _, op := range ops {
			if path.Operations[op] == nil {
				t.Errorf("%s has no %s", name, op)
			}
		}
	}
	for name := range published {
		if !seen[name] {
			t.Errorf("there is no path %s", name)
		}
	}
	slices.Sort(local)
	want := slices.Sorted(slices.Values(plainReads))
	if !slices.Equal(local, want) {
		t.Errorf("not forwarded are\n%q, want\n%q", local, want)
	}
}

func TestPathsExplainThemselves(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	for _, path := range m.Paths {
		name := shown(path.Pattern)
		if path.HelpSynopsis == "" || path.HelpDescription == "" {
			t.Errorf("%s has no help", name)
		}
		if path.DisplayAttrs == nil || path.DisplayAttrs.OperationPrefix != operationPrefix || path.DisplayAttrs.OperationSuffix == "" {
			t.Errorf("%s has no display attributes", name)
		}
		for _, part := range capture.FindAllStringSubmatch(path.Pattern, -1) {
			if path.Fields[part[1]] == nil {
				t.Errorf("%s has no field %s", name, part[1])
			}
		}
		checkFields(t, name, path.Fields)
		for op, handler := range path.Operations {
			what, props := fmt.Sprintf("%s of %s", op, name), handler.Properties()
			if props.Summary == "" || props.DisplayAttrs == nil || props.DisplayAttrs.OperationVerb == "" {
				t.Errorf("%s has no summary or no verb", what)
			}
			if len(props.Responses) == 0 {
				t.Errorf("%s declares no answer", what)
			}
			for status, responses := range props.Responses {
				for _, r := range responses {
					if r.Description == "" {
						t.Errorf("%s has an answer %d without a description", what, status)
					}
					if (status == http.StatusOK && name != metricsPattern) != (len(r.Fields) > 0) {
						t.Errorf("%s declares an answer %d with %d fields", what, status, len(r.Fields))
					}
					checkFields(t, what, r.Fields)
				}
			}
		}
		help, err := m.HandleRequest(t.Context(), m.newRequest(logical.HelpOperation, target(path.Pattern, strings.Repeat("a", token.IDLength)), nil))
		if err != nil || !strings.Contains(fmt.Sprint(help.Data["help"]), path.HelpSynopsis) {
			t.Errorf("help of %s: %v", name, err)
		}
	}
	if resp, err := m.HandleRequest(t.Context(), m.newRequest(logical.HelpOperation, "", nil)); err != nil || !strings.Contains(fmt.Sprint(resp.Data["help"]), "API keys") {
		t.Errorf("help of the engine: %v, %v", resp, err)
	}
}

func checkFields(t *testing.T, what string, all map[string]*framework.FieldSchema) {
	t.Helper()
	for name, field := range all {
		if !fieldShape.MatchString(name) {
			t.Errorf("%s has a field with the name %q", what, name)
		}
		if !strings.HasSuffix(field.Description, ".") {
			t.Errorf("%s: field %s is described as %q", what, name, field.Description)
		}
		if secretive := name == fieldAPIKey || name == fieldImportKey || name == fieldSecret || name == "code" && what == claimPattern; secretive != (field.DisplayAttrs != nil && field.DisplayAttrs.Sensitive) {
			t.Errorf("%s: field %s is wrongly marked as sensitive or not", what, name)
		}
	}
}

// TestNoPathHidesAnother asks for a URL of each path and looks which answers.
func TestNoPathHidesAnother(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	for _, path := range m.Paths {
		for _, url := range []string{
			target(path.Pattern, strings.Repeat("a", token.IDLength)),
			capture.ReplaceAllString(strings.Trim(strings.ReplaceAll(path.Pattern, "/?", ""), "^$"), "rotate"),
		} {
			if got := m.Route(url); got != path {
				t.Errorf("%s is answered by %s", url, shown(got.Pattern))
			}
		}
	}
}

// TestAStandbyForwardsAllButPlainReads asks a performance standby for every
// operation: the SDK's ErrReadOnly makes Vault forward the request.
func TestAStandbyForwardsAllButPlainReads(t *testing.T) {
	t.Parallel()
	m, leasedID := furnished(t)
	m.Cleanup(t.Context())
	for _, state := range []consts.ReplicationState{consts.ReplicationPerformanceStandby, consts.ReplicationPerformanceSecondary} {
		standby := newIdleMount(t, m.memory, m.storage, m.clock)
		standby.view.ReplicationStateVal = state
		if err := standby.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}); err != nil {
			t.Fatal(err)
		}
		before := m.snapshot()
		for _, path := range standby.Paths {
			for op := range path.Operations {
				resp, err := standby.HandleRequest(t.Context(), standby.newRequest(op, target(path.Pattern, leasedID), nil))
				local := slices.Contains(plainReads, fmt.Sprintf("%s %s", op, shown(path.Pattern)))
				if forwarded := errors.Is(err, logical.ErrReadOnly); forwarded == local || local && (err != nil || resp == nil) {
					t.Errorf("%s %s on a standby: %v, %v", op, path.Pattern, resp, err)
				}
			}
		}
		if err := standby.PeriodicFunc(t.Context(), &logical.Request{Storage: m.storage}); err != nil {
			t.Errorf("periodic on a standby: %v", err)
		}
		if diff := before.diff(m.snapshot()); diff != "" {
			t.Errorf("a standby changed %s", diff)
		}
	}
}

func TestAStandbyOfAMountThatWasNeverUsedStarts(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	standby := newIdleMount(t, memory, memory, clock.NewManual(epoch))
	standby.view.ReplicationStateVal = consts.ReplicationPerformanceStandby
	if err := standby.Initialize(t.Context(), &logical.InitializationRequest{Storage: memory}); err != nil {
		t.Fatal(err)
	}
	if memory.Len() != 0 {
		t.Error("a standby wrote to storage")
	}
	// The same process becomes the active node.
	standby.view.ReplicationStateVal = 0
	if err := standby.PeriodicFunc(t.Context(), &logical.Request{Storage: memory}); err != nil {
		t.Fatal(err)
	}
	standby.role(nil)
	standby.wantCodes("VALID", standby.key("acme", nil))
}

func TestOperationsHaveNamesOfTheirOwnInOpenAPI(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	resp, err := m.HandleRequest(t.Context(), m.newRequest(logical.HelpOperation, "", nil))
	if err != nil {
		t.Fatal(err)
	}
	doc, ok := resp.Data["openapi"].(*framework.OASDocument)
	if !ok {
		t.Fatalf("no OpenAPI document but %T", resp.Data["openapi"])
	}
	seen := map[string]string{}
	for path, item := range doc.Paths {
		for _, op := range []*framework.OASOperation{item.Get, item.Post, item.Delete, item.Patch} {
			switch {
			case op == nil:
			case op.OperationID == "" || seen[op.OperationID] != "":
				t.Errorf("%s: the operation id %q is that of %s", path, op.OperationID, seen[op.OperationID])
			default:
				seen[op.OperationID] = path
			}
		}
	}
	if len(seen) < len(published) {
		t.Errorf("OpenAPI has only %d operations", len(seen))
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	info := m.read("info")
	if info["version"] != version.Version || info["commit"] != version.Commit || number(t, info["schema"]) != 1 {
		t.Errorf("info is %v", info)
	}
	if m.RunningVersion != version.Version {
		t.Errorf("the running version is %q", m.RunningVersion)
	}
}

func TestOnlyTheMountsKeysAreSealWrapped(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("webhooks/hook", object{"url": "https://example.com/hook"})
	for _, prefix := range m.SpecialPaths().SealWrapStorage {
		if !strings.HasSuffix(prefix, "/") || len(m.memory.Paths(prefix)) == 0 {
			t.Errorf("seal wrapping of %q wraps nothing", prefix)
		}
	}
	if open := m.SpecialPaths().Unauthenticated; !slices.Equal(open, []string{"claim"}) || len(m.SpecialPaths().Root) > 0 {
		t.Errorf("unauthenticated are %q", open)
	}
}
