// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// keyAsk is a request about the one key, and keyAnswer what came of it.
type keyAsk struct {
	verb    string
	version int
	flag    bool
	token   string
}

type keyAnswer struct {
	status, version int
	code, token     string
}

// linearRole never prunes, so that every version stays to be seen. Its keys
// rotate a day after they were made, at linearNow in a tick.
var linearRole = refRole{period: 24 * time.Hour, overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 4, keep: 100, scopes: []string{"a"}}

var linearNow = epoch.Add(24*time.Hour + 2*time.Minute)

// step is what the reference model makes of a request. It tells whether the
// answer can have been given in this state, and the state after it.
func step(k *refKey, in keyAsk, out keyAnswer) (bool, *refKey) {
	before, next := k, k.clone()
	ok, made := true, (*refVersion)(nil)
	switch in.verb {
	case "rotate":
		made, ok = next.rotate(linearNow, linearRole, rotation{force: in.flag})
	case "delay":
		delay := time.Hour
		made, ok = next.rotate(linearNow, linearRole, rotation{force: in.flag, delay: &delay})
	case "promote":
		if ok = next.in("pending") != nil; ok {
			next.promote(linearNow, linearRole)
		}
	case "rollback":
		ok = next.rollback(linearNow, linearRole, in.version, false, in.flag)
	case "revoke":
		made, ok = next.revoke(linearNow, linearRole, in.version, false, in.flag, true, false)
	case "extend":
		ok = next.extend(linearNow, linearRole, in.version, 3*time.Hour)
	case "retire":
		ok = next.retireNow(linearNow, in.version)
	case "tick":
		// Where somebody has just changed the key it is filed anew, for a later
		// minute: a tick may leave it alone, but rotates nothing that is not due.
		if out.version == 0 {
			return true, before
		}
		due := k.due(linearNow, linearRole)
		made, ok = next.rotate(linearNow, linearRole, rotation{})
		return due && ok && made.number == out.version, next
	case "verify":
		ref := &reference{roles: map[string]refRole{"r": linearRole}, keys: map[string]*refKey{"acme": k}}
		code, _, v := ref.verdict(linearNow, refAsk{token: in.token})
		return out.status == http.StatusOK && code == out.code && (v == nil || v.number == out.version), before
	case "static-creds":
		status, v := k.served(linearNow)
		return status == out.status && (v == nil || v.number == out.version && (v.token == "" || v.token == out.token)), before
	}
	if !ok {
		return out.status == http.StatusBadRequest, before
	}
	if made != nil {
		if made.number != out.version || out.token == "" {
			return false, before
		}
		made.token = out.token
	}
	return out.status == http.StatusOK, next
}

// keyStates remembers what each request makes of each state: a search comes by
// the same few states in thousands of orders, and can take longer than a test has
// without. States that are equal have one address.
type keyStates struct {
	steps map[keyStep]keyAfter
	known map[string]*refKey
}

type keyStep struct {
	state  *refKey
	in     keyAsk
	answer keyAnswer
}

type keyAfter struct {
	ok    bool
	state *refKey
}

func (s *keyStates) step(k *refKey, in keyAsk, out keyAnswer) (bool, *refKey) {
	asked := keyStep{k, in, out}
	after, done := s.steps[asked]
	if !done {
		after.ok, after.state = step(k, in, out)
		after.state = s.one(after.state)
		s.steps[asked] = after
	}
	return after.ok, after.state
}

// one returns the one key that stands for all in this state.
func (s *keyStates) one(k *refKey) *refKey {
	flat := *k
	flat.versions = nil
	name := fmt.Sprintf("%#v", flat)
	for _, v := range k.versions {
		name += fmt.Sprintf("%#v", *v)
	}
	if known := s.known[name]; known != nil {
		return known
	}
	s.known[name] = k
	return k
}

// TestOneKeyIsLinearizable has several clients change and use one key at once,
// while a tick does what is due, on a storage that lets them overtake each
// other. There is an order of their requests, each between its beginning and its end,
// in which the reference model gives the same answers.
func TestOneKeyIsLinearizable(t *testing.T) {
	t.Parallel()
	rounds, clients, requests := 12, 12, 6
	if raceDetector {
		rounds, clients = 3, 8
	}
	if modelIsLarge() {
		rounds = 200
	}
	for round := range rounds {
		t.Run(fmt.Sprint("round ", round+1), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("the seed is %d", seed)
			seeds := rand.New(rand.NewPCG(seed, seed))
			memory := storetest.NewMemory()
			storage := storetest.NewFaulty(memory)
			m := newMountOn(t, memory, storage, clock.NewManual(epoch))
			m.still()
			m.role(object{"rotation_period": "24h", "scopes": []any{"a"}, "overlap_period": "1h", "max_overlap_period": "12h", "rollback_window": "4h", "max_accepted_versions": 4, "max_versions": 100})
			tokens := []string{m.key("acme", nil)}
			for n := range 6 { // the tick has them to do, too
				m.key(fmt.Sprint("other-", n), nil)
			}
			m.clock.Advance(linearNow.Sub(epoch))
			storage.Before(pauses(seeds.Uint64()))
			first := &refKey{name: "acme", role: "r", recorded: epoch, rotated: epoch}
			first.activate(epoch, linearRole, first.add(linearRole))
			first.versions[0].token = tokens[0]
			var mu sync.Mutex
			var history []porcupine.Operation
			order := clock.System()
			var all sync.WaitGroup
			note := func(client int, in keyAsk, ask func() keyAnswer) {
				call := order.Elapsed().Nanoseconds()
				out := ask()
				end := order.Elapsed().Nanoseconds()
				mu.Lock()
				defer mu.Unlock()
				if out.token != "" && in.verb != "static-creds" {
					tokens = append(tokens, out.token)
				}
				history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
			}
			for client := range clients {
				random := rand.New(rand.NewPCG(seeds.Uint64(), seeds.Uint64()))
				all.Go(func() {
					for range requests {
						mu.Lock()
						in := anyAsk(random, tokens)
						mu.Unlock()
						note(client, in, func() keyAnswer { return m.askKey(in) })
					}
				})
			}
			wait := time.Duration(seeds.IntN(3000)) * time.Microsecond
			all.Go(func() {
				<-order.After(wait)
				note(clients, keyAsk{verb: "tick"}, func() keyAnswer {
					if _, err := m.engineNow().ticker.Tick(t.Context()); err != nil {
						t.Errorf("a tick fails: %v", err)
					}
					return keyAnswer{}
				})
			})
			all.Wait()
			storage.Before(nil)
			tellOfTick(m, history)
			states := keyStates{steps: map[keyStep]keyAfter{}, known: map[string]*refKey{}}
			model := porcupine.Model{
				Init: func() any { return first },
				Step: func(state, in, out any) (bool, any) {
					k, isKey := state.(*refKey)
					ask, isAsk := in.(keyAsk)
					answered, isAnswer := out.(keyAnswer)
					if !isKey || !isAsk || !isAnswer {
						t.Errorf("%T, %T and %T in the history of a key", state, in, out)
						return false, state
					}
					return states.step(k, ask, answered)
				},
				DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
			}
			switch result := porcupine.CheckOperationsTimeout(model, history, time.Minute); result {
			case porcupine.Illegal:
				for _, op := range history {
					t.Logf("%d: %d to %d: %+v: %+v", op.ClientId, op.Call, op.Return, op.Input, op.Output)
				}
				t.Error("no order of these requests explains their answers")
			case porcupine.Unknown:
				t.Error("whether the history is linearizable was not found out in a minute")
			case porcupine.Ok:
			}
		})
	}
}

// pauses returns a hook that lets others go on before some operations of
// storage, and now and then for longer than a request takes.
func pauses(seed uint64) func(storetest.Op) {
	var mu sync.Mutex
	random, order := rand.New(rand.NewPCG(seed, seed)), clock.System()
	return func(storetest.Op) {
		mu.Lock()
		n := random.IntN(1000)
		mu.Unlock()
		switch {
		case n < 300:
			runtime.Gosched()
		case n < 700:
			<-order.After(time.Duration(n) * time.Microsecond)
		}
	}
}

// tellOfTick notes in the answer of the tick which version it has made.
func tellOfTick(m *mount, history []porcupine.Operation) {
	m.t.Helper()
	made := 0
	for _, one := range list(m.t, m.read("history/acme")["transitions"]) {
		if transition := aMap(m.t, one); transition["actor"] == keyring.ActorPeriodic && transition["type"] == string(keyring.EventVersionCreated) {
			if made > 0 {
				m.t.Errorf("one tick has made the versions %v and %d", transition[fieldVersion], made)
			}
			made = number(m.t, transition[fieldVersion])
		}
	}
	for i := range history {
		if ask, ok := history[i].Input.(keyAsk); ok && ask.verb == "tick" {
			history[i].Output = keyAnswer{version: made}
		}
	}
}

func anyAsk(random *rand.Rand, tokens []string) keyAsk {
	in := keyAsk{flag: random.IntN(2) == 0, version: 1 + random.IntN(6)}
	switch n := random.IntN(14); {
	case n < 3:
		in.verb = "rotate"
	case n < 10:
		in.verb = []string{"delay", "promote", "rollback", "revoke", "extend", "retire", "static-creds"}[n-3]
	default:
		in.verb, in.token = "verify", tokens[random.IntN(len(tokens))]
	}
	return in
}

// askKey makes a request about the key.
func (m *mount) askKey(in keyAsk) keyAnswer {
	op, path, data := logical.Operation(logical.UpdateOperation), in.verb+"/acme", object{}
	switch in.verb {
	case "rotate":
		data[fieldForce] = in.flag
	case "delay":
		path, data = "rotate/acme", object{fieldForce: in.flag, fieldActivationDelay: "1h"}
	case "rollback":
		data = object{fieldVersion: in.version, fieldForce: in.flag}
	case "revoke":
		data = object{fieldVersion: in.version, fieldCompromised: in.flag, fieldRotate: true}
	case "extend":
		data = object{fieldVersion: in.version, fieldOverlapPeriod: "3h"}
	case "retire":
		data = object{fieldVersion: in.version, fieldForce: true}
	case "verify":
		path, data = "verify", object{fieldAPIKey: in.token}
	case "static-creds":
		op = logical.ReadOperation
	}
	a := m.request(op, path, data)
	out := keyAnswer{status: a.status}
	if n, ok := a.data[fieldVersion].(float64); ok {
		out.version = int(n)
	}
	out.code, _ = a.data["code"].(string)
	out.token, _ = a.data[fieldAPIKey].(string)
	return out
}
