// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
)

// world is an engine with one key and an API server that accepts it: an Origin,
// a Confirmer, and the http.RoundTripper that leads to the server. Nothing in it
// uses the network, so that time can be synctest's.
type world struct {
	t testing.TB

	mu       sync.Mutex
	version  int
	accepted map[string]bool
	next     time.Duration // of Fetched
	spread   time.Duration
	lag      time.Duration // by which the origin is behind
	untold   bool          // the origin tells no versions
	versions []activation

	fetchTakes   func() time.Duration // before and after the key is read
	requestTakes func() time.Duration // before and after the key is judged
	fetchErr     error

	fetches   int
	looks     []time.Time
	requests  int
	refusals  int
	bodies    []string
	confirmed []string
	confirm   error
	odd       string // how paths begin that are answered with 401 whatever the key
	open      int    // bodies of responses that were not closed
}

type activation struct {
	at      time.Time
	version int
}

func at(version int) string { return fmt.Sprintf("secret-of-version-%d", version) }

func newWorld(t testing.TB) *world {
	none := func() time.Duration { return 0 }
	w := &world{t: t, accepted: map[string]bool{}, next: time.Hour, fetchTakes: none, requestTakes: none}
	w.rotate(0)
	return w
}

// rotate makes a new version. The one before is accepted for the overlap; 0 is
// none.
func (w *world) rotate(overlap time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := at(w.version)
	w.version++
	w.accepted[at(w.version)] = true
	w.versions = append(w.versions, activation{time.Now(), w.version})
	if overlap == 0 {
		delete(w.accepted, old)
		return
	}
	time.AfterFunc(overlap, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.accepted, old)
	})
}

func (w *world) revoke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.accepted)
}

func (w *world) String() string { return "world" }

// Fetch is what the origin shows.
func (w *world) Fetch(ctx context.Context) (consumer.Fetched, error) {
	w.mu.Lock()
	w.fetches++
	w.looks = append(w.looks, time.Now())
	takes := w.fetchTakes
	w.mu.Unlock()
	if err := pass(ctx, takes()); err != nil {
		return consumer.Fetched{}, err
	}
	w.mu.Lock()
	version, err := 0, w.fetchErr
	for _, a := range w.versions {
		if !a.at.Add(w.lag).After(time.Now()) {
			version = a.version
		}
	}
	got, told := consumer.Fetched{Next: w.next, Spread: w.spread}, version
	if w.untold {
		told = 0
	}
	w.mu.Unlock()
	if err := pass(ctx, takes()); err != nil {
		return consumer.Fetched{}, err
	}
	if err != nil {
		return consumer.Fetched{}, err
	}
	got.Key, err = consumer.NewKey(at(version), told)
	return got, err
}

// Confirm notes who uses what.
func (w *world) Confirm(_ context.Context, version int, instance string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.confirmed = append(w.confirmed, fmt.Sprintf("%s:%d", instance, version))
	return w.confirm
}

// RoundTrip is the API server, which answers 401 to keys that are not accepted
// when the request arrives.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.requests++
	takes := w.requestTakes
	w.mu.Unlock()
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		_ = r.Body.Close()
	}
	if err := pass(r.Context(), takes()); err != nil {
		return nil, err
	}
	w.mu.Lock()
	ok := w.accepted[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if w.odd != "" && strings.HasPrefix(r.URL.Path, w.odd) {
		ok = false
	}
	status := http.StatusOK
	if !ok {
		status = http.StatusUnauthorized
		w.refusals++
	}
	w.bodies = append(w.bodies, string(body))
	w.open++
	w.mu.Unlock()
	if strings.Contains(r.URL.String(), "secret") {
		w.t.Errorf("a key in the URL: %s", r.URL)
	}
	if err := pass(r.Context(), takes()); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: &counted{Reader: strings.NewReader("answer"), w: w}, Request: r}, nil
}

type counted struct {
	io.Reader
	w    *world
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		c.w.open--
	})
	return nil
}

func pass(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// upTo is a random time.
func upTo(d time.Duration) func() time.Duration {
	return func() time.Duration { return rand.N(d) }
}

// see runs a function under the world's lock.
func (w *world) see(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) fetched() (n int) {
	w.see(func() { n = w.fetches })
	return n
}

func (w *world) source(change ...func(*consumer.Config)) *consumer.Source {
	w.t.Helper()
	c := consumer.Config{Origin: w, Instance: "eu", Logger: slog.New(slog.NewTextHandler(&noSecrets{w.t}, nil))}
	for _, f := range change {
		f(&c)
	}
	s, err := consumer.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// inWorld runs a test in a world of its own, with a source that is not run yet and
// a client on it. Time moves when everybody waits.
func inWorld(t *testing.T, f func(*testing.T, *world, *consumer.Source, *http.Client), change ...func(*consumer.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.source(change...)
		f(t, w, s, w.client(s))
	})
}

// run runs a source until the test ends.
func run(t testing.TB, s *consumer.Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func (w *world) client(s *consumer.Source) *http.Client {
	w.t.Helper()
	transport, err := consumer.NewTransport(s, consumer.TransportConfig{Hosts: []string{"api.test"}, Base: w})
	if err != nil {
		w.t.Fatal(err)
	}
	return &http.Client{Transport: transport}
}

// post sends a request whose body can be sent again, and returns the status.
func post(t testing.TB, api *http.Client, body string) int {
	t.Helper()
	return postTo(t, api, "/orders", body)
}

func postTo(t testing.TB, api *http.Client, path, body string) int {
	t.Helper()
	resp, err := api.Post("https://api.test"+path, "text/plain", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.Request.Header.Get("Authorization") != "" {
		t.Error("the response's request holds the key")
	}
	return resp.StatusCode
}

// noSecrets is a log in which no key may stand.
type noSecrets struct{ t testing.TB }

func (n *noSecrets) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("secret-of-version")) {
		n.t.Errorf("a key in the log: %s", p)
	}
	return len(p), nil
}
