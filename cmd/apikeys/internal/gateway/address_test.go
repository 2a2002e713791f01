// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"net/netip"
	"strings"
	"testing"
)

func TestClientAddress(t *testing.T) {
	t.Parallel()
	trusted := proxies{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"nobody else", "198.51.100.1", nil, "198.51.100.1"},
		{"an untrusted peer says what it likes", "198.51.100.1", []string{"203.0.113.9"}, "198.51.100.1"},
		{"one proxy", "127.0.0.1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"two proxies", "127.0.0.1", []string{"203.0.113.9, 10.1.2.3"}, "203.0.113.9"},
		{"the client's own entries are not read", "127.0.0.1", []string{"192.0.2.1, 203.0.113.9, 10.1.2.3"}, "203.0.113.9"},
		{"nor its own line", "127.0.0.1", []string{"192.0.2.1", "203.0.113.9"}, "203.0.113.9"},
		{"nor its garbage", "127.0.0.1", []string{"garbage, 203.0.113.9"}, "203.0.113.9"},
		{"only proxies", "127.0.0.1", []string{"10.0.0.1"}, "10.0.0.1"},
		{"a proxy that says nothing", "127.0.0.1", nil, ""},
		{"garbage from a proxy", "127.0.0.1", []string{"203.0.113.9, unknown"}, ""},
		{"an empty entry", "127.0.0.1", []string{"203.0.113.9,"}, ""},
		{"with a port", "127.0.0.1", []string{"203.0.113.9:1234"}, "203.0.113.9"},
		{"IPv6", "2001:db8::1", []string{"2001:db9::2"}, "2001:db9::2"},
		{"IPv6 in brackets", "127.0.0.1", []string{"[2001:db9::2]"}, "2001:db9::2"},
		{"IPv6 with a port", "127.0.0.1", []string{"[2001:db9::2]:443"}, "2001:db9::2"},
		{"mapped", "::ffff:127.0.0.1", []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{"a Unix socket", "", []string{"203.0.113.9"}, "203.0.113.9"},
		{"a Unix socket that says nothing", "", nil, ""},
		{"too many hops", "127.0.0.1", []string{"203.0.113.9" + strings.Repeat(",10.0.0.1", maxHops)}, ""},
	} {
		var peer netip.Addr
		if c.peer != "" {
			peer = netip.MustParseAddr(c.peer).Unmap()
		}
		got := trusted.client(peer, c.forwarded)
		if got.IsValid() != (c.want != "") || got.IsValid() && got.String() != c.want {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
	}
}
