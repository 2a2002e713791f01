// SPDX-License-Identifier: MPL-2.0

package role_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

const maxDuration = role.MaxDuration

// TestBadRolesAreRefused: each error names the field, the fault and what is
// accepted, in these words.
func TestBadRolesAreRefused(t *testing.T) {
	t.Parallel()
	type change = func(r *role.Role)
	for _, tc := range []struct {
		name   string
		change change
		want   []string
	}{
		{"prefix with a dash", func(r *role.Role) { r.Prefix = "tm-live" }, []string{"prefix must be", `"tm-live"`, "a-z, 0-9 and _"}},
		{"prefix with a capital", func(r *role.Role) { r.Prefix = "Key" }, []string{"prefix must be", `"Key"`}},
		{"empty prefix", func(r *role.Role) { r.Prefix = "" }, []string{"prefix must be", "empty"}},
		{"long prefix", func(r *role.Role) { r.Prefix = strings.Repeat("a", 33) }, []string{"prefix must be", "33 characters"}},
		{"no secret length", func(r *role.Role) { r.SecretLength = 0 }, []string{"secret_length must be between 22 and 128, got 0"}},
		{"short secret", func(r *role.Role) { r.SecretLength = 21 }, []string{"secret_length must be between 22 and 128, got 21"}},
		{"long secret", func(r *role.Role) { r.SecretLength = 129 }, []string{"secret_length", "got 129"}},

		{"period and schedule", func(r *role.Role) { r.RotationPeriod, r.RotationSchedule = day, "0 3 * * *" }, []string{"rotation_period and rotation_schedule", "one of them"}},
		{"window without schedule", func(r *role.Role) { r.RotationPeriod, r.RotationWindow = day, time.Hour }, []string{"rotation_window needs rotation_schedule"}},
		{"window longer than the interval", func(r *role.Role) { r.RotationSchedule, r.RotationWindow = "0 3 * * *", 25*time.Hour }, []string{"rotation_window must be at most 24h"}},
		{"negative period", func(r *role.Role) { r.RotationPeriod = -day }, []string{"rotation_period must be", "got -24h"}},
		{"endless period", func(r *role.Role) { r.RotationPeriod = 1<<63 - 1 }, []string{"rotation_period must be", "87600h"}},
		{"bad cron", func(r *role.Role) { r.RotationSchedule = "61 * * * *" }, []string{"rotation_schedule", "minute"}},
		{"cron that never fires", func(r *role.Role) { r.RotationSchedule = "0 0 31 2 *" }, []string{"rotation_schedule never fires"}},
		{"jitter", func(r *role.Role) { r.RotationJitter = 51 }, []string{"rotation_jitter", "between 0 and 50, got 51"}},
		{"negative jitter", func(r *role.Role) { r.RotationJitter = -1 }, []string{"rotation_jitter", "got -1"}},

		{"negative overlap", func(r *role.Role) { r.OverlapPeriod = -time.Minute }, []string{"overlap_period must be between 0s and", "got -1m0s"}},
		{"overlap over the maximum", func(r *role.Role) { r.OverlapPeriod = 31 * day }, []string{"overlap_period must be between 0s and max_overlap_period (720h0m0s), got 744h0m0s"}},
		{"negative maximum", func(r *role.Role) { r.MaxOverlapPeriod = -1 }, []string{"max_overlap_period must be between"}},
		{"overflowing maximum", func(r *role.Role) { r.MaxOverlapPeriod = 1<<63 - 1 }, []string{"max_overlap_period must be between", "876000h"}},
		{"fraction of a second", func(r *role.Role) { r.OverlapPeriod = 1500 * time.Millisecond }, []string{"overlap_period", "whole seconds", "1.5s"}},
		{"negative quiet period", func(r *role.Role) { r.DrainQuietPeriod = -1 }, []string{"drain_quiet_period must be"}},
		{"negative delay", func(r *role.Role) { r.ActivationDelay = -time.Second }, []string{"activation_delay must be"}},
		{"negative rollback window", func(r *role.Role) { r.RollbackWindow = -time.Second }, []string{"rollback_window must be"}},
		{"negative version_ttl", func(r *role.Role) { r.VersionTTL = -time.Second }, []string{"version_ttl must be"}},
		{"negative ttl", func(r *role.Role) { r.TTL = -time.Second }, []string{"ttl must be"}},
		{"negative max_ttl", func(r *role.Role) { r.MaxTTL = -time.Second }, []string{"max_ttl must be"}},
		{"ttl over max_ttl", func(r *role.Role) { r.TTL, r.MaxTTL = 2*time.Hour, time.Hour }, []string{"ttl must be at most max_ttl (1h0m0s), got 2h0m0s"}},
		{"no refresh_interval", func(r *role.Role) { r.RefreshInterval = new(time.Duration(0)) }, []string{"refresh_interval must be between 1s and", "got 0s"}},
		{"late refresh_interval", func(r *role.Role) { r.RotationPeriod, r.RefreshInterval = 30*day, new(day) }, []string{"refresh_interval must be shorter than overlap_period (24h0m0s)", "got 24h0m0s"}},
		{"negative notify_before", func(r *role.Role) { r.NotifyBefore = new(-time.Second) }, []string{"notify_before must be"}},

		{"window of 0", func(r *role.Role) { r.MaxAcceptedVersions = 0 }, []string{"max_accepted_versions must be between 2 and 16", "got 0"}},
		{"window of 17", func(r *role.Role) { r.MaxAcceptedVersions, r.MaxVersions = 17, 20 }, []string{"max_accepted_versions must be between 2 and 16", "got 17"}},
		{"window of 1 with an overlap", func(r *role.Role) { r.MaxAcceptedVersions = 1 }, []string{"max_accepted_versions must be between 2 and 16, got 1", "overlap_period of 24h"}},
		{"window of 1 with a delay", func(r *role.Role) { r.MaxAcceptedVersions, r.OverlapPeriod, r.ActivationDelay = 1, 0, time.Hour }, []string{"max_accepted_versions must be between 2 and 16, got 1", "activation_delay of 1h"}},
		{"retains fewer than it accepts", func(r *role.Role) { r.MaxVersions = 2 }, []string{"max_versions must be between max_accepted_versions (3) and 100, got 2"}},
		{"retains too many", func(r *role.Role) { r.MaxVersions = 101 }, []string{"max_versions", "got 101"}},
		{"reminder of 0", func(r *role.Role) { r.Reminders = []int{0} }, []string{"reminders must be", "between 1 and 99", "got 0 at position 1"}},
		{"reminder of 100", func(r *role.Role) { r.Reminders = []int{50, 100} }, []string{"got 100 at position 2"}},
		{"reminders in disorder", func(r *role.Role) { r.Reminders = []int{80, 50} }, []string{"ascending", "got 50 at position 2"}},
		{"reminder twice", func(r *role.Role) { r.Reminders = []int{50, 50} }, []string{"ascending"}},
		{"leak_response", func(r *role.Role) { r.LeakResponse = "panic" }, []string{"leak_response must be alert, revoke or rotate"}},

		{"short overlap that rotates by itself", func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = day, 299*time.Second }, []string{"overlap_period must be at least 5m0s, or an explicit 0", "got 4m59s"}},
		{"overlap that the window cannot hold", func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = day, 48*time.Hour+time.Second }, []string{
			"overlap_period of 48h0m1s at a rotation interval of 24h0m0s needs 4 accepted versions", "max_accepted_versions is 3",
			"overlap_period up to 48h0m0s fits", "max_accepted_versions of at least 4", "an interval of at least 24h0m1s",
		}},
		{"shortest interval of a schedule counts", func(r *role.Role) { r.RotationSchedule, r.OverlapPeriod = "0 0 1,2 * *", 49*time.Hour }, []string{"interval of 24h0m0s needs 4"}},
		{"window that would be too large", func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = time.Hour, 16*time.Hour }, []string{"needs 17 accepted versions", "overlap_period up to 2h0m0s fits, or an interval of at least 8h0m0s"}},
		{"nothing but 0 fits", func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = time.Minute, time.Hour }, []string{"overlap_period=0 fits"}},
		{"more retained for a larger window", func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod, r.MaxVersions = day, 5*day, 4 }, []string{"max_accepted_versions of at least 6 with max_versions of at least 6"}},
		{"delay as long as the interval", func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod, r.ActivationDelay = day, time.Hour, day }, []string{"activation_delay must be shorter than the rotation interval of 24h0m0s", "activation_delay up to 23h59m59s fits"}},
		{"delay and overlap fill the window", func(r *role.Role) {
			r.RotationPeriod, r.OverlapPeriod, r.ActivationDelay = day, 47*time.Hour, time.Hour
		}, []string{"activation_delay + overlap_period must be shorter", "48h0m0s, got 48h0m0s", "activation_delay up to 59m59s fits"}},
		{"overlap fills the window alone", func(r *role.Role) {
			r.RotationPeriod, r.OverlapPeriod, r.ActivationDelay = day, 48*time.Hour, time.Hour
		}, []string{"only activation_delay=0 fits"}},

		{"age under interval and overlap", func(r *role.Role) {
			r.RotationPeriod, r.RotationJitter, r.VersionTTL = 10*day, 10, 12*day-1*time.Second
		}, []string{"version_ttl must be 0 or at least", "(288h0m0s), got 287h59m59s"}},
		{"age under the longest interval of a schedule", func(r *role.Role) { r.RotationSchedule, r.VersionTTL = "0 0 1 * *", 31*day }, []string{"version_ttl must be 0 or at least", "(768h0m0s)"}},
		{"age under ten jittered years", func(r *role.Role) {
			r.RotationPeriod, r.RotationJitter, r.VersionTTL = 87600*time.Hour, 50, 87600*time.Hour
		}, []string{"version_ttl must be 0 or at least", "131424h"}},
		{"age that forgets the delay", func(r *role.Role) {
			r.RotationPeriod, r.ActivationDelay, r.VersionTTL = 10*day, 2*day, 11*day
		}, []string{"version_ttl must be 0 or at least", "(312h0m0s)"}},
		{"age under the overlap", func(r *role.Role) { r.VersionTTL = 23 * time.Hour }, []string{"version_ttl must be 0 or at least overlap_period (24h0m0s), got 23h0m0s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := role.New("partners")
			tc.change(r)
			err := r.Validate()
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestRolesAtTheEdgeAreAccepted(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(r *role.Role){
		"overlap at the maximum":  func(r *role.Role) { r.OverlapPeriod = 30 * day },
		"overlap that just fits":  func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = day, 48*time.Hour },
		"least automatic overlap": func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = day, role.MinAutomaticOverlap },
		"explicit 0":              func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = time.Minute, 0 },
		"window of 1":             func(r *role.Role) { r.MaxAcceptedVersions, r.OverlapPeriod, r.MaxVersions = 1, 0, 1 },
		"window of 16":            func(r *role.Role) { r.MaxAcceptedVersions, r.MaxVersions = 16, 16 },
		"age that just fits":      func(r *role.Role) { r.RotationPeriod, r.RotationJitter, r.VersionTTL = 10*day, 10, 12*day },
		"age of the overlap":      func(r *role.Role) { r.VersionTTL = day },
		"short overlap by hand":   func(r *role.Role) { r.OverlapPeriod = time.Second },
		"short overlap, automation off": func(r *role.Role) {
			r.RotationPeriod, r.OverlapPeriod, r.DisableAutomatedRotation = day, 60*day/60, true
		},
		"not retrievable, by hand":      func(r *role.Role) { r.Retrievable = false },
		"not retrievable, switched off": func(r *role.Role) { r.Retrievable, r.RotationPeriod, r.DisableAutomatedRotation = false, day, true },
		"delay just under the interval": func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod, r.ActivationDelay = day, 0, day-time.Second },
		"long delay by hand":            func(r *role.Role) { r.ActivationDelay = 365 * day },
		"no reminders":                  func(r *role.Role) { r.Reminders = nil },
		"reminders at the ends":         func(r *role.Role) { r.Reminders = []int{1, 99} },
		"ttl without max_ttl":           func(r *role.Role) { r.TTL = day },
		"longest": func(r *role.Role) {
			r.MaxOverlapPeriod, r.OverlapPeriod, r.RollbackWindow = maxDuration, maxDuration, maxDuration
		},
		"prefix with underscores":       func(r *role.Role) { r.Prefix = "tm_live_2" },
		"refresh_interval by hand":      func(r *role.Role) { r.RefreshInterval = new(7 * day) },
		"refresh_interval at overlap 0": func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod, r.RefreshInterval = day, 0, new(time.Second) },
		"window of a schedule, jittered": func(r *role.Role) {
			r.RotationSchedule, r.RotationWindow, r.RotationJitter = "0 3 * * 1", time.Hour, 50
		},
	} {
		r := role.New("partners")
		change(r)
		if err := r.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const planted = "key_EXAMPLEkey01_SECRETSECRETSECRETSECRETSECRETAA000000"

// TestErrorsNeverShowWhatCouldBeASecret: somebody pastes a token where it does
// not belong.
func TestErrorsNeverShowWhatCouldBeASecret(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(r *role.Role, secret string){
		"prefix":             func(r *role.Role, s string) { r.Prefix = s },
		"scopes":             func(r *role.Role, s string) { r.Scopes = []string{s + "!"} },
		"scopes twice":       func(r *role.Role, s string) { r.Scopes = []string{s, s} },
		"overlap_scopes":     func(r *role.Role, s string) { r.OverlapScopes = []string{s} },
		"rotation_schedule":  func(r *role.Role, s string) { r.RotationSchedule = s },
		"cron field":         func(r *role.Role, s string) { r.RotationSchedule = "* * * * " + s },
		"bound_cidrs":        func(r *role.Role, s string) { r.BoundCIDRs = []string{s} },
		"custom_metadata":    func(r *role.Role, s string) { r.CustomMetadata = map[string]string{s + "!": "v"} },
		"value of metadata":  func(r *role.Role, s string) { r.CustomMetadata = map[string]string{"k": strings.Repeat(s, 20)} },
		"leak_response":      func(r *role.Role, s string) { r.LeakResponse = s },
		"bound_cidrs, twice": func(r *role.Role, s string) { r.BoundCIDRs = []string{"192.0.2.1", "192.0.2.1", s} },
	} {
		r := role.New("partners")
		change(r, planted)
		err := r.Validate()
		if err == nil {
			t.Errorf("%s is accepted", name)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestScopeShapes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 128)
	for _, tc := range []struct {
		scope             string
		granted, required bool
	}{
		{"read", true, true},
		{"orders:eu/west-1.v2_x", true, true},
		{"Z9", true, true},
		{"*", true, false},
		{"orders:*", true, false},
		{"orders:*:read", false, false},
		{"**", false, false},
		{"", false, false},
		{" read", false, false},
		{"read\n", false, false},
		{"a,b", false, false},
		{"lesen\u00fc", false, false},
		{long, true, true},
		{long + "a", false, false},
		{long[1:] + "*", true, false},
		{long + "*", false, false},
	} {
		if err := role.CheckGrants("scopes", []string{tc.scope}); (err == nil) != tc.granted {
			t.Errorf("granted %q: %v", tc.scope, err)
		}
		if err := role.CheckRequired("scopes", []string{tc.scope}); (err == nil) != tc.required {
			t.Errorf("required %q: %v", tc.scope, err)
		}
	}
	many := make([]string, 129)
	for i := range many {
		many[i] = fmt.Sprint("s", i)
	}
	if err := role.CheckGrants("scopes", many[:128]); err != nil {
		t.Error(err)
	}
	for _, err := range []error{role.CheckGrants("scopes", many), role.CheckRequired("scopes", []string{"a", "b", "a"}), role.CheckGrants("scopes", []string{"a", "!"})} {
		if err == nil || !strings.HasPrefix(err.Error(), "scopes") {
			t.Errorf("%v", err)
		}
	}
}

func TestOverlapScopesNarrow(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		scopes, overlap []string
		ok              bool
	}{
		{[]string{"read", "write"}, []string{"read"}, true},
		{[]string{"orders:*"}, []string{"orders:read", "orders:eu:*"}, true},
		{[]string{"orders:read"}, []string{"orders:*"}, false},
		{nil, []string{"read"}, false},
		{nil, nil, true},
	} {
		r := role.New("a")
		r.Scopes, r.OverlapScopes = tc.scopes, tc.overlap
		if err := r.Validate(); (err == nil) != tc.ok {
			t.Errorf("%v in %v: %v", tc.overlap, tc.scopes, err)
		}
	}
}

func TestCIDRsAndMetadata(t *testing.T) {
	t.Parallel()
	good := []string{"192.0.2.7", "192.0.2.0/24", "2001:db8::/32", "::1", "::ffff:192.0.2.0/120", "0.0.0.0/0"}
	if err := role.CheckCIDRs("bound_cidrs", good); err != nil {
		t.Error(err)
	}
	many := make([]string, 129)
	for i := range many {
		many[i] = fmt.Sprintf("192.0.2.%d", i)
	}
	for _, bad := range [][]string{{"192.0.2.0/33"}, {"host"}, {""}, {"10.0.0.1", "10.0.0.1"}, {"fe80::1%eth0"}, many} {
		if err := role.CheckCIDRs("bound_cidrs", bad); err == nil || !strings.HasPrefix(err.Error(), "bound_cidrs") {
			t.Errorf("%d from %q: %v", len(bad), bad[0], err)
		}
	}

	pairs := map[string]string{}
	for i := range 64 {
		pairs[fmt.Sprint("k", i)] = strings.Repeat("v", 512)
	}
	if err := role.CheckMetadata(pairs); err != nil {
		t.Error(err)
	}
	pairs["one-too-many"] = ""
	for _, bad := range []map[string]string{pairs, {"": "v"}, {"a b": "v"}, {strings.Repeat("k", 129): "v"}, {"k": strings.Repeat("v", 513)}} {
		if err := role.CheckMetadata(bad); err == nil || !strings.HasPrefix(err.Error(), "custom_metadata") {
			t.Errorf("%d pairs: %v", len(bad), err)
		}
	}
}

// mend is a value that an error suggests, and how to take it.
type mend struct {
	pattern *regexp.Regexp
	apply   func(r *role.Role, values []string)
}

func mends(t *rapid.T) []mend {
	d := func(text string) time.Duration {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	n := func(text string) int {
		parsed, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	on := func(pattern string, apply func(r *role.Role, v []string)) mend {
		return mend{regexp.MustCompile(pattern), apply}
	}
	return []mend{
		on(`overlap_period up to (\S+) fits`, func(r *role.Role, v []string) { r.OverlapPeriod = d(v[1]) }),
		on(`overlap_period=0 fits`, func(r *role.Role, _ []string) { r.OverlapPeriod = 0 }),
		on(`max_accepted_versions of at least (\d+)(?: with max_versions of at least (\d+))?`, func(r *role.Role, v []string) {
			r.MaxAcceptedVersions = n(v[1])
			if v[2] != "" {
				r.MaxVersions = n(v[2])
			}
		}),
		on(`an interval of at least (\S+)`, func(r *role.Role, v []string) {
			r.RotationPeriod, r.RotationSchedule, r.RotationWindow = d(v[1]), "", 0
		}),
		on(`activation_delay up to (\S+) fits`, func(r *role.Role, v []string) { r.ActivationDelay = d(v[1]) }),
		on(`only activation_delay=0 fits`, func(r *role.Role, _ []string) { r.ActivationDelay = 0 }),
		on(`overlap_period must be between 0s and max_overlap_period \((\S+)\)`, func(r *role.Role, v []string) { r.OverlapPeriod = d(v[1]) }),
		on(`overlap_period must be at least (\S+), or an explicit 0`, func(r *role.Role, v []string) { r.OverlapPeriod = d(v[1]) }),
		on(`or an explicit 0`, func(r *role.Role, _ []string) { r.OverlapPeriod = 0 }),
		on(`max_accepted_versions must be between (\d+) and \d+, got 1:`, func(r *role.Role, v []string) { r.MaxAcceptedVersions = n(v[1]) }),
		on(`max_versions must be between max_accepted_versions \((\d+)\)`, func(r *role.Role, v []string) { r.MaxVersions = n(v[1]) }),
		on(`version_ttl must be 0`, func(r *role.Role, _ []string) { r.VersionTTL = 0 }),
		on(`version_ttl must be 0 or at least .*\((\S+)\)`, func(r *role.Role, v []string) { r.VersionTTL = d(v[1]) }),
		on(`refresh_interval must be shorter than overlap_period \((\S+)\)`, func(r *role.Role, v []string) { *r.RefreshInterval = d(v[1]) - time.Second }),
		on(`rotation_window must be at most (\S+),`, func(r *role.Role, v []string) { r.RotationWindow = d(v[1]) }),
	}
}

// mended tells whether again is about something else than first. Who mends an
// overlap should not have to mend its activation_delay for the same window.
func mended(first, again error) bool {
	rule := func(err error) string {
		return regexp.MustCompile(`[0-9][0-9hms.]*`).ReplaceAllString(strings.SplitN(err.Error(), ":", 2)[0], "N")
	}
	is := func(err error, field string) bool { return strings.HasPrefix(err.Error(), field) }
	if is(first, "overlap_period of") && is(again, "activation_delay") || is(first, "activation_delay") && is(again, "activation_delay") {
		return false
	}
	return rule(first) != rule(again)
}

// TestWhatAnErrorSuggestsFits takes any suggestion of an error: the rule is
// kept then, and a few suggestions make any of these roles acceptable.
func TestWhatAnErrorSuggestsFits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := role.New("partners")
		seconds := func(label string, most time.Duration) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(most/time.Second)).Draw(t, label)) * time.Second
		}
		if rapid.Bool().Draw(t, "cron") {
			r.RotationSchedule = rapid.SampledFrom([]string{"*/7 * * * *", "0 3 * * *", "0 0 1,2 * *", "0 0 29 2 *"}).Draw(t, "schedule")
			r.RotationWindow = rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 2 * day}).Draw(t, "window")
		} else {
			r.RotationPeriod = max(time.Second, seconds("period", 40*day))
			if rapid.Bool().Draw(t, "short") {
				r.RotationPeriod = max(time.Second, r.RotationPeriod%time.Hour)
			}
		}
		r.RotationJitter = rapid.IntRange(0, 50).Draw(t, "jitter")
		r.OverlapPeriod = seconds("overlap", 40*day)
		r.MaxOverlapPeriod = max(time.Hour, seconds("max_overlap", 40*day))
		r.ActivationDelay = seconds("delay", rapid.SampledFrom([]time.Duration{0, time.Hour, 20 * day}).Draw(t, "most delay"))
		r.MaxAcceptedVersions = rapid.IntRange(1, 16).Draw(t, "window of versions")
		r.MaxVersions = rapid.IntRange(1, 20).Draw(t, "max_versions")
		r.VersionTTL = seconds("version_ttl", 80*day)
		if rapid.Bool().Draw(t, "refresh") {
			r.RefreshInterval = new(time.Second + seconds("refresh_interval", 2*day))
		}
		for range 12 {
			err := r.Validate()
			if err == nil {
				return
			}
			var found []func()
			for _, m := range mends(t) {
				if values := m.pattern.FindStringSubmatch(err.Error()); values != nil {
					found = append(found, func() { m.apply(r, values) })
				}
			}
			if len(found) == 0 {
				t.Fatalf("suggests nothing: %v", err)
			}
			rapid.SampledFrom(found).Draw(t, "mend")()
			if again := r.Validate(); again != nil && !mended(err, again) {
				t.Fatalf("what it suggests does not fit\nfirst %v\nthen  %v", err, again)
			}
		}
		t.Fatalf("still refused: %v", r.Validate())
	})
}
