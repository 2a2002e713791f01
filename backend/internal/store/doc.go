// SPDX-License-Identifier: MPL-2.0

// Package store is the only caller of logical.Storage: entries, indexes, the
// order of writes, caches and their invalidation.
//
// # Layout
//
//	mount/state                  the mount's keys and flags (seal-wrapped)
//	config                       the mount's configuration
//	role/<name>                  a role
//	key/<key_id>                 a key with all its versions: the commit
//	name/<name>                  → key_id
//	imported/<hmac>              → key_id, for tokens made elsewhere
//	member/<role>/<shard>/<id>   role → keys, in 256 shards
//	due/<minute>/<id>            what to look at in that minute
//	dueh/<hour>                  which minutes of that hour may hold something
//	rollover/<key_id>            keys with a rollover under way
//	usage/<page>                 use of keys, sharded by the hash of their ids
//	firstuse/<number>            first uses of keys that no page has yet
//	reports                      which usage reports were counted
//	webhook/<name>               webhooks (seal-wrapped: they hold secrets)
//	outbox/<webhook>/<event>     events that a webhook has still to be told
//	claim/<day>/<hash>           claim codes, as hashes
//	claimend/<minute>/<claim>    in which minute a claim with a key ends, or one that was redeemed is told
//	work/<job>                   jobs under way
//	done/<job>                   the last result of each job
//	charge/<number>-<epoch>      who took charge of the mount, the highest number last
//
// # Order of writes
//
// One Put of key/<id> commits a transition. Index entries are written before
// it and are harmless when stale: a name or a member whose key does not exist
// or says otherwise counts for nothing, and a due entry that the key does not
// name is removed when its minute comes. Entries that the commit made stale
// are removed after it; a failure to do so changes nothing and is not
// reported.
//
// Nothing here lists or loads all keys. Vault's Raft and in-memory storage
// walk the whole subtree below a listed prefix, so List is called only on
// prefixes that hold what is wanted and nothing else.
package store
