// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// The operations whose events must all be told, each exactly once by its id.
var toldOperations = map[string]struct {
	op   logical.Operation
	path string
	data object
}{
	"rotate":            {logical.UpdateOperation, "rotate/acme", nil},
	"cut over":          {logical.UpdateOperation, "rotate/acme", object{"overlap_period": 0}},
	"revoke and rotate": {logical.UpdateOperation, "revoke/acme", object{"version": 1, "compromised": true, "rotate": true}},
	"disable":           {logical.UpdateOperation, "keys/acme", object{"enabled": false}},
	"delete":            {logical.DeleteOperation, "keys/acme", nil},
}

// TestEveryEventIsOwedOnceThroughACrash cuts each operation, and what copies
// its events, off at every storage operation. After a restart and some ticks
// the outbox has each event of the key, from the first to the last, once.
func TestEveryEventIsOwedOnceThroughACrash(t *testing.T) {
	t.Parallel()
	for name, tc := range toldOperations {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, applied %v", name, applied), func(t *testing.T) {
				t.Parallel()
				for n := 1; ; n++ {
					if n > 60 {
						t.Fatal("the operation never ends without a fault")
					}
					if !crashWhileTelling(t, n, applied, tc.op, tc.path, tc.data) {
						return
					}
				}
			})
		}
	}
}

// crashWhileTelling reports whether the fault was reached.
func crashWhileTelling(t *testing.T, n int, applied bool, op logical.Operation, path string, data object) bool {
	t.Helper()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	// Nobody listens there: what is owed stays in the outbox.
	m.write("webhooks/ops", object{"url": "http://127.0.0.1:1/", "allow_private": true})
	m.role(object{"overlap_period": "10m"})
	m.key("acme", nil)
	m.tell()
	id := m.keyID("acme")
	faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: true})
	_ = m.request(op, path, data)
	_ = m.engineNow().watch.tell(t.Context())
	reached := faulty.Failed() > 0
	faulty.Heal()

	m = m.reopen()
	for range 4 {
		m.pass(time.Minute)
		m.tell()
	}
	last := uint64(0)
	k, err := m.engineNow().store.Key(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	if k != nil {
		last = k.EventSeq
		if len(k.Owed) > 0 {
			t.Errorf("fault %d: %d events are still owed", n, len(k.Owed))
		}
	}
	positions := memory.Paths("outbox/ops/")
	if k == nil {
		// The key is gone for good: its last event tells so.
		last = uint64(len(positions))
		if !slices.ContainsFunc(positions, func(p string) bool { return hasEvent(t, m, p, keyring.EventKeyDeleted) }) {
			t.Errorf("fault %d: nobody is told of the deletion", n)
		}
	}
	for seq := range last {
		want = append(want, fmt.Sprintf("outbox/ops/%s.%020d", id, seq+1))
	}
	slices.Sort(positions)
	if !slices.Equal(positions, want) {
		t.Errorf("fault %d: the outbox has\n%v\nwant\n%v", n, positions, want)
	}
	return reached
}

func hasEvent(t *testing.T, m *mount, path string, event keyring.EventType) bool {
	t.Helper()
	entry, err := m.storage.Get(t.Context(), path)
	if err != nil || entry == nil {
		t.Fatalf("read %s: %v", path, err)
	}
	return bytes.Contains(entry.Value, []byte(event))
}
