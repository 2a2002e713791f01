// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
)

func TestNoRequestFailsThroughRotations(t *testing.T) {
	for name, overlap := range map[string]time.Duration{"without overlap": 0, "with overlap": 300 * time.Millisecond} {
		for name2, test := range map[string]struct {
			lag   time.Duration
			every time.Duration
		}{
			"an origin that follows at once": {0, 500 * time.Millisecond},
			"an origin that is late":         {800 * time.Millisecond, 3 * time.Second},
		} {
			t.Run(name+" and "+name2, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
					w.lag = test.lag
					w.fetchTakes, w.requestTakes = upTo(20*time.Millisecond), upTo(30*time.Millisecond)
					time.Sleep(test.lag) // the first version is there
					run(t, s)
					ctx, stop := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					var sent atomic.Int64
					for worker := range 10 {
						wg.Go(func() {
							for n := 0; ctx.Err() == nil; n++ {
								if status := post(t, api, fmt.Sprintf("%d/%d", worker, n)); status != http.StatusOK {
									t.Errorf("status %d", status)
								}
								sent.Add(1)
							}
						})
					}
					for range 100 {
						time.Sleep(upTo(test.every)() + time.Millisecond)
						w.rotate(overlap)
					}
					stop()
					wg.Wait()
					t.Logf("%d requests, %d refusals, %d looks", sent.Load(), w.refusals, w.fetches)
					if w.refusals < 50 && overlap == 0 {
						t.Error("hardly a request was refused: this proves nothing")
					}
					if w.open != 0 {
						t.Errorf("%d bodies were left open", w.open)
					}
				})
			})
		}
	}
}

func TestManyRefusalsAreOneLook(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.see(func() { w.fetchTakes = func() time.Duration { return 50 * time.Millisecond } })
		w.rotate(0)
		before := w.fetched()
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				if status := post(t, api, "x"); status != http.StatusOK {
					t.Errorf("status %d", status)
				}
			})
		}
		wg.Wait()
		if got := w.fetched() - before; got != 1 {
			t.Errorf("%d looks", got)
		}
	})
}

// A look that began before the rotation shows the key from before it.
func TestALookThatBeganBeforeTheRefusalIsNotTrusted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.see(func() { w.fetchTakes = func() time.Duration { return time.Second } })
		go func() { _ = s.Refresh(t.Context()) }()
		time.Sleep(1500 * time.Millisecond) // it has read version 1 and is on its way back
		w.rotate(0)
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	}, func(c *consumer.Config) { c.Patience = time.Nanosecond })
}

func TestAKeyThatIsNewerAlreadyCostsNoLook(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.see(func() { w.requestTakes = func() time.Duration { return time.Second } })
		var wg sync.WaitGroup
		wg.Go(func() {
			if status := post(t, api, "slow"); status != http.StatusOK {
				t.Errorf("status %d", status)
			}
		})
		time.Sleep(500 * time.Millisecond) // it is on its way with version 1
		w.rotate(0)
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := w.fetched()
		wg.Wait()
		if w.refusals != 1 || w.fetched() != before {
			t.Errorf("%d refusals, %d looks", w.refusals, w.fetched()-before)
		}
	})
}

func TestTheWholeBodyIsSentAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.rotate(0)
		body := strings.Repeat("0123456789", 1000)
		if status := post(t, api, body); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		if len(w.bodies) != 3 || w.bodies[1] != body || w.bodies[2] != body {
			t.Error("the server has not seen the body twice")
		}
	})
}

func TestABodyThatCannotBeSentAgainGetsItsAnswer(t *testing.T) {
	for name, getBody := range map[string]func() (io.ReadCloser, error){
		"without GetBody":      nil,
		"with a GetBody fault": func() (io.ReadCloser, error) { return nil, errors.New("gone") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world, s *consumer.Source, api *http.Client) {
				post(t, api, "first")
				w.rotate(0)
				body := &closing{Reader: strings.NewReader("once")}
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.test/", body)
				req.GetBody = getBody
				resp, err := api.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				answer, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized || string(answer) != "answer" || !body.closed {
					t.Errorf("status %d, %q, closed: %t", resp.StatusCode, answer, body.closed)
				}
				if w.requests != 2 {
					t.Errorf("%d requests", w.requests)
				}
				synctest.Wait()
				if v := s.Current().Version(); v != 2 {
					t.Errorf("the next request would be sent with version %d", v)
				}
			})
		})
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

func TestOnlyARefusalIsRepeated(t *testing.T) {
	for _, status := range []int{200, 204, 302, 400, 402, 403, 404, 407, 429, 500, 502, 503, 504} {
		requests := 0
		base := roundTrip(func(r *http.Request) (*http.Response, error) {
			requests++
			return &http.Response{StatusCode: status, Body: http.NoBody, Header: http.Header{}, Request: r}, nil
		})
		w := newWorld(t)
		transport, err := consumer.NewTransport(w.source(), consumer.TransportConfig{Hosts: []string{"api.test"}, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.test/", nil)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if requests != 1 || resp.StatusCode != status {
			t.Errorf("status %d: %d requests, answered %d", status, requests, resp.StatusCode)
		}
	}
	requests := 0
	base := roundTrip(func(*http.Request) (*http.Response, error) {
		requests++
		return nil, errors.New("connection reset")
	})
	w := newWorld(t)
	transport, _ := consumer.NewTransport(w.source(), consumer.TransportConfig{Hosts: []string{"api.test"}, Base: base})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.test/", nil)
	if _, err := transport.RoundTrip(req); err == nil || requests != 1 { //nolint:bodyclose // there is none
		t.Errorf("%d requests, %v", requests, err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestAKeyThatIsRefusedForGoodCostsLittle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.revoke()
		before, began := w.fetched(), time.Now()
		if status := post(t, api, "x"); status != http.StatusUnauthorized {
			t.Errorf("status %d", status)
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("the first request waited %s", took)
		}
		if looks := w.fetched() - before; looks > 7 {
			t.Errorf("%d looks for the first request", looks)
		}
		before, began = w.fetched(), time.Now()
		for range 20 {
			if status := post(t, api, "x"); status != http.StatusUnauthorized {
				t.Errorf("status %d", status)
			}
		}
		took, looks := time.Since(began), w.fetched()-before
		if took > 20*time.Second || looks > 20 {
			t.Errorf("20 more requests took %s and %d looks", took, looks)
		}
		// And it does not make the client miss a rotation.
		w.rotate(0)
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("after a rotation: status %d", status)
		}
		if w.open != 0 {
			t.Errorf("%d bodies were left open", w.open)
		}
	})
}

// An endpoint that answers 401 for reasons of its own says nothing about the key,
// nor about what follows it.
func TestA401OfItsOwnMakesNoOtherRequestMissARotation(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.odd, w.lag = "/odd", 400*time.Millisecond
		time.Sleep(w.lag) // the first version is there
		for i, atMost := range []time.Duration{2 * time.Second, time.Second} {
			began := time.Now()
			status := postTo(t, api, "/odd", "x")
			if took := time.Since(began); status != http.StatusUnauthorized || took > atMost {
				t.Errorf("request %d got %d after %s", i, status, took)
			}
		}
		time.Sleep(5 * time.Second) // the next look is made at once
		w.rotate(0)
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("after a rotation: status %d", status)
		}
		// With the new key it is in vain anew, and so it is after half a minute.
		for range 2 {
			began := time.Now()
			postTo(t, api, "/odd", "x")
			if took := time.Since(began); took != 2*time.Second {
				t.Errorf("it took %s", took)
			}
			time.Sleep(30 * time.Second)
		}
	})
}

// A key that is refused everywhere costs little, however many paths there are.
// Once it is accepted anywhere it is not.
func TestAKeyThatIsRefusedEverywhereCostsLittle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.odd = "/odd"
		odd := func(i int) time.Duration {
			began := time.Now()
			if status := postTo(t, api, fmt.Sprint("/odd/", i), "x"); status != http.StatusUnauthorized {
				t.Errorf("status %d", status)
			}
			return time.Since(began)
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() { odd(i) })
		}
		all.Wait()
		if took := odd(1000); took > time.Second {
			t.Errorf("after a hundred refusals one more waited %s", took)
		}
		w.lag = 400 * time.Millisecond
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		if took := odd(1001); took != 2*time.Second {
			t.Errorf("the key is accepted, and a request waited %s", took)
		}
		time.Sleep(5 * time.Second)
		w.rotate(0)
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("after a rotation: status %d", status)
		}
	})
}

// Nor do many, where the key was accepted before. Once it is refused there, too,
// that costs little.
func TestAPlaceThatAcceptedTheKeyWaitsHoweverManyRefuseIt(t *testing.T) {
	for name, revoked := range map[string]bool{"rotated": false, "revoked": true} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
				post(t, api, "first")
				w.odd = "/odd"
				var all sync.WaitGroup
				for i := range 100 {
					all.Go(func() { postTo(t, api, fmt.Sprint("/odd/", i), "x") })
				}
				all.Wait()
				w.lag = 400 * time.Millisecond
				time.Sleep(5 * time.Second) // the next look is made at once
				if !revoked {
					w.rotate(0)
					if status := post(t, api, "x"); status != http.StatusOK {
						t.Errorf("after a rotation: status %d", status)
					}
					return
				}
				w.revoke()
				for i, atMost := range []time.Duration{2 * time.Second, time.Second} {
					began := time.Now()
					status := post(t, api, "x")
					if took := time.Since(began); status != http.StatusUnauthorized || took > atMost {
						t.Errorf("request %d after the revocation got %d after %s", i, status, took)
					}
				}
			})
		})
	}
}

func TestALookThatIsUnderWayIsWaitedForBeyondThePatience(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.rotate(0)
		w.see(func() { w.fetchTakes = func() time.Duration { return 4 * time.Second } })
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	})
}

func TestAWaitingRequestEndsWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		post(t, api, "first")
		w.revoke()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://api.test/", nil)
		resp, err := api.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if took := time.Since(began); took != 3*time.Second || resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("status %d after %s", resp.StatusCode, took)
		}
	}, func(c *consumer.Config) { c.Patience = time.Hour })
}

func TestTheFirstRequestWaitsForTheFirstKey(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world, _ *consumer.Source, api *http.Client) {
		w.fetchErr = errors.New("vault is sealed")
		go func() {
			time.Sleep(5 * time.Second)
			w.see(func() { w.fetchErr = nil })
		}()
		if status := post(t, api, "x"); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		if looks := w.fetched(); looks > 12 {
			t.Errorf("%d looks in 5 seconds", looks)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fetchErr = errors.New("vault is sealed")
		began := time.Now()
		body := &closing{Reader: strings.NewReader("x")}
		_, err := w.client(w.source()).Post("https://api.test/", "text/plain", body) //nolint:bodyclose // there is none
		if err == nil || !strings.Contains(err.Error(), "there is no API key yet: vault is sealed") || time.Since(began) != 10*time.Second || !body.closed {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestTheKeyGoesToNamedHostsOnly(t *testing.T) {
	t.Parallel()
	var got []string // host and key of each request
	var mu sync.Mutex
	serve := func(name string) *httptest.Server {
		mux := http.NewServeMux()
		mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Query().Get("url"), http.StatusTemporaryRedirect) //nolint:gosec // an open redirect is what is tested
		})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			got = append(got, name+" "+r.Header.Get("X-API-Key"))
			mu.Unlock()
			mux.ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		return server
	}
	mine, other := serve("mine"), serve("other")
	w := newWorld(t)
	transport, err := consumer.NewTransport(w.source(), consumer.TransportConfig{Hosts: []string{mine.URL}, SetKey: consumer.Header("X-API-Key")})
	if err != nil {
		t.Fatal(err)
	}
	api := &http.Client{Transport: transport}
	t.Cleanup(api.CloseIdleConnections)
	get := func(url string) error {
		got = nil
		resp, err := api.Get(url)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	for name, test := range map[string]struct {
		url  string
		want string
	}{
		"direct":               {mine.URL + "/", "mine " + at(1)},
		"redirect to itself":   {mine.URL + "/to?url=/", "mine " + at(1) + ", mine " + at(1)},
		"redirect elsewhere":   {mine.URL + "/to?url=" + other.URL, "mine " + at(1) + ", other "},
		"redirect and back":    {mine.URL + "/to?url=" + other.URL + "/to?url=" + mine.URL, "mine " + at(1) + ", other , mine "},
		"upper case is itself": {strings.Replace(mine.URL, "http://", "HTTP://", 1), "mine " + at(1)},
	} {
		if err := get(test.url); err != nil || strings.Join(got, ", ") != test.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, url := range []string{other.URL, strings.Replace(mine.URL, "http://", "https://", 1), "http://127.0.0.1.example.com/", "http://127.0.0.1/"} {
		if err := get(url); err == nil || !strings.Contains(err.Error(), "is not one of the hosts that may be given the API key") || len(got) > 0 {
			t.Errorf("%s: %v, %v", url, got, err)
		}
	}
}

func TestHostsAreExact(t *testing.T) {
	w := newWorld(t)
	for host, test := range map[string]struct{ yes, no []string }{
		"api.example.com":         {[]string{"https://api.example.com/x", "https://API.example.com:443/", "https://api.example.com./"}, []string{"http://api.example.com/", "https://api.example.com:8443/", "https://example.com/", "https://x.api.example.com/", "https://api.example.com.evil.com/"}},
		"api.example.com:8443":    {[]string{"https://api.example.com:8443/"}, []string{"https://api.example.com/"}},
		"http://[::1]:8080":       {[]string{"http://[::1]:8080/"}, []string{"http://[::1]/", "https://[::1]:8080/"}},
		"https://api.example.com": {[]string{"https://api.example.com/"}, []string{"http://api.example.com/"}},
	} {
		base := roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
		})
		transport, err := consumer.NewTransport(w.source(), consumer.TransportConfig{Hosts: []string{host}, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		for i, urls := range [][]string{test.yes, test.no} {
			for _, url := range urls {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
				resp, err := transport.RoundTrip(req)
				if err == nil {
					_ = resp.Body.Close()
				}
				if (err == nil) != (i == 0) {
					t.Errorf("host %s, %s: %v", host, url, err)
				}
			}
		}
	}
	for _, host := range []string{"", "*", "*.example.com", "ftp://x", "http://", "user@api.example.com", "api.example.com/path", "https://api.example.com?x", "a b"} {
		if _, err := consumer.NewTransport(w.source(), consumer.TransportConfig{Hosts: []string{host}}); err == nil {
			t.Errorf("host %q is taken", host)
		}
	}
	if _, err := consumer.NewTransport(w.source(), consumer.TransportConfig{}); err == nil {
		t.Error("no hosts are taken")
	}
}

func TestTheRequestOfTheCallerIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	api := w.client(w.source())
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.test/", nil)
	req.Header.Set("Accept", "text/plain")
	resp, err := api.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if len(req.Header) != 1 || resp.Request != req {
		t.Errorf("headers %v", req.Header)
	}
}

// The same as in synctest's time, with real connections and for the race
// detector.
func TestRotationsOverRealConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var ok bool
		w.see(func() { ok = w.accepted[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")] })
		if !ok {
			w.see(func() { w.refusals++ })
			rw.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = rw.Write(body)
	}))
	t.Cleanup(server.Close)
	s := w.source()
	run(t, s)
	transport, err := consumer.NewTransport(s, consumer.TransportConfig{Hosts: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	api := &http.Client{Transport: transport}
	t.Cleanup(api.CloseIdleConnections)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var sent atomic.Int64
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := api.Post(server.URL, "text/plain", strings.NewReader("echo"))
				if err != nil {
					t.Error(err)
					return
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK || string(body) != "echo" {
					t.Errorf("status %d, %q", resp.StatusCode, body)
				}
				sent.Add(1)
			}
		})
	}
	for range 100 {
		// The next one comes when some requests have gone through: a machine that is
		// busy with something else must not let rotations outrun requests.
		for seen := sent.Load(); sent.Load() < seen+8; {
			time.Sleep(time.Millisecond)
		}
		w.rotate(0)
	}
	stop()
	wg.Wait()
	t.Logf("%d requests, %d refusals, %d looks", sent.Load(), w.refusals, w.fetched())
}
