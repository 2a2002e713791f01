// SPDX-License-Identifier: MPL-2.0

package storetest

import (
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
func (f *Faulty) run(op Op, do func() error) error {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil {
		before(op)
	}
	fails, applied := f.judge(op.Kind)
	if fails && !applied {
		return ErrInjected
	}
	err := do()
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

func (f *Faulty) judge(k Kind) (fails, applied bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.At == 0 || f.fault.WritesOnly && !k.Write() {
		return false, false
	}
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
	err = f.run(Op{Get, key}, func() (err error) {
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
	return f.run(Op{Put, entry.Key}, func() error { return f.inner.Put(ctx, entry) })
}

// Delete passes on or fails.
func (f *Faulty) Delete(ctx context.Context, key string) error {
	return f.run(Op{Delete, key}, func() error { return f.inner.Delete(ctx, key) })
}

// List passes on or fails.
func (f *Faulty) List(ctx context.Context, prefix string) (names []string, err error) {
	err = f.run(Op{List, prefix}, func() (err error) {
		names, err = f.inner.List(ctx, prefix)
		return err
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}
