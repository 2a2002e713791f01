// SPDX-License-Identifier: MPL-2.0

// Command eval makes labelled traffic of keys, drives the anomaly
// detector with it event by event and hour by hour, and prints, as Markdown,
// what it found, how late, and how often it cried wolf. Hours reach the detector
// as they do in the engine: by what pages of usage keep of them.
//
// The same flags print the same report. The thresholds were chosen on the
// seeds 1 to 3; the defaults are others.
package main

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/anomaly"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// config is the size of an evaluation.
type config struct {
	firstSeed uint64
	seeds     int
	keys      int // of each class and seed
}

var defaults = config{firstSeed: 101, seeds: 2, keys: 24}

func main() {
	c := defaults
	flag.Uint64Var(&c.firstSeed, "seed", c.firstSeed, "first seed")
	flag.IntVar(&c.seeds, "seeds", c.seeds, "number of consecutive seeds")
	flag.IntVar(&c.keys, "keys", c.keys, "keys of each class and seed")
	flag.Parse()
	if c.seeds < 1 || c.keys < 1 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "eval: seeds and keys must be at least 1, and there are no arguments")
		os.Exit(2)
	}
	if err := report(os.Stdout, c); err != nil {
		fmt.Fprintln(os.Stderr, "eval:", err)
		os.Exit(1)
	}
}

// outcome is what the detector said about one key.
type outcome struct {
	class        class
	shape, habit string
	found        bool
	delay        time.Duration
	// right and wrong are findings inside and outside of the incident, by kind.
	right, wrong map[anomaly.Kind]int
}

// restarts is how often the detector forgets everything in some runs.
const restarts = 7 * 24 * time.Hour

// pages is what keeps the accepted uses of a key, and hands over its hours: a
// Sheet, or in the test a Book.
type pages interface {
	Add(keyID string, at time.Time, n uint64)
	Restart(since time.Time)
	Hour(now time.Time, f func(keyID string, before []uint64, end time.Time, count uint64))
}

// play drives a detector with a key's traffic, whose hours go by way of p. After
// Vault was down, and with restarts every week, it is made anew and handed the
// sources that are stored.
func play(k *key, c class, p pages, withRestarts bool) outcome {
	o := outcome{class: c, shape: k.shape, habit: k.habit, right: map[anomaly.Kind]int{}, wrong: map[anomaly.Kind]int{}}
	d := anomaly.New(monday)
	kept := map[string]anomaly.Past{}
	next := 0
	for h := range hours {
		over := time.Duration(h+1) * time.Hour
		if started := over - time.Hour; h > 0 && (withRestarts && started%restarts == 0 || h == k.up) {
			d = anomaly.New(monday.Add(started))
			d.Learn(stored(k.id, kept))
			p.Restart(monday.Add(started))
		}
		down := h >= k.down && h < k.up
		for ; next < len(k.events) && k.events[next].at < over; next++ {
			e := k.events[next]
			if down {
				continue
			}
			o.note(k, e.at, func() (anomaly.Finding, bool) {
				switch {
				case e.wrong:
					return d.WrongSecret(monday.Add(e.at), k.id)
				case e.state != "":
					return d.EndedUse(monday.Add(e.at), k.id, e.version, e.state, e.source, e.at-e.ended)
				default:
					keep(kept, e.source, monday.Add(e.at))
					return d.Use(monday.Add(e.at), k.id, e.version, e.source)
				}
			})
		}
		if down {
			continue
		}
		if k.counts[h] > 0 {
			p.Add(k.id, monday.Add(over-time.Minute), k.counts[h])
		}
		o.note(k, over+time.Minute, func() (f anomaly.Finding, found bool) {
			p.Hour(monday.Add(over+time.Minute), func(id string, before []uint64, end time.Time, count uint64) {
				f, found = d.Hour(end, id, before, count)
			})
			return f, found
		})
	}
	return o
}

// mostStored is how many sources usage tells apart.
const mostStored = 32

// keep notes a use as pages of usage do: the first sources apart, and the rest
// together.
func keep(kept map[string]anomaly.Past, source string, at time.Time) {
	p, known := kept[source]
	if !known && len(kept) >= mostStored {
		source = ""
		p, known = kept[source]
	}
	if !known {
		p = anomaly.Past{Name: source, First: at.Truncate(time.Hour)}
	}
	p.Last = at
	p.Uses++
	kept[source] = p
}

// stored is what a start is handed of what was kept.
func stored(keyID string, kept map[string]anomaly.Past) (id string, past []anomaly.Past, complete bool) {
	complete = true
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		if name == "" {
			complete = false
			continue
		}
		past = append(past, kept[name])
	}
	return keyID, past, complete
}

// settles is how long after the end of an incident a finding is still about it.
const settles = 3 * time.Hour

func (o *outcome) note(k *key, at time.Duration, look func() (anomaly.Finding, bool)) {
	f, ok := look()
	if !ok {
		return
	}
	if slices.Contains(o.class.kinds, f.Kind) && at >= k.begin && at < k.end+settles {
		if !o.found {
			o.found, o.delay = true, at-k.begin
		}
		o.right[f.Kind]++
		return
	}
	o.wrong[f.Kind]++
}

func report(w io.Writer, c config) error {
	var all []outcome
	wolf := 0 // unseen sources wrongly reported with restarts
	for seed := range c.seeds {
		for i, cl := range classes {
			for n := range c.keys {
				k := newKey(c.firstSeed+uint64(seed), i*c.keys+n, cl)
				all = append(all, play(k, cl, usage.NewSheet(monday), false))
				if cl.name == "normal" {
					wolf += play(k, cl, usage.NewSheet(monday), true).wrong[anomaly.UnseenSource]
				}
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Seeds %d to %d, %d classes of %d keys each and seed: %d keys with %d to %d uses an hour on average over %d weeks; incidents begin in weeks %d and %d.\n\n",
		c.firstSeed, c.firstSeed+uint64(c.seeds)-1, len(classes), c.keys, len(all), leastUses, mostUses, weeks, warmUp+1, warmUp+2) //nolint:gosec // at least 1
	byIncident(&b, all)
	byKind(&b, all)
	byQuiet(&b, all)
	bySort(&b, "Use of the key", anomaly.UnusualRate, shapes, func(o outcome) string { return o.shape }, all)
	bySort(&b, "Sources of the key", anomaly.UnseenSource, habits, func(o outcome) string { return o.habit }, all)
	normal := pick(all, func(o outcome) bool { return o.class.name == "normal" })
	fmt.Fprintf(&b, "A restart every week, with the stored sources learned again: %d unseen sources wrongly reported for the %d normal keys; without restarts %d.\n",
		wolf, len(normal), sum(normal, func(o outcome) int { return o.wrong[anomaly.UnseenSource] }))
	_, err := io.WriteString(w, b.String())
	return err
}

func byIncident(b *strings.Builder, all []outcome) {
	b.WriteString("| Incident | What happens | Found | Recall | Delay, median | Delay, 9 in 10 | Findings for each found |\n|---|---|---|---|---|---|---|\n")
	for _, c := range classes {
		if len(c.kinds) == 0 {
			continue
		}
		of := pick(all, func(o outcome) bool { return o.class.name == c.name })
		var delays []time.Duration
		for _, o := range of {
			if o.found {
				delays = append(delays, o.delay)
			}
		}
		slices.Sort(delays)
		findings := sum(of, func(o outcome) int { return total(o.right) })
		fmt.Fprintf(b, "| %s | %s | %d of %d | %s | %s | %s | %.1f |\n", c.name, c.what, len(delays), len(of), percent(len(delays), len(of)),
			at(delays, 0.5), at(delays, 0.9), ratio(findings, len(delays)))
	}
	b.WriteString("\n")
}

func byKind(b *strings.Builder, all []outcome) {
	keyWeeks := len(all) * weeks
	b.WriteString("| Finding | Right | False | Precision | False for each key and week | One false in |\n|---|---|---|---|---|---|\n")
	for _, kind := range anomaly.Kinds() {
		right := sum(all, func(o outcome) int { return o.right[kind] })
		wrong := sum(all, func(o outcome) int { return o.wrong[kind] })
		every := "-"
		if wrong > 0 {
			every = fmt.Sprintf("%.0f key weeks", ratio(keyWeeks, wrong))
		}
		fmt.Fprintf(b, "| `%s` | %d | %d | %s | %.4f | %s |\n", kind, right, wrong, percent(right, right+wrong), ratio(wrong, keyWeeks), every)
	}
	b.WriteString("\n")
}

func byQuiet(b *strings.Builder, all []outcome) {
	b.WriteString("| Nobody wants an alarm | What happens | Keys | Keys with one | Unseen source | Unusual rate |\n|---|---|---|---|---|---|\n")
	for _, c := range classes {
		if len(c.kinds) > 0 {
			continue
		}
		of := pick(all, func(o outcome) bool { return o.class.name == c.name })
		alarmed := len(pick(of, func(o outcome) bool { return total(o.wrong) > 0 }))
		fmt.Fprintf(b, "| %s | %s | %d | %d | %d | %d |\n", c.name, c.what, len(of), alarmed,

			sum(of, func(o outcome) int { return o.wrong[anomaly.UnseenSource] }), sum(of, func(o outcome) int { return o.wrong[anomaly.UnusualRate] }))
	}
	b.WriteString("\n")
}

// bySort splits one kind of finding by a property of the key.
func bySort(b *strings.Builder, title string, kind anomaly.Kind, names []string, of func(outcome) string, all []outcome) {
	fmt.Fprintf(b, "| %s | Keys | False `%s` for each key and week | Incidents of this kind found |\n|---|---|---|---|\n", title, kind)
	for _, name := range names {
		group := pick(all, func(o outcome) bool { return of(o) == name })
		told := pick(group, func(o outcome) bool { return len(o.class.kinds) > 0 && slices.Contains(o.class.kinds, kind) })
		found := len(pick(told, func(o outcome) bool { return o.right[kind] > 0 }))
		fmt.Fprintf(b, "| %s | %d | %.4f | %d of %d |\n", name, len(group), ratio(sum(group, func(o outcome) int { return o.wrong[kind] }), len(group)*weeks), found, len(told))
	}
	b.WriteString("\n")
}

func pick(all []outcome, which func(outcome) bool) []outcome {
	var some []outcome
	for _, o := range all {
		if which(o) {
			some = append(some, o)
		}
	}
	return some
}

func sum(all []outcome, of func(outcome) int) int {
	n := 0
	for _, o := range all {
		n += of(o)
	}
	return n
}

func total(by map[anomaly.Kind]int) int {
	n := 0
	for _, count := range by {
		n += count
	}
	return n
}

func ratio(a, b int) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func percent(a, b int) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*ratio(a, b))
}

// at is the delay that the given part of all stays within.
func at(sorted []time.Duration, part float64) string {
	if len(sorted) == 0 {
		return "-"
	}
	d := sorted[min(len(sorted)-1, int(part*float64(len(sorted))))]
	switch {
	case d < time.Minute:
		return "under 1 min"
	case d < time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	default:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
}
