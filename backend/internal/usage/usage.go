// SPDX-License-Identifier: MPL-2.0

// Package usage counts, in memory, which versions of a key are in use and
// from where, and judges whether a version has drained.
//
// What it does not know it does not guess: after a start, and after an
// entry had to make room for others, quiet time counts from that moment, so
// a loss of memory can only delay a judgement of drained, never hasten it.
package usage

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

const (
	// maxKeys bounds the keys that are remembered; each takes a few hundred
	// bytes and a hundred more for each version and source.
	maxKeys = 100_000
	// maxSources bounds the sources of one version; the rest share Other.
	maxSources = 32
	// Other stands for all sources beyond the first ones.
	Other = "other"
)

// Tracker counts verifications. It is safe for concurrent use.
type Tracker struct {
	mu   sync.Mutex
	keys *lru.Cache[string, map[int]*Version]
	// since is the time from which a key that is not in keys is known not to
	// have been used.
	since time.Time
}

// Version is the use of one version.
type Version struct {
	Count    uint64
	Refused  uint64
	LastUsed time.Time
	Sources  map[string]Source
}

// Source is the use of one version from one source.
type Source struct {
	Count    uint64
	Refused  uint64
	LastUsed time.Time
}

// New returns a Tracker that knows nothing before now.
func New(now time.Time) *Tracker {
	t := &Tracker{since: now}
	cache, err := lru.NewWithEvict(maxKeys, func(_ string, versions map[int]*Version) {
		for _, v := range versions {
			if v.LastUsed.After(t.since) {
				t.since = v.LastUsed
			}
		}
	})
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	t.keys = cache
	return t
}

// Record counts one verification of a version from a source.
func (t *Tracker) Record(now time.Time, keyID string, version int, source string, accepted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	versions, ok := t.keys.Get(keyID)
	if !ok {
		versions = map[int]*Version{}
		t.keys.Add(keyID, versions)
	}
	v := versions[version]
	if v == nil {
		v = &Version{Sources: map[string]Source{}}
		versions[version] = v
	}
	s, known := v.Sources[source]
	if !known && len(v.Sources) >= maxSources {
		source = Other
		s = v.Sources[source]
	}
	if accepted {
		v.Count++
		s.Count++
	} else {
		v.Refused++
		s.Refused++
	}
	if now.After(v.LastUsed) {
		v.LastUsed = now
	}
	if now.After(s.LastUsed) {
		s.LastUsed = now
	}
	v.Sources[source] = s
}

// Version returns what is known of the use of one version.
func (t *Tracker) Version(keyID string, version int) Version {
	t.mu.Lock()
	defer t.mu.Unlock()
	versions, _ := t.keys.Peek(keyID)
	if v := versions[version]; v != nil {
		c := *v
		c.Sources = nil
		return c
	}
	return Version{}
}

// Forget drops what is known of a deleted key.
func (t *Tracker) Forget(keyID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys.Remove(keyID)
}

// Drained returns the check for one key: a version is drained when it was not
// used for the quiet period, as far as this process can know, and when each
// source that used it has been seen on a version that came after it.
func (t *Tracker) Drained(k *keyring.Key, quiet time.Duration, now time.Time) keyring.DrainCheck {
	return func(number int) keyring.DrainVerdict {
		t.mu.Lock()
		defer t.mu.Unlock()
		versions, tracked := t.keys.Peek(k.ID)
		quietSince := t.since
		if v := versions[number]; tracked && v != nil && v.LastUsed.After(quietSince) {
			quietSince = v.LastUsed
		}
		if next := quietSince.Add(quiet); next.After(now) {
			return keyring.DrainVerdict{Next: next, Why: fmt.Sprintf("known to be unused only since %s, and drain_quiet_period is %s",
				quietSince.UTC().Format(time.RFC3339), quiet)}
		}
		if left := leftBehind(versions, number, successors(k, number)); len(left) > 0 {
			return keyring.DrainVerdict{Why: "not seen on a newer version yet: " + strings.Join(left, ", ")}
		}
		return keyring.DrainVerdict{Drained: true, Why: fmt.Sprintf("unused since %s, no source left on it", quietSince.UTC().Format(time.RFC3339))}
	}
}

// successors are the versions that stand in for number: the active one and
// what superseded number on the way.
func successors(k *keyring.Key, number int) []int {
	var next []int
	for _, v := range k.Versions {
		if v.Number != number && !v.State.Ended() && (v.Number > number || v.State == keyring.StateActive) {
			next = append(next, v.Number)
		}
	}
	return next
}

func leftBehind(versions map[int]*Version, number int, successors []int) []string {
	old := versions[number]
	if old == nil {
		return nil
	}
	var left []string
	for name, s := range old.Sources {
		moved := slices.ContainsFunc(successors, func(n int) bool {
			v := versions[n]
			return v != nil && v.Sources[name].Count > 0
		})
		if s.Count > 0 && !moved {
			left = append(left, printable(name))
		}
	}
	slices.Sort(left)
	return left
}

// printable is the part of a source's name that the caller chose.
func printable(name string) string {
	if _, label, ok := strings.Cut(name, "|"); ok && label != "" {
		return label
	}
	return "a caller without a source"
}

// SourceName names a source under the entity, or token, of its caller, so
// that one caller cannot speak for another.
func SourceName(caller, label string) string { return caller + "|" + label }
