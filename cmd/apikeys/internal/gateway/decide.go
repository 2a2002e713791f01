// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"net/netip"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// keyVerifier judges keys, as *verifier.Verifier does.
type keyVerifier interface {
	Verify(ctx context.Context, apiKey string, check verifier.Check) (verifier.Result, error)
}

// policy is a Policy as requests are judged by it, with the certificates that
// are served meanwhile.
type policy struct {
	Policy
	proxies      proxies
	routes       table
	certificates []*tls.Config
}

func newPolicy(p Policy, certificates []*tls.Config) *policy {
	return &policy{Policy: p, proxies: p.Proxies, routes: p.Routes, certificates: certificates}
}

// question is a request that a proxy asks about.
type question struct {
	method, host string
	// uri is path and query, as the client sent them.
	uri     string
	headers verifierhttp.Headers
	client  netip.Addr
}

// decision is what became of it.
type decision struct {
	reason Reason
	// route is nil where none was found.
	route  *Route
	result verifier.Result
}

// decide judges a request. The verifier takes at most decision_timeout: what is
// not decided by then, because Vault is asked and does not answer, is
// unavailable. What is returned holds nothing of the key.
func (p *policy) decide(ctx context.Context, v keyVerifier, q question) decision {
	if q.method == "" || q.uri == "" {
		return decision{reason: ReasonNotTold}
	}
	path, query, _ := strings.Cut(q.uri, "?")
	route, reason := p.routes.find(q.method, q.host, path)
	if route == nil {
		return decision{reason: reason}
	}
	if route.Public {
		return decision{reason: ReasonPublic, route: route}
	}
	key, err := p.Places.Find(q.headers, query)
	if err != nil {
		return decision{reason: reasonOf(err), route: route}
	}
	result, err := v.Verify(ctx, key, verifier.Check{Scopes: route.Scopes, SourceIP: q.client, Source: route.Source})
	if err != nil || result.Verdict == verifier.Unavailable || result.Verdict == verifier.VerdictUnknown {
		return decision{reason: ReasonUnavailable, route: route, result: result}
	}
	return decision{reason: Reason(result.Code), route: route, result: result}
}

// retryAfter is in whole seconds, at least one.
func (d *decision) retryAfter() int {
	return max(1, int((d.result.RetryAfter+time.Second-1)/time.Second))
}

// passes tells whether the request may go on. A code that this program does not
// know passes nothing.
func (d *decision) passes() bool {
	return d.reason == ReasonPublic || d.reason == validReason && d.result.Verdict == verifier.Accepted
}
