// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"hash/maphash"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// vainFor is how long it counts that a request has waited for another key in
	// vain: until then, requests to the same place wait for one look only.
	vainFor = 30 * time.Second
	// maxVain bounds the places of which that is known. A key that is refused in
	// so many is taken to be refused everywhere, until it is accepted, but for
	// places that have accepted it.
	maxVain = 16
	// maxGood is how many of those are remembered, the latest mostly.
	maxGood = 256
)

// place is a host and a path, hashed: some paths are long, and some tell what
// nobody should keep.
type place uint64

var placeSeed = maphash.MakeSeed()

func placeOf(u *url.URL) place {
	return place(maphash.Comparable(placeSeed, [2]string{u.Host, u.Path}))
}

// vain knows where requests with a key have waited for another one in vain. A
// server may answer 401 there for reasons of its own, which tells nothing about
// the key.
type vain struct {
	everywhere atomic.Bool // as far as it was noted
	// good are places that have accepted the key, each in the slot of its hash.
	good [maxGood]atomic.Uint64

	mu    sync.Mutex
	until map[place]time.Time
}

// at tells whether it was in vain at a place lately, or wherever it was tried and
// this place has not accepted the key.
func (v *vain) at(p place, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget(now)
	return now.Before(v.until[p]) || v.everywhere.Load() && v.slot(p).Load() != uint64(p)
}

func (v *vain) slot(p place) *atomic.Uint64 { return &v.good[p%maxGood] }

func (v *vain) note(p place, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.slot(p).CompareAndSwap(uint64(p), 0)
	v.forget(now)
	if v.until == nil {
		v.until = map[place]time.Time{}
	}
	if len(v.until) < maxVain {
		v.until[p] = now.Add(vainFor)
	}
	v.everywhere.Store(len(v.until) == maxVain)
}

// forget drops what has passed. The caller locks.
func (v *vain) forget(now time.Time) {
	for p, until := range v.until {
		if !now.Before(until) {
			delete(v.until, p)
		}
	}
	v.everywhere.Store(len(v.until) == maxVain)
}

// accepted notes that the key is accepted at a place. Where that is known it
// writes nothing.
func (v *vain) accepted(p place) {
	if s := v.slot(p); s.Load() != uint64(p) {
		s.Store(uint64(p))
	}
	if !v.everywhere.Load() {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.until)
	v.everywhere.Store(false)
}
