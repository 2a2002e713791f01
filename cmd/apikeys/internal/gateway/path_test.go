// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFindRoute(t *testing.T) {
	t.Parallel()
	routes := table{
		{Name: "health", Path: "/health", Public: true},
		{Name: "orders-read", Host: "api.example.com", Path: "/v1/orders", Methods: []string{"GET", "HEAD"}, Scopes: []string{"orders:read"}},
		{Name: "orders", Host: "api.example.com", Path: "/v1/orders", Scopes: []string{"orders:write"}},
		{Name: "admin", Path: "/admin", Scopes: []string{"admin"}},
		{Name: "below", Path: "/only/below/"},
		{Name: "partners", Host: "*.partners.example.com", Path: "/"},
		{Name: "Mixed", Path: "/Mixed", Scopes: []string{"a", "b"}, Source: "s"},
		{Name: "mixed", Path: "/mixed", Scopes: []string{"b", "a"}, Source: "s"},
		{Name: "mixed-other", Path: "/MIXED", Scopes: []string{"a"}, Source: "s"},
		{Name: "mixed-elsewhere", Path: "/mIXED", Scopes: []string{"a", "b"}},
		{Name: "rest", Host: "api.example.com", Path: "/"},
	}
	const api = "api.example.com"
	for _, c := range []struct {
		method, host, path string
		want               string // a route, or a reason
	}{
		{"GET", api, "/v1/orders", "orders-read"},
		{"GET", api, "/v1/orders/17", "orders-read"},
		{"POST", api, "/v1/orders", "orders"},
		{"get", api, "/v1/orders", "AMBIGUOUS_PATH"}, // some servers take it for GET
		{"get", api, "/health", "health"},
		{"Post", api, "/v1/orders", "orders"},
		{"GET", api, "/v1/ordersx", "rest"},
		{"GET", "API.Example.com.:8443", "/v1/orders", "orders-read"},
		{"GET", "x.partners.example.com", "/v1/orders", "partners"},
		{"GET", "partners.example.com", "/", "NO_ROUTE"},
		{"GET", ".partners.example.com", "/", "NO_ROUTE"},
		{"GET", "evil.com", "/v1/orders", "NO_ROUTE"},
		{"GET", "", "/v1/orders", "NO_ROUTE"},
		{"GET", "", "/health", "health"},
		{"GET", api, "/only/below", "rest"},
		{"GET", api, "/only/below/x", "below"},
		{"GET", "[2001:db8::1]:443", "/health", "health"},

		// All readings agree.
		{"GET", api, "/v1/orders/caf%C3%A9", "orders-read"},
		{"GET", api, "/v1/orders/a%20b", "orders-read"},
		{"GET", api, "/v1/%6frders", "AMBIGUOUS_PATH"}, // not to one that does not decode
		{"GET", api, "/v1/orders/a//b", "orders-read"},
		{"GET", api, "/v1/orders/a%2Fb", "orders-read"},
		{"GET", api, "/v1/orders/;a=b/c", "orders-read"},
		{"GET", api, "/.well-known/x", "rest"},
		{"GET", api, "/x/100%25", "rest"},

		// They do not.
		{"GET", api, "/health/../admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/..;/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health;x/../admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%2e%2e/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%252e%252e/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%25zz/%252e%252e/%252e%252e/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health%2f..%2fadmin", "AMBIGUOUS_PATH"},
		{"GET", api, `/health/..\admin`, "AMBIGUOUS_PATH"},
		{"GET", api, `/x/..\..\admin`, "AMBIGUOUS_PATH"},
		{"GET", api, `/%5cadmin`, "AMBIGUOUS_PATH"},
		{"GET", api, "//admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/x/..//admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/./admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/%61dmin", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin;x", "AMBIGUOUS_PATH"},

		{"GET", api, "/%2561dmin", "AMBIGUOUS_PATH"},
		{"GET", api, `/health/%5c..%5c..%5cadmin`, "AMBIGUOUS_PATH"},
		{"GET", api, `/x;\admin/../../admin`, "AMBIGUOUS_PATH"},

		// A decoded ? or # ends the path for some.
		{"GET", api, "/health%3F", "AMBIGUOUS_PATH"},
		{"GET", api, "/health%3f/../admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin%3Fx", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin%253Fx", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin%23/../health", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin%2523x", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin%20", "AMBIGUOUS_PATH"}, // so does a space
		{"GET", api, "/admin%20x", "AMBIGUOUS_PATH"},
		{"GET", api, "/v1/orders/what%3F", "orders-read"},
		{"GET", api, "/v1/orders/%23%3F17", "orders-read"},

		// Semicolons, as they are and encoded.
		{"GET", api, "/admin%3Bx", "AMBIGUOUS_PATH"},
		{"GET", api, "/admin%253Bx", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%3b/../../admin", "AMBIGUOUS_PATH"},
		{"GET", api, `/;\admin`, "AMBIGUOUS_PATH"},
		{"GET", api, "/%3b%5cadmin", "AMBIGUOUS_PATH"},
		{"GET", api, `/x/..;\y/admin`, "AMBIGUOUS_PATH"}, // parameters before backslashes are turned
		{"GET", api, "/x/..%3b%5cy/admin", "AMBIGUOUS_PATH"},
		{"GET", api, `/x/..;y\..\..\admin`, "AMBIGUOUS_PATH"}, // and after
		{"GET", api, "/v1/orders/a%3Bb", "orders-read"},

		// Some decode all but slashes, and then resolve dots.
		{"GET", api, "/health/x%2fy/%2e%2e/%2e%2e/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/x%5cy/%2e%2e/%2e%2e/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/x%252fy/%252e%252e/%252e%252e/admin", "AMBIGUOUS_PATH"},
		// Some merge slashes, and do not resolve dots.
		{"GET", api, "//admin/..", "AMBIGUOUS_PATH"},
		// Some resolve dots, and do not merge slashes: what .. takes away is empty.
		{"GET", api, "/x/../admin//../y", "AMBIGUOUS_PATH"},
		{"GET", api, "/../admin//../y", "AMBIGUOUS_PATH"},
		{"GET", api, "/./admin//../users", "AMBIGUOUS_PATH"},
		{"GET", api, "/%2e%2e/admin//../users", "AMBIGUOUS_PATH"},
		{"GET", api, "/x/%252e%252e/admin//../y", "AMBIGUOUS_PATH"},
		{"GET", api, `/x/..\admin/\..\y`, "AMBIGUOUS_PATH"},
		{"GET", api, "/v1/orders/a//../b", "orders-read"},
		// Some resolve dots, decode, and resolve dots again.
		{"GET", api, "/x//../admin/%2e%2e/%2e%2e/y/..//admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%2f/../admin%2f%2f../y", "AMBIGUOUS_PATH"},
		// Some decode backslashes, and no slashes.
		{"GET", api, "/x%2fy%5c..%5cadmin", "AMBIGUOUS_PATH"},
		// Some take what follows two slashes for a host.
		{"GET", api, "//x/admin", "AMBIGUOUS_PATH"},
		{"GET", api, `/\x/admin`, "AMBIGUOUS_PATH"},
		{"GET", api, "///x:80/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/x/..//y/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "//x/y", "rest"},

		// Some fold case.
		{"GET", api, "/ADMIN", "AMBIGUOUS_PATH"},
		{"GET", api, "/Admin/users", "AMBIGUOUS_PATH"},
		{"GET", "", "/ADMIN", "AMBIGUOUS_PATH"}, // nor where no other route fits
		{"GET", api, "/%41dmin", "AMBIGUOUS_PATH"},
		{"GET", api, "/x/../ADMIN", "AMBIGUOUS_PATH"},
		{"GET", api, "/adm%C4%B0n", "AMBIGUOUS_PATH"}, // whose lower case is admin in some languages
		{"GET", api, "/HEALTH", "AMBIGUOUS_PATH"},
		{"POST", api, "/V1/orders", "AMBIGUOUS_PATH"},
		{"GET", "evil.com", "/V1/orders", "NO_ROUTE"}, // the route is another host's
		{"GET", api, "/ADMINx", "rest"},
		{"GET", api, "/only/BELOW", "rest"},
		{"GET", api, "/only/BELOW/x", "rest"}, // it asks the same
		{"GET", api, "/v1/orders/ABC%41", "orders-read"},
		{"GET", api, "/X", "rest"},
		{"GET", api, "/Mixed", "Mixed"},
		{"GET", api, "/mixed/x", "mixed"}, // it asks the same
		{"GET", api, "/mixed/%C3%A9", "mixed"},
		{"GET", api, "/MIXED", "AMBIGUOUS_PATH"},
		{"GET", api, "/mIXED", "AMBIGUOUS_PATH"}, // counted elsewhere
		{"GET", api, "/mixeD", "AMBIGUOUS_PATH"},

		// Nobody should be given these.
		{"GET", api, "", "AMBIGUOUS_PATH"},
		{"GET", api, "*", "AMBIGUOUS_PATH"},
		{"GET", api, "http://api.example.com/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/a b", "AMBIGUOUS_PATH"},
		{"GET", api, "/a\x00", "AMBIGUOUS_PATH"},
		{"GET", api, "/health#/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%00", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%0d%0a", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/.%09./admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health%1f", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%zz", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%2525", "rest"},
		{"GET", api, "/x%252525", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%2525252541", "AMBIGUOUS_PATH"},
	} {
		route, reason := routes.find(c.method, c.host, c.path)
		got := string(reason)
		if route != nil {
			got = route.Name
		}
		if got != c.want {
			t.Errorf("%s %q %q: %s, want %s", c.method, c.host, c.path, got, c.want)
		}
	}
	if route, _ := (table{}).find("GET", "any", "/x"); route != anyKey {
		t.Errorf("without routes: %v, want any key to do", route)
	}
}

// TestRoutesHoldWhateverTheUpstream sends odd paths to servers as they are and
// sees that none serves what a route of other scopes protects.
func TestRoutesHoldWhateverTheUpstream(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{
			"/", "admin", "x", "..", ".", ";", `\`, "%2f", "%2F", "%2e", "%5c", "%61", "%252e", "%252f", "%3b", "%25", "%3f", "%23", "%20", "a=b", "%2561dmin", "//", "/../", "ADMIN", "%41", "DMIN", "é",
		}), 0, 10).Draw(t, "parts")
		routesHold(t, "/"+strings.Join(parts, ""), rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "order"))
	})
}

func FuzzRoutesHoldWhateverTheUpstream(f *testing.F) {
	for _, raw := range []string{
		"/x/../admin//../y", "/%2e%2e/admin//../y", "/%252e%252e/admin", `/x/..;\y/admin`, "/admin%3fx", "//x/admin", "/x%2fy%5c..%5cadmin", "/admin;x", "/y%20z/", "/%41DMIN",
	} {
		f.Add(raw, []byte{0, 4, 0, 4})
	}
	f.Fuzz(func(t *testing.T, raw string, order []byte) { routesHold(t, raw, order[:min(len(order), 8)]) })
}

// routesHold sees what each reader makes of a path, and what a server does that
// does several of these in an order.
func routesHold(t rapid.TB, raw string, order []byte) {
	routes := table{{Name: "admin", Path: "/admin", Scopes: []string{"admin"}}, {Name: "rest", Path: "/"}}
	route, _ := routes.find("GET", "x", raw)
	if route == nil {
		return
	}
	if got := serveMux(raw); got != "" && got != route.Name {
		t.Fatalf("%q is %s here, and %s for net/http", raw, route.Name, got)
	}
	names := slices.Sorted(maps.Keys(readers))
	for _, name := range names {
		if got := first(readers[name](raw)); got != route.Name {
			t.Fatalf("%q is %s here, and %s for a server that %s", raw, route.Name, got, name)
		}
	}
	p := raw
	for _, i := range order {
		p = readers[names[int(i)%len(names)]](p)
	}
	if got := first(p); got != route.Name {
		t.Fatalf("%q is %s here, and %s for a server that takes it for %q", raw, route.Name, got, p)
	}
}

// readers are what servers make of a path.
var readers = map[string]func(string) string{
	"decodes":                       lenient,
	"cleans":                        path.Clean,
	"decodes, then cleans":          func(p string) string { return path.Clean(lenient(p)) },
	"decodes twice, then cleans":    func(p string) string { return path.Clean(lenient(lenient(p))) },
	"resolves as RFC 3986":          rfc3986,
	"decodes, then resolves":        func(p string) string { return rfc3986(lenient(p)) },
	"resolves, decodes, resolves":   func(p string) string { return rfc3986(lenient(rfc3986(p))) },
	"resolves, decodes, cleans":     func(p string) string { return path.Clean(lenient(rfc3986(p))) },
	"cleans, decodes, resolves":     func(p string) string { return rfc3986(lenient(path.Clean(p))) },
	"decodes all but slashes":       func(p string) string { return but(p, "%2f", "%2F") },
	"decodes all but both slashes":  butSlashes,
	"decodes these, then cleans":    func(p string) string { return path.Clean(butSlashes(p)) },
	"decodes these, then resolves":  func(p string) string { return rfc3986(butSlashes(p)) },
	"cuts parameters":               cutParameters,
	"decodes, cuts, cleans":         func(p string) string { return path.Clean(cutParameters(lenient(p))) },
	"ends at a query":               cutQuery,
	"decodes, ends at it, cleans":   func(p string) string { return path.Clean(cutQuery(lenient(p))) },
	"merges slashes":                func(p string) string { return strings.ReplaceAll(strings.ReplaceAll(p, "//", "/"), "//", "/") },
	"takes backslashes for slashes": turn,
	"folds case":                    lower,
	"decodes, folds case, cleans":   func(p string) string { return path.Clean(lower(lenient(p))) },
	"folds case, decodes, resolves": func(p string) string { return rfc3986(lenient(lower(p))) },
	"decodes, turns, cleans":        func(p string) string { return path.Clean(turn(lenient(p))) },
	"takes //x for a host": func(p string) string {
		u, err := (&url.URL{Scheme: "http", Host: "x"}).Parse(turn(p))
		if err != nil {
			return p
		}
		return "/" + strings.TrimPrefix(u.EscapedPath(), "/")
	},
}

// serveMux is the route by which net/http serves a path.
func serveMux(raw string) (served string) {
	u, err := url.ParseRequestURI(raw)
	if err != nil {
		return "rest"
	}
	mux := http.NewServeMux()
	for pattern, route := range map[string]string{"/admin/": "admin", "/admin": "admin", "/": "rest"} {
		mux.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) { served = route })
	}
	// Nothing is served by a redirect: the client asks again.
	mux.ServeHTTP(httptest.NewRecorder(), &http.Request{Method: "GET", URL: u, Host: "x"})
	return served
}

// rfc3986 removes dot segments by the rules of section 5.2.4, one by one.
func rfc3986(in string) string {
	out := ""
	for in != "" {
		switch {
		case strings.HasPrefix(in, "/./"), in == "/.": // B
			in = "/" + strings.TrimPrefix(in[2:], "/")
		case strings.HasPrefix(in, "/../"), in == "/..": // C
			in = "/" + strings.TrimPrefix(in[3:], "/")
			out = out[:max(strings.LastIndex(out, "/"), 0)]
		default: // E
			end := len(in)
			if next := strings.Index(in[1:], "/"); next >= 0 {
				end = next + 1
			}
			out, in = out+in[:end], in[end:]
		}
	}
	return out
}

func cutParameters(p string) string {
	segments := strings.Split(p, "/")
	for i := range segments {
		segments[i], _, _ = strings.Cut(segments[i], ";")
	}
	return strings.Join(segments, "/")
}

func cutQuery(p string) string {
	if end := strings.IndexAny(p, "?# "); end >= 0 {
		return p[:end]
	}
	return p
}

func turn(p string) string { return strings.ReplaceAll(p, `\`, "/") }

// lower folds the case of ASCII letters.
func lower(p string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, p)
}

func first(p string) string {
	if p == "/admin" || strings.HasPrefix(p, "/admin/") {
		return "admin"
	}
	return "rest"
}

// butSlashes decodes what it can but slashes.
func butSlashes(s string) string { return but(s, "%2f", "%2F", "%5c", "%5C") }

// but decodes what it can but escapes.
func but(s string, escapes ...string) string {
	for _, kept := range escapes {
		s = strings.ReplaceAll(s, kept, "\x02"+kept[1:])
	}
	return strings.ReplaceAll(lenient(s), "\x02", "%")
}

// lenient decodes what it can, slowly.
func lenient(s string) string {
	for _, c := range []byte("%/.\\;?# adminx=b") {
		for _, code := range []string{hexOf(c), strings.ToUpper(hexOf(c))} {
			s = strings.ReplaceAll(s, "%"+code, "\x01"+string(c))
		}
	}
	return strings.ReplaceAll(s, "\x01", "")
}

func hexOf(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[c>>4], digits[c&15]})
}

// worstPaths have many readings, long ones, or both.
func worstPaths() map[string]string {
	const many = `/%2f/../%252f\//`
	return map[string]string{
		"many":             many,
		"many, and long":   many + strings.Repeat("x", 200),
		"too many":         strings.Repeat(many, 8),
		"too many to hold": strings.Repeat(`/..;/%252e%2f\%3f/`, 2000),
		"many segments":    strings.Repeat("/", maxOddPath-1) + "x",
		"many dots":        strings.Repeat("/.%2e", maxOddPath/5),
		"as long as can":   "/%41" + strings.Repeat("x", maxOddPath-4),
		"too long":         "/%41" + strings.Repeat("x", maxOddPath-3),
		"too many bytes":   "/%2541;/" + strings.Repeat("x", maxOddPath-8),
	}
}

// TestWorstPathsCostLittle counts, because a clock would tell of the machine.
func TestWorstPathsCostLittle(t *testing.T) {
	for name, raw := range worstPaths() {
		first, more, ok := readings(raw)
		size := len(first)
		for _, p := range more {
			size += len(p)
		}
		if ok == strings.Contains(name, "too") || len(more) >= maxReadings || size > maxReadingBytes {
			t.Errorf("%s: %d readings of %d bytes, %v", name, 1+len(more), size, ok)
		}
		// A few for each step of each reading.
		if n := testing.AllocsPerRun(1, func() { _, _, _ = readings(raw) }); n > 4*maxReadings*float64(len(steps)+2) {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkWorstPaths(b *testing.B) {
	routes := make(table, maxRoutes)
	for i := range routes {
		routes[i] = &Route{Path: "/route/" + strconv.Itoa(i)}
	}
	routes[maxRoutes-1].Path = "/"
	for name, raw := range worstPaths() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = routes.find("GET", "x", raw)
			}
		})
	}
}

func TestPlainPathsCostNothing(t *testing.T) {
	scopes := []string{"a", "b"}
	routes := table{{Name: "a", Host: "api.example.com", Path: "/v1"}, {Name: "X", Path: "/X", Scopes: scopes}, {Name: "x", Path: "/x", Scopes: scopes}}
	for _, p := range []string{"/v1/orders/17/lines", "/V1/orders", "/x/17"} {
		if n := testing.AllocsPerRun(100, func() { _, _ = routes.find("GET", "api.example.com", p) }); n > 0 {
			t.Errorf("%s: %v allocations", p, n)
		}
	}
}
