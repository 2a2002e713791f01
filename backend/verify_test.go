// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// verdict is the whole answer to a verification.
func (m *mount) verdict(presented string, more object) object {
	m.t.Helper()
	return m.write("verify", join2(object{fieldAPIKey: presented}, more))
}

func (m *mount) wantVerdict(presented string, more, want object) {
	m.t.Helper()
	if got := without(m.verdict(presented, more), "key_id"); !same(got, want) {
		m.t.Errorf("at %s verify answers\n%s, want\n%s", m.clock.Now().Format(time.DateTime), toJSON(got), toJSON(want))
	}
}

// TestCodesAreDecidedInTheirOrder gives each verification every fault that
// comes later in the order, too.
func TestCodesAreDecidedInTheirOrder(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": []any{"read"}, "overlap_period": "1h", "version_ttl": "2h", "bound_cidrs": []any{"10.0.0.0/8"}, "max_accepted_versions": 4})
	bad := object{"scopes": []any{"admin"}, "source_ip": "192.0.2.1"}
	good := object{"scopes": []any{"read"}, "source_ip": "10.1.2.3"}

	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	v3 := m.rotate("acme", nil)
	m.write("revoke/acme", object{"version": 1, "compromised": true})
	m.write("revoke/acme", object{"version": 2})
	m.write("keys/acme", object{"enabled": false})
	if id := m.verdict(v1, bad)["key_id"]; id != m.read("keys/acme")["key_id"] {
		t.Errorf("verify names the key %v", id)
	}
	base := object{"name": "acme", "role": "r", "custom_metadata": object{}, "scopes": []any{"read"}, "valid": false}
	with := func(more object) object { return join2(base, more) }
	m.wantVerdict(v1, bad, with(object{"code": "COMPROMISED", "version": 1, "state": "compromised", "superseded_by": 2, "overlap_ends": "2026-01-05T01:00:00Z", "accepted_until": "2026-01-05T00:00:00Z", "expire_time": "2026-01-05T02:00:00Z"}))
	m.wantVerdict(v2, bad, with(object{"code": "REVOKED", "version": 2, "state": "revoked", "superseded_by": 3, "overlap_ends": "2026-01-05T01:00:00Z", "accepted_until": "2026-01-05T00:00:00Z", "expire_time": "2026-01-05T02:00:00Z"}))
	m.wantVerdict(v3, bad, with(object{"code": "DISABLED", "version": 3, "state": "active", "expire_time": "2026-01-05T02:00:00Z"}))
	m.write("keys/acme", object{"enabled": true})
	v4 := m.rotate("acme", object{"overlap_period": "1m"})
	m.clock.Advance(time.Minute)
	m.wantVerdict(v3, bad, with(object{"code": "RETIRED", "version": 3, "state": "retired", "superseded_by": 4, "overlap_ends": "2026-01-05T00:01:00Z", "accepted_until": "2026-01-05T00:01:00Z", "expire_time": "2026-01-05T02:00:00Z"}))
	active := object{"version": 4, "state": "active", "expire_time": "2026-01-05T02:00:00Z"}
	m.wantVerdict(v4, bad, with(join2(active, object{"code": "FORBIDDEN_SOURCE"})))
	m.wantVerdict(v4, object{"scopes": []any{"read"}}, with(join2(active, object{"code": "FORBIDDEN_SOURCE"})))
	m.wantVerdict(v4, object{"scopes": []any{"read", "admin"}, "source_ip": "10.1.2.3"}, with(join2(active, object{"code": "INSUFFICIENT_SCOPE"})))
	m.wantVerdict(v4, good, with(join2(active, object{"code": "VALID", "valid": true})))
	m.wantVerdict(v4, object{"source_ip": "::ffff:10.1.2.3", "source": "eu-1"}, with(join2(active, object{"code": "VALID", "valid": true})))
	m.clock.Advance(2*time.Hour - time.Minute)
	m.wantVerdict(v4, bad, with(join2(active, object{"code": "EXPIRED", "state": "retired"})))
}

func TestNothingIsToldOfAKeyThatIsNotKnown(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	secret := m.key("acme", nil)
	body := secret[:len(secret)-token.ChecksumLength]
	wrong := body[:len(body)-1] + "0"
	if wrong == body {
		wrong = body[:len(body)-1] + "1"
	}
	wrong += token.Checksum(wrong)
	for presented, code := range map[string]string{
		wrong: "NOT_FOUND", secret + "x": "MALFORMED", "": "MALFORMED", "x": "MALFORMED", secret[1:]: "MALFORMED", secret + "\n": "MALFORMED", " " + secret: "MALFORMED",
		"key_" + strings.Repeat("a", 12) + "_" + strings.Repeat("b", 32) + token.Checksum("key_"+strings.Repeat("a", 12)+"_"+strings.Repeat("b", 32)): "NOT_FOUND",
		"imported-looking-0123456789": "MALFORMED",
	} {
		if got := m.verdict(presented, nil); !same(got, object{"valid": false, "code": code}) {
			t.Errorf("verify answers %v, want %s and nothing else", got, code)
		}
	}
	m.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	for presented, code := range map[string]string{wrong: "NOT_FOUND", "imported-looking-0123456789": "NOT_FOUND", "too short": "MALFORMED", "with a space 0123456789": "MALFORMED"} {
		if got := m.verdict(presented, nil); !same(got, object{"valid": false, "code": code}) {
			t.Errorf("with imports verify answers %v, want %s and nothing else", got, code)
		}
	}
}

func TestGarbageCostsNoStorage(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	known := m.key("acme", nil)
	m.code(known)
	cost := func(presented string) int {
		t.Helper()
		counting.Reset()
		m.code(presented)
		return counting.Total().All()
	}
	for _, presented := range []string{known, known[:len(known)-1], known + "x", "imported-looking-0123456789", "", strings.Repeat("x", 1<<20)} {
		if n := cost(presented); n != 0 {
			t.Errorf("verify of a string of %d characters costs %d operations", len(presented), n)
		}
	}
	m.write("keys/brought", object{"role": "r", "import_key": "legacy-token-0123456789"})
	m.code("legacy-token-0123456789")
	if first, second := cost("imported-looking-0123456789"), cost("imported-looking-0123456789"); first != 1 || second != 0 {
		t.Errorf("with imports an unknown string costs %d operations, and %d again", first, second)
	}
	if n := cost("legacy-token-0123456789"); n != 0 {
		t.Errorf("verify of an imported key that is cached costs %d operations", n)
	}
}

func TestAPendingVersionIsAcceptedAndReportedAsPending(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", object{"activation_delay": "10m"})
	for presented, state := range map[string]string{v1: "active", v2: "pending"} {
		if got := m.verdict(presented, nil); got["code"] != "VALID" || got["state"] != state {
			t.Errorf("verify answers %v, want VALID and %s", got, state)
		}
	}
}

// TestDeadlinesHoldToTheMillisecondWithoutATick is rule 2 of the design.
func TestDeadlinesHoldToTheMillisecondWithoutATick(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "version_ttl": "4h"})
	m.clock.Advance(123 * time.Millisecond)
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	m.clock.Advance(time.Hour - time.Millisecond)
	m.wantCodes("VALID VALID", v1, v2)
	m.clock.Advance(time.Millisecond)
	m.wantCodes("RETIRED VALID", v1, v2)
	m.sweep()
	m.clock.Leap(-30 * time.Minute) // what was recorded is not accepted again
	m.wantCodes("RETIRED VALID", v1, v2)
	m.clock.Leap(30 * time.Minute)
	m.clock.Advance(3*time.Hour - time.Millisecond)
	m.wantCodes("RETIRED VALID", v1, v2)
	m.clock.Advance(time.Millisecond)
	m.wantCodes("RETIRED EXPIRED", v1, v2)
}

func TestALateTickEndsNothingEarlyAndAcceptsNothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	m.pass(59 * time.Minute)
	m.wantCodes("VALID VALID", v1, v2)
	m.clock.Advance(30 * 24 * time.Hour)
	m.wantCodes("RETIRED VALID", v1, v2)
	m.tick()
	m.wantCodes("RETIRED VALID", v1, v2)
	if v := versions(t, m.read("keys/acme"))[1]; v["ended_time"] != "2026-01-05T01:00:00Z" {
		t.Errorf("the end is recorded as %v", v["ended_time"])
	}
}

func TestScopesInForceAreThoseOfKeyAndRoleNow(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": []any{"a:*", "b"}, "overlap_period": "1h"})
	whole := m.key("whole", nil)
	narrow := m.key("narrow", object{"scopes": []any{"a:x", "b"}})
	scopes := func(presented string) string {
		t.Helper()
		return toJSON(m.verdict(presented, nil)["scopes"])
	}
	if scopes(whole) != `["a:*","b"]` || scopes(narrow) != `["a:x","b"]` {
		t.Errorf("scopes are %s and %s", scopes(whole), scopes(narrow))
	}
	m.role(object{"scopes": []any{"a:*", "c"}})
	if scopes(whole) != `["a:*","c"]` || scopes(narrow) != `["a:x"]` {
		t.Errorf("after the role has changed, scopes are %s and %s", scopes(whole), scopes(narrow))
	}
	m.write("keys/narrow", object{"custom_metadata": object{"a": "b"}}) // its lost scope does not keep it from changes
	next := m.rotate("whole", object{"overlap_scopes": []any{"c"}})
	if scopes(whole) != `["c"]` || scopes(next) != `["a:*","c"]` {
		t.Errorf("after overlap_scopes, scopes are %s and %s", scopes(whole), scopes(next))
	}
	last := m.rotate("narrow", object{"overlap_scopes": []any{}})
	if scopes(narrow) != `[]` || scopes(last) != `["a:x"]` {
		t.Errorf("after empty overlap_scopes, scopes are %s and %s", scopes(narrow), scopes(last))
	}
	if got := m.verdict(narrow, object{"scopes": "a:x"})["code"]; got != "INSUFFICIENT_SCOPE" {
		t.Errorf("a version with no scopes left is answered %v", got)
	}
}

func TestOverlapScopesOfARoleNarrowOnlyPastTheOverlap(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": []any{"a", "b"}, "overlap_scopes": []any{"a"}, "overlap_period": "1h", "extend_until_drained": true, "max_overlap_period": "3h", "drain_quiet_period": "10m"})
	v1 := m.key("acme", nil)
	m.rotate("acme", nil)
	for _, c := range []struct {
		after time.Duration
		code  string
	}{{time.Hour - time.Millisecond, "VALID"}, {time.Millisecond, "INSUFFICIENT_SCOPE"}, {2*time.Hour - time.Millisecond, "INSUFFICIENT_SCOPE"}, {time.Millisecond, "RETIRED"}} {
		m.clock.Advance(c.after)
		if got := m.verdict(v1, object{"scopes": "b"}); got["code"] != c.code || got["overlap_ends"] != "2026-01-05T01:00:00Z" || got["accepted_until"] != "2026-01-05T03:00:00Z" {
			t.Errorf("at %s verify answers %v, want %s", m.clock.Now(), got, c.code)
		}
	}
}

func TestKeysBoundToAddresses(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"bound_cidrs": []any{"10.0.0.0/8", "2001:db8::/32"}})
	presented := m.key("acme", object{"bound_cidrs": []any{"10.1.0.0/16", "192.0.2.7", "2001:db8::1"}})
	for ip, code := range map[string]string{
		"10.1.2.3": "VALID", "10.2.0.1": "FORBIDDEN_SOURCE", "192.0.2.7": "FORBIDDEN_SOURCE", "2001:db8::1": "VALID", "2001:DB8:0::1": "VALID", "2001:db8::2": "FORBIDDEN_SOURCE",
		"": "FORBIDDEN_SOURCE", "::ffff:10.1.0.1": "VALID",
	} {
		if got := m.verdict(presented, object{"source_ip": ip})["code"]; got != code {
			t.Errorf("from %q verify answers %v, want %s", ip, got, code)
		}
	}
	for _, ip := range []string{"10.1.2.3:443", "10.1.2", "[::1]", "localhost", "10.1.2.3/32"} {
		m.refused(badStatus, logical.UpdateOperation, "verify", object{"api_key": presented, "source_ip": ip}, "source_ip")
	}
}

func TestAFloodOfUnknownKeysIsToldToTryAgain(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	known := m.key("acme", nil)
	items := make([]any, 1000)
	limited := 0
	for round := range 11 {
		for i := range items {
			id := "aaaa" + string("0123456789ABCDEF"[round]) + "000" + string(rune('a'+i/100)) + string(rune('a'+i/10%10)) + string(rune('a'+i%10)) + "Z"
			body := "key_" + id + "_" + strings.Repeat("b", 32)
			items[i] = object{"api_key": body + token.Checksum(body)}
		}
		for _, r := range list(t, m.write("verify", object{"batch_input": items})["batch_results"]) {
			switch one := aMap(t, r); {
			case one["code"] == "NOT_FOUND":
			case strings.Contains(toJSON(one["error"]), "try again"):
				limited++
			default:
				t.Fatalf("an unknown key is answered %v", one)
			}
		}
	}
	if limited != 1000 {
		t.Errorf("%d of 11000 unknown keys were put off, want those above the burst of 10000", limited)
	}
	m.wantCodes("VALID", known) // what is known is not limited
	last := aMap(t, items[999])
	if a := m.request(logical.UpdateOperation, "verify", last); a.status != 429 {
		t.Errorf("a single one is answered %s, want 429", a)
	}
	m.entity = "somebody-else"
	if a := m.request(logical.UpdateOperation, "verify", last); a.data["code"] != "NOT_FOUND" {
		t.Errorf("another caller is answered %s", a)
	}
	m.entity = "entity-1"
	m.clock.Advance(time.Minute)
	if a := m.request(logical.UpdateOperation, "verify", last); a.data["code"] != "NOT_FOUND" {
		t.Errorf("after a minute the answer is %s", a)
	}
}
