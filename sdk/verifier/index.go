// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

const (
	bucketSlots = 7
	// perBucket is how many keys a bucket holds on average when the cache is
	// full.
	perBucket = 5
	// probes bounds how many buckets a key may lie in. What finds no place is
	// found by the cache behind the index, only more slowly.
	probes = 16
	// passed marks a bucket that keys had to pass: it is never taken back.
	passed = 0xff << (8 * bucketSlots)
	ones   = 0x0101010101010101
	highs  = 0x8080808080808080
)

// index has what decides about the keys that can be accepted, in one block of
// memory. Most keys lie in the first slot where they are looked for, so that a
// hit waits for memory once. Readers take no lock. What is not found may be
// about to move: the cache knows.
type index struct {
	seed [2]uint64
	// tags are those of a bucket each: a byte of the hash of each key, 0 for an
	// empty slot, and in the highest byte whether other keys passed on to the
	// next bucket.
	tags  []atomic.Uint64
	slots []slot

	mu sync.Mutex // of writers
	// uncounted is given the uses that a slot counted of an entry that leaves it.
	uncounted func(e *entry, n uint64, last tick)
}

// slot is what a hit reads of a key, in two cache lines that are fetched
// together. It only points to the entry, which is not read.
type slot struct {
	turn   atomic.Uint32 // odd while a writer is at work
	state  atomic.Uint32
	digest [4]atomic.Uint64 // of the newest version
	until  atomic.Int64
	age    atomic.Uint64
	seq    atomic.Uint64

	entry  atomic.Pointer[entry]
	role   atomic.Pointer[roleMark]
	record atomic.Pointer[record.Record]
	of     atomic.Pointer[record.Version]
	scopes atomic.Pointer[[]string]
	ranges atomic.Pointer[[2][]netip.Prefix]
	more   atomic.Pointer[[]version]
	uses   atomic.Uint64 // a tally
}

// tally is how often a slot has accepted the first version of its entry, in 20
// bits, and the tick of the last time, below them. It begins anew with each
// entry: the 12 bits above tell to which turn of the slot it belongs, so that
// whoever is late counts nothing for the next entry.
type tally uint64

const maxTally = 1<<20 - 1

func newTally(turn uint32) tally { return tally(turn>>1) << 52 }

func (t tally) of(turn uint32) bool { return turn%2 == 0 && t>>52 == newTally(turn)>>52 }
func (t tally) count() uint64       { return uint64(t) >> 32 & maxTally }
func (t tally) last() tick          { return tick(t) } //nolint:gosec // the lower half

func (t tally) plus(n uint64, at tick) tally {
	return t&^0xffffffff + tally(n)<<32 | tally(max(t.last(), at))
}

// held is what a slot held at one moment, about the version that was presented.
type held struct {
	version *version // to be counted, and not read
	slot    *slot    // that counts it, nil if none does
	record  *record.Record
	of      *record.Version
	role    *roleMark
	ranges  *[2][]netip.Prefix
	scopes  *[]string
	until   int64
	age     age
	seq     uint64
	state   record.State
}

func newIndex(size int) *index {
	n := max(size, 1)/perBucket + 1
	x := &index{seed: [2]uint64{rand.Uint64(), rand.Uint64()}, tags: make([]atomic.Uint64, n), slots: make([]slot, n*bucketSlots)} //nolint:gosec // nobody but the engine chooses what is cached
	inHugePages(x.slots)
	return x
}

// place is where a key is looked for: in its first slot, then wherever its tag
// is, in the bucket that is its home and those after it.
type place struct{ home, first, tag uint64 }

func (x *index) place(id *keyID) place {
	low := binary.LittleEndian.Uint64(id[:])
	high := uint64(binary.LittleEndian.Uint32(id[8:]))
	h1, l1 := bits.Mul64(low^x.seed[0], high^x.seed[1])
	h2, l2 := bits.Mul64(h1^l1^low, 0x9e3779b97f4a7c15)
	h := h2 ^ l2
	home, _ := bits.Mul64(h, uint64(len(x.tags)))
	return place{home: home, first: (h >> 8 & 0xff) * bucketSlots >> 8, tag: h&0xff | 1}
}

// candidates are the slots of a bucket whose tag is that of p, as a bit in the
// byte of each. One above another may only look so.
func (p place) candidates(tags uint64) uint64 {
	differences := tags ^ p.tag*ones
	return (differences - ones) & ^differences & highs &^ passed
}

// slot is the one that the lowest candidate stands for.
func (x *index) slot(bucket, candidates uint64) *slot {
	return &x.slots[bucket*bucketSlots+uint64(bits.TrailingZeros64(candidates))/8] //nolint:gosec // it is not negative
}

func (x *index) first(p place) *slot { return &x.slots[p.home*bucketSlots+p.first] }

func (x *index) after(bucket uint64) uint64 {
	if bucket++; bucket < uint64(len(x.tags)) {
		return bucket
	}
	return 0
}

// approach has the memory that find will read on its way.
func (x *index) approach(p place) {
	prefetch(unsafe.Pointer(x.first(p))) //nolint:gosec // an address, of which nothing is read
	if c := p.candidates(x.tags[p.home].Load()); c != 0 {
		prefetch(unsafe.Pointer(x.slot(p.home, c))) //nolint:gosec // the same
	}
}

// find tells in h of the version with this digest, where it is in the index.
func (x *index) find(p place, w *words, h *held) bool {
	if x.first(p).read(w, h) {
		return true
	}
	bucket := p.home
	for range probes {
		tags := x.tags[bucket].Load()
		for c := p.candidates(tags); c != 0; c &= c - 1 {
			if x.slot(bucket, c).read(w, h) {
				return true
			}
		}
		if tags < passed {
			return false
		}
		bucket = x.after(bucket)
	}
	return false
}

// read tells in h of the version with this digest, if it is here. It compares
// all digests that are.
func (s *slot) read(w *words, h *held) bool {
	turn := s.turn.Load()
	current := words{s.digest[0].Load(), s.digest[1].Load(), s.digest[2].Load(), s.digest[3].Load()}
	h.state, h.until, h.age, h.seq = record.State(s.state.Load()), s.until.Load(), age(s.age.Load()), s.seq.Load() //nolint:gosec // it was one
	e, more := s.entry.Load(), s.more.Load()
	h.record, h.of, h.role, h.scopes, h.ranges = s.record.Load(), s.of.Load(), s.role.Load(), s.scopes.Load(), s.ranges.Load()
	if e == nil || turn%2 != 0 || s.turn.Load() != turn {
		return false
	}
	found := current.equal(w)
	h.version, h.slot = &e.first, s
	if more != nil {
		for i := range *more {
			if v := &(*more)[i]; v.digest.equal(w) {
				found = true
				h.version, h.slot, h.of, h.scopes, h.until, h.state = v, nil, v.of, v.scopes, v.until, v.state
			}
		}
	}
	return found
}

// count counts n uses of a version, the last of them at a tick, if the slot still
// holds it. It tells whether they are the first since the last take.
func (s *slot) count(of *version, n uint64, at tick) (counted, first bool) {
	turn, e := s.turn.Load(), s.entry.Load()
	if e == nil || &e.first != of {
		return false, false
	}
	for {
		t := tally(s.uses.Load())
		if !t.of(turn) || t.count()+n > maxTally {
			return false, false
		}
		if s.uses.CompareAndSwap(uint64(t), uint64(t.plus(n, at))) {
			return true, t.count() == 0
		}
	}
}

// take returns the uses that were counted since the last time, and of what. It
// waits for a writer that is at work, who has taken them by its end.
func (s *slot) take() (e *entry, n uint64, last tick) {
	for ; ; runtime.Gosched() {
		turn := s.turn.Load()
		e, t := s.entry.Load(), tally(s.uses.Load())
		switch {
		case !t.of(turn):
		case t.count() == 0:
			return nil, 0, 0
		case s.uses.CompareAndSwap(uint64(t), uint64(newTally(turn))):
			return e, t.count(), t.last()
		}
	}
}

// write has a slot hold e, or nothing if it is nil. The caller locks.
func (x *index) write(s *slot, e *entry) {
	if e == nil {
		e = &entry{}
	}
	v := &e.first
	turn := s.turn.Add(1)
	if t := tally(s.uses.Swap(uint64(newTally(turn + 1)))); t.count() > 0 {
		x.uncounted(s.entry.Load(), t.count(), t.last())
	}
	for i := range s.digest {
		s.digest[i].Store(v.digest[i])
	}
	s.state.Store(uint32(v.state))
	s.until.Store(v.until)
	s.age.Store(uint64(e.age))
	s.seq.Store(e.seq)
	s.entry.Store(v.in)
	s.role.Store(e.role)
	s.record.Store(e.record)
	s.of.Store(v.of)
	s.scopes.Store(v.scopes)
	s.ranges.Store(e.ranges)
	s.more.Store(e.more)
	s.turn.Add(1)
}

// part goes through one of so many parts of the entries.
func (x *index) part(i, of int) iter.Seq[*entry] {
	n := len(x.slots)
	return func(yield func(*entry) bool) {
		for j := n * i / of; j < n*(i+1)/of; j++ {
			if e := x.slots[j].entry.Load(); e != nil && !yield(e) {
				return
			}
		}
	}
}

// put adds an entry, or puts it in the place of that of the same key.
func (x *index) put(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.place(&e.id)
	if bucket, c := x.where(p, func(old *entry) bool { return old.id == e.id }); c != 0 {
		x.write(x.slot(bucket, c), e)
		return
	}
	bucket := p.home
	for range probes {
		tags := x.tags[bucket].Load()
		for i := range uint64(bucketSlots) {
			if j := (p.first + i) % bucketSlots; tags>>(8*j)&0xff == 0 {
				x.write(&x.slots[bucket*bucketSlots+j], e)
				x.tags[bucket].Store(tags | p.tag<<(8*j))
				return
			}
		}
		x.tags[bucket].Store(tags | passed)
		bucket = x.after(bucket)
	}
}

// remove removes this very entry.
func (x *index) remove(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	bucket, c := x.where(x.place(&e.id), func(old *entry) bool { return old == e })
	if c != 0 {
		x.tags[bucket].Store(x.tags[bucket].Load() &^ (0xff << (bits.TrailingZeros64(c) - 7)))
		x.write(x.slot(bucket, c), nil)
	}
}

// where is the slot that holds what is wanted, as a bucket and a candidate of
// it; no candidate if there is none. The caller locks.
func (x *index) where(p place, want func(*entry) bool) (bucket, candidate uint64) {
	bucket = p.home
	for range probes {
		tags := x.tags[bucket].Load()
		for c := p.candidates(tags); c != 0; c &= c - 1 {
			if e := x.slot(bucket, c).entry.Load(); e != nil && want(e) {
				return bucket, c & -c
			}
		}
		if tags < passed {
			break
		}
		bucket = x.after(bucket)
	}
	return bucket, 0
}
