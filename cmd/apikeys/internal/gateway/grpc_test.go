// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
)

// check asks as Envoy does about a request with fields of the client's.
func (g *testGateway) check(t testing.TB, method, path, client string, fields map[string]string) *authv3.CheckResponse {
	t.Helper()
	request := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: client},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: method, Path: path, Host: "api.example.com", Headers: fields,
		}},
	}}
	answer, err := (&extAuthz{gateway: g.Gateway}).Check(asPeer(t.Context(), "127.0.0.1:9"), request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func asPeer(ctx context.Context, addr string) context.Context {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		panic(err)
	}
	return peer.NewContext(ctx, &peer.Peer{Addr: tcp})
}

func told(options []*corev3.HeaderValueOption) string {
	var all []string
	for _, o := range options {
		all = append(all, o.GetHeader().GetKey()+"="+o.GetHeader().GetValue())
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			all = append(all, "appended")
		}
	}
	return strings.Join(all, "&")
}

func TestExtAuthz(t *testing.T) {
	t.Parallel()
	const (
		from     = "203.0.113.9"
		identity = "x-consumer-id=0aB3dE6gH9jK&x-consumer-name=acme&x-consumer-scopes=orders:read rates&x-key-version=4"
	)
	for _, c := range []struct {
		name, method, path, client string
		fields                     map[string]string
		code                       codes.Code
		headers, remove, toClient  string
	}{
		{"valid", "GET", "/v1/orders", from, map[string]string{"x-api-key": goodKey}, codes.OK, identity, "x-api-key", ""},
		{"valid bearer", "GET", "/v1/orders", from, map[string]string{"authorization": "Bearer " + goodKey}, codes.OK, identity, "authorization x-api-key", ""},
		{"basic stays", "GET", "/v1/orders", from, map[string]string{"x-api-key": goodKey, "authorization": "Basic x"}, codes.OK, identity, "x-api-key", ""},
		{
			"forged", "GET", "/v1/orders", from,
			map[string]string{"x-api-key": goodKey, "x-consumer-id": "root", "x_consumer_id": "root", "x-consumer_scopes": "all", "x-other": "1"},
			codes.OK, identity, "x-api-key x-consumer_scopes x_consumer_id", "",
		},
		{
			"retiring", "GET", "/v1/orders", from, map[string]string{"x-api-key": retiringKey}, codes.OK, strings.Replace(identity, "=4", "=3", 1), "x-api-key",
			`deprecation=@1767268800&link=<https://example.com/rotation>; rel="deprecation"&sunset=Thu, 01 Jan 2026 13:00:00 GMT`,
		},
		{
			"public, forged", "GET", "/health", from, map[string]string{"x-api-key": goodKey, "x-consumer-id": "root"}, codes.OK,
			"", "x-api-key x-consumer-id x-consumer-name x-consumer-scopes x-key-version", "",
		},
		{
			"public, bearer", "GET", "/health", from, map[string]string{"authorization": "Bearer " + goodKey}, codes.OK,
			"", "authorization x-api-key x-consumer-id x-consumer-name x-consumer-scopes x-key-version", "",
		},
		{
			"public, bearer by a tab", "GET", "/health", from, map[string]string{"authorization": "Bearer\t" + goodKey}, codes.OK,
			"", "authorization x-api-key x-consumer-id x-consumer-name x-consumer-scopes x-key-version", "",
		},
		{
			"public, basic stays", "GET", "/health", from, map[string]string{"authorization": "Basic x"}, codes.OK,
			"", "x-api-key x-consumer-id x-consumer-name x-consumer-scopes x-key-version", "",
		},
		{"bound", "GET", "/v1/orders", from, map[string]string{"x-api-key": boundKey}, codes.OK, "x-consumer-id=Bound0000001&x-consumer-name=bound&x-consumer-scopes=orders:read rates&x-key-version=1", "x-api-key", ""},
		{"bound, behind a proxy", "GET", "/v1/orders", "192.0.2.1", map[string]string{"x-api-key": boundKey, "x-forwarded-for": "203.0.113.9,192.0.2.1"}, codes.OK, "x-consumer-id=Bound0000001&x-consumer-name=bound&x-consumer-scopes=orders:read rates&x-key-version=1", "x-api-key", ""},
		{"bound, spoofed", "GET", "/v1/orders", "198.51.100.1", map[string]string{"x-api-key": boundKey, "x-forwarded-for": from}, codes.PermissionDenied, "", "", ""},
		{"bound, from nowhere", "GET", "/v1/orders", "", map[string]string{"x-api-key": boundKey, "x-forwarded-for": from}, codes.PermissionDenied, "", "", ""},
		{"wrong scope", "POST", "/v1/orders", from, map[string]string{"x-api-key": goodKey}, codes.PermissionDenied, "", "", ""},
		{"no key", "GET", "/v1/orders", from, nil, codes.Unauthenticated, "", "", ""},
		{"twice, joined", "GET", "/v1/orders", from, map[string]string{"x-api-key": goodKey + "," + goodKey}, codes.Unauthenticated, "", "", ""},
		{"several", "GET", "/v1/orders", from, map[string]string{"x-api-key": goodKey, "authorization": "Bearer " + goodKey}, codes.Unauthenticated, "", "", ""},
		{"the client's word on the path is not taken", "GET", "/v1/orders", from, map[string]string{"x-forwarded-uri": "/health"}, codes.Unauthenticated, "", "", ""},
		{"unavailable", "GET", "/v1/orders", from, map[string]string{"x-api-key": lostKey}, codes.Unavailable, "", "", ""},
		{"nothing told", "", "", "", nil, codes.PermissionDenied, "", "", ""},
	} {
		g := newTestGateway(t, testConfig)
		answer := g.check(t, c.method, c.path, c.client, c.fields)
		ok := answer.GetOkResponse()
		if got := codes.Code(answer.GetStatus().GetCode()); got != c.code || (got == codes.OK) != (ok != nil) || (got != codes.OK) != (answer.GetDeniedResponse() != nil) {
			t.Errorf("%s: %v, want %v: %v", c.name, got, c.code, answer)
			continue
		}
		if got := told(ok.GetHeaders()); got != c.headers {
			t.Errorf("%s: upstream gets %s, want %s", c.name, got, c.headers)
		}
		if got := strings.Join(ok.GetHeadersToRemove(), " "); got != c.remove {
			t.Errorf("%s: removes %s, want %s", c.name, got, c.remove)
		}
		if got := strings.Join(ok.GetQueryParametersToRemove(), " "); ok != nil && got != "api_key" {
			t.Errorf("%s: removes the parameters %q", c.name, got)
		}
		if got := told(ok.GetResponseHeadersToAdd()); got != c.toClient {
			t.Errorf("%s: the client gets %s, want %s", c.name, got, c.toClient)
		}
		for _, h := range ok.GetHeaders() {
			// Envoy removes after it has set.
			if slices.Contains(ok.GetHeadersToRemove(), h.GetHeader().GetKey()) {
				t.Errorf("%s: %s is set and removed", c.name, h.GetHeader().GetKey())
			}
		}
		if strings.Contains(answer.String()+g.access.String(), "goodgood") {
			t.Errorf("%s: the key is told", c.name)
		}
	}
}

func TestExtAuthzRefusals(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	denied := g.check(t, "GET", "/v1/orders", "203.0.113.9", map[string]string{"x-api-key": lostKey}).GetDeniedResponse()
	if denied.GetStatus().GetCode() != 503 || denied.GetBody() != "unavailable\n" || !strings.Contains(told(denied.GetHeaders()), "retry-after=2") {
		t.Errorf("unavailable is answered %v", denied)
	}
	denied = g.check(t, "GET", "/v1/orders", "203.0.113.9", nil).GetDeniedResponse()
	if denied.GetStatus().GetCode() != 401 || denied.GetBody() != "unauthorized\n" || !strings.Contains(told(denied.GetHeaders()), "www-authenticate=Bearer") {
		t.Errorf("no key is answered %v", denied)
	}

	request := &authv3.CheckRequest{}
	answer, err := (&extAuthz{gateway: g.Gateway}).Check(asPeer(t.Context(), "198.51.100.1:9"), request)
	if err != nil || codes.Code(answer.GetStatus().GetCode()) != codes.PermissionDenied || !strings.Contains(g.access.String(), "UNTRUSTED_PROXY") {
		t.Errorf("somebody else than the proxy: %v, %v", answer, err)
	}
}

// TestExtAuthzRawHeaders is Envoy with encode_raw_headers, where fields that
// come twice are seen.
func TestExtAuthzRawHeaders(t *testing.T) {
	t.Parallel()
	field := func(k, v string) *corev3.HeaderValue { return &corev3.HeaderValue{Key: k, RawValue: []byte(v)} }
	for name, c := range map[string]struct {
		fields []*corev3.HeaderValue
		code   codes.Code
	}{
		"once":  {[]*corev3.HeaderValue{field("x-api-key", goodKey), field("x_consumer_id", "root")}, codes.OK},
		"twice": {[]*corev3.HeaderValue{field("x-api-key", goodKey), field("x-api-key", goodKey)}, codes.Unauthenticated},
	} {
		g := newTestGateway(t, testConfig)
		answer, err := (&extAuthz{gateway: g.Gateway}).Check(asPeer(t.Context(), "127.0.0.1:9"), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Method: "GET", Path: "/v1/orders", HeaderMap: &corev3.HeaderMap{Headers: c.fields},
			}},
		}})
		if err != nil || codes.Code(answer.GetStatus().GetCode()) != c.code {
			t.Errorf("%s: %v, %v", name, answer, err)
		}
		if c.code == codes.OK && !slices.Contains(answer.GetOkResponse().GetHeadersToRemove(), "x_consumer_id") {
			t.Errorf("%s: a forgery stays: %v", name, answer)
		}
	}
}
