// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/sync/errgroup"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	lookupPattern = "lookup"

	fieldKeyIDs  = "key_ids"
	fieldDigests = "digests"
	fieldRecords = "records"
	fieldMissing = "missing"
	fieldNext    = "next"

	// lookupParallel is how many records one look-up reads at a time.
	lookupParallel = 8
	// maxLookupBytes bounds the records of one answer, of about so many bytes
	// of JSON. Those beyond it are to be asked for again.
	maxLookupBytes = 8 << 20
)

func (b *Backend) pathLookup() []*framework.Path {
	return []*framework.Path{{
		Pattern:      lookupPattern,
		DisplayAttrs: display("records"),
		Fields: fields{
			fieldKeyIDs:  listField("Ids of keys."),
			fieldDigests: listField("SHA-256 of tokens that were made elsewhere and imported, as hexadecimal digits. Together with key_ids at most 1000."),
			fieldAfter:   textField("Instead: the next of the answer before, for a first fill. Empty or absent at its beginning."),
			fieldLimit:   byDefault(intField("Instead: how many keys to go through at most for a first fill, from 1 to 1000."), maxItems),
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.lookup, "Read what verifiers are told of keys.", "look-up", answers("The records.", join(positionFields(), fields{
				fieldRecords: always(itemsField("What verifiers are told of each key that was found: digests, states, deadlines, scopes, addresses and metadata; never a token.")),
				fieldMissing: always(listField("Of what was asked for, that which belongs to no key. What is in neither list could not be looked up now.")),
				fieldNext:    textField("Where a first fill goes on. Absent at its end."),
			}))),
		},
		HelpSynopsis: "Read what verifiers are told of keys.",
		HelpDescription: `For verifiers that check keys without asking Vault. By key_ids, and by digests for
tokens that were made elsewhere, whose digest is told only to those who present
it. The answer is at least as new as its seq: a record is stale once "sync" of
the same epoch has named its key or its role with a higher one.
With after or limit it goes through all keys that were made here, to fill a cache.
A caller that was not heard from at "sync" or "usage" under the name of a verifier
within 10 minutes may accept what it is told without reporting it: see "sync".`,
	}}
}

// lookup answers records. The place in the feed is read before anything else:
// what changes from then on is told by sync with a higher number.
func (b *Backend) lookup(ctx context.Context, c *call) (*logical.Response, error) {
	now, at := b.clock.Now(), c.store.Feed().Position()
	found := &lookedUp{records: []any{}, missing: []string{}}
	next := ""
	if c.has(fieldAfter) || c.has(fieldLimit) {
		if c.has(fieldKeyIDs) || c.has(fieldDigests) {
			return nil, badInput("key_ids and digests exclude after and limit: ask for keys, or go through all of them")
		}
		var err error
		if next, err = b.fill(ctx, c, found); err != nil {
			return nil, err
		}
	} else if err := b.lookUp(ctx, c, found); err != nil {
		return nil, err
	}
	if len(found.records) > 0 {
		c.keeper.Book.Reports.LookedUp(c.caller(), now)
	}
	b.metrics.LookedUp(len(found.records), len(found.missing), found.limited, found.unreadable)
	data := positionAnswer(at, now)
	data[fieldRecords], data[fieldMissing] = found.records, found.missing
	if next != "" {
		data[fieldNext] = next
	}
	return &logical.Response{Data: data}, nil
}

// lookedUp is what a look-up has come to.
type lookedUp struct {
	records []any
	missing []string
	// limited and unreadable count what is in neither.
	limited, unreadable int
	bytes               int
}

// item is one thing to look up: an id, or the digest of an imported token.
type item struct {
	// given is how the request wrote it.
	given  string
	digest *token.Digest

	key     *keyring.Key
	missing bool
	err     error
}

func (b *Backend) lookUp(ctx context.Context, c *call, found *lookedUp) error {
	items, err := c.itemsToLookUp()
	if err != nil {
		return err
	}
	if err := b.findItems(ctx, c, items); err != nil {
		return err
	}
	// A key may be asked for by its id and by digests.
	var keys []*keyring.Key
	presented := map[string][]token.Digest{}
	for i := range items {
		it := &items[i]
		switch {
		case it.missing:
			found.missing = append(found.missing, it.given)
			continue
		case errors.Is(it.err, errTooManyMisses):
			found.limited++
			continue
		case it.err != nil:
			found.unreadable++
			continue
		}
		digests, twice := presented[it.key.ID]
		if it.digest != nil {
			digests = append(digests, *it.digest)
		}
		presented[it.key.ID] = digests
		if !twice {
			keys = append(keys, it.key)
		}
	}
	for _, k := range keys {
		if err := found.add(ctx, c, k, presented[k.ID]); err != nil {
			return err
		}
	}
	return nil
}

// itemsToLookUp reads what a request asks for.
func (c *call) itemsToLookUp() ([]item, error) {
	ids, digests := c.list(fieldKeyIDs), c.list(fieldDigests)
	switch n := len(ids) + len(digests); {
	case n == 0:
		return nil, badInput("key_ids or digests is required: what to look up; or limit, to go through all keys")
	case n > maxItems:
		return nil, badInput("key_ids and digests must be at most %d together, got %d", maxItems, n)
	}
	items := make([]item, 0, len(ids)+len(digests))
	seen := make(map[string]struct{}, cap(items))
	once := func(given string) bool {
		_, twice := seen[given]
		seen[given] = struct{}{}
		return !twice
	}
	for i, id := range ids {
		if !token.ValidID(id) {
			return nil, badInput("key_ids: item %d must be %d letters and digits", i+1, token.IDLength)
		}
		if once(id) {
			items = append(items, item{given: id})
		}
	}
	for i, text := range digests {
		d, err := token.ParseDigest(text)
		if err != nil {
			return nil, badInput("digests: item %d must be a SHA-256 as 64 hexadecimal digits", i+1)
		}
		if once(text) {
			items = append(items, item{given: text, digest: &d})
		}
	}
	return items, nil
}

// findItems finds the keys of items: those that are cached at once, and the
// others some at a time. What cannot be read of one item leaves the others
// alone; a failure of storage does not.
func (b *Backend) findItems(ctx context.Context, c *call, items []item) error {
	imports, err := c.store.HasImports(ctx)
	if err != nil {
		return err
	}
	caller := c.caller() // known before it is asked for by several at once
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookupParallel)
	for i := range items {
		it := &items[i]
		if it.cached(c, imports) {
			continue
		}
		group.Go(func() error {
			if it.digest == nil {
				it.key, it.err = b.readID(ctx, c, it.given)
			} else {
				it.key, it.err = b.readImport(ctx, c, *it.digest, caller)
			}
			if it.err != nil && !errors.Is(it.err, errTooManyMisses) && !errors.Is(it.err, store.ErrDamaged) {
				return it.err
			}
			it.missing = it.err == nil && !isTold(it.key)
			return nil
		})
	}
	return group.Wait() //nolint:wrapcheck // they are those of the store
}

// cached finds an item without storage, and tells whether it could.
func (it *item) cached(c *call, imports bool) bool {
	switch {
	case it.digest == nil:
		it.key = c.store.CachedKey(it.given)
		it.missing = it.key == nil && c.unknownIDs.Contains(it.given)
	case !imports:
		it.missing = true
	default:
		it.key = c.store.CachedImport(*it.digest)
	}
	if it.key != nil {
		it.missing = !isTold(it.key)
	}
	return it.key != nil || it.missing
}

// isTold tells whether verifiers are told of the key at all: of a deleted one
// only what is compromised.
func isTold(k *keyring.Key) bool {
	return k != nil && (k.Deleted.IsZero() || len(k.Versions) > 0)
}

// add answers the record of a key.
func (l *lookedUp) add(ctx context.Context, c *call, k *keyring.Key, presented []token.Digest) error {
	r, err := c.recordOf(ctx, k, presented)
	switch {
	case errors.Is(err, store.ErrDamaged):
		l.unreadable++
		return nil
	case err != nil:
		return err
	}
	if size := recordSize(r); len(l.records) == 0 || l.bytes+size <= maxLookupBytes {
		l.bytes += size
		l.records = append(l.records, r)
	} else {
		l.limited++
	}
	return nil
}

// recordOf is what verifiers are told of the key.
func (c *call) recordOf(ctx context.Context, k *keyring.Key, presented []token.Digest) (*record.Record, error) {
	limits := keyring.Limits{}
	if k.Deleted.IsZero() {
		r, err := c.keeper.RoleOf(ctx, k)
		if err != nil {
			return nil, err
		}
		limits = r.Limits()
	}
	return k.VerifierRecord(limits, presented), nil
}

// recordSize is about how many bytes of JSON a record takes.
func recordSize(r *record.Record) int {
	const whole, each = 300, 420
	texts := func(list []string) int {
		n := 0
		for _, s := range list {
			n += len(s) + 3
		}
		return n
	}
	n := whole + len(r.Name) + len(r.Role) + texts(r.Scopes) + texts(r.BoundCIDRs) + texts(r.RoleBoundCIDRs)
	for name, value := range r.CustomMetadata {
		n += 2*(len(name)+len(value)) + 6
	}
	for i := range r.Versions {
		n += each
		for _, scopes := range []*[]string{r.Versions[i].Scopes, r.Versions[i].LateScopes} {
			if scopes != nil {
				n += texts(*scopes)
			}
		}
	}
	return n
}

// readImport reads the key of an imported token, which a stranger may have
// made up. How often a caller may ask in vain is limited.
func (b *Backend) readImport(ctx context.Context, c *call, d token.Digest, caller string) (*keyring.Key, error) {
	read := false
	k, err := c.store.KeyByImport(ctx, d, func() error {
		read = true
		return b.misses.check(caller)
	})
	if k == nil && read && err == nil {
		b.misses.spend(caller)
	}
	return k, err
}
