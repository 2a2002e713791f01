// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"hash/maphash"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxOutlines bounds the pages whose sources are remembered: those of
	// 800,000 keys, in about 30 MB where each page is full of sources without
	// hours, and in 13 MB where each key has two.
	maxOutlines = 1024
	// maxLoads is how many pages are read and decoded at once for their outlines.
	maxLoads = 8
)

// outline is which versions of which keys a page knows to be used from where,
// by sorted hashes.
type outline struct {
	uses []uint64
	// lost is Lost of the keys that have it.
	lost map[string]int
}

func outlineOf(seed maphash.Seed, p *page) *outline {
	o := &outline{}
	for id, k := range p.Keys {
		if k.Lost > 0 {
			if o.lost == nil {
				o.lost = map[string]int{}
			}
			o.lost[id] = k.Lost
		}
		for number, sources := range k.Versions {
			for name, s := range sources {
				if s.Count > 0 {
					o.uses = append(o.uses, maphash.Comparable(seed, place{id, number, name}))
				}
			}
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

func newOutlines() *lru.Cache[string, *outline] {
	outlines, err := lru.New[string, *outline](maxOutlines)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return outlines
}

// outlined returns the outline of the page of a key, nil where it has to be read.
func (b *Book) outlined(keyID string) *outline {
	dir := b.dir.Load()
	if dir == nil {
		return nil
	}
	o, _ := b.outlines.Get(dir.of(keyID))
	return o
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
	o, _ := b.outlines.Get(name)
	return o, nil
}

func (b *Book) openApart(ctx context.Context) error {
	if err := b.paging.take(ctx); err != nil {
		return err
	}
	defer b.paging.give()
	return b.open(ctx)
}

func (b *Book) loadOutline(ctx context.Context, name string) error {
	if b.outlines.Contains(name) {
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
	b.outlines.ContainsOrAdd(name, outlineOf(b.tracker.seed, p)) // what a flush has learned since is newer
	return nil
}
