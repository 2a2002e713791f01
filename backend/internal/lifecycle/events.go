// SPDX-License-Identifier: MPL-2.0

package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// Outbox takes the events of keys to those who want to be told.
//
// Events owed ride in the key's own entry, committed with the transition that
// made them, until Copy has stored them where they are delivered from: a crash
// at any point delivers each at least once, under the same id.
type Outbox interface {
	// Wanted tells whether somebody may want events. It touches no storage.
	Wanted() bool
	// Copy stores events of a key for delivery. It may be repeated. Its failure
	// delays telling and nothing else.
	Copy(ctx context.Context, k *keyring.Key, events []keyring.Event) error
	// Claimable tells whether a new version of a key can be claimed by whoever
	// is told of it, and else, or where that will hardly be soon, why not.
	Claimable(ctx context.Context, k *keyring.Key) (can bool, why string, err error)
	// Committed is told of the events of a transition that has been committed:
	// a chance to tell at once those who are told without a promise. owed says
	// that CopyOwed should be called soon. It must not block or lock a key.
	Committed(k *keyring.Key, events []keyring.Event, owed bool)
}

// put writes next in place of prev (nil for a new key), and tells the outbox.
func (kp *Keeper) put(ctx context.Context, prev, next *keyring.Key, due time.Time) error {
	switch {
	case kp.Outbox == nil || !kp.Outbox.Wanted():
		next.ForgetOwed()
	case len(next.Owed) > 0:
		// Filed for the next tick, which copies what a crash left owing.
		if at := kp.tellAgain(next, kp.Store.Now()); due.IsZero() || due.After(at) {
			due = at
		}
	}
	var err error
	if prev == nil {
		err = kp.Store.CreateKey(ctx, next, due)
	} else {
		err = kp.Store.CommitKey(ctx, prev, next, due)
	}
	if err == nil && kp.Observe != nil {
		kp.Observe(prev, next, eventsSince(prev, next))
	}
	if err != nil || kp.Outbox == nil {
		return err
	}
	if fresh := eventsSince(prev, next); len(fresh) > 0 || len(next.Owed) > 0 {
		kp.Outbox.Committed(next, fresh, len(next.Owed) > 0)
	}
	return nil
}

const (
	// tellSoon is how long what is owed is tried at each tick, and tellPause
	// the longest pause after that.
	tellSoon  = 2 * time.Minute
	tellPause = time.Hour
)

// tellAgain is when a tick is to copy what k owes: the next one, and after pauses
// that grow with the age of the oldest where that does not succeed.
func (kp *Keeper) tellAgain(k *keyring.Key, now time.Time) time.Time {
	age := now.Sub(k.Owed[0].Time)
	if age < tellSoon || !kp.copyFails.Load() {
		return now
	}
	return now.Add(min(age, tellPause))
}

// eventsSince returns the events that next has and prev had not.
func eventsSince(prev, next *keyring.Key) []keyring.Event {
	var since uint64
	if prev != nil {
		since = prev.EventSeq
	}
	i := len(next.History)
	for i > 0 && next.History[i-1].Seq > since {
		i--
	}
	return slices.Clone(next.History[i:])
}

// copyOwed stores the owed events of k for delivery and returns a copy that
// owes nothing, or k itself where it owes nothing.
func (kp *Keeper) copyOwed(ctx context.Context, k *keyring.Key) (*keyring.Key, error) {
	if len(k.Owed) == 0 {
		return k, nil
	}
	if kp.Outbox != nil {
		err := kp.Outbox.Copy(ctx, k, k.Owed)
		if err == nil || ctx.Err() == nil { // else it was broken off, and says nothing
			kp.copyFails.Store(err != nil)
		}
		if err != nil {
			return nil, err
		}
	}
	return k.Told(), nil
}

// CopyOwed stores the owed events of a key for delivery, and commits that it
// owes them no more.
func (kp *Keeper) CopyOwed(ctx context.Context, id string) error {
	defer kp.Store.LockKey(id)()
	k, err := kp.Store.Key(ctx, id)
	if err != nil || k == nil || len(k.Owed) == 0 {
		return err
	}
	if !k.Deleted.IsZero() {
		return kp.finishDelete(ctx, k)
	}
	r, err := kp.RoleOf(ctx, k)
	if err != nil {
		return err
	}
	next, err := kp.copyOwed(ctx, k)
	if err != nil {
		return err
	}
	return kp.Store.CommitKey(ctx, k, next, kp.due(ctx, next, r, k.Now(kp.Store.Now())))
}

// pay has who changes a key that owes much wait until it is copied: where changes
// come faster than they can be told, they are slowed down, and none is left out.
// It comes after the change, so that it holds no revocation up. What cannot be
// copied stays owed.
func (kp *Keeper) pay(ctx context.Context, k *keyring.Key, r *role.Role, now time.Time) *keyring.Key {
	if kp.Outbox == nil || !kp.Outbox.Wanted() || !k.OwesMuch() {
		return k
	}
	told, err := kp.copyOwed(ctx, k)
	if err == nil {
		err = kp.Store.CommitKey(ctx, k, told, kp.due(ctx, told, r, now))
	}
	if err != nil {
		kp.Logger.Debug("the events of a key cannot be told yet", "key_id", k.ID, "owed", len(k.Owed), "error", err)
		return k
	}
	return told
}

// finishDelete copies what a tombstone still owes before it is removed.
func (kp *Keeper) finishDelete(ctx context.Context, tomb *keyring.Key) error {
	told, err := kp.copyOwed(ctx, tomb)
	if err != nil {
		return err
	}
	return kp.Store.FinishDelete(ctx, told)
}

// Emit records an event that no transition makes. note returns false where
// there is nothing to tell any more; it may change k, which is its own copy.
func (kp *Keeper) Emit(ctx context.Context, id, actor string, note func(k *keyring.Key, r *role.Role, c keyring.Cause) bool) error {
	_, _, _, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		next := k.Clone()
		if !note(next, r, keyring.Cause{Now: k.Now(now), Actor: actor}) {
			return k, nil
		}
		return next, nil
	})
	if errors.Is(err, ErrNoKey) {
		return kp.emitDeleted(ctx, id, actor, note)
	}
	return err
}

// emitDeleted is Emit for a key of which only its compromised versions are
// left: that they are still tried is worth an alarm.
func (kp *Keeper) emitDeleted(ctx context.Context, id, actor string, note func(k *keyring.Key, r *role.Role, c keyring.Cause) bool) error {
	defer kp.Store.LockKey(id)()
	k, err := kp.Store.Key(ctx, id)
	if err != nil || k == nil || k.Deleted.IsZero() || len(k.Versions) == 0 || k.Cleanup != nil {
		return err
	}
	next := k.Clone()
	if !note(next, nil, keyring.Cause{Now: k.Now(kp.Store.Now()), Actor: actor}) {
		return nil
	}
	return kp.put(ctx, k, next, time.Time{})
}
