// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// block is one fenced block of a page.
type block struct {
	page   string
	line   int // of the opening fence
	lang   string
	body   []string
	marks  marks
	indent int
}

// marks are what the comment before a block says.
type marks struct {
	notRun     string
	exit       int
	until      bool
	background bool
}

// command is one command of a block and the output that the page shows.
type command struct {
	page       string
	line       int
	text       string
	want       []string
	exit       int
	until      bool
	background bool
}

func (c command) at() string { return fmt.Sprintf("%s:%d", c.page, c.line) }

func repoRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func readFile(t *testing.T, parts ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var (
	fenceLine = regexp.MustCompile("^( *)```([a-z]*)\\s*$")
	markLine  = regexp.MustCompile(`^\s*<!-- (not run: .+|exit \d+|until|background) -->\s*$`)
)

// blocks returns the fenced blocks of a page. A mark that no block follows is
// a mistake in the page.
func blocks(t *testing.T, page, content string) []block {
	t.Helper()
	var found []block
	var open *block
	var next marks
	marked := 0
	for i, line := range strings.Split(content, "\n") {
		if open != nil {
			if strings.TrimSpace(line) == "```" {
				found = append(found, *open)
				open = nil
				continue
			}
			open.body = append(open.body, strings.TrimPrefix(line, strings.Repeat(" ", open.indent)))
			continue
		}
		if m := markLine.FindStringSubmatch(line); m != nil {
			marked = i + 1
			switch kind, rest, _ := strings.Cut(m[1], " "); kind {
			case "not":
				next.notRun = strings.TrimPrefix(rest, "run: ")
			case "exit":
				next.exit, _ = strconv.Atoi(rest)
			case "until":
				next.until = true
			case "background":
				next.background = true
			}
			continue
		}
		if m := fenceLine.FindStringSubmatch(line); m != nil {
			open = &block{page: page, line: i + 1, lang: m[2], marks: next, indent: len(m[1])}
			next, marked = marks{}, 0
			continue
		}
		if marked > 0 && strings.TrimSpace(line) != "" {
			t.Errorf("%s:%d: a mark with no block after it", page, marked)
			next, marked = marks{}, 0
		}
	}
	if open != nil {
		t.Errorf("%s:%d: the block is not closed", page, open.line)
	}
	return found
}

var hereDoc = regexp.MustCompile(`<<-?'?([A-Z]+)'?`)

// commands splits a block into its commands.
func (b block) commands(t *testing.T) []command {
	t.Helper()
	var list []command
	if b.lang == "shell" {
		text := strings.Join(b.body, "\n")
		list = []command{{page: b.page, line: b.line + 1, text: text}}
	} else {
		for i := 0; i < len(b.body); i++ {
			line := b.body[i]
			text, isCommand := strings.CutPrefix(line, "$ ")
			if !isCommand {
				if len(list) == 0 {
					t.Fatalf("%s:%d: output before the first command of a console block", b.page, b.line+1+i)
				}
				list[len(list)-1].want = append(list[len(list)-1].want, line)
				continue
			}
			c := command{page: b.page, line: b.line + 1 + i}
			end := ""
			if m := hereDoc.FindStringSubmatch(text); m != nil {
				end = m[1]
			}
			for i+1 < len(b.body) && (strings.HasSuffix(text, `\`) && end == "" || end != "") {
				i++
				text += "\n" + b.body[i]
				if end != "" && b.body[i] == end {
					break
				}
			}
			c.text = text
			list = append(list, c)
		}
	}
	if len(list) > 0 {
		last := &list[len(list)-1]
		last.exit, last.until, last.background = b.marks.exit, b.marks.until, b.marks.background
	}
	return list
}

var (
	spaces    = regexp.MustCompile(`[ \t]+`)
	claims    = regexp.MustCompile(`\bclaim_[0-9]+_[0-9A-Za-z_-]{43}`)
	apiKeys   = regexp.MustCompile(`\b[a-z][a-z0-9_]*_[0-9A-Za-z]{12}_[0-9A-Za-z*]{4,}`)
	stamps    = regexp.MustCompile(`\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)`)
	hashes    = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	idRows    = regexp.MustCompile(`"?\b(key_id|job_id|fingerprint|wrapping_token|wrapping_accessor|lease_id)\b"?:? ?"?[^\s",\]]+"?`)
	tableRule = regexp.MustCompile(`^-+( -+)*$`)
)

// normal makes two outputs of the same form equal: invented keys, ids and times
// stand in the pages, and columns are as wide as their longest entry.
func normal(line string) string {
	line = hashes.ReplaceAllString(line, "<hash>")
	line = claims.ReplaceAllString(line, "claim_<code>") // parts of a code may look like a key
	line = apiKeys.ReplaceAllString(line, "<key>")
	line = stamps.ReplaceAllString(line, "<time>")
	line = strings.TrimSpace(spaces.ReplaceAllString(line, " "))
	line = idRows.ReplaceAllString(line, "$1 <id>")
	if tableRule.MatchString(line) {
		return "---"
	}
	return line
}

// matches tells whether got is what the page shows.
func matches(want, got []string) bool {
	return match(trimBlank(want), trimBlank(got))
}

func match(want, got []string) bool {
	if len(want) == 0 {
		return len(got) == 0
	}
	if strings.TrimSpace(want[0]) == "..." {
		for skip := 0; skip <= len(got); skip++ {
			if match(want[1:], got[skip:]) {
				return true
			}
		}
		return false
	}
	return len(got) > 0 && matchLine(normal(want[0]), normal(got[0])) && match(want[1:], got[1:])
}

func matchLine(want, got string) bool {
	parts := strings.Split(want, "...")
	if len(parts) == 1 {
		return want == got
	}
	for i, part := range parts {
		switch {
		case i == 0:
			if !strings.HasPrefix(got, part) {
				return false
			}
			got = got[len(part):]
		case i == len(parts)-1:
			return strings.HasSuffix(got, part)
		default:
			at := strings.Index(got, part)
			if at < 0 {
				return false
			}
			got = got[at+len(part):]
		}
	}
	return true
}

// trimBlank drops empty lines: tools put them around their output as they like.
func trimBlank(lines []string) []string {
	var kept []string
	for _, line := range lines {
		if strings.TrimSpace(line) != "" {
			kept = append(kept, line)
		}
	}
	return kept
}

func TestDocsOutputMatching(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want, got string
		equal           bool
	}{
		{"columns", "key_id  ab\nstate   active", "key_id      6ktgqrKaXiGx\nstate       active", true},
		{"another state", "state   active", "state   retired", false},
		{"keys and times", "tm_live_Exam9leKey1d_**** until 2026-01-02T03:04:05Z", "tm_live_6ktgqrKaXiGx_xWi1QFF6RZY2WRGvt9MvLwc9Bp0jmQEA3Tonb5 until 2026-11-23T07:50:56.136Z", true},
		{"a code like a key", `"claim_code":"claim_...","name":"a"`, `"claim_code":"claim_20783_abcdefghijkl_mnopq-rstuvwxyzABCDEFGHIJKLMNOPQRS","name":"a"`, true},
		{"elided lines", "a\n...\nd", "a\nb\nc\nd", true},
		{"elided text", "version ... is active: ...", "version 4 of key is active: set rotate", true},
		{"missing line", "a\nb", "a", false},
		{"extra line", "a", "a\nb", false},
		{"rules", "Key   Value\n---   -----", "Key        Value\n---        -----", true},
	} {
		if got := matches(strings.Split(c.want, "\n"), strings.Split(c.got, "\n")); got != c.equal {
			t.Errorf("%s: matches = %v, want %v", c.name, got, c.equal)
		}
	}
}
