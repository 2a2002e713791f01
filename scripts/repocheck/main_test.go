// SPDX-License-Identifier: MPL-2.0

package main

import (
	"slices"
	"testing"
)

func TestRepocheckFindsWhatIsWrongAndNothingElse(t *testing.T) {
	r := &repo{content: map[string]string{}, dirs: map[string]bool{".": true}}
	r.add("README.md", `# A title
## The `+"`verify`"+` path, and more!
## Twice
## Twice
[ok](docs/a.md) [ok](docs/) [ok](#the-verify-path-and-more) [ok](#twice-1) [ok](https://example.com/nowhere)
[bad](docs/b.md) `+"`[code](nowhere.md)`"+`
`+"```"+`
[code](nowhere.md)
# no heading
`+"```"+`
[bad](#no-heading)
[label]: docs/a.md#deep
[label2]: docs/a.md#deeper
`)
	r.add("docs/a.md", "# A\n<a id=\"deep\"></a>\n[up](../README.md#a-title) [root](/README.md)\n")
	r.add("good.go", "// SPDX-License-Identifier: MPL-2.0\n\npackage x\n")
	r.add("bad.go", "package x\n")
	want := []string{
		"README.md:6: link docs/b.md: there is no docs/b.md",
		"README.md:11: link #no-heading: README.md has no heading #no-heading",
		"README.md:13: link docs/a.md#deeper: docs/a.md has no heading #deeper",
		"bad.go:1: the first line is not // SPDX-License-Identifier: MPL-2.0",
	}
	if got := r.check(); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
