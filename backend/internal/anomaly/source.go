// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"time"
)

const (
	// A key is judged once it has been known for learnTime, so that what runs
	// once a week, and how often deployments bring new sources, has been seen,
	// and used learnUses times.
	learnTime = 14 * 24 * time.Hour
	learnUses = 20
	// In its first discovery days all sources of a key are new; they do not
	// count for its rate of new ones.
	discovery = 2 * 24 * time.Hour
	// The rate of new sources is that of about the last memory days. Before
	// anything is known it is priorNew in priorTime.
	memory    = 21 * 24 * time.Hour
	priorNew  = 0.5
	priorTime = 7 * 24 * time.Hour
	// episode is the time in which several new sources count as one, as when a
	// deployment brings ten instances.
	episode = time.Hour
	// usualNew is the chance of a new source within a day from which on a new
	// source is nothing unusual for this key.
	usualNew = 0.05
	// At most one finding a day and key, then one in 2, 4, up to 7.
	sourcePaceFirst = 24 * time.Hour
	sourcePaceMost  = 7 * 24 * time.Hour
	// maxKeySources bounds the sources of one key. A key that is full, after
	// those unseen for staleSource have been dropped, is not judged.
	maxKeySources = 256
	staleSource   = 30

	day = 24 * time.Hour
)

// known is what a key's accepted uses taught.
type known struct {
	// since is from when on the sources are known, and watched from when on new
	// ones are counted. Until there is a first use, watched is not set.
	since, watched time.Duration
	used           bool
	uses           uint32
	// fresh is the number of episodes of new sources, decayed up to counted.
	fresh   float64
	counted time.Duration
	purged  time.Duration
	// sources has the day on which each was last seen.
	sources map[uint64]int32
	pace    pace
}

// Past is a source that a key is known to have been used from.
type Past struct {
	Name        string
	First, Last time.Time
	Uses        uint64
}

// Use looks at an accepted use. It finds a source that the key never had, if
// its history is long enough and new sources are rare for it.
func (d *Detector) Use(now time.Time, keyID string, version int, source string) (Finding, bool) {
	return d.Uses(now, keyID, version, source, 1)
}

// Uses looks at n accepted uses, of which the last was at now.
func (d *Detector) Uses(now time.Time, keyID string, version int, source string, n uint64) (Finding, bool) {
	t := d.since(now)
	today := dayOf(t)
	hash := maphash.String(d.seed, source)
	s := d.lock(keyID)
	defer s.mu.Unlock()
	k := s.history(keyID, t)
	if !k.used {
		k.used, k.watched, k.counted = true, t, t
		if k.since >= t { // not learned
			k.since, k.watched = t, t+discovery
		}
	}
	k.use(n)
	if seen, ok := k.sources[hash]; ok {
		if seen < today {
			k.sources[hash] = today
		}
		return Finding{}, false
	}
	if !s.remember(k, t, hash, today) {
		return Finding{}, false // too many sources to tell a new one
	}
	s.shed(d.limits.sources)
	return k.judge(now, t, keyID, version, source)
}

// Knows tells whether anything is known of where a key is used from.
func (d *Detector) Knows(keyID string) bool {
	s := d.lock(keyID)
	defer s.mu.Unlock()
	return s.known.Contains(keyID)
}

// Learn hands in the sources that a key was used from, by stored usage; it can
// come before or after the first Use. Where complete is false there were others,
// so that they cannot tell what is new: then these are known, but the key is
// judged only after learnTime.
func (d *Detector) Learn(keyID string, past []Past, complete bool) {
	if len(past) == 0 {
		return
	}
	s := d.lock(keyID)
	defer s.mu.Unlock()
	k := s.history(keyID, math.MaxInt64)
	for _, p := range past {
		hash := maphash.String(d.seed, p.Name)
		seen, ok := k.sources[hash]
		switch {
		case ok:
			k.sources[hash] = max(seen, dayOf(d.since(p.Last)))
		case len(k.sources) < maxKeySources:
			k.sources[hash] = dayOf(d.since(p.Last))
			s.sources++
		default:
			complete = false
		}
	}
	if complete {
		d.relive(k, past)
	}
	s.shed(d.limits.sources)
}

// relive counts the first uses of past sources, as if they had been looked at.
func (d *Detector) relive(k *known, past []Past) {
	first := make([]time.Duration, 0, len(past))
	for _, p := range past {
		first = append(first, d.since(p.First))
		k.use(p.Uses)
	}
	slices.Sort(first)
	if first[0] >= k.since {
		return
	}
	lived := known{since: first[0], watched: first[0] + discovery, counted: first[0]}
	for _, t := range first {
		lived.count(t)
	}
	if k.used && k.fresh > 0 {
		lived.fresh = lived.fresh*decay(k.counted-lived.counted) + k.fresh
		lived.counted = k.counted
	}
	k.used, k.since, k.watched, k.fresh, k.counted = true, lived.since, lived.watched, lived.fresh, lived.counted
}

// use counts uses, as far as it matters how many there were.
func (k *known) use(n uint64) {
	k.uses = uint32(min(learnUses, uint64(k.uses)+min(n, learnUses)))
}

// count notes the first use of a source.
func (k *known) count(t time.Duration) {
	if t >= k.watched && (k.fresh == 0 || t-k.counted >= episode) {
		k.fresh = k.fresh*decay(t-k.counted) + 1
		k.counted = t
	}
}

// dayOf is the number of the day of t.
func dayOf(t time.Duration) int32 { return int32(t / day) } //nolint:gosec // days fit for 5 million years

func (s *shard) history(keyID string, since time.Duration) *known {
	k, ok := s.known.Get(keyID)
	if !ok {
		k = &known{since: since, sources: map[uint64]int32{}}
		s.known.Add(strings.Clone(keyID), k)
	}
	return k
}

// remember adds a source, unless there are too many.
func (s *shard) remember(k *known, now time.Duration, hash uint64, today int32) bool {
	if len(k.sources) >= maxKeySources && now-k.purged >= day {
		k.purged = now
		before := len(k.sources)
		for h, seen := range k.sources {
			if today-seen > staleSource {
				delete(k.sources, h)
			}
		}
		s.sources -= before - len(k.sources)
	}
	if len(k.sources) >= maxKeySources {
		return false
	}
	k.sources[hash] = today
	s.sources++
	return true
}

// shed forgets the keys that were used longest ago until the sources of the
// rest are few enough. The one just used stays.
func (s *shard) shed(limit int) {
	for s.sources > limit && s.known.Len() > 1 {
		s.known.RemoveOldest()
	}
}

// judge says whether a source that was not known before is unusual.
func (k *known) judge(now time.Time, t time.Duration, keyID string, version int, source string) (Finding, bool) {
	chance := k.chance(t)
	k.count(t)
	if t-k.since < learnTime || k.uses < learnUses || len(k.sources) < 2 || chance > usualNew {
		return Finding{}, false
	}
	held, due := k.pace.due(t, sourcePaceFirst, sourcePaceMost)
	if !due {
		return Finding{}, false
	}
	evidence := fmt.Sprintf("first use from this source; %d others are known, over %d days; a new one is expected about once in %.0f days",
		len(k.sources)-1, (t-k.since)/day, 1/perDay(chance))
	if held > 0 {
		evidence += fmt.Sprintf("; %d more new sources since the last finding about it", held)
	}
	return Finding{
		Time: now, KeyID: keyID, Kind: UnseenSource, Version: version, Source: source,
		Evidence: evidence, Score: 1 / perDay(chance),
	}, true
}

// chance is that of at least one episode of new sources within a day.
func (k *known) chance(now time.Duration) float64 {
	watched := float64(memory) * (1 - decay(now-k.watched))
	rate := (k.fresh*decay(now-k.counted) + priorNew) / (watched + float64(priorTime))
	return 1 - math.Exp(-rate*float64(day))
}

// perDay turns the chance of at least one a day into a rate.
func perDay(chance float64) float64 { return -math.Log1p(-chance) }

func decay(d time.Duration) float64 { return math.Exp(-float64(max(0, d)) / float64(memory)) }
