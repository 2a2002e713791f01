// SPDX-License-Identifier: MPL-2.0

package lifecycle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// ErrRequestDiffers says that a request_id was used before for other wishes.
var ErrRequestDiffers = errors.New("request_id was used before with other parameters")

// RotateWish is what a caller asks of one rotation, as a job stores it; nil
// follows the role.
type RotateWish struct {
	Overlap         *time.Duration `json:"overlap,omitempty"`
	OverlapScopes   []string       `json:"overlap_scopes,omitzero"` // empty is not absent
	ActivationDelay *time.Duration `json:"activation_delay,omitempty"`
	RequestID       string         `json:"request_id,omitempty"`
	Force           bool           `json:"force,omitempty"`

	extra jsonkeep.Extra
}

type wishFields RotateWish

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (w RotateWish) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(wishFields(w), w.extra) }

// UnmarshalJSON reads a stored wish.
func (w *RotateWish) UnmarshalJSON(data []byte) (err error) {
	w.extra, err = jsonkeep.Unmarshal(data, (*wishFields)(w))
	return err
}

// options fills in what the role lays down.
func (w RotateWish) options(r *role.Role) keyring.RotateOptions {
	o := keyring.RotateOptions{Overlap: r.OverlapPeriod, OverlapScopes: w.OverlapScopes, ActivationDelay: r.ActivationDelay, Force: w.Force}
	if w.Overlap != nil {
		o.Overlap = *w.Overlap
		if o.Overlap == 0 {
			o.ActivationDelay = 0 // cut over now, unless a delay is asked for, too
		}
	}
	if w.ActivationDelay != nil {
		o.ActivationDelay = *w.ActivationDelay
	}
	return o
}

// unattended is options for a rotation that nobody watches, at now: its
// overlap is not over before clients wake that were told to sleep for longer
// than the role says now. Where that is not possible, wait is when they have
// woken. Whoever asks for an overlap is taken at his word.
func (w RotateWish) unattended(r *role.Role, now time.Time) (o keyring.RotateOptions, wait time.Time) {
	o = w.options(r)
	if w.Overlap == nil {
		o.Overlap, wait = r.OverlapFor(now.Add(o.ActivationDelay))
		if !wait.IsZero() {
			wait = wait.Add(-o.ActivationDelay)
		}
	}
	return o, wait
}

// parameters is a digest of all that was asked, to tell a replay from another
// request that reuses its id.
func (w RotateWish) parameters(reason string) string {
	text := fmt.Sprintf("%v|%v|%q|%q|%v", deref(w.Overlap), deref(w.ActivationDelay), w.OverlapScopes, reason, w.Force)
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

func deref(d *time.Duration) string {
	if d == nil {
		return "default"
	}
	return d.String()
}

// Rotate makes the next version of a key and returns its token. A replay of a
// request_id rotates nothing; it names the same version, with its token if
// that is still stored.
func (kp *Keeper) Rotate(ctx context.Context, id string, wish RotateWish, cause keyring.Cause) (*Made, error) {
	var made string
	var version int
	_, after, r, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		if wish.RequestID != "" {
			if old, ok := k.FindRequest(wish.RequestID, now); ok {
				if old.Parameters != wish.parameters(cause.Reason) {
					return nil, ErrRequestDiffers
				}
				version = old.Version
				if v, kept := k.Version(version); kept {
					var err error
					made, err = kp.Reveal(k, v)
					return k, err
				}
				return k, nil
			}
		}
		cause.Now = now
		next, token, err := kp.rotate(ctx, k, r, r.Policy(), wish.options(r), cause)
		if err != nil {
			return nil, err
		}
		made, version = token, next.Latest()
		if wish.RequestID != "" {
			next = next.RememberRequest(keyring.Request{ID: wish.RequestID, Parameters: wish.parameters(cause.Reason), Version: version, Time: next.Recorded})
		}
		return next, nil
	})
	if err != nil {
		return nil, err
	}
	return &Made{Key: after, Role: r, Token: made, Version: version}, nil
}

// rotate is the transition alone: it mints and asks the keyring.
func (kp *Keeper) rotate(ctx context.Context, k *keyring.Key, r *role.Role, p keyring.Policy, o keyring.RotateOptions, cause keyring.Cause) (*keyring.Key, string, error) {
	made, material, err := kp.Mint(ctx, r, k)
	if err != nil {
		return nil, "", err
	}
	next, err := k.Rotate(cause, p, material, o)
	return next, made, err
}

// Revoke ends versions of a key at once. With successor set, the end of the
// active one makes a new one in the same commit, whose token is returned.
func (kp *Keeper) Revoke(ctx context.Context, id string, o keyring.RevokeOptions, successor bool, cause keyring.Cause) (made *Made, changed bool, err error) {
	var minted string
	before, after, r, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		cause.Now = now
		if successor {
			token, material, err := kp.Mint(ctx, r, k)
			if err != nil {
				return nil, err
			}
			minted, o.Successor = token, &material
		}
		kept := KeepPending(k, r) // it may be the successor
		next, err := kept.Revoke(cause, r.Policy(), o)
		if next == kept {
			next = k
		}
		return next, err
	})
	if err != nil {
		return nil, false, err
	}
	made = &Made{Key: after, Role: r}
	if after != before && successor {
		made.Token, made.Version, err = kp.successor(before, after, minted)
	}
	return made, after != before, err
}

// successor returns the token of the version that became active: the one
// minted for it, or a pending one that was promoted instead.
func (kp *Keeper) successor(before, after *keyring.Key, minted string) (string, int, error) {
	active, ok := after.Active()
	if former, had := before.Active(); !ok || had && former.Number == active.Number {
		return "", 0, nil
	}
	if active.Number > before.Latest() {
		return minted, active.Number, nil
	}
	token, err := kp.Reveal(after, active)
	return token, active.Number, err
}

// due is when the periodic function has to look at the key again.
func (kp *Keeper) due(ctx context.Context, k *keyring.Key, r *role.Role, now time.Time) time.Time {
	now = k.Now(now)
	next := k.NextDue(now, r.Policy(), kp.Drained(ctx, k, r, now))
	for _, t := range []time.Time{rotationTime(k, r, now), watchDue(k, r, now)} {
		if next.IsZero() || !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	return next
}

// rotationTime is when the key is to rotate by itself: past where that is
// overdue, zero where it does not.
func rotationTime(k *keyring.Key, r *role.Role, now time.Time) time.Time {
	if !rotatesItself(k, r) {
		return time.Time{}
	}
	next := k.RotateAt
	if next.IsZero() {
		_, next = r.Schedule().Due(k.LastRotation, now, k.ID)
	}
	if waits := k.Blocked != "" && !k.RotateAt.IsZero(); !waits {
		next = earliest(next, lastChance(k, r))
	}
	return earliest(next, finalChance(k))
}

// lastChance is when a key that rotates by itself has to, whatever its
// schedule and its windows say, so that its active version is in its overlap,
// not in use, when version_ttl ends it. It is zero where nothing does, or where
// a version is pending: that one takes the place then.
//
// A version that is active for less time than a period, as after a rollback,
// is not replaced before half of that is over.
func lastChance(k *keyring.Key, r *role.Role) time.Time {
	active, ok := k.Active()
	if _, waiting := k.Pending(); !ok || waiting || active.ExpireTime.IsZero() {
		return time.Time{}
	}
	life := active.ExpireTime.Sub(active.ActivatedTime)
	lead := max(r.OverlapPeriod, keyring.ExpiryLead) + r.ActivationDelay
	lead = min(lead, max(life/2, life-r.Schedule().Interval(active.ActivatedTime)))
	return active.ExpireTime.Add(-lead)
}

// finalChance is when the active version is about to be ended by its age and
// nothing else, not even the number of accepted versions, may keep the key
// from a successor. It is zero where lastChance is.
func finalChance(k *keyring.Key) time.Time {
	active, ok := k.Active()
	if _, waiting := k.Pending(); !ok || waiting || active.ExpireTime.IsZero() {
		return time.Time{}
	}
	return active.ExpireTime.Add(-min(keyring.ExpiryLead, active.ExpireTime.Sub(active.ActivatedTime)/2))
}

func rotatesItself(k *keyring.Key, r *role.Role) bool {
	return r.Schedule().Automatic() && !k.Disabled && !k.Leased() && !k.Dormant()
}

// PlannedRotation is when the next automatic rotation is planned, zero where
// there is none.
func (kp *Keeper) PlannedRotation(k *keyring.Key, r *role.Role, now time.Time) time.Time {
	return rotationTime(k, r, k.Now(now))
}

// PlannedChange is when static-creds will next answer something else than
// now: at a promotion, at a rotation, or at the end of the active version.
func (kp *Keeper) PlannedChange(k *keyring.Key, r *role.Role, now time.Time) time.Time {
	now = k.Now(now)
	var change time.Time
	want := func(t time.Time) {
		if !t.IsZero() && (change.IsZero() || t.Before(change)) {
			change = t
		}
	}
	if pending, ok := k.Pending(); ok {
		if !k.Disabled {
			want(pending.PromoteAt)
		}
	} else if t := rotationTime(k, r, now); !t.IsZero() {
		want(t.Add(r.ActivationDelay))
	}
	if active, ok := k.Active(); ok {
		want(active.ExpireTime)
	}
	return change
}

// ActorLease is the actor of what happens to a key because of its leases.
const ActorLease = "lease"

// Apply does all that is due for a key filed at minute, in one commit. early
// tells that the minute is still open (sweep): the key then keeps its entry
// where nothing is due yet. It reports whether the key changed.
//
// An entry of a key that is due only later is removed. One of a key that was
// due before was made by Postpone, and the key is dealt with now. After an
// error the key is still filed; a caller that finds it damaged postpones it.
func (kp *Keeper) Apply(ctx context.Context, id string, minute int64, early bool) (changed bool, err error) {
	defer kp.Store.LockKey(id)()
	k, err := kp.Store.Key(ctx, id)
	if err != nil {
		return false, err
	}
	switch {
	case early && (k == nil || k.NextTick != minute):
		return false, nil
	case k == nil || k.NextTick == 0 || k.NextTick > minute:
		return false, kp.Store.DropDue(ctx, minute, id)
	}
	changed, err = kp.apply(ctx, k, early)
	if err == nil && k.NextTick != minute {
		err = kp.Store.DropDue(ctx, minute, id)
	}
	return changed, err
}

func (kp *Keeper) apply(ctx context.Context, k *keyring.Key, early bool) (changed bool, err error) {
	if !k.Deleted.IsZero() {
		kp.Book.Forget(k.ID)
		return true, kp.finishDelete(ctx, k)
	}
	r, err := kp.RoleOf(ctx, k)
	if err != nil {
		return false, err
	}
	told, err := kp.copyOwed(ctx, k)
	if err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		// What cannot be told stays owed, and holds nothing up that is due.
		kp.Logger.Warn("the events of a key cannot be told yet", "key_id", k.ID, "owed", len(k.Owed), "error", err)
		told = k
	}
	now := k.Now(kp.Store.Now())
	next, err := kp.advance(ctx, told, r, now)
	if err != nil {
		return false, err
	}
	if next == nil {
		return true, kp.endLeased(ctx, told, now)
	}
	next = kp.watch(ctx, k, next, r, keyring.Cause{Now: now, Actor: keyring.ActorPeriodic})
	if next == k {
		if early {
			return false, nil
		}
		next = k.Clone()
	}
	return true, kp.commit(ctx, k, next, r, now)
}

// advance is the transition of Apply. It returns nil for a leased key that is
// to be forgotten.
func (kp *Keeper) advance(ctx context.Context, k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
	cause := keyring.Cause{Now: now, Actor: keyring.ActorPeriodic}
	if k.Leased() {
		if ended, last := k.EndedAll(now); ended && !now.Before(last.Add(keyring.LeasedKeepTime)) {
			return nil, nil
		}
	}
	// First the promotions and retirements: they may make room for a rotation,
	// or leave the key in need of one.
	k, err := kp.holdPromotion(ctx, KeepPending(k, r), cause)
	if err != nil {
		return nil, err
	}
	next, err := kp.replaceUnclaimed(ctx, k, k.Advance(cause, r.Policy(), kp.Drained(ctx, k, r, now)), r, now)
	if err != nil {
		return nil, err
	}
	return kp.rotateIfDue(ctx, next, r, cause)
}

// tickGrace is how late a tick may come without a rotation counting as having
// missed its window: the rounding up to a minute, and the distance of ticks.
const tickGrace = 2 * time.Minute

func (kp *Keeper) rotateIfDue(ctx context.Context, k *keyring.Key, r *role.Role, cause keyring.Cause) (*keyring.Key, error) {
	if !rotatesItself(k, r) {
		return k, nil
	}
	at, spec := cause.Now, r.Schedule()
	last := lastChance(k, r)
	reached := func(t time.Time) bool { return !t.IsZero() && !t.After(cause.Now) }
	if reached(last) {
		// No window and no turn outweighs the end of the active version.
	} else if k.RotateAt.IsZero() {
		planned := spec.Next(k.LastRotation, k.ID)
		if planned.After(cause.Now) {
			return k, nil
		}
		// A key keeps the window that it was due in if its minute was full or
		// the tick came late: what counts is how late it is after its filing.
		if late := cause.Now.Sub(time.Unix(k.NextTick*60, 0)) - tickGrace; k.NextTick*60 >= planned.Unix() {
			at = planned.Add(max(0, late))
		}
		due, _ := spec.Due(k.LastRotation, at, k.ID)
		if !due {
			return k, nil
		}
		if catchUp := spec.CatchUp(k.LastRotation, at, k.ID); catchUp.After(at) {
			next := k.Clone()
			next.RotateAt = earliest(cause.Now.Add(catchUp.Sub(at)), last)
			return next, nil
		}
	} else if k.RotateAt.After(cause.Now) && k.Blocked == "" {
		return k, nil
	} else if _, ok := k.Active(); ok && spec.Window > 0 && !k.Unclaimed {
		// What was put off, by an outage or for want of room, still keeps to
		// the window. A key that has lost its active version does not wait.
		if due, _ := spec.Due(k.LastRotation, at, k.ID); !due {
			next := k.Clone()
			next.RotateAt = time.Time{}
			return next, nil
		}
	}
	o, wait := RotateWish{}.unattended(r, cause.Now)
	if _, ok := k.Active(); ok && wait.After(cause.Now) && !reached(last) {
		next := k.Clone()
		next.RotateAt = wait
		return next, nil
	}
	if next, err := kp.waitForClaims(ctx, k, r, cause); next != nil || err != nil {
		return next, err
	}
	p := r.Policy()
	if reached(finalChance(k)) {
		p.MaxAccepted++ // for as long as the active version has left
	}
	next, _, err := kp.rotate(ctx, k, r, p, o, cause)
	if err == nil && lost(next, r) {
		return k.Block(cause, nobodyCanClaim+"it was claimable a moment ago", cause.Now.Add(claimRetry)), nil
	}
	var refusal *keyring.Refusal
	if errors.As(err, &refusal) {
		return k.Block(cause, refusal.Text, kp.retryAfter(k, cause.Now)), nil
	}
	return next, err
}

// earliest returns the earlier of t and limit; a zero limit is none.
func earliest(t, limit time.Time) time.Time {
	if !limit.IsZero() && limit.Before(t) {
		return limit
	}
	return t
}

// retryAfter is when a rotation that waits can first go on: at the promotion
// of what is pending, or the first end of an overlap.
func (kp *Keeper) retryAfter(k *keyring.Key, now time.Time) time.Time {
	if pending, ok := k.Pending(); ok {
		return pending.PromoteAt
	}
	retry := now.Add(time.Hour)
	for i := range k.Versions {
		if v := &k.Versions[i]; v.StateAt(now) == keyring.StateRetiring && v.AcceptedUntil.Before(retry) {
			retry = v.AcceptedUntil
		}
	}
	return retry
}

func (kp *Keeper) endLeased(ctx context.Context, k *keyring.Key, now time.Time) error {
	tomb := k.EndAll(keyring.Cause{Now: now, Actor: keyring.ActorPeriodic}, kp.Store.Cleanup(k))
	if err := kp.put(ctx, k, tomb, now); err != nil {
		return err
	}
	kp.Book.Forget(k.ID)
	return kp.finishDelete(ctx, tomb)
}

// Refile files a key again whose entry in the due index is lost, or is for
// long after what is due.
func (kp *Keeper) Refile(ctx context.Context, id string) error {
	defer kp.Store.LockKey(id)()
	k, err := kp.Store.Key(ctx, id)
	if err != nil || k == nil {
		return err
	}
	due := kp.Store.Now()
	if k.Deleted.IsZero() {
		r, err := kp.RoleOf(ctx, k)
		if err != nil {
			return err
		}
		due = kp.due(ctx, k, r, due)
	}
	if !kp.Store.LostFiling(k.NextTick) && !kp.Store.Misfiled(k.NextTick, due) {
		return nil
	}
	return kp.put(ctx, k, k.Clone(), due)
}

// Reschedule files a key again where its role's schedule moved its due time.
// A rotation that was delayed or blocked under the old schedule is judged
// anew.
func (kp *Keeper) Reschedule(ctx context.Context, id string) error {
	_, _, _, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		next := k.Clone()
		next.Blocked = ""
		if _, ok := k.Active(); ok && !k.Unclaimed || k.Dormant() {
			next.RotateAt = time.Time{} // else the key needs a version, whatever the schedule
		}
		due := kp.due(ctx, next, r, now)
		if k.RotateAt.IsZero() && kp.Store.FiledAt(k.NextTick, due) {
			return k, nil
		}
		return next, nil
	})
	if errors.Is(err, ErrNoKey) {
		return nil
	}
	return err
}

// RotateForJob rotates a key for a bulk job, once for each job however often
// it is asked. It reports whether the job has rotated it, now or before.
func (kp *Keeper) RotateForJob(ctx context.Context, id, job string, cause keyring.Cause, wish RotateWish) (bool, error) {
	done := false
	before, after, _, err := kp.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		if k.Job == job || k.Leased() {
			done = k.Job == job
			return k, nil
		}
		cause.Now = now
		o, wait := wish.unattended(r, k.Now(now))
		if !wait.IsZero() {
			return nil, &keyring.Refusal{Rule: keyring.ErrOverlapTooLong, Text: fmt.Sprintf(
				"clients of %s may sleep until %s, as the role told them before it was changed, and its overlap_period would be over before: rotate then, or give overlap_period", k.Label(), wait.UTC().Format(time.RFC3339))}
		}
		next, _, err := kp.rotate(ctx, k, r, r.Policy(), o, cause)
		if err != nil {
			return nil, err
		}
		if lost(next, r) {
			_, why, err := kp.claimable(ctx, k)
			if err != nil {
				return nil, err
			}
			return nil, &keyring.Refusal{Rule: keyring.ErrNobodyCanRead, Text: nobodyCanClaim + why}
		}
		next.Job = job
		return next, nil
	})
	return err == nil && (done || after != before), err
}
