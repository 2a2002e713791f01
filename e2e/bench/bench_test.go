// SPDX-License-Identifier: MPL-2.0

// Package bench compares what requests to the engine cost on a real Vault with
// what is budgeted. It publishes ratios of runs that took turns, never bare
// times, which would be about the machine.
package bench_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

const (
	connections = 16
	rounds      = 7
	// turns is how often the two loads take turns in one of the rounds.
	turns = 6
	// clients is how many keys are verified in turn.
	clients = 100
	// batchSize is how many keys one batch checks.
	batchSize = 100
	// runLimit bounds one turn.
	runLimit = 20 * time.Second

	// The budgets: verify through Vault against a path of the same plugin that
	// does nothing, and keys per second in batches against one by one.
	// Verify that counts use must reach leastOfUncounted of one that does not.
	leastOfNoOp      = 0.9
	leastByBatch     = 25
	leastOfUncounted = 0.9
)

// target is a dev server with the engine and its keys.
type target struct {
	srv         *harness.Server
	addr, token string
	client      *http.Client
	keys        []string
}

// start brings up a server with the engine of ./plugin.
func start(b *testing.B) *target {
	b.Helper()
	harness.Binary(b) // skip before the build
	t := serve(b, harness.StartDev(b, harness.Options{LogLevel: "error"}))
	t.mount(b, "apikeys", harness.PluginName)
	t.keys = t.makeKeys(b, "apikeys")
	return t
}

func serve(b *testing.B, srv *harness.Server) *target {
	t := &target{srv: srv, addr: srv.Addr, token: srv.RootToken, client: &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
	}}}
	b.Cleanup(t.client.CloseIdleConnections)
	return t
}

// mount builds ./plugin with tags, registers it under a name, and mounts it.
func (t *target) mount(b *testing.B, path, name string, tags ...string) {
	b.Helper()
	bin := filepath.Join(b.TempDir(), "plugin")
	build := exec.Command("go", "build", "-trimpath", "-tags", strings.Join(tags, ","), "-ldflags", "-s -w", "-o", bin, "./plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build the plugin: %v\n%s", err, out)
	}
	content, err := os.ReadFile(bin)
	if err != nil {
		b.Fatal(err)
	}
	sum := sha256.Sum256(content)
	t.srv.RegisterPlugin(b, name, "", bin, hex.EncodeToString(sum[:]))
	t.srv.EnableEngine(b, path, name)
}

// makeKeys makes the keys of a mount, and returns them.
func (t *target) makeKeys(b *testing.B, path string) []string {
	b.Helper()
	if _, err := t.srv.Client.Logical().Write(path+"/roles/partner", map[string]any{"prefix": "tm_live", "scopes": "orders:read,orders:write"}); err != nil {
		b.Fatal(err)
	}
	var keys []string
	for i := range clients {
		made, err := t.srv.Client.Logical().Write(fmt.Sprintf("%s/keys/client-%d", path, i), map[string]any{"role": "partner"})
		if err != nil {
			b.Fatal(err)
		}
		key, ok := made.Data["api_key"].(string)
		if !ok {
			b.Fatal("a new key without api_key")
		}
		keys = append(keys, key)
	}
	return keys
}

// load is one kind of request: bodies that are sent in turn to a path.
type load struct {
	path   string
	bodies [][]byte
	// wants is what each answer must contain.
	wants []byte
	// keys is how many keys one request checks.
	keys int
	// requests are how many are sent in a turn, over so many connections.
	requests, connections int
}

func body(b *testing.B, v any) []byte {
	b.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		b.Fatal(err)
	}
	return text
}

// single checks one key with each request.
func (t *target) single(b *testing.B, path, wants string, requests int) load {
	return singleOf(b, t.keys, path, wants, requests)
}

func singleOf(b *testing.B, keys []string, path, wants string, requests int) load {
	l := load{path: path, wants: []byte(wants), keys: 1, requests: requests, connections: connections}
	for _, key := range keys {
		l.bodies = append(l.bodies, body(b, map[string]string{"api_key": key, "source": "eu-1"}))
	}
	return l
}

func (t *target) batch(b *testing.B, requests int) load {
	items := make([]map[string]string, batchSize)
	for i := range items {
		items[i] = map[string]string{"api_key": t.keys[i%len(t.keys)], "source": "eu-1"}
	}
	return load{path: "apikeys/verify", bodies: [][]byte{body(b, map[string]any{"batch_input": items})}, wants: []byte(`"valid":true`), keys: batchSize, requests: requests, connections: connections}
}

// run sends the load over its connections and returns how long that took.
func (t *target) run(b *testing.B, l load) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), runLimit)
	defer cancel()
	var next atomic.Int64
	var workers sync.WaitGroup
	failures := make(chan error, connections)
	begin := time.Now()
	for range l.connections {
		workers.Go(func() {
			answer := bytes.NewBuffer(make([]byte, 0, 64<<10))
			for i := next.Add(1); i <= int64(l.requests); i = next.Add(1) {
				if err := t.send(ctx, l, int(i), answer); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	workers.Wait()
	took := time.Since(begin)
	select {
	case err := <-failures:
		b.Fatalf("%s: %v", l.path, err)
	default:
	}
	return took
}

func (t *target) send(ctx context.Context, l load, i int, answer *bytes.Buffer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, t.addr+"/v1/"+l.path, bytes.NewReader(l.bodies[i%len(l.bodies)]))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", t.token)
	resp, err := t.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer.Reset()
	if _, err := io.Copy(answer, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(answer.Bytes(), l.wants) {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

// compare runs two loads in turn and returns the median of how many times as
// many keys per second the first one checks, and the extremes. Each run takes
// turns within itself too, so that whatever else the machine does hits both.
func (t *target) compare(b *testing.B, first, second load) (median, least, most float64) {
	b.Helper()
	t.run(b, first) // both warm
	t.run(b, second)
	var ratios []float64
	for range rounds {
		var x, y time.Duration
		for i := range turns {
			if i%2 == 0 {
				x += t.run(b, first)
				y += t.run(b, second)
			} else {
				y += t.run(b, second)
				x += t.run(b, first)
			}
		}
		perKey := float64(first.requests*first.keys) / float64(second.requests*second.keys)
		ratios = append(ratios, perKey*y.Seconds()/x.Seconds())
	}
	slices.Sort(ratios)
	return ratios[rounds/2], ratios[0], ratios[rounds-1]
}

// report publishes a ratio beside its budget; without one it is only told.
func (t *target) report(b *testing.B, what string, first, second load, budget float64) {
	b.Helper()
	median, least, most := t.compare(b, first, second)
	verdict := fmt.Sprintf("budget at least %.1f | ok", budget)
	switch {
	case budget == 0:
		verdict = "no budget"
	case median < budget:
		verdict = fmt.Sprintf("budget at least %.1f | UNDER", budget)
		b.Errorf("%s: %.2f, budget %.1f", what, median, budget)
	}
	_, _ = fmt.Fprintf(os.Stdout, "\n%s: %.2f (median of %d runs in turn, %.2f to %.2f) | %s\n", what, median, rounds, least, most, verdict)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median, "ratio")
}

func BenchmarkVerifyAgainstNoOp(b *testing.B) {
	t := start(b)
	t.report(b, "verify against a no-op write of the same plugin, requests per second over 16 connections",
		t.single(b, "apikeys/verify", `"valid":true`, 400), t.single(b, "apikeys/noop", `"ok":true`, 400), leastOfNoOp)
}

// BenchmarkVerifyAgainstFloor compares with the least that a write to any
// plugin can cost: Vault's own part of it and the way to the plugin.
func BenchmarkVerifyAgainstFloor(b *testing.B) {
	t := start(b)
	t.report(b, "verify against an answer before the engine looks at the request, requests per second over 16 connections",
		t.single(b, "apikeys/verify", `"valid":true`, 400), t.single(b, "apikeys/floor", `"ok":true`, 400), 0)
}

// BenchmarkVerifyAgainstUncounted is what counting use by key, version and
// source costs: the same engine beside it, built without it.
func BenchmarkVerifyAgainstUncounted(b *testing.B) {
	t := start(b)
	t.mount(b, "uncounted", "apikeys-uncounted", "apikeys_uncounted")
	uncounted := t.makeKeys(b, "uncounted")
	t.report(b, "verify that counts use against one that does not, requests per second over 16 connections",
		t.single(b, "apikeys/verify", `"valid":true`, 400), singleOf(b, uncounted, "uncounted/verify", `"valid":true`, 400), leastOfUncounted)
	for path, counts := range map[string]bool{"apikeys": true, "uncounted": false} {
		use, err := t.srv.Client.Logical().Read(path + "/usage/client-0")
		if err != nil {
			b.Fatal(err)
		}
		if versions, _ := use.Data["versions"].(map[string]any); (len(versions) > 0) != counts {
			b.Errorf("%s counts the use of %d versions", path, len(versions))
		}
	}
}

// BenchmarkBatchAgainstSingle is what a caller gains who sends its keys in
// batches instead of one after the other.
func BenchmarkBatchAgainstSingle(b *testing.B) {
	t := start(b)
	batch, single := t.batch(b, 25), t.single(b, "apikeys/verify", `"valid":true`, 200)
	batch.connections, single.connections = 1, 1
	t.report(b, "verify in batches of 100 against one by one, keys per second of one caller", batch, single, leastByBatch)
}

// BenchmarkBatchAgainstSingleSaturated is the same where callers keep all
// processors busy. Then it is the work that counts and no longer the wait, and
// nearly all of a batch's is Vault's own reading and writing of JSON.
func BenchmarkBatchAgainstSingleSaturated(b *testing.B) {
	t := start(b)
	t.report(b, "verify in batches of 100 against one by one, keys per second over 16 connections",
		t.batch(b, 64), t.single(b, "apikeys/verify", `"valid":true`, 400), 0)
}
