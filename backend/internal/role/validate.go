// SPDX-License-Identifier: MPL-2.0

package role

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/schedule"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	// MinAutomaticOverlap is the least overlap, other than 0, for keys that
	// rotate by themselves. Vault Agent sleeps for a whole ttl and a second
	// more, and the periodic function wakes once a minute: an overlap below
	// this would be over before a client that behaves has looked again.
	MinAutomaticOverlap = 5 * time.Minute
	// MaxDuration bounds every duration: a hundred years of 365 days.
	MaxDuration = 100 * 365 * 24 * time.Hour

	maxWindow   = 16
	maxScopes   = 128
	maxCIDRs    = 128
	maxMetadata = 64
	maxMetaKey  = 128
	maxMetaLen  = 512
)

var (
	scopeShape   = regexp.MustCompile(`^[A-Za-z0-9_.:/-]{1,128}$`)
	grantedShape = regexp.MustCompile(`^([A-Za-z0-9_.:/-]{1,128}|[A-Za-z0-9_.:/-]{0,127}\*)$`)
	metaKeyShape = regexp.MustCompile(`^[A-Za-z0-9_./-]{1,128}$`)
)

// Validate checks every field and the rules between them. The error names the
// field, the fault and what is accepted.
func (r *Role) Validate() error {
	for _, check := range []func() error{
		r.checkToken, r.checkGrants, r.Schedule().Validate, r.checkDurations, r.checkNumbers, r.checkOverlap,
		r.checkWindow, r.checkVersionTTL, r.checkDelivery,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkToken is stricter than the format, which takes what is absent for its
// default: a role would read back something else than what it does.
func (r *Role) checkToken() error {
	if r.Prefix == "" {
		return errors.New("prefix must be a lower-case letter followed by at most 31 of a-z, 0-9 and _, got an empty one")
	}
	if r.SecretLength == 0 {
		return fmt.Errorf("secret_length must be between %d and %d, got 0", token.MinSecretLength, token.MaxSecretLength)
	}
	return r.Format().Validate()
}

func (r *Role) checkGrants() error {
	if err := CheckGrants("scopes", r.Scopes); err != nil {
		return err
	}
	if err := CheckGrants("overlap_scopes", r.OverlapScopes); err != nil {
		return err
	}
	for i, s := range r.OverlapScopes {
		if !record.CoversAll(r.Scopes, []string{s}) {
			return fmt.Errorf("overlap_scopes: the one at position %d is not covered by scopes: they can only narrow what the role grants", i+1)
		}
	}
	if err := CheckCIDRs("bound_cidrs", r.BoundCIDRs); err != nil {
		return err
	}
	return CheckMetadata(r.CustomMetadata)
}

func (r *Role) checkDurations() error {
	for _, f := range []struct {
		field string
		value time.Duration
		least time.Duration
	}{
		{"overlap_period", r.OverlapPeriod, 0}, {"max_overlap_period", r.MaxOverlapPeriod, 0}, {"drain_quiet_period", r.DrainQuietPeriod, 0},
		{"activation_delay", r.ActivationDelay, 0}, {"rollback_window", r.RollbackWindow, 0}, {"version_ttl", r.VersionTTL, 0},
		{"ttl", r.TTL, 0}, {"max_ttl", r.MaxTTL, 0}, {"refresh_interval", r.Refresh(), time.Second}, {"notify_before", r.Notify(), 0},
	} {
		if f.value < f.least || f.value > MaxDuration || f.value%time.Second != 0 {
			return fmt.Errorf("%s must be between %s and %s in whole seconds, got %s", f.field, f.least, MaxDuration, f.value)
		}
	}
	return nil
}

func (r *Role) checkNumbers() error {
	if r.MaxAcceptedVersions < 1 || r.MaxAcceptedVersions > maxWindow {
		return fmt.Errorf("max_accepted_versions must be between 2 and %d (1 only with overlap_period=0), got %d", maxWindow, r.MaxAcceptedVersions)
	}
	if r.MaxAcceptedVersions == 1 && r.OverlapPeriod != 0 {
		return fmt.Errorf("max_accepted_versions must be between 2 and %d, got 1: with an overlap_period of %s two versions are accepted at once", maxWindow, r.OverlapPeriod)
	}
	if r.MaxAcceptedVersions == 1 && r.ActivationDelay != 0 {
		return fmt.Errorf("max_accepted_versions must be between 2 and %d, got 1: with an activation_delay of %s two versions are accepted at once", maxWindow, r.ActivationDelay)
	}
	if r.MaxVersions < r.MaxAcceptedVersions || r.MaxVersions > 100 {
		return fmt.Errorf("max_versions must be between max_accepted_versions (%d) and 100, got %d", r.MaxAcceptedVersions, r.MaxVersions)
	}
	for i, p := range r.Reminders {
		if p < 1 || p > 99 || i > 0 && p <= r.Reminders[i-1] {
			return fmt.Errorf("reminders must be ascending whole percents between 1 and 99, got %d at position %d", p, i+1)
		}
	}
	if !slices.Contains([]string{LeakAlert, LeakRevoke, LeakRotate}, r.LeakResponse) {
		return fmt.Errorf("leak_response must be %s, %s or %s", LeakAlert, LeakRevoke, LeakRotate)
	}
	return nil
}

func (r *Role) checkOverlap() error {
	if r.OverlapPeriod > r.MaxOverlapPeriod {
		return fmt.Errorf("overlap_period must be between 0s and max_overlap_period (%s), got %s", r.MaxOverlapPeriod, r.OverlapPeriod)
	}
	if r.MaxTTL > 0 && r.TTL > r.MaxTTL {
		return fmt.Errorf("ttl must be at most max_ttl (%s), got %s", r.MaxTTL, r.TTL)
	}
	return nil
}

// checkWindow refuses a schedule whose overlaps would pile up beyond the
// window of accepted versions. A version that is superseded must be out of it
// when the rotation comes that would make one too many.
func (r *Role) checkWindow() error {
	s := r.Schedule()
	if !s.Automatic() {
		return nil
	}
	if r.OverlapPeriod != 0 && r.OverlapPeriod < MinAutomaticOverlap {
		return fmt.Errorf("overlap_period must be at least %s, or an explicit 0, for keys that rotate automatically; got %s", MinAutomaticOverlap, r.OverlapPeriod)
	}
	interval := s.MinInterval()
	room := interval * time.Duration(r.MaxAcceptedVersions-1)
	fits := "only activation_delay=0 fits"
	if limit := min(interval, room-r.OverlapPeriod); limit > time.Second {
		fits = fmt.Sprintf("activation_delay up to %s fits", limit-time.Second)
	}
	if r.ActivationDelay > 0 && r.ActivationDelay >= interval {
		return fmt.Errorf("activation_delay must be shorter than the rotation interval of %s, got %s: %s", interval, r.ActivationDelay, fits)
	}
	if r.OverlapPeriod > room {
		return fmt.Errorf("overlap_period of %s at a rotation interval of %s needs %d accepted versions at once and max_accepted_versions is %d: %s",
			r.OverlapPeriod, interval, ceilDiv(r.OverlapPeriod, interval)+1, r.MaxAcceptedVersions, r.whatFits(interval, room))
	}
	if r.ActivationDelay > 0 && r.ActivationDelay+r.OverlapPeriod >= room {
		return fmt.Errorf("activation_delay + overlap_period must be shorter than the rotation interval times (max_accepted_versions - 1), %s, got %s: %s",
			room, r.ActivationDelay+r.OverlapPeriod, fits)
	}
	return nil
}

// whatFits lists values that each would mend an overlap that the window cannot
// hold.
func (r *Role) whatFits(interval, room time.Duration) string {
	most, load := room, r.OverlapPeriod
	if r.ActivationDelay > 0 {
		// Together they must be shorter than the room, not only as long.
		most -= r.ActivationDelay + time.Second
		load += r.ActivationDelay + time.Second
	}
	fits := []string{"overlap_period=0 fits"}
	if most >= MinAutomaticOverlap {
		fits[0] = fmt.Sprintf("overlap_period up to %s fits", most)
	}
	if need := ceilDiv(load, interval) + 1; need <= maxWindow {
		hint := fmt.Sprintf("max_accepted_versions of at least %d", need)
		if need > int64(r.MaxVersions) {
			hint += fmt.Sprintf(" with max_versions of at least %d", need)
		}
		fits = append(fits, hint)
	}
	least := time.Duration(ceilDiv(load, time.Duration(r.MaxAcceptedVersions-1)*time.Second)) * time.Second
	least = max(least, r.ActivationDelay+time.Second)
	if (schedule.Spec{Period: least}).Validate() == nil {
		fits = append(fits, fmt.Sprintf("an interval of at least %s", least))
	}
	return strings.Join(fits, ", or ")
}

func ceilDiv(a, b time.Duration) int64 { return int64((a + b - 1) / b) }

func (r *Role) checkVersionTTL() error {
	if r.VersionTTL == 0 {
		return nil
	}
	s := r.Schedule()
	if !s.Automatic() {
		if r.VersionTTL < r.OverlapPeriod {
			return fmt.Errorf("version_ttl must be 0 or at least overlap_period (%s), got %s", r.OverlapPeriod, r.VersionTTL)
		}
		return nil
	}
	// Divided first: a percentage of ten years cannot overflow then. In whole
	// seconds, or it could not be given.
	jitter := (s.MaxInterval()/100*time.Duration(r.RotationJitter) + time.Second - 1).Truncate(time.Second)
	if least := s.MaxInterval() + jitter + r.OverlapPeriod + r.ActivationDelay; r.VersionTTL < least {
		return fmt.Errorf("version_ttl must be 0 or at least the rotation interval + rotation_jitter + activation_delay + overlap_period (%s), got %s", least, r.VersionTTL)
	}
	return nil
}

// checkDelivery refuses a role whose clients could not get the next version in
// time.
func (r *Role) checkDelivery() error {
	if r.RefreshInterval != nil && r.OverlapPeriod > 0 && r.Schedule().Automatic() && r.Refresh() >= r.OverlapPeriod {
		return fmt.Errorf("refresh_interval must be shorter than overlap_period (%s), or clients would look again only when the old version is refused; got %s", r.OverlapPeriod, r.Refresh())
	}
	return nil
}

// NeedsClaims tells whether new keys of the role can only be claimed: they
// rotate by themselves, so that nobody is answered one, and none is kept.
func (r *Role) NeedsClaims() bool { return !r.Retrievable && r.Schedule().Automatic() }

// CheckGrants checks a list of granted scopes. A scope may end in * to cover
// all that begin with what stands before it.
func CheckGrants(field string, scopes []string) error {
	return checkScopes(field, scopes, grantedShape, `1 to 128 of A-Z a-z 0-9 _ . : / - each, with an optional trailing *`)
}

// CheckRequired checks a list of scopes that a request needs.
func CheckRequired(field string, scopes []string) error {
	return checkScopes(field, scopes, scopeShape, `1 to 128 of A-Z a-z 0-9 _ . : / - each`)
}

func checkScopes(field string, scopes []string, shape *regexp.Regexp, accepted string) error {
	if len(scopes) > maxScopes {
		return fmt.Errorf("%s must hold at most %d scopes, got %d", field, maxScopes, len(scopes))
	}
	for i, s := range scopes {
		if !shape.MatchString(s) {
			return fmt.Errorf("%s: the one at position %d is not a scope: %s", field, i+1, accepted)
		}
		if slices.Contains(scopes[:i], s) {
			return fmt.Errorf("%s: the one at position %d is there twice", field, i+1)
		}
	}
	return nil
}

// CheckCIDRs checks a list of address ranges.
func CheckCIDRs(field string, cidrs []string) error {
	if len(cidrs) > maxCIDRs {
		return fmt.Errorf("%s must hold at most %d ranges, got %d", field, maxCIDRs, len(cidrs))
	}
	for i, c := range cidrs {
		if _, err := record.ParseRange(c); err != nil {
			return fmt.Errorf("%s: the one at position %d is neither an address nor a range in CIDR notation, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32", field, i+1)
		}
		if slices.Contains(cidrs[:i], c) {
			return fmt.Errorf("%s: the one at position %d is there twice", field, i+1)
		}
	}
	return nil
}

// CheckMetadata checks the custom_metadata of a role or a key.
func CheckMetadata(meta map[string]string) error {
	if len(meta) > maxMetadata {
		return fmt.Errorf("custom_metadata must hold at most %d pairs, got %d", maxMetadata, len(meta))
	}
	for k, v := range meta {
		if !metaKeyShape.MatchString(k) {
			return fmt.Errorf("custom_metadata: a name must be 1 to %d of A-Z a-z 0-9 _ . / -", maxMetaKey)
		}
		if len(v) > maxMetaLen {
			return fmt.Errorf("custom_metadata: a value must be at most %d bytes, got %d", maxMetaLen, len(v))
		}
	}
	return nil
}
