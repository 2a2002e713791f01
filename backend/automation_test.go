// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

func (m *mount) current(name string) int {
	m.t.Helper()
	return number(m.t, m.read("keys/" + name)["current_version"])
}

func TestKeysRotateByThemselves(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "30m"})
	v1 := m.key("acme", nil)
	m.pass(59 * time.Minute)
	m.wantStates("acme", "active")
	m.pass(2 * time.Minute)
	m.wantStates("acme", "retiring active")
	m.wantCodes("VALID", v1)
	m.pass(31 * time.Minute)
	m.wantStates("acme", "retired active")
	m.pass(4 * time.Hour)
	if got := m.current("acme"); got != 6 && got != 5 {
		t.Errorf("after five and a half hours the version is %d", got)
	}
}

func TestAMonthOfOutageRotatesEachKeyOnceAndNotAllAtOnce(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "24h", "overlap_period": "6h"})
	var tokens []string
	for i := range 60 {
		tokens = append(tokens, m.key(fmt.Sprintf("k%d", i), nil))
	}
	m.clock.Advance(30 * 24 * time.Hour)
	m = m.reopen()
	most := 0
	rotated := func() (n int) {
		for i := range tokens {
			if m.current(fmt.Sprintf("k%d", i)) == 2 {
				n++
			}
		}
		return n
	}
	last := 0
	for range 65 {
		m.pass(time.Minute)
		now := rotated()
		most, last = max(most, now-last), now
	}
	if last != len(tokens) || most > 15 {
		t.Errorf("%d of %d keys were rotated in an hour, up to %d in one tick", last, len(tokens), most)
	}
	for i, token := range tokens {
		if m.current(fmt.Sprintf("k%d", i)) != 2 {
			t.Errorf("key %d was rotated more than once", i)
		}
		m.wantCodes("VALID", token) // a full overlap from when it happened
	}
}

func TestACronRotationKeepsToItsWindow(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_schedule": "0 4 * * *", "rotation_window": "1h", "overlap_period": "2h"})
	m.key("acme", nil)
	m.pass(4*time.Hour + 2*time.Minute)
	if m.current("acme") != 2 {
		t.Error("the key was not rotated in its window")
	}
	m.clock.Advance(24*time.Hour + 3*time.Hour) // down from four to seven the next day
	m.pass(10 * time.Minute)
	if m.current("acme") != 2 {
		t.Error("the key was rotated outside its window")
	}
	if k := m.read("keys/acme"); k["next_vault_rotation"] != "2026-01-07T04:00:00Z" {
		t.Errorf("the next rotation is at %v", k["next_vault_rotation"])
	}
	m.clock.Advance(20 * time.Hour)
	m.pass(62 * time.Minute)
	if m.current("acme") != 3 {
		t.Error("the key was not rotated in its next window")
	}
}

func TestAKeyThatIsEnabledAgainRotatesAtMostOnce(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "30m"})
	v1 := m.key("acme", nil)
	m.write("keys/acme", object{"enabled": false})
	m.pass(5 * time.Hour)
	m.wantStates("acme", "active")
	m.wantCodes("DISABLED", v1)
	m.write("keys/acme", object{"enabled": true})
	m.wantCodes("VALID", v1)
	m.pass(20 * time.Minute)
	if got := m.current("acme"); got != 2 {
		t.Errorf("after enabling the version is %d, want one overdue rotation", got)
	}
	m.pass(20 * time.Minute)
	if got := m.current("acme"); got != 2 {
		t.Errorf("after enabling the version is %d, want one overdue rotation", got)
	}
}

func TestAScheduledRotationWaitsForRoom(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "2h", "overlap_period": "90m", "max_accepted_versions": 2, "max_overlap_period": "10h"})
	m.key("acme", nil)
	m.clock.Advance(time.Hour)
	m.rotate("acme", nil)
	m.write("extend/acme", object{"overlap_period": "5h"})
	m.pass(2*time.Hour + 2*time.Minute)
	k := m.read("keys/acme")
	if m.current("acme") != 2 || !strings.Contains(fmt.Sprint(k["rotation_blocked"]), "max_accepted_versions") {
		t.Errorf("a rotation without room: version %v, blocked %v", k["current_version"], k["rotation_blocked"])
	}
	if !strings.Contains(toJSON(m.read("history/acme")), "rotation.blocked") {
		t.Error("history does not tell that the rotation waits")
	}
	m.write("retire/acme", object{"force": true}) // makes room
	m.pass(2 * time.Minute)
	k = m.read("keys/acme")
	if m.current("acme") != 3 || k["rotation_blocked"] != nil {
		t.Errorf("with room: version %v, blocked %v", k["current_version"], k["rotation_blocked"])
	}
}

func TestAScheduledRotationWaitsForThePendingVersion(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "30m"})
	m.key("acme", nil)
	m.rotate("acme", object{"activation_delay": "3h"})
	m.pass(2*time.Hour + 30*time.Minute)
	m.wantStates("acme", "active pending")
	m.write("promote/acme", nil)
	m.pass(5 * time.Minute)
	m.wantStates("acme", "retiring retiring active")
}

func TestExtendUntilDrained(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "max_overlap_period": "10h", "extend_until_drained": true, "drain_quiet_period": "30m"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	for range 6 {
		m.verdict(v1, object{"source": "eu"})
		m.pass(29 * time.Minute)
	}
	m.wantStates("acme", "retiring active") // in use
	m.pass(10 * time.Minute)
	m.wantStates("acme", "retiring active") // quiet, but its source was not seen on the new one
	m.verdict(v2, object{"source": "eu"})
	m.pass(20 * time.Minute)
	m.wantStates("acme", "retired active")

	m.role(object{"max_overlap_period": "2h"})
	m.rotate("acme", nil)
	for range 5 {
		m.code(v2)
		m.pass(29 * time.Minute)
	}
	m.wantCodes("RETIRED", v2) // at most max_overlap_period
}

// TestARolesScheduleShowsAtOnce is about reads; the job that files the keys
// anew comes after.
func TestARolesScheduleShowsAtOnce(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "720h", "overlap_period": "30m"})
	for i := range 20 {
		m.key(fmt.Sprintf("k%d", i), nil)
	}
	for _, c := range []struct {
		role object
		next any
	}{
		{object{"rotation_period": "2h"}, "2026-01-05T02:00:00Z"}, {object{"disable_automated_rotation": true}, nil}, {object{"disable_automated_rotation": false}, "2026-01-05T02:00:00Z"},
		{object{"rotation_period": 0, "rotation_schedule": "0 1 * * *"}, "2026-01-05T01:00:00Z"}, {object{"rotation_schedule": "", "rotation_period": "1h"}, "2026-01-05T01:00:00Z"},
	} {
		m.role(c.role)
		if got := m.read("keys/k7")["next_vault_rotation"]; !same(got, c.next) {
			t.Errorf("after %v the next rotation is at %v, want %v", c.role, got, c.next)
		}
	}
	m.tick() // the job
	m.pass(62 * time.Minute)
	for i := range 20 {
		if got := m.current(fmt.Sprintf("k%d", i)); got != 2 {
			t.Errorf("key %d has version %d after its role came to rotate it hourly", i, got)
		}
	}
	m.role(object{"rotation_period": "720h"})
	m.tick()
	m.pass(3 * time.Hour)
	if got := m.current("k0"); got != 2 {
		t.Errorf("the key was rotated again, to version %d, under the former schedule", got)
	}
}

func TestTheJobAfterAChangeOfScheduleSurvivesARestart(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	m.role(object{"overlap_period": "30m"})
	for i := range 30 {
		m.key(fmt.Sprintf("k%d", i), nil)
	}
	hang := make(chan struct{})
	faulty.Before(func(op storetest.Op) {
		if op.Kind == storetest.List && strings.HasPrefix(op.Path, "member/") {
			<-hang // the job stands still
		}
	})
	m.role(object{"rotation_period": "1h"})
	crashed := memory.Clone()
	faulty.Before(nil)
	close(hang)
	next := newMountOn(t, crashed, crashed, m.clock)
	next.tick()
	next.pass(62 * time.Minute)
	for i := range 30 {
		if got := next.current(fmt.Sprintf("k%d", i)); got != 2 {
			t.Errorf("key %d has version %d", i, got)
		}
	}
}

func TestExistingDeadlinesDoNotMoveWhenARoleChanges(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "2h", "version_ttl": "10h"})
	v1 := m.key("acme", nil)
	m.rotate("acme", nil)
	before := toJSON(m.read("keys/acme")["versions"])
	m.role(object{"overlap_period": "1h", "max_overlap_period": "1h", "version_ttl": "1h", "rollback_window": 0, "extend_until_drained": true})
	m.tick()
	if after := toJSON(m.read("keys/acme")["versions"]); after != before {
		t.Errorf("versions were\n%s and are\n%s", before, after)
	}
	m.clock.Advance(90 * time.Minute)
	m.wantCodes("VALID", v1)
}

func TestRotatingARole(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "max_accepted_versions": 2})
	m.write("roles/other", nil)
	for i := range 20 {
		m.key(fmt.Sprintf("k%02d", i), nil)
	}
	m.key("off", object{"enabled": false})
	m.key("ended", nil)
	m.write("revoke/ended", object{"version": 1, "force": true})
	m.key("full", nil)
	m.rotate("full", nil)
	m.write("keys/stranger", object{"role": "other"})
	m.ok(logical.ReadOperation, "creds/r", nil)
	m.key("gone", nil)
	m.remove("keys/gone")

	job := m.write("roles/r/rotate", object{"reason": "a leak in CI"})
	if job["state"] != "running" || job["started_time"] != "2026-01-05T00:00:00Z" || job["finished_time"] != nil {
		t.Errorf("the job begins as %v", job)
	}
	m.tick()
	done := m.read("roles/r/rotate")
	want := object{
		"job_id": job["job_id"], "state": "finished", "rotated": 20, "skipped": 3, "failed": 1, "percent": 100, "started_time": "2026-01-05T00:00:00Z", "finished_time": "2026-01-05T00:00:00Z",
	}
	if got := without(done, "failures"); !same(got, want) {
		t.Errorf("the job is %v, want %v", got, want)
	}
	if failures := toJSON(done["failures"]); !strings.Contains(failures, `"key":"full"`) || !strings.Contains(failures, "max_accepted_versions") {
		t.Errorf("its failures are %s", failures)
	}
	for i := range 20 {
		m.wantStates(fmt.Sprintf("k%02d", i), "retiring active")
	}
	m.wantStates("off", "active")
	m.wantStates("ended", "revoked")
	m.wantStates("stranger", "active")
	if h := toJSON(m.read("history/k00")); !strings.Contains(h, text(t, job["job_id"])) || !strings.Contains(h, "a leak in CI") {
		t.Errorf("history is %s", h)
	}
	m.write("roles/r/rotate", object{"overlap_period": 0, "force": true})
	m.tick()
	m.wantStates("k00", "retiring retired active")
	if again := m.read("roles/r/rotate"); again["job_id"] == job["job_id"] || number(t, again["rotated"]) != 21 {
		t.Errorf("the second job is %v", again)
	}
	m.write("roles/empty", nil)
	m.refused(http.StatusNotFound, logical.ReadOperation, "roles/empty/rotate", nil)
	m.write("roles/empty/rotate", nil)
	m.tick()
	if job := m.read("roles/empty/rotate"); job["state"] != "finished" || number(t, job["rotated"]) != 0 {
		t.Errorf("the job of an empty role is %v", job)
	}
}

// TestRotatingARoleGoesOnAfterACrash crashes the job at many points, and
// wants each key rotated exactly once.
func TestRotatingARoleGoesOnAfterACrash(t *testing.T) {
	t.Parallel()
	base := newMount(t)
	base.role(object{"overlap_period": "1h"})
	const keys = 40
	for i := range keys {
		base.key(fmt.Sprintf("k%02d", i), nil)
	}
	base.Cleanup(t.Context())
	for at := 1; at < 200; at += 13 {
		memory := base.memory.Clone()
		faulty := storetest.NewFaulty(memory)
		m := newMountOn(t, memory, faulty, base.clock)
		m.Backend.clean(t.Context()) // its workers: the test runs the job
		e := m.engineStopped()
		m.ok(logical.UpdateOperation, "roles/r/rotate", nil)
		faulty.Inject(storetest.Fault{At: at, WritesOnly: true, Rest: true, Applied: at%2 == 0})
		err := e.bulk.Run(t.Context())
		if (err == nil) != (faulty.Failed() == 0) {
			t.Errorf("crash at write %d: the job's run ends with %v", at, err)
		}
		next := newMountOn(t, memory.Clone(), memory, base.clock)
		next.memory = memory
		next.tick()
		job := next.read("roles/r/rotate")
		if job["state"] != "finished" || number(t, job["failed"]) != 0 || number(t, job["rotated"])+number(t, job["skipped"]) < keys {
			t.Errorf("crash at write %d (%v): the job is %v", at, err, job)
		}
		for i := range keys {
			if got := next.current(fmt.Sprintf("k%02d", i)); got != 2 {
				t.Errorf("crash at write %d: key %d has version %d", at, i, got)
			}
		}
	}
}

// engineStopped is the engine of a mount whose workers have been stopped.
func (m *mount) engineStopped() *engine {
	m.Backend.mu.Lock()
	defer m.Backend.mu.Unlock()
	return m.open
}

func TestAJobThatRunsIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	m.key("acme", nil)
	m.Backend.clean(t.Context()) // nobody works on it
	m.write("roles/r/rotate", nil)
	m.refused(badStatus, logical.UpdateOperation, "roles/r/rotate", nil, "under way")
	if job := m.read("roles/r/rotate"); job["state"] != "running" || number(t, job["percent"]) != 0 {
		t.Errorf("the job is %v", job)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "30m", "notify_before": 0, "reminders": []any{}})
	m.key("acme", nil)
	m.key("bcme", nil)
	m.clock.Advance(time.Hour - time.Second)
	if got := m.sweep(); number(t, got["keys"]) != 0 || number(t, got["damaged"]) != 0 || got["suspended"] != false {
		t.Errorf("before anything is due sweep answers %v", got)
	}
	m.clock.Advance(time.Second + time.Millisecond) // the minute is open still
	if got := m.sweep(); number(t, got["keys"]) != 2 {
		t.Errorf("sweep answers %v, want two keys", got)
	}
	m.wantStates("acme", "retiring active")
	if got := m.sweep(); number(t, got["keys"]) != 0 {
		t.Errorf("a second sweep answers %v", got)
	}
	m.clock.Advance(30 * time.Minute)
	m.sweep()
	m.wantStates("bcme", "retired active")
}

func TestAKeyWhoseHardAgeIsOverIsRotatedAtOnce(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "2h", "overlap_period": "30m", "version_ttl": "150m"})
	v1 := m.key("acme", nil)
	m.clock.Advance(3 * time.Hour) // an outage
	m.wantCodes("EXPIRED", v1)
	m.pass(2 * time.Minute)
	m.wantStates("acme", "retired active")
	m.read("static-creds/acme")
}

func TestAutomationLeavesKeysAloneThatWereEndedByForce(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "30m"})
	m.key("acme", nil)
	m.write("revoke/acme", object{"all": true, "force": true})
	m.pass(3 * time.Hour)
	m.wantStates("acme", "revoked")
	m.rotate("acme", nil)
	m.pass(62 * time.Minute)
	m.wantStates("acme", "revoked retiring active")
}

// TestAChangeOfARoleDoesNotOvertakeAClientThatSleeps: an Agent that looks again
// when it was told to is not refused, however the role is changed meanwhile and
// whatever rotates its key by itself.
func TestAChangeOfARoleDoesNotOvertakeAClientThatSleeps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, after object }{
		"a shorter overlap":          {object{"overlap_period": "24h"}, object{"overlap_period": "5m", "rotation_period": "12h"}},
		"no overlap":                 {object{"overlap_period": "24h"}, object{"overlap_period": 0, "rotation_period": "12h"}},
		"a window of one":            {object{"overlap_period": "24h"}, object{"overlap_period": 0, "max_accepted_versions": 1, "rotation_period": "12h"}},
		"a shorter longest overlap":  {object{"overlap_period": "24h"}, object{"overlap_period": "5m", "max_overlap_period": "10m", "rotation_period": "12h"}},
		"a delay":                    {object{"overlap_period": "24h"}, object{"overlap_period": "5m", "activation_delay": "10m", "rotation_period": "12h"}},
		"an earlier cut-over":        {object{"overlap_period": 0, "refresh_interval": "1h", "rotation_period": "48h"}, object{"rotation_period": "12h"}},
		"an earlier one by no delay": {object{"overlap_period": 0, "refresh_interval": "1h", "rotation_period": "24h", "activation_delay": "2h"}, object{"activation_delay": 0}},
	} {
		for _, bulk := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, bulk %v", name, bulk), func(t *testing.T) {
				t.Parallel()
				m := newMount(t)
				m.write("roles/r", c.before)
				key := text(t, m.write("keys/acme", object{"role": "r"})["api_key"])
				m.clock.Advance(23 * time.Hour)
				wake := m.clock.Now().Add(time.Duration(number(t, m.read("static-creds/acme")["ttl"]))*time.Second + time.Second)
				m.write("roles/r", c.after)
				m.write("roles/r", object{"custom_metadata": object{"owner": "me"}}) // another write forgets nothing
				if bulk {
					m.write("roles/r/rotate", nil)
				}
				for m.clock.Now().Before(wake) {
					if err := m.opened().bulk.Run(t.Context()); err != nil {
						t.Fatal(err)
					}
					m.write("sweep", nil)
					if code := m.write("verify", object{"api_key": key})["code"]; code != "VALID" {
						t.Fatalf("%s before the client wakes its key is %s", wake.Sub(m.clock.Now()), code)
					}
					m.clock.Advance(min(time.Minute, wake.Sub(m.clock.Now())))
				}
				m.clock.Advance(5 * time.Minute)
				m.write("sweep", nil)
				if versions, _ := m.read("keys/acme")["versions"].([]any); !bulk && len(versions) < 2 {
					t.Error("the key has not rotated")
				}
			})
		}
	}
}

func TestRotateWarnsOfWhatClientsWereToldBeforeAChange(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("roles/r", object{"overlap_period": "24h"})
	m.key("acme", nil)
	m.write("roles/r", object{"overlap_period": "10m"})
	if a := m.request(logical.UpdateOperation, "rotate/acme", nil); len(a.warnings) != 1 {
		t.Errorf("rotate warns %q", a.warnings)
	}
	if a := m.request(logical.UpdateOperation, "roles/r/rotate", object{"overlap_period": "10m"}); len(a.warnings) != 1 {
		t.Errorf("rotating the role warns %q", a.warnings)
	}
	m.clock.Advance(time.Hour)
	if a := m.request(logical.UpdateOperation, "rotate/acme", nil); len(a.warnings) != 0 {
		t.Errorf("an hour later rotate warns %q", a.warnings)
	}
}
