// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
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

		// Nobody should be given these.
		{"GET", api, "", "AMBIGUOUS_PATH"},
		{"GET", api, "*", "AMBIGUOUS_PATH"},
		{"GET", api, "http://api.example.com/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/a b", "AMBIGUOUS_PATH"},
		{"GET", api, "/a\x00", "AMBIGUOUS_PATH"},
		{"GET", api, "/health#/admin", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%00", "AMBIGUOUS_PATH"},
		{"GET", api, "/health/%0d%0a", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%", "AMBIGUOUS_PATH"},
		{"GET", api, "/x%zz", "AMBIGUOUS_PATH"},
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
	routes := table{{Name: "admin", Path: "/admin"}, {Name: "rest", Path: "/"}}
	mux := http.NewServeMux()
	var served string
	mux.HandleFunc("/admin/", func(http.ResponseWriter, *http.Request) { served = "admin" })
	mux.HandleFunc("/admin", func(http.ResponseWriter, *http.Request) { served = "admin" })
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { served = "rest" })
	readers := map[string]func(string) string{
		"net/http": func(raw string) string {
			u, err := url.ParseRequestURI(raw)
			if err != nil {
				return "rest"
			}
			served = "" // a redirect: the client asks again
			mux.ServeHTTP(httptest.NewRecorder(), &http.Request{Method: "GET", URL: u, Host: "x"})
			return served
		},
		"decodes, then cleans": func(raw string) string { return first(path.Clean(lenient(raw))) },
		"decodes twice":        func(raw string) string { return first(path.Clean(lenient(lenient(raw)))) },
		"cuts parameters": func(raw string) string {
			segments := strings.Split(lenient(raw), "/")
			for i := range segments {
				segments[i], _, _ = strings.Cut(segments[i], ";")
			}
			return first(path.Clean(strings.Join(segments, "/")))
		},
		"ends at a decoded query or fragment": func(raw string) string {
			decoded := lenient(raw)
			if end := strings.IndexAny(decoded, "?#"); end >= 0 {
				decoded = decoded[:end]
			}
			return first(path.Clean(decoded))
		},
		"decodes all but slashes, then cleans": func(raw string) string { return first(path.Clean(butSlashes(raw))) },
		"merges slashes": func(raw string) string {
			return first(strings.ReplaceAll(strings.ReplaceAll(raw, "//", "/"), "//", "/"))
		},
		"takes backslashes for slashes": func(raw string) string { return first(path.Clean(strings.ReplaceAll(lenient(raw), `\`, "/"))) },
	}
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{
			"/", "admin", "x", "..", ".", ";", `\`, "%2f", "%2F", "%2e", "%5c", "%61", "%252e", "%252f", "%3b", "%25", "%3f", "%23", "a=b", "%2561dmin", "//", "ADMIN", "é",
		}), 0, 8).Draw(t, "parts")
		raw := "/" + strings.Join(parts, "")
		route, _ := routes.find("GET", "x", raw)
		if route == nil {
			return
		}
		for name, reader := range readers {
			if got := reader(raw); got != "" && got != route.Name {
				t.Fatalf("%q is %s here, and %s for a server that %s", raw, route.Name, got, name)
			}
		}
	})
}

func first(p string) string {
	if p == "/admin" || strings.HasPrefix(p, "/admin/") {
		return "admin"
	}
	return "rest"
}

// butSlashes decodes what it can but slashes.
func butSlashes(s string) string {
	for _, kept := range []string{"%2f", "%2F", "%5c", "%5C"} {
		s = strings.ReplaceAll(s, kept, "\x02"+kept[1:])
	}
	return strings.ReplaceAll(lenient(s), "\x02", "%")
}

// lenient decodes what it can, slowly.
func lenient(s string) string {
	for _, c := range []byte("%/.\\;?#adminx=b") {
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

func TestPlainPathsCostNothing(t *testing.T) {
	routes := table{{Name: "a", Host: "api.example.com", Path: "/v1"}}
	if n := testing.AllocsPerRun(100, func() { _, _ = routes.find("GET", "api.example.com", "/v1/orders/17/lines") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
