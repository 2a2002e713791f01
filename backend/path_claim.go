// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
)

const (
	claimPattern = "claim"

	actorClaim = "claim"
)

func (b *Backend) pathClaim() []*framework.Path {
	return []*framework.Path{{
		Pattern:      claimPattern,
		DisplayAttrs: display("claim"),
		Fields:       fields{"code": secret(textField("The claim code that a webhook delivered."))},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.claim, "Redeem a claim code for the API key that it stands for.", "redeem", answers("The API key.", fields{
				fieldAPIKey:  always(secret(textField("The API key."))),
				fieldKeyID:   always(textField("Id of the key.")),
				fieldName:    textField("Name of the key."),
				fieldVersion: always(intField("Number of the version.")),
			})),
		},
		HelpSynopsis: "Redeem a claim code for an API key, without a token.",
		HelpDescription: `A webhook with deliver=claim gives a client that has no Vault token a code for its
new key. A code works once and for a limited time; a second redemption answers
like an unknown code and raises an alarm.`,
	}}
}

// errNoClaim is the one answer to every code that does not work.
var errNoClaim = badInput("code is not a claim that can be redeemed: it is unknown, was redeemed before, or its time is over")

func (b *Backend) claim(ctx context.Context, c *call) (*logical.Response, error) {
	// A code has 256 bits: what is limited is the reads of storage, not the
	// guessing, and by address, so that a flood from one does not keep out all.
	stranger := claimPattern
	if c.req.Connection != nil {
		stranger += " from " + c.req.Connection.RemoteAddr
	}
	if err := b.misses.check(stranger); err != nil {
		return nil, err
	}
	b.misses.spend(stranger)
	// The key is looked at first: a code is used up only for a key that can be
	// handed out.
	claim, err := c.watch.claims.Peek(ctx, c.text("code"))
	data := map[string]any{}
	if err == nil {
		if data, err = b.claimed(ctx, c, claim); err == nil {
			claim, err = c.watch.claims.Redeem(ctx, c.text("code"))
		}
	}
	switch {
	case errors.Is(err, webhook.ErrClaimReused):
		// Once per code: whoever holds a spent one must not fill histories.
		one := claim.EventID + " " + claim.Hook
		if told, _ := c.watch.reused.ContainsOrAdd(one, struct{}{}); !told {
			if c.noteClaim(ctx, claim, keyring.EventClaimReused) != nil {
				c.watch.reused.Remove(one) // the next use tells
			}
		}
		return nil, errNoClaim
	case errors.Is(err, webhook.ErrClaim):
		return nil, errNoClaim
	case err != nil:
		return nil, err
	}
	err = c.noteClaim(ctx, claim, keyring.EventClaimRedeemed)
	if err == nil {
		err = c.watch.claims.Told(ctx, c.text("code"))
	}
	if err != nil {
		c.keeper.Logger.Warn("that a claim code was redeemed is told later", "key_id", claim.KeyID, "error", err)
	}
	return &logical.Response{Data: data}, nil
}

// claimed is the answer to a code, or errNoClaim where its version is not
// accepted, or not stored, any more.
func (b *Backend) claimed(ctx context.Context, c *call, claim webhook.Claim) (map[string]any, error) {
	k, err := c.store.Key(ctx, claim.KeyID)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, errNoClaim
	}
	v, _ := k.Version(claim.Version)
	apiKey, err := c.keeper.Reveal(k, v)
	if err == nil && apiKey == "" && len(claim.Sealed) > 0 {
		apiKey, err = c.store.Unseal(k.ID, claim.Version, claim.Sealed)
	}
	if err != nil {
		return nil, err
	}
	if apiKey == "" || !v.AcceptedAt(k.Now(c.store.Now())) {
		return nil, errNoClaim
	}
	c.warnDisabled(k)
	data := map[string]any{fieldAPIKey: apiKey, fieldKeyID: k.ID, fieldVersion: v.Number}
	if k.Name != "" {
		data[fieldName] = k.Name
	}
	return data, nil
}

// noteClaim tells what was done with a code, unless the key's history says so
// already. The code is spent by then, so a failure must not keep the key from
// its client.
func (e *engine) noteClaim(ctx context.Context, claim webhook.Claim, event keyring.EventType) error {
	detail := "delivered by webhook " + claim.Hook + " as message " + claim.MessageID()
	err := e.keeper.Emit(ctx, claim.KeyID, actorClaim, func(k *keyring.Key, _ *role.Role, cause keyring.Cause) bool {
		if slices.ContainsFunc(k.History, func(e keyring.Event) bool { return e.Type == event && e.Detail == detail }) {
			return false
		}
		k.Record(cause, event, claim.Version, detail)
		return true
	})
	if err != nil {
		return fmt.Errorf("note %s of key %s: %w", event, claim.KeyID, err)
	}
	return nil
}
