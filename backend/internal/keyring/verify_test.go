// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// TestCodesInTheirOrder takes the reasons for a refusal away one by one, in
// the order in which they are told. MALFORMED, and NOT_FOUND for an id that
// does not exist, are decided before there is a key to ask.
func TestCodesInTheirOrder(t *testing.T) {
	t.Parallel()
	outside := keyring.Limits{Scopes: []string{"read"}, BoundCIDRs: []string{"192.0.2.0/24"}}
	ask := func(f *fixture, when time.Duration, version int, scope, ip string) record.Code {
		q := record.Query{Digest: digest(version), Scopes: []string{scope}}
		if ip != "" {
			q.SourceIP = netip.MustParseAddr(ip)
		}
		return f.k.Verify(t0.Add(when), outside, q).Code
	}
	p := policy()
	p.VersionTTL = 100 * time.Hour
	f := named(t, p)
	f.must(f.overlap(0, time.Hour))
	f.must(f.overlap(time.Hour, time.Hour))
	f.must(f.overlap(2*time.Hour, time.Hour))
	f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{Version: 1, Compromised: true}))
	f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{Version: 2}))
	enabled := f.k
	f.k = f.k.Clone()
	f.k.Disabled = true
	late := 200 * time.Hour
	for _, tc := range []struct {
		version int
		want    record.Code
	}{{9, record.CodeNotFound}, {1, record.CodeCompromised}, {2, record.CodeRevoked}, {3, record.CodeDisabled}, {4, record.CodeDisabled}} {
		if got := ask(f, late, tc.version, "write", ""); got != tc.want {
			t.Errorf("version %d of the disabled key: %s, want %s", tc.version, got, tc.want)
		}
	}
	f.k = enabled
	for _, tc := range []struct {
		when      time.Duration
		version   int
		scope, ip string
		want      record.Code
	}{
		{late, 3, "write", "", record.CodeRetired},
		{late, 4, "write", "", record.CodeExpired},
		{0, 4, "write", "", record.CodeForbiddenSource},
		{0, 4, "write", "198.51.100.1", record.CodeForbiddenSource},
		{0, 4, "write", "192.0.2.1", record.CodeInsufficientScope},
		{0, 4, "read", "192.0.2.1", record.CodeValid},
	} {
		if got := ask(f, tc.when, tc.version, tc.scope, tc.ip); got != tc.want {
			t.Errorf("version %d, scope %s from %q: %s, want %s", tc.version, tc.scope, tc.ip, got, tc.want)
		}
	}
}

func TestNotFoundTellsNothingAboutTheKey(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	v := f.k.Verify(t0, keyring.Limits{Scopes: []string{"read"}}, record.Query{Digest: digest(7)})
	if v.Code != record.CodeNotFound || v.Version != 0 || v.Scopes != nil {
		t.Errorf("%+v", v)
	}
}

// TestVerdictIsTheSameBeforeAndAfterTheTick asks for everything that a verdict
// says, at the instants around each deadline, of a key that ticks and one that
// does not.
func TestVerdictIsTheSameBeforeAndAfterTheTick(t *testing.T) {
	t.Parallel()
	p := policy()
	p.VersionTTL = 100 * time.Hour
	draining := p
	draining.ExtendUntilDrained = true
	for name, tc := range map[string]struct {
		make func() *fixture
	}{
		"overlaps": {func() *fixture {
			f := named(t, p)
			f.must(f.overlap(0, 24*time.Hour))
			f.must(f.overlap(90*time.Hour, 24*time.Hour))
			return f
		}},
		"drain": {func() *fixture {
			f := named(t, draining)
			f.must(f.overlap(0, 24*time.Hour))
			return f
		}},
		"leases": {func() *fixture {
			f := leased(t, p)
			f.must(f.overlap(30*time.Minute, 5*time.Hour))
			f.k.Versions[1].ExpireTime = t0.Add(90 * time.Minute)
			return f
		}},
		"extension": {func() *fixture {
			f := named(t, p)
			f.must(f.overlap(0, 24*time.Hour))
			f.must(f.extend(30*time.Hour, 1, 60*time.Hour))
			return f
		}},
	} {
		f := tc.make()
		limits := keyring.Limits{Scopes: []string{"read", "write"}, OverlapScopes: []string{"read"}}
		for _, h := range []time.Duration{0, 1, 2, 5, 6, 10, 24, 30, 90, 100, 114, 190, 214, 720, 1000} {
			for _, off := range []time.Duration{-time.Millisecond, 0, time.Millisecond} {
				when := h*time.Hour + off
				if t0.Add(when).Before(f.k.Recorded) {
					continue
				}
				ticked := &fixture{t, f.k, f.p}
				ticked.tick(when)
				for n := 1; n <= 3; n++ {
					q := record.Query{Digest: digest(n), Scopes: []string{"write"}}
					a, b := f.k.Verify(t0.Add(when), limits, q), ticked.k.Verify(t0.Add(when), limits, q)
					if a.Code != b.Code || a.Version != b.Version || !slices.Equal(a.Scopes, b.Scopes) {
						t.Errorf("%s: version %d after %s: %+v before the tick, %+v after", name, n, when, a, b)
					}
					before, known := f.k.Version(n)
					after, kept := ticked.k.Version(n)
					if known && kept && before.StateAt(t0.Add(when)) != after.StateAt(t0.Add(when)) {
						t.Errorf("%s: version %d after %s: %s before the tick, %s after", name, n, when, before.StateAt(t0.Add(when)), after.State)
					}
					if known && kept && before.RestorableAt(t0.Add(when)) != after.RestorableAt(t0.Add(when)) {
						t.Errorf("%s: version %d after %s: a tick changes whether it can be restored", name, n, when)
					}
				}
			}
		}
	}
}

// TestScopesAreTheIntersectionAsItIsNow: a change of the role, or of the key,
// holds at the next verification, and never widens the other.
func TestScopesAreTheIntersectionAsItIsNow(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	if got := f.k.GrantedScopes(keyring.Limits{Scopes: []string{"read", "write"}}); len(got) != 2 {
		t.Errorf("a key without scopes of its own: %v, want the role's", got)
	}
	f.k = f.k.Clone()
	f.k.Scopes = &[]string{"orders:*", "write"}
	for _, tc := range []struct{ role, want []string }{
		{[]string{"*"}, []string{"orders:*", "write"}},
		{[]string{"orders:read"}, []string{"orders:read"}},
		{[]string{"read"}, []string{}},
		{nil, []string{}},
	} {
		if got := f.k.GrantedScopes(keyring.Limits{Scopes: tc.role}); !slices.Equal(got, tc.want) {
			t.Errorf("role %v: %v, want %v", tc.role, got, tc.want)
		}
	}
	f.k.Scopes = &[]string{}
	if got := reload(t, f.k).GrantedScopes(keyring.Limits{Scopes: []string{"*"}}); len(got) != 0 {
		t.Errorf("a key that was given no scopes has %v", got)
	}
}

func TestOverlapScopes(t *testing.T) {
	t.Parallel()
	limits := keyring.Limits{Scopes: []string{"read", "write", "admin"}}
	narrowing := limits
	narrowing.OverlapScopes = []string{"read", "write"}
	scopes := func(f *fixture, l keyring.Limits, when time.Duration, version int) []string {
		return f.k.Verify(t0.Add(when), l, record.Query{Digest: digest(version)}).Scopes
	}
	want := func(t *testing.T, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("scopes %v, want %v", got, want)
		}
	}
	p := policy()
	p.ExtendUntilDrained = true
	t.Run("of the role, between overlap_ends and accepted_until", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.overlap(0, 24*time.Hour))
		want(t, scopes(f, narrowing, 24*time.Hour-1, 1), "read", "write", "admin")
		want(t, scopes(f, narrowing, 24*time.Hour, 1), "read", "write")
		want(t, scopes(f, narrowing, 24*time.Hour, 2), "read", "write", "admin")
		want(t, scopes(f, limits, 24*time.Hour, 1), "read", "write", "admin")
		f.must(f.extend(25*time.Hour, 1, 10*time.Hour))
		want(t, scopes(f, narrowing, 25*time.Hour, 1), "read", "write", "admin")
		want(t, scopes(f, narrowing, 720*time.Hour, 1), "read", "write", "admin") // retired: no longer between
	})
	t.Run("of a rotation, at once", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: 24 * time.Hour, OverlapScopes: []string{"read", "other"}}))
		want(t, scopes(f, limits, 0, 1), "read")
		want(t, scopes(f, limits, 0, 2), "read", "write", "admin")
		want(t, scopes(f, narrowing, 25*time.Hour, 1), "read")
		f.must(f.rollback(time.Hour, keyring.RollbackOptions{Overlap: time.Hour}))
		want(t, scopes(f, limits, time.Hour, 1), "read", "write", "admin")
	})
	t.Run("of a rotation with a delay, at the promotion", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: 24 * time.Hour, ActivationDelay: time.Hour, OverlapScopes: []string{"read"}}))
		want(t, scopes(f, limits, 0, 1), "read", "write", "admin")
		want(t, scopes(f, limits, 0, 2), "read", "write", "admin")
		f.k = reload(t, f.k)
		f.tick(time.Hour)
		want(t, scopes(f, limits, time.Hour, 1), "read")
	})
	t.Run("none at all, after a restart too", func(t *testing.T) {
		t.Parallel()
		f := named(t, p)
		f.must(f.rotate(0, keyring.RotateOptions{Overlap: 24 * time.Hour, ActivationDelay: time.Hour, OverlapScopes: []string{}}))
		f.k = reload(t, f.k)
		f.tick(time.Hour)
		want(t, scopes(f, limits, time.Hour, 1))
		f.k = reload(t, f.k)
		want(t, scopes(f, limits, time.Hour, 1))
	})
}

// TestSourceMustFitKeyAndRole: the ranges of both hold.
func TestSourceMustFitKeyAndRole(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.k = f.k.Clone()
	f.k.BoundCIDRs = []string{"10.1.0.0/16"}
	for ip, want := range map[string]record.Code{
		"10.1.2.3": record.CodeValid,
		"10.1.9.3": record.CodeForbiddenSource,
		"10.2.2.3": record.CodeForbiddenSource,
	} {
		q := record.Query{Digest: digest(1), SourceIP: netip.MustParseAddr(ip)}
		if got := f.k.Verify(t0, keyring.Limits{BoundCIDRs: []string{"10.1.2.0/24", "10.2.2.0/24"}}, q).Code; got != want {
			t.Errorf("from %s: %s, want %s", ip, got, want)
		}
	}
	if got := f.k.Verify(t0, keyring.Limits{}, record.Query{Digest: digest(1)}).Code; got != record.CodeForbiddenSource {
		t.Errorf("without source_ip: %s", got)
	}
}
