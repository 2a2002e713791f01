// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const (
	staticCredsPattern = "static-creds/(?P<name>.+)" //nolint:gosec // a route, not a credential

	// overdueTTL is how soon a client looks again while a change is overdue.
	overdueTTL = 10 * time.Second
)

func (b *Backend) pathStaticCreds() []*framework.Path {
	return []*framework.Path{{
		Pattern:      staticCredsPattern,
		DisplayAttrs: display("static-credentials"),
		Fields:       nameFields(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.forwarded(b.readStaticCreds, "Read the current API key.", "read", answers("The current API key.", fields{
				fieldAPIKey:         always(secret(textField("The current API key."))),
				fieldKeyID:          always(textField("Id of the key.")),
				fieldVersion:        always(intField("Number of the version.")),
				"ttl":               always(intField("Seconds after which to read again; never 0.")),
				fieldRotationPeriod: always(intField("Seconds from one rotation to the next; for keys that are rotated by hand, how often to read.")),
				fieldLastRotation:   always(timeField("When this version became the current one.")),
				fieldNextRotation:   timeField("When the key is next rotated automatically."),
				fieldOverlapPeriod:  always(intField("Seconds for which a superseded version is still accepted.")),
			})),
		},
		HelpSynopsis: "Read the current API key of a client.",
		HelpDescription: `Answers the active version of a key. Vault Agent, Vault Secrets Operator and the
SDK read again after ttl seconds: at the next planned change, and at least once
in the role's refresh_interval.`,
	}}
}

func (b *Backend) readStaticCreds(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.keeper.RoleOf(ctx, k)
	if err != nil {
		return nil, err
	}
	now := k.Now(c.store.Now())
	active, ok := k.Active()
	if !ok || active.ExpiredAt(now) {
		return nil, missing("key %q has no active version%s: rotate it to make one", k.Name, endedBecause(k, now))
	}
	apiKey, err := c.keeper.Reveal(k, active)
	if err != nil {
		return nil, err
	}
	if apiKey == "" {
		return nil, missing("the plaintext of version %d of key %q is not stored: it was imported by its hash, or its role is not retrievable, or a rollback was forced", active.Number, k.Name)
	}
	data := map[string]any{
		fieldAPIKey: apiKey, fieldKeyID: k.ID, fieldVersion: active.Number,
		"ttl":               seconds(refreshIn(r, c.keeper.PlannedChange(k, r, now), now)),
		fieldRotationPeriod: seconds(rotationPeriod(r, now)),
		fieldOverlapPeriod:  seconds(r.OverlapPeriod),
	}
	putTime(data, fieldLastRotation, active.ActivatedTime)
	putTime(data, fieldNextRotation, c.keeper.PlannedRotation(k, r, now))
	c.warnDisabled(k)
	return &logical.Response{Data: data}, nil
}

// warnDisabled warns who is handed a key that will be refused.
func (c *call) warnDisabled(k *keyring.Key) {
	if k.Disabled {
		c.warn("the key is disabled: every version of it is refused until enabled=true")
	}
}

// endedBecause tells how the key lost its active version.
func endedBecause(k *keyring.Key, now time.Time) string {
	var last keyring.Version
	for _, v := range k.Versions {
		if v.ActivatedTime.After(last.ActivatedTime) {
			last = v
		}
	}
	switch state := last.StateAt(now); {
	case last.Number == 0:
		return "" // it has been forgotten
	case !state.Final() && last.ExpiredAt(now):
		return fmt.Sprintf(" (version %d reached its version_ttl)", last.Number)
	default:
		return fmt.Sprintf(" (version %d is %s)", last.Number, state)
	}
}

// refreshIn is when a client should read again: at the next planned change,
// but within the refresh interval; soon while a change is overdue; never at
// once. Rounded up, so that a client does not look just before the change.
func refreshIn(r *role.Role, change, now time.Time) time.Duration {
	ttl := r.Refresh()
	if !change.IsZero() {
		left := change.Sub(now)
		if left <= 0 {
			left = overdueTTL
		}
		ttl = min(ttl, left)
	}
	return max(time.Second, (ttl + time.Second - 1).Truncate(time.Second))
}

// rotationPeriod is never 0, because clients take that for a secret that does
// not rotate: for a role whose keys are rotated by hand it is how often they
// should look.
func rotationPeriod(r *role.Role, now time.Time) time.Duration {
	if s := r.Schedule(); s.Automatic() {
		return max(time.Second, s.Interval(now))
	}
	return max(time.Second, r.Refresh())
}
