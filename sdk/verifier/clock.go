// SPDX-License-Identifier: MPL-2.0

package verifier

import "time"

const (
	// answerGrain is the unit of the times in answers, which are cut off, not
	// rounded: the clock that was read may have been so much later.
	answerGrain = time.Millisecond
	// driftShift bounds how far two clocks that both run freely drift apart:
	// by one part in 2048, which is ten times what bad ones do.
	driftShift = 11
)

// mono is a time of the monotonic clock, in nanoseconds since the start of the
// verifier. The wall clock is asked for nothing but the skew that is reported.
type mono int64

// tick is a coarse time of the same clock, of about a second each.
type tick uint32

const tickShift = 30 // in nanoseconds: 1.07 s

func (m mono) tick() tick { return tick(m >> tickShift) } //nolint:gosec // it lasts for a century

func (t tick) start() mono { return mono(t) << tickShift }

func (v *Verifier) now() mono { return mono(time.Since(v.start)) }

// vaultClock is one reading of Vault's clock. The clock was read between the
// request and its answer, so that at any later time it lies between two bounds.
type vaultClock struct {
	read           int64 // Unix nanoseconds, as answered
	sent, received mono
}

// latest is the upper bound at m, in Unix nanoseconds: what is accepted then
// cannot be late.
func (c *vaultClock) latest(m mono) int64 {
	elapsed := int64(m - c.sent)
	return c.read + int64(answerGrain) + elapsed + elapsed>>driftShift
}

// earliest is the lower bound: what is refused then cannot be early.
func (c *vaultClock) earliest(m mono) int64 {
	elapsed := int64(m - c.received)
	return c.read + elapsed - elapsed>>driftShift
}

func vaultTime(ns int64) time.Time { return time.Unix(0, ns).UTC() }
