// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

func claimAnswer(version int) string {
	return fmt.Sprintf(`{"data":{"api_key":%q,"key_id":"Exam9leKey1d","name":"acme","version":%d}}`, at(version), version)
}

func TestAClaimBringsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := &fakeEngine{claims: map[string]string{"claim_1": claimAnswer(1), "claim_2": claimAnswer(2)}}
		claims := consumer.NewClaims(f.client(t, vaultclient.Anonymous{}))
		s := w.source(func(c *consumer.Config) { c.Origin = claims })
		run(t, s)
		api := w.client(s)
		go func() {
			time.Sleep(3 * time.Second)
			if _, err := claims.Redeem(t.Context(), "claim_1"); err != nil {
				t.Error(err)
			}
		}()
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		w.rotate(0)
		go func() {
			time.Sleep(3 * time.Second) // the webhook is on its way
			key, err := claims.Redeem(t.Context(), "claim_2")
			if err != nil || key.Version() != 2 || key.ID() != "Exam9leKey1d" {
				t.Errorf("%v, %v", key, err)
			}
		}()
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		for _, request := range f.requests {
			if !strings.HasPrefix(request, "PUT /v1/apikeys/claim ") {
				t.Errorf("a client without a token sends %s", request)
			}
		}
		if _, err := claims.Redeem(t.Context(), "claim_2"); !errors.Is(err, consumer.ErrClaim) {
			t.Errorf("redeemed twice: %v", err)
		}
		f.mu.Lock()
		f.status = http.StatusServiceUnavailable
		f.mu.Unlock()
		if _, err := claims.Redeem(t.Context(), "claim_3"); !vaultclient.IsUnavailable(err) || strings.Contains(err.Error(), "claim_3") {
			t.Errorf("while Vault is sealed: %v", err)
		}
	})
}

func TestClaimsBeforeTheSourceAndAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := &fakeEngine{claims: map[string]string{"claim_1": claimAnswer(1)}}
		claims := consumer.NewClaims(f.client(t, vaultclient.Anonymous{}))
		if _, err := claims.Redeem(t.Context(), "claim_1"); err != nil {
			t.Fatal(err)
		}
		var stored consumer.Key
		s := w.source(func(c *consumer.Config) {
			c.Origin = claims
			c.OnChange = func(_, next consumer.Key) { stored = next }
		})
		if v := s.Current().Version(); v != 1 {
			t.Errorf("version %d", v)
		}
		// A look that ends after the next code was redeemed puts no key back.
		if got, err := claims.Fetch(t.Context()); err != nil || !got.Key.IsZero() {
			t.Errorf("a look brings %v, %v", got.Key, err)
		}
		synctest.Wait()
		var log bytes.Buffer
		s = w.source(func(c *consumer.Config) {
			c.Origin, c.Initial = consumer.NewClaims(f.client(t, vaultclient.Anonymous{})), stored
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		run(t, s)
		time.Sleep(time.Hour)
		synctest.Wait()
		if status := post(t, w.client(s), "x"); status != http.StatusOK || log.Len() > 0 {
			t.Errorf("status %d, %s", status, log.String())
		}
	})
}

func TestTheHandlerRedeemsWhatIsSigned(t *testing.T) {
	const secret, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	f := &fakeEngine{claims: map[string]string{"claim_1": claimAnswer(1), "claim_2": claimAnswer(2)}}
	claims := consumer.NewClaims(f.client(t, vaultclient.Anonymous{}))
	var log bytes.Buffer
	h, err := claims.Handler(slog.New(slog.NewTextHandler(&log, nil)), secret)
	if err != nil {
		t.Fatal(err)
	}
	send := func(id, secret, body string, at time.Time) int {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
		signer, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := signer.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("webhook-id", id)
		r.Header.Set("webhook-timestamp", fmt.Sprint(at.Unix()))
		r.Header.Set("webhook-signature", signature)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	message := func(code string) string {
		return `{"type":"version.activated","timestamp":"2026-01-01T12:00:00Z","data":{"key_id":"Exam9leKey1d","claim_code":"` + code + `"}}`
	}
	now := time.Now()
	for _, step := range []struct {
		name, id, secret, body string
		at                     time.Time
		down                   bool
		want                   int
		redeems                int
	}{
		{"a forgery", "m1", other, message("claim_1"), now, false, 401, 0},
		{"an old message", "m1", secret, message("claim_1"), now.Add(-time.Hour), false, 401, 0},
		{"too long", "m1", secret, message(strings.Repeat("x", 1<<17)), now, false, 400, 0},
		{"no JSON", "m1", secret, "hello", now, false, 400, 0},
		{"no code", "m0", secret, `{"type":"key.created","data":{}}`, now, false, 204, 0},
		{"Vault is down", "m1", secret, message("claim_1"), now, true, 503, 1},
		{"it is back", "m1", secret, message("claim_1"), now, false, 204, 1},
		{"delivered twice", "m1", secret, message("claim_1"), now, false, 204, 0},
		{"the next", "m2", secret, message("claim_2"), now, false, 204, 1},
		{"a spent code", "m3", secret, message("claim_1"), now, false, 204, 1},
	} {
		f.mu.Lock()
		f.requests, f.status = nil, 0
		if step.down {
			f.status = 503
		}
		f.mu.Unlock()
		if got := send(step.id, step.secret, step.body, step.at); got != step.want || len(f.requests) != step.redeems {
			t.Errorf("%s: status %d, %d requests", step.name, got, len(f.requests))
		}
	}
	s, err := consumer.New(consumer.Config{Origin: claims})
	if err != nil || s.Current().Version() != 2 {
		t.Errorf("%v, %v", s.Current(), err)
	}
	if strings.Contains(log.String(), "claim_1") || strings.Contains(log.String(), "secret-of") {
		t.Errorf("the log tells a secret: %s", log.String())
	}
	r := httptest.NewRecorder()
	h.ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if r.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", r.Code)
	}
	for _, bad := range [][]string{nil, {""}, {"whsec_!"}} {
		if _, err := claims.Handler(nil, bad...); err == nil {
			t.Errorf("secrets %q are taken", bad)
		}
	}
}
