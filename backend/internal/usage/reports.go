// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxVerifiers bounds the verifiers that are remembered, maxBoots the starts
	// of each, and maxReports what is stored of them, in bytes.
	maxVerifiers = 1000
	maxBoots     = 3
	maxReports   = 448 << 10
	// window is how far behind the highest sequence of a boot a late report may
	// be and still count.
	window = 128
	// verifierLife is how long a verifier that is silent is remembered.
	verifierLife = 31 * 24 * time.Hour
	// gapLife is how long a report that is missing is waited for.
	gapLife = 15 * time.Minute
)

// Reports remembers which reports of verifiers were counted, so that a
// retried one counts once, and up to when each verifier has reported. It is
// safe for concurrent use.
//
// A report is remembered in storage before what it counted is: a crash between
// loses counts. Only a report that comes during a flush, and whose answer is
// lost in a crash right then, may count twice.
type Reports struct {
	mu        sync.Mutex
	verifiers map[string]*verifier
	dirty     bool
}

type verifier struct {
	// Boots are the last starts, the present one last.
	Boots    []*boot   `json:"boots"`
	LastSeen time.Time `json:"last_seen"`
	// Through is the time up to which nothing is missing, except what was seen
	// before Since and is lost: with the memory of a former boot, or with a
	// report that never came.
	Through time.Time `json:"reported_through,omitzero"`
	Since   time.Time `json:"since,omitzero"`
}

// boot is what is known of the reports of one start.
type boot struct {
	ID string `json:"boot"`
	// Highest is the highest sequence, and bit i of Seen says that the one i
	// below it was counted.
	Highest uint64              `json:"highest"`
	Seen    [window / 64]uint64 `json:"seen"`
	// Low is the sequence up to which none is missing, or waited for any more;
	// Gap is since when one is missing.
	Low uint64    `json:"low,omitempty"`
	Gap time.Time `json:"gap,omitzero"`
	// Through is the latest time that any report said it was complete up to.
	Through time.Time `json:"through,omitzero"`
}

// NewReports returns what data, as Encode made it, remembers. Damaged data are
// as none: reports may then count twice, and none is lost.
func NewReports(data []byte) *Reports {
	r := &Reports{}
	if data == nil || json.Unmarshal(data, &r.verifiers) != nil || r.verifiers == nil {
		r.verifiers = map[string]*verifier{}
	}
	maps.DeleteFunc(r.verifiers, func(_ string, v *verifier) bool {
		return v == nil || len(v.Boots) == 0 || slices.Contains(v.Boots, nil)
	})
	return r
}

// Accept tells whether a report is new, and remembers it. A report that is
// too far behind the highest of its boot to be told apart counts as a
// repetition. through is the time up to which it is complete, zero where that
// was not said.
func (r *Reports) Accept(name, bootID string, sequence uint64, through, now time.Time, count func()) (fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.verifiers[name]
	if v == nil {
		r.makeRoom(now)
		v = &verifier{}
		r.verifiers[name] = v
	}
	r.dirty = true
	v.LastSeen = now
	b := v.boot(bootID, now)
	if fresh = b.count(sequence); fresh {
		count() // before anybody can take the report for counted
	}
	if through.After(b.Through) {
		b.Through = through
	}
	if b == v.Boots[len(v.Boots)-1] {
		v.advance(b, now)
	}
	return fresh
}

// boot returns what is known of a start. What a verifier had seen and not
// reported when it started again is lost; where two report under one name,
// it is not known which of them is complete.
func (v *verifier) boot(id string, now time.Time) *boot {
	i := slices.IndexFunc(v.Boots, func(b *boot) bool { return b.ID == id })
	if i >= 0 {
		if i < len(v.Boots)-1 {
			v.Since = now
		}
		return v.Boots[i]
	}
	if len(v.Boots) > 0 {
		v.Since = now
	}
	v.Boots = append(v.Boots, &boot{ID: id})
	if over := len(v.Boots) - maxBoots; over > 0 {
		v.Boots = slices.Delete(v.Boots, 0, over)
	}
	return v.Boots[len(v.Boots)-1]
}

// count notes a sequence and tells whether it is new.
func (b *boot) count(sequence uint64) bool {
	if sequence > b.Highest {
		b.shift(sequence - b.Highest)
		b.Highest = sequence
	}
	behind := b.Highest - sequence
	if behind >= window || b.Seen[behind/64]&(1<<(behind%64)) != 0 {
		return false
	}
	b.Seen[behind/64] |= 1 << (behind % 64)
	return true
}

func (b *boot) shift(n uint64) {
	for ; n >= 64; n -= 64 {
		copy(b.Seen[1:], b.Seen[:])
		b.Seen[0] = 0
		if b.Seen == [window / 64]uint64{} {
			return
		}
	}
	if n == 0 {
		return
	}
	for i := len(b.Seen) - 1; i > 0; i-- {
		b.Seen[i] = b.Seen[i]<<n | b.Seen[i-1]>>(64-n)
	}
	b.Seen[0] <<= n
}

// advance moves the time up to which nothing is missing. A report that has not
// come after gapLife is given up: what it would have told is lost.
func (v *verifier) advance(b *boot, now time.Time) {
	for b.Low < b.Highest && b.Highest-b.Low <= window {
		behind := b.Highest - b.Low - 1
		if b.Seen[behind/64]&(1<<(behind%64)) == 0 {
			break
		}
		b.Low++
	}
	if b.Low < b.Highest {
		if b.Gap.IsZero() {
			b.Gap = now
		}
		if b.Highest-b.Low <= window && now.Sub(b.Gap) < gapLife {
			return
		}
		b.Low = b.Highest
		v.Since = now
	}
	b.Gap = time.Time{}
	v.Through = later(v.Through, b.Through)
}

func (r *Reports) makeRoom(now time.Time) {
	if len(r.verifiers) < maxVerifiers {
		return
	}
	maps.DeleteFunc(r.verifiers, func(_ string, v *verifier) bool { return now.Sub(v.LastSeen) > verifierLife })
	if len(r.verifiers) >= maxVerifiers {
		r.dropOldest(1)
	}
}

// Known is the time up to which use is known: now, or earlier where a
// verifier that was heard from since has not reported up to now. Before from,
// such a verifier may have seen use that it never reported.
func (r *Reports) Known(since, now time.Time) (through, from time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	through = now
	for _, v := range r.verifiers {
		if v.LastSeen.Before(since) {
			continue
		}
		if v.Through.Before(through) {
			through = v.Through
		}
		from = later(from, v.Since)
	}
	return through, from
}

// Encode returns what is to be stored, nil where nothing changed since the
// last time.
func (r *Reports) Encode() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dirty {
		return nil, nil
	}
	for {
		data, err := json.Marshal(r.verifiers)
		if err != nil {
			return nil, fmt.Errorf("encode usage reports: %w", err)
		}
		if len(data) <= maxReports {
			r.dirty = false
			return data, nil
		}
		r.dropOldest(1 + len(r.verifiers)/20)
	}
}

// dropOldest forgets the n verifiers that were silent longest.
func (r *Reports) dropOldest(n int) {
	names := slices.SortedFunc(maps.Keys(r.verifiers), func(a, b string) int {
		return cmp.Or(r.verifiers[a].LastSeen.Compare(r.verifiers[b].LastSeen), strings.Compare(a, b))
	})
	for _, name := range names[:min(n, len(names))] {
		delete(r.verifiers, name)
	}
}

// Unsaved notes that what Encode returned could not be stored.
func (r *Reports) Unsaved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = true
}
