// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

const (
	// maxRetries bounds how often a request is sent again, each time with a key
	// that is newer than the one that was refused: rotations may pass a request on
	// its way, but an origin may also bring ever new keys that no server knows.
	maxRetries = 30
	// maxDrain is how much of a refusal's body is read, so that the connection
	// can be used again.
	maxDrain = 64 << 10
)

// TransportConfig says how requests carry the key.
type TransportConfig struct {
	// Hosts are the only ones that are given the key: api.example.com, for https on
	// its usual port, api.example.com:8443, or https://api.example.com:8443. Plain
	// http has to be named, as in http://127.0.0.1:8080. At least one is required.
	Hosts []string
	// SetKey puts the key into the headers of a request: [Bearer] if it is nil,
	// [Header] for another header, or your own. It is given a copy of the headers.
	SetKey func(header http.Header, apiKey string)
	// Base sends the requests; http.DefaultTransport if it is nil.
	Base http.RoundTripper
}

// Transport is an http.RoundTripper that gives each request the current key, and
// sends it again with a newer one where a server refuses it with 401 and its
// body can be sent again: where it has none, or GetBody is set, as
// http.NewRequest does for bytes.Buffer, bytes.Reader and strings.Reader. It
// repeats a request for no other reason.
//
// A request to a host that is not in Hosts is an error, unless a redirect leads
// there: then it goes without the key, and so does every redirect that follows,
// also one that leads back.
type Transport struct {
	source *Source
	base   http.RoundTripper
	set    func(http.Header, string)
	hosts  map[origin]struct{}
}

// origin is a scheme, a host in lower case and a port.
type origin struct{ scheme, host, port string }

// NewTransport makes a Transport on a Source.
func NewTransport(s *Source, c TransportConfig) (*Transport, error) {
	if s == nil {
		return nil, errors.New("consumer: a Transport needs a Source")
	}
	if len(c.Hosts) == 0 {
		return nil, errors.New("consumer: TransportConfig.Hosts is required: the hosts that may be given the key")
	}
	t := &Transport{source: s, base: c.Base, set: c.SetKey, hosts: map[origin]struct{}{}}
	if t.base == nil {
		t.base = http.DefaultTransport
	}
	if t.set == nil {
		t.set = Bearer
	}
	for _, host := range c.Hosts {
		o, err := parseHost(host)
		if err != nil {
			return nil, err
		}
		t.hosts[o] = struct{}{}
	}
	return t, nil
}

// Bearer sets Authorization: Bearer.
func Bearer(header http.Header, apiKey string) { header.Set("Authorization", "Bearer "+apiKey) }

// Header sets a header of the given name, X-API-Key for example, to the key.
func Header(name string) func(header http.Header, apiKey string) {
	return func(header http.Header, apiKey string) { header.Set(name, apiKey) }
}

// RoundTrip sends a request. The error holds no key, and neither does the
// Request of the response, which is the one that was given.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	carries, err := t.carries(r)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	if !carries {
		return t.base.RoundTrip(r)
	}
	held, err := t.source.held(r.Context())
	if err != nil {
		closeBody(r)
		return nil, err
	}
	body := r.Body
	for tries := 0; ; tries++ {
		attempt := r.Clone(r.Context())
		attempt.Body = body
		t.set(attempt.Header, held.secret)
		resp, err := t.base.RoundTrip(attempt)
		if err != nil {
			return nil, err
		}
		resp.Request = r
		if resp.StatusCode != http.StatusUnauthorized {
			if resp.StatusCode < http.StatusBadRequest {
				t.source.accepted(held, placeOf(r.URL))
			}
			return resp, nil
		}
		if !replayable(r) {
			t.source.refused(held)
			return resp, nil
		}
		if tries == maxRetries {
			return resp, nil
		}
		next := t.source.successor(r.Context(), held, placeOf(r.URL))
		if next == nil {
			return resp, nil
		}
		if r.GetBody != nil && body != nil && body != http.NoBody {
			if body, err = r.GetBody(); err != nil {
				return resp, nil //nolint:nilerr // then the refusal is the answer
			}
		}
		held = next
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
		_ = resp.Body.Close()
	}
}

// CloseIdleConnections closes those of the base, for http.Client's method of
// that name.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// carries tells whether a request is to carry the key: if it leads to one of
// the hosts, and so did each request that redirected to it.
func (t *Transport) carries(r *http.Request) (bool, error) {
	if _, ok := t.hosts[originOf(r.URL)]; !ok && r.Response == nil {
		return false, fmt.Errorf("consumer: %s://%s is not one of the hosts that may be given the API key", r.URL.Scheme, r.URL.Host)
	}
	for hop := r; hop != nil; hop = hop.Response.Request {
		if _, ok := t.hosts[originOf(hop.URL)]; !ok {
			return false, nil
		}
		if hop.Response == nil {
			return true, nil
		}
	}
	return false, nil // a redirect by nobody knows whom
}

func replayable(r *http.Request) bool {
	return r.Body == nil || r.Body == http.NoBody || r.GetBody != nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

func originOf(u *url.URL) origin {
	if u == nil {
		return origin{}
	}
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "https":
			port = "443"
		case "http":
			port = "80"
		}
	}
	return origin{scheme: u.Scheme, host: strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), port: port}
}

func parseHost(host string) (origin, error) {
	bad := fmt.Errorf("consumer: host %q must be like api.example.com, api.example.com:8443 or http://127.0.0.1:8080", host)
	full := host
	if !strings.Contains(host, "://") {
		full = "https://" + host
		if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
			full = "https://[" + host + "]"
		}
	}
	u, err := url.Parse(full)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(u.Host, "*") {
		return origin{}, bad
	}
	return originOf(u), nil
}
