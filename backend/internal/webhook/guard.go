// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// errAddress says that a name leads to no address that may be dialled.
var errAddress = errors.New("the address is private, local or reserved")

// A Resolver looks names up. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// dialTimeout bounds one connection attempt, so that a host with several
// addresses is reached when the first one is silent.
const dialTimeout = 5 * time.Second

// maxDialled bounds the addresses of one name that are tried.
const maxDialled = 4

// guard dials for a Transport. It resolves a name once and dials the very
// addresses that it judged, so a name that answers otherwise the second time
// gains nothing.
type guard struct {
	resolver     Resolver
	dial         func(ctx context.Context, network, address string) (net.Conn, error)
	allowPrivate bool
}

// newGuard uses the machine's resolver and dialler where none are given. Its
// own dialler judges once more, in the kernel's terms, what it connects to.
func newGuard(resolver Resolver, dial func(context.Context, string, string) (net.Conn, error), allowPrivate bool) *guard {
	g := &guard{resolver: resolver, dial: dial, allowPrivate: allowPrivate}
	if g.resolver == nil {
		g.resolver = net.DefaultResolver
	}
	if g.dial == nil {
		dialer := &net.Dialer{Timeout: dialTimeout, Control: g.control}
		g.dial = dialer.DialContext
	}
	return g
}

func (g *guard) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !g.allows(at.Addr()) {
		return errAddress
	}
	return nil
}

func (g *guard) allows(ip netip.Addr) bool { return g.allowPrivate || public(ip) }

// DialContext connects to one of the addresses of a host that may be dialled.
func (g *guard) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, errAddress
	}
	found, err := g.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	err = errAddress
	tried := 0
	for _, ip := range found {
		if !g.allows(ip) {
			continue
		}
		if tried++; tried > maxDialled {
			break
		}
		var conn net.Conn
		if conn, err = g.dial(ctx, "tcp", net.JoinHostPort(ip.Unmap().String(), port)); err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (g *guard) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	return g.resolver.LookupNetIP(ctx, "ip", host)
}

// reserved are the special-purpose blocks of IANA's registries, and what
// clouds use for the metadata of machines outside of them.
var reserved = prefixes(
	"0.0.0.0/8",         // this network
	"10.0.0.0/8",        // private
	"100.64.0.0/10",     // carrier-grade NAT; Alibaba's metadata
	"127.0.0.0/8",       // loopback
	"168.63.129.16/32",  // Azure's host
	"169.254.0.0/16",    // link-local; metadata of most clouds
	"172.16.0.0/12",     // private
	"192.0.0.0/24",      // protocol assignments; Oracle's metadata
	"192.0.2.0/24",      // documentation
	"192.31.196.0/24",   // AS112
	"192.52.193.0/24",   // AMT
	"192.88.99.0/24",    // 6to4 relays
	"192.168.0.0/16",    // private
	"192.175.48.0/24",   // AS112
	"198.18.0.0/15",     // benchmarks
	"198.51.100.0/24",   // documentation
	"203.0.113.0/24",    // documentation
	"224.0.0.0/4",       // multicast
	"240.0.0.0/4",       // reserved, and broadcast
	"2001::/23",         // protocol assignments, Teredo and ORCHID among them
	"2001:db8::/32",     // documentation
	"2002::/16",         // 6to4
	"2620:4f:8000::/48", // AS112
	"3fff::/20",         // documentation
	"2001:4:112::/48",   // AS112
	"64:ff9b:1::/48",    // NAT64 of a local network
	"fd00:ec2::254/128", // Amazon's metadata, inside the unique local block
	"fd20:ce::254/128",  // Google's
	"2000::/128",        // not a host
	"::/96",             // unspecified, loopback, IPv4-compatible
	"fc00::/7",          // unique local
	"fe80::/10",         // link-local
	"fec0::/10",         // site-local
	"ff00::/8",          // multicast
	"100::/64",          // discard
	"5f00::/16",         // segment routing
)

// global is where IPv6 has public hosts, nat64 the one block outside of it
// that leads to IPv4.
var (
	global = netip.MustParsePrefix("2000::/3")
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
)

func prefixes(texts ...string) []netip.Prefix {
	found := make([]netip.Prefix, 0, len(texts))
	for _, t := range texts {
		found = append(found, netip.MustParsePrefix(t))
	}
	return found
}

// public tells whether an address is one of a host on the Internet. An IPv4
// address that is mapped into IPv6, or reached through NAT64, counts as what
// it is.
func public(ip netip.Addr) bool {
	if !ip.IsValid() || ip.Zone() != "" {
		return false
	}
	ip = ip.Unmap()
	if nat64.Contains(ip) {
		raw := ip.As16()
		ip = netip.AddrFrom4([4]byte(raw[12:]))
	}
	if ip.Is6() && !global.Contains(ip) {
		return false
	}
	for _, p := range reserved {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}
