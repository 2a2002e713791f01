// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/anomaly"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// TestUseSurvivesARestart: in keys/<name> and in usage/<name>, and a retried
// report still counts once.
func TestUseSurvivesARestart(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	v1 := m.key("acme", nil)
	m.wantCodes("VALID VALID", v1, v1)
	m.tell()
	id := text(t, m.read("keys/acme")[fieldKeyID])
	report := object{
		"verifier": "edge", "boot": "1", "sequence": 1, "reported_through": m.clock.Now().Format(time.RFC3339),
		"entries": []any{object{fieldKeyID: id, fieldVersion: 1, fieldSource: "eu", "count": 5}},
	}
	m.write("usage", report)
	wants := func() {
		t.Helper()
		if v := versions(t, m.read("keys/acme"))[0]; number(t, v["use_count"]) != 7 || v["last_used_time"] != "2026-01-05T00:00:00Z" {
			t.Errorf("the key says %v, %v", v["use_count"], v["last_used_time"])
		}
		if v := aMap(t, aMap(t, m.read("usage/acme")["versions"])["1"]); number(t, v["use_count"]) != 7 {
			t.Errorf("usage says %v", v)
		}
	}
	wants()
	m.flush()
	wants()
	m = m.reopen()
	wants()
	if got := m.write("usage", report); got["duplicate"] != true {
		t.Errorf("a report that is sent again answers %v", got)
	}
	wants()
	history := toJSON(m.read("history/acme"))
	if strings.Count(history, "version.first_used") != 1 {
		t.Errorf("the history is %s", history)
	}
}

// TestAReportIsAnsweredWhenItsSourcesAreStored: who reports tells nothing again
// that was answered, and a crash would hide the source.
func TestAReportIsAnsweredWhenItsSourcesAreStored(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ applied, crash bool }{"not stored": {}, "stored and not told": {applied: true}, "repeated after a crash": {crash: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := storetest.NewMemory()
			faulty := storetest.NewFaulty(memory)
			m := newMountOn(t, memory, faulty, clock.NewManual(epoch.Add(30*time.Second)))
			m.role(object{"overlap_period": "2h", "max_overlap_period": "720h", "drain_quiet_period": "1h", "extend_until_drained": true})
			v1 := m.key("acme", nil)
			m.use(v1, "eu")
			m.flush()
			m.rotate("acme", nil)
			sequence := 0
			report := func(entries ...any) object {
				sequence++
				return object{"verifier": "edge", "boot": "b", "sequence": sequence, "reported_through": stamp(m.clock.Now()), "entries": entries}
			}
			first := report(object{fieldKeyID: m.read("keys/acme")[fieldKeyID], fieldVersion: 1, fieldSource: "us", "count": 3})
			faulty.Inject(storetest.Fault{At: 1, WritesOnly: true, Applied: c.applied, Rest: !c.applied})
			if a := m.request(logical.UpdateOperation, "usage", first); a.status != http.StatusInternalServerError || !strings.Contains(a.errText, "send it again") {
				t.Errorf("a report whose source is not stored answers %s", a)
			}
			faulty.Heal()
			// Storage comes to know that the report was counted, and no count.
			cut := func() {
				faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool { return strings.HasPrefix(op.String(), "put usage/") }})
				if err := m.engineNow().watch.flush(t.Context()); err == nil || faulty.Failed() == 0 {
					t.Errorf("the flush says %v", err)
				}
				faulty.Heal()
			}
			if c.crash {
				cut()
				m = m.crash()
			}
			if got := m.write("usage", first); got["duplicate"] != true {
				t.Errorf("the repeated report answers %v", got)
			}
			if !c.crash {
				cut()
			}
			m = m.crash()
			m.pass(30 * time.Hour)
			m.write("usage", report()) // up to now
			m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "not seen on a newer version yet: eu, us")
		})
	}
}

func TestAnIdleMinuteCostsNothingWithWebhooksToo(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch.Add(30*time.Second)))
	idle := func() {
		t.Helper()
		for range 5 {
			counting.Reset()
			m.clock.Advance(time.Minute)
			m.tick()
			m.flush()
			if got := counting.Total(); got.All() != 0 {
				t.Errorf("an idle minute costs %s", got)
			}
		}
	}
	idle()
	m.write("webhooks/hook", object{"url": "https://example.com/hook", "enabled": false})
	m.flush()
	idle()
}

// TestNoEventsAreKeptWhereNobodyIsTold also for a webhook that was refused.
func TestNoEventsAreKeptWhereNobodyIsTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	m.refused(badStatus, "update", "webhooks/hook", object{"url": "file:///etc/passwd"}, "url")
	m.key("acme", nil)
	m.rotate("acme", nil)
	for path, value := range m.snapshot() {
		if strings.HasPrefix(path, "outbox/") || strings.HasPrefix(path, "key/") && strings.Contains(value, `"owed"`) {
			t.Errorf("%s keeps events", path)
		}
	}
}

// TestANoticeThatFailsHoldsNobodyUp, and a finding is told once storage takes it.
func TestANoticeThatFailsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	m.role(nil)
	bad, good := m.key("bad", nil), m.key("good", nil)
	m.tell()
	id := m.keyID("bad")
	faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool {
		return op.Kind == storetest.Put && op.Path == "key/"+id
	}})
	w := m.engineNow().watch
	w.notify(notice{keyID: id, version: 1, finding: &anomaly.Finding{Kind: anomaly.UnseenSource, KeyID: id, Version: 1}})
	m.wantCodes("VALID VALID", bad, good)
	if err := w.tell(t.Context()); !errors.Is(err, storetest.ErrInjected) {
		t.Errorf("%v", err)
	}
	history := func(name, event string, want int) {
		t.Helper()
		if n := strings.Count(toJSON(m.read("history/"+name)), event); n != want {
			t.Errorf("%d times %s of %s, want %d", n, event, name, want)
		}
	}
	history("good", "version.first_used", 1)
	history("bad", "anomaly.detected", 0)
	faulty.Heal()
	m.wantCodes("VALID", bad)
	m.tell()
	history("bad", "anomaly.detected", 1)
	history("bad", "version.first_used", 1)
}

// TestFirstUsesThatCannotBeToldHoldNothingUp: counts and reports are stored all the
// same, and the first uses are told once storage takes them, also after a crash.
func TestFirstUsesThatCannotBeToldHoldNothingUp(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		memory := storetest.NewMemory()
		faulty := storetest.NewFaulty(memory)
		m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
		m.role(nil)
		var names, keys []string
		for i := range 3 * maxUntold {
			names = append(names, fmt.Sprintf("k%d", i))
			keys = append(keys, m.key(names[i], nil))
			m.wantCodes("VALID", keys[i])
		}
		m.write("usage", object{
			"verifier": "edge", "boot": "1", "sequence": 1, "reported_through": stamp(m.clock.Now()),
			"entries": []any{object{fieldKeyID: m.keyID("k0"), fieldVersion: 1, fieldSource: "eu", "count": 5}},
		})
		faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool {
			return op.Kind == storetest.Put && strings.HasPrefix(op.Path, "key/")
		}})
		w := m.engineNow().watch
		for range 3 {
			for _, apiKey := range keys {
				m.wantCodes("VALID", apiKey)
			}
			if err := w.tell(t.Context()); !errors.Is(err, storetest.ErrInjected) {
				t.Errorf("telling says %v", err)
			}
			if err := w.flush(t.Context()); err != nil {
				t.Errorf("the flush says %v", err)
			}
		}
		if waiting := len(w.notices); waiting != len(names) {
			t.Errorf("%d notices wait of %d first uses", waiting, len(names))
		}
		faulty.Heal()
		if crash {
			m = m.crash()
			m.tick()
		}
		m.tell()
		for i, name := range names {
			want := 4
			if i == 0 {
				want = 9
			}
			if got := number(t, versions(t, m.read("keys/"+name))[0]["use_count"]); got != want {
				t.Errorf("crash %v: %s was used %d times, want %d", crash, name, got, want)
			}
			if n := strings.Count(toJSON(m.read("history/"+name)), "version.first_used"); n != 1 {
				t.Errorf("crash %v: the first use of %s is told %d times", crash, name, n)
			}
		}
		m.flush()
		if left := m.memory.Paths("firstuse/"); len(left) > 0 {
			t.Errorf("crash %v: once all are told there are the notes %v", crash, left)
		}
	}
}

// TestUsesWaitUntilTheirNewSourceIsTold, also where telling fails for long, and where
// the detector has forgotten the key meanwhile; then they are stored.
func TestUsesWaitUntilTheirNewSourceIsTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	id := m.keyID("acme")
	w := m.engineNow().watch
	w.held[id] = false // as a finding leaves it
	use := []usage.Use{{Version: 1, Source: "x", Count: 1, LastUsed: m.clock.Now()}}
	none := func() usage.Stored { return usage.Stored{Complete: true} }
	for range 3 {
		if w.detector.Forget(id); !w.usedFrom(id, none, use) {
			t.Error("uses are stored before their source was told")
		}
	}
	w.notify(notice{keyID: id, version: 1, finding: &anomaly.Finding{Kind: anomaly.UnseenSource, KeyID: id, Version: 1}})
	m.tell()
	if w.usedFrom(id, none, use) || len(w.held) > 0 {
		t.Error("uses wait though their source was told")
	}
}
