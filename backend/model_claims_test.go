// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto/rand"
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
)

// unknownClaim has the form of a code.
var unknownClaim = "claim_20458_" + base64.RawURLEncoding.EncodeToString(make([]byte, 32))

// modelCodes are what has to become of codes in all plays together.
var modelCodes = []string{
	"a code of a key that is stored", "a code of a key that nobody has seen", "a code that is unknown", "a code that is used before",
	"a code that is past its life", "a code that is of a version that has ended", "a code that is of a deleted key",
}

// tell has all that is owed told to the webhook, as happens after each change.
// After a crash, or a failure, no tick is waited for.
func (x *modelMachine) tell(failed bool) {
	x.m.tell()
	for _, name := range slices.Sorted(maps.Keys(x.ref.keys)) {
		k := x.ref.keys[name]
		if k.id == "" {
			k.id = x.m.idOf(name, k.leased)
		}
		if failed {
			if err := x.m.engineNow().keeper.CopyOwed(x.Context(), k.id); err != nil {
				x.Fatalf("what is owed of %s cannot be told: %v", name, err)
			}
		}
		x.ref.tell(k)
	}
}

// deliver lets the webhook deliver what waits for it, one message after the
// other, and takes up what has come. Beside that nothing else happens, so that it
// is known which operation of storage fails.
func (x *modelMachine) deliver() {
	e := x.m.engineNow()
	hooks := webhook.New(webhook.Options{
		Storage: e.store.Webhooks(), Claims: e.watch.claims, Clock: x.m.clock, Rand: rand.Reader, Logger: x.m.Logger(), Parallel: 1,
	})
	if err := hooks.Recover(x.Context()); err != nil {
		x.Fatal(err)
	}
	e.watch.hooks = hooks
	crash := x.begin()
	hooks.Start()
	eventually(x, "the outbox empty, or a failure of storage", func() bool { return x.m.nothingPending() || x.faulty.Failed() > 0 })
	hooks.Stop()
	failed := x.end(crash)
	for _, p := range x.inbox.posts()[x.read:] {
		x.read++
		x.arrive(p)
	}
	for _, c := range x.ref.claims {
		if c.message == "" && !c.passed && !failed && x.ref.hook.enabled {
			x.Fatalf("at %s nobody was told that version %d of %s is active", stamp(x.now()), c.version, c.id)
		}
	}
}

// arrive takes up a message: a code has a whole life before it, and is the same
// where a message comes again.
func (x *modelMachine) arrive(p arrival) {
	code, _ := p.data["claim_code"].(string)
	message := p.header.Get("webhook-id")
	var c *refClaim
	for i := range x.ref.claims {
		one := &x.ref.claims[i]
		if p.kind != webhook.EventClaimed || one.id != p.data[fieldKeyID] || one.version != number(x, p.data[fieldVersion]) {
			continue
		}
		if one.message == message || one.message == "" && c == nil {
			c = one
		}
	}
	switch {
	case c == nil && code != "":
		if k := x.ref.byID(text(x, p.data[fieldKeyID])); k != nil || !x.failed { // else nobody was told of the key
			x.Fatalf("%s has a code, and the model knows of none: %v", message, p.data)
		}
		return
	case c == nil:
		return
	}
	if c.message = message; c.passed {
		return
	}
	switch {
	case (code != "") != (x.ref.hook.deliver == "claim"):
		x.Fatalf("the webhook delivers %s, and a message is %v", x.ref.hook.deliver, p.data)
	case code == "":
		return
	case c.code != "" && c.code != code, slices.ContainsFunc(x.ref.claims, func(o refClaim) bool { return o.code == code && o.message != message }):
		x.Fatalf("%s has another code than before, or that of another message", message)
	}
	expires, life := moment(x, p.data["claim_expires"]), c.life
	switch whole := x.now().Add(life); {
	case expires.Equal(whole):
	case x.failed && expires.Sub(x.now()) > life/2 && !expires.After(x.latest.Add(life)): // attempts before this one were cut off
	case (c.used || c.unsure != 0) && expires.Equal(c.expires):
	default:
		x.Fatalf("at %s the code of %s is good until %s, the model says %s", stamp(x.now()), message, stamp(expires), stamp(whole))
	}
	c.code, c.expires = x.m.secret(code), expires
}

// redeem presents a code, often one that came lately and has not been redeemed.
func (x *modelMachine) redeem() {
	var fresh, others []string
	for _, c := range slices.Backward(x.ref.claims) {
		revived := x.now().Before(c.expires) && !x.latest.Before(c.expires) // a clock that was set back: the key in it may be gone
		if c.code == "" || c.handed && revived {
			continue
		}
		if c.used {
			others = append(others, c.code)
		} else {
			fresh = append(fresh, c.code)
		}
	}
	if len(fresh) == 0 || rapid.IntRange(0, 3).Draw(x.T, "which") == 2 {
		fresh = append(others, "nonsense", unknownClaim)
	}
	code := rapid.SampledFrom(fresh).Draw(x.T, "code")
	var want int
	var why string
	var k *refKey
	var v *refVersion
	process := x.process
	a := x.attempt("the redemption of a code", func() *answer {
		a := x.m.request(logical.UpdateOperation, claimPattern, object{"code": code})
		if a.status == http.StatusBadRequest && (want == http.StatusAccepted || want == undecided) {
			a.status = http.StatusAccepted
		}
		return a
	}, func(ref *reference) int {
		want, why, k, v = ref.redeem(x.now(), process, code)
		return want
	})
	switch {
	case a.status >= 500:
		if c := x.ref.claim(code); c != nil && c.unsure == 0 {
			c.unsure = process
		}
		return
	case a.status != http.StatusOK:
		x.seen.come("a code that is " + why)
		return
	case a.data[fieldKeyID] != k.id || number(x, a.data[fieldVersion]) != v.number || !k.leased && a.data[fieldName] != k.name:
		x.Fatalf("a code of version %d of %s is answered %s", v.number, k.id, a)
	}
	switch {
	case v.readable:
		x.seen.come("a code of a key that is stored")
	case v.token == "":
		x.seen.come("a code of a key that nobody has seen")
	}
	name := k.name
	if k.leased {
		name = k.id
	}
	x.issued(name, v.number, a)
}

// checkClaims: the history of a key says of each code once that it was redeemed,
// and once that it was tried again.
func (x *modelMachine) checkClaims(k *refKey, past []any) {
	for _, c := range x.ref.claims {
		if c.id != k.id || c.code == "" {
			continue
		}
		told := map[any]int{}
		for _, one := range past {
			if transition := aMap(x, one); transition["detail"] == "delivered by webhook claims as message "+c.message {
				told[transition["type"]]++
			}
		}
		known := !x.failed && x.latest.Before(c.expires.Add(7*24*time.Hour)) // after that a code is forgotten
		for event, happened := range map[string]bool{"claim.redeemed": c.used, "claim.reused": c.reused} {
			if n := told[event]; n > 1 || n == 1 && !happened && c.unsure == 0 || n == 0 && happened && known {
				x.Fatalf("at %s %s of %s is told %d times; it was redeemed: %t, and again: %t", stamp(x.now()), event, c.message, n, c.used, c.reused)
			}
		}
	}
}
