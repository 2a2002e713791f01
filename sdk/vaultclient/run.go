// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/hashicorp/vault/api"
)

const (
	// firstPause and longestPause are between logins that fail, or that bring
	// tokens which do not last; backoff spreads each by half.
	firstPause   = 500 * time.Millisecond
	longestPause = 20 * time.Second
	// settled is how long a token has to last for the next login to be at once.
	settled = time.Minute
	// pollTokenFile is how often a token file is read. Reading it is cheaper than
	// being told by the operating system is certain: a file on a network, behind
	// a symbolic link of Kubernetes or in a bind mount changes without a word.
	pollTokenFile = time.Second
)

// Run logs in and keeps the client logged in until ctx ends, whose error it
// returns. It is to be called once. Until the first login, requests wait.
//
// A renewal of the token that is under way when ctx ends may go on for as long
// as a request may take.
func (c *Client) Run(ctx context.Context) error {
	pauses := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstPause), backoff.WithMaxInterval(longestPause),
		backoff.WithMultiplier(2), backoff.WithMaxElapsedTime(0))
	failing := false
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, c.timeout)
		secret, err := c.auth.login(attempt, c)
		cancel()
		if err == nil && (secret == nil || secret.Auth == nil) {
			err = errNotJSON
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			failing = true
			c.loginFailed(err)
		default:
			if failing {
				c.log.Info("logged in to vault after failures", "auth", c.auth.name())
			}
			failing = false
			began := time.Now()
			c.hold(ctx, secret.Auth)
			if time.Since(began) >= settled {
				pauses.Reset()
				continue
			}
		}
		sleep(ctx, pauses.NextBackOff())
	}
	return ctx.Err()
}

func (c *Client) loginFailed(err error) {
	err = c.fail("login", c.auth.name(), err)
	c.session.mu.Lock()
	c.session.failure = err
	c.session.mu.Unlock()
	c.log.Warn("cannot log in to vault", "error", err)
}

// hold keeps a token alive and returns when there should be another one.
func (c *Client) hold(ctx context.Context, auth *api.SecretAuth) {
	if held, _ := c.session.now(); held == 0 || c.vault.Token() != auth.ClientToken {
		c.install(auth.ClientToken)
	}
	var ended <-chan error
	if auth.LeaseDuration > 0 {
		watcher, err := c.vault.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: &api.Secret{Auth: auth}})
		if err == nil { // there is an input, and a secret in it
			go watcher.Start()
			defer watcher.Stop()
			ended = watcher.DoneCh()
		}
	}
	var poll <-chan time.Time
	if _, ok := c.auth.(TokenFile); ok {
		ticker := time.NewTicker(pollTokenFile)
		defer ticker.Stop()
		poll = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-ended:
			if err != nil {
				c.log.Warn("cannot renew the token of vault", "error", c.fail("renew", c.auth.name(), err))
			}
			if c.auth.again() {
				return
			}
			c.log.Warn("the token of vault is not renewed any more and will die", "auth", c.auth.name())
			ended = nil
		case <-c.session.lost:
			switch {
			case poll != nil:
				c.log.Warn("the token of vault is dead: waiting for another in its file", "auth", c.auth.name())
			case c.auth.again():
				c.log.Warn("the token of vault is dead: logging in again", "auth", c.auth.name())
				return
			default:
				c.log.Error("the token of vault is dead, and there is no way to get another", "auth", c.auth.name())
			}
		case <-poll:
			next, err := c.auth.login(ctx, c)
			if err == nil && next.Auth.ClientToken != c.vault.Token() {
				c.install(next.Auth.ClientToken)
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func isForbidden(err error) bool {
	answer := (*api.ResponseError)(nil)
	return errors.As(err, &answer) && answer.StatusCode == http.StatusForbidden
}
