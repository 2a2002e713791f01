// SPDX-License-Identifier: MPL-2.0

// Package health judges rollovers: how much of the traffic has moved to the
// new version, who is still on the old one, and whether everybody will have
// moved by the deadline. It is pure: what is known of use is an argument.
//
// What is not known is said, and never counts as moved.
package health

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is the verdict on a rollover.
type Status string

// The verdicts, from good to bad.
const (
	// OnTrack: nothing speaks against everybody having moved by the deadline.
	OnTrack Status = "on_track"
	// Stalled: the old version still carries most of the traffic late in the
	// overlap.
	Stalled Status = "stalled"
	// AtRisk: at the present rate clients will be left behind.
	AtRisk Status = "at_risk"
	// Failed: clients were refused with the retired version, or the new one
	// was never used although the old one was.
	Failed Status = "failed"
)

// WorseThan tells whether s is worse than o. Nothing is better than OnTrack.
func (s Status) WorseThan(o Status) bool { return s.rank() > o.rank() }

func (s Status) rank() int { return slices.Index([]Status{Stalled, AtRisk, Failed}, s) }

const (
	// Recent is the time over which traffic is compared.
	Recent = 30 * time.Minute
	// late is the share of an overlap after which most traffic should have
	// moved, and veryLate that after which nobody should be left.
	late     = 0.5
	veryLate = 0.8
	// lateUse is the part of an overlap, at most Recent, in which a use of the
	// old version says that a source is still on it, although it uses the new
	// one too.
	lateUse = 10
	// most is the share of the traffic that has to have moved late in an overlap.
	most = 0.5
)

// Use is what one source did with one version since the promotion.
type Use struct {
	// Total and Recently count accepted uses, since the promotion and in the
	// last Recent time. Refused counts refused ones, and Stale those of them that
	// came after an end of the version.
	Total    uint64
	Recently uint64
	Refused  uint64
	Stale    uint64
	LastUsed time.Time
}

// Source is one place from which a key is used.
type Source struct {
	Name string
	Old  Use
	New  Use
}

// Instance is a client instance's word on which version it uses.
type Instance struct {
	Name    string
	Version int
	Time    time.Time
}

// Rollover is what is known of one.
type Rollover struct {
	From, To int
	// Promoted is when the new version took over; zero while it is pending.
	Promoted time.Time
	// Planned is the end that clients were told, Deadline the one that is
	// enforced.
	Planned  time.Time
	Deadline time.Time
	// Ended is when the old version was retired; zero while it is accepted.
	Ended time.Time
	// StaleBefore are the late uses of the old version after an earlier end, from
	// which it was brought back.
	StaleBefore uint64
	// KnownSince is when the record of use begins: after a start, use before
	// it may be unknown.
	KnownSince time.Time
	Sources    []Source
	Instances  []Instance
}

// Laggard is a source or an instance that is still on the old version.
type Laggard struct {
	Source   string
	Instance string
	LastUsed time.Time
	// Recently counts uses of the old version in the last Recent time.
	Recently uint64
}

// Report is the judgement of a rollover at a moment.
type Report struct {
	Status Status
	// Moved is the share of recent traffic on the new version, from 0 to 1;
	// without recent traffic that of the sources, and 0 where no use is known.
	Moved    float64
	Laggards []Laggard
	// Left are the laggards that, at the present rate, will not have moved by
	// the deadline.
	Left     []string
	Evidence []string
}

// Judge judges a rollover at now.
func Judge(r Rollover, now time.Time) Report {
	j := judge{r: r, now: now}
	j.weigh()
	j.report.Laggards = j.laggards()
	j.report.Moved = j.moved()
	j.report.Left = j.forecast()
	j.report.Status = j.status()
	j.describe()
	return j.report
}

type judge struct {
	r      Rollover
	now    time.Time
	report Report

	oldRecent, newRecent uint64
	oldTotal, newTotal   uint64
	refused              uint64
}

func (j *judge) weigh() {
	for _, s := range j.r.Sources {
		j.oldRecent += s.Old.Recently
		j.newRecent += s.New.Recently
		j.oldTotal += s.Old.Total
		j.newTotal += s.New.Total
		j.refused += s.Old.Stale
	}
	j.refused -= min(j.refused, j.r.StaleBefore)
	if j.r.Ended.IsZero() {
		j.refused = 0
	}
}

// moved is the share of the traffic of the last Recent time that was on the
// new version. Where there was none it is that of the sources, and where none
// is known it is 0.
func (j *judge) moved() float64 {
	if all := j.oldRecent + j.newRecent; all > 0 {
		return float64(j.newRecent) / float64(all)
	}
	seen, behind := 0, 0
	for _, s := range j.r.Sources {
		if s.Old.Total+s.New.Total > 0 {
			seen++
		}
	}
	for _, l := range j.report.Laggards {
		if l.Source != "" {
			behind++
		}
	}
	if seen == 0 {
		return 0
	}
	return max(0, float64(seen-behind)/float64(seen))
}

// laggards are the sources that were not seen on the new version, or on the
// old one lately: one source may have many clients. And the instances whose
// last word is that they use the old one.
func (j *judge) laggards() []Laggard {
	var found []Laggard
	lately := min(Recent, j.r.Planned.Sub(j.r.Promoted)/lateUse)
	for _, s := range j.r.Sources {
		if s.Old.LastUsed.IsZero() {
			continue
		}
		if s.New.Total == 0 || s.Old.LastUsed.After(s.New.LastUsed) || j.r.Ended.IsZero() && j.now.Sub(s.Old.LastUsed) < lately {
			found = append(found, Laggard{Source: s.Name, LastUsed: s.Old.LastUsed, Recently: s.Old.Recently})
		}
	}
	for _, i := range j.r.Instances {
		if i.Version < j.r.To && i.Version == j.r.From {
			found = append(found, Laggard{Instance: i.Name, LastUsed: i.Time})
		}
	}
	slices.SortFunc(found, func(a, b Laggard) int {
		return strings.Compare(a.Source+"\x00"+a.Instance, b.Source+"\x00"+b.Instance)
	})
	return found
}

// progress is the share of the overlap that is over.
func (j *judge) progress() float64 {
	whole := j.r.Planned.Sub(j.r.Promoted)
	if j.r.Promoted.IsZero() {
		return 0
	}
	if whole <= 0 {
		return 1
	}
	return min(1, float64(j.now.Sub(j.r.Promoted))/float64(whole))
}

// forecast extrapolates how fast sources have moved so far. Until a tenth of
// the overlap is over nobody is counted out.
func (j *judge) forecast() []string {
	names := []string{}
	for _, l := range j.report.Laggards {
		if l.Source != "" {
			names = append(names, l.Source)
		}
	}
	progress := j.progress()
	if len(names) == 0 || progress < 0.1 {
		return nil
	}
	moved := len(j.r.Sources) - len(names)
	left := j.r.Deadline.Sub(j.now)
	passed := j.now.Sub(j.r.Promoted)
	if left > 0 && passed > 0 {
		willMove := int(float64(moved) / float64(passed) * float64(left))
		if willMove >= len(names) {
			return nil
		}
		if willMove > 0 && progress < veryLate {
			// Who of them will be left is unknown: name those seen last.
			byUse := slices.Clone(j.report.Laggards)
			slices.SortStableFunc(byUse, func(a, b Laggard) int { return b.LastUsed.Compare(a.LastUsed) })
			names = names[:0]
			for _, l := range byUse {
				if l.Source != "" {
					names = append(names, l.Source)
				}
			}
			names = names[:len(names)-willMove]
			slices.Sort(names)
		}
	}
	return names
}

func (j *judge) status() Status {
	progress := j.progress()
	over := !j.r.Ended.IsZero() || !j.r.Promoted.IsZero() && !j.now.Before(j.r.Deadline)
	switch {
	case j.refused > 0:
		return Failed
	case over && j.newTotal == 0 && j.oldTotal > 0:
		return Failed
	case len(j.report.Left) > 0 && progress >= late:
		if progress < veryLate && j.oldRecent > 0 && j.report.Moved < most {
			return Stalled
		}
		return AtRisk
	case progress >= late && len(j.report.Laggards) > 0 && j.oldRecent > 0 && j.report.Moved < most:
		return Stalled
	}
	return OnTrack
}

func (j *judge) describe() {
	say := func(format string, args ...any) {
		j.report.Evidence = append(j.report.Evidence, fmt.Sprintf(format, args...))
	}
	if j.r.Promoted.IsZero() {
		say("version %d is pending", j.r.To)
		return
	}
	say("%.0f%% of the overlap is over", j.progress()*100)
	if all := j.oldRecent + j.newRecent; all > 0 {
		say("in the last %s version %d had %d uses and version %d had %d", Recent, j.r.From, j.oldRecent, j.r.To, j.newRecent)
	} else {
		say("no use of either version in the last %s", Recent)
	}
	if j.r.KnownSince.After(j.r.Promoted) {
		say("use is known in full only since %s", j.r.KnownSince.UTC().Format(time.RFC3339))
	}
	if n := len(j.r.Sources); n > 0 {
		behind := 0
		for _, l := range j.report.Laggards {
			if l.Source != "" {
				behind++
			}
		}
		say("%d of %d sources have moved", n-behind, n)
	}
	if len(j.report.Left) > 0 {
		say("at the present rate left behind at %s: %s", j.r.Deadline.UTC().Format(time.RFC3339), strings.Join(j.report.Left, ", "))
	}
	if j.newTotal == 0 && j.oldTotal > 0 {
		say("version %d has never been used", j.r.To)
	}
	if j.refused > 0 {
		say("version %d was refused %d times after it was retired", j.r.From, j.refused)
	}
}
