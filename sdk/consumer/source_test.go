// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

func TestTheKeyIsLookedForOnSchedule(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, _ *http.Client) {
		w.next, w.spread = time.Hour, 30*time.Second
		run(t, s)
		time.Sleep(24*time.Hour + time.Second)
		if looks := w.fetched(); looks < 24 || looks > 25 {
			t.Errorf("%d looks in a day of hours", looks)
		}
		w.rotate(6 * time.Hour)
		time.Sleep(time.Hour + 30*time.Second)
		if v := s.Current().Version(); v != 2 {
			t.Errorf("version %d an hour after the rotation", v)
		}
		if w.requests > 0 {
			t.Error("that took a request")
		}
	})
}

func TestClientsDoNotLookAtOneMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var worlds []*world
		for range 50 {
			w := newWorld(t)
			w.next, w.spread = time.Hour, 30*time.Second
			run(t, w.source())
			worlds = append(worlds, w)
		}
		time.Sleep(time.Hour + time.Minute)
		moments := map[time.Duration]bool{}
		for _, w := range worlds {
			w.see(func() {
				if len(w.looks) != 2 {
					t.Errorf("%d looks", len(w.looks))
				}
				moment := w.looks[len(w.looks)-1].Sub(began)
				if moments[moment] = true; moment < time.Hour || moment > time.Hour+30*time.Second {
					t.Errorf("a look after %s", moment)
				}
			})
		}
		if len(moments) < 25 {
			t.Errorf("50 clients looked at %d moments", len(moments))
		}
	})
}

func TestAnOriginThatFailsKeepsTheKeyAndIsAskedLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var log bytes.Buffer
		s := w.source(func(c *consumer.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		run(t, s)
		time.Sleep(time.Minute)
		synctest.Wait()
		if log.Len() > 0 {
			t.Errorf("all is well, and the log says %s", log.String())
		}
		w.see(func() { w.fetchErr = errors.New("vault is sealed") })
		before := w.fetched()
		time.Sleep(10 * time.Hour)
		if looks := w.fetched() - before; looks > 9*81+10 || looks < 9*60 {
			t.Errorf("%d looks in 9 hours of failures", looks)
		}
		if v := s.Current().Version(); v != 1 || s.Err() == nil {
			t.Errorf("version %d, %v", v, s.Err())
		}
		w.see(func() { w.fetchErr = nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		if lines := strings.Count(log.String(), "\n"); lines != 2 || s.Err() != nil {
			t.Errorf("%d lines in the log: %s", lines, log.String())
		}
	})
}

func TestAVersionIsConfirmedOnceItHasWorked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
		run(t, s)
		confirmed := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if !slices.Equal(w.confirmed, want) {
				t.Errorf("confirmed %v, want %v", w.confirmed, want)
			}
		}
		time.Sleep(time.Second)
		confirmed() // nothing has used it
		for range 10 {
			post(t, api, "x")
		}
		confirmed("eu:1")
		w.rotate(0)
		post(t, api, "x")
		post(t, api, "x")
		confirmed("eu:1", "eu:2")

		w.see(func() { w.confirm = &vaultclient.StatusError{Status: 503} })
		w.rotate(0)
		post(t, api, "x")
		time.Sleep(time.Minute)
		synctest.Wait()
		if tries := len(w.confirmed) - 2; tries < 3 || tries > 12 {
			t.Errorf("%d tries in a minute without Vault", tries)
		}
		w.see(func() { w.confirm = nil })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		n := len(w.confirmed)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(w.confirmed) != n {
			t.Error("confirmed again and again")
		}

		w.see(func() { w.confirm = &vaultclient.StatusError{Status: 403}; w.confirmed = nil })
		w.rotate(0)
		post(t, api, "x")
		time.Sleep(time.Hour)
		confirmed("eu:4") // and not again
	})
}

func TestARefusedKeyIsNotConfirmed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
		run(t, s)
		w.revoke()
		post(t, api, "x")
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(w.confirmed) > 0 {
			t.Errorf("confirmed %v", w.confirmed)
		}
	})
}

// The answer to a request with the version before comes late: what is confirmed
// is the one in use.
func TestAKeyThatIsReplacedIsNotConfirmed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
		if _, err := s.Key(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.requestTakes = func() time.Duration { return time.Second }
		var slow sync.WaitGroup
		slow.Go(func() { post(t, api, "x") })
		time.Sleep(1500 * time.Millisecond) // it is accepted, and the answer on its way
		w.see(func() { w.requestTakes = func() time.Duration { return 0 } })
		w.rotate(time.Hour)
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		post(t, api, "x")
		slow.Wait()
		if w.refusals > 0 {
			t.Errorf("%d refusals", w.refusals)
		}
		run(t, s)
		synctest.Wait()
		if !slices.Equal(w.confirmed, []string{"eu:2"}) {
			t.Errorf("confirmed %v, want eu:2", w.confirmed)
		}
	})
}

func TestChangesAreToldInOrderAndHoldUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var told []string
		s := w.source(func(c *consumer.Config) {
			c.OnChange = func(old, next consumer.Key) {
				time.Sleep(time.Minute) // a slow one
				told = append(told, fmt.Sprintf("%d to %d", old.Version(), next.Version()))
			}
		})
		api := w.client(s)
		began := time.Now()
		for range 5 {
			post(t, api, "x")
			w.rotate(0)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("5 rotations took %s", took)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := strings.Join(told, ", "); got != "0 to 1, 1 to 2, 2 to 3, 3 to 4, 4 to 5" {
			t.Errorf("told %s", got)
		}
	})
}

func TestAnInitialKeyIsUsedUntilThereIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fetchErr = errors.New("vault is down")
		initial, err := consumer.NewKey(at(1), 1)
		if err != nil {
			t.Fatal(err)
		}
		s := w.source(func(c *consumer.Config) { c.Initial = initial })
		run(t, s)
		if status := post(t, w.client(s), "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		w.rotate(0)
		w.see(func() { w.fetchErr = nil })
		time.Sleep(time.Minute)
		if v := s.Current().Version(); v != 2 {
			t.Errorf("version %d", v)
		}
	})
}

// A program that has stored only the key, or a plain file, knows no version. The
// origin does, and confirmation needs it, in either order.
func TestTheVersionOfTheSameKeyIsTaken(t *testing.T) {
	initial, err := consumer.NewKey(at(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	begin := func(c *consumer.Config) {
		c.Initial = initial
		c.OnChange = func(_, next consumer.Key) { told = append(told, next.String()) }
	}
	for name, workedFirst := range map[string]bool{"used, then told": true, "told, then used": false} {
		t.Run(name, func(t *testing.T) {
			told = nil
			inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
				w.fetchErr = errors.New("vault is down")
				run(t, s)
				if workedFirst {
					post(t, api, "x")
				}
				time.Sleep(time.Minute)
				if v := s.Current().Version(); v != 0 || len(w.confirmed) > 0 {
					t.Errorf("version %d, confirmed %v", v, w.confirmed)
				}
				w.see(func() { w.fetchErr = nil })
				time.Sleep(time.Minute)
				if v := s.Current().Version(); v != 1 {
					t.Errorf("version %d, and the origin tells 1", v)
				}
				if !workedFirst {
					post(t, api, "x")
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if !slices.Equal(w.confirmed, []string{"eu:1"}) {
					t.Errorf("confirmed %v", w.confirmed)
				}
				if len(told) != 1 {
					t.Errorf("told of %v: the key is the same", told)
				}
				if w.refusals > 0 || w.requests != 1 {
					t.Errorf("%d requests, %d refusals", w.requests, w.refusals)
				}
			}, begin)
		})
	}
}

// A version that the origin corrects is confirmed again, and one that it forgets
// is kept.
func TestTheVersionOfTheSameKeyIsCorrectedAndNotForgotten(t *testing.T) {
	wrong, err := consumer.NewKey(at(1), 7)
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
		w.fetchErr = errors.New("vault is down")
		run(t, s)
		post(t, api, "x")
		synctest.Wait() // it is confirmed
		w.see(func() { w.fetchErr = nil })
		time.Sleep(2 * time.Hour)
		w.see(func() { w.untold = true })
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if v := s.Current().Version(); v != 1 || !slices.Equal(w.confirmed, []string{"eu:7", "eu:1"}) {
			t.Errorf("version %d, confirmed %v", v, w.confirmed)
		}
	}, func(c *consumer.Config) { c.Initial = wrong })
}

func TestAKeyShowsItsSecretOnlyByReveal(t *testing.T) {
	key, err := consumer.NewKey(at(7), 7)
	if err != nil {
		t.Fatal(err)
	}
	if key.Reveal() != at(7) || key.Version() != 7 || key.IsZero() {
		t.Errorf("%v", key)
	}
	var log bytes.Buffer
	for _, logger := range []*slog.Logger{slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil))} {
		logger.Info("x", "key", key, "pointer", &key, "inside", struct{ K consumer.Key }{key})
	}
	encoded, _ := json.Marshal(map[string]any{"k": key, "p": &key})
	marked, _ := xml.Marshal(key)
	shown := log.String() + string(encoded) + string(marked) + fmt.Sprint(key, &key, []consumer.Key{key}, fmt.Errorf("%w", errors.New(key.String())))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%10s"} {
		shown += fmt.Sprintf(verb, key) + fmt.Sprintf(verb, &key) + fmt.Sprintf(verb, struct{ K consumer.Key }{key})
	}
	if strings.Contains(shown, "secret") || strings.Contains(shown, fmt.Sprintf("%x", "secret")) {
		t.Errorf("shown: %s", shown)
	}
	for _, bad := range []string{"", " ", "a b", "a\nb", "a\x00", "tab\t", strings.Repeat("x", 2049)} {
		if _, err := consumer.NewKey(bad, 1); err == nil || bad != "" && strings.Contains(err.Error(), bad) && len(bad) > 1 {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := consumer.NewKey("x", -1); err == nil {
		t.Error("a negative version is taken")
	}
}

// fakeEngine answers what the origins ask of a mount.
type fakeEngine struct {
	mu       sync.Mutex
	answer   string // of static-creds
	requests []string
	claims   map[string]string // answers by code
	status   int
}

func (f *fakeEngine) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	f.requests = append(f.requests, r.Method+" "+r.URL.Path+" "+string(body))
	w := httptest.NewRecorder()
	switch {
	case f.status != 0:
		w.WriteHeader(f.status)
		_, _ = io.WriteString(w, `{"errors":["`+string(body)+`"]}`)
	case strings.HasSuffix(r.URL.Path, "/claim"):
		var in struct{ Code string }
		_ = json.Unmarshal(body, &in)
		answer, ok := f.claims[in.Code]
		if !ok {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errors":["code is not a claim that can be redeemed"]}`)
			break
		}
		delete(f.claims, in.Code)
		_, _ = io.WriteString(w, answer)
	case strings.Contains(r.URL.Path, "/static-creds/"):
		_, _ = io.WriteString(w, f.answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func (f *fakeEngine) client(t testing.TB, auth vaultclient.Auth) *vaultclient.Client {
	t.Helper()
	c, err := vaultclient.New(vaultclient.Config{Address: "http://vault.test:8200", Auth: auth, Transport: f})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheKeyOfVault(t *testing.T) {
	f := &fakeEngine{}
	origin := consumer.Vault(f.client(t, vaultclient.Token("hvs.x")), "acme")
	for name, test := range map[string]struct {
		answer       string
		next, spread time.Duration
		err          string
	}{
		"planned":       {`{"data":{"api_key":"secret-of-version-3","key_id":"Exam9leKey1d","version":3,"ttl":3600,"overlap_period":86400}}`, time.Hour, 30 * time.Second, ""},
		"short":         {`{"data":{"api_key":"secret-of-version-3","key_id":"Exam9leKey1d","version":3,"ttl":60,"overlap_period":300}}`, time.Minute, 6 * time.Second, ""},
		"no overlap":    {`{"data":{"api_key":"secret-of-version-3","key_id":"Exam9leKey1d","version":3,"ttl":60,"overlap_period":0}}`, time.Minute, 0, ""},
		"no ttl":        {`{"data":{"api_key":"secret-of-version-3","key_id":"Exam9leKey1d","version":3}}`, time.Second, 0, ""},
		"negative ttl":  {`{"data":{"api_key":"secret-of-version-3","key_id":"Exam9leKey1d","version":3,"ttl":-5}}`, time.Second, 0, ""},
		"absurd ttl":    {`{"data":{"api_key":"secret-of-version-3","key_id":"Exam9leKey1d","version":3,"ttl":9000000000000000000,"overlap_period":9000000000000000000}}`, 24 * time.Hour, 30 * time.Second, ""},
		"no key":        {`{"data":{"version":3}}`, 0, 0, "read apikeys/static-creds/acme: an API key is 1 to 2048 printable characters"},
		"no data":       {`{}`, 0, 0, "an API key is 1 to 2048"},
		"a key of junk": {`{"data":{"api_key":"secret-of-version-3\n","version":3}}`, 0, 0, "an API key is 1 to 2048"},
		"wrong type":    {`{"data":{"api_key":["secret-of-version-3"]}}`, 0, 0, "not the JSON"},
		"negative":      {`{"data":{"api_key":"secret-of-version-3","version":-3}}`, 0, 0, "version must not be negative"},
	} {
		f.answer = test.answer
		got, err := origin.Fetch(t.Context())
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "secret-of") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || got.Key.Reveal() != at(3) || got.Key.Version() != 3 || got.Key.ID() != "Exam9leKey1d" || got.Next != test.next || got.Spread != test.spread {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	f.requests = nil
	if err := errors.Join(origin.Confirm(t.Context(), 3, "eu"), origin.Confirm(t.Context(), 4, "")); err != nil {
		t.Error(err)
	}
	if got := strings.Join(f.requests, "\n"); got != `PUT /v1/apikeys/confirm/acme {"instance":"eu","version":3}`+"\n"+`PUT /v1/apikeys/confirm/acme {"version":4}` {
		t.Errorf("confirmed by %s", got)
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	if _, err := consumer.New(consumer.Config{}); err == nil || !strings.Contains(err.Error(), "Origin is required") {
		t.Error(err)
	}
	if _, err := consumer.New(consumer.Config{Origin: newWorld(t), Patience: -1}); err == nil || !strings.Contains(err.Error(), "Patience must not be negative") {
		t.Error(err)
	}
	if _, err := consumer.NewTransport(nil, consumer.TransportConfig{Hosts: []string{"x"}}); err == nil {
		t.Error("a Transport without a Source")
	}
}

func TestWithoutAKeyTheWaitEndsWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, _ *http.Client) {
		w.fetchErr = errors.New("no such key")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := s.Key(ctx)
		if err == nil || err.Error() != "there is no API key yet: no such key" || !s.Current().IsZero() {
			t.Errorf("%v", err)
		}
		if looks := w.fetched(); looks > 90 {
			t.Errorf("%d looks in a minute", looks)
		}
	})
}
