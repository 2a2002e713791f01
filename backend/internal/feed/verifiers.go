// SPDX-License-Identifier: MPL-2.0

package feed

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// MaxVerifiers bounds the verifiers that are remembered.
	MaxVerifiers = 1000
	// LiveTime is how long after its last question a verifier counts as alive.
	LiveTime = time.Minute
	// silentLife is how long one that is silent is remembered.
	silentLife = 24 * time.Hour
)

// Verifier is what is known of a verifier since the start.
type Verifier struct {
	// Caller is the entity or token that it asks as, Name what it calls itself.
	// Together they name it, so that one caller cannot speak for another.
	Caller, Name string
	// Boot is new each time the verifier starts; empty where it does not say.
	Boot string
	// Synced is the place up to which it has what changed.
	Synced Position
	// Skew is by how much its wall clock is ahead of Vault's, as it says.
	Skew time.Duration

	LastSeen time.Time
	// Live tells whether it has asked in the last LiveTime.
	Live bool
}

// Verifiers remembers who asks. It is safe for concurrent use.
type Verifiers struct {
	clock clock.Clock

	mu   sync.Mutex
	seen map[verifierKey]*seen
}

type verifierKey struct{ caller, name string }

type seen struct {
	Verifier
	at time.Duration
}

// NewVerifiers returns an empty one.
func NewVerifiers(c clock.Clock) *Verifiers {
	return &Verifiers{clock: c, seen: map[verifierKey]*seen{}}
}

// Note remembers that v asked just now. Where there are too many, the caller
// that has the most makes room.
func (vs *Verifiers) Note(v Verifier) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	key := verifierKey{v.Caller, v.Name}
	s := vs.seen[key]
	if s == nil {
		vs.makeRoom()
		s = &seen{}
		vs.seen[key] = s
	}
	v.LastSeen = vs.clock.Now()
	*s = seen{Verifier: v, at: vs.clock.Elapsed()}
}

// makeRoom needs the lock.
func (vs *Verifiers) makeRoom() {
	if len(vs.seen) < MaxVerifiers {
		return
	}
	now := vs.clock.Elapsed()
	maps.DeleteFunc(vs.seen, func(_ verifierKey, s *seen) bool { return now-s.at >= silentLife })
	if len(vs.seen) < MaxVerifiers {
		return
	}
	count := map[string]int{}
	most := 0
	for key := range vs.seen {
		count[key.caller]++
		most = max(most, count[key.caller])
	}
	var oldest verifierKey
	found := false
	for key, s := range vs.seen {
		if count[key.caller] == most && (!found || s.at < vs.seen[oldest].at) {
			oldest, found = key, true
		}
	}
	delete(vs.seen, oldest)
}

// All returns the verifiers that have asked in the last day, by name.
func (vs *Verifiers) All() []Verifier {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	now := vs.clock.Elapsed()
	all := make([]Verifier, 0, len(vs.seen))
	for _, s := range vs.seen {
		if now-s.at >= silentLife {
			continue
		}
		v := s.Verifier
		v.Live = now-s.at < LiveTime
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b Verifier) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Caller, b.Caller))
	})
	return all
}

// Live is how many verifiers have asked in the last LiveTime.
func (vs *Verifiers) Live() int {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	now := vs.clock.Elapsed()
	n := 0
	for _, s := range vs.seen {
		if now-s.at < LiveTime {
			n++
		}
	}
	return n
}

// Behind returns the verifiers that are alive and have not asked since p, and
// how many are alive.
func (vs *Verifiers) Behind(p Position) (behind []Verifier, live int) {
	for _, v := range vs.All() {
		if !v.Live {
			continue
		}
		live++
		if v.Synced.Epoch != p.Epoch || v.Synced.Seq < p.Seq {
			behind = append(behind, v)
		}
	}
	return behind, live
}
