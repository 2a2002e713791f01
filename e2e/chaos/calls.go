// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// calls is the way to the cluster, through whichever node answers, as a load
// balancer has it.
type calls struct {
	nodes []*harness.Server
	token string
	http  *http.Client
	good  atomic.Int32 // a node that has answered lately
}

func newCalls(nodes []*harness.Server, token string) *calls {
	return &calls{nodes: nodes, token: token, http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 32, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}}}
}

// answer is what became of a call. A status of 0 is none.
type answer struct {
	sent, answered time.Time
	status         int
	data           json.RawMessage
	errors         []string
	err            error
}

func (a answer) ok() bool { return a.status >= 200 && a.status < 300 }

// refused tells whether the call was certainly not obeyed: the engine said so.
// Vault itself says 404 and 400 too, where it has lost its plugin or its leader.
func (a answer) refused() bool {
	if a.status != http.StatusBadRequest && a.status != http.StatusNotFound {
		return false
	}
	text := strings.Join(a.errors, " ")
	for _, word := range []string{"rpc error", "no handler for route", "plugin", "connection", "context ", "leader"} {
		if strings.Contains(text, word) {
			return false
		}
	}
	return true
}

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %s", a.status, strings.Join(a.errors, "; "))
}

func (a answer) decode(into any) error {
	if !a.ok() {
		return errors.New(a.String())
	}
	return json.Unmarshal(a.data, into)
}

// now is the wall clock, which the servers share; without the monotonic one,
// because deadlines of the engine have none.
func now() time.Time { return time.Now().Round(0) }

// call sends one request, once, through some node.
func (c *calls) call(ctx context.Context, timeout time.Duration, method, path string, body any) answer {
	i := int(c.good.Load())
	if rand.IntN(3) == 0 {
		i = rand.IntN(len(c.nodes))
	}
	a := c.through(ctx, c.nodes[i], timeout, method, path, body)
	switch {
	case a.ok() || a.refused():
		c.good.Store(int32(i))
	case ctx.Err() == nil:
		c.good.CompareAndSwap(int32(i), int32((i+1)%len(c.nodes)))
	}
	return a
}

func (c *calls) through(ctx context.Context, node *harness.Server, timeout time.Duration, method, path string, body any) answer {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return answer{err: err}
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, node.Addr+"/v1/"+path, payload)
	if err != nil {
		return answer{err: err}
	}
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	req.Header.Set("X-Vault-Token", c.token)
	a := answer{sent: now()}
	a.status, a.data, a.errors, a.err = c.send(req)
	a.answered = now()
	return a
}

func (c *calls) send(req *http.Request) (int, json.RawMessage, []string, error) {
	// GetBody would let the transport send it again by itself: a call is sent once.
	req.GetBody = nil
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, nil, err
	}
	var body struct {
		Data    json.RawMessage `json:"data"`
		Errors  []string        `json:"errors"`
		LeaseID string          `json:"lease_id"`
	}
	if len(bytes.TrimSpace(text)) > 0 {
		if err := json.Unmarshal(text, &body); err != nil {
			return 0, nil, nil, fmt.Errorf("an answer that is not JSON, with status %d", resp.StatusCode)
		}
	}
	if body.LeaseID != "" && len(body.Data) > 2 { // the lease stands beside the data
		body.Data = append([]byte(fmt.Sprintf(`{"lease_id":%q,`, body.LeaseID)), body.Data[1:]...)
	}
	return resp.StatusCode, body.Data, body.Errors, nil
}

// until repeats a call until it is answered for certain, by whichever node, or
// ctx ends. It may be made only of what can be done twice.
func (c *calls) until(ctx context.Context, timeout time.Duration, method, path string, body any) (a answer, attempts int) {
	for {
		attempts++
		a = c.call(ctx, timeout, method, path, body)
		if a.ok() || a.refused() || ctx.Err() != nil {
			return a, attempts
		}
		pause(ctx, 100*time.Millisecond+rand.N(200*time.Millisecond))
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
