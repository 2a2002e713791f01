// SPDX-License-Identifier: MPL-2.0

// Package gateway is `apikeys gateway`: it answers proxies that ask whether a
// request may pass, over HTTP (nginx auth_request, Caddy forward_auth, Traefik
// ForwardAuth, HAProxy) and over gRPC (Envoy ext_authz). Keys are judged by
// sdk/verifier, so Vault is not in the path of a request.
//
// # What is trusted
//
// The proxy, and nobody else. Only peers in trusted_proxies, and whoever may
// open the Unix socket, are answered at all; what the request was comes from
// X-Forwarded-Method, X-Forwarded-Host and X-Forwarded-Uri, which the proxy
// must set itself, once each; the client's address is read in X-Forwarded-For
// from the right, up to the first address that is not a trusted proxy's.
//
// # Decision
//
// The first [Route] of the file that fits a request says which scopes it takes.
// What fits none is refused, unless there are no routes. A path that readers may
// take in several ways (dot segments, empty ones, escapes, parameters) passes
// only if all readings lead to the same route. Then the request's one key is
// found (verifierhttp.Places) and verified.
//
// Strangers learn "unauthorized", "forbidden" or "unavailable"; why stands in the
// access log, with the id of the key and never with the key, nor with the path.
//
// # Configuration
//
// An HCL file. Routes, places of keys, trusted proxies and certificates are read
// again when a file changes and on SIGHUP, and change all at once; where one of
// them cannot be used, all stay as they are, and that is said. The rest needs a
// restart.
//
// # Vault
//
// A request is judged within decision_timeout. Where only Vault could tell, and
// does not, the answer is 503, never a refusal. So is that of a request whose
// judging panics.
package gateway
