// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// fault is something bad that can be healed. strike returns what heals it; it
// is called by the goroutine of the test.
type fault struct {
	name  string
	reach reach
	// needs names what the machine must allow; nil is nothing.
	needs func(w *world) bool
	// most is how long it lasts at most, least at least.
	least, most time.Duration
	strike      func(w *world, hold time.Duration) (heal func() error, err error)
}

// Strike is a fault that struck.
type Strike struct {
	Fault  string    `json:"fault"`
	Time   time.Time `json:"time"`
	Lasted float64   `json:"lasted_seconds"`
	// Healed is how long it took, after it was over, until the cluster was
	// whole again.
	Healed float64 `json:"healed_seconds"`
}

func nothing() error { return nil }

func hasNet(w *world) bool   { return w.net != nil }
func hasDisks(w *world) bool { return len(w.disks) == nodes }
func hasEdges(w *world) bool { return len(w.edges) > 0 }

// leader is the number of the active node; -1 if there is none.
func (w *world) leader() int {
	for range 50 {
		for i, node := range w.cluster.Nodes {
			if node.Active() {
				return i
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return -1
}

// onLeader strikes the active node.
func onLeader(do func(w *world, leader int, hold time.Duration) (func() error, error)) func(*world, time.Duration) (func() error, error) {
	return func(w *world, hold time.Duration) (func() error, error) {
		leader := w.leader()
		if leader < 0 {
			return nil, errors.New("no node leads")
		}
		return do(w, leader, hold)
	}
}

// other is a node that is not this one.
func other(node int) int { return (node + 1 + rand.IntN(nodes-1)) % nodes }

// bringUp starts nodes that have ended, and unseals them. That all is well again
// is for whole to tell.
func (w *world) bringUp(which ...*harness.Server) error {
	for _, node := range which {
		if !node.Running() {
			node.Kill(w.t) // what was left of it
			node.Start(w.t)
		}
	}
	var errs error
	for _, node := range which {
		_, err := node.Client.Sys().Unseal(node.UnsealKey)
		errs = errors.Join(errs, err)
	}
	return errs
}

// restartAll kills all nodes and starts them again: none serves before there is
// a quorum.
func (w *world) restartAll() error {
	for _, node := range w.cluster.Nodes {
		node.Kill(w.t)
	}
	return w.bringUp(w.cluster.Nodes...)
}

func (w *world) kill(node int) (func() error, error) {
	w.cluster.Nodes[node].Kill(w.t)
	return func() error { return w.bringUp(w.cluster.Nodes[node]) }, nil
}

// plugins returns what sends signals to the plugins of a node. To have none is an
// error: nothing would be struck.
func (w *world) plugins(node int) (send func(syscall.Signal) error, err error) {
	pids := w.cluster.Nodes[node].PluginPIDs(harness.PluginName)
	if len(pids) == 0 {
		return nil, errors.New("the leader runs no plugin now")
	}
	return func(sig syscall.Signal) error {
		var errs error
		for _, pid := range pids {
			errs = errors.Join(errs, syscall.Kill(pid, sig))
		}
		return errs
	}, nil
}

func (w *world) signal(node int, plugin bool) (func() error, error) {
	send := w.cluster.Nodes[node].Signal
	if plugin {
		var err error
		if send, err = w.plugins(node); err != nil {
			return nil, err
		}
	}
	if err := send(syscall.SIGSTOP); err != nil {
		return nil, err
	}
	return func() error {
		err := send(syscall.SIGCONT)
		if plugin && errors.Is(err, syscall.ESRCH) {
			return nil // Vault gave it up meanwhile
		}
		return err
	}, nil
}

// faults are all that there are.
var faults = []fault{
	{name: "kill -9 the leader", reach: breaks, least: 0, most: 4 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) { return w.kill(leader) })},
	{name: "kill -9 a standby", reach: aside, least: 0, most: 4 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) { return w.kill(other(leader)) })},
	{name: "kill -9 both standbys", reach: twoLeaders, least: time.Second, most: 5 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		var heals []func() error
		for i := range nodes {
			if i != leader {
				heal, _ := w.kill(i)
				heals = append(heals, heal)
			}
		}
		return func() error { return errors.Join(heals[0](), heals[1]()) }, nil
	})},
	{name: "kill -9 the plugin", reach: breaks, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		send, err := w.plugins(leader)
		if err != nil {
			return nil, err
		}
		return nothing, send(syscall.SIGKILL)
	})},
	{name: "step down", reach: breaks, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		return nothing, w.cluster.Nodes[leader].Client.Sys().StepDown()
	})},
	{name: "seal the leader", reach: breaks, least: time.Second, most: 6 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		node := w.cluster.Nodes[leader]
		return func() error { return w.bringUp(node) }, node.Client.Sys().Seal()
	})},
	{name: "SIGTERM the leader", reach: breaks, least: 0, most: 3 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		node := w.cluster.Nodes[leader]
		node.Stop(w.t)
		return func() error { return w.bringUp(node) }, nil
	})},
	{name: "SIGSTOP the leader", reach: twoLeaders, least: 2 * time.Second, most: 20 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) { return w.signal(leader, false) })},
	{name: "SIGSTOP the plugin", reach: breaks, least: 2 * time.Second, most: 20 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) { return w.signal(leader, true) })},
	{name: "full disk of the leader", reach: twoLeaders, needs: hasDisks, least: 4 * time.Second, most: 10 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		d := w.disks[leader]
		return func() error {
			if err := d.empty(); err != nil {
				return err
			}
			// A Vault whose Raft could not write may have ended, or go on as if it
			// led, though another one does. People restart it.
			node := w.cluster.Nodes[leader]
			if w.wholeWithin(5*time.Second) != nil {
				w.ops.add("node restarted after its disk was full")
				node.Kill(w.t)
				return w.bringUp(node)
			}
			return nil
		}, d.fill()
	})},
	{name: "hanging disk of the leader", reach: twoLeaders, needs: hasDisks, least: 2 * time.Second, most: 15 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		return w.disks[leader].thaw, w.disks[leader].freeze()
	})},
	{name: "slow disk of the leader", reach: twoLeaders, needs: hasDisks, least: 4 * time.Second, most: 10 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		return w.slow(w.disks[leader]), nil
	})},
	{name: "leader cut from the other nodes", reach: twoLeaders, needs: hasNet, least: 3 * time.Second, most: 12 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		return func() error { return w.net.setLink(leader, toNodes, true) }, w.net.setLink(leader, toNodes, false)
	})},
	{name: "leader cut from all", reach: twoLeaders, needs: hasNet, least: 3 * time.Second, most: 12 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		both := func(up bool) error {
			return errors.Join(w.net.setLink(leader, toNodes, up), w.net.setLink(leader, toClients, up))
		}
		return func() error { return both(true) }, both(false)
	})},
	{name: "leader and a standby cut from each other", reach: twoLeaders, needs: hasNet, least: 3 * time.Second, most: 12 * time.Second, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		peer := other(leader)
		return func() error { return w.net.setPair(leader, peer, true) }, w.net.setPair(leader, peer, false)
	})},
	{name: "upgrade or downgrade in place", reach: breaks, strike: onLeader(func(w *world, leader int, _ time.Duration) (func() error, error) {
		version := newer
		if w.version.Load() == newer {
			version = older
		}
		w.version.Store(version)
		client := w.cluster.Nodes[leader].Client
		if err := client.Sys().TuneMountAllowNil(mount, api.TuneMountConfigInput{PluginVersion: &version}); err != nil {
			return nothing, err
		}
		_, err := client.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{mount + "/"}})
		return nothing, err
	})},
	{name: "wall clock of a verifier leaps", reach: aside, needs: hasEdges, least: 5 * time.Second, most: 15 * time.Second, strike: func(w *world, _ time.Duration) (func() error, error) {
		e := w.edges[rand.IntN(len(w.edges))]
		e.skew.Store(int64(2*rand.N(24*time.Hour) - 24*time.Hour))
		return func() error { e.skew.Store(0); return nil }, nil
	}},
	{name: "way of a verifier cut", reach: aside, needs: hasEdges, least: 10 * time.Second, most: 30 * time.Second, strike: func(w *world, _ time.Duration) (func() error, error) {
		e := w.edges[rand.IntN(len(w.edges))]
		e.way.cut.Store(true)
		return func() error { e.way.cut.Store(false); return nil }, nil
	}},
}

// slow makes a disk hang most of the time, until it is healed.
func (w *world) slow(d *disk) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		var errs error
		for ctx.Err() == nil && errs == nil {
			errs = d.freeze()
			pause(ctx, 250*time.Millisecond)
			errs = errors.Join(errs, d.thaw())
			pause(ctx, 60*time.Millisecond)
		}
		done <- errs
	}()
	return func() error {
		cancel()
		return <-done
	}
}

// whole waits until all nodes serve, one leads, and the engine answers through
// each of them.
func (w *world) whole() error { return w.wholeWithin(healTimeout) }

func (w *world) wholeWithin(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		err := w.isWhole()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *world) isWhole() error {
	active := 0
	for i, node := range w.cluster.Nodes {
		if !node.Running() {
			return fmt.Errorf("node %d has ended", i)
		}
		if !node.Serving() {
			return fmt.Errorf("node %d does not serve", i)
		}
		if node.Active() {
			active++
		}
		a := w.calls.through(context.Background(), node, 5*time.Second, http.MethodGet, mount+"/static-creds/"+w.keys[0].name, nil)
		if !a.ok() && !a.refused() {
			return fmt.Errorf("through node %d: %s", i, a)
		}
	}
	if active != 1 {
		return fmt.Errorf("%d nodes lead", active)
	}
	return nil
}

// countLeaders counts the moments, two a second, in which more than one node says
// that it is active.
func (w *world) countLeaders(ctx context.Context) {
	for ctx.Err() == nil {
		active := 0
		for _, node := range w.cluster.Nodes {
			if w.calls.through(ctx, node, 2*time.Second, http.MethodGet, "sys/health", nil).status == http.StatusOK {
				active++
			}
		}
		if active > 1 {
			w.ops.add("half second in which two nodes said that they are active")
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// usable are the faults that the machine allows, and that were asked for.
func (w *world) usable() []fault {
	var usable []fault
	for _, f := range faults {
		if (f.needs == nil || f.needs(w)) && (w.size.Faults == nil || w.size.Faults.MatchString(f.name)) {
			usable = append(usable, f)
		}
	}
	return usable
}

// restEvery is after how many rounds of all faults there is a rest, in which what
// waits for the tick gets its turn: it comes within a minute of a start, and most
// faults make one sooner.
const (
	restEvery = 2
	rest      = scheduleBound + 20*time.Second
)

// torture lets one fault after the other strike, all kinds in turn, until the
// time is over.
func (w *world) torture(rng *rand.Rand, until time.Time) error {
	usable := w.usable()
	if len(usable) == 0 {
		return errors.New("no fault is left")
	}
	short := w.size.Time < 5*time.Minute
	for round := 1; ; round++ {
		rng.Shuffle(len(usable), func(i, j int) { usable[i], usable[j] = usable[j], usable[i] })
		for _, f := range usable {
			if !time.Now().Before(until) {
				return nil
			}
			hold := f.least
			if f.most > f.least {
				hold += time.Duration(rng.Int64N(int64(f.most - f.least)))
			}
			if short {
				hold = min(hold, max(f.least, 3*time.Second))
			}
			if err := w.one(f, hold); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			// Time to recover, in which all must go well.
			time.Sleep(3*time.Second + time.Duration(rng.Int64N(int64(3*time.Second))))
		}
		if round%restEvery == 0 && w.size.Faults == nil {
			time.Sleep(max(0, min(rest, time.Until(until))))
		}
	}
}

func (w *world) one(f fault, hold time.Duration) error {
	w.spellBegins(f.reach)
	began := now()
	heal, err := f.strike(w, hold)
	if err == nil {
		time.Sleep(hold)
	}
	struckFor, healing := now().Sub(began), now()
	if heal != nil {
		if healErr := heal(); healErr != nil { // such as a node that could not be unsealed yet
			w.t.Logf("%s: heal: %v", f.name, healErr)
		}
	}
	if err := w.whole(); err != nil {
		// Vault itself may lose its way: a node that wins an election back before
		// it has noticed that it lost one leads, and tells nobody. People restart it.
		w.t.Logf("%s: not whole again after %s, restarting the nodes: %v", f.name, healTimeout, err)
		w.ops.add("nodes restarted because Vault did not recover by itself")
		if err := w.restartAll(); err != nil {
			return err
		}
		if err := w.whole(); err != nil {
			return fmt.Errorf("not whole again after %s and a restart of all nodes: %w", healTimeout, err)
		}
	}
	w.spellEnds()
	if err != nil {
		// A node that was just busy with something else; the next one strikes.
		w.t.Logf("%s did not strike: %v", f.name, err)
		w.ops.add("fault that did not strike")
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.strikes = append(w.strikes, Strike{Fault: f.name, Time: began, Lasted: struckFor.Seconds(), Healed: now().Sub(healing).Seconds()})
	w.t.Logf("%s for %.1f s, whole again after %.1f s", f.name, struckFor.Seconds(), now().Sub(healing).Seconds())
	return nil
}
