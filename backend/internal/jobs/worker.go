// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// stopWait bounds how long Stop waits for storage calls that are under way.
// Vault cleans up under a lock that all mounts share.
const stopWait = time.Second

// errPanic marks a panic that was recovered.
var errPanic = errors.New("panic")

// recoverTo turns a panic into an error. It keeps the place of the panic but
// not its value, which could be a secret.
func recoverTo(err *error) {
	if r := recover(); r != nil { //nolint:revive // recoverTo is itself what is deferred
		*err = fmt.Errorf("%w (value of type %T withheld) at:\n%s", errPanic, r, debug.Stack())
	}
}

// Worker runs a task each time it is woken, on a goroutine of its own. Wakes
// that come while the task runs become one more run after it.
type Worker struct {
	name   string
	logger hclog.Logger
	task   func(context.Context) error

	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
}

// StartWorker starts a worker. Its task gets a context that ends with Stop.
func StartWorker(name string, logger hclog.Logger, task func(context.Context) error) *Worker {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:gosec // Stop calls cancel
	w := &Worker{name: name, logger: logger, task: task, wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go w.loop(ctx)
	return w
}

// Wake lets the task run soon, and returns at once.
func (w *Worker) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Stop ends the worker. It waits at most a second for the task to notice.
func (w *Worker) Stop(after func(time.Duration) <-chan time.Time) {
	w.once.Do(w.cancel)
	select {
	case <-w.done:
	case <-after(stopWait):
		w.logger.Warn("a storage call is still under way; the worker ends with it", "worker", w.name)
	}
}

func (w *Worker) loop(ctx context.Context) {
	defer close(w.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		if err := w.run(ctx); err != nil && ctx.Err() == nil {
			w.logger.Warn("work is paused until the next wake", "worker", w.name, "error", err)
		}
	}
}

func (w *Worker) run(ctx context.Context) (err error) {
	defer recoverTo(&err)
	return w.task(ctx)
}
