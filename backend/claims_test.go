// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
)

// arrival is a message that a receiver got.
type arrival struct {
	header http.Header
	body   []byte
	kind   string
	data   object
}

// inbox is a receiver of webhooks.
type inbox struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	got    []arrival
	more   chan struct{}
}

func newInbox(t tester) *inbox {
	t.Helper()
	b := &inbox{status: http.StatusNoContent, more: make(chan struct{}, 1)}
	b.Server = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.Close)
	return b
}

func (b *inbox) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var message struct {
		Type string
		Data object
	}
	_ = json.Unmarshal(body, &message)
	b.mu.Lock()
	b.got = append(b.got, arrival{r.Header.Clone(), body, message.Type, message.Data})
	status := b.status
	b.mu.Unlock()
	w.WriteHeader(status)
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// answers sets the status of later answers.
func (b *inbox) answers(status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = status
}

func (b *inbox) posts() []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

// wait waits for a message that fits.
func (b *inbox) wait(t *testing.T, what string, fits func(arrival) bool) arrival {
	t.Helper()
	limit := clock.System().After(20 * time.Second)
	for {
		for _, p := range b.posts() {
			if fits(p) {
				return p
			}
		}
		select {
		case <-b.more:
		case <-limit:
			t.Fatalf("%s did not come; %d messages did", what, len(b.posts()))
		}
	}
}

// code waits for the claim code of a version.
func (b *inbox) code(t *testing.T, version int) string {
	t.Helper()
	p := b.wait(t, fmt.Sprintf("the code of version %d", version), func(p arrival) bool {
		return p.data["claim_code"] != nil && p.data["version"] == float64(version)
	})
	return text(t, p.data["claim_code"])
}

// claimHook makes a webhook that delivers claims for role r to b.
func (m *mount) claimHook(b *inbox, fields object) {
	m.t.Helper()
	data := object{"url": b.URL, "allow_private": true, "deliver": "claim", "roles": "r", "events": "version.activated"}
	for name, value := range fields {
		data[name] = value
	}
	m.write("webhooks/claims", data)
}

// unkept are the fields of a role whose keys rotate and are kept nowhere.
func unkept() object {
	return object{"retrievable": false, "rotation_period": "1h", "overlap_period": "30m", "rollback_window": "2h"}
}

// wantNothingKept checks that no entry holds a key, encrypted or not.
func (m *mount) wantNothingKept(when string) {
	m.t.Helper()
	for path, value := range m.snapshot() {
		if strings.Contains(value, `"handover"`) || strings.Contains(value, `"sealed"`) {
			m.t.Errorf("%s %s keeps a key", when, path)
		}
	}
}

// eventually waits for what happens in the background.
func eventually(t tester, what string, holds func() bool) {
	t.Helper()
	limit := clock.System().After(20 * time.Second)
	for !holds() {
		select {
		case <-limit:
			t.Fatalf("%s does not become so", what)
		case <-clock.System().After(time.Millisecond):
		}
	}
}

// delivered waits until the webhook named claims has nothing to tell, or is
// disabled. An attempt that is under way while the clock is moved times out.
func (m *mount) delivered() {
	m.t.Helper()
	eventually(m.t, "the outbox empty", m.nothingPending)
}

// deliveredWithin tells whether that is so within d of the real time: after a
// failure, what is to be told waits for the clock.
func (m *mount) deliveredWithin(d time.Duration) bool {
	m.t.Helper()
	for limit := clock.System().After(d); !m.nothingPending(); {
		select {
		case <-limit:
			return false
		case <-clock.System().After(time.Millisecond):
		}
	}
	return true
}

func (m *mount) nothingPending() bool {
	for _, s := range m.engineNow().watch.hooks.Statuses() {
		if s.Name == "claims" && s.Hook != nil && s.Hook.Enabled && s.Pending > 0 {
			return false
		}
	}
	return true
}

// passDelivering is pass with time for deliveries in each minute.
func (m *mount) passDelivering(d time.Duration) {
	m.t.Helper()
	for m.delivered(); d >= time.Minute; d -= time.Minute {
		m.pass(time.Minute)
		m.delivered()
	}
}

// TestKeysThatAreNotKeptRotateByClaims from the role to the redemption.
func TestKeysThatAreNotKeptRotateByClaims(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.claimHook(b, nil)
	m.role(unkept())
	v1 := m.key("acme", nil)
	m.tell()
	m.delivered()
	if got := text(t, m.write("claim", object{"code": b.code(t, 1)})[fieldAPIKey]); got != v1 {
		t.Error("the claim of version 1 is another key")
	}
	m.passDelivering(61 * time.Minute)
	code := b.code(t, 2)
	m.delivered()
	m.refused(http.StatusNotFound, logical.ReadOperation, "static-creds/acme", nil, "not stored")
	m.refused(badStatus, logical.UpdateOperation, "rollback/acme", nil, "force=true")
	if raw := m.snapshot()["key/"+m.keyID("acme")]; strings.Contains(raw, "handover") || strings.Contains(raw, "sealed") {
		t.Errorf("the key's entry still holds version 2")
	}
	claimed := m.write("claim", object{"code": code})
	v2 := text(t, claimed[fieldAPIKey])
	m.wantCodes("VALID VALID", v1, v2)
	if claimed[fieldName] != "acme" || number(t, claimed[fieldVersion]) != 2 {
		t.Errorf("the claim answers %v", claimed)
	}
	m.wantNothingKept("after the redemption")
	m.refused(badStatus, logical.UpdateOperation, "claim", object{"code": "claim_1_x"}, "code is not a claim")
	if a := m.request(logical.UpdateOperation, "claim", object{"code": code}); a.status != badStatus {
		t.Errorf("claimed again: %s", a)
	}
	m.tell()
	history := toJSON(m.read("history/acme"))
	if strings.Count(history, "claim.redeemed") != 2 || strings.Count(history, "claim.reused") != 1 {
		t.Errorf("the history is %s", history)
	}
	// A rotation by hand answers its key, and has a claim as well.
	v3 := m.rotate("acme", object{"request_id": "once"})
	if again := m.write("rotate/acme", object{"request_id": "once"}); again[fieldAPIKey] != nil {
		t.Error("a replay shows the key")
	}
	m.tell()
	if got := text(t, m.write("claim", object{"code": b.code(t, 3)})[fieldAPIKey]); got != v3 {
		t.Error("the claim of version 3 is another key")
	}
	m.delivered()
	m.wantNothingKept("in the end")
}

// TestAWebhookThatComesBackHandsAKeyOverSoon, also where the only version that
// is left was promoted while it was away, and nobody was told a code for it.
func TestAWebhookThatComesBackHandsAKeyOverSoon(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.claimHook(b, nil)
	m.role(object{"retrievable": false, "rotation_period": "10h", "overlap_period": "30m", "activation_delay": "20m", "version_ttl": "11h", "rollback_window": "2h"})
	v1 := m.key("acme", nil)
	m.tell()
	m.delivered()
	for i := 0; m.states("acme") == "active" && i < 800; i++ {
		m.pass(time.Minute)
	}
	m.remove("webhooks/claims")
	m.pass(3 * time.Hour)
	m.wantStates("acme", "retired active")
	m.wantCodes("EXPIRED", v1)
	m.claimHook(b, nil)
	told := func() bool {
		return slices.ContainsFunc(b.posts(), func(p arrival) bool { return p.data["version"] == float64(3) })
	}
	for range 85 { // an hour, and the delay
		if !told() {
			m.passDelivering(time.Minute)
		}
	}
	v3 := text(t, m.write("claim", object{"code": b.code(t, 3)})[fieldAPIKey])
	m.wantCodes("VALID", v3)
}

// TestWhatIsDoneWithACodeIsToldWhenStorageIsBack: the key is handed out all the
// same, once, and both are told once.
func TestWhatIsDoneWithACodeIsToldWhenStorageIsBack(t *testing.T) {
	t.Parallel()
	for _, redeemed := range []bool{false, true} {
		t.Run(fmt.Sprintf("redeemed before %t", redeemed), func(t *testing.T) {
			t.Parallel()
			memory := storetest.NewMemory()
			faulty := storetest.NewFaulty(memory)
			m, b := newMountOn(t, memory, faulty, clock.NewManual(epoch.Add(30*time.Second))), newInbox(t)
			m.claimHook(b, nil)
			m.role(nil)
			m.key("acme", nil)
			m.tell()
			m.delivered()
			code := object{"code": b.code(t, 1)}
			event, want := "claim.redeemed", http.StatusOK
			if redeemed {
				m.write("claim", code)
				event, want = "claim.reused", badStatus
			}
			told := func() int { m.tell(); return strings.Count(toJSON(m.read("history/acme")), event) }
			faulty.Inject(storetest.Fault{At: 1, Rest: true, Only: func(op storetest.Op) bool { return strings.HasPrefix(op.String(), "put key/") }})
			if a := m.request(logical.UpdateOperation, "claim", code); a.status != want {
				t.Errorf("with a key that cannot be written it answers %s", a)
			}
			if err := m.engineNow().watch.claims.Sweep(t.Context()); err != nil {
				t.Errorf("before its minute is over a claim is swept: %v", err)
			}
			faulty.Heal()
			if n := told(); n != 0 {
				t.Errorf("%s is told %d times", event, n)
			}
			if redeemed {
				for range 3 {
					m.request(logical.UpdateOperation, "claim", code)
				}
			}
			for range 3 {
				m.pass(time.Minute)
				m.flush()
			}
			if n := told(); n != 1 {
				t.Errorf("%s is told %d times, want once", event, n)
			}
			if left := memory.Paths("claimend/"); len(left) > 0 {
				t.Errorf("what is filed of the claim stays: %v", left)
			}
			for path, value := range m.snapshot() {
				if strings.Contains(value, `"untold"`) {
					t.Errorf("%s is still to be told", path)
				}
			}
		})
	}
}

// TestAClaimThatNobodyRedeemsTakesItsKeyAlong at the end of the overlap.
func TestAClaimThatNobodyRedeemsTakesItsKeyAlong(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.claimHook(b, nil)
	m.role(unkept())
	m.key("acme", nil)
	m.rotate("acme", nil)
	m.tell()
	code := b.code(t, 2)
	m.delivered()
	m.flush()
	m.passDelivering(29 * time.Minute)
	m.flush()
	m = m.reopen()
	m.passDelivering(2 * time.Minute)
	m.flush()
	if a := m.request(logical.UpdateOperation, "claim", object{"code": code}); a.status != badStatus {
		t.Errorf("claimed after its end: %s", a)
	}
	m.clock.Advance(24 * time.Hour) // version 1 has no overlap: its claim lived a day
	m.flush()
	m.wantNothingKept("after the end")
}

// TestARoleWhoseKeysNobodyCouldGetIsRefused, and one that was fine before can
// still be changed.
func TestARoleWhoseKeysNobodyCouldGetIsRefused(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.engineNow().work.Stop(clock.System().After) // it would write between what refused compares
	refused := func() {
		t.Helper()
		m.refused(badStatus, logical.UpdateOperation, "roles/r", unkept(), "retrievable=false", "deliver=claim", "version.activated", `"r"`,
			"retrievable=true or disable_automated_rotation=true")
	}
	refused()
	m.claimHook(b, object{"deliver": "event"})
	refused()
	m.claimHook(b, object{"roles": "other"})
	refused()
	m.claimHook(b, object{"events": "key.*"})
	refused()
	m.claimHook(b, object{"enabled": false})
	refused()
	m.claimHook(b, object{"enabled": true, "keys": "acme"})
	if a := m.request(logical.UpdateOperation, "roles/r", unkept()); a.status >= 300 || len(a.warnings) != 1 || !strings.Contains(a.warnings[0], "keys or metadata") {
		t.Errorf("a webhook for some keys: %s", a)
	}
	m.claimHook(b, object{"keys": []any{}})
	if a := m.request(logical.UpdateOperation, "roles/r", unkept()); a.status >= 300 || len(a.warnings) != 0 {
		t.Errorf("a webhook that fits: %s", a)
	}
	m.remove("webhooks/claims")
	if a := m.request(logical.PatchOperation, "roles/r", object{"scopes": "read"}); a.status >= 300 || len(a.warnings) != 1 || !strings.Contains(a.warnings[0], "wait until one is") {
		t.Errorf("a change without the webhook: %s", a)
	}
	m.patch("roles/r", object{"disable_automated_rotation": true})
	m.refused(badStatus, logical.PatchOperation, "roles/r", object{"disable_automated_rotation": false}, "deliver=claim")
}

// TestAPromotionOfWhatNobodyCanClaimWarns, and does not where the role has come
// to keep keys: then static-creds has it.
func TestAPromotionOfWhatNobodyCanClaimWarns(t *testing.T) {
	t.Parallel()
	for _, kept := range []bool{false, true} {
		t.Run(fmt.Sprintf("kept %t", kept), func(t *testing.T) {
			t.Parallel()
			m, b := newMount(t), newInbox(t)
			m.claimHook(b, nil)
			role := unkept()
			role["activation_delay"] = "10m"
			m.role(role)
			m.key("acme", nil)
			m.tell()
			m.delivered()
			m.passDelivering(65 * time.Minute)
			if kept {
				m.patch("roles/r", object{"retrievable": true})
			}
			m.write("webhooks/other", object{"url": b.URL, "allow_private": true})
			m.remove("webhooks/claims")
			a := m.request(logical.UpdateOperation, "promote/acme", nil)
			if a.status != http.StatusOK || number(t, a.data[fieldVersion]) != 2 {
				t.Fatalf("%s", a)
			}
			if warned := strings.Contains(strings.Join(a.warnings, "\n"), "nobody could claim"); warned == kept {
				t.Errorf("warned %t: %q", warned, a.warnings)
			}
			if got := m.request(logical.ReadOperation, "static-creds/acme", nil); (got.status == http.StatusOK) != kept {
				t.Errorf("static-creds: %s", got)
			}
		})
	}
}

// TestARotationWaitsForItsWebhook that is disabled, has gone, or fails: the old
// version goes on, and it is told why.
func TestARotationWaitsForItsWebhook(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		away, back func(m *mount, b *inbox)
		why        string
	}{
		"disabled": {
			func(m *mount, _ *inbox) { m.patch("webhooks/claims", object{"enabled": false}) },
			func(m *mount, _ *inbox) { m.patch("webhooks/claims", object{"enabled": true}) },
			`webhook \"claims\" is disabled`,
		},
		"deleted": {
			func(m *mount, _ *inbox) { m.remove("webhooks/claims") },
			func(m *mount, b *inbox) { m.claimHook(b, nil) },
			"no enabled webhook with deliver=claim",
		},
		"of other keys": {
			func(m *mount, _ *inbox) { m.patch("webhooks/claims", object{"keys": "other"}) },
			func(m *mount, _ *inbox) { m.patch("webhooks/claims", object{"keys": nil}) },
			"no enabled webhook with deliver=claim",
		},
		"gone by 410": {
			func(m *mount, b *inbox) {
				b.answers(http.StatusGone)
				m.rotate("acme", object{"overlap_period": 0})
				m.tell()
				eventually(m.t, "the webhook disabled", func() bool { return m.read("webhooks/claims")["enabled"] == false })
			},
			func(m *mount, b *inbox) {
				b.answers(http.StatusNoContent)
				m.patch("webhooks/claims", object{"enabled": true})
			},
			`webhook \"claims\" is disabled`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, b := newMount(t), newInbox(t)
			m.claimHook(b, nil)
			m.role(unkept())
			m.key("acme", nil)
			m.tell()
			b.code(t, 1)
			c.away(m, b)
			before, version := m.states("acme"), m.current("acme")
			m.passDelivering(3 * time.Hour)
			if m.current("acme") != version {
				t.Fatalf("it was rotated: %s, then %s", before, m.states("acme"))
			}
			if history := toJSON(m.read("history/acme")); strings.Count(history, "rotation.blocked") != 1 || !strings.Contains(history, strings.ReplaceAll(c.why, `\"`, `\\\"`)) && !strings.Contains(history, c.why) {
				t.Errorf("the history is %s", history)
			}
			c.back(m, b)
			m.passDelivering(61 * time.Minute)
			m.wantCodes("VALID", text(t, m.write("claim", object{"code": b.code(t, version+1)})[fieldAPIKey]))
		})
	}
}

// TestNoCrashLosesAKeyThatIsNotKept: the process ends at any storage operation
// from the rotation to the delivery, or that operation alone fails. After that
// the code comes, and is good for the key that is active, once; nothing is kept
// of it then, and nothing stays of what was filed for it.
func TestNoCrashLosesAKeyThatIsNotKept(t *testing.T) {
	t.Parallel()
	base, b := newMount(t), newInbox(t)
	base.claimHook(b, nil)
	base.role(unkept())
	v1 := base.key("acme", nil)
	base.tell()
	b.code(t, 1)
	base.delivered()
	base.Cleanup(t.Context())
	for _, mode := range []storetest.Fault{{Rest: true}, {Rest: true, Applied: true}, {}, {Applied: true}} {
		for n := 1; ; n++ {
			if n > 60 {
				t.Fatal("it never ends without a fault")
			}
			fault := mode
			fault.At = n
			if !crashWhileHandingOver(t, base.memory.Clone(), v1, fault) {
				break
			}
		}
	}
}

func crashWhileHandingOver(t *testing.T, memory *storetest.Memory, v1 string, fault storetest.Fault) (reached bool) {
	t.Helper()
	b := newInbox(t)
	defer b.Close()
	faulty := storetest.NewFaulty(memory)
	m := newMountOn(t, memory, faulty, clock.NewManual(epoch.Add(50*time.Minute)))
	m.secret(v1)
	m.patch("webhooks/claims", object{"url": b.URL})
	m.clock.Advance(12 * time.Minute)
	faulty.Inject(fault)
	_, _ = m.engineNow().ticker.Tick(t.Context())
	_ = m.engineNow().watch.tell(t.Context())
	eventually(t, "the delivery, or its failure", func() bool {
		return faulty.Failed() > 0 || len(memory.Paths("outbox/")) == 0 && len(b.posts()) > 0
	})
	reached = faulty.Failed() > 0
	if fault.Rest {
		m = m.crash()
		memory = m.memory
	} else {
		faulty.Heal()
	}
	m.wantCodes("VALID", v1)
	for range 12 { // what failed waits a while
		m.pass(time.Minute)
		m.flush()
		if m.deliveredWithin(time.Second) {
			break
		}
	}
	m.passDelivering(4 * time.Minute)
	m.flush()
	m.wantStates("acme", "retiring active")
	claimed := m.write("claim", object{"code": b.code(t, 2)})
	m.wantCodes("VALID VALID", v1, text(t, claimed[fieldAPIKey]))
	m.delivered()
	for path, value := range m.snapshot() {
		// The claim of version 1 has not been redeemed.
		if strings.Contains(value, `"handover"`) || strings.Contains(value, `"sealed"`) && !strings.Contains(value, `"version":1`) {
			t.Errorf("%+v: %s keeps a key", fault, path)
		}
	}
	m.tell()
	m.delivered()
	m.clock.Advance(webhook.ClaimLife + time.Minute)
	m.flush()
	m.wantNothingKept(fmt.Sprintf("%+v: in the end", fault))
	if left := append(memory.Paths("outbox/"), memory.Paths("claimend/")...); len(left) > 0 {
		t.Errorf("%+v: left are %q", fault, left)
	}
	m.Cleanup(t.Context())
	return reached
}

// TestTheLastWebhookThatHandsKeysOverIsMissed by the roles that need it.
func TestTheLastWebhookThatHandsKeysOverIsMissed(t *testing.T) {
	t.Parallel()
	const path = "webhooks/claims"
	hook := object{"url": "https://example.com/in", "deliver": "claim", "roles": "r*"}
	for what, lose := range map[string]func(m *mount) *answer{
		"deleted":         func(m *mount) *answer { return m.request(logical.DeleteOperation, path, nil) },
		"disabled":        func(m *mount) *answer { return m.request(logical.PatchOperation, path, object{"enabled": false}) },
		"for other roles": func(m *mount) *answer { return m.request(logical.UpdateOperation, path, object{"roles": "other"}) },
		"without claims":  func(m *mount) *answer { return m.request(logical.PatchOperation, path, object{"deliver": "event"}) },
	} {
		m := newMount(t)
		m.write(path, hook)
		m.write("webhooks/also", hook)
		m.write("roles/r1", unkept())
		m.write("roles/r2", object{})
		if a := lose(m); a.status >= 300 || len(a.warnings) != 0 {
			t.Errorf("%s, with another one left: %s", what, a)
		}
		m.request(logical.DeleteOperation, path, nil)
		m.write(path, hook)
		m.request(logical.DeleteOperation, "webhooks/also", nil)
		if a := lose(m); a.status >= 300 || len(a.warnings) != 1 || !strings.Contains(a.warnings[0], "the roles r1: ") {
			t.Errorf("%s: %s", what, a)
		}
	}
}

// TestACodeOfAVersionThatIsForgottenHandsOutNothing, though the key is still
// stored with the claim.
func TestACodeOfAVersionThatIsForgottenHandsOutNothing(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.claimHook(b, nil)
	m.role(object{"retrievable": false, "overlap_period": 0, "rollback_window": 0, "max_accepted_versions": 2, "max_versions": 2})
	m.key("acme", nil)
	m.tell()
	m.delivered()
	code := object{"code": b.code(t, 1)}
	m.rotate("acme", nil)
	m.rotate("acme", nil)
	m.wantStates("acme", "retired active")
	m.tell()
	m.delivered()
	m.refused(badStatus, logical.UpdateOperation, "claim", code, "code is not a claim")
}

// TestACodeOfADisabledKeyIsGoodWithAWarning, as is a read of static-creds.
func TestACodeOfADisabledKeyIsGoodWithAWarning(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.claimHook(b, nil)
	m.role(nil)
	m.key("acme", nil)
	m.tell()
	m.delivered()
	m.patch("keys/acme", object{"enabled": false})
	redeemed := m.request(logical.UpdateOperation, "claim", object{"code": b.code(t, 1)})
	read := m.request(logical.ReadOperation, "static-creds/acme", nil)
	for what, a := range map[string]*answer{"a code": redeemed, "static-creds": read} {
		if a.status != http.StatusOK || a.data["api_key"] != read.data["api_key"] || !slices.ContainsFunc(a.warnings, func(w string) bool { return strings.Contains(w, "disabled") }) {
			t.Errorf("%s of a disabled key is answered %s", what, a)
		}
	}
}

// TestACodeLivesForTheOverlapThatBeganWithIt, not for that of a version which was
// left for the same one before.
func TestACodeLivesForTheOverlapThatBeganWithIt(t *testing.T) {
	t.Parallel()
	m, b := newMount(t), newInbox(t)
	m.claimHook(b, nil)
	m.role(nil)
	m.key("acme", nil)
	m.rotate("acme", object{"overlap_period": "1h"})
	m.patch("roles/r", object{"overlap_period": "1h"})
	m.write("rollback/acme", nil)
	m.write("extend/acme", object{"version": 2, "overlap_period": "12h"})
	m.rotate("acme", nil)
	m.tell()
	m.write("rollback/acme", object{"version": 1})
	m.wantStates("acme", "active retiring retiring")
	m.tell()
	m.delivered()
	posts := b.posts()
	last := posts[len(posts)-1]
	if last.data["version"] != 1.0 || last.data["claim_expires"] != stamp(epoch.Add(time.Hour)) {
		t.Errorf("the code of version 1 is %v", last.data)
	}
}

// TestALeapOfTheClockTakesNoClaimAlong: until it is known which clock is right,
// the only copy of a key stays, by a tick as by a sweep.
func TestALeapOfTheClockTakesNoClaimAlong(t *testing.T) {
	t.Parallel()
	for name, tick := range map[string]func(m *mount) error{
		"tick":  func(m *mount) error { return m.engineNow().tick(m.t.Context()) },
		"sweep": func(m *mount) error { m.sweep(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, b := newMount(t), newInbox(t)
			m.claimHook(b, nil)
			m.role(unkept())
			m.key("acme", nil)
			m.tell()
			m.passDelivering(61 * time.Minute)
			code := b.code(t, 2)
			m.delivered()
			m.clock.Leap(26 * time.Hour)
			if err := tick(m); err != nil {
				t.Fatal(err)
			}
			m.clock.Leap(-26 * time.Hour)
			m.wantCodes("VALID", text(t, m.write("claim", object{"code": code})[fieldAPIKey]))
		})
	}
}
