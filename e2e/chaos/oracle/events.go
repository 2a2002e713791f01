// SPDX-License-Identifier: MPL-2.0

package oracle

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// Told is an event as a webhook told it, or as a history has it.
type Told struct {
	Type string
	Time time.Time
}

// HistoryKept is how many transitions a history has at most.
const HistoryKept = 100

// Events are what a webhook receiver has accepted. The zero value is ready,
// and safe for concurrent use.
type Events struct {
	mu       sync.Mutex
	keys     map[string]*told
	repeated int
	total    int
	wrong    []Violation
}

type told struct {
	events []Told
	bodies map[int][]byte
	last   int // the greatest number so far
}

// mayDiffer are the fields of an event's data that show the key as it is when
// the event is taken to the outbox. A crash can make that happen twice.
var mayDiffer = []string{"name", "custom_metadata", "overlap_ends", "accepted_until"}

// differ names the fields in which two bodies of one event differ, but for those
// that may.
func differ(a, b []byte) []string {
	var x, y map[string]any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return []string{"form"}
	}
	var fields []string
	compare := func(x, y map[string]any, but ...string) {
		all := maps.Clone(x)
		maps.Copy(all, y)
		for _, field := range slices.Sorted(maps.Keys(all)) {
			if !slices.Contains(but, field) && !reflect.DeepEqual(x[field], y[field]) {
				fields = append(fields, field)
			}
		}
	}
	compare(x, y, "data")
	dataX, _ := x["data"].(map[string]any)
	dataY, _ := y["data"].(map[string]any)
	compare(dataX, dataY, mayDiffer...)
	return fields
}

// Take notes an event, the seq-th of its key, that the receiver has accepted.
// It may come again, and then tells the same. The first time, it comes in the order
// of its key.
func (e *Events) Take(keyID string, seq int, what Told, body []byte, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.keys == nil {
		e.keys = map[string]*told{}
	}
	k := e.keys[keyID]
	if k == nil {
		k = &told{bodies: map[int][]byte{}}
		e.keys[keyID] = k
	}
	if before, again := k.bodies[seq]; again {
		e.repeated++
		if fields := differ(before, body); len(fields) > 0 {
			e.wrong = append(e.wrong, Violation{WrongEvent, keyID, 0, at, fmt.Sprintf("event %d (%s) came again with another %s", seq, what.Type, strings.Join(fields, ", "))})
		}
		return
	}
	if want := k.last + 1; seq != want {
		e.wrong = append(e.wrong, Violation{WrongEvent, keyID, 0, at, fmt.Sprintf("event %d (%s) came where %d was to come", seq, what.Type, want)})
	}
	k.last = max(k.last, seq)
	k.bodies[seq] = slices.Clone(body)
	k.events = append(k.events, what)
	e.total++
}

// Count tells how many events there were, and how many repetitions.
func (e *Events) Count() (events, repeated int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.total, e.repeated
}

// Wrong are the violations that were seen as events arrived.
func (e *Events) Wrong() []Violation {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Violation(nil), e.wrong...)
}

// Told is how many events of a key were told so far.
func (e *Events) Told(keyID string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if k := e.keys[keyID]; k != nil {
		return len(k.events)
	}
	return 0
}

// Compare finds what was not told of a key's history, oldest first, and what was
// told that it does not have. told is how many events were told before the
// history was read; those that came after it are not looked at.
func (e *Events) Compare(keyID string, history []Told, told int, at time.Time) []Violation {
	e.mu.Lock()
	defer e.mu.Unlock()
	var got []Told
	if k := e.keys[keyID]; k != nil {
		got = k.events
	}
	// The history begins at one of the events; a short one at the first.
	first, last := max(0, told-len(history)), len(got)-len(history)
	if len(history) < HistoryKept {
		first, last = 0, min(0, last)
		if told > len(history) {
			return []Violation{{WrongEvent, keyID, 0, at, fmt.Sprintf("%d events were told, and the history has %d", told, len(history))}}
		}
	}
	lost := fmt.Sprintf("%d events were told; the last was %s, and that of the history, of which %d are known, is %s", len(got), lastType(got), len(history), lastType(history))
	for begin := first; begin <= last; begin++ {
		i := 0
		for i < len(history) && history[i].is(got[begin+i]) {
			i++
		}
		if i == len(history) {
			return nil
		}
		if begin == last {
			is, want := got[begin+i], history[i]
			lost = fmt.Sprintf("event %d was told as %s of %s, and the history has %s of %s", begin+i+1,
				is.Type, is.Time.Format(time.RFC3339Nano), want.Type, want.Time.Format(time.RFC3339Nano))
		}
	}
	return []Violation{{LostEvent, keyID, 0, at, lost}}
}

// is tells whether an event of a history was told as other, in milliseconds.
func (t Told) is(other Told) bool {
	return t.Type == other.Type && other.Time.Equal(t.Time.Truncate(time.Millisecond))
}

// Life finds what is missing of what was told of a key that was made, had so many
// versions, and was deleted. It is to be asked when the outbox is empty.
func (e *Events) Life(keyID string, versions int, at time.Time) []Violation {
	e.mu.Lock()
	defer e.mu.Unlock()
	var got []Told
	if k := e.keys[keyID]; k != nil {
		got = k.events
	}
	made := 0
	for _, what := range got {
		if what.Type == "version.created" {
			made++
		}
	}
	if len(got) == 0 || got[0].Type != "key.created" || made != versions || lastType(got) != "key.deleted" {
		return []Violation{{LostEvent, keyID, 0, at, fmt.Sprintf("it was made, and deleted with %d versions; %d events were told, of which %d are of new versions, and the last was %s", versions, len(got), made, lastType(got))}}
	}
	return nil
}

func lastType(events []Told) string {
	if len(events) == 0 {
		return "none"
	}
	return events[len(events)-1].Type
}
