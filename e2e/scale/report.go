// SPDX-License-Identifier: MPL-2.0

package scale

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The names of operations that are compared with those of other engines.
const (
	opImport      = "import, in batches of 1,000"
	opCreate      = "create"
	opCreds       = "read static-creds"
	opVerify      = "verify"
	opVerifyBatch = "verify, in batches of 100"
	opDue         = "tick, at most 1,000 keys due"
	opStart       = "start of the plugin"
)

// The operations of other engines.
const (
	peerStore          = "KV v2: store a key"
	peerRead           = "KV v2: read a key"
	peerHMAC           = "Transit: verify an HMAC"
	peerHMACBatch      = "Transit: verify HMACs in batches of 100"
	peerRotateNoop     = "database engine, no-op database: rotate a static role that is due"
	peerRotatePostgres = "database engine, PostgreSQL: rotate a static role that is due"
	peerStartNoop      = "database engine: start, until all static roles are loaded"
)

// Growth is what one operation cost at several numbers of keys.
type Growth struct {
	Operation string `json:"operation"`
	Unit      string `json:"unit"`
	// Linear says that it is to grow with the number of keys; others are to be
	// constant.
	Linear bool    `json:"linear,omitempty"`
	Points []Point `json:"points"`
}

// Point is what one unit cost at a number of keys.
type Point struct {
	Keys    int     `json:"keys"`
	Reads   float64 `json:"reads"`
	Writes  float64 `json:"writes"`
	Lists   float64 `json:"lists"`
	Seconds float64 `json:"seconds"`
	// CPU is the processor's time of the plugin alone, in seconds: without
	// Vault's, and without that of others on the machine.
	CPU float64 `json:"plugin_cpu_seconds,omitempty"`
	MiB float64 `json:"mib,omitempty"`
	// Roles are the static roles of the database engine that this was measured
	// with: fewer than keys, because it makes them one by one.
	Roles int `json:"static_roles,omitempty"`
}

// Report is all that was measured.
type Report struct {
	// Counts are operations of storage, and the engine's own time with storage
	// in memory; Server are times on a real server; Peers those of other engines.
	Counts  []Growth `json:"counts"`
	Server  []Growth `json:"server"`
	Peers   []Growth `json:"peers"`
	Missing []string `json:"missing,omitempty"`
}

// add notes a point, and returns what it is one of.
func add(all *[]Growth, operation, unit string, p Point) *Growth {
	i := slices.IndexFunc(*all, func(g Growth) bool { return g.Operation == operation })
	if i < 0 {
		i = len(*all)
		*all = append(*all, Growth{Operation: operation, Unit: unit})
	}
	g := &(*all)[i]
	g.Points = append(g.Points, p)
	slices.SortFunc(g.Points, func(a, b Point) int { return cmp.Compare(a.Keys, b.Keys) })
	return g
}

// growth is how many times as much the last point takes as the first one.
func (g Growth) growth(of func(Point) float64) float64 {
	return times(g.Points[0], g.Points[len(g.Points)-1], of)
}

// lastStep is how many times as much the last point takes as the one before it,
// which has a tenth of the keys.
func (g Growth) lastStep(of func(Point) float64) float64 {
	return times(g.Points[max(0, len(g.Points)-2)], g.Points[len(g.Points)-1], of)
}

func times(a, b Point, of func(Point) float64) float64 {
	first, last := of(a), of(b)
	if first == 0 {
		if last == 0 {
			return 1
		}
		return math.Inf(1)
	}
	return last / first
}

// cost is what so many units of an operation took: by the clock, and of the
// processor's time of the plugin.
type cost struct {
	units      int
	took, busy time.Duration
}

// median is what a unit takes, where as many rounds took more as took less.
func median(all []cost) Point {
	var seconds, cpu []float64
	for _, c := range all {
		n := float64(max(1, c.units))
		seconds, cpu = append(seconds, c.took.Seconds()/n), append(cpu, c.busy.Seconds()/n)
	}
	slices.Sort(seconds)
	slices.Sort(cpu)
	return Point{Seconds: seconds[len(all)/2], CPU: cpu[len(all)/2]}
}

func (p Point) operations() float64 { return p.Reads + p.Writes + p.Lists }
func (p Point) seconds() float64    { return p.Seconds }
func (p Point) cpu() float64        { return p.CPU }
func (p Point) mib() float64        { return p.MiB }

// used is the processor's time that each process has used, by its id.
type used map[int]time.Duration

// since is what was used after before by the processes that are there now. One
// that has begun since then counts whole, and one that has ended not at all.
func (u used) since(before used) (sum time.Duration) {
	for pid, now := range u {
		sum += now - before[pid]
	}
	return sum
}

// The most that something may grow from one number of keys to ten times as many.
const (
	mostConstant = 1.2
	mostLinear   = 12
)

// grown says what of a full run grew more than it may, in the plugin's own time,
// or was not measured.
func (r *Report) grown() []string {
	var faults []string
	if len(sizes(r.Server)) < 2 {
		faults = append(faults, "nothing was measured at two numbers of keys")
	}
	for _, g := range r.Server {
		for _, n := range sizes(r.Server) {
			i := slices.IndexFunc(g.Points, func(p Point) bool { return p.Keys == n })
			if n > g.Points[0].Keys && i < 0 || i >= 0 && g.Points[i].CPU <= 0 {
				faults = append(faults, fmt.Sprintf("%s was not measured at %s keys", g.Operation, number(n)))
			}
		}
		most := mostConstant
		if g.Linear {
			most = mostLinear
		}
		if times := g.lastStep(Point.cpu); times > most {
			faults = append(faults, fmt.Sprintf("%s takes %.2f times the plugin's own time with ten times the keys; at most %.1f", g.Operation, times, most))
		}
	}
	return faults
}

// duration is a time as people read it.
func duration(seconds float64) string {
	switch {
	case seconds == 0:
		return "0"
	case seconds < 1e-3:
		return fmt.Sprintf("%.0f µs", seconds*1e6)
	case seconds < 1:
		return fmt.Sprintf("%.1f ms", seconds*1e3)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

func number(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// sizes are the numbers of keys that a table has columns for.
func sizes(all []Growth) []int {
	var keys []int
	for _, g := range all {
		for _, p := range g.Points {
			if !slices.Contains(keys, p.Keys) {
				keys = append(keys, p.Keys)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

func table(b *strings.Builder, all []Growth, cell func(Point) string, growth func(Growth) string) {
	keys := sizes(all)
	b.WriteString("| operation | of each |")
	for _, n := range keys {
		fmt.Fprintf(b, " %s keys |", number(n))
	}
	b.WriteString(" growth |\n|---|---|" + strings.Repeat("---:|", len(keys)+1) + "\n")
	for _, g := range all {
		fmt.Fprintf(b, "| %s | %s |", g.Operation, g.Unit)
		for _, n := range keys {
			i := slices.IndexFunc(g.Points, func(p Point) bool { return p.Keys == n })
			if i < 0 {
				b.WriteString(" – |")
				continue
			}
			fmt.Fprintf(b, " %s |", cell(g.Points[i]))
		}
		if len(g.Points) < 2 {
			b.WriteString(" – |\n")
			continue
		}
		fmt.Fprintf(b, " %s |\n", growth(g))
	}
}

// Markdown is the report for people.
func (r *Report) Markdown() string {
	var b strings.Builder
	b.WriteString("# Scale\n\n")
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "Missing: %s\n\n", m)
	}
	if len(r.Counts) > 0 {
		b.WriteString("## Operations of storage\n\nReads + writes + lists. All of it is to be constant.\n\n")
		table(&b, r.Counts, func(p Point) string { return fmt.Sprintf("%.2f + %.2f + %.2f", p.Reads, p.Writes, p.Lists) },
			func(g Growth) string { return fmt.Sprintf("%.2f ×", g.growth(Point.operations)) })
		b.WriteString("\n## The engine's own time, with storage in memory\n\n")
		table(&b, r.Counts, func(p Point) string { return duration(p.Seconds) },
			func(g Growth) string { return fmt.Sprintf("%.2f ×", g.growth(Point.seconds)) })
	}
	seconds := func(p Point) string {
		text := duration(p.Seconds)
		if p.MiB > 0 {
			text += fmt.Sprintf(", %.0f MiB", p.MiB)
		}
		return text + p.withRoles()
	}
	growth := func(g Growth) string { return fmt.Sprintf("%.2f ×", g.growth(Point.seconds)) }
	if len(r.Server) > 0 {
		b.WriteString("\n## The plugin's own time, on Vault with Raft\n\nThe processor's time of the plugin's process; the median of 3 to 9 rounds, where one does not take long. Growth is that of the last step, from a tenth of the keys: at most 1.2, or 12 where it is to be linear.\n\n")
		table(&b, r.Server, func(p Point) string { return duration(p.CPU) }, func(g Growth) string {
			text := fmt.Sprintf("%.2f ×", g.lastStep(Point.cpu))
			if g.Linear {
				text += ", linear"
			}
			return text
		})
		b.WriteString("\n## On Vault with Raft\n\nWith all that Vault itself does. MiB are those of the plugin's process.\n\n")
		table(&b, r.Server, seconds, growth)
	}
	if len(r.Peers) > 0 {
		b.WriteString("\n## Other engines, on the same server in the same run\n\nThe database engine makes its static roles one by one. So there are fewer than keys: how many, stands with each number.\n\n")
		table(&b, r.Peers, seconds, growth)
	}
	if lines := r.compare(); len(lines) > 0 {
		b.WriteString("\n## Side by side\n\nAt the largest number of keys at which both were measured; a pair is the work of two engines that a user would choose between.\n\n| here | there | |\n|---|---|---|\n")
		for _, l := range lines {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

// withRoles says how many static roles something was measured with.
func (p Point) withRoles() string {
	if p.Roles == 0 {
		return ""
	}
	return fmt.Sprintf(", with %s roles", number(p.Roles))
}

// pairs are what is compared with what.
var pairs = [][2]string{
	{opImport, peerStore}, {opCreate, peerStore}, {opCreds, peerRead}, {opVerify, peerHMAC}, {opVerifyBatch, peerHMACBatch},
	{opDue, peerRotateNoop}, {opDue, peerRotatePostgres}, {opStart, peerStartNoop},
}

// compare says who is faster, and by how much.
func (r *Report) compare() []string {
	of := func(all []Growth, operation string) (g Growth) {
		if i := slices.IndexFunc(all, func(g Growth) bool { return g.Operation == operation }); i >= 0 {
			return all[i]
		}
		return g
	}
	var lines []string
	for _, pair := range pairs {
		ours, theirs := of(r.Server, pair[0]), of(r.Peers, pair[1])
		mine, other := Point{}, Point{}
		for _, p := range ours.Points {
			for _, q := range theirs.Points {
				if p.Keys == q.Keys {
					mine, other = p, q
				}
			}
		}
		if mine.Seconds == 0 || other.Seconds == 0 {
			continue
		}
		verdict := fmt.Sprintf("%.1f times as fast here", other.Seconds/mine.Seconds)
		if mine.Seconds > other.Seconds {
			verdict = fmt.Sprintf("**we lose**: %.1f times as slow here", mine.Seconds/other.Seconds)
		}
		lines = append(lines, fmt.Sprintf("| %s: %s a %s | %s: %s a %s%s | %s |", ours.Operation, duration(mine.Seconds), ours.Unit, theirs.Operation, duration(other.Seconds), theirs.Unit, other.withRoles(), verdict))
	}
	return lines
}

// panel is a plot over the number of keys, both axes logarithmic.
type panel struct {
	title string
	all   []Growth
	of    func(Point) float64
	text  func(float64) string
}

// The size of a panel, and what its axes and its legend take of it.
const panelWidth, panelHeight, panelLeft, panelRight, panelTop, panelBottom = 960, 460, 80, 340, 40, 50

var colours = []string{"#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#d68910", "#117a65", "#7b241c", "#2e4053", "#5b2c6f", "#a04000", "#0e6655", "#943126", "#5d6d7e", "#000000"}

// SVG draws the operations of storage, the plugin's own time, and its memory.
// What was not measured at two numbers of keys is left out.
func (r *Report) SVG() string {
	plain := func(unit string) func(float64) string {
		return func(v float64) string { return fmt.Sprintf("%.4g%s", v, unit) }
	}
	var drawn []string
	for _, p := range []panel{
		{"Operations of storage", r.Counts, Point.operations, plain("")},
		{"The plugin's own time, on Vault with Raft", r.Server, Point.cpu, duration},
		{"Memory of the plugin's process", r.Server, Point.mib, plain(" MiB")},
	} {
		if text := p.draw(); text != "" {
			drawn = append(drawn, fmt.Sprintf("<g transform=\"translate(0 %d)\">\n%s</g>\n", len(drawn)*panelHeight, text))
		}
	}
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s</svg>\n",
		panelWidth, max(1, len(drawn))*panelHeight, strings.Join(drawn, ""))
}

// draw returns the panel, or nothing where it would have less than two numbers
// of keys.
func (p panel) draw() string {
	var all []Growth
	most, least := 0.0, math.Inf(1)
	for _, g := range p.all {
		if slices.ContainsFunc(g.Points, func(at Point) bool { return p.of(at) > 0 }) {
			all = append(all, g)
		}
		for _, at := range g.Points {
			if v := p.of(at); v > 0 {
				most, least = max(most, v), min(least, v)
			}
		}
	}
	keys := sizes(all)
	if len(keys) < 2 {
		return ""
	}
	low, high := math.Log10(float64(keys[0])), math.Log10(float64(keys[len(keys)-1]))
	bottom := math.Floor(math.Log10(least))
	top := max(bottom+1, math.Ceil(math.Log10(most)))
	x := func(n int) float64 {
		return panelLeft + (math.Log10(float64(n))-low)/(high-low)*(panelWidth-panelLeft-panelRight)
	}
	y := func(v float64) float64 { // 0 stands at the bottom
		return panelHeight - panelBottom - (math.Log10(max(v, math.Pow(10, bottom)))-bottom)/(top-bottom)*(panelHeight-panelTop-panelBottom)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"22\" font-size=\"15\">%s, by the number of keys of the mount</text>\n", panelLeft, p.title)
	for _, n := range keys {
		fmt.Fprintf(&b, "<line x1=\"%.0f\" y1=\"%d\" x2=\"%.0f\" y2=\"%d\" stroke=\"#ddd\"/><text x=\"%.0f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x(n), panelTop, x(n), panelHeight-panelBottom, x(n), panelHeight-panelBottom+18, number(n))
	}
	for e := bottom; e <= top; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&b, "<line x1=\"%d\" y1=\"%.0f\" x2=\"%d\" y2=\"%.0f\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.0f\" text-anchor=\"end\">%s</text>\n", panelLeft, y(v), panelWidth-panelRight, y(v), panelLeft-6, y(v)+4, p.text(v))
	}
	for i, g := range all {
		colour := colours[i%len(colours)]
		var points []string
		for _, at := range g.Points {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(at.Keys), y(p.of(at))))
			fmt.Fprintf(&b, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x(at.Keys), y(p.of(at)), colour)
		}
		fmt.Fprintf(&b, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"%s\"/>\n", colour, strings.Join(points, " "))
		last := g.Points[len(g.Points)-1]
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s: %s a %s</text>\n", panelWidth-panelRight+12, panelTop+10+i*18, colour, g.Operation, p.text(p.of(last)), g.Unit)
	}
	return b.String()
}

func (r *Report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "scale.json"), append(text, '\n'), 0o600),
		os.WriteFile(filepath.Join(dir, "scale.md"), []byte(r.Markdown()), 0o600),
		os.WriteFile(filepath.Join(dir, "scale.svg"), []byte(r.SVG()), 0o600),
	)
}
