// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// Run keeps the key up to date, and confirms versions, until ctx ends, whose
// error it returns. It is to be called once. A Source on which it does not run
// looks at its origin only when it has no key, or when a key is refused.
func (s *Source) Run(ctx context.Context) error {
	confirmed := make(chan struct{})
	go func() {
		defer close(confirmed)
		s.confirmAll(ctx)
	}()
	defer func() { <-confirmed }()

	_ = s.Refresh(ctx) // told to the log already
	for ctx.Err() == nil {
		s.flights.mu.Lock()
		due := s.flights.due
		s.flights.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-s.flights.wake: // due has changed
		case <-after(time.Until(due), !due.IsZero()):
			_ = s.Refresh(ctx)
		}
	}
	return ctx.Err()
}

// confirmAll confirms what is to be confirmed, the latest only.
func (s *Source) confirmAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.confirms:
			s.confirm(ctx, s.toConfirm.Load())
		}
	}
}

// confirm says that a version is in use until it is heard or another version is.
func (s *Source) confirm(ctx context.Context, e *entry) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-e.replaced:
			cancel()
		case <-ctx.Done():
		}
	}()
	pauses := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(retryFirst), backoff.WithMultiplier(2),
		backoff.WithMaxInterval(retryLongest), backoff.WithMaxElapsedTime(0))
	for ctx.Err() == nil {
		attempt, done := context.WithTimeout(ctx, fetchTimeout)
		err := s.confirmer.Confirm(attempt, e.key().version, s.instance)
		done()
		switch {
		case err == nil, ctx.Err() != nil:
			return
		case !vaultclient.IsUnavailable(err):
			s.log.Warn("cannot confirm the version in use", "key", e.key(), "error", err)
			return
		}
		select {
		case <-time.After(pauses.NextBackOff()):
		case <-ctx.Done():
		}
	}
}
