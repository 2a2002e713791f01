// SPDX-License-Identifier: MPL-2.0

package oracle

import (
	"encoding/json"
	"slices"
	"testing"
	"time"
)

// The made-up histories happen on this clock, in seconds.
var origin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time {
	return origin.Add(time.Duration(seconds * float64(time.Second)))
}

// history is an oracle with a key of one version, made from 0 to 1.
func history() *Oracle {
	o := &Oracle{}
	o.Born("acme", 1, at(0), at(1))
	return o
}

func (o *Oracle) said(verdict Verdict, version int, sent, answered float64) {
	o.saidWithin(verdict, version, sent, answered, 0)
}

func (o *Oracle) saidWithin(verdict Verdict, version int, sent, answered, bound float64) {
	v := Verification{Class: "test", Verifier: "the verifier", Key: "acme", Version: version, Sent: at(sent), Answered: at(answered), Verdict: verdict, Late: at(bound).Sub(origin)}
	if verdict == Refused {
		v.Code = "RETIRED"
	}
	o.Judge(v)
}

// rotate supersedes version 1 in a call, with an overlap of 30 s from its middle.
func (o *Oracle) rotate(to int, sent, answered float64) {
	const overlap = 30
	op := o.Begin("acme", at(sent), Intent{Supersedes: 1, Overlap: at(overlap).Sub(origin), Adds: true})
	op.Done(at(answered), Outcome{Added: to, Active: to, Until: map[int]time.Time{1: at((sent+answered)/2 + overlap)}})
}

// saidInTime is a refusal of a client that read version 1 at one moment, and was
// to use it until another.
func (o *Oracle) saidInTime(sent, answered, fetched, until float64) {
	o.Judge(Verification{
		Class: "test", Verifier: "the verifier", Key: "acme", Version: 1, Sent: at(sent), Answered: at(answered), Verdict: Refused, Code: "RETIRED",
		Fetched: at(fetched), Until: at(until),
	})
}

func (o *Oracle) fetched(version int, sent, answered, late float64) {
	o.Fetched(Fetch{Key: "acme", Version: version, Sent: at(sent), Answered: at(answered), Late: at(late).Sub(origin)})
}

func (o *Oracle) revoke(version int, sent, answered float64) {
	o.Begin("acme", at(sent), Intent{Ends: []int{version}}).Done(at(answered), Outcome{Ended: []int{version}, Final: true})
}

func TestOracle(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		happens func(o *Oracle)
		finds   []Kind
	}{
		"nothing": {func(*Oracle) {}, nil},
		"a key is accepted while it is, and may be refused before it was answered": {func(o *Oracle) {
			o.said(Refused, 1, 0.2, 0.8)
			o.said(Accepted, 1, 0.2, 0.8)
			o.said(Refused, 1, 0.5, 3)
			o.said(Accepted, 1, 2, 3)
		}, nil},
		"an answered key is refused": {func(o *Oracle) { o.said(Refused, 1, 2, 3) }, []Kind{FalseRefusal}},
		"an answered key is unknown": {func(o *Oracle) {
			o.Judge(Verification{Class: "test", Key: "acme", Version: 1, Sent: at(2), Answered: at(3), Verdict: Refused, Code: "NOT_FOUND"})
		}, []Kind{LostKey}},
		"no answer, and an answer that knows nothing, are no refusals": {func(o *Oracle) {
			o.said(Failed, 1, 2, 3)
			o.said(Unavailable, 1, 2, 3)
		}, nil},
		"a superseded version is refused within its overlap": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.said(Refused, 1, 39, 40.9)
		}, []Kind{FalseRefusal}},
		"its successor is refused": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.said(Refused, 2, 12, 13)
		}, []Kind{FalseRefusal}},
		"around its deadline both answers are right": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.said(Refused, 1, 40.9, 41)
			o.said(Accepted, 1, 40.9, 45)
		}, nil},
		"a superseded version is accepted after its overlap": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.said(Accepted, 1, 41.5, 42)
		}, []Kind{LateAcceptance}},
		"late, but within the bound of the verifier": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.saidWithin(Accepted, 1, 41.5, 42, 1)
		}, nil},
		"later than the bound of the verifier": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.saidWithin(Accepted, 1, 42.5, 43, 1)
		}, []Kind{LateAcceptance}},
		"a verifier that may refuse a little early does": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Judge(Verification{Class: "test", Key: "acme", Version: 1, Sent: at(40), Answered: at(40.9), Verdict: Refused, Code: "RETIRED", Early: 200 * time.Millisecond})
		}, nil},
		"while a rotation is under way the old version is refused": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: 30 * time.Second, Adds: true})
			o.said(Refused, 1, 20, 21)
		}, []Kind{FalseRefusal}},
		"while a cut-over is under way it may be": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}, Adds: true})
			o.said(Refused, 1, 20, 21)
			o.said(Accepted, 1, 20, 21)
		}, nil},
		"a refused change changes nothing": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}}).Refused()
			o.said(Refused, 1, 20, 21)
		}, []Kind{FalseRefusal}},
		"a revoked version is accepted": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.revoke(1, 13, 14)
			o.said(Accepted, 1, 14.1, 15)
		}, []Kind{LateAcceptance}},
		"a revoked version is accepted while it is being revoked": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.revoke(1, 13, 14)
			o.said(Accepted, 1, 13.9, 15)
			o.said(Refused, 1, 12.9, 13.1)
		}, nil},
		"a revocation of unknown outcome allows both": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}}).Unknown()
			o.said(Refused, 1, 20, 21)
			o.said(Accepted, 1, 20, 21)
		}, nil},
		"read again, it was not done": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}}).Unknown()
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1, Accepted: true}})
			o.said(Refused, 1, 20, 29) // it can have been refused, who knows
			o.said(Refused, 1, 32, 33)
		}, []Kind{FalseRefusal}},
		"read again, it was done": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}}).Unknown()
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1, Final: true}})
			o.said(Accepted, 1, 32, 33)
		}, []Kind{LateAcceptance}},
		"a rotation of unknown outcome, done once": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: time.Minute, Adds: true}).Unknown()
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1, Accepted: true, Until: at(75)}, {Version: 2, Accepted: true}})
			o.said(Accepted, 2, 32, 33)
			o.said(Accepted, 1, 74, 76)
			o.said(Refused, 1, 76, 77)
		}, nil},
		"a rotation of unknown outcome, done twice": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: time.Minute, Adds: true}).Unknown()
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1, Accepted: true, Until: at(75)}, {Version: 2, Accepted: true, Until: at(76)}, {Version: 3, Accepted: true}})
		}, []Kind{DoubleRotation}},
		"a rotation skips a version": {func(o *Oracle) { o.rotate(3, 10, 12) }, []Kind{DoubleRotation}},
		"a rotation answers a version that there was": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.rotate(2, 20, 22)
		}, []Kind{LostRotation}},
		"a rotation that was answered is gone": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1, Accepted: true}})
		}, []Kind{LostKey, LostRotation}},
		"a key is gone": {func(o *Oracle) { o.Missing("acme", at(20)) }, []Kind{LostKey}},
		"a version reads as ended that nobody ended": {func(o *Oracle) {
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1}})
		}, []Kind{EndedEarly}},
		"a revoked version reads as accepted": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.revoke(1, 13, 14)
			o.Observe("acme", at(30), at(31), []Seen{{Version: 1, Accepted: true}, {Version: 2, Accepted: true}})
		}, []Kind{Revived}},
		"a rollback makes a version accepted for ever": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			op := o.Begin("acme", at(20), Intent{Supersedes: 2, Overlap: 30 * time.Second, Activates: 1})
			op.Done(at(22), Outcome{Active: 1, Until: map[int]time.Time{2: at(51)}})
			o.said(Accepted, 1, 100, 101)
			o.said(Refused, 1, 100, 101)
			o.said(Accepted, 2, 52, 53)
		}, []Kind{FalseRefusal, LateAcceptance}},
		"an overlap is extended": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Begin("acme", at(20), Intent{Revives: []int{1}}).Done(at(22), Outcome{Until: map[int]time.Time{1: at(81)}})
			o.said(Refused, 1, 79, 80)
		}, []Kind{FalseRefusal}},
		"a version is rescued after its end, and may be refused until then": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Begin("acme", at(60), Intent{Revives: []int{1}}).Done(at(62), Outcome{Until: map[int]time.Time{1: at(121)}})
			o.said(Refused, 1, 39, 62)
			o.said(Accepted, 1, 61, 63)
			o.said(Refused, 1, 64, 65)
		}, []Kind{FalseRefusal}},
		"a version is accepted between its end and its rescue": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Begin("acme", at(60), Intent{Revives: []int{1}}).Done(at(62), Outcome{Until: map[int]time.Time{1: at(121)}})
			o.said(Accepted, 1, 50, 51)
		}, []Kind{LateAcceptance}},
		"a verifier takes a key for another": {func(o *Oracle) {
			o.Judge(Verification{Class: "test", Key: "acme", Version: 1, Sent: at(2), Answered: at(3), Verdict: Accepted, AnsweredKey: "globex", AnsweredVersion: 1})
		}, []Kind{Mistaken}},
		"a new version may be fetched and used before the call that makes it is answered": {func(o *Oracle) {
			op := o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: 30 * time.Second, Adds: true})
			o.said(Accepted, 2, 11, 12)
			op.Done(at(13), Outcome{Added: 2, Active: 2, Until: map[int]time.Time{1: at(41)}})
		}, nil},
		"a version is accepted whose making was refused": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: 30 * time.Second, Adds: true}).Refused()
			o.said(Accepted, 2, 14, 15)
		}, []Kind{LateAcceptance}},
		"a version that was never made is accepted": {func(o *Oracle) { o.said(Accepted, 7, 2, 3) }, []Kind{LateAcceptance}},
		"a key of the schedule may be superseded at any time, and is then accepted for an overlap": {func(o *Oracle) {
			o.Foreign("acme", time.Minute)
			o.Observe("acme", at(10), at(11), []Seen{{Version: 2, Accepted: true}, {Version: 1, Accepted: true, Until: at(60)}})
			o.said(Accepted, 2, 500, 501)
			o.said(Refused, 2, 80, 81)
			o.said(Refused, 2, 68, 69)
		}, []Kind{FalseRefusal}},
		"a key of the schedule has more versions than before": {func(o *Oracle) {
			o.Foreign("acme", time.Minute)
			o.Observe("acme", at(10), at(11), []Seen{{Version: 1, Accepted: true, Until: at(60)}, {Version: 2, Accepted: true}})
			o.said(Accepted, 1, 61, 62)
		}, []Kind{LateAcceptance}},
		"a client that keeps to a ttl that is too long is refused after the overlap": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.saidInTime(50, 51, 9, 60)
		}, []Kind{ClientRefused}},
		"a client that keeps to a shorter one is not judged any more": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.saidInTime(50, 51, 9, 15)
		}, nil},
		"a client is refused what was revoked since it read it": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.revoke(1, 13, 14)
			o.saidInTime(50, 51, 9, 60)
		}, nil},
		"a client is refused while it is being revoked": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}})
			o.saidInTime(12, 13, 9, 60)
		}, nil},
		"a client is refused though the revocation was refused": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Begin("acme", at(13), Intent{Ends: []int{1}}).Refused()
			o.saidInTime(50, 51, 9, 60)
		}, []Kind{ClientRefused}},
		"a client is refused because another version was revoked": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.revoke(2, 14, 15)
			o.saidInTime(50, 51, 9, 60)
		}, []Kind{ClientRefused}},
		"a client read its key while it was disabled, and again when it was not": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Ends: []int{1}}).Done(at(11), Outcome{Ended: []int{1}})
			o.saidInTime(15, 16, 12, 60)
			o.Begin("acme", at(20), Intent{Revives: []int{1}})
			o.Observe("acme", at(22), at(23), []Seen{{Version: 1, Accepted: true, Active: true, Until: at(25)}})
			o.saidInTime(26, 27, 22.5, 60)
			o.saidInTime(26, 27, 24, 60)
		}, []Kind{ClientRefused}},
		"the schedule makes an overlap too short for a client": {func(o *Oracle) {
			o.Foreign("acme", time.Minute)
			o.Observe("acme", at(10), at(11), []Seen{{Version: 2, Accepted: true, Active: true}, {Version: 1, Accepted: true, Until: at(12)}})
			o.saidInTime(62, 63, 9, 70)
		}, []Kind{ClientRefused}},
		"a client is told that there is no active version": {func(o *Oracle) { o.fetched(0, 2, 3, 0) }, []Kind{LostKey}},
		"a client is given the old version after a rotation": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.fetched(1, 12.5, 13, 0)
			o.fetched(2, 12.5, 13, 0)
		}, []Kind{Stale}},
		"a client is given either version during a rotation": {func(o *Oracle) {
			op := o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: 30 * time.Second, Adds: true})
			o.fetched(1, 10.5, 11, 0)
			o.fetched(2, 10.5, 11, 0)
			op.Done(at(12), Outcome{Added: 2, Active: 2, Until: map[int]time.Time{1: at(41)}})
			o.fetched(1, 11.5, 13, 0)
		}, nil},
		"a client is given the old version as late as may be": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.fetched(1, 13.5, 14, 2)
			o.fetched(1, 14.5, 15, 2)
		}, []Kind{Stale}},
		"a client is given a version that is pending": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Adds: true}).Done(at(12), Outcome{Added: 2})
			o.fetched(1, 13, 14, 0)
			o.fetched(2, 13, 14, 0)
			o.Begin("acme", at(20), Intent{Supersedes: 1, Overlap: time.Minute, Activates: 2}).Done(at(22), Outcome{Active: 2, Until: map[int]time.Time{1: at(81)}})
			o.fetched(2, 20, 21, 0)
			o.fetched(2, 23, 24, 0)
			o.fetched(1, 23, 24, 0)
		}, []Kind{Stale, Stale}},
		"a client is given the newer version after a rollback": {func(o *Oracle) {
			o.rotate(2, 10, 12)
			o.Begin("acme", at(20), Intent{Supersedes: 2, Overlap: time.Minute, Activates: 1}).Done(at(22), Outcome{Active: 1, Until: map[int]time.Time{2: at(81)}})
			o.fetched(1, 23, 24, 0)
			o.fetched(2, 23, 24, 0)
		}, []Kind{Stale}},
		"a client is given the old version after a rotation of unknown outcome was seen": {func(o *Oracle) {
			o.Begin("acme", at(10), Intent{Supersedes: 1, Overlap: time.Minute, Adds: true}).Unknown()
			o.fetched(1, 28, 29, 0)
			o.fetched(2, 28, 29, 0)
			o.Observe("acme", at(30), at(31), []Seen{{Version: 2, Accepted: true, Active: true}, {Version: 1, Accepted: true, Until: at(75)}})
			o.fetched(2, 32, 33, 0)
			o.fetched(1, 32, 33, 0)
		}, []Kind{Stale}},
		"a client learns first of a version that the schedule made": {func(o *Oracle) {
			o.Foreign("acme", time.Minute)
			o.fetched(3, 10, 11, 0)
			o.fetched(2, 9, 10.5, 0) // asked before, and heard later
			o.fetched(3, 8, 9, 0)
			o.said(Accepted, 2, 11, 12)
			o.Observe("acme", at(9), at(12), []Seen{{Version: 2, Accepted: true, Active: true}, {Version: 1, Accepted: true, Until: at(50)}})
			o.fetched(3, 12, 13, 0)
			o.said(Accepted, 3, 13, 14)
			o.said(Refused, 3, 13, 14)
			o.fetched(2, 12, 13, 0)
		}, []Kind{FalseRefusal, Stale}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := history()
			test.happens(o)
			var got []Kind
			for _, v := range o.Summary().Violations {
				got = append(got, v.Kind)
			}
			if !slices.Equal(got, test.finds) {
				t.Errorf("found %v, want %v: %v", got, test.finds, o.Summary().Violations)
			}
		})
	}
}

func TestOracleCountsWhatItWasTold(t *testing.T) {
	t.Parallel()
	o := history()
	o.rotate(2, 10, 12)
	o.said(Accepted, 1, 20, 21)
	o.said(Refused, 1, 50, 51)
	o.said(Unavailable, 1, 50, 51)
	o.said(Failed, 1, 50, 51)
	o.saidWithin(Accepted, 1, 41.25, 43, 10)
	o.fetched(2, 50, 51, 0)
	for _, verdict := range []Verdict{Accepted, Unavailable, Failed} {
		o.Judge(Verification{Class: "calm", Key: "acme", Version: 1, Sent: at(20), Answered: at(41.2), Verdict: verdict, Calm: true, Fetched: at(9), Until: at(41.2)})
	}
	s := o.Summary()
	got := *s.Classes["test"]
	if got.Verifications != 5 || got.Accepted != 2 || got.Refused != 1 || got.Unavailable != 1 || got.Errors != 1 || got.Codes["RETIRED"] != 1 || got.Late != 1 || got.MaxLate != 250 {
		t.Errorf("counted %+v", got)
	}
	if got := *s.Classes["calm"]; got.Calm != 3 || got.CalmLost != 2 || s.Classes["test"].Calm != 0 {
		t.Errorf("counted %+v while no fault was on", got)
	}
	if s.InTime != 3 || s.Fetches != 1 {
		t.Errorf("counted %d uses in their time, %d fetches", s.InTime, s.Fetches)
	}
	if s.Rotations != 1 || s.Verifications() != 8 || s.Keys != 1 || s.Versions != 2 || len(s.Violations) != 0 {
		t.Errorf("summed up as %+v", s)
	}
}

func TestSpans(t *testing.T) {
	t.Parallel()
	var ss spans
	ss = ss.with(at(1), at(2)).with(at(5), at(6)).with(at(2), at(3)).with(at(7), time.Time{}).with(at(9), at(10)).with(at(4), at(4))
	want := spans{{at(1), at(3)}, {at(5), at(6)}, {at(7), time.Time{}}}
	if !slices.Equal(ss, want) {
		t.Fatalf("got %v, want %v", ss, want)
	}
	if got := ss.cut(at(5.5)); !slices.Equal(got, spans{{at(1), at(3)}, {at(5), at(5.5)}}) {
		t.Errorf("cut to %v", got)
	}
	if got := ss.cut(at(5)); !slices.Equal(got, spans{{at(1), at(3)}}) {
		t.Errorf("cut to %v", got)
	}
	for _, test := range []struct {
		from, to     float64
		cover, touch bool
	}{
		{0, 0.5, false, false}, {0, 1, false, true}, {1, 2.9, true, true}, {1, 3, false, true}, {3, 4, false, false},
		{2, 5, false, true}, {8, 1000, true, true}, {6, 6.9, false, false},
	} {
		if got := ss.cover(at(test.from), at(test.to)); got != test.cover {
			t.Errorf("cover(%v, %v) = %v", test.from, test.to, got)
		}
		if got := ss.touch(at(test.from), at(test.to)); got != test.touch {
			t.Errorf("touch(%v, %v) = %v", test.from, test.to, got)
		}
	}
	if got := ss.endBefore(at(6.5)); !got.Equal(at(6)) {
		t.Errorf("the last end before 6.5 is %v", got)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	created, retired := Told{"version.created", at(1)}, Told{"version.retired", at(2)}
	for name, test := range map[string]struct {
		takes   func(e *Events)
		history []Told
		finds   []Kind
	}{
		"all":   {func(e *Events) { e.take(1, created); e.take(2, retired) }, []Told{created, retired}, nil},
		"again": {func(e *Events) { e.take(1, created); e.take(1, created); e.take(2, retired) }, []Told{created, retired}, nil},
		"none":  {func(*Events) {}, []Told{created}, []Kind{LostEvent}},
		"last":  {func(e *Events) { e.take(1, created) }, []Told{created, retired}, []Kind{LostEvent}},
		"hole":  {func(e *Events) { e.take(1, created); e.take(3, retired) }, []Told{created, created, retired}, []Kind{WrongEvent, LostEvent}},
		"order": {func(e *Events) { e.take(2, retired); e.take(1, created) }, []Told{created, retired}, []Kind{WrongEvent, WrongEvent, LostEvent}},
		"other": {func(e *Events) { e.take(1, retired) }, []Told{created}, []Kind{LostEvent}},
		"time":  {func(e *Events) { e.take(1, Told{"version.created", at(1.5)}) }, []Told{created}, []Kind{LostEvent}},
		"extra": {func(e *Events) { e.take(1, created); e.take(2, retired) }, []Told{created}, []Kind{WrongEvent}},
		"told otherwise": {func(e *Events) {
			e.Take("id", 1, created, []byte(`{"type":"version.created","data":{"version":1}}`), at(3))
			e.Take("id", 1, created, []byte(`{"type":"version.created","data":{"version":2}}`), at(4))
		}, []Told{created}, []Kind{WrongEvent}},
		"told as another": {func(e *Events) {
			e.Take("id", 1, created, []byte(`{"type":"version.created","data":{"version":1}}`), at(3))
			e.Take("id", 1, created, []byte(`{"type":"version.retired","data":{"version":1}}`), at(4))
		}, []Told{created}, []Kind{WrongEvent}},
		"the key has changed": {func(e *Events) {
			e.Take("id", 1, created, []byte(`{"type":"version.created","data":{"version":1}}`), at(3))
			e.Take("id", 1, created, []byte(`{"type":"version.created","data":{"version":1,"accepted_until":"soon"}}`), at(4))
		}, []Told{created}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &Events{}
			test.takes(e)
			var got []Kind
			for _, v := range append(e.Wrong(), e.Compare("id", test.history, e.Told("id"), at(9))...) {
				got = append(got, v.Kind)
			}
			if !slices.Equal(got, test.finds) {
				t.Errorf("found %v, want %v", got, test.finds)
			}
		})
	}
}

func TestTheEventsOfALife(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		told  []string
		finds bool
	}{
		"all":              {[]string{"key.created", "version.created", "version.activated", "version.created", "key.deleted"}, false},
		"none":             {nil, true},
		"no beginning":     {[]string{"version.created", "version.created", "key.deleted"}, true},
		"no end":           {[]string{"key.created", "version.created", "version.created"}, true},
		"a version lost":   {[]string{"key.created", "version.created", "key.deleted"}, true},
		"a version added":  {[]string{"key.created", "version.created", "version.created", "version.created", "key.deleted"}, true},
		"more after death": {[]string{"key.created", "version.created", "version.created", "key.deleted", "version.first_used"}, true},
	} {
		e := &Events{}
		for i, what := range test.told {
			e.take(i+1, Told{what, at(float64(i))})
		}
		if got := e.Life("id", 2, at(9)); (len(got) > 0) != test.finds {
			t.Errorf("%s: found %v", name, got)
		}
	}
}

func (e *Events) take(seq int, what Told) {
	body, _ := json.Marshal(what)
	e.Take("id", seq, what, body, at(9))
}

func TestAFullHistoryIsComparedWithTheEndOfWhatWasTold(t *testing.T) {
	t.Parallel()
	e := &Events{}
	var history []Told
	for i := range HistoryKept + 20 {
		what := Told{"version.created", at(float64(i))}
		e.take(i+1, what)
		history = append(history, what)
	}
	next := Told{"version.retired", at(999)}
	for name, test := range map[string]struct {
		history []Told
		told    int
		finds   bool
	}{
		"all":                      {history[20:], HistoryKept + 20, false},
		"one more is there":        {append(history[21:], next), HistoryKept + 20, true},
		"told since it was read":   {history[10 : HistoryKept+10], HistoryKept + 10, false},
		"two told since":           {history[:HistoryKept], HistoryKept - 2, false},
		"told, and not there":      {history[10 : HistoryKept+10], HistoryKept + 11, true},
		"another in the middle":    {append(append(slices.Clone(history[20:60]), next), history[61:]...), HistoryKept + 20, true},
		"one in the middle is new": {append(append(slices.Clone(history[21:60]), next), history[60:]...), HistoryKept + 20, true},
	} {
		if got := e.Compare("id", test.history, test.told, at(999)); (len(got) > 0) != test.finds {
			t.Errorf("%s: found %v", name, got)
		}
	}
	if events, repeated := e.Count(); events != HistoryKept+20 || repeated != 0 {
		t.Errorf("counted %d events, %d repetitions", events, repeated)
	}
}

func TestAShortHistoryIsComparedFromTheBeginning(t *testing.T) {
	t.Parallel()
	e := &Events{}
	a, b := Told{"key.created", at(1)}, Told{"version.created", at(2)}
	e.take(1, a)
	if got := e.Compare("id", []Told{a, b}, 1, at(9)); len(got) != 1 || got[0].Kind != LostEvent {
		t.Errorf("before it was told: found %v", got)
	}
	e.take(2, b)
	if got := e.Compare("id", []Told{a, b}, 1, at(9)); got != nil {
		t.Errorf("after it was told: found %v", got)
	}
	if got := e.Compare("id", []Told{a}, 1, at(9)); got != nil {
		t.Errorf("one that came since: found %v", got)
	}
	if got := e.Compare("id", []Told{b}, 1, at(9)); len(got) != 1 {
		t.Errorf("another beginning: found %v", got)
	}
}
