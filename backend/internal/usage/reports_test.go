// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

func TestAReportCountsOnceAndInAnyOrder(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil)
	for i, c := range []struct {
		boot     string
		sequence uint64
		fresh    bool
	}{
		{"a", 1, true}, {"a", 1, false}, {"a", 3, true}, {"a", 2, true}, {"a", 3, false}, {"b", 1, true}, {"a", 2, false}, {"a", 4, true},
		{"b", 200, true}, {"b", 72, false}, {"b", 73, true}, {"b", 73, false}, {"b", 1 << 60, true}, {"b", 200, false},
	} {
		if got := r.Accept("v", c.boot, c.sequence, start, start, func() {}); got != c.fresh {
			t.Errorf("report %d, %s %d: fresh is %v", i, c.boot, c.sequence, got)
		}
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		r = usage.NewReports(data) // a restart forgets nothing
	}
}

func TestUseIsKnownOnlyUpToAMissingReport(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil)
	known := func(want, wantFrom time.Time) {
		t.Helper()
		if through, from := r.Known(start, at(time.Hour)); !through.Equal(want) || !from.Equal(wantFrom) {
			t.Errorf("known through %s from %s, want %s from %s", through, from, want, wantFrom)
		}
	}
	known(at(time.Hour), time.Time{})
	r.Accept("v", "a", 1, at(time.Minute), at(time.Minute), func() {})
	r.Accept("v", "a", 3, at(3*time.Minute), at(3*time.Minute), func() {})
	known(at(time.Minute), time.Time{})
	r.Accept("v", "a", 2, at(2*time.Minute), at(4*time.Minute), func() {})
	known(at(3*time.Minute), time.Time{})
	r.Accept("v", "a", 5, at(5*time.Minute), at(5*time.Minute), func() {})
	r.Accept("v", "a", 6, at(20*time.Minute), at(20*time.Minute), func() {}) // the fourth is given up
	known(at(20*time.Minute), at(20*time.Minute))
	r.Accept("v", "b", 1, at(30*time.Minute), at(30*time.Minute), func() {}) // what the former start had seen is lost
	known(at(30*time.Minute), at(30*time.Minute))
	r.Accept("silent", "a", 1, time.Time{}, at(30*time.Minute), func() {})
	known(time.Time{}, at(30*time.Minute))
}

func TestReportsAreBounded(t *testing.T) {
	t.Parallel()
	r := usage.NewReports(nil)
	for i := range 1500 {
		for boot := range 4 {
			r.Accept(fmt.Sprintf("%s%d", strings.Repeat("v", 120), i), fmt.Sprintf("%s%d", strings.Repeat("b", 120), boot), 1<<50, start, at(time.Duration(i)*time.Second), func() {})
		}
	}
	if data, err := r.Encode(); err != nil || len(data) > 448<<10 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}
