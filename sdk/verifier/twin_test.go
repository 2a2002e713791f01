// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// withoutDeadline is a test that does not tell rapid its deadline, which is not
// on the clock of the bubble.
type withoutDeadline struct{ rapid.TB }

// TestAgainstANaiveTwin runs random rotations, revocations, faults of the feed
// and restarts, and asks about every token ever made, while pages of a first fill
// that never ends arrive late. The twin is the engine's own record: what it
// accepts now, and when it last did.
//
//   - nothing is accepted that the twin has not accepted for longer than the
//     bound: the poll while the feed is well, MaxStale while it is not;
//   - nothing is refused that the twin still accepts when the answer is there. In
//     the bubble a call takes no time, but where it waits out the grain of Vault's
//     clock before it calls an end come.
func TestAgainstANaiveTwin(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const maxStale = 20 * time.Second
		rapid.Check(withoutDeadline{t}, func(rt *rapid.T) {
			e := newEngine()
			e.page, e.endless = 2, true
			random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "pages"), 0))
			e.pageDelay = func() time.Duration { return time.Duration(random.IntN(3000)+1) * time.Millisecond }
			v := start(t, e, func(c *verifier.Config) { c.MaxStale, c.FirstFill = maxStale, true })
			defer v.stop()
			synctest.Wait()
			type issued struct {
				apiKey string
				digest token.Digest
				id     string
				ended  time.Time // when the twin was first seen to refuse it
			}
			var all []*issued
			var ids []string
			well := time.Now() // since when the feed has been well
			down := false
			see := func() {
				for _, k := range all {
					e.mu.Lock()
					code := e.keys[k.id].Verify(e.now(), record.Query{Digest: k.digest}).Code
					e.mu.Unlock()
					if code == record.CodeValid {
						k.ended = time.Time{}
					} else if k.ended.IsZero() {
						k.ended = time.Now()
					}
				}
			}
			for range rapid.IntRange(5, 40).Draw(rt, "steps") {
				switch rapid.IntRange(0, 8).Draw(rt, "step") {
				case 0, 1:
					id, apiKey := e.key(t)
					ids = append(ids, id)
					all = append(all, &issued{apiKey: apiKey, digest: token.Sum(apiKey), id: id})
				case 2, 3:
					if len(ids) > 0 {
						id := rapid.SampledFrom(ids).Draw(rt, "key")
						apiKey := e.rotate(t, id, time.Duration(rapid.IntRange(0, 8).Draw(rt, "overlap"))*time.Second)
						all = append(all, &issued{apiKey: apiKey, digest: token.Sum(apiKey), id: id})
					}
				case 4:
					if len(ids) > 0 {
						e.revoke(rapid.SampledFrom(ids).Draw(rt, "key"))
					}
				case 5:
					e.restart()
				case 6:
					down = !down
					e.set(func() { e.down = down })
					well = time.Now()
				}
				see()
				time.Sleep(time.Duration(rapid.IntRange(0, 6000).Draw(rt, "wait")) * time.Millisecond)
				see()
				for i, k := range all {
					asked := time.Now()
					r := v.verify(k.apiKey)
					if took := time.Since(asked); took > 2*time.Millisecond && !down {
						rt.Fatalf("the answer about token %d took %s", i, took)
					}
					see()
					bound := poll
					if down || time.Since(well) < poll {
						bound = maxStale + poll
					}
					switch {
					case r.Verdict == verifier.Accepted && !k.ended.IsZero() && time.Since(k.ended) > bound:
						rt.Fatalf("token %d was accepted %s after its end, the bound is %s", i, time.Since(k.ended), bound)
					case r.Verdict == verifier.Refused && k.ended.IsZero():
						rt.Fatalf("token %d was refused (%s), and is accepted", i, r.Code)
					case r.Verdict == verifier.Unavailable && !down:
						rt.Fatalf("token %d is unavailable while all is well", i)
					}
				}
			}
		})
	})
}
