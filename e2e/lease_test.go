// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// leased is a version of a leased key and the lease that it lives by.
type leased struct {
	apiKey string
	keyID  string
	lease  string
	expire time.Time
}

func (m *mount) lease(a *answer) leased {
	m.t.Helper()
	if !a.ok() || a.lease == "" {
		m.t.Fatalf("no lease: %d %v", a.status, a.errs)
	}
	l := leased{lease: a.lease}
	l.apiKey, _ = a.data["api_key"].(string)
	l.keyID, _ = a.data["key_id"].(string)
	expire, _ := a.data["expire_time"].(string)
	var err error
	if l.expire, err = time.Parse(time.RFC3339, expire); err != nil {
		m.t.Fatalf("expire_time: %v", err)
	}
	if renewable, _ := a.body["renewable"].(bool); !renewable {
		m.t.Error("the lease cannot be renewed")
	}
	return l
}

func (m *mount) creds(role string) leased {
	m.t.Helper()
	return m.lease(m.call(http.MethodGet, "creds/"+role, nil))
}

func (m *mount) rotateLeased(keyID string) leased {
	m.t.Helper()
	return m.lease(m.call(http.MethodPost, "rotate-leased/"+keyID, map[string]any{}))
}

// renew renews a lease by the lease API, and returns for how long.
func (m *mount) renew(l leased, increment time.Duration) time.Duration {
	m.t.Helper()
	secret, err := m.srv.Client.Sys().Renew(l.lease, int(increment.Seconds()))
	if err != nil {
		m.t.Fatalf("renew: %v", err)
	}
	return time.Duration(secret.LeaseDuration) * time.Second
}

// eventuallyRevoked waits for Vault to work off the end of a lease.
func (m *mount) eventuallyRevoked(apiKey string) {
	m.t.Helper()
	eventually(m.t, 20*time.Second, func() error {
		if v := m.verify(apiKey); v.Code != "REVOKED" {
			return fmt.Errorf("version %d: %s, want REVOKED", v.Version, v.Code)
		}
		return nil
	})
}

// leases are the leases below a path of the mount.
func (m *mount) leases(path string) []string {
	m.t.Helper()
	secret, err := m.srv.Client.Logical().List("sys/leases/lookup/" + m.path + "/" + path)
	if err != nil {
		m.t.Fatal(err)
	}
	if secret == nil {
		return nil
	}
	return texts(secret.Data["keys"])
}

// near compares two moments that clocks and whole seconds may part a little.
func near(t testing.TB, what string, got, want time.Time) {
	t.Helper()
	if off := got.Sub(want); off < -5*time.Second || off > 5*time.Second {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestLeaseRenewalMovesTheEndOfTheKey(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "10m", "max_ttl", "2h", "scopes", []string{"orders:read"})
	l := m.creds("trading")
	v := m.accepts(l.apiKey, "scopes", []string{"orders:read"})
	near(t, "expire_time", v.ExpireTime, time.Now().Add(10*time.Minute))
	if v.KeyID != l.keyID || v.Name != "" || v.Role != "trading" || !v.ExpireTime.Equal(l.expire) {
		t.Errorf("verify answers %+v, creds %s", v, l.keyID)
	}

	if got := m.renew(l, time.Hour); got != time.Hour {
		t.Errorf("renewed for %s, asked for 1h", got)
	}
	near(t, "expire_time after the renewal", m.accepts(l.apiKey).ExpireTime, time.Now().Add(time.Hour))
	m.renew(l, 10*time.Hour)
	near(t, "expire_time at max_ttl", m.accepts(l.apiKey).ExpireTime, l.expire.Add(110*time.Minute))

	if names := m.list("keys"); len(names) != 0 {
		t.Errorf("LIST keys shows leased keys: %v", names)
	}
	m.refuses(http.StatusNotFound, http.MethodGet, "creds/nobody", nil, `no role named "nobody"`)
}

func TestLeaseRevocationEndsTheKey(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "1h")
	a, b := m.creds("trading"), m.creds("trading")
	m.cli("lease", "revoke", a.lease)
	m.eventuallyRevoked(a.apiKey)
	m.accepts(b.apiKey)

	m.role("short", "ttl", "2s")
	c := m.creds("short")
	harness.Eventually(t, 10*time.Second, 20*time.Millisecond, func() error {
		asked := time.Now()
		if v := m.verify(c.apiKey); v.Valid {
			if asked.After(c.expire) {
				t.Errorf("accepted %s past the end of its lease", asked.Sub(c.expire))
			}
			return errors.New("still accepted")
		}
		return nil
	})
	m.eventuallyRevoked(c.apiKey)
}

func TestRevokingAPrefixLeavesNothing(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "1h")
	m.role("other", "ttl", "1h")
	var keys []leased
	for range 5 {
		keys = append(keys, m.creds("trading"))
	}
	rotated := m.rotateLeased(keys[0].keyID)
	spared := m.creds("other")
	if got := len(m.leases("creds/trading")); got != 5 {
		t.Fatalf("%d leases, want 5", got)
	}

	m.cli("lease", "revoke", "-sync", "-prefix", m.path+"/creds/trading")
	for _, l := range keys {
		m.rejects("REVOKED", l.apiKey)
	}
	if left := m.leases("creds/trading"); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
	// A rotated key's new lease has a path of its own.
	m.accepts(rotated.apiKey)
	m.cli("lease", "revoke", "-sync", "-prefix", m.path+"/rotate-leased")
	m.rejects("REVOKED", rotated.apiKey)
	if left := m.leases("rotate-leased/" + keys[0].keyID); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
	m.accepts(spared.apiKey)
	m.must(http.MethodDelete, "roles/trading", nil)
	m.refuses(http.StatusBadRequest, http.MethodDelete, "roles/other", nil, "1 key ")
}

func TestDisablingTheEngineWithLiveLeasesLeavesNothing(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "1h")
	m.key("acme", "trading")
	l := m.creds("trading")
	m.rotateLeased(l.keyID)
	m.creds("trading")
	m.cli("secrets", "disable", m.path)
	for _, path := range []string{"creds/trading", "rotate-leased/" + l.keyID, ""} {
		if left := m.leases(path); len(left) != 0 {
			t.Errorf("leases left below %s: %v", path, left)
		}
	}
	if a := m.call(http.MethodGet, "keys/acme", nil); a.status != http.StatusNotFound {
		t.Errorf("the mount still answers %d", a.status)
	}
	// The same path can be used again, and knows nothing of the former mount.
	again := enable(t, m.srv, m.path)
	again.rejects("NOT_FOUND", l.apiKey)
	if got := again.list("roles"); len(got) != 0 {
		t.Errorf("roles of the former mount: %v", got)
	}
}

func TestLeasesOverlapInARotation(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "30m", "max_ttl", "4h", "overlap_period", "1h")
	m.srv.Policy(t, m.path, fmt.Sprintf(`
path "%[1]s/creds/trading" { capabilities = ["read"] }
path "%[1]s/rotate-leased/+" { capabilities = ["update"] }
`, m.path))
	owner := newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{m.path}, TTL: "5h"})
	stranger := newToken(t, m.srv, api.TokenCreateRequest{Policies: []string{m.path}, TTL: "5h"})
	mine := m.as(owner.ClientToken)
	v1 := mine.creds("trading")

	for who, token := range map[string]string{"another token": stranger.ClientToken, "root": m.token} {
		if a := m.as(token).call(http.MethodPost, "rotate-leased/"+v1.keyID, map[string]any{}); a.status != http.StatusForbidden {
			t.Errorf("%s rotates somebody's key: %d %v", who, a.status, a.errs)
		}
	}
	v2 := mine.rotateLeased(v1.keyID)
	if v2.keyID != v1.keyID || v2.lease == v1.lease || v2.apiKey == v1.apiKey {
		t.Fatal("the rotation made no version of the same key under a lease of its own")
	}
	old := m.accepts(v1.apiKey)
	near(t, "overlap_ends", old.OverlapEnds, time.Now().Add(time.Hour))
	if old.SupersededBy != 2 || old.State != "retiring" {
		t.Errorf("the old version: %+v", old)
	}
	m.accepts(v2.apiKey)

	// The old lease lives on, but not past its overlap.
	m.renew(v1, 3*time.Hour)
	if got := m.accepts(v1.apiKey); got.ExpireTime.After(got.OverlapEnds) {
		t.Errorf("renewed to %s, past the end of the overlap at %s", got.ExpireTime, got.OverlapEnds)
	}
	if got := m.renew(v2, 3*time.Hour); got < 179*time.Minute {
		t.Errorf("the new lease was renewed for %s, asked for 3h", got)
	}
	// Its end is the end of its version only.
	if err := m.srv.Client.Sys().Revoke(v1.lease); err != nil {
		t.Fatal(err)
	}
	m.eventuallyRevoked(v1.apiKey)
	m.accepts(v2.apiKey)

	// The new lease belongs to the caller: it ends with the caller's token.
	v3 := mine.rotateLeased(v1.keyID)
	if err := m.srv.Client.Auth().Token().RevokeTree(owner.ClientToken); err != nil {
		t.Fatal(err)
	}
	m.eventuallyRevoked(v2.apiKey)
	m.eventuallyRevoked(v3.apiKey)
	for _, verb := range []string{"promote", "rollback", "extend"} {
		if a := m.call(http.MethodPost, verb+"/"+v1.keyID, map[string]any{}); a.status != http.StatusNotFound {
			t.Errorf("%s of a leased key: %d", verb, a.status)
		}
	}
}

func TestOverlapOfALeasedKeyEndsOnTime(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "1h", "overlap_period", "3s")
	v1 := m.creds("trading")
	v2 := m.rotateLeased(v1.keyID)
	m.endsOnTime(v1.apiKey)
	m.accepts(v2.apiKey)
	if _, err := m.srv.Client.Sys().Renew(v1.lease, 3600); err == nil {
		t.Error("the lease of an ended version was renewed")
	}
	m.renew(v2, time.Hour)
}

func TestMaxTTLOfALeasedKeyCountsFromItsCreation(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "1h", "max_ttl", "1h", "overlap_period", "1h")
	v1 := m.creds("trading")
	reaches(t, v1.expire.Add(-time.Hour+4*time.Second))
	for _, l := range []leased{m.rotateLeased(v1.keyID), v1} {
		m.renew(l, 3*time.Hour)
		if got := m.accepts(l.apiKey).ExpireTime; got.After(v1.expire.Add(time.Second)) {
			t.Errorf("lives until %s, %s past max_ttl", got, got.Sub(v1.expire))
		}
	}

	m.role("brief", "ttl", "2s", "max_ttl", "3s")
	brief := m.creds("brief")
	m.eventuallyRevoked(brief.apiKey)
	if a := m.call(http.MethodPost, "rotate-leased/"+brief.keyID, map[string]any{}); a.status != http.StatusBadRequest {
		t.Errorf("rotating a key past its max_ttl: %d %v", a.status, a.errs)
	}
}

func TestLeasedKeyBelongsToItsEntityWhateverTheToken(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "ttl", "1h")
	m.srv.Policy(t, m.path, fmt.Sprintf(`path "%s/*" { capabilities = ["create", "read", "update"] }`, m.path))
	app, other := newApp(t, m.srv, m.path+"-app", m.path), newApp(t, m.srv, m.path+"-other", m.path)
	v1 := m.as(app.login(t)).creds("trading")
	v2 := m.as(app.login(t)).rotateLeased(v1.keyID)
	m.accepts(v1.apiKey)
	m.accepts(v2.apiKey)
	if a := m.as(other.login(t)).call(http.MethodPost, "rotate-leased/"+v1.keyID, map[string]any{}); a.status != http.StatusForbidden {
		t.Errorf("another entity rotates the key: %d %v", a.status, a.errs)
	}
}

// app is an AppRole, which has an entity of its own and any number of tokens.
type app struct {
	srv      *harness.Server
	mount    string
	roleID   string
	secretID string
}

// newApp enables AppRole at a path of its own with one role that has a policy.
func newApp(t testing.TB, srv *harness.Server, path, policy string) app {
	t.Helper()
	if err := srv.Client.Sys().EnableAuthWithOptions(path, &api.EnableAuthOptions{Type: "approle"}); err != nil {
		t.Fatalf("enable approle: %v", err)
	}
	role := "auth/" + path + "/role/app"
	a := app{srv: srv, mount: path}
	for _, step := range []struct {
		do   func() (*api.Secret, error)
		into *string
		name string
	}{
		{func() (*api.Secret, error) {
			return srv.Client.Logical().Write(role, map[string]any{"token_policies": policy, "token_ttl": "1h"})
		}, nil, ""},
		{func() (*api.Secret, error) { return srv.Client.Logical().Read(role + "/role-id") }, &a.roleID, "role_id"},
		{func() (*api.Secret, error) { return srv.Client.Logical().Write(role+"/secret-id", nil) }, &a.secretID, "secret_id"},
	} {
		secret, err := step.do()
		if err != nil {
			t.Fatalf("set up approle: %v", err)
		}
		if step.into != nil {
			*step.into, _ = secret.Data[step.name].(string)
		}
	}
	return a
}

func (a app) login(t testing.TB) string {
	t.Helper()
	secret, err := a.srv.Client.Logical().Write("auth/"+a.mount+"/login", map[string]any{"role_id": a.roleID, "secret_id": a.secretID})
	if err != nil {
		t.Fatalf("log in: %v", err)
	}
	return secret.Auth.ClientToken
}
