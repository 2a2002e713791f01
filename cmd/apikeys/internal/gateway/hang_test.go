// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// hanging is an engine that knows one key, and may take requests and answer
// none.
type hanging struct {
	key  *record.Record
	hang atomic.Bool
}

func (h *hanging) way(ctx context.Context) error {
	if h.hang.Load() {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (h *hanging) Sync(ctx context.Context, r verifier.SyncRequest) (verifier.SyncAnswer, error) {
	return verifier.SyncAnswer{Epoch: "one", Now: time.Now(), Reset: r.Epoch == ""}, h.way(ctx)
}

func (h *hanging) Lookup(ctx context.Context, r verifier.LookupRequest) (verifier.LookupAnswer, error) {
	answer := verifier.LookupAnswer{Epoch: "one", Now: time.Now()}
	for _, id := range r.KeyIDs {
		if id == h.key.KeyID {
			answer.Records = append(answer.Records, h.key)
		} else {
			answer.Missing = append(answer.Missing, id)
		}
	}
	for _, digest := range r.Digests {
		answer.Missing = append(answer.Missing, digest.Hex())
	}
	return answer, h.way(ctx)
}

func (h *hanging) Report(ctx context.Context, _ verifier.Report) (verifier.ReportAnswer, error) {
	return verifier.ReportAnswer{}, h.way(ctx)
}

func makeKey(t *testing.T, id string) string {
	t.Helper()
	apiKey, err := token.New(rand.Reader, token.Format{}, id)
	if err != nil {
		t.Fatal(err)
	}
	return apiKey
}

// TestVaultThatHangs has strangers send thousands of keys that nobody knows
// while Vault takes requests and answers none. Each gets 503 in time, few wait,
// and a known key passes at once.
func TestVaultThatHangs(t *testing.T) {
	t.Parallel()
	const (
		flood   = 10_000
		timeout = time.Second
		id      = "EXAMPLEkey01"
	)
	known := makeKey(t, id)
	wrong := makeKey(t, id) // right id, wrong secret
	strangers := make([]string, flood)
	for i := range strangers {
		other, err := token.NewID(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		strangers[i] = makeKey(t, other)
	}
	synctest.Test(t, func(t *testing.T) {
		g := newTestGateway(t, strings.Replace(testConfig, "access_log       = \"all\"", "decision_timeout = 1", 1))
		e := &hanging{key: &record.Record{
			KeyID: id, Name: "acme", Role: "partner", Enabled: true, Scopes: []string{"orders:read"},
			Versions: []record.Version{{Number: 1, Digest: token.Sum(known), Life: record.Life{State: record.StateActive}}},
		}}
		settings := g.static.verifier()
		settings.Engine = e
		v, err := verifier.New(settings)
		if err != nil {
			t.Fatal(err)
		}
		g.verifier = v
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = v.Run(ctx) })
		synctest.Wait()
		ask := func(key string) (code codes.Code, retry string) {
			answer := g.check(t, http.MethodGet, "/v1/orders", "203.0.113.9", map[string]string{"x-api-key": key})
			for _, h := range answer.GetDeniedResponse().GetHeaders() {
				if h.GetHeader().GetKey() == "retry-after" {
					retry = h.GetHeader().GetValue()
				}
			}
			return codes.Code(answer.GetStatus().GetCode()), retry
		}
		if code, _ := ask(known); code != codes.OK {
			t.Fatalf("the known key: %s", code)
		}

		e.hang.Store(true)
		begin := time.Now()
		var asking sync.WaitGroup
		var answered, others atomic.Int64
		for _, key := range append(strangers, slices.Repeat([]string{wrong}, flood)...) {
			asking.Go(func() {
				if code, retry := ask(key); code != codes.Unavailable || retry != "1" {
					others.Add(1)
				}
				answered.Add(1)
			})
		}
		synctest.Wait()
		if waiting := 2*flood - answered.Load(); waiting == 0 || waiting > 7_000 {
			t.Errorf("%d of %d requests wait, want some, and not more than a stranger may fill", waiting, 2*flood)
		}
		if code, _ := ask(known); code != codes.OK || time.Since(begin) > 0 {
			t.Errorf("the known key meanwhile: %s after %s", code, time.Since(begin))
		}
		asking.Wait()
		if took := time.Since(begin); took > timeout {
			t.Errorf("the last answer came after %s, want %s at most", took, timeout)
		}
		if n := others.Load(); n > 0 {
			t.Errorf("%d of %d were answered something else than 503 with Retry-After", n, 2*flood)
		}

		e.hang.Store(false)
		time.Sleep(5 * time.Second) // what was asked is given up, and the feed is back
		if code, _ := ask(strangers[0]); code != codes.Unauthenticated {
			t.Errorf("a stranger after Vault is back: %s", code)
		}
		stop()
		running.Wait()
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// panicking is a verifier with a fault.
type panicking struct{ with any }

func (p panicking) Verify(_ context.Context, apiKey string, _ verifier.Check) (verifier.Result, error) {
	if p.with == nil {
		return verifier.Result{}, []error{}[len(apiKey)]
	}
	panic(p.with)
}

func TestAPanicIsUnavailableAndTellsNoKey(t *testing.T) {
	t.Parallel()
	for _, with := range []any{nil, errors.New("fault with " + goodKey), "fault with " + goodKey} {
		g := newTestGateway(t, testConfig)
		g.verifier = panicking{with}
		answer := g.ask(http.MethodGet, "/v1/orders", http.Header{"X-Api-Key": {goodKey}})
		var body bytes.Buffer
		_, _ = body.ReadFrom(answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" || body.String() != "unavailable\n" {
			t.Errorf("over HTTP: %d %s", answer.StatusCode, body.String())
		}
		denied := g.check(t, http.MethodGet, "/v1/orders", "203.0.113.9", map[string]string{"x-api-key": goodKey})
		if denied.GetDeniedResponse().GetStatus().GetCode() != http.StatusServiceUnavailable || codes.Code(denied.GetStatus().GetCode()) != codes.Unavailable {
			t.Errorf("over gRPC: %v", denied)
		}
		log := g.log.String()
		if strings.Count(log, "a fault of the gateway") != 2 || !strings.Contains(log, "panicking.Verify") {
			t.Errorf("the log does not say where: %s", log)
		}
		if strings.Contains(log, goodKey) || with == nil && !strings.Contains(log, "index out of range") {
			t.Errorf("the log: %s", log)
		}
		g.metric(t, `apikeys_gateway_requests_total{code="UNAVAILABLE",protocol="grpc",route="none"} 1`)
		g.metric(t, `apikeys_gateway_requests_total{code="UNAVAILABLE",protocol="http",route="none"} 1`)
	}
}

// TestEmptyMessages sends Envoy's empty messages.
func TestEmptyMessages(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	answer, err := (&extAuthz{gateway: g.Gateway}).Check(t.Context(), nil)
	if err != nil || codes.Code(answer.GetStatus().GetCode()) != codes.PermissionDenied {
		t.Errorf("no message: %v, %v", answer, err)
	}
	if h := (envoyHeaders{each: []*corev3.HeaderValue{nil}}); len(h.Values("x")) != 0 {
		t.Error("a field that is none has a value")
	}
}

// TestTheProxyIsNotTheClient asks about a key that is bound to the address of the
// proxy, which tells no client.
func TestTheProxyIsNotTheClient(t *testing.T) {
	t.Parallel()
	g := newTestGateway(t, testConfig)
	bound := *g.keys.known[boundKey].Key
	bound.BoundCIDRs = []string{"127.0.0.0/8"}
	result := g.keys.known[boundKey]
	result.Key = &bound
	g.keys.known[boundKey] = result
	for client, want := range map[string]int{"": http.StatusForbidden, "203.0.113.9": http.StatusForbidden, "127.0.0.2": http.StatusOK} {
		fields := http.Header{"X-Api-Key": {boundKey}, "X-Forwarded-For": {}}
		if client != "" {
			fields["X-Forwarded-For"] = []string{client}
		}
		answer := g.ask(http.MethodGet, "/v1/orders", fields)
		_ = answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("client %q: %d, want %d", client, answer.StatusCode, want)
		}
	}
}
