// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// turn is held by as many as it has room for. Who waits for it may give up.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// flight is work that several wait for. It goes on where they gave up.
type flight struct {
	done chan struct{}
	err  error
}

// fly begins work. A panic in it becomes an error that does not have its value,
// which could be a secret.
func fly(work func() error) *flight {
	f := &flight{done: make(chan struct{})}
	go func() {
		defer close(f.done)
		defer func() {
			if r := recover(); r != nil {
				f.err = fmt.Errorf("panic (value of type %T withheld) at:\n%s", r, debug.Stack())
			}
		}()
		f.err = work()
	}()
	return f
}

func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flights are those under way, by what they do.
type flights struct {
	mu    sync.Mutex
	named map[string]*flight
}

// do waits for work, which is done once for all who wait for it. It has noteTime
// for itself, whoever of them gives up.
func (fs *flights) do(ctx context.Context, name string, work func(context.Context) error) error {
	fs.mu.Lock()
	f := fs.named[name]
	if f == nil {
		f = fly(func() error {
			defer fs.over(name)
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTime)
			defer cancel()
			return work(ctx)
		})
		fs.named[name] = f
	}
	fs.mu.Unlock()
	return f.wait(ctx)
}

func (fs *flights) over(name string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.named, name)
}
