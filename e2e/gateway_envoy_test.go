// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// envoy is a client that speaks Envoy's ext_authz, and changes a request as
// Envoy does by the answer.
type envoy struct {
	authv3.AuthorizationClient
}

// ask asks about a request from an address. It returns the status that the
// client gets, 200 if the request passes, and the fields that the upstream then
// gets.
func (c envoy) ask(t testing.TB, method, path, from string, fields map[string]string) (status int, upstream map[string]string, toClient map[string]string) {
	t.Helper()
	answer, err := c.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: from, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 4711},
		}}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "1", Method: method, Path: path, Host: "api.example.com", Scheme: "https", Protocol: "HTTP/2", Headers: fields,
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	upstream, toClient = map[string]string{}, map[string]string{}
	if denied := answer.GetDeniedResponse(); denied != nil {
		for _, h := range denied.GetHeaders() {
			toClient[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
		}
		return int(denied.GetStatus().GetCode()), nil, toClient
	}
	if codes.Code(answer.GetStatus().GetCode()) != codes.OK {
		t.Fatalf("neither passes nor denied: %v", answer)
	}
	ok := answer.GetOkResponse()
	for name, value := range fields {
		upstream[name] = value
	}
	for _, h := range ok.GetHeaders() { // Envoy sets first, and removes then
		upstream[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	for _, name := range ok.GetHeadersToRemove() {
		delete(upstream, name)
	}
	for _, h := range ok.GetResponseHeadersToAdd() {
		toClient[h.GetHeader().GetKey()] = h.GetHeader().GetValue()
	}
	return http.StatusOK, upstream, toClient
}

func TestGatewaySpeaksExtAuthz(t *testing.T) {
	t.Parallel()
	e := gatewayEdge(t)
	conn, err := grpc.NewClient(e.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := envoy{authv3.NewAuthorizationClient(conn)}
	first := e.m.key("acme", "partner", "scopes", "orders:read", "bound_cidrs", "203.0.113.0/24")
	id := e.m.info("acme").KeyID
	const from = "203.0.113.9"

	status, upstream, _ := c.ask(t, "GET", "/v1/orders?x=1", from, map[string]string{
		"x-api-key": first, "x-consumer-id": "root", "x_consumer_name": "root", "x-other": "stays",
	})
	want := map[string]string{"x-consumer-id": id, "x-consumer-name": "acme", "x-consumer-scopes": "orders:read", "x-key-version": "1", "x-other": "stays"}
	if status != http.StatusOK || len(upstream) != len(want) {
		t.Errorf("%d: the upstream gets %v, want %v", status, slices.Sorted(maps.Keys(upstream)), want)
	}
	for name, value := range want {
		if upstream[name] != value {
			t.Errorf("the upstream gets %s %q, want %q", name, upstream[name], value)
		}
	}
	for what, r := range map[string]struct {
		method, path, from string
		fields             map[string]string
		status             int
	}{
		"no key":      {"GET", "/v1/orders", from, nil, http.StatusUnauthorized},
		"several":     {"GET", "/v1/orders", from, map[string]string{"x-api-key": first, "authorization": "Bearer " + first}, http.StatusUnauthorized},
		"joined":      {"GET", "/v1/orders", from, map[string]string{"x-api-key": first + "," + first}, http.StatusUnauthorized},
		"wrong scope": {"POST", "/v1/orders", from, map[string]string{"x-api-key": first}, http.StatusForbidden},
		"spoofed":     {"GET", "/v1/orders", "198.51.100.7", map[string]string{"x-api-key": first, "x-forwarded-for": from}, http.StatusForbidden},
		"via a proxy": {"GET", "/v1/orders", "127.0.0.1", map[string]string{"x-api-key": first, "x-forwarded-for": "192.0.2.1, " + from}, http.StatusOK},
		"bearer":      {"GET", "/v1/orders", from, map[string]string{"authorization": "Bearer " + first}, http.StatusOK},
		"public":      {"GET", "/health", from, nil, http.StatusOK},
		"no route":    {"GET", "/v2", from, map[string]string{"x-api-key": first}, http.StatusForbidden},
	} {
		if status, _, _ := c.ask(t, r.method, r.path, r.from, r.fields); status != r.status {
			t.Errorf("%s: %d, want %d", what, status, r.status)
		}
	}

	e.m.rotate("acme")
	eventually(t, 10*time.Second, func() error {
		status, _, toClient := c.ask(t, "GET", "/v1/orders", from, map[string]string{"x-api-key": first})
		if status != http.StatusOK || !strings.HasPrefix(toClient["deprecation"], "@") || toClient["sunset"] == "" {
			return errors.New("the retiring version is not announced")
		}
		return nil
	})

	unknown := e.m.key("unknown", "partner", "scopes", "orders:read")
	e.vault.setCut(true)
	status, _, toClient := c.ask(t, "GET", "/v1/orders", from, map[string]string{"x-api-key": unknown})
	if status != http.StatusServiceUnavailable || toClient["retry-after"] == "" {
		t.Errorf("without Vault: %d, %v", status, toClient)
	}
}
