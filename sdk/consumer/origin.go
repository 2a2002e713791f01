// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"context"
	"fmt"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// Origin is where a key comes from.
type Origin interface {
	// Fetch gets the key as it is now. It is called by one goroutine at a time. Its
	// errors are logged and must not hold a key.
	Fetch(ctx context.Context) (Fetched, error)
}

// Fetched is a key, and when to look for another.
type Fetched struct {
	// Key is the key as it is now; the zero Key where nothing is known of one.
	Key Key
	// Next is when to look again; 0 where looking does not help.
	Next time.Duration
	// Spread is by how much later a client may look, so that not all do at once.
	Spread time.Duration
}

// Confirmer is told which version an instance of the client has found accepted.
type Confirmer interface {
	Confirm(ctx context.Context, version int, instance string) error
}

// maxSpread bounds the jitter of looks on schedule.
const maxSpread = 30 * time.Second

// VaultOrigin gets a key from the engine's static-creds; see [Vault].
type VaultOrigin struct {
	client *vaultclient.Client
	name   string
}

// Vault gets the key of a name from the engine, and confirms its versions. It
// looks again when the engine says so: just after the next planned rotation, and
// at least once in the role's refresh_interval, with a jitter of up to a tenth of
// that time, or of the overlap, or 30 seconds, whichever is least. The client has
// to be run (see [vaultclient.Client.Run]); its policy is read on
// static-creds/NAME and update on confirm/NAME.
func Vault(client *vaultclient.Client, name string) *VaultOrigin {
	return &VaultOrigin{client: client, name: name}
}

// String names the path.
func (v *VaultOrigin) String() string { return v.client.Mount() + "/static-creds/" + v.name }

// Fetch reads static-creds.
func (v *VaultOrigin) Fetch(ctx context.Context) (Fetched, error) {
	var creds struct {
		APIKey  string `json:"api_key"`
		KeyID   string `json:"key_id"`
		Version int    `json:"version"`
		TTL     int64  `json:"ttl"`            // seconds
		Overlap int64  `json:"overlap_period"` // seconds
	}
	if err := v.client.Read(ctx, "static-creds/"+v.name, nil, &creds); err != nil {
		return Fetched{}, err
	}
	key, err := NewKey(creds.APIKey, creds.Version)
	if err != nil {
		return Fetched{}, fmt.Errorf("read %s: %w", v, err)
	}
	key.id = creds.KeyID // imported keys do not hold theirs
	const longest = int64(24 * time.Hour / time.Second)
	next := time.Duration(min(max(creds.TTL, 1), longest)) * time.Second
	overlap := time.Duration(min(max(creds.Overlap, 0), longest)) * time.Second
	return Fetched{Key: key, Next: next, Spread: min(next/10, overlap/10, maxSpread)}, nil
}

// Confirm writes confirm/NAME.
func (v *VaultOrigin) Confirm(ctx context.Context, version int, instance string) error {
	body := map[string]any{"version": version}
	if instance != "" {
		body["instance"] = instance
	}
	return v.client.Write(ctx, "confirm/"+v.name, body, nil)
}
