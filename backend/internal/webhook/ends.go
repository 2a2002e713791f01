// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A claim may hold the only copy of a key, encrypted. It is removed when the
// claim is redeemed, in the same write, and after its life. To find the latter
// without a look at all claims, each is filed under the minute of its end
// before it is written. What is filed and needs nothing is harmless. A claim that
// is redeemed is filed again, under the present minute, until that was told.

// endMinute is the minute in which a claim that expires at t is looked at.
func endMinute(t time.Time) int64 { return (t.Unix() + 59) / 60 }

// noteEnd files a claim under the end of its life.
func (c *Claims) noteEnd(ctx context.Context, p claimPath, end time.Time) error {
	minute := endMinute(end)
	if err := c.storage.PutClaimEnd(ctx, strconv.FormatInt(minute, 10), p.day+"."+p.id); err != nil {
		return err
	}
	c.endsMu.Lock()
	defer c.endsMu.Unlock()
	if c.ends != nil {
		c.ends[minute] = struct{}{}
	}
	return nil
}

// sweepEnds removes the keys of claims whose life is over, and tells of
// redemptions. One that fails keeps its minute, for the next call, and holds up
// no other. So does one that is filed under a minute while that is looked at.
func (c *Claims) sweepEnds(ctx context.Context) error {
	minutes, err := c.overdueEnds(ctx)
	if err != nil {
		return err
	}
	var failed failures
	for _, minute := range minutes {
		if ctx.Err() != nil {
			break
		}
		c.endsMu.Lock()
		delete(c.ends, minute)
		c.endsMu.Unlock()
		if !c.sweepMinute(ctx, minute, &failed) {
			c.endsMu.Lock()
			c.ends[minute] = struct{}{}
			c.endsMu.Unlock()
		}
	}
	return failed.err()
}

// sweepMinute is sweepEnds for one minute, and tells whether nothing is left.
func (c *Claims) sweepMinute(ctx context.Context, minute int64, failed *failures) bool {
	folder, before := strconv.FormatInt(minute, 10), failed.count
	names, err := c.storage.ListClaimEnd(ctx, folder)
	if err != nil {
		failed.add(fmt.Errorf("list the ends of claims: %w", err))
	}
	for _, name := range names {
		if ctx.Err() != nil {
			failed.add(ctx.Err())
			break
		}
		if err := c.endFiled(ctx, folder, name); err != nil {
			failed.add(err)
		}
	}
	return failed.count == before
}

// endFiled is end for a claim that is filed under a minute, and removes it from
// there. It holds the claim's lock for both: a redemption files its claim first.
func (c *Claims) endFiled(ctx context.Context, minute, name string) error {
	if day, id, ok := strings.Cut(name, "."); ok && len(id) == claimIDLength {
		defer c.lock(claimPath{digest: id})()
		if err := c.end(ctx, claimPath{day: day, id: id}); err != nil {
			return err
		}
	}
	if err := c.storage.DeleteClaimEnd(ctx, minute, name); err != nil {
		return fmt.Errorf("delete the end of a claim: %w", err)
	}
	return nil
}

// failures are any number of errors, of which the first is kept.
type failures struct {
	first error
	count int
}

func (f *failures) add(err error) {
	if f.first == nil {
		f.first = err
	}
	f.count++
}

func (f *failures) err() error {
	if f.count < 2 {
		return f.first
	}
	return fmt.Errorf("%w (and %d more)", f.first, f.count-1)
}

// overdueEnds are the minutes that are over, the oldest first.
func (c *Claims) overdueEnds(ctx context.Context) ([]int64, error) {
	c.endsMu.Lock()
	defer c.endsMu.Unlock()
	if c.ends == nil {
		folders, err := c.storage.ListClaimEnds(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the ends of claims: %w", err)
		}
		c.ends = map[int64]struct{}{}
		for _, name := range folders {
			if minute, err := strconv.ParseInt(strings.TrimSuffix(name, "/"), 10, 64); err == nil {
				c.ends[minute] = struct{}{}
			}
		}
	}
	var due []int64
	now := c.clock.Now().Unix()
	for minute := range maps.Keys(c.ends) {
		if minute*60 <= now {
			due = append(due, minute)
		}
	}
	slices.Sort(due)
	return due, nil
}

// end removes the key of the claim at p, if its life is over, and has a
// redemption told that may not have been. A claim that cannot be read is deleted:
// its code is then unknown. The caller holds the claim's lock.
func (c *Claims) end(ctx context.Context, p claimPath) error {
	raw, err := c.storage.GetClaim(ctx, p.day, p.id)
	if err != nil {
		return fmt.Errorf("read a claim: %w", err)
	}
	if raw == nil {
		return nil
	}
	entry := &claimEntry{}
	switch err := json.Unmarshal(raw, entry); {
	case errors.Is(err, errNewer):
		return nil
	case err != nil:
		if err := c.storage.DeleteClaim(ctx, p.day, p.id); err != nil {
			return fmt.Errorf("delete a claim: %w", err)
		}
		return nil
	}
	over := len(entry.Sealed) > 0 && !c.clock.Now().Before(entry.Expires)
	if !over && !entry.Untold {
		return nil
	}
	if over {
		entry.Sealed = nil
	}
	if entry.Untold && c.OnRedeemed != nil {
		if err := c.OnRedeemed(ctx, entry.claim()); err != nil {
			return fmt.Errorf("tell of the redemption of a claim: %w", err)
		}
	}
	entry.Untold = false
	if err := c.put(ctx, p, entry); err != nil {
		return fmt.Errorf("write a claim: %w", err)
	}
	return nil
}
