// SPDX-License-Identifier: MPL-2.0

package record_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors/verdict.json")

const vectorsPath = "../../testdata/vectors/verdict.json"

// vectors is testdata/vectors/verdict.json, which implementations in other
// languages share: records as `lookup` answers them, and questions with the
// verdict that they get.
type vectors struct {
	Records []*record.Record `json:"records"`
	Cases   []verdictCase    `json:"cases"`
}

type verdictCase struct {
	Name     string       `json:"name"`
	KeyID    string       `json:"key_id"`
	Now      time.Time    `json:"now"`
	Digest   token.Digest `json:"digest"`
	Scopes   []string     `json:"scopes,omitempty"`
	SourceIP netip.Addr   `json:"source_ip,omitzero"`
	Want     want         `json:"want"`
}

type want struct {
	Code    record.Code `json:"code"`
	Version int         `json:"version,omitempty"`
	State   string      `json:"state,omitempty"`
	Scopes  []string    `json:"scopes,omitempty"`
}

var t0 = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func hours(n float64) time.Time { return t0.Add(time.Duration(n * float64(time.Hour))) }

func secretOf(n int) token.Digest { return token.Sum("not a secret " + string(rune('0'+n))) }

// records are a key in the middle of a rollover, one of each other kind.
func records() []*record.Record {
	read := []string{"orders:read"}
	none := []string{}
	return []*record.Record{
		{
			KeyID: "RollingOver1", Name: "acme", Role: "partner", Enabled: true, Recorded: hours(10),
			Scopes: []string{"orders:*", "rates"}, CustomMetadata: map[string]string{"tier": "gold"},
			Versions: []record.Version{
				{Number: 1, Digest: secretOf(1), Life: record.Life{State: record.StateCompromised, EndedTime: hours(1)}},
				{Number: 2, Digest: secretOf(2), Life: record.Life{State: record.StateRevoked, EndedTime: hours(1)}},
				{
					Number: 3, Digest: secretOf(3), SupersededBy: 5, Scopes: &read, LateScopes: &none,
					Life: record.Life{State: record.StateRetiring, SupersededTime: hours(10), OverlapEnds: hours(20), AcceptedUntil: hours(30)},
				},
				{Number: 4, Digest: secretOf(4), SupersededBy: 5, Life: record.Life{State: record.StateRetired, SupersededTime: hours(2), OverlapEnds: hours(4), AcceptedUntil: hours(4), EndedTime: hours(4)}},
				{Number: 5, Digest: secretOf(5), Life: record.Life{State: record.StateActive, ExpireTime: hours(100)}},
				{Number: 6, Digest: secretOf(6), Life: record.Life{State: record.StatePending}},
			},
		},
		{
			KeyID: "DisabledKey1", Name: "off", Role: "partner", Recorded: t0, Versions: []record.Version{
				{Number: 1, Digest: secretOf(1), Life: record.Life{State: record.StateActive}},
				{Number: 2, Digest: secretOf(2), Life: record.Life{State: record.StateRevoked, EndedTime: t0}},
			},
		},
		{
			KeyID: "BoundToNets1", Name: "bound", Role: "internal", Enabled: true, Recorded: t0,
			BoundCIDRs: []string{"192.0.2.0/24", "2001:db8::/32"}, RoleBoundCIDRs: []string{"192.0.2.128/25", "2001:db8::/32"},
			Versions: []record.Version{{Number: 1, Digest: secretOf(1), Life: record.Life{State: record.StateActive}}},
		},
		{
			KeyID: "ImportedKey1", Name: "old", Role: "partner", Enabled: true, Imported: true, Recorded: t0,
			Versions: []record.Version{{Number: 1, Imported: true, Life: record.Life{State: record.StateActive}}},
		},
		{
			KeyID: "DeletedKey01", Role: "partner", Enabled: true, Deleted: true, Recorded: t0,
			Versions: []record.Version{{Number: 2, Digest: secretOf(2), Life: record.Life{State: record.StateCompromised, EndedTime: t0}}},
		},
		{
			KeyID: "LeasedKey001", Role: "job", Enabled: true, Recorded: t0,
			Versions: []record.Version{{Number: 1, Digest: secretOf(1), Life: record.Life{State: record.StateActive, ExpireTime: hours(1)}}},
		},
	}
}

// cases ask everything that decides, one by one.
func cases() []verdictCase {
	ask := func(name, id string, now time.Time, n int, scopes []string, ip string) verdictCase {
		c := verdictCase{Name: name, KeyID: id, Now: now, Digest: secretOf(n), Scopes: scopes}
		if ip != "" {
			c.SourceIP = netip.MustParseAddr(ip)
		}
		return c
	}
	return []verdictCase{
		ask("a secret of no version", "RollingOver1", hours(11), 9, nil, ""),
		ask("compromised", "RollingOver1", hours(11), 1, nil, ""),
		ask("revoked", "RollingOver1", hours(11), 2, nil, ""),
		ask("retiring, its scopes narrowed", "RollingOver1", hours(11), 3, []string{"orders:read"}, ""),
		ask("retiring, outside its scopes", "RollingOver1", hours(11), 3, []string{"rates"}, ""),
		ask("retiring, the overlap over, late scopes", "RollingOver1", hours(20), 3, []string{"orders:read"}, ""),
		ask("retiring, the overlap over, nothing asked", "RollingOver1", hours(20), 3, nil, ""),
		ask("retiring, an instant before its end", "RollingOver1", hours(30).Add(-time.Millisecond), 3, nil, ""),
		ask("retiring, at its end", "RollingOver1", hours(30), 3, nil, ""),
		ask("retired", "RollingOver1", hours(11), 4, nil, ""),
		ask("active", "RollingOver1", hours(11), 5, []string{"orders:write", "rates"}, ""),
		ask("active, one scope too many", "RollingOver1", hours(11), 5, []string{"rates", "admin"}, ""),
		ask("active, aged out", "RollingOver1", hours(100), 5, nil, ""),
		ask("pending", "RollingOver1", hours(11), 6, nil, ""),
		ask("time never runs below what was recorded", "RollingOver1", hours(-1000), 4, nil, ""),
		ask("disabled", "DisabledKey1", hours(1), 1, nil, ""),
		ask("revoked comes before disabled", "DisabledKey1", hours(1), 2, nil, ""),
		ask("bound, no address", "BoundToNets1", hours(1), 1, nil, ""),
		ask("bound, the key's range alone", "BoundToNets1", hours(1), 1, nil, "192.0.2.1"),
		ask("bound, both ranges", "BoundToNets1", hours(1), 1, nil, "192.0.2.129"),
		ask("bound, IPv4 in IPv6", "BoundToNets1", hours(1), 1, nil, "::ffff:192.0.2.129"),
		ask("bound, IPv6", "BoundToNets1", hours(1), 1, nil, "2001:db8::1"),
		ask("a forbidden source comes before scopes", "BoundToNets1", hours(1), 1, []string{"admin"}, "198.51.100.1"),
		ask("imported, its digest not told", "ImportedKey1", hours(1), 1, nil, ""),
		ask("deleted, compromised", "DeletedKey01", hours(1), 2, nil, ""),
		ask("deleted, another secret", "DeletedKey01", hours(1), 1, nil, ""),
		ask("leased", "LeasedKey001", hours(0.5), 1, nil, ""),
		ask("leased, the lease over", "LeasedKey001", hours(1), 1, nil, ""),
		{Name: "the zero digest is nobody's", KeyID: "ImportedKey1", Now: hours(1)},
	}
}

func answer(r *record.Record, c verdictCase) want {
	v := r.Verify(c.Now, record.Query{Digest: c.Digest, Scopes: c.Scopes, SourceIP: c.SourceIP})
	w := want{Code: v.Code, Version: v.Version, Scopes: v.Scopes}
	if v.Version > 0 {
		w.State = v.State.String()
	}
	return w
}

// TestVectors reads the records as `lookup` answers them, so that it also shows
// that nothing which decides is lost on the way.
func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	data, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatalf("read the vectors (go test -update writes them): %v", err)
	}
	var stored vectors
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&stored); err != nil {
		t.Fatal(err)
	}
	if len(stored.Cases) != len(cases()) {
		t.Fatalf("%d cases are stored, want %d (go test -update writes them)", len(stored.Cases), len(cases()))
	}
	seen := map[record.Code]bool{}
	for _, c := range stored.Cases {
		i := slices.IndexFunc(stored.Records, func(r *record.Record) bool { return r.KeyID == c.KeyID })
		got := answer(stored.Records[i], c)
		seen[got.Code] = true
		if got.Code != c.Want.Code || got.Version != c.Want.Version || got.State != c.Want.State || !slices.Equal(got.Scopes, c.Want.Scopes) {
			t.Errorf("%s: %+v, want %+v", c.Name, got, c.Want)
		}
	}
	for _, code := range record.Codes() {
		if !seen[code] && code != record.CodeMalformed {
			t.Errorf("no case answers %s", code)
		}
	}
}

func writeVectors(t *testing.T) {
	t.Helper()
	all := vectors{Records: records(), Cases: cases()}
	for i := range all.Cases {
		c := &all.Cases[i]
		at := slices.IndexFunc(all.Records, func(r *record.Record) bool { return r.KeyID == c.KeyID })
		c.Want = answer(all.Records[at], *c)
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorsPath, append(data, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyAllocatesNothing(t *testing.T) {
	all := records()
	q := record.Query{Digest: secretOf(5), Scopes: []string{"orders:write"}}
	if n := testing.AllocsPerRun(100, func() { _ = all[0].Verify(hours(11), q) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStateTexts(t *testing.T) {
	t.Parallel()
	for _, s := range record.States() {
		text, err := s.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back record.State
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("%s reads back as %s, %v", s, back, err)
		}
	}
	if _, err := record.StateUnknown.MarshalText(); err == nil {
		t.Error("the zero state was written")
	}
	var s record.State
	if err := s.UnmarshalText([]byte("unknown")); err == nil {
		t.Error("the zero state was read")
	}
}
