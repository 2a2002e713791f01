// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"github.com/maypok86/otter/v2"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// cache holds the entries of keys, at most so many. What goes when it is full
// is decided by otter; hits are found by the index in front of it, and told to
// otter only once in touchEvery per key.
type cache struct {
	bounded *otter.Cache[keyID, *entry]
	index   *index
}

// touchEvery is about a minute.
const touchEvery tick = 60

func newCache(size int) *cache {
	c := &cache{index: newIndex(size)}
	c.bounded = otter.Must(&otter.Options[keyID, *entry]{
		MaximumSize: size,
		Executor:    inline,
		OnAtomicDeletion: func(gone otter.DeletionEvent[keyID, *entry]) {
			c.index.remove(gone.Value)
		},
	})
	return c
}

// inline runs what a cache has to do where it falls due, so that no goroutine
// outlives the verifier.
func inline(f func()) { f() }

// find returns an entry, for those who do not hurry.
func (c *cache) find(id keyID) *entry {
	e, _ := c.bounded.GetIfPresent(id)
	return e
}

// peek is find without counting as a use.
func (c *cache) peek(id keyID) *entry {
	if e, ok := c.bounded.GetEntryQuietly(id); ok {
		return e.Value
	}
	return nil
}

// touch tells that an entry was used lately.
func (c *cache) touch(e *entry, now tick) {
	if last := e.touched.Load(); now >= tick(last)+touchEvery && e.touched.CompareAndSwap(last, uint32(now)) {
		c.bounded.GetIfPresent(e.id)
	}
}

// put caches an entry. One that is stale is not accepted, and only there for
// what it knows of imported versions.
func (c *cache) put(e *entry) {
	if !e.stale.Load() {
		c.index.put(e)
	}
	c.bounded.Set(e.id, e) // which removes the one before from the index
}

// outdate has an entry accepted no more.
func (c *cache) outdate(e *entry) {
	e.stale.Store(true)
	c.index.remove(e)
}

func (c *cache) remove(id keyID) { c.bounded.Invalidate(id) }

func (c *cache) len() int { return c.bounded.EstimatedSize() }

// aliases finds the key of an imported token, which has no id in it.
type aliases struct {
	bounded *otter.Cache[token.Digest, keyID]
}

func newAliases(size int) *aliases {
	return &aliases{bounded: otter.Must(&otter.Options[token.Digest, keyID]{MaximumSize: size, Executor: inline})}
}

func (a *aliases) get(d token.Digest) (keyID, bool) { return a.bounded.GetIfPresent(d) }
func (a *aliases) put(d token.Digest, id keyID)     { a.bounded.Set(d, id) }
func (a *aliases) remove(d token.Digest)            { a.bounded.Invalidate(d) }

// negative is what is known of a digest that belongs to no key.
type negative struct {
	id         keyID // in the token, zero for none
	generation uint32
	seq        uint64
	until      mono
}

type negatives struct {
	bounded *otter.Cache[token.Digest, negative]
}

func newNegatives(size int) *negatives {
	return &negatives{bounded: otter.Must(&otter.Options[token.Digest, negative]{MaximumSize: size, Executor: inline})}
}

func (n *negatives) get(d token.Digest) (negative, bool) { return n.bounded.GetIfPresent(d) }
func (n *negatives) put(d token.Digest, is negative)     { n.bounded.Set(d, is) }
func (n *negatives) remove(d token.Digest)               { n.bounded.Invalidate(d) }
