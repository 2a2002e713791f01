// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const (
	confirmPattern = "confirm/(?P<name>.+)"

	fieldInstance = "instance"
	// maxInstances bounds the instances of one key that are remembered; the
	// one that confirmed longest ago makes room.
	maxInstances = 256
	// confirmEvery is how often the same word of an instance is noted anew.
	confirmEvery = time.Hour
)

func (b *Backend) pathConfirm() []*framework.Path {
	return []*framework.Path{{
		Pattern:      confirmPattern,
		DisplayAttrs: display("key"),
		Fields: join(nameFields(), versionFields("The version that the instance uses now."), fields{
			fieldInstance: textField("The client's instance: a region, a cluster or a host. It is called default where it is absent."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.confirm, "Say that a client instance now uses a version.", "confirm", empty("Noted.")),
		},
		HelpSynopsis: "Say that a client instance now uses a version.",
		HelpDescription: `A client that has several instances lets each confirm the version that it uses, so
that rollovers/<name> can tell which are left.`,
	}}
}

func (b *Backend) confirm(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	instance, version := c.text(fieldInstance), c.number(fieldVersion)
	if err := checkLabel(fieldInstance, instance); err != nil {
		return nil, err
	}
	if !c.has(fieldVersion) {
		return nil, badInput("version is required: the number of the version that the instance uses now")
	}
	if instance == "" {
		instance = "default"
	}
	_, _, _, err = c.keeper.Update(ctx, k.ID, func(k *keyring.Key, _ *role.Role, now time.Time) (*keyring.Key, error) {
		if _, ok := k.Version(version); !ok {
			return nil, badInput("version: key %q has no version %d", k.Name, version)
		}
		if slices.ContainsFunc(k.Confirmations, func(c keyring.Confirmation) bool {
			return c.Instance == instance && c.Version == version && k.Now(now).Before(c.Time.Add(confirmEvery))
		}) {
			return k, nil
		}
		next := k.Clone()
		next.Confirmations = slices.DeleteFunc(next.Confirmations, func(c keyring.Confirmation) bool { return c.Instance == instance })
		if over := len(next.Confirmations) + 1 - maxInstances; over > 0 {
			next.Confirmations = slices.Delete(next.Confirmations, 0, over)
		}
		next.Confirmations = append(next.Confirmations, keyring.Confirmation{Instance: instance, Version: version, Time: k.Now(now)})
		return next, nil
	})
	return nil, err
}
