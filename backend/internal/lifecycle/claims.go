// SPDX-License-Identifier: MPL-2.0

package lifecycle

import (
	"context"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// A role that is not retrievable keeps no plaintext. Where its keys rotate by
// themselves nobody gets the new one in an answer either: it has to be claimed.
// So a rotation, and the promotion of what one has made, wait until somebody
// would be told of it; no client is left with a key that nobody can give it.

const (
	// claimRetry is when what waits for a claim is tried again.
	claimRetry = time.Hour
	// claimUnknown is that where storage does not tell who could claim.
	claimUnknown = time.Minute

	nobodyCanClaim = "retrievable=false, and nobody could claim the new key: "
)

// lost tells whether nobody can get the plaintext of the version that a
// rotation has just made, but for whoever is answered it.
func lost(next *keyring.Key, r *role.Role) bool {
	v, _ := next.Version(next.Latest())
	return !r.Retrievable && len(v.Handover) == 0
}

// claimable tells whether a new version of k can be claimed, or why not.
func (kp *Keeper) claimable(ctx context.Context, k *keyring.Key) (can bool, why string, err error) {
	if k.Leased() {
		return false, "who has a lease is answered the key", nil
	}
	if kp.Outbox == nil || !kp.Outbox.Wanted() {
		return false, "there is no webhook with deliver=claim", nil
	}
	return kp.Outbox.Claimable(ctx, k)
}

// waitForClaims returns k as it is when its rotation, which is due, has to
// wait, and nil where it has not.
func (kp *Keeper) waitForClaims(ctx context.Context, k *keyring.Key, r *role.Role, cause keyring.Cause) (*keyring.Key, error) {
	if r.Retrievable {
		return nil, nil
	}
	_, why, err := kp.claimable(ctx, k)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		kp.Logger.Warn("a rotation waits: it is not known who could claim the new key", "key_id", k.ID, "error", err)
		next := k.Clone()
		next.RotateAt = cause.Now.Add(claimUnknown)
		return next, nil
	case why != "":
		return k.Block(cause, nobodyCanClaim+why, cause.Now.Add(claimRetry)), nil
	}
	return nil, nil
}

// KeepPending returns k with its pending version kept, where the role has come
// to keep plaintexts since that version was made to be claimed: nobody need
// claim it any more. Otherwise it returns k itself.
func KeepPending(k *keyring.Key, r *role.Role) *keyring.Key {
	pending, ok := k.Pending()
	if !ok || !r.Retrievable || len(pending.Handover) == 0 || len(pending.Sealed) > 0 {
		return k
	}
	next := k.Clone()
	for i := range next.Versions {
		if v := &next.Versions[i]; v.Number == pending.Number {
			v.Sealed, v.Handover = v.Handover, nil // encrypted alike
		}
	}
	return next
}

// Unclaimable tells why nobody could claim the pending version of k, or ""
// where somebody could, or where it is not a claim that hands it out.
func (kp *Keeper) Unclaimable(ctx context.Context, k *keyring.Key) string {
	pending, ok := k.Pending()
	if !ok || len(pending.Handover) == 0 {
		return ""
	}
	_, why, err := kp.claimable(ctx, k)
	if err != nil {
		return "webhooks cannot be read"
	}
	return why
}

// replaceUnclaimed has a version replaced that has just been promoted, because the
// active one had come to its end, and that nobody can claim: its handover goes
// with its event, and for nobody. Its rotation is due at once, whatever the
// schedule, and waits for somebody as waitForClaims has it.
func (kp *Keeper) replaceUnclaimed(ctx context.Context, before, after *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
	pending, waited := before.Pending()
	active, ok := after.Active()
	if !waited || !ok || active.Number != pending.Number || len(pending.Handover) == 0 || len(active.Sealed) > 0 || !rotatesItself(after, r) {
		return after, nil
	}
	can, _, err := kp.claimable(ctx, after)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil && can:
		return after, nil
	}
	next := after.Clone()
	next.RotateAt, next.Unclaimed = now, true
	return next, nil
}

// holdPromotion puts off the promotion of a version that only a claim can hand
// out, where nobody could claim it. A key without an active version does not
// wait: the pending one is accepted, and nothing is taken from anybody.
func (kp *Keeper) holdPromotion(ctx context.Context, k *keyring.Key, cause keyring.Cause) (*keyring.Key, error) {
	pending, ok := k.Pending()
	if _, active := k.Active(); !ok || !active || len(pending.Handover) == 0 || pending.PromoteAt.After(cause.Now) || k.Disabled {
		return k, nil
	}
	_, why, err := kp.claimable(ctx, k)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		kp.Logger.Warn("a promotion waits: it is not known who could claim the new key", "key_id", k.ID, "error", err)
		return k.PutOff(cause, "", cause.Now.Add(claimUnknown)), nil
	case why == "":
		return k, nil
	}
	return k.PutOff(cause, nobodyCanClaim+why, cause.Now.Add(claimRetry)), nil
}
