// SPDX-License-Identifier: MPL-2.0

package feed_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/feed"
)

var start = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

func TestVerifiersAreToldApartByTheirCallers(t *testing.T) {
	t.Parallel()
	c := clock.NewManual(start)
	vs := feed.NewVerifiers(c)
	vs.Note(feed.Verifier{Caller: "b", Name: "eu", Boot: "1", Synced: feed.Position{Epoch: "e", Seq: 7}})
	vs.Note(feed.Verifier{Caller: "a", Name: "eu", Boot: "2"})
	c.Advance(time.Second)
	vs.Note(feed.Verifier{Caller: "b", Name: "eu", Boot: "3", Synced: feed.Position{Epoch: "e", Seq: 9}, Skew: time.Second})
	all := vs.All()
	if len(all) != 2 || all[0].Caller != "a" || all[0].Boot != "2" || !all[0].LastSeen.Equal(start) {
		t.Fatalf("%+v", all)
	}
	if v := all[1]; v.Boot != "3" || v.Synced.Seq != 9 || v.Skew != time.Second || !v.LastSeen.Equal(start.Add(time.Second)) || !v.Live {
		t.Errorf("%+v", v)
	}
}

func TestAVerifierIsLiveForAMinute(t *testing.T) {
	t.Parallel()
	c := clock.NewManual(start)
	vs := feed.NewVerifiers(c)
	vs.Note(feed.Verifier{Caller: "a", Name: "eu", Synced: feed.Position{Epoch: "e", Seq: 5}})
	at := func(epoch string, seq uint64) feed.Position { return feed.Position{Epoch: epoch, Seq: seq} }
	for _, tc := range []struct {
		p      feed.Position
		behind int
	}{{at("e", 5), 0}, {at("e", 6), 1}, {at("f", 0), 1}} {
		if behind, live := vs.Behind(tc.p); len(behind) != tc.behind || live != 1 {
			t.Errorf("%+v: %d of %d are behind, want %d", tc.p, len(behind), live, tc.behind)
		}
	}
	c.Leap(-time.Hour) // the wall clock says nothing about it
	c.Advance(time.Minute - 1)
	if vs.Live() != 1 || !vs.All()[0].Live {
		t.Error("it is not live within the minute")
	}
	c.Advance(1)
	if behind, live := vs.Behind(at("e", 6)); vs.Live() != 0 || len(behind) != 0 || live != 0 || vs.All()[0].Live {
		t.Error("it is live after a minute")
	}
	c.Advance(24 * time.Hour)
	if all := vs.All(); len(all) != 0 {
		t.Errorf("after a day of silence: %+v", all)
	}
}

// TestOneCallerCannotPushOutTheOthers however many names it makes up.
func TestOneCallerCannotPushOutTheOthers(t *testing.T) {
	t.Parallel()
	c := clock.NewManual(start)
	vs := feed.NewVerifiers(c)
	for i := range 20 {
		vs.Note(feed.Verifier{Caller: fmt.Sprint("honest", i), Name: "eu"})
	}
	for i := range 5 * feed.MaxVerifiers {
		c.Advance(time.Millisecond)
		vs.Note(feed.Verifier{Caller: "flood", Name: fmt.Sprint(i)})
	}
	honest := 0
	all := vs.All()
	for _, v := range all {
		if v.Caller != "flood" {
			honest++
		}
	}
	if honest != 20 || len(all) != feed.MaxVerifiers {
		t.Errorf("%d of 20 are left, %d in all", honest, len(all))
	}
}
