// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// engine is the naive twin of the secrets engine: records in a map, and a list
// of all changes. Its clock is that of the test, plus ahead.
type engine struct {
	mu      sync.Mutex
	ahead   time.Duration
	epoch   int
	seq     uint64
	log     []change
	keys    map[string]*record.Record
	imports map[token.Digest]string
	reports []verifier.Report
	lookups []verifier.LookupRequest
	syncs   []verifier.SyncRequest

	// What is set stands between the engine and its callers.
	delay     time.Duration        // on the way back
	pageDelay func() time.Duration // beside it, for pages of a first fill
	// page bounds the keys of a page, if it is not zero, and endless has the first
	// one follow the last.
	page      int
	endless   bool
	down      bool
	hang      bool
	spoilSync func(*verifier.SyncAnswer)
	spoilLook func(*verifier.LookupAnswer)
	// spoilReport sees each report that arrives.
	spoilReport func(verifier.Report, *verifier.ReportAnswer)
	refuse      func(verifier.LookupRequest) bool
	noReports   bool
	// forgetful says that requests are not kept: askedFor counts what they ask.
	forgetful bool
	askedFor  int
}

type change struct {
	seq      uint64
	id, role string
}

func newEngine() *engine {
	return &engine{epoch: 1, keys: map[string]*record.Record{}, imports: map[token.Digest]string{}}
}

var errDown = errors.New("connection refused")

func (e *engine) now() time.Time { return time.Now().Add(e.ahead).UTC() }

func (e *engine) epochName() string { return fmt.Sprintf("epoch-%d", e.epoch) }

// way is what a request passes on its way.
func (e *engine) way(ctx context.Context) error {
	e.mu.Lock()
	down, hang := e.down, e.hang
	e.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if down {
		return errDown
	}
	return nil
}

func (e *engine) back(ctx context.Context) error {
	e.mu.Lock()
	delay := e.delay
	e.mu.Unlock()
	if delay == 0 {
		return nil
	}
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *engine) Sync(ctx context.Context, r verifier.SyncRequest) (verifier.SyncAnswer, error) {
	if err := e.way(ctx); err != nil {
		return verifier.SyncAnswer{}, err
	}
	e.mu.Lock()
	e.syncs = append(e.syncs, r)
	a := verifier.SyncAnswer{Epoch: e.epochName(), Seq: e.seq, Now: e.now().Truncate(time.Millisecond)}
	if r.Epoch != a.Epoch || r.Seq > e.seq {
		a.Reset = true
	} else {
		for _, c := range e.log {
			if c.seq > r.Seq && c.id != "" && !slices.Contains(a.Changed, c.id) {
				a.Changed = append(a.Changed, c.id)
			}
			if c.seq > r.Seq && c.role != "" && !slices.Contains(a.Roles, c.role) {
				a.Roles = append(a.Roles, c.role)
			}
		}
	}
	spoil := e.spoilSync
	e.mu.Unlock()
	if spoil != nil {
		spoil(&a)
	}
	return a, e.back(ctx)
}

func (e *engine) Lookup(ctx context.Context, r verifier.LookupRequest) (verifier.LookupAnswer, error) {
	if err := e.way(ctx); err != nil {
		return verifier.LookupAnswer{}, err
	}
	e.mu.Lock()
	e.askedFor += len(r.KeyIDs) + len(r.Digests)
	if !e.forgetful {
		e.lookups = append(e.lookups, r)
	}
	a := verifier.LookupAnswer{Epoch: e.epochName(), Seq: e.seq, Now: e.now().Truncate(time.Millisecond)}
	if e.refuse != nil && e.refuse(r) {
		e.mu.Unlock()
		return a, errDown
	}
	told := map[string]int{}
	tell := func(id string, presented token.Digest) {
		at, twice := told[id]
		if !twice {
			at = len(a.Records)
			told[id] = at
			a.Records = append(a.Records, hideImported(e.keys[id]))
		}
		for i := range e.keys[id].Versions {
			if e.keys[id].Versions[i].Digest == presented {
				a.Records[at].Versions[i].Digest = presented
			}
		}
	}
	for _, id := range r.KeyIDs {
		if e.keys[id] == nil {
			a.Missing = append(a.Missing, id)
		} else {
			tell(id, token.Digest{})
		}
	}
	for _, d := range r.Digests {
		if id, ok := e.imports[d]; !ok || e.keys[id] == nil {
			a.Missing = append(a.Missing, d.Hex())
		} else {
			tell(id, d)
		}
	}
	if r.Limit > 0 {
		ids := slices.Sorted(func(yield func(string) bool) {
			for id, k := range e.keys {
				if id > r.After && !k.Imported && !yield(id) {
					return
				}
			}
		})
		limit := r.Limit
		if e.page > 0 {
			limit = min(limit, e.page)
		}
		if e.endless {
			a.Next = fmt.Sprintf("!%d", e.askedFor+len(e.lookups)) // before all ids, and never the one before
		}
		for i, id := range ids {
			if i == limit {
				a.Next = ids[i-1]
				break
			}
			tell(id, token.Digest{})
		}
	}
	spoil, pageDelay := e.spoilLook, e.pageDelay
	e.mu.Unlock()
	if spoil != nil {
		spoil(&a)
	}
	if r.Limit > 0 && pageDelay != nil {
		time.Sleep(pageDelay())
	}
	return a, e.back(ctx)
}

// hideImported copies a record and leaves out the digests that are told only
// to those who present them.
func hideImported(r *record.Record) *record.Record {
	shown := *r
	shown.Versions = slices.Clone(r.Versions)
	for i := range shown.Versions {
		if shown.Versions[i].Imported {
			shown.Versions[i].Digest = token.Digest{}
		}
	}
	return &shown
}

func (e *engine) Report(ctx context.Context, r verifier.Report) (a verifier.ReportAnswer, err error) {
	if err := e.way(ctx); err != nil {
		return a, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.noReports {
		return a, errDown
	}
	e.reports = append(e.reports, r)
	if e.spoilReport != nil {
		e.spoilReport(r, &a)
	}
	return a, nil
}

// set changes how the engine behaves.
func (e *engine) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// restart is another node, or the same one again.
func (e *engine) restart() {
	e.set(func() { e.epoch++; e.seq = 0; e.log = nil })
}

// change applies f to a copy of a key's record and publishes that.
func (e *engine) change(id string, f func(r *record.Record)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := *e.keys[id]
	r.Versions = slices.Clone(r.Versions)
	f(&r)
	e.keys[id] = &r
	e.seq++
	e.log = append(e.log, change{seq: e.seq, id: id})
}

func (e *engine) changeRole(role string, f func(r *record.Record)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, k := range e.keys {
		if k.Role == role {
			r := *k
			r.Versions = slices.Clone(r.Versions)
			f(&r)
			e.keys[id] = &r
		}
	}
	e.seq++
	e.log = append(e.log, change{seq: e.seq, role: role})
}

// key makes a key with one active version.
func (e *engine) key(t testing.TB) (id, apiKey string) {
	t.Helper()
	id, err := token.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	apiKey = newToken(t, id)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys[id] = &record.Record{
		KeyID: id, Name: "name-" + id, Role: "trading", Enabled: true, Scopes: []string{"orders:read", "orders:write"}, Recorded: e.now(),
		Versions: []record.Version{{Number: 1, Digest: token.Sum(apiKey), Life: record.Life{State: record.StateActive}}},
	}
	e.seq++
	e.log = append(e.log, change{seq: e.seq, id: id})
	return id, apiKey
}

// imported makes a key of a token that another system made.
func (e *engine) imported(t testing.TB, apiKey string) (id string) {
	t.Helper()
	id, _ = e.key(t)
	e.change(id, func(r *record.Record) {
		r.Imported = true
		r.Versions[0].Imported = true
		r.Versions[0].Digest = token.Sum(apiKey)
	})
	e.set(func() { e.imports[token.Sum(apiKey)] = id })
	return id
}

func newToken(t testing.TB, id string) string {
	t.Helper()
	apiKey, err := token.New(rand.Reader, token.Format{}, id)
	if err != nil {
		t.Fatal(err)
	}
	return apiKey
}

// rotate adds an active version; the one before is accepted for so long.
func (e *engine) rotate(t testing.TB, id string, overlap time.Duration) (apiKey string) {
	t.Helper()
	apiKey = newToken(t, id)
	e.change(id, func(r *record.Record) {
		now := e.now()
		last := &r.Versions[len(r.Versions)-1]
		last.State, last.SupersededTime, last.SupersededBy = record.StateRetiring, now, last.Number+1
		last.OverlapEnds, last.AcceptedUntil = now.Add(overlap), now.Add(overlap)
		r.Recorded = now
		r.Versions = append(r.Versions, record.Version{Number: last.Number + 1, Digest: token.Sum(apiKey), Life: record.Life{State: record.StateActive}})
	})
	return apiKey
}

func (e *engine) revoke(id string) {
	e.change(id, func(r *record.Record) {
		r.Recorded = e.now()
		v := r.Version(1)
		v.State, v.EndedTime = record.StateRevoked, e.now()
	})
}

func (e *engine) remove(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.keys, id)
	e.seq++
	e.log = append(e.log, change{seq: e.seq, id: id})
}

func (e *engine) asked() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.lookups)
}

// edge is a verifier that runs.
type edge struct {
	*verifier.Verifier
	t      testing.TB
	engine *engine
	stop   func()
}

// start runs a verifier until the test is over, and waits for its first poll.
func start(t testing.TB, e *engine, change ...func(*verifier.Config)) *edge {
	t.Helper()
	c := verifier.Config{Engine: e, Name: "edge-1", Source: "eu", Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&c)
	}
	v, err := verifier.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- v.Run(ctx) }()
	once := sync.OnceFunc(func() {
		cancel()
		if err := <-ran; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		_ = v.Close(context.WithoutCancel(ctx))
	})
	t.Cleanup(once)
	return &edge{Verifier: v, t: t, engine: e, stop: once}
}

func (v *edge) verify(apiKey string, check ...verifier.Check) verifier.Result {
	v.t.Helper()
	c := verifier.Check{}
	if len(check) > 0 {
		c = check[0]
	}
	r, err := v.Verify(v.t.Context(), apiKey, c)
	if (err != nil) != (r.Verdict == verifier.Unavailable) || err != nil && !errors.Is(err, verifier.ErrUnavailable) {
		v.t.Errorf("%s with the error %v", r.Verdict, err)
	}
	if r.Verdict == verifier.Unavailable && r.RetryAfter <= 0 {
		v.t.Error("unavailable without when to ask again")
	}
	return r
}

func (v *edge) accepts(apiKey string, check ...verifier.Check) verifier.Result {
	v.t.Helper()
	r := v.verify(apiKey, check...)
	if r.Verdict != verifier.Accepted || r.Code != record.CodeValid {
		v.t.Fatalf("%s %s, want accepted", r.Verdict, r.Code)
	}
	if r.Key == nil || r.Version == nil {
		v.t.Fatal("accepted without the key")
	}
	return r
}

func (v *edge) refuses(code record.Code, apiKey string, check ...verifier.Check) {
	v.t.Helper()
	r := v.verify(apiKey, check...)
	if r.Verdict != verifier.Refused || r.Code != code {
		v.t.Fatalf("%s %s, want refused %s", r.Verdict, r.Code, code)
	}
}

func (v *edge) unavailable(apiKey string) {
	v.t.Helper()
	r := v.verify(apiKey)
	if r.Verdict != verifier.Unavailable || r.Code != "" {
		v.t.Fatalf("%s %s, want unavailable", r.Verdict, r.Code)
	}
}
