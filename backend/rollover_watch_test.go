// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// told are the types of the events of acme, oldest first, that begin with a prefix.
func (m *mount) told(prefix string) string {
	m.t.Helper()
	m.tell()
	var types []string
	for _, e := range slices.Backward(list(m.t, m.read("history/acme")["transitions"])) {
		if kind := text(m.t, aMap(m.t, e)["type"]); strings.HasPrefix(kind, prefix) {
			types = append(types, kind)
		}
	}
	return strings.Join(types, " ")
}

func (m *mount) wantTold(prefix, want string) {
	m.t.Helper()
	if got := m.told(prefix); got != want {
		m.t.Errorf("at %s was told %q, want %q", m.clock.Now().Format(time.DateTime), got, want)
	}
}

func (m *mount) wantHealth(want string) {
	m.t.Helper()
	if r := m.read("rollovers/acme"); r["health"] != want {
		m.t.Errorf("at %s the rollover is %v: %v", m.clock.Now().Format(time.DateTime), r["health"], r["evidence"])
	}
}

// use verifies a token from a source.
func (m *mount) use(token, source string) string {
	m.t.Helper()
	return text(m.t, m.write("verify", object{fieldAPIKey: token, fieldSource: source})["code"])
}

// rolling is a key whose version 1, used in eu and us, was just superseded,
// with clients in eu that have moved.
func rolling(t *testing.T, role object) (m *mount, v1, v2 string) {
	t.Helper()
	m = newMount(t)
	m.role(role)
	v1 = m.key("acme", nil)
	m.use(v1, "eu")
	m.use(v1, "us")
	v2 = m.rotate("acme", nil)
	m.use(v2, "eu")
	return m, v1, v2
}

// TestHealthIsToldWhenItChanges without any reminder, once for each change.
func TestHealthIsToldWhenItChanges(t *testing.T) {
	t.Parallel()
	m, v1, v2 := rolling(t, object{"overlap_period": "10h", "reminders": []any{}})
	m.usePassing(4*time.Hour+50*time.Minute, v1)
	m.wantTold("rollover.", "")
	m.usePassing(20*time.Minute, v1)
	m.wantTold("rollover.", "rollover.stalled")
	m.usePassing(2*time.Hour, v1)
	m.wantTold("rollover.", "rollover.stalled")
	m.usePassing(time.Hour, v1)
	m.wantTold("rollover.", "rollover.stalled rollover.at_risk")
	m.usePassing(time.Hour, v2)
	m.wantHealth("on_track")
	m.usePassing(30*time.Minute, v1)
	m.wantTold("rollover.", "rollover.stalled rollover.at_risk rollover.at_risk")
}

// TestHealthIsToldPastTheEndThatClientsWereTold: there it is judged as often as
// the drain.
func TestHealthIsToldPastTheEndThatClientsWereTold(t *testing.T) {
	t.Parallel()
	m, v1, v2 := rolling(t, object{"overlap_period": "10h", "max_overlap_period": "12h", "reminders": []any{}, "extend_until_drained": true})
	m.usePassing(9*time.Hour+40*time.Minute, v2)
	m.wantTold("rollover.", "")
	m.usePassing(40*time.Minute, v1)
	m.wantTold("rollover.", "rollover.at_risk")
}

// usePassing lets time pass in minutes, with a use from us every ten.
func (m *mount) usePassing(d time.Duration, token string) {
	m.t.Helper()
	for ; d > 0; d -= 10 * time.Minute {
		m.pass(10 * time.Minute)
		m.use(token, "us")
	}
}

func TestLooksAtARolloverCostAFewWrites(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, newMount(t).clock)
	m.role(object{"overlap_period": "24h", "reminders": []any{}})
	v1 := m.key("acme", nil)
	m.use(v1, "eu")
	m.rotate("acme", nil)
	m.tick()
	m.flush()
	counting.Reset()
	m.pass(23 * time.Hour)
	if got := counting.Total(); got.Writes() > 6*5 || got.Get > 6 {
		t.Errorf("six looks cost %s", got)
	}
}

// TestARefusalBetweenTheDeadlineAndItsTickFailsTheRollover, also where the
// plugin starts again before the end is recorded.
func TestARefusalBetweenTheDeadlineAndItsTickFailsTheRollover(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		m, v1, _ := rolling(t, object{"overlap_period": "1h"})
		m.pass(59 * time.Minute)
		m.clock.Advance(time.Minute + time.Second)
		if code := m.use(v1, "us"); code != "RETIRED" {
			t.Fatalf("past its deadline version 1 is %s", code)
		}
		m.wantHealth("failed")
		if restart {
			m = m.reopen()
		}
		m.pass(2 * time.Minute)
		m.wantTold("rollover.f", "rollover.failed")
		m.wantTold("rollover.c", "")
		m.wantHealth("failed")
		m.use(v1, "us")
		m.pass(10 * time.Minute)
		m.wantTold("rollover.f", "rollover.failed")
	}
}

// TestARefusalAfterTheEndIsToldAtOnce and once, also by a verifier's report.
func TestARefusalAfterTheEndIsToldAtOnce(t *testing.T) {
	t.Parallel()
	for _, reported := range []bool{false, true} {
		m, v1, v2 := rolling(t, object{"overlap_period": "1h", "rollback_window": "0s"})
		m.use(v2, "us")
		m.pass(62 * time.Minute)
		m.wantTold("rollover.", "rollover.completed")
		sequence := 0
		refuse := func(lastUsed time.Time) {
			if !reported {
				m.use(v1, "us")
				return
			}
			sequence++
			m.write("usage", object{"verifier": "edge", "boot": "1", "sequence": sequence, "entries": []any{object{
				fieldKeyID: m.read("keys/acme")[fieldKeyID], fieldVersion: 1, "refused": 2, "last_used": lastUsed.Format(time.RFC3339),
			}}})
		}
		if reported { // before its end it was refused for another reason
			refuse(epoch.Add(30 * time.Minute))
			m.wantTold("rollover.", "rollover.completed")
		}
		for range 3 {
			refuse(m.clock.Now())
			m.wantTold("rollover.", "rollover.completed rollover.failed")
		}
	}
}

func TestARefusalForAnotherReasonIsNoFailedRollover(t *testing.T) {
	t.Parallel()
	m, v1, v2 := rolling(t, object{"overlap_period": "1h", "scopes": []any{"read"}})
	m.use(v2, "us")
	if code := m.write("verify", object{fieldAPIKey: v1, fieldScopes: []any{"write"}, fieldSource: "us"})["code"]; code != "INSUFFICIENT_SCOPE" {
		t.Fatalf("verify answers %v", code)
	}
	m.patch("keys/acme", object{"enabled": false})
	m.pass(65 * time.Minute)
	if code := m.use(v1, "us"); code != "DISABLED" {
		t.Fatalf("verify answers %v", code)
	}
	m.wantTold("rollover.f", "")
	m.wantTold("rollover.c", "rollover.completed")
	if got := m.read("rollovers/acme")["health"]; got == "failed" {
		t.Errorf("the rollover is %v", got)
	}
}

// TestAVersionThatIsBroughtBackStartsOver: what was refused after its first end
// does not fail its second one.
func TestAVersionThatIsBroughtBackStartsOver(t *testing.T) {
	t.Parallel()
	for _, recorded := range []bool{false, true} {
		m, v1, v2 := rolling(t, object{"overlap_period": "1h"})
		m.pass(59 * time.Minute)
		m.clock.Advance(time.Minute)
		m.use(v1, "us")
		if recorded {
			m.pass(2 * time.Minute)
		}
		m.write("extend/acme", object{"overlap_period": "1h"})
		m.use(v1, "us")
		m.use(v2, "us")
		m.pass(40 * time.Minute)
		m.wantHealth("on_track")
		m.pass(25 * time.Minute)
		m.wantHealth("on_track")
		first := ""
		if recorded {
			first = "rollover.failed "
		}
		m.wantTold("rollover.f", strings.TrimSpace(first))
		m.wantTold("rollover.c", "rollover.completed")
		m.use(v1, "us")
		m.wantHealth("failed")
		m.wantTold("rollover.f", first+"rollover.failed")
	}
}

// TestAKeyWithoutPlaintextStaysInRollovers until its version cannot be brought
// back any more, and then costs no entry.
func TestAKeyWithoutPlaintextStaysInRollovers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ role, key object }{
		"not retrievable":    {role: object{"retrievable": false}},
		"imported by digest": {key: object{fieldImportSHA256: strings.Repeat("5a", 32)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			role := object{"overlap_period": "1h", "rollback_window": "3h"}
			for field, value := range c.role {
				role[field] = value
			}
			m.role(role)
			data := object{fieldRole: "r"}
			for field, value := range c.key {
				data[field] = value
			}
			m.write("keys/acme", data)
			m.write("rotate/acme", nil)
			m.pass(90 * time.Minute)
			m.wantStates("acme", "retired active")
			if got := m.list("rollovers", nil); len(got) != 1 || len(m.memory.Paths("rollover/")) != 1 {
				t.Errorf("after the end of the overlap rollovers are %v", got)
			}
			m.wantHealth("on_track")
			m.pass(3 * time.Hour)
			if got := m.list("rollovers", nil); len(got) != 0 || len(m.memory.Paths("rollover/")) != 0 {
				t.Errorf("after the rollback window rollovers are %v", got)
			}
			m.refused(http.StatusNotFound, logical.ReadOperation, "rollovers/acme", nil)
		})
	}
}

// TestADamagedKeyHidesNoOtherRollover in the list.
func TestADamagedKeyHidesNoOtherRollover(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	for _, name := range []string{"acme", "bad"} {
		m.key(name, nil)
		m.rotate(name, nil)
	}
	bad := "key/" + m.keyID("bad")
	m = m.reopen()
	if err := m.memory.Put(t.Context(), &logical.StorageEntry{Key: bad, Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	if got := m.list("rollovers", nil); len(got) != 1 || got[0] != "acme" {
		t.Errorf("rollovers are %v", got)
	}
	if len(m.memory.Paths("rollover/")) != 2 {
		t.Error("the rollover of the damaged key is forgotten")
	}
}

// TestNoAccessorIsShown where several callers use one name of a source.
func TestNoAccessorIsShown(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	v1 := m.key("acme", nil)
	m.entity = ""
	for _, accessor := range []string{"hmac-accessor-a", "hmac-accessor-b"} {
		m.accessor = accessor
		m.use(v1, "eu")
	}
	m.entity = "entity-9"
	m.use(v1, "eu")
	m.rotate("acme", nil)
	var first string
	for range 2 {
		answers := toJSON(m.read("usage/acme")) + toJSON(m.read("rollovers/acme"))
		if strings.Contains(answers, "accessor") || !strings.Contains(answers, `"eu by entity:entity-9"`) || strings.Count(answers, "eu by token:") < 4 {
			t.Errorf("shown is %s", answers)
		}
		sources := aMap(t, aMap(t, aMap(t, m.read("usage/acme")["versions"])["1"])["sources"])
		names := fmt.Sprint(slices.Sorted(maps.Keys(sources)))
		if len(sources) != 3 || first != "" && names != first {
			t.Errorf("sources are %s, then %s", first, names)
		}
		first = names
		m = m.reopen()
	}
}

// TestWhatWasCountedIsStoredWhenThePluginStops, and a storage that fails or
// hangs does not keep it from stopping.
func TestWhatWasCountedIsStoredWhenThePluginStops(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.use(m.key("acme", nil), "eu")
	m = m.reopen()
	if v := aMap(t, aMap(t, m.read("usage/acme")["versions"])["1"]); number(t, v["use_count"]) != 1 {
		t.Errorf("usage says %v", v)
	}
	for _, mode := range []string{"fails", "hangs"} {
		m, faulty := faultyMount(t)
		m.role(nil)
		m.use(m.key("acme", nil), "eu")
		if mode == "fails" {
			faulty.Inject(storetest.Fault{At: 1, Rest: true})
		} else {
			release := make(chan struct{})
			faulty.Before(func(storetest.Op) { <-release })
			t.Cleanup(func() { close(release) })
		}
		soon(t, 2500*time.Millisecond, "to stop while storage "+mode, func() { m.Cleanup(t.Context()) })
		faulty.Heal()
	}
}

// TestAnUnseenSourceIsFoundAcrossRestarts: a restart makes no source look new,
// and hides none that is.
func TestAnUnseenSourceIsFoundAcrossRestarts(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	v1 := m.key("acme", nil)
	for day := range 20 {
		for _, source := range []string{"eu", "us"} {
			if code := m.use(v1, source); code != "VALID" {
				t.Fatalf("%s on day %d", code, day)
			}
		}
		m.flush()
		m.clock.Advance(12 * time.Hour)
		m.use(v1, "eu")
		m.flush()
		m.clock.Advance(12 * time.Hour)
	}
	m.wantTold("anomaly", "")
	for i := range 3 {
		m = m.reopen()
		m.use(v1, "eu")
		m.use(v1, "us")
		m.flush()
		if got := m.told("anomaly"); strings.Count(got, "anomaly.detected") != min(i, 1) {
			t.Fatalf("after restart %d: %q", i+1, got)
		}
		if i == 0 { // before anything was flushed that would make it known
			m = m.reopen()
			m.use(v1, "elsewhere")
			m.use(v1, "us")
			m.flush()
			if m.wantTold("anomaly", "anomaly.detected"); !strings.Contains(toJSON(m.read("history/acme")), "(source elsewhere)") {
				t.Errorf("the history is %v", m.read("history/acme"))
			}
		}
	}
}

// TestDamagedReportsDelayDrained: what cannot be read is not taken for what
// never was.
func TestDamagedReportsDelayDrained(t *testing.T) {
	t.Parallel()
	for _, damaged := range []bool{false, true} {
		m, _, v2 := rolling(t, object{"overlap_period": "24h", "drain_quiet_period": "10m"})
		m.use(v2, "us")
		if damaged {
			if err := m.storage.Put(t.Context(), &logical.StorageEntry{Key: "reports", Value: []byte("{")}); err != nil {
				t.Fatal(err)
			}
		}
		m = m.reopen()
		m.pass(30 * time.Minute)
		a := m.request(logical.UpdateOperation, "retire/acme", nil)
		if damaged != strings.Contains(a.errText, "not drained") || damaged != strings.Contains(a.errText, "not remembered") {
			t.Errorf("retire with damaged reports %v: %s", damaged, a)
		}
	}
}

// TestAfterACrashInstancesAreTakenAtTheirWord: what a crash lost may have been
// the only use of one, beside others in its source.
func TestAfterACrashInstancesAreTakenAtTheirWord(t *testing.T) {
	t.Parallel()
	m, _, v2 := rolling(t, object{"overlap_period": "24h", "drain_quiet_period": "10m"})
	m.use(v2, "us") // another instance there
	m.write("confirm/acme", object{fieldVersion: 1, fieldInstance: "us/pod-1"})
	m.pass(5 * time.Minute)
	// A crash: what was counted and not flushed is gone.
	m = newMountOn(t, m.memory, m.storage, m.clock)
	m.pass(30 * time.Minute)
	m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "instance us/pod-1")
	m.write("confirm/acme", object{fieldVersion: 2, fieldInstance: "us/pod-1"})
	m.write("retire/acme", nil)
	if v := versions(t, m.read("keys/acme"))[1]; !strings.HasPrefix(fmt.Sprint(v[fieldReason]), "drained: ") {
		t.Errorf("it was retired because %v", v[fieldReason])
	}
}

// crash ends the engine without a word, and starts another on what is stored.
func (m *mount) crash() *mount {
	m.t.Helper()
	memory := m.memory.Clone() // nothing that the first one still does reaches it
	next := newMountOn(m.t, memory, memory, m.clock)
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(next.secrets, m.secrets)
	return next
}

// TestACrashHidesNoSourceOfAnOldVersion, not even one all of whose uses came
// after the last flush, before or after the version was superseded, and which
// then pauses for much longer than the quiet time.
func TestACrashHidesNoSourceOfAnOldVersion(t *testing.T) {
	t.Parallel()
	one := func(m *mount, token string) { m.use(token, "us") }
	ways := map[string]func(m *mount, token string){
		"verify": one,
		"batch": func(m *mount, token string) {
			m.write("verify", object{"batch_input": []any{object{fieldAPIKey: token, fieldSource: "us"}, object{fieldAPIKey: token, fieldSource: "us"}}})
		},
		"report": func(m *mount, _ string) {
			report := object{
				"verifier": "edge", "boot": "b", "sequence": 1, "reported_through": stamp(m.clock.Now()),
				"entries": []any{object{fieldKeyID: m.read("keys/acme")[fieldKeyID], fieldVersion: 1, fieldSource: "us", "count": 3}},
			}
			m.write("usage", report)
		},
	}
	for way, use := range ways {
		for _, superseded := range []bool{false, true} {
			what := fmt.Sprintf("%s, superseded %v", way, superseded)
			m := newMount(t)
			m.role(object{"overlap_period": "2h", "max_overlap_period": "720h", "drain_quiet_period": "1h", "extend_until_drained": true})
			v1 := m.key("acme", nil)
			m.use(v1, "eu")
			m.flush()
			var v2 string
			if superseded {
				v2 = m.rotate("acme", nil)
			}
			use(m, v1)
			m = m.crash()
			if !superseded {
				v2 = m.rotate("acme", nil)
			}
			m.use(v2, "eu")
			m.pass(30 * time.Hour)
			if k := m.read("rollovers/acme"); k["from"] == nil {
				t.Errorf("%s: the rollover is %v", what, k)
			}
			m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "us")
			m.use(v2, "us")
			m.pass(2 * time.Hour)
			m.wantCodes("RETIRED VALID", v1, v2)
		}
	}
}
