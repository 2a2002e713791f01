// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// askedView counts what it is asked: each question is a call to Vault.
type askedView struct {
	logical.StaticSystemView
	asked int
}

func (v *askedView) ReplicationState() consts.ReplicationState {
	v.asked++
	return v.StaticSystemView.ReplicationState()
}

func (v *askedView) LocalMount() bool {
	v.asked++
	return v.StaticSystemView.LocalMount()
}

func verifyOn(t *testing.T, view *askedView) (verify func() error, c *clock.Manual) {
	t.Helper()
	c = clock.NewManual(epoch)
	storage := storetest.NewMemory()
	b, err := newBackend(t.Context(), &logical.BackendConfig{
		Logger: hclog.NewNullLogger(), System: view, StorageView: storage, BackendUUID: "uuid", Config: map[string]string{},
	}, c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Cleanup(context.WithoutCancel(t.Context())) })
	return func() error {
		_, err := b.HandleRequest(t.Context(), &logical.Request{
			Operation: logical.UpdateOperation, Path: "verify", Storage: storage, Data: object{"api_key": "of no known form"},
		})
		return err
	}, c
}

// TestVerifyIsForwardedWhereTheSDKWouldForwardIt because verify does not go
// through the SDK.
func TestVerifyIsForwardedWhereTheSDKWouldForwardIt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		state   consts.ReplicationState
		local   bool
		forward bool
	}{
		"a node alone":                 {},
		"a primary":                    {state: consts.ReplicationPerformancePrimary},
		"a performance standby":        {state: consts.ReplicationPerformanceStandby, forward: true},
		"a local mount on a standby":   {state: consts.ReplicationPerformanceStandby, local: true, forward: true},
		"a performance secondary":      {state: consts.ReplicationPerformanceSecondary, forward: true},
		"a local mount on a secondary": {state: consts.ReplicationPerformanceSecondary, local: true},
	} {
		verify, _ := verifyOn(t, &askedView{StaticSystemView: logical.StaticSystemView{ReplicationStateVal: test.state, LocalMountVal: test.local}})
		if err := verify(); errors.Is(err, logical.ErrReadOnly) != test.forward || !test.forward && err != nil {
			t.Errorf("%s: %v, forwarded should be %v", name, err, test.forward)
		}
	}
}

func TestVerifyAsksVaultForItsRoleOnceASecond(t *testing.T) {
	t.Parallel()
	view := &askedView{}
	verify, c := verifyOn(t, view)
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	view.asked = 0
	for range 100 {
		c.Advance(9 * time.Millisecond)
		if err := verify(); err != nil {
			t.Fatal(err)
		}
	}
	if view.asked > 0 {
		t.Errorf("%d questions within a second", view.asked)
	}
	view.ReplicationStateVal = consts.ReplicationPerformanceStandby
	c.Advance(time.Second)
	if err := verify(); !errors.Is(err, logical.ErrReadOnly) {
		t.Errorf("a second after the node became a standby: %v", err)
	}
}
