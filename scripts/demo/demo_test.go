// SPDX-License-Identifier: MPL-2.0

package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestARefusalInAPlannedRolloverFailsTheDemo(t *testing.T) {
	t.Parallel()
	calm := tally{requests: 100}
	storm := tally{requests: 30, refused: map[string]int{"COMPROMISED": 1}}
	if err := broken(calm, storm); err != nil {
		t.Errorf("nothing was refused but in the emergency, once: %v", err)
	}
	for name, c := range map[string]struct{ calm, storm tally }{
		"a refusal, although the retry was accepted": {tally{requests: 100, refused: map[string]int{"RETIRED": 1}}, storm},
		"no answer": {tally{requests: 100, refused: map[string]int{unavailable: 1}}, storm},
		"a failure after the retry in the emergency":  {calm, tally{requests: 30, refused: map[string]int{"COMPROMISED": 1}, failed: 1}},
		"another reason than the leak in the cutover": {calm, tally{requests: 30, refused: map[string]int{"RETIRED": 1}}},
		"no requests":                  {tally{}, storm},
		"no requests in the emergency": {calm, tally{}},
	} {
		if broken(c.calm, c.storm) == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

func TestBarsShowWhatAVersionWasAndWillBe(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 1, 0, 0, time.UTC)
	ago := func(s int, state string) change { return change{now.Add(-time.Duration(s) * time.Second), state} }
	for name, c := range map[string]struct {
		v    version
		past []change
		want string
	}{
		"active": {version{State: "active"}, []change{ago(5, "active")},
			strings.Repeat(" ", 23) + "#####|" + strings.Repeat(" ", 16)},
		"retiring": {version{State: "retiring", AcceptedUntil: now.Add(4 * time.Second)}, []change{ago(30, "active"), ago(2, "retiring")},
			strings.Repeat("#", 26) + "==|----" + strings.Repeat(" ", 12)},
		"retired": {version{State: "retired", AcceptedUntil: now.Add(-3 * time.Second)}, []change{ago(30, "active"), ago(6, "retiring"), ago(3, "retired")},
			strings.Repeat("#", 22) + "===   |" + strings.Repeat(" ", 16)},
		"compromised": {version{State: "compromised"}, []change{ago(30, "active"), ago(3, "compromised")},
			strings.Repeat("#", 25) + "!  |" + strings.Repeat(" ", 16)},
	} {
		if got := bar(c.v, c.past, now); got != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, c.want)
		}
	}
}

func TestCommandsAreShownAsTyped(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string]string{
		"apikeys/rotate/acme":          "apikeys/rotate/acme",
		"overlap_period=1m":            "overlap_period=1m",
		"reason=found in a repository": `reason="found in a repository"`,
		"reason=it's $5":               `'reason=it'\''s $5'`,
		"":                             "''",
	} {
		if got := shellWord(arg); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", arg, got, want)
		}
	}
}

func TestExcerptKeepsTheLinesAskedFor(t *testing.T) {
	t.Parallel()
	table := "Key              Value\n---              -----\ncode             VALID\nstate            active\nstatement        no\nversion          2\n"
	if got, want := excerpt(table, "state", "version"), []string{"state            active", "version          2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := field(table, "code"); got != "VALID" {
		t.Errorf("field code = %q", got)
	}
	if got := excerpt("Success! Done.\n"); !slices.Equal(got, []string{"Success! Done."}) {
		t.Errorf("without words: %q", got)
	}
}
