// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// pace is the time from one request of a client to the next.
const pace = 50 * time.Millisecond

// part is a part of the story. It is counted apart because what it promises
// differs: in a planned rollover nothing is refused; a compromised key is
// refused at once, on purpose.
type part int

const (
	planned part = iota
	emergency
	parts
)

// tally counts the requests of one client in one part.
type tally struct {
	// requests are all that it made, each verified once, or twice where its
	// first attempt was refused and the client retried.
	requests int
	// refused are the first attempts that were not accepted, by code.
	refused map[string]int
	// failed are the requests that were not accepted in the end.
	failed int
}

func (t tally) refusals() int {
	n := 0
	for _, count := range t.refused {
		n += count
	}
	return n
}

// client presents its key to an API server all the while. The API server asks
// Vault at apikeys/verify whether to let it in.
type client struct {
	name string
	// server is the API server's connection to Vault, creds that of the
	// client, nil for one that never reads its key again.
	server, creds *api.Client

	reading sync.Mutex // one reading at a time, so that an old answer never replaces a newer one

	mu      sync.Mutex
	key     string
	now     part
	tallies [parts]tally
	last    verdict
	pause   error // why the last reading of the key failed
	// latest are when its recent verifications were answered.
	latest []time.Time

	quit chan struct{}
	done sync.WaitGroup
}

// verdict is an answer of verify.
type verdict struct {
	code    string
	version int64
}

func (v verdict) valid() bool { return v.code == "VALID" }

// unavailable stands for no answer at all.
const unavailable = "UNAVAILABLE"

func newClient(name string, server, creds *api.Client) *client {
	c := &client{name: name, server: server, creds: creds, quit: make(chan struct{})}
	for i := range c.tallies {
		c.tallies[i].refused = map[string]int{}
	}
	return c
}

// start begins the client's requests, with its key from Vault if it reads it.
func (c *client) start(ctx context.Context, key string) error {
	c.key = key
	if c.creds != nil {
		ttl, err := c.read(ctx)
		if err != nil {
			return err
		}
		c.done.Go(func() { c.follow(ctx, ttl) })
	}
	c.done.Go(func() { c.work(ctx) })
	return nil
}

// stop ends the client after the request that is under way.
func (c *client) stop() {
	select {
	case <-c.quit:
	default:
		close(c.quit)
	}
	c.done.Wait()
}

// read takes the current key from static-creds and returns its ttl.
func (c *client) read(ctx context.Context) (time.Duration, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	secret, err := c.creds.Logical().ReadWithContext(ctx, "apikeys/static-creds/acme")
	if err != nil || secret == nil {
		return 0, fmt.Errorf("read static-creds/acme: %w", errors.Join(err, errIfNil(secret)))
	}
	key, _ := secret.Data["api_key"].(string)
	ttl := number(secret.Data["ttl"])
	if key == "" || ttl < 1 {
		return 0, errors.New("static-creds/acme answered without api_key or ttl")
	}
	c.use(key)
	return time.Duration(ttl) * time.Second, nil
}

func errIfNil(s *api.Secret) error {
	if s == nil {
		return errors.New("no answer")
	}
	return nil
}

// use makes the client present another key from now on.
func (c *client) use(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = key
}

// follow reads the key again as Vault Agent does: a second after each ttl.
func (c *client) follow(ctx context.Context, ttl time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.quit:
			return
		case <-time.After(ttl + time.Second):
		}
		next, err := c.read(ctx)
		if err != nil {
			next = 0 // again in a second
		}
		ttl = next
		c.mu.Lock()
		c.pause = err
		c.mu.Unlock()
	}
}

// work makes one request after the other.
func (c *client) work(ctx context.Context) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.quit:
			return
		case <-tick.C:
			c.request(ctx)
		}
	}
}

// request is one request to the API server. A client that can read its key
// reads it once more when it is refused, and tries once more.
func (c *client) request(ctx context.Context) {
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	first := c.verify(ctx, key)
	final := first
	if !first.valid() && c.creds != nil && ctx.Err() == nil {
		if _, err := c.read(ctx); err == nil {
			c.mu.Lock()
			key = c.key
			c.mu.Unlock()
			final = c.verify(ctx, key)
		}
	}
	if ctx.Err() != nil {
		return // the demo is being interrupted: nothing was refused
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &c.tallies[c.now]
	t.requests++
	if !first.valid() {
		t.refused[first.code]++
	}
	if !final.valid() {
		t.failed++
	}
	c.last = final
	c.latest = append(c.latest, time.Now())
	if over := len(c.latest) - int(2*time.Second/pace); over > 0 {
		c.latest = c.latest[over:]
	}
}

// verify is what the API server does with a request: it asks Vault.
func (c *client) verify(ctx context.Context, key string) verdict {
	secret, err := c.server.Logical().WriteWithContext(ctx, "apikeys/verify", map[string]any{"api_key": key, "source": c.name})
	if err != nil || secret == nil {
		return verdict{code: unavailable}
	}
	code, _ := secret.Data["code"].(string)
	valid, _ := secret.Data["valid"].(bool)
	if code == "" || valid != (code == "VALID") {
		return verdict{code: unavailable}
	}
	return verdict{code, number(secret.Data["version"])}
}

// enter begins another part of the story. What is answered from now on counts
// there.
func (c *client) enter(p part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = p
}

// tally is a copy of what was counted in a part.
func (c *client) tally(p part) tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tallies[p]
	t.refused = maps.Clone(t.refused)
	return t
}

// verdict is the last answer that the client got.
func (c *client) verdict() verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// status is a line about the client for a person.
func (c *client) status(now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	rate := 0
	for _, t := range c.latest {
		if now.Sub(t) < time.Second {
			rate++
		}
	}
	requests, refused := 0, 0
	for _, t := range c.tallies {
		requests += t.requests
		refused += t.refusals()
	}
	answer := "accepted"
	if !c.last.valid() {
		answer = "REFUSED: " + c.last.code
	}
	line := fmt.Sprintf("%-6s presents version %d: %-17s %5d requests, %d refused, %d/s", c.name, c.last.version, answer, requests, refused, rate)
	if c.pause != nil {
		line += "; cannot read its key"
	}
	return strings.TrimRight(line, " ")
}

func number(v any) int64 {
	n, ok := v.(json.Number)
	if !ok {
		return 0
	}
	i, err := n.Int64()
	if err != nil {
		return 0
	}
	return i
}
