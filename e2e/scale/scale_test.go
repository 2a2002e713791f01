// SPDX-License-Identifier: MPL-2.0

package scale

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// largest is SCALE_KEYS, or what takes little time.
func largest(t *testing.T) int {
	t.Helper()
	text := os.Getenv("SCALE_KEYS")
	if text == "" {
		return 3_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1_000 {
		t.Fatalf("SCALE_KEYS must be a number from 1000, got %q", text)
	}
	return n
}

// mostForPeers is up to how many keys other engines are measured: SCALE_PEERS, or
// as many as there are.
func mostForPeers(t *testing.T) int {
	t.Helper()
	text := os.Getenv("SCALE_PEERS")
	if text == "" {
		return math.MaxInt
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("SCALE_PEERS must be a number from 0, got %q", text)
	}
	return n
}

func TestScale(t *testing.T) {
	harness.Binary(t)
	r := &Report{}
	if path := os.Getenv("SCALE_COUNTS"); path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &r.Counts); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	most := largest(t)
	write := func() { // after each, because all of them take hours
		if dir := os.Getenv("SCALE_REPORT"); dir != "" {
			if err := r.write(dir); err != nil {
				t.Errorf("write the report: %v", err)
			}
		}
	}
	// Each number of keys has a server of its own, and the peers are on it. While
	// the keys of one become due it is sealed, and the next one is measured.
	var rest []func()
	for _, n := range []int{most, most / 10, most / 100} {
		if n < 1_000 && n != most {
			continue
		}
		rest = append(rest, measure(t, r, n))
		write()
	}
	for _, finish := range rest {
		finish()
		write()
	}
	t.Logf("\n%s", r.Markdown())
	if most >= 100_000 { // fewer keys are measured for too short a time
		for _, fault := range r.grown() {
			t.Error(fault)
		}
	}
	for _, g := range r.Counts {
		if grown := g.growth(Point.operations); grown > mostConstant && g.Points[len(g.Points)-1].operations()-g.Points[0].operations() > 0.05 {
			t.Errorf("%s takes %.2f times the operations at %d keys that it takes at %d", g.Operation, grown, g.Points[len(g.Points)-1].Keys, g.Points[0].Keys)
		}
	}
}

// patience is how long something may take that 1,000,000 keys have to be moved for.
const patience = time.Hour

// manyDue is how many keys are due at once where there are as many.
const manyDue = 100_000

// measure measures most things on a server with n keys. What it returns measures
// the rest.
func measure(t *testing.T, r *Report, n int) (finish func()) {
	t.Helper()
	opts := harness.Options{
		LogLevel: "info",
		// 100,000 keys that are due are one request, which a slow disk takes its time for.
		Config: "default_max_request_duration = \"2h\"\n",
	}
	srv := harness.StartRaft(t, opts)
	plugin := harness.Plugin(t, harness.PluginOptions{Version: "v0.1.0", Commit: "scale"})
	srv.RegisterPlugin(t, harness.PluginName, plugin.Version, plugin.Path, plugin.SHA256)
	srv.EnableEngine(t, "apikeys", harness.PluginName, plugin.Version)
	l := newLoad(t, srv)
	l.must(http.MethodPost, "apikeys/roles/partner", fields{"rotation_period": "720h", "rotation_jitter": 20})
	m := &meter{load: l, nodes: []*harness.Server{srv}, r: r, keys: n}

	m.memory(m.measure(opImport, "key", 1, n, func(int) { l.importKeys("partner", "client", n) }))

	m.memory(m.measure(opStart, "start", starts, 1, func(int) { m.restartPlugin() }))
	m.measure("seal, unseal, first verify", "time", starts, 1, func(int) {
		srv.Seal(t)
		srv.Unseal(t)
		l.untilAnswered()
	})

	m.untilIdle()
	m.each("sweep, nothing due", "sweep", 50, func(int) { l.sweep() })
	minutes := 3
	if n < 10_000 { // a test waits for one
		minutes = 1
	}
	m.due(min(1_000, n/3), minutes)

	const some = 1_000
	keys := make([]string, some)
	m.each(opCreate, "key", some, func(i int) {
		keys[i] = l.text(l.must(http.MethodPost, fmt.Sprintf("apikeys/keys/created-%d", i), fields{"role": "partner"}), "api_key")
	})
	m.each("rotate", "key", some, func(i int) {
		l.must(http.MethodPost, fmt.Sprintf("apikeys/rotate/client-%07d", i*(n/some)), fields{})
	})
	m.each("verify, not cached", "key", some, func(i int) { l.verify(imported("client", i*(n/some)+n/some/2)) })
	m.each("verify, for the first time", "key", some, func(i int) { l.verify(keys[i]) }) // which is stored before it is answered
	m.each(opVerify, "key", some, func(i int) { l.verify(keys[i]) })
	const batches, batch = 10, 100
	items := make([]any, batch)
	for i := range items {
		items[i] = fields{"api_key": keys[i]}
	}
	m.measure(opVerifyBatch, "key", rounds, batches*batch, func(int) {
		for range batches {
			l.must(http.MethodPost, "apikeys/verify", fields{"batch_input": items})
		}
	})
	m.each(opCreds, "key", some, func(i int) { l.must(http.MethodGet, fmt.Sprintf("apikeys/static-creds/client-%07d", i*(n/some)), nil) })
	m.each("list a page of 100 in the middle", "page", rounds, func(int) {
		l.must(http.MethodGet, fmt.Sprintf("apikeys/keys?list=true&limit=100&after=client-%07d", n/2), nil)
	}).Linear = true // storage has no pages

	if n <= mostForPeers(t) {
		// What fails there does not end the rest.
		if !t.Run(fmt.Sprintf("peers at %d", n), func(t *testing.T) { peers(t, r, newLoad(t, srv), srv, n) }) {
			r.Missing = append(r.Missing, fmt.Sprintf("some of the other engines at %s keys: they failed", number(n)))
		}
	} else {
		r.Missing = append(r.Missing, fmt.Sprintf("other engines at %s keys, by SCALE_PEERS", number(n)))
	}
	end := func() { // the next number of keys has the machine for itself, but for sealed servers
		m.failOver(opts)
		srv.Kill(t)
	}
	if n < manyDue {
		end()
		return func() {}
	}
	ready := m.becomeDue(manyDue)
	srv.Seal(t)
	return func() {
		time.Sleep(time.Until(ready))
		srv.Unseal(t)
		l.untilAnswered()
		m.sweepDue("tick, 100,000 keys due", "at-once", manyDue, 1, func() {})
		end()
	}
}

// meter measures what a cluster with so many keys does.
type meter struct {
	*load
	nodes []*harness.Server
	r     *Report
	keys  int
}

// measure notes what each of so many units costs: the median of some rounds, in
// which do does so many of them.
func (m *meter) measure(operation, unit string, rounds, units int, do func(round int)) *Growth {
	m.t.Helper()
	var all []cost
	for round := range rounds {
		before, began := m.cpu(), time.Now()
		do(round)
		took := time.Since(began)
		all = append(all, cost{units: units, took: took, busy: m.cpu().since(before)})
	}
	return m.note(operation, unit, all)
}

// rounds is how often what is short is measured: others use the machine as well.
const rounds = 5

// starts is how often starts are measured: some take half as long again as
// others, and of three the median may be one of those.
const starts = 9

// each measures what is done so many times, one after the other.
func (m *meter) each(operation, unit string, times int, do func(i int)) *Growth {
	m.t.Helper()
	part := times / rounds
	return m.measure(operation, unit, rounds, part, func(round int) {
		for i := range part {
			do(round*part + i)
		}
	})
}

// note notes what was measured, which is more than nothing.
func (m *meter) note(operation, unit string, all []cost) *Growth {
	m.t.Helper()
	for _, c := range all {
		if c.units <= 0 || c.took <= 0 || c.busy <= 0 {
			m.t.Errorf("%s was not measured: %d times a %s, in %s, of which the plugin used %s", operation, c.units, unit, c.took, c.busy)
		}
	}
	p := median(all)
	p.Keys = m.keys
	m.t.Logf("%s keys: %s: %s a %s, of which the plugin used %s", number(m.keys), operation, duration(p.Seconds), unit, duration(p.CPU))
	return add(&m.r.Server, operation, unit, p)
}

// memory notes how much the plugin takes now, after what g has measured.
func (m *meter) memory(g *Growth) {
	m.t.Helper()
	for i := range g.Points {
		if g.Points[i].Keys == m.keys {
			g.Points[i].MiB = m.resident()
		}
	}
}

// pids are the processes of the plugin, of all nodes.
func (m *meter) pids() (all []int) {
	for _, node := range m.nodes {
		all = append(all, node.PluginPIDs(harness.PluginName)...)
	}
	return all
}

// cpu is the processor's time that the plugin has used, of all its threads: the
// first number of schedstat, in nanoseconds (Linux, Documentation/scheduler/sched-stats).
func (m *meter) cpu() used {
	m.t.Helper()
	all := used{}
	for _, pid := range m.pids() {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is well formed
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if err != nil {
				continue // the thread has ended
			}
			first, _, _ := strings.Cut(string(text), " ")
			n, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				m.t.Fatalf("%s: %v", task, err)
			}
			all[pid] += time.Duration(n)
		}
	}
	return all
}

// untilIdle waits until the plugin does next to nothing.
func (m *meter) untilIdle() {
	m.t.Helper()
	harness.Eventually(m.t, patience, 0, func() error {
		before := m.cpu()
		time.Sleep(time.Second)
		if busy := m.cpu().since(before); busy > 50*time.Millisecond {
			return fmt.Errorf("the plugin is busy for %s of a second", busy)
		}
		return nil
	})
}

// resident is the memory of the plugin, in MiB.
func (m *meter) resident() float64 {
	m.t.Helper()
	kib := int64(0)
	for _, pid := range m.pids() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				kib += n
			}
		}
	}
	if kib == 0 {
		m.t.Error("the memory of the plugin was not measured")
	}
	return float64(kib) / 1024
}

// restartPlugin kills the plugin's process and waits until a key is verified
// again: the start of the plugin, apart from Vault's unseal.
func (m *meter) restartPlugin() {
	m.t.Helper()
	for _, pid := range m.pids() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			m.t.Fatalf("kill the plugin: %v", err)
		}
	}
	m.untilAnswered()
}

// untilAnswered waits until a key of the mount is verified.
func (l *load) untilAnswered() {
	l.t.Helper()
	harness.Eventually(l.t, patience, 10*time.Millisecond, func() error {
		data, err := l.send(http.MethodPost, "apikeys/verify", fields{"api_key": imported("client", 0)})
		if err == nil && data["code"] != "VALID" {
			err = fmt.Errorf("verify answers %v", data["code"])
		}
		return err
	})
}

// sweep returns how many keys it changed.
func (l *load) sweep() int {
	l.t.Helper()
	return l.number(l.must(http.MethodPost, "apikeys/sweep", fields{}), "keys")
}

// failOver has two nodes join, and kills each leader until another one has
// verified a key.
func (m *meter) failOver(opts harness.Options) {
	m.t.Helper()
	cluster := harness.JoinCluster(m.t, m.nodes[0], 3, patience, opts)
	m.nodes = cluster.Nodes
	defer func() { // the next numbers of keys have the machine for themselves
		for _, standby := range cluster.Nodes[1:] {
			standby.Kill(m.t)
		}
	}()
	var all []cost
	for range starts {
		leader := cluster.Leader(m.t)
		other := slices.IndexFunc(cluster.Nodes, func(node *harness.Server) bool { return node != leader })
		m.addr = cluster.Nodes[other].Addr
		before, began := m.cpu(), time.Now()
		leader.Kill(m.t)
		m.untilAnswered()
		all = append(all, cost{units: 1, took: time.Since(began), busy: m.cpu().since(before)})
		leader.Start(m.t)
		leader.Unseal(m.t)
	}
	m.note("fail over: leader killed, first verify by another", "time", all)
}

// due measures sweeps for which so many keys are due at once, in so many
// minutes.
func (m *meter) due(n, minutes int) {
	m.t.Helper()
	m.dueKeys("each-minute", eachMinute, n)
	m.sweepDue(opDue, "each-minute", n, minutes, func() {
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute + 50*time.Millisecond)))
	})
}

// becomeDue imports so many keys that rotate each minute, and returns when all of
// them are due unless something rotates them before: one minute of the engine's
// index takes 5,000 keys, and the others spill into later ones. A schedule of
// longer intervals would not do: keys that are late by minutes are spread over a
// tenth of an interval, and not rotated at once.
func (m *meter) becomeDue(n int) time.Time {
	m.t.Helper()
	m.dueKeys("at-once", eachMinute, n)
	const aMinute = 5_000
	return time.Now().Add(time.Duration(n/aMinute+2) * time.Minute)
}

const eachMinute = "* * * * *"

// dueKeys imports keys of a role of their own, which rotate by its schedule.
func (m *meter) dueKeys(role, schedule string, n int) {
	m.t.Helper()
	m.must(http.MethodPost, "apikeys/roles/"+role, fields{"rotation_schedule": schedule, "overlap_period": "0", "max_accepted_versions": 2})
	m.importKeys(role, role, n)
}

// sweepDue measures so many sweeps that have all n keys of a role to rotate, each
// after a wait, and then ends the role's schedule. The plugin's own tick may take
// some of them: so the cost is divided by what the sweep took.
func (m *meter) sweepDue(operation, role string, n, rounds int, wait func()) {
	m.t.Helper()
	some := []int{0, n / 2, n - 1}
	versions := func() (all []int) {
		for _, i := range some {
			all = append(all, m.number(m.must(http.MethodGet, fmt.Sprintf("apikeys/keys/%s-%07d", role, i), nil), "current_version"))
		}
		return all
	}
	var all []cost
	for try := 0; len(all) < rounds && try < 10*rounds; try++ {
		wait()
		earlier := versions()
		before, began := m.cpu(), time.Now()
		keys := m.sweep()
		took, busy := time.Since(began), m.cpu().since(before)
		if keys*2 < n {
			continue
		}
		for i, version := range versions() {
			if version <= earlier[i] {
				m.t.Errorf("%s: a sweep that changed %d keys left key %d at version %d", operation, keys, some[i], version)
			}
		}
		all = append(all, cost{units: keys, took: took, busy: busy})
	}
	m.must(http.MethodPost, "apikeys/roles/"+role, fields{"disable_automated_rotation": true})
	m.untilIdle() // a job files them anew
	if len(all) < rounds {
		m.t.Errorf("%s: %d of %d sweeps took half of the keys", operation, len(all), rounds)
		return
	}
	m.note(operation, "key due", all)
}
