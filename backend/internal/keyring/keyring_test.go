// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// policy is that of a role with every default.
func policy() keyring.Policy {
	return keyring.Policy{MaxOverlap: 720 * time.Hour, RollbackWindow: 24 * time.Hour, MaxAccepted: 3, MaxVersions: 10}
}

func digest(version int) token.Digest {
	return token.Sum(fmt.Sprintf("the token of version %d", version))
}

func material(version int) keyring.Material {
	return keyring.Material{Digest: digest(version), Sealed: fmt.Appendf(nil, "sealed %d", version)}
}

func at(d time.Duration) keyring.Cause { return keyring.Cause{Now: t0.Add(d), Actor: "alice"} }

func neverDrained(int) keyring.DrainVerdict { return keyring.DrainVerdict{Why: "still in use"} }

func drained(int) keyring.DrainVerdict { return keyring.DrainVerdict{Drained: true, Why: "unused"} }

// fixture drives one key, and fails the test where a transition that must
// succeed is refused, or changes the key that it was given.
type fixture struct {
	*testing.T
	k *keyring.Key
	p keyring.Policy
}

func named(t *testing.T, p keyring.Policy) *fixture {
	t.Helper()
	k := keyring.Create(keyring.Key{ID: "EXAMPLEkey01", Name: "billing", Role: "partners"}, at(0), p, material(1))
	return &fixture{t, k, p}
}

// leased is a key whose lease of version 1 ends after an hour, and which can
// live for ten.
func leased(t *testing.T, p keyring.Policy) *fixture {
	t.Helper()
	k := keyring.Create(keyring.Key{
		ID: "EXAMPLEkey02", Role: "partners", Lease: &keyring.Lease{EntityID: "entity", MaxExpireTime: t0.Add(10 * time.Hour)},
	}, at(0), p, material(1))
	k.Versions[0].ExpireTime = t0.Add(time.Hour)
	return &fixture{t, k, p}
}

func (f *fixture) try(change func(*keyring.Key) (*keyring.Key, error)) (*keyring.Key, error) {
	f.Helper()
	before := dump(f.T, f.k)
	next, err := change(f.k)
	if after := dump(f.T, f.k); after != before {
		f.Fatalf("the transition changed its receiver\nfrom %s\nto   %s", before, after)
	}
	if err != nil {
		var refusal *keyring.Refusal
		if !errors.As(err, &refusal) || next != nil {
			f.Fatalf("refused with %T %v and key %v, want a Refusal and no key", err, err, next)
		}
	}
	return next, err
}

func (f *fixture) must(change func(*keyring.Key) (*keyring.Key, error)) {
	f.Helper()
	next, err := f.try(change)
	if err != nil {
		f.Fatal(err)
	}
	f.k = next
}

func (f *fixture) refused(want error, change func(*keyring.Key) (*keyring.Key, error)) string {
	f.Helper()
	_, err := f.try(change)
	if !errors.Is(err, want) {
		f.Fatalf("got %v, want the refusal %q", err, want)
	}
	return err.Error()
}

type change = func(*keyring.Key) (*keyring.Key, error)

func (f *fixture) rotate(when time.Duration, o keyring.RotateOptions) change {
	return func(k *keyring.Key) (*keyring.Key, error) {
		return k.Rotate(at(when), f.p, material(k.Latest()+1), o)
	}
}

func (f *fixture) overlap(when, overlap time.Duration) change {
	return f.rotate(when, keyring.RotateOptions{Overlap: overlap})
}

func (f *fixture) promote(when time.Duration, version int) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.Promote(at(when), f.p, version) }
}

func (f *fixture) rollback(when time.Duration, o keyring.RollbackOptions) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.Rollback(at(when), f.p, o) }
}

func (f *fixture) extend(when time.Duration, version int, by time.Duration) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.Extend(at(when), f.p, version, by) }
}

func (f *fixture) retire(when time.Duration, version int, check keyring.DrainCheck, force bool) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.Retire(at(when), version, check, force) }
}

func (f *fixture) revoke(when time.Duration, o keyring.RevokeOptions) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.Revoke(at(when), f.p, o) }
}

// revokeRotate is revoke with a successor made.
func (f *fixture) revokeRotate(when time.Duration, o keyring.RevokeOptions) change {
	return func(k *keyring.Key) (*keyring.Key, error) {
		m := material(k.Latest() + 1)
		o.Successor = &m
		return k.Revoke(at(when), f.p, o)
	}
}

func (f *fixture) endLease(when time.Duration, version int) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.EndLease(at(when), version), nil }
}

func (f *fixture) renew(when time.Duration, version int, expire time.Duration) change {
	return func(k *keyring.Key) (*keyring.Key, error) { return k.Renew(at(when), version, t0.Add(expire)) }
}

func (f *fixture) tick(when time.Duration) { f.tickWith(when, neverDrained) }

func (f *fixture) tickWith(when time.Duration, check keyring.DrainCheck) {
	f.Helper()
	f.must(func(k *keyring.Key) (*keyring.Key, error) {
		return k.Advance(keyring.Cause{Now: t0.Add(when), Actor: "periodic"}, f.p, check), nil
	})
}

func (f *fixture) version(number int) keyring.Version {
	f.Helper()
	v, ok := f.k.Version(number)
	if !ok {
		f.Fatalf("there is no version %d", number)
	}
	return v
}

func (f *fixture) wantState(number int, want keyring.State) {
	f.Helper()
	if v := f.version(number); v.State != want {
		f.Fatalf("version %d is %s, want %s", number, v.State, want)
	}
}

func (f *fixture) code(when time.Duration, version int) record.Code {
	return f.k.Verify(t0.Add(when), keyring.Limits{}, record.Query{Digest: digest(version)}).Code
}

func (f *fixture) wantCode(when time.Duration, version int, want record.Code) {
	f.Helper()
	if got := f.code(when, version); got != want {
		f.Fatalf("version %d after %s: %s, want %s", version, when, got, want)
	}
}

func (f *fixture) wantAccepted(when time.Duration, want ...int) {
	f.Helper()
	if got := f.k.Accepted(t0.Add(when)); !slices.Equal(got, want) {
		f.Fatalf("accepted after %s: %v, want %v", when, got, want)
	}
}

func (f *fixture) wantTime(what string, got time.Time, want time.Duration) {
	f.Helper()
	if !got.Equal(t0.Add(want)) {
		f.Fatalf("%s is %s, want %s (start + %s)", what, got, t0.Add(want), want)
	}
}

func (f *fixture) wantEvents(want ...string) {
	f.Helper()
	var got []string
	for _, e := range f.k.History {
		got = append(got, fmt.Sprintf("%s v%d", e.Type, e.Version))
	}
	if len(got) < len(want) || !slices.Equal(got[len(got)-len(want):], want) {
		f.Fatalf("history ends with %v, want %v", got, want)
	}
}

func dump(t *testing.T, k *keyring.Key) string {
	t.Helper()
	data, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// reload is k as another process reads it from storage.
func reload(t *testing.T, k *keyring.Key) *keyring.Key {
	t.Helper()
	var read keyring.Key
	if err := json.Unmarshal([]byte(dump(t, k)), &read); err != nil {
		t.Fatal(err)
	}
	return &read
}
