// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

const stored = `{"schema":1,"key_id":"EXAMPLEkey01","name":"billing","role":"partners","created_time":"2026-01-01T00:00:00Z",` +
	`"shape":{"x":[1]},"versions":[{"version":1,"state":"active","digest":"%064d","created_time":"2026-01-01T00:00:00Z",` +
	`"activated_time":"2026-01-01T00:00:00Z","curve":"p-256"}]}`

// TestUnknownFieldsAreKept at both levels, through transitions and a deletion.
func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	var k keyring.Key
	if err := json.Unmarshal(fmt.Appendf(nil, stored, 7), &k); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, &k, policy()}
	f.must(f.overlap(0, time.Hour))
	f.tick(2 * time.Hour)
	f.must(f.revoke(2*time.Hour, keyring.RevokeOptions{Version: 1, Compromised: true}))
	for what, k := range map[string]*keyring.Key{
		"key":       f.k,
		"reloaded":  reload(t, f.k),
		"tombstone": f.k.EndAll(at(3*time.Hour), keyring.Cleanup{}),
	} {
		text := dump(t, k)
		for _, want := range []string{`"shape":{"x":[1]}`, `"curve":"p-256"`} {
			if strings.Count(text, want) != 1 {
				t.Errorf("%s lost %s: %s", what, want, text)
			}
		}
	}
}

func TestStoredFormSurvivesARoundTrip(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.rotate(0, keyring.RotateOptions{Overlap: time.Hour, OverlapScopes: []string{"read"}}))
	f.must(f.rotate(time.Minute, keyring.RotateOptions{Overlap: time.Hour, ActivationDelay: time.Hour, OverlapScopes: []string{}}))
	f.k = f.k.RememberRequest(keyring.Request{ID: "a", Parameters: "b", Version: 3, Time: t0})
	if a, b := dump(t, f.k), dump(t, reload(t, f.k)); a != b {
		t.Errorf("wrote\n%s\nread\n%s", a, b)
	}
}

func TestWhatMustNotBeTouchedIsRefused(t *testing.T) {
	t.Parallel()
	good := fmt.Sprintf(stored, 7)
	second := `{"version":1,"state":"retired","digest":"` + strings.Repeat("0", 64) + `","created_time":"2026-01-01T00:00:00Z"}`
	for name, text := range map[string]string{
		"a newer schema":       strings.Replace(good, `"schema":1`, `"schema":2`, 1),
		"no schema":            strings.Replace(good, `"schema":1,`, ``, 1),
		"a zero state":         strings.Replace(good, `"state":"active",`, ``, 1),
		"the unknown state":    strings.Replace(good, `"active"`, `"unknown"`, 1),
		"a state of tomorrow":  strings.Replace(good, `"active"`, `"paused"`, 1),
		"a version 0":          strings.Replace(good, `"version":1`, `"version":0`, 1),
		"a number given twice": strings.Replace(good, `"p-256"}]}`, `"p-256"},`+second+`]}`, 1),
		"a damaged digest":     strings.Replace(good, `"digest":"0`, `"digest":"x`, 1),
		"not an object":        `[]`,
		"nothing":              ``,
	} {
		if text == good {
			t.Fatalf("%s: the case changes nothing", name)
		}
		var k keyring.Key
		err := json.Unmarshal([]byte(text), &k)
		if err == nil {
			t.Errorf("%s is read", name)
		}
	}
	var k keyring.Key
	if err := json.Unmarshal([]byte(strings.Replace(good, `"schema":1`, `"schema":2`, 1)), &k); err == nil || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("a newer schema: %v", err)
	}
	if _, err := json.Marshal(keyring.Key{Schema: 1, Versions: []keyring.Version{{Number: 1}}}); err == nil {
		t.Error("a zero state is written")
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	var zero keyring.State
	if zero != keyring.StateUnknown || zero.String() != "unknown" {
		t.Errorf("the zero state is %s", zero)
	}
	for _, s := range record.States() {
		text, err := s.MarshalText()
		var back keyring.State
		if err != nil || back.UnmarshalText(text) != nil || back != s {
			t.Errorf("%s: %q, %v, back %s", s, text, err, back)
		}
		final := s == revoked || s == compromised
		if s.Final() != final || s.Ended() != (final || s == retired) {
			t.Errorf("%s: final %t, ended %t", s, s.Final(), s.Ended())
		}
	}
	if _, err := keyring.State(99).MarshalText(); err == nil || keyring.State(99).String() != "State(99)" {
		t.Error("state 99 is written")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	for range 100 {
		f.must(f.overlap(0, 0))
	}
	if got := len(f.k.History); got != keyring.HistoryLimit {
		t.Errorf("%d events", got)
	}
	if last := f.k.History[len(f.k.History)-1]; last.Type != keyring.EventVersionActivated || last.Version != 101 || last.Actor != "alice" {
		t.Errorf("the last event is %+v", last)
	}
}

func TestHistoryTellsWhoAndWhen(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.wantEvents("key.created v0", "version.created v1", "version.activated v1")
	f.must(func(k *keyring.Key) (*keyring.Key, error) {
		return k.Rotate(keyring.Cause{Now: t0.Add(time.Minute), Actor: "bob", Reason: "audit"}, f.p, material(2), keyring.RotateOptions{Overlap: time.Hour})
	})
	f.wantEvents("version.created v2", "version.retiring v1", "version.activated v2")
	for _, e := range f.k.History[3:] {
		if e.Actor != "bob" || e.Reason != "audit" || !e.Time.Equal(t0.Add(time.Minute)) {
			t.Errorf("%+v", e)
		}
	}
	// What time alone did happened by itself, whoever came by.
	f.must(f.overlap(2*time.Hour, time.Hour))
	if e := f.k.History[6]; e.Type != keyring.EventVersionRetired || e.Actor != keyring.ActorPeriodic || e.Detail != "overlap over" {
		t.Errorf("%+v", e)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	remember := func(id string, when time.Duration) {
		f.Helper()
		f.must(func(k *keyring.Key) (*keyring.Key, error) {
			return k.RememberRequest(keyring.Request{ID: id, Version: 1, Time: t0.Add(when)}), nil
		})
	}
	known := func(id string, when time.Duration) bool {
		_, ok := f.k.FindRequest(id, t0.Add(when))
		return ok
	}
	for i := range keyring.RequestLimit + 1 {
		remember(fmt.Sprint(i), 0)
	}
	if len(f.k.Requests) != keyring.RequestLimit || known("0", 0) || !known("1", 0) || !known("16", 0) {
		t.Errorf("remembered %v", f.k.Requests)
	}
	if !known("16", keyring.RequestLife-1) || known("16", keyring.RequestLife) {
		t.Error("a request is not remembered for a day")
	}
	remember("late", keyring.RequestLife)
	if len(f.k.Requests) != 1 {
		t.Errorf("the expired are kept: %v", f.k.Requests)
	}
	remember("late", keyring.RequestLife)
	if len(f.k.Requests) != 1 {
		t.Errorf("one id twice: %v", f.k.Requests)
	}
}

func TestADeletedKeyRemembersWhatLeaked(t *testing.T) {
	t.Parallel()
	f := named(t, policy())
	f.must(f.overlap(0, time.Hour))
	f.must(f.overlap(0, time.Hour))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 1, Compromised: true}))
	f.must(f.revoke(0, keyring.RevokeOptions{Version: 2}))
	f.k = f.k.RememberRequest(keyring.Request{ID: "a", Time: t0})
	f.must(func(k *keyring.Key) (*keyring.Key, error) {
		return k.EndAll(at(time.Minute), keyring.Cleanup{Name: "billing"}), nil
	})
	f.k = reload(t, f.k)
	f.wantCode(time.Hour, 1, record.CodeCompromised)
	f.wantCode(time.Hour, 2, record.CodeNotFound)
	f.wantCode(time.Hour, 3, record.CodeNotFound)
	f.wantTime("deleted_time", f.k.Deleted, time.Minute)
	f.wantEvents("key.deleted v0")
	if f.k.ID != "EXAMPLEkey01" || f.k.Cleanup == nil || len(f.k.History) != 1 || len(f.k.Requests) != 0 {
		t.Errorf("tombstone %+v", f.k)
	}
}

func TestLabelNamesTheKey(t *testing.T) {
	t.Parallel()
	if got := named(t, policy()).k.Label(); got != `key "billing"` {
		t.Error(got)
	}
	if got := leased(t, policy()).k.Label(); got != `leased key "EXAMPLEkey02"` {
		t.Error(got)
	}
}

// TestUnknownFieldsSurviveAtEveryDepth: what a newer plugin added anywhere in a
// key is still there after this one has changed it.
func TestUnknownFieldsSurviveAtEveryDepth(t *testing.T) {
	t.Parallel()
	stored := `{"schema":1,"key_id":"aaaaaaaaaaaa","role":"r","created_time":"2026-01-01T00:00:00Z","added":1,
		"lease":{"entity_id":"e","added":2},
		"history":[{"time":"2026-01-01T00:00:00Z","type":"key.created","added":3}],
		"requests":[{"id":"x","parameters":"","version":1,"time":"2026-01-01T00:00:00Z","added":4}],
		"cleanup":{"role":"r","added":5},
		"versions":[{"version":1,"state":"active","digest":"` + digestText + `","created_time":"2026-01-01T00:00:00Z","added":6}]}`
	var k keyring.Key
	if err := json.Unmarshal([]byte(stored), &k); err != nil {
		t.Fatal(err)
	}
	next := k.RememberRequest(keyring.Request{ID: "y", Time: k.CreatedTime})
	next.Record(keyring.Cause{Now: k.CreatedTime}, keyring.EventKeyUpdated, 0, "")
	data, err := json.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 6; n++ {
		if field := fmt.Sprintf(`"added":%d`, n); !strings.Contains(string(data), field) {
			t.Errorf("%s is lost: %s", field, data)
		}
	}
}

var digestText = strings.Repeat("0", 64)
