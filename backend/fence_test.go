// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/fence"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// formerLeader is the storage of a node that takes itself for the active one, once
// it has lost its place: Vault's own cache shows entries as they were, lists are
// as the others have them, and nothing can be written.
type formerLeader struct {
	*storetest.Memory
	old atomic.Pointer[storetest.Memory] // nil while it leads
}

func (f *formerLeader) Get(ctx context.Context, path string) (*logical.StorageEntry, error) {
	if old := f.old.Load(); old != nil {
		return old.Get(ctx, path)
	}
	return f.Memory.Get(ctx, path)
}

func (f *formerLeader) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if f.old.Load() != nil {
		return errNoLeader
	}
	return f.Memory.Put(ctx, entry)
}

func (f *formerLeader) Delete(ctx context.Context, path string) error {
	if f.old.Load() != nil {
		return errNoLeader
	}
	return f.Memory.Delete(ctx, path)
}

var errNoLeader = errors.New("node is not the leader")

// fenceLooked waits for a look at storage that is under way.
func (m *mount) fenceLooked() {
	m.t.Helper()
	limit := clock.System().After(10 * time.Second)
	for !m.engineNow().fence.Idle() {
		select {
		case <-limit:
			m.t.Fatal("storage does not answer the fence")
		case <-clock.System().After(time.Millisecond):
		}
	}
}

// twoLeaders is a mount whose keys are cached, and another process that has
// taken charge of it. All that the first one is asked reads old entries.
func twoLeaders(t *testing.T) (first, second *mount, tokens []string) {
	t.Helper()
	memory := storetest.NewMemory()
	storage := &formerLeader{Memory: memory}
	first = newMountOn(t, memory, storage, clock.NewManual(epoch))
	first.role(nil)
	tokens = []string{first.key("acme", nil), first.key("globex", nil)}
	first.wantCodes("VALID VALID", tokens...)
	first.tell()
	storage.old.Store(memory.Clone())
	second = newMountOn(t, memory, memory, first.clock)
	second.write("revoke/acme", object{"version": 1, "force": true})
	second.wantCodes("REVOKED VALID", tokens...)
	return first, second, tokens
}

// TestAProcessThatIsSupersededAnswersNothing: a second after another one has
// taken charge, and storage tells so, no route has a verdict any more.
func TestAProcessThatIsSupersededAnswersNothing(t *testing.T) {
	t.Parallel()
	routes := map[string]func(m *mount, tokens []string) *answer{
		"verify": func(m *mount, tokens []string) *answer {
			return m.request(logical.UpdateOperation, "verify", object{"api_key": tokens[0]})
		},
		"verify, a batch": func(m *mount, tokens []string) *answer {
			return m.request(logical.UpdateOperation, "verify", object{"batch_input": []any{object{"api_key": tokens[0]}, object{"api_key": "of no known form"}}})
		},
		"sync": func(m *mount, _ []string) *answer {
			return m.request(logical.ReadOperation, "sync", object{"verifier": "eu", "boot": "b"})
		},
		"lookup": func(m *mount, _ []string) *answer {
			return m.request(logical.UpdateOperation, "lookup", object{"key_ids": []any{strings.Repeat("a", 12)}})
		},
		"usage": func(m *mount, _ []string) *answer {
			return m.request(logical.UpdateOperation, "usage", object{"verifier": "eu", "boot": "b", "sequence": 1})
		},
		"static-creds": func(m *mount, _ []string) *answer {
			return m.request(logical.ReadOperation, "static-creds/acme", nil)
		},
		"metadata":   func(m *mount, _ []string) *answer { return m.request(logical.ReadOperation, "keys/globex", nil) },
		"a rotation": func(m *mount, _ []string) *answer { return m.request(logical.UpdateOperation, "rotate/globex", nil) },
	}
	for name, ask := range routes {
		for _, idle := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, idle %v", name, idle), func(t *testing.T) {
				t.Parallel()
				first, second, tokens := twoLeaders(t)
				if idle {
					first.clock.Advance(fence.Fresh) // the request itself waits for the answer
				} else {
					first.clock.Advance(fence.Every)
					first.code(tokens[1]) // has storage asked
					first.fenceLooked()
				}
				if a := ask(first, tokens); a.status != http.StatusServiceUnavailable || !strings.Contains(a.errText, "taken charge") || len(a.data) > 0 {
					t.Errorf("the first process answers %s", a)
				}
				second.wantCodes("REVOKED VALID", tokens...)
			})
		}
	}
}

func TestAProcessThatIsSupersededEndsItsWork(t *testing.T) {
	t.Parallel()
	first, second, tokens := twoLeaders(t)
	e := first.engineNow()
	first.clock.Advance(fence.Fresh)
	if a := first.request(logical.UpdateOperation, "verify", object{"api_key": tokens[0]}); a.status != http.StatusServiceUnavailable {
		t.Fatal(a)
	}
	soon(t, 5*time.Second, "standing down", func() {
		for e.store.CachedKey(second.keyID("acme")) != nil {
			<-clock.System().After(time.Millisecond)
		}
	})
	before := second.snapshot()
	if err := first.PeriodicFunc(t.Context(), &logical.Request{Storage: first.storage}); err != nil {
		t.Error(err)
	}
	first.Cleanup(t.Context())
	if diff := before.diff(second.snapshot()); diff != "" {
		t.Errorf("it changed %s", diff)
	}
	if said := strings.Count(first.logs.String(), "[WARN]"); said != 1 || !strings.Contains(first.logs.String(), "two nodes") {
		t.Errorf("it warned %d times:\n%s", said, first.logs.String())
	}
}

// TestAFailingStorageStopsNoCachedKey: what is cached is answered while storage
// fails, however long, and whoever has started meanwhile.
func TestAFailingStorageStopsNoCachedKey(t *testing.T) {
	t.Parallel()
	m, faulty := faultyMount(t)
	m.role(nil)
	acme := m.key("acme", nil)
	m.wantCodes("VALID", acme)
	m.tell()
	faulty.Inject(storetest.Fault{At: 1, Rest: true})
	for range 100 {
		m.clock.Advance(time.Minute)
		m.wantCodes("VALID", acme)
	}
	m.fenceLooked()
	faulty.Heal()
	m.clock.Advance(time.Minute)
	m.wantCodes("VALID", acme)
}

func TestAStartTakesChargeAndTheFirstTickTidies(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	acme := m.key("acme", nil)
	for n := range 3 {
		m = m.reopen()
		if got := m.memory.Paths("charge/"); len(got) != n+2 {
			t.Errorf("after %d starts: %q", n+2, got)
		}
	}
	m.engineNow().fence.Tidy(t.Context())
	if got := m.memory.Paths("charge/"); len(got) != 1 || !strings.HasPrefix(got[0], "charge/0000000004-") {
		t.Errorf("after tidying: %q", got)
	}
	m.clock.Advance(time.Minute)
	m.wantCodes("VALID", acme)
}

// TestAStartThatCannotTakeChargeWorks: the fence keeps no mount from starting,
// whichever of its operations fails, and takes charge later.
func TestAStartThatCannotTakeChargeWorks(t *testing.T) {
	t.Parallel()
	base := newMount(t)
	base.role(nil)
	acme := base.key("acme", nil)
	base.Cleanup(t.Context())
	for _, kind := range []storetest.Kind{storetest.List, storetest.Put} {
		for _, applied := range []bool{false, true} {
			memory := base.memory.Clone()
			faulty := storetest.NewFaulty(memory)
			faulty.Inject(storetest.Fault{At: 1, Applied: applied, Only: func(op storetest.Op) bool { return op.Kind == kind && strings.HasPrefix(op.Path, "charge/") }})
			m := newMountOn(t, memory, faulty, clock.NewManual(epoch))
			if faulty.Failed() != 1 {
				t.Fatalf("the start makes no %v under charge/", kind)
			}
			m.wantCodes("VALID", acme)
			m.clock.Advance(fence.Every)
			m.wantCodes("VALID", acme)
			m.fenceLooked()
			if got := memory.Paths("charge/"); len(got) != 2 || !strings.HasPrefix(got[1], "charge/0000000002-") {
				t.Errorf("%v, applied %v: %q", kind, applied, got)
			}
		}
	}
}

// TestACrashOfAStartLeavesNoFence: whatever was stored of a start that was cut
// off, the next one is in charge.
func TestACrashOfAStartLeavesNoFence(t *testing.T) {
	t.Parallel()
	base := newMount(t)
	base.role(nil)
	acme := base.key("acme", nil)
	base.Cleanup(t.Context())
	for n := 1; ; n++ {
		failed := 0
		for _, applied := range []bool{false, true} {
			memory := base.memory.Clone()
			faulty := storetest.NewFaulty(memory)
			faulty.Inject(storetest.Fault{At: n, Applied: applied, Rest: true})
			crashed := newIdleMount(t, memory, faulty, clock.NewManual(epoch))
			_ = crashed.Initialize(t.Context(), &logical.InitializationRequest{Storage: faulty})
			failed = faulty.Failed()
			m := newMountOn(t, memory, memory, clock.NewManual(epoch))
			m.clock.Advance(fence.Fresh)
			m.wantCodes("VALID", acme)
			names := memory.Paths("charge/")
			if last := names[len(names)-1]; !strings.HasSuffix(last, m.engineNow().store.Feed().Position().Epoch) {
				t.Errorf("cut off at %d, applied %v: the last of %q is not the one at work", n, applied, names)
			}
		}
		if failed == 0 {
			if n != 7 {
				t.Errorf("a start makes %d operations, want 6", n-1)
			}
			return
		}
	}
}

// TestTwoMountsHaveAFenceEach and a standby has none.
func TestTwoMountsHaveAFenceEach(t *testing.T) {
	t.Parallel()
	one, other := newMount(t), newMount(t)
	for _, m := range []*mount{one, other} {
		m.role(nil)
		acme := m.key("acme", nil)
		m.clock.Advance(fence.Fresh)
		m.wantCodes("VALID", acme)
		if got := m.memory.Paths("charge/"); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "charge/0000000001-") }) || len(got) != 1 {
			t.Errorf("%q", got)
		}
	}
}

// cutOff is the storage of a node that does not lead, and hears nothing of who
// does: its disk is full, say.
type cutOff struct {
	*storetest.Memory
	off atomic.Bool
}

func (c *cutOff) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if c.off.Load() {
		return errNoLeader
	}
	return c.Memory.Put(ctx, entry)
}

// TestAProcessThatMayNotWriteAnswersNothing once a write has shown that another
// node leads, and answers again when it leads.
func TestAProcessThatMayNotWriteAnswersNothing(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	storage := &cutOff{Memory: memory}
	m := newMountOn(t, memory, storage, clock.NewManual(epoch))
	m.role(nil)
	token := m.key("acme", nil)
	m.wantCodes("VALID", token)
	storage.off.Store(true)
	m.wantCodes("VALID", token) // nothing has shown it
	// The first use from a source is a write.
	if a := m.request(logical.UpdateOperation, "verify", object{fieldAPIKey: token, fieldSource: "elsewhere"}); a.status != http.StatusServiceUnavailable {
		t.Errorf("verify answers %s", a)
	}
	if a := m.request(logical.UpdateOperation, "rotate/acme", nil); a.status < http.StatusInternalServerError {
		t.Errorf("rotate answers %s", a)
	}
	for range 3 {
		for path, data := range map[string]object{"verify": {fieldAPIKey: token}, "lookup": {"key_ids": []any{"0123456789ab"}}} {
			if a := m.request(logical.UpdateOperation, path, data); a.status != http.StatusServiceUnavailable {
				t.Errorf("%s answers %s", path, a)
			}
		}
		m.clock.Advance(fence.Every)
		m.fenceLooked()
	}
	storage.off.Store(false)
	m.clock.Advance(fence.Every)
	m.request(logical.UpdateOperation, "verify", object{fieldAPIKey: token})
	m.fenceLooked()
	m.wantCodes("VALID", token)
}
