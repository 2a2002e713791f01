// SPDX-License-Identifier: MPL-2.0

// Package fence tells a process that was in charge of a mount that another one
// has taken its place.
//
// Vault keeps one node active. Where it fails to, two processes answer from
// their caches, and one of them does not hear what the other one changes. What
// only one node can do is to write, and what the others write reaches the
// storage of every node. So each process writes, once, that it takes charge:
// an entry whose name has a number above all that are there. While it is asked
// things it lists these names, at most once a second. A higher number is that
// of a process which started later: then it is superseded, for good.
//
// The names count, and not the entries: Vault keeps entries in a cache of its
// own, which nobody corrects on a node that takes itself for the active one.
// It does not keep lists.
//
// To ask costs a read of memory. Nothing is decided without storage: while it
// fails or hangs, the last answer stands. But where storage refuses a write
// because another node leads, the process is in doubt until it can write.
package fence

import (
	"context"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// Every is how often storage is asked at most.
	Every = time.Second
	// Fresh is how old an answer may be without anybody waiting for another one.
	// Between Every and Fresh the next one is on its way.
	Fresh = 2 * time.Second
	// Patience is how long is waited for an answer. Nobody waits for one where
	// there was none to the last question.
	Patience = time.Second
	// lookTime is when a question is given up, so that the next one is asked.
	lookTime = 30 * time.Second
)

// Storage keeps the names of those who took charge.
type Storage interface {
	Charges(ctx context.Context) ([]string, error)
	PutCharge(ctx context.Context, name string) error
	DropCharge(ctx context.Context, name string) error
}

// Fence is that of one process and one mount. It is safe for concurrent use.
type Fence struct {
	storage Storage
	clock   clock.Clock
	boot    string
	logger  hclog.Logger
	onOver  func()

	last atomic.Pointer[look]
	// doubts counts the writes that were refused for want of the lead, and
	// settled is how many of them were there before the last write that was not.
	doubts, settled atomic.Uint64

	ctx    context.Context
	cancel context.CancelFunc

	// mu is held by the look under way, and by Tidy.
	mu sync.Mutex
	// number is that under which this process has taken charge, 0 before.
	number int64
	// older are the names of those before.
	older []string
}

// look is a look at storage, and does not change.
type look struct {
	began time.Duration
	// answered is when the last look began that storage has answered.
	answered time.Duration
	// failing tells that storage did not answer the last look that has ended.
	failing bool
	over    bool
	// done is closed when the look ends; nil where it has.
	done chan struct{}
}

// New returns the fence of a process with a name that no other one has. onOver
// is called once, when it is superseded. Nothing is asked, or written, before the
// first call of Superseded.
func New(s Storage, c clock.Clock, boot string, logger hclog.Logger, onOver func()) *Fence {
	f := &Fence{storage: s, clock: c, boot: boot, logger: logger, onOver: onOver}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	long := c.Elapsed() - 24*time.Hour
	f.last.Store(&look{began: long, answered: long})
	return f
}

// Close ends a look that is under way, and lets no other one succeed.
func (f *Fence) Close() { f.cancel() }

// Over tells whether it is known that this process is superseded. It asks
// nothing.
func (f *Fence) Over() bool { return f.last.Load().over }

// Doubt has the process answer nothing until it has written: storage says that
// this node does not lead. Another one may, and this one may never hear of it.
func (f *Fence) Doubt() {
	if f.doubts.Add(1) == f.settled.Load()+1 {
		f.logger.Warn("storage says that this node does not lead: nothing is answered but 503 until it takes a write")
	}
}

// InDoubt tells whether it waits for a write. It asks nothing.
func (f *Fence) InDoubt() bool { return f.doubts.Load() != f.settled.Load() }

// Idle tells whether no look at storage is under way.
func (f *Fence) Idle() bool { return f.last.Load().done == nil }

// Superseded tells whether another process has taken charge of the mount, or may
// have. The first call takes charge. Where the answer is older than Fresh it
// waits for another one, for Patience at most.
func (f *Fence) Superseded(ctx context.Context) bool {
	now, l := f.clock.Elapsed(), f.last.Load()
	if l.over || l.done == nil && now-l.began < Every {
		return l.over || f.InDoubt()
	}
	if l.done == nil {
		next := &look{began: now, answered: l.answered, failing: l.failing, done: make(chan struct{})}
		if f.last.CompareAndSwap(l, next) {
			go f.look(next)
			l = next
		} else {
			l = f.last.Load()
		}
	}
	if l.done == nil || l.failing || now-l.answered < Fresh || now-l.began >= Patience {
		return l.over || f.InDoubt()
	}
	select {
	case <-l.done:
	case <-ctx.Done():
	case <-f.clock.After(Patience - (now - l.began)):
	}
	return f.Over() || f.InDoubt()
}

func (f *Fence) look(l *look) {
	ended := &look{began: l.began, answered: l.answered}
	ctx, cancel := context.WithTimeout(f.ctx, lookTime)
	defer cancel()
	over, err := f.judge(ctx)
	if err != nil {
		ended.failing = true
		f.logger.Debug("it is not known whether another process has taken charge of the mount", "error", err)
	} else {
		ended.answered, ended.over = l.began, over
	}
	f.last.Store(ended)
	close(l.done)
	if over {
		f.onOver()
	}
}

// judge lists who took charge, and takes charge where this process is not among
// them.
func (f *Fence) judge(ctx context.Context) (over bool, err error) {
	defer func() {
		if r := recover(); r != nil { // its value could be a secret
			over, err = false, fmt.Errorf("panic (value of type %T withheld) at:\n%s", r, debug.Stack())
		}
	}()
	names, err := f.storage.Charges(ctx)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var top int64
	there := false
	for _, name := range names {
		switch number, boot := parse(name); {
		case boot != f.boot:
			top = max(top, number)
		case number == f.number:
			there = true
		}
	}
	number := f.number
	switch {
	case number == 0:
		number = top + 1
	case top > number:
		return true, nil
	case top == number:
		// Both have listed before either wrote. Which one may stay shows in who
		// can write: a process that has ended may have written late.
		number++
	case there && !f.InDoubt():
		return false, nil
	}
	// It is also written again where a snapshot from before was restored.
	mine, doubts := nameOf(number, f.boot), f.doubts.Load()
	if err := f.storage.PutCharge(ctx, mine); err != nil {
		return false, err
	}
	f.settled.Store(doubts)
	f.number, f.older = number, nil
	for _, name := range names {
		if name != mine {
			f.older = append(f.older, name)
		}
	}
	return false, nil
}

// Tidy removes the names of those who were in charge before. What cannot be
// removed stays until the next start.
func (f *Fence) Tidy(ctx context.Context) {
	f.mu.Lock()
	older := f.older
	f.older = nil
	f.mu.Unlock()
	for _, name := range older {
		if err := f.storage.DropCharge(ctx, name); err != nil {
			f.logger.Debug("who was in charge before stays in storage until the next start", "error", err)
			return
		}
	}
}

func nameOf(number int64, boot string) string { return fmt.Sprintf("%010d-%s", number, boot) }

// parse reads what nameOf wrote. The number of anything else is 0.
func parse(name string) (number int64, boot string) {
	digits, boot, _ := strings.Cut(name, "-")
	number, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || boot == "" {
		return 0, ""
	}
	return number, boot
}
