// SPDX-License-Identifier: MPL-2.0

package store

import (
	"hash/maphash"
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cacheStripes is how many parts a cache has, each with its own lock and its
// own share of the limit.
const cacheStripes = 64

// cache is a bounded cache in front of storage that never keeps what a write
// has overtaken.
//
// A reader that missed may hold an old value while a writer stores a new one.
// Each stripe counts the writes that begin and end in it; a reader adds what
// it read only if none did in the meantime.
type cache[K comparable, V any] struct {
	seed    maphash.Seed
	limit   int
	weigh   func(V) int
	stripes [cacheStripes]stripe[K, V]
}

type stripe[K comparable, V any] struct {
	mu      sync.Mutex
	writes  uint64
	entries *simplelru.LRU[K, V]
	weight  int
	// hits and misses count the look-ups.
	hits, misses uint64
}

// newCache returns a cache for values that weigh up to limit together.
func newCache[K comparable, V any](limit int, weigh func(V) int) *cache[K, V] {
	c := &cache[K, V]{seed: maphash.MakeSeed(), limit: limit / cacheStripes, weigh: weigh}
	for i := range c.stripes {
		entries, err := simplelru.NewLRU[K, V](math.MaxInt, nil)
		if err != nil {
			panic(err) // the library refuses only a size below one
		}
		c.stripes[i].entries = entries
	}
	return c
}

// one is the weight of values that are counted.
func one[V any](V) int { return 1 }

func (c *cache[K, V]) stripe(key K) *stripe[K, V] {
	return &c.stripes[maphash.Comparable(c.seed, key)%cacheStripes]
}

// get returns the cached value of key.
func (c *cache[K, V]) get(key K) (V, bool) {
	s := c.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.entries.Get(key)
	s.count(ok)
	return v, ok
}

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
			c.add(s, key, v)
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
		c.add(s, key, v)
	}
	return stored, func() { c.remove(key) }
}

// add puts v in the place of what was cached of key, and forgets what was used
// longest ago where there is too much. A value that exceeds the limit alone is
// forgotten at once. The stripe is locked.
func (c *cache[K, V]) add(s *stripe[K, V], key K, v V) {
	c.drop(s, key)
	s.entries.Add(key, v)
	s.weight += c.weigh(v)
	for s.weight > c.limit {
		_, old, _ := s.entries.RemoveOldest()
		s.weight -= c.weigh(old)
	}
}

func (c *cache[K, V]) drop(s *stripe[K, V], key K) {
	if old, ok := s.entries.Peek(key); ok {
		s.weight -= c.weigh(old)
		s.entries.Remove(key)
	}
}

// remove forgets key, and keeps readers that are under way from adding it.
func (c *cache[K, V]) remove(key K) {
	s := c.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	c.drop(s, key)
}

// purge forgets everything.
func (c *cache[K, V]) purge() {
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		s.writes++
		s.entries.Purge()
		s.weight = 0
		s.mu.Unlock()
	}
}
