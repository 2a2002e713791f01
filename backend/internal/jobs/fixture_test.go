// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// fixture is a mount's keys with what works on them.
type fixture struct {
	t      *testing.T
	memory *storetest.Memory
	faulty *storetest.Faulty
	count  *storetest.Counting
	clock  *clock.Manual
	log    *lines
	store  *store.Store
	keeper *lifecycle.Keeper
	ticker *Ticker
	bulk   *Bulk
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	return openFixture(t, storetest.NewMemory(), clock.NewManual(epoch))
}

func openFixture(t *testing.T, memory *storetest.Memory, c *clock.Manual) *fixture {
	t.Helper()
	f := &fixture{t: t, memory: memory, faulty: storetest.NewFaulty(memory), clock: c, log: &lines{}}
	f.count = storetest.NewCounting(f.faulty)
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: f.log})
	s, err := store.Open(t.Context(), f.count, c, rand.Reader, true)
	if err != nil {
		t.Fatal(err)
	}
	f.store = s
	tracker := usage.New(c.Now())
	f.keeper = &lifecycle.Keeper{Store: s, Clock: c, Rand: rand.Reader, Usage: tracker, Book: usage.NewBook(tracker, s.UsagePages(), s.FirstUses(), c, logger), Logger: logger}
	f.keeper.Book.Recover(t.Context())
	f.ticker, f.bulk = NewTicker(f.keeper, logger), NewBulk(f.keeper, logger)
	return f
}

// restart is what a new process finds.
func (f *fixture) restart() *fixture {
	f.t.Helper()
	return openFixture(f.t, f.memory.Clone(), f.clock)
}

func (f *fixture) role(change func(*role.Role)) {
	f.t.Helper()
	r := role.New("r")
	r.RotationPeriod, r.OverlapPeriod = time.Hour, 10*time.Minute
	// Only what changes a key is looked at here, not what is told of it.
	r.NotifyBefore, r.Reminders = new(time.Duration(0)), []int{}
	if change != nil {
		change(r)
	}
	if err := f.store.PutRole(f.t.Context(), r); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) keys(n int) {
	f.t.Helper()
	for i := range n {
		spec := lifecycle.Spec{Name: fmt.Sprintf("k%d", i), Role: "r"}
		if _, err := f.keeper.Create(f.t.Context(), spec, keyring.Cause{Actor: "test"}); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fixture) key(i int) *keyring.Key {
	f.t.Helper()
	k, err := f.store.KeyByName(f.t.Context(), fmt.Sprintf("k%d", i))
	if err != nil || k == nil {
		f.t.Fatalf("key %d: %v, %v", i, k, err)
	}
	return k
}

// rotated counts the keys that have a second version, and fails where one has
// a third.
func (f *fixture) rotated(n int) int {
	f.t.Helper()
	count := 0
	for i := range n {
		switch latest := f.key(i).Latest(); latest {
		case 1:
		case 2:
			count++
		default:
			f.t.Errorf("key %d has version %d", i, latest)
		}
	}
	return count
}

func (f *fixture) tick() Summary {
	f.t.Helper()
	sum, err := f.ticker.Tick(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return sum
}
