// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// fleetSize is how many verifiers the issue of the edge speaks of.
const fleetSize = 20

// edgeFleet are verifiers of one mount, with the policy for verifiers.
type edgeFleet struct {
	m         *mount
	verifiers []*verifier.Verifier
	stalls    *stalls
}

// startFleet runs verifiers against an address until the test ends.
func (m *mount) startFleet(address string, change ...func(*verifier.Config)) *edgeFleet {
	m.t.Helper()
	name := writePolicy(m.t, m, "fleet", strings.ReplaceAll(policy(m.t, "verifier"), "apikeys/", m.path+"/"))
	f := &edgeFleet{m: m, stalls: watchStalls(m.t)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	m.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for i := range fleetSize {
		token := newToken(m.t, m.srv, api.TokenCreateRequest{Policies: []string{name}, NoDefaultPolicy: true, TTL: "1h"}).ClientToken
		client, err := vaultclient.New(vaultclient.Config{Address: address, Mount: m.path, Auth: vaultclient.Token(token)})
		if err != nil {
			m.t.Fatal(err)
		}
		config := verifier.Config{Vault: client, Name: fmt.Sprintf("edge-%d", i), Source: "eu"}
		for _, f := range change {
			f(&config)
		}
		v, err := verifier.New(config)
		if err != nil {
			m.t.Fatal(err)
		}
		running.Go(func() { _ = client.Run(ctx) })
		running.Go(func() { _ = v.Run(ctx) })
		f.verifiers = append(f.verifiers, v)
	}
	eventually(m.t, 30*time.Second, func() error {
		for _, v := range f.verifiers {
			if h := v.Health(); !h.Ready {
				return fmt.Errorf("a verifier is not ready: %w", h.LastError)
			}
		}
		return nil
	})
	return f
}

// accept waits until all have accepted a key, and thus cached it.
func (f *edgeFleet) accept(apiKey string) {
	f.m.t.Helper()
	for i, v := range f.verifiers {
		if r, err := v.Verify(context.Background(), apiKey, verifier.Check{}); r.Verdict != verifier.Accepted {
			f.m.t.Errorf("verifier %d: %s %s %v", i, r.Verdict, r.Code, err)
		}
	}
}

// watched is what became of a key at one verifier.
type watched struct {
	accepted, refused           time.Time // last accepted, first refused
	firstAsked                  time.Time // of the refusal
	acceptances, unavailability int
	code                        record.Code
	// knew is the latest question that the feed had answered at an acceptance, and
	// stalest the greatest time since that question.
	knew    time.Time
	stalest time.Duration
}

// untilRefused has all verifiers verify a key until they refuse it, or for so
// long.
func (f *edgeFleet) untilRefused(apiKey string, limit time.Duration) []watched {
	all := make([]watched, len(f.verifiers))
	var watching sync.WaitGroup
	end := time.Now().Add(limit)
	for i, v := range f.verifiers {
		watching.Go(func() {
			w := &all[i]
			for time.Now().Before(end) && w.refused.IsZero() {
				asked := time.Now()
				age := v.Health().FeedAge
				r, _ := v.Verify(context.Background(), apiKey, verifier.Check{})
				switch r.Verdict {
				case verifier.Accepted:
					w.accepted = asked
					w.acceptances++
					if knew := asked.Add(-age); knew.After(w.knew) {
						w.knew = knew
					}
					w.stalest = max(w.stalest, age)
				case verifier.Refused:
					w.firstAsked, w.refused, w.code = asked, time.Now(), r.Code
				case verifier.Unavailable, verifier.VerdictUnknown:
					w.unavailability++
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	watching.Wait()
	return all
}

// stalls measures for how long the machine let this process wait, which no
// verifier can help.
type stalls struct{ longest atomic.Int64 }

func watchStalls(t testing.TB) *stalls {
	s := &stalls{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		const every = 10 * time.Millisecond
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-time.After(every):
			}
			now := time.Now()
			s.longest.Store(max(s.longest.Load(), int64(now.Sub(last)-every)))
			last = now
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return s
}

// grace is what the machine is forgiven: an answer passes three processes.
func (s *stalls) grace() time.Duration { return min(3*time.Duration(s.longest.Load()), mostGrace) }

// revocationBound is what verifiers publish for a healthy feed: the poll interval
// and 250 ms. mostGrace is the most that a machine may add to it that let this
// process wait: with more the bound would not be tested.
const (
	revocationBound = time.Second + 250*time.Millisecond
	mostGrace       = 2 * time.Second
)

func TestTwentyVerifiersRefuseARevocationWithinThePoll(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "1h")
	first := m.key("acme", "trading")
	f := m.startFleet(m.srv.Addr)
	f.accept(first)
	second := m.rotate("acme")
	f.accept(second) // a version that was made a moment ago
	f.accept(first)
	time.Sleep(2 * time.Second) // what changed has been fetched again
	f.accept(first)

	results := make(chan []watched)
	go func() { results <- f.untilRefused(first, 30*time.Second) }()
	time.Sleep(300 * time.Millisecond)
	m.write("revoke/acme", fields("version", 1))
	revoked := time.Now()
	worst := time.Duration(0)
	for i, w := range <-results {
		if w.refused.IsZero() || w.code != record.CodeRevoked {
			t.Errorf("verifier %d: %+v", i, w)
		}
		worst = max(worst, w.accepted.Sub(revoked))
	}
	t.Logf("last accepted %s after the answer to the revocation, the bound is %s; the machine stalled for up to %s", worst, revocationBound, time.Duration(f.stalls.longest.Load()))
	if worst > revocationBound+f.stalls.grace() {
		t.Errorf("a revoked version was accepted %s after the answer to its revocation", worst)
	}
	f.accept(second)
	eventually(t, 40*time.Second, func() error {
		if n := m.use("acme").Versions["2"].UseCount; n < 2*fleetSize {
			return fmt.Errorf("%d uses were reported", n)
		}
		return nil
	})
}

func TestTwentyVerifiersRetireAVersionAtItsDeadline(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "4s")
	old := m.key("acme", "trading")
	f := m.startFleet(m.srv.Addr)
	f.accept(old)
	current := m.rotate("acme")
	deadline := m.accepts(old).AcceptedUntil
	all := f.untilRefused(old, 30*time.Second)
	worst := time.Duration(0)
	for i, w := range all {
		if w.code != record.CodeRetired {
			t.Errorf("verifier %d: %+v", i, w)
			continue
		}
		if !w.accepted.Before(deadline) {
			t.Errorf("verifier %d accepted a request that began %s after the deadline", i, w.accepted.Sub(deadline))
		}
		if w.refused.Before(deadline) {
			t.Errorf("verifier %d refused %s before the deadline", i, deadline.Sub(w.refused))
		}
		if w.unavailability > 0 {
			t.Errorf("verifier %d was unavailable %d times", i, w.unavailability)
		}
		worst = max(worst, w.refused.Sub(deadline))
	}
	t.Logf("refused up to %s after the deadline; the machine stalled for up to %s", worst, time.Duration(f.stalls.longest.Load()))
	if worst > 250*time.Millisecond+f.stalls.grace() {
		t.Errorf("a retired version was refused only %s after its deadline", worst)
	}
	f.accept(current)
}

func TestVerifierBridgesASealedAndAMissingVault(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	m.role("trading", "overlap_period", "1h")
	cached, other, third := m.key("acme", "trading"), m.key("other", "trading"), m.key("third", "trading")
	var log lockedBuffer
	v := m.startVerifier("edge", func(c *verifier.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	wants := func(verdict verifier.Verdict, apiKey string) {
		t.Helper()
		if r, err := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict != verdict {
			t.Errorf("%s %s %v, want %s", r.Verdict, r.Code, err, verdict)
		}
	}
	// recovers waits until the feed is well, and the keys are cached in its
	// present epoch.
	recovers := func(apiKeys ...string) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			if h := v.Health(); !h.Ready || h.LastError != nil {
				return fmt.Errorf("the feed is not well: %w", h.LastError)
			}
			for _, apiKey := range apiKeys {
				r, err := v.Verify(t.Context(), apiKey, verifier.Check{})
				if r.Verdict == verifier.Refused {
					t.Errorf("a valid key was refused: %s", r.Code)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	recovers(cached)
	srv.Seal(t)
	wants(verifier.Accepted, cached)
	wants(verifier.Unavailable, other)
	eventually(t, 20*time.Second, func() error {
		if v.Health().LastError == nil {
			return errors.New("the loss of the feed is not noticed")
		}
		return nil
	})
	wants(verifier.Accepted, cached)
	srv.Unseal(t)
	recovers(other, cached)
	srv.Kill(t)
	wants(verifier.Accepted, cached)
	wants(verifier.Accepted, other)
	wants(verifier.Unavailable, third)
	srv.Start(t)
	srv.Unseal(t)
	recovers(cached)
	// Its token is gone: it logs in again.
	if err := srv.Client.Sys().RevokePrefix("auth/" + m.path + "-edge"); err != nil {
		t.Fatalf("revoke the verifier's tokens: %v", err)
	}
	recovers(third)
	m.write("revoke/acme", fields("all", true, "force", true))
	eventually(t, 10*time.Second, func() error {
		r, _ := v.Verify(t.Context(), cached, verifier.Check{})
		if r.Code != record.CodeRevoked {
			return fmt.Errorf("a revoked key is %s %s", r.Verdict, r.Code)
		}
		return nil
	})
	for _, apiKey := range []string{cached, other, third} {
		if strings.Contains(log.String(), apiKey) {
			t.Error("the log has a key in clear")
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// balance stands before the nodes of a cluster as a load balancer does: it
// asks the next node where one does not answer.
func balance(t testing.TB, nodes []*harness.Server) string {
	t.Helper()
	next := atomic.Uint64{}
	client := &http.Client{Timeout: 2 * time.Second, Transport: nodes[0].Client.CloneConfig().HttpClient.Transport}
	balancer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		first := next.Add(1)
		for i := range uint64(len(nodes)) {
			node := nodes[(first+i)%uint64(len(nodes))]
			asked, err := http.NewRequestWithContext(r.Context(), r.Method, node.Addr+r.URL.RequestURI(), bytes.NewReader(body))
			if err != nil {
				break
			}
			asked.Header = r.Header.Clone()
			resp, err := client.Do(asked)
			if err != nil {
				continue
			}
			answer, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode >= 500 {
				continue
			}
			w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
			w.WriteHeader(resp.StatusCode)
			_, _ = w.Write(answer)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(balancer.Close)
	return balancer.URL
}

// Through a step-down and the death of a leader: no valid request is refused,
// and no revoked key passes past its bound.
func TestTwentyVerifiersThroughFailovers(t *testing.T) {
	t.Parallel()
	cluster, m := ownCluster(t)
	m.role("trading", "overlap_period", "1h")
	var keys []string
	for i := range 5 {
		keys = append(keys, m.key(fmt.Sprintf("acme-%d", i), "trading"))
	}
	doomed, later := m.key("doomed", "trading"), m.key("later", "trading")
	f := m.startFleet(balance(t, cluster.Nodes))
	for _, apiKey := range append(append([]string{}, keys...), doomed, later) {
		f.accept(apiKey)
	}

	var requests, unavailable atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i, v := range f.verifiers {
		load.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				requests.Add(1)
				r, _ := v.Verify(t.Context(), keys[n%len(keys)], verifier.Check{})
				switch r.Verdict {
				case verifier.Unavailable:
					unavailable.Add(1)
				case verifier.Accepted:
				case verifier.Refused, verifier.VerdictUnknown:
					t.Errorf("verifier %d: a valid key is %s %s", i, r.Verdict, r.Code)
				}
			}
		})
	}
	refusedEverywhere := func(what, apiKey string, since time.Time) {
		t.Helper()
		worst := time.Duration(0)
		for i, w := range f.untilRefused(apiKey, 60*time.Second) {
			if w.code != record.CodeRevoked {
				t.Errorf("%s: verifier %d: %+v", what, i, w)
			}
			worst = max(worst, w.accepted.Sub(since))
		}
		t.Logf("%s: last accepted %s after the answer, the bound is %s; the machine stalled for up to %s", what, worst, revocationBound, time.Duration(f.stalls.longest.Load()))
		if worst > revocationBound+f.stalls.grace() {
			t.Errorf("%s: accepted %s after the answer to its revocation", what, worst)
		}
	}
	changeOver := func(end func(leader *harness.Server)) {
		old := m.srv
		end(old)
		eventually(t, 60*time.Second, func() error {
			if m.srv = cluster.Leader(t); m.srv == old {
				return errors.New("there is no new leader yet")
			}
			_, err := m.tryVerify(keys[0])
			return err
		})
		eventually(t, 60*time.Second, func() error {
			for _, v := range f.verifiers {
				if h := v.Health(); h.LastError != nil {
					return fmt.Errorf("a verifier has no feed: %w", h.LastError)
				}
			}
			return nil
		})
	}

	// Revoked an instant before the leader steps down: the next one has a new
	// epoch, and never tells of it.
	m.write("revoke/doomed", fields("all", true, "force", true))
	revoked := time.Now()
	changeOver(func(leader *harness.Server) {
		if err := leader.Client.Sys().StepDown(); err != nil {
			t.Fatalf("step down: %v", err)
		}
	})
	for i, w := range f.untilRefused(doomed, 30*time.Second) {
		if w.code != record.CodeRevoked || w.acceptances > 0 {
			t.Errorf("verifier %d, after the failover: %+v, revoked %s ago", i, w, time.Since(revoked))
		}
	}
	for _, apiKey := range keys {
		f.accept(apiKey)
	}
	changeOver(func(leader *harness.Server) { leader.Kill(t) })
	f.accept(later)
	m.write("revoke/later", fields("all", true, "force", true))
	refusedEverywhere("revoked by the third leader", later, time.Now())
	close(stop)
	load.Wait()
	t.Logf("%d requests with valid keys, %d of them unavailable", requests.Load(), unavailable.Load())
	if requests.Load() < 1000 {
		t.Errorf("only %d requests: this proves little", requests.Load())
	}
}

// TestARevocationDuringAFailover revokes a key while its cluster has no leader:
// again and again, until a node answers that it is done. From then on each
// verifier has its bound: none accepts the key once the feed has answered a
// question that is younger, nor longer than max_stale without an answer.
func TestARevocationDuringAFailover(t *testing.T) {
	t.Parallel()
	const maxStale = 30 * time.Second
	cluster, m := ownCluster(t)
	m.role("trading", "overlap_period", "1h")
	doomed, valid := m.key("doomed", "trading"), m.key("acme", "trading")
	f := m.startFleet(balance(t, cluster.Nodes), func(c *verifier.Config) { c.MaxStale = maxStale })
	f.accept(doomed)
	f.accept(valid)

	results := make(chan []watched)
	go func() { results <- f.untilRefused(doomed, 2*maxStale) }()
	old := m.srv
	old.Kill(t)
	killed := time.Now()
	var revoked time.Time
	tries := 0
	eventually(t, time.Minute, func() error {
		var failures []error
		for _, node := range cluster.Nodes {
			if node == old {
				continue
			}
			tries++
			a, err := m.at(node).send(http.MethodPost, m.path+"/revoke/doomed", fields("all", true, "force", true))
			switch {
			case err != nil:
				failures = append(failures, err)
			case a.ok():
				revoked = time.Now()
				return nil
			default:
				failures = append(failures, fmt.Errorf("status %d", a.status))
			}
		}
		return fmt.Errorf("no node revokes: %w", errors.Join(failures...))
	})
	worst, stalest := time.Duration(0), time.Duration(0)
	for i, w := range <-results {
		if w.code != record.CodeRevoked {
			t.Errorf("verifier %d: %+v", i, w)
		}
		if w.knew.After(revoked) {
			t.Errorf("verifier %d accepted the key after the feed had answered a question from %s after its revocation", i, w.knew.Sub(revoked))
		}
		if w.stalest > maxStale {
			t.Errorf("verifier %d accepted the key %s after the last answer of the feed", i, w.stalest)
		}
		worst, stalest = max(worst, w.accepted.Sub(revoked)), max(stalest, w.stalest)
	}
	t.Logf("revoked %s after the leader died, by try %d; last accepted %s later, at most %s after an answer of the feed; the machine stalled for up to %s",
		revoked.Sub(killed), tries, worst, stalest, time.Duration(f.stalls.longest.Load()))
	// The node that has revoked leads, and answers the feed: the bound is that of
	// a healthy one, and the request that met the failover before.
	if most := requestTimeout + revocationBound + f.stalls.grace(); worst > most {
		t.Errorf("the key was accepted until %s after the answer to its revocation, want %s at most", worst, most)
	}
	m.srv = cluster.Leader(t)
	eventually(t, time.Minute, func() error {
		for i, v := range f.verifiers {
			r, err := v.Verify(t.Context(), valid, verifier.Check{})
			if r.Verdict == verifier.Refused {
				t.Errorf("verifier %d: a valid key is refused: %s", i, r.Code)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// requestTimeout is that of a verifier's requests, by default.
const requestTimeout = 2 * time.Second
