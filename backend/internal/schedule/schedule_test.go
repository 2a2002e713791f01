// SPDX-License-Identifier: MPL-2.0

package schedule_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/schedule"
)

type spec = schedule.Spec

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestSpecRules(t *testing.T) {
	const (
		period = "rotation_period must be 0 or between 1s and 87600h in whole seconds, got "
		window = "rotation_window must be 0 or at least 1m0s in whole seconds, got "
		jitter = "rotation_jitter must be a whole percentage between 0 and 50, got "
	)
	for name, tc := range map[string]struct {
		spec spec
		want string // "" means valid
	}{
		"the zero spec is valid":           {spec{}, ""},
		"a period":                         {spec{Period: 24 * time.Hour, JitterPercent: 50}, ""},
		"the shortest period":              {spec{Period: time.Second}, ""},
		"the longest period":               {spec{Period: 87600 * time.Hour}, ""},
		"a schedule":                       {spec{Cron: "0 3 * * *"}, ""},
		"a schedule with a window":         {spec{Cron: "0 3 * * *", Window: time.Hour, JitterPercent: 10}, ""},
		"the shortest window":              {spec{Cron: "0 3 * * *", Window: time.Minute}, ""},
		"a window as long as the interval": {spec{Cron: "0 3 * * *", Window: 24 * time.Hour}, ""},
		"jitter of a manual role is idle":  {spec{JitterPercent: 5}, ""},
		"disabled":                         {spec{Period: time.Hour, Disabled: true}, ""},
		"surrounding space":                {spec{Cron: " 0\t3 * * * "}, ""},

		"a negative period":                  {spec{Period: -5 * time.Minute}, period + "-5m0s"},
		"a period under a second":            {spec{Period: time.Millisecond}, period + "1ms"},
		"a period with a broken second":      {spec{Period: 1500 * time.Millisecond}, period + "1.5s"},
		"a period that is too long":          {spec{Period: 87601 * time.Hour}, period + "87601h0m0s"},
		"both":                               {spec{Period: time.Hour, Cron: "0 3 * * *"}, "rotation_period and rotation_schedule exclude each other: give one of them"},
		"negative jitter":                    {spec{JitterPercent: -1}, jitter + "-1"},
		"too much jitter":                    {spec{JitterPercent: 51}, jitter + "51"},
		"a window with a period":             {spec{Period: time.Hour, Window: time.Hour}, "rotation_window needs rotation_schedule"},
		"a window alone":                     {spec{Window: time.Hour}, "rotation_window needs rotation_schedule"},
		"a negative window":                  {spec{Cron: "0 3 * * *", Window: -time.Hour}, window + "-1h0m0s"},
		"a window under a minute":            {spec{Cron: "0 3 * * *", Window: 59 * time.Second}, window + "59s"},
		"a window with a broken second":      {spec{Cron: "0 3 * * *", Window: 90*time.Second + 1}, window + "1m30.000000001s"},
		"a window longer than some interval": {spec{Cron: "0 3,5 * * *", Window: 2*time.Hour + time.Second}, "rotation_window must be at most 2h0m0s, the shortest interval of rotation_schedule, got 2h0m1s"},
		"disabled is no excuse":              {spec{Period: -1, Disabled: true}, period + "-1ns"},
		"a bad schedule, disabled":           {spec{Cron: "x", Disabled: true}, "rotation_schedule must have five fields (minute, hour, day-of-month, month, day-of-week), got 1"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := tc.spec.Validate(); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// refusedCron holds expressions with a part of the error that each must get.
var refusedCron = map[string]string{
	" ":                                     "got 0",
	"* * * *":                               "got 4",
	"0 * * * * *":                           "got 6",
	"@daily":                                "descriptors",
	" @every 1h":                            "descriptors",
	"TZ=UTC 0 3 * * *":                      "always in UTC",
	"CRON_TZ=Europe/Berlin 0 3 * * *":       "always in UTC",
	"TZ=":                                   "always in UTC", // panics in the parser
	"TZ=UTC":                                "always in UTC",
	"0 3 * * *\n":                           "may contain only",
	"0 3 * * *\x00":                         "may contain only",
	"0\u00a03 * * *":                        "may contain only",
	"０ 3 * * *":                             "may contain only",
	"0 3 * * #1":                            "may contain only",
	"0 3 L * W!":                            "may contain only",
	"60 * * * *":                            "minute field: it takes 0-59",
	"* 24 * * *":                            "hour field: it takes 0-23",
	"* * 0 * *":                             "day-of-month field: it takes 1-31",
	"* * 32 * *":                            "day-of-month field",
	"* * * 13 *":                            "month field: it takes 1-12 or jan-dec",
	"* * * * 7":                             "day-of-week field: it takes 0-6 or sun-sat",
	"* * * * mon,foo":                       "day-of-week field",
	"* * * mon *":                           "month field",
	", * * * *":                             "minute field",
	"1, * * * *":                            "minute field",
	"*-x * * * *":                           "minute field",
	"*/0 * * * *":                           "minute field",
	"*/ * * * *":                            "minute field",
	"1-2-3 * * * *":                         "minute field",
	"5-1 * * * *":                           "minute field",
	"-1 * * * *":                            "minute field",
	"*/2/2 * * * *":                         "minute field",
	"99999999999999999999 * * * *":          "minute field",
	"0 0 31 2 *":                            "never fires",
	"0 0 30,31 feb *":                       "never fires",
	"0 0 31 4,6,9,11 *":                     "never fires",
	strings.Repeat("1,", 126) + "1 * * * *": "at most 256 characters, got 261",
}

func TestRefusedCronExpressions(t *testing.T) {
	for expr, want := range refusedCron {
		err := spec{Cron: expr}.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), "rotation_schedule ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", expr, err, want)
		}
	}
}

func TestErrorsNeverEchoTheExpression(t *testing.T) {
	const secret = "NotARealSecret"
	for _, expr := range []string{secret, "@" + secret, "TZ=" + secret + " * * * * *", secret + " * * * *", "*/" + secret + " * * * *", secret + "!", strings.Repeat(secret, 20)} {
		if err := (spec{Cron: expr}).Validate(); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", expr, err)
		}
	}
}

func TestAnInvalidSpecNeverFiresAndNeverPanics(t *testing.T) {
	now := at("2026-03-01 00:00:00")
	for expr := range refusedCron {
		s := spec{Cron: expr, Window: time.Hour, JitterPercent: 20}
		if !s.Next(now, "k").IsZero() || s.MinInterval() != 0 || s.Interval(now) != 0 || !s.Deadline(now).IsZero() {
			t.Errorf("%q fires", expr)
		}
		if due, next := s.Due(now, now, "k"); due || !next.IsZero() {
			t.Errorf("%q is due", expr)
		}
		if got := s.CatchUp(now, now, "k"); !got.Equal(now) {
			t.Errorf("%q: %v", expr, got)
		}
	}
}

func TestAutomatic(t *testing.T) {
	for _, tc := range []struct {
		spec spec
		want bool
	}{
		{spec{}, false},
		{spec{JitterPercent: 10}, false},
		{spec{Period: time.Hour}, true},
		{spec{Cron: "0 3 * * *"}, true},
		{spec{Period: time.Hour, Disabled: true}, false},
		{spec{Cron: "0 3 * * *", Disabled: true}, false},
	} {
		if got := tc.spec.Automatic(); got != tc.want {
			t.Errorf("%+v: %v", tc.spec, got)
		}
		if next := tc.spec.Next(at("2026-03-01 00:00:00"), "k"); next.IsZero() == tc.want {
			t.Errorf("%+v: Next = %v", tc.spec, next)
		}
	}
}

func TestMinInterval(t *testing.T) {
	const day = 24 * time.Hour
	for expr, want := range map[string]time.Duration{
		"* * * * *":       time.Minute,
		"*/5 * * * *":     5 * time.Minute,
		"*/7 * * * *":     4 * time.Minute, // 56 to 0
		"0 * * * *":       time.Hour,
		"0 3 * * *":       day,
		"0 0,23 * * *":    time.Hour, // across midnight
		"0 3 * * 1":       7 * day,
		"0 3 * * mon,thu": 3 * day,
		"0 0 1 * *":       28 * day,
		"0 0 31 * *":      31 * day,
		"0 0 1,15 * *":    14 * day,
		"0 0 1 1 *":       365 * day,
		"0 0 29 2 *":      1461 * day,
		"0 0 28,29 2 *":   day,
		"0 0 13 * 5":      day, // the 13th or any Friday
		"0 0 13 * *":      28 * day,
		"0 0 31 12,1 *":   31 * day,
		"59 23 31 12 *":   365 * day,
		"0,59 0,23 1 1 *": time.Minute * 59,
		"0 0 1 jan ?":     365 * day,
		"30 4 */1 * 0":    7 * day, // a step of 1 is a star
		"0 0 */2 * 1":     day,     // one of 2 is not, so either matches
		"0 3 * *":         0,       // invalid
	} {
		if got := (spec{Cron: expr}).MinInterval(); got != want {
			t.Errorf("%q: %v, want %v", expr, got, want)
		}
	}
	if got := (spec{Period: time.Hour, Disabled: true}).MinInterval(); got != time.Hour {
		t.Errorf("period: %v", got)
	}
	if got := (spec{}).MinInterval(); got != 0 {
		t.Errorf("manual: %v", got)
	}
}

func TestInterval(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		cron, at string
		want     time.Duration
	}{
		{"0 0 1 * *", "2026-02-10 12:00:00", 28 * day},
		{"0 0 1 * *", "2028-02-10 12:00:00", 29 * day},
		{"0 0 1 * *", "2026-03-01 00:00:00", 31 * day}, // a fire begins its interval
		{"0 0 1 * *", "2026-02-28 23:59:59", 28 * day},
		{"0 0 29 2 *", "2099-06-01 00:00:00", 2921 * day}, // 2100 is no leap year
		{"0 9 * * 1-5", "2026-03-07 00:00:00", 3 * day},   // over the weekend
	} {
		if got := (spec{Cron: tc.cron}).Interval(at(tc.at)); got != tc.want {
			t.Errorf("%q at %s: %v, want %v", tc.cron, tc.at, got, tc.want)
		}
	}
	if got := (spec{Period: time.Hour}).Interval(at("2026-01-01 00:00:00")); got != time.Hour {
		t.Errorf("period: %v", got)
	}
}

func TestNext(t *testing.T) {
	for name, tc := range map[string]struct {
		spec       spec
		last, want string
	}{
		"a period after":                {spec{Period: 90 * time.Minute}, "2026-03-01 10:00:00", "2026-03-01 11:30:00"},
		"the fire after":                {spec{Cron: "0 3 * * *"}, "2026-03-01 02:59:59", "2026-03-01 03:00:00"},
		"never the fire at last itself": {spec{Cron: "0 3 * * *"}, "2026-03-01 03:00:00", "2026-03-02 03:00:00"},
		"nor one less than a minute on": {spec{Cron: "0 3 * * *"}, "2026-03-01 03:00:59", "2026-03-02 03:00:00"},
		"across a year":                 {spec{Cron: "0 0 29 2 *"}, "2026-03-01 00:00:00", "2028-02-29 00:00:00"},
		"across 2100":                   {spec{Cron: "0 0 29 2 *"}, "2096-02-29 00:00:00", "2104-02-29 00:00:00"},
		"when Europe's clocks change":   {spec{Cron: "30 2 * * *"}, "2026-03-28 02:30:00", "2026-03-29 02:30:00"},
		"either day field":              {spec{Cron: "0 0 13 * 5"}, "2026-03-07 00:00:00", "2026-03-13 00:00:00"},
	} {
		if got := tc.spec.Next(at(tc.last), "k"); !got.Equal(at(tc.want)) {
			t.Errorf("%s: %v, want %s", name, got, tc.want)
		}
	}
}

func TestAnswersAreWholeSecondsInUTC(t *testing.T) {
	zone := time.FixedZone("somewhere", 5*3600+1800)
	last := time.Date(2026, 3, 1, 10, 0, 0, 999_999_999, zone)
	for _, s := range []spec{
		{Period: time.Hour, JitterPercent: 33},
		{Cron: "0 3 * * *", Window: 2 * time.Hour, JitterPercent: 33},
	} {
		due, next := s.Due(last, last.Add(100*24*time.Hour), "k")
		for _, got := range []time.Time{
			s.Next(last, "k"), next,
			s.CatchUp(last, last.Add(100*24*time.Hour), "k"),
			s.CatchUp(last, last, "k"),
		} {
			if got.Location() != time.UTC || got.Nanosecond() != 0 || got.IsZero() {
				t.Errorf("%+v, %v: %v", s, due, got)
			}
		}
	}
	// The zone of the argument must not decide when 03:00 is.
	if got := (spec{Cron: "0 3 * * *"}).Next(last, "k"); !got.Equal(at("2026-03-02 03:00:00")) {
		t.Errorf("got %v", got)
	}
}

func TestWindow(t *testing.T) {
	s := spec{Cron: "0 3 * * *", Window: 2 * time.Hour}
	for name, tc := range map[string]struct {
		last, now string
		due       bool
		next      string
	}{
		"before the fire":                 {"2026-03-01 12:00:00", "2026-03-02 02:59:59", false, "2026-03-02 03:00:00"},
		"at the fire":                     {"2026-03-01 12:00:00", "2026-03-02 03:00:00", true, "2026-03-02 03:00:00"},
		"in the window":                   {"2026-03-01 12:00:00", "2026-03-02 04:00:00", true, "2026-03-02 03:00:00"},
		"at its end":                      {"2026-03-01 12:00:00", "2026-03-02 05:00:00", true, "2026-03-02 03:00:00"},
		"after it":                        {"2026-03-01 12:00:00", "2026-03-02 05:00:01", false, "2026-03-03 03:00:00"},
		"weeks later, between windows":    {"2026-03-01 12:00:00", "2026-03-20 12:00:00", false, "2026-03-21 03:00:00"},
		"weeks later, in a window":        {"2026-03-01 12:00:00", "2026-03-20 04:00:00", true, "2026-03-20 03:00:00"},
		"rotated by hand in the window":   {"2026-03-02 03:30:00", "2026-03-02 04:00:00", false, "2026-03-03 03:00:00"},
		"a last rotation in the future":   {"2026-04-01 00:00:00", "2026-03-02 04:00:00", false, "2026-04-01 03:00:00"},
		"a last rotation in ancient ages": {"0001-01-01 00:00:00", "2026-03-02 12:00:00", false, "2026-03-03 03:00:00"},
	} {
		due, next := s.Due(at(tc.last), at(tc.now), "k")
		if due != tc.due || !next.Equal(at(tc.next)) {
			t.Errorf("%s: %v, %v, want %v, %s", name, due, next, tc.due, tc.next)
		}
	}
	if got := s.Deadline(at("2026-03-02 03:40:00")); !got.Equal(at("2026-03-02 05:00:00")) {
		t.Errorf("Deadline = %v", got)
	}
}

func TestThereIsNoDeadlineWithoutAWindow(t *testing.T) {
	now := at("2026-03-02 03:00:00")
	for _, s := range []spec{{}, {Period: time.Hour}, {Cron: "0 3 * * *"}} {
		if got := s.Deadline(now); !got.IsZero() {
			t.Errorf("%+v: %v", s, got)
		}
	}
	if got := (spec{Cron: "0 3 * * *", Window: time.Hour}).Deadline(time.Time{}); !got.IsZero() {
		t.Errorf("of nothing due: %v", got)
	}
}

func TestNotDueUntilJitterIsOverInALaterWindowToo(t *testing.T) {
	s := spec{Cron: "0 3 * * *", Window: 4 * time.Hour, JitterPercent: 50}
	last := at("2026-03-01 12:00:00")
	for i := range 50 {
		id := fmt.Sprintf("k%d", i)
		first := s.Next(last, id)
		weeks := first.Add(14 * 24 * time.Hour)
		if due, next := s.Due(last, weeks.Add(-time.Second), id); due || !next.Equal(weeks) {
			t.Fatalf("%s: %v, %v, want %v", id, due, next, weeks)
		}
		if due, next := s.Due(last, weeks, id); !due || !next.Equal(weeks) {
			t.Fatalf("%s: %v, %v, want due at %v", id, due, next, weeks)
		}
	}
}

func TestJitterLeavesTheEndOfAWindowFree(t *testing.T) {
	for window, free := range map[time.Duration]time.Duration{
		time.Minute:      time.Minute, // no jitter at all
		5 * time.Minute:  5 * time.Minute,
		10 * time.Minute: 5 * time.Minute,
		4 * time.Hour:    time.Hour,
	} {
		s := spec{Cron: "0 3 * * *", Window: window, JitterPercent: 50}
		var latest time.Duration
		for i := range 2000 {
			due := s.Next(at("2026-03-01 12:00:00"), fmt.Sprintf("key%d", i))
			latest = max(latest, due.Sub(at("2026-03-02 03:00:00")))
		}
		if latest > window-free || (window > free && latest < (window-free)*9/10) {
			t.Errorf("window %v: latest jitter %v, want just under %v", window, latest, window-free)
		}
	}
}

func TestCatchUp(t *testing.T) {
	daily := spec{Cron: "0 3 * * *", Window: 2 * time.Hour}
	last := "2026-03-01 12:00:00"
	for name, tc := range map[string]struct {
		spec   spec
		now    string
		spread time.Duration // 0: at once
	}{
		"not due":                           {spec{Period: 24 * time.Hour}, "2026-03-02 11:59:59", 0},
		"5 minutes late":                    {spec{Period: 24 * time.Hour}, "2026-03-02 12:05:00", 0},
		"later":                             {spec{Period: 24 * time.Hour}, "2026-03-02 12:05:01", time.Hour},
		"weeks later":                       {spec{Period: 24 * time.Hour}, "2026-04-02 12:05:01", time.Hour},
		"a tenth of a short period":         {spec{Period: 2 * time.Hour}, "2026-03-02 12:00:00", 12 * time.Minute},
		"a period too short to spread":      {spec{Period: 9 * time.Minute}, "2026-03-02 12:00:00", 0},
		"manual":                            {spec{}, "2026-03-02 12:00:00", 0},
		"disabled":                          {spec{Period: time.Hour, Disabled: true}, "2026-03-02 12:00:00", 0},
		"in a window":                       {daily, "2026-03-20 03:30:00", time.Hour},
		"late in a window":                  {daily, "2026-03-20 04:30:00", 25 * time.Minute},
		"too late in a window to spread":    {daily, "2026-03-20 04:55:00", 0},
		"just as a window opens":            {daily, "2026-03-20 03:05:00", 0},
		"outside of the window, so not due": {daily, "2026-03-20 06:00:00", 0},
	} {
		t.Run(name, func(t *testing.T) {
			now := at(tc.now)
			var latest time.Duration
			for i := range 500 {
				wait := tc.spec.CatchUp(at(last), now, fmt.Sprintf("key%d", i)).Sub(now)
				if wait < 0 || (wait >= tc.spread && wait != 0) {
					t.Fatalf("waits %v, want under %v", wait, tc.spread)
				}
				latest = max(latest, wait)
			}
			if latest < tc.spread*9/10 {
				t.Errorf("the latest of 500 waits %v: not spread over %v", latest, tc.spread)
			}
		})
	}
}

func TestShareIsFixedForEver(t *testing.T) {
	// These are what the first release computed. Another hash would move the
	// due time of every key with jitter at the moment of an upgrade.
	s := spec{Period: 100 * 24 * time.Hour, JitterPercent: 50}
	last := at("2026-01-01 00:00:00")
	for id, want := range map[string]string{
		"":             "3545h17m34s",
		"EXAMPLEkey01": "3178h32m0s",
		"EXAMPLEkey02": "2425h23m50s",
	} {
		if got := s.Next(last, id).Sub(last).String(); got != want {
			t.Errorf("%q: %s, want %s", id, got, want)
		}
	}
	late := at("2027-01-01 00:00:00")
	if got, want := s.CatchUp(last, late, "EXAMPLEkey01").Sub(late).String(), "26m25s"; got != want {
		t.Errorf("catch-up: %s, want %s", got, want)
	}
}

// TestWhatThePropertiesHaveFound keeps the cases in which one of them failed
// once.
func TestWhatThePropertiesHaveFound(t *testing.T) {
	const id = "000000000000"
	begin := time.Unix(0, 0).UTC()
	everyMinute := spec{Cron: "* * * * *"}
	if next := everyMinute.Next(begin, id); !next.Equal(begin.Add(time.Minute)) {
		t.Errorf("a schedule fires at %v, and next at %v", begin, next)
	}
	if due, next := everyMinute.Due(begin, begin, id); due || !next.After(begin) {
		t.Errorf("right after a rotation: %v, %v", due, next)
	}
	// A step in the weekdays is a choice, so either day will do: 1 January 1970 was a Thursday.
	if next := (spec{Cron: "* * 2-2 * */2"}).Next(begin, ""); !next.Equal(begin.Add(time.Minute)) {
		t.Errorf("with a day and a step of weekdays: %v", next)
	}
	if least := (spec{Cron: "0 0-0 * * *"}).MinInterval(); least != 24*time.Hour {
		t.Errorf("once a day, given as a range: at least %v", least)
	}
	short := spec{Cron: "* * * * *", Window: time.Minute, JitterPercent: 7}
	if next := short.Next(begin, id); !next.Equal(begin.Add(time.Minute)) {
		t.Errorf("in a window that has no room for jitter: %v", next)
	}
	narrow, last := spec{Cron: "0 * * * *", Window: 302 * time.Second, JitterPercent: 1}, begin.Add(303*time.Second)
	if due, since := narrow.Due(last, narrow.Next(last, "000000000010"), "000000000010"); !due {
		t.Errorf("what is due next is not due then, but at %v", since)
	}
}
