// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// entries is a Storage, and a ClaimStorage, on Vault's.
type entries struct{ storage logical.Storage }

func (e entries) get(ctx context.Context, path string) ([]byte, error) {
	entry, err := e.storage.Get(ctx, path)
	if err != nil || entry == nil {
		return nil, err
	}
	return entry.Value, nil
}

func (e entries) put(ctx context.Context, path string, value []byte) error {
	return e.storage.Put(ctx, &logical.StorageEntry{Key: path, Value: value})
}

func (e entries) ListHooks(ctx context.Context) ([]string, error) {
	return e.storage.List(ctx, "webhook/")
}
func (e entries) GetHook(ctx context.Context, name string) ([]byte, error) {
	return e.get(ctx, "webhook/"+name)
}
func (e entries) PutHook(ctx context.Context, name string, entry []byte) error {
	return e.put(ctx, "webhook/"+name, entry)
}
func (e entries) DeleteHook(ctx context.Context, name string) error {
	return e.storage.Delete(ctx, "webhook/"+name)
}
func (e entries) ListOutbox(ctx context.Context, hook string) ([]string, error) {
	return e.storage.List(ctx, "outbox/"+hook+"/")
}
func (e entries) GetOutbox(ctx context.Context, hook, position string) ([]byte, error) {
	return e.get(ctx, "outbox/"+hook+"/"+position)
}
func (e entries) PutOutbox(ctx context.Context, hook, position string, entry []byte) error {
	return e.put(ctx, "outbox/"+hook+"/"+position, entry)
}
func (e entries) DeleteOutbox(ctx context.Context, hook, position string) error {
	return e.storage.Delete(ctx, "outbox/"+hook+"/"+position)
}
func (e entries) ListClaimDays(ctx context.Context) ([]string, error) {
	return e.storage.List(ctx, "claim/")
}
func (e entries) ListClaims(ctx context.Context, day string) ([]string, error) {
	return e.storage.List(ctx, "claim/"+day+"/")
}
func (e entries) GetClaim(ctx context.Context, day, id string) ([]byte, error) {
	return e.get(ctx, "claim/"+day+"/"+id)
}
func (e entries) PutClaim(ctx context.Context, day, id string, entry []byte) error {
	return e.put(ctx, "claim/"+day+"/"+id, entry)
}
func (e entries) DeleteClaim(ctx context.Context, day, id string) error {
	return e.storage.Delete(ctx, "claim/"+day+"/"+id)
}
func (e entries) ListClaimEnds(ctx context.Context) ([]string, error) {
	return e.storage.List(ctx, "claimend/")
}
func (e entries) ListClaimEnd(ctx context.Context, minute string) ([]string, error) {
	return e.storage.List(ctx, "claimend/"+minute+"/")
}
func (e entries) PutClaimEnd(ctx context.Context, minute, name string) error {
	return e.put(ctx, "claimend/"+minute+"/"+name, nil)
}
func (e entries) DeleteClaimEnd(ctx context.Context, minute, name string) error {
	return e.storage.Delete(ctx, "claimend/"+minute+"/"+name)
}

// rig is a Deliverer with all that it needs.
type rig struct {
	*Deliverer
	t       *testing.T
	clock   *clock.Manual
	memory  *storetest.Memory
	faulty  *storetest.Faulty
	redeem  *Claims
	logged  *lockedBuffer
	options Options
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

// newRig returns a running Deliverer on an empty storage.
func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := rigOn(t, storetest.NewMemory(), clock.NewManual(start), change...)
	r.Start()
	return r
}

// rigOn returns a Deliverer, not yet running, on what memory holds, as a new
// process would make it.
func rigOn(t *testing.T, memory *storetest.Memory, c *clock.Manual, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, clock: c, memory: memory, faulty: storetest.NewFaulty(memory), logged: &lockedBuffer{}}
	r.redeem = NewClaims(entries{r.faulty}, c, rand.Reader)
	r.options = Options{
		Storage: entries{r.faulty}, Claims: r.redeem, Clock: c, Rand: rand.Reader,
		Logger: hclog.New(&hclog.LoggerOptions{Output: r.logged, Level: hclog.Trace}),
	}
	for _, f := range change {
		f(&r.options)
	}
	r.Deliverer = New(r.options)
	t.Cleanup(r.halt)
	return r
}

// halt stops the Deliverer and waits for all that it started.
func (r *rig) halt() {
	r.mu.Lock()
	r.stopped = true
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	r.running.Wait()
	r.sender.close()
}

func (r *rig) hook(name, url string, change ...func(*Hook)) *Hook {
	r.t.Helper()
	secret, err := NewSecret(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	h, err := r.Update(r.t.Context(), name, func(h *Hook) error {
		h.URL, h.AllowPrivate = url, true
		h.SetSecret(secret, r.clock.Now(), 0)
		for _, f := range change {
			f(h)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) update(name string, change func(*Hook)) {
	r.t.Helper()
	if _, err := r.Update(r.t.Context(), name, func(h *Hook) error {
		change(h)
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) enqueue(events ...Event) {
	r.t.Helper()
	if err := r.Enqueue(r.t.Context(), events...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) status(name string) Status {
	r.t.Helper()
	s, err := r.Status(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// quiet waits until nothing is being sent or could be, and returns the wait
// until something can: negative where there is nothing.
func (q *queue) quiet() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		s, wait := q.peek(q.d.clock.Elapsed())
		if s == nil && q.sending == 0 {
			return wait
		}
		if s != nil {
			// The clock may have been moved between its reading and the making
			// of the timer, which is then late.
			q.poke()
		}
		q.changed.Wait()
	}
}

// quiet waits until nothing is being sent or could be.
func (r *rig) quiet() time.Duration {
	next := time.Duration(-1)
	for _, q := range r.all() {
		if wait := q.quiet(); wait >= 0 && (next < 0 || wait < next) {
			next = wait
		}
	}
	return next
}

// settle lets time pass until nothing waits for it, or most has passed.
func (r *rig) settle(most time.Duration) {
	r.t.Helper()
	for end := r.clock.Elapsed() + most; ; {
		wait := r.quiet()
		if wait < 0 || r.clock.Elapsed()+wait > end {
			return
		}
		r.clock.Advance(wait)
	}
}

func event(key string, seq uint64) Event {
	return Event{
		ID: EventID(key, seq), Type: "version.activated", Time: start, KeyID: key, KeyName: "name-of-" + key, Role: "billing", Seq: seq,
		Metadata: map[string]string{"team": "payments"}, Data: map[string]any{"version": seq},
	}
}

// request is what a receiver was sent.
type request struct {
	id, timestamp, signature, contentType string
	header                                http.Header
	body                                  []byte
	at                                    time.Time
	message                               struct {
		Type      string
		Timestamp time.Time
		Data      map[string]any
	}
}

func (q request) verify(secret string) error {
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	// The test's clock is not the one that the library reads.
	return w.VerifyIgnoringTimestamp(q.body, q.header)
}

// receiver is a server that notes what it gets. answer may be nil.
type receiver struct {
	*httptest.Server
	clock  *clock.Manual
	answer func(n int, q request, w http.ResponseWriter, r *http.Request)

	mu   sync.Mutex
	got  []request
	open map[string]int
	over string
}

func newReceiver(t *testing.T, c *clock.Manual, answer func(int, request, http.ResponseWriter, *http.Request)) *receiver {
	t.Helper()
	rc := newHandler(c, answer)
	rc.Server = httptest.NewServer(rc)
	t.Cleanup(rc.Close)
	return rc
}

func newHandler(c *clock.Manual, answer func(int, request, http.ResponseWriter, *http.Request)) *receiver {
	return &receiver{clock: c, answer: answer, open: map[string]int{}}
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	q := request{
		id: r.Header.Get("webhook-id"), timestamp: r.Header.Get("webhook-timestamp"), signature: r.Header.Get("webhook-signature"),
		contentType: r.Header.Get("Content-Type"), header: r.Header.Clone(), body: body, at: rc.clock.Now(),
	}
	if err := json.Unmarshal(body, &q.message); err != nil {
		q.message.Type = "not JSON: " + err.Error()
	}
	key, _, _ := strings.Cut(q.id, "_")
	rc.mu.Lock()
	rc.got = append(rc.got, q)
	n := len(rc.got)
	if rc.open[key]++; rc.open[key] > 1 {
		rc.over = key
	}
	rc.mu.Unlock()
	defer func() {
		rc.mu.Lock()
		defer rc.mu.Unlock()
		rc.open[key]--
	}()
	if rc.answer != nil {
		rc.answer(n, q, w, r)
	}
}

func (rc *receiver) requests() []request {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return append([]request(nil), rc.got...)
}

// firsts returns the ids in order of their first arrival.
func (rc *receiver) firsts() []string {
	var ids []string
	seen := map[string]bool{}
	for _, q := range rc.requests() {
		if !seen[q.id] {
			seen[q.id] = true
			ids = append(ids, q.id)
		}
	}
	return ids
}

// checkInOrder fails unless each of the events 1 to count of each key stands
// among ids exactly once, those of a key in order.
func checkInOrder(ids, keys []string, count int) error {
	next := map[string]int{}
	for _, id := range ids {
		key, seq, _ := strings.Cut(id, "_")
		n, err := strconv.Atoi(seq)
		if err != nil {
			return fmt.Errorf("id %q", id)
		}
		if n != next[key]+1 {
			return fmt.Errorf("key %s: event %d came after %d", key, n, next[key])
		}
		next[key] = n
	}
	for _, key := range keys {
		if next[key] != count {
			return fmt.Errorf("key %s: %d of %d events came", key, next[key], count)
		}
	}
	if len(next) != len(keys) {
		return errors.New("events of other keys came")
	}
	return nil
}

func status(code int) func(int, request, http.ResponseWriter, *http.Request) {
	return func(_ int, _ request, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}
