// SPDX-License-Identifier: MPL-2.0

package role_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/schedule"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const day = 24 * time.Hour

func TestDefaults(t *testing.T) {
	t.Parallel()
	r := role.New("partners")
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	want := &role.Role{
		Schema: 1, Name: "partners", Prefix: "key", SecretLength: 32, OverlapPeriod: day, MaxOverlapPeriod: 30 * day,
		DrainQuietPeriod: time.Hour, MaxAcceptedVersions: 3, MaxVersions: 10, RollbackWindow: day, Retrievable: true,
		Reminders: []int{50, 80, 95}, LeakResponse: "alert",
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
	if r.Refresh() != time.Hour || r.Notify() != 0 {
		t.Errorf("refresh_interval %s, notify_before %s", r.Refresh(), r.Notify())
	}
}

func TestRefreshIntervalFollowsTheOverlap(t *testing.T) {
	t.Parallel()
	for overlap, want := range map[time.Duration]time.Duration{
		0:                time.Minute,
		time.Second:      time.Second,
		4 * time.Second:  time.Second,
		5 * time.Minute:  75 * time.Second,
		time.Hour:        15 * time.Minute,
		4 * time.Hour:    time.Hour,
		30 * day:         time.Hour,
		10 * time.Second: 2 * time.Second, // whole seconds
	} {
		r := role.New("a")
		r.OverlapPeriod = overlap
		if got := r.Refresh(); got != want {
			t.Errorf("overlap %s: %s, want %s", overlap, got, want)
		}
		r.RefreshInterval = new(7 * time.Second)
		if got := r.Refresh(); got != 7*time.Second {
			t.Errorf("what was set is not taken: %s", got)
		}
	}
}

func TestNotifyBeforeFollowsTheInterval(t *testing.T) {
	t.Parallel()
	r := role.New("a")
	r.RotationPeriod = 30 * day
	if got := r.Notify(); got != 3*day {
		t.Errorf("a tenth of 30 days: %s", got)
	}
	r.RotationPeriod, r.RotationSchedule = 0, "0 3 * * 1"
	if got := r.Notify(); got != 16*time.Hour+48*time.Minute {
		t.Errorf("a tenth of a week: %s", got)
	}
	r.NotifyBefore = new(time.Duration(0))
	if got := r.Notify(); got != 0 {
		t.Errorf("what was set is not taken: %s", got)
	}
}

func TestWhatFollowsFromARole(t *testing.T) {
	t.Parallel()
	r := role.New("a")
	r.Prefix, r.SecretLength = "tm_live", 40
	r.RotationSchedule, r.RotationWindow, r.RotationJitter, r.DisableAutomatedRotation = "0 3 * * 1", time.Hour, 10, true
	r.ExtendUntilDrained, r.VersionTTL = true, 90*day
	r.Scopes, r.BoundCIDRs = []string{"read"}, []string{"192.0.2.0/24"}
	if got := r.Format(); got != (token.Format{Prefix: "tm_live", SecretLength: 40}) {
		t.Errorf("format %+v", got)
	}
	if got := r.Schedule(); got != (schedule.Spec{Cron: "0 3 * * 1", Window: time.Hour, JitterPercent: 10, Disabled: true}) {
		t.Errorf("schedule %+v", got)
	}
	if got := r.Policy(); got.MaxOverlap != 30*day || !got.ExtendUntilDrained || got.RollbackWindow != day || got.VersionTTL != 90*day ||
		got.MaxAccepted != 3 || got.MaxVersions != 10 {
		t.Errorf("policy %+v", got)
	}
	l := r.Limits()
	if l.Scopes[0] != "read" || l.BoundCIDRs[0] != "192.0.2.0/24" || l.OverlapScopes != nil {
		t.Errorf("limits %+v", l)
	}
	r.OverlapScopes = []string{}
	if r.Limits().OverlapScopes != nil {
		t.Error("an empty overlap_scopes narrows")
	}
	r.OverlapScopes = []string{"read"}
	if len(r.Limits().OverlapScopes) != 1 {
		t.Error("overlap_scopes do not narrow")
	}
}

func TestSameSchedule(t *testing.T) {
	t.Parallel()
	r := role.New("a")
	for name, tc := range map[string]struct {
		change func(*role.Role)
		same   bool
	}{
		"scopes":  {func(o *role.Role) { o.Scopes = []string{"read"} }, true},
		"period":  {func(o *role.Role) { o.RotationPeriod = 30 * day }, false},
		"jitter":  {func(o *role.Role) { o.RotationJitter = 5 }, false},
		"drain":   {func(o *role.Role) { o.ExtendUntilDrained = true }, false},
		"quiet":   {func(o *role.Role) { o.DrainQuietPeriod = 0 }, false},
		"retain":  {func(o *role.Role) { o.MaxVersions = 5 }, false},
		"paused":  {func(o *role.Role) { o.DisableAutomatedRotation = true }, false},
		"overlap": {func(o *role.Role) { o.OverlapPeriod = time.Hour }, true}, // no deadline moves
	} {
		o := r.Clone()
		tc.change(o)
		if r.SameSchedule(o) != tc.same || o.SameSchedule(r) != tc.same {
			t.Errorf("%s: same %t, want %t", name, !tc.same, tc.same)
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	t.Parallel()
	r := full()
	before := encode(t, r)
	c := r.Clone()
	if got := encode(t, c); got != before {
		t.Fatalf("the clone is %s", got)
	}
	c.Scopes[0], c.OverlapScopes[0], c.BoundCIDRs[0], c.Reminders[0] = "x", "x", "x", 1
	*c.RefreshInterval, *c.NotifyBefore = 1, 1
	c.CustomMetadata["team"] = "x"
	if got := encode(t, r); got != before {
		t.Errorf("a change of the clone changed the role to %s", got)
	}
}

// full is a role with no field at its zero value.
func full() *role.Role {
	r := role.New("full")
	r.Scopes, r.OverlapScopes, r.BoundCIDRs = []string{"write", "read"}, []string{"read"}, []string{"192.0.2.0/24"}
	r.RotationPeriod, r.RotationJitter, r.DisableAutomatedRotation = 30*day, 10, true
	r.ExtendUntilDrained, r.ActivationDelay, r.VersionTTL, r.TTL, r.MaxTTL = true, time.Hour, 90*day, time.Hour, day
	r.RefreshInterval, r.NotifyBefore = new(time.Minute), new(day)
	r.CustomMetadata = map[string]string{"team": "a"}
	return r
}

func encode(t *testing.T, r *role.Role) string {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestStoredFormSurvivesARoundTrip(t *testing.T) {
	t.Parallel()
	for _, r := range []*role.Role{role.New("a"), full()} {
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		var back role.Role
		if err := json.Unmarshal([]byte(encode(t, r)), &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&back, r) {
			t.Errorf("wrote %+v\nread  %+v", r, &back)
		}
	}
}

func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	text := strings.Replace(encode(t, full()), `{`, `{"key_type":{"hmac":[1,2]},`, 1)
	var r role.Role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	c := r.Clone()
	c.RotationPeriod = 60 * day
	if got := encode(t, c); strings.Count(got, `"key_type":{"hmac":[1,2]}`) != 1 {
		t.Errorf("lost in %s", got)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	for schema, ok := range map[string]bool{"0": false, "1": true, "2": false, "-1": false, `"x"`: false} {
		text := strings.Replace(encode(t, role.New("a")), `"schema":1`, `"schema":`+schema, 1)
		err := json.Unmarshal([]byte(text), new(role.Role))
		if (err == nil) != ok {
			t.Errorf("schema %s: %v", schema, err)
		}
		if schema == "2" && !strings.Contains(fmt.Sprint(err), "schema 2") {
			t.Errorf("the error does not say which: %v", err)
		}
	}
}

func TestARoleRemembersWhatClientsWereTold(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	change := func(r *role.Role, at time.Duration, edit func(*role.Role)) *role.Role {
		next := r.Clone()
		edit(next)
		next.Succeed(r, now.Add(at))
		return next
	}
	told := func(r *role.Role, at time.Duration, want time.Duration) {
		t.Helper()
		if got := r.RefreshTold(now.Add(at)); got != want {
			t.Errorf("after %s clients may sleep for %s, want %s", at, got, want)
		}
	}
	r := role.New("r") // an hour
	short := change(r, 0, func(r *role.Role) { r.OverlapPeriod = 20 * time.Minute })
	told(short, 0, time.Hour)
	told(short, time.Hour-time.Second, time.Hour)
	told(short, time.Hour, 5*time.Minute)
	// The longest holds until all that were told less have woken, too.
	shorter := change(short, 58*time.Minute, func(r *role.Role) { r.OverlapPeriod = 8 * time.Minute })
	told(shorter, 59*time.Minute, time.Hour)
	told(shorter, 62*time.Minute, time.Hour)
	told(shorter, 63*time.Minute, 2*time.Minute)
	// What changes nothing for those who sleep is not remembered, and nothing
	// that is is forgotten.
	if same := change(r, 0, func(r *role.Role) { r.OverlapPeriod = 30 * time.Hour }); !same.RefreshFormerUntil.IsZero() {
		t.Errorf("a longer overlap is remembered until %s", same.RefreshFormerUntil)
	}
	told(change(short, time.Minute, func(r *role.Role) { r.OverlapPeriod = 30 * time.Hour }), 2*time.Minute, time.Hour)
}
