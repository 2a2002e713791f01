// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	consumerPage  = "docs/how-to/use-the-consumer-sdk.md"
	consumerDir   = "docs/how-to/examples/consumer"
	consumerBuild = "go build -o bin/ ./" + consumerDir + "/..."
)

// buildConsumers builds the programs that a page builds by consumerBuild: they
// take the compiler's cache, which the shell of a page does not have.
func buildConsumers(t *testing.T, to string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", to+string(filepath.Separator), "./"+consumerDir+"/...")
	cmd.Dir = repoRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the examples: %v\n%s", err, out)
	}
}

// TestDocsConsumerExamplesAreOnThePage finds the Go of the page in the program
// that the page runs, and in the examples of the package, which are tests.
func TestDocsConsumerExamplesAreOnThePage(t *testing.T) {
	t.Parallel()
	root := repoRoot(t)
	code := readFile(t, root, consumerDir, "client/main.go") + readFile(t, root, "sdk/consumer/example_test.go")
	shown := 0
	for _, b := range blocks(t, consumerPage, readFile(t, root, consumerPage)) {
		if b.lang != "go" {
			continue
		}
		shown++
		if !strings.Contains(code, strings.Join(b.body, "\n")) {
			t.Errorf("%s:%d: no example has this code", consumerPage, b.line)
		}
	}
	if shown == 0 {
		t.Errorf("%s shows no Go", consumerPage)
	}
}
