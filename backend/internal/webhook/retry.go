// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// schedule is the delay before each retry, from Standard Webhooks 1.0.0.
var schedule = [...]time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	// maxRetryAfter bounds how long a receiver can put off one event,
	// maxHold how long it can put off all.
	maxRetryAfter = 24 * time.Hour
	maxHold       = time.Hour
	// maxDelay is the longest wait that a stored time can mean.
	maxDelay = 30 * time.Hour

	// breakAfter failures in a row, a hook sends one event at a time, with
	// pauses that double from minPause to maxPause.
	breakAfter = 5
	minPause   = 5 * time.Second
	maxPause   = 5 * time.Minute

	// Any of these disables a hook: events in a row that ran out of retries,
	// or a time without a success in which enough attempts were made.
	disableAfterEvents   = 3
	disableAfterTime     = 5 * 24 * time.Hour
	disableAfterAttempts = 20
)

// span is the time that the schedule takes.
var span = func() (sum time.Duration) {
	for _, delay := range schedule {
		sum += delay
	}
	return sum
}()

// retryDelay is the wait after the failed attempt number attempts of an event
// that was first tried so long ago. It is false where that was the last one:
// an event gets all its attempts and, where some came early because the
// receiver had come back for a moment, all the time of the schedule too. The
// jitter is fixed per event and attempt and makes the delay up to a fifth
// longer.
func retryDelay(hook, eventID string, attempts int, tried time.Duration) (time.Duration, bool) {
	delay := schedule[min(attempts, len(schedule))-1]
	if attempts > len(schedule) {
		if tried >= span {
			return 0, false
		}
		delay = min(delay, max(span-tried, schedule[0]))
	}
	return delay + jitter(delay/5, hook, eventID, strconv.Itoa(attempts)), true
}

// jitter is a duration in [0, most) that is fixed by salt.
func jitter(most time.Duration, salt ...string) time.Duration {
	sum := sha256.Sum256([]byte(strings.Join(salt, "\x00")))
	part := float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
	return time.Duration(part * float64(most))
}

// pause is the wait of a hook after so many failures in a row.
func pause(hook string, failures int) time.Duration {
	if failures < breakAfter {
		return 0
	}
	p := maxPause
	if doublings := failures - breakAfter; doublings < 6 {
		p = min(maxPause, minPause<<doublings)
	}
	return p + jitter(p/5, hook, strconv.Itoa(failures))
}

// retryAfter reads the header of that name: seconds or a date.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := header.Get("Retry-After")
	var d time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		d = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// exhaustedReason and the others are what a disabled hook shows.
func exhaustedReason(events int, last string) string {
	return fmt.Sprintf("%d events in a row ran out of retries; the last failure was: %s", events, last)
}

func failingReason(since time.Time, last string) string {
	return fmt.Sprintf("no delivery succeeded since %s; the last failure was: %s", since.Format(time.RFC3339), last)
}

const goneReason = "the receiver answered 410 Gone: it wants no more events"
