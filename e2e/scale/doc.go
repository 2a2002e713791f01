// SPDX-License-Identifier: MPL-2.0

// Package scale measures how the engine grows with the number of keys, on a
// real Vault on Raft, beside engines of Vault that do related work on the same
// server in the same run.
//
//	make scale                      10,000, 100,000 and 1,000,000 keys: hours
//	make scale SCALE_KEYS=100000    1,000, 10,000 and 100,000
//
// The largest number of keys comes first. To have 100,000 of them due at once, its
// server is sealed for the minutes in which they become due, and the next number is
// measured meanwhile: so whatever fails there ends the run without the others.
//
// SCALE_PEERS leaves the other engines out above so many keys; with a million they
// take as long as all the rest.
//
// As part of `make e2e` it runs at 3,000 keys. It writes scale.md, scale.json
// and scale.svg into the folder SCALE_REPORT; without one, the table goes to the
// test's log.
//
// Numbers of storage operations are counted by backend.
// TestOperationCountsDoNotGrow, with storage in memory; `make scale` runs it
// first, and its results are joined here from the file SCALE_COUNTS. They are
// judged, and from 100,000 keys on the processor's time of the plugin's process
// is, too; what could not be measured is a failure. Bare times are about the
// machine, and so are only shown. scale.svg draws what is judged, and the memory of
// the plugin's process.
//
// The peers are KV version 2 (storing and reading keys), Transit (verifying an
// HMAC), and the database engine's static roles (scheduled rotation and
// start-up) with PostgreSQL and with a database that does nothing. The database
// engine is built from Vault's module by scripts/vault/database-engine, and runs as an
// external plugin, as this engine does; it has fewer static roles than there are
// keys, and the report says how many. What is missing on a machine is named in
// the report.
package scale
