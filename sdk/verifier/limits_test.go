// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// rates has a verifier ask for so many refusals a second.
func rates(unknown, known float64) func(*verifier.Config) {
	return func(c *verifier.Config) { c.UnknownRate, c.KnownRate = unknown, known }
}

func TestGuessesAtAKnownIDAreLimitedAndHoldNoHolderUp(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e, rates(1000, 10))
		synctest.Wait()
		v.accepts(apiKey)
		for range 20 {
			v.refuses(record.CodeNotFound, newToken(t, id))
		}
		asked := e.asked()
		for range 100 {
			v.unavailable(newToken(t, id))
		}
		if e.asked() != asked {
			t.Errorf("%d lookups beyond the limit", e.asked()-asked)
		}
		// Who has the key is asked for all the same, to be accepted and refused.
		v.refuses(record.CodeInsufficientScope, apiKey, verifier.Check{Scopes: []string{"admin"}})
		e.change(id, func(r *record.Record) { r.Scopes = []string{"admin"} })
		v.accepts(apiKey, verifier.Check{Scopes: []string{"admin"}})
		time.Sleep(time.Second)
		for range 10 {
			v.refuses(record.CodeNotFound, newToken(t, id))
		}
		v.unavailable(newToken(t, id))
	})
}

// TestWhoHoldsAVersionMadeAMomentAgoIsNoGuesser: what is cached of the key does
// not know it yet.
func TestWhoHoldsAVersionMadeAMomentAgoIsNoGuesser(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		v := start(t, e, rates(1000, 10))
		synctest.Wait()
		admin := verifier.Check{Scopes: []string{"admin"}}
		var id, apiKey string
		for range 15 {
			id, apiKey = e.key(t)
			v.accepts(apiKey)
			v.refuses(record.CodeInsufficientScope, e.rotate(t, id, time.Hour), admin)
		}
		for range 20 {
			v.refuses(record.CodeNotFound, newToken(t, id))
		}
		v.unavailable(newToken(t, id))
		for range 5 {
			v.refuses(record.CodeInsufficientScope, apiKey, admin)
		}
		if r := v.verify(apiKey, admin); r.Verdict != verifier.Unavailable {
			t.Errorf("%s beyond the limit", r.Verdict)
		}
	})
}

func TestRefusalsOfHoldersAreLimited(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		revoked, ended := e.key(t)
		e.revoke(revoked)
		v := start(t, e, rates(10, 10))
		synctest.Wait()
		v.accepts(apiKey)
		admin := verifier.Check{Scopes: []string{"admin"}}
		for range 20 {
			v.refuses(record.CodeInsufficientScope, apiKey, admin)
			v.refuses(record.CodeRevoked, ended) // which is not cached
		}
		v.unavailable(ended)
		if r := v.verify(apiKey, admin); r.Verdict != verifier.Unavailable {
			t.Errorf("%s beyond the limit", r.Verdict)
		}
		v.accepts(apiKey)
	})
}

func TestWhatIsAcceptedIsNotLimited(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		v := start(t, e, rates(1, 1))
		synctest.Wait()
		var keys []string
		for range 50 {
			_, apiKey := e.key(t)
			keys = append(keys, apiKey)
			v.accepts(apiKey)
		}
		time.Sleep(time.Minute) // they are not in use
		e.restart()
		time.Sleep(poll)
		for _, apiKey := range keys {
			v.accepts(apiKey) // each by a question
		}
	})
}

func TestAStrangerPaysOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		v := start(t, e, rates(10, 10))
		synctest.Wait()
		told := map[string]bool{}
		e.set(func() {
			e.spoilLook = func(a *verifier.LookupAnswer) {
				if asked := a.Missing[0]; !told[asked] {
					told[asked], a.Missing = true, nil // to be asked again
				}
			}
		})
		for i := range 20 {
			v.refuses(record.CodeNotFound, newToken(t, benchID(i)))
		}
		v.unavailable(newToken(t, benchID(20)))
	})
}
