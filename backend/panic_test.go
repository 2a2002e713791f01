// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// TestNoPanicReachesVault: other mounts live in the same process.
func TestNoPanicReachesVault(t *testing.T) {
	t.Parallel()
	m, faulty := faultyMount(t)
	m.role(nil)
	open := m.opened()
	put := func(e *engine) {
		m.Backend.mu.Lock()
		defer m.Backend.mu.Unlock()
		m.open = e
	}
	t.Cleanup(func() { put(open) })
	put(nil)
	faulty.Before(func(storetest.Op) { panic("storage") })
	t.Cleanup(func() { faulty.Before(nil) })
	req := &logical.Request{Operation: logical.CreateOperation, Path: "roles/r", Storage: m.storage}
	if _, _, err := m.HandleExistenceCheck(t.Context(), req); !errors.Is(err, errInternal) {
		t.Errorf("an existence check answers %v", err)
	}
	if err := m.initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}); !errors.Is(err, errInternal) {
		t.Errorf("the initialization answers %v", err)
	}
	if err := m.periodic(t.Context(), req); !errors.Is(err, errInternal) {
		t.Errorf("the periodic function answers %v", err)
	}
	put(&engine{})
	m.invalidate(t.Context(), "key/a")
}

// TestAFilingThatCannotBeMadeIsTriedAgain: the key is not forgotten.
func TestAFilingThatCannotBeMadeIsTriedAgain(t *testing.T) {
	t.Parallel()
	m, faulty := faultyMount(t)
	m.role(nil)
	m.key("a", nil)
	id := text(t, m.read("keys/a")[fieldKeyID])
	e := m.opened()
	e.store.Invalidate("key/" + id)
	faulty.Inject(storetest.Fault{At: 1, Rest: true})
	e.lost <- id
	if err := e.refileLost(t.Context()); err == nil {
		t.Fatal("the filing succeeded")
	}
	faulty.Heal()
	if len(e.lost) != 1 {
		t.Error("the key is forgotten")
	}
}
