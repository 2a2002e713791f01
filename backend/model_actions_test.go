// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// writeRoleBadly writes a role that no role may be.
func (x *modelMachine) writeRoleBadly() {
	role := x.role()
	bad := rapid.SampledFrom([]object{
		{"overlap_period": "13h"}, // above max_overlap_period
		{"max_versions": 1},       // below max_accepted_versions
	}).Draw(x.T, "bad")
	x.ask(logical.PatchOperation, "roles/"+role, bad, func(ref *reference) int {
		if _, there := ref.roles[role]; !there {
			return http.StatusNotFound
		}
		return http.StatusBadRequest
	})
}

// removeRole deletes a role, which no living key may have. Leased keys that
// have ended go on the way.
func (x *modelMachine) removeRole() {
	role := x.role()
	living, ended := 0, []string{}
	for name, k := range x.ref.keys {
		switch {
		case k.role != role:
		case k.leased && k.acceptedAt(k.now(x.now())) == 0:
			ended = append(ended, name)
		default:
			living++
		}
	}
	switch {
	case x.stray[role]:
		x.Skip("it may have keys that nobody was told of")
	case len(ended) > 0 && (living > 0 || x.fault != nil):
		x.Skip("a request that fails or is refused may remove keys that have ended")
	case living == 0 && rapid.IntRange(0, 2).Draw(x.T, "seldom") > 0:
		x.Skip("roles should live for a while")
	}
	a := x.ask(logical.DeleteOperation, "roles/"+role, nil, func(ref *reference) int {
		if living > 0 {
			return http.StatusBadRequest
		}
		for _, name := range ended {
			ref.remove(name)
		}
		delete(ref.roles, role)
		return http.StatusNoContent
	})
	switch {
	case a.status < 300:
		x.jobs[role] = false
	case a.status >= 500:
		x.askJob(role)
	}
}

// update changes a key by a write or a patch of any of its fields.
func (x *modelMachine) update() {
	name := x.name()
	if x.ref.keys[name] == nil {
		x.Skip("no key")
	}
	op := rapid.SampledFrom([]logical.Operation{logical.UpdateOperation, logical.PatchOperation}).Draw(x.T, "op")
	data := object{}
	scopes := rapid.SampledFrom([]string{"", "", "a", "b", "z", "role's"}).Draw(x.T, "scopes")
	if op != logical.PatchOperation && scopes == "role's" {
		scopes = "" // only a patch can have null
	}
	if scopes == "role's" {
		data[fieldScopes] = nil
	} else if scopes != "" {
		data[fieldScopes] = []any{scopes}
	}
	ranges := rapid.SampledFrom([]string{"", "", "10.1.0.0/16", "10.0.0.0/99", "none"}).Draw(x.T, "ranges")
	if ranges == "none" {
		data[fieldBoundCIDRs] = []any{}
	} else if ranges != "" {
		data[fieldBoundCIDRs] = []any{ranges}
	}
	note := rapid.SampledFrom([]string{"", "x", "none"}).Draw(x.T, "note")
	if note == "none" {
		data[fieldMetadata] = object{}
	} else if note != "" {
		data[fieldMetadata] = object{"note": note}
	}
	role := rapid.SampledFrom(append([]string{"", "", ""}, modelRoleNames...)).Draw(x.T, "role")
	if role != "" {
		data[fieldRole] = role
	}
	imported := rapid.SampledFrom(append([]string{"", "", ""}, modelImports...)).Draw(x.T, "import")
	if imported != "" {
		data[fieldImportKey] = imported
	}
	enabled := rapid.SampledFrom([]string{"", "", "true", "false"}).Draw(x.T, "enabled")
	if enabled != "" {
		data[fieldEnabled] = enabled == "true"
	}
	a := x.ask(op, "keys/"+name, data, func(ref *reference) int {
		k := ref.keys[name]
		if role != "" && role != k.role || imported != "" && imported != k.imported || ranges == "10.0.0.0/99" ||
			scopes != "" && scopes != "role's" && !slices.Contains(ref.roles[k.role].scopes, scopes) {
			return http.StatusBadRequest
		}
		switch scopes {
		case "":
		case "role's":
			k.scopes = nil
		default:
			k.scopes = []string{scopes}
		}
		switch ranges {
		case "":
		case "none":
			k.ranges = nil
		default:
			k.ranges = []string{ranges}
		}
		switch note {
		case "":
		case "none":
			k.note = ""
		default:
			k.note = note
		}
		if enabled != "" {
			k.disabled = enabled == "false"
		}
		return http.StatusNoContent
	})
	x.ownScopes(name, a)
}

// importBatch imports several keys at once, some of which cannot be.
func (x *modelMachine) importBatch() {
	count := 1 // what fails half-way leaves some imported
	if x.fault == nil {
		count = rapid.IntRange(1, 3).Draw(x.T, "items")
	}
	items, specs := []any{}, []*refSpec{}
	for range count {
		switch rapid.IntRange(0, 6).Draw(x.T, "item") {
		case 0:
			items, specs = append(items, "not a map"), append(specs, nil)
		case 1:
			items, specs = append(items, object{fieldName: "k1", fieldRole: "r"}), append(specs, nil)
		default:
			spec := &refSpec{name: x.name(), role: x.role(), imported: rapid.SampledFrom(modelImports).Draw(x.T, "import"), hashed: rapid.Bool().Draw(x.T, "hashed")}
			item := object{fieldName: spec.name, fieldRole: spec.role}
			if spec.hashed {
				item[fieldImportSHA256] = token.Sum(spec.imported).Hex()
			} else {
				item[fieldImportKey] = spec.imported
			}
			items, specs = append(items, item), append(specs, spec)
		}
	}
	now, want := x.now(), []bool{}
	a := x.ask(logical.UpdateOperation, importPattern, object{fieldBatchInput: items}, func(ref *reference) int {
		for _, spec := range specs {
			want = append(want, spec != nil && ref.create(now, *spec))
		}
		return http.StatusOK
	})
	x.ref.imports = x.ref.imports || x.hasImports()
	if a.status != http.StatusOK {
		return
	}
	for i, result := range list(x, a.data[fieldBatchResults]) {
		if granted := aMap(x, result)["error"] == nil; granted != want[i] {
			x.Fatalf("item %d of %v is answered %v, the model says that it is imported: %t", i+1, items, result, want[i])
		}
	}
}

// configure changes the configuration of the mount.
func (x *modelMachine) configure() {
	n := rapid.SampledFrom([]int{1, 60, maxLeakRate + 1}).Draw(x.T, "leak_rate")
	op := rapid.SampledFrom([]logical.Operation{logical.UpdateOperation, logical.PatchOperation}).Draw(x.T, "op")
	x.ask(op, configPattern, object{fieldLeakRate: n}, func(ref *reference) int {
		if n > maxLeakRate {
			return http.StatusBadRequest
		}
		ref.leakRate = n
		return http.StatusNoContent
	})
}

// writeHook makes the webhook, or changes it.
func (x *modelMachine) writeHook() {
	next := refHook{
		enabled: rapid.SampledFrom([]bool{true, true, false, true}).Draw(x.T, "enabled"), events: rapid.SampledFrom([]string{"version.*", "*", "key.*", "version.activated"}).Draw(x.T, "events"),
		deliver: rapid.SampledFrom([]string{"claim", "claim", "event", "claim"}).Draw(x.T, "deliver"),
		roles:   rapid.SampledFrom([][]string{{}, {"t"}, {}, {"r"}, {}, {"t", "r"}}).Draw(x.T, "roles"),
	}
	op := rapid.SampledFrom([]logical.Operation{logical.UpdateOperation, logical.PatchOperation, logical.UpdateOperation}).Draw(x.T, "op")
	data := object{fieldURL: x.inbox.URL, fieldAllowPrivate: true, fieldEnabled: next.enabled, fieldEvents: []any{next.events}, fieldRoles: next.roles, fieldDeliver: next.deliver}
	misses := false
	a := x.attempt("write a webhook", func() *answer {
		a := x.m.request(op, "webhooks/claims", data)
		if a.status == http.StatusOK { // it answers the secret of a new one
			a.status = http.StatusNoContent
		}
		return a
	}, func(ref *reference) int {
		if ref.hook == nil && op == logical.PatchOperation {
			return http.StatusNotFound
		}
		misses = ref.misses(&next)
		ref.hook = &next
		return http.StatusNoContent
	})
	x.checkMissed("written", a, misses)
}

// checkMissed: who takes away the last webhook that hands over the keys of a role
// is warned.
func (x *modelMachine) checkMissed(how string, a *answer, misses bool) {
	warned := slices.ContainsFunc(a.warnings, func(w string) bool { return strings.Contains(w, "rotations of their keys wait") })
	// Where storage fails, it is not known whom to warn of.
	if a.status == http.StatusNoContent && warned != misses && !(x.failed && misses) {
		x.Fatalf("the webhook is %s with a warning: %v, the model says %v", how, warned, misses)
	}
}

func (x *modelMachine) removeHook() {
	if rapid.IntRange(0, 2).Draw(x.T, "seldom") > 0 {
		x.Skip("it should live for a while")
	}
	misses := false
	a := x.attempt("delete the webhook", func() *answer {
		a := x.m.request(logical.DeleteOperation, "webhooks/claims", nil)
		if a.status == http.StatusOK { // it warns
			a.status = http.StatusNoContent
		}
		return a
	}, func(ref *reference) int {
		misses = ref.misses(nil)
		ref.hook = nil
		ref.claims = slices.DeleteFunc(ref.claims, func(c refClaim) bool { return c.message == "" }) // what waits for it goes along
		return http.StatusNoContent
	})
	x.checkMissed("deleted", a, misses)
}

// testHook sends a message that is no event.
func (x *modelMachine) testHook() {
	a := x.ask(logical.UpdateOperation, "webhooks/claims/test", nil, func(ref *reference) int {
		if ref.hook == nil {
			return http.StatusNotFound
		}
		return http.StatusOK
	})
	if a.status == http.StatusOK && a.data["delivered"] != true {
		x.Fatalf("a message that was received is answered %s", a)
	}
}

// lease makes a leased key, and the others are what its holder and Vault do
// with it.
func (x *modelMachine) lease() {
	role := x.role()
	a := x.ask(logical.ReadOperation, "creds/"+role, nil, func(ref *reference) int {
		if _, there := ref.roles[role]; !there {
			return http.StatusNotFound
		}
		return http.StatusOK
	})
	if a.status >= 500 {
		x.stray[role] = true
	}
	if a.status != http.StatusOK {
		return
	}
	id, ok := a.data[fieldKeyID].(string)
	if !ok || a.secret == nil {
		x.Fatalf("creds answers %s", a)
	}
	now, r := x.now(), x.ref.roles[role]
	k := &refKey{role: role, leased: true, recorded: now, maxExpire: now.Add(modelLeaseMax)}
	k.activate(now, r, k.add(r))
	k.versions[0].expire = now.Add(modelLeaseTTL)
	x.ref.keys[id] = k
	x.tell(false)
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
		v, ok := k.rotate(x.now(), ref.role(k.role), rotation{})
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

// aLease is one of which the machine knows, with the key and the version that
// it keeps alive.
func (x *modelMachine) aLease() (id string, number int, lease *logical.Secret) {
	id = x.leasedID()
	number = rapid.SampledFrom(x.ref.keys[id].versions).Draw(x.T, "of").number
	lease = x.leases[fmt.Sprintf("%s %d", id, number)]
	if lease == nil {
		x.Skip("its lease was never seen")
	}
	return id, number, lease
}

func (x *modelMachine) renewLease() {
	id, number, lease := x.aLease()
	x.attempt("a renewal of "+id, func() *answer {
		a := x.m.renew(lease, 0)
		if a.status == http.StatusOK { // with a warning
			a.status = http.StatusNoContent
		}
		return a
	}, func(ref *reference) int {
		k := ref.keys[id]
		v, now, limit := k.version(number), k.now(x.now()), k.maxExpire
		if v.at(now) == "retiring" {
			limit = soonest(limit, v.until)
		}
		if !v.accepted(now) || limit.Sub(now) < time.Second {
			return http.StatusBadRequest
		}
		k.settle(now)
		v.expire = soonest(now.Add(modelLeaseTTL), limit)
		return http.StatusNoContent
	})
}

func (x *modelMachine) endLease() {
	id, number, lease := x.aLease()
	x.attempt("the end of a lease of "+id, func() *answer { return x.m.endLease(lease) }, func(ref *reference) int {
		k := ref.keys[id]
		if v := k.version(number); !v.final() {
			now := k.now(x.now())
			k.settle(now)
			v.end("revoked", now)
		}
		return http.StatusNoContent
	})
}

// treatLease asks of a leased key what only a named one has, and the other way
// round, and as somebody who did not make it.
func (x *modelMachine) treatLease() {
	id := x.leasedID()
	verb := rapid.SampledFrom([]string{
		"rotate", "promote", "rollback", "extend", "retire", "revoke", "confirm", "a named key", "by another",
	}).Draw(x.T, "verb")
	switch verb {
	case "a named key":
		name := x.name()
		if x.ref.keys[name] == nil {
			x.Skip("no key")
		}
		x.ask(logical.UpdateOperation, "rotate-leased/"+x.m.keyID(name), nil, func(*reference) int { return http.StatusNotFound })
	case "by another":
		x.attempt("rotate-leased/"+id+" by another", func() *answer {
			m := x.m
			entity := m.entity
			m.entity = "entity-2"
			defer func() { m.entity = entity }()
			return m.request(logical.UpdateOperation, "rotate-leased/"+id, nil)
		}, func(*reference) int { return http.StatusForbidden })
	default:
		data := object{fieldVersion: 1}
		if verb == "rotate" {
			data = nil
		}
		x.ask(logical.UpdateOperation, verb+"/"+id, data, func(*reference) int { return http.StatusNotFound })
	}
}
