// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// kind is how a client behaves.
type kind int

const (
	// agentLike reads its key when the ttl is over, as Vault Agent does.
	agentLike kind = iota
	// sdkLike also reads it anew when it is refused.
	sdkLike
	// stubborn stays on the old version until the end of its overlap.
	stubborn
	// leftover presents any version that there ever was: a client that was
	// forgotten, or a thief.
	leftover
	kinds
)

func (k kind) String() string {
	return [...]string{"like Agent", "like the SDK", "stubborn", "left over"}[k]
}

// client is one user of a key.
type client struct {
	kind kind
	key  *key

	mu       sync.Mutex
	version  int
	token    string
	fetched  time.Time // when it asked for its version; zero, if it did not
	ttl      time.Duration
	next     time.Time // when to read again
	fetching bool
}

// fleet are the clients.
type fleet struct {
	w       *world
	fetches chan *client
	mu      sync.Mutex
	clients []*client
	uses    [kinds]atomic.Int64
	refused [kinds]atomic.Int64
}

func newFleet(w *world) *fleet {
	f := &fleet{w: w, fetches: make(chan *client, 4096)}
	for _, k := range w.keys {
		f.join(k, agentLike, sdkLike, stubborn, leftover)
	}
	return f
}

func (f *fleet) add(kind kind, k *key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	version := k.now()
	f.clients = append(f.clients, &client{kind: kind, key: k, version: version, token: k.token(version)})
}

// join adds clients of a key, leave removes them.
func (f *fleet) join(k *key, kinds ...kind) {
	for _, kind := range kinds {
		f.add(kind, k)
	}
}

func (f *fleet) leave(k *key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clients = slices.DeleteFunc(f.clients, func(c *client) bool { return c.key == k })
}

// use is a key that a client presents. A client that behaves has fetched it,
// and is to use it until some moment.
type use struct {
	client         *client
	version        int
	token          string
	fetched, until time.Time
}

// agentLag is how long after its ttl a client may read its key again: Agent
// waits for a second more.
const agentLag = time.Second

// pick picks clients and what they present now.
func (f *fleet) pick(rng *rand.Rand, n int) []use {
	f.mu.Lock()
	picked := make([]*client, n)
	for i := range picked {
		picked[i] = f.clients[rng.IntN(len(f.clients))]
	}
	f.mu.Unlock()
	uses := make([]use, 0, n)
	for _, c := range picked {
		if u := f.present(c); u.token != "" {
			uses = append(uses, u)
		}
	}
	return uses
}

func (f *fleet) present(c *client) use {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.kind {
	case agentLike, sdkLike:
		if now().After(c.next) {
			f.fetch(c)
		}
	case stubborn:
		const margin = 500 * time.Millisecond
		if !f.w.oracle.Certain(c.key.name, c.version, now(), margin) {
			c.version = c.key.now()
			c.token = c.key.token(c.version)
		}
	default:
		c.version, c.token = c.key.any()
	}
	u := use{client: c, version: c.version, token: c.token}
	if !c.fetched.IsZero() {
		u.fetched, u.until = c.fetched, c.fetched.Add(c.ttl+agentLag)
	}
	return u
}

// fetch has the key of a client read; its lock is held. Imported keys by their
// token can be read too.
func (f *fleet) fetch(c *client) {
	if c.fetching || c.key.role == roleLeased || c.key.gone.Load() {
		return
	}
	c.fetching = true
	select {
	case f.fetches <- c:
	default: // too many wait: a later use asks again
		c.fetching = false
	}
}

// fetcher reads static-creds for clients until ctx ends.
func (f *fleet) fetcher(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-f.fetches:
			f.read(ctx, c)
		}
	}
}

// read reads the key of a client. Its ttl counts from when it asked: that the
// answer came late is not the engine's doing.
func (f *fleet) read(ctx context.Context, c *client) {
	a := f.w.calls.call(ctx, verifyTimeout, http.MethodGet, mount+"/static-creds/"+c.key.name, nil)
	var got newVersion
	err := a.decode(&got)
	if err == nil || a.status == http.StatusNotFound && a.refused() && !c.key.gone.Load() {
		f.w.oracle.Fetched(oracle.Fetch{Key: c.key.name, Version: got.Version, Sent: a.sent, Answered: a.answered, Late: f.w.late(a.sent, a.answered)})
	}
	if err == nil && (got.APIKey == "" || got.TTL < 1) {
		f.w.t.Errorf("static-creds of %s: version %d, key there: %v, ttl %d", c.key.name, got.Version, got.APIKey != "", got.TTL)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fetching = false
	if err != nil || got.APIKey == "" {
		c.next = now().Add(500 * time.Millisecond)
		return
	}
	c.version, c.token, c.fetched, c.ttl = got.Version, got.APIKey, a.sent, time.Duration(got.TTL)*time.Second
	c.next = now().Add(c.ttl)
	f.w.secrets.Add(got.APIKey, fmt.Sprintf("version %d of %s", got.Version, c.key.name))
	if c.key.role != roleManual {
		c.key.learn(got.Version, got.APIKey)
	}
}

// judge tells the oracle, and the client, what a verifier answered.
func (f *fleet) judge(u use, v oracle.Verification) {
	v.Key, v.Version, v.Fetched, v.Until = u.client.key.name, u.version, u.fetched, u.until
	v.Calm = f.w.calm(v.Sent, v.Answered)
	f.w.oracle.Judge(v)
	f.uses[u.client.kind].Add(1)
	if v.Verdict != oracle.Refused {
		return
	}
	f.refused[u.client.kind].Add(1)
	if u.client.kind == sdkLike {
		u.client.mu.Lock()
		f.fetch(u.client)
		u.client.mu.Unlock()
	}
}

// throughVault has Vault verify batches of keys at a pace until ctx ends.
func (f *fleet) throughVault(ctx context.Context, rng *rand.Rand, size int, pace <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace:
		}
		f.batch(ctx, f.pick(rng, size))
	}
}

func (f *fleet) batch(ctx context.Context, uses []use) {
	items := make([]fields, len(uses))
	for i, u := range uses {
		items[i] = fields{"api_key": u.token, "source": u.client.kind.String()[:4]}
	}
	a := f.w.calls.call(ctx, verifyTimeout, http.MethodPost, mount+"/verify", fields{"batch_input": items})
	late := f.w.late(a.sent, a.answered)
	var got struct {
		Results []struct {
			Valid   bool   `json:"valid"`
			Code    string `json:"code"`
			Name    string `json:"name"`
			KeyID   string `json:"key_id"`
			Version int    `json:"version"`
		} `json:"batch_results"`
	}
	err := a.decode(&got)
	if ctx.Err() != nil {
		return
	}
	for i, u := range uses {
		v := oracle.Verification{Class: "Vault", Verifier: "Vault", Sent: a.sent, Answered: a.answered, Verdict: oracle.Failed, Late: late}
		if err == nil && i < len(got.Results) {
			r := got.Results[i]
			v.Code, v.AnsweredKey, v.AnsweredVersion = r.Code, r.Name, r.Version
			if r.Name == "" {
				v.AnsweredKey = r.KeyID
			}
			switch {
			case r.Valid:
				v.Verdict = oracle.Accepted
			case r.Code != "":
				v.Verdict = oracle.Refused
			default: // an item with an error: it could not be looked up now
				v.Verdict = oracle.Unavailable
			}
		}
		f.judge(u, v)
	}
}

// edge is a verifier of the SDK, with a way to each node.
type edge struct {
	name     string
	w        *world
	verifier *verifier.Verifier
	way      *way
	skew     *atomic.Int64 // how far its wall clock is ahead
}

const (
	edgePoll     = time.Second
	edgeMaxStale = 20 * time.Second
	// edgeSlack is what its bound has beyond the poll interval, or beyond
	// MaxStale where the feed is lost.
	edgeSlack = 250 * time.Millisecond
	// edgeEarly is what its idea of Vault's clock may be ahead.
	edgeEarly = 250 * time.Millisecond
)

// way leads to whichever node answers. It can be cut.
type way struct {
	clients []*vaultclient.Client
	good    atomic.Int32
	cut     atomic.Bool
	feed    feed
}

// feed is what is seen here of the questions of a verifier for changes: its own
// word is not taken for how late it may be.
type feed struct {
	mu sync.Mutex
	// good is when the last question was sent that was answered well, answered
	// when that was, and before the good one before it.
	before, good, answered time.Time
	asking, failed         bool
}

func (f *feed) ask(sent time.Time) (done func(at time.Time, err error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asking = true
	return func(at time.Time, err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asking = false
		if f.failed = err != nil; !f.failed {
			f.before, f.good, f.answered = f.good, sent, at
		}
	}
}

// late is how long after its end the verifier may accept a version now: since it
// last asked with success, and at most for MaxStale. It has no excuse where it
// does not ask when it is to.
func (f *feed) late(at time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	age := at.Sub(f.good)
	switch {
	case at.Sub(f.answered) < edgeSlack:
		age = at.Sub(f.before) // it may not have taken the answer in
	case !f.asking && !f.failed:
		age = min(age, edgePoll)
	}
	return min(max(age, edgePoll), edgeMaxStale) + edgeSlack
}

func (y *way) each(do func(c *vaultclient.Client) error) error {
	i := int(y.good.Load())
	if y.cut.Load() {
		return fmt.Errorf("the way of this verifier is cut")
	}
	err := do(y.clients[i])
	if err != nil && vaultclient.IsUnavailable(err) {
		y.good.CompareAndSwap(int32(i), int32((i+1)%len(y.clients)))
	}
	return err
}

// Read implements verifier.Client.
func (y *way) Read(ctx context.Context, path string, query url.Values, out any) error {
	done := func(time.Time, error) {}
	if path == "sync" {
		done = y.feed.ask(now())
	}
	err := y.each(func(c *vaultclient.Client) error { return c.Read(ctx, path, query, out) })
	done(now(), err)
	return err
}

// Write implements verifier.Client.
func (y *way) Write(ctx context.Context, path string, body, out any) error {
	return y.each(func(c *vaultclient.Client) error { return c.Write(ctx, path, body, out) })
}

// newEdge makes a verifier that begins at one of the nodes.
func (w *world) newEdge(name string, first int) (*edge, error) {
	y := &way{}
	for i := range w.cluster.Nodes {
		c, err := vaultclient.New(vaultclient.Config{
			Address: w.cluster.Nodes[(first+i)%nodes].Addr, Mount: mount, Auth: vaultclient.Token(w.calls.token), Timeout: 3 * time.Second,
		})
		if err != nil {
			return nil, err
		}
		y.clients = append(y.clients, c)
	}
	skew := &atomic.Int64{}
	v, err := verifier.New(verifier.Config{
		WallClock: func() time.Time { return time.Now().Add(time.Duration(skew.Load())) },
		Vault:     y, Name: name, Source: name, PollInterval: edgePoll, MaxStale: edgeMaxStale, ReportInterval: 5 * time.Second,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return &edge{name: name, w: w, verifier: v, way: y, skew: skew}, nil
}

// verify verifies keys one by one at a pace until ctx ends.
func (e *edge) verify(ctx context.Context, rng *rand.Rand, size int, pace <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace:
		}
		for _, u := range e.w.fleet.pick(rng, size) {
			if ctx.Err() != nil {
				return
			}
			e.one(ctx, u)
		}
	}
}

func (e *edge) one(ctx context.Context, u use) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	v := oracle.Verification{Class: "edge", Verifier: e.name, Sent: now(), Early: edgeEarly}
	v.Late = e.way.feed.late(v.Sent)
	result, err := e.verifier.Verify(ctx, u.token, verifier.Check{})
	v.Answered = now()
	v.Code = string(result.Code)
	switch result.Verdict {
	case verifier.Accepted:
		v.Verdict = oracle.Accepted
		if result.Key != nil {
			if v.AnsweredKey = result.Key.Name; v.AnsweredKey == "" {
				v.AnsweredKey = result.Key.KeyID
			}
		}
		if result.Version != nil {
			v.AnsweredVersion = result.Version.Number
		}
	case verifier.Refused:
		v.Verdict = oracle.Refused
	case verifier.Unavailable, verifier.VerdictUnknown:
		v.Verdict = oracle.Unavailable
	}
	_ = err // it says that it is unavailable
	e.w.fleet.judge(u, v)
}
