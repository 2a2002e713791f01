// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

// change is one call that changes a key.
type change struct {
	what   string
	method string
	path   string
	body   fields
	intent oracle.Intent
	// again tells that the call may be repeated until it is answered: it has a
	// request_id, or doing it twice is doing it once.
	again bool
	// outcome reads what an answer says was done.
	outcome func(a answer) (oracle.Outcome, error)
}

// errNotActive says that a version was ended that had a successor already, of
// which the caller did not know: a change before was in doubt, and the key could
// not be read since. Reading it tells the oracle.
var errNotActive = errors.New("the version was not the active one")

// make makes a change to a key, whose busy lock the caller has. Where its
// outcome is in doubt, the key is read once no fault is on.
func (w *world) make(ctx context.Context, k *key, c change) {
	op := w.oracle.Begin(k.name, now(), c.intent)
	var a answer
	attempts, superseded := 1, false
	if c.again {
		a, attempts = w.calls.until(ctx, mutateTimeout, c.method, mount+"/"+c.path, c.body)
	} else {
		a = w.calls.call(ctx, mutateTimeout, c.method, mount+"/"+c.path, c.body)
	}
	switch {
	case a.ok() && attempts == 1:
		out, err := c.outcome(a)
		if err == nil {
			op.Done(a.answered, out)
			w.ops.add(c.what)
			return
		}
		if superseded = errors.Is(err, errNotActive); !superseded {
			w.t.Errorf("%s of %s: %v", c.what, k.name, err)
		}
		op.Unknown()
	case a.refused() && attempts == 1 && !w.struck(a.sent, a.answered, breaks):
		// Else Vault may have lost its plugin after that had done it, and asked
		// the next one again.
		op.Refused()
		w.ops.add(c.what + ", not allowed")
		return
	default:
		op.Unknown()
	}
	w.ops.add(c.what + ", in doubt")
	if err := w.whenCalm(ctx); err != nil {
		return // the last look at all keys settles it
	}
	info, err := w.observe(ctx, k)
	if err != nil {
		return
	}
	if superseded && info.CurrentVersion == 0 {
		w.t.Errorf("%s of %s: it made no successor, and there is none", c.what, k.name)
	}
	if info.PendingVersion != 0 {
		w.promote(ctx, k, info.CurrentVersion, info.PendingVersion)
		return
	}
	w.fetchCurrent(ctx, k, info)
}

// fetchCurrent learns the token of the active version, where its answer was
// lost.
func (w *world) fetchCurrent(ctx context.Context, k *key, info keyInfo) {
	if info.CurrentVersion == 0 || k.token(info.CurrentVersion) != "" {
		return
	}
	a, _ := w.calls.until(ctx, mutateTimeout, http.MethodGet, mount+"/static-creds/"+k.name, nil)
	var got newVersion
	if err := a.decode(&got); err == nil {
		w.noteToken(k, got.Version, got.APIKey)
	}
}

// changer makes changes to manual keys at a pace until ctx ends.
func (w *world) changer(ctx context.Context, rng *rand.Rand, pace <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, more := <-pace:
			if !more {
				return
			}
		}
		k := w.keys[rng.IntN(w.size.Manual)]
		if !k.busy.TryLock() {
			continue
		}
		w.changeOnce(ctx, rng, k)
		k.busy.Unlock()
	}
}

func (w *world) changeOnce(ctx context.Context, rng *rand.Rand, k *key) {
	current := k.now()
	old := w.stillAccepted(k, current)
	switch dice := rng.IntN(100); {
	case dice < 62:
		w.rotate(ctx, rng, k, current, time.Duration(8+rng.IntN(40))*time.Second)
	case dice < 67:
		w.rotate(ctx, rng, k, current, 0)
	case dice < 71:
		w.rotateAndPromote(ctx, rng, k, current)
	case dice < 77:
		w.revokeActive(ctx, k, current, rng.IntN(2) == 0)
	case dice < 79:
		w.disable(ctx, k)
	case old == 0:
		w.rotate(ctx, rng, k, current, 30*time.Second)
	case dice < 86:
		w.rollback(ctx, k, current, old)
	case dice < 91:
		w.extend(ctx, k, old)
	case dice < 95:
		w.end(ctx, k, old, "retire", fields{"version": old, "force": true}, false)
	default:
		w.end(ctx, k, old, "revoke", fields{"version": old, "compromised": rng.IntN(2) == 0}, true)
	}
}

// stillAccepted is an older version that is accepted for a while yet; 0 if
// there is none.
func (w *world) stillAccepted(k *key, current int) int {
	for version := current - 1; version > 0 && version > current-6; version-- {
		if w.oracle.Certain(k.name, version, now(), 6*time.Second) {
			return version
		}
	}
	return 0
}

func requestID(rng *rand.Rand) string { return fmt.Sprintf("chaos-%016x", rng.Uint64()) }

func (w *world) rotate(ctx context.Context, rng *rand.Rand, k *key, current int, overlap time.Duration) {
	intent := oracle.Intent{Supersedes: current, Overlap: overlap, Adds: true}
	what := "rotate"
	if overlap == 0 {
		intent = oracle.Intent{Ends: []int{current}, Adds: true}
		what = "rotate, cut over"
	}
	w.make(ctx, k, change{
		what: what, method: http.MethodPost, path: "rotate/" + k.name, again: true, intent: intent,
		body: fields{"overlap_period": overlap.String(), "request_id": requestID(rng)},
		outcome: func(a answer) (oracle.Outcome, error) {
			made, err := w.made(k, a)
			out := oracle.Outcome{Added: made.Version, Active: made.Version}
			switch {
			case err != nil:
			case overlap == 0:
				out.Ended = []int{current}
			case made.OverlapEnds.IsZero():
				err = fmt.Errorf("overlap_ends is missing")
			default:
				out.Until = map[int]time.Time{current: made.OverlapEnds}
			}
			return out, err
		},
	})
}

// made reads the answer of what makes a version, and learns its token.
func (w *world) made(k *key, a answer) (newVersion, error) {
	var made newVersion
	if err := a.decode(&made); err != nil {
		return made, err
	}
	if made.Version == 0 || made.APIKey == "" {
		return made, fmt.Errorf("version %d without its key", made.Version)
	}
	w.noteToken(k, made.Version, made.APIKey)
	return made, nil
}

func (w *world) rotateAndPromote(ctx context.Context, rng *rand.Rand, k *key, current int) {
	pending := 0
	w.make(ctx, k, change{
		what: "rotate, pending", method: http.MethodPost, path: "rotate/" + k.name, again: true, intent: oracle.Intent{Adds: true},
		body: fields{"overlap_period": "30s", "activation_delay": "1h", "request_id": requestID(rng)},
		outcome: func(a answer) (oracle.Outcome, error) {
			made, err := w.made(k, a)
			pending = made.Version
			k.setCurrent(current)
			return oracle.Outcome{Added: made.Version}, err
		},
	})
	if pending == 0 {
		return // it was refused; or in doubt, and is promoted already
	}
	pause(ctx, rand.N(500*time.Millisecond))
	w.promote(ctx, k, current, pending)
}

func (w *world) promote(ctx context.Context, k *key, current, pending int) {
	w.make(ctx, k, change{
		what: "promote", method: http.MethodPost, path: "promote/" + k.name, body: fields{"version": pending},
		intent: oracle.Intent{Supersedes: current, Overlap: 30 * time.Second, Activates: pending},
		outcome: func(a answer) (oracle.Outcome, error) {
			out, err := superseded(a, current)
			out.Active = pending
			k.setCurrent(pending)
			return out, err
		},
	})
}

// superseded reads until when the version that was active is accepted.
func superseded(a answer, former int) (oracle.Outcome, error) {
	var got struct {
		Superseded    int       `json:"superseded"`
		AcceptedUntil time.Time `json:"superseded_accepted_until"`
	}
	if err := a.decode(&got); err != nil {
		return oracle.Outcome{}, err
	}
	if got.Superseded != former || got.AcceptedUntil.IsZero() {
		return oracle.Outcome{}, fmt.Errorf("version %d was superseded, until %s; want %d", got.Superseded, got.AcceptedUntil, former)
	}
	return oracle.Outcome{Until: map[int]time.Time{former: got.AcceptedUntil}}, nil
}

func (w *world) rollback(ctx context.Context, k *key, current, to int) {
	w.make(ctx, k, change{
		what: "rollback", method: http.MethodPost, path: "rollback/" + k.name, body: fields{"version": to},
		intent: oracle.Intent{Supersedes: current, Overlap: manualOverlap, Activates: to},
		outcome: func(a answer) (oracle.Outcome, error) {
			out, err := superseded(a, current)
			out.Active = to
			k.setCurrent(to)
			return out, err
		},
	})
}

func (w *world) extend(ctx context.Context, k *key, version int) {
	w.make(ctx, k, change{
		what: "extend", method: http.MethodPost, path: "extend/" + k.name, body: fields{"version": version, "overlap_period": "60s"},
		intent: oracle.Intent{Revives: []int{version}},
		outcome: func(a answer) (oracle.Outcome, error) {
			var got struct {
				AcceptedUntil time.Time `json:"accepted_until"`
			}
			err := a.decode(&got)
			if err == nil && got.AcceptedUntil.IsZero() {
				err = fmt.Errorf("accepted_until is missing")
			}
			return oracle.Outcome{Until: map[int]time.Time{version: got.AcceptedUntil}}, err
		},
	})
}

func (w *world) end(ctx context.Context, k *key, version int, verb string, body fields, final bool) {
	w.make(ctx, k, change{
		what: verb, method: http.MethodPost, path: verb + "/" + k.name, body: body, again: final,
		intent: oracle.Intent{Ends: []int{version}},
		outcome: func(answer) (oracle.Outcome, error) {
			return oracle.Outcome{Ended: []int{version}, Final: final}, nil
		},
	})
}

func (w *world) revokeActive(ctx context.Context, k *key, current int, compromised bool) {
	w.make(ctx, k, change{
		what: "revoke, rotating", method: http.MethodPost, path: "revoke/" + k.name, again: true,
		body:   fields{"version": current, "rotate": true, "compromised": compromised},
		intent: oracle.Intent{Ends: []int{current}, Adds: true},
		outcome: func(a answer) (oracle.Outcome, error) {
			var got newVersion
			if err := a.decode(&got); err == nil && got.Version == 0 {
				return oracle.Outcome{}, errNotActive
			}
			made, err := w.made(k, a)
			return oracle.Outcome{Added: made.Version, Active: made.Version, Ended: []int{current}, Final: true}, err
		},
	})
}

// disable disables a key for a moment: all its versions are refused meanwhile.
func (w *world) disable(ctx context.Context, k *key) {
	var all []int
	for version := 1; version <= k.now()+2; version++ {
		all = append(all, version)
	}
	enabled := func(yes bool) change {
		return change{
			method: http.MethodPatch, path: "keys/" + k.name, again: true, body: fields{"enabled": yes},
			outcome: func(answer) (oracle.Outcome, error) { return oracle.Outcome{}, nil },
		}
	}
	off := enabled(false)
	off.what, off.intent = "disable", oracle.Intent{Ends: all}
	off.outcome = func(answer) (oracle.Outcome, error) { return oracle.Outcome{Ended: all}, nil }
	w.make(ctx, k, off)
	pause(ctx, rand.N(time.Second))
	// What the key's versions are now is seen by reading it.
	op := w.oracle.Begin(k.name, now(), oracle.Intent{Revives: all})
	if a, attempts := w.calls.until(ctx, mutateTimeout, http.MethodPatch, mount+"/keys/"+k.name, fields{"enabled": true}); !a.ok() || attempts > 1 {
		op.Unknown()
		if w.whenCalm(ctx) != nil {
			return
		}
	}
	w.ops.add("enable")
	if _, err := w.observe(ctx, k); err != nil && ctx.Err() == nil {
		w.t.Errorf("after it was enabled: %v", err)
	}
}

// bulk rotates the whole role of the bulk keys, again and again.
func (w *world) bulk(ctx context.Context) {
	keys := w.of(roleBulk)
	for len(keys) > 0 && ctx.Err() == nil {
		before := map[*key]int{}
		for _, k := range keys {
			if info, err := w.observe(ctx, k); err == nil {
				before[k] = info.CurrentVersion
			}
		}
		a := w.calls.call(ctx, mutateTimeout, http.MethodPost, mount+"/roles/"+roleBulk+"/rotate", fields{})
		known := a.ok()
		if !known {
			w.ops.add("rotate a role, in doubt")
			if w.whenCalm(ctx) != nil {
				return
			}
		}
		var job struct {
			State                    string `json:"state"`
			Rotated, Failed, Skipped int
		}
		for job.State != "finished" && ctx.Err() == nil {
			pause(ctx, time.Second)
			if a := w.calls.call(ctx, mutateTimeout, http.MethodGet, mount+"/roles/"+roleBulk+"/rotate", nil); a.decode(&job) != nil && a.refused() {
				break // there was never one: the call in doubt was not obeyed
			}
		}
		if ctx.Err() != nil {
			return
		}
		w.jobs.Add(1)
		w.ops.add("rotate a role")
		for _, k := range keys {
			info, err := w.observe(ctx, k)
			if err != nil || before[k] == 0 || !known {
				continue
			}
			switch grown := info.CurrentVersion - before[k]; {
			case grown > 1:
				w.oracle.Add(oracle.Violation{Kind: oracle.DoubleRotation, Key: k.name, Version: info.CurrentVersion, Time: now(), Detail: fmt.Sprintf("one job took it from version %d", before[k])})
			case grown < 1 && job.Failed == 0:
				w.oracle.Add(oracle.Violation{Kind: oracle.LostRotation, Key: k.name, Version: info.CurrentVersion, Time: now(), Detail: "a job that says that none failed left it out"})
			}
		}
		// An overlap that is over keeps the window from filling up.
		for end := now().Add(bulkOverlap / 2); now().Before(end) && ctx.Err() == nil; {
			w.watch(ctx, keys, 15*time.Second)
		}
	}
}

// watch reads keys that others change, so that the oracle knows how they are.
func (w *world) watch(ctx context.Context, keys []*key, over time.Duration) {
	for _, k := range keys {
		_, _ = w.observe(ctx, k) // it fails only where ctx ends
		pause(ctx, over/time.Duration(len(keys)))
	}
}

func (w *world) of(role string) []*key {
	var keys []*key
	for _, k := range w.keys {
		if k.role == role && k.name[:len(role)] == role {
			keys = append(keys, k)
		}
	}
	return keys
}

// leases makes leased keys, lets them be used, and revokes their leases.
func (w *world) leases(ctx context.Context) {
	for ctx.Err() == nil {
		a := w.calls.call(ctx, mutateTimeout, http.MethodGet, mount+"/creds/"+roleLeased, nil)
		var made newVersion
		if a.decode(&made) != nil || made.APIKey == "" {
			pause(ctx, time.Second)
			continue
		}
		k := &key{name: made.KeyID, id: made.KeyID, role: roleLeased, tokens: map[int]string{}}
		w.noteToken(k, 1, made.APIKey)
		w.oracle.Born(k.name, 1, a.sent, a.answered)
		w.leased.Add(1)
		w.fleet.join(k, leftover)
		pause(ctx, 2*time.Second+rand.N(10*time.Second))
		op := w.oracle.Begin(k.name, now(), oracle.Intent{Ends: []int{1}})
		gone, _ := w.calls.until(ctx, mutateTimeout, http.MethodPost, "sys/leases/revoke", fields{"lease_id": made.LeaseID, "sync": true})
		if gone.ok() {
			op.Done(gone.answered, oracle.Outcome{Ended: []int{1}, Final: true})
			w.ops.add("revoke a lease")
		}
		pause(ctx, 3*time.Second) // it is used for a while yet
		w.fleet.leave(k)
	}
}

// history reads what happened to a key, oldest first.
func (w *world) history(ctx context.Context, k *key) ([]oracle.Told, error) {
	a, _ := w.calls.until(ctx, mutateTimeout, http.MethodGet, mount+"/history/"+k.name, nil)
	var got struct {
		Transitions []struct {
			Time time.Time `json:"time"`
			Type string    `json:"type"`
		} `json:"transitions"`
	}
	if err := a.decode(&got); err != nil {
		return nil, err
	}
	var told []oracle.Told
	for i := len(got.Transitions) - 1; i >= 0; i-- {
		told = append(told, oracle.Told{Type: got.Transitions[i].Type, Time: got.Transitions[i].Time})
	}
	return told, nil
}
