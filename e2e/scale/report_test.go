// SPDX-License-Identifier: MPL-2.0

package scale

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// measured is an operation that took this much of the processor at 1,000, 10,000
// and so on.
func measured(operation string, cpu ...float64) Growth {
	g, keys := Growth{Operation: operation, Unit: "key"}, 1_000
	for _, seconds := range cpu {
		g.Points = append(g.Points, Point{Keys: keys, Seconds: 2 * seconds, CPU: seconds})
		keys *= 10
	}
	return g
}

func TestWhatWasNotMeasuredIsAFault(t *testing.T) {
	late := measured("tick", 1, 1)
	late.Points = late.Points[1:]
	gap := measured("list", 1, 1, 1)
	gap.Points = append(gap.Points[:1], gap.Points[2])
	for name, c := range map[string]struct {
		all  []Growth
		want string
	}{
		"nothing":               {nil, "nothing was measured"},
		"one number of keys":    {[]Growth{measured("verify", 1)}, "nothing was measured"},
		"all is well":           {[]Growth{measured("verify", 1, 1.1), late}, ""},
		"it grows":              {[]Growth{measured("verify", 1, 1.3)}, "verify takes 1.30 times"},
		"nothing of the last":   {[]Growth{measured("verify", 1, 0)}, "verify was not measured at 10,000"},
		"nothing of the first":  {[]Growth{measured("verify", 0, 0.5)}, "verify was not measured at 1,000"},
		"nothing of either":     {[]Growth{measured("verify", 0, 0)}, "verify was not measured at 1,000"},
		"nothing at the last":   {[]Growth{measured("verify", 1), measured("sweep", 1, 1)}, "verify was not measured at 10,000"},
		"nothing in the middle": {[]Growth{measured("verify", 1, 1, 1), gap}, "list was not measured at 10,000"},
	} {
		faults := strings.Join((&Report{Server: c.all}).grown(), "\n")
		if (faults == "") != (c.want == "") || !strings.Contains(faults, c.want) {
			t.Errorf("%s: %q, want %q", name, faults, c.want)
		}
	}
}

// TestTheTimeOfAProcessIsItsOwn: that of one which has ended is not subtracted
// from that of the next.
func TestTheTimeOfAProcessIsItsOwn(t *testing.T) {
	before := used{7: 5 * time.Second}
	for name, c := range map[string]struct {
		after used
		want  time.Duration
	}{
		"the same":          {used{7: 6 * time.Second}, time.Second},
		"another":           {used{8: 6 * time.Second}, 6 * time.Second},
		"another, that did": {used{8: time.Second}, time.Second},
		"one more":          {used{7: 6 * time.Second, 8: time.Second}, 2 * time.Second},
		"none":              {nil, 0},
	} {
		if got := c.after.since(before); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestTheMedianIsOfEachUnit: a round that others disturbed does not count, nor
// does one in which there was less to do.
func TestTheMedianIsOfEachUnit(t *testing.T) {
	all := []cost{{10, 20 * time.Second, 30 * time.Second}, {10, 900 * time.Second, 900 * time.Second}, {1, time.Second, time.Second}}
	if got, want := median(all), (Point{Seconds: 2, CPU: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTheReportSaysHowManyRolesThereWere(t *testing.T) {
	r := &Report{Server: []Growth{measured(opStart, 1, 1)}}
	add(&r.Peers, peerStartNoop, "start", Point{Keys: 1_000, Seconds: 1, Roles: 100})
	add(&r.Peers, peerStartNoop, "start", Point{Keys: 10_000, Seconds: 3, Roles: 5_000})
	text := r.Markdown()
	for _, want := range []string{"| 1.0 s, with 100 roles | 3.0 s, with 5,000 roles |", "3.0 s a start, with 5,000 roles |"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

// TestThePlotShowsCountsTimeAndMemory, as XML.
func TestThePlotShowsCountsTimeAndMemory(t *testing.T) {
	counts := measured("verify", 1, 1)
	for i := range counts.Points {
		counts.Points[i].Reads = float64(i) // 0 is drawn as well
	}
	started := measured(opStart, 0.01, 0.02)
	for i := range started.Points {
		started.Points[i].MiB = 50
	}
	for name, c := range map[string]struct {
		r    Report
		want []string
	}{
		"all":     {Report{Counts: []Growth{counts}, Server: []Growth{started}}, []string{"Operations of storage", "own time", "20.0 ms a key", "50 MiB a key"}},
		"a test":  {Report{Server: []Growth{measured(opStart, 1)}}, nil},
		"nothing": {Report{}, nil},
	} {
		text := c.r.SVG()
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, text)
			}
		}
		if panels := strings.Count(text, "<g "); (panels == 3) != (len(c.want) > 0) {
			t.Errorf("%s: %d panels", name, panels)
		}
		if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s: a number is none:\n%s", name, text)
		}
		decoder := xml.NewDecoder(strings.NewReader(text))
		for {
			_, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v in\n%s", name, err, text)
			}
		}
	}
}
