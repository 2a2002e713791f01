// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// FuzzVerify presents anything. Nothing but the one key is accepted.
func FuzzVerify(f *testing.F) {
	e := newEngine()
	_, apiKey := e.key(f)
	v := must(verifier.New(verifier.Config{Engine: e, Name: "fuzz", UnknownRate: 1e9}))
	for _, seed := range []string{"", "x", apiKey, apiKey + "x", apiKey[1:], "key_0123456789ab_", "____", "\x00\xff", "kеy_0123456789ab_x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := v.Verify(t.Context(), s, verifier.Check{})
		if accepted := r.Verdict == verifier.Accepted; accepted != (s == apiKey) || err != nil {
			t.Errorf("%s %s %v", r.Verdict, r.Code, err)
		}
	})
}

// raw answers with what a Vault would have sent.
type raw struct {
	*engine
	lookup, sync []byte
}

func (r raw) Sync(context.Context, verifier.SyncRequest) (a verifier.SyncAnswer, err error) {
	return a, json.Unmarshal(r.sync, &a)
}

func (r raw) Lookup(context.Context, verifier.LookupRequest) (a verifier.LookupAnswer, err error) {
	return a, json.Unmarshal(r.lookup, &a)
}

// FuzzLookup has a lookup answered by anything. A key that is not in it is not
// accepted, and nothing panics.
func FuzzLookup(f *testing.F) {
	e := newEngine()
	_, apiKey := e.key(f)
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"epoch":"a","now":"2026-01-01T00:00:00.000Z","records":[null]}`,
		`{"epoch":"a","seq":1,"now":"2026-01-01T00:00:00.000Z","records":[{"key_id":"0123456789ab","enabled":true,"versions":[{"version":1,"state":"retiring"}]}],"missing":["x"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		v := must(verifier.New(verifier.Config{Engine: raw{engine: e, lookup: answer}, Name: "fuzz"}))
		for range 2 {
			if r, _ := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict == verifier.Accepted {
				t.Errorf("accepted by %s", answer)
			}
		}
		_ = v.Close(t.Context())
	})
}
