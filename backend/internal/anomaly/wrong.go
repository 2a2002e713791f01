// SPDX-License-Identifier: MPL-2.0

package anomaly

import (
	"fmt"
	"strings"
	"time"
)

const (
	// A burst is more than wrongBurst wrong secrets beyond what a bucket lets
	// out at one per wrongFast, or more than wrongTrickle beyond one per
	// wrongSlow (30 a day). A token with a wrong secret but the right checksum is
	// never a typing error, so few are enough.
	wrongBurst   = 10
	wrongFast    = 6 * time.Second
	wrongTrickle = 30
	wrongSlow    = 48 * time.Minute
	// A burst that goes on is reported again after 6 hours, then 12, then
	// every 24.
	wrongPaceFirst = 6 * time.Hour
	wrongPaceMost  = 24 * time.Hour
)

// wrong has two leaky buckets, each as the time at which it will be empty.
type wrong struct {
	fast, slow time.Duration
	// first and count are of the wrong secrets since both buckets were empty.
	first time.Duration
	count uint64
	pace  pace
}

// WrongSecret counts a well-formed token with the id of a real key and none of
// its secrets. It must not be called for ids that no key has.
func (d *Detector) WrongSecret(now time.Time, keyID string) (Finding, bool) {
	t := d.since(now)
	s := d.lock(keyID)
	defer s.mu.Unlock()
	w, ok := s.wrong.Get(keyID)
	if !ok {
		w = &wrong{fast: t, slow: t, first: t}
		s.wrong.Add(strings.Clone(keyID), w)
	}
	if w.fast <= t && w.slow <= t {
		w.first, w.count = t, 0
	}
	w.count++
	// A full bucket does not fill further, or a long attack would be reported
	// for as long again after its end.
	w.fast = min(max(w.fast, t), t+wrongBurst*wrongFast) + wrongFast
	w.slow = min(max(w.slow, t), t+wrongTrickle*wrongSlow) + wrongSlow
	if w.fast-t < wrongBurst*wrongFast && w.slow-t < wrongTrickle*wrongSlow {
		return Finding{}, false
	}
	if _, due := w.pace.due(t, wrongPaceFirst, wrongPaceMost); !due {
		return Finding{}, false
	}
	return Finding{
		Time: now, KeyID: keyID, Kind: WrongSecretBurst, Score: float64(w.count),
		Evidence: fmt.Sprintf("%d tokens in %s had this key's id, a right checksum and a secret that no version of it has; reported from %d in a minute, or about %d in a day",
			w.count, rounded(t-w.first), wrongBurst, wrongTrickle),
	}, true
}

// rounded keeps evidence readable.
func rounded(d time.Duration) time.Duration {
	switch {
	case d > time.Hour:
		return d.Round(time.Minute)
	case d > time.Second:
		return d.Round(time.Second)
	default:
		return time.Second
	}
}
