// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What the pages about the SDK build, and where they show it.
const (
	consumerPage = "docs/how-to/use-the-consumer-sdk.md"
	consumerDir  = "docs/how-to/examples/consumer"
	verifierPage = "docs/how-to/verify-with-the-sdk.md"
	verifierDir  = "docs/how-to/examples/verifier"
)

// buildExamples builds the programs that a page builds: they take the
// compiler's cache, which the shell of a page does not have.
func buildExamples(t *testing.T, dir, to string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", to+string(filepath.Separator), "./"+dir+"/...")
	cmd.Dir = repoRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the examples: %v\n%s", err, out)
	}
}

// TestDocsGoExamplesAreOnThePage finds the Go of the pages in the programs
// that they run, and in the examples of the package, which are tests.
func TestDocsGoExamplesAreOnThePage(t *testing.T) {
	t.Parallel()
	root := repoRoot(t)
	for page, code := range map[string]string{
		consumerPage: readFile(t, root, consumerDir, "client/main.go") + readFile(t, root, "sdk/consumer/example_test.go"),
		verifierPage: readFile(t, root, verifierDir, "main.go"),
	} {
		shown := 0
		for _, b := range blocks(t, page, readFile(t, root, page)) {
			if b.lang != "go" {
				continue
			}
			shown++
			if !strings.Contains(code, strings.Join(b.body, "\n")) {
				t.Errorf("%s:%d: no example has this code", page, b.line)
			}
		}
		if shown == 0 {
			t.Errorf("%s shows no Go", page)
		}
	}
}
