// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// notLeading is what Raft says of a write on a node that does not lead, or that
// has lost the lead meanwhile (ErrNotLeader and ErrLeadershipLost of
// github.com/hashicorp/raft). Only the text passes from Vault to a plugin.
var notLeading = []string{"node is not the leader", "leadership lost while committing log"}

// leading is a storage that tells of writes for which the node did not lead.
type leading struct {
	logical.Storage
	lost func()
}

// Leading returns s, which calls lost for each write that is refused because
// another node leads.
func Leading(s logical.Storage, lost func()) logical.Storage { return &leading{s, lost} }

func (l *leading) Put(ctx context.Context, entry *logical.StorageEntry) error {
	return l.heard(l.Storage.Put(ctx, entry))
}

func (l *leading) Delete(ctx context.Context, path string) error {
	return l.heard(l.Storage.Delete(ctx, path))
}

func (l *leading) heard(err error) error {
	if err == nil {
		return nil
	}
	for _, text := range notLeading {
		if strings.Contains(err.Error(), text) {
			l.lost()
		}
	}
	return err
}
