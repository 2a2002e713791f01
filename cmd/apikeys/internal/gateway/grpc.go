// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// extAuthz is Envoy's external authorization service.
type extAuthz struct {
	authv3.UnimplementedAuthorizationServer
	gateway *Gateway
}

// Check answers whether a request may pass.
func (s *extAuthz) Check(ctx context.Context, req *authv3.CheckRequest) (answer *authv3.CheckResponse, _ error) {
	g := s.gateway
	defer func() {
		if g.rescue(ListenGRPC, recover()) {
			answer = refuse(&decision{reason: ReasonUnavailable})
		}
	}()
	start := g.clock()
	p := g.policy.Load()
	q, d := p.askEnvoy(ctx, req)
	if d.reason == "" {
		d = p.decide(ctx, g.verifier, q)
	}
	if d.passes() {
		answer = p.accept(&d, req.GetAttributes().GetRequest().GetHttp())
	} else {
		answer = refuse(&d)
	}
	g.observe(ctx, p, ListenGRPC, &q, &d, g.clock().Sub(start))
	return answer, nil
}

// envoyHeaders are the fields of a request as Envoy tells them: names in lower
// case, and the values of fields that came several times joined by commas.
type envoyHeaders struct {
	joined map[string]string
	each   []*corev3.HeaderValue
}

// Values implements verifierhttp.Headers.
func (h envoyHeaders) Values(name string) []string {
	if len(h.each) > 0 {
		var values []string
		for _, f := range h.each {
			if strings.EqualFold(f.GetKey(), name) {
				values = append(values, valueOfField(f))
			}
		}
		return values
	}
	if v, found := h.joined[strings.ToLower(name)]; found {
		return []string{v}
	}
	return nil
}

func valueOfField(f *corev3.HeaderValue) string {
	if raw := f.GetRawValue(); len(raw) > 0 {
		return string(raw)
	}
	return f.GetValue()
}

func (h envoyHeaders) names() []string {
	var names []string
	for name := range h.joined {
		names = append(names, name)
	}
	for _, f := range h.each {
		names = append(names, strings.ToLower(f.GetKey()))
	}
	return names
}

func headersOf(r *authv3.AttributeContext_HttpRequest) envoyHeaders {
	return envoyHeaders{joined: r.GetHeaders(), each: r.GetHeaderMap().GetHeaders()}
}

// askEnvoy is ask for Envoy, whose own view of the request is a part of the
// message and never taken from the client's fields.
func (p *policy) askEnvoy(ctx context.Context, req *authv3.CheckRequest) (question, decision) {
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		if addr, known := peerOf(from.Addr.String()); known && !p.proxies.trust(addr) {
			return question{client: addr}, decision{reason: ReasonUntrusted}
		}
	}
	attributes := req.GetAttributes()
	r := attributes.GetRequest().GetHttp()
	h := headersOf(r)
	q := question{method: r.GetMethod(), host: r.GetHost(), uri: r.GetPath(), headers: h}
	// An address that is missing or cannot be read stays unknown.
	if addr, err := netip.ParseAddr(attributes.GetSource().GetAddress().GetSocketAddress().GetAddress()); err == nil {
		q.client = p.proxies.client(addr.Unmap(), h.Values(fieldFor))
	}
	return q, decision{}
}

// accept tells Envoy what to change in the request: the identity replaces
// whatever the client sent, what there is none of is removed, in any spelling,
// and so is the key if it is to be hidden.
func (p *policy) accept(d *decision, r *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	identity, toClient := http.Header{}, http.Header{}
	d.identify(identity)
	verifierhttp.Announce(toClient, d.result.State, d.result.Version, p.DeprecationLink)
	ok := &authv3.OkHttpResponse{Headers: fieldsOf(identity), ResponseHeadersToAdd: fieldsOf(toClient)}
	remove := map[string]bool{}
	for _, field := range IdentityFields() {
		if identity[field] == nil {
			remove[strings.ToLower(field)] = true
		}
	}
	for _, name := range headersOf(r).names() {
		if forges(name) && identity[http.CanonicalHeaderKey(name)] == nil {
			remove[name] = true
		}
	}
	if p.Hide {
		for _, field := range p.Places.Fields {
			remove[strings.ToLower(field)] = true
		}
		if p.Places.Bearer && presentsBearer(headersOf(r)) {
			remove["authorization"] = true
		}
		if p.Places.Query != "" {
			ok.QueryParametersToRemove = []string{p.Places.Query}
		}
	}
	for name := range remove {
		ok.HeadersToRemove = append(ok.HeadersToRemove, name)
	}
	slices.Sort(ok.HeadersToRemove)
	return &authv3.CheckResponse{
		Status:       &statuspb.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

// presentsBearer tells whether Authorization holds a bearer token, also one that
// is not well-formed, as it may be on a public route, and not the credentials of
// another scheme that the upstream needs.
func presentsBearer(h envoyHeaders) bool {
	_, err := verifierhttp.Places{Bearer: true}.Find(h, "")
	return !errors.Is(err, verifierhttp.ErrNoKey)
}

// refuse is the answer to the client.
func refuse(d *decision) *authv3.CheckResponse {
	status := d.reason.Status()
	h := http.Header{"Content-Type": plainText, "Cache-Control": noStore}
	code := codes.PermissionDenied
	switch status {
	case http.StatusUnauthorized:
		code = codes.Unauthenticated
		h["Www-Authenticate"] = challenge
	case http.StatusServiceUnavailable:
		code = codes.Unavailable
		h["Retry-After"] = []string{strconv.Itoa(d.retryAfter())}
	}
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: statusCode(status)}, Headers: fieldsOf(h), Body: bodies[status],
		}},
	}
}

func statusCode(status int) typev3.StatusCode {
	switch status {
	case http.StatusUnauthorized:
		return typev3.StatusCode_Unauthorized
	case http.StatusServiceUnavailable:
		return typev3.StatusCode_ServiceUnavailable
	}
	return typev3.StatusCode_Forbidden
}

// fieldsOf are fields that replace those of the same name.
func fieldsOf(h http.Header) []*corev3.HeaderValueOption {
	var fields []*corev3.HeaderValueOption
	for name, values := range h {
		for _, v := range values {
			fields = append(fields, &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: strings.ToLower(name), Value: v},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			})
		}
	}
	slices.SortFunc(fields, func(a, b *corev3.HeaderValueOption) int {
		return strings.Compare(a.GetHeader().GetKey(), b.GetHeader().GetKey())
	})
	return fields
}
