// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// modelRoles are what a role is written to be, as fields and as the model
// knows it. Every field that matters stands in each.
var modelRoles = []struct {
	fields object
	ref    refRole
}{
	{object{}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 3, keep: 4}},
	{object{"overlap_period": "0s", "rollback_window": 0, "max_accepted_versions": 2}, refRole{maxOverlap: 12 * time.Hour, accepted: 2, keep: 4}},
	{object{"activation_delay": "30m"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, delay: 30 * time.Minute, accepted: 3, keep: 4}},
	{object{"version_ttl": "40h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, ttl: 40 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h", "version_ttl": "48h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, ttl: 48 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h", "extend_until_drained": true}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, drain: true, accepted: 3, keep: 4}},
	{object{"scopes": []any{"a"}, "max_accepted_versions": 2}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 2, keep: 4, scopes: []string{"a"}}},
}

const (
	modelLeaseTTL = 2 * time.Hour
	modelLeaseMax = 9 * time.Hour
	modelQuiet    = 30 * time.Minute
)

// modelImports are tokens that were made elsewhere.
var modelImports = []string{"elsewhere-0123456789-a", "elsewhere-0123456789-b"}

// modelMachine plays random requests on a mount and on the reference model.
type modelMachine struct {
	*rapid.T
	m      *mount
	faulty *storetest.Faulty
	ref    *reference
	// tokens are all that were ever given out, and leases those of leased keys,
	// by "<key id> <version>".
	tokens []string
	leases map[string]*logical.Secret
	// latest is the latest time that the clock ever showed.
	latest time.Time
	// calm is how long neither the clock was set nor storage failed, and loaded
	// when the process began.
	calm   time.Duration
	loaded time.Time
	// forgetful tells that a crash has lost counts.
	forgetful bool
	// jobs are the roles with a rotation of all keys under way.
	jobs map[string]bool
	// wall, elapsed and suspended are those of the last tick.
	wall      time.Time
	elapsed   time.Duration
	suspended int
	// fault is what happens to storage during the next request.
	fault *storetest.Fault
	// requests counts them for names that do not repeat.
	requests int
	// edge is a verifier elsewhere.
	edge modelEdge
}

func newModelMachine(t *rapid.T) *modelMachine {
	memory := storetest.NewMemory()
	x := &modelMachine{
		T: t, faulty: storetest.NewFaulty(memory), latest: epoch, loaded: epoch, wall: epoch,
		ref:    &reference{roles: map[string]refRole{}, keys: map[string]*refKey{}, buried: map[string]bool{}},
		leases: map[string]*logical.Secret{}, jobs: map[string]bool{}, calm: 24 * time.Hour,
	}
	x.m = newMountOn(t, memory, x.faulty, clock.NewManual(epoch))
	x.m.still()
	for _, s := range modelImports {
		x.tokens = append(x.tokens, x.m.secret(s))
	}
	x.writeRole("r", rapid.IntRange(0, len(modelRoles)-1).Draw(t, "role"))
	x.writeRole("s", rapid.IntRange(0, len(modelRoles)-1).Draw(t, "role"))
	x.create("k0", "r", "")
	return x
}

func (x *modelMachine) now() time.Time { return x.m.clock.Now() }

// ask makes a request that the model answers, too: predict changes a copy of
// it, and returns the status. What storage fails meanwhile leaves the old state
// or the new.
func (x *modelMachine) ask(op logical.Operation, path string, data object, predict func(ref *reference) int) *answer {
	before, after := x.ref, x.ref.clone()
	want := predict(after)
	stored := x.m.snapshot()
	crashed := x.begin()
	a := x.m.request(op, path, data)
	failed := x.end(crashed)
	switch {
	case a.status >= 500 && failed:
		x.Logf("%s %s fails", op, path)
		if want >= 300 || x.fits(before) == "" {
			after = before
		}
	case a.status != want:
		x.Fatalf("at %s %s %s %v: got %s, the model says %d", stamp(x.now()), op, path, data, a, want)
	case a.status >= 400:
		after = before
		if diff := x.untidied(stored.diff(x.m.snapshot())); diff != "" && !failed {
			x.Fatalf("%s %s was refused and changed %s", op, path, diff)
		}
	}
	x.ref = after
	return a
}

// untidied is a difference without the entries of members that are gone: what
// a crash has left of keys is removed by whatever comes upon it.
func (x *modelMachine) untidied(diff string) string {
	changes := slices.DeleteFunc(strings.Fields(diff), func(change string) bool {
		_, exists := x.ref.keys[change[strings.LastIndex(change, "/")+1:]]
		return strings.HasPrefix(change, "-member/") && !exists
	})
	return strings.Join(changes, " ")
}

// begin lets storage fail if that is due, and end ends it: it restarts the
// engine where that was a crash, and tells whether anything failed.
func (x *modelMachine) begin() (crash bool) {
	if x.fault == nil {
		return false
	}
	x.faulty.Inject(*x.fault)
	return x.fault.Rest
}

func (x *modelMachine) end(crash bool) (failed bool) {
	failed = x.faulty.Failed() > 0
	x.faulty.Heal()
	x.fault = nil
	if failed {
		x.calm = 0
	}
	if failed && crash {
		x.restart()
	}
	return failed
}

func (x *modelMachine) restart() {
	x.m = x.m.reopen()
	x.m.still()
	x.ref.imports = x.ref.imports || x.hasImports() // a write that failed may have been applied
	x.loaded = x.now()
	x.forgetful = true
	x.wall, x.elapsed, x.suspended = x.now(), x.m.clock.Elapsed(), 0
	for _, s := range x.tokens {
		x.m.secret(s)
	}
}

// names are those of keys that a request may be about, of which some exist.
func (x *modelMachine) name() string {
	return rapid.SampledFrom([]string{"k0", "k0", "k1", "k2"}).Draw(x.T, "name")
}

func (x *modelMachine) version() int { return rapid.IntRange(1, 5).Draw(x.T, "version") }

// verb is a request about a key that must be there.
func (x *modelMachine) verb(verb, name string, data object, do func(k *refKey, r refRole) bool) *answer {
	return x.ask(logical.UpdateOperation, verb+"/"+name, data, func(ref *reference) int {
		k := ref.keys[name]
		switch {
		case k == nil:
			return http.StatusNotFound
		case !do(k, ref.roles[k.role]):
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
}

// issued notes the token that an answer shows.
func (x *modelMachine) issued(name string, number int, a *answer) {
	presented, _ := a.data[fieldAPIKey].(string)
	k := x.ref.keys[name]
	if presented == "" || k == nil || k.version(number) == nil {
		return
	}
	if got := k.version(number).token; got != "" && got != presented {
		x.Fatalf("version %d of %s has two tokens", number, name)
	}
	k.version(number).token = presented
	if !slices.Contains(x.tokens, presented) {
		x.tokens = append(x.tokens, presented)
	}
}

func (x *modelMachine) writeRole(name string, i int) {
	fields := object{
		"scopes": []any{"a", "b"}, "overlap_period": "1h", "max_overlap_period": "12h", "rollback_window": "4h", "max_accepted_versions": 3, "max_versions": 4,
		"activation_delay": 0, "rotation_period": 0, "version_ttl": 0, "extend_until_drained": false, "drain_quiet_period": int(modelQuiet.Seconds()),
		"ttl": int(modelLeaseTTL.Seconds()), "max_ttl": int(modelLeaseMax.Seconds()),
	}
	for field, value := range modelRoles[i].fields {
		fields[field] = value
	}
	x.ask(logical.UpdateOperation, "roles/"+name, fields, func(ref *reference) int {
		r := modelRoles[i].ref
		if r.scopes == nil {
			r.scopes = []string{"a", "b"}
		}
		ref.roles[name] = r
		return http.StatusNoContent
	})
}

func (x *modelMachine) create(name, role, imported string) {
	data := object{fieldRole: role}
	if imported != "" {
		data[fieldImportKey] = imported
	}
	if rapid.Bool().Draw(x.T, "own scopes") {
		data[fieldScopes] = []any{"a"}
	}
	now := x.now()
	a := x.ask(logical.UpdateOperation, "keys/"+name, data, func(ref *reference) int {
		r := ref.roles[role]
		if k, v := ref.find(imported); imported != "" && (k != nil && v != nil || ref.buried[imported]) {
			return http.StatusBadRequest
		}
		k := &refKey{name: name, role: role, recorded: now, rotated: now, requests: map[string]refRequest{}}
		if data[fieldScopes] != nil {
			k.scopes = []string{"a"}
		}
		k.activate(now, r, k.add())
		k.versions[0].token = imported
		ref.imports = ref.imports || imported != ""
		ref.keys[name] = k
		return http.StatusOK
	})
	if imported == "" && a.status < 300 {
		x.issued(name, 1, a)
	}
}

func (x *modelMachine) createSome() {
	name := x.name()
	if x.ref.keys[name] != nil {
		x.Skip("it exists")
	}
	x.create(name, rapid.SampledFrom([]string{"r", "s"}).Draw(x.T, "role"), rapid.SampledFrom(append([]string{"", ""}, modelImports...)).Draw(x.T, "import"))
	// The flag of imports is set before the first one, and stays if that fails.
	x.ref.imports = x.ref.imports || x.hasImports()
}

func (x *modelMachine) hasImports() bool {
	has, err := x.m.engineNow().store.HasImports(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	return has
}

func (x *modelMachine) rotate() {
	name, o, data := x.name(), rotation{}, object{}
	if rapid.Bool().Draw(x.T, "with an overlap") {
		overlap := rapid.SampledFrom([]time.Duration{0, 10 * time.Minute, 2 * time.Hour, 13 * time.Hour}).Draw(x.T, "overlap")
		o.overlap, data[fieldOverlapPeriod] = &overlap, int(overlap.Seconds())
	}
	if rapid.IntRange(0, 2).Draw(x.T, "with a delay") == 0 {
		delay := rapid.SampledFrom([]time.Duration{0, 20 * time.Minute}).Draw(x.T, "delay")
		o.delay, data[fieldActivationDelay] = &delay, int(delay.Seconds())
	}
	if o.force = rapid.Bool().Draw(x.T, "force"); o.force {
		data[fieldForce] = true
	}
	if rapid.IntRange(0, 3).Draw(x.T, "narrow") == 0 {
		o.narrowed, data[fieldOverlapScopes] = []string{"a"}, []any{"a"}
	}
	id := rapid.SampledFrom([]string{"", "", "once", "twice"}).Draw(x.T, "request_id")
	asked := toJSON(data)
	if id != "" {
		data["request_id"] = id
	}
	number := 0
	a := x.verb("rotate", name, data, func(k *refKey, r refRole) bool {
		now := k.now(x.now())
		if old, known := k.requests[id]; known && id != "" && now.Before(old.at.Add(24*time.Hour)) {
			number = old.version
			return old.asked == asked
		}
		v, ok := k.rotate(x.now(), r, o)
		if !ok {
			return false
		}
		number = v.number
		if id != "" {
			k.requests[id] = refRequest{asked: asked, version: number, at: now}
		}
		return true
	})
	if a.status >= 300 {
		return
	}
	if got, ok := a.data[fieldVersion].(float64); !ok || int(got) != number {
		x.Fatalf("rotate answers version %v, the model says %d", a.data[fieldVersion], number)
	}
	x.issued(name, number, a)
}

func (x *modelMachine) promote() {
	x.verb("promote", x.name(), nil, func(k *refKey, r refRole) bool {
		now := k.now(x.now())
		k.settle(now)
		if k.in("pending") == nil || k.disabled {
			return false
		}
		k.promote(now, r)
		k.prune(now, r)
		return true
	})
}

func (x *modelMachine) rollback() {
	number, newer, force := rapid.IntRange(0, 4).Draw(x.T, "version"), rapid.IntRange(0, 3).Draw(x.T, "revoke_newer") == 0, rapid.Bool().Draw(x.T, "force")
	x.verb("rollback", x.name(), object{fieldVersion: number, fieldRevokeNewer: newer, fieldForce: force}, func(k *refKey, r refRole) bool {
		return k.rollback(x.now(), r, number, newer, force)
	})
}

func (x *modelMachine) extend() {
	number := rapid.IntRange(0, 4).Draw(x.T, "version")
	by := rapid.SampledFrom([]time.Duration{0, 30 * time.Minute, 3 * time.Hour, 11 * time.Hour}).Draw(x.T, "by")
	x.verb("extend", x.name(), object{fieldVersion: number, fieldOverlapPeriod: int(by.Seconds())}, func(k *refKey, r refRole) bool {
		return k.extend(x.now(), r, number, by)
	})
}

func (x *modelMachine) retire() {
	number := rapid.IntRange(0, 4).Draw(x.T, "version")
	x.verb("retire", x.name(), object{fieldVersion: number, fieldForce: true}, func(k *refKey, _ refRole) bool { return k.retireNow(x.now(), number) })
}

func (x *modelMachine) revoke() {
	number, name := x.version(), x.name()
	all := rapid.IntRange(0, 5).Draw(x.T, "all") == 0
	compromised, rotate, force := rapid.Bool().Draw(x.T, "compromised"), rapid.Bool().Draw(x.T, "rotate"), rapid.Bool().Draw(x.T, "force")
	data := object{fieldCompromised: compromised, fieldRotate: rotate, fieldForce: force}
	if all {
		data[fieldAll] = true
	} else {
		data[fieldVersion] = number
	}
	a := x.verb("revoke", name, data, func(k *refKey, r refRole) bool {
		_, ok := k.revoke(x.now(), r, number, all, compromised, rotate, force)
		return ok
	})
	if v, ok := a.data[fieldVersion].(float64); ok {
		x.issued(name, int(v), a)
	}
}

func (x *modelMachine) toggle() {
	name, enabled := x.name(), rapid.Bool().Draw(x.T, "enabled")
	x.ask(logical.PatchOperation, "keys/"+name, object{fieldEnabled: enabled}, func(ref *reference) int {
		if ref.keys[name] == nil {
			return http.StatusNotFound
		}
		ref.keys[name].disabled = !enabled
		return http.StatusNoContent
	})
}

func (x *modelMachine) rescope() {
	name := x.name()
	a := x.ask(logical.PatchOperation, "keys/"+name, object{fieldScopes: []any{"a"}}, func(ref *reference) int {
		if ref.keys[name] == nil {
			return http.StatusNotFound
		}
		ref.keys[name].scopes = []string{"a"}
		return http.StatusNoContent
	})
	if k := x.ref.keys[name]; k != nil && a.status >= 500 {
		// Where the role's are the same, only storage tells whether it took them.
		stored, err := x.m.engineNow().store.Key(x.Context(), x.m.keyID(name))
		if err != nil {
			x.Fatal(err)
		}
		if stored.Scopes != nil {
			k.scopes = []string{"a"}
		}
	}
}

func (x *modelMachine) remove() {
	name := x.name()
	if rapid.IntRange(0, 2).Draw(x.T, "seldom") > 0 {
		x.Skip("keys should live for a while")
	}
	x.ask(logical.DeleteOperation, "keys/"+name, nil, func(ref *reference) int {
		if ref.keys[name] != nil {
			ref.remove(name)
		}
		return http.StatusNoContent
	})
}

func (x *modelMachine) changeRole() {
	x.writeRole(rapid.SampledFrom([]string{"r", "s"}).Draw(x.T, "role"), rapid.IntRange(0, len(modelRoles)-1).Draw(x.T, "as"))
}

func (x *modelMachine) removeRole() {
	role := rapid.SampledFrom([]string{"r", "s"}).Draw(x.T, "role")
	for _, k := range x.ref.keys {
		if k.role == role && k.leased {
			x.Skip("ended leased keys go on the way")
		}
	}
	for _, k := range x.ref.keys {
		if k.role == role {
			x.ask(logical.DeleteOperation, "roles/"+role, nil, func(*reference) int { return http.StatusBadRequest })
			return
		}
	}
	x.Skip("it could be deleted")
}

func (x *modelMachine) confirm() {
	number := x.version()
	name := x.name()
	x.ask(logical.UpdateOperation, "confirm/"+name, object{fieldVersion: number, fieldInstance: "eu-1"}, func(ref *reference) int {
		switch k := ref.keys[name]; {
		case k == nil:
			return http.StatusNotFound
		case k.version(number) == nil:
			return http.StatusBadRequest
		}
		return http.StatusNoContent
	})
}

func (x *modelMachine) report() {
	name := x.name()
	k := x.ref.keys[name]
	if k == nil {
		x.Skip("no key")
	}
	v := rapid.SampledFrom(k.versions).Draw(x.T, "of")
	x.requests++
	a := x.ask(logical.UpdateOperation, "usage", object{"verifier": "edge", "boot": "b", "sequence": x.requests, "reported_through": stamp(x.now()), "entries": []any{
		object{fieldKeyID: x.m.keyID(name), fieldVersion: v.number, fieldSource: "edge", "count": 3},
	}}, func(ref *reference) int {
		one := ref.keys[name].version(v.number)
		one.used += 3
		one.lastUsed = x.now()
		return http.StatusOK
	})
	if a.status >= 500 {
		x.forgetful = true // counted or not
	}
}

func (x *modelMachine) rotateRole() {
	role := rapid.SampledFrom([]string{"r", "s"}).Draw(x.T, "role")
	a := x.ask(logical.UpdateOperation, "roles/"+role+"/rotate", object{fieldForce: true}, func(*reference) int {
		if x.jobs[role] {
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
	if a.status < http.StatusInternalServerError {
		x.jobs[role] = true // it was under way before, or is now
		return
	}
	x.askJob(role)
}

// askJob has the engine say whether a job is under way, where storage has
// failed and may have taken its start or its end.
func (x *modelMachine) askJob(role string) {
	progress := x.m.request(logical.ReadOperation, "roles/"+role+"/rotate", nil)
	x.jobs[role] = progress.status == http.StatusOK && progress.data[fieldState] == jobs.JobRunning
}

// lease makes a leased key, and the others are what its holder and Vault do
// with it.
func (x *modelMachine) lease() {
	role := rapid.SampledFrom([]string{"r", "s"}).Draw(x.T, "role")
	a := x.m.request(logical.ReadOperation, "creds/"+role, nil)
	if a.status != http.StatusOK || a.secret == nil {
		x.Fatalf("creds answers %s", a)
	}
	now := x.now()
	id, ok := a.data[fieldKeyID].(string)
	if !ok {
		x.Fatalf("creds answers %s", a)
	}
	k := &refKey{role: role, leased: true, recorded: now, maxExpire: now.Add(modelLeaseMax)}
	k.activate(now, x.ref.roles[role], k.add())
	k.versions[0].expire = now.Add(modelLeaseTTL)
	x.ref.keys[id] = k
	x.issued(id, 1, a)
	x.leases[id+" 1"] = a.secret
}

func (x *modelMachine) leasedID() string {
	var ids []string
	for id, k := range x.ref.keys {
		if k.leased {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		x.Skip("no leased key")
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(x.T, "leased")
}

func (x *modelMachine) rotateLease() {
	id := x.leasedID()
	number := 0
	a := x.ask(logical.UpdateOperation, "rotate-leased/"+id, nil, func(ref *reference) int {
		k := ref.keys[id]
		if k.maxExpire.Sub(k.now(x.now())) < time.Second {
			return http.StatusBadRequest
		}
		v, ok := k.rotate(x.now(), ref.roles[k.role], rotation{})
		if !ok {
			return http.StatusBadRequest
		}
		number = v.number
		v.expire = soonest(k.now(x.now()).Add(modelLeaseTTL), k.maxExpire)
		return http.StatusOK
	})
	if a.status == http.StatusOK {
		x.issued(id, number, a)
		x.leases[fmt.Sprintf("%s %d", id, number)] = a.secret
	}
}

func (x *modelMachine) endLease() {
	id := x.leasedID()
	k := x.ref.keys[id]
	v := rapid.SampledFrom(k.versions).Draw(x.T, "of")
	secret := x.leases[fmt.Sprintf("%s %d", id, v.number)]
	if secret == nil {
		x.Skip("its lease was never seen")
	}
	if rapid.Bool().Draw(x.T, "renew") {
		a := x.m.renew(secret, 0)
		now := k.now(x.now())
		limit := k.maxExpire
		if v.at(now) == "retiring" {
			limit = soonest(limit, v.until)
		}
		if want := v.accepted(now) && limit.Sub(now) >= time.Second; want != (a.status < 300) {
			x.Fatalf("at %s a renewal of %s answers %s, the model says that it succeeds: %t", stamp(now), id, a, want)
		}
		if a.status < 300 {
			k.settle(now)
			v.expire = soonest(now.Add(modelLeaseTTL), limit)
		}
		return
	}
	if a := x.m.endLease(secret); a.status != http.StatusNoContent {
		x.Fatalf("the end of a lease is answered %s", a)
	}
	if !v.final() {
		now := k.now(x.now())
		k.settle(now)
		v.end("revoked", now)
	}
}

// advance lets time pass, often to about one of the instants that matter.
func (x *modelMachine) advance() {
	now, to := x.now(), []time.Time{}
	for _, k := range x.ref.keys {
		for _, v := range k.versions {
			for _, t := range []time.Time{v.overlapEnds, v.until, v.expire, v.promoteAt, v.restorable} {
				for _, by := range []time.Duration{-time.Millisecond, 0, time.Millisecond} {
					if t.Add(by).After(now) && t.Sub(now) < 30*24*time.Hour {
						to = append(to, t.Add(by))
					}
				}
			}
		}
	}
	slices.SortFunc(to, time.Time.Compare)
	d := rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Minute, 59 * time.Minute, 5 * time.Hour, 25 * time.Hour}).Draw(x.T, "for")
	if len(to) > 0 && rapid.Bool().Draw(x.T, "to an instant") {
		d = rapid.SampledFrom(to).Draw(x.T, "until").Sub(now)
	}
	x.m.clock.Advance(d)
	x.calm += d
}

func (x *modelMachine) leap() {
	x.m.clock.Leap(rapid.SampledFrom([]time.Duration{-30 * time.Hour, -2 * time.Hour, -10 * time.Minute, 10 * time.Minute, 3 * time.Hour}).Draw(x.T, "by"))
	x.calm = -72 * time.Hour
}

func (x *modelMachine) reload() { x.restart() }

// breakStorage makes storage fail at the next request.
func (x *modelMachine) breakStorage() {
	x.fault = &storetest.Fault{
		At: rapid.IntRange(1, 9).Draw(x.T, "at"), Applied: rapid.Bool().Draw(x.T, "applied"), Rest: rapid.Bool().Draw(x.T, "crash"),
	}
}

// tick is what the periodic function does, as a tick or as a sweep.
func (x *modelMachine) tick() {
	crash := x.begin()
	sweep := rapid.IntRange(0, 3).Draw(x.T, "sweep") == 0
	leapt := x.now().Sub(x.wall) - (x.m.clock.Elapsed() - x.elapsed)
	disagree := leapt > time.Hour || leapt < -time.Hour
	suspended := disagree || x.suspended > 0
	var err error
	if sweep {
		a := x.m.request(logical.UpdateOperation, "sweep", nil)
		if a.status >= 300 {
			err = fmt.Errorf("status %d", a.status)
		} else if a.data["suspended"] != suspended {
			x.Fatalf("sweep answers %s, the model says suspended: %t", a, suspended)
		}
	} else {
		x.wall, x.elapsed = x.now(), x.m.clock.Elapsed()
		switch {
		case disagree:
			x.suspended = 2
		case x.suspended > 0:
			x.suspended--
			suspended = x.suspended > 0
		}
		e := x.m.engineNow()
		if _, err = e.ticker.Tick(x.Context()); suspended != (err != nil && strings.Contains(err.Error(), "suspended")) {
			x.Fatalf("a tick says %v, the model says suspended: %t", err, suspended)
		}
		if err == nil {
			err = e.bulk.Run(x.Context())
		}
		if err == nil {
			err = e.watch.flush(x.Context())
		}
	}
	failed := x.end(crash)
	switch {
	case err != nil && !failed && !suspended:
		x.Fatalf("a tick fails: %v", err)
	case failed:
		for role, running := range x.jobs {
			if running {
				x.askJob(role)
			}
		}
	case err == nil && !suspended:
		x.jobs = map[string]bool{}
	}
	x.m.tell()
	x.follow(!suspended, err == nil && !suspended)
}

// follow brings the model up with what happened by itself, all of which must
// be allowed. done tells that everything due has been done.
func (x *modelMachine) follow(may, done bool) {
	for name, k := range x.ref.keys {
		stored := x.stored(name, k)
		if stored == nil {
			if k.leased && k.acceptedAt(k.now(x.latest)) == 0 {
				delete(x.ref.keys, name) // forgotten a day after its end
				continue
			}
			x.Fatalf("%s is gone", name)
		}
		if !may || x.differs(k, stored) == "" {
			continue
		}
		next, r := k.clone(), x.ref.roles[k.role]
		next.tick(x.now(), r)
		x.drained(next, stored)
		for latest := number(x, versions(x, stored)[0][fieldVersion]); next.latest() < latest; {
			x.rotated(name, next, stored, r)
		}
		if diff := x.differs(next, stored); diff != "" {
			x.Fatalf("at %s, after a tick, %s: %s", stamp(x.now()), name, diff)
		}
		x.ref.keys[name] = next
	}
	if done && x.calm > 4*time.Hour {
		x.nothingOverdue()
	}
}

// drained follows the retirement of a version that drain was waited for. Use
// within the quiet period, or before the process began, forbids it.
func (x *modelMachine) drained(k *refKey, stored object) {
	now := k.now(x.now())
	for _, shown := range versions(x, stored) {
		v := k.version(number(x, shown[fieldVersion]))
		if v == nil || v.state != "retiring" || shown[fieldState] != "retired" {
			continue
		}
		used := v.lastUsed.After(x.loaded) && x.now().Sub(v.lastUsed) < modelQuiet || x.now().Sub(x.loaded) < modelQuiet
		if used || now.Before(v.overlapEnds) || !v.until.After(v.overlapEnds) {
			continue // only a rotation that needed its room explains that
		}
		v.retire(now)
	}
}

// rotated follows a rotation that happened by itself.
func (x *modelMachine) rotated(name string, k *refKey, stored object, r refRole) {
	now := k.now(x.now())
	due := r.period > 0 && (!now.Before(k.rotated.Add(r.period/2)) || k.in("active") == nil)
	if !due && !x.jobs[k.role] && x.calm > 0 {
		// A job may have been cut off and have gone on.
		if a := x.m.read("roles/" + k.role + "/rotate"); a["state"] == nil {
			x.Fatalf("at %s %s was rotated, and nobody asked for it", stamp(now), name)
		}
	}
	o := rotation{room: 1, force: true}
	// Clients that sleep by what the role told them before it was changed get
	// longer.
	if active := k.in("active"); active != nil {
		for _, shown := range versions(x, stored) {
			if number(x, shown[fieldVersion]) == active.number && shown[fieldOverlapEnds] != nil {
				if overlap := moment(x, shown[fieldOverlapEnds]).Sub(now); overlap > r.overlap {
					o.overlap, o.delay = &overlap, &r.delay
				}
			}
		}
	}
	// A rotation that is planned makes room beyond the window; a job that was told
	// to force ends the oldest version instead.
	planned, forced := k.clone(), k.clone()
	if _, ok := planned.rotate(x.now(), r, o); !ok {
		x.Fatalf("at %s %s was rotated, and cannot be", stamp(now), name)
	}
	o.room = 0
	if _, ok := forced.rotate(x.now(), r, o); ok && x.differs(forced, stored) == "" &&
		x.m.request(logical.ReadOperation, "roles/"+k.role+"/rotate", nil).status == http.StatusOK {
		planned = forced
	}
	*k = *planned
}

// nothingOverdue: what is due has been done.
func (x *modelMachine) nothingOverdue() {
	for name, k := range x.ref.keys {
		if k.leased {
			continue
		}
		shown := x.m.read("keys/" + name)
		stored, err := x.m.engineNow().store.Key(x.Context(), x.m.keyID(name))
		if err != nil {
			x.Fatal(err)
		}
		if k.now(x.now()).Sub(stored.Recorded) < 3*time.Minute {
			continue // it was filed anew, for the next minute at the earliest
		}
		if shown["rotation_blocked"] != nil || shown[fieldNextRotation] == nil || shown["pending_version"] != nil {
			continue
		}
		if next := moment(x, shown[fieldNextRotation]); x.now().Sub(next) > 2*time.Minute {
			x.Fatalf("at %s, after a tick, the rotation of %s planned for %s has not happened", stamp(x.now()), name, stamp(next))
		}
	}
}

// stored is what keys/<name> answers, or its like for a leased key; nil where
// there is none.
func (x *modelMachine) stored(name string, k *refKey) object {
	if !k.leased {
		return x.m.request(logical.ReadOperation, "keys/"+name, nil).data
	}
	kept, err := x.m.engineNow().store.Key(x.Context(), name)
	if err != nil {
		x.Fatal(err)
	}
	if kept == nil || !kept.Deleted.IsZero() {
		return nil
	}
	list := []any{}
	for _, v := range slices.Backward(kept.Versions) {
		data := object{fieldVersion: float64(v.Number), fieldState: v.StateAt(kept.Now(x.now())).String()}
		putTime(data, fieldOverlapEnds, v.OverlapEnds)
		putTime(data, fieldAcceptedUntil, v.AcceptedUntil)
		putTime(data, fieldExpireTime, v.ExpireTime)
		list = append(list, data)
	}
	return object{fieldEnabled: true, "versions": list}
}

// differs says in what a key that is shown differs from the model, "" for
// nothing.
func (x *modelMachine) differs(k *refKey, shown object) string {
	now := k.now(x.now())
	if shown[fieldEnabled] == k.disabled {
		return fmt.Sprintf("enabled is %v", shown[fieldEnabled])
	}
	scopes := k.scopes
	if scopes == nil {
		scopes = x.ref.roles[k.role].scopes
	}
	if own, there := shown[fieldScopes]; there && fmt.Sprint(own) != fmt.Sprint(scopes) {
		return fmt.Sprintf("its scopes are %v, want %v", own, scopes)
	}
	list := versions(x, shown)
	if len(list) != len(k.versions) {
		return fmt.Sprintf("it has %d versions, the model %d", len(list), len(k.versions))
	}
	for i, v := range k.versions {
		one := list[len(list)-1-i]
		state := v.at(now)
		got := fmt.Sprint(one[fieldVersion], " ", one[fieldState])
		if want := fmt.Sprint(v.number, " ", state); got != want {
			return fmt.Sprintf("there is version %s, the model says %s", got, want)
		}
		want := map[string]time.Time{fieldExpireTime: v.expire}
		if state == "retiring" {
			want[fieldOverlapEnds], want[fieldAcceptedUntil] = v.overlapEnds, v.until
		}
		if state == "revoked" || state == "compromised" || state == "retired" {
			delete(want, fieldExpireTime)
		}
		for field, t := range want {
			if text, there := one[field].(string); there != !t.IsZero() || there && text != stamp(t) {
				return fmt.Sprintf("%s of version %d is %v, the model says %s", field, v.number, one[field], stamp(t))
			}
		}
	}
	return ""
}

// fits says in what the mount differs from ref, "" for nothing.
func (x *modelMachine) fits(ref *reference) string {
	for _, name := range []string{"k0", "k1", "k2"} {
		a := x.m.request(logical.ReadOperation, "keys/"+name, nil)
		k := ref.keys[name]
		if (a.status == http.StatusOK) != (k != nil) {
			return fmt.Sprintf("%s is answered with %d", name, a.status)
		}
		if k == nil {
			continue
		}
		if diff := x.differs(k, a.data); diff != "" {
			return name + ": " + diff
		}
	}
	for id, k := range ref.keys {
		if k.leased {
			shown := x.stored(id, k)
			if shown == nil {
				return id + " is gone"
			}
			if diff := x.differs(k, shown); diff != "" {
				return id + ": " + diff
			}
		}
	}
	for name, r := range ref.roles {
		shown := x.m.read("roles/" + name)
		// All that may differ between two of them, so that each is recognised.
		got := fmt.Sprint(shown["overlap_period"], shown["version_ttl"], shown["rotation_period"], shown["max_accepted_versions"],
			shown["rollback_window"], shown["activation_delay"], shown["extend_until_drained"], shown[fieldScopes])
		if want := fmt.Sprint(r.overlap.Seconds(), r.ttl.Seconds(), r.period.Seconds(), r.accepted,
			r.rollback.Seconds(), r.delay.Seconds(), r.drain, r.scopes); got != want {
			return fmt.Sprintf("role %s is %s, want %s", name, got, want)
		}
	}
	return ""
}

// check holds after every step: what the routes show, the verdict on every
// token ever given out, what clients are served, and the rules.
func (x *modelMachine) check() {
	fault := x.fault
	x.fault = nil
	defer func() { x.fault = fault }()
	if now := x.now(); now.After(x.latest) {
		x.latest = now
	}
	if diff := x.fits(x.ref); diff != "" {
		x.Fatalf("at %s %s", stamp(x.now()), diff)
	}
	for name, k := range x.ref.keys {
		x.checkRecorded(name, k)
		if !k.leased {
			x.checkServed(name, k)
		}
	}
	x.checkVerdicts()
	if x.requests%3 == 1 {
		x.followEdge()
	}
}

// checkRecorded: time never runs below what was recorded, nor ahead of what
// the clock has shown.
func (x *modelMachine) checkRecorded(name string, k *refKey) {
	stored, err := x.m.engineNow().store.Key(x.Context(), x.m.idOf(name, k.leased))
	if err != nil || stored == nil {
		x.Fatalf("%s: %v", name, err)
	}
	if stored.Recorded.Before(k.recorded) && x.now().Before(k.recorded) || stored.Recorded.After(x.latest) {
		x.Fatalf("%s was last changed at %s, the model says %s, and the clock has shown %s at most", name, stamp(stored.Recorded), stamp(k.recorded), stamp(x.latest))
	}
	k.recorded = stored.Recorded
}

// checkServed: what a client reads is the active version, and is accepted.
func (x *modelMachine) checkServed(name string, k *refKey) {
	a := x.m.request(logical.ReadOperation, "static-creds/"+name, nil)
	status, v := k.served(x.now())
	if a.status != status {
		x.Fatalf("at %s static-creds of %s answers %s, the model says %d", stamp(x.now()), name, a, status)
	}
	if status != http.StatusOK {
		aged := slices.ContainsFunc(k.versions, func(v *refVersion) bool { return !v.expire.IsZero() && !k.now(x.now()).Before(v.expire) })
		if active := k.in("active"); !k.dormant && !aged && (active == nil || active.readable) {
			x.Fatalf("at %s nobody can read %s, and nobody has ended it", stamp(x.now()), name)
		}
		return
	}
	if a.secret != nil {
		x.Fatalf("static-creds of %s has a lease", name)
	}
	if got := number(x, a.data[fieldVersion]); got != v.number {
		x.Fatalf("static-creds of %s answers version %d, the model says %d", name, got, v.number)
	}
	if ttl := number(x, a.data["ttl"]); ttl < 1 || ttl > 3600 {
		x.Fatalf("static-creds of %s answers a ttl of %d", name, ttl)
	}
	x.issued(name, v.number, a)
	if code, _, _ := x.ref.verdict(x.now(), v.token, false, nil); code != "VALID" && !k.disabled {
		x.Fatalf("what static-creds of %s gives out is %s", name, code)
	}
}

// checkVerdicts asks for every token, in a batch, and for one alone.
func (x *modelMachine) checkVerdicts() {
	items := []any{}
	scopes := []string{}
	if x.requests++; x.requests%3 == 0 {
		scopes = []string{"b"}
	}
	tokens := x.tokens[max(0, len(x.tokens)-40):]
	for _, presented := range tokens {
		item := object{fieldAPIKey: presented, fieldSource: "eu"}
		if len(scopes) > 0 {
			item[fieldScopes] = []any{"b"}
		}
		items = append(items, item)
	}
	results := list(x, x.m.write("verify", object{fieldBatchInput: items})[fieldBatchResults])
	for i, presented := range tokens {
		x.checkVerdict(aMap(x, results[i]), presented, scopes)
	}
	presented := tokens[x.requests%len(tokens)]
	x.checkVerdict(x.m.write("verify", object{fieldAPIKey: presented}), presented, nil)
}

func (x *modelMachine) checkVerdict(got object, presented string, scopes []string) {
	want, k, v := x.ref.verdict(x.now(), presented, slices.Contains(modelImports, presented), scopes)
	if got["code"] != want || got["valid"] != (want == "VALID") {
		x.Fatalf("at %s verify answers %v, the model says %s: %+v", stamp(x.now()), got, want, v)
	}
	if v == nil {
		if want == "NOT_FOUND" && len(got) != 2 {
			x.Fatalf("of an unknown token verify tells %v", got)
		}
		return
	}
	if number(x, got[fieldVersion]) != v.number || got[fieldState] != v.at(k.now(x.now())) {
		x.Fatalf("verify answers %v, the model says version %d, %s", got, v.number, v.at(k.now(x.now())))
	}
	if want == "VALID" {
		v.used++
		v.lastUsed = x.now()
	}
}

// TestTheMountBehavesAsItsModel plays random requests, ticks, restarts, moves
// of the clock and failures of storage.
func TestTheMountBehavesAsItsModel(t *testing.T) {
	t.Parallel()
	var played atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		if raceDetector && played.Add(1) > 10 {
			return // it is slow, and has nothing to find here
		}
		x := newModelMachine(t)
		step := func(do func()) func(*rapid.T) {
			return func(*rapid.T) { do() }
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": step(x.createSome), "rotate": step(x.rotate), "rotate again": step(x.rotate), "promote": step(x.promote), "rollback": step(x.rollback),
			"extend": step(x.extend), "retire": step(x.retire), "revoke": step(x.revoke), "toggle": step(x.toggle), "rescope": step(x.rescope),
			"remove": step(x.remove), "change a role": step(x.changeRole), "remove a role": step(x.removeRole), "confirm": step(x.confirm),
			"report": step(x.report), "rotate a role": step(x.rotateRole), "lease": step(x.lease), "rotate a lease": step(x.rotateLease),
			"end a lease": step(x.endLease), "advance": step(x.advance), "advance more": step(x.advance), "leap": step(x.leap), "restart": step(x.reload),
			"break storage": step(x.breakStorage), "tick": step(x.tick), "tick again": step(x.tick), "tick once more": step(x.tick),
			"": step(x.check),
		})
	})
}
