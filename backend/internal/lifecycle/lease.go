// SPDX-License-Identifier: MPL-2.0

package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// TTLFunc works out how long the lease of a version may live from now, given
// when the key was made.
type TTLFunc func(r *role.Role, created, now time.Time) (time.Duration, error)

// RotateLeased makes the next version of a leased key under a lease of its
// own. The former one stays accepted for the overlap while its lease lives.
func (kp *Keeper) RotateLeased(ctx context.Context, id string, allowed func(*keyring.Lease) error, overlap *time.Duration, ttl TTLFunc, cause keyring.Cause) (*Made, time.Duration, error) {
	var made string
	var life time.Duration
	_, after, r, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		if !k.Leased() {
			return nil, ErrNoKey
		}
		if err := allowed(k.Lease); err != nil {
			return nil, err
		}
		now = k.Now(now)
		var err error
		if life, err = ttl(r, k.CreatedTime, now); err != nil {
			return nil, err
		}
		expire := earliest(now.Add(life), k.Lease.MaxExpireTime)
		if life = expire.Sub(now).Truncate(time.Second); life <= 0 {
			return nil, &keyring.Refusal{Rule: keyring.ErrFinal, Text: "the key has reached its max_ttl: read a new one at creds/" + k.Role}
		}
		o := RotateWish{Overlap: overlap, ActivationDelay: new(time.Duration)}.options(r)
		cause.Now = now
		next, token, err := kp.rotate(ctx, k, r, r.Policy(), o, cause)
		if err != nil {
			return nil, err
		}
		made = token
		next.Versions[len(next.Versions)-1].ExpireTime = expire
		return next, nil
	})
	if err != nil {
		return nil, 0, err
	}
	return &Made{Key: after, Role: r, Token: made, Version: after.Latest()}, life, nil
}

// Renew writes the new end of the lease of a version, which verification
// enforces, and returns how long it is from now.
func (kp *Keeper) Renew(ctx context.Context, id string, version int, ttl TTLFunc) (time.Duration, error) {
	var life time.Duration
	_, _, _, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		now = k.Now(now) // below it, the new end could be over already
		wanted, err := ttl(r, k.CreatedTime, now)
		if err != nil {
			return nil, err
		}
		next, err := k.Renew(keyring.Cause{Now: now, Actor: ActorLease}, version, now.Add(wanted))
		if err != nil {
			return nil, err
		}
		v, _ := next.Version(version)
		life = v.ExpireTime.Sub(now).Truncate(time.Second)
		return next, nil
	})
	return life, err
}

// EndLease ends the version whose lease is over. What is gone is fine.
func (kp *Keeper) EndLease(ctx context.Context, id string, version int) error {
	_, _, _, err := kp.Update(ctx, id, func(k *keyring.Key, _ *role.Role, now time.Time) (*keyring.Key, error) {
		return k.EndLease(keyring.Cause{Now: now, Actor: ActorLease}, version), nil
	})
	if errors.Is(err, ErrNoKey) {
		return nil
	}
	return err
}
