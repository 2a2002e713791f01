// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// claimPatience covers a webhook's delivery, which begins at the commit.
const claimPatience = 5 * time.Second

// Claims gets keys by claim codes, for clients that have no Vault token: the
// engine's webhooks deliver a code for each new version, and Redeem, or the
// Handler that receives those webhooks, exchanges it for the key. A key that was
// claimed cannot be fetched again: store it, in Config.OnChange, and begin with it
// as Config.Initial after a restart.
type Claims struct {
	client *vaultclient.Client

	redeeming sync.Mutex // one code at a time, in the order in which they come

	mu   sync.Mutex
	last Key
	take func(Key)
}

// NewClaims makes an Origin for one Source. The client may be [vaultclient.Anonymous].
func NewClaims(client *vaultclient.Client) *Claims { return &Claims{client: client} }

// String names the path.
func (c *Claims) String() string { return c.client.Mount() + "/claim" }

func (*Claims) patience() time.Duration { return claimPatience }

func (c *Claims) attach(take func(Key)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.take = take
	if !c.last.IsZero() {
		take(c.last)
	}
}

// Fetch returns no key: Redeem brings each, and no look another. One that was
// redeemed meanwhile would be put back by the one before.
func (*Claims) Fetch(context.Context) (Fetched, error) { return Fetched{}, nil }

// ErrClaim means that a code cannot be redeemed: it is unknown, was redeemed
// before, or its time is over.
var ErrClaim = errors.New("the claim code cannot be redeemed: it is unknown, was redeemed before, or its time is over")

// Redeem exchanges a code for a key, which is the current one from then on. It
// returns ErrClaim for a code that is no good. After any other error it is not
// known whether the code was used up, unless vaultclient.IsUnavailable is true
// and the code is still good: try again, or ask for a rotation.
func (c *Claims) Redeem(ctx context.Context, code string) (Key, error) {
	c.redeeming.Lock()
	defer c.redeeming.Unlock()
	var claimed struct {
		APIKey  string `json:"api_key"`
		KeyID   string `json:"key_id"`
		Version int    `json:"version"`
	}
	err := c.client.Write(ctx, "claim", map[string]string{"code": code}, &claimed)
	if status := (*vaultclient.StatusError)(nil); errors.As(err, &status) && status.Status == 400 {
		return Key{}, ErrClaim
	}
	if err != nil {
		return Key{}, err
	}
	key, err := NewKey(claimed.APIKey, claimed.Version)
	if err != nil {
		return Key{}, fmt.Errorf("write %s: %w", c, err)
	}
	key.id = printableID(claimed.KeyID)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = key
	if c.take != nil {
		c.take(key)
	}
	return key, nil
}
