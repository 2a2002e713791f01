// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"hash/maphash"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

const (
	// endedGrace is how long uses of a retired or revoked version are taken for
	// requests that were on their way, and clients that find out by being
	// refused. A compromised version has none.
	endedGrace = 5 * time.Minute
	// Uses that go on are reported again after a day, then 2, 4, up to 7.
	endedPaceFirst = 24 * time.Hour
	endedPaceMost  = 7 * 24 * time.Hour
	// maxSlots is how many pairs of a version and a source are told apart per
	// key. Those beyond share one, so that a leaked token that is tried from
	// everywhere causes 9 findings and not thousands.
	maxSlots = 8
)

// ended is the use of a key's ended versions.
type ended struct {
	slots  map[uint64]*pace
	others pace
	// purged is when idle slots were last looked for.
	purged time.Duration
}

// EndedUse looks at a refused use of a version that ended endedFor ago. In
// other states it finds nothing. Each pair of version and source has a
// cool-down of its own, and starts afresh when a retired or revoked version
// turns out to be compromised.
func (d *Detector) EndedUse(now time.Time, keyID string, version int, state, source string, endedFor time.Duration) (Finding, bool) {
	compromised := state == keyring.StateCompromised.String()
	switch {
	case compromised:
	case state != keyring.StateRetired.String() && state != keyring.StateRevoked.String(), endedFor < endedGrace:
		return Finding{}, false
	}
	t := d.since(now)
	s := d.lock(keyID)
	defer s.mu.Unlock()
	e, ok := s.ended.Get(keyID)
	if !ok {
		e = &ended{slots: map[uint64]*pace{}, purged: t}
		s.ended.Add(strings.Clone(keyID), e)
	}
	before := len(e.slots)
	p, named := e.slot(t, d.hashEnded(version, compromised, source))
	s.slots += len(e.slots) - before
	held, due := p.due(t, endedPaceFirst, endedPaceMost)
	if !due {
		return Finding{}, false
	}
	evidence := fmt.Sprintf("version %d, %s %s ago, was used and refused", version, state, rounded(endedFor))
	if compromised {
		evidence = fmt.Sprintf("version %d, reported as leaked %s ago, was used and refused", version, rounded(endedFor))
	}
	if held > 0 {
		evidence += fmt.Sprintf("; %d more such uses since the last finding about it", held)
	}
	if !named {
		evidence += fmt.Sprintf("; further sources of this key are not reported one by one (over %d)", maxSlots)
	}
	return Finding{
		Time: now, KeyID: keyID, Kind: EndedVersionUse, Version: version, Source: source,
		Evidence: evidence, Score: float64(held) + 1,
	}, true
}

func (d *Detector) hashEnded(version int, compromised bool, source string) uint64 {
	h := maphash.String(d.seed, source) ^ maphash.Comparable(d.seed, version)*3
	if compromised {
		h = ^h
	}
	return h
}

// slot returns the pace of a version and source, or the one that the rest
// shares.
func (e *ended) slot(now time.Duration, hash uint64) (p *pace, named bool) {
	if p := e.slots[hash]; p != nil {
		return p, true
	}
	if len(e.slots) >= maxSlots && now-e.purged >= endedPaceFirst {
		e.purged = now
		for h, p := range e.slots {
			if p.idle(now, endedPaceMost) {
				delete(e.slots, h)
			}
		}
	}
	if len(e.slots) >= maxSlots {
		return &e.others, false
	}
	p = &pace{}
	e.slots[hash] = p
	return p, true
}
