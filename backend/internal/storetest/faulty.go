// SPDX-License-Identifier: MPL-2.0

package storetest

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

var _ logical.Storage = (*Faulty)(nil)

// ErrInjected is the error of an operation that was made to fail.
var ErrInjected = errors.New("injected storage failure")

// Fault says which operations fail, and how.
type Fault struct {
	// At is the first operation that fails, counted from 1 at Inject.
	At int
	// WritesOnly counts, and fails, only Put and Delete.
	WritesOnly bool
	// Applied lets the operation At take effect all the same, as when an
	// answer is lost on its way.
	Applied bool
	// Rest fails every later operation too, without effect: the process has
	// crashed, or lost its leadership.
	Rest bool
	// Late keeps the Puts and Deletes that fail, which take effect at Release:
	// the caller gave up and storage went on.
	Late bool
	// Only, where set, counts and fails only the operations that it tells.
	Only func(Op) bool
}

// Faulty fails operations where it is told to, and lets a test run code
// before and after each. It is safe for concurrent use.
type Faulty struct {
	inner backing

	mu            sync.Mutex
	fault         Fault
	seen          int
	failed        int
	before, after func(Op)
	// late are the operations that Release lets take effect.
	late []func() error
}

// NewFaulty returns a Faulty in front of inner that fails nothing yet.
func NewFaulty(inner logical.Storage) *Faulty { return &Faulty{inner: inner} }

// Inject counts from now on and fails what fault says. It replaces an earlier
// one.
func (f *Faulty) Inject(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.seen, f.failed = fault, 0, 0
}

// Heal fails nothing any more.
func (f *Faulty) Heal() { f.Inject(Fault{}) }

// Release lets what failed under Fault.Late take effect, in order, and returns
// the first error of the inner storage.
func (f *Faulty) Release() error {
	f.mu.Lock()
	late := f.late
	f.late = nil
	f.mu.Unlock()
	for _, do := range late {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// Failed is how many operations were made to fail since the last Inject.
func (f *Faulty) Failed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// Before has hook called before each operation, whether it will fail or not.
// The hook may block. Nil removes it.
func (f *Faulty) Before(hook func(Op)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = hook
}

// After has hook called after each operation that reached the inner storage,
// before its caller gets the answer. The hook may block. Nil removes it.
func (f *Faulty) After(hook func(Op)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.after = hook
}

// run performs one operation by do.
func (f *Faulty) run(ctx context.Context, op Op, do func(context.Context) error) error {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil {
		before(op)
	}
	fails, applied := f.judge(op, func() error { return do(context.WithoutCancel(ctx)) })
	if fails && !applied {
		return ErrInjected
	}
	err := do(ctx)
	f.mu.Lock()
	after := f.after
	f.mu.Unlock()
	if after != nil {
		after(op)
	}
	if fails {
		return ErrInjected
	}
	return err
}

func (f *Faulty) judge(op Op, do func() error) (fails, applied bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.At == 0 || f.fault.WritesOnly && !op.Kind.Write() || f.fault.Only != nil && !f.fault.Only(op) {
		return false, false
	}
	defer func() {
		if fails && !applied && f.fault.Late && op.Kind.Write() {
			f.late = append(f.late, do)
		}
	}()
	f.seen++
	switch {
	case f.seen == f.fault.At:
		f.failed++
		return true, f.fault.Applied
	case f.seen > f.fault.At && f.fault.Rest:
		f.failed++
		return true, false
	}
	return false, false
}

// Get passes on or fails.
func (f *Faulty) Get(ctx context.Context, key string) (entry *logical.StorageEntry, err error) {
	err = f.run(ctx, Op{Get, key}, func(ctx context.Context) (err error) {
		entry, err = f.inner.Get(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return entry, nil
}

// Put passes on or fails.
func (f *Faulty) Put(ctx context.Context, entry *logical.StorageEntry) error {
	kept := *entry
	kept.Value = bytes.Clone(entry.Value)
	return f.run(ctx, Op{Put, entry.Key}, func(ctx context.Context) error { return f.inner.Put(ctx, &kept) })
}

// Delete passes on or fails.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	return f.run(ctx, Op{Delete, key}, func(ctx context.Context) error { return f.inner.Delete(ctx, key) })
}

// List passes on or fails.
func (f *Faulty) List(ctx context.Context, prefix string) (names []string, err error) {
	err = f.run(ctx, Op{List, prefix}, func(ctx context.Context) (err error) {
		names, err = f.inner.List(ctx, prefix)
		return err
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}
