// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"slices"
	"strings"
)

// Route says what requests to a part of an API need.
type Route struct {
	// Name is what metrics and the access log call it.
	Name string
	// Host is a name in lower case, or *.domain for every name below a domain;
	// empty for every host.
	Host string
	// Path is a prefix, by whole segments, in ASCII.
	Path string
	// Methods are in upper case; none means all.
	Methods []string
	// Scopes are all required.
	Scopes []string
	// Source is where use is counted, instead of the gateway's own.
	Source string
	// Public lets requests pass without looking for a key.
	Public bool
}

// anyKey is the route of a table without routes: every valid key will do.
var anyKey = &Route{Name: "-", Path: "/"}

// table finds the route of a request.
type table []*Route

// find returns the first route that fits all readings of the path, and of the
// method: some servers take get for GET. It returns nil and a reason where none
// does, or where two readings lead to two routes. Servers that fold case may be
// led to another route if it asks the same.
func (t table) find(method, host, rawPath string) (*Route, Reason) {
	first, more, ok := readings(rawPath)
	if !ok {
		return nil, ReasonPath
	}
	if len(t) == 0 {
		return anyKey, ""
	}
	host = hostName(host)
	found, ok := t.match(method, host, first)
	if !ok {
		return nil, ReasonPath
	}
	agrees := func(method, p string) bool {
		r, ok := t.match(method, host, p)
		return ok && r == found
	}
	upper := strings.ToUpper(method)
	if upper != method {
		more = append(more, first)
	}
	for _, p := range more {
		if !agrees(method, p) || upper != method && !agrees(upper, p) {
			return nil, ReasonPath
		}
	}
	if found == nil {
		return nil, ReasonNoRoute
	}
	return found, ""
}

// match returns the first route that fits, or nil. It tells false where the first
// one that fits but for case asks something else.
func (t table) match(method, host, p string) (found *Route, ok bool) {
	var folded *Route
	for _, r := range t {
		if !below(p, r.Path) || !r.serves(host) || len(r.Methods) > 0 && !slices.Contains(r.Methods, method) {
			continue
		}
		if folded == nil {
			folded = r
		}
		if strings.HasPrefix(p, r.Path) {
			return r, r.asksAs(folded)
		}
	}
	return nil, folded == nil
}

// refuses tells whether r, which is tried before other, has match refuse whatever
// other fits.
func (r *Route) refuses(other *Route) bool {
	return below(other.Path, r.Path) && !strings.HasPrefix(other.Path, r.Path) && !r.asksAs(other) &&
		(r.Host == other.Host || r.serves(other.Host)) &&
		(len(r.Methods) == 0 || len(other.Methods) > 0 && containsAll(r.Methods, other.Methods))
}

// asksAs tells whether requests need the same by r as by other, and are counted
// at the same source.
func (r *Route) asksAs(other *Route) bool {
	if r == other {
		return true
	}
	return r.Public == other.Public && r.Source == other.Source && containsAll(r.Scopes, other.Scopes) && containsAll(other.Scopes, r.Scopes)
}

func containsAll(scopes, others []string) bool {
	return !slices.ContainsFunc(others, func(s string) bool { return !slices.Contains(scopes, s) })
}

func (r *Route) serves(host string) bool {
	if r.Host == "" || r.Host == host {
		return true
	}
	domain, wild := strings.CutPrefix(r.Host, "*")
	return wild && strings.HasSuffix(host, domain) && len(host) > len(domain)
}

// hostName takes the port and a final dot off a host, and brings it into lower
// case.
func hostName(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
