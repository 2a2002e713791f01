// SPDX-License-Identifier: MPL-2.0

package record

import (
	"errors"
	"net/netip"
	"slices"
)

var errNotARange = errors.New("not an address or a range in CIDR notation")

// mappedBits is the length of ::ffff:0:0/96, which holds the IPv4 addresses
// (RFC 4291, section 2.5.5.2).
const mappedBits = 96

// AllowedFrom tells whether ip is inside one of cidrs. An empty list allows
// every address, and an unknown one.
func AllowedFrom(cidrs []string, ip netip.Addr) bool {
	if len(cidrs) == 0 {
		return true
	}
	if !ip.IsValid() {
		return false
	}
	ip = ip.Unmap().WithZone("")
	return slices.ContainsFunc(cidrs, func(cidr string) bool {
		r, err := ParseRange(cidr)
		return err == nil && r.Contains(ip)
	})
}

// ParseRange reads a range in CIDR notation, or one address as the range that
// holds it alone. What is written in IPv4-mapped form is the IPv4 range.
func ParseRange(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		if addr := p.Addr(); addr.Is4In6() && p.Bits() >= mappedBits {
			return netip.PrefixFrom(addr.Unmap(), p.Bits()-mappedBits), nil
		}
		return p, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, errNotARange
	}
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}
