// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// lease reads creds/r and returns the token, the key's id and the lease.
func (m *mount) lease() (string, string, *logical.Secret) {
	m.t.Helper()
	a := m.request(logical.ReadOperation, "creds/r", nil)
	return m.leased(a)
}

// rotateLeased makes the next version of a leased key.
func (m *mount) rotateLeased(id string, data object) (string, *logical.Secret) {
	m.t.Helper()
	presented, _, lease := m.leased(m.request(logical.UpdateOperation, "rotate-leased/"+id, data))
	return presented, lease
}

func (m *mount) leased(a *answer) (string, string, *logical.Secret) {
	m.t.Helper()
	if a.status != http.StatusOK || a.secret == nil {
		m.t.Fatalf("no leased key but %s", a)
	}
	return text(m.t, a.data["api_key"]), text(m.t, a.data["key_id"]), a.secret
}

// TestNobodyClaimsALeasedKey: whoever reads it is answered it, and a webhook that
// hands over the keys of its role does not get it besides.
func TestNobodyClaimsALeasedKey(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.role(object{"ttl": "1h", "max_ttl": "3h"})
	m.claimHook(b, nil)
	_, id, _ := m.lease()
	m.rotateLeased(id, nil)
	m.key("named", nil)
	m.tell()
	for version := 1; version <= 2; version++ {
		told := b.wait(t, "the activation of a leased version", func(p arrival) bool {
			return p.data["key_id"] == id && p.data["version"] == float64(version)
		})
		if told.data["claim_code"] != nil || told.data["claim_expires"] != nil {
			t.Errorf("version %d came with a code", version)
		}
	}
	b.code(t, 1) // of the other key
}

func TestALeasedKeyLivesByItsLease(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "1h", "max_ttl": "3h", "scopes": []any{"read"}})
	a := m.request(logical.ReadOperation, "creds/r", nil)
	if a.data["expire_time"] != "2026-01-05T01:00:00Z" || a.secret.TTL != time.Hour || !a.secret.Renewable || !same(a.data["scopes"], []any{"read"}) || number(t, a.data["version"]) != 1 {
		t.Errorf("creds answers %s with the lease %+v", without(a.data, "api_key"), a.secret)
	}
	presented, id, lease := m.leased(a)
	if v := m.verdict(presented, nil); v["code"] != "VALID" || v["name"] != nil || v["key_id"] != id || v["expire_time"] != "2026-01-05T01:00:00Z" {
		t.Errorf("verify answers %v", v)
	}
	m.clock.Advance(time.Hour - time.Millisecond)
	m.wantCodes("VALID", presented)
	m.clock.Advance(time.Millisecond)
	m.wantCodes("EXPIRED", presented) // whenever Vault gets round to revoking it
	if a := m.endLease(lease); a.status != http.StatusNoContent {
		t.Errorf("revoking the lease answers %s", a)
	}
	m.wantCodes("REVOKED", presented)
	if a := m.endLease(lease); a.status != http.StatusNoContent {
		t.Errorf("revoking the lease again answers %s", a)
	}
}

func TestRenewingALease(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "1h", "max_ttl": "3h"})
	presented, _, lease := m.lease()
	m.clock.Advance(30 * time.Minute)
	for _, c := range []struct{ increment, want time.Duration }{{0, time.Hour}, {90 * time.Minute, 90 * time.Minute}, {time.Hour, time.Hour}, {10 * time.Hour, 150 * time.Minute}} {
		a := m.renew(lease, c.increment)
		// CalculateTTL reads the machine's clock twice.
		if a.status != http.StatusOK && a.status != http.StatusNoContent || a.secret.TTL > c.want || a.secret.TTL < c.want-time.Second {
			t.Errorf("renewing by %s answers %s, want %s", c.increment, a, c.want)
		}
	}
	m.clock.Advance(150*time.Minute - 2*time.Second)
	m.wantCodes("VALID", presented)
	m.clock.Advance(2 * time.Second)
	m.wantCodes("EXPIRED", presented)
	if a := m.renew(lease, time.Hour); a.status != badStatus {
		t.Errorf("renewing past max_ttl answers %s", a)
	}
	m.wantCodes("EXPIRED", presented)
}

// TestARenewalThatIsRefusedChangesNothing: in the last second there is nothing
// to renew.
func TestARenewalThatIsRefusedChangesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rotate bool
		at     time.Duration
		want   int
	}{
		"a second before the end of the overlap":    {true, time.Hour - time.Second, http.StatusOK},
		"within a second of the end of the overlap": {true, time.Hour - time.Millisecond, badStatus},
		"within a second of max_ttl":                {false, 2*time.Hour - time.Millisecond, badStatus},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			m.role(object{"ttl": "2h", "max_ttl": "2h", "overlap_period": "1h"})
			_, id, lease := m.lease()
			if c.rotate {
				m.rotateLeased(id, nil)
			}
			m.clock.Advance(c.at)
			stored := m.snapshot()
			if a := m.renew(lease, 0); a.status != c.want {
				t.Errorf("the renewal answers %s", a)
			}
			if diff := stored.diff(m.snapshot()); (diff != "") != (c.want == http.StatusOK) {
				t.Errorf("the renewal changed %q", diff)
			}
		})
	}
}

// TestTheLastLeaseEndsWithMaxTTL: to the instant, whatever part of a second the
// clocks show.
func TestTheLastLeaseEndsWithMaxTTL(t *testing.T) {
	t.Parallel()
	const end = "2026-01-05T02:00:00Z"
	for _, at := range []time.Duration{time.Hour, time.Hour + time.Millisecond, time.Hour + 999*time.Millisecond, 2*time.Hour - time.Second} {
		m := newMount(t)
		m.role(object{"ttl": "2h", "max_ttl": "2h"})
		v1, id, lease1 := m.lease()
		m.clock.Advance(at)
		m.renew(lease1, 0)
		if v := m.verdict(v1, nil); v["expire_time"] != end {
			t.Errorf("renewed after %s it ends %v", at, v["expire_time"])
		}
		v2, lease2 := m.rotateLeased(id, nil)
		if v := m.verdict(v2, nil); v["expire_time"] != end || lease2.TTL != (2*time.Hour-at).Truncate(time.Second) {
			t.Errorf("rotated after %s it ends %v with a lease of %s", at, v["expire_time"], lease2.TTL)
		}
	}
	m := newMount(t)
	m.role(object{"ttl": "2h", "max_ttl": "2h"})
	_, id, _ := m.lease()
	m.clock.Advance(2*time.Hour - time.Millisecond)
	if a := m.request(logical.UpdateOperation, "rotate-leased/"+id, nil); a.status != badStatus {
		t.Errorf("with no second left rotate-leased answers %s", a)
	}
}

// TestALeaseOutlivesAClockThatWasSetBack: a version ends by the time of its
// key, which does not go back.
func TestALeaseOutlivesAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "1h", "max_ttl": "9h"})
	v1, id, lease1 := m.lease()
	m.clock.Advance(30 * time.Minute)
	m.renew(lease1, 0)
	m.clock.Leap(-2 * time.Hour)
	m.renew(lease1, 0)
	m.wantCodes("VALID", v1)
	v2, _ := m.rotateLeased(id, nil)
	m.wantCodes("VALID VALID", v1, v2)
}

func TestTheMountLimitsLeases(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.view.DefaultLeaseTTLVal, m.view.MaxLeaseTTLVal = 10*time.Minute, time.Hour
	m.role(nil)
	if a := m.request(logical.ReadOperation, "creds/r", nil); a.secret.TTL != 10*time.Minute || a.secret.MaxTTL != time.Hour {
		t.Errorf("by default a lease is %+v", a.secret)
	}
	m.role(object{"ttl": "2h", "max_ttl": "4h"})
	if a := m.request(logical.ReadOperation, "creds/r", nil); a.secret.TTL > time.Hour || a.secret.TTL < time.Hour-time.Second || a.secret.MaxTTL != time.Hour {
		t.Errorf("above what the mount allows a lease is %+v", a.secret)
	}
}

func TestLeasesOfALeasedKeyOverlap(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "2h", "max_ttl": "10h", "overlap_period": "1h"})
	v1, id, lease1 := m.lease()
	m.clock.Advance(90 * time.Minute)
	v2, lease2 := m.rotateLeased(id, nil)
	m.wantCodes("VALID VALID", v1, v2)
	if a := m.renew(lease1, 5*time.Hour); a.secret.TTL > time.Hour || a.secret.TTL < time.Hour-time.Second {
		t.Errorf("the former lease was renewed to %s, past the end of its overlap", a.secret.TTL)
	}
	m.clock.Advance(time.Hour)
	m.wantCodes("RETIRED VALID", v1, v2)
	if a := m.renew(lease1, time.Hour); a.status != badStatus {
		t.Errorf("renewing the former lease after its overlap answers %s", a)
	}
	m.endLease(lease1)
	m.wantCodes("REVOKED VALID", v1, v2) // its version only
	v3, lease3 := m.rotateLeased(id, object{"overlap_period": "10m", "reason": "again"})
	m.wantCodes("VALID VALID", v2, v3)
	m.endLease(lease2)
	m.wantCodes("REVOKED VALID", v2, v3)
	m.endLease(lease3)
	m.wantCodes("REVOKED REVOKED REVOKED", v1, v2, v3)
	m.refused(badStatus, logical.UpdateOperation, "rotate-leased/"+id, nil, "ended", "creds/r")
	m.pass(25 * time.Hour)
	m.wantCodes("NOT_FOUND NOT_FOUND", v1, v3) // an ended leased key goes after a day
	m.remove("roles/r")
}

func TestTheFormerVersionEndsWithItsLeaseInsideTheOverlap(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "30m", "max_ttl": "10h", "overlap_period": "1h"})
	v1, id, _ := m.lease()
	m.clock.Advance(20 * time.Minute)
	v2, _ := m.rotateLeased(id, nil)
	m.clock.Advance(10 * time.Minute)
	m.wantCodes("EXPIRED VALID", v1, v2)
}

func TestMaxTTLCountsFromTheKeysCreation(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "2h", "max_ttl": "3h", "overlap_period": "1h"})
	_, id, _ := m.lease()
	m.clock.Advance(100 * time.Minute)
	v2, lease2 := m.rotateLeased(id, nil)
	if left := 80 * time.Minute; lease2.TTL > left || lease2.TTL < left-time.Second {
		t.Errorf("the second lease is %s, want what is left of max_ttl", lease2.TTL)
	}
	m.clock.Advance(80 * time.Minute)
	m.wantCodes("EXPIRED", v2)
	m.refused(badStatus, logical.UpdateOperation, "rotate-leased/"+id, nil, "creds/r")
}

func TestOnlyWhoMadeALeasedKeyRotatesIt(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "2h", "overlap_period": "1h"})
	_, byEntity, _ := m.lease()
	m.accessor = "accessor-2" // another token of the same entity
	m.rotateLeased(byEntity, nil)
	m.entity = "entity-2"
	m.refused(http.StatusForbidden, logical.UpdateOperation, "rotate-leased/"+byEntity, nil)
	m.entity = "" // a token without an entity
	m.refused(http.StatusForbidden, logical.UpdateOperation, "rotate-leased/"+byEntity, nil)
	_, byToken, _ := m.lease()
	m.rotateLeased(byToken, nil)
	m.accessor = "accessor-3"
	m.refused(http.StatusForbidden, logical.UpdateOperation, "rotate-leased/"+byToken, nil)
	m.accessor = ""
	m.refused(http.StatusForbidden, logical.UpdateOperation, "rotate-leased/"+byToken, nil)
	_, byNobody, _ := m.lease()
	m.refused(http.StatusForbidden, logical.UpdateOperation, "rotate-leased/"+byNobody, nil)
}

func TestLeasedKeysHaveNoName(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "2h", "rotation_period": "1h", "overlap_period": "30m"})
	v1, id, _ := m.lease()
	for _, verb := range []string{"rotate", "promote", "rollback", "extend", "retire", "revoke"} {
		m.refused(http.StatusNotFound, logical.UpdateOperation, verb+"/"+id, nil)
	}
	if names := m.list("keys/", nil); len(names) != 0 {
		t.Errorf("LIST keys is %v", names)
	}
	m.pass(90 * time.Minute) // not rotated by itself
	if v := m.verdict(v1, nil); v["code"] != "VALID" || v["superseded_by"] != nil {
		t.Errorf("verify answers %v", v)
	}
	m.write("roles/r/rotate", nil) // nor by a job
	m.tick()
	if job := m.read("roles/r/rotate"); number(t, job["rotated"]) != 0 || number(t, job["skipped"]) != 1 {
		t.Errorf("the job is %v", job)
	}
}

func TestLeasesThatCannotBe(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	_, _, lease := m.lease()
	for _, data := range []object{{}, {"key_id": 5}, {"key_id": "aaaaaaaaaaaa"}, {"key_id": "aaaaaaaaaaaa", "version": "x"}, {"key_id": "aaaaaaaaaaaa", "version": object{}}} {
		broken := *lease
		broken.InternalData = join2(data, object{"secret_type": leasedKeyType})
		if a := m.renew(&broken, 0); a.errText == "" {
			t.Errorf("renewing a lease with %v answers %s", data, a)
		}
	}
	gone := *lease
	gone.InternalData = object{"secret_type": leasedKeyType, "key_id": "aaaaaaaaaaaa", "version": 1}
	if a := m.endLease(&gone); a.status != http.StatusNoContent {
		t.Errorf("revoking a lease whose key is gone answers %s", a)
	}
	if a := m.renew(&gone, 0); a.status != http.StatusNotFound {
		t.Errorf("renewing a lease whose key is gone answers %s", a)
	}
	future := *lease
	future.InternalData = join2(lease.InternalData, object{"version": 9})
	if a := m.endLease(&future); a.status != http.StatusNoContent {
		t.Errorf("revoking the lease of a version that is not there answers %s", a)
	}
}

// TestRevokingAllLeasesLeavesNothing is what `vault lease revoke -prefix` and
// `vault secrets disable` do.
func TestRevokingAllLeasesLeavesNothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "2h", "overlap_period": "1h"})
	before := m.snapshot()
	var leases []*logical.Secret
	for range 5 {
		_, id, lease := m.lease()
		_, next := m.rotateLeased(id, nil)
		leases = append(leases, lease, next)
	}
	for _, lease := range leases {
		m.endLease(lease)
	}
	m.clock.Advance(25 * time.Hour)
	m.tick()
	m.tick()
	for path := range m.snapshot() {
		if _, there := before[path]; !there && !strings.HasPrefix(path, "dueh/") {
			t.Errorf("leases that have ended left %s", path)
		}
	}
}

func TestARoleWithoutStoredPlaintextGivesOutLeasedKeys(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"ttl": "2h", "retrievable": false})
	v1, id, _ := m.lease()
	v2, _ := m.rotateLeased(id, nil)
	m.wantCodes("VALID VALID", v1, v2)
}
