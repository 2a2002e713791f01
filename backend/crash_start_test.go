// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// mountKeys are the keys of a mount, and empty where none are stored.
func (w *cutWorld) mountKeys() string {
	w.t.Helper()
	if len(w.memory.Paths("mount/")) == 0 {
		return ""
	}
	state := object{}
	w.entry("mount/state", &state)
	return fmt.Sprint(state["data_key"], state["index_key"])
}

// TestEveryCrashOfTheFirstStart cuts off the first start of a mount, and what
// its operator does then, at each storage operation. The keys that the mount has
// made for itself are never replaced, so what was answered can be read; and all
// of it can be repeated.
func TestEveryCrashOfTheFirstStart(t *testing.T) {
	t.Parallel()
	for _, mode := range cutModes() {
		for n, reached := 1, true; reached; n++ {
			t.Run(fmt.Sprintf("operation %d, lost %v, applied %v", n, mode.Rest, mode.Applied), func(t *testing.T) {
				memory := storetest.NewMemory()
				w := &cutWorld{faulty: storetest.NewFaulty(memory)}
				fault := mode
				fault.At = n
				w.faulty.Inject(fault)
				w.mount = newIdleMount(t, memory, w.faulty, clock.NewManual(epoch))
				if w.initialize() != nil {
					_ = w.initialize() // as the first request does
				}
				first := posts(
					// It is told everything, and nobody fetches it.
					post("webhooks/log", object{"url": "https://example.com/", "enabled": false}), post("roles/r", object{"overlap_period": "1h"}),
					post("keys/acme", object{fieldRole: "r"}), post("keys/brought", object{fieldRole: "r", fieldImportKey: cutImport}),
				)
				began := first(w)
				reached = w.faulty.Failed() > 0
				w.faulty.Heal()
				keys := w.mountKeys()
				if mode.Rest {
					w.restart()
				}
				if began >= 400 && began < 500 {
					t.Errorf("a failure of storage is answered with status %d", began)
				}
				for presented := range w.secrets {
					if code := w.code(presented); code != "VALID" && (presented != cutImport || began < 300) {
						t.Errorf("a token that was answered is %s", code)
					}
				}
				if again := first(w); again >= 300 {
					t.Fatalf("repeated, it answers %d", again)
				}
				for range 3 {
					w.clock.Advance(time.Minute)
					w.settled()
					w.rules(cut{})
				}
				w.atTheEnd()
				if now := w.another().mountKeys(); keys != "" && now != keys {
					t.Error("the keys of the mount were replaced")
				}
				w.another().rules(cut{})
			})
		}
	}
}

// TestEveryCrashOfACleanup cuts off, at each storage operation, the end of a
// process that stores what it has counted. Nothing counts twice, and what a
// process learns from what is stored is enough to go on.
func TestEveryCrashOfACleanup(t *testing.T) {
	t.Parallel()
	for _, mode := range cutModes() {
		for n, reached := 1, true; reached; n++ {
			t.Run(fmt.Sprintf("operation %d, lost %v, applied %v", n, mode.Rest, mode.Applied), func(t *testing.T) {
				memory := storetest.NewMemory()
				w := &cutWorld{faulty: storetest.NewFaulty(memory)}
				w.mount = newMountOn(t, memory, w.faulty, clock.NewManual(epoch))
				w.still()
				w.write("webhooks/log", object{"url": "https://example.com/", "enabled": false})
				w.role(nil)
				token := w.key("acme", nil)
				w.tell()
				const before, after = 3, 2
				for range before {
					w.wantCodes("VALID", token)
				}
				fault := mode
				fault.At = n
				w.faulty.Inject(fault)
				w.Cleanup(t.Context())
				reached = w.faulty.Failed() > 0
				w.faulty.Heal()
				w.restart()
				stored := w.uses("acme")
				if stored > before || !reached && stored != before {
					t.Errorf("%d uses are stored of %d", stored, before)
				}
				for range after {
					w.wantCodes("VALID", token)
				}
				w.clock.Advance(time.Minute)
				w.settled()
				if told := w.tells("acme", keyring.EventVersionFirstUsed); told != 1 {
					t.Errorf("its first use is told %d times", told)
				}
				// That a note tells of one use is no count.
				if got := w.another().uses("acme"); got > stored+after || got < max(stored, after) || !reached && got != before+after {
					t.Errorf("of %d stored uses and %d more there are %d", stored, after, got)
				}
				w.rules(cut{})
				w.settled()
				w.atTheEnd()
			})
		}
	}
}

// uses is how often version 1 of a key was used.
func (w *cutWorld) uses(name string) int {
	w.t.Helper()
	return number(w.t, versions(w.t, w.read("keys/"+name))[0]["use_count"])
}

// TestATestOfAWebhookWritesNothing: so there is nothing in it to cut off.
func TestATestOfAWebhookWritesNothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("webhooks/ops", object{"url": "http://127.0.0.1:1/", "allow_private": true})
	m = m.reopen()
	before := m.snapshot()
	if a := m.request(logical.UpdateOperation, "webhooks/ops/test", nil); a.status != http.StatusOK || a.data["delivered"] != false {
		t.Errorf("%s", a)
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("it changed %s", diff)
	}
}
