// SPDX-License-Identifier: MPL-2.0

package verifierhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// Verifier judges keys, as a *verifier.Verifier does.
type Verifier interface {
	Verify(ctx context.Context, apiKey string, check verifier.Check) (verifier.Result, error)
}

// Options say how a Guard works. The zero value takes keys from Authorization:
// Bearer and X-API-Key.
type Options struct {
	// Fields are the header fields that may hold the key. Authorization means
	// its scheme Bearer. Nil is Authorization and X-API-Key.
	Fields []string
	// Key finds the key of a request in another way, instead. ErrNoKey and
	// ErrSeveralKeys are errors for it to return; every error is a 401.
	Key func(r *http.Request) (string, error)
	// InsecureKeyInQuery is the name of a parameter of the URL that may hold
	// the key, too. What stands in a URL ends up in logs, histories and Referer
	// fields of others: it is for clients that cannot be changed.
	InsecureKeyInQuery string

	// SourceIP tells where a request came from, for keys that are bound to
	// addresses. Nil is the peer of the connection, which is a proxy's where
	// there is one.
	SourceIP func(r *http.Request) netip.Addr
	// Source is where requests arrive, for the count of use, as that of a
	// verifier.Check; that of the verifier if empty.
	Source string

	// DeprecationLink and SunsetLink are pages that tell a client whose version
	// is being replaced what to do, for the Link field of answers.
	DeprecationLink, SunsetLink string
	// Logger is told, at level debug, why a request did not pass. Nil discards.
	Logger *slog.Logger
}

// Guard lets requests pass that present a key which is accepted.
type Guard struct {
	verifier Verifier
	options  Options
	places   Places
}

// New makes a guard. Its error names the option that cannot be used.
func New(v Verifier, o Options) (*Guard, error) {
	if v == nil {
		return nil, errors.New("a verifier is required")
	}
	places := DefaultPlaces()
	if o.Fields != nil {
		places = Places{Fields: o.Fields}
	}
	places.Query = o.InsecureKeyInQuery
	places, err := NewPlaces(places)
	if err != nil {
		return nil, fmt.Errorf("fields: %w", err)
	}
	if err := verifier.CheckSource(o.Source); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SourceIP == nil {
		o.SourceIP = peer
	}
	o.Fields = slices.Clone(o.Fields)
	return &Guard{verifier: v, options: o, places: places}, nil
}

// peer is the address at the other end of the connection; the zero one where
// it has none.
func peer(r *http.Request) netip.Addr {
	pair, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return pair.Addr().Unmap()
}

type contextKey struct{}

// FromContext returns what is known of the key of a request that passed.
func FromContext(ctx context.Context) (verifier.Result, bool) {
	r, ok := ctx.Value(contextKey{}).(verifier.Result)
	return r, ok
}

// Require lets only requests through to a handler whose key has all of scopes.
// The others are answered
//
//	401 with WWW-Authenticate  no key, several, or one that is refused
//	403                        a key without a scope, or from a forbidden address
//	503 with Retry-After       nobody knows now
//
// and their bodies tell no more than that.
func (g *Guard) Require(scopes ...string) func(http.Handler) http.Handler {
	scopes = slices.Clone(scopes)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			result, status := g.check(r, scopes)
			if status != http.StatusOK {
				answer(w, status, result.RetryAfter)
				return
			}
			if Announce(w.Header(), result.State, result.Version, g.options.DeprecationLink) && g.options.SunsetLink != "" {
				w.Header().Add(fieldLink, "<"+g.options.SunsetLink+`>; rel="sunset"`)
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, result)))
		})
	}
}

// check returns the status of a request, 200 where it may pass.
func (g *Guard) check(r *http.Request, scopes []string) (verifier.Result, int) {
	find := g.places.FindIn
	if g.options.Key != nil {
		find = g.options.Key
	}
	apiKey, err := find(r)
	if err != nil {
		g.tell(r, http.StatusUnauthorized, "NO_KEY", "")
		return verifier.Result{}, http.StatusUnauthorized
	}
	result, err := g.verifier.Verify(r.Context(), apiKey, verifier.Check{
		Scopes: scopes, SourceIP: g.options.SourceIP(r), Source: g.options.Source,
	})
	status := Status(&result, err)
	if status != http.StatusOK {
		id := ""
		if result.Key != nil {
			id = result.Key.KeyID
		}
		g.tell(r, status, string(result.Code), id)
	}
	return result, status
}

// tell logs why a request did not pass. Its path is not logged: it may be the
// place of a key.
func (g *Guard) tell(r *http.Request, status int, code, keyID string) {
	g.options.Logger.LogAttrs(r.Context(), slog.LevelDebug, "a request did not pass",
		slog.Int("status", status), slog.String("code", code), slog.String("key_id", keyID))
}

// Status is the status of an answer to a request that was judged so.
func Status(r *verifier.Result, err error) int {
	switch {
	case err != nil:
		return http.StatusServiceUnavailable
	case r.Verdict == verifier.Accepted:
		return http.StatusOK
	case r.Verdict != verifier.Refused:
		return http.StatusServiceUnavailable
	case r.Code == record.CodeInsufficientScope || r.Code == record.CodeForbiddenSource:
		return http.StatusForbidden
	}
	return http.StatusUnauthorized
}

// bodies are all that strangers learn.
var bodies = map[int]string{
	http.StatusUnauthorized:       "unauthorized\n",
	http.StatusForbidden:          "forbidden\n",
	http.StatusServiceUnavailable: "unavailable\n",
}

func answer(w http.ResponseWriter, status int, retryAfter time.Duration) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", bearer)
	case http.StatusServiceUnavailable:
		seconds := (retryAfter + time.Second - 1) / time.Second
		h.Set("Retry-After", strconv.FormatInt(max(1, int64(seconds)), 10))
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, bodies[status])
}
