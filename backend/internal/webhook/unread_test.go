// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// unreadable fails every operation on these paths.
func unreadable(paths ...string) storetest.Fault {
	return storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool {
		return (op.Kind == storetest.Get || op.Kind == storetest.List) && slices.Contains(paths, op.Path)
	}}
}

// TestAHookThatCannotBeReadHoldsNothingUp: its entry, or its outbox, fails; the
// other hook is told at once, and the one that failed when it can be read, of
// what it wants.
func TestAHookThatCannotBeReadHoldsNothingUp(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"webhook/bad", "outbox/bad/"} {
		t.Run(strings.ReplaceAll(path, "/", " "), func(t *testing.T) {
			t.Parallel()
			memory, c := storetest.NewMemory(), clock.NewManual(start)
			bad, good := newReceiver(t, c, nil), newReceiver(t, c, nil)
			first := rigOn(t, memory, c)
			first.hook("bad", bad.URL, func(h *Hook) { h.Roles = []string{"billing"} })
			first.hook("good", good.URL)
			first.enqueue(event("k0", 1)) // waits already

			r := rigOn(t, memory, c)
			r.Start()
			r.faulty.Inject(unreadable(path))
			other := event("k2", 1)
			other.Role = "shipping"
			r.enqueue(event("k1", 1), event("k1", 2), other)
			r.quiet()
			if got := slices.Sorted(slices.Values(good.firsts())); !slices.Equal(got, []string{"k0_1", "k1_1", "k1_2", "k2_1"}) {
				t.Errorf("the other hook was told %v", got)
			}
			if names, err := r.Names(t.Context()); err != nil || !slices.Equal(names, []string{"bad", "good"}) {
				t.Errorf("%v, %v", names, err)
			}
			if _, err := r.Hook(t.Context(), "bad"); !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("reading it: %v", err)
			}
			if s := r.status("bad"); s.Hook != nil || s.Unreadable == nil {
				t.Errorf("%+v", s)
			}
			if n, err := r.Outstanding(t.Context(), "k1"); err != nil || n != 2 {
				t.Errorf("%d wait, %v", n, err)
			}
			if n := len(bad.requests()); n != 0 {
				t.Errorf("it was told of %d events", n)
			}
			// It is tried again, and costs nothing in between.
			tries := r.faulty.Failed()
			for range 3 {
				if err := r.Recover(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if r.faulty.Failed() != tries {
				t.Error("it is read at each recovery")
			}
			r.faulty.Heal()
			c.Advance(maxReread)
			if err := r.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.quiet()
			if got := slices.Sorted(slices.Values(bad.firsts())); !slices.Equal(got, []string{"k0_1", "k1_1", "k1_2"}) {
				t.Errorf("once it can be read it is told %v", got)
			}
			if left := memory.Paths("outbox/"); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if strings.Count(r.logged.String(), "cannot be read") != 1 {
				t.Errorf("the log: %s", r.logged)
			}
		})
	}
}

// TestWhatOneAsksForIsReadAgainAtOnce by somebody who looks at the hook, writes
// it or deletes it.
func TestWhatOneAsksForIsReadAgainAtOnce(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(*rig) error{
		"read": func(r *rig) error { _, err := r.Hook(r.t.Context(), "ops"); return err },
		"write": func(r *rig) error {
			_, err := r.Update(r.t.Context(), "ops", func(*Hook) error { return nil })
			return err
		},
		"status": func(r *rig) error { s, err := r.Status(r.t.Context(), "ops"); return errors.Join(err, s.Unreadable) },
		"delete": func(r *rig) error { return r.Delete(r.t.Context(), "ops") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory, c := storetest.NewMemory(), clock.NewManual(start)
			rigOn(t, memory, c).hook("ops", "http://127.0.0.1:1/")
			r := rigOn(t, memory, c)
			r.faulty.Inject(unreadable("webhook/ops"))
			r.enqueue(event("k1", 1))
			r.faulty.Heal()
			if err := ask(r); err != nil {
				t.Error(err)
			}
			if s, err := r.Status(t.Context(), "ops"); name == "delete" {
				if !errors.Is(err, ErrNoHook) || memory.Len() != 0 {
					t.Errorf("after the deletion: %v, left %v", err, memory.Paths(""))
				}
			} else if err != nil || s.Hook == nil || s.Pending != 1 {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

// TestAHookOfANewerPluginIsToldLater: what happens under the older plugin waits
// for the newer one, up to the bound of a disabled hook.
func TestAHookOfANewerPluginIsToldLater(t *testing.T) {
	t.Parallel()
	memory, c := storetest.NewMemory(), clock.NewManual(start)
	rc := newReceiver(t, c, nil)
	first := rigOn(t, memory, c)
	first.hook("ops", rc.URL, func(h *Hook) { h.Events = []string{"version.*"} })
	stored, err := entries{memory}.GetHook(t.Context(), "ops")
	if err != nil {
		t.Fatal(err)
	}
	if err := (entries{memory}).PutHook(t.Context(), "ops", []byte(`{"schema":2}`)); err != nil {
		t.Fatal(err)
	}
	old := rigOn(t, memory, c, func(o *Options) { o.KeptDisabled = 3 })
	old.Start()
	unwanted := event("k1", 1)
	unwanted.Type = "key.created"
	old.enqueue(unwanted)
	for seq := uint64(2); seq <= 6; seq++ {
		old.enqueue(event("k1", seq))
	}
	old.settle(time.Hour)
	if n := len(memory.Paths("outbox/ops/")); n != 3 {
		t.Errorf("%d events are kept", n)
	}
	old.halt()
	if err := (entries{memory}).PutHook(t.Context(), "ops", stored); err != nil {
		t.Fatal(err)
	}
	next := rigOn(t, memory, c)
	next.Start()
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	next.quiet()
	if got := rc.firsts(); !slices.Equal(got, []string{"k1_2", "k1_3"}) {
		t.Errorf("it was told %v", got)
	}
	if left := memory.Paths("outbox/"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestADamagedHookKeepsNothing: it has to be made again.
func TestADamagedHookKeepsNothing(t *testing.T) {
	t.Parallel()
	memory, c := storetest.NewMemory(), clock.NewManual(start)
	first := rigOn(t, memory, c)
	first.hook("ops", "http://127.0.0.1:1/")
	if err := (entries{memory}).PutHook(t.Context(), "ops", []byte(`{"schema":1,`)); err != nil {
		t.Fatal(err)
	}
	r := rigOn(t, memory, c)
	r.enqueue(event("k1", 1))
	if left := memory.Paths("outbox/"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestACallerWhoLeavesSaysNothingOfStorage: hooks whose reading was given up
// are read by the next one.
func TestACallerWhoLeavesSaysNothingOfStorage(t *testing.T) {
	t.Parallel()
	memory, c := storetest.NewMemory(), clock.NewManual(start)
	rigOn(t, memory, c).hook("ops", "http://127.0.0.1:1/")
	r := rigOn(t, memory, c)
	ctx, leave := context.WithCancel(t.Context())
	r.faulty.Before(func(op storetest.Op) {
		if op.Path == "webhook/ops" {
			leave()
		}
	})
	r.faulty.Inject(unreadable("webhook/ops"))
	if err := r.Enqueue(ctx, event("k1", 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	r.faulty.Heal()
	r.faulty.Before(nil)
	if h, err := r.Hook(t.Context(), "ops"); h == nil || err != nil {
		t.Errorf("%v, %v", h, err)
	}
	if strings.Contains(r.logged.String(), "cannot be read") {
		t.Errorf("the log: %s", r.logged)
	}
}

// TestAnOutboxEntryThatCannotBeReadHoldsUpItsKeyOnly and is given up on after
// the time of the schedule.
func TestAnOutboxEntryThatCannotBeReadHoldsUpItsKeyOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, nil)
	r.hook("ops", rc.URL)
	r.faulty.Inject(unreadable("outbox/ops/" + position("bad", 1)))
	r.enqueue(event("bad", 1), event("bad", 2))
	const others = 200
	for i := range others {
		r.enqueue(event(fmt.Sprintf("k%d", i), 1))
		r.settle(time.Second)
		r.clock.Advance(time.Minute)
	}
	r.settle(2 * time.Minute)
	if n := len(rc.firsts()); n != others {
		t.Errorf("%d of %d other events came in %s", n, others, others*time.Minute)
	}
	for i := 0; r.clock.Elapsed() < span+3*maxReread; i++ {
		r.enqueue(event("later", uint64(i+1))) // storage works
		r.settle(time.Hour)
		r.clock.Advance(time.Hour)
	}
	r.settle(time.Hour)
	ids := rc.firsts()
	if slices.Contains(ids, "bad_1") || !slices.Contains(ids, "bad_2") {
		t.Error("the event after the lost one did not come")
	}
	if s := r.status("ops"); s.Hook.Failed != 1 || s.Pending != 0 {
		t.Errorf("%+v, %d wait", s.Hook, s.Pending)
	}
}

// TestStorageThatIsDownIsNotAskedForEachEvent: the hook waits as a whole.
func TestStorageThatIsDownIsNotAskedForEachEvent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, status(http.StatusOK))
	r.hook("down", rc.URL, func(h *Hook) { h.Enabled = false })
	for i := range 50 {
		r.enqueue(event(fmt.Sprintf("k%d", i), 1))
	}
	r.faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool { return strings.HasPrefix(op.Path, "outbox/") }})
	r.update("down", func(h *Hook) { h.Enabled = true })
	r.settle(10 * time.Minute)
	if n := r.faulty.Failed(); n > 20*defaultParallel {
		t.Errorf("%d operations in ten minutes", n)
	}
	r.faulty.Heal()
	r.settle(time.Hour)
	if n := len(rc.firsts()); n != 50 {
		t.Errorf("%d events came", n)
	}
}
