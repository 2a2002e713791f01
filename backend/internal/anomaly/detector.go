// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// shardCount is how many events can be looked at at once.
	shardCount = 32
	// maxKeys bounds the keys remembered for each kind of finding. The one that
	// was touched longest ago makes room. Kinds do not push each other out: what
	// strangers can cause (wrong secrets) costs nothing of what was learned from
	// accepted uses.
	maxKeys = 100_000
	// maxSources bounds the sources remembered over all keys.
	maxSources = 1_000_000

	// What one entry takes at most with the tables around it: measured by
	// TestMemoryIsBounded, and rounded up.
	wrongBytes  = 200
	endedBytes  = 250
	rateBytes   = 250
	knownBytes  = 250
	sourceBytes = 40
	slotBytes   = 80
)

// Detector looks at single events. It is safe for concurrent use; each event
// takes constant time and, unless it is a finding or the first of its key or
// source, allocates nothing. A full Detector takes MaxBytes.
type Detector struct {
	seed   maphash.Seed
	start  time.Time
	limits limits
	shards [shardCount]shard
}

// limits are per shard.
type limits struct{ keys, sources int }

// shard holds the keys whose ids hash to it. Ids are cloned before they are
// kept, for they may be cut from tokens, which must not stay in memory.
type shard struct {
	mu    sync.Mutex
	wrong *simplelru.LRU[string, *wrong]
	ended *simplelru.LRU[string, *ended]
	known *simplelru.LRU[string, *known]
	rates *simplelru.LRU[string, *rates]
	// slots and sources count those of all ended and known.
	slots, sources int
}

// New returns a Detector that knows nothing before now.
func New(now time.Time) *Detector {
	return newDetector(now, limits{keys: maxKeys / shardCount, sources: maxSources / shardCount})
}

func newDetector(now time.Time, l limits) *Detector {
	d := &Detector{seed: maphash.MakeSeed(), start: now, limits: l}
	for i := range d.shards {
		s := &d.shards[i]
		s.wrong = newLRU[*wrong](l.keys, nil)
		s.ended = newLRU(l.keys, func(_ string, e *ended) { s.slots -= len(e.slots) })
		s.known = newLRU(l.keys, func(_ string, k *known) { s.sources -= len(k.sources) })
		s.rates = newLRU[*rates](l.keys, nil)
	}
	return d
}

func newLRU[V any](size int, evicted func(string, V)) *simplelru.LRU[string, V] {
	lru, err := simplelru.NewLRU[string, V](size, evicted)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return lru
}

// lock returns the shard of a key, locked.
func (d *Detector) lock(keyID string) *shard {
	s := &d.shards[maphash.String(d.seed, keyID)%shardCount]
	s.mu.Lock()
	return s
}

// since is the Detector's own time: unlike a time.Time it is 8 bytes.
func (d *Detector) since(t time.Time) time.Duration { return t.Sub(d.start) }

// Forget drops what is known of a deleted key.
func (d *Detector) Forget(keyID string) {
	s := d.lock(keyID)
	defer s.mu.Unlock()
	s.wrong.Remove(keyID)
	s.ended.Remove(keyID)
	s.known.Remove(keyID)
	s.rates.Remove(keyID)
}

// Memory is what a Detector holds.
type Memory struct {
	// Keys with wrong secrets, uses of ended versions, known sources, and
	// findings about their rate.
	WrongKeys, EndedKeys, KnownKeys, RateKeys int
	// Sources of all keys.
	Sources int
	// Bytes is an upper estimate.
	Bytes int
}

// MaxBytes is what a full Detector takes, about 200 MB: 100,000 keys of each
// kind, 1,000,000 sources, and 8 sources of ended versions for each key. That
// needs all of it at once; 100,000 keys that are used from 3 sources each, and
// nothing else, take about 37 MB.
const MaxBytes = maxKeys*(wrongBytes+endedBytes+knownBytes+rateBytes+maxSlots*slotBytes) + maxSources*sourceBytes

// Memory counts what is held now.
func (d *Detector) Memory() Memory {
	var m Memory
	slots := 0
	for i := range d.shards {
		s := &d.shards[i]
		s.mu.Lock()
		m.WrongKeys += s.wrong.Len()
		m.EndedKeys += s.ended.Len()
		m.KnownKeys += s.known.Len()
		m.RateKeys += s.rates.Len()
		m.Sources += s.sources
		slots += s.slots
		s.mu.Unlock()
	}
	m.Bytes = m.WrongKeys*wrongBytes + m.EndedKeys*endedBytes + m.KnownKeys*knownBytes + m.RateKeys*rateBytes +
		m.Sources*sourceBytes + slots*slotBytes
	return m
}
