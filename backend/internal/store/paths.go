// SPDX-License-Identifier: MPL-2.0

package store

import (
	"fmt"
	"hash/fnv"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

const (
	mountPath      = "mount/state"
	configPath     = "config"
	rolePrefix     = "role/"
	keyPrefix      = "key/"
	namePrefix     = "name/"
	importedPrefix = "imported/"
	memberPrefix   = "member/"
	duePrefix      = "due/"
	dueHourPrefix  = "dueh/"
	rolloverPrefix = "rollover/"
	usagePrefix    = "usage/"
	firstUsePrefix = usage.NotePrefix
	hookPrefix     = "webhook/"
	outboxPrefix   = "outbox/"
	claimPrefix    = "claim/"
	claimEndPrefix = "claimend/"
	reportsPath    = "reports"
	workPrefix     = "work/"
	donePrefix     = "done/"
	chargePrefix   = "charge/"
)

// Shards is the number of parts in which the members of a role are kept, so
// that a job can list them piece by piece.
const Shards = 256

// SealWrapped lists the prefixes that hold key material of the mount itself.
func SealWrapped() []string { return []string{"mount/", hookPrefix} }

func memberPath(role, id string) string {
	return memberShardPrefix(role, shardOf(id)) + id
}

func memberShardPrefix(role string, shard int) string {
	return fmt.Sprintf("%s%s/%02x/", memberPrefix, role, shard)
}

func shardOf(id string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return int(h.Sum32() % Shards)
}

func dueMinutePrefix(minute int64) string { return fmt.Sprintf("%s%08d/", duePrefix, minute) }

func dueHourPath(hour int64) string { return fmt.Sprintf("%s%06d", dueHourPrefix, hour) }
