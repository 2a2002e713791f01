// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/anomaly"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// reports makes reports of one verifier, each with the next number.
func (m *mount) reports() func(entries ...any) object {
	sequence := 0
	return func(entries ...any) object {
		sequence++
		return object{"verifier": "edge", "boot": "1", "sequence": sequence, "reported_through": stamp(m.clock.Now()), "entries": entries}
	}
}

// alarms are the findings in the history of a key, and how often it says that
// an ended version was used.
func alarms(history []keyring.Event) (found []string, staleUses int) {
	for _, e := range history {
		switch e.Type { //nolint:exhaustive // others are no alarms
		case keyring.EventAnomalyDetected:
			found = append(found, fmt.Sprintf("%d %s", e.Version, e.Detail))
		case keyring.EventVersionStaleUse:
			staleUses++
		}
	}
	return found, staleUses
}

func (m *mount) stored(id string) *keyring.Key {
	m.t.Helper()
	k, err := m.engineNow().store.Key(m.t.Context(), id)
	if err != nil {
		m.t.Fatal(err)
	}
	return k
}

// TestWhatTheEdgeRefusesRaisesTheAlarmsOfVerify: once for each report, from
// that source, and where the last use came after the end.
func TestWhatTheEdgeRefusesRaisesTheAlarmsOfVerify(t *testing.T) {
	t.Parallel()
	end := func(how string, data object) func(*mount) {
		return func(m *mount) { m.write(how, data) }
	}
	compromise := end("revoke/acme", object{fieldVersion: 1, fieldCompromised: true})
	for name, tc := range map[string]struct {
		end func(*mount)
		// used is how long after the end the last use was, and reported how long
		// after that it is told.
		used, reported time.Duration
		count          int
		want           string
		metric         string
	}{
		"compromised":                {end: compromise, used: 0, want: "version 1, reported as leaked 1s ago", metric: "COMPROMISED"},
		"compromised, reported late": {end: compromise, used: time.Hour, reported: 5 * time.Hour, want: "version 1, reported as leaked 1h0m0s ago", metric: "COMPROMISED"},
		"compromised, used before":   {end: compromise, used: -time.Second, reported: time.Minute},
		"compromised, not refused":   {end: compromise, used: time.Hour, count: -1},
		"revoked":                    {end: end("revoke/acme", object{fieldVersion: 1}), used: time.Hour, want: "version 1, revoked 1h0m0s ago", metric: "REVOKED"},
		"revoked a moment ago":       {end: end("revoke/acme", object{fieldVersion: 1}), used: time.Minute, reported: time.Hour, metric: "REVOKED"},
		"retired":                    {end: end("retire/acme", object{fieldVersion: 1, fieldForce: true}), used: time.Hour, want: "version 1, retired 1h0m0s ago", metric: "RETIRED"},
		"retired by its age":         {end: func(m *mount) { m.clock.Advance(22 * time.Hour) }, used: time.Hour, want: "version 1, retired 1h0m0s ago", metric: "EXPIRED"},
		"accepted":                   {end: func(*mount) {}, used: time.Hour},
		"of a deleted key":           {end: func(m *mount) { compromise(m); m.remove("keys/acme") }, used: time.Hour, want: "version 1, reported as leaked 1h0m0s ago", metric: "COMPROMISED"},
		"of a key that is disabled": {end: func(m *mount) {
			m.write("retire/acme", object{fieldVersion: 1, fieldForce: true})
			m.write("keys/acme", object{fieldEnabled: false})
		}, used: time.Hour},
		"retired, and a later commit": {end: func(m *mount) { m.write("retire/acme", object{fieldVersion: 1, fieldForce: true}) }, used: time.Minute, reported: time.Hour, metric: "RETIRED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			m.role(object{"overlap_period": "10h", "version_ttl": "22h"})
			m.key("acme", nil)
			if name != "retired by its age" {
				m.rotate("acme", object{"overlap_period": "20h"})
			}
			id := m.keyID("acme")
			report := m.reports()
			tc.end(m)
			ended := m.clock.Now()
			m.clock.Advance(max(0, tc.used+tc.reported))
			if name == "retired, and a later commit" {
				m.rotate("acme", nil)
			}
			count, refused := 0, 500
			if tc.count < 0 {
				count, refused = 3, 0
			}
			one := report(object{fieldKeyID: id, fieldVersion: 1, fieldSource: "eu", "count": count, "refused": refused, "last_used": ended.Add(tc.used).Format(time.RFC3339Nano)})
			for _, again := range []bool{false, true} {
				if got := m.write("usage", one); got["duplicate"] != again || toJSON(got["errors"]) != "[]" {
					t.Fatalf("the report answers %v", got)
				}
				m.tell()
				m.flush()
				found, staleUses := alarms(m.stored(id).History)
				if tc.want == "" {
					if len(found)+staleUses > 0 {
						t.Errorf("alarms are %q and %d uses of ended versions", found, staleUses)
					}
				} else if len(found) != 1 || staleUses != 1 || !strings.Contains(found[0], "ended_version_use: "+tc.want) || !strings.Contains(found[0], "eu)") {
					t.Errorf("alarms are %q and %d uses of ended versions, want one: %s", found, staleUses, tc.want)
				}
			}
			shown := only(m.scrape(), "apikeys_reported_refusals_total")
			for _, code := range []string{"COMPROMISED", "REVOKED", "RETIRED", "EXPIRED"} {
				want := 0
				if code == tc.metric {
					want = 500
				}
				if line := fmt.Sprintf(`apikeys_reported_refusals_total{code=%q,role="r"} %d`, code, want); !strings.Contains(shown, line) {
					t.Errorf("no line %s among\n%s", line, shown)
				}
			}
		})
	}
}

// TestTheUseOfAVersionThatReachedItsAgeRaisesAnAlarm: version_ttl ended it, and
// a client goes on.
func TestTheUseOfAVersionThatReachedItsAgeRaisesAnAlarm(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "10m", "version_ttl": "30m", "ttl": "30m", "max_ttl": "1h"})
	v1 := m.key("acme", nil)
	leased, leasedID, _ := m.lease()
	m.pass(2 * time.Hour)
	for _, presented := range []string{v1, leased} {
		if got := m.use(presented, "eu"); got != "EXPIRED" {
			t.Errorf("it is %s", got)
		}
	}
	m.tell()
	if found, staleUses := alarms(m.stored(m.keyID("acme")).History); len(found) != 1 || staleUses != 1 || !strings.Contains(found[0], "version 1, retired 1h30m0s ago") {
		t.Errorf("alarms are %q and %d uses of ended versions", found, staleUses)
	}
	if found, _ := alarms(m.stored(leasedID).History); len(found) > 0 {
		t.Errorf("a lease that ran out raises %q", found)
	}
}

// TestNothingIsCountedOfADeletedKey, at verify and in reports: nobody would
// remove it. The alarm is raised all the same.
func TestNothingIsCountedOfADeletedKey(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	v1 := m.key("acme", nil)
	m.rotate("acme", nil)
	m.write("revoke/acme", object{fieldVersion: 1, fieldCompromised: true})
	id := m.keyID("acme")
	m.remove("keys/acme")
	m.flush()
	m = m.reopen()
	if got := m.use(v1, "eu"); got != "COMPROMISED" {
		t.Errorf("it is %s", got)
	}
	report := m.reports()
	got := m.write("usage", report(
		object{fieldKeyID: id, fieldVersion: 1, fieldSource: "us", "count": 2, "refused": 4},
		object{fieldKeyID: id, fieldVersion: 1, fieldSource: "us", "count": 2},
		object{fieldKeyID: id, fieldVersion: 2, fieldSource: "us", "refused": 2}))
	if got["counted"] != float64(1) || strings.Count(toJSON(got["errors"]), `"index"`) != 2 {
		t.Errorf("the report answers %v", got)
	}
	m.pass(3 * time.Minute)
	m.flush()
	m.tell()
	if found, _ := alarms(m.stored(id).History); len(found) != 2 {
		t.Errorf("alarms are %q", found)
	}
	for _, path := range append(m.memory.Paths("usage/"), m.memory.Paths("firstuse/")...) {
		entry, err := m.storage.Get(t.Context(), path)
		if err != nil || entry == nil || strings.Contains(string(entry.Value), id) {
			t.Errorf("%s tells of the deleted key: %s, %v", path, entry.Value, err)
		}
	}
}

// TestTheUseOfADamagedKeyIsCounted as it is reported: its versions must not look
// unused once the entry is mended. It stops nothing that is told of others, and
// nothing is tried for it again and again.
func TestTheUseOfADamagedKeyIsCounted(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	m.key("globex", nil)
	m.rotate("globex", nil)
	acme, globex := m.keyID("acme"), m.keyID("globex")
	sound, err := m.memory.Get(t.Context(), "key/"+globex)
	if err != nil || sound == nil {
		t.Fatal(sound, err)
	}
	m.damage("globex", "{")
	m = m.reopen()
	report := m.reports()
	got := m.write("usage", report(
		object{fieldKeyID: globex, fieldVersion: 1, fieldSource: "eu", "count": 2, "refused": 2},
		object{fieldKeyID: globex, fieldVersion: 0, fieldSource: "eu", "count": 3},
		object{fieldKeyID: globex, fieldSource: "eu", "count": 3},
		object{fieldKeyID: acme, fieldVersion: 1, fieldSource: "eu", "count": 7}))
	if faults := toJSON(got["errors"]); got["counted"] != float64(2) || strings.Count(faults, "the key has no version 0") != 2 {
		t.Errorf("the report answers %v", got)
	}
	if err := m.engineNow().watch.tell(t.Context()); err != nil && !errors.Is(err, store.ErrDamaged) {
		t.Errorf("it is told with %v", err)
	}
	m.write("usage", report(object{fieldKeyID: globex, fieldVersion: 1, fieldSource: "eu", "count": 3}))
	m.tell() // what could not be told of the damaged key is not tried again
	if v := versions(t, m.read("keys/acme"))[0]; number(t, v["use_count"]) != 7 {
		t.Errorf("of the other key %v uses are counted", v["use_count"])
	}
	m.pass(3 * time.Minute)
	if err := m.memory.Put(t.Context(), sound); err != nil {
		t.Fatal(err)
	}
	m = m.reopen()
	v1 := aMap(t, aMap(t, m.read("usage/globex")["versions"])["1"])
	eu := aMap(t, aMap(t, v1["sources"])["eu"])
	if number(t, v1["use_count"]) != 5 || number(t, v1["refused"]) != 2 || number(t, eu["count"]) != 5 {
		t.Errorf("of the mended key there is %v", v1)
	}
}

// TestAFindingAboutADamagedKeyIsNotToldForEver: there is no history to tell it
// in, and what others have to tell would wait.
func TestAFindingAboutADamagedKeyIsNotToldForEver(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	id := m.keyID("acme")
	m.damage("acme", "{")
	m = m.reopen()
	w := m.engineNow().watch
	w.notify(notice{keyID: id, version: 1, finding: &anomaly.Finding{Kind: anomaly.EndedVersionUse, Version: 1}})
	if err := w.tell(t.Context()); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("it is told with %v", err)
	}
	if err := w.tell(t.Context()); err != nil || len(w.notices) > 0 {
		t.Errorf("it is tried again: %v, %d wait", err, len(w.notices))
	}
}

// TestAReportThatLosesUseIsNotTakenForComplete: what cannot be counted, of keys
// and versions that there are, is not taken for quiet, also by the reports that
// come after it.
func TestAReportThatLosesUseIsNotTakenForComplete(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(entry object) any
		lost   bool
	}{
		"nothing wrong, of the new version": {change: func(e object) any { e[fieldVersion] = 2; return e }},
		"a source that is none":             {change: func(e object) any { e[fieldSource] = "a b"; return e }, lost: true},
		"of refused uses alone":             {change: func(e object) any { e[fieldSource], e["count"], e["refused"] = "a b", 0, 3; return e }},
		"of too many refused ones":          {change: func(e object) any { e["count"], e["refused"] = 0, maxReported+1; return e }},
		"a time in the future":              {change: func(e object) any { e["last_used"] = "2036-01-05T00:00:00Z"; return e }, lost: true},
		"a time that is none":               {change: func(e object) any { e["last_used"] = "now"; return e }, lost: true},
		"an id that is none":                {change: func(e object) any { e[fieldKeyID] = "acme"; return e }, lost: true},
		"no such key":                       {change: func(e object) any { e[fieldKeyID] = strings.Repeat("0", token.IDLength); return e }},
		"no such version":                   {change: func(e object) any { e[fieldVersion] = 9; return e }},
		"a count too large":                 {change: func(e object) any { e["count"] = maxReported + 1; return e }, lost: true},
		"a count that is none":              {change: func(e object) any { e["count"] = "many"; return e }, lost: true},
		"no map":                            {change: func(object) any { return "7 uses" }, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _, v2 := rolling(t, object{"overlap_period": "24h", "drain_quiet_period": "1h"})
			m.use(v2, "us")
			report := m.reports()
			m.pass(50 * time.Minute)
			entry := tc.change(object{fieldKeyID: m.keyID("acme"), fieldVersion: 1, fieldSource: "eu", "count": 3})
			a := m.request(logical.UpdateOperation, "usage", report(entry))
			if a.status != 0 && a.status != http.StatusOK || strings.Contains(strings.Join(a.warnings, " "), "counts for nothing") != tc.lost {
				t.Fatalf("the report answers %s", a)
			}
			if v := m.engineNow().keeper.Book.Reports.Verifiers(); len(v) != 1 || v[0].ReportedThrough.IsZero() != tc.lost {
				t.Errorf("it leaves %+v", v)
			}
			retires := func(want bool) {
				t.Helper()
				m.pass(30 * time.Minute)
				m.write("usage", report())
				if a := m.request(logical.UpdateOperation, "retire/acme", nil); strings.Contains(a.errText, "not drained") == want {
					t.Errorf("it retires: %s", a)
				}
			}
			if tc.lost {
				m.write("usage", report())
				m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained")
				retires(false) // 30 minutes after it
				m.pass(5 * time.Minute)
			}
			retires(true)
		})
	}
}

// TestReportsOfUnknownIDsAreLimited like those that are presented to verify,
// and what a report says of keys that exist is not lost.
func TestReportsOfUnknownIDsAreLimited(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch.Add(30*time.Second)))
	m.role(nil)
	m.key("acme", nil)
	id := m.keyID("acme")
	m = m.reopen()
	report := m.reports()
	made := 0
	unknown := func() (entries []any) {
		for range 1000 {
			made++
			entries = append(entries, object{fieldKeyID: fmt.Sprintf("%0*d", token.IDLength, made), fieldVersion: 1, fieldSource: "eu", "count": 1})
		}
		return entries
	}
	for range missBurst / 1000 {
		if got := m.write("usage", report(unknown()...)); got["counted"] != float64(0) {
			t.Fatalf("unknown ids are counted: %v", got)
		}
	}
	counting.Reset()
	last := report(slices.Concat([]any{object{fieldKeyID: id, fieldVersion: 1, fieldSource: "eu", "count": 5}}, unknown()[:999])...)
	if a := m.request(logical.UpdateOperation, "usage", last); a.status != http.StatusTooManyRequests || !strings.Contains(a.errText, "try again") {
		t.Errorf("too many unknown ids are answered %s", a)
	}
	if reads := counting.Total().Get; reads > 2 {
		t.Errorf("they cost %d reads", reads)
	}
	m.clock.Advance(2 * time.Second)
	if got := m.write("usage", last); got["counted"] != float64(1) || got["duplicate"] != false {
		t.Errorf("sent again the report answers %v", got)
	}
	if v := versions(t, m.read("keys/acme"))[0]; number(t, v["use_count"]) != 5 {
		t.Errorf("%v uses are counted", v["use_count"])
	}
}
