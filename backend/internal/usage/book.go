// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// maxPages bounds the pages that one flush writes. What is left keeps its
// counts in memory for the next one.
const maxPages = 64

// Book keeps what a Tracker counts in pages in storage.
type Book struct {
	tracker *Tracker
	pages   PageStore

	mu sync.Mutex
	// known are the pages that there are; nil until they were listed.
	known directory
	// retention is how long hours are kept.
	retention time.Duration
	// forgotten are deleted keys whose records are still on pages.
	forgotten map[string]struct{}

	// Reports are those of verifiers elsewhere.
	Reports *Reports
	// OnHour, where set before first use, is given each full hour of each key
	// on a page that is flushed: the hours before it, oldest first, and its
	// count of accepted uses.
	OnHour func(keyID string, before []uint64, end time.Time, count uint64)
	// judged is the last hour that was given to OnHour, by page.
	judged map[string]int64
}

// NewBook returns the book of t.
func NewBook(t *Tracker, pages PageStore) *Book {
	return &Book{tracker: t, pages: pages, retention: 168 * time.Hour, forgotten: map[string]struct{}{}, Reports: NewReports(nil), judged: map[string]int64{}}
}

// Flush adds what was counted since the last flush to the pages, at most
// maxPages of them, and splits those that have grown. Its cost is two storage
// operations for each page whose keys were used. A failure keeps the counts.
func (b *Book) Flush(ctx context.Context, now time.Time, retention time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retention = retention
	dirty := b.tracker.dirtyKeys()
	if len(dirty) == 0 && len(b.forgotten) == 0 {
		return nil
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	byPage := map[string][]string{}
	for _, id := range dirty {
		name := b.known.of(id)
		byPage[name] = append(byPage[name], id)
	}
	for id := range b.forgotten {
		name := b.known.of(id)
		if _, used := byPage[name]; !used {
			byPage[name] = nil
		}
	}
	names := slices.Sorted(maps.Keys(byPage))
	if len(names) > maxPages {
		// Begin at another place each time, so that all get their turn.
		start := int(now.Unix()/60*maxPages) % len(names)
		names = append(names[start:], names[:start]...)[:maxPages]
	}
	for _, name := range names {
		if err := b.flushPage(ctx, name, byPage[name], now); err != nil {
			return err
		}
	}
	return nil
}

func (b *Book) flushPage(ctx context.Context, name string, ids []string, now time.Time) error {
	p, err := b.load(ctx, name)
	if err != nil {
		return err
	}
	oldest := now.Add(-b.retention).Unix() / 3600
	taken := map[string]delta{}
	for _, id := range ids {
		if d := b.tracker.take(id); d != nil {
			taken[id] = d
			p.merge(id, d, oldest)
		}
	}
	for id := range b.forgotten {
		if _, on := p.Keys[id]; on {
			delete(p.Keys, id)
		}
	}
	if err := b.save(ctx, name, p); err != nil {
		for id, d := range taken {
			b.tracker.putBack(id, d)
		}
		return err
	}
	for id := range b.forgotten {
		if b.known.of(id) == name {
			delete(b.forgotten, id)
		}
	}
	b.judgeHour(name, p, now)
	return nil
}

// judgeHour gives OnHour the last full hour of the keys on a page, once.
func (b *Book) judgeHour(name string, p *page, now time.Time) {
	last := now.Unix()/3600 - 1
	former, judgedBefore := b.judged[name]
	if b.OnHour == nil || judgedBefore && former >= last {
		return
	}
	b.judged[name] = last
	if !judgedBefore {
		return // the process has not seen the whole of that hour
	}
	for id, k := range p.Keys {
		if before, count := k.hours(last); len(before) > 0 {
			b.OnHour(id, before, time.Unix((last+1)*3600, 0).UTC(), count)
		}
	}
}

// save writes a page, or its halves where it has grown too large. The halves
// are written before the page is removed: a crash between leaves both, and
// open removes the page.
func (b *Book) save(ctx context.Context, name string, p *page) error {
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode a page of usage: %w", err)
	}
	if len(data) <= splitSize || len(name) >= maxDepth || len(p.Keys) < 2 {
		if err := b.pages.PutPage(ctx, name, data); err != nil {
			return err
		}
		b.known[name] = struct{}{}
		return nil
	}
	halves := p.split(name)
	// The page is written whole first: from here on a crash loses nothing.
	if err := b.pages.PutPage(ctx, name, data); err != nil {
		return err
	}
	b.known[name] = struct{}{}
	return b.divide(ctx, name, halves)
}

func (b *Book) divide(ctx context.Context, name string, halves map[string]*page) error {
	for _, half := range slices.Sorted(maps.Keys(halves)) {
		data, err := json.Marshal(halves[half])
		if err != nil {
			return fmt.Errorf("encode a page of usage: %w", err)
		}
		if err := b.pages.PutPage(ctx, half, data); err != nil {
			return nil //nolint:nilerr // the page is stored whole; it is divided at its next flush
		}
	}
	if err := b.pages.DeletePage(ctx, name); err != nil {
		return nil //nolint:nilerr // open divides it again
	}
	for half := range halves {
		b.known[half] = struct{}{}
	}
	delete(b.known, name)
	return nil
}

// open lists the pages. Where a page stands beside its halves, a crash came
// between: the page has everything that its halves have, and stays.
func (b *Book) open(ctx context.Context) error {
	if b.known != nil {
		return nil
	}
	names, err := b.pages.ListPages(ctx)
	if err != nil {
		return err
	}
	known := directory{}
	for _, n := range names {
		known[n] = struct{}{}
	}
	for _, n := range names {
		if prefix := trimRoot(n); known.has(n) && (known.has(prefix+"0") || known.has(prefix+"1")) {
			for half := range known {
				if half != n && len(half) == len(prefix)+1 && half[:len(prefix)] == prefix && half != root {
					if err := b.pages.DeletePage(ctx, half); err != nil {
						return err
					}
					delete(known, half)
				}
			}
		}
	}
	b.known = known
	return nil
}

func (d directory) has(name string) bool {
	_, ok := d[name]
	return ok
}

func trimRoot(name string) string {
	if name == root {
		return ""
	}
	return name
}

func (b *Book) load(ctx context.Context, name string) (*page, error) {
	data, err := b.pages.GetPage(ctx, name)
	if err != nil {
		return nil, err
	}
	return decodePage(data)
}

// Forget removes a deleted key from its page at the next flush.
func (b *Book) Forget(keyID string) {
	b.tracker.Forget(keyID)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.forgotten) < maxKeys {
		b.forgotten[keyID] = struct{}{}
	}
}

// Read returns what is known of the use of a key by version: what is stored
// and what has not been flushed yet. It costs one read of storage.
func (b *Book) Read(ctx context.Context, keyID string, now time.Time) (map[int]Version, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	use := map[int]Version{}
	p, err := b.load(ctx, b.known.of(keyID))
	if err != nil {
		return nil, err
	}
	if k := p.Keys[keyID]; k != nil {
		for number, sources := range k.Versions {
			v := Version{Sources: map[string]Source{}}
			for name, s := range sources {
				v.add(name, Source{Count: s.Count, Refused: s.Refused, LastUsed: s.lastUsed(), Hours: s.Hours})
			}
			use[number] = v
		}
	}
	b.tracker.addLive(keyID, use, now)
	return use, nil
}

// add adds to what is known of a source.
func (v *Version) add(name string, s Source) {
	v.Count += s.Count
	v.Refused += s.Refused
	v.LastUsed = later(v.LastUsed, s.LastUsed)
	old := v.Sources[name]
	old.Count += s.Count
	old.Refused += s.Refused
	old.LastUsed = later(old.LastUsed, s.LastUsed)
	old.Hours = addSlots(old.Hours, s.Hours)
	old.Minutes = addSlots(old.Minutes, s.Minutes)
	v.Sources[name] = old
}

func addSlots(a, b map[string]uint64) map[string]uint64 {
	if len(b) == 0 {
		return a
	}
	sum := maps.Clone(a)
	if sum == nil {
		sum = map[string]uint64{}
	}
	for slot, n := range b {
		sum[slot] += n
	}
	return sum
}

func slots(s series) map[string]uint64 {
	m := make(map[string]uint64, len(s))
	for _, b := range s {
		m[strconv.FormatInt(b.slot, 10)] = b.count
	}
	return m
}
