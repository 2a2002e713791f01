// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	declaredTest = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	namedTest    = regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
)

// declaredTests are the names of all tests of the repository.
func declaredTests(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	files := os.DirFS(root)
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != ".":
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(files, path)
		for _, match := range declaredTest.FindAllSubmatch(text, -1) {
			names[string(match[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestDocsSecurityReviewNamesTestsThatExist checks that each threat names a test
// that covers it, and that all of those exist.
func TestDocsSecurityReviewNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	tests := declaredTests(t, root)
	text, err := os.ReadFile(filepath.Join(root, "docs", "explanation", "security-review.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, threats, found := strings.Cut(string(text), "\n## Threats\n")
	threats, _, _ = strings.Cut(threats, "\n## What is left")
	if !found {
		t.Fatal("the page has no threats")
	}
	rows := 0
	for line := range strings.Lines(threats) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| threat |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		named := namedTest.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(cells) != 3 || len(named) == 0 {
			t.Errorf("a threat without a test: %s", line)
		}
		for _, match := range named {
			if !tests[match[1]] {
				t.Errorf("%s does not exist, and is to cover: %s", match[1], strings.TrimSpace(cells[0]))
			}
		}
	}
	if rows < 20 {
		t.Errorf("the page has %d threats", rows)
	}
}
