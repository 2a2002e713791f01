// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"os"
	"os/exec"
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

// TestSystemdUnits has systemd check the units of deploy/systemd, with the test's
// own program for the gateway's.
func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIP: there is no systemd-analyze to check the units with; install systemd")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "--man=no"}
	dir := t.TempDir()
	for _, name := range []string{"apikeys-gateway.service", "apikeys-gateway.socket"} {
		content, err := os.ReadFile("../../../../deploy/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir+"/"+name, strings.ReplaceAll(string(content), "ExecStart=/usr/local/bin/apikeys ", "ExecStart="+program+" "))
		args = append(args, dir+"/"+name)
	}
	if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
