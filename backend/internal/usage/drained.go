// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

// leastQuiet is the least quiet time for a version whose past use is not known
// back to when it was superseded: some time must pass in which its users can
// show up again, even where the role asks for none.
const leastQuiet = 5 * time.Minute

// Drained returns the check for one key, as far as memory knows: a version is
// drained when it was not used for the quiet period, and when each source that
// used it has been seen on a version that came after it.
func (t *Tracker) Drained(k *keyring.Key, quiet time.Duration, now time.Time) keyring.DrainCheck {
	return func(number int) keyring.DrainVerdict { return t.drained(k, quiet, time.Time{}, now, number) }
}

// Drained returns the check for one key, as far as memory and pages know. It
// reads storage only once memory knows of nothing that speaks against it.
func (b *Book) Drained(ctx context.Context, k *keyring.Key, quiet time.Duration, now time.Time) keyring.DrainCheck {
	return func(number int) keyring.DrainVerdict {
		v, _ := k.Version(number)
		known, from, late := b.Reports.Known(v.SupersededTime, now)
		verdict := b.tracker.drained(k, quiet, from, known, number)
		if !verdict.Drained {
			if known.Before(now) && !verdict.Next.IsZero() {
				verdict.Next = earliest(verdict.Next.Add(min(24*time.Hour, now.Sub(known))), now.Add(recheck(k, number, quiet, now)))
				verdict.Why += "; " + late
			}
			return verdict
		}
		b.recoverSoon(ctx)
		if why := b.notes.unknown(); why != "" {
			return keyring.DrainVerdict{Next: now.Add(recheck(k, number, quiet, now)), Why: why}
		}
		use, lost, err := b.read(ctx, k.ID, now)
		if err != nil {
			return keyring.DrainVerdict{Why: "the stored use of the key could not be read"}
		}
		if number <= lost {
			return keyring.DrainVerdict{Next: now.Add(recheck(k, number, quiet, now)), Why: "its sources were too many to be kept"}
		}
		if left := b.tracker.leftStored(k, use, number); len(left) > 0 {
			return keyring.DrainVerdict{Next: now.Add(recheck(k, number, quiet, now)), Why: "not seen on a newer version yet: " + strings.Join(left, ", ")}
		}
		return verdict
	}
}

// leftStored names the sources of a version that neither pages nor memory have
// seen accepted with any of its successors.
func (t *Tracker) leftStored(k *keyring.Key, use map[int]Version, number int) []string {
	next := successors(k, number)
	old, _ := k.Version(number)
	s := t.shard(k.ID)
	s.mu.Lock()
	var live map[int]*version
	// told says that this process saw all uses of the version, and so can tell
	// the sources apart that share Other.
	told := false
	if r, ok := s.keys.Peek(k.ID); ok {
		live = r.versions
		told = live[number] != nil && !r.since.After(old.CreatedTime)
	}
	moved := t.moved(live, number, next, old.SupersededTime)
	s.mu.Unlock()
	var left []string
	for name, src := range use[number].Sources {
		switch {
		case src.Count == 0, name == Other && told, name != Other && moved[t.hash(name)]:
		case name == Other:
			// Which sources these were is known only to the process that saw them.
			left = append(left, fmt.Sprintf("sources beyond the first %d", maxSources))
		case !slices.ContainsFunc(next, func(n int) bool {
			s := use[n].Sources[name]
			return s.Count > 0 && !s.LastUsed.Before(old.SupersededTime.Truncate(time.Millisecond))
		}):
			left = append(left, printable(name))
		}
	}
	slices.Sort(left)
	return left
}

// drained judges what memory knows. from is the time before which a verifier
// elsewhere may have seen use that it never reported.
func (t *Tracker) drained(k *keyring.Key, quiet time.Duration, from, now time.Time, number int) keyring.DrainVerdict {
	s := t.shard(k.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	quietSince := s.since
	var versions map[int]*version
	if r, tracked := s.keys.Peek(k.ID); tracked {
		quietSince, versions = r.since, r.versions
	}
	quietSince = later(quietSince, from)
	needed, rule := quiet, "drain_quiet_period"
	old, ok := k.Version(number)
	unknownBefore := ok && quietSince.After(old.SupersededTime)
	if unknownBefore && quiet < leastQuiet {
		needed, rule = leastQuiet, "the least after a start, when earlier use is not known"
	}
	if v := versions[number]; v != nil {
		quietSince = later(quietSince, v.lastUsed)
	}
	if next := quietSince.Add(needed); next.After(now) {
		return keyring.DrainVerdict{Next: next, Why: fmt.Sprintf("known to be unused only since %s, and it must be for %s (%s)",
			quietSince.UTC().Format(time.RFC3339), needed, rule)}
	}
	if left := t.leftBehind(versions, number, successors(k, number), old.SupersededTime); len(left) > 0 {
		return keyring.DrainVerdict{Next: now.Add(recheck(k, number, quiet, now)), Why: "not seen on a newer version yet: " + strings.Join(left, ", ")}
	}
	if left := unmoved(k, number); unknownBefore && len(left) > 0 {
		return keyring.DrainVerdict{Next: now.Add(recheck(k, number, quiet, now)), Why: "earlier use is not known, and said to be on it: " + strings.Join(left, ", ")}
	}
	return keyring.DrainVerdict{Drained: true, Why: fmt.Sprintf("unused since %s, no source left on it", quietSince.UTC().Format(time.RFC3339))}
}

// unmoved names the instances whose last word is that they use a version. Where
// it is not known who used it, they are taken at their word: what a crash lost
// may have been their use.
func unmoved(k *keyring.Key, number int) []string {
	var left []string
	for _, c := range k.Confirmations {
		if c.Version == number {
			left = append(left, "instance "+c.Instance)
		}
	}
	slices.Sort(left)
	if over := len(left) - maxSources; over > 0 {
		left = append(left[:maxSources], fmt.Sprintf("and %d more", over))
	}
	return left
}

// recheck is how long after now to look again at a version that is quiet but
// has laggards. Each look costs writes, and a laggard may take weeks: the
// distance grows to an eighth of the time waited so far, and at most an hour.
func recheck(k *keyring.Key, number int, quiet time.Duration, now time.Time) time.Duration {
	v, _ := k.Version(number)
	return max(time.Minute, quiet/12, min(time.Hour, now.Sub(v.OverlapEnds)/8))
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

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// moved has the hashes of the sources that were accepted with any of numbers,
// which may be older versions that were restored, since then.
func (t *Tracker) moved(versions map[int]*version, number int, numbers []int, since time.Time) map[uint64]bool {
	moved := map[uint64]bool{}
	for _, n := range numbers {
		if v := versions[n]; v != nil {
			for name, s := range v.sources {
				if name != Other && s.Count > 0 && !s.LastUsed.Before(since) {
					moved[t.hash(name)] = true
				}
			}
			if n < number {
				continue // an earlier version that was restored: when these used it is not known
			}
			for hash := range v.overflow {
				moved[hash] = true
			}
		}
	}
	return moved
}

// leftBehind names the sources of a version that were not accepted with any
// of its successors.
func (t *Tracker) leftBehind(versions map[int]*version, number int, successors []int, since time.Time) []string {
	old := versions[number]
	if old == nil {
		return nil
	}
	moved := t.moved(versions, number, successors, since)
	var left []string
	for name, s := range old.sources {
		if name != Other && s.Count > 0 && !moved[t.hash(name)] {
			left = append(left, printable(name))
		}
	}
	slices.Sort(left)
	unnamed := 0
	for hash := range old.overflow {
		if !moved[hash] {
			unnamed++
		}
	}
	switch {
	case old.overflown:
		left = append(left, fmt.Sprintf("an unknown number of the sources beyond %d", maxSources+maxOverflow))
	case unnamed > 0:
		left = append(left, fmt.Sprintf("%d of the sources beyond the first %d", unnamed, maxSources))
	}
	return left
}

// printable is the part of a source's name that the caller chose.
func printable(name string) string {
	if _, label, ok := strings.Cut(name, "|"); ok && label != "" {
		return label
	}
	if name == Other {
		return Other
	}
	return "default"
}

// SourceName names a source under the entity, or token, of its caller, so
// that one caller cannot speak for another.
func SourceName(caller, label string) string { return caller + "|" + label }

// DisplayNames returns how sources are shown: by the part of their name that
// the caller chose, with the caller where two chose the same: by its entity, or
// by a text that is always the same for it and tells nothing of it.
func DisplayNames(names map[string]bool) map[string]string {
	labels := map[string]int{}
	for name := range names {
		labels[printable(name)]++
	}
	shown := map[string]string{}
	for name := range names {
		label := printable(name)
		if caller, _, ok := strings.Cut(name, "|"); ok && labels[label] > 1 {
			label += " by " + DisplayCaller(caller)
		}
		shown[name] = label
	}
	return shown
}

// DisplayCaller is how a caller is shown. The accessor of a token is a handle
// on it, and is not shown.
func DisplayCaller(caller string) string {
	if strings.HasPrefix(caller, callerEntity) {
		return caller
	}
	kind, _, _ := strings.Cut(caller, ":")
	sum := sha256.Sum256([]byte(caller))
	return kind + ":" + hex.EncodeToString(sum[:4])
}

// callerEntity begins the name of a caller that has an entity.
const callerEntity = "entity:"
