// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// noteTime bounds how long a verification waits for storage.
	noteTime = 2 * time.Second
	// restTime is for how long storage that failed, or took longer, is not asked
	// again: the verifications in between do not wait.
	restTime = 5 * time.Second
)

// errResting says that storage has failed a moment ago.
var errResting = errors.New("storage failed to take first uses a moment ago")

// First is the first accepted use of a version from a source, as far as the
// process knows.
type First struct {
	KeyID   string
	Version int
	// Source is the name under which it is counted: its own or Other.
	Source string
	At     time.Time
}

// place is a source of a version of a key.
type place struct {
	keyID   string
	version int
	source  string
}

func (f *First) place() place { return place{f.KeyID, f.Version, f.Source} }

// Remember has storage know of first uses before it returns: what is counted
// of them may be lost with the process, that there was a use may not. Where
// storage knows of them already it costs no write. It waits for noteTime at most,
// and not at all within restTime of a failure. An error leaves them counted, and
// to be remembered with the next use or the next flush.
func (b *Book) Remember(ctx context.Context, firsts ...*First) error {
	unknown := b.unknown(firsts)
	if len(unknown) == 0 {
		return nil
	}
	if !b.rest.tries(b.clock.Elapsed()) {
		return errResting
	}
	err := b.note(ctx, unknown)
	if b.rest.over(b.clock.Elapsed(), err) {
		b.logger.Warn("the first use of a key from a source could not be stored; until it can, no other is waited for", "key_id", unknown[0].KeyID, "error", err, "tried_again_after", restTime)
	}
	return err
}

// Insist is Remember for one who would come again where it fails: it asks storage
// also within restTime of a failure.
func (b *Book) Insist(ctx context.Context, firsts ...*First) error {
	return b.note(ctx, b.unknown(firsts))
}

// Noted are the versions that have notes of first uses, also where a crash has
// left only these behind, until Told is called of them.
func (b *Book) Noted() []Used { return b.notes.toTell() }

// Told notes that the first use of a version is in its key's history.
func (b *Book) Told(keyID string, version int) { b.notes.tell(keyID, version) }

// unknown are those of firsts of which it is not known that storage has them.
func (b *Book) unknown(firsts []*First) []*First {
	var unknown []*First
	for _, f := range firsts {
		if b.notes.has(f) || b.outlined(f.KeyID).has(b.tracker.seed, f) {
			b.tracker.kept(f)
		} else {
			unknown = append(unknown, f)
		}
	}
	return unknown
}

// note stores those uses that no page has.
func (b *Book) note(ctx context.Context, firsts []*First) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTime)
	defer cancel()
	var fresh []*First
	var failed error
	for _, f := range firsts {
		switch o, err := b.outline(ctx, f.KeyID); {
		case errors.Is(err, errDamaged), err == nil && o.has(b.tracker.seed, f): // on a page that is damaged nothing counts as drained
			b.tracker.kept(f)
		case ctx.Err() != nil:
			return errors.Join(failed, err, ctx.Err()) // there may be none but the last
		case err != nil && (b.dir.Load() == nil || errors.Is(err, context.DeadlineExceeded)):
			failed = err
		default: // also where that one page cannot be read
			fresh = append(fresh, f)
		}
	}
	if len(fresh) == 0 {
		return failed
	}
	return errors.Join(failed, b.notes.add(ctx, fresh))
}

// rest is when storage that failed is not asked.
type rest struct {
	mu sync.Mutex
	// until is 0 where it did not fail, and told tells that a failure was told.
	until time.Duration
	told  bool
}

// tries tells whether storage is to be asked: after a failure by one use alone
// in each restTime.
func (r *rest) tries(now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == 0 {
		return true
	}
	if now < r.until {
		return false
	}
	r.until, r.told = now+restTime, false
	return true
}

// over notes how it went, and tells whether that is to be told.
func (r *rest) over(now time.Duration, err error) (tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.until, r.told = 0, false
		return false
	}
	tell = !r.told
	r.until, r.told = now+restTime, true
	return tell
}
