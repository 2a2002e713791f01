// SPDX-License-Identifier: MPL-2.0

// Package schedule says when the next automatic rotation of a key is due. It
// turns four fields of a role (rotation_period, rotation_schedule,
// rotation_window, rotation_jitter) and the time of the last rotation into
// instants. It reads no clock, draws no random numbers and stores nothing: the
// same arguments always give the same answer, on every node, after every
// restart. It does not decide whether a rotation that is due may happen (a full
// rolling window, a pending version, a disabled key); that is the keyring's.
//
// # Time
//
// Every instant that goes in is truncated to the second, and every one that
// comes out is a whole second in UTC. Cron fields mean UTC too, so there is no
// daylight saving: a daily rotation happens every 24 hours.
//
// # Period
//
// A key is due one period after its last rotation, whether that was automatic
// or by hand. If the mount was down, or automation was off, for ten periods,
// the key is due once: the next one counts from that late rotation.
//
// # Cron
//
// A key is due at the first fire strictly after its last rotation. Missed fires
// do not add up either. The five fields are minute, hour, day of month, month
// and day of week, with numbers, names, lists, ranges and steps. As in Vault's
// database engine, which uses the same parser, Sunday is 0 only, and when both
// day fields are restricted, a day that matches either of them fires. Of that
// parser we refuse what would be misread: descriptors (@daily), time zones
// (TZ=), a sixth field, and malformed items that it would let pass (*-x).
//
// # Window
//
// With a window, a rotation may begin only from a fire until window after it,
// the end included. Whoever misses it waits for the next fire; the one missed
// is not made up for. A window is at least a minute, as the tick comes once a
// minute, and at most the shortest interval of the schedule. Make it an hour
// where keys are many.
//
// # Jitter
//
// Jitter delays each key by a part of the interval that is fixed by its key id,
// so that the keys of a role do not all rotate in the same minute. With a
// period, it lengthens the distance between rotations of a key: from one period
// to less than one and a half. With cron it delays within the interval that
// the fire begins, hence never past the next fire; and with a window it leaves
// the last quarter of the window, and at least 5 minutes of it, free: a key
// whose jitter put it at the very end would miss the window at every fire. A
// window of 5 minutes or less thus leaves no room for jitter.
//
// # After an outage
//
// Jitter does not help a mount that was down until everything was overdue.
// [Spec.CatchUp] spreads such keys over up to an hour. It is asked once per
// key: see there.
//
// # Invalid specs
//
// Everything but [Spec.Validate] takes a spec that Validate accepts. Given
// another one, methods do not panic; an invalid cron expression never fires.
package schedule
