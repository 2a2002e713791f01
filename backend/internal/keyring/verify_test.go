// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

// TestCodesInTheirOrder takes the reasons for a refusal away one by one, in
// the order in which they are told. MALFORMED, and NOT_FOUND for an id that
// does not exist, are decided before there is a key to ask.
func TestCodesInTheirOrder(t *testing.T) {
	t.Parallel()
	outside := keyring.Limits{Scopes: []string{"read"}, BoundCIDRs: []string{"192.0.2.0/24"}}
	ask := func(f *fixture, when time.Duration, version int, scope, ip string) keyring.Code {
		q := keyring.Query{Digest: digest(version), Scopes: []string{scope}}
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
		want    keyring.Code
	}{{9, keyring.CodeNotFound}, {1, keyring.CodeCompromised}, {2, keyring.CodeRevoked}, {3, keyring.CodeDisabled}, {4, keyring.CodeDisabled}} {
		if got := ask(f, late, tc.version, "write", ""); got != tc.want {
			t.Errorf("version %d of the disabled key: %s, want %s", tc.version, got, tc.want)
		}
	}
	f.k = enabled
	for _, tc := range []struct {
		when      time.Duration
		version   int
		scope, ip string
		want      keyring.Code
	}{
		{late, 3, "write", "", keyring.CodeRetired},
		{late, 4, "write", "", keyring.CodeExpired},
		{0, 4, "write", "", keyring.CodeForbiddenSource},
		{0, 4, "write", "198.51.100.1", keyring.CodeForbiddenSource},
		{0, 4, "write", "192.0.2.1", keyring.CodeInsufficientScope},
		{0, 4, "read", "192.0.2.1", keyring.CodeValid},
	} {
		if got := ask(f, tc.when, tc.version, tc.scope, tc.ip); got != tc.want {
			t.Errorf("version %d, scope %s from %q: %s, want %s", tc.version, tc.scope, tc.ip, got, tc.want)
		}
	}
}

func TestNotFoundTellsNothingAboutTheKey(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	v := f.k.Verify(t0, keyring.Limits{Scopes: []string{"read"}}, keyring.Query{Digest: digest(7)})
	if v.Code != keyring.CodeNotFound || v.Version != 0 || v.Scopes != nil {
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
					q := keyring.Query{Digest: digest(n), Scopes: []string{"write"}}
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

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		granted, want string
		covers        bool
	}{
		{"read", "read", true},
		{"read", "reads", false},
		{"reads", "read", false},
		{"read", "Read", false},
		{"*", "anything", true},
		{"*", "", true},
		{"orders:*", "orders:read", true},
		{"orders:*", "orders:", true},
		{"orders:*", "orders", false},
		{"orders:*", "orders:eu:*", true},
		{"orders:eu:*", "orders:*", false},
		{"read", "read*", false},
		{"read*", "read", true},
	} {
		if got := keyring.Covers(tc.granted, tc.want); got != tc.covers {
			t.Errorf("%q covers %q: %t", tc.granted, tc.want, got)
		}
	}
}

func TestIntersectGrantsWhatBothGrant(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ a, b, want []string }{
		{nil, nil, []string{}},
		{[]string{"a"}, nil, []string{}},
		{[]string{"a", "b"}, []string{"b", "c"}, []string{"b"}},
		{[]string{"a", "b"}, []string{"b", "a"}, []string{"a", "b"}},
		{[]string{"*"}, []string{"x:1", "y"}, []string{"x:1", "y"}},
		{[]string{"x:*", "y"}, []string{"x:1", "*"}, []string{"x:*", "y", "x:1"}},
		{[]string{"x:*"}, []string{"x:a:*", "z"}, []string{"x:a:*"}},
	} {
		if got := keyring.Intersect(tc.a, tc.b); !slices.Equal(got, tc.want) {
			t.Errorf("%v and %v: %v, want %v", tc.a, tc.b, got, tc.want)
		}
		back := keyring.Intersect(tc.b, tc.a)
		for _, s := range []string{"a", "b", "c", "x:1", "x:a:b", "y", "z", "q"} {
			both := keyring.CoversAll(tc.a, []string{s}) && keyring.CoversAll(tc.b, []string{s})
			if keyring.CoversAll(tc.want, []string{s}) != both || keyring.CoversAll(back, []string{s}) != both {
				t.Errorf("%v and %v disagree about %q", tc.a, tc.b, s)
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
		return f.k.Verify(t0.Add(when), l, keyring.Query{Digest: digest(version)}).Scopes
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

func TestAllowedFrom(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		cidrs []string
		ip    string
		want  bool
	}{
		{nil, "", true},
		{nil, "192.0.2.1", true},
		{[]string{"192.0.2.0/24"}, "", false},
		{[]string{"192.0.2.0/24"}, "192.0.2.255", true},
		{[]string{"192.0.2.0/24"}, "192.0.3.0", false},
		{[]string{"192.0.2.0/24"}, "::ffff:192.0.2.7", true}, // as a dual-stack listener sees it
		{[]string{"::ffff:192.0.2.0/120"}, "192.0.2.7", true},
		{[]string{"::ffff:192.0.2.0/120"}, "::ffff:192.0.2.7", true},
		{[]string{"::ffff:192.0.2.0/120"}, "192.0.3.7", false},
		{[]string{"::ffff:192.0.2.7"}, "192.0.2.7", true},
		{[]string{"192.0.2.7"}, "192.0.2.7", true},
		{[]string{"192.0.2.7"}, "192.0.2.8", false},
		{[]string{"192.0.2.9/24"}, "192.0.2.1", true}, // host bits are ignored
		{[]string{"2001:db8::/32"}, "2001:db8::1", true},
		{[]string{"2001:db8::/32"}, "2001:db9::1", false},
		{[]string{"fe80::/10"}, "fe80::1%eth0", true},
		{[]string{"0.0.0.0/0"}, "2001:db8::1", false},
		{[]string{"::/0"}, "192.0.2.1", false},
		{[]string{"10.0.0.0/8", "192.0.2.0/24"}, "192.0.2.1", true},
		{[]string{"nonsense"}, "192.0.2.1", false},
	} {
		var ip netip.Addr
		if tc.ip != "" {
			ip = netip.MustParseAddr(tc.ip)
		}
		if got := keyring.AllowedFrom(tc.cidrs, ip); got != tc.want {
			t.Errorf("%v allows %q: %t", tc.cidrs, tc.ip, got)
		}
	}
	for _, bad := range []string{"", "192.0.2", "192.0.2.0/33", "fe80::1%eth0", "fe80::/10%eth0", "host", "192.0.2.0/-1", "192.0.2.0/08", " 192.0.2.1"} {
		if _, err := keyring.ParseRange(bad); err == nil {
			t.Errorf("%q is taken for a range", bad)
		}
	}
}

// TestSourceMustFitKeyAndRole: the ranges of both hold.
func TestSourceMustFitKeyAndRole(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.k = f.k.Clone()
	f.k.BoundCIDRs = []string{"10.1.0.0/16"}
	for ip, want := range map[string]keyring.Code{
		"10.1.2.3": keyring.CodeValid,
		"10.1.9.3": keyring.CodeForbiddenSource,
		"10.2.2.3": keyring.CodeForbiddenSource,
	} {
		q := keyring.Query{Digest: digest(1), SourceIP: netip.MustParseAddr(ip)}
		if got := f.k.Verify(t0, keyring.Limits{BoundCIDRs: []string{"10.1.2.0/24", "10.2.2.0/24"}}, q).Code; got != want {
			t.Errorf("from %s: %s, want %s", ip, got, want)
		}
	}
	if got := f.k.Verify(t0, keyring.Limits{}, keyring.Query{Digest: digest(1)}).Code; got != keyring.CodeForbiddenSource {
		t.Errorf("without source_ip: %s", got)
	}
}
