// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// theKey is an encrypted key that is kept nowhere but in what a claim holds.
var theKey = Sealed("the encrypted key, and no other")

// handover is an event whose claim hands theKey over.
func handover(key string, overlap time.Duration) Event {
	e := event(key, 1)
	e.Claim = &Offer{Version: 2, Overlap: overlap, Sealed: theKey}
	return e
}

// holds returns the paths of the entries that hold theKey.
func (r *rig) holds() (paths []string) {
	r.t.Helper()
	text := []byte(base64.StdEncoding.EncodeToString(theKey))
	for _, path := range r.memory.Paths("") {
		entry, err := r.memory.Get(r.t.Context(), path)
		if err != nil {
			r.t.Fatal(err)
		}
		if entry != nil && bytes.Contains(entry.Value, text) {
			paths = append(paths, path)
		}
	}
	return paths
}

func codeIn(q request) string {
	code, _ := q.message.Data["claim_code"].(string)
	return code
}

func claimer(h *Hook) { h.Deliver = DeliverClaim }

// TestAKeyThatIsKeptNowhereIsHandedOverOnce, to a hook that delivers claims and
// to no other, and is gone from storage with its redemption.
func TestAKeyThatIsKeptNowhereIsHandedOverOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	plain, claims := newReceiver(t, r.clock, nil), newReceiver(t, r.clock, nil)
	r.hook("plain", plain.URL, func(h *Hook) { h.Enabled = false }) // its outbox can be looked at
	r.hook("claims", claims.URL, claimer)
	r.enqueue(handover("k1", time.Hour))
	r.quiet()
	if held := r.holds(); len(held) != 1 || !strings.HasPrefix(held[0], "claim/") {
		t.Errorf("the key is in %v", held)
	}
	code := codeIn(claims.requests()[0])
	if bytes.Contains(claims.requests()[0].body, []byte("sealed")) {
		t.Error("the key is in the message")
	}
	if c, err := r.redeem.Peek(t.Context(), code); err != nil || !bytes.Equal(c.Sealed, theKey) || len(r.holds()) != 1 {
		t.Errorf("peeked at %+v, %v", c, err)
	}
	if c, err := r.redeem.Redeem(t.Context(), code); err != nil || !bytes.Equal(c.Sealed, theKey) {
		t.Errorf("redeemed %+v, %v", c, err)
	}
	if held := r.holds(); len(held) != 0 {
		t.Errorf("the redeemed key is in %v", held)
	}
	if c, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaimReused) || len(c.Sealed) != 0 {
		t.Errorf("redeemed again: %+v, %v", c, err)
	}
	if text := fmt.Sprintf("%v %+v %#v", handover("k", 0).Claim, Claim{Sealed: theKey}, Claim{Sealed: theKey}); strings.Contains(text, "encrypted") {
		t.Errorf("it is printed: %s", text)
	}
}

// TestAKeyThatNobodyClaimsGoesWithItsClaim within a minute of the end of its
// life, also where the process was replaced; nothing is looked at before.
func TestAKeyThatNobodyClaimsGoesWithItsClaim(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		r := newRig(t)
		claims := newReceiver(t, r.clock, nil)
		r.hook("claims", claims.URL, claimer)
		if err := r.redeem.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.enqueue(handover("k1", 90*time.Minute), handover("k2", 0))
		r.quiet()
		counting := storetest.NewCounting(r.memory)
		redeem := NewClaims(entries{counting}, r.clock, r.rand)
		if !again {
			counting = storetest.NewCounting(r.faulty)
			redeem = r.redeem
			redeem.storage = entries{counting}
		}
		sweep := func() {
			t.Helper()
			if err := redeem.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		sweep()
		counting.Reset()
		r.clock.Advance(89 * time.Minute)
		sweep()
		if c := counting.Total(); c.All() != 0 || len(r.holds()) != 2 {
			t.Errorf("before its end: %s, held in %v", c, r.holds())
		}
		r.clock.Advance(2 * time.Minute)
		sweep()
		if held := r.holds(); len(held) != 1 {
			t.Errorf("after its end it is in %v", held)
		}
		r.clock.Advance(24 * time.Hour)
		sweep()
		if held := r.holds(); len(held) != 0 || len(r.memory.Paths("claimend/")) != 0 {
			t.Errorf("a day later it is in %v; filed: %v", held, r.memory.Paths("claimend/"))
		}
		for _, q := range claims.requests() {
			if _, err := redeem.Redeem(t.Context(), codeIn(q)); !errors.Is(err, ErrClaim) {
				t.Errorf("%v", err)
			}
		}
	}
}

// TestAKeyThatIsDeliveredLateCanBeClaimed: its first codes were never received,
// and the claim that they made has ended.
func TestAKeyThatIsDeliveredLateCanBeClaimed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	up := false
	claims := newReceiver(t, r.clock, func(_ int, _ request, w http.ResponseWriter, _ *http.Request) {
		if !up {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	r.hook("claims", claims.URL, claimer)
	r.enqueue(handover("k1", time.Hour))
	for range 20 {
		r.settle(time.Hour)
		r.clock.Advance(time.Hour)
		if err := r.redeem.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	up = true
	r.settle(24 * time.Hour)
	all := claims.requests()
	if c, err := r.redeem.Redeem(t.Context(), codeIn(all[len(all)-1])); err != nil || !bytes.Equal(c.Sealed, theKey) {
		t.Errorf("%+v, %v", c, err)
	}
	if held := r.holds(); len(held) != 0 {
		t.Errorf("it is in %v", held)
	}
}

// TestARedeemedKeyIsNotKeptForMoreAttempts: the answer of the receiver was lost,
// and its client has the key already.
func TestARedeemedKeyIsNotKeptForMoreAttempts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	claims := newReceiver(t, r.clock, status(http.StatusBadGateway))
	r.hook("claims", claims.URL, claimer)
	r.enqueue(handover("k1", 0))
	r.settle(time.Minute)
	if _, err := r.redeem.Redeem(t.Context(), codeIn(claims.requests()[0])); err != nil {
		t.Fatal(err)
	}
	r.settle(time.Hour) // the third attempt is stored
	if held := r.holds(); len(held) != 0 {
		t.Errorf("it is in %v", held)
	}
}

// TestAKeyIsNotLostByAFailureOfAnyOperation: the process ends at any one, which
// may have taken effect, while the key is taken, delivered and redeemed. Either
// it can be claimed after that, once, or it was answered; and nothing of it is
// left.
func TestAKeyIsNotLostByAFailureOfAnyOperation(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for _, ends := range []bool{false, true} {
			for at := 1; handOverWithFault(t, storetest.Fault{At: at, Applied: applied, Rest: ends}); at++ {
				if at > 60 {
					t.Fatal("it never ends without a fault")
				}
			}
		}
	}
}

func handOverWithFault(t *testing.T, fault storetest.Fault) (reached bool) {
	t.Helper()
	memory, c := storetest.NewMemory(), clock.NewManual(start)
	claims := newReceiver(t, c, nil)
	first := rigOn(t, memory, c)
	first.hook("claims", claims.URL, claimer)
	e := handover("k1", 0)
	r := rigOn(t, memory, c)
	r.Start()
	r.faulty.Inject(fault)
	owed := r.Enqueue(t.Context(), e) != nil
	r.settle(10 * time.Minute)
	answered := 0
	redeem := func(r *rig) error {
		all := claims.requests()
		if len(all) == 0 {
			return nil
		}
		got, err := r.redeem.Redeem(t.Context(), codeIn(all[0]))
		if err == nil && !bytes.Equal(got.Sealed, theKey) {
			t.Errorf("%+v: the code is worth nothing", fault)
		}
		if err == nil {
			answered++
		}
		return err
	}
	failed := redeem(r)
	reached = r.faulty.Failed() > 0
	next := r
	if fault.Rest {
		r.halt()
		next = rigOn(t, memory, c)
		next.Start()
	} else {
		r.faulty.Heal()
		c.Advance(minReread)
	}
	if err := next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if owed {
		next.enqueue(e)
	}
	next.settle(time.Hour)
	if answered == 0 {
		err := redeem(next)
		// A crash while a code is redeemed uses it up.
		if lost := errors.Is(err, ErrClaimReused) && fault.Rest && fault.Applied && failed != nil; err != nil && !lost {
			t.Errorf("%+v: the key is lost: %v", fault, err)
		}
	}
	for range 3 {
		if err := redeem(next); !errors.Is(err, ErrClaimReused) {
			t.Errorf("%+v: it was redeemed again: %v", fault, err)
		}
	}
	if held := next.holds(); len(held) != 0 || answered > 1 {
		t.Errorf("%+v: answered %d times, and still in %v", fault, answered, held)
	}
	return reached
}

// TestAFullOutboxStillTakesKeys that are nowhere else, and asks for no more.
func TestAFullOutboxStillTakesKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.KeptEnabled = 2 })
	r.hook("claims", "http://127.0.0.1:1/", claimer)
	r.enqueue(event("k1", 1), event("k1", 2), event("k1", 3))
	if can, why, err := r.Claimable(t.Context(), event("k2", 1)); !can || !strings.Contains(why, "too many events wait") || err != nil {
		t.Errorf("%v, %q, %v", can, why, err)
	}
	r.enqueue(handover("k2", 0))
	if s := r.status("claims"); s.Pending != 3 || s.Hook.Dropped != 1 || len(r.holds()) != 1 {
		t.Errorf("%d wait, %d dropped", s.Pending, s.Hook.Dropped)
	}
}

// TestWhoCanClaim: the hooks that deliver claims for a key, and why there is
// none.
func TestWhoCanClaim(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, status(http.StatusInternalServerError))
	e := event("k1", 1)
	check := func(step string, want bool, words string) {
		t.Helper()
		can, why, err := r.Claimable(t.Context(), e)
		if err != nil || can != want || !strings.Contains(why, words) || (words == "") != (why == "") {
			t.Errorf("%s: %v, %q, %v", step, can, why, err)
		}
	}
	check("no hook", false, "no enabled webhook with deliver=claim wants version.activated")
	r.hook("plain", rc.URL)
	check("one that delivers no claims", false, "no enabled webhook")
	r.hook("other", rc.URL, claimer, func(h *Hook) { h.Keys = []string{"someone-else"} })
	check("one for another key", false, "no enabled webhook")
	r.hook("late", rc.URL, claimer, func(h *Hook) { h.Events = []string{"key.*"} })
	check("one for other events", false, "no enabled webhook")
	r.hook("off", rc.URL, claimer, func(h *Hook) { h.Enabled = false })
	check("one that is disabled", false, `webhook "off" is disabled`)
	r.hook("on", rc.URL, claimer)
	check("one that fits", true, "")
	r.enqueue(e)
	r.settle(time.Minute)
	check("one that has failed just now", true, "")
	r.settle(10 * time.Minute)
	check("one that has been failing", true, `webhook "on" has been failing since 2026-03-01T12:00:`)
	r.hook("second", "http://127.0.0.1:1/", claimer)
	check("another one that fits", true, "")
	if found, some, err := r.Claiming(t.Context(), "billing"); !found || some || err != nil {
		t.Errorf("%v, %v, %v", found, some, err)
	}
	for _, name := range []string{"on", "second", "off"} {
		if err := r.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if found, some, err := r.Claiming(t.Context(), "billing"); !found || !some || err != nil {
		t.Errorf("one for some keys: %v, %v, %v", found, some, err)
	}
	r.hook("other", rc.URL, func(h *Hook) { h.Roles = []string{"shipping"} })
	if found, _, err := r.Claiming(t.Context(), "billing"); found || err != nil {
		t.Errorf("one for another role: %v, %v", found, err)
	}
	next := rigOn(t, r.memory, r.clock)
	next.faulty.Inject(unreadable("webhook/other"))
	if can, why, err := next.Claimable(t.Context(), e); can || !strings.Contains(why, `webhook "other" cannot be read`) || err != nil {
		t.Errorf("%v, %q, %v", can, why, err)
	}
}

// TestADamagedClaimCostsItsCodeOnly: the event goes out without one.
func TestADamagedClaimCostsItsCodeOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	claims := newReceiver(t, r.clock, func(n int, _ request, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	r.hook("claims", claims.URL, claimer)
	r.enqueue(handover("k1", 0), event("k1", 2))
	r.quiet()
	for _, path := range r.memory.Paths("claim/") {
		if err := (entries{r.memory}).put(t.Context(), path, []byte(`{"schema":1,`)); err != nil {
			t.Fatal(err)
		}
	}
	r.settle(time.Hour)
	all := claims.requests()
	if len(all) != 3 || codeIn(all[0]) == "" || codeIn(all[1]) != "" {
		t.Errorf("%d requests", len(all))
	}
	r.clock.Advance(25 * time.Hour)
	if err := r.redeem.Sweep(t.Context()); err != nil || len(r.memory.Paths("claim")) != 0 {
		t.Errorf("left %v, %v", r.memory.Paths("claim"), err)
	}
}

// TestAClaimThatStorageDoesNotGiveHoldsNoOtherUp: the keys of the others go with
// their claims, those of old are forgotten, and it is tried again.
func TestAClaimThatStorageDoesNotGiveHoldsNoOtherUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	claims := newReceiver(t, r.clock, nil)
	r.hook("claims", claims.URL, claimer)
	r.enqueue(handover("k1", time.Hour))
	r.quiet()
	bad := r.memory.Paths("claim/")[0]
	r.enqueue(handover("k2", time.Hour), handover("k3", 2*time.Hour))
	r.quiet()
	r.faulty.Inject(unreadable(bad))
	r.clock.Advance(3 * time.Hour)
	for range 2 {
		if err := r.redeem.Sweep(t.Context()); !errors.Is(err, storetest.ErrInjected) {
			t.Errorf("%v", err)
		}
		if held := r.holds(); len(held) != 1 || held[0] != bad || len(r.memory.Paths("claimend/")) != 1 {
			t.Errorf("keys are in %v; filed: %v", held, r.memory.Paths("claimend/"))
		}
	}
	r.clock.Advance(9 * 24 * time.Hour)
	if err := r.redeem.Sweep(t.Context()); !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("%v", err)
	}
	if left := r.memory.Paths("claim/"); len(left) != 1 {
		t.Errorf("left of old: %v", left)
	}
	r.faulty.Heal()
	r.clock.Advance(claimSweepAgain)
	if err := r.redeem.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left := append(r.memory.Paths("claim/"), r.memory.Paths("claimend/")...); len(left) != 0 {
		t.Errorf("left in the end: %v", left)
	}
}
