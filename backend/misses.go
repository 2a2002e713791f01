// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// missRate and missBurst bound how often, in a second, one caller can make
	// verify read storage for keys that do not exist. They are far above what
	// typing errors cause, and below what slows storage down.
	missRate  = 1000
	missBurst = 10_000
	// maxUnknownIDs bounds the ids that are known to belong to no key; each
	// takes about 100 bytes.
	maxUnknownIDs = 65_536
	// missCallers bounds how many callers are told apart.
	missCallers = 4096
)

// errTooManyMisses says nothing about the key that was presented.
var errTooManyMisses = errors.New("too many unknown keys were presented by this caller: try again later")

// missLimiter keeps a flood of well-formed but unknown keys from flooding
// storage. The answer to it is "try again", never "refused".
type missLimiter struct {
	clock   clock.Clock
	callers *lru.Cache[string, *rate.Limiter]
}

func newMissLimiter(c clock.Clock) *missLimiter {
	callers, err := lru.New[string, *rate.Limiter](missCallers)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return &missLimiter{clock: c, callers: callers}
}

// check returns errTooManyMisses where the caller has had storage read for
// nothing too often.
func (m *missLimiter) check(caller string) error {
	if m.of(caller).TokensAt(m.clock.Now()) < 1 {
		return errTooManyMisses
	}
	return nil
}

// spend counts a read that found nothing.
func (m *missLimiter) spend(caller string) { m.of(caller).AllowN(m.clock.Now(), 1) }

func (m *missLimiter) of(caller string) *rate.Limiter {
	if l, ok := m.callers.Get(caller); ok {
		return l
	}
	fresh := rate.NewLimiter(missRate, missBurst)
	if former, raced, _ := m.callers.PeekOrAdd(caller, fresh); raced {
		return former
	}
	return fresh
}

// newSet remembers up to size things, those used last.
func newSet[T comparable](size int) *lru.Cache[T, struct{}] {
	set, err := lru.New[T, struct{}](size)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return set
}
