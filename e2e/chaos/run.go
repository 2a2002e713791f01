// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

const (
	changers = 12
	fetchers = 6
	askers   = 6
	batch    = 60
	edges    = 2
	lives    = 3
)

// Run starts a cluster, tortures it, and reports what was seen. It fails the
// test where the run itself cannot go on; the violations are for the caller to
// judge.
func Run(t testing.TB, size Size) *Report {
	t.Helper()
	w := newWorld(t, size)
	w.begun = now()
	w.fleet = newFleet(w)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	w.startEdges(ctx, &all)
	stop := w.goOn(ctx, &all)
	all.Go(func() { w.countLeaders(ctx) })

	err := w.torture(w.rng(1), time.Now().Add(size.Time))
	if err != nil {
		t.Errorf("the run cannot go on: %v", err)
		cancel() // what is in doubt stays so: it will not be calm again
	}
	stop()
	r := &Report{Began: w.begun, Seconds: now().Sub(w.begun).Seconds(), Seed: size.Seed, Missing: w.missing, Strikes: w.strikes}
	if w.net != nil {
		r.Network = w.net.String()
	}
	for _, f := range w.usable() {
		r.Usable = append(r.Usable, f.name)
	}
	if err == nil {
		w.lastLook(ctx, r)
		r.Edges = w.edgeStats()
		r.Snapshot = w.restoreSnapshot(ctx)
	}
	cancel()
	all.Wait()
	for _, node := range w.cluster.Nodes {
		for range strings.Count(node.Log(), "another process has taken charge of this mount") {
			w.ops.add("plugin that found itself superseded")
		}
	}
	r.Summary = w.oracle.Summary()
	r.Changes = w.ops.all()
	r.Clients = map[string]Uses{}
	for kind := range kinds {
		r.Clients[kind.String()] = Uses{w.fleet.uses[kind].Load(), w.fleet.refused[kind].Load()}
	}
	r.Leased, r.Jobs = w.leased.Load(), w.jobs.Load()
	r.Events, r.Repeated = w.receiver.events.Count()
	w.receiver.mu.Lock()
	r.BadMessages = w.receiver.bad
	for _, name := range w.secrets.FindIn(w.receiver.bodies) {
		t.Errorf("a webhook message has %s in clear", name)
	}
	w.receiver.mu.Unlock()
	if text := []byte(r.Markdown()); len(w.secrets.FindIn(text)) > 0 {
		t.Error("the report has a key in clear")
	}
	return r
}

func (w *world) rng(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(w.size.Seed, stream)) }

// pacer sends so often in a second until ctx ends.
func pacer(ctx context.Context, perSecond float64) <-chan struct{} {
	c := make(chan struct{}, 8)
	if perSecond <= 0 {
		return c
	}
	go func() {
		ticker := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				select {
				case c <- struct{}{}:
				default: // all are busy
				}
			}
		}
	}()
	return c
}

func (w *world) startEdges(ctx context.Context, all *sync.WaitGroup) {
	for i := range edges {
		e, err := w.newEdge(fmt.Sprintf("edge-%d", i), i)
		if err != nil {
			w.t.Fatalf("a verifier: %v", err)
		}
		all.Go(func() { _ = e.verifier.Run(ctx) }) // it ends with ctx
		w.edges = append(w.edges, e)
	}
}

// goOn starts everything that goes on while faults strike. What it returns
// lets what is under way end.
func (w *world) goOn(parent context.Context, all *sync.WaitGroup) (stop func()) {
	// Changes end first: one that is broken off is in doubt for ever.
	use, endUse := context.WithCancel(parent)
	change, endChange := context.WithCancel(parent)
	var changing, using sync.WaitGroup
	stopping := make(chan struct{})
	pace := make(chan struct{})
	ticks := pacer(change, w.size.Rotations)
	go func() {
		defer close(pace)
		for {
			select {
			case <-stopping:
				return
			case <-ticks:
				select {
				case pace <- struct{}{}:
				case <-stopping:
					return
				}
			}
		}
	}()
	for i := range changers {
		changing.Go(func() { w.changer(change, w.rng(uint64(100+i)), pace) })
	}
	background, endBackground := context.WithCancel(parent)
	using.Go(func() { w.bulk(background) })
	using.Go(func() { w.leases(background) })
	for i := range lives {
		using.Go(func() { w.lives(background, w.rng(uint64(400+i)), fmt.Sprintf("life-%d", i)) })
	}
	using.Go(func() {
		for keys := w.of(roleScheduled); background.Err() == nil && len(keys) > 0; {
			w.watch(background, keys, time.Minute)
		}
	})
	for range fetchers {
		using.Go(func() { w.fleet.fetcher(use) })
	}
	byVault := pacer(use, w.size.Verifications/batch)
	for i := range askers {
		using.Go(func() { w.fleet.throughVault(use, w.rng(uint64(200+i)), batch, byVault) })
	}
	atEdge := pacer(use, w.size.Verifications/batch)
	for _, e := range w.edges {
		for i := range askers / 2 {
			using.Go(func() { e.verify(use, w.rng(uint64(300+i)), batch, atEdge) })
		}
	}
	return func() {
		close(stopping)
		changing.Wait()
		endChange()
		endBackground()
		endUse()
		using.Wait()
		_ = all
	}
}

// lastLook reads every key, and compares its history with what the receiver
// was told.
func (w *world) lastLook(ctx context.Context, r *Report) {
	w.keys = append(w.keys, w.living...)
	for _, k := range w.keys {
		if _, err := w.observe(ctx, k); err != nil {
			w.t.Errorf("the last look: %v", err)
		}
	}
	w.checkSchedule(ctx)
	deadline := time.Now().Add(6 * time.Minute)
	for pending := -1; pending != 0; {
		a, _ := w.calls.until(ctx, mutateTimeout, http.MethodGet, mount+"/webhooks/chaos", nil)
		var hook struct {
			Enabled bool   `json:"enabled"`
			Reason  string `json:"disabled_reason"`
			Pending int    `json:"pending"`
			Dropped int    `json:"dropped"`
			Failed  int    `json:"failed"`
		}
		if err := a.decode(&hook); err != nil {
			w.t.Errorf("read the webhook: %v", err)
			return
		}
		if pending = hook.Pending; hook.Dropped > 0 || hook.Failed > 0 || !hook.Enabled || time.Now().After(deadline) {
			w.oracle.Add(oracle.Violation{Kind: oracle.LostEvent, Key: "the webhook", Time: now(), Detail: fmt.Sprintf("%d pending, %d dropped, %d failed, enabled %v %s", pending, hook.Dropped, hook.Failed, hook.Enabled, hook.Reason)})
			break
		}
		pause(ctx, 500*time.Millisecond)
	}
	w.oracle.Add(w.receiver.events.Wrong()...)
	w.compareEvents(ctx, r)
	w.explain(ctx)
}

// compareEvents compares what was told of each key with its history. After a
// crash the tick takes an event from its key to the outbox: within a minute or two.
// Events still happen meanwhile, of uses that were counted before.
func (w *world) compareEvents(ctx context.Context, r *Report) {
	type look struct {
		key     *key
		told    int // when the history was about to be read
		history []oracle.Told
	}
	var looks []look
	for _, k := range w.keys {
		told := w.receiver.events.Told(k.id)
		history, err := w.history(ctx, k)
		if err != nil {
			w.t.Errorf("the history of %s: %v", k.name, err)
			continue
		}
		looks = append(looks, look{k, told, history})
	}
	deadline := time.Now().Add(3 * time.Minute)
	soon := func(problems func() []oracle.Violation) {
		for len(problems()) > 0 && time.Now().Before(deadline) {
			pause(ctx, 500*time.Millisecond)
		}
		w.oracle.Add(problems()...)
	}
	for _, l := range looks {
		soon(func() []oracle.Violation { return w.receiver.events.Compare(l.key.id, l.history, l.told, now()) })
		r.Compared++
	}
	soon(w.untold)
	r.Deleted = len(w.deleted)
}

// explain shows what there is to know of keys with violations.
func (w *world) explain(ctx context.Context) {
	const most = 5
	explained := map[string]bool{}
	for _, v := range w.oracle.Summary().Violations {
		if explained[v.Key] || len(explained) == most {
			continue
		}
		explained[v.Key] = true
		w.t.Logf("%s\nas the oracle was told:", v)
		for _, line := range w.oracle.Trail(v.Key) {
			w.t.Log(line)
		}
		for _, k := range w.keys {
			if k.name != v.Key && k.id != v.Key {
				continue
			}
			told, err := w.history(ctx, k)
			w.t.Logf("as the history of %s has it: %v", k.name, err)
			for _, what := range told {
				w.t.Logf("%s %s", what.Time.Format("15:04:05.000"), what.Type)
			}
		}
	}
}

// checkSchedule checks that no key was rotated by schedule before its time, nor
// later than it may. It waits until what is due by now must have been rotated.
func (w *world) checkSchedule(ctx context.Context) {
	until := now().Add(scheduleBound)
	for _, k := range w.of(roleScheduled) {
		for {
			info, err := w.observe(ctx, k)
			if err != nil {
				w.t.Errorf("the schedule of %s: %v", k.name, err)
				break
			}
			if len(info.Versions) > 0 && now().Before(until) && now().Sub(info.Versions[0].CreatedTime) > autoPeriod {
				pause(ctx, time.Second)
				continue
			}
			w.mu.Lock()
			found := periods(k.name, info, w.spells, now())
			w.mu.Unlock()
			w.oracle.Add(found...)
			break
		}
	}
}

// periods judges how far apart the versions of a key are that is rotated by
// schedule, and the last of them and now. Nobody else rotates it.
func periods(name string, info keyInfo, spells spells, now time.Time) []oracle.Violation {
	var found []oracle.Violation
	next, number := now, 0 // the newest version comes first
	for _, v := range info.Versions {
		apart, due := next.Sub(v.CreatedTime), v.CreatedTime.Add(autoPeriod+autoPeriod*autoJitter/100)
		if number != 0 && apart < autoPeriod-time.Second {
			found = append(found, oracle.Violation{Kind: oracle.DoubleRotation, Key: name, Version: number, Time: next, Detail: fmt.Sprintf("rotated %s after the version before it", apart)})
		}
		if quiet := spells.quiet(due, next, breaks); quiet > scheduleBound {
			found = append(found, oracle.Violation{Kind: oracle.LateRotation, Key: name, Version: v.Version, Time: next, Detail: fmt.Sprintf("not rotated for %s, though nothing was broken off for %s since it was due", apart, quiet)})
		}
		next, number = v.CreatedTime, v.Version
	}
	return found
}

func (w *world) edgeStats() map[string]string {
	stats := map[string]string{}
	for _, e := range w.edges {
		s := e.verifier.Stats()
		stats[e.name] = fmt.Sprintf("%d hits, %d lookups (%d failed), %d syncs (%d failed, %d resets), %d reports (%d failed), %d unavailable",
			s.Hits, s.Lookups, s.LookupFailures, s.Syncs, s.SyncFailures, s.Resets, s.Reports, s.ReportFailures, s.Unavailable)
	}
	return stats
}

// restoreSnapshot takes the mount back in time: what was made since is unknown,
// and what was there is accepted.
func (w *world) restoreSnapshot(ctx context.Context) string {
	name := "restored"
	var before, after newVersion
	err := func() error {
		leader := w.leader()
		if leader < 0 {
			return errors.New("no node leads")
		}
		client := w.cluster.Nodes[leader].Client
		if a, _ := w.calls.until(ctx, mutateTimeout, http.MethodPost, mount+"/keys/"+name, fields{"role": roleManual}); a.decode(&before) != nil {
			return fmt.Errorf("make a key: %s", a)
		}
		var snapshot bytes.Buffer
		if err := client.Sys().RaftSnapshot(&snapshot); err != nil {
			return fmt.Errorf("take a snapshot: %w", err)
		}
		if a, _ := w.calls.until(ctx, mutateTimeout, http.MethodPost, mount+"/rotate/"+name, fields{}); a.decode(&after) != nil {
			return fmt.Errorf("rotate the key: %s", a)
		}
		if err := client.Sys().RaftSnapshotRestore(&snapshot, false); err != nil {
			return fmt.Errorf("restore it: %w", err)
		}
		if err := w.whole(); err != nil {
			return err
		}
		w.secrets.Add(before.APIKey, "a key")
		w.secrets.Add(after.APIKey, "a key")
		for _, want := range []struct{ token, code string }{{before.APIKey, "VALID"}, {after.APIKey, "NOT_FOUND"}} {
			a, _ := w.calls.until(ctx, mutateTimeout, http.MethodPost, mount+"/verify", fields{"api_key": want.token})
			var got struct {
				Code string `json:"code"`
			}
			if err := a.decode(&got); err != nil {
				return fmt.Errorf("verify a key: %w", err)
			}
			if got.Code != want.code {
				return fmt.Errorf("a key is %s, want %s", got.Code, want.code)
			}
		}
		return nil
	}()
	if err != nil {
		w.t.Errorf("the restore of a snapshot: %v", err)
		return "Failed: " + err.Error() + "."
	}
	return "Taken, a key rotated, and restored: the version from before is accepted, the one from after is unknown, as docs/how-to/restore-a-snapshot.md says."
}
