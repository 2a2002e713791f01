// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"math/bits"
	"time"

	"github.com/robfig/cron/v3"
)

// calendar is a compiled cron expression. The parser's own schedule can only
// look forward, second by second, and gives up after five years; this one
// looks both ways, day by day, and finds 29 February across 2100.
type calendar struct {
	minute, hour, dom, month, dow uint64 // bit n for value n
	either                        bool   // both day fields are restricted: one match is enough
	minGap, maxGap                time.Duration
}

// starBit is how the parser marks a field with a star in it.
const starBit = 1 << 63

const minutesPerDay = 24 * 60

// horizonDays bounds a search. It is above the longest gap between two fires:
// from 29 February 1896 to that of 1904, or 2096 to 2104.
const horizonDays = 9 * 366

func newCalendar(s *cron.SpecSchedule) *calendar {
	c := &calendar{
		minute: s.Minute &^ starBit,
		hour:   s.Hour &^ starBit,
		dom:    s.Dom &^ starBit,
		month:  s.Month &^ starBit,
		dow:    s.Dow &^ starBit,
		either: s.Dom&starBit == 0 && s.Dow&starBit == 0,
	}
	c.minGap, c.maxGap = c.gaps()
	return c
}

// next returns the first fire strictly after t, or the zero time if there is
// none within the horizon.
func (c *calendar) next(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute).Add(time.Minute)
	day, minute := startOfDay(t), t.Hour()*60+t.Minute()
	for range horizonDays {
		y, m, d := day.Date()
		if c.month&(1<<uint(m)) == 0 {
			day, minute = time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC), 0
			continue
		}
		if c.fires(m, d, day.Weekday()) {
			if at := c.minuteFrom(minute); at >= 0 {
				return day.Add(time.Duration(at) * time.Minute)
			}
		}
		day, minute = day.AddDate(0, 0, 1), 0
	}
	return time.Time{}
}

// prev returns the last fire at or before t, or the zero time if there is none
// within the horizon.
func (c *calendar) prev(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute)
	day, minute := startOfDay(t), t.Hour()*60+t.Minute()
	for range horizonDays {
		y, m, d := day.Date()
		if c.month&(1<<uint(m)) == 0 {
			day, minute = time.Date(y, m, 0, 0, 0, 0, 0, time.UTC), minutesPerDay-1
			continue
		}
		if c.fires(m, d, day.Weekday()) {
			if at := c.minuteTo(minute); at >= 0 {
				return day.Add(time.Duration(at) * time.Minute)
			}
		}
		day, minute = day.AddDate(0, 0, -1), minutesPerDay-1
	}
	return time.Time{}
}

// fires says whether there are fires on such a day.
func (c *calendar) fires(m time.Month, d int, w time.Weekday) bool {
	dom, dow := c.dom&(1<<uint(d)) != 0, c.dow&(1<<uint(w)) != 0
	if c.month&(1<<uint(m)) == 0 {
		return false
	}
	if c.either {
		return dom || dow
	}
	return dom && dow
}

// minuteFrom returns the first minute of a day with fires that is not before
// minute, or -1.
func (c *calendar) minuteFrom(minute int) int {
	for h, m := minute/60, minute%60; h < 24; h, m = h+1, 0 {
		if c.hour&(1<<h) == 0 {
			continue
		}
		if rest := c.minute >> m << m; rest != 0 {
			return h*60 + bits.TrailingZeros64(rest)
		}
	}
	return -1
}

// minuteTo returns the last minute of a day with fires that is not after
// minute, or -1.
func (c *calendar) minuteTo(minute int) int {
	for h, m := minute/60, minute%60; h >= 0; h, m = h-1, 59 {
		if c.hour&(1<<h) == 0 {
			continue
		}
		if rest := c.minute & (1<<(m+1) - 1); rest != 0 {
			return h*60 + bits.Len64(rest) - 1
		}
	}
	return -1
}

// gaps returns the least and the greatest time between two consecutive fires,
// or 0 if there are none. It walks the days of 2001 to 2033: the calendar
// repeats every 28 years (from 1901 to 2099), and the five more close the gap
// that the last fire of a cycle opens.
func (c *calendar) gaps() (least, greatest time.Duration) {
	first, last := c.minuteFrom(0), c.minuteTo(minutesPerDay-1)
	if first < 0 {
		return 0, 0
	}
	nearest, farthest := c.dayGaps()
	if nearest == 0 {
		return 0, 0
	}
	low, high := nearest*minutesPerDay-(last-first), farthest*minutesPerDay-(last-first)
	for at := first; at < last; {
		then := c.minuteFrom(at + 1)
		low, high = min(low, then-at), max(high, then-at)
		at = then
	}
	return time.Duration(low) * time.Minute, time.Duration(high) * time.Minute
}

// dayGaps returns the least and the greatest number of days between two
// consecutive days with fires, or 0 if there are none.
func (c *calendar) dayGaps() (least, greatest int) {
	since := 0 // days since the last day with fires, 0 before the first
	weekday := time.Monday
	for year := 2001; year <= 2033; year++ {
		for month := time.January; month <= time.December; month++ {
			for day := 1; day <= daysIn(year, month); day++ {
				switch fires := c.fires(month, day, weekday); {
				case fires && since == 0:
					since = 1
				case fires:
					if least == 0 || since < least {
						least = since
					}
					greatest = max(greatest, since)
					since = 1
				case since > 0:
					since++
				}
				weekday = (weekday + 1) % 7
			}
		}
	}
	return least, greatest
}

// daysIn is right for the years that dayGaps walks.
func daysIn(year int, month time.Month) int {
	switch month {
	case time.February:
		if year%4 == 0 {
			return 29
		}
		return 28
	case time.April, time.June, time.September, time.November:
		return 30
	default:
		return 31
	}
}

func startOfDay(t time.Time) time.Time {
	y, m, d := t.Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}
