// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// maxVerifiers bounds the verifiers that are remembered, and window how far
	// behind the highest sequence of one a late report may be.
	maxVerifiers = 1000
	window       = 1024
	// verifierLife is how long a verifier that is silent is remembered.
	verifierLife = 31 * 24 * time.Hour
)

// Reports remembers which reports of verifiers were counted, so that a
// retried one counts once, and up to when each verifier has reported. It is
// safe for concurrent use.
type Reports struct {
	mu        sync.Mutex
	verifiers map[string]*verifier
	dirty     bool
}

type verifier struct {
	Boot string `json:"boot"`
	// Highest is the highest sequence of this boot, Seen those within the
	// window below it that were counted.
	Highest  uint64    `json:"highest"`
	Seen     []uint64  `json:"seen,omitempty"`
	LastSeen time.Time `json:"last_seen"`
	Through  time.Time `json:"reported_through,omitzero"`
}

// NewReports returns what data, as Encode made it, remembers. Damaged data are
// as none: reports may then count twice, and none is lost.
func NewReports(data []byte) *Reports {
	r := &Reports{verifiers: map[string]*verifier{}}
	if data == nil || json.Unmarshal(data, &r.verifiers) != nil || r.verifiers == nil {
		r.verifiers = map[string]*verifier{}
	}
	return r
}

// Accept tells whether a report is new, and remembers it. A report that is
// too far behind the highest of its boot to be told apart counts as a
// repetition. through is the time up to which it is complete.
func (r *Reports) Accept(name, boot string, sequence uint64, through, now time.Time) (fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.verifiers[name]
	if v == nil {
		r.makeRoom(now)
		v = &verifier{Boot: boot}
		r.verifiers[name] = v
	}
	if v.Boot != boot {
		*v = verifier{Boot: boot, Through: v.Through}
	}
	v.LastSeen = now
	if through.After(v.Through) {
		v.Through = through
	}
	r.dirty = true
	if slices.Contains(v.Seen, sequence) || sequence+window <= v.Highest {
		return false
	}
	v.Seen = append(v.Seen, sequence)
	v.Highest = max(v.Highest, sequence)
	v.Seen = slices.DeleteFunc(v.Seen, func(s uint64) bool { return s+window <= v.Highest })
	return true
}

func (r *Reports) makeRoom(now time.Time) {
	oldest, found := "", false
	for name, v := range r.verifiers {
		if now.Sub(v.LastSeen) > verifierLife {
			delete(r.verifiers, name)
			continue
		}
		if !found || v.LastSeen.Before(r.verifiers[oldest].LastSeen) {
			oldest, found = name, true
		}
	}
	if found && len(r.verifiers) >= maxVerifiers {
		delete(r.verifiers, oldest)
	}
}

// KnownThrough is the time up to which use is known: now, or earlier where a
// verifier that was heard from since has not reported up to now.
func (r *Reports) KnownThrough(since, now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := now
	for _, v := range r.verifiers {
		if v.LastSeen.Before(since) {
			continue
		}
		if v.Through.Before(known) {
			known = v.Through
		}
	}
	return known
}

// Encode returns what is to be stored, nil where nothing changed since the
// last time.
func (r *Reports) Encode() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dirty {
		return nil, nil
	}
	data, err := json.Marshal(r.verifiers)
	if err != nil {
		return nil, fmt.Errorf("encode usage reports: %w", err)
	}
	r.dirty = false
	return data, nil
}

// Unsaved notes that what Encode returned could not be stored.
func (r *Reports) Unsaved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = true
}
