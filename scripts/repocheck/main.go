// SPDX-License-Identifier: MPL-2.0

// Command repocheck checks what no compiler does: that the links between the
// documents lead somewhere, anchors included, that every source file carries
// its licence, and that the shell scripts parse. It looks only at files that
// git knows or would add.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"unicode"
)

func main() {
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "repocheck: git ls-files:", err)
		os.Exit(1)
	}
	r := &repo{content: map[string]string{}, dirs: map[string]bool{".": true}}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // deleted, but not yet in git's eyes
		}
		r.add(name, string(b))
	}
	problems := r.check()
	for _, p := range problems {
		fmt.Println(p)
	}
	if len(problems) > 0 {
		fmt.Printf("FAIL repocheck: %d problems\n", len(problems))
		os.Exit(1)
	}
	fmt.Printf("ok   repocheck: %d files, %d links\n", len(r.names), r.links)
}

type repo struct {
	names   []string
	content map[string]string
	dirs    map[string]bool
	links   int
}

func (r *repo) add(name, content string) {
	r.names = append(r.names, name)
	r.content[name] = content
	for dir := path.Dir(name); !r.dirs[dir]; dir = path.Dir(dir) {
		r.dirs[dir] = true
	}
}

func (r *repo) check() []string {
	var problems []string
	for _, name := range r.names {
		content := r.content[name]
		first, _, _ := strings.Cut(content, "\n")
		shell := strings.HasSuffix(name, ".sh") || strings.HasPrefix(first, "#!") && strings.HasSuffix(first, "sh")
		switch {
		case strings.HasSuffix(name, ".go"):
			if first != "// SPDX-License-Identifier: MPL-2.0" {
				problems = append(problems, name+":1: the first line is not // SPDX-License-Identifier: MPL-2.0")
			}
		case shell:
			if !strings.Contains(content, "\n# SPDX-License-Identifier: MPL-2.0\n") {
				problems = append(problems, name+":2: no # SPDX-License-Identifier: MPL-2.0 after the first line")
			}
			if out, err := exec.Command("bash", "-n", name).CombinedOutput(); err != nil {
				problems = append(problems, strings.TrimSpace(string(out)))
			}
		case strings.HasSuffix(name, ".md"):
			problems = append(problems, r.checkLinks(name, content)...)
		}
	}
	return problems
}

var (
	// [text](target), ![text](target), [text](target "title"), and [label]: target
	inlineLink    = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)`)
	referenceLink = regexp.MustCompile(`^ {0,3}\[[^\]^]+\]:\s+<?([^\s>]+)>?`)
	codeSpan      = regexp.MustCompile("`[^`]*`")
)

func (r *repo) checkLinks(name, content string) []string {
	var problems []string
	eachProseLine(content, func(number int, line string) {
		line = codeSpan.ReplaceAllString(line, "``")
		matches := inlineLink.FindAllStringSubmatch(line, -1)
		matches = append(matches, referenceLink.FindAllStringSubmatch(line, -1)...)
		for _, match := range matches {
			r.links++
			if fault := r.follow(name, match[1]); fault != "" {
				problems = append(problems, fmt.Sprintf("%s:%d: link %s: %s", name, number, match[1], fault))
			}
		}
	})
	return problems
}

// follow says what is wrong with a link, or nothing. Links out of the
// repository are not followed: CI has no network for them.
func (r *repo) follow(from, link string) string {
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return ""
	}
	target, anchor, _ := strings.Cut(link, "#")
	file := from
	switch {
	case strings.HasPrefix(target, "/"):
		file = path.Clean(target[1:])
	case target != "":
		file = path.Join(path.Dir(from), target)
	}
	content, isFile := r.content[file]
	if !isFile && !r.dirs[file] {
		return "there is no " + file
	}
	if anchor != "" && strings.HasSuffix(file, ".md") && !anchors(content)[anchor] {
		return file + " has no heading #" + anchor
	}
	return ""
}

var (
	heading    = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*#*$`)
	htmlAnchor = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
	linkText   = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// anchors are the fragments that a page has, made from its headings as GitHub does.
func anchors(content string) map[string]bool {
	found := map[string]bool{}
	eachProseLine(content, func(_ int, line string) {
		for _, match := range htmlAnchor.FindAllStringSubmatch(line, -1) {
			found[match[1]] = true
		}
		match := heading.FindStringSubmatch(line)
		if match == nil {
			return
		}
		slug := strings.Map(func(c rune) rune {
			switch {
			case c == ' ':
				return '-'
			case c == '-' || c == '_' || unicode.IsLetter(c) || unicode.IsDigit(c):
				return unicode.ToLower(c)
			default:
				return -1
			}
		}, linkText.ReplaceAllString(match[1], "$1"))
		unique := slug
		for n := 1; found[unique]; n++ {
			unique = fmt.Sprintf("%s-%d", slug, n)
		}
		found[unique] = true
	})
	return found
}

// eachProseLine calls f for the lines outside of fenced code.
func eachProseLine(content string, f func(number int, line string)) {
	fence := ""
	for i, line := range strings.Split(content, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case fence != "":
			if strings.HasPrefix(trimmed, fence) {
				fence = ""
			}
		case strings.HasPrefix(trimmed, "```"):
			fence = "```"
		case strings.HasPrefix(trimmed, "~~~"):
			fence = "~~~"
		default:
			f(i+1, line)
		}
	}
}
