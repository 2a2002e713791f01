// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A hook whose entry or outbox cannot be read must hold up neither the keys
// that have something to tell nor the other hooks. What it misses meanwhile
// depends on whether it may be read again:
//
//   - Storage failed, or a newer plugin wrote it: its filters are unknown, so
//     everything is kept in its outbox, up to the bound of a disabled hook, and
//     filtered when it is delivered.
//   - Its entry is damaged: nothing is kept. It has to be deleted.

const (
	// minReread and maxReread bound the time between two attempts to read a
	// hook that storage did not give.
	minReread = time.Minute
	maxReread = time.Hour
)

var errDamagedHook = errors.New("the stored webhook is not readable: delete it and make it again")

// unreadHook is why a hook cannot be read, and what follows from that.
type unreadHook struct {
	// why is what an operator is told.
	why error
	// keeps tells that events are kept, unfiltered, for when it can be read.
	keeps bool
	// again tells that this process may succeed in reading it, at retry.
	again bool
	retry time.Duration
	// times is how often that has failed.
	times int
	// dropped counts what was not kept.
	dropped uint64
}

// open reads the entry and the outbox of a hook. It returns false where there
// is no entry, and an error only where ctx has ended. The caller holds entry,
// or is alone with q.
func (q *queue) open(ctx context.Context) (bool, error) {
	h, err := q.readHook(ctx)
	if err == nil && h == nil {
		return false, nil
	}
	unread := &unreadHook{}
	if err == nil && !h.Deleted || errors.Is(err, errNewer) {
		if listErr := q.recover(ctx); listErr != nil {
			h, err = nil, listErr
		}
	}
	if ctx.Err() != nil {
		return true, ctx.Err() // it says nothing of storage
	}
	switch {
	case err == nil:
		unread = nil
	case errors.Is(err, errDamagedHook):
		unread.why = err
	case errors.Is(err, errNewer):
		unread.why, unread.keeps = err, true
	default:
		unread.why, unread.keeps, unread.again = err, true, true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.found(h, unread)
	return true, nil
}

// readHook returns nil where there is no entry.
func (q *queue) readHook(ctx context.Context) (*Hook, error) {
	raw, err := q.d.storage.GetHook(ctx, q.name)
	if err != nil || raw == nil {
		return nil, err
	}
	h := &Hook{}
	if err := json.Unmarshal(raw, h); err != nil {
		if errors.Is(err, errNewer) {
			return nil, err
		}
		return nil, errDamagedHook
	}
	h.Name = q.name
	return h, nil
}

// found notes what reading the hook has come to. The caller holds mu.
func (q *queue) found(h *Hook, unread *unreadHook) {
	before := q.unread
	if unread != nil {
		if before != nil {
			unread.times, unread.dropped = before.times+1, before.dropped
		}
		unread.retry = q.d.clock.Elapsed() + min(minReread<<min(unread.times, 6), maxReread)
		if before == nil {
			q.d.logger.Error("a stored webhook cannot be read; it is told nothing until that is mended, and holds nothing up",
				"webhook", q.name, "events_kept", unread.keeps, "tried_again", unread.again, "error", unread.why)
		}
	}
	q.hook, q.unread = h, unread
	if unread != nil || before == nil {
		return
	}
	q.d.logger.Info("a stored webhook can be read again", "webhook", q.name)
	if before.dropped > 0 {
		q.noteLocked(func(h *Hook) { h.Dropped += before.dropped })
	}
	q.poke()
}

// unsure notes that a write of the hook failed with err: storage may hold what
// was written all the same, which is found out before anything else is done
// with the hook. Until then events are kept for it.
func (q *queue) unsure(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.found(nil, &unreadHook{why: err, keeps: true, again: true})
}

// reread tries again to read a hook that storage did not give, if it is time
// for that, or at once where somebody asks for the hook. The caller holds
// admin. An error means that ctx has ended.
func (d *Deliverer) reread(ctx context.Context, q *queue, now bool) error {
	q.mu.Lock()
	due := q.unread != nil && q.unread.again && (now || d.clock.Elapsed() >= q.unread.retry)
	q.mu.Unlock()
	if !due {
		return nil
	}
	q.entry.Lock()
	defer q.entry.Unlock()
	there, err := q.open(ctx)
	if err != nil || there {
		return err
	}
	// What was kept for it is nobody's.
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unread = nil
	q.gone()
	return nil
}

// asked is reread for somebody who asks for the hook of this name.
func (d *Deliverer) asked(ctx context.Context, name string) error {
	q := d.queue(name)
	if q == nil {
		return nil
	}
	q.mu.Lock()
	again := q.unread != nil && q.unread.again
	q.mu.Unlock()
	if !again {
		return nil
	}
	d.admin.Lock()
	defer d.admin.Unlock()
	if d.queue(name) != q {
		return nil
	}
	return d.reread(ctx, q, true)
}

// unreadError is what is told of a hook that cannot be read, or nil. The
// caller holds mu.
func (q *queue) unreadError() error {
	if q.unread == nil {
		return nil
	}
	return fmt.Errorf("load webhook %q: %w", q.name, q.unread.why)
}
