// SPDX-License-Identifier: MPL-2.0

package scale

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

type fields = map[string]any

// connections is how many requests are made at the same time, where many are.
const connections = 8

// load makes requests to one server.
type load struct {
	t           testing.TB
	addr, token string
	client      *http.Client
}

func newLoad(t testing.TB, srv *harness.Server) *load {
	l := &load{t: t, addr: srv.Addr, token: srv.RootToken, client: &http.Client{
		Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true},
	}}
	t.Cleanup(l.client.CloseIdleConnections)
	return l
}

func (l *load) send(method, path string, body any) (map[string]any, error) {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, l.addr+"/v1/"+path, payload)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", l.token)
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	var answer struct {
		Data map[string]any `json:"data"`
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			return nil, err
		}
	}
	return answer.Data, nil
}

// must makes a request that has to succeed.
func (l *load) must(method, path string, body any) map[string]any {
	l.t.Helper()
	data, err := l.send(method, path, body)
	if err != nil {
		l.t.Fatal(err)
	}
	return data
}

func (l *load) text(data map[string]any, name string) string {
	l.t.Helper()
	text, ok := data[name].(string)
	if !ok {
		l.t.Fatalf("the answer has no %s", name)
	}
	return text
}

func (l *load) number(data map[string]any, name string) int {
	l.t.Helper()
	n, ok := data[name].(float64)
	if !ok {
		l.t.Fatalf("the answer has no %s", name)
	}
	return int(n)
}

func (l *load) verify(apiKey string) {
	l.t.Helper()
	if code := l.text(l.must(http.MethodPost, "apikeys/verify", fields{"api_key": apiKey}), "code"); code != "VALID" {
		l.t.Fatalf("verify answers %s", code)
	}
}

// each does something so often, one after the other, and returns how long all
// of it took.
func (l *load) each(times int, do func(i int)) time.Duration {
	began := time.Now()
	for i := range times {
		do(i)
	}
	return time.Since(began)
}

// parallel does something so often, over all connections.
func (l *load) parallel(times int, do func(i int) error) {
	l.t.Helper()
	var next atomic.Int64
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range connections {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < times && !failed.Load(); i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					l.t.Error(err)
					failed.Store(true)
					return
				}
			}
		})
	}
	workers.Wait()
	if failed.Load() {
		l.t.FailNow()
	}
}

// imported is the token of an imported key.
func imported(prefix string, i int) string { return fmt.Sprintf("legacy-key-of-%s-%08d", prefix, i) }

// importKeys imports keys of a role in batches of 1,000.
func (l *load) importKeys(role, prefix string, n int) {
	l.t.Helper()
	const size = 1_000
	l.parallel((n+size-1)/size, func(b int) error {
		var items []fields
		for i := b * size; i < min((b+1)*size, n); i++ {
			items = append(items, fields{"name": fmt.Sprintf("%s-%07d", prefix, i), "role": role, "import_key": imported(prefix, i)})
		}
		data, err := l.send(http.MethodPost, "apikeys/import", fields{"batch_input": items})
		if err == nil && data["failed"] != float64(0) {
			err = fmt.Errorf("%v of %d keys were not imported: %v", data["failed"], len(items), data["batch_results"])
		}
		return err
	})
}
