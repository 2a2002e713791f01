// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"cmp"
	"slices"
	"time"
)

// maxOrphans bounds the keys of one shard whose counts wait for a flush after
// their records had to make room.
const maxOrphans = 4096

// dirtyKeys returns the keys that have counts which no page has.
func (t *Tracker) dirtyKeys() []string {
	var ids []string
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id := range s.dirty {
			ids = append(ids, id)
		}
		for id := range s.orphans {
			if _, also := s.dirty[id]; !also {
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
	}
	return ids
}

// isDirty tells whether there is something that no page has.
func (t *Tracker) isDirty() bool {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		dirty := len(s.dirty) > 0 || len(s.orphans) > 0
		s.mu.Unlock()
		if dirty {
			return true
		}
	}
	return false
}

// take returns what is to be added to the page of a key, and marks it as
// flushed; nil where there is nothing.
func (t *Tracker) take(keyID string) delta {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	d := delta{}
	if o := s.orphans[keyID]; o != nil {
		d = *o
		delete(s.orphans, keyID)
	}
	delete(s.dirty, keyID)
	if r, ok := s.keys.Peek(keyID); ok {
		r.drain(d)
	}
	if len(d) == 0 {
		return nil
	}
	return d
}

// drain moves what has not been flushed into d.
func (r *record) drain(d delta) {
	for number, v := range r.versions {
		for name, src := range v.sources {
			if src.unflushed.count == 0 && src.unflushed.refused == 0 {
				continue
			}
			d.add(number, name, addition{src.unflushed, src.LastUsed})
			src.unflushed = counts{}
		}
	}
}

func (d delta) add(number int, name string, a addition) {
	sources := d[number]
	if sources == nil {
		sources = map[string]addition{}
		d[number] = sources
	}
	sum := sources[name]
	sum.count += a.count
	sum.refused += a.refused
	sum.stale += a.stale
	sum.lastUsed = later(sum.lastUsed, a.lastUsed)
	for _, h := range a.hours {
		sum.hours.add(h.slot, h.count, keepHours)
	}
	sources[name] = sum
}

// Use is the accepted uses of one version from one source since the last flush.
type Use struct {
	Version  int
	Source   string
	LastUsed time.Time
	Count    uint64
}

// accepted returns the accepted uses in the order of their last ones, without
// those of sources that are not told apart.
func (d delta) accepted() []Use {
	var used []Use
	for number, sources := range d {
		for name, a := range sources {
			if a.count > 0 && name != Other {
				used = append(used, Use{Version: number, Source: name, LastUsed: a.lastUsed, Count: a.count})
			}
		}
	}
	slices.SortFunc(used, func(a, b Use) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Source, b.Source))
	})
	return used
}

// putBack returns what take gave, because it could not be stored.
func (t *Tracker) putBack(keyID string, d delta) {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(keyID, d)
}

func (t *Tracker) putBackAll(taken map[string]delta) {
	for id, d := range taken {
		t.putBack(id, d)
	}
}

func (s *shard) keep(keyID string, d delta) {
	if len(d) == 0 {
		return
	}
	o := s.orphans[keyID]
	if o == nil {
		if len(s.orphans) >= maxOrphans {
			return // counts are lost, as in a crash; when a key was used is known by since
		}
		o = &delta{}
		s.orphans[keyID] = o
	}
	for number, sources := range d {
		for name, a := range sources {
			o.add(number, name, a)
		}
	}
}

// orphan keeps the counts of a record that makes room.
func (s *shard) orphan(keyID string, r *record) {
	if _, dirty := s.dirty[keyID]; !dirty {
		return
	}
	d := delta{}
	r.drain(d)
	delete(s.dirty, keyID)
	s.keep(keyID, d)
}

// addLive adds what has not been flushed, and the minutes of the last hour.
func (t *Tracker) addLive(keyID string, use map[int]Version, now time.Time) {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(number int, name string, src Source) {
		v, ok := use[number]
		if !ok {
			v = Version{Sources: map[string]Source{}}
		}
		v.add(name, src)
		use[number] = v
	}
	if o := s.orphans[keyID]; o != nil {
		for number, sources := range *o {
			for name, a := range sources {
				add(number, name, Source{Count: a.count, Refused: a.refused, Stale: a.stale, LastUsed: a.lastUsed, Hours: slots(a.hours)})
			}
		}
	}
	r, ok := s.keys.Peek(keyID)
	if !ok {
		return
	}
	for number, v := range r.versions {
		for name, src := range v.sources {
			add(number, name, Source{
				Count: src.unflushed.count, Refused: src.unflushed.refused, Stale: src.unflushed.stale, LastUsed: src.LastUsed,
				Hours: slots(src.unflushed.hours), Minutes: slots(src.minutes.from(now.Unix()/60 - 59)),
			})
		}
	}
}

// KnownSince is the time from which the record of a key is complete in memory.
func (t *Tracker) KnownSince(keyID string) time.Time {
	s := t.shard(keyID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.keys.Peek(keyID); ok {
		return r.since
	}
	return s.since
}
