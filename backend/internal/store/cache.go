// SPDX-License-Identifier: MPL-2.0

package store

import (
	"hash/maphash"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

// cacheStripes is how many keys can be written at once without keeping
// readers of others from filling the cache.
const cacheStripes = 64

// cache is a bounded cache in front of storage that never keeps what a write
// has overtaken.
//
// A reader that missed may hold an old value while a writer stores a new one.
// Each stripe counts the writes that begin and end in it; a reader adds what
// it read only if none did in the meantime.
type cache[K comparable, V any] struct {
	lru     *lru.Cache[K, V]
	seed    maphash.Seed
	stripes [cacheStripes]stripe
}

type stripe struct {
	mu     sync.Mutex
	writes uint64
}

func newCache[K comparable, V any](size int) *cache[K, V] {
	l, err := lru.New[K, V](size)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return &cache[K, V]{lru: l, seed: maphash.MakeSeed()}
}

func (c *cache[K, V]) stripe(key K) *stripe {
	return &c.stripes[maphash.Comparable(c.seed, key)%cacheStripes]
}

// get returns the cached value of key.
func (c *cache[K, V]) get(key K) (V, bool) { return c.lru.Get(key) }

// reading is called before storage is read. The function that it returns adds
// what was read, unless a write came between.
func (c *cache[K, V]) reading(key K) (fill func(V)) {
	s := c.stripe(key)
	s.mu.Lock()
	before := s.writes
	s.mu.Unlock()
	return func(v V) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.writes == before {
			c.lru.Add(key, v)
		}
	}
}

// writing is called before storage is written. Of the functions that it
// returns, one must be called after: stored where the write succeeded, and
// forget where it did not or nothing is to be cached.
func (c *cache[K, V]) writing(key K) (stored func(V), forget func()) {
	s := c.stripe(key)
	s.mu.Lock()
	s.writes++
	s.mu.Unlock()
	stored = func(v V) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.writes++
		c.lru.Add(key, v)
	}
	return stored, func() { c.remove(key) }
}

// remove forgets key, and keeps readers that are under way from adding it.
func (c *cache[K, V]) remove(key K) {
	s := c.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	c.lru.Remove(key)
}

// purge forgets everything.
func (c *cache[K, V]) purge() {
	for i := range c.stripes {
		c.stripes[i].mu.Lock()
		c.stripes[i].writes++
	}
	c.lru.Purge()
	for i := range c.stripes {
		c.stripes[i].mu.Unlock()
	}
}
