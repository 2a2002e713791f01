// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// TestADamagedPageOfUseHoldsNoTransitionUp: what is known of use serves people
// and must not keep a version alive, or a key from being rotated.
func TestADamagedPageOfUseHoldsNoTransitionUp(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "10m", "rotation_period": "1h"})
	m.wantCodes("VALID", m.key("acme", nil))
	m.flush()
	for _, page := range m.memory.Paths("usage/") {
		if err := m.storage.Put(t.Context(), &logical.StorageEntry{Key: page, Value: []byte("{")}); err != nil {
			t.Fatal(err)
		}
	}
	m = m.reopen()
	m.pass(3 * time.Hour)
	m.wantStates("acme", "retired retired retiring active") // three rotations, the last just now
}
