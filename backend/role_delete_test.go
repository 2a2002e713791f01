// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// TestDeletingARoleSaysWhatIsInTheWay: how many keys of which kind, and how to
// end each kind.
func TestDeletingARoleSaysWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("a", nil)
	m.refused(badStatus, logical.DeleteOperation, "roles/r", nil, "has 1 key and cannot", "LIST keys and role=r")
	_, id, _ := m.leased(m.request(logical.ReadOperation, "creds/r", nil))
	m.refused(badStatus, logical.DeleteOperation, "roles/r", nil, "2 keys (1 named and 1 leased)", "creds/r", "rotate-leased/<key_id>", id)
}

// TestDeletingAFullRoleIsBounded: it does not read every key under the role's
// lock.
func TestDeletingAFullRoleIsBounded(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	for i := range maxCounted + 300 {
		m.key(fmt.Sprintf("k%d", i), nil)
	}
	m = m.reopen()
	counting.Reset()
	a := m.request(logical.DeleteOperation, "roles/r", nil)
	if !strings.Contains(a.errText, "at least 1000 keys") {
		t.Errorf("the answer is %s", a)
	}
	if n := counting.Under("key/").Get; n > maxCounted+1 {
		t.Errorf("%d keys were read", n)
	}
}
