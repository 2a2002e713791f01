// SPDX-License-Identifier: MPL-2.0

// Package jobs is what runs by itself: the tick, which does what is due, and
// the bulk jobs over the members of a role.
//
// Vault calls the periodic function once a minute under a lock that everybody
// else waits for, so it only wakes the Worker and returns. The Worker runs
// ticks and jobs on goroutines of its own, recovers their panics, pauses on
// any storage error until it is woken again, and stops within a second.
//
// Nothing here keeps a schedule in memory: after a crash the due index and
// the job entries in storage say where to go on.
package jobs
