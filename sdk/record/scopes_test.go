// SPDX-License-Identifier: MPL-2.0

package record_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

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
		if got := record.Covers(tc.granted, tc.want); got != tc.covers {
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
		if got := record.Intersect(tc.a, tc.b); !slices.Equal(got, tc.want) {
			t.Errorf("%v and %v: %v, want %v", tc.a, tc.b, got, tc.want)
		}
		back := record.Intersect(tc.b, tc.a)
		for _, s := range []string{"a", "b", "c", "x:1", "x:a:b", "y", "z", "q"} {
			both := record.CoversAll(tc.a, []string{s}) && record.CoversAll(tc.b, []string{s})
			if record.CoversAll(tc.want, []string{s}) != both || record.CoversAll(back, []string{s}) != both {
				t.Errorf("%v and %v disagree about %q", tc.a, tc.b, s)
			}
		}
	}
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
		if got := record.AllowedFrom(tc.cidrs, ip); got != tc.want {
			t.Errorf("%v allows %q: %t", tc.cidrs, tc.ip, got)
		}
	}
	for _, bad := range []string{"", "192.0.2", "192.0.2.0/33", "fe80::1%eth0", "fe80::/10%eth0", "host", "192.0.2.0/-1", "192.0.2.0/08", " 192.0.2.1"} {
		if _, err := record.ParseRange(bad); err == nil {
			t.Errorf("%q is taken for a range", bad)
		}
	}
}
