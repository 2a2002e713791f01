// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// AuthPath is where proxies ask over HTTP.
const AuthPath = "/auth"

// The fields by which a proxy tells what the request is.
const (
	fieldMethod = "X-Forwarded-Method"
	fieldHost   = "X-Forwarded-Host"
	fieldURI    = "X-Forwarded-Uri"
	fieldFor    = "X-Forwarded-For"
)

// answers are the parts of answers that are always the same.
var (
	noContent = []string{"0"}
	plainText = []string{"text/plain; charset=utf-8"}
	noStore   = []string{"no-store"}
	challenge = []string{"Bearer"}
)

// ServeHTTP answers a proxy that asks whether a request may pass: 200 with the
// identity of the client, 401, 403, or 503 with Retry-After. Any method will
// do; a body is not read.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := g.clock()
	defer func() {
		if g.rescue(ListenHTTP, recover()) {
			refuseHTTP(w, &decision{reason: ReasonUnavailable})
		}
	}()
	h := w.Header()
	if r.URL.Path != AuthPath {
		h["Content-Length"] = noContent
		w.WriteHeader(http.StatusNotFound)
		return
	}
	p := g.policy.Load()
	q, d := p.ask(r)
	if d.reason == "" {
		d = p.decide(r.Context(), g.verifier, q)
	}
	if d.passes() {
		d.identifyAll(h)
		verifierhttp.Announce(h, d.result.State, d.result.Version, p.DeprecationLink)
		h["Content-Length"] = noContent
		w.WriteHeader(http.StatusOK)
	} else {
		refuseHTTP(w, &d)
	}
	g.observe(r.Context(), p, ListenHTTP, &q, &d, g.clock().Sub(start))
}

// refuseHTTP is the answer to a request that does not pass.
func refuseHTTP(w http.ResponseWriter, d *decision) {
	h, status := w.Header(), d.reason.Status()
	switch status {
	case http.StatusUnauthorized:
		h["Www-Authenticate"] = challenge
	case http.StatusServiceUnavailable:
		h["Retry-After"] = []string{strconv.Itoa(d.retryAfter())}
	}
	body := bodies[status]
	h["Content-Type"], h["Cache-Control"] = plainText, noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// ask reads what the request is that a proxy asks about. The decision has a
// reason where it need not be asked: an untrusted peer, or fields that are
// missing or come twice, as they do where a proxy adds its own to the client's.
func (p *policy) ask(r *http.Request) (question, decision) {
	peer, known := peerOf(r.RemoteAddr)
	if known && !p.proxies.trust(peer) {
		return question{client: peer}, decision{reason: ReasonUntrusted}
	}
	q := question{headers: r.Header, client: p.proxies.client(peer, r.Header[fieldFor])}
	var told [3]string
	for i, field := range [...]string{fieldMethod, fieldURI, fieldHost} {
		values := r.Header[field]
		if len(values) > 1 || len(values) == 0 && field != fieldHost {
			return q, decision{reason: ReasonNotTold}
		}
		if len(values) == 1 {
			told[i] = values[0]
		}
	}
	q.method, q.uri, q.host = told[0], told[1], told[2]
	return q, decision{}
}

// peerOf reads the address of a connection; that of a Unix socket has none.
func peerOf(remote string) (netip.Addr, bool) {
	pair, err := netip.ParseAddrPort(remote)
	return pair.Addr().Unmap(), err == nil
}

// timeOf is a clock's reading; it is a type so that tests can replace it.
type timeOf func() time.Time
