// SPDX-License-Identifier: MPL-2.0

package schedule

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/robfig/cron/v3"
)

const (
	// maxCronLength is far above any sensible expression.
	maxCronLength = 256
	// maxCalendars bounds the cache; a mount has about as many expressions
	// as it has kinds of roles.
	maxCalendars = 256
)

var cronFields = [...]struct{ name, accepts string }{
	{"minute", "0-59"},
	{"hour", "0-23"},
	{"day-of-month", "1-31"},
	{"month", "1-12 or jan-dec"},
	{"day-of-week", "0-6 or sun-sat, where 0 is Sunday"},
}

var (
	// cronItems is the grammar of a field. The parser alone would accept
	// "*-x" and ",".
	cronItems  = regexp.MustCompile(`^` + cronItem + `(?:,` + cronItem + `)*$`)
	cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
)

const cronItem = `(?:[*?]|[0-9]+(?:-[0-9]+)?|[A-Za-z]+(?:-[A-Za-z]+)?)(?:/[0-9]+)?`

// compile parses a cron expression. Its errors name rotation_schedule and say
// what is accepted, without any part of the expression. The characters and
// the grammar are checked before the parser sees them: it panics on some input
// ("TZ=") and quotes all of it.
func compile(expr string) (*calendar, error) {
	if len(expr) > maxCronLength {
		return nil, fmt.Errorf("rotation_schedule must be at most %d characters, got %d", maxCronLength, len(expr))
	}
	switch start := strings.TrimLeft(expr, " \t"); {
	case strings.HasPrefix(start, "@"):
		return nil, errors.New("rotation_schedule must be five cron fields: descriptors such as @daily are not accepted, write 0 0 * * *")
	case strings.HasPrefix(start, "TZ=") || strings.HasPrefix(start, "CRON_TZ="):
		return nil, errors.New("rotation_schedule is always in UTC: a time zone is not accepted")
	}
	for i := range len(expr) {
		if !isCronByte(expr[i]) {
			return nil, errors.New("rotation_schedule may contain only letters, digits, spaces and * ? , - /")
		}
	}
	fields := strings.Fields(expr)
	if len(fields) != len(cronFields) {
		return nil, fmt.Errorf("rotation_schedule must have five fields (minute, hour, day-of-month, month, day-of-week), got %d", len(fields))
	}
	for i, f := range fields {
		alone := [...]string{"*", "*", "*", "*", "*"}
		alone[i] = f
		_, err := cronParser.Parse(strings.Join(alone[:], " "))
		if err != nil || !cronItems.MatchString(f) {
			return nil, fmt.Errorf("rotation_schedule has a malformed %s field: it takes %s, and *, lists (1,2), ranges (1-5) and steps (*/2) of these",
				cronFields[i].name, cronFields[i].accepts)
		}
	}
	parsed, err := cronParser.Parse(strings.Join(fields, " "))
	spec, ok := parsed.(*cron.SpecSchedule)
	if err != nil || !ok {
		return nil, errors.New("rotation_schedule is malformed")
	}
	c := newCalendar(spec)
	if c.minGap == 0 {
		return nil, errors.New("rotation_schedule never fires: no month has such a day")
	}
	return c, nil
}

func isCronByte(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' ||
		strings.IndexByte(" \t*?,-/", b) >= 0
}

// calendars spares the hot path the parser. It holds valid expressions only.
var calendars calendarCache

type calendarCache struct {
	mu sync.RWMutex
	m  map[string]*calendar
}

func (cc *calendarCache) get(expr string) (*calendar, error) {
	cc.mu.RLock()
	c := cc.m[expr]
	cc.mu.RUnlock()
	if c != nil {
		return c, nil
	}
	c, err := compile(expr)
	if err != nil {
		return nil, err
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.m == nil || len(cc.m) >= maxCalendars {
		// Starting over is cheaper than keeping track of use.
		cc.m = make(map[string]*calendar)
	}
	cc.m[expr] = c
	return c, nil
}
