// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"context"
	"errors"
	"sync"
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
	// maxRow is how many keys may fail in a row before storage is put to the
	// test, maxPause the longest for which a key that fails is put off, and
	// maxRemembered bounds the memory of those that do.
	maxRow        = 16
	maxPause      = time.Hour
	maxRemembered = 100_000
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
	// failures has the keys that failed when they were last tried. A run guards
	// it.
	failures map[string]failure
}

// failure says how often a key failed in a row, and the minute to which it was
// put off, 0 where it was not.
type failure struct {
	times int
	until int64
}

// NewTicker returns a Ticker for the keys of keeper.
func NewTicker(keeper *lifecycle.Keeper, logger hclog.Logger) *Ticker {
	return &Ticker{keeper: keeper, logger: logger, lastWall: keeper.Clock.Now(), lastElapsed: keeper.Clock.Elapsed(), failures: map[string]failure{}}
}

// Summary counts what a tick did.
type Summary struct {
	// Keys changed.
	Keys int
	// Damaged could not be read, and Failed could be neither changed nor called
	// damaged; both are tried again later.
	Damaged int
	Failed  int
}

// Tick does everything that is due in past minutes, oldest first. A key that
// fails is tried again at the next tick, and then after pauses that double; the
// others go on. Where storage itself fails it stops and leaves the rest in the
// index for the next tick.
func (t *Ticker) Tick(ctx context.Context) (sum Summary, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.observe(&sum, &err)()
	if t.leapt() {
		return Summary{}, ErrClockLeapt
	}
	t.keeper.Book.Recover(ctx)
	r := &run{ticker: t}
	return r.result(r.past(ctx))
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
	t.keeper.Book.Recover(ctx)
	r := &run{ticker: t}
	err = r.past(ctx)
	if err == nil {
		err = r.present(ctx)
	}
	return r.result(err)
}

// run is one run over what is due.
type run struct {
	ticker *Ticker

	mu  sync.Mutex
	sum Summary
	// row counts the failures since something last worked, and worked tells
	// whether anything did: then it is not storage that is down.
	row    int
	worked bool
	failed []string
	first  error
	// down is the error that ends the run.
	down error
}

// result is what the run has come to. It fails where it had to stop, or where
// nothing worked at all.
func (r *run) result(err error) (Summary, error) {
	if err == nil && !r.worked {
		err = r.first
	}
	if r.down != nil {
		// It was not for these keys that they failed.
		for _, id := range r.failed {
			delete(r.ticker.failures, id)
		}
	}
	return r.sum, err
}

// past works off the minutes that are over.
func (r *run) past(ctx context.Context) error {
	s := r.ticker.keeper.Store
	minutes, err := s.DueMinutes(ctx)
	if len(minutes) > 0 {
		r.ticker.lag = r.ticker.keeper.Clock.Now().Sub(time.Unix(minutes[0]*60, 0))
	}
	for _, minute := range minutes {
		ids, err := s.DueIn(ctx, minute)
		if err != nil {
			return err
		}
		left, err := r.minute(ctx, minute, ids, false)
		if err != nil {
			return err
		}
		if left {
			continue
		}
		if err := s.MinuteDone(ctx, minute); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return s.SweepMarkers(ctx)
}

// present does what the minute that is not over holds.
func (r *run) present(ctx context.Context) error {
	minute := r.ticker.keeper.Store.PresentMinute()
	ids, err := r.ticker.keeper.Store.DueIn(ctx, minute)
	if err != nil {
		return err
	}
	_, err = r.minute(ctx, minute, ids, true)
	return err
}

// minute applies what is due to the keys of a minute. It reports whether any
// were left there for the next run.
func (r *run) minute(ctx context.Context, minute int64, ids []string, early bool) (left bool, err error) {
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, id := range ids {
		if ctx.Err() != nil || r.stopped() != nil {
			break
		}
		group.Go(func() error {
			if r.key(ctx, minute, id, early) {
				r.mu.Lock()
				defer r.mu.Unlock()
				left = true
			}
			return nil
		})
	}
	_ = group.Wait() // none returns an error
	if err := r.stopped(); err != nil {
		return true, err
	}
	return left, ctx.Err()
}

func (r *run) stopped() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down
}

// key applies what is due to one key. It reports whether the key failed and is
// left where it is filed.
func (r *run) key(ctx context.Context, minute int64, id string, early bool) (left bool) {
	t := r.ticker
	if r.putOff(id) > minute && !r.filedAt(ctx, id, minute) {
		// What the commit that failed had filed beforehand. The key is filed
		// where it was put off to, and is dealt with there.
		if err := t.keeper.Store.DropDue(ctx, minute, id); err != nil {
			r.stop(err)
		}
		return false
	}
	changed, err := t.applyOne(ctx, minute, id, early)
	switch {
	case err == nil && !changed && early:
		return false // it is not due yet, and was not touched
	case err == nil:
		r.succeeded(id, changed)
		return false
	case ctx.Err() != nil:
		return true // the run is over, and the key is as it was
	case errors.Is(err, store.ErrDamaged) || errors.Is(err, errPanic):
		t.logger.Error("a key cannot be processed and is tried again later", "key_id", id, "error", err)
		r.mu.Lock()
		r.sum.Damaged++
		r.mu.Unlock()
		if !early {
			r.postpone(ctx, minute, id, damagedRetry)
		}
		return false
	}
	pause := r.fails(id, err, early)
	return pause == 0 || !r.postpone(ctx, minute, id, pause)
}

func (r *run) succeeded(id string, changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row, r.worked = 0, true
	delete(r.ticker.failures, id)
	if changed {
		r.sum.Keys++
	}
}

// fails notes the failure of a key and returns for how long it is to be put
// off: not at all the first time, when it waits for the next tick, unless so
// many failed in a row that it must be found out whether storage takes
// anything. A key that was tried early stays where it is, and then so many end
// the run.
func (r *run) fails(id string, err error, early bool) (pause time.Duration) {
	t := r.ticker
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		r.first = err
	}
	r.sum.Failed++
	r.failed = append(r.failed, id)
	if len(t.failures) >= maxRemembered {
		clear(t.failures)
	}
	n := t.failures[id].times + 1
	t.failures[id] = failure{times: n}
	r.row++
	t.logger.Warn("a key failed and is tried again", "key_id", id, "failures", n, "error", err)
	switch {
	case early && r.row >= maxRow && r.down == nil:
		r.down = err
	case !early && (n > 1 || r.row >= maxRow):
		r.row = 0
		pause = min(time.Minute<<min(n-1, 10), maxPause)
	}
	return pause
}

// postpone files a key again. That fails where storage is down, and the run is
// over.
func (r *run) postpone(ctx context.Context, minute int64, id string, pause time.Duration) bool {
	t := r.ticker
	until, err := t.keeper.Store.Postpone(ctx, id, minute, t.keeper.Clock.Now().Add(pause))
	if err != nil {
		r.stop(err)
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worked = true
	if f, ok := t.failures[id]; ok {
		t.failures[id] = failure{times: f.times, until: until}
	}
	return true
}

// putOff is the minute to which a key that failed was put off, or 0.
func (r *run) putOff(id string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ticker.failures[id].until
}

// filedAt tells whether the key itself says that it is filed at minute, as it
// does once somebody else's change of it succeeded, or whether that is unknown.
func (r *run) filedAt(ctx context.Context, id string, minute int64) bool {
	k, err := r.ticker.keeper.Store.Key(ctx, id)
	return err != nil || k == nil || k.NextTick == minute
}

func (r *run) stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down == nil {
		r.down = err
	}
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
