// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// poll is the time after which a healthy verifier knows what happened.
const poll = time.Second + 250*time.Millisecond

func TestAcceptsFromCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		if r := v.accepts(apiKey); r.Key.KeyID != id || r.Version.Number != 1 || r.State != record.StateActive {
			t.Errorf("accepted %+v", r)
		}
		for range 100 {
			v.accepts(apiKey)
		}
		if n := e.asked(); n != 1 {
			t.Errorf("%d lookups, want one", n)
		}
	})
}

func TestRevocationIsRefusedWithinThePoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.end(id, 1, record.StateRevoked)
		time.Sleep(poll)
		v.refuses(record.CodeRevoked, apiKey)
	})
}
