// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const (
	rollbackPattern = "rollback/(?P<name>.+)"

	fieldRevokeNewer = "revoke_newer"
)

func (b *Backend) pathRollback() []*framework.Path {
	return []*framework.Path{{
		Pattern:      rollbackPattern,
		DisplayAttrs: display("key"),
		Fields: join(nameFields(), reasonFields(), versionFields("The version to make active again; by default the one before the active."), fields{
			fieldRevokeNewer: boolField("Revokes the present active version, and all newer ones, instead of giving it an overlap."),
			fieldForce:       boolField("Allows a version whose plaintext is gone, and retires the oldest retiring one where too many would be accepted."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.rollbackKey, "Make an earlier version the current one again.", "rollback", answers("The version.", changedFields())),
		},
		HelpSynopsis: "Roll a key back to an earlier version.",
		HelpDescription: `Makes a retiring version, or a retired one within the role's rollback_window,
active again. The version that was active gets a full overlap from now, since
some clients use it already. The next automatic rotation is a full period away.`,
	}}
}

func (b *Backend) rollbackKey(ctx context.Context, c *call) (*logical.Response, error) {
	return b.verb(ctx, c, func(k *keyring.Key, r *role.Role, cause keyring.Cause) (*keyring.Key, error) {
		return k.Rollback(cause, r.Policy(), keyring.RollbackOptions{
			Version: c.number(fieldVersion), Overlap: r.OverlapPeriod,
			RevokeNewer: c.flag(fieldRevokeNewer), Force: c.flag(fieldForce),
		})
	})
}
