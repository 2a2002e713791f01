// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

const rotateLeasedPattern = "rotate-leased/(?P<key_id>.+)"

func (b *Backend) pathRotateLeased() []*framework.Path {
	return []*framework.Path{{
		Pattern:      rotateLeasedPattern,
		DisplayAttrs: display("leased-credentials"),
		Fields: join(fields{
			fieldKeyID:         textField("Id of the leased key."),
			fieldOverlapPeriod: durationField("How long the former version is still accepted while its lease lives; by default the role's."),
		}, reasonFields()),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.rotateLeased, "Make a new version of a leased key, under a new lease.", "rotate", answers("The new version.", leasedAnswerFields())),
		},
		HelpSynopsis: "Rotate a leased key, with overlapping leases.",
		HelpDescription: `For whoever made the key: the same entity, or the same token where it has none. The
new version has a lease of its own, which belongs to the caller. The former
lease cannot be renewed past the end of its overlap, and its end ends its
version only. max_ttl counts from the key's creation.`,
	}}
}

func (b *Backend) rotateLeased(ctx context.Context, c *call) (*logical.Response, error) {
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	allowed := func(l *keyring.Lease) error {
		if l.EntityID != "" && l.EntityID == c.req.EntityID || l.EntityID == "" && l.Accessor != "" && l.Accessor == c.req.ClientTokenAccessor {
			return nil
		}
		return errNotYours
	}
	made, ttl, err := c.keeper.RotateLeased(ctx, c.text(fieldKeyID), allowed, c.optionalDuration(fieldOverlapPeriod), b.leaseTTL(c, 0), cause)
	if err != nil {
		return nil, err
	}
	return b.leased(made, ttl), nil
}
