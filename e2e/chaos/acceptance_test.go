// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

// full is a report of a run that has reached all.
func full() *Report {
	r := &Report{Usable: []string{"flood", "fire"}, Events: 1, Compared: 1, Jobs: 3, Deleted: 100}
	for i := range 100 {
		r.Strikes = append(r.Strikes, Strike{Fault: r.Usable[i%2]})
	}
	r.Summary = oracle.Summary{Rotations: 5_000, Fetches: 1, InTime: 1, Classes: map[string]*oracle.Class{
		"Vault": {Verifications: 500_000, Accepted: 125_000, Refused: 250_000, Errors: 124_999, Calm: 1000, CalmLost: 10},
		"edge":  {Verifications: 500_000, Accepted: 415_000, Unavailable: 84_999, Calm: 1000, CalmLost: 10},
	}}
	return r
}

func TestARunHasToReachWhatItIsFor(t *testing.T) {
	t.Parallel()
	all := Size{Time: fullTime}
	if got := full().shortfalls(all); got != nil {
		t.Fatalf("a full run lacks %v", got)
	}
	for name, test := range map[string]struct {
		size Size
		mar  func(r *Report)
		want string // part of the only shortfall; none, if empty
	}{
		"99 faults":                  {all, func(r *Report) { r.Strikes = r.Strikes[1:] }, "99 faults"},
		"in a shorter run":           {Size{Time: longTime}, func(r *Report) { r.Strikes = r.Strikes[99:] }, ""},
		"of some faults":             {Size{Time: fullTime, Faults: regexp.MustCompile("flood")}, func(r *Report) { r.Strikes = r.Strikes[99:] }, ""},
		"no fault":                   {Size{Time: time.Minute}, func(r *Report) { r.Strikes = nil }, "0 faults"},
		"a fault that struck once":   {all, func(r *Report) { r.Usable = append(r.Usable, "drought"); r.Strikes[0].Fault = "drought" }, "1 times drought"},
		"too few verifications":      {all, func(r *Report) { r.Classes["edge"].Verifications-- }, "999999 verifications"},
		"too few rotations":          {all, func(r *Report) { r.Rotations-- }, "4999 rotations"},
		"too few jobs":               {all, func(r *Report) { r.Jobs-- }, "2 bulk jobs"},
		"too few keys that go":       {all, func(r *Report) { r.Deleted-- }, "99 keys that were made and deleted"},
		"a message that is wrong":    {Size{Time: time.Minute}, func(r *Report) { r.BadMessages = 1 }, "1 messages"},
		"no client kept to its ttl":  {Size{Time: time.Minute}, func(r *Report) { r.InTime = 0 }, "uses of a key in its time"},
		"Vault loses too much":       {all, func(r *Report) { r.Classes["Vault"].Errors += 2 }, "Vault could not tell for 125001"},
		"as much in a short run":     {Size{Time: time.Minute}, func(r *Report) { r.Classes["Vault"].Errors += 2 }, ""},
		"the edge loses too much":    {all, func(r *Report) { r.Classes["edge"].Unavailable += 2 }, "edge could not tell for 85001"},
		"Vault while all is well":    {Size{Time: time.Minute}, func(r *Report) { r.Classes["Vault"].CalmLost++ }, "Vault could not tell for 11 of 1000"},
		"the edge while all is well": {all, func(r *Report) { r.Classes["edge"].CalmLost++ }, "edge could not tell for 11 of 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := full()
			test.mar(r)
			got := r.shortfalls(test.size)
			if test.want == "" && got != nil || test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)) {
				t.Errorf("lacks %q, want %q", got, test.want)
			}
		})
	}
}

func TestOnlyTheKernelMayRefuseAFault(t *testing.T) {
	t.Parallel()
	_, none := exec.LookPath("no-such-program")
	for _, test := range []struct {
		err  error
		want bool
	}{
		{none, false},
		{errors.New("ip link add akc1b0 type bridge: exit status 2: RTNETLINK answers: Operation not permitted"), true},
		{errors.New("ip link add akc1b0 type bridge: exit status 2: Error: Unknown device type"), true},
		{errors.New("ip link add akc1b0 type bridge: exit status 2: RTNETLINK answers: File exists"), false},
		{errors.New("mount -o loop: exit status 1: mount: failed to setup loop device"), true},
		{errors.New("mkfs.ext4: exit status 1: No space left on device"), false},
	} {
		if got := kernelRefuses(test.err); got != test.want {
			t.Errorf("%v: %v", test.err, got)
		}
	}
}

func TestPeriods(t *testing.T) {
	t.Parallel()
	const period, most = int(autoPeriod / time.Second), int(autoPeriod * (100 + autoJitter) / 100 / time.Second)
	const bound = int(scheduleBound / time.Second)
	for name, test := range map[string]struct {
		versions []int // when they were made, in seconds
		now      int
		spells   spells
		finds    []oracle.Kind
	}{
		"in time":              {[]int{0, period, period + most}, period + 2*most, nil, nil},
		"as late as may be":    {[]int{0, most + bound}, 2*most + 2*bound, nil, nil},
		"too soon":             {[]int{0, period - 2}, period, nil, []oracle.Kind{oracle.DoubleRotation}},
		"too late":             {[]int{0, most + bound + 1}, 2 * most, nil, []oracle.Kind{oracle.LateRotation}},
		"never again":          {[]int{0}, most + bound + 1, nil, []oracle.Kind{oracle.LateRotation}},
		"late by a fault":      {[]int{0}, most + 2*bound, spells{{at(most), at(most + bound), breaks}}, nil},
		"late after a fault":   {[]int{0}, most + 2*bound + 1, spells{{at(most), at(most + bound), breaks}}, []oracle.Kind{oracle.LateRotation}},
		"a fault was before":   {[]int{0}, most + bound + 1, spells{{at(0), at(most), twoLeaders}}, []oracle.Kind{oracle.LateRotation}},
		"a fault of a standby": {[]int{0}, most + 2*bound, spells{{at(most), at(most + bound), aside}}, []oracle.Kind{oracle.LateRotation}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var info keyInfo
			for i, made := range test.versions {
				info.Versions = append(info.Versions, versionInfo{Version: i + 1, CreatedTime: at(made)})
			}
			slices.Reverse(info.Versions)
			var got []oracle.Kind
			for _, v := range periods("acme", info, test.spells, at(test.now)) {
				got = append(got, v.Kind)
			}
			if fmt.Sprint(got) != fmt.Sprint(test.finds) {
				t.Errorf("found %v, want %v", got, test.finds)
			}
		})
	}
}

func TestFeedExcusesNoMoreThanWasSeenOfIt(t *testing.T) {
	t.Parallel()
	lost := errors.New("lost")
	healthy := edgePoll + edgeSlack
	f := &feed{}
	check := func(when string, second int, want time.Duration) {
		t.Helper()
		if got := f.late(at(second)); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	check("it never asked", 1, healthy)
	f.ask(at(10))(at(11), nil)
	check("it has just been answered, for the first time", 11, edgeMaxStale+edgeSlack)
	f.ask(at(12))(at(12), nil)
	check("it has just been answered", 12, 2*time.Second+edgeSlack)
	check("it has been answered", 13, healthy)
	check("it does not ask, though it could", 19, healthy)
	done := f.ask(at(19))
	check("it waits for an answer", 20, 8*time.Second+edgeSlack)
	done(at(21), lost)
	check("it got none", 22, 10*time.Second+edgeSlack)
	f.ask(at(23))(at(23), lost)
	check("it gets none for longer than it may go on", 40, edgeMaxStale+edgeSlack)
	f.ask(at(41))(at(42), nil)
	check("it has been answered again", 43, healthy)
}
