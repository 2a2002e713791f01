// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"
	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// epoch is a Monday at midnight, so that cron tests can be read.
var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

type object = map[string]any

// tester is what a *testing.T and a *rapid.T have in common.
type tester interface {
	rapid.TB
	Context() context.Context
	Cleanup(f func())
}

// mount is a backend under test with all that it touches. At the end of the
// test it proves that no API key stands anywhere in the clear.
type mount struct {
	t tester
	*Backend
	clock   *clock.Manual
	memory  *storetest.Memory
	storage logical.Storage // memory, or what a test has put in front of it
	view    *logical.StaticSystemView
	logs    *logRecord

	// Who makes the requests.
	entity, accessor, display string

	// witness, where set, is told of every answer.
	witness func(path *framework.Path, op logical.Operation, status int)

	// damaged tells that storage holds what no code has written, so that
	// answers need not be complete.
	damaged bool

	mu      sync.Mutex
	secrets map[string]bool
	texts   []string // errors, warnings, lists and names that were answered
}

// logRecord is a log that can be read while it is written.
type logRecord struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *logRecord) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *logRecord) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// newMount returns an engine on an empty storage, at epoch.
func newMount(t tester) *mount {
	t.Helper()
	memory := storetest.NewMemory()
	return newMountOn(t, memory, memory, clock.NewManual(epoch))
}

// newMountOn returns an engine on storage, which ends in memory.
func newMountOn(t tester, memory *storetest.Memory, storage logical.Storage, c *clock.Manual) *mount {
	t.Helper()
	m := newIdleMount(t, memory, storage, c)
	if err := m.Initialize(t.Context(), &logical.InitializationRequest{Storage: storage}); err != nil {
		t.Fatalf("initialize: %v", err)
	}
	m.quiet()
	if e := m.opened(); e != nil {
		e.keeper.Book.Recover(t.Context()) // as the first tick does
	}
	return m
}

// quiet stops the worker that tells of what verification saw, so that tell
// does it when the test wants it.
func (m *mount) quiet() {
	if e := m.opened(); e != nil && e.telling != nil {
		e.telling.Stop(clock.System().After)
	}
}

// tell tells of all that waits to be told.
func (m *mount) tell() {
	m.t.Helper()
	if err := m.engineNow().watch.tell(m.t.Context()); err != nil {
		m.t.Fatalf("tell: %v", err)
	}
}

// flush stores what was counted, and ends claims.
func (m *mount) flush() {
	m.t.Helper()
	w := m.engineNow().watch
	if err := errors.Join(w.flush(m.t.Context()), w.endClaims(m.t.Context())); err != nil {
		m.t.Fatalf("flush: %v", err)
	}
}

// newIdleMount is newMountOn without the initialization.
func newIdleMount(t tester, memory *storetest.Memory, storage logical.Storage, c *clock.Manual) *mount {
	t.Helper()
	m := &mount{
		t: t, clock: c, memory: memory, storage: storage, logs: &logRecord{}, secrets: map[string]bool{},
		view:   &logical.StaticSystemView{DefaultLeaseTTLVal: 24 * time.Hour, MaxLeaseTTLVal: 768 * time.Hour, PluginEnvironment: &logical.PluginEnvironment{}},
		entity: "entity-1", accessor: "accessor-1", display: "token-tester",
	}
	b, err := newBackend(t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: m.logs}), System: m.view, StorageView: storage,
		BackendUUID: "uuid", Config: map[string]string{},
	}, c, rand.Reader)
	if err != nil {
		t.Fatalf("newBackend: %v", err)
	}
	m.Backend = b
	t.Cleanup(m.finish)
	return m
}

// reopen stops the engine and starts another on what is stored, as after a
// restart of the plugin.
func (m *mount) reopen() *mount {
	m.t.Helper()
	m.Cleanup(m.t.Context())
	next := newMountOn(m.t, m.memory, m.storage, m.clock)
	next.witness = m.witness
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(next.secrets, m.secrets)
	return next
}

func (m *mount) finish() {
	ctx := context.WithoutCancel(m.t.Context())
	m.Cleanup(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	secrets := slices.Sorted(maps.Keys(m.secrets))
	if err := storetest.Scan(m.memory, secrets...); err != nil {
		m.t.Errorf("an API key was stored in the clear: %v", err)
	}
	logs, said := m.logs.String(), strings.Join(m.texts, "\n")
	for i, s := range secrets {
		if strings.Contains(logs, s) {
			m.t.Errorf("API key %d is in the log", i+1)
		}
		if strings.Contains(said, s) {
			m.t.Errorf("API key %d is in an error, a warning or a list", i+1)
		}
	}
}

// secret registers a text that must never be seen again.
func (m *mount) secret(s string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(s) >= 8 {
		m.secrets[s] = true
	}
	return s
}

func (m *mount) heard(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.texts = append(m.texts, text)
}

// answer is what a caller of Vault's API gets.
type answer struct {
	status   int
	data     object
	errText  string
	warnings []string
	secret   *logical.Secret
}

func (a *answer) String() string {
	return fmt.Sprintf("status %d, error %q, warnings %q, data %v", a.status, a.errText, a.warnings, a.data)
}

// overTheWire is data as they reach a plugin: as JSON.
func overTheWire(t tester, data object) object {
	t.Helper()
	if data == nil {
		return nil
	}
	text, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	var out object
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (m *mount) newRequest(op logical.Operation, path string, data object) *logical.Request {
	return &logical.Request{
		Operation: op, Path: path, Data: data, Storage: m.storage, DisplayName: m.display,
		EntityID: m.entity, ClientTokenAccessor: m.accessor, MountPoint: "apikeys/",
	}
}

// request makes a request as Vault's core does: a write goes through the
// existence check first, which tells a create from an update.
func (m *mount) request(op logical.Operation, path string, data object) *answer {
	m.t.Helper()
	return m.rawRequest(op, path, overTheWire(m.t, data))
}

// rawRequest is request with data that reach the engine as they are.
func (m *mount) rawRequest(op logical.Operation, path string, data object) *answer {
	m.t.Helper()
	for _, field := range []string{fieldImportKey, fieldAPIKey} {
		if s, ok := data[field].(string); ok && op != logical.DeleteOperation {
			m.secret(s)
		}
	}
	return m.send(op, path, data)
}

// send is rawRequest with data of which nothing counts as a secret.
func (m *mount) send(op logical.Operation, path string, data object) *answer {
	m.t.Helper()
	ctx := m.t.Context()
	req := m.newRequest(op, path, maps.Clone(data))
	if op == logical.CreateOperation || op == logical.UpdateOperation {
		found, exists, err := m.HandleExistenceCheck(ctx, req)
		switch {
		case errors.Is(err, logical.ErrUnsupportedPath): // the request itself fails
		case err != nil:
			return m.answer(req, nil, err)
		case found && !exists:
			req.Operation = logical.CreateOperation
		default:
			req.Operation = logical.UpdateOperation
		}
	}
	resp, err := m.HandleRequest(ctx, req)
	return m.answer(req, resp, err)
}

// answer works out what Vault would make of resp and err, and checks resp
// against what the operation declares.
func (m *mount) answer(req *logical.Request, resp *logical.Response, err error) *answer {
	m.t.Helper()
	status, coded := logical.RespondErrorCommon(req, resp, err)
	if coded != nil {
		logical.AdjustErrorStatusCode(&status, coded)
	}
	a := &answer{status: status}
	if resp != nil {
		a.data, a.warnings, a.secret = overTheWire(m.t, resp.Data), resp.Warnings, resp.Secret
	}
	switch {
	case coded != nil:
		a.errText = coded.Error()
	case err != nil:
		a.errText = err.Error()
	case status == 0 && (resp == nil || resp.Data == nil && len(resp.Warnings) == 0):
		a.status = http.StatusNoContent
	case status == 0:
		a.status = http.StatusOK
	}
	if resp != nil && resp.IsError() {
		a.errText = resp.Error().Error()
	}
	m.heard(a.errText)
	for _, w := range a.warnings {
		m.heard(w)
	}
	if req.Operation == logical.ListOperation {
		m.heard(fmt.Sprint(a.data))
	}
	m.collect(a.data)
	if m.witness != nil {
		m.witness(m.Route(req.Path), req.Operation, a.status)
	}
	if a.status < 300 && req.Operation != logical.RenewOperation && req.Operation != logical.RevokeOperation {
		m.validate(req, resp)
	}
	return a
}

// collect registers every API key in an answer.
func (m *mount) collect(v any) {
	switch v := v.(type) {
	case object:
		for name, value := range v {
			if s, ok := value.(string); ok && name == fieldAPIKey {
				m.secret(s)
				continue
			}
			m.collect(value)
		}
	case []any:
		for _, item := range v {
			m.collect(item)
		}
	}
}

func (m *mount) validate(req *logical.Request, resp *logical.Response) {
	m.t.Helper()
	t, ok := m.t.(*testing.T)
	if !ok || m.damaged {
		return // the schema's checker knows no other
	}
	path := m.Route(req.Path)
	if path == nil {
		m.t.Fatalf("%s %s was answered by no path", req.Operation, req.Path)
	}
	op, declared := path.Operations[req.Operation]
	if !declared {
		m.t.Fatalf("%s %s was answered by an operation that is not declared", req.Operation, req.Path)
	}
	if _, nothing := op.Properties().Responses[http.StatusNoContent]; nothing && (resp == nil || resp.Data == nil) {
		return
	}
	schema.ValidateResponse(t, schema.GetResponseSchema(t, path, req.Operation), resp, true)
}

// ok makes a request that must succeed, and returns its data.
func (m *mount) ok(op logical.Operation, path string, data object) object {
	m.t.Helper()
	a := m.request(op, path, data)
	if a.status >= 300 {
		m.t.Fatalf("%s %s: %s", op, path, a)
	}
	return a.data
}

func (m *mount) write(path string, data object) object {
	m.t.Helper()
	return m.ok(logical.UpdateOperation, path, data)
}

func (m *mount) read(path string) object {
	m.t.Helper()
	return m.ok(logical.ReadOperation, path, nil)
}

func (m *mount) patch(path string, data object) {
	m.t.Helper()
	m.ok(logical.PatchOperation, path, data)
}

func (m *mount) remove(path string) {
	m.t.Helper()
	m.ok(logical.DeleteOperation, path, nil)
}

// list returns the names that a LIST answers.
func (m *mount) list(path string, data object) []string {
	m.t.Helper()
	names := []string{}
	listed := m.request(logical.ListOperation, path, data)
	if listed.status >= 300 && listed.status != http.StatusNotFound {
		m.t.Fatalf("LIST %s: %s", path, listed)
	}
	keys, _ := listed.data["keys"].([]any)
	for _, k := range keys {
		names = append(names, text(m.t, k))
	}
	return names
}

// refused makes a request that must fail with this status and an error that
// holds all of words, and proves that it changed nothing.
func (m *mount) refused(status int, op logical.Operation, path string, data object, words ...string) {
	m.t.Helper()
	m.rawRefused(status, op, path, overTheWire(m.t, data), words...)
}

func (m *mount) rawRefused(status int, op logical.Operation, path string, data object, words ...string) {
	m.t.Helper()
	before := m.snapshot()
	a := m.rawRequest(op, path, data)
	if a.status != status {
		m.t.Errorf("%s %.80q: got %s, want status %d", op, path, a, status)
	}
	for _, word := range words {
		if !strings.Contains(a.errText, word) {
			m.t.Errorf("%s %.80q: the error %q does not say %q", op, path, a.errText, word)
		}
	}
	if len(a.errText) > 1000 {
		m.t.Errorf("%s %.80q: the error has %d bytes", op, path, len(a.errText))
	}
	if diff := before.diff(m.snapshot()); diff != "" {
		m.t.Errorf("%s %.80q was refused and changed %s", op, path, diff)
	}
}

// snapshot is all that is stored.
type snapshot map[string]string

func (m *mount) snapshot() snapshot {
	m.t.Helper()
	s := snapshot{}
	for _, path := range m.memory.Paths("") {
		entry, err := m.memory.Get(context.WithoutCancel(m.t.Context()), path)
		if err != nil {
			m.t.Fatal(err)
		}
		if entry != nil {
			s[path] = string(entry.Value)
		}
	}
	return s
}

func (s snapshot) diff(o snapshot) string {
	var changed []string
	for path, value := range s {
		if now, there := o[path]; !there {
			changed = append(changed, "-"+path)
		} else if now != value {
			changed = append(changed, "~"+path)
		}
	}
	for path := range o {
		if _, there := s[path]; !there {
			changed = append(changed, "+"+path)
		}
	}
	slices.Sort(changed)
	return strings.Join(changed, " ")
}

// role writes a role named r, whose fields are those that are given.
func (m *mount) role(fields object) {
	m.t.Helper()
	m.write("roles/r", fields)
}

// key makes a key of role r and returns its token, "" for an import.
func (m *mount) key(name string, fields object) string {
	m.t.Helper()
	data := object{fieldRole: "r"}
	maps.Copy(data, fields)
	made := m.write("keys/"+name, data)
	if data[fieldImportKey] != nil || data[fieldImportSHA256] != nil {
		return ""
	}
	return text(m.t, made[fieldAPIKey])
}

// rotate rotates a key and returns the new token.
func (m *mount) rotate(name string, fields object) string {
	m.t.Helper()
	return text(m.t, m.write("rotate/"+name, fields)[fieldAPIKey])
}

// code is the verdict on a token.
func (m *mount) code(presented string) string {
	m.t.Helper()
	return text(m.t, m.write("verify", object{fieldAPIKey: presented})["code"])
}

// wantCodes checks the verdicts on several tokens, in order.
func (m *mount) wantCodes(want string, tokens ...string) {
	m.t.Helper()
	var got []string
	for _, presented := range tokens {
		got = append(got, m.code(presented))
	}
	if strings.Join(got, " ") != want {
		m.t.Fatalf("at %s verify answers %s, want %s", m.clock.Now().Format(time.DateTime), strings.Join(got, " "), want)
	}
}

// sweep does what is due and waits for it.
func (m *mount) sweep() object {
	m.t.Helper()
	return m.write("sweep", nil)
}

// tick does what a tick does, and waits for it.
func (m *mount) tick() {
	m.t.Helper()
	if _, err := m.engineNow().ticker.Tick(m.t.Context()); err != nil {
		m.t.Fatalf("tick: %v", err)
	}
	if err := m.engineNow().bulk.Run(m.t.Context()); err != nil {
		m.t.Fatalf("jobs: %v", err)
	}
	m.tell()
}

// pass lets d pass in minutes with a tick each.
func (m *mount) pass(d time.Duration) {
	m.t.Helper()
	for ; d >= time.Minute; d -= time.Minute {
		m.clock.Advance(time.Minute)
		m.tick()
	}
	m.clock.Advance(d)
}

func (m *mount) engineNow() *engine {
	m.t.Helper()
	e, err := m.engine(m.t.Context(), m.storage)
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

// states are those of the versions of a key, oldest first.
func (m *mount) states(name string) string {
	m.t.Helper()
	var states []string
	for _, v := range slices.Backward(versions(m.t, m.read("keys/"+name))) {
		states = append(states, text(m.t, v[fieldState]))
	}
	return strings.Join(states, " ")
}

func (m *mount) wantStates(name, want string) {
	m.t.Helper()
	if got := m.states(name); got != want {
		m.t.Fatalf("at %s the versions of %q are %s, want %s", m.clock.Now().Format(time.DateTime), name, got, want)
	}
}

// versions are those in an answer of keys/<name>, newest first.
func versions(t tester, key object) []object {
	t.Helper()
	list, ok := key["versions"].([]any)
	if !ok {
		t.Fatalf("no versions in %v", key)
	}
	var all []object
	for _, v := range list {
		one, ok := v.(object)
		if !ok {
			t.Fatalf("version %v is not a map", v)
		}
		all = append(all, one)
	}
	return all
}

func list(t tester, v any) []any {
	t.Helper()
	l, ok := v.([]any)
	if !ok {
		t.Fatalf("got %v (%T), want a list", v, v)
	}
	return l
}

func aMap(t tester, v any) object {
	t.Helper()
	o, ok := v.(object)
	if !ok {
		t.Fatalf("got %v (%T), want a map", v, v)
	}
	return o
}

func text(t tester, v any) string {
	t.Helper()
	s, ok := v.(string)
	if !ok {
		t.Fatalf("got %v (%T), want a text", v, v)
	}
	return s
}

func number(t tester, v any) int {
	t.Helper()
	n, ok := v.(float64)
	if !ok {
		t.Fatalf("got %v (%T), want a number", v, v)
	}
	return int(n)
}

func moment(t tester, v any) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text(t, v))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// same compares values as JSON, which is what a client sees.
func same(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func toJSON(v any) string {
	s, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(s)
}

// renew renews the lease of a leased key as Vault's core does.
func (m *mount) renew(lease *logical.Secret, increment time.Duration) *answer {
	m.t.Helper()
	return m.leaseRequest(logical.RenewOperation, lease, increment)
}

// endLease revokes the lease of a leased key as Vault's core does.
func (m *mount) endLease(lease *logical.Secret) *answer {
	m.t.Helper()
	return m.leaseRequest(logical.RevokeOperation, lease, 0)
}

func (m *mount) leaseRequest(op logical.Operation, lease *logical.Secret, increment time.Duration) *answer {
	m.t.Helper()
	stored := *lease
	stored.InternalData = overTheWire(m.t, lease.InternalData)
	stored.Increment = increment
	req := m.newRequest(op, "creds/r", nil)
	req.Secret = &stored
	resp, err := m.HandleRequest(m.t.Context(), req)
	return m.answer(req, resp, err)
}
