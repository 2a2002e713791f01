// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// population is a verifier with so many cached keys.
type population struct {
	*verifier.Verifier
	engine *engine
	keys   []string
	// bytes is the memory that each cached key takes.
	bytes float64
}

// populations are built once: a million keys take a while.
var populations = map[int]func() *population{
	1:         sync.OnceValue(func() *population { return populate(1) }),
	1000:      sync.OnceValue(func() *population { return populate(1000) }),
	1_000_000: sync.OnceValue(func() *population { return populate(1_000_000) }),
	100_000:   sync.OnceValue(func() *population { return populate(100_000) }),
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// populate fills a verifier through pages, as a first fill does.
func populate(n int) *population {
	p := &population{engine: newEngine(), keys: make([]string, n)}
	before := heap()
	v := must(verifier.New(verifier.Config{Engine: pages{p.engine, p}, Name: "bench", CacheSize: max(n, 1000), FirstFill: true, PollInterval: 100 * time.Millisecond, ReportInterval: time.Second}))
	p.Verifier = v
	go func() { _ = v.Run(context.Background()) }()
	for start := time.Now(); v.Health().CachedKeys < n; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 3*time.Minute {
			panic(fmt.Sprintf("%d of %d keys are cached: %+v", v.Health().CachedKeys, n, v.Stats()))
		}
	}
	tokens := 0
	for _, k := range p.keys {
		tokens += 64 + len(k) - len(k) + 16
	}
	p.bytes = float64(heap()-before-uint64(tokens)) / float64(n)
	rand.Shuffle(n, func(i, j int) { p.keys[i], p.keys[j] = p.keys[j], p.keys[i] })
	return p
}

// pages is an engine that makes its keys up while it is asked for pages of
// them: a million records twice would not leave memory to measure.
type pages struct {
	*engine
	p *population
}

func (e pages) Lookup(ctx context.Context, r verifier.LookupRequest) (verifier.LookupAnswer, error) {
	if r.Limit == 0 {
		return e.engine.Lookup(ctx, r)
	}
	a := verifier.LookupAnswer{Epoch: e.epochName(), Now: e.now()}
	from, _ := strconv.Atoi(r.After)
	for i := from; i < min(from+r.Limit, len(e.p.keys)); i++ {
		id := benchID(i)
		e.p.keys[i] = benchToken(id)
		a.Records = append(a.Records, &record.Record{
			KeyID: id, Name: "client-" + strconv.Itoa(i), Role: "trading" + id[:0], Enabled: true,
			Scopes: []string{"orders:read", "orders:write"}, Recorded: a.Now,
			Versions: []record.Version{{Number: 1, Digest: token.Sum(e.p.keys[i]), Life: record.Life{State: record.StateActive}}},
		})
	}
	if from+r.Limit < len(e.p.keys) {
		a.Next = strconv.Itoa(from + r.Limit)
	}
	return a, nil
}

var noise = rand.NewChaCha8([32]byte{1})

func benchID(i int) string { return fmt.Sprintf("%012d", i) }

func benchToken(id string) string { return must(token.New(noise, token.Format{}, id)) }

// floor is what SHA-256 of such a token costs in this run, in nanoseconds: the
// least of many rounds, since others use the machine, too.
func floor(apiKey string) float64 {
	text := []byte(apiKey)
	return least(func(n int) {
		for range n {
			digest := sha256.Sum256(text)
			sink = digest[0]
		}
	})
}

var sink byte

const (
	rounds   = 40
	perRound = 2000
)

func least(f func(n int)) float64 {
	best := time.Hour
	for range rounds {
		start := time.Now()
		f(perRound)
		best = min(best, time.Since(start))
	}
	return float64(best) / perRound
}

// hits verifies n keys in turn.
func (p *population) hits(at *int, n int) {
	ctx := context.Background()
	i := *at
	for range n {
		if i++; i >= len(p.keys) {
			i = 0
		}
		r, err := p.Verify(ctx, p.keys[i], verifier.Check{})
		if err != nil || r.Verdict != verifier.Accepted {
			panic(fmt.Sprintf("%s %s %v", r.Verdict, r.Code, err))
		}
	}
	*at = i
}

// warm reads the tokens that are presented next, as whoever took them from
// requests just has.
func (p *population) warm(at, n int) {
	for i := range min(n, len(p.keys)) {
		for _, c := range []byte(p.keys[(at+1+i)%len(p.keys)]) {
			sink ^= c
		}
	}
}

func (p *population) ratio() float64 {
	at := 0
	p.hits(&at, perRound)
	// In turns, so that what else runs hits both alike.
	best, base := time.Hour, time.Hour
	text := []byte(p.keys[0])
	for range rounds {
		start := time.Now()
		for range perRound {
			digest := sha256.Sum256(text)
			sink = digest[0]
		}
		base = min(base, time.Since(start))
		p.warm(at, perRound)
		start = time.Now()
		p.hits(&at, perRound)
		best = min(best, time.Since(start))
	}
	return float64(best) / float64(base)
}

func TestRatio(t *testing.T) {
	for _, n := range []int{100_000} {
		p := populations[n]()
		t.Logf("%d: %.2f, %.0f bytes", n, p.ratio(), p.bytes)
	}
	_ = atomic.Int32{}
}
