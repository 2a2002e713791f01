// SPDX-License-Identifier: MPL-2.0

// Package feed tells verifiers at the edge which keys and roles have changed,
// and remembers which verifiers ask.
//
// A [Feed] is a ring in memory. Every change has a number; the numbers of one
// epoch follow each other without a gap, and an epoch is random text that is
// new with each start. Who knows the state as of a number asks [Feed.Since] for
// what changed after it. Where that cannot be told (another epoch, a number
// that was never given out, more changes than the ring holds) the answer says
// so, and all that was known has to be asked for again.
//
// # What a number promises
//
// A change is published after it is stored and after every cache has it, and
// before whoever wrote it is told that it is done. So whoever reads the number
// first and the state then has a state that is at least as new as the number:
// a state from before the change goes with a number below the change's.
//
// # Writes of which nobody knows
//
// A write that failed may still take effect. It is published when it fails,
// and again at growing distances until the time to settle is over: what was
// read in between is then asked for again, each time at most as long after the
// write took effect as that was after the failure, and one second. Nothing runs
// by itself for that: it is the question of a verifier that publishes what is
// to be published by then.
//
// The package does no I/O. It keeps at most Size changes and MaxVerifiers
// verifiers, whatever it is sent.
package feed
