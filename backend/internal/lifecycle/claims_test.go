// SPDX-License-Identifier: MPL-2.0

package lifecycle_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// unread makes a key of a role whose keys rotate daily and are kept nowhere.
func unread(t *testing.T, change func(*role.Role)) (w *world, o *outbox, id string) {
	t.Helper()
	w, o = newWorld(t), &outbox{}
	w.keeper.Outbox = o
	w.role("r", func(r *role.Role) {
		r.Retrievable = false
		if change != nil {
			change(r)
		}
	})
	return w, o, w.create(lifecycle.Spec{Name: "client"}).Key.ID
}

func (w *world) copyOwed(id string) {
	w.t.Helper()
	if err := w.keeper.CopyOwed(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
}

// handed checks that a version's token was offered, and is kept nowhere.
func (w *world) handed(o *outbox, id string, version int) {
	w.t.Helper()
	made, err := w.keeper.Store.Unseal(id, version, o.offered[version])
	if err != nil {
		w.t.Fatalf("version %d was offered %d bytes: %v", version, len(o.offered[version]), err)
	}
	v, _ := w.key(id).Version(version)
	if !v.Digest.Equal(token.Sum(made)) {
		w.t.Errorf("what was offered of version %d is another token", version)
	}
	w.issued = append(w.issued, made)
	if stored := w.stored(id); bytes.Contains(mustJSON(w.t, stored), mustJSON(w.t, o.offered[version])) {
		w.t.Errorf("version %d is still in the entry of its key", version)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Trim(raw, `"`)
}

func TestWhatIsNotKeptIsHandedOverAndForgotten(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, nil)
	w.copyOwed(id)
	w.handed(o, id, 1)
	w.run(24*time.Hour+10*time.Minute, nil)
	w.copyOwed(id)
	w.expectStates(id, "1 retiring, 2 active")
	w.handed(o, id, 2)
	made := w.rotate(id, lifecycle.RotateWish{})
	if made.Token == "" {
		t.Error("a rotation by hand answers no key")
	}
	w.copyOwed(id)
	w.handed(o, id, 3)
}

// TestAHandoverStaysUntilItsEventIsCopied through any number of ticks, and
// through more events than a key can owe.
func TestAHandoverStaysUntilItsEventIsCopied(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, nil)
	o.fails = errors.New("outbox is down")
	w.run(24*time.Hour+10*time.Minute, nil)
	for range 2 * keyring.OwedLimit {
		if err := w.keeper.Emit(t.Context(), id, "test", func(k *keyring.Key, _ *role.Role, c keyring.Cause) bool {
			k.Record(c, keyring.EventAnomalyDetected, 2, "")
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	w.crash()
	w.keeper.Outbox = o
	w.run(time.Hour, nil)
	o.fails = nil
	w.copyOwed(id)
	w.handed(o, id, 2)
}

// TestARotationWaitsUntilSomebodyCanClaimTheKey and says so, once.
func TestARotationWaitsUntilSomebodyCanClaimTheKey(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, nil)
	o.nobody = "the webhook is disabled"
	w.run(5*24*time.Hour, nil)
	w.expectStates(id, "1 active")
	k := w.key(id)
	if n := events(k, keyring.EventRotationBlocked); n != 1 || !strings.Contains(k.Blocked, "nobody could claim the new key: the webhook is disabled") {
		t.Errorf("%d events, blocked by %q", n, k.Blocked)
	}
	o.nobody = ""
	w.run(time.Hour, nil)
	w.expectStates(id, "1 retiring, 2 active")
	w.copyOwed(id)
	w.handed(o, id, 2)
	if k := w.key(id); k.Blocked != "" {
		t.Errorf("still blocked by %q", k.Blocked)
	}
}

// TestARotationWaitsWhereStorageDoesNotTellWhoCouldClaim for a minute, and
// nothing else that is due waits with it.
func TestARotationWaitsWhereStorageDoesNotTellWhoCouldClaim(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, func(r *role.Role) { r.OverlapPeriod, r.MaxOverlapPeriod = 24*time.Hour, 48*time.Hour })
	w.run(24*time.Hour+10*time.Minute, nil)
	w.expectStates(id, "1 retiring, 2 active")
	o.unsure = errors.New("storage is down")
	w.run(24*time.Hour, nil)
	w.expectStates(id, "1 retired, 2 active")
	if n := events(w.key(id), keyring.EventRotationBlocked); n != 0 {
		t.Errorf("%d events tell of it", n)
	}
	o.unsure = nil
	w.run(5*time.Minute, nil)
	w.expectStates(id, "1 retired, 2 retiring, 3 active")
}

// TestAPromotionWaitsToo: a version that was made while somebody could claim it
// does not take over when nobody can any more.
func TestAPromotionWaitsToo(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, func(r *role.Role) { r.ActivationDelay = 2 * time.Hour })
	w.run(25*time.Hour, nil)
	w.expectStates(id, "1 active, 2 pending")
	o.nobody = "the webhook is gone"
	w.run(6*time.Hour, nil)
	w.expectStates(id, "1 active, 2 pending")
	if n := events(w.key(id), keyring.EventRotationBlocked); n != 1 {
		t.Errorf("%d events tell of it", n)
	}
	if len(o.offered[2]) != 0 {
		t.Error("it was offered before its time")
	}
	o.nobody = ""
	w.run(65*time.Minute, nil)
	w.expectStates(id, "1 retiring, 2 active")
	w.copyOwed(id)
	w.handed(o, id, 2)
	w.run(30*time.Minute, nil)
	w.expectStates(id, "1 retiring, 2 active") // and not one rotation more
}

// TestAVersionThatNobodyCouldClaimIsReplaced: it took over because the one before
// had come to its end. Once somebody can claim, the next one does not wait for
// its schedule.
func TestAVersionThatNobodyCouldClaimIsReplaced(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{false, true} {
		w, o, id := unread(t, func(r *role.Role) { r.ActivationDelay, r.VersionTTL = 2*time.Hour, 29*time.Hour })
		w.run(25*time.Hour, nil)
		w.expectStates(id, "1 active, 2 pending")
		if away {
			o.nobody = "the webhook is gone"
		}
		w.run(10*time.Hour, nil)
		o.nobody = ""
		if !away {
			w.expectStates(id, "1 retired, 2 active")
			w.run(4*time.Hour, nil)
			w.expectStates(id, "1 retired, 2 active") // and not one rotation more
			continue
		}
		w.expectStates(id, "1 retired, 2 active")
		if k := w.key(id); events(k, keyring.EventRotationBlocked) == 0 || !strings.Contains(k.Blocked, "the webhook is gone") {
			t.Errorf("it is blocked by %q", k.Blocked)
		}
		w.run(65*time.Minute, nil)
		w.expectStates(id, "1 retired, 2 active, 3 pending")
		w.run(2*time.Hour+time.Minute, nil)
		w.expectStates(id, "1 retired, 2 retired, 3 active")
		w.copyOwed(id)
		w.handed(o, id, 3)
		w.run(4*time.Hour, nil)
		w.expectStates(id, "1 retired, 2 retired, 3 active")
	}
}

// TestAVersionThatNobodyCouldClaimWaitsForNoWindow either: clients have no key.
func TestAVersionThatNobodyCouldClaimWaitsForNoWindow(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, func(r *role.Role) {
		r.RotationPeriod, r.RotationSchedule, r.RotationWindow = 0, "0 3 * * *", time.Hour
		r.ActivationDelay, r.VersionTTL = 2*time.Hour, 27*time.Hour
	})
	w.run(15*time.Hour+30*time.Minute, nil) // from noon
	w.expectStates(id, "1 active, 2 pending")
	o.nobody = "the webhook is gone"
	w.run(13*time.Hour, nil)
	w.expectStates(id, "1 retired, 2 active")
	o.nobody = ""
	w.run(65*time.Minute, nil)
	w.expectStates(id, "1 retired, 2 active, 3 pending")
	w.run(2*time.Hour+time.Minute, nil)
	w.expectStates(id, "1 retired, 2 retiring, 3 active")
	w.copyOwed(id)
	w.handed(o, id, 3)
}

// TestNoHandoverIsPlaintext for whatever asks for it: a rollback needs force,
// a replay shows nothing, and a version that has ended has none.
func TestNoHandoverIsPlaintext(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, nil)
	o.fails = errors.New("outbox is down")
	wish := lifecycle.RotateWish{RequestID: "once"}
	w.rotate(id, wish)
	if v, _ := w.key(id).Version(2); len(v.Handover) == 0 || len(v.Sealed) != 0 {
		t.Fatal("version 2 is not to be handed over")
	}
	if again := w.rotate(id, wish); again.Token != "" || again.Version != 2 {
		t.Error("a replay shows the key")
	}
	_, _, _, err := w.keeper.Update(t.Context(), id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		return k.Rollback(keyring.Cause{Now: now}, r.Policy(), keyring.RollbackOptions{Overlap: time.Hour})
	})
	if !errors.Is(err, keyring.ErrPlaintextGone) {
		t.Errorf("a rollback: %v", err)
	}
	for _, change := range []func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error){
		func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error) {
			return k.Revoke(c, p, keyring.RevokeOptions{Version: 1})
		},
		func(k *keyring.Key, p keyring.Policy, c keyring.Cause) (*keyring.Key, error) {
			return k.Revoke(c, p, keyring.RevokeOptions{Version: 2, Compromised: true, Force: true})
		},
	} {
		if err := transition(change)(w, id); err != nil {
			t.Fatal(err)
		}
	}
	if raw := mustJSON(t, w.stored(id)); bytes.Contains(raw, []byte(`"handover"`)) {
		t.Errorf("an ended version is still to be handed over: %s", raw)
	}
}

// TestNothingIsKeptForNobody: without a claim the answer of a rotation by hand
// is all there is, and a job, which nobody is answered, is refused.
func TestNothingIsKeptForNobody(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, nil)
	o.nobody = "there is no webhook"
	if made := w.rotate(id, lifecycle.RotateWish{}); made.Token == "" {
		t.Error("a rotation by hand answers no key")
	}
	if v, _ := w.key(id).Version(2); len(v.Handover) != 0 || len(v.Sealed) != 0 {
		t.Error("the key is kept all the same")
	}
	var refusal *keyring.Refusal
	if _, err := w.keeper.RotateForJob(t.Context(), id, "job", byTest(), lifecycle.RotateWish{}); !errors.As(err, &refusal) || !errors.Is(err, keyring.ErrNobodyCanRead) {
		t.Errorf("a job: %v", err)
	}
	o.nobody = ""
	if done, err := w.keeper.RotateForJob(t.Context(), id, "job", byTest(), lifecycle.RotateWish{}); !done || err != nil {
		t.Errorf("a job: %v, %v", done, err)
	}
	w.copyOwed(id)
	w.handed(o, id, 3)
	// A leased key is answered to who holds the lease.
	leased := w.create(lifecycle.Spec{Lease: &keyring.Lease{EntityID: "e"}, ExpireTime: w.clock.Now().Add(time.Hour)})
	if v, _ := leased.Key.Version(1); len(v.Handover) != 0 || leased.Token == "" {
		t.Error("a leased key is to be handed over")
	}
}

// TestARetrievableRoleAsksNobody.
func TestARetrievableRoleAsksNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &outbox{nobody: "there is no webhook", unsure: errors.New("must not be asked")}
	w.keeper.Outbox = o
	id := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	w.run(24*time.Hour+10*time.Minute, nil)
	w.expectStates(id, "1 retiring, 2 active")
	if v, _ := w.key(id).Version(2); len(v.Handover) != 0 || len(v.Sealed) == 0 {
		t.Error("the key is not kept")
	}
}

// TestAPromotionWaitsAMinuteWhereStorageDoesNotTellWhoCouldClaim, and nobody is
// told that it is blocked.
func TestAPromotionWaitsAMinuteWhereStorageDoesNotTellWhoCouldClaim(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, func(r *role.Role) { r.ActivationDelay = 2 * time.Hour })
	w.run(25*time.Hour, nil)
	o.unsure = errors.New("storage is down")
	w.run(70*time.Minute, nil)
	w.expectStates(id, "1 active, 2 pending")
	if k := w.key(id); events(k, keyring.EventRotationBlocked) != 0 || k.Blocked != "" {
		t.Errorf("it is told as blocked: %q", k.Blocked)
	}
	o.unsure = nil
	w.run(3*time.Minute, nil)
	w.expectStates(id, "1 retiring, 2 active")
}

// TestNothingBlocksWhatIsNotThere: a version whose promotion was put off ends,
// and the reason with it.
func TestNothingBlocksWhatIsNotThere(t *testing.T) {
	t.Parallel()
	w, o, id := unread(t, func(r *role.Role) { r.ActivationDelay = 2 * time.Hour })
	w.run(25*time.Hour, nil)
	o.nobody = "the webhook is gone"
	w.run(3*time.Hour, nil)
	if w.key(id).Blocked == "" {
		t.Fatal("nothing was put off")
	}
	if _, _, err := w.keeper.Revoke(t.Context(), id, keyring.RevokeOptions{Version: 2}, false, byTest()); err != nil {
		t.Fatal(err)
	}
	if k := w.key(id); k.Blocked != "" {
		t.Errorf("still blocked by %q", k.Blocked)
	}
}

// TestARoleThatComesToKeepKeysKeepsThePendingOne: nobody need claim it, so it
// waits for nobody, and becomes active by whatever way with its plaintext.
func TestARoleThatComesToKeepKeysKeepsThePendingOne(t *testing.T) {
	t.Parallel()
	for name, promote := range map[string]func(w *world, id string){
		"by itself": func(w *world, _ string) { w.run(25*time.Hour, nil) },
		"revoke": func(w *world, id string) {
			made, changed, err := w.keeper.Revoke(w.t.Context(), id, keyring.RevokeOptions{Version: 1}, true, byTest())
			if err != nil || !changed || made.Token == "" || made.Version != 2 {
				w.t.Errorf("version %d, changed %t, a token of %d bytes: %v", made.Version, changed, len(made.Token), err)
			}
			w.note(made)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, o, id := unread(t, func(r *role.Role) { r.ActivationDelay = 2 * time.Hour })
			w.run(25*time.Hour, nil)
			w.expectStates(id, "1 active, 2 pending")
			o.nobody = "the webhook is gone"
			w.role("r", func(r *role.Role) { r.ActivationDelay = 2 * time.Hour })
			promote(w, id)
			k := w.key(id)
			v, _ := k.Version(2)
			if v.State == keyring.StatePending || events(k, keyring.EventRotationBlocked) != 0 {
				t.Errorf("versions are %s, with %d events", w.states(id), events(k, keyring.EventRotationBlocked))
			}
			w.checkServed(id)
			if _, changed, err := w.keeper.Revoke(t.Context(), id, keyring.RevokeOptions{Version: 1}, true, byTest()); err != nil || changed && name == "revoke" {
				t.Errorf("revoked again: changed %t, %v", changed, err)
			}
		})
	}
}

// TestARevocationThatDoesNothingKeepsNothing: what has ended as asked stays,
// and the key is not written.
func TestARevocationThatDoesNothingKeepsNothing(t *testing.T) {
	t.Parallel()
	w, _, id := unread(t, func(r *role.Role) { r.ActivationDelay, r.OverlapPeriod = 2*time.Hour, time.Hour })
	w.run(27*time.Hour, nil)
	if _, _, err := w.keeper.Revoke(t.Context(), id, keyring.RevokeOptions{Version: 1}, false, byTest()); err != nil {
		t.Fatal(err)
	}
	w.run(22*time.Hour, nil)
	w.expectStates(id, "1 revoked, 2 active, 3 pending")
	w.role("r", func(r *role.Role) { r.ActivationDelay = 2 * time.Hour })
	if _, changed, err := w.keeper.Revoke(t.Context(), id, keyring.RevokeOptions{Version: 1}, true, byTest()); changed || err != nil {
		t.Errorf("changed %t, %v", changed, err)
	}
}
