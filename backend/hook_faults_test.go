// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// whatFailsWithHooks are the ways in which storage fails one webhook, or all
// of telling, while it goes on with keys.
var whatFailsWithHooks = map[string]func(storetest.Op) bool{
	"the entry of one":     func(op storetest.Op) bool { return op.Path == "webhook/bad" },
	"the outbox of one":    func(op storetest.Op) bool { return strings.HasPrefix(op.Path, "outbox/bad/") },
	"writes to the outbox": func(op storetest.Op) bool { return op.Kind.Write() && strings.HasPrefix(op.Path, "outbox/bad/") },
	"all entries":          func(op storetest.Op) bool { return strings.HasPrefix(op.Path, "webhook/") },
	"all outboxes":         func(op storetest.Op) bool { return strings.HasPrefix(op.Path, "outbox/") },
	"everything about telling": func(op storetest.Op) bool {
		return strings.HasPrefix(op.Path, "webhook/") || strings.HasPrefix(op.Path, "outbox/")
	},
}

// TestAFailingHookHoldsNoKeyUp: keys that owe events rotate and retire on time;
// the other webhook is told where storage lets it, and both are told all of it
// in the end.
func TestAFailingHookHoldsNoKeyUp(t *testing.T) {
	t.Parallel()
	for name, fails := range whatFailsWithHooks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := storetest.NewMemory()
			faulty := storetest.NewFaulty(memory)
			m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
			for _, hook := range []string{"bad", "good"} {
				// Nobody listens there: what is told stays in the outbox.
				m.write("webhooks/"+hook, object{"url": "http://127.0.0.1:1/", "allow_private": true})
			}
			m.role(object{"overlap_period": "10m", "rotation_period": "1h", "rollback_window": 0, "reminders": []any{}, "notify_before": 0})
			v1 := m.key("globex", nil)
			id := m.keyID("globex")
			m = m.reopen() // hooks are loaded under the fault
			faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: fails})
			m.passUntold(61 * time.Minute)
			m.wantStates("globex", "retiring active")
			m.wantCodes("VALID", v1)
			m.passUntold(10 * time.Minute)
			m.wantStates("globex", "retired active")
			m.passUntold(50 * time.Minute)
			m.wantStates("globex", "retired retiring active")
			if strings.Contains(name, "one") && len(memory.Paths("outbox/good/")) == 0 {
				t.Error("the other webhook was told nothing")
			}
			faulty.Heal()
			m.pass(2 * time.Hour)
			m.flush()
			m.pass(2 * time.Hour)
			k, err := m.engineNow().store.Key(t.Context(), id)
			if err != nil || len(k.Owed) != 0 {
				t.Fatalf("%d events are owed, %v", len(k.Owed), err)
			}
			var want []string
			for seq := range k.EventSeq {
				want = append(want, fmt.Sprintf("%s.%020d", id, seq+1))
			}
			for _, hook := range []string{"bad", "good"} {
				var got []string
				for _, path := range memory.Paths("outbox/" + hook + "/") {
					got = append(got, strings.TrimPrefix(path, "outbox/"+hook+"/"))
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s was told %d events, want %d: %v", hook, len(got), len(want), got)
				}
			}
		})
	}
}

// passUntold is pass where telling may fail.
func (m *mount) passUntold(d time.Duration) {
	m.t.Helper()
	for ; d >= time.Minute; d -= time.Minute {
		m.clock.Advance(time.Minute)
		if _, err := m.engineNow().ticker.Tick(m.t.Context()); err != nil {
			m.t.Fatalf("tick: %v", err)
		}
		_ = m.engineNow().watch.tell(m.t.Context())
	}
}

// TestASecretThatNobodyWasAnsweredIsMadeAgain: the write that makes a webhook
// fails, and may have taken effect; whoever tries again gets the secret that
// signs.
func TestASecretThatNobodyWasAnsweredIsMadeAgain(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		for _, looked := range []bool{false, true} {
			t.Run(fmt.Sprintf("applied %t, looked at %t", applied, looked), func(t *testing.T) {
				t.Parallel()
				memory := storetest.NewMemory()
				faulty := storetest.NewFaulty(memory)
				m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
				hook := object{"url": "https://example.com/"}
				fails := func() {
					t.Helper()
					faulty.Inject(storetest.Fault{At: 1, Applied: applied, Only: func(op storetest.Op) bool {
						return op.Kind == storetest.Put && op.Path == "webhook/ops"
					}})
					if a := m.request(logical.UpdateOperation, "webhooks/ops", hook); a.status != http.StatusInternalServerError || a.data[fieldSecret] != nil {
						t.Fatalf("%s", a)
					}
				}
				fails()
				if looked {
					m.request(logical.ReadOperation, "webhooks/ops", nil)
				}
				fails()
				a := m.request(logical.UpdateOperation, "webhooks/ops", hook)
				if a.status != http.StatusOK {
					t.Fatalf("tried again: %s", a)
				}
				h, err := m.engineNow().watch.hooks.Hook(t.Context(), "ops")
				if err != nil || len(h.Secrets) != 1 || h.Secrets[0].Value != text(t, a.data[fieldSecret]) {
					t.Errorf("%d secrets sign, %v", len(h.Secrets), err)
				}
				if a := m.request(logical.UpdateOperation, "webhooks/ops", hook); a.status != http.StatusNoContent {
					t.Errorf("changed: %s", a)
				}
				// A change that fails is no reason to make another.
				fails()
				if a := m.request(logical.UpdateOperation, "webhooks/ops", hook); a.status != http.StatusNoContent {
					t.Errorf("changed after a failure: %s", a)
				}
			})
		}
	}
}

// TestAHookThatCannotBeReadIsShownAsSuch, can be deleted, and neither changed
// nor taken for absent.
func TestAHookThatCannotBeReadIsShownAsSuch(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ stored, says string }{
		"damaged": {`{"schema":1,"secrets":"whsec_`, "delete it and make it again"},
		"newer":   {`{"schema":99}`, "run the newer plugin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			m.write("webhooks/ops", object{"url": "https://example.com/"})
			if err := m.storage.Put(t.Context(), &logical.StorageEntry{Key: "webhook/ops", Value: []byte(c.stored)}); err != nil {
				t.Fatal(err)
			}
			m = m.reopen()
			if names := m.list("webhooks", nil); !slices.Equal(names, []string{"ops"}) {
				t.Errorf("listed are %v", names)
			}
			for _, op := range []logical.Operation{logical.ReadOperation, logical.PatchOperation} {
				a := m.request(op, "webhooks/ops", object{"enabled": false})
				if a.status != 500 || !strings.Contains(a.errText, c.says) || strings.Contains(a.errText, "whsec_") {
					t.Errorf("%s: %s", op, a)
				}
			}
			m.remove("webhooks/ops")
			m.write("webhooks/ops", object{"url": "https://example.com/"})
		})
	}
}

// TestWhatCouldNotBeToldIsToldOnceStorageIsBack: without a tick of its key, and
// without anything new to tell.
func TestWhatCouldNotBeToldIsToldOnceStorageIsBack(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	m.write("webhooks/w", object{"url": "http://127.0.0.1:1/", "allow_private": true}) // nobody listens there
	m.role(object{"overlap_period": "1h", "reminders": []any{}})
	m.key("acme", nil)
	m.tell()
	told := len(memory.Paths("outbox/w/"))
	faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: whatFailsWithHooks["all outboxes"]})
	m.rotate("acme", nil)
	if err := m.engineNow().watch.tell(t.Context()); err == nil && len(memory.Paths("outbox/w/")) > told {
		t.Fatal("storage took what it was to refuse")
	}
	faulty.Heal()
	m.tell()
	if now := len(memory.Paths("outbox/w/")); now <= told {
		t.Errorf("%d events wait for delivery, and %d did before the rotation", now, told)
	}
}
