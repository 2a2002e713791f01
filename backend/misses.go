// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// missRate and missBurst bound how often one caller can make verify read
	// storage for keys that are not in the cache. They are far above what a
	// gateway needs to warm up, and below what slows storage down.
	missRate  = 500
	missBurst = 10_000
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

func (m *missLimiter) allow(caller string) error {
	l, ok := m.callers.Get(caller)
	if !ok {
		fresh := rate.NewLimiter(missRate, missBurst)
		if former, raced, _ := m.callers.PeekOrAdd(caller, fresh); raced {
			fresh = former
		}
		l = fresh
	}
	if !l.AllowN(m.clock.Now(), 1) {
		return errTooManyMisses
	}
	return nil
}
