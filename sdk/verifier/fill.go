// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// fillPage is how many keys a first fill asks for at a time.
const fillPage = 1000

// fill loads keys page by page, until all are cached or the cache is full. What
// fails is tried again, a second later each time.
func (v *Verifier) fill(ctx context.Context) {
	select {
	case <-v.synced:
	case <-ctx.Done():
		return
	}
	after, keys := "", 0
	for failures := 0; ctx.Err() == nil; {
		next, n, err := v.fillFrom(ctx, after)
		if err != nil {
			failures++
			v.log.Warn("the first fill of the cache is held up", slog.Any("error", redacted(err)))
			v.pause(ctx, min(time.Duration(failures)*retryAfter, time.Minute))
			continue
		}
		failures = 0
		keys += n
		if next == "" || keys >= v.config.CacheSize {
			return
		}
		after = next
	}
}

var errSamePage = errors.New("the engine answers the same page again")

func (v *Verifier) fillFrom(ctx context.Context, after string) (next string, keys int, err error) {
	ctx, cancel := context.WithTimeout(ctx, fillPatience)
	defer cancel()
	sent := v.now()
	answer, err := v.engine.Lookup(ctx, LookupRequest{After: after, Limit: fillPage})
	if err != nil {
		return "", 0, err
	}
	if answer.Next != "" && answer.Next == after {
		return "", 0, errSamePage
	}
	if _, err := v.takeIn(&answer, sent); err != nil {
		return "", 0, err
	}
	return answer.Next, len(answer.Records), nil
}

// fillPatience is how long a page may take: nobody waits for it.
const fillPatience = 30 * time.Second
