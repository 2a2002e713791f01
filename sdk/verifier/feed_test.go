// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// badSyncs are answers of a feed that no working engine gives.
var badSyncs = map[string]func(*verifier.SyncAnswer){
	"no epoch":            func(a *verifier.SyncAnswer) { a.Epoch = "" },
	"an endless epoch":    func(a *verifier.SyncAnswer) { a.Epoch = strings.Repeat("e", 1000) },
	"an epoch, no reset":  func(a *verifier.SyncAnswer) { a.Epoch, a.Reset = "another", false },
	"no time":             func(a *verifier.SyncAnswer) { a.Now = time.Time{} },
	"a time far ahead":    func(a *verifier.SyncAnswer) { a.Now = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
	"seq goes back":       func(a *verifier.SyncAnswer) { a.Seq, a.Reset = 0, false },
	"ids that are none":   func(a *verifier.SyncAnswer) { a.Seq++; a.Changed = append(a.Changed, "not an id") },
	"roles that are none": func(a *verifier.SyncAnswer) { a.Seq++; a.Roles = append(a.Roles, "") },
	"changes without seq": func(a *verifier.SyncAnswer) { a.Changed, a.Reset = []string{"0123456789ab"}, false },
	"nothing but a reset": func(a *verifier.SyncAnswer) { *a = verifier.SyncAnswer{Reset: true} },
	"nothing":             func(a *verifier.SyncAnswer) { *a = verifier.SyncAnswer{} },
}

func TestABadAnswerIsNoGoodSync(t *testing.T) {
	for name, spoil := range badSyncs {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				id, apiKey := e.key(t)
				v := start(t, e, func(c *verifier.Config) { c.MaxStale = 5 * time.Second })
				synctest.Wait()
				v.accepts(apiKey)
				good := v.Stats().Syncs
				e.set(func() { e.spoilSync = spoil })
				time.Sleep(3 * time.Second)
				if got := v.Stats(); got.Syncs != good || got.SyncFailures < 2 {
					t.Errorf("%d good syncs and %d bad ones, had %d", got.Syncs, got.SyncFailures, good)
				}
				if v.Health().LastError == nil {
					t.Error("the feed is well")
				}
				v.accepts(apiKey) // what is cached holds
				// Nothing is accepted for longer than without any answer.
				e.set(func() { e.refuse = func(verifier.LookupRequest) bool { return true } })
				time.Sleep(3 * time.Second)
				v.unavailable(apiKey)
				// It recovers, and has missed nothing: the next request asks for a reset.
				e.set(func() { e.spoilSync, e.refuse = nil, nil })
				e.revoke(id)
				time.Sleep(poll)
				v.refuses(record.CodeRevoked, apiKey)
				e.set(func() {
					asked := false
					for _, r := range e.syncs[2:] {
						asked = asked || r.Epoch == ""
					}
					if !asked {
						t.Error("no request asked for a reset")
					}
				})
			})
		})
	}
}

func TestAFeedThatHangsIsLostAndLeavesNoGoroutines(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.set(func() { e.hang = true })
		time.Sleep(5 * time.Minute)
		v.accepts(apiKey)
		if n := v.Stats().SyncFailures; n < 100 || n > 160 {
			t.Errorf("%d polls failed in 5 minutes: want one at a time, each for 2 seconds", n)
		}
		e.set(func() { e.hang = false })
		e.revoke(id)
		time.Sleep(3 * time.Second)
		v.refuses(record.CodeRevoked, apiKey)
	})
}

func TestAnEnormousAnswerIsAReset(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		resets := v.Stats().Resets
		e.set(func() {
			e.seq++
			e.spoilSync = func(a *verifier.SyncAnswer) {
				a.Changed = make([]string, 300_000)
				for i := range a.Changed {
					a.Changed[i] = "0123456789ab"
				}
			}
		})
		time.Sleep(poll)
		e.set(func() { e.spoilSync = nil })
		if got := v.Stats().Resets; got != resets+1 {
			t.Errorf("%d resets, had %d", got, resets)
		}
		v.accepts(apiKey)
		if n := e.asked(); n < 2 {
			t.Error("the record was not revalidated")
		}
	})
}

func TestRepeatedAnswersChangeNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		e.rotate(t, id, time.Hour)
		var first *verifier.SyncAnswer
		e.set(func() {
			e.spoilSync = func(a *verifier.SyncAnswer) {
				if first == nil {
					copied := *a
					first = &copied
				}
				now := a.Now
				*a = *first
				a.Now = now
			}
		})
		time.Sleep(10 * time.Second)
		v.accepts(apiKey)
		if n := e.asked(); n > 3 {
			t.Errorf("%d lookups", n)
		}
	})
}

// TestAnAnswerThatRepeatsHoldsNoClockBack: what answers is a cache on the way.
func TestAnAnswerThatRepeatsHoldsNoClockBack(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		v.accepts(apiKey)
		const overlap = 5 * time.Second
		ends := time.Now().Add(overlap)
		e.rotate(t, id, overlap)
		time.Sleep(poll)
		resets := v.Stats().Resets
		cached := map[verifier.SyncRequest]verifier.SyncAnswer{}
		e.set(func() {
			e.spoilSync = func(a *verifier.SyncAnswer) {
				asked := e.syncs[len(e.syncs)-1]
				asked.Skew = 0
				if former, ok := cached[asked]; ok && asked.Epoch != "" {
					*a = former
				}
				cached[asked] = *a
			}
		})
		for time.Since(ends) < time.Minute {
			r := v.verify(apiKey)
			if past := time.Since(ends); r.Verdict == verifier.Accepted && past >= 0 {
				t.Fatalf("accepted %s past the deadline", past)
			} else if r.Verdict != verifier.Accepted && past < -poll {
				t.Fatalf("%s %s, %s before the deadline", r.Verdict, r.Code, -past)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if v.Stats().Resets == resets || v.Stats().SyncFailures == 0 {
			t.Error("answers that repeat were taken for good")
		}
	})
}

func TestTheClocksMayJump(t *testing.T) {
	for _, jump := range []time.Duration{-time.Hour, time.Hour, -400 * time.Millisecond} {
		t.Run(jump.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				id, first := e.key(t)
				var here atomic.Int64 // by how much the wall clock here is ahead
				v := start(t, e, func(c *verifier.Config) {
					c.WallClock = func() time.Time { return time.Now().Add(time.Duration(here.Load())) }
				})
				synctest.Wait()
				v.accepts(first)
				e.rotate(t, id, 30*time.Minute)
				time.Sleep(poll)
				v.accepts(first)
				e.set(func() { e.ahead = jump })
				time.Sleep(2 * poll) // a poll that finds it, and one that resets
				if jump > 30*time.Minute {
					v.refuses(record.CodeRetired, first)
				} else {
					v.accepts(first)
				}
				second := e.rotate(t, id, 10*time.Second)
				v.accepts(second)
				other, third := e.key(t)
				e.rotate(t, other, 10*time.Second)
				time.Sleep(9 * time.Second)
				v.accepts(third)
				here.Store(int64(-jump))
				time.Sleep(time.Second + 2*time.Millisecond)
				v.refuses(record.CodeRetired, third)
				v.accepts(second)
				if h := v.Health(); h.LastError != nil || h.FeedAge > poll {
					t.Errorf("health %+v", h)
				}
				if jump > -time.Second && v.Stats().SyncFailures > 0 {
					t.Error("a small step was no good answer")
				}
			})
		})
	}
}

// badLookups are answers to a lookup that no working engine gives.
var badLookups = map[string]func(*verifier.LookupAnswer){
	"nothing":     func(a *verifier.LookupAnswer) { *a = verifier.LookupAnswer{} },
	"no epoch":    func(a *verifier.LookupAnswer) { a.Epoch = "" },
	"no time":     func(a *verifier.LookupAnswer) { a.Now = time.Time{} },
	"nil":         func(a *verifier.LookupAnswer) { a.Records = append(a.Records, nil) },
	"twice":       func(a *verifier.LookupAnswer) { a.Records = append(a.Records, a.Records...) },
	"no id":       func(a *verifier.LookupAnswer) { a.Records[0].KeyID = "" },
	"no state":    func(a *verifier.LookupAnswer) { a.Records[0].Versions[0].State = record.StateUnknown },
	"no number":   func(a *verifier.LookupAnswer) { a.Records[0].Versions[0].Number = 0 },
	"no deadline": func(a *verifier.LookupAnswer) { a.Records[0].Versions[0].State = record.StateRetiring },
	"another key": func(a *verifier.LookupAnswer) { a.Records[0].KeyID = "0123456789ab" },
	"in no list":  func(a *verifier.LookupAnswer) { a.Records = nil },
}

func TestABadAnswerToALookupIsUnavailable(t *testing.T) {
	for name, spoil := range badLookups {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				_, apiKey := e.key(t)
				e.set(func() { e.spoilLook = spoil })
				v := start(t, e)
				synctest.Wait()
				v.unavailable(apiKey)
				e.set(func() { e.spoilLook = nil })
				v.accepts(apiKey)
			})
		})
	}
}

func TestLookupsOfAnEpochThatTheFeedDoesNotKnowAreUsedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		e.restart()
		v.accepts(apiKey)
		asked := e.asked()
		// The feed was asked at once, and knows the new epoch before its time.
		synctest.Wait()
		if got := v.Health().Epoch; got != "epoch-2" {
			t.Errorf("the feed is at %s", got)
		}
		v.accepts(apiKey)
		if e.asked() != asked+1 {
			t.Errorf("%d lookups, want one more", e.asked()-asked)
		}
		v.accepts(apiKey)
		if e.asked() != asked+1 {
			t.Error("asked again")
		}
	})
}
