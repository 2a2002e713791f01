// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// poll is the time after which a healthy verifier knows what happened.
const poll = time.Second + 250*time.Millisecond

// inBubble runs a test on a clock that moves when everybody waits, and fails
// it if a goroutine is left at its end.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

func TestAcceptsFromCache(t *testing.T) {
	inBubble(t, func(t *testing.T) {
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
		if s := v.Stats(); s.Hits != 100 || s.Codes[record.CodeValid] != 101 || s.Lookups != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestAKeyMadeAMomentAgoWorks(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		v := start(t, e)
		synctest.Wait()
		id, apiKey := e.key(t)
		v.accepts(apiKey)
		// So does a version made a moment ago, of a key that is cached.
		v.accepts(e.rotate(t, id, time.Hour))
		v.accepts(apiKey)
	})
}

func TestAKnownKeyIsRefusedOnlyOnAFreshRecord(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		asked := e.asked()
		wrong := newToken(t, id)
		for range 3 {
			v.refuses(record.CodeNotFound, wrong)
		}
		if got := e.asked() - asked; got != 6 {
			t.Errorf("%d lookups for three refusals of a known id, want two each: by id and by digest", got)
		}
		v.refuses(record.CodeInsufficientScope, apiKey, verifier.Check{Scopes: []string{"admin"}})
		if got := e.asked() - asked; got != 7 {
			t.Errorf("a scope was refused by an old record")
		}
		// A scope that the engine has granted since is not refused.
		e.change(id, func(r *record.Record) { r.Scopes = []string{"admin"} })
		v.accepts(apiKey, verifier.Check{Scopes: []string{"admin"}})
		e.set(func() { e.down = true })
		v.unavailable(wrong)
	})
}

func TestAQuestionThatIsUnderWayDoesNotAnswerWhoComesLater(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, _ := e.key(t)
		v := start(t, e)
		synctest.Wait()
		next := newToken(t, id)
		e.set(func() { e.delay = 300 * time.Millisecond })
		var first, second verifier.Result
		var both sync.WaitGroup
		both.Go(func() { first = v.verify(next) })
		time.Sleep(100 * time.Millisecond) // it has been read, and is on its way back
		e.change(id, func(r *record.Record) {
			r.Versions[0].Digest = token.Sum(next)
		})
		both.Go(func() { second = v.verify(next) })
		both.Wait()
		if first.Verdict != verifier.Refused && first.Verdict != verifier.Accepted {
			t.Errorf("the first is %s", first.Verdict)
		}
		if second.Verdict != verifier.Accepted {
			t.Errorf("the second is %s %s: it was answered by a question older than the request", second.Verdict, second.Code)
		}
	})
}

func TestFewWaitForAnEngineThatHangs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.set(func() { e.hang = true })
		wrong := newToken(t, id)
		var asking sync.WaitGroup
		for range 8_000 {
			asking.Go(func() {
				if r := v.verify(wrong); r.Verdict != verifier.Unavailable || r.RetryAfter == 0 {
					t.Errorf("%s, want unavailable", r.Verdict)
				}
			})
		}
		synctest.Wait()
		if n := v.Stats().Limited; n != 3_000 {
			t.Errorf("%d of 8000 are told to come again, want 3000", n)
		}
		v.accepts(apiKey)
		asking.Wait()
	})
}

func TestQuestionsOfOneMomentAreOne(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		var keys []string
		for range 300 {
			_, apiKey := e.key(t)
			keys = append(keys, apiKey)
		}
		v := start(t, e)
		synctest.Wait()
		e.set(func() { e.delay = 50 * time.Millisecond })
		var all sync.WaitGroup
		for i := range 3000 {
			all.Go(func() { v.accepts(keys[i%len(keys)]) })
		}
		all.Wait()
		if n := e.asked(); n > 8 {
			t.Errorf("%d lookups for 300 keys at once", n)
		}
	})
}

func TestRevocationIsRefusedWithinThePoll(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.revoke(id)
		time.Sleep(poll)
		v.refuses(record.CodeRevoked, apiKey)
		asked := e.asked()
		e.remove(id)
		time.Sleep(poll)
		v.refuses(record.CodeNotFound, apiKey)
		if e.asked() == asked {
			t.Error("refused without asking")
		}
	})
}

func TestChangedKeysAreFetchedAgainAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		other, _ := e.key(t) // not cached, so that nobody asks for it
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		second := e.rotate(t, id, time.Hour)
		e.rotate(t, other, time.Hour)
		time.Sleep(poll)
		asked := e.asked()
		if asked != 2 {
			t.Errorf("%d lookups, want the first and one for the change", asked)
		}
		v.accepts(second)
		v.accepts(apiKey)
		if e.asked() != asked {
			t.Error("a use had to ask for a record that was to be there")
		}
	})
}

func TestAChangedKeyIsNotAcceptedFromTheRecordBefore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.set(func() { e.refuse = func(verifier.LookupRequest) bool { return true } })
		e.change(id, func(*record.Record) {})
		time.Sleep(poll)
		v.unavailable(apiKey)
		e.set(func() { e.refuse = nil })
		v.accepts(apiKey)
	})
}

func TestARecordReadBeforeARevocationIsNotCachedAfterIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		// The record is read now, and arrives when the feed has told of the
		// revocation. The request began before that: either answer is right.
		e.set(func() { e.delay = 1500 * time.Millisecond })
		done := make(chan verifier.Result)
		go func() { done <- v.verify(apiKey) }()
		synctest.Wait()
		e.set(func() { e.delay = 0 })
		e.revoke(id)
		<-done
		v.refuses(record.CodeRevoked, apiKey)
	})
}

// TestARecordOlderThanItsLastChangeDecidesNothing: an answer of before is asked
// for again, where the feed has told that the key has changed since.
func TestARecordOlderThanItsLastChangeDecidesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, v1 := e.key(t)
		v := start(t, e)
		v.accepts(v1)
		var former *record.Record // which no change writes to
		var seq uint64
		e.set(func() { former, seq = e.keys[id], e.seq })
		v2 := e.rotate(t, id, time.Hour)
		time.Sleep(2 * poll) // the feed has told of it
		old := 2
		e.set(func() {
			e.spoilLook = func(a *verifier.LookupAnswer) {
				if old--; old >= 0 {
					a.Seq, a.Records = seq, []*record.Record{former}
				}
			}
		})
		e.change(id, func(*record.Record) {})
		time.Sleep(2 * poll)
		v.accepts(v2)
		if old >= 0 {
			t.Error("no old answer was given")
		}
		e.set(func() { old = 1_000_000 })
		e.change(id, func(*record.Record) {})
		time.Sleep(2 * poll)
		v.unavailable(v2)
		v.unavailable(v1)
	})
}

// TestAPageReadBeforeARevocationIsNotAcceptedAfterIt: nobody waits for a page,
// so nobody asks again.
func TestAPageReadBeforeARevocationIsNotAcceptedAfterIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		other, otherKey := e.key(t)
		e.pageDelay = func() time.Duration { return 1500 * time.Millisecond }
		v := start(t, e, func(c *verifier.Config) { c.FirstFill = true })
		synctest.Wait() // the page is read, and on its way
		e.revoke(id)
		time.Sleep(2 * poll)
		if n := v.Health().CachedKeys; n != 2 {
			t.Fatalf("%d keys are cached: the page has not arrived", n)
		}
		v.accepts(otherKey)
		if e.asked() != 1 {
			t.Errorf("key %s, which has not changed, is not taken from the page", other)
		}
		v.refuses(record.CodeRevoked, apiKey)
	})
}

// TestARecordFetchedBeforeARevocationIsNotAcceptedAfterIt: nobody waits for a
// record that is fetched because the feed named its key either.
func TestARecordFetchedBeforeARevocationIsNotAcceptedAfterIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.change(id, func(*record.Record) {})
		e.set(func() {
			e.spoilLook = func(*verifier.LookupAnswer) {
				e.set(func() { e.spoilLook = nil }) // the second time it is quick
				time.Sleep(1500 * time.Millisecond)
			}
		})
		time.Sleep(poll) // the feed has told of the change, and the record is read
		e.revoke(id)
		time.Sleep(1300 * time.Millisecond)
		v.refuses(record.CodeRevoked, apiKey)
	})
}

func TestAChangeOfARoleHasItsRecordsRevalidated(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey, verifier.Check{Scopes: []string{"orders:write"}})
		e.changeRole("trading", func(r *record.Record) { r.Scopes = []string{"orders:read"} })
		time.Sleep(poll)
		v.refuses(record.CodeInsufficientScope, apiKey, verifier.Check{Scopes: []string{"orders:write"}})
		v.accepts(apiKey, verifier.Check{Scopes: []string{"orders:read"}})
	})
}

func TestANewEpochHasAllRevalidatedOnNextUse(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		time.Sleep(time.Minute) // a key in use is fetched at once
		asked := e.asked()
		e.restart() // and a revocation that its feed does not tell
		e.set(func() {
			r := *e.keys[id]
			r.Versions = append([]record.Version(nil), r.Versions...)
			r.Versions[0].State = record.StateRevoked
			e.keys[id] = &r
		})
		time.Sleep(poll)
		if e.asked() != asked {
			t.Error("a new epoch asked for what nobody uses")
		}
		v.refuses(record.CodeRevoked, apiKey)
	})
}

func TestALostFeedIsBridgedUpToMaxStale(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var logged bytes.Buffer
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e, func(c *verifier.Config) { c.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
		synctest.Wait()
		v.accepts(apiKey)
		time.Sleep(time.Second - time.Millisecond)
		e.set(func() { e.down = true })
		lost := time.Now().Add(-time.Second + time.Millisecond)
		time.Sleep(time.Until(lost.Add(10*time.Minute - time.Millisecond)))
		v.accepts(apiKey)
		if h := v.Health(); !h.Ready || h.FeedAge < 9*time.Minute || h.LastError == nil {
			t.Errorf("health %+v", h)
		}
		time.Sleep(time.Millisecond)
		v.unavailable(apiKey)
		v.unavailable(newToken(t, id))
		if h := v.Health(); h.Ready {
			t.Errorf("health %+v", h)
		}
		e.set(func() { e.down = false })
		v.accepts(apiKey) // by asking for it
		time.Sleep(poll)
		if h := v.Health(); !h.Ready || h.LastError != nil || h.FeedAge > poll {
			t.Errorf("health %+v", h)
		}
		if n := strings.Count(logged.String(), "the feed of changes is lost"); n != 1 {
			t.Errorf("the loss was told %d times:\n%s", n, logged.String())
		}
		if n := strings.Count(logged.String(), "the feed of changes is back"); n != 1 {
			t.Errorf("the return was told %d times", n)
		}
		if strings.Contains(logged.String(), apiKey) {
			t.Error("a key was logged")
		}
	})
}

// TestMaxStaleCountsFromTheQuestion: what the feed answers may be as old as what
// it was asked.
func TestMaxStaleCountsFromTheQuestion(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v := start(t, e, func(c *verifier.Config) { c.MaxStale = 5 * time.Second })
		synctest.Wait()
		v.accepts(apiKey)
		const way = 1500 * time.Millisecond
		var asked time.Time
		e.set(func() {
			e.spoilSync = func(*verifier.SyncAnswer) {
				e.set(func() { e.down, asked = true, time.Now() }) // it is the last one
				time.Sleep(way)
			}
		})
		time.Sleep(poll + way)
		if v.Stats().Syncs != 2 {
			t.Fatalf("%d good answers, want the first and a slow one", v.Stats().Syncs)
		}
		time.Sleep(time.Until(asked.Add(5*time.Second - time.Millisecond)))
		v.accepts(apiKey)
		time.Sleep(time.Millisecond)
		v.unavailable(apiKey)
	})
}

func TestRecordsAreRevalidatedWithinFiveMinutes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		var keys, ids []string
		for range 1200 {
			id, apiKey := e.key(t)
			ids, keys = append(ids, id), append(keys, apiKey)
		}
		v := start(t, e, func(c *verifier.Config) { c.FirstFill = true })
		time.Sleep(poll)
		for _, k := range keys {
			v.accepts(k)
		}
		if n := e.asked(); n != 2 {
			t.Fatalf("%d lookups of a first fill of two pages", n)
		}
		// A change that no feed ever tells is noticed all the same.
		e.set(func() {
			for _, id := range ids {
				r := *e.keys[id]
				r.Enabled = false
				e.keys[id] = &r
			}
		})
		time.Sleep(5 * time.Minute)
		batches := e.asked() - 2
		if batches < 10 || batches > 45 {
			t.Errorf("%d lookups revalidated 1200 records: want them spread, and in batches", batches)
		}
		for _, k := range keys[:20] {
			v.refuses(record.CodeDisabled, k)
		}
	})
}

func TestARecordIsNotUsedPastFiveMinutesWhileTheFeedIsWell(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.set(func() { e.refuse = func(verifier.LookupRequest) bool { return true } })
		time.Sleep(5*time.Minute - 2*time.Second)
		v.accepts(apiKey)
		time.Sleep(4 * time.Second)
		v.unavailable(apiKey)
	})
}

func TestNothingIsAcceptedLateOrRefusedEarly(t *testing.T) {
	for _, rtt := range []time.Duration{0, 4 * time.Millisecond, 120 * time.Millisecond} {
		t.Run(rtt.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				id, apiKey := e.key(t)
				e.set(func() { e.delay = rtt })
				v := start(t, e)
				time.Sleep(poll)
				v.accepts(apiKey)
				overlap := 3 * time.Second
				ends := time.Now().Add(overlap)
				e.rotate(t, id, overlap)
				accepted, refused := time.Time{}, time.Time{}
				for time.Now().Before(ends.Add(time.Second)) {
					before := time.Now()
					r := v.verify(apiKey)
					after := time.Now()
					switch r.Verdict {
					case verifier.Accepted:
						accepted = after
						// A change that is fetched may cross the deadline on its way
						// back; what is judged is the moment of the answer.
						if !after.Before(ends) {
							t.Fatalf("accepted %s past the deadline", after.Sub(ends))
						}
					case verifier.Refused:
						if refused.IsZero() {
							refused = after
						}
						if after.Before(ends) {
							t.Fatalf("refused %s before the deadline, asked %s before it", ends.Sub(after), ends.Sub(before))
						}
						if r.Code != record.CodeRetired {
							t.Fatalf("refused for %s", r.Code)
						}
					case verifier.Unavailable, verifier.VerdictUnknown:
						t.Fatalf("unavailable %s from the deadline", time.Until(ends))
					}
					time.Sleep(time.Millisecond)
				}
				if gap := ends.Sub(accepted); gap > rtt+5*time.Millisecond {
					t.Errorf("last accepted %s before the deadline", gap)
				}
				if late := refused.Sub(ends); late > rtt+5*time.Millisecond {
					t.Errorf("first refused %s after the deadline", late)
				}
			})
		})
	}
}

func TestTheClockIsVaultsAndNotOurs(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var logged bytes.Buffer
				e := newEngine()
				e.set(func() { e.ahead = ahead })
				id, apiKey := e.key(t)
				v := start(t, e, func(c *verifier.Config) { c.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
				synctest.Wait()
				e.rotate(t, id, 10*time.Second)
				v.accepts(apiKey)
				time.Sleep(9 * time.Second)
				v.accepts(apiKey)
				time.Sleep(time.Second + 2*time.Millisecond)
				v.refuses(record.CodeRetired, apiKey)
				if got := v.Health().Skew; (got + ahead).Abs() > 10*time.Millisecond {
					t.Errorf("a skew of %s, want %s", got, -ahead)
				}
				if n := strings.Count(logged.String(), "the wall clock differs"); n != 1 {
					t.Errorf("the skew was told %d times:\n%s", n, logged.String())
				}
				e.set(func() {
					if got := e.syncs[len(e.syncs)-1].Skew; (got + ahead).Abs() > 10*time.Millisecond {
						t.Errorf("sync was told a skew of %s", got)
					}
				})
			})
		})
	}
}

func TestUnknownKeysAreRefusedFromMemoryForFiveSeconds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		v := start(t, e)
		synctest.Wait()
		id, err := token.NewID(strings.NewReader(strings.Repeat("x", 64)))
		if err != nil {
			t.Fatal(err)
		}
		unknown := newToken(t, id)
		v.refuses(record.CodeNotFound, unknown)
		asked := e.asked()
		for range 10 {
			v.refuses(record.CodeNotFound, unknown)
		}
		if e.asked() != asked {
			t.Error("a key known to be unknown was asked for")
		}
		time.Sleep(5*time.Second + time.Millisecond)
		v.refuses(record.CodeNotFound, unknown)
		if e.asked() == asked {
			t.Error("it was refused from memory for more than 5 seconds")
		}
		// The feed names it: it is asked for again.
		e.set(func() {
			e.keys[id] = &record.Record{KeyID: id, Role: "trading", Enabled: true, Versions: []record.Version{{Number: 1, Digest: token.Sum(unknown), Life: record.Life{State: record.StateActive}}}}
		})
		e.change(id, func(*record.Record) {})
		time.Sleep(poll)
		v.accepts(unknown)
	})
}

func TestMalformedKeysAreRefusedWithoutAsking(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		v := start(t, e)
		synctest.Wait()
		for name, bad := range map[string]string{
			"empty":         "",
			"one character": "x",
			"long":          strings.Repeat("a", 10_000),
			"long token":    "key_0123456789ab_" + strings.Repeat("a", 10_000),
			"binary":        "key_0123456789ab_\x00\x01\x02\xff\xfe",
			"look-alikes":   "kеy_0123456789ab_" + strings.Repeat("а", 38), // Cyrillic
			"a space":       "key_0123456789ab_" + strings.Repeat("a", 20) + " " + strings.Repeat("a", 17),
			"a newline":     newToken(t, "0123456789ab") + "\n",
			"underscores":   "_",
			"short":         "key_0123456789",
		} {
			if r := v.verify(bad); r.Verdict != verifier.Refused || r.Code != record.CodeMalformed || r.Key != nil {
				t.Errorf("%s: %s %s", name, r.Verdict, r.Code)
			}
		}
		if n := e.asked(); n != 0 {
			t.Errorf("%d lookups", n)
		}
		// What may have been imported has to be asked for.
		v.refuses(record.CodeMalformed, strings.Repeat("_", 60))
		v.refuses(record.CodeMalformed, newToken(t, "0123456789ab")+"x")
		if n := e.asked(); n != 2 {
			t.Errorf("%d lookups", n)
		}
	})
}

func TestImportedKeysAreFoundByDigest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		apiKey := "legacy-key-of-another-system"
		id := e.imported(t, apiKey)
		v := start(t, e)
		synctest.Wait()
		if r := v.accepts(apiKey); r.Key.KeyID != id {
			t.Errorf("accepted as %s", r.Key.KeyID)
		}
		asked := e.asked()
		v.accepts(apiKey)
		if e.asked() != asked {
			t.Error("asked for a cached imported key")
		}
		// A rotation: both versions.
		second := e.rotate(t, id, time.Hour)
		time.Sleep(poll)
		v.accepts(apiKey)
		v.accepts(second)
		v.refuses(record.CodeMalformed, apiKey+"x")
		e.revoke(id)
		time.Sleep(poll)
		v.refuses(record.CodeRevoked, apiKey)
		v.accepts(second)
		// Deleted, and imported again under another id.
		e.remove(id)
		again := e.imported(t, apiKey)
		time.Sleep(poll)
		if r := v.accepts(apiKey); r.Key.KeyID != again {
			t.Errorf("accepted as %s", r.Key.KeyID)
		}
	})
}

// TestATokenOfAnotherMountCanBeImported: it has the form of ours, with an id
// that is nobody's, or somebody else's.
func TestATokenOfAnotherMountCanBeImported(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		taken, _ := e.key(t)
		v := start(t, e)
		synctest.Wait()
		for _, id := range []string{"0123456789ab", taken} {
			apiKey := newToken(t, id)
			owner := e.imported(t, apiKey)
			for range 2 {
				if r := v.accepts(apiKey); r.Key.KeyID != owner {
					t.Errorf("accepted as %s", r.Key.KeyID)
				}
			}
			e.change(owner, func(r *record.Record) { r.Enabled = false })
			time.Sleep(poll)
			v.refuses(record.CodeDisabled, apiKey)
		}
	})
}

func TestAddressesAndScopes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		e.change(id, func(r *record.Record) {
			r.BoundCIDRs, r.RoleBoundCIDRs = []string{"192.0.2.0/24", "2001:db8::/32"}, []string{"192.0.2.0/25", "2001:db8::/32"}
		})
		v := start(t, e)
		synctest.Wait()
		from := func(ip string) verifier.Check {
			return verifier.Check{SourceIP: netip.MustParseAddr(ip), Scopes: []string{"orders:read"}}
		}
		for range 2 {
			for _, good := range []string{"192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"} {
				v.accepts(apiKey, from(good))
			}
			for _, bad := range []string{"192.0.2.200", "198.51.100.1", "::1"} {
				v.refuses(record.CodeForbiddenSource, apiKey, from(bad))
			}
			v.refuses(record.CodeForbiddenSource, apiKey)
		}
		e.change(id, func(r *record.Record) { r.RoleBoundCIDRs = []string{"nonsense"} })
		time.Sleep(poll)
		v.refuses(record.CodeForbiddenSource, apiKey, from("192.0.2.1"))
	})
}

func TestScopesNarrowAtTheEndOfTheOverlap(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		e.rotate(t, id, 10*time.Second)
		e.change(id, func(r *record.Record) {
			r.Versions[0].AcceptedUntil = r.Versions[0].AcceptedUntil.Add(time.Hour)
			r.Versions[0].LateScopes = &[]string{"orders:read"}
		})
		time.Sleep(poll)
		writes := verifier.Check{Scopes: []string{"orders:write"}}
		v.accepts(apiKey, writes)
		time.Sleep(10 * time.Second)
		asked := e.asked()
		if r := v.accepts(apiKey); len(r.Scopes) != 1 || r.Scopes[0] != "orders:read" {
			t.Errorf("scopes %v", r.Scopes)
		}
		if e.asked() != asked {
			t.Error("asked in the late part of an overlap")
		}
		v.refuses(record.CodeInsufficientScope, apiKey, writes)
	})
}

func TestAFloodOfUnknownKeysStarvesNoKnownOne(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.set(func() { e.delay = 20 * time.Millisecond })
		flood := make([]string, 6000)
		for i := range flood {
			flood[i] = newToken(t, benchID(i))
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		verdicts := map[verifier.Verdict]int{}
		for _, stranger := range flood {
			all.Go(func() {
				r := v.verify(stranger)
				mu.Lock()
				defer mu.Unlock()
				verdicts[r.Verdict]++
				if r.Verdict == verifier.Refused && r.Code != record.CodeNotFound {
					t.Errorf("refused for %s", r.Code)
				}
			})
		}
		e.revoke(id)
		before := time.Now()
		v.refuses(record.CodeRevoked, apiKey, verifier.Check{Scopes: []string{"admin"}})
		if took := time.Since(before); took > 50*time.Millisecond {
			t.Errorf("a known key waited %s behind strangers", took)
		}
		all.Wait()
		if verdicts[verifier.Refused] == 0 || verdicts[verifier.Unavailable] < 4000 || verdicts[verifier.Accepted] > 0 {
			t.Errorf("verdicts %v", verdicts)
		}
		if n := e.asked(); n > 50 {
			t.Errorf("a flood of %d keys made %d lookups", len(flood), n)
		}
		if v.Stats().Limited == 0 {
			t.Error("nothing was limited")
		}
	})
}

// TestAMillionStrangersTakeNoMemory presents keys with valid checksums that
// nobody made, for as long as it takes to have all of them asked for.
func TestAMillionStrangersTakeNoMemory(t *testing.T) {
	strangers := 1_000_000
	if raceEnabled || testing.Short() {
		strangers = 50_000
	}
	synctest.Test(t, func(t *testing.T) { // alone: it looks at the memory of the process
		e := newEngine()
		e.set(func() { e.forgetful = true })
		_, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		heap := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before, began := heap(), time.Now()
		random := mathrand.NewChaCha8([32]byte{})
		const perSecond = 5_000
		for i := range strangers {
			id := must(token.NewID(random))
			if r := v.verify(must(token.New(random, token.Format{}, id))); r.Verdict == verifier.Accepted {
				t.Fatal("a stranger is accepted")
			}
			if i%perSecond == perSecond-1 {
				v.accepts(apiKey)
				time.Sleep(time.Second)
			}
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%d strangers left %d MiB behind", strangers, grown>>20)
		}
		const rate, burst = 500, 1000 // UnknownRate, and what may be at once
		// Each is asked for by its id and, as it may be imported, by its digest.
		if asked, most := e.askedFor, 2*(burst+rate*int(time.Since(began)/time.Second+1)); asked == 0 || asked > most {
			t.Errorf("%d strangers were asked for, want at most %d", asked, most)
		}
		v.accepts(apiKey)
	})
}

func TestWaitingEndsWithTheRequest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		e.set(func() { e.hang = true })
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		before := time.Now()
		r, err := v.Verify(ctx, apiKey, verifier.Check{})
		if r.Verdict != verifier.Unavailable || !errors.Is(err, verifier.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, %v", r.Verdict, err)
		}
		if took := time.Since(before); took != 100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		// Without a deadline the verifier has one.
		v.unavailable(apiKey)
		if took := time.Since(before); took != 2100*time.Millisecond {
			t.Errorf("it took %s: want the 2 seconds of one lookup", took)
		}
		e.set(func() { e.hang = false })
	})
}

func TestALookupDoesNotWaitForTheOneBefore(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, first := e.key(t)
		_, second := e.key(t)
		v := start(t, e)
		synctest.Wait()
		const roundTrip = 300 * time.Millisecond
		e.set(func() { e.delay = roundTrip })
		var both sync.WaitGroup
		defer both.Wait()
		both.Go(func() { v.accepts(first) })
		time.Sleep(100 * time.Millisecond)
		before := time.Now()
		v.accepts(second)
		if took := time.Since(before); took != roundTrip {
			t.Errorf("it took %s, want one round trip", took)
		}
	})
}

func TestAClosedVerifierAcceptsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		v.accepts(apiKey)
		v.stop()
		v.unavailable(apiKey)
		if h := v.Health(); h.Ready || h.UnreportedUses != 0 {
			t.Errorf("health %+v", h)
		}
		if n := e.reported(t)[id+" v1 eu"]; n != 2 {
			t.Errorf("%d uses were reported, want 2", n)
		}
	})
}

func TestVerifiesWithoutAFeedByAsking(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v, err := verifier.New(verifier.Config{Engine: e, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if r, err := v.Verify(t.Context(), apiKey, verifier.Check{}); err != nil || r.Verdict != verifier.Accepted {
				t.Fatalf("%s, %v", r.Verdict, err)
			}
			if e.asked() != i+1 {
				t.Errorf("%d lookups", e.asked())
			}
		}
		if v.Health().Ready {
			t.Error("ready without a feed")
		}
		if err := v.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if r, err := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict != verifier.Unavailable || err == nil {
			t.Errorf("a closed verifier says %s", r.Verdict)
		}
	})
}
