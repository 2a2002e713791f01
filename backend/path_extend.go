// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const extendPattern = "extend/(?P<name>.+)"

func (b *Backend) pathExtend() []*framework.Path {
	return []*framework.Path{{
		Pattern:      extendPattern,
		DisplayAttrs: display("key"),
		Fields: join(nameFields(), reasonFields(), versionFields("The version to extend; it may be left out where there is one candidate."), fields{
			fieldOverlapPeriod: durationField("How long it is to be accepted from now; by default the role's overlap_period."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.extendKey, "Move the end of an overlap later.", "extend", answers("The version.", changedFields())),
		},
		HelpSynopsis: "Extend the overlap of a superseded version.",
		HelpDescription: `Moves the end of a retiring version later, never earlier, at most to the role's
max_overlap_period from its promotion. A version that has just been retired is
accepted again: the rescue of clients left behind.`,
	}}
}

func (b *Backend) extendKey(ctx context.Context, c *call) (*logical.Response, error) {
	return b.verb(ctx, c, func(k *keyring.Key, r *role.Role, cause keyring.Cause) (*keyring.Key, error) {
		by := r.OverlapPeriod
		if d := c.optionalDuration(fieldOverlapPeriod); d != nil {
			by = *d
		}
		return k.Extend(cause, r.Policy(), c.number(fieldVersion), by)
	})
}
