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

// toldOperation is one whose events must all be told, each exactly once by its
// id.
type toldOperation struct {
	op   logical.Operation
	path string
	data object
	// of makes data of the token of version 1 and its claim code.
	of func(m *mount, v1, code string) object
	// event is one that no transition makes. Where the operation had taken effect
	// before it was cut off, or is repeated, it is told, once.
	event keyring.EventType
	// happened tells whether it had, and may repeat it.
	happened func(m *mount, data object) bool
}

var toldOperations = map[string]toldOperation{
	"rotate":            {op: logical.UpdateOperation, path: "rotate/acme"},
	"cut over":          {op: logical.UpdateOperation, path: "rotate/acme", data: object{"overlap_period": 0}},
	"revoke and rotate": {op: logical.UpdateOperation, path: "revoke/acme", data: object{"version": 1, "compromised": true, "rotate": true}},
	"disable":           {op: logical.UpdateOperation, path: "keys/acme", data: object{"enabled": false}},
	"delete":            {op: logical.DeleteOperation, path: "keys/acme"},
	"use for the first time": {
		op: logical.UpdateOperation, path: "verify",
		of:    func(_ *mount, v1, _ string) object { return object{fieldAPIKey: v1, fieldSource: "eu"} },
		event: keyring.EventVersionFirstUsed,
		happened: func(m *mount, _ object) bool {
			return number(m.t, versions(m.t, m.read("keys/acme"))[0]["use_count"]) > 0
		},
	},
	"redeem a claim": {
		op: logical.UpdateOperation, path: "claim",
		of:    func(_ *mount, _, code string) object { return object{"code": code} },
		event: keyring.EventClaimRedeemed,
		happened: func(m *mount, data object) bool {
			m.request(logical.UpdateOperation, "claim", data) // redeemed now, if not before
			return true
		},
	},
	"redeem a claim again": {
		op: logical.UpdateOperation, path: "claim",
		of: func(m *mount, _, code string) object {
			m.write("claim", object{"code": code})
			return object{"code": code}
		},
		event: keyring.EventClaimReused,
		happened: func(m *mount, data object) bool {
			return m.request(logical.UpdateOperation, "claim", data).status == badStatus
		},
	},
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
					if !crashWhileTelling(t, n, applied, tc) {
						return
					}
				}
			})
		}
	}
}

// crashWhileTelling reports whether the fault was reached.
func crashWhileTelling(t *testing.T, n int, applied bool, tc toldOperation) bool {
	t.Helper()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	// Nobody listens there: what is owed stays in the outbox.
	m.write("webhooks/ops", object{"url": "http://127.0.0.1:1/", "allow_private": true})
	m.role(object{"overlap_period": "10m"})
	data := tc.data
	if tc.of != nil {
		b := newInbox(t)
		m.claimHook(b, nil)
		v1 := m.key("acme", nil)
		m.tell()
		m.delivered()
		data = tc.of(m, v1, b.code(t, 1))
	} else {
		m.key("acme", nil)
	}
	m.tell()
	id := m.keyID("acme")
	faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: true})
	_ = m.request(tc.op, tc.path, data)
	_ = m.engineNow().watch.tell(t.Context())
	_ = m.engineNow().watch.flush(t.Context())
	_ = m.engineNow().watch.endClaims(t.Context())
	reached := faulty.Failed() > 0
	faulty.Heal()

	m = m.crash()
	memory = m.memory
	for range 4 {
		m.pass(time.Minute)
		m.flush()
		m.tell()
	}
	if tc.happened != nil {
		want := 0
		if tc.happened(m, data) {
			want = 1
		}
		m.tell()
		history := m.stored(id).History
		told := len(slices.DeleteFunc(slices.Clone(history), func(e keyring.Event) bool { return e.Type != tc.event }))
		if told != want {
			t.Errorf("fault %d: %s is told %d times, want %d", n, tc.event, told, want)
		}
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
