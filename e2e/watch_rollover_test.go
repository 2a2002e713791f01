// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"fmt"
	"hash/fnv"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// user is one client of a fleet: it presents its key wherever its requests
// arrive, until somebody changes the key.
type user struct {
	key      string
	source   string
	instance string
	apiKey   string
	// down is set while it does nothing.
	down bool
}

// fleet are the clients of several keys.
type fleet struct {
	m     *mount
	users []*user
}

// present lets every user that is up present its key once, in one batch. A key
// must be accepted as long as its accepted_until is not over, and no longer.
func (f *fleet) present() {
	f.m.t.Helper()
	var up []*user
	var batch []any
	for _, u := range f.users {
		if !u.down {
			up = append(up, u)
			batch = append(batch, fields("api_key", u.apiKey, "source", u.source))
		}
	}
	asked := time.Now()
	data := f.m.write("verify", fields("batch_input", batch))
	answered := time.Now()
	results, err := convert[struct {
		Results []verdict `json:"batch_results"`
	}](data)
	if err != nil || len(results.Results) != len(batch) {
		f.m.t.Fatalf("verify answered %d of %d: %v", len(results.Results), len(batch), err)
	}
	for i, v := range results.Results {
		switch {
		case v.Valid && !v.AcceptedUntil.IsZero() && asked.After(v.AcceptedUntil):
			f.m.t.Errorf("%s in %s: version %d accepted %s past its accepted_until", up[i].key, up[i].source, v.Version, asked.Sub(v.AcceptedUntil))
		case !v.Valid && (v.AcceptedUntil.IsZero() || answered.Before(v.AcceptedUntil)):
			f.m.t.Errorf("%s in %s: version %d refused with %s before its accepted_until", up[i].key, up[i].source, v.Version, v.Code)
		}
	}
}

// switchOver lets the users whom which chooses read their current key, once
// for each key, and confirm what they use.
func (f *fleet) switchOver(which func(*user) bool) {
	f.m.t.Helper()
	type current struct {
		apiKey  string
		version float64
	}
	read := map[string]current{}
	for _, u := range f.users {
		if !which(u) {
			continue
		}
		now, ok := read[u.key]
		if !ok {
			creds := f.m.read("static-creds/" + u.key)
			now.apiKey, _ = creds["api_key"].(string)
			now.version, _ = creds["version"].(float64)
			read[u.key] = now
		}
		u.apiKey, u.down = now.apiKey, false
		f.m.write("confirm/"+u.key, fields("version", now.version, "instance", u.instance))
	}
}

// flaky fails the first attempt at one message in nine, before or after it has
// read it, and never the second.
func flaky(m message, attempt int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(m.ID))
	switch n := h.Sum32() % 18; {
	case attempt > 1:
	case n == 0:
		return hangUp
	case n == 1:
		return http.StatusInternalServerError
	}
	return http.StatusNoContent
}

// Twenty keys with ten clients each, in three sources. Most change over at
// once. In the keys late-* those in ap come late, after the overlap; in stuck-*
// those in us never do; of crash one client, the only one in ap, crashes on the
// way and comes back.
func TestARolloverOfTwoHundredClientsIsWatched(t *testing.T) {
	t.Parallel()
	m := enable(t, ownRaft(t), "apikeys")
	receiver := startReceiver(t, flaky)
	receiver.hook(m, "all")
	const overlap, longest = 6 * time.Second, 25 * time.Second
	role := []any{"overlap_period", overlap.String(), "extend_until_drained", true, "drain_quiet_period", "1s", "reminders", []int{50}, "rollback_window", "1h"}
	m.role("fleet", append(role, "max_overlap_period", "1h")...)
	m.role("stuck", append(role, "max_overlap_period", longest.String())...)

	f := &fleet{m: m}
	kinds := map[string]string{} // by name of the key
	var names []string
	for i := range 20 {
		kind := []string{"prompt", "late", "stuck", "crash"}[[]int{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3}[i]]
		name, roleName := fmt.Sprintf("%s-%02d", kind, i), "fleet"
		if kind == "stuck" {
			roleName = "stuck"
		}
		names, kinds[name] = append(names, name), kind
		apiKey := m.key(name, roleName)
		for c := range 10 {
			u := &user{key: name, source: []string{"eu", "us", "ap"}[c%3], instance: fmt.Sprintf("host-%d", c), apiKey: apiKey}
			if kind == "crash" && c != 0 {
				u.source = []string{"eu", "us"}[c%2] // client 0 is alone in ap
			} else if kind == "crash" {
				u.source = "ap"
			}
			f.users = append(f.users, u)
		}
	}
	slices.Sort(names)
	crasher := f.users[slices.IndexFunc(f.users, func(u *user) bool { return u.source == "ap" && kinds[u.key] == "crash" })]
	f.present()
	m.write("confirm/"+crasher.key, fields("version", 1, "instance", crasher.instance))

	for _, name := range []string{"fleet", "stuck"} {
		m.write("roles/"+name+"/rotate", nil)
	}
	eventually(t, 30*time.Second, func() error {
		m.write("sweep", nil)
		for _, name := range names {
			if got := m.info(name).CurrentVersion; got != 2 {
				return fmt.Errorf("the current version of %s is %d", name, got)
			}
		}
		return nil
	})
	lags := func(u *user) bool {
		return kinds[u.key] == "late" && u.source == "ap" || kinds[u.key] == "stuck" && u.source == "us" || u == crasher
	}
	crasher.down = true
	f.switchOver(func(u *user) bool { return !lags(u) })
	f.present()

	// Exactly the laggards are named, and the health tells it.
	wants := map[string][]string{"prompt": {}, "late": {"ap"}, "stuck": {"us"}, "crash": {"[host-0]", "ap"}}
	settled := time.Now().Add(overlap / 8) // what was used a moment ago still counts as in use
	reaches(t, settled)
	f.present()
	if got := m.list("rollovers"); !slices.Equal(got, names) {
		t.Errorf("rollovers under way: %v, want %v", got, names)
	}
	m.leaves(names, kinds, wants)

	// Past the end of the overlap that clients were told, all are still
	// accepted: nobody is refused between a deadline and a tick.
	for _, name := range names {
		reaches(t, m.info(name).version(1).OverlapEnds)
	}
	f.present()
	m.write("sweep", nil)
	for _, name := range names {
		info := m.info(name).version(1)
		if kinds[name] == "prompt" && (info.State != "retired" || !strings.HasPrefix(info.Reason, "drained: ")) {
			t.Errorf("%s has drained, and is %s: %q", name, info.State, info.Reason)
		}
		if kinds[name] != "prompt" && (info.State != "retiring" || info.AcceptedUntil.Before(info.OverlapEnds.Add(time.Second)) || !strings.Contains(info.Reason, "not drained")) {
			t.Errorf("%s has laggards, and is %s until %s: %q", name, info.State, info.AcceptedUntil, info.Reason)
		}
	}

	// Those who come late are still taken, and so is the one that crashed.
	f.switchOver(func(u *user) bool { return lags(u) && kinds[u.key] != "stuck" })
	f.present()
	wants["late"], wants["crash"] = []string{}, []string{}
	reaches(t, time.Now().Add(overlap/8))
	m.leaves(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return kinds[n] == "prompt" }), kinds, wants)
	for _, name := range []string{"late-11", "crash-19"} {
		// The quiet time is over soon, and then nobody has to force it.
		eventually(t, 20*time.Second, func() error {
			if a := m.call(http.MethodPost, "retire/"+name, fields("version", 1)); !a.ok() {
				return fmt.Errorf("retire %s: %d %v", name, a.status, a.errs)
			}
			return nil
		})
	}

	// The others never come: what is accepted for their sake has an end.
	eventually(t, longest+20*time.Second, func() error {
		f.present()
		for _, name := range names {
			if v := m.info(name).version(1); kinds[name] == "stuck" && v.State != "retired" {
				return fmt.Errorf("%s is %s until %s", name, v.State, v.AcceptedUntil)
			}
		}
		return nil
	})
	m.write("sweep", nil)
	f.present() // refused, each of them
	for _, name := range names {
		history, kind := m.history(name), kinds[name]
		v := m.info(name).version(1)
		promoted := activations(history)[1].Time
		if most := promoted.Add(longest); kind == "stuck" && !v.AcceptedUntil.Equal(most) {
			t.Errorf("%s was accepted until %s, want %s", name, v.AcceptedUntil, most)
		}
		told := map[string]string{}
		for _, e := range history {
			told[e.Type] = e.Detail
		}
		reminder, extension := told["rollover.reminder"], told["overlap.extended"]
		switch left := map[string]string{"late": "ap", "stuck": "us", "crash": "ap"}[kind]; {
		case kind == "prompt" && (reminder != "" || extension != "" || told["version.drained"] == "" || told["rollover.completed"] == ""):
			t.Errorf("%s: reminder %q, extended %q, drained %q, completed %q", name, reminder, extension, told["version.drained"], told["rollover.completed"])
		case kind != "prompt" && (!strings.HasPrefix(extension, "not drained: ") || !strings.Contains(reminder, left+" (")):
			t.Errorf("%s: extended %q, reminder %q, which should name %s", name, extension, reminder, left)
		}
		if kind == "stuck" {
			eventually(t, 10*time.Second, func() error {
				if r := m.rollover(name); r.Health != "failed" || !slices.Equal(r.left(), []string{"us"}) {
					return fmt.Errorf("%s is %s: %v; left behind %v", name, r.Health, r.Evidence, r.left())
				}
				// A tick that came before the first refusal says completed.
				if !slices.ContainsFunc(m.history(name), func(e transition) bool { return e.Type == "rollover.failed" || e.Type == "rollover.completed" }) {
					return fmt.Errorf("%s: nobody was told how its rollover ended", name)
				}
				return nil
			})
		}
	}

	// Each event has reached the receiver under one id, in order.
	receiver.tellsHistoryOf(m, 60*time.Second, names...)
	eventually(t, 10*time.Second, func() error {
		if h := m.hookInfo("all"); h.Pending != 0 || h.Failed != 0 || h.Dropped != 0 || !h.Enabled {
			return fmt.Errorf("the webhook: %+v", h)
		}
		return nil
	})
	events := 0
	for _, name := range names {
		events += len(m.history(name))
	}
	if got := len(receiver.messages()); got != events {
		t.Errorf("the receiver was told %d events, there were %d", got, events)
	}
}

// leaves checks whom the rollovers of keys name as left behind, by their kind.
func (m *mount) leaves(names []string, kinds map[string]string, wants map[string][]string) {
	m.t.Helper()
	for _, name := range names {
		r := m.rollover(name)
		if want := wants[kinds[name]]; !slices.Equal(r.left(), want) || r.From != 1 || r.To != 2 || len(r.Sources) != 3 {
			m.t.Errorf("%s: from %d to %d, %d sources; left behind %v, want %v", name, r.From, r.To, len(r.Sources), r.left(), want)
		}
	}
}

func TestARolloverIsWatchedByCLI(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "overlap_period", "1h")
	v1 := m.key("acme", "trading")
	m.accepts(v1, "source", "eu")
	m.accepts(v1, "source", "us")
	v2, _ := m.cliJSON("write", m.path+"/rotate/acme", "reason=quarterly")["api_key"].(string)
	m.accepts(v2, "source", "eu")
	m.cli("write", m.path+"/confirm/acme", "version=2", "instance=eu-1")
	m.cli("write", m.path+"/confirm/acme", "version=1", "instance=us-1")

	if out := m.cli("list", m.path+"/rollovers"); !strings.Contains(out, "acme") {
		t.Errorf("vault list rollovers: %s", out)
	}
	r, err := convert[rolloverInfo](m.cliJSON("read", m.path+"/rollovers/acme"))
	if err != nil || r.From != 1 || r.To != 2 || r.Health != "on_track" || !slices.Contains(r.left(), "us") || !slices.Contains(r.left(), "[us-1]") || r.TrafficMoved < 0.33 || r.TrafficMoved > 0.34 {
		t.Errorf("vault read rollovers/acme: %+v, %v", r, err)
	}
	u, err := convert[useInfo](m.cliJSON("read", m.path+"/usage/acme"))
	if err != nil || u.version(1).UseCount != 2 || u.version(2).Sources["eu"].Count != 1 {
		t.Errorf("vault read usage/acme: %+v, %v", u, err)
	}
	if _, stderr, code := m.srv.CLI(t, m.token, "write", m.path+"/retire/acme", "version=1"); code == 0 || !strings.Contains(stderr, "not drained") {
		t.Errorf("retire of a version in use: exit %d, %s", code, stderr)
	}
	// Uses are told as events too, and stand in the history.
	eventually(t, 20*time.Second, func() error {
		var first []int
		for _, e := range m.history("acme") {
			if e.Type == "version.first_used" {
				first = append(first, e.Version)
			}
		}
		if !slices.Equal(first, []int{1, 2}) {
			return fmt.Errorf("versions first used: %v", first)
		}
		return nil
	})
	m.cli("write", m.path+"/retire/acme", "version=1", "force=true")
	m.rejects("RETIRED", v1, "source", "us")
	if r := m.rollover("acme"); r.Health != "failed" || !strings.Contains(strings.Join(r.Evidence, "; "), "refused 1 times after it was retired") {
		t.Errorf("after a refused use it is %s: %v", r.Health, r.Evidence)
	}
}
