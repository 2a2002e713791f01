// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// maxOutlined bounds what is remembered of pages, in bytes: a source of a
	// version is 8, so that it is enough for 2,000,000 keys of two sources.
	maxOutlined = 32 << 20
	// maxLoads is how many pages are read and decoded at once for their outlines.
	maxLoads = 8
)

// outline is which versions of which keys a page knows to be used from where,
// by sorted hashes.
type outline struct {
	// of is the hash of the page as it is stored.
	of   uint64
	uses []uint64
	// lost is Lost of the keys that have it, and damagedKey of those that cannot
	// be read.
	lost map[string]int
}

// damagedKey is above the number of any version.
const damagedKey = math.MaxInt

func outlineOf(seed maphash.Seed, p *page, stored []byte) *outline {
	o := &outline{of: maphash.Bytes(seed, stored)}
	for id, on := range p.keys {
		k := on.key
		if k == nil {
			var err error
			if k, err = decodeUses(on.stored); err != nil {
				k = &keyPage{Lost: damagedKey}
			}
		}
		o.add(seed, id, k)
	}
	slices.Sort(o.uses)
	o.uses = slices.Clip(o.uses)
	return o
}

func (o *outline) add(seed maphash.Seed, id string, k *keyPage) {
	o.uses = append(o.uses, usesOf(seed, id, k)...)
	if k.Lost > 0 {
		if o.lost == nil {
			o.lost = map[string]int{}
		}
		o.lost[id] = k.Lost
	}
}

func usesOf(seed maphash.Seed, id string, k *keyPage) []uint64 {
	var uses []uint64
	for number, sources := range k.Versions {
		for name, s := range sources {
			if s.Count > 0 {
				uses = append(uses, maphash.Comparable(seed, place{id, number, name}))
			}
		}
	}
	return uses
}

// changing is an outline of a page that is about to change.
type changing struct {
	seed maphash.Seed
	old  *outline
	// before are the uses of the keys that change, as they were.
	before []uint64
	ids    []string
}

// changes notes a key, nil where it is new, before it changes.
func (c *changing) changes(id string, k *keyPage) {
	c.ids = append(c.ids, id)
	if k != nil {
		c.before = append(c.before, usesOf(c.seed, id, k)...)
	}
}

// done returns the outline of the page as it is stored now.
func (c *changing) done(p *page, stored []byte) *outline {
	slices.Sort(c.before)
	o := &outline{of: maphash.Bytes(c.seed, stored), lost: maps.Clone(c.old.lost)}
	for _, use := range c.old.uses {
		if _, gone := slices.BinarySearch(c.before, use); !gone {
			o.uses = append(o.uses, use)
		}
	}
	for _, id := range c.ids {
		delete(o.lost, id)
		if on := p.keys[id]; on != nil {
			o.add(c.seed, id, on.key)
		}
	}
	slices.Sort(o.uses)
	o.uses = slices.Clip(o.uses)
	return o
}

// has tells whether a loss of f could not lead to a wrong drained: the page has
// it, or says that it does not know all of the version.
func (o *outline) has(seed maphash.Seed, f *First) bool {
	if o == nil {
		return false
	}
	for _, name := range []string{f.Source, Other} {
		if _, has := slices.BinarySearch(o.uses, maphash.Comparable(seed, place{f.KeyID, f.Version, name})); has {
			return true
		}
	}
	return f.Version <= o.lost[f.KeyID]
}

// knows is has, but not of a key that is damaged: what it had may come back.
func (o *outline) knows(seed maphash.Seed, f *First) bool {
	return o.has(seed, f) && o.lost[f.KeyID] != damagedKey
}

// size is about what it takes in memory, in bytes.
func (o *outline) size() int { return 128 + 8*len(o.uses) + 64*len(o.lost) }

// outlines are those of the pages that were asked for last, up to max bytes.
type outlines struct {
	mu   sync.Mutex
	lru  *simplelru.LRU[string, *outline]
	size int
	max  int
}

func newOutlines(limit int) *outlines {
	os := &outlines{max: limit}
	lru, err := simplelru.NewLRU(math.MaxInt, func(_ string, o *outline) { os.size -= o.size() })
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	os.lru = lru
	return os
}

// get returns the outline of a page, nil where there is none.
func (os *outlines) get(name string) *outline {
	os.mu.Lock()
	defer os.mu.Unlock()
	o, _ := os.lru.Get(name)
	return o
}

// put replaces the outline of a page, and add adds it where there is none.
func (os *outlines) put(name string, o *outline) {
	os.mu.Lock()
	defer os.mu.Unlock()
	os.lru.Remove(name)
	os.keep(name, o)
}

func (os *outlines) add(name string, o *outline) {
	os.mu.Lock()
	defer os.mu.Unlock()
	if !os.lru.Contains(name) {
		os.keep(name, o)
	}
}

func (os *outlines) keep(name string, o *outline) {
	os.lru.Add(name, o)
	os.size += o.size()
	for os.size > os.max && os.lru.Len() > 1 {
		os.lru.RemoveOldest()
	}
}

func (os *outlines) remove(name string) {
	os.mu.Lock()
	defer os.mu.Unlock()
	os.lru.Remove(name)
}

func (os *outlines) purge() {
	os.mu.Lock()
	defer os.mu.Unlock()
	os.lru.Purge()
}

// outlined returns the outline of the page of a key, nil where it has to be read.
func (b *Book) outlined(keyID string) *outline {
	dir := b.dir.Load()
	if dir == nil {
		return nil
	}
	return b.outlines.get(dir.of(keyID))
}

// outline returns the outline of the page of a key. It reads the page once for
// all who ask for it, and beside a flush: one that is older than what the flush
// stores only lets a note be written that is not needed.
func (b *Book) outline(ctx context.Context, keyID string) (*outline, error) {
	if o := b.outlined(keyID); o != nil {
		return o, nil
	}
	if b.dir.Load() == nil {
		if err := b.loading.do(ctx, "", b.openApart); err != nil {
			return nil, err
		}
	}
	name := root
	if dir := b.dir.Load(); dir != nil {
		name = dir.of(keyID)
	}
	if err := b.loading.do(ctx, name, func(ctx context.Context) error { return b.loadOutline(ctx, name) }); err != nil {
		return nil, err
	}
	return b.outlines.get(name), nil
}

func (b *Book) openApart(ctx context.Context) error {
	if err := b.paging.take(ctx); err != nil {
		return err
	}
	defer b.paging.give()
	return b.open(ctx)
}

func (b *Book) loadOutline(ctx context.Context, name string) error {
	if b.outlines.get(name) != nil {
		return nil
	}
	if err := b.loads.take(ctx); err != nil {
		return err
	}
	defer b.loads.give()
	data, err := b.pages.GetPage(ctx, name)
	if err != nil {
		return err
	}
	p, err := decodePage(data)
	if err != nil {
		return err
	}
	b.outlines.add(name, outlineOf(b.tracker.seed, p, data)) // what a flush has learned since is newer
	return nil
}
