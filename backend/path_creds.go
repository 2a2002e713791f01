// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const (
	credsPattern = "creds/(?P<role>.+)" //nolint:gosec // a route, not a credential

	// leasedKeyType names leases of this engine. It never changes: leases
	// outlive the plugin that made them.
	leasedKeyType = "api_key"
)

func leasedAnswerFields() fields {
	return fields{
		fieldAPIKey:     always(secret(textField("The new API key."))),
		fieldKeyID:      always(textField("Id of the key.")),
		fieldVersion:    always(intField("Number of the version.")),
		fieldScopes:     always(listField("Scopes of the key.")),
		fieldExpireTime: always(timeField("When the version ends unless its lease is renewed.")),
	}
}

func (b *Backend) pathCreds() []*framework.Path {
	return []*framework.Path{{
		Pattern:      credsPattern,
		DisplayAttrs: display("leased-credentials"),
		Fields:       roleFields(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.forwarded(b.readCreds, "Make a new key that lives by a lease.", "generate", answers("The new key.", leasedAnswerFields())),
		},
		HelpSynopsis: "Make a new API key that lives by a lease.",
		HelpDescription: `Each read makes a key of its own. It ends with its lease; to keep working past
that, read a new one, or ask rotate-leased/<key_id> for a new version whose
lease overlaps the old one's.`,
	}}
}

// leasedKey tells Vault how to renew and revoke the leases of keys.
func (b *Backend) leasedKey() *framework.Secret {
	return &framework.Secret{
		Type:   leasedKeyType,
		Fields: leasedAnswerFields(),
		Renew:  b.renewLease,
		Revoke: b.revokeLease,
	}
}

func (b *Backend) readCreds(ctx context.Context, c *call) (*logical.Response, error) {
	name := c.text(fieldRole)
	r, err := c.store.Role(ctx, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, noRole(name)
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	now := c.store.Now()
	ttl, err := b.leaseTTL(c, 0)(r, now, now)
	if err != nil {
		return nil, err
	}
	owner := &keyring.Lease{EntityID: c.req.EntityID, MaxExpireTime: now.Add(b.maxLeaseTTL(r))}
	if owner.EntityID == "" {
		owner.Accessor = c.req.ClientTokenAccessor
	}
	made, err := c.keeper.Create(ctx, lifecycle.Spec{Role: name, Lease: owner, ExpireTime: now.Add(ttl)}, cause)
	if err != nil {
		return nil, b.createError(err, name)
	}
	return b.leased(made, ttl), nil
}

// leased is the answer that carries a version under a lease of its own.
func (b *Backend) leased(m *lifecycle.Made, ttl time.Duration) *logical.Response {
	v, _ := m.Key.Version(m.Version)
	resp := b.Secret(leasedKeyType).Response(map[string]any{
		fieldAPIKey: m.Token, fieldKeyID: m.Key.ID, fieldVersion: m.Version,
		fieldScopes:     append([]string{}, m.Key.GrantedScopes(m.Role.Limits())...),
		fieldExpireTime: stamp(v.ExpireTime),
	}, map[string]any{fieldKeyID: m.Key.ID, fieldVersion: m.Version})
	resp.Secret.TTL = ttl
	resp.Secret.MaxTTL = max(ttl, m.Key.Lease.MaxExpireTime.Sub(m.Key.Recorded).Truncate(time.Second))
	return resp
}

func (b *Backend) maxLeaseTTL(r *role.Role) time.Duration {
	limit := b.System().MaxLeaseTTL()
	if r.MaxTTL > 0 && r.MaxTTL < limit {
		limit = r.MaxTTL
	}
	return limit
}

// leaseTTL works out the life of a lease as Vault's core does, so that the
// core has nothing left to cut. increment is what a renewal asks for.
func (b *Backend) leaseTTL(c *call, increment time.Duration) lifecycle.TTLFunc {
	return func(r *role.Role, created, now time.Time) (time.Duration, error) {
		// CalculateTTL reads the machine's clock, in seconds: give it the key's age
		// in those, so that what is left does not depend on the instant.
		start := clock.System().Now().Truncate(time.Second).Add(-now.Sub(created).Truncate(time.Second))
		ttl, warnings, err := framework.CalculateTTL(b.System(), increment, r.TTL, 0, r.MaxTTL, 0, start)
		if err != nil {
			return 0, badInput("the key has reached its max_ttl: read a new one at creds/%s", r.Name)
		}
		c.warnings = append(c.warnings, warnings...)
		return ttl, nil
	}
}

// leaseOf reads which version a lease belongs to.
func leaseOf(req *logical.Request) (id string, version int, err error) {
	if req.Secret == nil {
		return "", 0, errors.New("the request has no lease")
	}
	id, ok := req.Secret.InternalData[fieldKeyID].(string)
	if !ok {
		return "", 0, errors.New("the lease does not say which key it belongs to")
	}
	switch n := req.Secret.InternalData[fieldVersion].(type) {
	case json.Number:
		v, err := n.Int64()
		return id, int(v), err
	case float64:
		return id, int(n), nil
	case int:
		return id, n, nil
	}
	return "", 0, errors.New("the lease does not say which version it belongs to")
}

func (b *Backend) renewLease(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return b.handle(func(ctx context.Context, c *call) (*logical.Response, error) {
		id, version, err := leaseOf(req)
		if err != nil {
			return nil, err
		}
		ttl, err := c.keeper.Renew(ctx, id, version, b.leaseTTL(c, req.Secret.Increment))
		if err != nil {
			return nil, err
		}
		resp := &logical.Response{Secret: req.Secret}
		resp.Secret.TTL = ttl
		// Vault takes the increment that was asked for instead of TTL, and cuts
		// it only to MaxTTL, counted from the lease's issue.
		resp.Secret.MaxTTL = ttl
		if issued := req.Secret.IssueTime; !issued.IsZero() {
			resp.Secret.MaxTTL += clock.System().Now().Sub(issued).Truncate(time.Second)
		}
		return resp, nil
	})(ctx, req, data)
}

func (b *Backend) revokeLease(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	return b.handle(func(ctx context.Context, c *call) (*logical.Response, error) {
		id, version, err := leaseOf(req)
		if err != nil {
			return nil, err
		}
		return nil, c.keeper.EndLease(ctx, id, version)
	})(ctx, req, data)
}
