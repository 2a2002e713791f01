// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// startVerifier runs a verifier of the mount, with its policy, until the test
// ends.
func (m *mount) startVerifier(name string, change func(*verifier.Config)) *verifier.Verifier {
	m.t.Helper()
	app := newApp(m.t, m.srv, m.path+"-"+name, writePolicy(m.t, m, name, strings.ReplaceAll(policy(m.t, "verifier"), "apikeys/", m.path+"/")))
	config := verifier.Config{Vault: m.sdkClient(app.appRole()), Name: name, Source: name}
	change(&config)
	v, err := verifier.New(config)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = v.Run(ctx)
	}()
	m.t.Cleanup(func() {
		closing, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		if err := v.Close(closing); err != nil {
			m.t.Logf("close the verifier: %v", err)
		}
		cancel()
		<-ran
	})
	return v
}

// byVerifier accepts what a verifier accepts.
func byVerifier(v *verifier.Verifier) func(context.Context, string) (bool, error) {
	return func(ctx context.Context, apiKey string) (bool, error) {
		result, err := v.Verify(ctx, apiKey, verifier.Check{})
		return result.Verdict == verifier.Accepted, err
	}
}

// 100,000 requests, 200 rotations, three in four of them without an overlap, a
// client on sdk/consumer and a server on sdk/verifier: none fails. The feed is
// asked often, so that nearly every rotation is felt by the client.
func TestEdgeHundredThousandRequestsThroughTwoHundredRotations(t *testing.T) {
	t.Parallel()
	const (
		requests  = 100_000
		rotations = 200
	)
	s := agentOn(onDev(t))
	s.role("hard", "overlap_period", 0, "max_accepted_versions", 16, "max_versions", 20)
	s.key("acme", "hard")
	v := s.startVerifier("gate", func(c *verifier.Config) {
		c.Logger = slog.New(slog.NewTextHandler(testLog{t}, nil))
		c.PollInterval = 20 * time.Millisecond
	})
	server := startAPI(t, byVerifier(v))
	l := consume(t, server, 16, consumer.Config{
		Origin: consumer.Vault(s.sdkClient(s.app.appRole()), "acme"), Instance: "eu-1",
	})
	began := time.Now()
	for n := range rotations {
		l.passes(requests / (rotations + 1))
		if n%4 == 3 {
			s.rotate("acme", "overlap_period", "1s")
		} else {
			s.rotate("acme")
		}
	}
	l.passes(max(requests-l.sent.Load(), 1))
	l.changesOverTo(rotations + 1)
	l.end()
	t.Logf("%d requests through %d rotations in %s: %d refused at first, %d failed; verifier: %+v",
		l.sent.Load(), rotations, time.Since(began).Round(time.Second), server.refusals.Load(), l.failed.Load(), v.Stats())
	if l.sent.Load() < requests || l.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", l.failed.Load(), l.sent.Load())
	}
	if server.refusals.Load() < rotations/2 {
		t.Errorf("only %d requests were refused at first: this proves little", server.refusals.Load())
	}
}

// testLog is a log that the test shows.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}
