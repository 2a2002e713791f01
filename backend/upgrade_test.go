// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// writeState names a release whose state is to be kept: see
// testdata/state/README.md.
var writeState = flag.String("write-state", "", "write what this code stores to testdata/state/<name>, to be read by every later version")

// stateFolder has a folder for each release, with what it stored and what its
// routes answered then.
const stateFolder = "testdata/state"

// keptState is what a release stored.
type keptState struct {
	// Time is when it was read for the last time.
	Time time.Time `json:"time"`
	// Entries are those of the storage, by their paths. All are JSON but those
	// of the due index, which are empty.
	Entries map[string]json.RawMessage `json:"entries"`
	// Answers are those of reads, by path, and Codes the verdicts on tokens.
	Answers map[string]object `json:"answers"`
	Codes   map[string]string `json:"codes"`
}

func keptStates(t *testing.T) map[string]*keptState {
	t.Helper()
	states := map[string]*keptState{}
	files, err := filepath.Glob(stateFolder + "/*/state.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no state of any release: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			t.Fatal(err)
		}
		s := &keptState{}
		if err := json.Unmarshal(data, s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		states[filepath.Base(filepath.Dir(file))] = s
	}
	return states
}

// open starts an engine on what was stored, changed by change where that is
// not nil.
func (s *keptState) open(t *testing.T, change func(path string, value []byte) []byte) *cutWorld {
	t.Helper()
	memory := storetest.NewMemory()
	for path, value := range s.Entries {
		if string(value) == "null" {
			value = nil
		}
		if change != nil {
			value = change(path, value)
		}
		if err := memory.Put(t.Context(), &logical.StorageEntry{Key: path, Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	w := &cutWorld{faulty: storetest.NewFaulty(memory)}
	w.mount = newIdleMount(t, memory, w.faulty, clock.NewManual(s.Time))
	return w
}

func (w *cutWorld) initialize() error {
	err := w.Initialize(w.t.Context(), &logical.InitializationRequest{Storage: w.storage})
	w.still()
	return err
}

// history makes a mount with all kinds of entries, in all states.
func history(w *cutWorld) {
	// Two kinds of receivers, neither of which anybody ever calls.
	w.write("webhooks/log", object{"url": "https://example.com/log", "enabled": false})
	w.write("webhooks/claims", object{"url": "https://example.com/claims", "enabled": false, "deliver": "claim", "events": []any{"version.*"}, "roles": []any{"r"}, "metadata": object{"team": "*"}})
	w.write("webhooks/claims", object{"secret": "whsec_" + strings.Repeat("QUJD", 8), "secret_overlap_period": "24h"})
	w.write("config", object{"leak_rate": 7, "usage_retention": "48h"})
	w.role(object{
		"scopes": []any{"read", "write", "admin:*"}, "overlap_scopes": []any{"read"}, "overlap_period": "2h", "max_overlap_period": "48h", "rollback_window": "3h",
		"max_accepted_versions": 4, "custom_metadata": object{"owner": "platform"}, "reminders": []any{50, 90}, "notify_before": "1h", "refresh_interval": "10m", "bound_cidrs": []any{"192.0.2.0/24", "198.51.100.0/24"},
	})
	w.write("roles/auto", object{"prefix": "tm_live", "rotation_period": "24h", "rotation_jitter": 10, "overlap_period": "6h", "version_ttl": "72h"})
	w.write("roles/cron", object{"rotation_schedule": "0 6 * * 1", "rotation_window": "2h", "overlap_period": "24h", "extend_until_drained": true, "activation_delay": "1h"})
	w.write("roles/leased", object{"ttl": "12h", "max_ttl": "48h"})
	tokens := map[string]string{}
	for _, name := range []string{"plain", "states", "compromised", "off", "dormant", "gone", "gone-leaked"} {
		tokens[name] = w.key(name, object{fieldScopes: []any{"read", "write"}, fieldMetadata: object{"team": "pay"}, fieldBoundCIDRs: []any{"192.0.2.0/25"}})
	}
	w.write("keys/auto", object{fieldRole: "auto"})
	w.write("keys/cron", object{fieldRole: "cron"})
	w.write("keys/brought", object{fieldRole: "r", fieldImportKey: cutImport})
	w.write("keys/hashed", object{fieldRole: "r", fieldImportSHA256: strings.Repeat("a1", 32)})
	w.write("keys/gone-brought", object{fieldRole: "r", fieldImportKey: cutOther})
	for range 2 {
		w.request(logical.ReadOperation, "creds/leased", nil)
	}
	_, id, _ := w.leased(w.request(logical.ReadOperation, "creds/leased", nil))
	w.write("rotate-leased/"+id, object{"overlap_period": "1h"})
	w.leasedID = id
	used := func(tokens ...string) {
		for _, presented := range tokens {
			w.write("verify", object{fieldAPIKey: presented, fieldSource: "eu", fieldSourceIP: "192.0.2.1"})
		}
	}
	// A version in each state: revoked, compromised, retired, retiring, active, pending.
	used(w.rotate("states", nil))
	w.write("revoke/states", object{fieldVersion: 1})
	w.pass(minutes(10))
	w.write("revoke/states", object{fieldVersion: 2, fieldCompromised: true, fieldRotate: true, fieldReason: "seen in a log"})
	used(w.rotate("states", object{"overlap_period": "30m"}))
	w.pass(minutes(40))
	used(w.rotate("states", object{"overlap_scopes": []any{"read"}, "request_id": "deploy-7"}))
	w.write("confirm/states", object{fieldVersion: 5, fieldInstance: "eu-1"})
	used(w.rotate("states", object{"activation_delay": "5h"}))
	tokens["compromised"] = text(w.t, w.write("revoke/compromised", object{fieldVersion: 1, fieldCompromised: true, fieldRotate: true})[fieldAPIKey])
	w.rotate("off", nil)
	w.write("keys/off", object{fieldEnabled: false})
	w.write("revoke/dormant", object{fieldAll: true, fieldForce: true})
	w.rotate("brought", nil)
	w.remove("keys/gone")
	w.remove("keys/gone-brought")
	w.write("revoke/gone-leaked", object{fieldVersion: 1, fieldCompromised: true, fieldRotate: true})
	w.remove("keys/gone-leaked")
	w.write("usage", object{"verifier": "edge-1", "boot": "b1", "sequence": 1, "reported_through": stamp(w.clock.Now()), "entries": []any{
		object{fieldKeyID: w.keyID("plain"), fieldVersion: 1, fieldSource: "us", "count": 12, "refused": 1}}})
	w.write("roles/auto/rotate", object{"reason": "drill"})
	w.pass(minutes(2))
	w.flush()
	w.write("roles/r/rotate", object{"overlap_period": "1h"}) // under way
	// A use that no page has yet.
	w.write("verify", object{fieldAPIKey: tokens["plain"], fieldSource: "ap", fieldSourceIP: "192.0.2.1"})
	// A claim, as a delivery makes it, with a key.
	id = w.keyID("compromised")
	sealed, err := w.engineNow().store.Seal(id, 2, tokens["compromised"])
	if err != nil {
		w.t.Fatal(err)
	}
	w.putClaim(object{"key_id": id, "version": 2, "hook": "claims", "event_id": id + ".1", "sealed": sealed})
}

// keptCode is a claim code that is never redeemed.
var keptCode = "claim_20458_" + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte("code"), 8))

// putClaim stores a claim that lives for an hour, as a delivery does.
func (w *cutWorld) putClaim(claim object) {
	w.t.Helper()
	digest := sha256.Sum256([]byte(keptCode))
	id, end := hex.EncodeToString(digest[:]), w.clock.Now().Add(time.Hour)
	entry := object{"schema": 1, "digest": id, "expires": stamp(end)}
	maps.Copy(entry, claim)
	if claim["sealed"] != nil {
		w.put(fmt.Sprintf("claimend/%d/20458.%s", (end.Unix()+59)/60, id[:32]), nil)
	}
	w.put("claim/20458/"+id[:32], []byte(toJSON(entry)))
}

// put stores an entry, whatever storage is made to refuse.
func (w *cutWorld) put(path string, value []byte) {
	w.t.Helper()
	if err := w.memory.Put(w.t.Context(), &logical.StorageEntry{Key: path, Value: value}); err != nil {
		w.t.Fatal(err)
	}
}

// answersOf reads what a state is compared by.
func (w *cutWorld) answersOf(names map[string]bool) map[string]object {
	w.t.Helper()
	answers := map[string]object{}
	note := func(path string) {
		a := w.request(logical.ReadOperation, path, nil)
		if a.status != http.StatusOK {
			w.t.Fatalf("read %s: %s", path, a)
		}
		withoutMinutes(a.data)
		delete(a.data, "known_since")
		delete(a.data, "deliveries")
		answers[path] = a.data
	}
	note("config")
	for _, name := range w.list("roles/", nil) {
		note("roles/" + name)
		if a := w.request(logical.ReadOperation, "roles/"+name+"/rotate", nil); a.status == http.StatusOK {
			note("roles/" + name + "/rotate")
		}
	}
	for _, name := range w.list("keys/", nil) {
		names[name] = true
		for _, path := range []string{"keys/", "history/", "usage/"} {
			note(path + name)
		}
	}
	for _, name := range w.list("webhooks/", nil) {
		note("webhooks/" + name)
	}
	for _, name := range w.list("rollovers/", nil) {
		answers["rollovers/"+name] = object{}
	}
	return answers
}

// TestWriteState keeps what this code stores, where it is asked to.
func TestWriteState(t *testing.T) {
	if *writeState == "" {
		return // there is nothing to test
	}
	if !regexp.MustCompile(`^v[0-9][A-Za-z0-9.-]*$`).MatchString(*writeState) {
		t.Fatal("a state is named by its release, such as v1.2.0")
	}
	memory := storetest.NewMemory()
	w := &cutWorld{faulty: storetest.NewFaulty(memory)}
	w.mount = newMountOn(t, memory, w.faulty, clock.NewManual(epoch))
	w.still()
	history(w)
	w.restart() // what is only in memory is not kept
	kept := keptState{Time: w.clock.Now(), Entries: map[string]json.RawMessage{}, Codes: map[string]string{}}
	for path, value := range w.snapshot() {
		if value == "" {
			value = "null"
		}
		kept.Entries[path] = json.RawMessage(value)
	}
	kept.Answers = w.answersOf(map[string]bool{})
	for s := range maps.Clone(w.secrets) {
		kept.Codes[s] = text(t, w.write("verify", object{fieldAPIKey: s, fieldSourceIP: "192.0.2.1"})["code"])
	}
	data, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(stateFolder, *writeState)
	if err := os.MkdirAll(folder, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "state.json"), append(data, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}

// kindsOf are the kinds of entries in a state, with one path of each.
func (s *keptState) kindsOf() map[string]string {
	kinds := map[string]string{}
	for _, path := range slices.Sorted(maps.Keys(s.Entries)) {
		kind, _, _ := strings.Cut(path, "/")
		if _, known := kinds[kind]; !known {
			kinds[kind] = path
		}
	}
	return kinds
}

// TestStateOfEveryRelease reads what each release stored, and lets it live on.
func TestStateOfEveryRelease(t *testing.T) {
	t.Parallel()
	for name, state := range keptStates(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, kind := range []string{
				"mount", "config", "role", "key", "name", "imported", "member", "due", "dueh", "rollover", "usage", "firstuse", "webhook", "outbox", "claim", "claimend",
				"reports", "work", "done", "charge",
			} {
				if state.kindsOf()[kind] == "" {
					t.Errorf("the state has no entry of the kind %q", kind)
				}
			}
			w := state.open(t, nil)
			if err := w.initialize(); err != nil {
				t.Fatal(err)
			}
			names := map[string]bool{}
			now := w.answersOf(names)
			for path, want := range state.Answers {
				for field, value := range want {
					if got := now[path][field]; !same(got, value) {
						t.Errorf("%s of %s is\n%s\nand was\n%s", field, path, toJSON(got), toJSON(value))
					}
				}
			}
			for presented, want := range state.Codes {
				w.secret(presented)
				if got := text(t, w.write("verify", object{fieldAPIKey: presented, fieldSourceIP: "192.0.2.1"})["code"]); got != want {
					t.Errorf("a token is %s and was %s", got, want)
				}
			}
			// It lives on.
			w.settled()
			for n := range names {
				_ = w.request(logical.UpdateOperation, "rotate/"+n, object{fieldForce: true})
			}
			for range 30 {
				w.clock.Advance(5 * time.Hour)
				w.settled()
			}
			for n := range names {
				k := w.read("keys/" + n)
				if k[fieldEnabled] != true || number(t, versions(t, k)[0][fieldVersion]) < 2 {
					continue
				}
				presented := text(t, w.read("static-creds/" + n)[fieldAPIKey])
				if got := text(t, w.write("verify", object{fieldAPIKey: presented, fieldSourceIP: "192.0.2.1"})["code"]); got != "VALID" {
					t.Errorf("later the current token of %s is %s", n, got)
				}
			}
			w.atTheEnd()
		})
	}
}

// fromTheFuture is a field that no version of this code knows.
const fromTheFuture = "zz_from_the_future"

// mapsOf are the fields whose names are data.
var mapsOf = []string{"custom_metadata", "metadata", "keys", "v", "h", "verifiers", "data"}

// withFuture adds the field to every object in a stored value.
func withFuture(v any, isMap bool) any {
	switch v := v.(type) {
	case object:
		for name, value := range v {
			v[name] = withFuture(value, slices.Contains(mapsOf, name) && (name != "keys" || !isList(value)) || isNumber(name))
		}
		if !isMap {
			v[fromTheFuture] = object{"n": 1}
		}
	case []any:
		for i := range v {
			v[i] = withFuture(v[i], false)
		}
	}
	return v
}

// isNumber tells of a name that is a version's number, on a page of use.
func isNumber(name string) bool {
	_, err := strconv.Atoi(name)
	return err == nil
}

func isList(v any) bool {
	_, ok := v.([]any)
	return ok
}

// withoutMinutes leaves out of the use of a key what stays in memory.
func withoutMinutes(v any) {
	if o, is := v.(object); is {
		delete(o, "minutes")
		for _, value := range o {
			withoutMinutes(value)
		}
	}
}

// futures are the places in a value that have the field, without numbers and
// names that are data.
func futures(v any, place string, isMap bool, found map[string]bool) {
	switch v := v.(type) {
	case object:
		if _, has := v[fromTheFuture]; has {
			found[place] = true
		}
		for name, value := range v {
			if name == fromTheFuture {
				continue
			}
			if isMap {
				name = "*"
			}
			futures(value, place+"."+name, slices.Contains(mapsOf, name) || strings.HasSuffix(place, ".keys.*.v"), found)
		}
	case []any:
		for _, item := range v {
			futures(item, place+"[]", false, found)
		}
	}
}

// TestUnknownFieldsAreKept: fields that a newer minor version has added are
// carried through whatever this one rewrites.
func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	for name, state := range keptStates(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := map[string]string{}
			w := state.open(t, func(path string, value []byte) []byte {
				if len(value) == 0 || strings.HasPrefix(path, "dueh/") {
					return value
				}
				var v any
				decoder := json.NewDecoder(bytes.NewReader(value))
				decoder.UseNumber()
				if err := decoder.Decode(&v); err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				if path == "mount/state" {
					state, ok := v.(object)
					if !ok {
						t.Fatalf("%s is not an object", path)
					}
					delete(state, "has_hooks")
				}
				before[path] = toJSON(withFuture(v, false))
				return []byte(before[path])
			})
			if err := w.initialize(); err != nil {
				t.Fatal(err)
			}
			w.rewriteAll(state)
			rewritten := map[string]bool{}
			for path, value := range before {
				entry, err := w.memory.Get(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				if id, isJob := strings.CutPrefix(path, "work/"); isJob && entry == nil {
					// It has finished.
					if entry, err = w.memory.Get(t.Context(), "done/"+id); err != nil {
						t.Fatal(err)
					}
				}
				if entry == nil || string(entry.Value) == value {
					continue
				}
				kind, _, _ := strings.Cut(path, "/")
				rewritten[kind] = true
				was, is := map[string]bool{}, map[string]bool{}
				var old, now any
				if json.Unmarshal([]byte(value), &old) != nil || json.Unmarshal(entry.Value, &now) != nil {
					t.Fatalf("%s is not JSON", path)
				}
				futures(old, "", false, was)
				futures(now, "", false, is)
				for place := range was {
					if !is[place] && !goes[kind+place] {
						t.Errorf("%s, rewritten, has lost what it does not know at %q:\n%s\nwas\n%s", path, place, entry.Value, value)
					}
				}
			}
			for _, kind := range []string{"mount", "config", "role", "key", "usage", "webhook", "claim", "reports", "work"} {
				if !rewritten[kind] {
					t.Errorf("no entry of the kind %q was rewritten: the test is blind there", kind)
				}
			}
		})
	}
}

// goes are the places that an operation of the test removes by its nature.
var goes = map[string]bool{
	"key.owed[]": true, "key.requests[]": true, "key.cleanup": true, // they are done with
	// One record of many in an entry: what an older version does not know of it
	// is told anew by those who report.
	"reports.verifiers.*": true, "reports.verifiers.*.boots[]": true, "usage.keys.*.v.*.*": true,
}

// rewriteAll changes an entry of every kind.
func (w *cutWorld) rewriteAll(state *keptState) {
	w.t.Helper()
	for _, name := range w.list("webhooks/", nil) {
		w.write("webhooks/"+name, object{"events": []any{"key.*"}}) // and the mount with the first
	}
	w.write("config", object{"leak_rate": 8})
	for _, name := range w.list("roles/", nil) {
		w.write("roles/"+name, object{"custom_metadata": object{"changed": "yes"}})
	}
	for _, name := range w.list("keys/", nil) {
		w.write("keys/"+name, object{fieldMetadata: object{"changed": "yes"}})
	}
	for presented := range state.Codes {
		w.secret(presented)
		w.write("verify", object{fieldAPIKey: presented, fieldSourceIP: "192.0.2.1", fieldSource: "eu"})
	}
	w.write("usage", object{"verifier": "edge-1", "boot": "b1", "sequence": 2, "entries": []any{
		object{fieldKeyID: w.keyID("plain"), fieldVersion: 1, fieldSource: "us", "count": 1}}})
	w.write("claim", object{"code": keptCode})
	w.flush()
	w.settled()
	w.clock.Advance(4 * time.Hour)
	w.settled()
}

// newer is an entry as a newer major version would write it.
func newer(value []byte) []byte {
	var v object
	if err := json.Unmarshal(value, &v); err != nil || v == nil {
		return value
	}
	v["schema"] = 99
	return []byte(toJSON(v))
}

// TestANewerSchemaIsRefused clearly, and left as it is, while what has nothing
// to do with it goes on.
func TestANewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	refusals := map[string]struct {
		prefix string
		// ask is a request that needs the entry; "" where the mount cannot open.
		op   logical.Operation
		path string
		data object
		// logged is said in the log, where nobody is asking for the entry.
		logged string
	}{
		"mount":   {prefix: "mount/"},
		"reports": {prefix: "reports"},
		"role":    {"role/", logical.UpdateOperation, "roles/auto", object{"overlap_period": "5h"}, ""},
		"key":     {"key/", logical.UpdateOperation, "rotate/plain", nil, ""},
		"hook":    {"webhook/", logical.UpdateOperation, "webhooks/log", object{"events": []any{"key.*"}}, ""},
		"usage":   {"usage/", logical.ReadOperation, "usage/plain", nil, ""},
		"claim":   {"claim/", logical.UpdateOperation, "claim", object{"code": keptCode}, ""},
		"job":     {"work/", logical.ReadOperation, "roles/r/rotate", nil, ""},
		"result":  {"done/", logical.ReadOperation, "roles/auto/rotate", nil, ""},
		// Nobody listens there.
		"event": {
			"outbox/", logical.UpdateOperation, "webhooks/log", object{"url": "http://127.0.0.1:1/", "allow_private": true, "enabled": true},
			"a stored event waits for a newer plugin",
		},
		"use": {"firstuse/", logical.UpdateOperation, "sweep", nil, "schema 99 is not one that this plugin reads (1 to 1): run the newer plugin that wrote it"},
	}
	for name, state := range keptStates(t) {
		for kind, c := range refusals {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				changed := map[string]string{}
				w := state.open(t, func(path string, value []byte) []byte {
					if !strings.HasPrefix(path, c.prefix) {
						return value
					}
					changed[path] = string(newer(value))
					return []byte(changed[path])
				})
				err := w.initialize()
				said := fmt.Sprint(err)
				if c.path != "" {
					if err != nil {
						t.Fatal(err)
					}
					a := w.request(c.op, c.path, c.data)
					if (a.status != http.StatusInternalServerError) != (c.logged != "") {
						t.Errorf("a newer %s is answered %s", kind, a)
					}
					said = a.errText
				}
				if c.logged != "" {
					eventually(t, "that it waits for a newer plugin", func() bool { return strings.Contains(w.logs.String(), c.logged) })
				} else if !strings.Contains(said, "schema 99") || !strings.Contains(said, "newer plugin") {
					t.Errorf("of a newer %s is said: %s", kind, said)
				}
				if err == nil {
					w.clock.Advance(minutes(2))
					w.oneTick()
					w.write("config", object{"leak_rate": 9})
				}
				for path, value := range changed {
					entry, err := w.memory.Get(context.WithoutCancel(t.Context()), path)
					if err != nil || entry == nil || string(entry.Value) != value {
						t.Errorf("%s, which a newer plugin wrote, was changed: %v", path, err)
					}
				}
			})
		}
	}
}
