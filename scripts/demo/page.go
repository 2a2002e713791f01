// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// page is where the story is written.
type page struct {
	out io.Writer
	// animated tells whether out is a terminal on which a picture can move.
	animated bool
	coloured bool
	fast     bool
}

func newPage(out *os.File, fast bool) *page {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &page{out: out, animated: terminal && !fast, coloured: terminal && os.Getenv("NO_COLOR") == "", fast: fast}
}

// The styles of ANSI terminals that are used.
const (
	bold  = "1"
	faint = "2"
	red   = "31"
	green = "32"
)

func (p *page) style(style, text string) string {
	if !p.coloured {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (p *page) line(text string) { _, _ = fmt.Fprintln(p.out, text) }

// say writes prose.
func (p *page) say(lines ...string) {
	for _, l := range lines {
		p.line(l)
	}
}

// title begins a part.
func (p *page) title(text string) {
	p.line("")
	p.line(p.style(bold, text))
	p.line(strings.Repeat("-", len(text)))
}

// rest gives a reader time.
func (p *page) rest(ctx context.Context, d time.Duration) error {
	if p.fast {
		return ctx.Err()
	}
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// animate shows what draw returns until done says so, in place on a terminal,
// else once at the end.
func (p *page) animate(ctx context.Context, draw func() []string, done func() (bool, error)) error {
	shown := 0
	for {
		finished, err := done()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if p.animated || finished {
			lines := draw()
			if shown > 0 {
				_, _ = fmt.Fprintf(p.out, "\x1b[%dA", shown)
			}
			for _, l := range lines {
				if p.animated {
					l += "\x1b[K"
				}
				p.line("  " + l)
			}
			shown = len(lines)
		}
		if finished {
			return nil
		}
		if err := sleep(ctx, watchEvery); err != nil {
			return err
		}
	}
}

// shellWord is an argument as one types it.
func shellWord(arg string) string {
	if arg != "" && !strings.ContainsAny(arg, " \t\n'\"\\$`!*?()[]{}<>|&;#~") {
		return arg
	}
	if name, value, ok := strings.Cut(arg, "="); ok && !strings.ContainsAny(arg, "\"\\$`!") {
		return name + `="` + value + `"`
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// excerpt returns the lines of a command's output that begin with one of the
// wanted words, or all of them where none is wanted.
func excerpt(output string, wanted ...string) []string {
	var kept []string
	for l := range strings.SplitSeq(strings.TrimSpace(output), "\n") {
		word := strings.TrimLeft(l, " \"")
		keep := len(wanted) == 0
		for _, w := range wanted {
			rest, ok := strings.CutPrefix(word, w)
			keep = keep || ok && (rest == "" || strings.ContainsAny(rest[:1], " \":,"))
		}
		if keep {
			kept = append(kept, strings.TrimRight(l, " "))
		}
	}
	return kept
}
