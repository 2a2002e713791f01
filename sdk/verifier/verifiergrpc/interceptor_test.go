// SPDX-License-Identifier: MPL-2.0

package verifiergrpc_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifiergrpc"
)

type judge struct {
	asked chan verifier.Check
}

var errAway = errors.New("away")

func (j *judge) Verify(_ context.Context, apiKey string, check verifier.Check) (verifier.Result, error) {
	j.asked <- check
	switch apiKey {
	case "good":
		return verifier.Result{Verdict: verifier.Accepted, Code: record.CodeValid, State: record.StateActive}, nil
	case "old":
		at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		return verifier.Result{Verdict: verifier.Accepted, Code: record.CodeValid, State: record.StateRetiring, Version: &record.Version{
			Life: record.Life{State: record.StateRetiring, SupersededTime: at, OverlapEnds: at},
		}}, nil
	case "narrow":
		return verifier.Result{Verdict: verifier.Refused, Code: record.CodeInsufficientScope}, nil
	case "away":
		return verifier.Result{Verdict: verifier.Unavailable, RetryAfter: time.Second}, errAway
	}
	return verifier.Result{Verdict: verifier.Refused, Code: record.CodeNotFound}, nil
}

// serve runs a server with the health service behind a guard.
func serve(t *testing.T, o verifiergrpc.Options) (*judge, grpc_health_v1.HealthClient) {
	t.Helper()
	j := &judge{asked: make(chan verifier.Check, 10)}
	g, err := verifiergrpc.New(j, o)
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 16)
	inContext := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if r, ok := verifiergrpc.FromContext(ctx); len(o.Public) == 0 && (!ok || r.Verdict != verifier.Accepted) {
			t.Errorf("the context of a call that passed has %+v", r)
		}
		return next(ctx, request)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(g.Unary, inContext), grpc.StreamInterceptor(g.Stream))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	ran := make(chan error, 1)
	go func() { ran <- server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return j, grpc_health_v1.NewHealthClient(conn)
}

func TestCallsPassByTheirKey(t *testing.T) {
	t.Parallel()
	j, client := serve(t, verifiergrpc.Options{
		Scopes:   map[string][]string{"/grpc.health.v1.Health/": {"read"}, "/grpc.health.v1.Health/Watch": {"watch"}},
		Source:   "eu",
		SourceIP: func(context.Context) netip.Addr { return netip.MustParseAddr("192.0.2.1") },
	})
	for _, tc := range []struct {
		name     string
		metadata []string
		code     codes.Code
		asked    bool
	}{
		{"bearer", []string{"authorization", "Bearer good"}, codes.OK, true},
		{"x-api-key", []string{"x-api-key", "good"}, codes.OK, true},
		{"none", nil, codes.Unauthenticated, false},
		{"twice", []string{"x-api-key", "good", "x-api-key", "good"}, codes.Unauthenticated, false},
		{"two places", []string{"x-api-key", "good", "authorization", "Bearer good"}, codes.Unauthenticated, false},
		{"unknown", []string{"x-api-key", "bad"}, codes.Unauthenticated, true},
		{"narrow", []string{"x-api-key", "narrow"}, codes.PermissionDenied, true},
		{"away", []string{"x-api-key", "away"}, codes.Unavailable, true},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), tc.metadata...)
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.code)
		}
		if tc.asked {
			if c := <-j.asked; len(c.Scopes) != 1 || c.Scopes[0] != "read" || c.Source != "eu" || c.SourceIP.String() != "192.0.2.1" {
				t.Errorf("%s: asked %+v", tc.name, c)
			}
		}
		stream, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != tc.code {
			t.Errorf("%s, streaming: %v, want %s", tc.name, err, tc.code)
		}
		if tc.asked {
			if c := <-j.asked; len(c.Scopes) != 1 || c.Scopes[0] != "watch" {
				t.Errorf("%s, streaming: asked %+v", tc.name, c)
			}
		}
	}
}

func TestClientsOfARetiringVersionAreTold(t *testing.T) {
	t.Parallel()
	_, client := serve(t, verifiergrpc.Options{DeprecationLink: "https://example.com/rotate"})
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-api-key", "old")
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"deprecation": "@1772366400", "sunset": "Sun, 01 Mar 2026 12:00:00 GMT", "link": `<https://example.com/rotate>; rel="deprecation"`,
	} {
		if got := header.Get(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

func TestPublicMethodsNeedNoKey(t *testing.T) {
	t.Parallel()
	j, client := serve(t, verifiergrpc.Options{Public: []string{"/grpc.health.v1.Health/"}})
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	if len(j.asked) > 0 {
		t.Error("a key was verified")
	}
}

func TestNewRefusesWhatIsNoMethod(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "x", "/x", "x/y", "/x/y/z"} {
		if _, err := verifiergrpc.New(&judge{}, verifiergrpc.Options{Scopes: map[string][]string{name: nil}}); err == nil {
			t.Errorf("%q was accepted", name)
		}
		if _, err := verifiergrpc.New(&judge{}, verifiergrpc.Options{Public: []string{name}}); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
	if _, err := verifiergrpc.New(nil, verifiergrpc.Options{}); err == nil {
		t.Error("no verifier was accepted")
	}
	if _, err := verifiergrpc.New(&judge{}, verifiergrpc.Options{Source: "eu west"}); err == nil || !strings.Contains(err.Error(), "source must be") {
		t.Errorf("a source that use cannot be counted under: %v", err)
	}
}
