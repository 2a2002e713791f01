// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// offered returns a code for version 3 of k1, as a delivery makes it.
func offered(t *testing.T, r *rig, overlap time.Duration) (string, time.Time) {
	t.Helper()
	code, expires, err := r.redeem.offer(t.Context(), claimHook(), claimEvent(overlap))
	if err != nil {
		t.Fatal(err)
	}
	return code, expires
}

func claimHook() *Hook {
	return &Hook{Name: "ops", ClaimKey: ClaimKey("0123456789abcdef0123456789abcdef")}
}

func claimEvent(overlap time.Duration) *entry {
	return &entry{ID: "k1.7", KeyID: "k1", Time: start, Claim: &Offer{Version: 3, Overlap: overlap}}
}

func TestAClaimIsRedeemedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, time.Hour)
	if c, err := r.redeem.Redeem(t.Context(), code); err != nil || c.KeyID != "k1" || c.Version != 3 || c.Hook != "ops" || c.EventID != "k1.7" {
		t.Fatalf("%+v, %v", c, err)
	}
	for range 3 {
		c, err := r.redeem.Redeem(t.Context(), code)
		if !errors.Is(err, ErrClaimReused) || c.KeyID != "k1" || c.Version != 3 || !c.Redeemed.Equal(start) {
			t.Errorf("again: %+v, %v", c, err)
		}
	}
	// Its second use is seen after its life too.
	r.clock.Advance(48 * time.Hour)
	if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaimReused) {
		t.Errorf("two days later: %v", err)
	}
}

func TestPeekingRedeemsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, time.Hour)
	for range 3 {
		if c, err := r.redeem.Peek(t.Context(), code); err != nil || c.KeyID != "k1" || c.Version != 3 || !c.Redeemed.IsZero() {
			t.Errorf("%+v, %v", c, err)
		}
	}
	if _, err := r.redeem.Redeem(t.Context(), code); err != nil {
		t.Fatal(err)
	}
	if c, err := r.redeem.Peek(t.Context(), code); !errors.Is(err, ErrClaimReused) || c.KeyID != "k1" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, text := range []string{"", code[:len(code)-1], claimPrefix + "20513_" + base64.RawURLEncoding.EncodeToString([]byte(long(32)))} {
		if _, err := r.redeem.Peek(t.Context(), text); !errors.Is(err, ErrClaim) {
			t.Errorf("%q: %v", text, err)
		}
	}
	r.faulty.Inject(storetest.Fault{At: 1})
	if _, err := r.redeem.Peek(t.Context(), code); !errors.Is(err, storetest.ErrInjected) {
		t.Error(err)
	}
}

func TestAClaimIsRedeemedOnceByManyAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, 0)
	var won, reused atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			switch _, err := r.redeem.Redeem(t.Context(), code); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, ErrClaimReused):
				reused.Add(1)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 || reused.Load() != 49 {
		t.Errorf("%d redeemed it, %d were told of reuse", won.Load(), reused.Load())
	}
}

func TestAClaimLivesAsLongAsTheOverlapButAtMostADay(t *testing.T) {
	t.Parallel()
	for overlap, life := range map[time.Duration]time.Duration{0: ClaimLife, time.Hour: time.Hour, 100 * time.Hour: ClaimLife} {
		r := newRig(t)
		code, expires := offered(t, r, overlap)
		if !expires.Equal(start.Add(life)) {
			t.Errorf("overlap %s: the code lives until %s", overlap, expires)
		}
		r.clock.Advance(life)
		if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaim) {
			t.Errorf("overlap %s: at its end: %v", overlap, err)
		}
	}
}

func TestUnknownAndExpiredClaimsAnswerAlike(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, time.Minute)
	r.clock.Advance(time.Hour)
	_, expired := r.redeem.Redeem(t.Context(), code)
	unknown := claimPrefix + "20513_" + base64.RawURLEncoding.EncodeToString([]byte(long(32)))
	counting := storetest.NewCounting(r.memory)
	r.redeem.storage = entries{counting}
	_, missing := r.redeem.Redeem(t.Context(), unknown)
	if !errors.Is(expired, ErrClaim) || !errors.Is(missing, ErrClaim) || expired.Error() != missing.Error() {
		t.Errorf("expired: %v; unknown: %v", expired, missing)
	}
	before := counting.Total().All()
	for _, text := range []string{
		"", "claim_", "claim_1_x", code[1:], code + "x", code + "\n", strings.Replace(code, "claim_2", "claim_02", 1), "claim_../../key/x_" + long(43),
		claimPrefix + "-1_" + long(43), claimPrefix + "99999999_" + long(43), claimPrefix + "20513_" + long(42) + "/", long(1 << 20),
	} {
		if _, err := r.redeem.Redeem(t.Context(), text); !errors.Is(err, ErrClaim) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	if n := counting.Total().All() - before; n != 0 {
		t.Errorf("what has not the form of a code cost %d storage operations", n)
	}
}

func TestAnotherAttemptCarriesTheSameCodeWithLifeLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, 0)
	r.clock.Advance(11 * time.Hour)
	again, expires := offered(t, r, 0)
	if again != code || !expires.Equal(start.Add(ClaimLife)) {
		t.Errorf("after 11 hours the code lives until %s, changed: %t", expires, again != code)
	}
	r.clock.Advance(60 * time.Hour)
	again, expires = offered(t, r, 0)
	if again != code || !expires.Equal(r.clock.Now().Add(ClaimLife)) {
		t.Errorf("after its end the code lives until %s, changed: %t", expires, again != code)
	}
	if _, err := r.redeem.Redeem(t.Context(), code); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(60 * time.Hour)
	offered(t, r, 0)
	if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaimReused) {
		t.Errorf("a redeemed code came to life: %v", err)
	}
}

func TestCodesAreOfTheHookAndTheEvent(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, name := range []string{"a", "b"} {
		for _, key := range []string{long(32), strings.Repeat("y", 32)} {
			for _, id := range []string{"k1.1", "k1.2", "k2.1"} {
				code, _ := codeOf(&Hook{Name: name, ClaimKey: ClaimKey(key)}, &entry{ID: id, Time: start})
				if seen[code] {
					t.Error("a code comes twice")
				}
				seen[code] = true
				if _, ok := parseCode(code); !ok {
					t.Errorf("%q has not the form of a code", code)
				}
			}
		}
	}
}

// A redemption whose write failed was not given to anybody, whether or not the
// write took effect: the client that tries again gets the key.
func TestARedemptionThatFailedDoesNotCount(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for at := 1; ; at++ {
			r := newRig(t)
			code, _ := offered(t, r, 0)
			r.faulty.Inject(storetest.Fault{At: at, Applied: applied})
			_, err := r.redeem.Redeem(t.Context(), code)
			if r.faulty.Failed() == 0 {
				if err != nil || at == 1 {
					t.Errorf("undisturbed, at operation %d: %v", at, err)
				}
				break
			}
			if !errors.Is(err, storetest.ErrInjected) {
				t.Fatalf("operation %d: %v", at, err)
			}
			r.faulty.Heal()
			if c, err := r.redeem.Redeem(t.Context(), code); err != nil || c.Version != 3 {
				t.Errorf("operation %d, applied %t: tried again: %v", at, applied, err)
			}
			if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaimReused) {
				t.Errorf("operation %d, applied %t: tried a third time: %v", at, applied, err)
			}
		}
	}
}

// TestARedemptionThatFailedIsTriedAgainInItsLife, and not after it, though what
// failed was stored.
func TestARedemptionThatFailedIsTriedAgainInItsLife(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, expires := offered(t, r, time.Hour)
	r.faulty.Inject(storetest.Fault{At: 1, Applied: true, Only: func(op storetest.Op) bool { return strings.HasPrefix(op.String(), "put claim/") }})
	if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, storetest.ErrInjected) {
		t.Fatalf("a redemption whose write fails: %v", err)
	}
	r.faulty.Heal()
	r.clock.Advance(expires.Sub(r.clock.Now()))
	if _, err := r.redeem.Peek(t.Context(), code); !errors.Is(err, ErrClaim) {
		t.Errorf("past its life: %v", err)
	}
	if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaim) {
		t.Errorf("redeemed past its life: %v", err)
	}
	r.clock.Leap(-time.Minute)
	if _, err := r.redeem.Redeem(t.Context(), code); err != nil {
		t.Errorf("in its life: %v", err)
	}
}

// Whether the redemption was written before a crash or not, a code is never
// redeemed twice.
func TestNoClaimIsRedeemedTwiceThroughACrash(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for at, reached := 1, true; reached; at++ {
			r := newRig(t)
			code, _ := offered(t, r, 0)
			r.faulty.Inject(storetest.Fault{At: at, Applied: applied, Rest: true})
			won := 0
			if _, err := r.redeem.Redeem(t.Context(), code); err == nil {
				won++
				if err := r.redeem.Told(t.Context(), code); err != nil && !errors.Is(err, storetest.ErrInjected) {
					t.Error(err)
				}
			}
			reached = r.faulty.Failed() > 0
			next := rigOn(t, r.memory.Clone(), r.clock)
			for range 2 {
				if _, err := next.redeem.Redeem(t.Context(), code); err == nil {
					won++
				} else if !errors.Is(err, ErrClaimReused) {
					t.Error(err)
				}
			}
			if won > 1 {
				t.Errorf("operation %d, applied %t: redeemed %d times", at, applied, won)
			}
		}
	}
}

// TestARedemptionDuringASweepIsToldByTheNext, where nobody else tells: its
// minute is being looked at, and is looked at again.
func TestARedemptionDuringASweepIsToldByTheNext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var told []string
	r.redeem.OnRedeemed = func(_ context.Context, c Claim) error {
		told = append(told, c.EventID)
		return nil
	}
	first, _ := offered(t, r, 0)
	second, _, err := r.redeem.offer(t.Context(), claimHook(), &entry{ID: "k2.1", KeyID: "k2", Time: start, Claim: &Offer{Version: 1}})
	if err != nil {
		t.Fatal(err)
	}
	redeem := func(code string) {
		if _, err := r.redeem.Redeem(t.Context(), code); err != nil {
			t.Error(err)
		}
	}
	redeem(first)
	during := false
	r.faulty.After(func(op storetest.Op) {
		if op.Kind == storetest.List && op.Path != "claimend/" && strings.HasPrefix(op.Path, "claimend/") && !during {
			during = true
			redeem(second)
		}
	})
	for range 2 {
		if err := r.redeem.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"k1.7", "k2.1"}; !during || !slices.Equal(told, want) || len(r.memory.Paths("claimend/")) > 0 {
		t.Errorf("told are %q, want %q; filed are %q", told, want, r.memory.Paths("claimend/"))
	}
}

func TestCodesAreNotStored(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, 0)
	if _, err := r.redeem.Redeem(t.Context(), code); err != nil {
		t.Fatal(err)
	}
	if err := storetest.Scan(r.memory, code, code[12:]); err != nil {
		t.Error(err)
	}
}

func TestADamagedClaimShowsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, _ := offered(t, r, 0)
	path, _ := parseCode(code)
	for _, text := range []string{`{"schema":1,"digest":`, `{"schema":9}`, `[]`} {
		if err := (entries{r.memory}).PutClaim(t.Context(), path.day, path.id, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.redeem.Redeem(t.Context(), code); err == nil || errors.Is(err, ErrClaim) || strings.Contains(err.Error(), code) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// An entry under the right id but of another digest is none.
	other := `{"schema":1,"digest":"` + path.id + long(32) + `","key_id":"k1","version":3,"expires":"2027-01-01T00:00:00Z"}`
	if err := (entries{r.memory}).PutClaim(t.Context(), path.day, path.id, []byte(other)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.redeem.Redeem(t.Context(), code); !errors.Is(err, ErrClaim) {
		t.Errorf("another digest: %v", err)
	}
}

func TestOldClaimsAreForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	offered(t, r, 0)
	sweep := func() int {
		if err := r.redeem.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r.memory.Len()
	}
	for range 8 {
		if n := sweep(); n != 1 {
			t.Fatalf("%d entries %s after the claim", n, r.clock.Elapsed())
		}
		r.clock.Advance(24 * time.Hour)
	}
	r.clock.Advance(24 * time.Hour)
	if n := sweep(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
	// An event of old whose claim was offered lately keeps it.
	_, expires := offered(t, r, 0)
	r.clock.Advance(25 * time.Hour)
	if n := sweep(); n != 1 || !expires.After(start.Add(8*24*time.Hour)) {
		t.Errorf("%d entries are left of a young claim of an old event", n)
	}
	counting := storetest.NewCounting(r.memory)
	r.redeem.storage = entries{counting}
	sweep()
	if n := counting.Total().All(); n != 0 {
		t.Errorf("the second sweep of a day costs %d operations", n)
	}
}
