// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestReferenceIsComplete finds each field, code, metric and default of the
// program in docs/reference/gateway.md.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../../../../docs/reference/gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	has := func(text string) {
		t.Helper()
		if !strings.Contains(page, text) {
			t.Errorf("the reference has no %s", text)
		}
	}
	for _, part := range []any{file{}, vaultBlock{}, authBlock{}, appRoleBlock{}, kubernetesBlock{}, tokenFileBlock{}, verifierBlock{}, listenerBlock{}, keyBlock{}, routeBlock{}} {
		for field := range reflect.TypeOf(part).Fields() {
			name, kind, _ := strings.Cut(field.Tag.Get("hcl"), ",")
			if name != "" && kind != "label" && kind != "block" {
				has("`" + name + "`")
			}
			if kind == "block" {
				has(name)
			}
		}
	}
	for _, reason := range Reasons() {
		has("`" + string(reason) + "`")
	}
	g := newTestGateway(t, testConfig)
	g.metrics.requests.WithLabelValues("http", "x", "VALID")
	g.metrics.seconds.WithLabelValues("http")
	families, err := g.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "apikeys_gateway_") {
			found++
			has("| `" + f.GetName() + "` |")
		}
	}
	if found == 0 {
		t.Error("no metrics were found")
	}
	for _, field := range IdentityFields() {
		if !strings.Contains(strings.ToLower(page), "`"+strings.ToLower(field)+"`") {
			t.Errorf("the reference has no %s", field)
		}
	}
}
