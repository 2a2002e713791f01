// SPDX-License-Identifier: MPL-2.0

package metrics

import (
	"context"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/health"
)

const (
	// sampleLife is how long a judgement of the rollovers is told again.
	sampleLife = 30 * time.Second
	// maxJudged and maxTime bound the work for one sample. The next one goes on
	// with the rollovers beyond them; until then they count as they were last
	// judged, or as unknown.
	maxJudged = 1000
	maxTime   = 2 * time.Second
)

// unknownHealth is that of a rollover that was not judged.
const unknownHealth = "unknown"

var healths = []string{string(health.OnTrack), string(health.Stalled), string(health.AtRisk), string(health.Failed), unknownHealth}

// Rollovers finds the rollovers under way and judges them.
type Rollovers interface {
	// IDs returns the keys that may have a rollover under way.
	IDs(ctx context.Context) ([]string, error)
	// Judge judges one of them.
	Judge(ctx context.Context, id string) (Rollover, error)
}

// Rollover is what is told of one.
type Rollover struct {
	// Over says that none is under way after all.
	Over bool
	// Health is the judgement, empty where it is not known.
	Health health.Status
	// Ends is the next end of an overlap, zero where none has begun.
	Ends time.Time
}

// sample is what was found of the rollovers at one time.
type sample struct {
	taken    time.Duration // by the clock's Elapsed
	byHealth map[string]int
	ends     time.Time
}

// judgeRollovers takes a new sample where the last one is too old. Where the
// list cannot be read there is none.
func (m *Metrics) judgeRollovers(ctx context.Context, r Rollovers) error {
	m.rolloverMu.Lock()
	defer m.rolloverMu.Unlock()
	start := m.clock.Elapsed()
	if m.rollover != nil && start-m.rollover.taken < sampleLife {
		return nil
	}
	m.rollover = nil
	ids, err := r.IDs(ctx)
	if err != nil {
		return err
	}
	s := &sample{taken: start, byHealth: map[string]int{}}
	judged := make(map[string]Rollover, len(ids))
	first, _ := slices.BinarySearch(ids, m.judgeNext) // in the order of storage
	for i := range ids {
		id := ids[(first+i)%len(ids)]
		former, known := m.judged[id]
		if i < maxJudged && ctx.Err() == nil && m.clock.Elapsed()-start <= maxTime {
			m.judgeNext = id + "\x00"
			if former, err = r.Judge(ctx, id); err != nil {
				former = Rollover{}
			}
			known = err == nil
		}
		if known {
			judged[id] = former
		}
		s.add(former, m.clock.Now())
	}
	m.rollover, m.judged = s, judged
	return nil
}

func (s *sample) add(r Rollover, now time.Time) {
	switch {
	case r.Over:
		return
	case r.Health == "":
		s.byHealth[unknownHealth]++
	default:
		s.byHealth[string(r.Health)]++
	}
	if r.Ends.After(now) && (s.ends.IsZero() || r.Ends.Before(s.ends)) {
		s.ends = r.Ends
	}
}
