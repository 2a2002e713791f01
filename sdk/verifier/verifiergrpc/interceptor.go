// SPDX-License-Identifier: MPL-2.0

// Package verifiergrpc has the API key of each call to a gRPC server verified.
//
//	guard, err := verifiergrpc.New(v, verifiergrpc.Options{
//		Scopes: map[string][]string{"/orders.v1.Orders/": {"orders:read"}},
//	})
//	server := grpc.NewServer(grpc.UnaryInterceptor(guard.Unary), grpc.StreamInterceptor(guard.Stream))
//
// The key stands in the metadata, under authorization, as "Bearer" and the key,
// or under x-api-key; once, or the call is refused. Calls that do not pass have
// the codes Unauthenticated, PermissionDenied and Unavailable, and their
// messages tell no more. [FromContext] tells handlers what is known of the key.
//
// A client whose version is being replaced is told in the header of the answer,
// by the fields deprecation, sunset and link, as over HTTP.
package verifiergrpc

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// Options say how a Guard works. Its zero value requires a key for every call,
// and no scopes.
type Options struct {
	// Scopes are those that calls require, by full method, such as
	// "/orders.v1.Orders/List", or, with a slash at the end, by service. A
	// method's own entry replaces that of its service.
	Scopes map[string][]string
	// Public are the full methods, or services, that need no key.
	Public []string
	// SourceIP tells where a call came from. Nil is the peer of the connection.
	SourceIP func(ctx context.Context) netip.Addr
	// Source is where calls arrive, for the count of use, as that of a
	// verifier.Check; that of the verifier if empty.
	Source string
	// DeprecationLink is a page that tells a client whose version is being
	// replaced what to do.
	DeprecationLink string
	// Logger is told, at level debug, why a call did not pass. Nil discards.
	Logger *slog.Logger
}

// Guard lets calls pass that present a key which is accepted.
type Guard struct {
	verifier verifierhttp.Verifier
	options  Options
	places   verifierhttp.Places
}

// New makes a guard. Its error names the option that cannot be used.
func New(v verifierhttp.Verifier, o Options) (*Guard, error) {
	if v == nil {
		return nil, errors.New("a verifier is required")
	}
	for name := range o.Scopes {
		if err := checkName("scopes", name); err != nil {
			return nil, err
		}
	}
	for _, name := range o.Public {
		if err := checkName("public", name); err != nil {
			return nil, err
		}
	}
	if err := verifier.CheckSource(o.Source); err != nil {
		return nil, err
	}
	o.Scopes, o.Public = maps.Clone(o.Scopes), slices.Clone(o.Public)
	if o.SourceIP == nil {
		o.SourceIP = peerOf
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Guard{verifier: v, options: o, places: verifierhttp.DefaultPlaces()}, nil
}

func checkName(option, name string) error {
	if !strings.HasPrefix(name, "/") || strings.Count(name, "/") != 2 {
		return errors.New(option + ` must name methods as "/package.Service/Method", or services as "/package.Service/"`)
	}
	return nil
}

// service is the name of a method's service, in the form of Options.
func service(method string) string { return method[:strings.LastIndexByte(method, '/')+1] }

func peerOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	pair, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return pair.Addr().Unmap()
}

type contextKey struct{}

// FromContext returns what is known of the key of a call that passed.
func FromContext(ctx context.Context) (verifier.Result, bool) {
	r, ok := ctx.Value(contextKey{}).(verifier.Result)
	return r, ok
}

// fields are the metadata of a call, as verifierhttp.Places reads them.
type fields metadata.MD

func (f fields) Values(name string) []string { return metadata.MD(f).Get(name) }

var (
	errUnauthenticated = status.Error(codes.Unauthenticated, "unauthorized")
	errDenied          = status.Error(codes.PermissionDenied, "forbidden")
	errUnavailable     = status.Error(codes.Unavailable, "unavailable")
)

// Unary is an interceptor of unary calls.
func (g *Guard) Unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, header, err := g.check(ctx, info.FullMethod)
	if len(header) > 0 {
		_ = grpc.SetHeader(ctx, header) // it fails where there is nobody to tell
	}
	if err != nil {
		return nil, err
	}
	return next(ctx, request)
}

// Stream is an interceptor of streams. A key is verified when its stream
// begins.
func (g *Guard) Stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, header, err := g.check(stream.Context(), info.FullMethod)
	if len(header) > 0 {
		_ = stream.SetHeader(header) // it fails where there is nobody to tell
	}
	if err != nil {
		return err
	}
	return next(server, &verifiedStream{stream, ctx})
}

type verifiedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // it is that of the stream
}

func (s *verifiedStream) Context() context.Context { return s.ctx }

// check verifies a call. The header is what its client is told.
func (g *Guard) check(ctx context.Context, method string) (context.Context, metadata.MD, error) {
	if slices.Contains(g.options.Public, method) || slices.Contains(g.options.Public, service(method)) {
		return ctx, nil, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	apiKey, err := g.places.Find(fields(md), "")
	if err != nil {
		g.tell(ctx, method, "NO_KEY", "")
		return ctx, nil, errUnauthenticated
	}
	scopes, own := g.options.Scopes[method]
	if !own {
		scopes = g.options.Scopes[service(method)]
	}
	r, err := g.verifier.Verify(ctx, apiKey, verifier.Check{Scopes: scopes, SourceIP: g.options.SourceIP(ctx), Source: g.options.Source})
	header := metadata.MD{}
	switch verifierhttp.Status(&r, err) {
	case http.StatusOK:
		told := http.Header{}
		verifierhttp.Announce(told, r.State, r.Version, g.options.DeprecationLink)
		for name, values := range told {
			header.Append(name, values...)
		}
		return context.WithValue(ctx, contextKey{}, r), header, nil
	case http.StatusForbidden:
		err = errDenied
	case http.StatusServiceUnavailable:
		err = errUnavailable
		header.Set("retry-after", strconv.FormatInt(max(1, int64((r.RetryAfter+time.Second-1)/time.Second)), 10))
	default:
		err = errUnauthenticated
	}
	id := ""
	if r.Key != nil {
		id = r.Key.KeyID
	}
	g.tell(ctx, method, string(r.Code), id)
	return ctx, header, err
}

func (g *Guard) tell(ctx context.Context, method, code, keyID string) {
	g.options.Logger.LogAttrs(ctx, slog.LevelDebug, "a call did not pass",
		slog.String("method", method), slog.String("code", code), slog.String("key_id", keyID))
}
