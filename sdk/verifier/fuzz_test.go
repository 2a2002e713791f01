// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

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

// spoilt answers sync with what a Vault would have sent, once it is told to, and
// all else as the engine does.
type spoilt struct {
	*engine
	answer []byte
}

func (s *spoilt) Sync(ctx context.Context, r verifier.SyncRequest) (a verifier.SyncAnswer, err error) {
	s.mu.Lock()
	answer := s.answer
	s.mu.Unlock()
	if answer == nil {
		return s.engine.Sync(ctx, r)
	}
	return a, json.Unmarshal(answer, &a)
}

// FuzzSync has the feed answer anything, again and again. Nothing panics, what
// is revoked is not accepted for longer than records live, and what is not is
// never refused.
func FuzzSync(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `"`, `{"epoch":"epoch-1","seq":3,"now":"2000-01-01T00:00:01.000Z"}`,
		`{"epoch":"epoch-1","seq":18446744073709551615,"now":"2000-01-01T00:00:01.000Z","changed":["0123456789ab"]}`,
		`{"epoch":"epoch-1","seq":0,"now":"1999-01-01T00:00:00.000Z"}`, `{"epoch":"epoch-1","seq":3,"now":"9999-12-31T23:59:59.999Z"}`,
		`{"epoch":"epoch-2","seq":0,"now":"2000-01-01T00:00:01.000Z","reset":true}`, `{"epoch":"","seq":-1}`,
		`{"epoch":"epoch-1","seq":1,"now":"2000-01-01T00:00:01Z","changed":[""],"roles":["","\u0000"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		if len(answer) == 0 {
			return // nothing is spoilt
		}
		synctest.Test(t, func(t *testing.T) {
			e := &spoilt{engine: newEngine()}
			_, good := e.key(t)
			id, revoked := e.key(t)
			v := start(t, e.engine, func(c *verifier.Config) { c.Engine = e })
			synctest.Wait()
			v.accepts(good)
			v.accepts(revoked)
			e.set(func() { e.answer = answer })
			e.revoke(id)
			const lives = 5 * time.Minute // at most, see verifier's revalidation
			for range 10 {
				time.Sleep(lives/8 + time.Second)
				if r := v.verify(good); r.Verdict == verifier.Refused {
					t.Errorf("a good key is refused: %s", r.Code)
				}
			}
			if r := v.verify(revoked); r.Verdict == verifier.Accepted {
				t.Error("a revoked key is accepted long after")
			}
			e.set(func() { e.answer = nil })
			time.Sleep(15 * time.Second)
			v.accepts(good)
			v.stop()
		})
	})
}
