// SPDX-License-Identifier: MPL-2.0

package store

import (
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

// TestACacheIsBoundedByWeight: what was used longest ago goes, and weights are
// not lost count of, however values are replaced and removed.
func TestACacheIsBoundedByWeight(t *testing.T) {
	t.Parallel()
	const share = 100 // of each stripe
	c := newCache[int](share*cacheStripes, func(weight int) int { return weight }, func() time.Duration { return 0 })
	put := func(key, weight int) {
		c.writing(key).stored(weight, true)
	}
	for round := range 50 {
		for key := range 2000 {
			switch (key + round) % 5 {
			case 0:
				c.remove(key)
			case 1:
				c.reading(key)(10)
			default:
				put(key, 1+(key*7+round)%30)
			}
		}
	}
	for i := range c.stripes {
		s := &c.stripes[i]
		weight := 0
		for _, v := range s.entries.Values() {
			weight += v
		}
		if weight != s.weight || weight > share || weight < share/2 {
			t.Errorf("stripe %d counts %d, weighs %d, and %d are allowed", i, s.weight, weight, share)
		}
	}
	put(1, 1)
	if _, ok := c.get(1); !ok {
		t.Error("what was just stored is not cached")
	}
	put(1, share+1)
	if _, ok := c.get(1); ok {
		t.Error("a value over the limit was kept, or its predecessor")
	}
	c.purge()
	for i := range c.stripes {
		if s := &c.stripes[i]; s.weight != 0 || s.entries.Len() != 0 {
			t.Errorf("stripe %d is not empty", i)
		}
	}
}

func TestKeyBytesGrowWithTheKey(t *testing.T) {
	t.Parallel()
	k := &keyring.Key{Versions: make([]keyring.Version, 1)}
	last := keyBytes(k)
	for what, grow := range map[string]func(){
		"versions":            func() { k.Versions = append(k.Versions, keyring.Version{}) },
		"scopes of a version": func() { k.Versions[0].OverlapScopes = []string{"a"} },
		"planned scopes":      func() { k.Versions[0].PlannedScopes = []string{"a"} },
		"reason":              func() { k.Versions[0].Reason = "a" },
		"history":             func() { k.History = append(k.History, keyring.Event{}) },
		"requests":            func() { k.Requests = append(k.Requests, keyring.Request{}) },
		"scopes":              func() { k.Scopes = &[]string{"a"} },
		"cidrs":               func() { k.BoundCIDRs = []string{"192.0.2.0/24"} },
		"metadata":            func() { k.CustomMetadata = map[string]string{"a": "b"} },
	} {
		grow()
		if now := keyBytes(k); now <= last {
			t.Errorf("%s weigh nothing", what)
		} else {
			last = now
		}
	}
}
