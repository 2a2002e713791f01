// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
)

const (
	// parallel is how many keys are worked on at a time.
	parallel = 8
	// damagedRetry is when a key that cannot be read is looked at again.
	damagedRetry = time.Hour
	// maxLeap is the disagreement between wall clock and monotonic clock that
	// suspends automatic transitions.
	maxLeap = time.Hour
	// agreeing is how many ticks must agree before they go on.
	agreeing = 2
)

// ErrClockLeapt says that the wall clock moved by over an hour against the
// time that passed, so that what is due by it cannot be trusted yet.
var ErrClockLeapt = errors.New("automatic transitions are suspended: the wall clock leapt by over an hour; they go on once two ticks agree")

// Ticker does what is due. It is safe for concurrent use; ticks do not
// overlap.
type Ticker struct {
	keeper *lifecycle.Keeper
	logger hclog.Logger
	// Observe, where set before first use, is told of every tick and sweep: how
	// long it took, and how late the oldest minute was that it found due.
	Observe func(took, lag time.Duration, sum Summary, err error)

	mu sync.Mutex
	// lag is that of the present tick.
	lag time.Duration
	// lastWall and lastElapsed are the two clocks at the last tick.
	lastWall    time.Time
	lastElapsed time.Duration
	suspended   int
}

// NewTicker returns a Ticker for the keys of keeper.
func NewTicker(keeper *lifecycle.Keeper, logger hclog.Logger) *Ticker {
	return &Ticker{keeper: keeper, logger: logger, lastWall: keeper.Clock.Now(), lastElapsed: keeper.Clock.Elapsed()}
}

// Summary counts what a tick did.
type Summary struct {
	// Keys changed, and Damaged could not be read and are tried again later.
	Keys    int
	Damaged int
}

// Tick does everything that is due in past minutes, oldest first. It stops at
// the first storage failure and leaves the rest in the index for the next one.
func (t *Ticker) Tick(ctx context.Context) (sum Summary, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.observe(&sum, &err)()
	if t.leapt() {
		return Summary{}, ErrClockLeapt
	}
	return t.tick(ctx)
}

// Sweep does what Tick does, and what the present minute holds that is due
// already. It does not count as one of the ticks that must agree after a leap
// of the clock.
func (t *Ticker) Sweep(ctx context.Context) (sum Summary, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.observe(&sum, &err)()
	if t.suspended > 0 || t.disagree() {
		return Summary{}, ErrClockLeapt
	}
	sum, err = t.tick(ctx)
	if err != nil {
		return sum, err
	}
	minute := t.keeper.Store.PresentMinute()
	ids, err := t.keeper.Store.DueIn(ctx, minute)
	if err != nil {
		return sum, err
	}
	more, err := t.apply(ctx, minute, ids, true)
	sum.Keys += more.Keys
	sum.Damaged += more.Damaged
	return sum, err
}

func (t *Ticker) tick(ctx context.Context) (Summary, error) {
	var sum Summary
	minutes, err := t.keeper.Store.DueMinutes(ctx)
	if len(minutes) > 0 {
		t.lag = t.keeper.Clock.Now().Sub(time.Unix(minutes[0]*60, 0))
	}
	for _, minute := range minutes {
		ids, err := t.keeper.Store.DueIn(ctx, minute)
		if err != nil {
			return sum, err
		}
		done, err := t.apply(ctx, minute, ids, false)
		sum.Keys += done.Keys
		sum.Damaged += done.Damaged
		if err != nil {
			return sum, err
		}
		if err := t.keeper.Store.MinuteDone(ctx, minute); err != nil {
			return sum, err
		}
	}
	if err != nil {
		return sum, err
	}
	return sum, t.keeper.Store.SweepMarkers(ctx)
}

func (t *Ticker) apply(ctx context.Context, minute int64, ids []string, early bool) (Summary, error) {
	var keys, damaged atomic.Int64
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, id := range ids {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			changed, err := t.applyOne(groupCtx, minute, id, early)
			if errors.Is(err, store.ErrDamaged) || errors.Is(err, errPanic) {
				damaged.Add(1)
				t.logger.Error("a key cannot be processed and is tried again later", "key_id", id, "error", err)
				if early {
					return nil
				}
				return t.keeper.Store.Postpone(groupCtx, id, minute, t.keeper.Clock.Now().Add(damagedRetry))
			}
			if changed {
				keys.Add(1)
			}
			return err
		})
	}
	err := group.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return Summary{Keys: int(keys.Load()), Damaged: int(damaged.Load())}, err
}

func (t *Ticker) applyOne(ctx context.Context, minute int64, id string, early bool) (changed bool, err error) {
	defer recoverTo(&err)
	return t.keeper.Apply(ctx, id, minute, early)
}

// leapt notes the clocks of this tick and tells whether transitions are
// suspended.
func (t *Ticker) leapt() bool {
	disagree := t.disagree()
	t.lastWall, t.lastElapsed = t.keeper.Clock.Now(), t.keeper.Clock.Elapsed()
	switch {
	case disagree:
		t.suspended = agreeing
		t.logger.Warn("the wall clock leapt; automatic transitions are suspended until two ticks agree", "now", t.lastWall)
		return true
	case t.suspended > 0:
		t.suspended--
		return t.suspended > 0
	}
	return false
}

func (t *Ticker) disagree() bool {
	leap := t.keeper.Clock.Now().Sub(t.lastWall) - (t.keeper.Clock.Elapsed() - t.lastElapsed)
	return leap > maxLeap || leap < -maxLeap
}
