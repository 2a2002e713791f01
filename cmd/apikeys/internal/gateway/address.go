// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"net/netip"
	"slices"
	"strings"
)

// maxHops bounds how much of X-Forwarded-For is read.
const maxHops = 32

// proxies are the addresses whose word is taken.
type proxies []netip.Prefix

func (p proxies) trust(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(p, func(r netip.Prefix) bool { return r.Contains(addr) })
}

// client returns the address of the client: where peer is a trusted proxy, the
// first one from the right of X-Forwarded-For that is none, or the last one if
// all are; otherwise peer. It returns the zero Addr where that cannot be told:
// the field is missing, so that nothing is known but the proxy; what is written
// there is no address; or the proxies are too many. The peer of a Unix socket is
// the zero Addr, and trusted.
func (p proxies) client(peer netip.Addr, forwardedFor []string) netip.Addr {
	if peer.IsValid() && !p.trust(peer) {
		return peer
	}
	var addr netip.Addr
	hops := 0
	for _, line := range slices.Backward(forwardedFor) {
		for more := true; more; {
			if hops++; hops > maxHops {
				return netip.Addr{}
			}
			var entry string
			if i := strings.LastIndexByte(line, ','); i >= 0 {
				line, entry = line[:i], line[i+1:]
			} else {
				entry, more = line, false
			}
			parsed, ok := forwarded(strings.Trim(entry, " \t"))
			if !ok {
				return netip.Addr{}
			}
			if addr = parsed; !p.trust(addr) {
				return addr
			}
		}
	}
	return addr
}

// forwarded reads an entry of X-Forwarded-For. Some proxies add the port.
func forwarded(entry string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(entry); err == nil {
		return addr.Unmap(), true
	}
	if pair, err := netip.ParseAddrPort(entry); err == nil {
		return pair.Addr().Unmap(), true
	}
	if inner, found := strings.CutPrefix(entry, "["); found {
		if addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]")); err == nil {
			return addr.Unmap(), true
		}
	}
	return netip.Addr{}, false
}
