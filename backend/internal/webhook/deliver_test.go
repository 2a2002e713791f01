// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// share is a number in [0, 1) that is fixed by what it is made of.
func share(of ...any) float64 {
	sum := sha256.Sum256(fmt.Append(nil, of...))
	return float64(sum[0]) / 256
}

// flaky refuses the given part of all requests, in all the ways there are.
func flaky(part float64) func(int, request, http.ResponseWriter, *http.Request) {
	return func(n int, q request, w http.ResponseWriter, r *http.Request) {
		if share(q.id, n) >= part {
			return
		}
		// A receiver that fails may have taken the event all the same.
		switch n % 4 {
		case 0:
			w.WriteHeader(http.StatusInternalServerError)
		case 1:
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		default:
			panic(http.ErrAbortHandler)
		}
	}
}

func keysAndEvents(keys, count int) ([]string, []Event) {
	var names []string
	var events []Event
	for i := range keys {
		names = append(names, fmt.Sprintf("k%d", i))
	}
	for seq := range count {
		for _, key := range names {
			events = append(events, event(key, uint64(seq)+1))
		}
	}
	return names, events
}

func TestEveryEventReachesAFlakyReceiverInOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, flaky(0.3))
	h := r.hook("ops", rc.URL)
	keys, events := keysAndEvents(25, 6)
	r.enqueue(events...)
	r.settle(1000 * time.Hour)
	if err := checkInOrder(rc.firsts(), keys, 6); err != nil {
		t.Error(err)
	}
	if rc.over != "" {
		t.Errorf("two events of %s were on their way at once", rc.over)
	}
	for _, q := range rc.requests() {
		if err := q.verify(h.Secrets[0].Value); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.status("ops"); s.Pending != 0 || s.Hook.Failed != 0 || s.Hook.Dropped != 0 || s.Delivered != uint64(len(events)) || len(r.memory.Paths("outbox/")) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestKeysDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := make(chan struct{})
	rc := newReceiver(t, r.clock, func(_ int, q request, _ http.ResponseWriter, _ *http.Request) {
		if strings.HasPrefix(q.id, "slow_") {
			<-release
		}
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("slow", 1), event("slow", 2))
	q := r.queue("ops")
	for i := range 20 {
		r.enqueue(event(fmt.Sprintf("k%d", i), 1))
	}
	q.mu.Lock()
	for q.delivered < 20 {
		q.changed.Wait()
	}
	q.mu.Unlock()
	if ids := rc.firsts(); slices.Contains(ids, "slow_2") {
		t.Error("the second event of the slow key overtook the first")
	}
	close(release)
	r.quiet()
	if ids := rc.firsts(); len(ids) != 22 || slices.Index(ids, "slow_1") > slices.Index(ids, "slow_2") {
		t.Errorf("%v", ids)
	}
}

func TestParallelIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var open, most atomic.Int32
	rc := newReceiver(t, r.clock, func(int, request, http.ResponseWriter, *http.Request) {
		n := open.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		open.Add(-1)
	})
	r.hook("ops", rc.URL)
	_, events := keysAndEvents(200, 1)
	r.enqueue(events...)
	r.quiet()
	if most.Load() > defaultParallel || len(rc.firsts()) != 200 {
		t.Errorf("%d at once, %d events", most.Load(), len(rc.firsts()))
	}
}

func TestRetriesFollowTheSchedule(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, status(500))
	r.hook("ops", rc.URL)
	counting := storetest.NewCounting(r.memory)
	r.Deliverer.storage = entries{counting}
	r.enqueue(event("k1", 1))
	r.settle(1000 * time.Hour)
	got := rc.requests()
	if len(got) != 10 {
		t.Fatalf("%d attempts", len(got))
	}
	for i, delay := range schedule {
		if d := got[i+1].at.Sub(got[i].at); d < delay || d > delay+delay/5 {
			t.Errorf("retry %d came after %s", i+1, d)
		}
	}
	if got[1].at.Sub(got[0].at) == schedule[0] && got[2].at.Sub(got[1].at) == schedule[1] {
		t.Error("there is no jitter")
	}
	for _, q := range got {
		if q.id != "k1_1" || q.timestamp != fmt.Sprint(q.at.Unix()) {
			t.Errorf("%s at %s", q.id, q.timestamp)
		}
	}
	s := r.status("ops")
	if s.Pending != 0 || s.Hook.Failed != 1 || s.Hook.Exhausted != 1 || !s.Hook.Enabled || s.Hook.FailingSince.IsZero() || len(s.Log) != 10 || s.Log[0].Number != 10 {
		t.Errorf("%+v", s)
	}
	// One for the event, one for each retry but the first, and the end.
	if c := counting.Under("outbox/"); c.Put != 9 || c.Delete != 1 || c.Get != 10 {
		t.Errorf("it cost %s", c)
	}
	if c := counting.Under("webhook/"); c.Put > 2 {
		t.Errorf("the hook was written %d times", c.Put)
	}
}

func TestRepeatedFailureDisables(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var up atomic.Bool
	rc := newReceiver(t, r.clock, func(_ int, _ request, w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("k1", 1), event("k1", 2), event("k1", 3), event("k1", 4), event("k2", 1))
	r.settle(3000 * time.Hour)
	s := r.status("ops")
	if s.Hook.Enabled || !strings.Contains(s.Hook.DisabledReason, "status 502") || s.Hook.DisabledTime.IsZero() || s.Pending == 0 {
		t.Fatalf("%+v, %d wait", s.Hook, s.Pending)
	}
	// The next process knows it.
	next := rigOn(t, r.memory.Clone(), r.clock)
	if h, err := next.Hook(t.Context(), "ops"); err != nil || h.Enabled || h.DisabledReason != s.Hook.DisabledReason || h.Failed != s.Hook.Failed {
		t.Errorf("%+v, %v", h, err)
	}
	before := len(rc.requests())
	r.enqueue(event("k3", 1))
	r.quiet()
	if len(rc.requests()) != before {
		t.Error("a disabled hook was sent something")
	}
	waited := s.Pending + 1
	up.Store(true)
	r.update("ops", func(h *Hook) { h.Enabled = true })
	r.quiet()
	s = r.status("ops")
	if s.Pending != 0 || len(rc.requests())-before != waited || !s.Hook.Enabled || s.Hook.DisabledReason != "" || !s.Hook.FailingSince.IsZero() {
		t.Errorf("enabled again: %d wait, %d came, %+v", s.Pending, len(rc.requests())-before, s.Hook)
	}
}

func TestFiveDaysWithoutSuccessDisable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, status(500))
	r.hook("ops", rc.URL)
	// So many keys that no event runs out of retries in this time.
	_, events := keysAndEvents(2000, 1)
	r.enqueue(events...)
	for r.status("ops").Hook.Enabled && r.clock.Elapsed() < 300*time.Hour {
		r.settle(10 * time.Hour)
	}
	s := r.status("ops")
	if s.Hook.Enabled || r.clock.Elapsed() < disableAfterTime || s.Hook.Failed != 0 || s.Pending != 2000 || !strings.HasPrefix(s.Hook.DisabledReason, "no delivery succeeded since 2026-03-01") {
		t.Errorf("after %s: %+v, %d wait", r.clock.Elapsed(), s.Hook, s.Pending)
	}
	if n := len(rc.requests()); n > 2200 {
		t.Errorf("%d requests were made to a receiver that is down", n)
	}
}

func TestGoneDisables(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var gone atomic.Bool
	gone.Store(true)
	rc := newReceiver(t, r.clock, func(_ int, _ request, w http.ResponseWriter, _ *http.Request) {
		if gone.Load() {
			w.WriteHeader(http.StatusGone)
		}
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("k1", 1), event("k1", 2))
	r.settle(1000 * time.Hour)
	s := r.status("ops")
	if s.Hook.Enabled || s.Hook.DisabledReason != goneReason || s.Pending != 2 || len(rc.requests()) != 1 {
		t.Errorf("%+v, %d wait, %d requests", s.Hook, s.Pending, len(rc.requests()))
	}
	// Also where the process ends and another one enables it.
	gone.Store(false)
	next := rigOn(t, r.memory.Clone(), r.clock)
	next.Start()
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.quiet()
	if len(rc.requests()) != 1 {
		t.Error("a disabled hook was sent something")
	}
	next.update("ops", func(h *Hook) { h.Enabled = true })
	next.quiet()
	if err := checkInOrder(rc.firsts(), []string{"k1"}, 2); err != nil {
		t.Error(err)
	}
}

func TestRetryAfterHoldsUpTheHook(t *testing.T) {
	t.Parallel()
	for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		for header, most := range map[string]time.Duration{"600": 600 * time.Second, "999999999": maxHold} {
			r := newRig(t)
			rc := newReceiver(t, r.clock, func(n int, _ request, w http.ResponseWriter, _ *http.Request) {
				if n == 1 {
					w.Header().Set("Retry-After", header)
					w.WriteHeader(code)
				}
			})
			r.hook("ops", rc.URL)
			r.enqueue(event("k1", 1))
			r.quiet()
			r.enqueue(event("k2", 1))
			r.settle(100 * time.Hour)
			got := rc.requests()
			if len(got) != 3 || got[1].id != "k2_1" && got[2].id != "k2_1" {
				t.Fatalf("%d requests", len(got))
			}
			for _, q := range got[1:] {
				wait := most
				if q.id == "k1_1" && most == maxHold {
					wait = maxRetryAfter
				}
				if d := q.at.Sub(start); d != wait {
					t.Errorf("%d with %s: %s came after %s", code, header, q.id, d)
				}
			}
		}
	}
}

func TestAReceiverThatIsDownCostsLittleAndIsFoundAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var up atomic.Bool
	rc := newReceiver(t, r.clock, func(_ int, _ request, w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	r.hook("ops", rc.URL)
	counting := storetest.NewCounting(r.memory)
	r.Deliverer.storage = entries{counting}
	keys, events := keysAndEvents(300, 2)
	r.enqueue(events...)
	counting.Reset()
	r.settle(10 * time.Hour)
	down := len(rc.requests())
	if writes := counting.Total().Writes(); down > 150 || writes > 150 {
		t.Errorf("10 hours of failure cost %d requests and %d writes", down, writes)
	}
	if r.status("ops").Hook.FailingSince.IsZero() {
		t.Error("the hook does not show that it fails")
	}
	up.Store(true)
	at := r.clock.Elapsed()
	r.settle(time.Hour)
	if took := r.clock.Elapsed() - at; took > maxPause+maxPause/5 {
		t.Errorf("it took %s to find it again", took)
	}
	var ids []string
	for _, q := range rc.requests()[down:] {
		ids = append(ids, q.id)
	}
	if err := checkInOrder(ids, keys, 2); err != nil {
		t.Error(err)
	}
	if s := r.status("ops"); s.Pending != 0 || !s.Hook.FailingSince.IsZero() || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

// A receiver that comes back for a moment, again and again, lets events be
// tried early. That does not use up their time.
func TestNoEventIsGivenUpOnEarly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var up atomic.Bool
	rc := newReceiver(t, r.clock, func(_ int, q request, w http.ResponseWriter, _ *http.Request) {
		if !up.Load() && !strings.HasPrefix(q.id, "good_") {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	r.hook("ops", rc.URL)
	keys, events := keysAndEvents(6, 1)
	r.enqueue(events...)
	// The breaker opens and closes about every half an hour.
	for seq := uint64(1); r.clock.Elapsed() < 75*time.Hour; seq++ {
		r.settle(30 * time.Minute)
		r.clock.Advance(time.Minute)
		r.enqueue(event("good", seq))
		r.settle(time.Minute)
		r.clock.Advance(20 * time.Minute)
	}
	tries := 0
	for _, q := range rc.requests() {
		if q.id == "k0_1" {
			tries++
		}
	}
	if s := r.status("ops"); s.Hook.Failed != 0 || s.Pending != 6 || tries < 12 {
		t.Fatalf("%+v, %d wait, %d attempts", s.Hook, s.Pending, tries)
	}
	up.Store(true)
	before := len(rc.requests())
	r.settle(40 * time.Hour)
	var ids []string
	for _, q := range rc.requests()[before:] {
		ids = append(ids, q.id)
	}
	if err := checkInOrder(ids, keys, 1); err != nil {
		t.Error(err)
	}
}

// One event that a receiver cannot take delays the others of its key only.
func TestAPoisonedEventDelaysItsKeyOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, func(_ int, q request, w http.ResponseWriter, _ *http.Request) {
		if q.id == "bad_1" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("bad", 1), event("bad", 2))
	for seq := uint64(1); seq <= 300; seq++ {
		r.enqueue(event("good", seq))
		r.settle(time.Minute)
		r.clock.Advance(time.Hour)
	}
	s := r.status("ops")
	if !s.Hook.Enabled || s.Pending != 0 || s.Hook.Failed != 1 || s.Hook.Exhausted != 0 {
		t.Errorf("%+v, %d wait", s.Hook, s.Pending)
	}
	if ids := rc.firsts(); len(ids) != 302 || ids[slices.Index(ids, "bad_2")-1] == "bad_1" {
		t.Errorf("%d events", len(ids))
	}
}

func TestEnqueueIsIdempotent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := make(chan struct{})
	rc := newReceiver(t, r.clock, func(int, request, http.ResponseWriter, *http.Request) { <-release })
	r.hook("ops", rc.URL)
	r.hook("deaf", rc.URL, func(h *Hook) { h.Events = []string{"incident.*"} })
	counting := storetest.NewCounting(r.memory)
	r.Deliverer.storage = entries{counting}
	for range 3 {
		r.enqueue(event("k1", 1), event("k1", 2))
	}
	if c := counting.Total(); c.Put != 2 || c.List != 0 {
		t.Errorf("waiting, it cost %s", c)
	}
	close(release)
	r.quiet()
	counting.Reset()
	r.enqueue(event("k1", 1), event("k1", 2))
	r.quiet()
	if c := counting.Total(); c.All() != 0 || len(rc.requests()) != 2 {
		t.Errorf("delivered, it cost %s; %d requests", c, len(rc.requests()))
	}
}

func TestBadEventsDoNotStopOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, nil)
	r.hook("ops", rc.URL)
	for _, change := range []func(*Event){
		func(e *Event) { e.ID = "" },
		func(e *Event) { e.ID = "../x.1" },
		func(e *Event) { e.ID = "k1.2" },
		func(e *Event) { e.ID = "k1.01" },
		func(e *Event) { e.ID = "a.b.1" },
		func(e *Event) { e.Type = "boom" },
	} {
		e := event("k1", 1)
		change(&e)
		if err := r.Enqueue(t.Context(), e, event("k2", 1)); !errors.Is(err, ErrBadEvent) {
			t.Errorf("%q of type %q: %v", e.ID, e.Type, err)
		}
	}
	// A failure of storage is not mistaken for one that does not pass.
	r.quiet()
	r.faulty.Inject(storetest.Fault{At: 1, Only: func(op storetest.Op) bool { return op.Kind == storetest.Put && strings.HasPrefix(op.Path, "outbox/") }})
	if err := r.Enqueue(t.Context(), Event{ID: "bad"}, event("k5", 1)); errors.Is(err, ErrBadEvent) || !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("both failures: %v", err)
	}
	r.faulty.Heal()
	last := event("k3", math.MaxUint64)
	last.Data = map[string]any{"reason": long(maxData), "key_id": "somebody else"}
	odd := event("k4", 1)
	odd.Data = map[string]any{"ratio": math.NaN()}
	r.enqueue(last, odd)
	r.quiet()
	if ids := rc.firsts(); len(ids) != 3 {
		t.Errorf("%v", ids)
	}
	for _, q := range rc.requests() {
		if key, _, _ := strings.Cut(q.id, "_"); q.message.Data["key_id"] != key || (key != "k2") != (q.message.Data["truncated"] == true) {
			t.Errorf("%s: %.200s", q.id, q.body)
		}
	}
}

func TestOutboxesAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.KeptEnabled, o.KeptDisabled = 20, 10 })
	rc := newReceiver(t, r.clock, status(500))
	r.hook("up", rc.URL)
	r.hook("off", rc.URL, func(h *Hook) { h.Enabled = false })
	_, events := keysAndEvents(30, 1)
	r.enqueue(events...)
	r.quiet()
	for name, kept := range map[string]int{"up": 20, "off": 10} {
		s := r.status(name)
		if s.Pending != kept || s.Hook.Dropped != uint64(30-kept) || len(r.memory.Paths("outbox/"+name+"/")) != kept {
			t.Errorf("%s keeps %d and drops %d", name, s.Pending, s.Hook.Dropped)
		}
	}
	if h := r.status("off").Hook; h.DisabledReason == "" || h.DisabledTime.IsZero() {
		t.Errorf("%+v", h)
	}
	// Recover stores the count.
	if err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := rigOn(t, r.memory.Clone(), r.clock)
	if h, err := next.Hook(t.Context(), "off"); err != nil || h.Dropped != 20 {
		t.Errorf("%+v, %v", h, err)
	}
	if n := len(r.status("up").Log); n > logSize {
		t.Errorf("the log holds %d", n)
	}
}

func TestTheLogKeepsTheLastHundred(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, nil)
	r.hook("ops", rc.URL)
	for seq := uint64(1); seq <= 250; seq++ {
		r.enqueue(event("k1", seq))
	}
	r.quiet()
	log := r.status("ops").Log
	if len(log) != logSize || log[0].EventID != "k1_250" || log[99].EventID != "k1_151" {
		t.Errorf("%d attempts, the newest %s", len(log), log[0].EventID)
	}
}

func TestLoadingCostsByHooksNotKeys(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	first := rigOn(t, memory, clock.NewManual(start)) // it never starts
	for _, name := range []string{"a", "b", "c"} {
		first.hook(name, "http://127.0.0.1:1/")
	}
	_, events := keysAndEvents(500, 2)
	first.enqueue(events...)
	counting := storetest.NewCounting(memory)
	next := New(Options{Storage: entries{counting}, Clock: first.clock, Rand: first.rand, Logger: first.logger})
	if c := counting.Total(); c.All() != 0 {
		t.Errorf("New cost %s", c)
	}
	for range 3 {
		if err := next.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if c := counting.Total(); c.List != 4 || c.Get != 3 || c.Writes() != 0 {
		t.Errorf("loading cost %s", c)
	}
	for _, s := range next.Statuses() {
		if s.Pending != 1000 {
			t.Errorf("%s: %d wait", s.Name, s.Pending)
		}
	}
	if n, err := next.Outstanding(t.Context(), "k7"); err != nil || n != 6 {
		t.Errorf("%d wait for k7, %v", n, err)
	}
	for _, op := range counting.Ops() {
		if op.Kind == storetest.List && op.Path == "outbox/" {
			t.Error("all outboxes were listed at once")
		}
	}
}

func TestDeletingAHookLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, status(500))
	r.hook("ops", rc.URL)
	r.hook("big", rc.URL, func(h *Hook) { h.Enabled = false })
	r.enqueue(event("k1", 1), event("k1", 2), event("k2", 1))
	r.quiet()
	for range 2 {
		if err := r.Delete(t.Context(), "ops"); err != nil {
			t.Fatal(err)
		}
	}
	if left := append(r.memory.Paths("outbox/ops/"), r.memory.Paths("webhook/")...); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if h, err := r.Hook(t.Context(), "ops"); h != nil || err != nil {
		t.Errorf("%v, %v", h, err)
	}
	// A new one of its name begins anew.
	before := len(rc.requests())
	r.hook("ops", rc.URL)
	r.settle(time.Hour)
	if r.status("ops").Pending != 0 || len(rc.requests()) != before {
		t.Error("the new hook was sent events of the old one")
	}
	// One with a full outbox is gone at once, and emptied later.
	_, events := keysAndEvents(1199, 1)
	r.enqueue(events...) // two of which wait already
	if err := r.Delete(t.Context(), "big"); err != nil {
		t.Fatal(err)
	}
	if names, err := r.Names(t.Context()); err != nil || !slices.Equal(names, []string{"ops"}) {
		t.Errorf("%v, %v", names, err)
	}
	if n := len(r.memory.Paths("outbox/big/")); n != 700 {
		t.Errorf("%d events are left", n)
	}
	var refusal *Refusal
	if _, err := r.Update(t.Context(), "big", func(h *Hook) error { h.URL = rc.URL; return nil }); !errors.As(err, &refusal) {
		t.Errorf("made again too early: %v", err)
	}
	if n := len(r.memory.Paths("outbox/big/")); n != 200 {
		t.Errorf("%d events are left after another try", n)
	}
	next := rigOn(t, r.memory.Clone(), r.clock)
	for _, one := range []*rig{next, r} {
		if err := one.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := append(one.memory.Paths("outbox/big/"), one.memory.Paths("webhook/")...); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
	}
	r.hook("big", rc.URL)
}

func TestADeletedHookIsNotWrittenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	there, release := make(chan struct{}), make(chan struct{})
	rc := newReceiver(t, r.clock, func(n int, _ request, w http.ResponseWriter, _ *http.Request) {
		if n == 2 {
			close(there)
			<-release
		}
		w.WriteHeader(http.StatusGone - n%2) // 409, then 410
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("k1", 1))
	r.quiet()
	r.clock.Advance(schedule[0] * 2)
	<-there
	if err := r.Delete(t.Context(), "ops"); err != nil {
		t.Fatal(err)
	}
	close(release)
	r.enqueue(event("k1", 2))
	r.halt()
	if r.memory.Len() != 0 {
		t.Errorf("left: %v", r.memory.Paths(""))
	}
}

func TestUpdatesThatFailChangeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var refusal *Refusal
	if _, err := r.Update(t.Context(), "new", func(h *Hook) error { h.URL = "file:///x"; return nil }); !errors.As(err, &refusal) {
		t.Error(err)
	}
	if _, err := r.Update(t.Context(), "../new", func(*Hook) error { return nil }); !errors.As(err, &refusal) {
		t.Error(err)
	}
	r.hook("ops", "http://127.0.0.1:1/")
	mine := errors.New("mine")
	if _, err := r.Update(t.Context(), "ops", func(h *Hook) error { h.URL, h.Events[0] = "x", "y"; return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
	r.faulty.Inject(storetest.Fault{At: 1})
	if _, err := r.Update(t.Context(), "ops", func(h *Hook) error { h.URL = "http://127.0.0.1:2/"; return nil }); !errors.Is(err, storetest.ErrInjected) {
		t.Error(err)
	}
	r.faulty.Heal()
	if h, err := r.Hook(t.Context(), "ops"); err != nil || h.URL != "http://127.0.0.1:1/" || h.Events[0] != "*" {
		t.Errorf("%+v, %v", h, err)
	}
	if names, err := r.Names(t.Context()); err != nil || !slices.Equal(names, []string{"ops"}) {
		t.Errorf("%v, %v", names, err)
	}
	for i := 1; i < MaxHooks; i++ {
		r.hook(fmt.Sprintf("h%d", i), "http://127.0.0.1:1/")
	}
	if _, err := r.Update(t.Context(), "more", func(h *Hook) error { h.URL = "http://x/"; return nil }); !errors.As(err, &refusal) {
		t.Errorf("one hook too many: %v", err)
	}
}

func TestDamagedEntries(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	first := rigOn(t, memory, clock.NewManual(start))
	rc := newReceiver(t, first.clock, nil)
	first.hook("ops", rc.URL)
	first.hook("torn", rc.URL)
	first.hook("newer", rc.URL)
	first.enqueue(event("k1", 1), event("k1", 2), event("k2", 1), event("k2", 2), event("k3", 1))
	s := entries{memory}
	for path, text := range map[string]string{"torn": `{"schema":1,"secrets":"s3cr3t`, "newer": `{"schema":2}`} {
		if err := s.PutHook(t.Context(), path, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for place, text := range map[string]string{position("k1", 1): `{"schema":1,`, position("k2", 1): `{"schema":2}`, "what": "{}"} {
		if err := s.PutOutbox(t.Context(), "ops", place, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	r := rigOn(t, memory, first.clock)
	r.Start()
	if err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.enqueue(event("k4", 1))
	r.quiet()
	if ids := rc.firsts(); !slices.Equal(slices.Sorted(slices.Values(ids)), []string{"k1_2", "k3_1", "k4_1"}) {
		t.Errorf("%v", ids)
	}
	if s := r.status("ops"); s.Hook.Failed != 1 || s.Pending != 2 {
		t.Errorf("%+v, %d wait", s.Hook, s.Pending)
	}
	for name, says := range map[string]string{"torn": "delete it", "newer": "newer plugin"} {
		if _, err := r.Hook(t.Context(), name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.Update(t.Context(), name, func(*Hook) error { return nil }); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s is overwritten: %v", name, err)
		}
		if s := r.status(name); s.Hook != nil {
			t.Errorf("%s: %+v", name, s)
		}
		if err := r.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if names, err := r.Names(t.Context()); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestClaimsAreDelivered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, func(n int, _ request, w http.ResponseWriter, _ *http.Request) {
		if n < 3 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	r.hook("hand", rc.URL, func(h *Hook) { h.Deliver = DeliverClaim })
	e := event("k1", 1)
	e.Claim = &Offer{Version: 4, Overlap: time.Hour}
	r.enqueue(e, event("k1", 2))
	if err := storetest.Scan(r.memory, claimPrefix+fmt.Sprint(claimDay(start))); err != nil {
		t.Error(err)
	}
	r.settle(time.Hour)
	got := rc.requests()
	if len(got) != 4 {
		t.Fatalf("%d requests", len(got))
	}
	code, ok := got[0].message.Data["claim_code"].(string)
	if !ok || got[1].message.Data["claim_code"] != code || got[2].message.Data["claim_code"] != code || got[2].message.Data["version"] != 1.0 {
		t.Errorf("%s, %s", got[0].body, got[2].body)
	}
	if got[0].message.Data["claim_expires"] != "2026-03-01T13:00:00Z" {
		t.Errorf("%v", got[0].message.Data["claim_expires"])
	}
	if _, there := got[3].message.Data["claim_code"]; there {
		t.Error("an event without an offer carries a code")
	}
	if c, err := r.redeem.Redeem(t.Context(), code); err != nil || c.Version != 4 || c.Hook != "hand" || c.KeyID != "k1" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := storetest.Scan(r.memory, code); err != nil {
		t.Error(err)
	}
	// A hook of the other kind gets none.
	plain := newReceiver(t, r.clock, nil)
	r.hook("plain", plain.URL)
	e.ID, e.Seq = EventID("k1", 3), 3
	r.enqueue(e)
	r.quiet()
	if q := plain.requests()[0]; strings.Contains(string(q.body), "claim") {
		t.Errorf("%s", q.body)
	}
}

func TestStopDoesNotWaitForReceivers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	there := make(chan struct{})
	rc := newReceiver(t, r.clock, func(_ int, _ request, _ http.ResponseWriter, q *http.Request) {
		close(there)
		<-q.Context().Done()
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("k1", 1))
	<-there
	r.Stop() // the clock stands still: it would wait for ever
	if s := r.status("ops"); s.Pending != 1 || s.FailedAttempts != 0 {
		t.Errorf("%+v", s)
	}
	if len(r.memory.Paths("outbox/")) != 1 {
		t.Error("the event is lost")
	}
	r.Stop()
	r.Start() // no more
}

func TestAnInvalidationIsTakenUpWhereNothingRuns(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	c := clock.NewManual(start)
	writer, reader := rigOn(t, memory, c), rigOn(t, memory, c)
	if h, err := reader.Hook(t.Context(), "ops"); h != nil || err != nil {
		t.Fatal(h, err)
	}
	writer.hook("ops", "http://127.0.0.1:1/")
	reader.Forget()
	if h, err := reader.Hook(t.Context(), "ops"); h == nil || err != nil {
		t.Error(h, err)
	}
}

// A set-back clock puts nothing off for longer than the schedule does.
func TestAClockThatIsSetBackDelaysLittle(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, status(500))
	r.hook("ops", rc.URL)
	r.enqueue(event("k1", 1))
	r.settle(time.Hour)
	n := len(rc.requests())
	r.halt()
	r.clock.Leap(-10000 * time.Hour)
	next := rigOn(t, r.memory, r.clock)
	next.Start()
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.settle(maxDelay)
	if len(rc.requests()) == n {
		t.Error("nothing was tried")
	}
}

func TestNothingSecretIsLogged(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.Resolver = &names{} })
	rc := newReceiver(t, r.clock, flaky(0.7))
	h := r.hook("ops", rc.URL+"/in?token=t0ps3cret", func(h *Hook) { h.Deliver = DeliverClaim })
	lost := r.hook("lost", "http://no-such-host.invalid:1/t0ps3cret", func(h *Hook) { h.Deliver = DeliverClaim })
	for i := range 10 {
		e := event(fmt.Sprintf("k%d", i), 1)
		e.Claim = &Offer{Version: 1}
		r.enqueue(e)
	}
	r.settle(400 * time.Hour)
	for at := 1; at < 12; at++ {
		r.faulty.Inject(storetest.Fault{At: at, Rest: true})
		e := event("x", uint64(at))
		e.Claim = &Offer{Version: 1}
		if err := r.Enqueue(t.Context(), e); err != nil && strings.Contains(err.Error(), "t0ps3cret") {
			t.Error(err)
		}
		r.settle(time.Hour)
	}
	r.faulty.Heal()
	r.halt()
	text := r.logged.String()
	if text == "" {
		t.Error("nothing is logged at all")
	}
	for _, secret := range []string{"t0ps3cret", rc.Listener.Addr().String(), "no-such-host", h.Secrets[0].Value[6:], lost.Secrets[0].Value[6:], claimPrefix, "name-of-"} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("the log holds %q: %s", secret, text[max(0, i-100):i+len(secret)])
		}
	}
	for _, s := range r.Statuses() {
		raw, err := json.Marshal(r.status(s.Name).Log)
		if err != nil || strings.Contains(string(raw), "t0ps3cret") || strings.Contains(string(raw), "127.0.0.1") {
			t.Errorf("%s, %v", raw, err)
		}
	}
}
