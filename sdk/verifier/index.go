// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

const (
	bucketSlots = 7
	// perBucket is how many entries a bucket holds at most on average; with a
	// power of two of buckets it is half of that at the least.
	perBucket = 4
	// probes bounds how many buckets an entry may lie in. What finds no place
	// is found by the cache behind the index, only more slowly.
	probes = 8
	// passed marks a bucket that entries had to pass: it is never taken back.
	passed = 0xff << (8 * bucketSlots)
	ones   = 0x0101010101010101
	highs  = 0x8080808080808080
)

// index finds entries by id with two reads of memory: of a bucket, which is a
// cache line, and of the entry. Readers take no lock. What is not found may
// have been moving: the cache knows.
type index struct {
	seed    [2]uint64
	mask    uint64
	buckets []bucket

	mu sync.Mutex // of writers
}

// bucket has a byte of the hash of each entry in tags, 0 for an empty slot, and
// in the highest byte whether other entries passed on to the next bucket.
type bucket struct {
	tags  atomic.Uint64
	slots [bucketSlots]atomic.Pointer[entry]
}

func newIndex(size int) *index {
	n := uint64(1)
	for n*perBucket < uint64(max(size, 1)) {
		n *= 2
	}
	return &index{seed: [2]uint64{rand.Uint64(), rand.Uint64()}, mask: n - 1, buckets: make([]bucket, n)} //nolint:gosec // nobody but the engine chooses what is cached
}

// place returns the first bucket of an id, and its tag, which is not 0.
func (x *index) place(id *keyID) (home, tag uint64) {
	low := binary.LittleEndian.Uint64(id[:])
	high := uint64(binary.LittleEndian.Uint32(id[8:]))
	h1, l1 := bits.Mul64(low^x.seed[0], high^x.seed[1])
	h2, l2 := bits.Mul64(h1^l1^low, 0x9e3779b97f4a7c15)
	h := h2 ^ l2
	return h & x.mask, h>>56 | 1
}

func (x *index) get(id *keyID) *entry {
	home, tag := x.place(id)
	for i := range uint64(probes) {
		b := &x.buckets[(home+i)&x.mask]
		tags := b.tags.Load()
		// A byte of differences is zero where the tag is the same; a byte above
		// such a one may look so, too.
		differences := tags ^ tag*ones
		for same := (differences - ones) & ^differences & highs &^ passed; same != 0; same &= same - 1 {
			if e := b.slots[bits.TrailingZeros64(same)/8].Load(); e != nil && e.id == *id {
				return e
			}
		}
		if tags < passed {
			return nil
		}
	}
	return nil
}

// part goes through one of so many parts of the entries.
func (x *index) part(i, of int) iter.Seq[*entry] {
	n := len(x.buckets)
	return func(yield func(*entry) bool) {
		for b := n * i / of; b < n*(i+1)/of; b++ {
			for j := range x.buckets[b].slots {
				if e := x.buckets[b].slots[j].Load(); e != nil && !yield(e) {
					return
				}
			}
		}
	}
}

// put adds an entry, or puts it in the place of that with the same id.
func (x *index) put(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	home, tag := x.place(&e.id)
	if slot, _, _ := x.find(home, tag, func(old *entry) bool { return old.id == e.id }); slot != nil {
		slot.Store(e)
		return
	}
	for i := range uint64(probes) {
		b := &x.buckets[(home+i)&x.mask]
		tags := b.tags.Load()
		for j := range bucketSlots {
			if tags>>(8*j)&0xff == 0 {
				b.slots[j].Store(e)
				b.tags.Store(tags | tag<<(8*j))
				return
			}
		}
		b.tags.Store(tags | passed)
	}
}

// remove removes this very entry.
func (x *index) remove(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	home, tag := x.place(&e.id)
	if slot, b, j := x.find(home, tag, func(old *entry) bool { return old == e }); slot != nil {
		b.tags.Store(b.tags.Load() &^ (0xff << (8 * j)))
		slot.Store(nil)
	}
}

// find returns the slot with this tag that holds what is wanted.
func (x *index) find(home, tag uint64, want func(*entry) bool) (slot *atomic.Pointer[entry], in *bucket, at int) {
	for i := range uint64(probes) {
		b := &x.buckets[(home+i)&x.mask]
		tags := b.tags.Load()
		for j := range bucketSlots {
			if tags>>(8*j)&0xff == tag {
				if e := b.slots[j].Load(); e != nil && want(e) {
					return &b.slots[j], b, j
				}
			}
		}
		if tags < passed {
			break
		}
	}
	return nil, nil, 0
}
