// SPDX-License-Identifier: MPL-2.0

// Package clock is the one source of time of the engine.
//
// It is apart so that every other package takes its time from a value that a
// test can move, and so that a linter can forbid time.Now everywhere else.
package clock

import (
	"sync"
	"time"
)

// A Clock tells the time of day and, apart from it, the time that has passed.
type Clock interface {
	// Now is the wall clock in UTC. It may be set back or forward.
	Now() time.Time
	// Elapsed is the time since some fixed moment of this process. It never
	// goes backwards and is not moved when the wall clock is set.
	Elapsed() time.Duration
	// After delivers once d has passed. A test's clock delivers when it is moved.
	After(d time.Duration) <-chan time.Time
}

// System returns the clock of the machine.
func System() Clock { return system{start: time.Now()} }

type system struct{ start time.Time }

func (system) Now() time.Time                         { return time.Now().UTC() }
func (s system) Elapsed() time.Duration               { return time.Since(s.start) }
func (system) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Manual is a clock for tests that moves only when told to.
type Manual struct {
	mu      sync.Mutex
	now     time.Time
	elapsed time.Duration
	waiting []waiter
}

type waiter struct {
	at time.Duration
	ch chan time.Time
}

// NewManual returns a Manual that shows t.
func NewManual(t time.Time) *Manual { return &Manual{now: t.UTC()} }

// Now returns the time it was set to.
func (m *Manual) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// Elapsed returns the sum of all Advance calls.
func (m *Manual) Elapsed() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.elapsed
}

// After returns a channel that delivers when Advance has passed d.
func (m *Manual) After(d time.Duration) <-chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan time.Time, 1)
	m.waiting = append(m.waiting, waiter{m.elapsed + d, ch})
	m.deliver()
	return ch
}

// Advance lets d pass, on the wall clock too.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
	m.elapsed += d
	m.deliver()
}

// Leap sets the wall clock by d, back or forward, while no time passes.
func (m *Manual) Leap(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
}

func (m *Manual) deliver() {
	rest := m.waiting[:0]
	for _, w := range m.waiting {
		if w.at <= m.elapsed {
			w.ch <- m.now
			continue
		}
		rest = append(rest, w)
	}
	m.waiting = rest
}
