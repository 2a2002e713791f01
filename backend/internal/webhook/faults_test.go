// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// engine owes events as the entries of keys do: until Enqueue has accepted
// them.
type engine struct {
	keys []string
	owed map[string][]Event
}

func newEngine(keys, count int) *engine {
	e := &engine{owed: map[string][]Event{}}
	names, events := keysAndEvents(keys, count)
	for _, one := range events {
		if one.Seq == 1 {
			one.Claim = &Offer{Version: 1}
		}
		e.owed[one.KeyID] = append(e.owed[one.KeyID], one)
	}
	e.keys = names
	return e
}

// pay enqueues what is owed and tells whether all was accepted.
func (e *engine) pay(ctx context.Context, d *Deliverer) bool {
	for _, key := range e.keys {
		if len(e.owed[key]) > 0 && d.Enqueue(ctx, e.owed[key]...) == nil {
			delete(e.owed, key)
		}
	}
	return len(e.owed) == 0
}

func forgetful(n int, q request, w http.ResponseWriter, _ *http.Request) {
	switch {
	case share(q.id, n) < 0.2:
		w.WriteHeader(http.StatusInternalServerError)
	case share(q.id, n) < 0.3:
		panic(http.ErrAbortHandler) // it has taken the event
	}
}

// The process ends at any one storage operation, which may have taken effect.
// What it owed, or all of it where the crash came before that was noted, is
// enqueued by the next one. Two hooks are told, one of them in claims.
func TestACrashAtAnyOperationLosesNothing(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("applied %t, enqueued again %t", applied, again), func(t *testing.T) {
				t.Parallel()
				at := 1
				for crashAt(t, at, applied, again) {
					at++
				}
				if at < 20 {
					t.Errorf("only %d operations", at)
				}
			})
		}
	}
}

func crashAt(t *testing.T, at int, applied, again bool) (failed bool) {
	t.Helper()
	r := rigOn(t, storetest.NewMemory(), clock.NewManual(start))
	one, two := newReceiver(t, r.clock, forgetful), newReceiver(t, r.clock, forgetful)
	r.hook("one", one.URL)
	r.hook("two", two.URL, func(h *Hook) { h.Deliver = DeliverClaim })
	r.Start()
	const count = 2
	e := newEngine(2, count)

	r.faulty.Inject(storetest.Fault{At: at, Applied: applied, Rest: true})
	e.pay(t.Context(), r.Deliverer)
	r.settle(time.Hour)
	failed = r.faulty.Failed() > 0
	r.halt()

	next := rigOn(t, r.memory, r.clock)
	next.Start()
	if again {
		e = newEngine(2, count)
	}
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !e.pay(t.Context(), next.Deliverer) {
		t.Fatal("events are still owed")
	}
	next.settle(1000 * time.Hour)
	for name, rc := range map[string]*receiver{"one": one, "two": two} {
		if err := checkInOrder(rc.firsts(), e.keys, count); err != nil {
			t.Errorf("a crash at operation %d: %s: %v", at, name, err)
		}
	}
	if left := next.memory.Paths("outbox/"); len(left) != 0 {
		t.Errorf("a crash at operation %d: left %v", at, left)
	}
	codes := map[any]bool{}
	for _, q := range two.requests() {
		if code := q.message.Data["claim_code"]; code != nil {
			codes[code] = true
		}
	}
	if len(codes) != len(e.keys) {
		t.Errorf("a crash at operation %d: %d codes for %d keys", at, len(codes), len(e.keys))
	}
	return failed
}

// One operation fails, the process lives on.
func TestAFailureOfAnyOperationLosesNothing(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for at := 1; ; at++ {
			r := newRig(t)
			rc := newReceiver(t, r.clock, forgetful)
			r.hook("ops", rc.URL, func(h *Hook) { h.Deliver = DeliverClaim })
			e := newEngine(2, 3)
			r.faulty.Inject(storetest.Fault{At: at, Applied: applied})
			for !e.pay(t.Context(), r.Deliverer) {
				r.quiet()
			}
			r.settle(1000 * time.Hour)
			if err := checkInOrder(rc.firsts(), e.keys, 3); err != nil {
				t.Errorf("failure of operation %d: %v", at, err)
			}
			if left := r.memory.Paths("outbox/"); len(left) != 0 || r.status("ops").Pending != 0 {
				t.Errorf("failure of operation %d: left %v", at, left)
			}
			if r.faulty.Failed() == 0 {
				break
			}
			r.halt()
		}
	}
}

// shaky fails every so manieth operation, half of them after they took effect.
type shaky struct {
	logical.Storage
	every int64
	n     atomic.Int64
}

func (s *shaky) fails() (before, after bool) {
	if s.every == 0 {
		return false, false
	}
	n := s.n.Add(1)
	return n%s.every == 0 && n%(2*s.every) != 0, n%(2*s.every) == 0
}

func (s *shaky) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if before, after := s.fails(); before || after {
		return nil, storetest.ErrInjected
	}
	return s.Storage.Get(ctx, key)
}

func (s *shaky) Put(ctx context.Context, entry *logical.StorageEntry) error {
	before, after := s.fails()
	if before {
		return storetest.ErrInjected
	}
	if err := s.Storage.Put(ctx, entry); err != nil || !after {
		return err
	}
	return storetest.ErrInjected
}

func (s *shaky) Delete(ctx context.Context, key string) error {
	before, after := s.fails()
	if before {
		return storetest.ErrInjected
	}
	if err := s.Storage.Delete(ctx, key); err != nil || !after {
		return err
	}
	return storetest.ErrInjected
}

// Storage, receiver and process all fail, under load from several goroutines:
// each event still arrives exactly once by its id, those of a key in order.
func TestEverythingFailsAtOnce(t *testing.T) {
	t.Parallel()
	memory, c := storetest.NewMemory(), clock.NewManual(start)
	rc := newReceiver(t, c, flaky(0.3))
	rigOn(t, memory, c).hook("ops", rc.URL)
	const keys, count, writers = 24, 5, 4
	e := newEngine(keys, count)
	var mu sync.Mutex
	left := map[string][]Event{}
	for key, events := range e.owed {
		left[key] = events
	}
	for life := 0; life < 20; life++ {
		unsteady := &shaky{Storage: memory, every: 5}
		if life == 19 {
			unsteady.every = 0
		}
		r := rigOn(t, memory, c, func(o *Options) { o.Storage = entries{unsteady} })
		r.Start()
		_ = r.Recover(t.Context())
		var all sync.WaitGroup
		for w := range writers {
			all.Go(func() {
				for i := w; i < keys; i += writers {
					key := e.keys[i]
					mu.Lock()
					owed := left[key]
					mu.Unlock()
					// Some owed events wait for the next life.
					if len(owed) == 0 || life < 19 && share(key, life) < 0.6 {
						continue
					}
					if r.Enqueue(t.Context(), owed...) == nil && (life == 19 || share(key, life, "noted") < 0.5) {
						mu.Lock()
						delete(left, key)
						mu.Unlock()
					}
				}
			})
		}
		all.Wait()
		if life < 19 {
			r.settle(time.Duration(life) * time.Minute)
		} else {
			r.settle(1000 * time.Hour)
		}
		r.halt()
	}
	if len(left) != 0 {
		t.Fatalf("%d keys still owe events", len(left))
	}
	if err := checkInOrder(rc.firsts(), e.keys, count); err != nil {
		t.Error(err)
	}
	if names := memory.Paths("outbox/"); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
	if rc.over != "" {
		t.Errorf("two events of %s were on their way at once", rc.over)
	}
}

// A hook is made, changed, disabled and deleted through a crash at any
// operation: it is there whole, or not at all.
func TestHooksSurviveACrashAtAnyOperation(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for at := 1; ; at++ {
			r := newRig(t)
			rc := newReceiver(t, r.clock, status(http.StatusGone))
			r.faulty.Inject(storetest.Fault{At: at, Applied: applied, Rest: true})
			secret, err := NewSecret(r.rand)
			if err != nil {
				t.Fatal(err)
			}
			_, made := r.Update(t.Context(), "ops", func(h *Hook) error {
				h.URL, h.AllowPrivate = rc.URL, true
				h.SetSecret(secret, start, 0)
				return nil
			})
			told := r.Enqueue(t.Context(), event("k1", 1), event("k1", 2))
			r.settle(time.Hour)
			deleted := r.Delete(t.Context(), "ops")
			failed := r.faulty.Failed() > 0
			r.halt()

			next := rigOn(t, r.memory, r.clock)
			if err := next.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			h, err := next.Hook(t.Context(), "ops")
			switch {
			case err != nil:
				t.Errorf("operation %d: %v", at, err)
			case deleted == nil && made == nil && h != nil:
				t.Errorf("operation %d: the deleted hook is back", at)
			case h != nil && h.Validate() != nil:
				t.Errorf("operation %d: %v", at, h.Validate())
			case h != nil && told == nil && made == nil && len(next.memory.Paths("outbox/")) != 2:
				t.Errorf("operation %d: the hook is there and its outbox is not", at)
			case h == nil && next.memory.Len() != 0:
				t.Errorf("operation %d: left %v", at, next.memory.Paths(""))
			}
			if !failed {
				break
			}
		}
	}
}

// TestLoadingSurvivesAnyFailure: where hooks cannot be listed it is tried again
// by the next caller; a hook that cannot be read is read later. No event is lost.
func TestLoadingSurvivesAnyFailure(t *testing.T) {
	t.Parallel()
	memory, c := storetest.NewMemory(), clock.NewManual(start)
	rc := newReceiver(t, c, nil)
	first := rigOn(t, memory, c)
	first.hook("a", rc.URL)
	first.hook("b", rc.URL)
	first.enqueue(event("k1", 1))
	const loads = 5 // the list of hooks, and of each its entry and the list of its outbox
	rounds := 0
	for at, reached := 1, true; reached; at++ {
		if at > 60 {
			t.Fatal("it never ends without a fault")
		}
		rounds++
		r := rigOn(t, memory.Clone(), c)
		r.Start()
		r.faulty.Inject(storetest.Fault{At: at})
		switch err := r.Enqueue(t.Context(), event("k1", 2)); {
		case err != nil && !errors.Is(err, storetest.ErrInjected), at == 1 && err == nil, at > 1 && at <= loads && err != nil:
			t.Errorf("operation %d: %v", at, err)
		}
		r.enqueue(event("k1", 2))
		// Deliveries have begun, and may be what has failed: then they wait a while.
		for range 10 {
			c.Advance(minReread)
			if err := r.Recover(t.Context()); err != nil {
				t.Errorf("operation %d: %v", at, err)
			}
			r.quiet()
			if len(r.memory.Paths("outbox/")) == 0 {
				break
			}
		}
		if n := len(r.memory.Paths("outbox/")); n != 0 {
			t.Errorf("operation %d: %d wait", at, n)
		}
		reached = r.faulty.Failed() > 0
		r.halt()
	}
	if n := len(rc.requests()); n < rounds*4 || n > rounds*5 { // one may be told again where a failure hits it
		t.Errorf("%d requests in %d rounds", n, rounds)
	}
	if rounds <= loads {
		t.Errorf("only %d operations", rounds-1)
	}
}

// TestAHookThatGoesAwayWhileAnEventIsTaken: a write of it fails just then, and
// the event waits until it is read again.
func TestAHookThatGoesAwayWhileAnEventIsTaken(t *testing.T) {
	t.Parallel()
	r := rigOn(t, storetest.NewMemory(), clock.NewManual(start))
	r.hook("ops", "http://127.0.0.1:1/")
	r.enqueue(event("k1", 1))
	q := r.queue("ops")
	s, _ := q.take()
	q.unsure(storetest.ErrInjected)
	q.attempt(t.Context(), s)(t.Context())
	if n := r.status("ops").Pending; n != 1 || s.index < 0 || q.sending != 0 {
		t.Errorf("%d wait, %d are being sent", n, q.sending)
	}
}
