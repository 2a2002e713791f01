// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// modelRole is what a role is written to be, as fields and as the model knows
// it. Every field that matters stands in each.
type modelRole struct {
	fields object
	ref    refRole
}

var modelRoles = []modelRole{
	{object{}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 3, keep: 4}},
	{object{"overlap_period": "0s", "rollback_window": 0, "max_accepted_versions": 2}, refRole{maxOverlap: 12 * time.Hour, accepted: 2, keep: 4}},
	{object{"activation_delay": "30m"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, delay: 30 * time.Minute, accepted: 3, keep: 4}},
	{object{"version_ttl": "40h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, ttl: 40 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h", "version_ttl": "48h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, ttl: 48 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h", "extend_until_drained": true, "overlap_scopes": []any{"a"}}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, drain: true, accepted: 3, keep: 4, late: []string{"a"}}},
	{object{"scopes": []any{"a"}, "max_accepted_versions": 2}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 2, keep: 4, scopes: []string{"a"}}},
	{object{"rotation_schedule": "0 6 * * *"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, daily: 6 * time.Hour, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h", "rotation_jitter": 20}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, jitter: 20, accepted: 3, keep: 4}},
	{object{"rotation_period": "24h", "disable_automated_rotation": true}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, manual: true, accepted: 3, keep: 4}},
	{object{"overlap_scopes": []any{"a"}, "extend_until_drained": true}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, drain: true, accepted: 3, keep: 4, late: []string{"a"}}},
	{object{"bound_cidrs": []any{"10.0.0.0/8"}}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 3, keep: 4, ranges: []string{"10.0.0.0/8"}}},
}

// modelSecretRoles are those of the role t, whose keys are not kept. They rotate
// by themselves where somebody claims them. It never becomes another: whether a
// version is kept is decided when it is made, and what is made of a pending one
// then is for tests of claims.
var modelSecretRoles = []modelRole{
	{object{"retrievable": false, "rotation_period": "24h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, accepted: 3, keep: 4, secret: true}},
	{object{"retrievable": false}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, accepted: 3, keep: 4, secret: true}},
	{object{"retrievable": false, "overlap_period": "0s", "rollback_window": 0, "max_accepted_versions": 2}, refRole{maxOverlap: 12 * time.Hour, accepted: 2, keep: 4, secret: true}},
	{object{"retrievable": false, "activation_delay": "30m"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, delay: 30 * time.Minute, accepted: 3, keep: 4, secret: true}},
	{object{"retrievable": false, "rotation_period": "24h", "version_ttl": "48h"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, period: 24 * time.Hour, ttl: 48 * time.Hour, accepted: 3, keep: 4, secret: true}},
	{object{"retrievable": false, "rotation_period": "24h", "activation_delay": "30m"}, refRole{overlap: time.Hour, maxOverlap: 12 * time.Hour, rollback: 4 * time.Hour, delay: 30 * time.Minute, period: 24 * time.Hour, accepted: 3, keep: 4, secret: true}},
}

// modelRoleNames are the roles, and modelNames the keys.
var (
	modelRoleNames = []string{"r", "s", "t"}
	modelNames     = []string{"k0", "k1", "k2"}
)

func modelRolesOf(name string) []modelRole {
	if name == "t" {
		return modelSecretRoles
	}
	return modelRoles
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
	// forgetful tells that a crash or a failure may have lost counts since they
	// were last compared, and failed that storage has ever failed.
	forgetful, failed bool
	// jobs are the roles with a rotation of all keys under way, and rounds the
	// number of the last one of each role.
	jobs   map[string]bool
	rounds map[string]int
	// stray are roles that may have leased keys of which nobody was told.
	stray map[string]bool
	// focus is the key that all requests are about, "" for any.
	focus string
	// silent tells that nobody uses versions that are superseded.
	silent bool
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
	// inbox is the receiver of the webhook, of whose messages so many were read.
	inbox *inbox
	read  int
	// process counts the starts of the engine.
	process int
	// seen is what all plays have come to.
	seen *modelPaths
}

func newModelMachine(t *rapid.T, seen *modelPaths) *modelMachine {
	memory := storetest.NewMemory()
	x := &modelMachine{
		T: t, faulty: storetest.NewFaulty(memory), latest: epoch, loaded: epoch, wall: epoch,
		ref:    &reference{roles: map[string]refRole{}, keys: map[string]*refKey{}, buried: map[string]bool{}},
		leases: map[string]*logical.Secret{}, jobs: map[string]bool{}, rounds: map[string]int{}, stray: map[string]bool{}, calm: 24 * time.Hour,
		inbox: newInbox(t), process: 1, seen: seen,
	}
	x.m = newMountOn(t, memory, x.faulty, clock.NewManual(epoch))
	x.m.witness = seen.note
	x.still()
	x.ref.leakRate = number(x, x.m.read("config")[fieldLeakRate])
	for _, s := range modelImports {
		x.tokens = append(x.tokens, x.m.secret(s))
	}
	for x.ref.hook == nil {
		x.writeHook()
	}
	for _, role := range modelRoleNames {
		x.writeRole(logical.UpdateOperation, role, rapid.IntRange(0, len(modelRolesOf(role))-1).Draw(t, "role"))
	}
	x.create("k0", "r", "")
	x.create("k1", "t", "")
	return x
}

func (x *modelMachine) now() time.Time { return x.m.clock.Now() }

// look notes what the clock shows.
func (x *modelMachine) look() {
	if now := x.now(); now.After(x.latest) {
		x.latest = now
	}
}

// still stops what works in the background, deliveries of webhooks too: what is
// to be delivered stays in its outbox, until deliver.
func (x *modelMachine) still() {
	x.m.still()
	x.m.engineNow().watch.hooks.Stop()
}

// undecided is the prediction of a model that does not know whether a request
// is granted or refused.
const undecided = 0

// ask makes a request that the model answers, too.
func (x *modelMachine) ask(op logical.Operation, path string, data object, predict func(ref *reference) int) *answer {
	return x.attempt(fmt.Sprintf("%s %s %v", op, path, data), func() *answer { return x.m.request(op, path, data) }, predict)
}

// attempt has send make a request. predict changes a copy of the model, and
// returns the status. What storage fails meanwhile leaves the old state or the
// new.
func (x *modelMachine) attempt(what string, send func() *answer, predict func(ref *reference) int) *answer {
	before, after := x.ref, x.ref.clone()
	want := predict(after)
	stored := x.m.snapshot()
	crashed := x.begin()
	a := send()
	failed := x.end(crashed)
	if want == undecided && slices.Contains([]int{http.StatusOK, http.StatusAccepted, http.StatusBadRequest}, a.status) {
		want = a.status
	}
	switch {
	case a.status >= 500 && failed:
		x.Logf("%s fails", what)
		if want >= 300 || x.fits(before) == "" {
			after = before
		}
	case a.status != want:
		x.Fatalf("at %s %s: got %s, the model says %d", stamp(x.now()), what, a, want)
	case a.status >= 400:
		after = before
		if diff := x.untidied(stored.diff(x.m.snapshot())); diff != "" && !failed {
			x.Fatalf("%s was refused and changed %s", what, diff)
		}
	}
	x.ref = after
	x.tell(failed)
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
		x.calm, x.forgetful, x.failed = 0, true, true
	}
	if failed && crash {
		x.restart()
	}
	return failed
}

func (x *modelMachine) restart() {
	x.m = x.m.reopen()
	x.still()
	x.process++
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
	if x.focus != "" {
		return x.focus
	}
	names := slices.Clone(modelNames)
	for _, name := range modelNames {
		if x.ref.keys[name] != nil {
			names = append(names, name, name)
		}
	}
	return rapid.SampledFrom(names).Draw(x.T, "name")
}

// before is the number of a version to be asked for, often 0, for the one that
// is meant where none is named.
func (x *modelMachine) before() int {
	return rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3, 4}).Draw(x.T, "version")
}

func (x *modelMachine) role() string { return rapid.SampledFrom(modelRoleNames).Draw(x.T, "role") }

func (x *modelMachine) version() int { return rapid.IntRange(1, 5).Draw(x.T, "version") }

// verb is a request about a key that must be there.
func (x *modelMachine) verb(verb, name string, data object, do func(k *refKey, r refRole) bool) *answer {
	return x.ask(logical.UpdateOperation, verb+"/"+name, data, func(ref *reference) int {
		k := ref.keys[name]
		switch {
		case k == nil:
			return http.StatusNotFound
		case !do(k, ref.role(k.role)):
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

// writeRole writes a role, or with a patch changes one that is there.
func (x *modelMachine) writeRole(op logical.Operation, name string, i int) {
	fields := object{
		"scopes": []any{"a", "b"}, "overlap_period": "1h", "max_overlap_period": "12h", "rollback_window": "4h", "max_accepted_versions": 3, "max_versions": 4,
		"activation_delay": 0, "rotation_period": 0, "version_ttl": 0, "extend_until_drained": false, "drain_quiet_period": int(modelQuiet.Seconds()),
		"ttl": int(modelLeaseTTL.Seconds()), "max_ttl": int(modelLeaseMax.Seconds()),
		"rotation_schedule": "", "rotation_jitter": 0, "disable_automated_rotation": false, "overlap_scopes": []any{}, "bound_cidrs": []any{}, "retrievable": true,
	}
	kind := modelRolesOf(name)[i]
	for field, value := range kind.fields {
		fields[field] = value
	}
	now := x.now()
	x.ask(op, "roles/"+name, fields, func(ref *reference) int {
		old, there := ref.roles[name]
		if !there && op == logical.PatchOperation {
			return http.StatusNotFound
		}
		unclaimed := kind.ref.secret && kind.ref.automatic() && !ref.hook.claims(name)
		if unclaimed && !old.automatic() {
			return http.StatusBadRequest
		}
		for _, k := range ref.keys {
			k.waits = k.waits || there && k.role == name && k.overdue(now, old)
		}
		r := kind.ref
		if r.scopes == nil {
			r.scopes = []string{"a", "b"}
		}
		ref.roles[name] = r
		if unclaimed {
			return http.StatusOK // with a warning: its rotations wait
		}
		return http.StatusNoContent
	})
}

func (x *modelMachine) create(name, role, imported string) {
	spec := refSpec{name: name, role: role, imported: imported, hashed: imported != "" && rapid.Bool().Draw(x.T, "hashed")}
	data := object{fieldRole: role}
	switch {
	case spec.hashed:
		data[fieldImportSHA256] = token.Sum(imported).Hex()
	case imported != "":
		data[fieldImportKey] = imported
	}
	if rapid.Bool().Draw(x.T, "own scopes") {
		spec.scopes, data[fieldScopes] = []string{"a"}, []any{"a"}
	}
	switch rapid.IntRange(0, 5).Draw(x.T, "more") {
	case 0:
		spec.ranges, data[fieldBoundCIDRs] = []string{"10.1.0.0/16"}, []any{"10.1.0.0/16"}
	case 1:
		spec.note, data[fieldMetadata] = "x", object{"note": "x"}
	}
	now := x.now()
	a := x.ask(logical.UpdateOperation, "keys/"+name, data, func(ref *reference) int {
		if !ref.create(now, spec) {
			return http.StatusBadRequest
		}
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
	x.create(name, x.role(), rapid.SampledFrom(append([]string{"", ""}, modelImports...)).Draw(x.T, "import"))
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
	number, newer, force := x.before(), rapid.IntRange(0, 3).Draw(x.T, "revoke_newer") == 0, rapid.Bool().Draw(x.T, "force")
	x.verb("rollback", x.name(), object{fieldVersion: number, fieldRevokeNewer: newer, fieldForce: force}, func(k *refKey, r refRole) bool {
		return k.rollback(x.now(), r, number, newer, force)
	})
}

func (x *modelMachine) extend() {
	number := x.before()
	by := rapid.SampledFrom([]time.Duration{0, 30 * time.Minute, 3 * time.Hour, 11 * time.Hour}).Draw(x.T, "by")
	x.verb("extend", x.name(), object{fieldVersion: number, fieldOverlapPeriod: int(by.Seconds())}, func(k *refKey, r refRole) bool {
		return k.extend(x.now(), r, number, by)
	})
}

func (x *modelMachine) retire() {
	number, name, force := x.before(), x.name(), rapid.IntRange(0, 2).Draw(x.T, "force") > 0
	x.ask(logical.UpdateOperation, "retire/"+name, object{fieldVersion: number, fieldForce: force}, func(ref *reference) int {
		k := ref.keys[name]
		if k == nil {
			return http.StatusNotFound
		}
		now := k.now(x.now())
		k.settle(now)
		v := k.candidate(number, func(v *refVersion) bool { return v.state == "retiring" })
		switch {
		case v == nil || v.state != "retiring", !force && x.usedLately(v):
			return http.StatusBadRequest
		case !force:
			k.retireNow(x.now(), number)
			return undecided // it may have sources that have not moved
		}
		k.retireNow(x.now(), number)
		return http.StatusOK
	})
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
	x.ownScopes(name, a)
}

// ownScopes has storage tell whether a key has scopes of its own after a change
// of them failed: where the role's are the same, nothing else shows it.
func (x *modelMachine) ownScopes(name string, a *answer) {
	k := x.ref.keys[name]
	if k == nil || a.status < 500 {
		return
	}
	stored, err := x.m.engineNow().store.Key(x.Context(), x.m.keyID(name))
	if err != nil {
		x.Fatal(err)
	}
	k.scopes = nil
	if stored.Scopes != nil {
		k.scopes = *stored.Scopes
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
	role := x.role()
	op := rapid.SampledFrom([]logical.Operation{logical.UpdateOperation, logical.PatchOperation}).Draw(x.T, "op")
	x.writeRole(op, role, rapid.IntRange(0, len(modelRolesOf(role))-1).Draw(x.T, "as"))
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
	used := v.used
	x.requests++
	a := x.ask(logical.UpdateOperation, "usage", object{"verifier": "edge", "boot": "b", "sequence": x.requests, "reported_through": stamp(x.now()), "entries": []any{
		object{fieldKeyID: x.m.keyID(name), fieldVersion: v.number, fieldSource: "edge", "count": 3},
	}}, func(ref *reference) int {
		one := ref.keys[name].version(v.number)
		one.used += 3
		one.lastUsed = x.now()
		return http.StatusOK
	})
	if one := x.ref.keys[name].version(v.number); a.status >= 500 && one.used == used {
		one.used += 3 // it may have been counted all the same
	}
}

func (x *modelMachine) rotateRole() {
	role := x.role()
	running := x.jobs[role]
	a := x.ask(logical.UpdateOperation, "roles/"+role+"/rotate", object{fieldForce: true}, func(ref *reference) int {
		_, there := ref.roles[role]
		switch {
		case !there:
			return http.StatusNotFound
		case running:
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
	if a.status >= http.StatusInternalServerError {
		x.askJob(role)
	} else if a.status != http.StatusNotFound {
		x.jobs[role] = true // it was under way before, or is now
	}
	if x.jobs[role] && !running {
		x.rounds[role]++
	}
}

// askJob has the engine say whether a job is under way, where storage has
// failed and may have taken its start or its end.
func (x *modelMachine) askJob(role string) {
	progress := x.m.request(logical.ReadOperation, "roles/"+role+"/rotate", nil)
	x.jobs[role] = progress.status == http.StatusOK && progress.data[fieldState] == jobs.JobRunning
}

// advance lets time pass, often to about one of the instants that matter.
func (x *modelMachine) advance() {
	now, to := x.now(), []time.Time{}
	for _, k := range x.ref.keys {
		if r := x.ref.role(k.role); r.automatic() {
			for _, late := range []time.Duration{0, 2 * time.Minute} {
				if t := r.next(k.rotated).Add(late); t.After(now) {
					to = append(to, t)
				}
			}
		}
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
	for _, c := range x.ref.claims {
		for _, by := range []time.Duration{-time.Millisecond, 0} {
			if t := c.expires.Add(by); t.After(now) && !c.used {
				to = append(to, t)
			}
		}
	}
	slices.SortFunc(to, time.Time.Compare)
	d := rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Minute, 59 * time.Minute, 5 * time.Hour, 25 * time.Hour}).Draw(x.T, "for")
	if len(to) > 0 && rapid.Bool().Draw(x.T, "to an instant") {
		until := rapid.SampledFrom(to).Draw(x.T, "until")
		// The engine's clock has whole milliseconds, and some instants, such as the
		// middle of an overlap, have not.
		d = until.Add(time.Millisecond - 1).Truncate(time.Millisecond).Sub(now)
	}
	x.m.clock.Advance(d)
	x.look()
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
	crash, running := x.begin(), maps.Clone(x.jobs)
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
		if err == nil {
			err = e.watch.endClaims(x.Context())
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
	x.follow(!suspended, err == nil && !suspended, running)
	x.tell(failed)
}

// follow brings the model up with what happened by itself, all of which must
// be allowed. done tells that everything due has been done, and running which
// roles were being rotated before.
func (x *modelMachine) follow(may, done bool, running map[string]bool) {
	for name, k := range x.ref.keys {
		stored := x.stored(name, k)
		if stored == nil {
			if k.leased && k.acceptedAt(k.now(x.latest)) == 0 {
				delete(x.ref.keys, name) // forgotten a day after its end
				continue
			}
			x.Fatalf("%s is gone", name)
		}
		r := x.ref.role(k.role)
		if may {
			x.putOff(name, k, stored, r)
		}
		if !may || x.differs(k, stored) == "" {
			continue
		}
		next := k.clone()
		next.tick(x.now(), r)
		x.drained(next, stored)
		x.rotations(name, next, stored, r, running[k.role], done)
		if diff := x.differs(next, stored); diff != "" {
			x.Fatalf("at %s, after a tick, %s: %s", stamp(x.now()), name, diff)
		}
		x.ref.keys[name] = next
	}
	for name, k := range x.ref.keys {
		k.waits = k.waits && !done
		// Where storage has failed, a rotation may have been taken for another one.
		if done && !x.failed && running[k.role] && x.ref.role(k.role).unattended() && !k.leased && !k.disabled && !k.dormant && k.in("pending") == nil && k.job != x.rounds[k.role] {
			x.Fatalf("at %s the rotation of role %s has finished and left %s out", stamp(x.now()), k.role, name)
		}
	}
	if done && x.calm > 4*time.Hour {
		x.nothingOverdue()
	}
}

// putOff follows a promotion that waits another hour because nobody could claim
// what becomes active.
func (x *modelMachine) putOff(name string, k *refKey, stored object, r refRole) {
	v := k.in("pending")
	if v == nil {
		return
	}
	for _, shown := range versions(x, stored) {
		if number(x, shown[fieldVersion]) != v.number || shown["promote_time"] == nil {
			continue
		}
		later := k.now(x.now()).Add(time.Hour)
		if at := moment(x, shown["promote_time"]); at.Equal(later) && !at.Equal(v.promoteAt) && v.handover && !r.claimable {
			v.promoteAt = later
		} else if !at.Equal(v.promoteAt) {
			x.Fatalf("at %s version %d of %s is to be promoted at %s, the model says %s", stamp(x.now()), v.number, name, stamp(at), stamp(v.promoteAt))
		}
	}
}

// usedLately tells of a version that it was used within the quiet period, or
// that this cannot be known: that forbids to take it for drained.
func (x *modelMachine) usedLately(v *refVersion) bool {
	return v.lastUsed.After(x.loaded) && x.now().Sub(v.lastUsed) < modelQuiet || x.now().Sub(x.loaded) < modelQuiet
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
		if x.usedLately(v) || now.Before(v.overlapEnds) || !v.until.After(v.overlapEnds) {
			continue // only a rotation that needed its room explains that
		}
		v.retire(now)
	}
}

// rotations follows what a key was rotated by itself since the tick before:
// once where it was due, and once by a rotation of its role that was under way
// and had not rotated it before. Where no key is kept neither happens while nobody
// could claim the new one. Where either may explain a rotation, it is that of the
// role if that has finished.
func (x *modelMachine) rotations(name string, k *refKey, stored object, r refRole, running, done bool) {
	latest := number(x, versions(x, stored)[0][fieldVersion])
	if latest == k.latest() {
		return
	}
	due, job := k.due(x.now(), r), running && k.job != x.rounds[k.role] && r.unattended()
	why := "neither is so"
	for _, way := range []struct{ due, job bool }{{due: !done, job: done}, {due: done, job: !done}, {due: true, job: true}} {
		if way.due && !due || way.job && !job {
			continue
		}
		next := k.clone()
		if way.due && !x.rotated(next, stored, r, false) || way.job && !x.rotated(next, stored, r, true) {
			why = "that is not allowed"
			continue
		}
		if why = x.differs(next, stored); why == "" {
			*k = *next
			return
		}
	}
	x.Fatalf("at %s %s was rotated from version %d to %d, its role being rotated: %t, it being due: %t; %s",
		stamp(x.now()), name, k.latest(), latest, job, due, why)
}

// rotated is a rotation that nobody asked for, by the schedule or by a job that
// was told to force. It tells whether that is allowed.
func (x *modelMachine) rotated(k *refKey, stored object, r refRole, job bool) bool {
	now := k.now(x.now())
	o := rotation{force: job}
	// Where age is about to end the active version, a full window does not keep it
	// from a successor.
	if _, final := k.lastChance(r); !job && !final.IsZero() && !now.Before(final) {
		o.room = 1
	}
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
	if _, ok := k.rotate(x.now(), r, o); !ok {
		return false
	}
	if job {
		k.job = x.rounds[k.role]
	}
	return true
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
	if meta, there := shown[fieldMetadata]; there {
		note, _ := aMap(x, meta)["note"].(string)
		if ranges := fmt.Sprint(shown[fieldBoundCIDRs]); note != k.note || ranges != fmt.Sprint(k.ranges) {
			return fmt.Sprintf("its note is %q and its ranges are %s, want %q and %v", note, ranges, k.note, k.ranges)
		}
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
	for _, name := range modelNames {
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
	for _, name := range modelRoleNames {
		a := x.m.request(logical.ReadOperation, "roles/"+name, nil)
		r, there := ref.roles[name]
		if there != (a.status == http.StatusOK) {
			return fmt.Sprintf("role %s is answered with %d", name, a.status)
		}
		if !there {
			continue
		}
		shown, schedule := a.data, ""
		if r.daily > 0 {
			schedule = "0 6 * * *"
		}
		// All that may differ between two of them, so that each is recognised.
		got := fmt.Sprint(shown["overlap_period"], shown["version_ttl"], shown["rotation_period"], shown["max_accepted_versions"],
			shown["rollback_window"], shown["activation_delay"], shown["extend_until_drained"], shown[fieldScopes], shown[fieldOverlapScopes], shown[fieldBoundCIDRs],
			shown["retrievable"], shown["rotation_schedule"], shown["rotation_jitter"], shown["disable_automated_rotation"])
		if want := fmt.Sprint(r.overlap.Seconds(), r.ttl.Seconds(), r.period.Seconds(), r.accepted,
			r.rollback.Seconds(), r.delay.Seconds(), r.drain, r.scopes, r.late, r.ranges, !r.secret, schedule, r.jitter, r.manual); got != want {
			return fmt.Sprintf("role %s is %s, want %s", name, got, want)
		}
	}
	return x.settingsFit(ref)
}

// check holds after every step: what the routes show, the verdict on every
// token ever given out, what clients are served, and the rules.
func (x *modelMachine) check() {
	fault := x.fault
	x.fault = nil
	defer func() { x.fault = fault }()
	x.look()
	if diff := x.fits(x.ref); diff != "" {
		x.Fatalf("at %s %s", stamp(x.now()), diff)
	}
	for name, k := range x.ref.keys {
		x.checkRecorded(name, k)
		if !k.leased {
			x.checkServed(name, k)
			x.checkUse(name, k)
			x.checkPast(name, k)
		}
	}
	x.forgetful = false
	x.checkLists()
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
	if code, _, _ := x.ref.verdict(x.now(), refAsk{token: v.token, ip: "10.1.2.3"}); code != "VALID" && !k.disabled {
		x.Fatalf("what static-creds of %s gives out is %s", name, code)
	}
}

// checkVerdicts asks for every token, in a batch, and for one alone.
func (x *modelMachine) checkVerdicts() {
	x.requests++
	common := refAsk{ip: []string{"", "10.1.2.3", "10.9.9.9", "192.0.2.1"}[x.requests%4]}
	if x.requests%3 == 0 {
		common.scopes = []string{"b"}
	}
	tokens := slices.DeleteFunc(slices.Clone(x.tokens[max(0, len(x.tokens)-40):]), func(presented string) bool {
		k, v := x.ref.find(presented)
		return x.silent && v != nil && v.at(k.now(x.now())) == "retiring"
	})
	if len(tokens) == 0 {
		return
	}
	items := []any{"not a map", object{fieldSource: "eu"}, object{fieldAPIKey: tokens[0], fieldSourceIP: "nowhere"}}
	faults := len(items)
	for _, presented := range tokens {
		item := object{fieldAPIKey: presented, fieldSource: "eu"}
		if common.ip != "" {
			item[fieldSourceIP] = common.ip
		}
		if len(common.scopes) > 0 {
			item[fieldScopes] = []any{"b"}
		}
		items = append(items, item)
	}
	results := list(x, x.m.write("verify", object{fieldBatchInput: items})[fieldBatchResults])
	for _, result := range results[:faults] {
		if aMap(x, result)["error"] == nil {
			x.Fatalf("a bad item is answered %v", result)
		}
	}
	for i, presented := range tokens {
		one := common
		one.token = presented
		x.checkVerdict(aMap(x, results[faults+i]), one)
	}
	presented := tokens[x.requests%len(tokens)]
	x.checkVerdict(x.m.write("verify", object{fieldAPIKey: presented}), refAsk{token: presented})
}

func (x *modelMachine) checkVerdict(got object, ask refAsk) {
	ask.imported = slices.Contains(modelImports, ask.token)
	want, k, v := x.ref.verdict(x.now(), ask)
	if want == "MALFORMED" && got["code"] == "NOT_FOUND" && ask.imported && x.failed {
		// An import that storage has cut off leaves the mark that there may be some.
		x.ref.imports, want = true, "NOT_FOUND"
	}
	if got["code"] != want || got["valid"] != (want == "VALID") {
		x.Fatalf("at %s verify answers %v, the model says %s: %+v", stamp(x.now()), got, want, v)
	}
	if v == nil {
		if want == "NOT_FOUND" && len(got) != 2 {
			x.Fatalf("of an unknown token verify tells %v", got)
		}
		return
	}
	now := k.now(x.now())
	if number(x, got[fieldVersion]) != v.number || got[fieldState] != v.at(now) {
		x.Fatalf("verify answers %v, the model says version %d, %s", got, v.number, v.at(now))
	}
	if scopes := x.ref.scopesOf(k, v, now); fmt.Sprint(got[fieldScopes]) != fmt.Sprint(scopes) {
		x.Fatalf("verify answers %v, the model says that the scopes are %v", got, scopes)
	}
	if want == "VALID" {
		v.used++
		v.lastUsed = x.now()
	}
}

// modelPlays is how many times rapid plays at once: each plays -rapid.checks
// sequences, 100 unless told otherwise.
const modelPlays = 3

// TestTheMountBehavesAsItsModel plays random requests, ticks, restarts, moves
// of the clock and failures of storage.
func TestTheMountBehavesAsItsModel(t *testing.T) {
	t.Parallel()
	var played atomic.Int64
	seen := &modelPaths{}
	play := func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			if raceDetector && played.Load() >= 10 {
				return // it is slow, and has nothing to find here; without it many more are played
			}
			played.Add(1)
			playModel(newModelMachine(t, seen))
		})
	}
	t.Run("plays", func(t *testing.T) {
		for n := range modelPlays {
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				play(t)
			})
		}
	})
	if t.Failed() || played.Load() < 300 {
		return
	}
	// What is rare may not have come by chance. What never comes is not played.
	missing := seen.missing(t)
	for range 10 {
		if len(missing) == 0 {
			return
		}
		play(t)
		missing = seen.missing(t)
	}
	t.Errorf("in %d plays the model has not seen granted: %q", played.Load(), missing)
}

// playModel plays one sequence. What changes the versions of keys comes often,
// and the rest in groups of which one is drawn.
func playModel(x *modelMachine) {
	one := func(of ...func()) func() {
		return func() { of[rapid.IntRange(0, len(of)-1).Draw(x.T, "which")]() }
	}
	verb := one(x.promote, x.rollback, x.extend, x.retire, x.revoke)
	pass := func() {
		x.silent = rapid.Bool().Draw(x.T, "silent")
		x.advance()
		x.tick()
	}
	actions := map[string]func(*rapid.T){"": func(*rapid.T) { x.check() }}
	for name, do := range map[string]func(){
		"rotate": x.rotate, "verb": verb, "rotate and more": func() {
			x.focus = x.name()
			defer func() { x.focus = "" }()
			x.rotate()
			if k := x.ref.keys[x.focus]; k != nil && k.in("pending") != nil && rapid.Bool().Draw(x.T, "promote") {
				x.promote()
			}
			one(verb, verb, pass)()
		},
		"create": one(x.createSome, x.createSome, x.importBatch), "change a key": one(x.toggle, x.rescope, x.update, x.remove),
		"change a role": one(x.changeRole, x.changeRole, x.writeRoleBadly, x.removeRole), "rotate a role": x.rotateRole,
		"use": one(x.confirm, x.report), "lease": one(x.lease, x.rotateLease, x.renewLease, x.endLease, x.treatLease),
		"settings": one(x.writeHook, x.configure, x.removeHook, x.testHook, x.writeHook),
		"claim": one(func() {
			one(x.rotate, pass)()
			x.deliver()
			x.redeem()
		}, func() {
			x.deliver()
			one(verb, x.reload, x.breakStorage, x.breakStorage, x.remove, x.advance)()
			x.redeem()
		}, x.redeem, x.redeem),
		"advance": x.advance, "pass": pass, "pass again": pass, "leap": x.leap, "restart": x.reload, "break storage": x.breakStorage, "tick": x.tick,
	} {
		actions[name] = func(*rapid.T) { do() }
	}
	x.Repeat(actions)
	x.Repeat(actions) // as long again
}
