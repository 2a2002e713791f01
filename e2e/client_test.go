// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// client is a user of a key who behaves: it reads static-creds, uses what it
// got until the ttl is over, and reads again. All the while the API server
// verifies what it presents.
type client struct {
	m    *mount
	name string

	uses     atomic.Int64
	version  atomic.Int64
	mu       sync.Mutex
	refusals []string
}

// startClient starts a client of the key "acme". On the test's end it must not
// have been refused once.
func startClient(t testing.TB, m *mount) *client {
	t.Helper()
	c := &client{m: m, name: "acme"}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		t.Logf("the client of %s verified %d times and was refused %d times", c.name, c.uses.Load(), len(c.refusals))
		for _, refusal := range c.refusals {
			t.Errorf("a client that behaves was refused: %s", refusal)
		}
		if c.uses.Load() == 0 {
			t.Error("the client never used its key")
		}
	})
	return c
}

func (c *client) run(ctx context.Context) {
	const pace = 25 * time.Millisecond
	var apiKey string
	var next time.Time
	for ctx.Err() == nil {
		if !time.Now().Before(next) {
			creds, err := c.m.send(http.MethodGet, c.m.path+"/static-creds/"+c.name, nil)
			if err != nil || !creds.ok() {
				c.refused("static-creds: %v %v", creds, err)
				return
			}
			apiKey, _ = creds.data["api_key"].(string)
			ttl, _ := creds.data["ttl"].(float64)
			version, _ := creds.data["version"].(float64)
			next = time.Now().Add(time.Duration(ttl) * time.Second)
			c.version.Store(int64(version))
		}
		v, err := c.m.tryVerify(apiKey, "source", "eu-1")
		if err != nil || !v.Valid {
			c.refused("%s of version %d, %v", v.Code, v.Version, err)
		}
		c.uses.Add(1)
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

func (c *client) refused(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals = append(c.refusals, fmt.Sprintf(format, args...))
}

// changesOverTo waits until the client has changed over to a version.
func (c *client) changesOverTo(version int64) {
	c.m.t.Helper()
	eventually(c.m.t, 20*time.Second, func() error {
		if got := c.version.Load(); got != version {
			return fmt.Errorf("the client uses version %d, not %d yet", got, version)
		}
		return nil
	})
}
