// SPDX-License-Identifier: MPL-2.0

package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the report into the page")

// TestThePageHasTheReportOfTheCommand: what docs/explanation/anomalies.md
// claims is what the command prints. `go test ./backend/internal/anomaly/eval
// -rewrite` writes it anew; look at the difference.
func TestThePageHasTheReportOfTheCommand(t *testing.T) {
	t.Parallel()
	const begin, end = "<!-- report: begin -->\n", "<!-- report: end -->"
	page := filepath.Join("..", "..", "..", "..", "docs", "explanation", "anomalies.md")
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	stated, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q and %q", page, begin, end)
	}
	var printed strings.Builder
	if err := report(&printed, defaults); err != nil {
		t.Fatal(err)
	}
	want := "\n" + printed.String() + "\n"
	if stated == want {
		return
	}
	if !*rewrite {
		t.Fatalf("%s states\n%s\nbut the command prints\n%s", page, stated, want)
	}
	if err := os.WriteFile(page, []byte(before+begin+want+end+after), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTheSameSeedIsTheSameReport, and another seed is another one.
func TestTheSameSeedIsTheSameReport(t *testing.T) {
	t.Parallel()
	var reports [3]strings.Builder
	for i, seed := range []uint64{7, 7, 8} {
		if err := report(&reports[i], config{firstSeed: seed, seeds: 1, keys: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if reports[0].String() != reports[1].String() {
		t.Fatalf("one seed, two reports:\n%s\n%s", reports[0].String(), reports[1].String())
	}
	if cut(reports[0].String()) == cut(reports[2].String()) {
		t.Fatal("two seeds, one report")
	}
}

// cut leaves the line with the seeds out.
func cut(report string) string {
	_, tables, _ := strings.Cut(report, "\n")
	return tables
}
