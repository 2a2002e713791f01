// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

const (
	revokePattern = "revoke/(?P<name>.+)"

	fieldAll         = "all"
	fieldCompromised = "compromised"
	fieldRotate      = "rotate"
)

func (b *Backend) pathRevoke() []*framework.Path {
	return []*framework.Path{{
		Pattern:      revokePattern,
		DisplayAttrs: display("key"),
		Fields: join(nameFields(), reasonFields(), versionFields("The version to end."), fields{
			fieldAll:         boolField("Ends every version."),
			fieldCompromised: boolField("Says that it leaked: its digest is remembered for ever, and any use of it is alarming."),
			fieldRotate:      boolField("Makes a new active version in the same step where the active one is ended, or with all=true where there is none."),
			fieldForce:       boolField("Allows to leave the key without an active version."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.revokeKey, "End a version at once and for good.", "revoke", answers("What has ended.", fields{
				fieldKeyID:   always(textField("Id of the key.")),
				"revoked":    always(&framework.FieldSchema{Type: framework.TypeCommaIntSlice, Description: "Numbers of the versions that have ended so."}),
				fieldVersion: intField("Number of the new active version, where one was made."),
				fieldAPIKey:  secret(textField("Its API key.")),
				fieldState:   textField("Its state."),
			})),
		},
		HelpSynopsis: "Revoke versions of a key.",
		HelpDescription: `Ends a version, or all, in any state and at once: when this returns, Vault refuses
it. Ending the active version needs rotate=true, which makes its successor in
the same step, or force=true. compromised=true marks a leak.`,
	}}
}

func (b *Backend) revokeKey(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	version := c.number(fieldVersion)
	if c.flag(fieldAll) == (version != 0) || version < 0 {
		return nil, badInput("version or all=true is required, and not both: version is a number from 1 to %d", k.Latest())
	}
	made, changed, err := c.keeper.Revoke(ctx, k.ID, keyring.RevokeOptions{
		Version: version, All: c.flag(fieldAll), Compromised: c.flag(fieldCompromised), Force: c.flag(fieldForce),
	}, c.flag(fieldRotate), cause)
	if err != nil {
		return nil, err
	}
	revoked := []int{}
	for _, v := range made.Key.Versions {
		if v.State.Final() && (version == 0 || v.Number == version) {
			revoked = append(revoked, v.Number)
		}
	}
	data := map[string]any{fieldKeyID: made.Key.ID, "revoked": revoked}
	if !changed {
		c.warn("nothing changed: it had ended so before")
	}
	if made.Version > 0 {
		v, _ := made.Key.Version(made.Version)
		data[fieldVersion], data[fieldState] = made.Version, v.State.String()
		if made.Token != "" {
			data[fieldAPIKey] = made.Token
		}
	} else if _, ok := made.Key.Active(); !ok {
		c.warn("the key has no active version: static-creds answers 404 and automation leaves it alone until it is rotated")
	}
	return &logical.Response{Data: data}, nil
}
