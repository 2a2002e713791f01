// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// synced is an answer of sync.
type synced struct {
	Epoch   string    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	Now     time.Time `json:"now"`
	Changed []string  `json:"changed"`
	Roles   []string  `json:"roles"`
	Reset   bool      `json:"reset"`
}

// found is an answer of lookup.
type found struct {
	Epoch   string          `json:"epoch"`
	Seq     uint64          `json:"seq"`
	Now     time.Time       `json:"now"`
	Records []record.Record `json:"records"`
	Missing []string        `json:"missing"`
	Next    string          `json:"next"`
}

func (f *found) record(id string) *record.Record {
	if i := slices.IndexFunc(f.Records, func(r record.Record) bool { return r.KeyID == id }); i >= 0 {
		return &f.Records[i]
	}
	return nil
}

func into(t tester, data object, v any) {
	t.Helper()
	text, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatal(err)
	}
}

// sync asks as the CLI does: with texts.
func (m *mount) sync(epoch string, seq uint64, more object) synced {
	m.t.Helper()
	data := object{"epoch": epoch, "seq": fmt.Sprint(seq)}
	for name, value := range more {
		data[name] = value
	}
	var s synced
	into(m.t, m.ok(logical.ReadOperation, "sync", data), &s)
	return s
}

func (m *mount) since(s synced) synced {
	m.t.Helper()
	return m.sync(s.Epoch, s.Seq, nil)
}

func (m *mount) lookup(data object) *found {
	m.t.Helper()
	f := &found{}
	into(m.t, m.write("lookup", data), f)
	return f
}

func (m *mount) lookupIDs(ids ...string) *found {
	m.t.Helper()
	return m.lookup(object{"key_ids": ids})
}

// TestSyncTellsEveryChangeOnceItIsAnswered goes through all that changes what
// verifiers are told.
func TestSyncTellsEveryChangeOnceItIsAnswered(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	at := m.sync("", 0, nil)
	if !at.Reset || at.Epoch == "" || !at.Now.Equal(epoch) {
		t.Fatalf("the first answer is %+v", at)
	}
	told := func(what string, keys, roles []string) {
		t.Helper()
		next := m.since(at)
		if next.Reset || !slices.Equal(next.Changed, keys) || !slices.Equal(next.Roles, roles) {
			t.Errorf("%s: %+v, want keys %v and roles %v", what, next, keys, roles)
		}
		at = next
	}
	m.role(object{"scopes": "a,b", "overlap_period": "1h", "activation_delay": "10m"})
	told("a new role", []string{}, []string{"r"})
	m.key("acme", nil)
	id := []string{m.keyID("acme")}
	told("a new key", id, []string{})
	told("nothing", []string{}, []string{})
	for _, c := range []struct {
		path string
		data object
	}{
		{"rotate/acme", nil}, {"promote/acme", nil}, {"extend/acme", object{"overlap_period": "2h"}}, {"rollback/acme", nil},
		{"retire/acme", object{"force": true}}, {"rotate/acme", object{"activation_delay": 0, "force": true}},
		{"keys/acme", object{"scopes": "a"}}, {"keys/acme", object{"enabled": false}}, {"keys/acme", object{"enabled": true}},
		{"keys/acme", object{"custom_metadata": object{"a": "b"}}}, {"keys/acme", object{"bound_cidrs": "192.0.2.0/24"}},
		{"revoke/acme", object{"all": true, "force": true}},
	} {
		m.write(c.path, c.data)
		told(fmt.Sprint(c.path, c.data), id, []string{})
	}
	m.remove("keys/acme")
	told("a deletion", id, []string{})
	m.write("roles/r", object{"scopes": "a"})
	told("fewer scopes", []string{}, []string{"r"})
	m.write("roles/r", object{"bound_cidrs": "192.0.2.0/24"})
	told("a bound", []string{}, []string{"r"})
	m.write("roles/r", object{"overlap_scopes": "a"})
	told("scopes of late versions", []string{}, []string{"r"})
	m.write("roles/r", object{"rotation_jitter": 5, "bound_cidrs": "192.0.2.0/24"})
	told("what verifiers are not told", []string{}, []string{})
	m.remove("roles/r")
	told("a deleted role", []string{}, []string{"r"})
}

// TestTicksAreTold: what happens by itself, too.
func TestTicksAreTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "24h", "overlap_period": "1h"})
	m.key("acme", nil)
	id := m.keyID("acme")
	at := m.since(m.sync("", 0, nil))
	m.clock.Advance(24*time.Hour + time.Minute)
	m.tick()
	if s := m.since(at); !slices.Contains(s.Changed, id) {
		t.Errorf("a rotation by schedule: %+v", s)
	}
	at = m.since(at)
	m.clock.Advance(2 * time.Hour)
	m.tick()
	if s := m.since(at); !slices.Contains(s.Changed, id) {
		t.Errorf("a retirement by a tick: %+v", s)
	}
}

// TestWhatOtherNodesWroteIsTold and forgotten by the caches before.
func TestWhatOtherNodesWroteIsTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	id := m.keyID("acme")
	at := m.since(m.sync("", 0, nil))
	m.invalidate(t.Context(), "key/"+id)
	m.invalidate(t.Context(), "role/r")
	if s := m.since(at); !slices.Equal(s.Changed, []string{id}) || !slices.Equal(s.Roles, []string{"r"}) {
		t.Errorf("%+v", s)
	}
}

func TestARestartIsANewEpoch(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	at := m.sync("", 0, nil)
	m = m.reopen()
	if s := m.since(at); !s.Reset || s.Epoch == at.Epoch {
		t.Errorf("after a restart: %+v", s)
	}
}

func TestSyncReadsNoStorage(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	m.key("acme", nil)
	m.sync("", 0, nil)
	counting.Reset()
	at := m.sync("", 0, nil)
	for second := range 300 {
		m.clock.Advance(time.Second)
		for v := range 20 {
			at = m.sync(at.Epoch, at.Seq, object{"verifier": fmt.Sprint("eu-", v), "boot": "b", "skew": second})
		}
	}
	// But once a second that this process is still in charge.
	atMost := func(what string) {
		t.Helper()
		all, lists := counting.Total(), counting.Under("charge/").List
		if others := all.All() - lists; others > 0 || lists > 300 {
			t.Errorf("%s cost %v: %v", what, all, counting.Ops())
		}
	}
	atMost("20 verifiers in 5 minutes")
	m.ok(logical.ListOperation, "verifiers/", nil)
	m.read("verifiers/eu-1")
	atMost("reading the verifiers")
}

func TestLookupByIDs(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": "a,b", "overlap_period": "1h", "bound_cidrs": "192.0.2.0/24"})
	first := m.key("acme", object{"scopes": "a", "custom_metadata": object{"tier": "gold"}})
	second := m.rotate("acme", nil)
	m.key("off", object{"enabled": false})
	acme, off, nobody := m.keyID("acme"), m.keyID("off"), "Nobody00000a"
	f := m.lookupIDs(acme, nobody, off, acme)
	if len(f.Records) != 2 || !slices.Equal(f.Missing, []string{nobody}) || !f.Now.Equal(m.clock.Now()) || f.Next != "" {
		t.Fatalf("%+v", f)
	}
	r := f.record(acme)
	if r.Name != "acme" || r.Role != "r" || !r.Enabled || !slices.Equal(r.Scopes, []string{"a"}) || r.CustomMetadata["tier"] != "gold" ||
		!slices.Equal(r.RoleBoundCIDRs, []string{"192.0.2.0/24"}) || len(r.Versions) != 2 {
		t.Errorf("%+v", r)
	}
	for version, secret := range map[int]string{1: first, 2: second} {
		v := r.Find(token.Sum(secret))
		if v == nil || v.Number != version {
			t.Errorf("version %d is found as %+v", version, v)
		}
	}
	if f.record(off).Enabled {
		t.Error("a disabled key is told as enabled")
	}
	if s := m.sync("", 0, nil); s.Seq != f.Seq || s.Epoch != f.Epoch {
		t.Errorf("lookup is at %s %d, sync at %+v", f.Epoch, f.Seq, s)
	}
}

// TestARecordDecidesAsVerifyDoes compares the two for each version and state.
func TestARecordDecidesAsVerifyDoes(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"scopes": "a,b", "overlap_scopes": "a", "overlap_period": "1h", "rollback_window": "2h", "max_accepted_versions": 4})
	secrets := []string{m.key("acme", nil)}
	for range 3 {
		m.clock.Advance(10 * time.Minute)
		secrets = append(secrets, m.rotate("acme", nil))
	}
	m.write("revoke/acme", object{"version": 1})
	m.write("revoke/acme", object{"version": 2, "compromised": true})
	secrets = append(secrets, m.rotate("acme", object{"activation_delay": "30m"}))
	id := m.keyID("acme")
	r := m.lookupIDs(id).record(id)
	codes := map[record.Code]bool{}
	for range 12 {
		for _, secret := range secrets {
			for _, scope := range []string{"", "a", "b", "c"} {
				data, q := object{fieldAPIKey: secret}, record.Query{Digest: token.Sum(secret)}
				if scope != "" {
					data[fieldScopes], q.Scopes = scope, []string{scope}
				}
				want := text(t, m.write("verify", data)["code"])
				got := r.Verify(m.clock.Now(), q).Code
				codes[got] = true
				if string(got) != want {
					t.Errorf("%s: the record says %s, verify %s", m.clock.Now(), got, want)
				}
			}
		}
		m.clock.Advance(7 * time.Minute)
	}
	if len(codes) < 5 {
		t.Errorf("only %v were met", codes)
	}
}

func TestImportedDigestsAreToldToThoseWhoPresentThem(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	legacy, other := "legacy-token-0123456789", "another-token-0123456789"
	unasked := m.lookup(object{"digests": []any{token.Sum(legacy).Hex()}})
	if !slices.Equal(unasked.Missing, []string{token.Sum(legacy).Hex()}) {
		t.Errorf("before there are imports: %+v", unasked)
	}
	m.key("brought", object{fieldImportKey: legacy})
	m.key("other", object{fieldImportKey: other})
	made := m.rotate("brought", nil)
	id := m.keyID("brought")
	byID := m.lookupIDs(id).record(id)
	if byID.Find(token.Sum(legacy)) != nil || !byID.Versions[0].Digest.IsZero() || !byID.Versions[0].Imported {
		t.Errorf("by id the imported version is told as %+v", byID.Versions[0])
	}
	if byID.Find(token.Sum(made)) == nil || !byID.Imported {
		t.Errorf("by id: %+v", byID)
	}
	upper := strings.ToUpper(token.Sum(legacy).Hex())
	both := m.lookup(object{"key_ids": []any{id}, "digests": []any{upper, token.Sum("nobody's token 0000").Hex()}})
	if len(both.Records) != 1 || both.record(id).Find(token.Sum(legacy)) == nil || !slices.Equal(both.Missing, []string{token.Sum("nobody's token 0000").Hex()}) {
		t.Errorf("by digest and id: %+v", both)
	}
	two := m.lookup(object{"key_ids": []any{id}, "digests": []any{token.Sum(other).Hex()}})
	if len(two.Records) != 2 || two.record(id).Find(token.Sum(legacy)) != nil || two.record(m.keyID("other")).Find(token.Sum(other)) == nil {
		t.Errorf("the digest of another key: %+v", two)
	}
	// The digest of a token that was made here leads nowhere: its id does.
	if f := m.lookup(object{"digests": []any{token.Sum(made).Hex()}}); len(f.Records) != 0 || len(f.Missing) != 1 {
		t.Errorf("the digest of a token of this mount: %+v", f)
	}
}

func TestOfADeletedKeyOnlyWhatIsCompromisedIsTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	leaked := m.key("leaked", nil)
	fresh := m.rotate("leaked", nil)
	m.write("revoke/leaked", object{"version": 1, "compromised": true})
	m.key("clean", nil)
	leakedID, cleanID := m.keyID("leaked"), m.keyID("clean")
	m.remove("keys/leaked")
	m.remove("keys/clean")
	f := m.lookupIDs(leakedID, cleanID)
	if !slices.Equal(f.Missing, []string{cleanID}) || len(f.Records) != 1 {
		t.Fatalf("%+v", f)
	}
	r := f.record(leakedID)
	if !r.Deleted || len(r.Versions) != 1 || r.Verify(m.clock.Now(), record.Query{Digest: token.Sum(leaked)}).Code != record.CodeCompromised ||
		r.Verify(m.clock.Now(), record.Query{Digest: token.Sum(fresh)}).Code != record.CodeNotFound {
		t.Errorf("%+v", r)
	}
}

func TestLookupOfCachedKeysReadsNothing(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	var ids []string
	for i := range 990 {
		name := fmt.Sprint("k", i)
		ids = append(ids, text(t, m.write("keys/"+name, object{"role": "r"})[fieldKeyID]))
	}
	for i := range 10 {
		ids = append(ids, fmt.Sprintf("Nobody0000%02d", i))
	}
	m.lookupIDs(ids...)
	counting.Reset()
	if f := m.lookupIDs(ids...); len(f.Records) != 990 || len(f.Missing) != 10 {
		t.Fatalf("%d records, %d missing", len(f.Records), len(f.Missing))
	}
	if n := counting.Total().All(); n > 0 {
		t.Errorf("1000 keys that are cached cost %d operations", n)
	}
	// After a restart, one read each, and the role once.
	m = m.reopen()
	counting.Reset()
	m.lookupIDs(ids...)
	if keys := counting.Under("key/"); keys.Get != 1000 || counting.Total().All() > 1001 {
		t.Errorf("1000 keys that are not cached cost %s", counting.Total())
	}
}

// TestMissesAreLimitedPerCaller and what is over the limit is in neither list.
func TestLookupMissesAreLimitedPerCaller(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	m.key("brought", object{fieldImportKey: "legacy-token-0123456789"})
	acme := m.keyID("acme")
	m = m.reopen() // nothing is cached
	unknown := func(round int) (ids []string) {
		for i := range 999 {
			ids = append(ids, fmt.Sprintf("Nobody%02d%04d", round, i))
		}
		return append(ids, acme)
	}
	limited := 0
	for round := range 15 {
		f := m.lookupIDs(unknown(round)...)
		limited += 1000 - len(f.Missing) - len(f.Records)
		if len(f.Records) != 1 && round == 0 {
			t.Errorf("round %d: the key itself is not found", round)
		}
	}
	if want := 15*999 - missBurst; limited < want-lookupParallel || limited > want {
		t.Errorf("%d were limited, want about %d", limited, want)
	}
	digest := object{"digests": []any{token.Sum("some other token 123").Hex()}}
	if f := m.lookup(digest); len(f.Missing) != 0 {
		t.Errorf("digests are not limited: %+v", f)
	}
	if f := m.lookupIDs(acme, unknown(0)[0]); len(f.Records) != 1 || len(f.Missing) != 1 {
		t.Errorf("what is known to be unknown, or cached, is limited: %+v", f)
	}
	m.entity = "entity-2"
	if f := m.lookup(digest); len(f.Missing) != 1 {
		t.Errorf("another caller is limited: %+v", f)
	}
}

func TestLookupThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.secret(marker)
	secret := m.secret(m.key("leaky", nil))
	ids := func(n int) (list []any) {
		for i := range n {
			list = append(list, fmt.Sprintf("Nobody%06d", i))
		}
		return list
	}
	good := "Nobody00000a"
	for _, c := range []struct {
		data  object
		words string
	}{
		{nil, "key_ids digests"},
		{object{}, "key_ids digests"},
		{object{"key_ids": ""}, "key_ids"},
		{object{"key_ids": []any{}, "digests": []any{}}, "key_ids digests"},
		{object{"key_ids": []any{good, secret}}, "key_ids item 2"},
		{object{"key_ids": []any{marker}}, "key_ids item 1"},
		{object{"key_ids": []any{good, ""}}, "key_ids"},
		{object{"key_ids": []any{"Nobody00000é"}}, "key_ids item 1"},
		{object{"key_ids": []any{"Nobody 0000a"}}, "key_ids item 1"},
		{object{"key_ids": strings.Repeat("a", 10_000)}, "key_ids"},
		{object{"key_ids": ids(1001)}, "key_ids 1000"},
		{object{"key_ids": ids(1000), "digests": []any{token.Sum("x").Hex()}}, "key_ids digests 1000"},
		{object{"digests": []any{secret}}, "digests item 1"},
		{object{"digests": []any{token.Sum("x").Hex()[1:]}}, "digests item 1"},
		{object{"digests": []any{token.Sum("x").Hex() + "00"}}, "digests item 1"},
		{object{"digests": []any{strings.Repeat("g", 64)}}, "digests item 1"},
		{object{"digests": []any{5}}, "digests"},
		{object{"key_ids": []any{good}, "limit": 5}, "key_ids limit"},
		{object{"digests": []any{token.Sum("x").Hex()}, "after": ""}, "digests after"},
		{object{"limit": 0}, "limit 1000"},
		{object{"limit": -1}, "limit 1000"},
		{object{"limit": 1001}, "limit 1000"},
		{object{"limit": "many"}, "limit"},
		{object{"after": secret}, "after"},
		{object{"after": "AAAA"}, "after"},
		{object{"after": fillCursor{"r", 256, ""}.text()}, "after"},
		{object{"after": fillCursor{"r", -1, ""}.text()}, "after"},
		{object{"after": fillCursor{"../r", 0, ""}.text()}, "after"},
		{object{"after": fillCursor{"r", 0, "short"}.text()}, "after"},
		{object{"after": strings.Repeat("A", 4000)}, "after"},
	} {
		m.refused(badStatus, logical.UpdateOperation, "lookup", c.data, strings.Fields(c.words)...)
	}
}

func TestSyncThatCannotBe(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.secret(marker)
	secret := m.secret(m.key("leaky", nil))
	lines := secret + "\nsecond line"
	for _, c := range []struct{ field, value any }{
		{"seq", "x"}, {"seq", "-1"}, {"seq", -1}, {"seq", "1.5"}, {"seq", 1.5}, {"seq", "18446744073709551616"}, {"seq", []any{"1", "2"}}, {"seq", ""}, {"seq", secret},
		{"epoch", lines}, {"epoch", strings.Repeat("a", 129)}, {"epoch", []any{"a"}}, {"epoch", 5},
		{"verifier", lines}, {"verifier", strings.Repeat("a", 129)}, {"verifier", "a b"}, {"verifier", []any{"a", "b"}},
		{"boot", lines}, {"boot", strings.Repeat("a", 129)},
		{"skew", "soon"}, {"skew", "9223372036854775807"}, {"skew", "-9223372036854775808"}, {"skew", "1e3"},
	} {
		field := fmt.Sprint(c.field)
		m.refused(badStatus, logical.ReadOperation, "sync", object{field: c.value}, field)
	}
	if got := m.list("verifiers/", nil); len(got) > 0 {
		t.Errorf("questions that were refused are noted as those of %v", got)
	}
	for _, c := range []object{{"seq": "9223372036854775807"}, {"epoch": strings.Repeat("a", 128)}, {"seq": 5}, {"epoch": "", "seq": "0"}, {}} {
		if s := m.sync("", 0, c); !s.Reset {
			t.Errorf("%v: %+v, want a reset", c, s)
		}
	}
}

func TestTheEdgeIgnoresUnknownFieldsWithAWarning(t *testing.T) {
	t.Parallel()
	m, _ := furnished(t)
	m.secret(marker)
	for _, a := range []*answer{
		m.request(logical.ReadOperation, "sync", object{"later": "x", marker: marker}),
		m.request(logical.UpdateOperation, "lookup", object{"key_ids": m.keyID("acme"), "later": "x", marker: marker}),
	} {
		if a.status != http.StatusOK || !strings.Contains(strings.Join(a.warnings, " "), `"later"`) {
			t.Errorf("%s, want a warning that names the field", a)
		}
	}
}

// TestAFirstFillFindsEveryKeyMadeHere however its pages are cut, whatever
// happens between them.
func TestAFirstFillFindsEveryKeyMadeHere(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	want := map[string]bool{}
	for r := range 5 {
		m.write(fmt.Sprint("roles/role", r), object{"overlap_period": "1h"})
	}
	for i := range 700 {
		role := fmt.Sprint("role", i%3) // two have no keys
		want[text(t, m.write(fmt.Sprint("keys/k", i), object{"role": role})[fieldKeyID])] = true
	}
	m.write("keys/brought", object{"role": "role1", fieldImportKey: "legacy-token-0123456789"})
	m.write("keys/gone", object{"role": "role1"})
	m.remove("keys/gone")
	want[text(t, m.read("creds/role1")[fieldKeyID])] = true // leased keys, too

	fill := func(limit int, between func(page int)) map[string]bool {
		got := map[string]bool{}
		after := ""
		for page := 0; ; page++ {
			counting.Reset()
			f := m.lookup(object{"after": after, "limit": limit})
			if lists := counting.Under("member/").List; lists > maxShardLists {
				t.Fatalf("one page lists %d shards", lists)
			}
			if len(f.Records) > limit || len(f.Missing) > 0 {
				t.Fatalf("a page has %d records and misses %v", len(f.Records), f.Missing)
			}
			for _, r := range f.Records {
				if got[r.KeyID] {
					t.Fatalf("key %s is told twice", r.KeyID)
				}
				got[r.KeyID] = true
			}
			if f.Next == "" {
				return got
			}
			if page > 5000 {
				t.Fatal("the fill has no end")
			}
			after = f.Next
			between(page)
		}
	}
	for _, limit := range []int{1, 7, 100, 1000} {
		got := fill(limit, func(int) {})
		if len(got) != len(want) {
			t.Errorf("by pages of %d: %d keys, want %d", limit, len(got), len(want))
		}
		for id := range want {
			if !got[id] {
				t.Fatalf("by pages of %d: key %s is missing", limit, id)
			}
		}
	}
	if n := counting.Under("key/").List + counting.Under("name/").List; n > 0 {
		t.Error("a fill lists all keys")
	}
	// The plugin starts anew, a role with its keys goes, others come.
	got := fill(20, func(page int) {
		switch page {
		case 1:
			m = m.reopen()
		case 2:
			m.write("roles/role0a", nil)
		case 3:
			for i := range 700 {
				if i%3 == 0 {
					m.remove(fmt.Sprint("keys/k", i))
				}
			}
			m.remove("roles/role0")
		}
	})
	for i := range 700 {
		if i%3 == 0 {
			continue
		}
		if id := m.keyID(fmt.Sprint("k", i)); !got[id] {
			t.Fatalf("key %d of a role that stayed is missing", i)
		}
	}
}

// TestALookupIsWholeOrAnError: no failure of storage makes a key missing.
func TestALookupIsWholeOrAnError(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
	m.role(nil)
	m.key("acme", nil)
	m.key("brought", object{fieldImportKey: "legacy-token-0123456789"})
	digest := token.Sum("legacy-token-0123456789").Hex()
	ids := []any{m.keyID("acme"), m.keyID("brought"), "Nobody00000a"}
	for _, data := range []object{{"key_ids": ids, "digests": []any{digest}}, {"limit": 10}} {
		failed := 0
		for at := 1; ; at++ {
			m = m.reopen()
			faulty.Inject(storetest.Fault{At: at})
			a := m.request(logical.UpdateOperation, "lookup", data)
			n := faulty.Failed()
			faulty.Heal()
			if n == 0 {
				break
			}
			failed++
			if a.status != http.StatusInternalServerError {
				t.Errorf("with operation %d failing: %s", at, a)
			}
			var f found
			into(t, m.write("lookup", data), &f)
			if data["limit"] == nil && (len(f.Records) != 2 || len(f.Missing) != 1) {
				t.Errorf("after operation %d failed: %+v", at, f)
			}
		}
		if failed < 4 {
			t.Errorf("%v: only %d operations failed", data, failed)
		}
	}
}

// TestADamagedKeyLeavesTheOthersAlone and is neither found nor missing.
func TestADamagedKeyLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	m.key("acme", nil)
	m.key("damaged", nil)
	acme, damaged := m.keyID("acme"), m.keyID("damaged")
	if err := m.memory.Put(t.Context(), &logical.StorageEntry{Key: "key/" + damaged, Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	m = m.reopen()
	if f := m.lookupIDs(acme, damaged); len(f.Records) != 1 || len(f.Missing) != 0 {
		t.Errorf("%+v", f)
	}
	got := 0
	for after := ""; ; {
		f := m.lookup(object{"after": after, "limit": 1000})
		got += len(f.Records)
		if after = f.Next; after == "" {
			break
		}
	}
	if got != 1 {
		t.Errorf("a fill finds %d keys", got)
	}
}

func TestAVerifierShowsNoAccessor(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.entity, m.accessor = "", "accessor-of-a-token"
	m.sync("", 0, object{"verifier": "eu-1"})
	got := m.read("verifiers/eu-1")["caller"]
	if text := fmt.Sprint(got); !strings.HasPrefix(text, "token:") || strings.Contains(text, m.accessor) {
		t.Errorf("the caller is shown as %v", got)
	}
	m.entity = "an-entity"
	m.sync("", 0, object{"verifier": "eu-2"})
	if got := m.read("verifiers/eu-2")["caller"]; got != "entity:an-entity" {
		t.Errorf("the caller is shown as %v", got)
	}
}

// TestACacheThatReportsNothingDelaysRetirement for as long as it may accept;
// what it accepted is unknown. A look at sync by hand delays nothing.
func TestACacheThatReportsNothingDelaysRetirement(t *testing.T) {
	t.Parallel()
	report := func(m *mount, sequence int) {
		m.write("usage", object{"verifier": "eu-1", "boot": "b", "sequence": sequence, "reported_through": stamp(m.clock.Now()), "entries": []any{}})
	}
	for what, c := range map[string]struct {
		ask, after func(m *mount)
		delays     bool
	}{
		"a look by hand":            {ask: func(m *mount) { m.sync("", 0, nil) }},
		"a look-up that finds none": {ask: func(m *mount) { m.lookupIDs("Nobody00000a") }},
		"follows without a name":    {ask: func(m *mount) { m.since(m.sync("", 0, nil)) }, delays: true},
		"looks up":                  {ask: func(m *mount) { m.lookupIDs(m.keyID("acme")) }, delays: true},
		"a first fill": {ask: func(m *mount) {
			for f := m.lookup(object{"limit": 10}); f.Next != ""; f = m.lookup(object{"after": f.Next}) {
				m.clock.Advance(0) // the key may be on any page
			}
		}, delays: true},
		"looks up for what reports": {ask: func(m *mount) { report(m, 1); m.lookupIDs(m.keyID("acme")) }, after: func(m *mount) { report(m, 2) }},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			m.role(object{"overlap_period": "24h", "drain_quiet_period": "5m"})
			m.key("acme", nil)
			m.rotate("acme", nil)
			c.ask(m)
			m.clock.Advance(5 * time.Minute)
			if c.after != nil {
				c.after(m)
			}
			if c.delays {
				m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "without the name of a verifier")
				m.clock.Advance(6 * time.Minute) // its cache is over
				m.refused(badStatus, logical.UpdateOperation, "retire/acme", nil, "not drained", "unused only since")
				m.clock.Advance(4 * time.Minute)
			}
			m.write("retire/acme", nil)
		})
	}
}
