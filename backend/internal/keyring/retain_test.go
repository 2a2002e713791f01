// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"encoding/json"
	"fmt"
	"strings"
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
		k.Owed = nil // copied to the outboxes between one transition and the next
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

// TestTheEntryOfAKeyFitsStorage: with the widest scopes that a rotation can ask
// for, versions inside their rollback window make room for newer ones.
func TestTheEntryOfAKeyFitsStorage(t *testing.T) {
	t.Parallel()
	var scopes []string
	for i := range 128 {
		scopes = append(scopes, fmt.Sprintf("%03d:%s", i, strings.Repeat("x", 124)))
	}
	for _, compromised := range []bool{false, true} {
		p := keyring.Policy{MaxOverlap: time.Hour, RollbackWindow: 24 * time.Hour, MaxAccepted: 3, MaxVersions: 100}
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		k := keyring.Create(keyring.Key{ID: "EXAMPLEkey01", Name: "billing", Role: "r", Scopes: &scopes}, keyring.Cause{Now: now}, p, keyring.Material{Digest: digest(1)})
		for i := range 150 {
			now = now.Add(time.Second)
			next, err := k.Rotate(keyring.Cause{Now: now, Reason: strings.Repeat("\"", 100)}, p, keyring.Material{Digest: digest(i + 2), Sealed: make([]byte, 200)}, keyring.RotateOptions{OverlapScopes: scopes})
			if err != nil {
				t.Fatal(err)
			}
			if compromised {
				next, err = next.Revoke(keyring.Cause{Now: now}, p, keyring.RevokeOptions{Version: i + 1, Compromised: true})
				if err != nil {
					t.Fatal(err)
				}
			}
			k = next
			k.Owed = nil // copied to the outboxes between one transition and the next
			data, err := json.Marshal(k)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > keyring.EntryLimit {
				t.Fatalf("after %d rotations the entry has %d bytes", i+1, len(data))
			}
		}
		if _, ok := k.Version(150); !ok {
			t.Error("the version before the active one is gone")
		}
		for n := 1; n <= 150 && compromised; n++ {
			if _, ok := k.Version(n); !ok {
				t.Errorf("compromised version %d is gone", n)
			}
		}
	}
}
