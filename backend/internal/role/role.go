// SPDX-License-Identifier: MPL-2.0

// Package role holds the templates from which keys are made: what their
// tokens look like, what they may do, when they rotate and how long the old
// version stays accepted. It is pure: defaults, the rules between fields, and
// what follows from them for the keyring and the schedule.
package role

import (
	"encoding/json"
	"fmt"
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

	// Revision grows with each write, so that a job can tell which one it
	// was started for.
	Revision int `json:"revision,omitempty"`

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
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	if head.Schema < 1 || head.Schema > Schema {
		return fmt.Errorf("schema %d is not one that this plugin reads (1 to %d): run the newer plugin that wrote it", head.Schema, Schema)
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
	return r.Schedule() == o.Schedule() && r.VersionTTL == o.VersionTTL && r.MaxVersions == o.MaxVersions &&
		r.ExtendUntilDrained == o.ExtendUntilDrained && r.DrainQuietPeriod == o.DrainQuietPeriod
}
