// SPDX-License-Identifier: MPL-2.0

// Package role holds the templates from which keys are made: what their
// tokens look like, what they may do, when they rotate and how long the old
// version stays accepted. It is pure: defaults, the rules between fields, and
// what follows from them for the keyring and the schedule.
package role

import (
	"maps"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/schedule"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// Schema is the major version of the stored form.
const Schema = 1

// The answers to a reported leak.
const (
	LeakAlert  = "alert"
	LeakRevoke = "revoke"
	LeakRotate = "rotate"
)

// Role is a template and a policy, as stored. Durations are whole seconds. A
// nil pointer is a field that was never set and follows others.
type Role struct {
	Schema int    `json:"schema"`
	Name   string `json:"name"`

	Prefix       string   `json:"prefix"`
	SecretLength int      `json:"secret_length"`
	Scopes       []string `json:"scopes,omitempty"`
	// OverlapScopes narrow a version between its overlap_ends and its
	// accepted_until. Empty means that they do not.
	OverlapScopes []string `json:"overlap_scopes,omitempty"`

	RotationPeriod           time.Duration `json:"rotation_period,omitempty"`
	RotationSchedule         string        `json:"rotation_schedule,omitempty"`
	RotationWindow           time.Duration `json:"rotation_window,omitempty"`
	DisableAutomatedRotation bool          `json:"disable_automated_rotation,omitempty"`
	// RotationJitter is a whole percent of the period.
	RotationJitter int `json:"rotation_jitter,omitempty"`

	OverlapPeriod      time.Duration `json:"overlap_period"`
	MaxOverlapPeriod   time.Duration `json:"max_overlap_period"`
	ExtendUntilDrained bool          `json:"extend_until_drained,omitempty"`
	DrainQuietPeriod   time.Duration `json:"drain_quiet_period"`
	ActivationDelay    time.Duration `json:"activation_delay,omitempty"`

	MaxAcceptedVersions int           `json:"max_accepted_versions"`
	MaxVersions         int           `json:"max_versions"`
	RollbackWindow      time.Duration `json:"rollback_window"`
	VersionTTL          time.Duration `json:"version_ttl,omitempty"`

	TTL    time.Duration `json:"ttl,omitempty"`
	MaxTTL time.Duration `json:"max_ttl,omitempty"`

	RefreshInterval *time.Duration    `json:"refresh_interval,omitempty"`
	Retrievable     bool              `json:"retrievable"`
	BoundCIDRs      []string          `json:"bound_cidrs,omitempty"`
	NotifyBefore    *time.Duration    `json:"notify_before,omitempty"`
	Reminders       []int             `json:"reminders,omitempty"`
	LeakResponse    string            `json:"leak_response"`
	CustomMetadata  map[string]string `json:"custom_metadata,omitempty"`

	// RefreshFormer is how often clients were told to look before a write told
	// them to look more often. They may still sleep by it until
	// RefreshFormerUntil.
	RefreshFormer      time.Duration `json:"refresh_former,omitempty"`
	RefreshFormerUntil time.Time     `json:"refresh_former_until,omitzero"`

	extra jsonkeep.Extra
}

// New returns a role with every field at its default.
func New(name string) *Role {
	return &Role{
		Schema: Schema, Name: name,
		Prefix: token.DefaultPrefix, SecretLength: token.DefaultSecretLength,
		OverlapPeriod: 24 * time.Hour, MaxOverlapPeriod: 720 * time.Hour, DrainQuietPeriod: time.Hour,
		MaxAcceptedVersions: 3, MaxVersions: 10, RollbackWindow: 24 * time.Hour,
		Retrievable: true, Reminders: []int{50, 80, 95}, LeakResponse: LeakAlert,
	}
}

// Clone returns a copy that shares nothing with r that could be changed.
func (r *Role) Clone() *Role {
	c := *r
	c.Scopes, c.OverlapScopes = slices.Clone(r.Scopes), slices.Clone(r.OverlapScopes)
	c.BoundCIDRs, c.Reminders = slices.Clone(r.BoundCIDRs), slices.Clone(r.Reminders)
	c.RefreshInterval, c.NotifyBefore = clonePointer(r.RefreshInterval), clonePointer(r.NotifyBefore)
	c.CustomMetadata = maps.Clone(r.CustomMetadata)
	return &c
}

func clonePointer(d *time.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	return new(*d)
}

type roleFields Role

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (r Role) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(roleFields(r), r.extra) }

// UnmarshalJSON reads a stored role and refuses a newer schema.
func (r *Role) UnmarshalJSON(data []byte) error {
	if err := jsonkeep.CheckSchema(data, Schema); err != nil {
		return err
	}
	extra, err := jsonkeep.Unmarshal(data, (*roleFields)(r))
	r.extra = extra
	return err
}

// Format is the form of the tokens of the role.
func (r *Role) Format() token.Format {
	return token.Format{Prefix: r.Prefix, SecretLength: r.SecretLength}
}

// Schedule says when keys of the role rotate by themselves.
func (r *Role) Schedule() schedule.Spec {
	return schedule.Spec{
		Period: r.RotationPeriod, Cron: r.RotationSchedule, Window: r.RotationWindow,
		JitterPercent: r.RotationJitter, Disabled: r.DisableAutomatedRotation,
	}
}

// Policy is what the role lays down for transitions.
func (r *Role) Policy() keyring.Policy {
	return keyring.Policy{
		MaxOverlap: r.MaxOverlapPeriod, ExtendUntilDrained: r.ExtendUntilDrained, RollbackWindow: r.RollbackWindow,
		VersionTTL: r.VersionTTL, MaxAccepted: r.MaxAcceptedVersions, MaxVersions: r.MaxVersions,
	}
}

// Limits are what the role allows a key to do.
func (r *Role) Limits() keyring.Limits {
	l := keyring.Limits{Scopes: r.Scopes, BoundCIDRs: r.BoundCIDRs}
	if len(r.OverlapScopes) > 0 {
		l.OverlapScopes = r.OverlapScopes
	}
	return l
}

// Refresh is refresh_interval, or its default: the lesser of an hour and a
// quarter of the overlap, a minute without one, never under a second.
func (r *Role) Refresh() time.Duration {
	switch {
	case r.RefreshInterval != nil:
		return *r.RefreshInterval
	case r.OverlapPeriod == 0:
		return time.Minute
	}
	return max(time.Second, min(time.Hour, (r.OverlapPeriod/4).Truncate(time.Second)))
}

// RefreshTold is the longest that a client which looks again when it was told
// to may sleep at now: Refresh, or what that was before a write shortened it.
func (r *Role) RefreshTold(now time.Time) time.Duration {
	if now.Before(r.RefreshFormerUntil) {
		return max(r.RefreshFormer, r.Refresh())
	}
	return r.Refresh()
}

// Succeed makes r the role that takes the place of former at now: clients that
// asked just before may sleep by what former told them. That matters where r
// tells them to look more often, and where its keys can rotate earlier than
// they were told and with an overlap that is over before they wake.
func (r *Role) Succeed(former *Role, now time.Time) {
	told := former.RefreshTold(now)
	sooner := former.Schedule() != r.Schedule() || r.ActivationDelay < former.ActivationDelay
	if told <= r.Refresh() && (told <= r.OverlapPeriod || !sooner) {
		return
	}
	until := now.Add(former.Refresh())
	if former.RefreshFormerUntil.After(until) {
		until = former.RefreshFormerUntil
	}
	r.RefreshFormer, r.RefreshFormerUntil = told, until
}

// wakeSlack is how much longer than its ttl a client sleeps: Vault Agent adds
// a second, and a ttl is rounded up to whole seconds.
const wakeSlack = 2 * time.Second

// OverlapFor is the overlap of a rotation that nobody watches, where the
// version that it makes becomes active at the given time: overlap_period, or
// longer where clients may sleep until later by what they were told before a
// write of the role. Where max_overlap_period or max_accepted_versions leave
// no room for that, wait is when they have woken; it is zero otherwise.
func (r *Role) OverlapFor(active time.Time) (overlap time.Duration, wait time.Time) {
	awake := r.RefreshFormerUntil.Add(wakeSlack)
	if r.OverlapPeriod >= r.RefreshFormer+wakeSlack || !active.Before(awake) {
		return r.OverlapPeriod, time.Time{}
	}
	asleep := (awake.Sub(active) + time.Second - 1).Truncate(time.Second)
	if asleep > r.MaxOverlapPeriod || r.MaxAcceptedVersions == 1 {
		return r.OverlapPeriod, awake
	}
	return max(r.OverlapPeriod, asleep), time.Time{}
}

// Notify is notify_before, or its default: a tenth of the interval.
func (r *Role) Notify() time.Duration {
	if r.NotifyBefore != nil {
		return *r.NotifyBefore
	}
	return (r.Schedule().MinInterval() / 10).Truncate(time.Second)
}

// SameSchedule tells whether keys filed under r are due at the same times
// under o.
func (r *Role) SameSchedule(o *Role) bool {
	sameLead := r.OverlapPeriod == o.OverlapPeriod && r.ActivationDelay == o.ActivationDelay
	return r.Schedule() == o.Schedule() && r.VersionTTL == o.VersionTTL && (sameLead || r.VersionTTL == 0) && r.MaxVersions == o.MaxVersions &&
		r.ExtendUntilDrained == o.ExtendUntilDrained && r.DrainQuietPeriod == o.DrainQuietPeriod
}
