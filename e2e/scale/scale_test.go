// SPDX-License-Identifier: MPL-2.0

package scale

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
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
	// Each number of keys has a server of its own, and the peers are on it.
	for _, n := range []int{most / 100, most / 10, most} {
		if n < 1_000 && n != most {
			continue
		}
		measure(t, r, n)
	}
	t.Logf("\n%s", r.Markdown())
	if dir := os.Getenv("SCALE_REPORT"); dir != "" {
		if err := r.write(dir); err != nil {
			t.Errorf("write the report: %v", err)
		}
	}
	for _, g := range r.Counts {
		if grown := g.growth(Point.operations); grown > 1.2 && g.Points[len(g.Points)-1].operations()-g.Points[0].operations() > 0.05 {
			t.Errorf("%s takes %.2f times the operations at %d keys that it takes at %d", g.Operation, grown, g.Points[len(g.Points)-1].Keys, g.Points[0].Keys)
		}
	}
}

// measure measures everything on a server with n keys.
func measure(t *testing.T, r *Report, n int) {
	t.Helper()
	srv := harness.StartRaft(t, harness.Options{
		LogLevel: "info",
		// A batch of 1,000 is some 6,000 writes, which a slow disk takes its time for.
		Config: "default_max_request_duration = \"30m\"\n",
	})
	defer srv.Kill(t) // the next one has the machine for itself
	plugin := harness.Plugin(t, harness.PluginOptions{Version: "v0.1.0", Commit: "scale"})
	srv.RegisterPlugin(t, harness.PluginName, plugin.Version, plugin.Path, plugin.SHA256)
	srv.EnableEngine(t, "apikeys", harness.PluginName, plugin.Version)
	l := newLoad(t, srv)
	l.must(http.MethodPost, "apikeys/roles/partner", fields{"rotation_period": "720h", "rotation_jitter": 20})
	l.must(http.MethodPost, "apikeys/roles/due", fields{"rotation_schedule": "* * * * *", "overlap_period": "0", "disable_automated_rotation": true, "max_accepted_versions": 2})
	note := func(operation, unit string, units int, took time.Duration) *Point {
		add(&r.Server, operation, unit, Point{Keys: n, Seconds: took.Seconds() / float64(units)})
		points := r.Server[index(r.Server, operation)].Points
		return &points[len(points)-1]
	}

	began := time.Now()
	l.importKeys("partner", "client", n)
	note(opImport, "key", n, time.Since(began)).MiB = l.resident(srv)

	note(opStart, "start", 1, l.killPlugin(srv)).MiB = l.resident(srv)

	began = time.Now()
	srv.Seal(t)
	srv.Unseal(t)
	l.untilAnswered()
	note("fail over: seal, unseal, first verify", "time", 1, time.Since(began))

	note("sweep, nothing due", "sweep", 1, l.sweep(0))
	dues := []int{min(1_000, n/3)}
	if n >= 100_000 {
		dues = append(dues, 100_000)
	}
	for i, due := range dues {
		l.importKeys("due", fmt.Sprintf("due%d", i), due)
	}
	all := 0
	for _, due := range dues {
		all += due
	}
	took, rotated := l.rotateDue(all)
	note(opDue, "key due", max(rotated, 1), took)
	t.Logf("%d keys: %d of %d were rotated by the sweep, in %s", n, rotated, all, took)

	const some = 200
	keys := make([]string, some)
	note(opCreate, "key", some, l.each(some, func(i int) {
		keys[i] = l.text(l.must(http.MethodPost, fmt.Sprintf("apikeys/keys/created-%d", i), fields{"role": "partner"}), "api_key")
	}))
	note("rotate", "key", some, l.each(some, func(i int) {
		l.must(http.MethodPost, fmt.Sprintf("apikeys/rotate/client-%07d", i*(n/some)), fields{})
	}))
	note("verify, not cached", "key", some, l.each(some, func(i int) {
		l.verify(imported("client", i*(n/some)+1))
	}))
	note(opVerify, "key", some, l.each(some, func(i int) { l.verify(keys[i]) }))
	items := make([]any, 100)
	for i := range items {
		items[i] = fields{"api_key": keys[i]}
	}
	note(opVerifyBatch, "key", 20*len(items), l.each(20, func(int) { l.must(http.MethodPost, "apikeys/verify", fields{"batch_input": items}) }))
	note(opCreds, "key", some, l.each(some, func(i int) { l.must(http.MethodGet, fmt.Sprintf("apikeys/static-creds/client-%07d", i*(n/some)), nil) }))
	note("list a page of 100 in the middle", "page", 3, l.each(3, func(int) {
		l.must(http.MethodGet, fmt.Sprintf("apikeys/keys?list=true&limit=100&after=client-%07d", n/2), nil)
	}))

	peers(t, r, l, srv, n)
}

func index(all []Growth, operation string) int {
	for i, g := range all {
		if g.Operation == operation {
			return i
		}
	}
	return -1
}

// killPlugin kills the plugin's process and returns how long it takes until a
// key is verified again: the start of the plugin, apart from Vault's unseal.
func (l *load) killPlugin(srv *harness.Server) time.Duration {
	l.t.Helper()
	for _, pid := range srv.PluginPIDs(harness.PluginName) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			l.t.Fatalf("kill the plugin: %v", err)
		}
	}
	began := time.Now()
	l.untilAnswered()
	return time.Since(began)
}

// untilAnswered waits until a key of the mount is verified.
func (l *load) untilAnswered() {
	l.t.Helper()
	harness.Eventually(l.t, 5*time.Minute, 10*time.Millisecond, func() error {
		data, err := l.send(http.MethodPost, "apikeys/verify", fields{"api_key": imported("client", 0)})
		if err == nil && data["code"] != "VALID" {
			err = fmt.Errorf("verify answers %v", data["code"])
		}
		return err
	})
}

func (l *load) sweep(want int) time.Duration {
	l.t.Helper()
	began := time.Now()
	if got := l.number(l.must(http.MethodPost, "apikeys/sweep", fields{}), "keys"); got != want {
		l.t.Logf("a sweep changed %d keys, not %d", got, want)
	}
	return time.Since(began)
}

// rotateDue lets the keys of the role "due" become due at once, and sweeps. The
// plugin's own tick may take some of them: so it tells how many the sweep took.
func (l *load) rotateDue(all int) (took time.Duration, rotated int) {
	l.t.Helper()
	l.must(http.MethodPost, "apikeys/roles/due", fields{"disable_automated_rotation": false})
	// The role's schedule changed: a job files its keys anew.
	harness.Eventually(l.t, 10*time.Minute, 200*time.Millisecond, func() error {
		data, err := l.send(http.MethodGet, "apikeys/keys/"+fmt.Sprintf("due0-%07d", min(all, 1_000)/2), nil)
		if err == nil && data["next_vault_rotation"] == nil {
			err = fmt.Errorf("not filed yet")
		}
		return err
	})
	for rotated*2 < all && took < 10*time.Minute {
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute + 50*time.Millisecond)))
		began := time.Now()
		keys := l.number(l.must(http.MethodPost, "apikeys/sweep", fields{}), "keys")
		if keys > 0 {
			took += time.Since(began)
			rotated += keys
		}
		if keys == 0 && took == 0 && time.Since(began) > time.Minute {
			break
		}
	}
	l.must(http.MethodPost, "apikeys/roles/due", fields{"disable_automated_rotation": true})
	return took, rotated
}

// resident is the memory of the plugin's process, in MiB.
func (l *load) resident(srv *harness.Server) float64 {
	l.t.Helper()
	for _, pid := range srv.PluginPIDs(harness.PluginName) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				return kib / 1024
			}
		}
	}
	return 0
}
