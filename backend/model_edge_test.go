// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// modelEdge is a verifier elsewhere: the records that it was told, and how far
// it has followed the changes.
type modelEdge struct {
	epoch   string
	seq     int
	records map[string]string // by key id, as JSON
}

// followEdge asks sync and lookup as a verifier does. A record that has changed
// was named before, and every record gives the same verdict as verify.
func (x *modelMachine) followEdge() {
	// It reports under the same name, so that what it knows of can be drained.
	a := x.m.request(logical.ReadOperation, "sync", object{"epoch": x.edge.epoch, "seq": x.edge.seq, "verifier": "edge", "boot": "b"})
	if a.status != http.StatusOK {
		x.Fatalf("sync answers %s", a)
	}
	if got := x.m.list("verifiers/", nil); !slices.Equal(got, []string{"edge"}) {
		x.Fatalf("there is one verifier, and listed are %v", got)
	}
	if got := x.m.read("verifiers/edge")["live"]; got != true {
		x.Fatalf("a verifier has asked just now, and its being live is said to be %v", got)
	}
	reset := a.data["reset"] == true
	named := map[string]bool{}
	for _, field := range []string{"changed", "roles"} {
		for _, what := range list(x, a.data[field]) {
			named[text(x, what)] = true
		}
	}
	ids, digests := []any{}, []any{}
	for _, presented := range x.tokens {
		if slices.Contains(modelImports, presented) {
			digests = append(digests, token.Sum(presented).Hex())
		} else if parsed, err := token.Parse(presented); err == nil && !slices.Contains(ids, any(parsed.KeyID)) {
			ids = append(ids, parsed.KeyID)
		}
	}
	for name, k := range x.ref.keys {
		if id := x.m.idOf(name, k.leased); !slices.Contains(ids, any(id)) {
			ids = append(ids, id) // nobody has seen a token of it
		}
	}
	told := x.m.write("lookup", object{fieldKeyIDs: ids, fieldDigests: digests})
	var records []*record.Record
	fresh := map[string]string{}
	for _, item := range list(x, told[fieldRecords]) {
		r := &record.Record{}
		if err := json.Unmarshal([]byte(toJSON(item)), r); err != nil {
			x.Fatal(err)
		}
		records = append(records, r)
		// Of a change that verifiers need not know of only the time may differ.
		shown := aMap(x, item)
		delete(shown, "recorded")
		fresh[r.KeyID] = toJSON(shown)
		if old, known := x.edge.records[r.KeyID]; known && old != fresh[r.KeyID] && !reset && !named[r.KeyID] && !named[r.Role] {
			x.Fatalf("a verifier was not told that the record changed from\n%s\nto\n%s", old, fresh[r.KeyID])
		}
	}
	for id := range x.edge.records {
		if fresh[id] == "" && !reset && !named[id] {
			x.Fatalf("a verifier was not told that key %s is gone", id)
		}
	}
	x.edge = modelEdge{epoch: text(x, a.data["epoch"]), seq: number(x, a.data["seq"]), records: fresh}
	ip := []string{"", "10.1.2.3", "192.0.2.1"}[x.requests/3%3]
	for _, presented := range x.tokens {
		q := record.Query{Digest: token.Sum(presented)}
		if ip != "" {
			q.SourceIP = netip.MustParseAddr(ip)
		}
		got := record.Verdict{Code: record.CodeNotFound}
		for _, r := range records {
			if v := r.Find(q.Digest); v != nil {
				got = r.Judge(x.now(), v, q)
			}
		}
		if want, _, _ := x.ref.verdict(x.now(), refAsk{token: presented, ip: ip}); string(got.Code) != want {
			x.Fatalf("a verifier answers %s, the model says %s", got.Code, want)
		}
	}
}

// idOf is the id of a key by its name; leased ones are named by their id.
func (m *mount) idOf(name string, leased bool) string {
	if leased {
		return name
	}
	return m.keyID(name)
}
