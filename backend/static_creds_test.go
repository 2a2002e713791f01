// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// creds reads static-creds/acme and checks what must always hold: an answer
// that Vault Agent and Vault Secrets Operator take for a rotating secret.
func (m *mount) creds() object {
	m.t.Helper()
	c := m.read("static-creds/acme")
	if number(m.t, c["ttl"]) < 1 || number(m.t, c["rotation_period"]) < 1 {
		m.t.Errorf("ttl %v and rotation_period %v must be at least 1", c["ttl"], c["rotation_period"])
	}
	if _, there := c["rotation_schedule"]; there {
		m.t.Error("rotation_schedule is in the answer")
	}
	moment(m.t, c["last_vault_rotation"])
	return c
}

func (m *mount) wantTTL(want int) {
	m.t.Helper()
	if got := number(m.t, m.creds()["ttl"]); got != want {
		m.t.Errorf("at %s ttl is %d, want %d", m.clock.Now().Format(time.StampMilli), got, want)
	}
}

func TestStaticCredsTellWhenToReadAgain(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "24h", "overlap_period": "2h", "refresh_interval": "30m"})
	m.key("acme", nil)
	c := m.creds()
	want := object{
		"ttl": 1800, "rotation_period": 86400, "overlap_period": 7200, "version": 1, "last_vault_rotation": "2026-01-05T00:00:00Z", "next_vault_rotation": "2026-01-06T00:00:00Z",
		"key_id": m.read("keys/acme")["key_id"],
	}
	if got := without(c, "api_key"); !same(got, want) {
		t.Errorf("static-creds is %v, want %v", got, want)
	}
	m.clock.Advance(23*time.Hour + 30*time.Minute)
	m.wantTTL(1800)
	m.clock.Advance(time.Second)
	m.wantTTL(1799)
	m.clock.Advance(500 * time.Millisecond)
	m.wantTTL(1799) // rounded up: not just before the change
	m.clock.Advance(1798*time.Second + 499*time.Millisecond)
	m.wantTTL(1)
	m.clock.Advance(time.Millisecond)
	m.wantTTL(10) // overdue
	m.clock.Advance(time.Hour)
	m.wantTTL(10)
	m.pass(2 * time.Minute) // the hour before was an outage: the key gets a time of its own
	m.clock.Advance(time.Hour)
	m.tick()
	if c := m.creds(); number(t, c["version"]) != 2 || number(t, c["ttl"]) != 1800 {
		t.Errorf("after the rotation static-creds is %v", without(c, "api_key"))
	}
}

func TestStaticCredsOfAPendingVersion(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "2h"})
	v1 := m.key("acme", nil)
	m.wantTTL(1800) // a quarter of the overlap
	v2 := m.rotate("acme", object{"activation_delay": "10m"})
	if c := m.creds(); c["api_key"] != v1 || number(t, c["ttl"]) != 600 {
		t.Errorf("with a pending version static-creds is %v", without(c, "api_key"))
	}
	m.clock.Advance(10 * time.Minute)
	m.wantTTL(10)
	m.pass(2 * time.Minute)
	if c := m.creds(); c["api_key"] != v2 || c["last_vault_rotation"] != "2026-01-05T00:11:00Z" && c["last_vault_rotation"] != "2026-01-05T00:12:00Z" {
		t.Errorf("after the promotion static-creds is %v", without(c, "api_key"))
	}
}

func TestStaticCredsCountTheActivationDelayOfTheNextRotation(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "30m", "activation_delay": "10m", "refresh_interval": "29m"})
	m.key("acme", nil)
	m.clock.Advance(50 * time.Minute)
	m.wantTTL(20 * 60)
	m.clock.Advance(time.Millisecond)
	m.wantTTL(20 * 60)
}

func TestStaticCredsOfACronSchedule(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_schedule": "0 4 * * 1,3", "overlap_period": "12h", "refresh_interval": "2h"})
	m.key("acme", nil)
	c := m.creds()
	if number(t, c["rotation_period"]) != 5*86400 || c["next_vault_rotation"] != "2026-01-05T04:00:00Z" || number(t, c["ttl"]) != 7200 {
		t.Errorf("before the Monday's rotation static-creds is %v", without(c, "api_key"))
	}
	m.clock.Advance(3 * time.Hour)
	m.wantTTL(3600)
	m.pass(62 * time.Minute)
	c = m.creds()
	if number(t, c["rotation_period"]) != 2*86400 || c["next_vault_rotation"] != "2026-01-07T04:00:00Z" || number(t, c["version"]) != 2 {
		t.Errorf("after the Monday's rotation static-creds is %v", without(c, "api_key"))
	}
}

func TestStaticCredsOfKeysRotatedByHand(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "24h"})
	m.key("acme", nil)
	for _, c := range []struct {
		role        object
		ttl, period int
	}{
		{nil, 3600, 3600}, {object{"refresh_interval": 90}, 90, 90}, {object{"overlap_period": "20m"}, 90, 90}, {object{"rotation_period": "1h", "overlap_period": 0, "disable_automated_rotation": true}, 90, 90},
	} {
		m.role(c.role)
		got := m.creds()
		if number(t, got["ttl"]) != c.ttl || number(t, got["rotation_period"]) != c.period || got["next_vault_rotation"] != nil {
			t.Errorf("with %v static-creds is %v", c.role, without(got, "api_key"))
		}
	}
	m.patch("roles/r", object{"refresh_interval": nil, "rotation_period": nil, "overlap_period": 0})
	if got := m.creds(); number(t, got["ttl"]) != 60 || number(t, got["rotation_period"]) != 60 || number(t, got["overlap_period"]) != 0 {
		t.Errorf("with overlap_period=0 static-creds is %v", without(got, "api_key"))
	}
	m.patch("roles/r", object{"overlap_period": 2})
	m.wantTTL(1)
}

func TestStaticCredsOfADisabledKeyWaitForNothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "1h", "overlap_period": "20m"})
	m.key("acme", nil)
	m.write("keys/acme", object{"enabled": false})
	m.clock.Advance(2 * time.Hour)
	m.wantTTL(300)
	if c := m.creds(); c["next_vault_rotation"] != nil {
		t.Errorf("a disabled key is to be rotated at %v", c["next_vault_rotation"])
	}
}

func TestStaticCredsFollowTheHardAge(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"version_ttl": "2h", "overlap_period": "30m", "refresh_interval": "1h"})
	m.key("acme", nil)
	m.clock.Advance(90 * time.Minute)
	m.wantTTL(1800)
	m.clock.Advance(30 * time.Minute)
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/acme", nil, "version_ttl")
	m.sweep()
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/acme", nil, "version_ttl", "rotate")
	m.rotate("acme", nil)
	m.creds()
}

func TestStaticCredsSayWhyThereIsNone(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h", "rollback_window": "1h"})
	m.write("roles/hidden", object{"retrievable": false})

	m.write("keys/hashed", object{"role": "r", "import_sha256": token.Sum("legacy-token-0123456789").Hex()})
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/hashed", nil, "version 1", "not stored")
	shown := text(t, m.write("keys/secretive", object{"role": "hidden"})["api_key"])
	m.wantCodes("VALID", shown)
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/secretive", nil, "not stored", "retrievable")

	m.rotate("hashed", nil)
	m.write("rollback/hashed", object{"force": true})
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/hashed", nil, "version 1", "not stored")

	m.key("ended", nil)
	m.write("revoke/ended", object{"version": 1, "force": true})
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/ended", nil, "no active version", "revoked", "rotate")
	m.key("leaked", nil)
	m.write("revoke/leaked", object{"all": true, "force": true, "compromised": true})
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/leaked", nil, "no active version", "compromised", "rotate")
	m.pass(2 * time.Hour) // automation leaves it alone
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/ended", nil, "no active version")
	next := m.rotate("ended", nil)
	if m.read("static-creds/ended")["api_key"] != next {
		t.Error("rotating did not revive the key")
	}
}

// TestAnAgentThatBehavesIsNeverRefused reads static-creds as Vault Agent does,
// which sleeps ttl and a second, while keys rotate by themselves and by hand.
func TestAnAgentThatBehavesIsNeverRefused(t *testing.T) {
	t.Parallel()
	for _, role := range []object{
		{"rotation_period": "10m", "overlap_period": "5m"}, {"rotation_period": "20m", "overlap_period": "30m", "activation_delay": "7m"}, {"rotation_period": "15m", "overlap_period": "5m", "rotation_jitter": 50},
		{"rotation_schedule": "*/10 * * * *", "overlap_period": "6m"}, {"rotation_schedule": "*/30 * * * *", "rotation_window": "5m", "overlap_period": "5m"},
	} {
		m := newMount(t)
		m.role(role)
		m.key("acme", nil)
		var held string
		wake, latest := m.clock.Now(), 0
		for minute := range 4 * 60 {
			for range 12 {
				if !m.clock.Now().Before(wake) {
					c := m.creds()
					held, latest = text(t, c["api_key"]), number(t, c["version"])
					wake = m.clock.Now().Add(time.Duration(number(t, c["ttl"])+1) * time.Second)
				}
				if code := m.code(held); code != "VALID" {
					t.Fatalf("role %v: at %s version %d is answered %s", role, m.clock.Now(), latest, code)
				}
				m.clock.Advance(5 * time.Second)
			}
			m.tick()
			if minute == 100 {
				m.request(logical.UpdateOperation, "rotate/acme", nil)
			}
		}
		if latest < 6 {
			t.Errorf("role %v: only %d versions in four hours", role, latest)
		}
	}
}

// TestTheReasonIsThatOfTheVersionThatWasActive: not of the newest one.
func TestTheReasonIsThatOfTheVersionThatWasActive(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.write("roles/r", object{"overlap_period": "2h", "version_ttl": "2h"})
	m.key("acme", nil)
	m.clock.Advance(time.Hour)
	m.write("rotate/acme", nil)
	m.write("rollback/acme", nil)
	m.clock.Advance(time.Hour + time.Minute) // version 1 is over, version 2 is not
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/acme", nil, "version 1 reached its version_ttl")
	k := m.read("keys/acme")
	versions, _ := k["versions"].([]any)
	first := aMap(t, versions[1])
	if k["current_version"] != nil || first["state"] != "retired" || first["ended_time"] != "2026-01-05T02:00:00Z" {
		t.Errorf("the key reads current_version %v, and version 1 %v", k["current_version"], first)
	}
	m.write("revoke/acme", object{"version": 1, "compromised": true})
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/acme", nil, "version 1 is compromised")
}

func TestStaticCredsOfADisabledKeyWarns(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	key := m.key("acme", object{"enabled": false})
	a := m.request(logical.ReadOperation, "static-creds/acme", nil)
	if a.data["api_key"] != key || len(a.warnings) != 1 || !strings.Contains(a.warnings[0], "disabled") {
		t.Errorf("static-creds answers status %d, warnings %q", a.status, a.warnings)
	}
}
