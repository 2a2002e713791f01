// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

// emptyShelf counts what is read, and fails to read some.
type emptyShelf struct {
	reads map[string]int
	fails func(name string) bool
}

var errRead = errors.New("not read")

func (s *emptyShelf) GetPage(_ context.Context, name string) ([]byte, error) {
	s.reads[name]++
	if s.fails(name) {
		return nil, errRead
	}
	return nil, nil
}
func (*emptyShelf) PutPage(context.Context, string, []byte) error { return nil }
func (*emptyShelf) DeletePage(context.Context, string) error      { return nil }
func (*emptyShelf) ListPages(context.Context) ([]string, error)   { return nil, nil }

// TestManyPagesAreLookedAtByAndBy: a flush looks at 64, gives up at three that
// storage does not read, and none is tried twice in an hour.
func TestManyPagesAreLookedAtByAndBy(t *testing.T) {
	t.Parallel()
	const pages = 300
	for failing, want := range map[int]int{0: 5, 2: 5, 90: 30 + 4} {
		c := clock.NewManual(time.Unix(1000*3600, 0))
		s := &emptyShelf{reads: map[string]int{}}
		s.fails = func(name string) bool { return name < fmt.Sprintf("%03d", failing) }
		b := NewBook(New(c.Now()), s, s, c, hclog.NewNullLogger())
		b.OnHour = func(string, []uint64, time.Time, uint64) {}
		for i := range pages {
			b.used(fmt.Sprintf("%03d", i), c.Now())
		}
		c.Advance(time.Hour)
		flushes := 0
		for ; !b.Idle() && flushes < 2*pages; flushes++ {
			before := len(s.reads)
			if err := b.Flush(t.Context(), c.Now(), time.Hour); err != nil && !errors.Is(err, errRead) {
				t.Fatal(err)
			}
			if n := len(s.reads) - before; n > maxVisits {
				t.Errorf("a flush reads %d pages", n)
			}
			c.Advance(time.Minute)
		}
		if flushes != want || len(s.reads) != pages {
			t.Errorf("with %d that fail it took %d flushes to look at %d pages, want %d and %d", failing, flushes, len(s.reads), want, pages)
		}
		for name, n := range s.reads {
			if n != 1 {
				t.Errorf("page %s was read %d times", name, n)
			}
		}
	}
}

func TestGaps(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		add  gaps
		want string
	}{
		{"apart", gaps{{20, 22}, {10, 12}}, "[[10 12] [20 22]]"},
		{"beside each other", gaps{{10, 12}, {13, 14}}, "[[10 14]]"},
		{"over several", gaps{{10, 11}, {14, 15}, {20, 20}, {11, 16}}, "[[10 16] [20 20]]"},
		{"within", gaps{{10, 20}, {12, 13}}, "[[10 20]]"},
	} {
		var g gaps
		for _, one := range c.add {
			g = g.add(one)
		}
		if got := fmt.Sprint(g); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	var many gaps
	for i := range int64(100) {
		many = many.add(gap{10 * i, 10*i + 1})
	}
	if len(many) != maxGaps || many[0] != (gap{0, 10*(100-maxGaps) + 1}) {
		t.Errorf("%d gaps, the first of them %v", len(many), many[0])
	}
	if got := fmt.Sprint(gaps{{1, 5}, {8, 9}, {12, 20}}.within(4, 15)); got != "[[4 5] [8 9] [12 15]]" {
		t.Errorf("within 4 to 15: %s", got)
	}
}
