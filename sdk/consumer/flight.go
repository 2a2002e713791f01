// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// firstPause and longestPause are between two looks at an origin that are
	// made because a server refuses a key, and show the same key.
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
	// retryFirst and retryLongest are between two looks on schedule that fail.
	retryFirst   = time.Second
	retryLongest = time.Minute
)

// flights are the looks at an origin: one at a time, numbered from 1. The usual
// single flight would not do, since who joins a look that began before the
// refusal may be shown the key from before the rotation.
type flights struct {
	mu      sync.Mutex
	started uint64
	ended   uint64
	running *flight
	err     error // of the last one that ended

	pause     time.Duration // see firstPause
	notBefore time.Time
	failures  int       // in a row
	due       time.Time // when to look on schedule; zero: not
	wake      chan struct{}
}

type flight struct{ done chan struct{} }

// after is the number of the first look that will begin after the call.
func (s *Source) after() uint64 {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	return s.flights.started + 1
}

// board returns the look that is under way, or begins one. It returns none once
// the look with the wanted number has ended, with pause 0; and, for a hurried
// one, while it is too early, with the pause until then.
func (s *Source) board(want uint64, hurried bool) (running *flight, pause time.Duration) {
	f := &s.flights
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.running != nil:
		return f.running, 0
	case f.ended >= want:
		return nil, 0
	}
	if hurried {
		if early := time.Until(f.notBefore); early > 0 {
			return nil, early
		}
	}
	f.started++
	f.running = &flight{done: make(chan struct{})}
	go s.fly(f.running, hurried)
	return f.running, 0
}

func (s *Source) fly(running *flight, hurried bool) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	before := s.current.Load()
	got, err := s.origin.Fetch(ctx)
	if err == nil && !got.Key.IsZero() {
		s.take(got.Key)
	}
	same := s.current.Load() == before

	if s.landed(running, got, err, hurried && same) {
		s.noteFetch(err)
	}
}

// landed settles what follows from a look, and tells whether it went otherwise
// than the one before.
func (s *Source) landed(running *flight, got Fetched, err error, vain bool) (news bool) {
	f := &s.flights
	f.mu.Lock()
	defer f.mu.Unlock()
	defer close(running.done)
	f.running = nil
	f.ended = f.started
	if vain {
		f.pause = min(max(2*f.pause, firstPause), longestPause)
		f.notBefore = time.Now().Add(jitter(f.pause))
	}
	news = (err == nil) != (f.err == nil) || err != nil && err.Error() != f.err.Error()
	f.err = err
	switch {
	case err != nil:
		f.failures++
		f.due = time.Now().Add(jitter(min(retryFirst<<min(f.failures-1, 6), retryLongest)))
	case got.Next > 0:
		f.failures = 0
		f.due = time.Now().Add(got.Next + spread(got.Spread))
	default:
		f.failures = 0
		f.due = time.Time{}
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
	return news
}

// noteFetch logs what differs from the look before.
func (s *Source) noteFetch(err error) {
	if err != nil {
		s.log.Warn("cannot get the API key; the last one stays in use", "origin", fmt.Sprint(s.origin), "error", err)
		return
	}
	s.log.Info("got the API key again", "origin", fmt.Sprint(s.origin))
}

// calm forgets the pauses: there is another key.
func (f *flights) calm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pause, f.notBefore = 0, time.Time{}
}

// jitter is d, or up to a quarter less.
func jitter(d time.Duration) time.Duration { return d - spread(d/4) }

// spread is a random part of d.
func spread(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d) //nolint:gosec // spreads load, guards nothing
}
