// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// TestAnOverlapCountsFromWhenItIsStored: up to then clients are given the former
// version, and may use it for a while.
func TestAnOverlapCountsFromWhenItIsStored(t *testing.T) {
	t.Parallel()
	const hang = 20 * time.Minute
	for name, c := range map[string]struct {
		prepare func(m *mount, v1 string) (former string)
		change  func(m *mount)
		overlap time.Duration
	}{
		"rotate": {
			func(_ *mount, v1 string) string { return v1 },
			func(m *mount) { m.write("rotate/k", nil) }, 5 * time.Minute,
		},
		"promote": {
			func(m *mount, v1 string) string { m.rotate("k", object{"activation_delay": "30m"}); return v1 },
			func(m *mount) { m.write("promote/k", nil) }, 5 * time.Minute,
		},
		"rollback": {
			func(m *mount, _ string) string { return m.rotate("k", object{"overlap_period": "2h"}) },
			func(m *mount) { m.write("rollback/k", object{"version": 1}) }, 5 * time.Minute,
		},
		"extend": {
			func(m *mount, v1 string) string { m.rotate("k", object{"overlap_period": "25m"}); return v1 },
			func(m *mount) { m.write("extend/k", object{"version": 1, "overlap_period": "30m"}) }, 30 * time.Minute,
		},
		"the schedule": {
			func(m *mount, v1 string) string { m.clock.Advance(24 * time.Hour); return v1 },
			func(m *mount) { m.tick() }, 5 * time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, faulty := faultyMount(t)
			m.role(object{"overlap_period": "5m", "rotation_period": "24h"})
			former := c.prepare(m, m.key("k", nil))
			m.wantCodes("VALID", former) // and is in memory
			var hung atomic.Bool
			faulty.After(func(op storetest.Op) {
				if op.Kind == storetest.Put && strings.HasPrefix(op.Path, "key/") && hung.CompareAndSwap(false, true) {
					m.clock.Advance(hang)
					m.wantCodes("VALID", former)
				}
			})
			c.change(m)
			faulty.After(nil)
			if !hung.Load() {
				t.Fatal("nothing was stored")
			}
			m.clock.Advance(c.overlap - time.Second)
			m.wantCodes("VALID", former)
			m = m.reopen()
			m.wantCodes("VALID", former)
			m.clock.Advance(2 * time.Second)
			m.wantCodes("RETIRED", former)
		})
	}
}

// TestASlowCutOverEndsAtOnce: what is ended deliberately is not put off, and
// neither is what ends by its age.
func TestASlowCutOverEndsAtOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(m *mount)
		after  time.Duration
		want   string
	}{
		"cut over":    {func(m *mount) { m.write("rotate/k", object{"overlap_period": 0}) }, 0, "RETIRED"},
		"revoke":      {func(m *mount) { m.write("revoke/k", object{"version": 1, "rotate": true}) }, 0, "REVOKED"},
		"version_ttl": {func(m *mount) { m.write("rotate/k", object{"overlap_period": "50m"}) }, 40 * time.Minute, "RETIRED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, faulty := faultyMount(t)
			m.role(object{"overlap_period": "5m", "version_ttl": "1h"})
			former := m.key("k", nil)
			var hung atomic.Bool
			faulty.After(func(op storetest.Op) {
				if op.Kind == storetest.Put && strings.HasPrefix(op.Path, "key/") && hung.CompareAndSwap(false, true) {
					m.clock.Advance(20 * time.Minute)
				}
			})
			c.change(m)
			faulty.After(nil)
			m.clock.Advance(c.after)
			m.wantCodes(c.want, former)
		})
	}
}

// TestASlowRotationThatCannotBeStoredAgain: the second time that its key is to be
// stored fails. Either state may be there, and the caller is told.
func TestASlowRotationThatCannotBeStoredAgain(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{false, true} {
		m, faulty := faultyMount(t)
		m.role(object{"overlap_period": "1h"})
		former := m.key("k", nil)
		var hung atomic.Bool
		ofKey := func(op storetest.Op) bool { return op.Kind == storetest.Put && strings.HasPrefix(op.Path, "key/") }
		faulty.After(func(op storetest.Op) {
			if ofKey(op) && hung.CompareAndSwap(false, true) {
				m.clock.Advance(time.Minute)
				faulty.Inject(storetest.Fault{At: 1, Only: ofKey, Applied: applied})
			}
		})
		body := object{"request_id": "one"}
		if a := m.request(logical.UpdateOperation, "rotate/k", body); a.status < 500 {
			t.Fatalf("applied %v: rotate answered %v", applied, a)
		}
		faulty.After(nil)
		m.write("rotate/k", body)
		if got := m.current("k"); got != 2 {
			t.Errorf("applied %v: version %d is the active one, want 2", applied, got)
		}
		m.clock.Advance(58 * time.Minute)
		m.wantCodes("VALID", former)
		m.tick()
		m.clock.Advance(3 * time.Minute)
		m.wantCodes("RETIRED", former)
	}
}
