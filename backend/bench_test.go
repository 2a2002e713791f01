// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// manyKeys is how many keys the operations are counted at.
const manyKeys = 100_000

// samples is how often each operation is counted; the worst one stands in the
// table.
const samples = 40

// bench is an engine whose storage operations are counted.
type bench struct {
	*Backend
	tb      testing.TB
	clock   *clock.Manual
	memory  *storetest.Memory
	storage *storetest.Counting
}

// openBench returns an engine on what memory holds.
func openBench(tb testing.TB, memory *storetest.Memory, c *clock.Manual) *bench {
	tb.Helper()
	storage := storetest.NewCounting(memory)
	b, err := newBackend(tb.Context(), &logical.BackendConfig{
		Logger: hclog.NewNullLogger(), StorageView: storage, BackendUUID: "uuid", Config: map[string]string{},
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: 24 * time.Hour, MaxLeaseTTLVal: 768 * time.Hour, PluginEnvironment: &logical.PluginEnvironment{}},
	}, c, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { b.Cleanup(context.WithoutCancel(tb.Context())) })
	if err := b.Initialize(tb.Context(), &logical.InitializationRequest{Storage: storage}); err != nil {
		tb.Fatalf("initialize: %v", err)
	}
	b.opened().telling.Stop(clock.System().After) // so that tell does it when it is wanted
	return &bench{Backend: b, tb: tb, clock: c, memory: memory, storage: storage}
}

// try makes one request as Vault does.
func (m *bench) try(op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	req := &logical.Request{
		Operation: op, Path: path, Data: data, Storage: m.storage, MountPoint: "apikeys/",
		DisplayName: "token-bench", EntityID: "entity-1", ClientTokenAccessor: "accessor-1",
	}
	ctx := m.tb.Context()
	if op == logical.CreateOperation || op == logical.UpdateOperation {
		checked, exists, err := m.HandleExistenceCheck(ctx, req)
		if err != nil {
			return nil, err
		}
		if checked && !exists {
			req.Operation = logical.CreateOperation
		}
	}
	resp, err := m.HandleRequest(ctx, req)
	if err == nil && resp != nil && resp.IsError() {
		err = resp.Error()
	}
	return resp, err
}

func (m *bench) write(path string, data map[string]any) map[string]any {
	m.tb.Helper()
	resp, err := m.try(logical.UpdateOperation, path, data)
	if err != nil {
		m.tb.Fatalf("write %s: %v", path, err)
	}
	if resp == nil {
		return nil
	}
	return resp.Data
}

func (m *bench) read(path string) map[string]any {
	m.tb.Helper()
	resp, err := m.try(logical.ReadOperation, path, nil)
	if err != nil || resp == nil {
		m.tb.Fatalf("read %s: %v, %v", path, resp, err)
	}
	return resp.Data
}

// tell tells of all that waits to be told.
func (m *bench) tell() {
	m.tb.Helper()
	if err := m.opened().watch.tell(m.tb.Context()); err != nil {
		m.tb.Fatal(err)
	}
}

// verify checks a key that is valid.
func (m *bench) verify(key string) {
	m.tb.Helper()
	if got := m.write("verify", map[string]any{"api_key": key})["code"]; got != "VALID" {
		m.tb.Fatalf("verify answers %v", got)
	}
}

func (m *bench) create(name, role string) string {
	m.tb.Helper()
	key, ok := m.write("keys/"+name, map[string]any{"role": role})["api_key"].(string)
	if !ok {
		m.tb.Fatalf("create %s: no api_key", name)
	}
	return key
}

func (m *bench) tick() {
	m.tb.Helper()
	if _, err := m.open.ticker.Tick(m.tb.Context()); err != nil {
		m.tb.Fatalf("tick: %v", err)
	}
}

// populate makes n keys of a role that rotates by itself, so that all of them
// are in the due index, over about five days of minutes.
func (m *bench) populate(n int) {
	m.tb.Helper()
	m.write("roles/partner", map[string]any{"rotation_period": "720h", "rotation_jitter": 20, "scopes": "read,trade"})
	m.write("roles/manual", map[string]any{"scopes": "read,trade"})
	m.write("roles/hourly", map[string]any{"rotation_period": "1h", "overlap_period": "10m"})
	var next atomic.Int64
	var makers sync.WaitGroup
	for range 4 {
		makers.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if _, err := m.try(logical.UpdateOperation, fmt.Sprintf("keys/client-%06d", i), map[string]any{"role": "partner"}); err != nil {
					m.tb.Errorf("create key %d: %v", i, err)
					return
				}
			}
		})
	}
	makers.Wait()
	if m.tb.Failed() {
		m.tb.FailNow()
	}
}

// budget is what an operation may cost at most; -1 is no limit.
type budget struct{ all, reads, writes int }

func writes(n int) budget { return budget{-1, -1, n} }

var nothing = budget{0, 0, 0}

func (b budget) String() string {
	switch {
	case b == nothing:
		return "0 reads, 0 writes"
	case b.all >= 0:
		return fmt.Sprintf("%d operations", b.all)
	case b.writes >= 0 && b.reads >= 0:
		return fmt.Sprintf("%d reads, %d writes", b.reads, b.writes)
	}
	return fmt.Sprintf("%d writes", b.writes)
}

func (b budget) holds(c storetest.Counts) bool {
	within := func(n, limit int) bool { return limit < 0 || n <= limit }
	return within(c.All(), b.all) && within(c.Reads(), b.reads) && within(c.Writes(), b.writes)
}

// cost is one line of the table.
type cost struct {
	operation string
	counts    storetest.Counts
	budget    budget
}

// costs counts what each operation costs a mount with n keys.
func costs(tb testing.TB, n int) []cost {
	c := clock.NewManual(time.Date(2030, 1, 1, 0, 0, 30, 0, time.UTC))
	m := openBench(tb, storetest.NewMemory(), c)
	m.populate(n)
	m.Cleanup(tb.Context())

	var table []cost
	add := func(operation string, b budget, counts storetest.Counts) {
		table = append(table, cost{operation, counts, b})
	}
	m = openBench(tb, m.memory, c)
	add("start-up", budget{6, -1, -1}, m.storage.Total())
	worst := func(operation string, b budget, prepare func(i int), do func(i int)) {
		var most storetest.Counts
		for i := range samples {
			if prepare != nil {
				prepare(i)
			}
			m.storage.Reset()
			do(i)
			if counts := m.storage.Total(); counts.All() > most.All() || counts.Writes() > most.Writes() {
				most = counts
			}
		}
		add(operation, b, most)
	}

	c.Advance(20 * time.Second)
	m.tick() // the hour in which the process started
	worst("tick with nothing due", nothing, func(int) { c.Advance(time.Minute) }, func(int) { m.tick() })
	worst("tick with nothing due, in a new hour", budget{-1, 1, 0}, func(int) { c.Advance(time.Hour) }, func(int) { m.tick() })

	m.create("alone", "hourly")
	worst("tick that rotates a key, its index and markers included", writes(5), func(int) {
		for m.tick(); !m.rotatesNext("alone"); m.tick() {
			c.Advance(time.Minute)
		}
		c.Advance(time.Minute)
	}, func(int) { m.tick() })

	worst("create", writes(5), func(int) { c.Advance(7 * time.Minute) }, func(i int) { m.create(fmt.Sprintf("new-%d", i), "partner") })
	worst("create, role without automatic rotation", writes(5), nil, func(i int) { m.create(fmt.Sprintf("manual-%d", i), "manual") })
	imported := func(i int) map[string]any {
		return map[string]any{"role": "partner", "import_key": fmt.Sprintf("legacy-key-of-a-client-%08d", i)}
	}
	// The first one also notes in the mount's own entry that there are imports.
	c.Advance(7 * time.Minute)
	m.storage.Reset()
	m.write("keys/first-import", imported(samples))
	add("import, the first of a mount", writes(7), m.storage.Total())
	worst("import", writes(6), func(int) { c.Advance(7 * time.Minute) }, func(i int) { m.write(fmt.Sprintf("keys/imported-%d", i), imported(i)) })
	batch := make([]any, 100)
	for i := range batch {
		item := imported(1000 + i)
		item["name"] = fmt.Sprintf("batch-%d", i)
		batch[i] = item
	}
	m.storage.Reset()
	m.write("import", map[string]any{"batch_input": batch})
	add("import, a batch of 100", writes(600), m.storage.Total())

	worst("rotate", writes(5), func(int) { c.Advance(7 * time.Minute) }, func(i int) { m.write(fmt.Sprintf("rotate/client-%06d", i+1), nil) })
	worst("rotate, with a request_id", writes(5), func(int) { c.Advance(7 * time.Minute) }, func(i int) {
		m.write(fmt.Sprintf("rotate/client-%06d", 100+i), map[string]any{"request_id": "r"})
	})
	worst("rotate, role without automatic rotation", writes(5), func(int) { c.Advance(7 * time.Minute) }, func(i int) { m.write(fmt.Sprintf("rotate/manual-%d", i), nil) })

	key, other := m.create("checked", "partner"), m.create("other", "partner")
	m.verify(other)
	m.tell()
	// The first use of a version is noted in the history of its key, and that
	// of a version from a source before it is answered.
	m.storage.Reset()
	m.verify(key)
	m.tell()
	add("verify, the first of a version", writes(2), m.storage.Total())
	worst("verify, cached", nothing, nil, func(int) { m.verify(key) })
	items := make([]any, 100)
	for i := range items {
		items[i] = map[string]any{"api_key": key}
	}
	worst("verify, a batch of 100, cached", nothing, nil, func(int) { m.write("verify", map[string]any{"batch_input": items}) })
	m.read("static-creds/checked")
	worst("static-creds, cached", nothing, nil, func(int) { m.read("static-creds/checked") })
	fresh := openBench(tb, m.memory, c)
	fresh.open.keeper.Book.Recover(tb.Context()) // as the first tick does
	fresh.storage.Reset()
	fresh.verify(key)
	// The key and its role; the role once more where the check of the key's
	// filing, in the background, asks for it at the same moment.
	// And, once after a start, which pages of use there are, and, once for each
	// page, the page.
	add("verify, the first after a start", budget{-1, 5, 0}, fresh.storage.Total())
	fresh.storage.Reset()
	fresh.verify(other)
	add("verify, the first of a key after a start", budget{-1, 3, 0}, fresh.storage.Total())
	return table
}

// rotatesNext tells whether a key is to be rotated within a minute.
func (m *bench) rotatesNext(name string) bool {
	m.tb.Helper()
	next, ok := m.read("keys/" + name)["next_vault_rotation"].(string)
	if !ok {
		m.tb.Fatalf("key %s does not rotate", name)
	}
	at, err := time.Parse(time.RFC3339Nano, next)
	if err != nil {
		m.tb.Fatal(err)
	}
	return at.Sub(m.clock.Now()) < time.Minute
}

// writeCosts writes the table and returns how many lines are over budget.
func writeCosts(n int, table []cost) (text string, over int) {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "Storage operations at %d keys, the worst of %d\t\t\t\t\t\n", n, samples)
	_, _ = fmt.Fprintln(w, "operation\treads\twrites\tlists\tbudget\tok")
	for _, c := range table {
		ok := "ok"
		if !c.budget.holds(c.counts) {
			ok = "OVER"
			over++
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", c.operation, c.counts.Get, c.counts.Writes(), c.counts.List, c.budget, ok)
	}
	_ = w.Flush()
	var lines []string
	for l := range strings.Lines(out.String()) {
		lines = append(lines, strings.TrimRight(l, " \n"))
	}
	return strings.Join(lines, "\n"), over
}

func TestOperationCountsStayWithinBudget(t *testing.T) {
	n := manyKeys
	if testing.Short() || raceDetector {
		n = 2_000 // 100,000 take a minute there
	}
	text, over := writeCosts(n, costs(t, n))
	t.Log("\n" + text)
	if over > 0 {
		t.Errorf("%d operations are over budget:\n%s", over, text)
	}
}

var printCosts sync.Once

// BenchmarkOperationCounts prints the table of operation counts.
func BenchmarkOperationCounts(b *testing.B) {
	printCosts.Do(func() {
		text, over := writeCosts(manyKeys, costs(b, manyKeys))
		_, _ = fmt.Fprintf(os.Stdout, "\n%s\n", text)
		if over > 0 {
			b.Errorf("%d operations are over budget", over)
		}
	})
	b.ReportMetric(0, "ns/op")
}

// newSmallBench is an engine with a hundred keys, and the token of one that
// is in the middle of a rollover.
func newSmallBench(b *testing.B) (*bench, string) {
	b.Helper()
	m := openBench(b, storetest.NewMemory(), clock.NewManual(time.Date(2030, 1, 1, 0, 0, 30, 0, time.UTC)))
	m.populate(100)
	key, other := m.create("checked", "partner"), m.create("other", "partner")
	m.verify(other)
	m.tell()
	m.write("rotate/checked", nil)
	return m, key
}

// arrived is data as a plugin gets them, decoded from JSON.
func arrived(b *testing.B, data map[string]any) map[string]any {
	b.Helper()
	text, err := json.Marshal(data)
	if err != nil {
		b.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		b.Fatal(err)
	}
	return out
}

func BenchmarkVerify(b *testing.B) {
	m, key := newSmallBench(b)
	data := arrived(b, map[string]any{"api_key": key, "scopes": []string{"read"}, "source": "eu-1"})
	b.ReportAllocs()
	for b.Loop() {
		m.write("verify", data)
	}
}

func BenchmarkVerifyParallel(b *testing.B) {
	m, key := newSmallBench(b)
	data := arrived(b, map[string]any{"api_key": key, "scopes": []string{"read"}, "source": "eu-1"})
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := m.try(logical.UpdateOperation, "verify", data); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkVerifyBatch checks 100 keys in each operation.
func BenchmarkVerifyBatch(b *testing.B) {
	m, key := newSmallBench(b)
	items := make([]any, 100)
	for i := range items {
		items[i] = map[string]any{"api_key": key, "source": "eu-1"}
	}
	data := arrived(b, map[string]any{"batch_input": items})
	b.ReportAllocs()
	for b.Loop() {
		m.write("verify", data)
	}
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
}

// BenchmarkInfo is the least that a request to the engine costs.
func BenchmarkInfo(b *testing.B) {
	m, _ := newSmallBench(b)
	b.ReportAllocs()
	for b.Loop() {
		m.read("info")
	}
}

// BenchmarkRotate rotates a key every other day, so that it has as many
// versions as a key of some age.
func BenchmarkRotate(b *testing.B) {
	m, _ := newSmallBench(b)
	m.create("rotated", "manual")
	b.ReportAllocs()
	for b.Loop() {
		m.clock.Advance(48 * time.Hour)
		m.write("rotate/rotated", nil)
	}
}

func BenchmarkCreate(b *testing.B) {
	m, _ := newSmallBench(b)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		m.create(fmt.Sprintf("created-%d", i), "partner")
	}
}
