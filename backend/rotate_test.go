// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

func TestRotate(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "2h"})
	v1 := m.key("acme", nil)
	a := m.request(logical.UpdateOperation, "rotate/acme", nil)
	want := object{"key_id": m.read("keys/acme")["key_id"], "version": 2, "state": "active", "overlap_ends": "2026-01-05T02:00:00Z"}
	if got := without(a.data, "api_key"); !same(got, want) || len(a.warnings) > 0 {
		t.Errorf("rotate answers %v with %q, want %v", got, a.warnings, want)
	}
	v2 := text(t, a.data["api_key"])
	m.wantCodes("VALID VALID", v1, v2)
	m.wantStates("acme", "retiring active")
	v3 := m.rotate("acme", object{"overlap_period": 0}) // cut over now
	m.wantCodes("VALID RETIRED VALID", v1, v2, v3)
	m.wantStates("acme", "retiring retired active")
}

func TestRotateWarnsOfAnOverlapShorterThanWhatClientsWereTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "4h"})
	m.key("acme", nil)
	m.read("static-creds/acme") // ttl 1h
	for _, c := range []struct {
		data object
		warn bool
	}{{object{"overlap_period": "1h"}, false}, {object{"overlap_period": "59m"}, true}, {object{"overlap_period": 0, "force": true}, true}} {
		a := m.request(logical.UpdateOperation, "rotate/acme", c.data)
		if a.status != http.StatusOK || (len(a.warnings) > 0) != c.warn {
			t.Errorf("rotate with %v answers status %d, warnings %q", c.data, a.status, a.warnings)
		}
		m.clock.Advance(4 * time.Hour)
	}
}

func TestRotateWithAnActivationDelay(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "activation_delay": "30m"})
	v1 := m.key("acme", nil)
	a := m.write("rotate/acme", nil)
	if a["state"] != "pending" || a["overlap_ends"] != nil {
		t.Errorf("rotate answers %v", without(a, "api_key"))
	}
	m.wantStates("acme", "active pending")
	m.pass(31 * time.Minute)
	m.wantStates("acme", "retiring active")
	m.pass(61 * time.Minute)
	m.wantCodes("RETIRED VALID", v1, text(t, a["api_key"]))
	m.rotate("acme", object{"activation_delay": 0}) // the caller's wish beats the role's
	m.wantStates("acme", "retired retiring active")
}

// TestCuttingOverDoesNotWaitForTheActivationDelay: of the role; one that is
// asked for holds.
func TestCuttingOverDoesNotWaitForTheActivationDelay(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "activation_delay": "30m"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", object{"overlap_period": 0})
	m.wantCodes("RETIRED VALID", v1, v2)
	m.wantStates("acme", "retired active")
	m.write("roles/r/rotate", object{"overlap_period": 0})
	if err := m.opened().bulk.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.wantCodes("RETIRED RETIRED", v1, v2)
	m.wantStates("acme", "retired retired active")
	m.rotate("acme", object{"overlap_period": 0, "activation_delay": "30m"})
	m.wantStates("acme", "retired retired active pending")
}

func TestPromote(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	m.key("acme", nil)
	m.rotate("acme", object{"activation_delay": "30m", "overlap_period": "10m"})
	m.clock.Advance(5 * time.Minute)
	got := m.write("promote/acme", nil)
	if want := (object{"key_id": got["key_id"], "version": 2, "state": "active", "superseded": 1, "superseded_accepted_until": "2026-01-05T00:15:00Z"}); !same(got, want) {
		t.Errorf("promote answers %v, want %v", got, want)
	}
	if v := versions(t, m.read("keys/acme"))[1]; v["overlap_ends"] != "2026-01-05T00:15:00Z" {
		t.Errorf("the overlap ends at %v, want ten minutes from the promotion", v["overlap_ends"])
	}
}

// TestAfterAnOutageNothingIsPromotedAndRetiredRetroactively is about a month
// in which nothing ran.
func TestAfterAnOutageNothingIsPromotedAndRetiredRetroactively(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", object{"activation_delay": "30m"})
	m.clock.Advance(30 * 24 * time.Hour)
	m.wantCodes("VALID VALID", v1, v2)
	m = m.reopen() // which tells of the first uses, and so files the key for the next minute
	m.clock.Advance(time.Minute)
	m.tick()
	m.wantCodes("VALID VALID", v1, v2)
	m.wantStates("acme", "retiring active")
	m.clock.Advance(time.Hour)
	m.wantCodes("RETIRED VALID", v1, v2)
}

func TestRollback(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "rollback_window": "2h", "rotation_period": "168h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	m.pass(90 * time.Minute)
	m.wantCodes("RETIRED VALID", v1, v2)
	got := m.write("rollback/acme", object{"reason": "a bad deploy"})
	if want := (object{"key_id": got["key_id"], "version": 1, "state": "active", "superseded": 2, "superseded_accepted_until": "2026-01-05T02:30:00Z"}); !same(got, want) {
		t.Errorf("rollback answers %v, want %v", got, want)
	}
	m.wantCodes("VALID VALID", v1, v2)
	m.wantStates("acme", "active retiring")
	if k := m.read("keys/acme"); k["next_vault_rotation"] != "2026-01-12T01:30:00Z" {
		t.Errorf("the next rotation is at %v, want a full period away", k["next_vault_rotation"])
	}
	if m.read("static-creds/acme")["api_key"] != v1 {
		t.Error("static-creds does not return the version that is active again")
	}
	m.clock.Advance(time.Hour)
	m.wantCodes("VALID RETIRED", v1, v2)
	v3 := m.rotate("acme", nil)
	m.write("rollback/acme", object{"version": 1, "revoke_newer": true})
	m.wantCodes("VALID REVOKED REVOKED", v1, v2, v3)
}

func TestRollbackRetiresWhatIsPending(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	v3 := m.rotate("acme", object{"activation_delay": "30m"})
	m.write("rollback/acme", nil)
	m.wantCodes("VALID VALID RETIRED", v1, v2, v3)
	m.wantStates("acme", "active retiring retired")
}

func TestExtend(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "max_overlap_period": "5h", "rollback_window": "1h"})
	v1 := m.key("acme", nil)
	m.rotate("acme", nil)
	m.clock.Advance(30 * time.Minute)
	got := m.write("extend/acme", object{"overlap_period": "2h"})
	if got["state"] != "retiring" || number(t, got["version"]) != 1 || got["accepted_until"] != "2026-01-05T02:30:00Z" || got["overlap_ends"] != "2026-01-05T02:30:00Z" {
		t.Errorf("extend answers %v", got)
	}
	m.clock.Advance(2*time.Hour - time.Millisecond)
	m.wantCodes("VALID", v1)
	m.clock.Advance(time.Millisecond)
	m.wantCodes("RETIRED", v1)
	m.tick()
	m.clock.Advance(20 * time.Minute)
	if got := m.write("extend/acme", nil); got["accepted_until"] != "2026-01-05T03:50:00Z" { // the rescue of clients left behind
		t.Errorf("extend answers %v", got)
	}
	m.wantCodes("VALID", v1)
	m.refused(badStatus, logical.UpdateOperation, "extend/acme", object{"overlap_period": "3h"}, "overlap_period", "max_overlap_period")
	m.write("extend/acme", object{"overlap_period": "2h10m"}) // up to the maximum from its promotion
	m.clock.Advance(2*time.Hour + 10*time.Minute)
	m.wantCodes("RETIRED", v1)
	m.clock.Advance(time.Hour)
	m.refused(badStatus, logical.UpdateOperation, "extend/acme", object{"version": 1}, "rollback window")
}

func TestRetire(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "24h", "drain_quiet_period": "1h"})
	v1 := m.key("acme", nil)
	m.verdict(v1, object{"source": "eu"})
	v2 := m.rotate("acme", nil)
	m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "force")
	m.clock.Advance(2 * time.Hour)
	m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "eu")
	m.verdict(v2, object{"source": "eu"})
	m.verdict(v1, object{"source": "eu"})
	m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained")
	m.clock.Advance(time.Hour)
	if got := m.write("retire/acme", nil); got["state"] != "retired" || number(t, got["version"]) != 1 {
		t.Errorf("retire answers %v", got)
	}
	m.wantCodes("RETIRED VALID", v1, v2)
	m.rotate("acme", nil)
	m.code(v2)
	m.write("retire/acme", object{"force": true})
	m.wantCodes("RETIRED", v2)
}

func TestUnknownUseIsNotDrained(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "24h", "drain_quiet_period": 0})
	m.key("acme", nil)
	m.rotate("acme", nil)
	m.clock.Advance(2 * time.Hour)
	m = m.reopen() // what was counted is gone
	m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained")
	m.clock.Advance(5 * time.Minute)
	m.write("retire/acme", nil)
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	got := m.write("revoke/acme", object{"version": 1})
	if want := (object{"key_id": got["key_id"], "revoked": []any{1}}); !same(got, want) {
		t.Errorf("revoke answers %v, want %v", got, want)
	}
	m.wantCodes("REVOKED VALID", v1, v2)
	before := m.snapshot()
	if a := m.request(logical.UpdateOperation, "revoke/acme", object{"version": 1}); a.status != http.StatusOK || len(a.warnings) != 1 {
		t.Errorf("revoking again answers %s", a)
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("revoking again changed %s", diff)
	}
	m.write("revoke/acme", object{"version": 1, "compromised": true}) // the one move between final states
	m.wantCodes("COMPROMISED VALID", v1, v2)
	m.write("revoke/acme", object{"version": 1})
	m.wantCodes("COMPROMISED VALID", v1, v2)

	got = m.write("revoke/acme", object{"version": 2, "rotate": true, "compromised": true})
	v3 := text(t, got["api_key"])
	if number(t, got["version"]) != 3 || got["state"] != "active" {
		t.Errorf("revoke with rotate answers %v", without(got, "api_key"))
	}
	m.wantCodes("COMPROMISED COMPROMISED VALID", v1, v2, v3)
	v4 := m.rotate("acme", nil)
	got = m.write("revoke/acme", object{"all": true, "rotate": true})
	v5 := text(t, got["api_key"])
	m.wantCodes("COMPROMISED COMPROMISED REVOKED REVOKED VALID", v1, v2, v3, v4, v5)
	a := m.request(logical.UpdateOperation, "revoke/acme", object{"all": true, "force": true})
	if a.status != http.StatusOK || len(a.warnings) != 1 || a.data["api_key"] != nil {
		t.Errorf("revoking all by force answers %s", a)
	}
	m.wantCodes("REVOKED", v5)
}

// TestRevokingAllMakesASuccessorWhereNoneIsActive: whether the active version
// was ended by its age or by force.
func TestRevokingAllMakesASuccessorWhereNoneIsActive(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*mount){
		"by its age": func(m *mount) { m.clock.Advance(time.Hour + time.Minute) },
		"by force":   func(m *mount) { m.write("revoke/acme", object{"version": 1, "force": true}) },
		"all of it":  func(m *mount) { m.write("revoke/acme", object{"all": true, "compromised": true, "force": true}) },
	} {
		m := newMount(t)
		m.write("roles/r", object{"overlap_period": "2h", "version_ttl": "2h"})
		v1 := m.key("acme", nil)
		m.clock.Advance(time.Hour)
		v2 := m.rotate("acme", nil)
		m.write("rollback/acme", nil)
		end(m)
		a := m.request(logical.UpdateOperation, "revoke/acme", object{"all": true, "rotate": true, "compromised": true})
		if a.status != http.StatusOK || a.data["state"] != "active" || number(t, a.data["version"]) != 3 || len(a.warnings) > 0 {
			t.Fatalf("%s: revoke answers status %d, %q, warnings %q, %v", name, a.status, a.errText, a.warnings, without(a.data, "api_key"))
		}
		m.wantCodes("COMPROMISED COMPROMISED VALID", v1, v2, text(t, a.data["api_key"]))
		if got := m.read("static-creds/acme"); got["api_key"] != a.data["api_key"] {
			t.Errorf("%s: static-creds answers another key", name)
		}
	}
}

func TestRevokingTheActiveVersionPromotesWhatIsPending(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", object{"activation_delay": "30m"})
	got := m.write("revoke/acme", object{"version": 1, "rotate": true})
	if number(t, got["version"]) != 2 || got["api_key"] != v2 {
		t.Errorf("revoke answers %v", without(got, "api_key"))
	}
	m.wantCodes("REVOKED VALID", v1, v2)
}

func TestAnEmergencyNeverFailsForAFullWindow(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1, v2, v3 := m.key("acme", nil), m.rotate("acme", nil), m.rotate("acme", nil)
	m.refused(badStatus, logical.UpdateOperation, "rotate/acme", nil, "version 1", "force")
	m.write("revoke/acme", object{"version": 3, "rotate": true})
	m.wantCodes("VALID VALID REVOKED", v1, v2, v3)
	m.rotate("acme", object{"force": true})
	m.wantCodes("RETIRED VALID REVOKED", v1, v2, v3)
}

func TestADisabledKeyCanBeCompromised(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	m.rotate("acme", nil)
	m.write("keys/acme", object{"enabled": false})
	m.wantCodes("DISABLED", v1)
	m.write("revoke/acme", object{"version": 1, "compromised": true})
	m.wantCodes("COMPROMISED", v1)
	m.pass(2 * time.Hour) // its deadlines run
	m.wantStates("acme", "compromised active")
}

func TestReplaysOfARequest(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "rollback_window": 0, "max_accepted_versions": 16, "max_versions": 40})
	m.key("acme", nil)
	wish := object{"request_id": "deploy-7", "overlap_period": "30m", "reason": "a deploy"}
	first := m.write("rotate/acme", wish)
	before := m.snapshot()
	for range 3 {
		again := m.write("rotate/acme", wish)
		if !same(again, first) {
			t.Errorf("a replay answers %v, first it was %v", without(again, "api_key"), without(first, "api_key"))
		}
	}
	for _, other := range []object{{"request_id": "deploy-7"}, join2(wish, object{"overlap_period": "31m"}), join2(wish, object{"reason": "another"}), join2(wish, object{"force": true}), join2(wish, object{"activation_delay": "1m"})} {
		m.refused(badStatus, logical.UpdateOperation, "rotate/acme", other, "request_id")
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		t.Errorf("replays changed %s", diff)
	}
	m = m.reopen()
	if again := m.write("rotate/acme", wish); !same(again, first) {
		t.Error("a replay after a restart differs")
	}
	m.rotate("acme", object{"overlap_period": 0}) // its plaintext goes
	a := m.request(logical.UpdateOperation, "rotate/acme", wish)
	if a.status != http.StatusOK || number(t, a.data["version"]) != 2 || a.data["api_key"] != nil || a.data["state"] != "retired" || !strings.Contains(strings.Join(a.warnings, " "), "not stored") {
		t.Errorf("a replay for a version that is gone answers %s", a)
	}
	m.clock.Advance(24 * time.Hour)
	if again := m.write("rotate/acme", wish); number(t, again["version"]) != 4 {
		t.Errorf("after a day the same request_id answers version %v, want a new one", again["version"])
	}
}

func TestSixteenRequestsAreRemembered(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": 0, "max_versions": 40})
	m.key("acme", nil)
	for i := range 17 {
		m.rotate("acme", object{"request_id": fmt.Sprintf("r%d", i)})
	}
	if a := m.write("rotate/acme", object{"request_id": "r1"}); number(t, a["version"]) != 3 {
		t.Errorf("the oldest of the last sixteen answers version %v, want 3", a["version"])
	}
	if a := m.write("rotate/acme", object{"request_id": "r0"}); number(t, a["version"]) != 19 {
		t.Errorf("a forgotten one answers version %v, want 19", a["version"])
	}
}

func TestConcurrentRotationsAreNeverLost(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "one-request"} {
		m := newMount(t)
		m.role(object{"overlap_period": "1h"})
		m.key("acme", nil)
		var all sync.WaitGroup
		answers := make([]*answer, 8)
		for i := range answers {
			all.Go(func() { answers[i] = m.request(logical.UpdateOperation, "rotate/acme", object{"request_id": id}) })
		}
		all.Wait()
		made := map[string]bool{}
		for _, a := range answers {
			switch {
			case a.status == http.StatusOK:
				made[text(t, a.data["api_key"])] = true
			case a.status != badStatus || !strings.Contains(a.errText, "max_accepted_versions"):
				t.Errorf("a concurrent rotate answers %s", a)
			}
		}
		if want := map[string]int{"": 2, "one-request": 1}[id]; len(made) != want {
			t.Errorf("with request_id %q there are %d new versions, want %d", id, len(made), want)
		}
		for token := range made {
			m.wantCodes("VALID", token)
		}
	}
}

func TestPrunedVersionsAreUnknown(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": 0, "max_versions": 3, "rollback_window": 0})
	tokens := []string{m.key("acme", nil)}
	m.write("revoke/acme", object{"version": 1, "compromised": true, "rotate": true})
	for range 6 {
		tokens = append(tokens, m.rotate("acme", nil))
	}
	m.wantStates("acme", "compromised retired active")
	m.wantCodes("COMPROMISED NOT_FOUND NOT_FOUND NOT_FOUND NOT_FOUND RETIRED VALID", tokens...)
}

func TestAReplayOfAPrunedVersionHasNoState(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": 0, "max_versions": 3, "rollback_window": 0})
	m.key("acme", nil)
	m.write("rotate/acme", object{"request_id": "x"})
	for range 4 {
		m.rotate("acme", nil)
	}
	a := m.request(logical.UpdateOperation, "rotate/acme", object{"request_id": "x"})
	if _, has := a.data["state"]; has || number(t, a.data["version"]) != 2 || !strings.Contains(strings.Join(a.warnings, " "), "forgotten") {
		t.Errorf("the replay answers %v with %q", a.data, a.warnings)
	}
}

func TestAKeyInPlaceOfARoleIsNotEchoed(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	key := m.key("acme", nil)
	m.refused(http.StatusBadRequest, logical.UpdateOperation, "keys/b", object{"role": key}, "role does not exist")
	m.refused(http.StatusBadRequest, logical.UpdateOperation, "keys/b", object{"role": "nope"}, `role "nope" does not exist`)
}

func TestVerbsTellHowLongTheOldVersionIsAccepted(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "2h"})
	m.key("acme", nil)
	m.rotate("acme", nil)
	a := m.write("rollback/acme", nil)
	if number(t, a["superseded"]) != 2 || a["superseded_accepted_until"] != "2026-01-05T02:00:00Z" {
		t.Errorf("rollback answers %v", a)
	}
	a = m.write("retire/acme", object{"version": 2, "force": true})
	if a["overlap_ends"] != "2026-01-05T00:00:00Z" || a["state"] != "retired" {
		t.Errorf("retire answers %v", a)
	}
}

// TestVerbsAnswerTheVersionThatTheyWereAbout: that the overlap of another one
// ran out, and is recorded in the same commit, is not what the answer tells.
func TestVerbsAnswerTheVersionThatTheyWereAbout(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]object{"asked for": {"version": 2}, "the only candidate": {}} {
		for _, verb := range []string{"extend", "retire"} {
			t.Run(verb+" "+name, func(t *testing.T) {
				t.Parallel()
				m := newMount(t)
				m.role(object{"overlap_period": "1h", "max_overlap_period": "5h", "rollback_window": 0})
				m.key("acme", nil)
				m.rotate("acme", nil)
				m.clock.Advance(10 * time.Minute)
				m.rotate("acme", nil)
				m.clock.Advance(50 * time.Minute) // the overlap of version 1 is over, and nobody has recorded it
				body := maps.Clone(body)
				switch verb {
				case "extend":
					body["overlap_period"] = "90m"
				case "retire":
					body["force"] = true
				}
				got := m.write(verb+"/acme", body)
				if number(t, got["version"]) != 2 || verb == "extend" && got["accepted_until"] != "2026-01-05T02:30:00Z" {
					t.Errorf("%s answers %v", verb, got)
				}
			})
		}
	}
}
