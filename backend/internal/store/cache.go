// SPDX-License-Identifier: MPL-2.0

package store

import (
	"hash/maphash"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cacheStripes is how many parts a cache has, each with its own lock and its
// own share of the limit.
const cacheStripes = 64

// settle is how long after a failed write what is read of the entry may still
// change by that write: it was sent, and nobody knows whether it will arrive.
// Vault ends a storage operation of its own long before.
const settle = time.Minute

// cache is a bounded cache in front of storage that never keeps what a write
// has overtaken.
//
// A reader that missed may hold an old value while a writer stores a new one.
// Each stripe counts the writes that begin and end in it; a reader adds what
// it read only if none did in the meantime.
//
// A write that failed may take effect later all the same. Until the next one
// succeeds, or the time to settle is over, its entry is read from storage.
//
// What the cache is told of a write it passes on, so that no write of an entry
// can be kept from the feed of changes; see tell.
type cache[K comparable, V any] struct {
	seed    maphash.Seed
	limit   int
	weigh   func(V) int
	elapsed func() time.Duration
	stripes [cacheStripes]stripe[K, V]
	// tell, where set before first use, is told of every write once the cache
	// has it, and before whoever writes goes on.
	tell listener[K]
}

// listener is told of writes: those that are stored, those of them that
// change nothing to speak of, those that failed and may take effect
// all the same, and those of other nodes.
type listener[K comparable] interface {
	Changed(key K)
	Unchanged(key K)
	Doubtful(key K)
	Forgotten(key K)
}

// silent is told of everything and says nothing.
type silent[K comparable] struct{}

func (silent[K]) Changed(K)   {}
func (silent[K]) Unchanged(K) {}
func (silent[K]) Doubtful(K)  {}
func (silent[K]) Forgotten(K) {}

type stripe[K comparable, V any] struct {
	mu      sync.Mutex
	writes  uint64
	entries *simplelru.LRU[K, V]
	weight  int
	// doubts has the keys whose last write failed, and until when what is read
	// of them is not kept.
	doubts map[K]time.Duration
	// hits and misses count the look-ups.
	hits, misses uint64
}

// newCache returns a cache for values that weigh up to limit together. elapsed
// is the time that has passed since some fixed moment.
func newCache[K comparable, V any](limit int, weigh func(V) int, elapsed func() time.Duration) *cache[K, V] {
	c := &cache[K, V]{seed: maphash.MakeSeed(), limit: limit / cacheStripes, weigh: weigh, elapsed: elapsed, tell: silent[K]{}}
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
		if s.writes == before && !c.doubtful(s, key) {
			c.add(s, key, v)
		}
	}
}

// writing is called before storage is written. Of the methods of what it
// returns, one must be called after.
func (c *cache[K, V]) writing(key K) write[K, V] {
	s := c.stripe(key)
	s.mu.Lock()
	s.writes++
	s.mu.Unlock()
	return write[K, V]{c, key}
}

// write is a write of storage under way.
type write[K comparable, V any] struct {
	cache *cache[K, V]
	key   K
}

// stored is for a write that succeeded: v is what storage holds now. changed
// tells whether that differs, to those who listen, from what it held.
func (w write[K, V]) stored(v V, changed bool) {
	w.keep(v)
	if changed {
		w.cache.tell.Changed(w.key)
	} else {
		w.cache.tell.Unchanged(w.key)
	}
}

func (w write[K, V]) keep(v V) {
	s := w.cache.stripe(w.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	delete(s.doubts, w.key)
	w.cache.add(s, w.key, v)
}

// done is for a write that succeeded, or failed with err, and of which nothing
// is to be kept.
func (w write[K, V]) done(err error) {
	w.forget(err)
	if err != nil {
		w.cache.tell.Doubtful(w.key)
	} else {
		w.cache.tell.Changed(w.key)
	}
}

func (w write[K, V]) forget(err error) {
	s := w.cache.stripe(w.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	w.cache.drop(s, w.key)
	delete(s.doubts, w.key)
	if err == nil {
		return
	}
	now := w.cache.elapsed()
	maps.DeleteFunc(s.doubts, func(_ K, end time.Duration) bool { return end <= now })
	if s.doubts == nil {
		s.doubts = map[K]time.Duration{}
	}
	s.doubts[w.key] = now + settle
}

// doubtful tells whether a failed write of key may still take effect. The
// stripe is locked.
func (c *cache[K, V]) doubtful(s *stripe[K, V], key K) bool {
	end, ok := s.doubts[key]
	return ok && c.elapsed() < end
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
	c.removeQuietly(key)
	c.tell.Forgotten(key)
}

func (c *cache[K, V]) removeQuietly(key K) {
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
