// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// synced and lookedUp are answers of sync and lookup.
type synced struct {
	Epoch   string    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	Now     time.Time `json:"now"`
	Changed []string  `json:"changed"`
	Roles   []string  `json:"roles"`
	Reset   bool      `json:"reset"`
}

type lookedUp struct {
	Epoch   string           `json:"epoch"`
	Seq     uint64           `json:"seq"`
	Records []*record.Record `json:"records"`
	Missing []string         `json:"missing"`
	Next    string           `json:"next"`
}

// follower is a verifier reduced to the protocol: it keeps records, and drops
// those that sync names.
type follower struct {
	m      *mount
	name   string
	at     synced
	held   map[string]*record.Record
	resets int
}

func (m *mount) follower(name string) *follower {
	return &follower{m: m, name: name, held: map[string]*record.Record{}}
}

// poll asks once. A verifier that cannot ask knows nothing new.
func (f *follower) poll() error {
	q := url.Values{"verifier": {f.name}, "boot": {"e2e"}, "epoch": {f.at.Epoch}, "seq": {strconv.FormatUint(f.at.Seq, 10)}}
	a, err := f.m.send(http.MethodGet, f.m.path+"/sync?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	if !a.ok() {
		return fmt.Errorf("sync answers %d", a.status)
	}
	next, err := convert[synced](a.data)
	if err != nil {
		return err
	}
	if next.Reset {
		f.resets++
		clear(f.held)
	}
	for _, id := range next.Changed {
		delete(f.held, id)
	}
	for id, r := range f.held {
		if slices.Contains(next.Roles, r.Role) {
			delete(f.held, id)
		}
	}
	f.at = next
	return nil
}

// mustPoll asks until it is answered.
func (f *follower) mustPoll() {
	f.m.t.Helper()
	eventually(f.m.t, 30*time.Second, f.poll)
}

// code is the verdict of the follower, who asks where it holds no record.
func (f *follower) code(apiKey string) record.Code {
	f.m.t.Helper()
	parsed, err := token.Parse(apiKey)
	if err != nil {
		f.m.t.Fatal("this follower knows only tokens of this engine")
	}
	if f.held[parsed.KeyID] == nil {
		var answer lookedUp
		eventually(f.m.t, 30*time.Second, func() error {
			a, err := f.m.send(http.MethodPost, f.m.path+"/lookup", fields("key_ids", []any{parsed.KeyID}))
			if err != nil {
				return err
			}
			if !a.ok() {
				return fmt.Errorf("lookup answers %d", a.status)
			}
			answer, err = convert[lookedUp](a.data)
			return err
		})
		if len(answer.Records) != 1 {
			return record.CodeNotFound
		}
		f.held[parsed.KeyID] = answer.Records[0]
	}
	return f.held[parsed.KeyID].Verify(f.at.Now, record.Query{Digest: token.Sum(apiKey)}).Code
}

func (f *follower) wants(code record.Code, apiKeys ...string) {
	f.m.t.Helper()
	for i, apiKey := range apiKeys {
		if got := f.code(apiKey); got != code {
			f.m.t.Errorf("key %d is %s to the follower, want %s", i+1, got, code)
		}
	}
}

// asVerifier is the mount with the policy for verifiers and no other.
func (m *mount) asVerifier() *mount {
	m.t.Helper()
	name := writePolicy(m.t, m, "verifier", strings.ReplaceAll(policy(m.t, "verifier"), "apikeys/", m.path+"/"))
	return m.as(newToken(m.t, m.srv, api.TokenCreateRequest{Policies: []string{name}, NoDefaultPolicy: true, TTL: "1h"}).ClientToken)
}

func TestAVerifierFollowsWithItsPolicyAlone(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "1h", "scopes", "a,b")
	v1 := m.key("acme", "trading")
	f := m.asVerifier().follower("eu-1")
	f.mustPoll()
	if f.resets != 1 || f.at.Epoch == "" || time.Since(f.at.Now).Abs() > time.Minute {
		t.Errorf("the first answer is %+v", f.at)
	}
	f.wants(record.CodeValid, v1)
	held := f.at

	// Each change is told by the first question after its answer.
	v2 := m.rotate("acme")
	f.mustPoll()
	f.wants(record.CodeValid, v1, v2)
	m.write("revoke/acme", fields("version", 1, "compromised", true))
	f.mustPoll()
	f.wants(record.CodeCompromised, v1)
	f.wants(record.CodeValid, v2)
	m.must(http.MethodPatch, "keys/acme", fields("enabled", false))
	f.mustPoll()
	f.wants(record.CodeDisabled, v2)
	m.must(http.MethodPatch, "keys/acme", fields("enabled", true))
	m.role("trading", "bound_cidrs", "192.0.2.0/24")
	f.mustPoll()
	f.wants(record.CodeForbiddenSource, v2)
	if f.resets != 1 {
		t.Errorf("%d resets", f.resets)
	}

	// The CLI asks the same, with its own types of values.
	id := m.info("acme").KeyID
	told := m.cliJSON("read", m.path+"/sync", "epoch="+held.Epoch, "seq="+fmt.Sprint(held.Seq))
	if s, err := convert[synced](told); err != nil || s.Reset || !slices.Equal(s.Changed, []string{id}) || !slices.Equal(s.Roles, []string{"trading"}) {
		t.Errorf("the CLI is told %v, %v", told, err)
	}
	looked := m.cliJSON("write", m.path+"/lookup", "key_ids="+id+",Nobody00000a")
	if l, err := convert[lookedUp](looked); err != nil || len(l.Records) != 1 || !slices.Equal(l.Missing, []string{"Nobody00000a"}) {
		t.Errorf("the CLI looks up %v, %v", looked, err)
	}
	if raw, err := json.Marshal(looked); err != nil || strings.Contains(string(raw), v2) {
		t.Error("a record holds a key")
	}

	// Unknown fields are named and ignored; wrong ones are refused.
	if a := f.m.call(http.MethodGet, "sync?later=1", nil); !a.ok() || !strings.Contains(a.text, `\"later\"`) {
		t.Errorf("an unknown field of sync: %s", a.text)
	}
	f.m.refuses(http.StatusBadRequest, http.MethodGet, "sync?seq=x", nil, "seq")
	f.m.refuses(http.StatusBadRequest, http.MethodGet, "sync?seq=1&seq=2", nil, "seq")
	f.m.refuses(http.StatusBadRequest, http.MethodPost, "lookup", fields("key_ids", []any{v2}), "key_ids")

	// The operator sees who follows.
	if got := m.list("verifiers"); !slices.Equal(got, []string{"eu-1"}) {
		t.Errorf("the verifiers are %v", got)
	}
	seen := m.read("verifiers/eu-1")
	if seen["live"] != true || seen["boot"] != "e2e" || seen["epoch"] != f.at.Epoch {
		t.Errorf("the verifier is %v", seen)
	}
	f.mustPoll()
	if behind := m.read("verifiers/eu-1")["behind"]; behind != 0.0 {
		t.Errorf("a verifier that has everything is %v behind", behind)
	}
}

func TestAVerifierLooksUpWhatWasMadeElsewhere(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	legacy := "legacy-" + hex.EncodeToString([]byte(t.Name()))
	m.write("keys/old", fields("role", "trading", "import_key", legacy))
	m.key("acme", "trading")
	sum := sha256.Sum256([]byte(legacy))
	verifier := m.asVerifier()
	l, err := convert[lookedUp](verifier.write("lookup", fields("digests", []any{hex.EncodeToString(sum[:])})))
	if err != nil || len(l.Records) != 1 || l.Records[0].Verify(time.Now(), record.Query{Digest: token.Sum(legacy)}).Code != record.CodeValid {
		t.Errorf("by digest: %+v, %v", l, err)
	}
	l, err = convert[lookedUp](verifier.write("lookup", fields("key_ids", []any{l.Records[0].KeyID})))
	if err != nil || len(l.Records) != 1 || l.Records[0].Find(token.Sum(legacy)) != nil {
		t.Errorf("by id, without its digest: %+v, %v", l, err)
	}
	// A first fill leaves it out.
	var ids []string
	after := ""
	for page := 0; ; page++ {
		l, err := convert[lookedUp](verifier.write("lookup", fields("after", after, "limit", 1)))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Records {
			ids = append(ids, r.Name)
		}
		if after = l.Next; after == "" {
			break
		}
		if page > 20 {
			t.Fatal("the fill has no end")
		}
	}
	if !slices.Equal(ids, []string{"acme"}) {
		t.Errorf("the fill finds %v", ids)
	}
}

// A start of the plugin is a new epoch, whatever ended the one before.
func TestAVerifierFollowsOverReloadKillAndSeal(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	m.role("trading", "overlap_period", "1h", "max_accepted_versions", 8)
	f := m.asVerifier().follower("eu-1")
	current := m.key("acme", "trading")
	f.mustPoll()
	f.wants(record.CodeValid, current)
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a reload", func() { srv.ReloadPlugin(t, harness.PluginName) }},
		{"a kill of the plugin", func() { killPlugin(t, srv) }},
		{"a seal", func() { srv.Seal(t); srv.Unseal(t) }},
		{"a kill of the server", func() { srv.Kill(t); srv.Start(t); srv.Unseal(t) }},
	} {
		former, resets, epoch := current, f.resets, f.at.Epoch
		step.do()
		eventually(t, 30*time.Second, func() error { _, err := m.tryVerify(current); return err })
		current = m.rotate("acme")
		version := m.info("acme").CurrentVersion
		m.write("revoke/acme", fields("version", version-1))
		f.mustPoll()
		if f.resets != resets+1 || f.at.Epoch == epoch {
			t.Errorf("after %s: %d resets, epoch %s", step.what, f.resets-resets, f.at.Epoch)
		}
		f.wants(record.CodeRevoked, former)
		f.wants(record.CodeValid, current)
	}
}

// Verifiers ask all three nodes of a cluster whose leader steps down, and then
// dies: from the answer of a revocation on, no question leaves the key
// accepted.
func TestVerifiersFollowThroughFailovers(t *testing.T) {
	t.Parallel()
	cluster, m := ownCluster(t)
	m.role("trading", "overlap_period", "1h", "max_accepted_versions", 8)
	verifier := m.asVerifier()
	var followers []*follower
	for i, node := range cluster.Nodes {
		followers = append(followers, verifier.at(node).follower(fmt.Sprint("node-", i)))
	}
	current := m.key("acme", "trading")
	everywhere := func(what string, nodes ...*follower) {
		t.Helper()
		former := current
		eventually(t, 60*time.Second, func() error { _, err := m.tryVerify(former); return err })
		for _, f := range nodes {
			f.mustPoll()
			f.wants(record.CodeValid, former)
		}
		current = m.rotate("acme")
		m.write("revoke/acme", fields("version", m.info("acme").CurrentVersion-1))
		for _, f := range nodes {
			f.mustPoll()
			if got := f.code(former); got != record.CodeRevoked {
				t.Errorf("after %s %s answers %s for a revoked key", what, f.name, got)
			}
			f.wants(record.CodeValid, current)
		}
	}
	everywhere("the start", followers...)

	old := m.srv
	if err := old.Client.Sys().StepDown(); err != nil {
		t.Fatalf("step down: %v", err)
	}
	eventually(t, 30*time.Second, func() error {
		if m.srv = cluster.Leader(t); m.srv == old {
			return fmt.Errorf("%s still leads", old.Addr)
		}
		return nil
	})
	everywhere("a step-down", followers...)

	old = m.srv
	old.Kill(t)
	m.srv = cluster.Leader(t)
	alive := slices.DeleteFunc(slices.Clone(followers), func(f *follower) bool { return f.m.srv == old })
	everywhere("the death of the leader", alive...)
	for _, f := range alive {
		if f.resets < 3 {
			t.Errorf("%s was reset %d times by three leaders", f.name, f.resets)
		}
	}
}
