// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
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

// TestTheReportIsOfWhatTheEngineHandsOver: a Book on pages in storage, with the
// default usage_retention, hands over the hours that the report is made of.
func TestTheReportIsOfWhatTheEngineHandsOver(t *testing.T) {
	t.Parallel()
	judged := 0
	for i, c := range classes {
		if !slices.Contains([]string{"normal", "outage", "runaway", "stop", "Vault down"}, c.name) {
			continue
		}
		k := newKey(11, i, c)
		play(k, c, &both{t: t, Sheet: usage.NewSheet(monday), book: newBook(t, memory{}, monday), judged: &judged}, true)
	}
	if judged < 3000 {
		t.Errorf("only %d hours were judged", judged)
	}
}

// both are a Sheet and a Book with the same uses.
type both struct {
	*usage.Sheet
	t      *testing.T
	book   *book
	judged *int
}

func (b *both) Restart(since time.Time) {
	b.Sheet.Restart(since)
	b.book = newBook(b.t, b.book.pages, since)
}

func (b *both) Add(keyID string, at time.Time, n uint64) {
	b.Sheet.Add(keyID, at, n)
	b.book.tracker.Add(at, keyID, 3, "source", usage.Uses{Accepted: n})
	b.book.flush(at)
}

func (b *both) Hour(now time.Time, f func(keyID string, before []uint64, end time.Time, count uint64)) {
	b.book.judged = ""
	b.book.flush(now)
	sheet := ""
	b.Sheet.Hour(now, func(keyID string, before []uint64, end time.Time, count uint64) {
		*b.judged++
		sheet = fmt.Sprint(keyID, before, end, count)
		f(keyID, before, end, count)
	})
	if sheet != b.book.judged {
		b.t.Fatalf("at %s the sheet says\n%s\nand the book\n%s", now, sheet, b.book.judged)
	}
}

// book is a process with the counts of a key.
type book struct {
	t       *testing.T
	pages   memory
	clock   *clock.Manual
	tracker *usage.Tracker
	book    *usage.Book
	judged  string
}

func newBook(t *testing.T, pages memory, since time.Time) *book {
	t.Helper()
	b := &book{t: t, pages: pages, clock: clock.NewManual(since), tracker: usage.New(since)}
	b.book = usage.NewBook(b.tracker, pages, memory{}, b.clock, hclog.NewNullLogger())
	b.book.OnHour = func(keyID string, before []uint64, end time.Time, count uint64) {
		b.judged += fmt.Sprint(keyID, before, end, count)
	}
	return b
}

// flush is what each minute does.
func (b *book) flush(now time.Time) {
	b.t.Helper()
	b.clock.Advance(now.Sub(b.clock.Now()))
	if b.book.Idle() {
		return
	}
	if err := b.book.Flush(b.t.Context(), now, 168*time.Hour); err != nil {
		b.t.Fatal(err)
	}
}

// memory holds pages.
type memory map[string][]byte

func (m memory) GetPage(_ context.Context, name string) ([]byte, error) { return m[name], nil }

func (m memory) PutPage(_ context.Context, name string, data []byte) error {
	m[name] = slices.Clone(data)
	return nil
}

func (m memory) DeletePage(_ context.Context, name string) error {
	delete(m, name)
	return nil
}

func (m memory) ListPages(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(m)), nil
}
