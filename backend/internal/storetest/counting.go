// SPDX-License-Identifier: MPL-2.0

package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

var _ logical.Storage = (*Counting)(nil)

// Counts are numbers of operations.
type Counts struct {
	Get, Put, Delete, List int
}

// Writes are the operations that change what is stored.
func (c Counts) Writes() int { return c.Put + c.Delete }

// Reads are the others.
func (c Counts) Reads() int { return c.Get + c.List }

// All is every operation.
func (c Counts) All() int { return c.Writes() + c.Reads() }

func (c Counts) String() string {
	return fmt.Sprintf("%d gets, %d puts, %d deletes, %d lists", c.Get, c.Put, c.Delete, c.List)
}

func (c *Counts) add(k Kind) {
	switch k {
	case Get:
		c.Get++
	case Put:
		c.Put++
	case Delete:
		c.Delete++
	case List:
		c.List++
	}
}

// opsKept bounds what Ops remembers.
const opsKept = 1000

// Counting counts the operations that pass through it. It is safe for
// concurrent use.
type Counting struct {
	inner backing

	mu    sync.Mutex
	kinds map[string]*Counts // by the first part of the path, slash included
	ops   []Op
}

// NewCounting returns a Counting in front of inner.
func NewCounting(inner logical.Storage) *Counting {
	return &Counting{inner: inner, kinds: map[string]*Counts{}}
}

// Reset forgets all that was counted.
func (c *Counting) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds, c.ops = map[string]*Counts{}, nil
}

// Total is what was counted since the last Reset.
func (c *Counting) Total() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	var total Counts
	for _, n := range c.kinds {
		total.Get += n.Get
		total.Put += n.Put
		total.Delete += n.Delete
		total.List += n.List
	}
	return total
}

// Under is what was counted since the last Reset under the first part of a
// path, such as "key/", or at a path without a slash, such as "config".
func (c *Counting) Under(first string) Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.kinds[first]; n != nil {
		return *n
	}
	return Counts{}
}

// Ops are the operations since the last Reset, the first thousand of them.
func (c *Counting) Ops() []Op {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ops)
}

func (c *Counting) count(k Kind, path string) {
	first := path[:strings.IndexByte(path, '/')+1]
	if first == "" {
		first = path
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.kinds[first]
	if n == nil {
		n = &Counts{}
		c.kinds[first] = n
	}
	n.add(k)
	if len(c.ops) < opsKept {
		c.ops = append(c.ops, Op{k, path})
	}
}

// Get counts and passes on.
func (c *Counting) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	c.count(Get, key)
	return c.inner.Get(ctx, key)
}

// Put counts and passes on.
func (c *Counting) Put(ctx context.Context, entry *logical.StorageEntry) error {
	c.count(Put, entry.Key)
	return c.inner.Put(ctx, entry)
}

// Delete counts and passes on.
func (c *Counting) Delete(ctx context.Context, key string) error {
	c.count(Delete, key)
	return c.inner.Delete(ctx, key)
}

// List counts and passes on.
func (c *Counting) List(ctx context.Context, prefix string) ([]string, error) {
	c.count(List, prefix)
	return c.inner.List(ctx, prefix)
}
