// SPDX-License-Identifier: MPL-2.0

package store

// CacheUse tells how often a cache had what was asked of it.
type CacheUse struct {
	Cache        string
	Hits, Misses uint64
}

// CacheUse tells how the caches were used since the start.
func (s *Store) CacheUse() []CacheUse {
	return []CacheUse{s.keys.use("keys"), s.names.use("names"), s.roles.use("roles"), s.imported.use("imported")}
}

// use adds up what the stripes have counted.
func (c *cache[K, V]) use(name string) CacheUse {
	u := CacheUse{Cache: name}
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		u.Hits += s.hits
		u.Misses += s.misses
		s.mu.Unlock()
	}
	return u
}

// count counts a look-up. The stripe is locked.
func (s *stripe[K, V]) count(hit bool) {
	if hit {
		s.hits++
	} else {
		s.misses++
	}
}

// peek is get for a caller who comes again with get where there is nothing: a
// miss is then counted once.
func (c *cache[K, V]) peek(key K) (V, bool) {
	s := c.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.entries.Get(key)
	if ok {
		s.count(true)
	}
	return v, ok
}
