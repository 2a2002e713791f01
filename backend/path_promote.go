// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const promotePattern = "promote/(?P<name>.+)"

// changedFields are in the answer of a verb that moves a version.
func changedFields() fields {
	return fields{
		fieldKeyID:         always(textField("Id of the key.")),
		fieldVersion:       always(intField("Number of the version.")),
		fieldState:         always(textField("State of the version.")),
		fieldOverlapEnds:   timeField("Until when clients may use a superseded version."),
		fieldAcceptedUntil: timeField("Until when it is accepted."),
		"superseded":       intField("Number of the version whose place it took."),

		"superseded_accepted_until": timeField("Until when that one is accepted."),
	}
}

func (b *Backend) pathPromote() []*framework.Path {
	return []*framework.Path{{
		Pattern:      promotePattern,
		DisplayAttrs: display("key"),
		Fields:       join(nameFields(), versionFields("The pending version; it may be left out."), reasonFields()),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.promoteKey, "Make the pending version the current one now.", "promote", answers("The version.", changedFields())),
		},
		HelpSynopsis: "Promote the pending version of a key.",
		HelpDescription: `Ends the activation delay now. The overlap of the former version counts from this
moment. Warns of verifiers at the edge that have not followed up to the pending
version yet, and of a key that nobody could claim.`,
	}}
}

func (b *Backend) promoteKey(ctx context.Context, c *call) (*logical.Response, error) {
	return b.verb(ctx, c, func(k *keyring.Key, r *role.Role, cause keyring.Cause) (*keyring.Key, error) {
		kept := lifecycle.KeepPending(k, r)
		next, err := kept.Promote(cause, r.Policy(), c.number(fieldVersion))
		if err == nil {
			c.warnOfPromotion(k)
			if why := c.keeper.Unclaimable(ctx, kept); why != "" {
				c.warn(fmt.Sprintf("nobody could claim the key that is active now: %s. Whoever was not answered it cannot get it: rotate again, or rollback with force=true", why))
			}
		}
		return next, err
	})
}

// verb applies a transition to the key that the path names, and answers the
// version that is active then, or the one that the transition concerned.
func (b *Backend) verb(ctx context.Context, c *call, do func(*keyring.Key, *role.Role, keyring.Cause) (*keyring.Key, error)) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	if c.number(fieldVersion) < 0 {
		return nil, badInput("version must be the number of a version, from 1")
	}
	before, after, _, err := c.keeper.Update(ctx, k.ID, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		cause.Now = now
		return do(k, r, cause)
	})
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: changedAnswer(before, after, c.number(fieldVersion), c.store.Now())}, nil
}

// changedAnswer describes the version that a transition was about: the one
// that was asked for, if it was; else the one that became active, or else the
// one whose deadline or state changed.
func changedAnswer(before, after *keyring.Key, asked int, now time.Time) map[string]any {
	now = after.Now(now)
	subject, found := after.Version(asked)
	active, ok := after.Active()
	former, had := before.Active()
	switch {
	case found:
	case ok && (!had || former.Number != active.Number):
		subject = active
	default:
		subject, ok = changedVersion(before, after, now)
		if !ok {
			subject = active
		}
	}
	data := map[string]any{fieldKeyID: after.ID, fieldVersion: subject.Number, fieldState: subject.StateAt(now).String()}
	putTime(data, fieldOverlapEnds, subject.OverlapEnds)
	putTime(data, fieldAcceptedUntil, subject.AcceptedUntil)
	if had && subject.Number == active.Number && former.Number != active.Number {
		data["superseded"] = former.Number
		if old, kept := after.Version(former.Number); kept {
			putTime(data, "superseded_accepted_until", old.AcceptedUntil)
		}
	}
	return data
}

// changedVersion finds the version that a transition changed. That the overlap
// of another one was over, and is recorded in the same commit, is no change.
func changedVersion(before, after *keyring.Key, now time.Time) (keyring.Version, bool) {
	for _, v := range after.Versions {
		old, was := before.Version(v.Number)
		if !was || old.StateAt(now) != v.StateAt(now) || !old.AcceptedUntil.Equal(v.AcceptedUntil) || !old.OverlapEnds.Equal(v.OverlapEnds) {
			return v, true
		}
	}
	return keyring.Version{}, false
}
