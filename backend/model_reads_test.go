// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// settingsFit says in what the settings of the mount differ from ref, "" for
// nothing.
func (x *modelMachine) settingsFit(ref *reference) string {
	if got := number(x, x.m.read(configPattern)[fieldLeakRate]); got != ref.leakRate {
		return fmt.Sprintf("leak_rate is %d, want %d", got, ref.leakRate)
	}
	a := x.m.request(logical.ReadOperation, "webhooks/claims", nil)
	if (a.status == http.StatusOK) != (ref.hook != nil) {
		return fmt.Sprintf("the webhook is answered with %d", a.status)
	}
	if ref.hook == nil {
		return ""
	}
	if got, want := fmt.Sprint(a.data[fieldEnabled], a.data[fieldEvents], a.data[fieldRoles], a.data[fieldDeliver]), fmt.Sprint(ref.hook.enabled, []string{ref.hook.events}, ref.hook.roles, ref.hook.deliver); got != want {
		return fmt.Sprintf("the webhook is %s, want %s", got, want)
	}
	return ""
}

// checkUse: a use is counted once, and none is lost but by a crash or a failure
// of storage.
func (x *modelMachine) checkUse(name string, k *refKey) {
	all := aMap(x, x.m.read("usage/" + name)["versions"])
	for _, shown := range versions(x, x.m.read("keys/"+name)) {
		v, got := k.version(number(x, shown[fieldVersion])), number(x, shown["use_count"])
		if got > v.used || got < v.used && !x.forgetful {
			x.Fatalf("at %s version %d of %s is said to have been used %d times, the model says %d", stamp(x.now()), v.number, name, got, v.used)
		}
		again := 0
		if one, there := all[strconv.Itoa(v.number)]; there {
			again = number(x, aMap(x, one)["use_count"])
		}
		if again != got {
			x.Fatalf("keys says that version %d of %s was used %d times, and usage %d", v.number, name, got, again)
		}
		v.used = got // what was lost stays so
	}
}

// checkPast: the history of a key is in order, says who did what, and tells of each
// version once.
func (x *modelMachine) checkPast(name string, k *refKey) {
	all := list(x, x.m.read("history/" + name)["transitions"])
	made, last := map[int]bool{}, time.Time{}
	for i, one := range slices.Backward(all) {
		transition := aMap(x, one)
		at := moment(x, transition["time"])
		if at.Before(last) {
			x.Fatalf("transition %d of %s is of %s, before one that is older", i+1, name, stamp(at))
		}
		last = at
		if transition["actor"] == "" {
			x.Fatalf("the history of %s does not say who did what it tells: %v", name, transition)
		}
		if transition["type"] != "version.created" {
			continue
		}
		n := number(x, transition[fieldVersion])
		if made[n] || n > k.latest() {
			x.Fatalf("the history of %s, whose last version is %d, says again or too early that version %d was made", name, k.latest(), n)
		}
		made[n] = true
	}
	if len(all) < 100 && !made[k.latest()] {
		x.Fatalf("the history of %s does not say that version %d was made", name, k.latest())
	}
	if len(all) < 100 {
		x.checkClaims(k, all)
	}
	now := k.now(x.now())
	active := k.in("active")
	rolls := k.in("pending") != nil && active != nil && active.accepted(now) || k.acceptedRetiring(now)
	if a := x.m.request(logical.ReadOperation, "rollovers/"+name, nil); rolls && a.status != http.StatusOK || a.status >= 500 {
		x.Fatalf("at %s the rollover of %s is answered %s", stamp(x.now()), name, a)
	}
}

// acceptedRetiring tells whether a version is superseded and accepted.
func (k *refKey) acceptedRetiring(now time.Time) bool {
	return slices.ContainsFunc(k.versions, func(v *refVersion) bool { return v.at(now) == "retiring" })
}

// checkLists: lists name what there is.
func (x *modelMachine) checkLists() {
	named, rolling, of := []string{}, []string{}, map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(x.ref.keys)) {
		k := x.ref.keys[name]
		if k.leased {
			continue
		}
		named, of[k.role] = append(named, name), append(of[k.role], name)
		if k.in("pending") != nil || k.acceptedRetiring(k.now(x.now())) {
			rolling = append(rolling, name)
		}
	}
	// A name that a failure has left without a key is listed until it is used.
	if got := x.m.list("keys/", nil); !subset(named, got) || len(got) != len(named) && !x.failed {
		x.Fatalf("there are the keys %v, and listed are %v", named, got)
	}
	for _, role := range modelRoleNames {
		if got := x.m.list("keys/", object{fieldRole: role}); !slices.Equal(got, append([]string{}, of[role]...)) {
			x.Fatalf("role %s has the keys %v, and listed are %v", role, of[role], got)
		}
	}
	if got, want := x.m.list("roles/", nil), append([]string{}, slices.Sorted(maps.Keys(x.ref.roles))...); !slices.Equal(got, want) {
		x.Fatalf("there are the roles %v, and listed are %v", want, got)
	}
	hooks := []string{}
	if x.ref.hook != nil {
		hooks = []string{"claims"}
	}
	if got := x.m.list("webhooks/", nil); !slices.Equal(got, hooks) {
		x.Fatalf("there are the webhooks %v, and listed are %v", hooks, got)
	}
	if got := x.m.list("rollovers/", nil); !subset(rolling, got) || !subset(got, named) {
		x.Fatalf("at %s rolling over are %v, and listed are %v", stamp(x.now()), rolling, got)
	}
	if got := x.m.read("info")["schema"]; got != 1.0 {
		x.Fatalf("the schema is %v", got)
	}
	x.m.read("metrics")
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(one string) bool { return !slices.Contains(all, one) })
}

// modelPaths are the operations that the model's requests have come to, and how
// often they were granted, and what else has come. It is safe for concurrent use.
type modelPaths struct {
	mu      sync.Mutex
	granted map[string]int
}

func (p *modelPaths) note(path *framework.Path, op logical.Operation, status int) {
	if path != nil && status < 300 {
		p.come(fmt.Sprintf("%s %s", op, shown(path.Pattern)))
	}
}

func (p *modelPaths) come(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.granted == nil {
		p.granted = map[string]int{}
	}
	p.granted[what]++
}

// missing are the operations that the model has not seen granted yet, and what
// becomes of codes that it has not seen.
func (p *modelPaths) missing(t *testing.T) []string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var missing []string
	for _, path := range newMount(t).Paths {
		for op := range path.Operations {
			if what := fmt.Sprintf("%s %s", op, shown(path.Pattern)); p.granted[what] == 0 {
				missing = append(missing, what)
			}
		}
	}
	for _, what := range modelCodes {
		if p.granted[what] == 0 {
			missing = append(missing, what)
		}
	}
	return missing
}
