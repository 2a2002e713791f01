// SPDX-License-Identifier: MPL-2.0

// Package webhook tells receivers what happened to keys, by Standard Webhooks
// 1.0.0, and hands out claim codes with which they fetch new keys.
//
// # What it promises
//
// Once Enqueue has returned nil, an event reaches every enabled hook that
// wants it at least once, whatever crashes in between, and each time with the
// same webhook-id, by which a receiver tells repetitions. The events of one
// key arrive in order: a hook sends one of them at a time and waits for its
// retries; events of different keys go in parallel. What is given up on is
// counted in the hook: Failed for events that ran out of retries, Dropped for
// those that found its outbox full.
//
// # Retries
//
// Only an answer of 2xx is a delivery; its body is not waited for. Anything
// else is tried again on the schedule of the specification, at least ten
// attempts in at least 75 hours, each delay up to a fifth longer. Retry-After makes it later,
// by at most a day, and holds up the whole hook, by at most an hour. After
// five failures in a row, whichever keys they were for, a hook sends one event
// at a time with pauses of up to five minutes, so that a receiver that is down
// costs neither many requests nor many writes, and other events keep their
// attempts; the first success lets all that waits go at once.
//
// A hook is disabled, with its reason, by 410 Gone, by three events in a row
// that ran out of retries, and after five days without a success. It keeps
// its outbox and goes on with it, attempts counted anew, when it is enabled.
//
// # Storage
//
// An event costs one write per hook that wants it and one deletion. Each
// failed attempt but the first costs one write, of the number of attempts and
// the time of the next. Hooks and the names of what waits are loaded when
// they are first needed, and are all that memory holds of events: about 200
// bytes for a key with something to tell.
//
// # What it refuses
//
// It connects to no address that is not public unless the hook allows it, and
// judges the address that it dials, not the name. It follows no redirect, asks
// no proxy, reads at most 64 KiB of an answer and waits at most 15 seconds for
// it. URLs, secrets, claim codes and bodies are in no log and no error.
package webhook
