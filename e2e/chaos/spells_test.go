// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"testing"
	"time"
)

func at(seconds int) time.Time { return time.Unix(1_800_000_000+int64(seconds), 0) }

func TestSpells(t *testing.T) {
	t.Parallel()
	ss := spells{{at(10), at(20), aside}, {at(30), at(40), breaks}, {at(50), time.Time{}, twoLeaders}}
	for _, test := range []struct {
		from, to int
		least    reach
		struck   bool
		quiet    int
	}{
		{0, 9, aside, false, 9}, {0, 10, aside, true, 10}, {20, 29, aside, true, 9}, {21, 29, aside, false, 8},
		{0, 29, breaks, false, 29}, {0, 45, breaks, true, 30}, {31, 39, twoLeaders, false, 8}, {35, 49, breaks, true, 9},
		{15, 60, aside, true, 10}, {41, 49, aside, false, 8}, {55, 60, aside, true, 0}, {0, 60, twoLeaders, true, 50}, {12, 18, aside, true, 0},
	} {
		if got := ss.struck(at(test.from), at(test.to), test.least); got != test.struck {
			t.Errorf("struck(%d, %d, %d) = %v", test.from, test.to, test.least, got)
		}
		if got := ss.quiet(at(test.from), at(test.to), test.least); got != time.Duration(test.quiet)*time.Second {
			t.Errorf("quiet(%d, %d, %d) = %s, want %d s", test.from, test.to, test.least, got, test.quiet)
		}
	}
	if none := (spells)(nil); none.struck(at(0), at(9), aside) || none.quiet(at(0), at(9), aside) != 9*time.Second {
		t.Error("no spell strikes")
	}
}
