// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

func TestManyRotationsInOneRollbackWindowDoNotGrowAKeyForEver(t *testing.T) {
	t.Parallel()
	p := keyring.Policy{MaxOverlap: time.Hour, RollbackWindow: 24 * time.Hour, MaxAccepted: 3, MaxVersions: 10}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k := keyring.Create(keyring.Key{ID: "EXAMPLEkey01", Name: "billing", Role: "r"}, keyring.Cause{Now: now}, p, keyring.Material{Digest: digest(1), Sealed: []byte("1")})
	const rotations = keyring.RetainLimit + 50
	for i := range rotations {
		now = now.Add(time.Second)
		next, err := k.Rotate(keyring.Cause{Now: now}, p, keyring.Material{Digest: digest(i + 2), Sealed: []byte("x")}, keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		k = next
	}
	if got := len(k.Versions); got != keyring.RetainLimit {
		t.Errorf("the key has %d versions, want %d", got, keyring.RetainLimit)
	}
	if active, ok := k.Active(); !ok || active.Number != rotations+1 {
		t.Errorf("version %d is active, want %d", active.Number, rotations+1)
	}
	if _, ok := k.Version(rotations); !ok {
		t.Error("the version before the active one is gone")
	}
}
