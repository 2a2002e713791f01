// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

const (
	terraformPage    = "docs/how-to/terraform.md"
	terraformExample = "docs/how-to/examples/terraform/main.tf"
)

// TestDocsTerraformExampleIsOnThePage keeps page and file the same, and the
// file in Terraform's own format where there is a terraform to ask.
func TestDocsTerraformExampleIsOnThePage(t *testing.T) {
	t.Parallel()
	root := repoRoot(t)
	var shown []string
	for _, b := range blocks(t, terraformPage, readFile(t, root, terraformPage)) {
		if b.lang == "hcl" {
			shown = append(shown, strings.Join(b.body, "\n"))
		}
	}
	if page, file := strings.Join(shown, "\n\n")+"\n", readFile(t, root, terraformExample); page != file {
		t.Errorf("the hcl blocks of %s, put together, are not %s:\n%s", terraformPage, terraformExample, page)
	}
	terraform, err := exec.LookPath("terraform")
	if err != nil {
		t.Log("SKIP terraform fmt: there is no terraform")
		return
	}
	if out, err := exec.Command(terraform, "fmt", "-check", "-diff", filepath.Join(root, terraformExample)).CombinedOutput(); err != nil {
		t.Errorf("terraform fmt: %v\n%s", err, out)
	}
}

// TestDocsAgentExamplesAreOnThePage keeps what the page shows of the examples
// the same as the files, which the page's commands run.
func TestDocsAgentExamplesAreOnThePage(t *testing.T) {
	t.Parallel()
	root := repoRoot(t)
	const page = "docs/how-to/vault-agent.md"
	files := readFile(t, root, "docs/how-to/examples/agent-file.hcl") + readFile(t, root, "docs/how-to/examples/agent-process.hcl")
	for _, b := range blocks(t, page, readFile(t, root, page)) {
		if b.lang == "hcl" && !strings.Contains(files, strings.Join(b.body, "\n")+"\n") {
			t.Errorf("%s:%d is in none of the examples", page, b.line)
		}
	}
}

// endpoint is a vault_generic_endpoint of the example.
type endpoint struct {
	path string
	data map[string]any
}

var (
	endpointBlock = regexp.MustCompile(`(?s)resource "vault_generic_endpoint" "\w+" \{\n(.*?)\n\}\n`)
	endpointPath  = regexp.MustCompile(`path\s+= "\$\{vault_mount\.apikeys\.path\}/([^"]+)"`)
	endpointData  = regexp.MustCompile(`(?s)jsonencode\((.*)\n  \}\)`)
	hclName       = regexp.MustCompile(`(?m)^(\s*)(\w+)\s*= `)
)

// endpoints reads the example. Of HCL it understands what stands there: an
// object with one attribute on a line. jsonencode does the same to it.
func endpoints(t *testing.T) []endpoint {
	t.Helper()
	var found []endpoint
	for _, m := range endpointBlock.FindAllStringSubmatch(readFile(t, repoRoot(t), terraformExample), -1) {
		path, object := endpointPath.FindStringSubmatch(m[1]), endpointData.FindStringSubmatch(m[1]+"\n")
		if path == nil || object == nil || !strings.Contains(m[1], "ignore_absent_fields = true") {
			t.Fatalf("not an endpoint as the page describes it:\n%s", m[1])
		}
		text := hclName.ReplaceAllString(object[1], `$1"$2": `)
		// A comma between the lines, but not after an opening brace or before a closing one.
		text = regexp.MustCompile(`([^{\s])\n(\s*[^}\s])`).ReplaceAllString(text, "$1,\n$2") + "}"
		e := endpoint{path: path[1]}
		decoder := json.NewDecoder(strings.NewReader(text))
		if err := decoder.Decode(&e.data); err != nil {
			t.Fatalf("%s: %v\n%s", e.path, err, text)
		}
		found = append(found, e)
	}
	if len(found) != 2 {
		t.Fatalf("%d endpoints in the example, want a role and a key", len(found))
	}
	return found
}

// TestDocsTerraformExampleDoesNotDrift does with the example what the provider
// does: PUT to create and to update, GET, compare each field that was written,
// DELETE, also of what is gone.
func TestDocsTerraformExampleDoesNotDrift(t *testing.T) {
	t.Parallel()
	srv := harness.StartDev(t, harness.Options{})
	plugin := harness.Plugin(t, harness.PluginOptions{Version: firstVersion})
	srv.RegisterPlugin(t, harness.PluginName, "", plugin.Path, plugin.SHA256)
	srv.EnableEngine(t, "apikeys", harness.PluginName)
	all := endpoints(t)

	apply := func(e endpoint) {
		t.Helper()
		path := "apikeys/" + e.path
		if _, err := srv.Client.Logical().WriteWithContext(t.Context(), path, e.data); err != nil {
			t.Fatalf("write %s: %v", path, err)
		}
		read, err := srv.Client.Logical().ReadWithContext(t.Context(), path)
		if err != nil || read == nil {
			t.Fatalf("read %s: %v, %v", path, read, err)
		}
		for field, written := range e.data {
			if got, want := plain(t, read.Data[field]), plain(t, written); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %s was written as %v and reads back as %v: a difference for ever", path, field, want, got)
			}
		}
	}
	for _, e := range all {
		apply(e)
	}
	before, err := srv.Client.Logical().ReadWithContext(t.Context(), "apikeys/static-creds/acme")
	if err != nil || before == nil {
		t.Fatalf("read the key: %v, %v", before, err)
	}
	for _, e := range all {
		apply(e) // the second apply, and every later one
	}
	after, err := srv.Client.Logical().ReadWithContext(t.Context(), "apikeys/static-creds/acme")
	if err != nil || after == nil || after.Data["api_key"] != before.Data["api_key"] {
		t.Errorf("another apply changed the key: %v", err)
	}
	// An update answers nothing: what the page says of write_fields.
	written, err := srv.Client.Logical().WriteWithContext(t.Context(), "apikeys/"+all[1].path, all[1].data)
	if err != nil || written != nil && len(written.Data) > 0 {
		t.Errorf("an update of a key answers: %v, %v", written, err)
	}
	for i := len(all) - 1; i >= 0; i-- {
		for range 2 {
			if _, err := srv.Client.Logical().DeleteWithContext(t.Context(), "apikeys/"+all[i].path); err != nil {
				t.Errorf("delete %s: %v", all[i].path, err)
			}
		}
	}
}

// plain is v as JSON has it.
func plain(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
