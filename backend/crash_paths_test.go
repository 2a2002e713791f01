// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// cutWorld is a mount whose operations are cut off at a storage operation.
type cutWorld struct {
	*mount
	faulty *storetest.Faulty
	// lease and leasedID belong to the leased key that a scenario has made.
	lease    *logical.Secret
	leasedID string
	// tokens were given out before the operation, and acmeID is the id of
	// "acme".
	tokens []string
	acmeID string
	// judged is what was answered of each token when it was last asked for, and
	// revived tells that the operation was done, or repeated.
	judged  map[string]judgement
	revived bool
}

// judgement is what verify answered of a token, and when the end of its version
// was to come, as far as that was known then.
type judgement struct {
	code string
	end  time.Time
}

// cut is an operation that is cut off at each of its storage operations.
type cut struct {
	// prepare makes the world before it.
	prepare func(w *cutWorld)
	// do is the operation, and returns the status of its answer. It may be
	// repeated, and is then done or refused.
	do func(w *cutWorld) int
	// ends tells that it may end "acme", or leave it without an active version,
	// and revives that it ends such a state. What is stored has to say so.
	ends, revives bool
	// mayWait tells that a failure to read lets it succeed and do less.
	mayWait bool
	// unused tells that its versions drain: another process is asked for them.
	unused bool
	// later tells how long after the operation there is still something to see.
	later time.Duration
	// holds, where set, checks what holds once it has succeeded, and in the end.
	holds func(w *cutWorld)
}

const (
	cutImport = "imported-elsewhere-0123456789"
	cutOther  = "imported-by-another-0123456789"
)

// post is a write to a route.
func post(path string, data object) func(*cutWorld) int {
	return func(w *cutWorld) int { return w.request(logical.UpdateOperation, path, data).status }
}

// posts are writes to routes, one after the other while they succeed.
func posts(all ...func(*cutWorld) int) func(*cutWorld) int {
	return func(w *cutWorld) (status int) {
		for _, do := range all {
			if status = do(w); status >= 300 {
				return status
			}
		}
		return status
	}
}

func erase(path string) func(*cutWorld) int {
	return func(w *cutWorld) int { return w.request(logical.DeleteOperation, path, nil).status }
}

// ticked is what the periodic function does d after the beginning.
func ticked(d time.Duration) func(*cutWorld) int {
	return func(w *cutWorld) int {
		if left := epoch.Add(d).Sub(w.clock.Now()); left > 0 {
			w.clock.Advance(left)
		}
		return w.oneTick()
	}
}

// oneTick does what the workers do that the periodic function wakes.
func (w *cutWorld) oneTick() int {
	e, err := w.engine(w.t.Context(), w.storage)
	if err == nil {
		_, err = e.ticker.Tick(w.t.Context())
	}
	if err == nil {
		err = e.watch.flush(w.t.Context())
	}
	if err == nil {
		err = e.watch.endClaims(w.t.Context())
	}
	if err == nil {
		err = e.bulk.Run(w.t.Context())
	}
	if err == nil {
		err = e.refileLost(w.t.Context())
	}
	if err != nil {
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

// still stops what works in the background, so that a test knows which storage
// operation is which.
func (m *mount) still() {
	e := m.opened()
	if e == nil {
		return
	}
	e.telling.Stop(clock.System().After)
	e.work.Stop(clock.System().After)
	e.heal.Stop(clock.System().After)
}

// restart starts an engine on what is stored, as after a crash: nothing that the
// former one still does, or stores as it ends, reaches it.
func (w *cutWorld) restart() {
	w.t.Helper()
	memory, secrets := w.memory.Clone(), w.secrets
	w.faulty = storetest.NewFaulty(memory)
	w.mount = newMountOn(w.t, memory, w.faulty, w.clock)
	maps.Copy(w.secrets, secrets)
	w.still()
}

// branch is the same world on storage of its own.
func (w *cutWorld) branch(t *testing.T) *cutWorld {
	t.Helper()
	memory, now := w.memory.Clone(), clock.NewManual(w.clock.Now())
	next := &cutWorld{faulty: storetest.NewFaulty(memory), lease: w.lease, leasedID: w.leasedID, tokens: w.tokens, acmeID: w.acmeID}
	next.mount = newMountOn(t, memory, next.faulty, now)
	for _, s := range w.tokens {
		next.secret(s)
	}
	next.still()
	return next
}

func minutes(n int) time.Duration { return time.Duration(n) * time.Minute }

// acme is a key of the role r, rotated d after the beginning with these fields,
// and another d later.
func acme(rotations ...object) func(*cutWorld) {
	return func(w *cutWorld) {
		w.role(object{"overlap_period": "1h", "rollback_window": "4h", "max_overlap_period": "12h", "scopes": []any{"a", "b"}})
		w.key("acme", nil)
		for _, fields := range rotations {
			w.pass(minutes(10))
			w.rotate("acme", fields)
		}
		w.pass(minutes(10))
	}
}

// automatic is a key that rotates every day.
func automatic(fields object) func(*cutWorld) {
	return func(w *cutWorld) {
		role := object{"overlap_period": "1h", "rotation_period": "24h", "rollback_window": "2h"}
		maps.Copy(role, fields)
		w.role(role)
		w.key("acme", nil)
	}
}

func then(all ...func(*cutWorld)) func(*cutWorld) {
	return func(w *cutWorld) {
		for _, do := range all {
			do(w)
		}
	}
}

// must is an operation that succeeds.
func must(do func(*cutWorld) int) func(*cutWorld) {
	return func(w *cutWorld) {
		w.t.Helper()
		if status := do(w); status >= 300 {
			w.t.Fatalf("what a scenario begins with is answered %d", status)
		}
	}
}

func leasedKey(w *cutWorld) {
	acme()(w)
	w.role(object{"ttl": "1h", "max_ttl": "6h"})
	_, w.leasedID, w.lease = w.mount.lease()
}

// endedLeases are all that the role "empty" has: one that was ended, and one
// whose time is over.
func endedLeases(w *cutWorld) {
	acme()(w)
	w.write("roles/empty", object{"ttl": "1h", "max_ttl": "2h"})
	_, _, lease := w.leased(w.request(logical.ReadOperation, "creds/empty", nil))
	_, _, _ = w.leased(w.request(logical.ReadOperation, "creds/empty", nil))
	must(func(w *cutWorld) int { return w.endLease(lease).status })(w)
	must(ticked(minutes(75)))(w)
}

// offered has keptCode stand for version 1 of a key, which is stored nowhere else
// where it is given.
func offered(w *cutWorld, name, presented string) {
	claim := object{"key_id": w.keyID(name), "version": 1, "hook": "log", "event_id": w.keyID(name) + ".1"}
	if presented != "" {
		sealed, err := w.engineNow().store.Seal(w.keyID(name), 1, presented)
		if err != nil {
			w.t.Fatal(err)
		}
		claim["sealed"] = sealed
	}
	w.putClaim(claim)
}

// handedOver is a key that is kept nowhere but in a claim.
func handedOver(w *cutWorld) {
	acme()(w)
	w.write("roles/new", object{"retrievable": false})
	offered(w, "new", text(w.t, w.write("keys/new", object{fieldRole: "new"})[fieldAPIKey]))
}

// tells is how often the history of a key tells of an event.
func (w *cutWorld) tells(name string, event keyring.EventType) (n int) {
	w.t.Helper()
	for _, e := range w.stored(w.keyID(name)).History {
		if e.Type == event {
			n++
		}
	}
	return n
}

// redeemed is that the history tells, once, of a claim on a key.
func redeemed(name string) func(w *cutWorld) {
	return func(w *cutWorld) {
		if n := w.tells(name, keyring.EventClaimRedeemed); n != 1 {
			w.t.Errorf("that the claim was redeemed is told %d times", n)
		}
	}
}

// knowsVerifier is that the next process knows of it, so that nothing is taken for
// drained that it may have seen.
func knowsVerifier(w *cutWorld) {
	if _, known := w.another().engineNow().keeper.Book.Reports.Verifier(verifierName("entity:"+w.entity, "edge")); !known {
		w.t.Error("a verifier that was heard from is not known after a restart")
	}
}

// knowsUnnamed is the same of one that asks without a name.
func knowsUnnamed(w *cutWorld) {
	reports := object{}
	w.entry("reports", &reports)
	if reports["unnamed"] == nil {
		w.t.Error("that somebody asked without a name is not known after a restart")
	}
}

// several are keys of one role.
func several(w *cutWorld) {
	acme()(w)
	for i := range 2 {
		w.key(fmt.Sprintf("more-%d", i), nil)
	}
}

// cuts are the operations of the routes that write, and what happens by itself.
func cuts() map[string]cut {
	verifyAll := func(w *cutWorld) int {
		status := 0
		for i, presented := range w.tokens {
			a := w.request(logical.UpdateOperation, "verify", object{fieldAPIKey: presented, fieldSource: fmt.Sprintf("s%d", i%2)})
			if status = a.status; status >= 300 {
				return status
			}
		}
		return status
	}
	report := func(w *cutWorld) int {
		return post("usage", object{"verifier": "edge", "boot": "b", "sequence": 1, "reported_through": stamp(epoch), "entries": []any{
			object{fieldKeyID: w.acmeID, fieldVersion: 1, fieldSource: "eu", "count": 5}}})(w)
	}
	renew := func(w *cutWorld) int { return w.renew(w.lease, 2*time.Hour).status }
	end := func(w *cutWorld) int { return w.endLease(w.lease).status }
	rotateLease := func(w *cutWorld) int { return post("rotate-leased/"+w.leasedID, object{"overlap_period": "10m"})(w) }
	creds := func(w *cutWorld) int { return w.request(logical.ReadOperation, "creds/r", nil).status }
	rollovers := func(w *cutWorld) int { return w.request(logical.ListOperation, "rollovers/", nil).status % 404 }
	sweep := func(w *cutWorld) int {
		w.clock.Advance(minutes(65))
		return post("sweep", nil)(w)
	}
	imported := then(acme(), must(post("keys/brought", object{fieldRole: "r", fieldImportKey: cutImport})))
	emptyRole := then(acme(), must(post("roles/empty", nil)), must(post("roles/empty/rotate", nil)))
	claim := post("claim", object{"code": keptCode})
	heard := func(w *cutWorld) int {
		return w.request(logical.ReadOperation, "sync", object{"verifier": "edge", "boot": "b"}).status
	}
	lookedUp := func(w *cutWorld) int { return post("lookup", object{"key_ids": []any{w.acmeID}})(w) }
	heardUnnamed := func(w *cutWorld) int {
		at := w.request(logical.ReadOperation, "sync", nil).data
		return w.request(logical.ReadOperation, "sync", object{fieldEpoch: at[fieldEpoch], fieldSeq: at[fieldSeq]}).status
	}
	// Nobody listens there, and it wants no events.
	testable := then(acme(), must(post("webhooks/new", object{"url": "http://127.0.0.1:1/", "allow_private": true, "events": []any{"incident.*"}})))
	return map[string]cut{
		"create":                     {prepare: acme(), do: post("keys/new", object{fieldRole: "r", fieldScopes: []any{"a"}})},
		"create disabled":            {prepare: acme(), do: post("keys/new", object{fieldRole: "r", fieldEnabled: false})},
		"import":                     {prepare: acme(), do: post("keys/new", object{fieldRole: "r", fieldImportKey: cutImport})},
		"import a digest":            {prepare: imported, do: post("keys/new", object{fieldRole: "r", fieldImportSHA256: strings.Repeat("a1", 32)})},
		"import a batch":             {prepare: imported, do: post("import", object{"batch_input": []any{object{fieldName: "b1", fieldRole: "r", fieldImportKey: cutOther}, object{fieldName: "acme", fieldRole: "r", fieldImportKey: cutOther + "x"}, object{fieldName: "b2", fieldRole: "r", fieldImportSHA256: strings.Repeat("b2", 32)}}})},
		"change":                     {prepare: acme(), do: post("keys/acme", object{fieldScopes: []any{"a"}, fieldMetadata: object{"n": "v"}})},
		"disable":                    {prepare: acme(nil), do: post("keys/acme", object{fieldEnabled: false}), ends: true},
		"enable with one overdue":    {prepare: then(automatic(nil), must(post("keys/acme", object{fieldEnabled: false})), must(ticked(30*time.Hour))), do: post("keys/acme", object{fieldEnabled: true}), revives: true},
		"rotate":                     {prepare: acme(), do: post("rotate/acme", object{"request_id": "once"})},
		"rotate again":               {prepare: acme(nil), do: post("rotate/acme", nil)},
		"rotate into a full space":   {prepare: acme(nil, nil), do: post("rotate/acme", object{"force": true, "request_id": "once"})},
		"rotate with a delay":        {prepare: acme(), do: post("rotate/acme", object{"activation_delay": "30m", "request_id": "once"})},
		"cut over":                   {prepare: acme(), do: post("rotate/acme", object{"overlap_period": 0, "request_id": "once"})},
		"rotate an import":           {prepare: imported, do: post("rotate/brought", object{"request_id": "once"})},
		"narrow the former":          {prepare: acme(), do: post("rotate/acme", object{"overlap_scopes": []any{"a"}, "request_id": "once"})},
		"promote":                    {prepare: acme(object{"activation_delay": "2h"}), do: post("promote/acme", nil)},
		"roll back":                  {prepare: acme(nil), do: post("rollback/acme", object{fieldVersion: 1})},
		"roll back to a retired":     {prepare: then(acme(nil), must(ticked(minutes(100)))), do: post("rollback/acme", object{fieldVersion: 1})},
		"roll back for good":         {prepare: acme(nil), do: post("rollback/acme", object{fieldVersion: 1, fieldRevokeNewer: true})},
		"extend":                     {prepare: acme(nil), do: post("extend/acme", object{fieldVersion: 1, fieldOverlapPeriod: "3h"})},
		"extend what is retired":     {prepare: then(acme(nil), must(ticked(minutes(100)))), do: post("extend/acme", object{fieldVersion: 1, fieldOverlapPeriod: "3h"})},
		"retire":                     {prepare: acme(nil), do: post("retire/acme", object{fieldForce: true})},
		"revoke":                     {prepare: acme(nil), do: post("revoke/acme", object{fieldVersion: 1})},
		"compromise":                 {prepare: acme(nil), do: post("revoke/acme", object{fieldVersion: 2, fieldCompromised: true, fieldRotate: true})},
		"compromise all":             {prepare: acme(nil, nil), do: post("revoke/acme", object{fieldAll: true, fieldCompromised: true, fieldRotate: true})},
		"revoke all":                 {prepare: acme(nil), do: post("revoke/acme", object{fieldAll: true, fieldForce: true}), ends: true},
		"revive":                     {prepare: then(acme(), must(post("revoke/acme", object{fieldAll: true, fieldForce: true}))), do: post("rotate/acme", object{"request_id": "once"}), revives: true},
		"delete":                     {prepare: acme(nil), do: erase("keys/acme"), ends: true},
		"delete an import":           {prepare: imported, do: erase("keys/brought")},
		"delete what leaked":         {prepare: then(acme(nil), must(post("revoke/acme", object{fieldVersion: 1, fieldCompromised: true}))), do: erase("keys/acme"), ends: true},
		"confirm":                    {prepare: acme(nil), do: post("confirm/acme", object{fieldVersion: 2, fieldInstance: "eu-1"})},
		"read creds":                 {prepare: acme(), do: creds, later: 26 * time.Hour},
		"renew":                      {prepare: leasedKey, do: renew, later: 28 * time.Hour},
		"end a lease":                {prepare: leasedKey, do: end, later: 26 * time.Hour},
		"rotate a lease":             {prepare: leasedKey, do: rotateLease, later: 28 * time.Hour},
		"a tick ends a lease":        {prepare: leasedKey, do: ticked(minutes(75)), later: 26 * time.Hour},
		"a tick forgets a lease":     {prepare: then(leasedKey, must(ticked(minutes(75)))), do: ticked(26 * time.Hour), later: 26 * time.Hour},
		"make a role":                {prepare: acme(), do: post("roles/new", object{"overlap_period": "2h"})},
		"change a schedule":          {prepare: automatic(nil), do: posts(post("roles/r", object{"rotation_period": "12h"}), ticked(minutes(1))), later: 13 * time.Hour},
		"delete a role":              {prepare: emptyRole, do: erase("roles/empty")},
		"delete a role of leases":    {prepare: endedLeases, do: erase("roles/empty"), later: 26 * time.Hour},
		"rotate a role":              {prepare: several, do: posts(post("roles/r/rotate", nil), ticked(minutes(12)))},
		"configure":                  {prepare: acme(), do: post("config", object{"leak_rate": 7})},
		"make a webhook":             {prepare: acme(), do: post("webhooks/new", object{"url": "https://example.com/", "enabled": false})},
		"change a webhook":           {prepare: acme(), do: post("webhooks/log", object{"events": []any{"*", "version.*"}})},
		"delete a webhook":           {prepare: then(acme(), must(post("webhooks/new", object{"url": "https://example.com/", "enabled": false})), must(post("rotate/acme", nil)), (*cutWorld).oneTell), do: posts(erase("webhooks/new"), ticked(minutes(30)))},
		"test a webhook":             {prepare: testable, do: post("webhooks/new/test", nil)},
		"claim":                      {prepare: then(acme(), func(w *cutWorld) { offered(w, "acme", "") }), do: posts(claim, ticked(minutes(12))), holds: redeemed("acme")},
		"claim what is kept nowhere": {prepare: handedOver, do: posts(claim, ticked(minutes(12))), holds: redeemed("new")},
		"a claim ends":               {prepare: handedOver, do: ticked(minutes(75))},
		"hear of a verifier":         {prepare: acme(nil), do: posts(heard, ticked(minutes(22))), holds: knowsVerifier},
		"hear from one unnamed":      {prepare: acme(nil), do: posts(heardUnnamed, ticked(minutes(22))), holds: knowsUnnamed},
		"look up":                    {prepare: acme(nil), do: posts(lookedUp, ticked(minutes(22))), holds: knowsUnnamed},
		"verify and flush":           {prepare: imported, do: posts(verifyAll, ticked(minutes(12)))},
		"report and flush":           {prepare: acme(), do: posts(report, ticked(minutes(12)))},
		"flush again":                {prepare: then(acme(nil), must(verifyAll), must(report), must(ticked(minutes(22)))), do: posts(verifyAll, ticked(minutes(24)))},
		"list rollovers":             {prepare: then(acme(nil), must(ticked(6*time.Hour))), do: rollovers},
		"sweep":                      {prepare: acme(nil), do: sweep},
		"a tick rotates":             {prepare: automatic(nil), do: ticked(24 * time.Hour), later: 25 * time.Hour},
		"a tick rotates, late":       {prepare: automatic(nil), do: ticked(240 * time.Hour), later: 25 * time.Hour},
		"a tick of a schedule":       {prepare: automatic(object{"rotation_period": 0, "rotation_schedule": "0 6 * * *", "rotation_window": "2h"}), do: ticked(6*time.Hour + time.Minute), later: 25 * time.Hour},
		"a tick announces":           {prepare: automatic(nil), do: ticked(22 * time.Hour), later: 25 * time.Hour},
		"a tick promotes":            {prepare: acme(object{"activation_delay": "30m"}), do: ticked(minutes(50))},
		"a tick reminds":             {prepare: then(acme(nil), must(verifyAll)), do: ticked(minutes(50))},
		"a tick retires":             {prepare: acme(nil), do: ticked(minutes(80))},
		"a tick drops plaintext":     {prepare: then(acme(nil), must(ticked(minutes(80)))), do: ticked(6 * time.Hour)},
		"a tick looks for drain":     {prepare: then(automatic(object{"extend_until_drained": true, "drain_quiet_period": "10m", "max_overlap_period": "12h"}), must(post("rotate/acme", nil))), do: ticked(minutes(70)), later: 14 * time.Hour, mayWait: true, unused: true},
		"a version reaches its age":  {prepare: automatic(object{"version_ttl": "26h"}), do: ticked(25 * time.Hour), later: 26 * time.Hour},
	}
}

// oneTell copies what is owed to the outboxes.
func (w *cutWorld) oneTell() { _ = w.engineNow().watch.tell(w.t.Context()) }

// sight is what a world shows of one thing, by the name of the thing.
type sight map[string]string

// look reads all that the routes show, without what differs from run to run.
func (w *cutWorld) look() sight {
	w.t.Helper()
	s := sight{}
	note := func(path string) {
		a := w.request(logical.ReadOperation, path, nil)
		if a.status >= 500 {
			w.t.Fatalf("read %s: %s", path, a)
		}
		s[path] = strconv.Itoa(a.status) + " " + toJSON(steady(a.data))
	}
	for _, name := range []string{"acme", "new", "brought", "b1", "b2", "more-0", "more-1"} {
		note("keys/" + name)
	}
	for _, name := range []string{"r", "new", "empty"} {
		note("roles/" + name)
	}
	for _, name := range []string{"log", "new"} {
		note("webhooks/" + name)
	}
	note("config")
	for i, presented := range w.tokens {
		s[fmt.Sprintf("token %d", i+1)] = w.code(presented)
	}
	return s
}

// steady leaves out what is random, and what is told later.
func steady(v any) any {
	switch v := v.(type) {
	case object:
		kept := object{}
		for name, value := range v {
			switch name {
			case fieldKeyID, "fingerprint", "use_count", "last_used_time", "pending", "deliveries":
			default:
				kept[name] = steady(value)
			}
		}
		return kept
	case []any:
		kept := []any{}
		for _, item := range v {
			kept = append(kept, steady(item))
		}
		return kept
	}
	return v
}

// TestEveryCrashAtTheRoutes cuts off every operation of the routes, and every
// kind of work that happens by itself, at each of its storage operations, with
// the process lost or going on, and with the operation that failed having taken
// effect or not. What can be seen then was to be seen before or after one of
// its commits; what was answered holds; no client is refused; everything due is
// done later; every event is told, once; and the operation can be repeated.
func TestEveryCrashAtTheRoutes(t *testing.T) {
	t.Parallel()
	for name, sc := range cuts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := &cutWorld{}
			memory := storetest.NewMemory()
			base.faulty = storetest.NewFaulty(memory)
			base.mount = newMountOn(t, memory, base.faulty, clock.NewManual(epoch))
			base.still()
			// It is told everything, and nobody fetches it.
			base.write("webhooks/log", object{"url": "https://example.com/", "enabled": false})
			sc.prepare(base)
			base.oneTell()
			base.acmeID = base.keyID("acme")
			base.tokens = slices.Sorted(maps.Keys(base.secrets))
			allowed, last := commitsOf(t, base, sc)
			for _, mode := range cutModes() {
				for n, reached := 1, true; reached; n++ {
					t.Run(fmt.Sprintf("operation %d, lost %v, applied %v", n, mode.Rest, mode.Applied), func(t *testing.T) {
						w := base.branch(t)
						fault := mode
						fault.At, fault.Only = n, w.matters
						w.faulty.Inject(fault)
						status := sc.do(w)
						w.oneTell()
						reached = w.faulty.Failed() > 0
						w.faulty.Heal()
						if status >= 400 && status < 500 {
							t.Fatalf("a failure of storage is answered with status %d", status)
						}
						w.recovered(sc, mode.Rest, status < 300, allowed, last)
					})
				}
			}
		})
	}
}

// cutModes are the ways in which an operation is cut off. A crash right after a
// storage operation differs from one before the next in what is answered.
func cutModes() []storetest.Fault {
	if raceDetector || testing.Short() {
		return []storetest.Fault{{Rest: true, WritesOnly: true}, {Applied: true, WritesOnly: true}}
	}
	return []storetest.Fault{{Rest: true}, {}, {Applied: true}, {Rest: true, Applied: true}}
}

// modelIsLarge tells that the tests against the model, and those of crashes,
// are to take their time: make model.
func modelIsLarge() bool { return os.Getenv("APIKEYS_MODEL") == "large" }

// commitsOf runs an operation undisturbed and returns what was to be seen after
// each of its writes, and in the end.
func commitsOf(t *testing.T, base *cutWorld, sc cut) (allowed map[string][]string, last sight) {
	t.Helper()
	allowed = map[string][]string{}
	add := func(s sight) {
		for what, value := range s {
			if !slices.Contains(allowed[what], value) {
				allowed[what] = append(allowed[what], value)
			}
		}
	}
	w := base.branch(t)
	add(w.branch(t).look())
	w.faulty.After(func(op storetest.Op) {
		if op.Kind.Write() {
			add(w.branch(t).look())
		}
	})
	if status := sc.do(w); status >= 300 {
		t.Fatalf("undisturbed, the operation answers %d", status)
	}
	w.oneTell()
	w.faulty.After(nil)
	last = w.look()
	add(last)
	// What time alone changes is to be seen without a write, too.
	idle := base.branch(t)
	idle.clock.Advance(w.clock.Now().Sub(idle.clock.Now()))
	add(idle.look())
	return allowed, last
}

// recovered proves that nothing half-happened and nothing is lost.
func (w *cutWorld) recovered(sc cut, lost, succeeded bool, allowed map[string][]string, last sight) {
	w.t.Helper()
	t := w.t
	if lost {
		w.restart()
	}
	seen := w.look()
	for what, value := range seen {
		if sc.mayWait {
			break
		}
		if !slices.Contains(allowed[what], value) {
			t.Errorf("%s is seen as\n%s\nwhich was never committed:\n%s", what, value, strings.Join(allowed[what], "\n"))
		}
		if succeeded && value != last[what] {
			t.Errorf("the operation succeeded, and %s is seen as\n%s\nwant\n%s", what, value, last[what])
		}
	}
	if !lost {
		for what, value := range w.another().look() {
			if seen[what] != value {
				t.Errorf("the process believes of %s\n%s\nand stored is\n%s", what, seen[what], value)
			}
		}
	}
	w.revived = succeeded
	if succeeded && sc.holds != nil {
		sc.holds(w)
	}
	w.rules(sc)
	// A minute later a tick has caught up, and the operation is repeated.
	w.clock.Advance(time.Minute)
	w.settled()
	w.rules(sc)
	if status := sc.do(w); status >= 500 {
		t.Errorf("repeated, the operation answers %d", status)
	}
	w.done()
	w.settled()
	if sc.holds != nil {
		sc.holds(w)
	}
	w.rules(sc)
	// Later everything due has been done, by ticks that come seldom.
	step := max(sc.later, 7*time.Hour) / 4
	if modelIsLarge() {
		step = minutes(59)
	}
	for end := w.clock.Now().Add(4 * step); w.clock.Now().Before(end); {
		w.clock.Advance(step)
		w.settled()
		w.rules(sc)
	}
	w.atTheEnd()
}

// matters leaves out the looks of a job into the 256 parts of a role's members
// that hold nothing: one is like the other, and like that before the first key.
func (w *cutWorld) matters(op storetest.Op) bool {
	return op.Kind != storetest.List || !strings.HasPrefix(op.Path, "member/") || len(w.memory.Paths(op.Path)) > 0
}

// another is another process on the same storage.
func (w *cutWorld) another() *cutWorld {
	t, ok := w.t.(*testing.T)
	if !ok {
		w.t.Fatal("not a test")
	}
	return w.branch(t)
}

// settled is a tick that nothing disturbs, and what it has others do.
func (w *cutWorld) settled() {
	w.t.Helper()
	if status := w.oneTick(); status >= 300 {
		w.t.Fatal("a tick that nothing disturbs fails")
	}
	w.tell()
}

// keys are all that are stored, tombstones too.
func (w *cutWorld) keys() (all []*keyring.Key) {
	w.t.Helper()
	for _, path := range w.memory.Paths("key/") {
		k := &keyring.Key{}
		w.entry(path, k)
		all = append(all, k)
	}
	return all
}

func (w *cutWorld) entry(path string, v any) {
	w.t.Helper()
	entry, err := w.memory.Get(w.t.Context(), path)
	if err != nil || entry == nil {
		w.t.Fatalf("read %s: %v", path, err)
	}
	if err := json.Unmarshal(entry.Value, v); err != nil {
		w.t.Fatalf("read %s: %v", path, err)
	}
}

// done tells that the operation was: what it made of tokens is judged anew, but
// what can never be accepted again.
func (w *cutWorld) done() {
	w.revived = true
	for presented, was := range w.judged {
		if was.code != "REVOKED" && was.code != "COMPROMISED" {
			delete(w.judged, presented)
		}
	}
}

// judge asks for every token that was ever given out. Between two operations
// what has ended stays so, and what is accepted ends when it was to end.
func (w *cutWorld) judge(sc cut) {
	w.t.Helper()
	asked := w
	if sc.unused {
		asked = w.another()
	}
	if w.judged == nil {
		w.judged = map[string]judgement{}
	}
	w.mu.Lock()
	tokens := slices.Sorted(maps.Keys(w.secrets))
	w.mu.Unlock()
	keys, now := w.keys(), w.clock.Now()
	for i, presented := range tokens {
		v := versionOf(keys, presented)
		is, was := judgement{code: asked.code(presented), end: plannedEnd(v)}, w.judged[presented]
		w.judged[presented] = is
		switch {
		case was.code == "" || was.code == is.code:
		case was.code == "VALID":
			if now.Before(was.end) || v == nil || plannedEnd(v).IsZero() || now.Before(plannedEnd(v)) {
				w.t.Errorf("at %s token %d is %s, which was to end at %s: %+v", now, i+1, is.code, was.end, v)
			}
		case is.code == "VALID", was.code == "COMPROMISED", was.code == "NOT_FOUND",
			was.code == "REVOKED" && is.code != "COMPROMISED" && is.code != "NOT_FOUND":
			w.t.Errorf("at %s token %d, which was %s, is %s", now, i+1, was.code, is.code)
		}
	}
}

// versionOf is the version, as it is stored, that a token is; nil where no key
// has it.
func versionOf(keys []*keyring.Key, presented string) *keyring.Version {
	digest := token.Sum(presented)
	for _, k := range keys {
		for i := range k.Versions {
			if k.Versions[i].Digest == digest {
				return &k.Versions[i]
			}
		}
	}
	return nil
}

// plannedEnd is the earliest end of a version that is known; zero where none is.
func plannedEnd(v *keyring.Version) (end time.Time) {
	if v == nil {
		return end
	}
	for _, at := range []time.Time{v.OverlapEnds, v.AcceptedUntil, v.ExpireTime} {
		if !at.IsZero() && (end.IsZero() || at.Before(end)) {
			end = at
		}
	}
	return end
}

// endedOnPurpose tells whether it is stored that the version which nothing
// superseded was revoked, and whether none is left.
func endedOnPurpose(k *keyring.Key) bool {
	revoked := false
	for _, v := range k.Versions {
		if !v.State.Ended() {
			return false
		}
		revoked = revoked || v.State.Final() && v.SupersededBy == 0
	}
	return revoked
}

// mayBeEnded tells whether the operation can have left "acme" to be refused.
func (w *cutWorld) mayBeEnded(sc cut) bool { return sc.ends || sc.revives && !w.revived }

// rules are those that hold at every moment.
func (w *cutWorld) rules(sc cut) {
	w.t.Helper()
	t := w.t
	w.judge(sc)
	there := false
	for _, k := range w.keys() {
		if k.NextTick != 0 {
			bits := uint64(0)
			if path := fmt.Sprintf("dueh/%06d", k.NextTick/60); len(w.memory.Paths("dueh/")) > 0 && slices.Contains(w.memory.Paths("dueh/"), path) {
				w.entry(path, &bits)
			}
			if !slices.Contains(w.memory.Paths(fmt.Sprintf("due/%08d/", k.NextTick)), fmt.Sprintf("due/%08d/%s", k.NextTick, k.ID)) || bits&(1<<(k.NextTick%60)) == 0 {
				t.Errorf("%s is not filed in its minute, %d", k.Label(), k.NextTick)
			}
		}
		if !k.Deleted.IsZero() {
			continue
		}
		if !slices.ContainsFunc(w.memory.Paths("member/"+k.Role+"/"), func(p string) bool { return strings.HasSuffix(p, "/"+k.ID) }) {
			t.Errorf("%s is not a member of its role", k.Label())
		}
		if k.Name == "" {
			continue
		}
		if got := w.keyID(k.Name); got != k.ID {
			t.Errorf("the name of %s leads to %s", k.Label(), got)
		}
		there = there || k.Name == "acme"
		if k.Disabled || endedOnPurpose(k) {
			if k.Name == "acme" && !w.mayBeEnded(sc) {
				t.Errorf("%s has ended: %s", k.Label(), w.states("acme"))
			}
			continue
		}
		// No gap: what the key's client reads is accepted.
		a := w.request(logical.ReadOperation, "static-creds/"+k.Name, nil)
		if (k.Imported || k.Role == "new") && a.status == http.StatusNotFound && len(k.Accepted(w.clock.Now())) > 0 {
			continue // imported by its hash, or kept nowhere
		}
		if a.status != http.StatusOK {
			t.Errorf("at %s nobody can read %s: %s", w.clock.Now(), k.Label(), a)
			continue
		}
		if code := w.code(text(t, a.data[fieldAPIKey])); code != "VALID" {
			t.Errorf("at %s the current token of %s is %s", w.clock.Now(), k.Label(), code)
		}
	}
	if !there && !w.mayBeEnded(sc) {
		t.Error("acme is gone")
	}
}

// atTheEnd is about what may take a while.
func (w *cutWorld) atTheEnd() {
	w.t.Helper()
	t := w.t
	present := w.clock.Now().Unix() / 60
	for _, path := range w.memory.Paths("due/") {
		if minute, err := strconv.ParseInt(strings.Split(path, "/")[1], 10, 64); err != nil || minute < present {
			t.Errorf("a past minute of the due index holds %s", path)
		}
	}
	living := map[string]bool{}
	events := map[string]uint64{}
	for _, k := range w.keys() {
		events[k.ID] = k.EventSeq
		if k.Deleted.IsZero() && k.Name != "" {
			living[k.Name] = true
		}
		if len(k.Owed) > 0 || k.Cleanup != nil {
			t.Errorf("%s still owes events or a clean-up", k.Label())
		}
		r, err := w.engineNow().keeper.RoleOf(t.Context(), k)
		if err != nil || !k.Deleted.IsZero() {
			continue
		}
		if rotation := w.engineNow().keeper.PlannedRotation(k, r, w.clock.Now()); !rotation.IsZero() && w.clock.Now().Sub(rotation) > minutes(2) {
			t.Errorf("%s should have been rotated at %s", k.Label(), rotation)
		}
		if k.Leased() && w.leasedID == "" && k.CreatedTime.Before(w.clock.Now().Add(-27*time.Hour)) {
			t.Errorf("an ended leased key is still there: %s", k.Label())
		}
	}
	if names := w.list("rollovers/", nil); len(names) > len(living) {
		t.Errorf("rollovers are %v of keys %v", names, living)
	}
	for _, path := range w.memory.Paths("work/") {
		t.Errorf("a job is never finished: %s", path)
	}
	for _, path := range w.memory.Paths("outbox/") {
		if hook := strings.Split(path, "/")[1]; !slices.Contains(w.memory.Paths("webhook/"), "webhook/"+hook) {
			t.Errorf("what waited for a deleted webhook is still there: %s", path)
		}
	}
	for _, path := range w.memory.Paths("claimend/") {
		t.Errorf("what is filed of a claim stays: %s", path)
	}
	for _, path := range w.memory.Paths("claim/") {
		claim := object{}
		if w.entry(path, &claim); claim["sealed"] != nil || claim["untold"] != nil {
			t.Errorf("%s holds a key, or is still to be told", path)
		}
	}
	// Each event of a key from the first on is told once, by its number.
	told := map[string]uint64{}
	for _, path := range w.memory.Paths("outbox/log/") {
		id, number, _ := strings.Cut(strings.TrimPrefix(path, "outbox/log/"), ".")
		if n, err := strconv.ParseUint(number, 10, 64); err != nil || n != told[id]+1 {
			t.Errorf("after event %d of key %s comes %s", told[id], id, path)
		}
		told[id]++
	}
	for id, n := range events {
		if told[id] != n {
			t.Errorf("of key %s %d events are told, and %d have happened", id, told[id], n)
		}
	}
}
