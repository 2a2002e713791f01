// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"hash/maphash"
	"math"
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
	// fullList is the number of stored sources from which the list may have been
	// cut: see Learn.
	fullList = 32

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

// Use looks at an accepted use. It finds a source that the key never had, if
// its history is long enough and new sources are rare for it.
func (d *Detector) Use(now time.Time, keyID string, version int, source string) (Finding, bool) {
	t := d.since(now)
	today := int32(t / day) //nolint:gosec // days since the start fit for 5 million years
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
	if k.uses < learnUses {
		k.uses++
	}
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

// Learn hands in the sources that a key is known to have had since a moment in
// the past, from stored usage; it can come before or after the first Use. From
// fullList sources on the list may have been cut, so that it cannot tell what is
// new: then its sources are known, but the key is judged only after learnTime.
func (d *Detector) Learn(keyID string, sources []string, since time.Time) {
	t := d.since(since)
	s := d.lock(keyID)
	defer s.mu.Unlock()
	if len(sources) == 0 {
		return
	}
	k := s.history(keyID, math.MaxInt64)
	for _, source := range sources {
		hash := maphash.String(d.seed, source)
		if _, ok := k.sources[hash]; !ok && len(k.sources) < maxKeySources {
			k.sources[hash] = max(0, k.seen())
			s.sources++
		}
	}
	if len(sources) < fullList && t < k.since {
		k.since, k.uses = t, learnUses
		if k.fresh == 0 {
			k.watched = k.counted // the time of the first use, if there was one
		}
	}
	s.shed(d.limits.sources)
}

// seen is the last day on which a new source was counted.
func (k *known) seen() int32 {
	if !k.used {
		return 0
	}
	return int32(k.counted / day) //nolint:gosec // as in Use
}

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
	if t >= k.watched && (k.fresh == 0 || t-k.counted >= episode) {
		k.fresh = k.fresh*decay(t-k.counted) + 1
		k.counted = t
	}
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
