// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// Material is the secret of a version that is to be made.
type Material struct {
	// Digest is the SHA-256 of the whole token.
	Digest token.Digest
	// Sealed is the encrypted token, nil where no plaintext is kept. This
	// package never looks inside it.
	Sealed []byte
	// Handover is the encrypted token, too, where none is kept but somebody can
	// claim it: it is given up as soon as it has been handed over to whoever
	// delivers the claim.
	Handover []byte
}

// Version is one secret of a key. Its fields are as recorded; ask StateAt and
// AcceptedAt for what holds at a moment.
type Version struct {
	Number int          `json:"version"`
	State  State        `json:"state"`
	Digest token.Digest `json:"digest"`
	Sealed []byte       `json:"sealed,omitempty"`
	// Handover is what there is to claim of a version whose plaintext is not
	// kept. It stands here while the version is pending, and while its
	// version.activated is owed. Nobody reads it but who takes that event: for
	// static-creds, rollbacks and all else there is no plaintext.
	Handover []byte `json:"handover,omitempty"`
	// Imported is set where the token came from outside and is found by its
	// digest, not by an id in it.
	Imported bool `json:"imported,omitempty"`

	CreatedTime   time.Time `json:"created_time"`
	ActivatedTime time.Time `json:"activated_time,omitzero"`

	// PromoteAt, PlannedOverlap and PlannedScopes are what the rotation that
	// made a pending version asked for.
	PromoteAt      time.Time     `json:"promote_at,omitzero"`
	PlannedOverlap time.Duration `json:"planned_overlap,omitempty"`
	PlannedScopes  []string      `json:"planned_scopes,omitzero"`

	// SupersededBy is the version that took this one's place, at
	// SupersededTime.
	SupersededBy   int       `json:"superseded_by,omitempty"`
	SupersededTime time.Time `json:"superseded_time,omitzero"`
	// OverlapEnds is the end that clients were told; AcceptedUntil is the one
	// that verifiers enforce. They differ only where drain is waited for.
	OverlapEnds   time.Time `json:"overlap_ends,omitzero"`
	AcceptedUntil time.Time `json:"accepted_until,omitzero"`
	// OverlapScopes narrow the version from the moment it was superseded. Nil
	// does not; an empty list leaves it none, and must be stored as such.
	OverlapScopes []string `json:"overlap_scopes,omitzero"`
	// RollbackWindow is the role's, as it was when the version was superseded.
	RollbackWindow time.Duration `json:"rollback_window,omitempty"`

	// ExpireTime is the hard end of the version's age, or of its lease.
	ExpireTime time.Time `json:"expire_time,omitzero"`
	EndedTime  time.Time `json:"ended_time,omitzero"`
	// RestorableUntil is the end of the time in which a retired version can
	// be rolled back to or extended, never past its ExpireTime. Zero means
	// that it cannot.
	RestorableUntil time.Time `json:"restorable_until,omitzero"`
	Reason          string    `json:"reason,omitempty"`

	// FirstUsedTime is when version.first_used was told.
	FirstUsedTime time.Time `json:"first_used_time,omitzero"`
	// Reminded is the percent of the overlap up to which laggards were named.
	Reminded int `json:"reminded,omitempty"`
	// Looked is the percent of the overlap at which its rollover was last judged.
	Looked int `json:"looked,omitempty"`
	// Health is what was last told of the rollover away from this version.
	Health string `json:"health,omitempty"`
	// HealthTime is when that was told.
	HealthTime time.Time `json:"health_time,omitzero"`
	// StaleBefore are the refused uses after an end that the version had when it
	// was brought back from that end: those since then are of clients that the
	// present rollover has left behind.
	StaleBefore uint64 `json:"stale_before,omitempty"`
	// Watched is set while a retired version can be restored: its rollover
	// counts as under way, because clients left behind could be rescued.
	Watched bool `json:"watched,omitempty"`

	extra jsonkeep.Extra
}

type versionFields Version

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (v Version) MarshalJSON() ([]byte, error) {
	return jsonkeep.Marshal(versionFields(v), v.extra)
}

// UnmarshalJSON reads a stored version.
func (v *Version) UnmarshalJSON(data []byte) (err error) {
	v.extra, err = jsonkeep.Unmarshal(data, (*versionFields)(v))
	return err
}

// life is what decides whether the version is accepted.
func (v *Version) life() *record.Life {
	return &record.Life{
		State: v.State, SupersededTime: v.SupersededTime, OverlapEnds: v.OverlapEnds,
		AcceptedUntil: v.AcceptedUntil, ExpireTime: v.ExpireTime, EndedTime: v.EndedTime,
	}
}

// StateAt is the state that holds at now: a version whose overlap, hard age or
// lease is over is retired, whether or not that has been recorded.
func (v *Version) StateAt(now time.Time) State { return v.life().StateAt(now) }

// timedEnd is when time alone ends the acceptance of the version. It tells
// false where nothing does, or where it has ended.
func (v *Version) timedEnd() (time.Time, bool) { return v.life().TimedEnd() }

// ExpiredAt tells whether the version is past its hard age or its lease.
func (v *Version) ExpiredAt(now time.Time) bool { return v.life().ExpiredAt(now) }

// AcceptedAt tells whether the version's own state and times allow it at now.
// The key may still be disabled. One that is not there, a zero Version, never is.
func (v *Version) AcceptedAt(now time.Time) bool {
	state := v.StateAt(now)
	return state != StateUnknown && !state.Ended()
}

// RestorableAt tells whether the version is retired and can still be made
// active or retiring again.
func (v *Version) RestorableAt(now time.Time) bool {
	return v.StateAt(now) == StateRetired && now.Before(v.restorableUntil()) && !v.ExpiredAt(now)
}

// restorableUntil is the end of the rollback window, computed where the
// retirement has not been recorded yet.
func (v *Version) restorableUntil() time.Time {
	if v.State == StateRetiring {
		return earlier(v.AcceptedUntil.Add(v.RollbackWindow), v.ExpireTime)
	}
	return v.RestorableUntil
}

// prunable tells whether the version may be forgotten, at least once it can no
// longer be restored.
func (v *Version) prunable() bool { return v.State == StateRetired || v.State == StateRevoked }

// EndedAt is when the version ended, zero where it has not at now.
func (v *Version) EndedAt(now time.Time) time.Time { return v.life().EndedAt(now) }

// retire records the end of an overlap at the instant at.
func (v *Version) retire(at time.Time, reason string) {
	v.State = StateRetired
	v.EndedTime = at
	v.Reason = reason
	if v.AcceptedUntil.IsZero() || v.AcceptedUntil.After(at) {
		v.AcceptedUntil = at
	}
	v.RestorableUntil, v.Handover = time.Time{}, nil
	if !v.ActivatedTime.IsZero() && v.RollbackWindow > 0 && !v.ExpiredAt(at) {
		v.RestorableUntil = earlier(at.Add(v.RollbackWindow), v.ExpireTime)
	} else {
		v.Sealed = nil
	}
	v.Watched = v.SupersededBy > 0 && !v.RestorableUntil.IsZero()
}

// LeftBehind tells whether the version was superseded and is retired, but could
// be restored for clients that it has left behind, as recorded.
func (v *Version) LeftBehind() bool {
	return v.State == StateRetired && v.SupersededBy > 0 && (v.Watched || len(v.Sealed) > 0)
}

// end records a deliberate and final end.
func (v *Version) end(state State, at time.Time, reason string) {
	if v.EndedTime.IsZero() || v.EndedTime.After(at) {
		v.EndedTime = at
	}
	v.State = state
	v.Reason = reason
	v.Sealed, v.Handover = nil, nil
	v.RestorableUntil = time.Time{}
	if v.AcceptedUntil.After(at) {
		v.AcceptedUntil = at
	}
}
