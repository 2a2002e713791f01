// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// session is the token that a client holds at a time.
type session struct {
	mu sync.Mutex
	// held counts the tokens that were held so far; 0 is none yet.
	held uint64
	// replaced is closed when there is another token.
	replaced chan struct{}
	// failure is why the last login failed; nil once one succeeded.
	failure error
	// lost is told that the token is dead.
	lost chan struct{}

	// check is the look-up of a suspected token that is under way.
	check *check
	// cleared is until when a token that was found alive is not looked up again.
	cleared time.Time
	// dead is whether the token that is held was found dead.
	dead bool
}

type check struct {
	done  chan struct{}
	alive bool // set before done is closed
}

func (s *session) init() {
	s.replaced = make(chan struct{})
	s.lost = make(chan struct{}, 1)
}

// now returns which token is held, and what is closed when another one is.
func (s *session) now() (uint64, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held, s.replaced
}

// wait returns which token is held, as soon as there is one.
func (s *session) wait(ctx context.Context) (uint64, error) {
	for {
		held, replaced := s.now()
		if held > 0 {
			return held, nil
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return 0, s.noLogin(ctx.Err())
		}
	}
}

// noLogin is why there is no token.
func (s *session) noLogin(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return s.failure
	}
	return fmt.Errorf("there has been no login yet: %w", err)
}

// install makes a token the one that is sent.
func (c *Client) install(token string) {
	s := &c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	c.vault.SetToken(token)
	s.held++
	s.failure = nil
	s.cleared, s.dead = time.Time{}, false
	close(s.replaced)
	s.replaced = make(chan struct{})
	select {
	case <-s.lost: // it was about the one before
	default:
	}
}

type tokenVerdict int

const (
	tokenAlive    tokenVerdict = iota // the request is what is not allowed
	tokenReplaced                     // there is another one: try again
	tokenDead                         // and no other one came in time
)

const (
	// clearedFor is how long a token counts as alive that was just looked up.
	clearedFor = time.Second
	// replaceWait is how long a request waits for another token.
	replaceWait = 5 * time.Second
)

// suspect finds out what a 403 means that a request with the given token was
// answered with.
func (c *Client) suspect(ctx context.Context, held uint64) tokenVerdict {
	s := &c.session
	s.mu.Lock()
	if s.held != held {
		defer s.mu.Unlock()
		return tokenReplaced
	}
	if time.Now().Before(s.cleared) {
		s.mu.Unlock()
		return tokenAlive
	}
	running := s.check
	switch {
	case running != nil:
	case s.dead:
		running = known
	default:
		running = &check{done: make(chan struct{})}
		s.check = running
		go c.lookUp(running, held) //nolint:gosec // for all requests that wait, so with a context of its own
	}
	replaced := s.replaced
	s.mu.Unlock()

	select {
	case <-running.done:
	case <-replaced:
	case <-ctx.Done():
		return tokenDead
	}
	if running.isAlive() {
		return tokenAlive
	}
	if !c.auth.again() {
		return tokenDead
	}
	timer := time.NewTimer(replaceWait)
	defer timer.Stop()
	select {
	case <-replaced:
		return tokenReplaced
	case <-timer.C:
	case <-ctx.Done():
	}
	return tokenDead
}

// known is the check of a token whose death is known already.
var known = func() *check {
	r := &check{done: make(chan struct{})}
	close(r.done)
	return r
}()

func (r *check) isAlive() bool {
	select {
	case <-r.done:
		return r.alive
	default:
		return false
	}
}

// lookUp asks Vault about the token. Only a clear no makes it dead; one that
// cannot be looked up, because Vault does not answer, is left in peace.
func (c *Client) lookUp(r *check, held uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	_, err := c.vault.Auth().Token().LookupSelfWithContext(ctx)

	s := &c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(r.done)
	s.check = nil
	r.alive = !isForbidden(err)
	switch {
	case s.held != held: // somebody was faster
	case r.alive:
		s.cleared = time.Now().Add(clearedFor)
	default:
		s.dead = true
		select {
		case s.lost <- struct{}{}:
		default:
		}
	}
}
