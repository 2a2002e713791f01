// SPDX-License-Identifier: MPL-2.0

// Package usage counts which versions of a key are in use and from where, and
// judges whether a version has drained.
//
// A Tracker counts in memory, at the cost of a map look-up: nothing is read or
// written when a key is verified. A Book adds what was counted to pages in
// storage about once a minute, and when the process stops cleanly, and only to pages whose keys were used, with at
// most 64 writes; no page reaches 512 KiB. 100,000 keys with two sources each that
// were all used in the last two hours take 128 pages of at most 289 KiB, and 3
// flushes to be stored (see TestWritesAreBoundedAt100000ActiveKeys). Used 700 times
// in each hour of a week, they take 1015 pages of together 153 MiB and 17 flushes;
// of four weeks, after which it grows no further, 1860 pages of 281 MiB and 30
// flushes (see TestAMonthOf100000KeysIsBounded). A crash loses the counts since the
// last flush of their page, then half an hour, and nothing else.
//
// What is not known is not guessed: after a start, and after a record had to
// make room for others, quiet time counts from that moment, and client instances
// that said to use the version count as still on it. Counts can be lost; the first
// use of a version from a source is stored by Remember before it is answered,
// where storage takes it within 2 seconds. Where it does not, the use is counted
// all the same, and a crash before the next use or flush loses the source.
package usage

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// shardCount is how many verifications can be counted at once.
	shardCount = 32
	// maxKeys bounds the keys that are remembered, and maxWeight what is
	// remembered of them: a weight of one is a key, a version, a source,
	// minutesPerWeight minutes of its last hour, or overflowPerWeight sources
	// beyond maxSources, about 200 bytes each. A full Tracker takes about
	// 130 MB.
	maxKeys   = 100_000
	maxWeight = 640_000
	// maxVersions bounds the versions of one key; a role keeps at most 100.
	maxVersions = 128
	// maxSources bounds the sources of one version that are counted apart; the
	// rest share Other, and only their hashes are told apart, up to maxOverflow.
	maxSources        = 32
	maxOverflow       = 1024
	overflowPerWeight = 8
	minutesPerWeight  = 12
	// Other stands for all sources beyond the first ones.
	Other = "other"
)

// Tracker counts verifications. It is safe for concurrent use.
type Tracker struct {
	seed maphash.Seed
	// start is when counting began.
	start  time.Time
	shards [shardCount]shard
}

// shard holds the keys whose ids hash to it.
type shard struct {
	mu   sync.Mutex
	keys *simplelru.LRU[string, *record]
	// weight is the sum of those of keys.
	weight int
	// dirty are the keys with counts that no page has, and orphans the counts
	// of those that had to make room before a flush.
	dirty   map[string]struct{}
	orphans map[string]*delta
	// since is the time from which a key that is not in keys is known not to
	// have been used.
	since time.Time
}

// record is the use of one key.
type record struct {
	// since is the time from which the record is complete.
	since    time.Time
	versions map[int]*version
	weight   int
}

type version struct {
	count    uint64
	refused  uint64
	lastUsed time.Time
	sources  map[string]*Source
	// overflow has the hashes of the accepted sources that share Other, and
	// overflown tells that there were more.
	overflow  map[uint64]struct{}
	overflown bool
}

// Version is the use of one version.
type Version struct {
	Count    uint64
	Refused  uint64
	LastUsed time.Time
	// Sources has at most 32 of them, and Other.
	Sources map[string]Source
}

// Source is the use of one version from one source.
type Source struct {
	Count   uint64
	Refused uint64
	// Stale are those of Refused that came after the end of the version.
	Stale    uint64
	LastUsed time.Time
	// Minutes of the last hour and Hours that are kept, by their number since
	// 1970, with the accepted uses in them; sparse. Only Book.Read fills them.
	Minutes map[string]uint64
	Hours   map[string]uint64

	// kept tells that storage knows that the version was accepted from here.
	kept bool
	// unflushed is what no page has yet.
	unflushed counts
	// minutes are the accepted uses of the last hour, sparse.
	minutes series
}

// counts are what a flush adds to a page.
type counts struct {
	count, refused, stale uint64
	hours                 series
}

// Uses are verifications that are counted together.
type Uses struct {
	Accepted, Refused uint64
	// Stale are those of Refused that came after the end of the version.
	Stale uint64
}

// delta is what is to be added to the page of one key, by version and source.
type delta map[int]map[string]addition

type addition struct {
	counts
	lastUsed time.Time
}

// New returns a Tracker that knows nothing before now.
func New(now time.Time) *Tracker {
	t := &Tracker{seed: maphash.MakeSeed(), start: now}
	for i := range t.shards {
		keys, err := simplelru.NewLRU[string, *record](maxKeys/shardCount+1, nil)
		if err != nil {
			panic(err) // the library refuses only a size below one
		}
		t.shards[i].keys, t.shards[i].since = keys, now
		t.shards[i].dirty, t.shards[i].orphans = map[string]struct{}{}, map[string]*delta{}
	}
	return t
}

func (t *Tracker) hash(s string) uint64 { return maphash.String(t.seed, s) }

func (t *Tracker) shard(keyID string) *shard { return &t.shards[t.hash(keyID)%shardCount] }

// Record counts one verification of a version from a source.
func (t *Tracker) Record(now time.Time, keyID string, number int, source string, accepted bool) *First {
	if accepted {
		return t.Add(now, keyID, number, source, Uses{Accepted: 1})
	}
	return t.Add(now, keyID, number, source, Uses{Refused: 1})
}

// Add counts several verifications at once, the last of them at now. Where
// storage may not know yet that the version was accepted from there, it returns
// what Book.Remember takes, else nil.
func (t *Tracker) Add(now time.Time, keyID string, number int, source string, n Uses) *First {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.keys.Get(keyID)
	if !ok {
		r = s.add(keyID)
	}
	before := r.weight
	v := r.versions[number]
	if v == nil {
		v = r.add(number)
	}
	src := v.sources[source]
	if src == nil {
		src, source = t.newSource(r, v, source, n.Accepted > 0)
	}
	v.count += n.Accepted
	v.refused += n.Refused
	minutes := len(src.minutes)
	src.add(now, n)
	r.weight += len(src.minutes)/minutesPerWeight - minutes/minutesPerWeight
	s.dirty[keyID] = struct{}{}
	if now.After(v.lastUsed) {
		v.lastUsed = now
	}
	if now.After(src.LastUsed) {
		src.LastUsed = now
	}
	if r.weight != before {
		s.weight += r.weight - before
		s.shed()
	}
	if n.Accepted == 0 || src.kept {
		return nil
	}
	return &First{KeyID: keyID, Version: number, Source: source, At: now}
}

// First returns what Add returned for an accepted use that was counted before,
// perhaps by another process, at a time. It is nil where storage knows of it.
func (t *Tracker) First(at time.Time, keyID string, number int, source string) *First {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	first := &First{KeyID: keyID, Version: number, Source: source, At: at}
	r, ok := s.keys.Peek(keyID)
	if !ok || r.versions[number] == nil {
		return first
	}
	for _, name := range []string{source, Other} {
		src := r.versions[number].sources[name]
		switch {
		case src == nil:
		case src.kept:
			return nil
		case src.Count > 0:
			first.Source, first.At = name, src.LastUsed
			return first
		}
	}
	return first
}

// kept notes that storage knows of a first use.
func (t *Tracker) kept(f *First) {
	s := t.shard(f.KeyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.keys.Peek(f.KeyID); ok && r.versions[f.Version] != nil {
		if src := r.versions[f.Version].sources[f.Source]; src != nil {
			src.kept = true
		}
	}
}

func (src *Source) add(now time.Time, n Uses) {
	src.Count += n.Accepted
	src.Refused += n.Refused
	src.Stale += n.Stale
	src.unflushed.count += n.Accepted
	src.unflushed.refused += n.Refused
	src.unflushed.stale += n.Stale
	if n.Accepted > 0 {
		src.minutes.add(now.Unix()/60, n.Accepted, keepMinutes)
		src.unflushed.hours.add(now.Unix()/3600, n.Accepted, keepHours)
	}
}

// add makes the record of a key. It is complete from the moment from which
// the shard knows that the key was not used.
func (s *shard) add(keyID string) *record {
	if s.keys.Len() == maxKeys/shardCount+1 {
		s.evict()
	}
	r := &record{since: s.since, versions: map[int]*version{}, weight: 1}
	s.keys.Add(keyID, r)
	s.weight++
	return r
}

// shed forgets the keys that were used longest ago until the rest is within
// the shard's weight. The one just used stays.
func (s *shard) shed() {
	for s.weight > maxWeight/shardCount && s.keys.Len() > 1 {
		s.evict()
	}
}

// evict forgets the key that was used longest ago, and remembers when that was.
func (s *shard) evict() {
	id, r, ok := s.keys.RemoveOldest()
	if !ok {
		return
	}
	s.weight -= r.weight
	s.orphan(id, r)
	for _, v := range r.versions {
		s.since = later(s.since, v.lastUsed)
	}
	// The record itself may not have been complete from s.since on.
	s.since = later(s.since, r.since)
}

// add makes the record of a version; the lowest one makes room for it.
func (r *record) add(number int) *version {
	if len(r.versions) >= maxVersions {
		lowest := number
		for n := range r.versions {
			lowest = min(lowest, n)
		}
		if v := r.versions[lowest]; v != nil {
			r.since = later(r.since, v.lastUsed)
			r.weight -= v.weight()
			delete(r.versions, lowest)
		}
	}
	v := &version{sources: map[string]*Source{}}
	r.versions[number] = v
	r.weight += v.weight()
	return v
}

func (v *version) weight() int {
	weight := 1 + len(v.sources) + (len(v.overflow)+overflowPerWeight-1)/overflowPerWeight
	for _, src := range v.sources {
		weight += len(src.minutes) / minutesPerWeight
	}
	return weight
}

// newSource returns where a source that has no entry of its own is counted,
// under which name, and gives it one while there is room.
func (t *Tracker) newSource(r *record, v *version, name string, accepted bool) (*Source, string) {
	before := v.weight()
	defer func() { r.weight += v.weight() - before }()
	if len(v.sources) >= maxSources {
		if accepted {
			v.overflowFrom(t.hash(name))
		}
		name = Other
	}
	src := v.sources[name]
	if src == nil {
		src = &Source{}
		v.sources[name] = src
	}
	return src, name
}

func (v *version) overflowFrom(hash uint64) {
	if _, known := v.overflow[hash]; known {
		return
	}
	if len(v.overflow) >= maxOverflow {
		v.overflown = true
		return
	}
	if v.overflow == nil {
		v.overflow = map[uint64]struct{}{}
	}
	v.overflow[hash] = struct{}{}
}

// Version returns what is known of the use of one version, without its
// sources.
func (t *Tracker) Version(keyID string, number int) Version {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.keys.Peek(keyID); ok {
		if v := r.versions[number]; v != nil {
			return Version{Count: v.count, Refused: v.refused, LastUsed: v.lastUsed}
		}
	}
	return Version{}
}

// Sources returns what is known of the use of one version by source.
func (t *Tracker) Sources(keyID string, number int) map[string]Source {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	sources := map[string]Source{}
	if r, ok := s.keys.Peek(keyID); ok {
		if v := r.versions[number]; v != nil {
			for name, src := range v.sources {
				sources[name] = *src
			}
		}
	}
	return sources
}

// Forget drops what is known of a deleted key.
func (t *Tracker) Forget(keyID string) {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.keys.Peek(keyID); ok {
		s.weight -= r.weight
		s.keys.Remove(keyID)
	}
	delete(s.dirty, keyID)
	delete(s.orphans, keyID)
}

func later(t, o time.Time) time.Time {
	if o.After(t) {
		return o
	}
	return t
}
