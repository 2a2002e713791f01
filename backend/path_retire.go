// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const retirePattern = "retire/(?P<name>.+)"

func (b *Backend) pathRetire() []*framework.Path {
	return []*framework.Path{{
		Pattern:      retirePattern,
		DisplayAttrs: display("key"),
		Fields: join(nameFields(), reasonFields(), versionFields("The version to retire; it may be left out where only one is retiring."), fields{
			fieldForce: boolField("Retires it even though it is, or may be, still in use."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.retireKey, "End the overlap of a version now, if it is drained.", "retire", answers("The version.", changedFields())),
		},
		HelpSynopsis: "Retire a superseded version before the end of its overlap.",
		HelpDescription: `Ends an overlap now. Unless forced, the version must be drained: unused for the
role's drain_quiet_period, and each source that used it seen on a newer one.
Use that is not known counts as use.`,
	}}
}

func (b *Backend) retireKey(ctx context.Context, c *call) (*logical.Response, error) {
	return b.verb(ctx, c, func(k *keyring.Key, r *role.Role, cause keyring.Cause) (*keyring.Key, error) {
		return k.Retire(cause, c.number(fieldVersion), c.keeper.Drained(ctx, k, r, cause.Now), c.flag(fieldForce))
	})
}
