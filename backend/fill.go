// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// maxShardLists bounds how many shards one page of a first fill lists. A page
// may therefore be short, or empty, and still have a next one.
const maxShardLists = 64

// fillCursor is where a first fill stands: behind the id, in a shard of the
// members of a role. It holds nothing of this process, and the role may be gone
// when it is used.
type fillCursor struct {
	role  string
	shard int
	id    string
}

// text is the cursor as it is told.
func (f fillCursor) text() string {
	return base64.RawURLEncoding.EncodeToString([]byte(f.role + "/" + strconv.Itoa(f.shard) + "/" + f.id))
}

// parseFillCursor reads what text wrote.
func parseFillCursor(text string) (fillCursor, error) {
	fault := badInput("after must be the next of an answer of this path, or empty at the beginning")
	if text == "" {
		return fillCursor{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return fillCursor{}, fault
	}
	parts := strings.Split(string(raw), "/")
	if len(parts) != 3 || checkName(fieldRole, parts[0]) != nil || parts[2] != "" && !token.ValidID(parts[2]) {
		return fillCursor{}, fault
	}
	shard, err := strconv.Atoi(parts[1])
	if err != nil || shard < 0 || shard >= store.Shards {
		return fillCursor{}, fault
	}
	return fillCursor{parts[0], shard, parts[2]}, nil
}

// fill answers a page of all keys, role by role and shard by shard, and
// returns where the next one begins, or "" at the end. Keys with a token that
// was made elsewhere are left out: their digests are told only to those who
// present them.
func (b *Backend) fill(ctx context.Context, c *call, found *lookedUp) (next string, err error) {
	limit := c.number(fieldLimit)
	if limit < 1 || limit > maxItems {
		return "", badInput("limit must be from 1 to %d", maxItems)
	}
	from, err := parseFillCursor(c.text(fieldAfter))
	if err != nil {
		return "", err
	}
	members, err := c.membersFrom(ctx, from, limit)
	if err != nil {
		return "", err
	}
	keys, unreadable, err := c.readMembers(ctx, members.ids)
	if err != nil {
		return "", err
	}
	found.unreadable += unreadable
	for i, k := range keys {
		if k == nil {
			continue
		}
		before := found.limited
		if err := found.add(ctx, c, k, nil); err != nil {
			return "", err
		}
		if found.limited > before {
			found.limited = before
			return members.cursors[i].text(), nil // the page is full before its end
		}
	}
	return members.next, nil
}

// memberPage are ids of members with the cursor that stands before each, and
// the one behind them all.
type memberPage struct {
	ids     []string
	cursors []fillCursor
	next    string
}

// membersFrom lists members from a place on. It lists shards, never a role as
// a whole, and no more of them than a page may cost.
func (c *call) membersFrom(ctx context.Context, from fillCursor, limit int) (memberPage, error) {
	var p memberPage
	roles, err := c.store.Roles(ctx)
	if err != nil {
		return p, err
	}
	start, there := slices.BinarySearch(roles, from.role)
	if !there {
		from.shard, from.id = 0, ""
	}
	lists := 0
	for _, role := range roles[start:] {
		for ; from.shard < store.Shards; from.shard++ {
			if from.role = role; lists == maxShardLists {
				p.next = from.text()
				return p, nil
			}
			ids, err := c.store.Members(ctx, role, from.shard)
			if err != nil {
				return p, err
			}
			lists++
			for _, id := range ids {
				if id <= from.id {
					continue
				}
				if len(p.ids) == limit {
					p.next = from.text()
					return p, nil
				}
				p.ids, p.cursors = append(p.ids, id), append(p.cursors, from)
				from.id = id
			}
			from.id = ""
		}
		from.shard = 0
	}
	return p, nil
}

// readMembers reads the keys of ids, nil for those that a first fill leaves
// out. It tells how many of these cannot be read.
func (c *call) readMembers(ctx context.Context, ids []string) ([]*keyring.Key, int, error) {
	keys := make([]*keyring.Key, len(ids))
	var unreadable atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookupParallel)
	for i, id := range ids {
		group.Go(func() error {
			k, err := c.store.Key(ctx, id)
			switch {
			case errors.Is(err, store.ErrDamaged):
				unreadable.Add(1)
				return nil
			case err != nil:
				return err
			}
			if k != nil && !k.Imported && k.Deleted.IsZero() {
				keys[i] = k
			}
			return nil
		})
	}
	err := group.Wait()
	return keys, int(unreadable.Load()), err //nolint:wrapcheck // they are those of the store
}
