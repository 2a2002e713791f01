// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

const (
	rotatePattern = "rotate/(?P<name>.+)"

	fieldRequestID = "request_id"
)

var requestIDShape = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,128}$`)

// wishFields are what can be asked of a rotation.
func wishFields() fields {
	return fields{
		fieldOverlapPeriod:   durationField("How long the former version is still accepted; by default the role's. 0 cuts over now, without the role's activation_delay."),
		fieldOverlapScopes:   listField("Scopes to which the former version is cut at once."),
		fieldActivationDelay: durationField("How long the new version is pending first; by default the role's."),
		fieldForce:           boolField("Retires the oldest retiring version early where too many are accepted."),
	}
}

func (b *Backend) pathRotate() []*framework.Path {
	return []*framework.Path{{
		Pattern:      rotatePattern,
		DisplayAttrs: display("key"),
		Fields: join(nameFields(), wishFields(), reasonFields(), fields{
			fieldRequestID: textField("Names this request for 24 hours, so that repeating it rotates only once."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.rotateKey, "Make a new version of a key; the former one stays accepted for the overlap.", "rotate", answers("The new version.", newKeyFields())),
		},
		HelpSynopsis: "Rotate a key.",
		HelpDescription: `Makes the next version and answers it. The former version stays accepted for
overlap_period, in which its users change over. With an activation_delay the
new version is pending first: accepted, but not yet given out by static-creds.`,
	}}
}

func (b *Backend) rotateKey(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.keeper.RoleOf(ctx, k)
	if err != nil {
		return nil, err
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	wish, err := c.wish(r)
	if err != nil {
		return nil, err
	}
	if wish.RequestID = c.text(fieldRequestID); wish.RequestID != "" && !requestIDShape.MatchString(wish.RequestID) {
		return nil, badInput("request_id must be 1 to 128 of A-Z a-z 0-9 _ . : -")
	}
	made, err := c.keeper.Rotate(ctx, k.ID, wish, cause)
	if err != nil {
		return nil, err
	}
	c.warnShortOverlap(made)
	if v, ok := made.Key.Version(made.Version); ok && v.State == keyring.StatePending {
		delay := made.Role.ActivationDelay
		if wish.ActivationDelay != nil {
			delay = *wish.ActivationDelay
		}
		if v.PromoteAt.Before(v.CreatedTime.Add(delay)) {
			c.warn(fmt.Sprintf("version %d becomes active at %s, before its activation_delay is over, because the active version reaches its version_ttl", made.Version, stamp(v.PromoteAt)))
		}
	}
	if made.Token == "" {
		c.warn("the API key of this version is not stored and cannot be shown again")
		if _, kept := made.Key.Version(made.Version); !kept {
			c.warn("the version that this request made has ended and is forgotten")
		}
	}
	return &logical.Response{Data: madeAnswer(made)}, nil
}

// wish reads what is asked of a rotation of keys of r.
func (c *call) wish(r *role.Role) (lifecycle.RotateWish, error) {
	wish := lifecycle.RotateWish{
		Overlap:         c.optionalDuration(fieldOverlapPeriod),
		ActivationDelay: c.optionalDuration(fieldActivationDelay),
		Force:           c.flag(fieldForce),
	}
	if c.has(fieldOverlapScopes) {
		wish.OverlapScopes = c.list(fieldOverlapScopes)
		if err := role.CheckGrants(fieldOverlapScopes, wish.OverlapScopes); err != nil {
			return wish, badInput("%s", err)
		}
		if !record.CoversAll(r.Scopes, wish.OverlapScopes) {
			return wish, badInput("overlap_scopes must be covered by the scopes of role %q", r.Name)
		}
	}
	return wish, nil
}

// warnShortOverlap tells where clients were told to look again only after the
// overlap that has now begun will be over.
func (c *call) warnShortOverlap(m *lifecycle.Made) {
	former := supersededBy(m.Key, m.Version)
	if former == nil {
		return
	}
	left := former.AcceptedUntil.Sub(former.SupersededTime)
	if told := m.Role.RefreshTold(former.SupersededTime); left < told {
		c.warn(fmt.Sprintf("version %d is accepted for another %s only, and clients were told to look for a new one every %s: those that have not will be refused",
			former.Number, left.Round(time.Second), told))
	}
}

func supersededBy(k *keyring.Key, version int) *keyring.Version {
	for i := range k.Versions {
		if k.Versions[i].SupersededBy == version && !k.Versions[i].State.Final() {
			return &k.Versions[i]
		}
	}
	return nil
}
