// SPDX-License-Identifier: MPL-2.0

package schedule_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"pgregory.net/rapid"
)

// drawCron draws a valid expression, from plain to odd.
func drawCron(t *rapid.T) string {
	field := func(lo, hi int, name string) string {
		n := func(lo int, what string) int { return rapid.IntRange(lo, hi).Draw(t, name+" "+what) }
		var items []string
		for range rapid.IntRange(1, 3).Draw(t, name+" items") {
			switch a := n(lo, "from"); rapid.IntRange(0, 5).Draw(t, name+" kind") {
			case 0:
				items = append(items, "*")
			case 1:
				items = append(items, fmt.Sprintf("*/%d", n(1, "step")))
			case 2:
				items = append(items, fmt.Sprintf("%d-%d", a, n(a, "to")))
			case 3:
				items = append(items, fmt.Sprintf("%d-%d/%d", a, n(a, "to"), n(1, "step")))
			default:
				items = append(items, fmt.Sprint(a))
			}
		}
		return strings.Join(items, ",")
	}
	expr := strings.Join([]string{
		field(0, 59, "minute"), field(0, 23, "hour"), field(1, 31, "day"), field(1, 12, "month"), field(0, 6, "weekday"),
	}, " ")
	if (spec{Cron: expr}).Validate() != nil {
		return "0 0 29 2 *" // the rarest instead of one that never fires
	}
	return expr
}

// drawSpec draws a valid spec that rotates.
func drawSpec(t *rapid.T) spec {
	s := spec{JitterPercent: rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 50)).Draw(t, "jitter")}
	if rapid.Bool().Draw(t, "with a period") {
		s.Period = time.Duration(rapid.OneOf(
			rapid.Int64Range(1, 7200), rapid.Int64Range(1, 87600*3600),
		).Draw(t, "period")) * time.Second
	} else {
		s.Cron = rapid.OneOf(
			rapid.SampledFrom([]string{"* * * * *", "*/10 * * * *", "0 3 * * *", "0 9 * * 1-5", "0 0 1 * *", "0 0 29 2 *", "0 3,5,23 * * *"}),
			rapid.Custom(drawCron),
		).Draw(t, "cron")
		if rapid.Bool().Draw(t, "with a window") {
			least := int64(s.MinInterval() / time.Second)
			s.Window = time.Duration(rapid.Int64Range(60, least).Draw(t, "window")) * time.Second
		}
	}
	if err := s.Validate(); err != nil {
		t.Fatalf("%+v: %v", s, err)
	}
	return s
}

func drawTime(t *rapid.T, name string) time.Time {
	// 1970 to 2094, with fractions.
	return time.Unix(rapid.Int64Range(0, 3944678400).Draw(t, name), rapid.Int64Range(0, 999_999_999).Draw(t, name+" ns"))
}

var keyIDs = rapid.StringMatching(`[0-9A-Za-z]{12}`)

func TestNextIsStrictlyAfterLastAndMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, id := drawSpec(t), keyIDs.Draw(t, "key")
		a := drawTime(t, "last")
		b := a.Add(time.Duration(rapid.Int64Range(0, int64(400*24*time.Hour)).Draw(t, "later")))
		na, nb := s.Next(a, id), s.Next(b, id)
		if !na.After(a) || !nb.After(b) {
			t.Fatalf("%v -> %v, %v -> %v", a, na, b, nb)
		}
		if nb.Before(na) {
			t.Fatalf("a later rotation made the next one earlier: %v -> %v, %v -> %v", a, na, b, nb)
		}
	})
}

func TestJitterIsFixedPerKeyAndBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, id, last := drawSpec(t), keyIDs.Draw(t, "key"), drawTime(t, "last")
		plain := s
		plain.JitterPercent = 0
		fire := plain.Next(last, id)
		delay := s.Next(last, id).Sub(fire)
		bound := s.Interval(fire) / 100 * time.Duration(s.JitterPercent)
		if delay < 0 || delay >= max(bound, 1) {
			t.Fatalf("delayed by %v, bound %v", delay, bound)
		}
		if s.Window > 0 && delay > 0 && delay > s.Window-5*time.Minute {
			t.Fatalf("delayed by %v in a window of %v", delay, s.Window)
		}
		if s.Cron != "" {
			if end := s.Deadline(s.Next(last, id)); s.Window > 0 && !end.Equal(fire.Add(s.Window)) {
				t.Fatalf("Deadline = %v, fire %v", end, fire)
			}
			if after := plain.Next(fire, id); !s.Next(last, id).Before(after) {
				t.Fatalf("jitter went past the next fire %v", after)
			}
		}
	})
}

func TestNotDueRightAfterARotation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, id, now := drawSpec(t), keyIDs.Draw(t, "key"), drawTime(t, "now")
		due, next := s.Due(now, now, id)
		if due || !next.After(now) {
			t.Fatalf("%v, %v", due, next)
		}
	})
}

// TestDueTellsWhenToLookAgain follows next: nothing is due before it, and at
// next the key is due.
func TestDueTellsWhenToLookAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, id, last := drawSpec(t), keyIDs.Draw(t, "key"), drawTime(t, "last")
		now := last.Add(time.Duration(rapid.Int64Range(0, int64(3*365*24*time.Hour)).Draw(t, "wait")))
		due, next := s.Due(last, now, id)
		if due {
			if next.After(now) || !next.After(last) {
				t.Fatalf("due since %v", next)
			}
			if end := s.Deadline(next); !end.IsZero() && now.Truncate(time.Second).After(end) {
				t.Fatalf("due at %v, after its deadline %v", now, end)
			}
			return
		}
		if !next.After(now) {
			t.Fatalf("not due, but next is %v", next)
		}
		between := now.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(now))-1).Draw(t, "between")))
		if due, same := s.Due(last, between, id); due || !same.Equal(next) {
			t.Fatalf("at %v: %v, %v, want %v", between, due, same, next)
		}
		if due, since := s.Due(last, next, id); !due || !since.Equal(next) {
			t.Fatalf("at next: %v, %v", due, since)
		}
	})
}

// TestAKeyThatWasDownRotatesOnce simulates ticks after an outage, with the
// spreading as the tick does it.
func TestAKeyThatWasDownRotatesOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, id, last := drawSpec(t), keyIDs.Draw(t, "key"), drawTime(t, "last")
		missed := rapid.IntRange(0, 40).Draw(t, "missed")
		now := s.Next(last, id)
		for range missed {
			now = s.Next(now, id)
		}
		now = now.Add(time.Duration(rapid.Int64Range(0, int64(s.MinInterval())-1).Draw(t, "past")))

		due, next := s.Due(last, now, id)
		if !due { // only a window puts it off, to the coming fire
			if s.Window == 0 {
				t.Fatal("overdue without a window, but not due")
			}
			if next.Sub(now) > s.Interval(now)+s.Window {
				t.Fatalf("put off until %v", next)
			}
			now = next
		}
		turn := s.CatchUp(last, now, id)
		if turn.Before(now.Truncate(time.Second)) || turn.Sub(now) >= time.Hour || turn.Sub(now) > s.Interval(now)/10 {
			t.Fatalf("its turn is at %v", turn)
		}
		if end := s.Deadline(next); !end.IsZero() && turn.After(end) {
			t.Fatalf("its turn %v is after the deadline %v", turn, end)
		}
		if due, _ := s.Due(last, turn, id); !due {
			t.Fatalf("not due at its turn %v", turn)
		}
		// It rotates; from now on it is on schedule, one rotation at a time.
		if due, next := s.Due(turn, turn, id); due || !next.Equal(s.Next(turn, id)) {
			t.Fatal("due again at once")
		}
		if s.Period > 0 && s.Next(turn, id).Sub(turn) < s.Period-time.Second {
			t.Fatal("the next rotation is less than a period away")
		}
	})
}

func TestKeysSpreadEvenly(t *testing.T) {
	const keys, slots = 20_000, 10
	last, now := at("2026-01-01 00:00:00"), at("2026-06-01 00:00:00")
	s := spec{Period: 30 * 24 * time.Hour, JitterPercent: 50}
	full := s.Period / 2
	var jitter, catchUp [slots]int
	together := 0
	for i := range keys {
		id := fmt.Sprintf("key%09d", i) // ids that differ in their last characters only
		j := int(s.Next(last, id).Sub(last.Add(s.Period)) * slots / full)
		c := int(s.CatchUp(last, now, id).Sub(now) * slots / time.Hour)
		jitter[j]++
		catchUp[c]++
		if j == c {
			together++
		}
	}
	for i := range slots {
		// 2000 each, with a standard deviation of 42.
		if jitter[i] < 1750 || jitter[i] > 2250 || catchUp[i] < 1750 || catchUp[i] > 2250 {
			t.Fatalf("jitter %v, catch-up %v", jitter, catchUp)
		}
	}
	if together < 1750 || together > 2250 {
		t.Errorf("jitter and catch-up go together for %d of %d keys", together, keys)
	}
}

// oracle is the parser's own schedule, another algorithm than ours.
func oracle(t interface{ Fatal(...any) }, expr string) cron.Schedule {
	c, err := cron.ParseStandard(expr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCronFiresWhereTheParsersScheduleDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := spec{Cron: drawCron(t)}
		want := oracle(t, s.Cron)
		now := drawTime(t, "from").UTC()
		least := s.MinInterval()
		for i := range 8 {
			if now.Year() >= 2096 { // the oracle ends at 2100
				return
			}
			fire := s.Next(now, "")
			if o := want.Next(now); !fire.Equal(o) {
				t.Fatalf("%q after %v: %v, the parser says %v", s.Cron, now, fire, o)
			}
			if i > 0 {
				if gap := fire.Sub(now); gap < least || gap != s.Interval(now) || gap != s.Interval(fire.Add(-1)) {
					t.Fatalf("%q from %v to %v: Interval %v, %v, MinInterval %v",
						s.Cron, now, fire, s.Interval(now), s.Interval(fire.Add(-1)), least)
				}
			}
			now = fire
		}
	})
}

func TestMinIntervalIsReached(t *testing.T) {
	for _, expr := range []string{"*/7 * * * *", "0 0,23 * * *", "0 3 * * mon,thu", "0 0 1 * *", "0 0 31 * *", "0 0 13 * 5", "5 4 */9 * *", "0 0 29 2 *", "0 22 1 1,3 0"} {
		s := spec{Cron: expr}
		c := oracle(t, expr)
		least := time.Duration(1<<63 - 1)
		end := at("2031-01-01 00:00:00")
		if s.MinInterval() < time.Hour {
			end = at("2001-03-01 00:00:00")
		}
		for fire := c.Next(at("2001-01-01 00:00:00")); fire.Before(end); {
			then := c.Next(fire)
			least = min(least, then.Sub(fire))
			fire = then
		}
		if got := s.MinInterval(); got != least {
			t.Errorf("%q: %v, counted %v", expr, got, least)
		}
	}
}

func TestManyExpressionsDoNotFillTheMemoryAndStayRight(t *testing.T) {
	for range 2 {
		for i := range 600 {
			s := spec{Cron: fmt.Sprintf("%d %d * * *", i%60, i/60)}
			want := at("2026-03-02 00:00:00").Add(time.Duration(i%60)*time.Minute + time.Duration(i/60)*time.Hour)
			if got := s.Next(at("2026-03-01 23:59:59"), ""); !got.Equal(want) {
				t.Fatalf("%s: %v", s.Cron, got)
			}
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	done := make(chan struct{})
	for g := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range 300 {
				s := spec{Cron: fmt.Sprintf("%d %d * * *", (g+i)%60, i%24)}
				if next := s.Next(at("2026-03-01 23:59:59"), "k"); next.Minute() != (g+i)%60 || next.Hour() != i%24 {
					t.Errorf("%s: %v", s.Cron, next)
				}
			}
		}()
	}
	for range 8 {
		<-done
	}
}

func FuzzSpec(f *testing.F) {
	f.Add("0 3 * * *", int64(0), int64(time.Hour), 10, int64(1772323200), int64(86400*20), "EXAMPLEkey01")
	f.Add("", int64(time.Hour), int64(0), 50, int64(0), int64(1), "")
	f.Add("*/7 0-23/5 29 feb sun", int64(0), int64(0), 50, int64(-1<<62), int64(1<<40), "k")
	for expr := range refusedCron {
		f.Add(expr, int64(0), int64(0), 0, int64(0), int64(0), "")
	}
	f.Fuzz(func(t *testing.T, expr string, period, window int64, jitter int, last, later int64, id string) {
		s := spec{Period: time.Duration(period), Cron: expr, Window: time.Duration(window), JitterPercent: jitter}
		a := time.Unix(last, 0)
		b := a.Add(time.Duration(later))
		due, next := s.Due(a, b, id) // none of these may panic or hang, valid or not
		turn := s.CatchUp(a, b, id)
		_, _, _ = s.Deadline(next), s.Interval(a), s.MinInterval()
		err := s.Validate()
		if err != nil {
			if msg := err.Error(); len(msg) > 250 || !strings.HasPrefix(msg, "rotation_") {
				t.Errorf("error %q", msg)
			}
			return
		}
		if s.Cron != "" {
			oracle(t, s.Cron) // nothing is accepted that the parser refuses
		}
		// The years of the calendar; time.Time itself wraps around far out.
		if !s.Automatic() || last < -1<<35 || last > 1<<36 || later < 0 {
			return
		}
		if n := s.Next(a, id); !n.After(a) {
			t.Errorf("Next(%v) = %v", a, n)
		}
		if due == next.After(b) || turn.Before(b.Truncate(time.Second)) {
			t.Errorf("Due = %v, %v; CatchUp = %v", due, next, turn)
		}
		if due, _ := s.Due(b, b, id); due {
			t.Error("due right after a rotation")
		}
	})
}

func BenchmarkNext(b *testing.B) {
	last := at("2026-03-01 00:00:00")
	for name, s := range map[string]spec{
		"period":  {Period: time.Hour, JitterPercent: 10},
		"daily":   {Cron: "0 3 * * *", Window: time.Hour, JitterPercent: 10},
		"monthly": {Cron: "0 3 1 * *"},
		"leap":    {Cron: "0 0 29 2 *"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = s.Next(last, "EXAMPLEkey01")
			}
		})
	}
}

func BenchmarkValidate(b *testing.B) {
	for b.Loop() {
		if err := (spec{Cron: "0 0 29 2 *"}).Validate(); err != nil {
			b.Fatal(err)
		}
	}
}
