// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// mount is the engine at a path, used with a token over HTTP. Its methods fail
// the test where an answer is not what the name of the method says.
type mount struct {
	t     testing.TB
	srv   *harness.Server
	path  string
	token string
}

// enable mounts the engine on a server.
func enable(t testing.TB, srv *harness.Server, path string) *mount {
	t.Helper()
	srv.EnableEngine(t, path, harness.PluginName, pluginVersion)
	return &mount{t: t, srv: srv, path: path, token: srv.RootToken}
}

// onDev mounts the engine on the shared dev server, at a path of the test's own.
func onDev(t testing.TB) *mount {
	t.Helper()
	return enable(t, devServer(t), mountName(t))
}

// onRaft mounts the engine on the shared Raft server.
func onRaft(t testing.TB) *mount {
	t.Helper()
	return enable(t, raftServer(t), mountName(t))
}

func mountName(t testing.TB) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
}

// as is the mount used with another token.
func (m *mount) as(token string) *mount {
	other := *m
	other.token = token
	return &other
}

// at is the mount reached through another server of the cluster.
func (m *mount) at(srv *harness.Server) *mount {
	other := *m
	other.srv = srv
	return &other
}

// answer is what a server answered.
type answer struct {
	status int
	text   string
	data   map[string]any
	errs   []string
	warns  []string
	lease  string
	body   map[string]any
}

func (a *answer) ok() bool { return a.status >= 200 && a.status < 300 }

// send makes a request below /v1/. A body is sent as JSON.
func (m *mount) send(method, path string, body any) (*answer, error) {
	var payload io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		payload = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, m.srv.Addr+"/v1/"+path, payload)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", m.token)
	req.Header.Set("X-Vault-Request", "true")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	a := &answer{status: resp.StatusCode, text: string(raw)}
	if json.Unmarshal(raw, &a.body) == nil {
		a.data, _ = a.body["data"].(map[string]any)
		a.errs, a.warns = texts(a.body["errors"]), texts(a.body["warnings"])
		a.lease, _ = a.body["lease_id"].(string)
		noteKeys(a.body)
	}
	if found := issued.straysIn(raw); len(found) > 0 {
		m.t.Errorf("%s %s answers %d with %v where none is meant to be", method, path, a.status, found)
	}
	return a, nil
}

var httpClient = &http.Client{
	Timeout:       60 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// noteKeys registers every API key in an answer.
func noteKeys(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, item := range v {
			if s, ok := item.(string); ok && name == "api_key" {
				issued.add(s, "a key that was given out")
			}
			noteKeys(item)
		}
	case []any:
		for _, item := range v {
			noteKeys(item)
		}
	}
}

func texts(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, item := range list {
		out = append(out, fmt.Sprint(item))
	}
	return out
}

// call makes a request to a path of the mount.
func (m *mount) call(method, path string, body any) *answer {
	m.t.Helper()
	a, err := m.send(method, m.path+"/"+path, body)
	if err != nil {
		m.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// must makes a request that has to succeed and returns its data.
func (m *mount) must(method, path string, body any) map[string]any {
	m.t.Helper()
	a := m.call(method, path, body)
	if !a.ok() {
		m.t.Fatalf("%s %s: %d %v", method, path, a.status, a.errs)
	}
	return a.data
}

// refuses makes a request that has to fail with this status and an error that
// holds each of the words.
func (m *mount) refuses(status int, method, path string, body any, words ...string) {
	m.t.Helper()
	a := m.call(method, path, body)
	said := strings.Join(a.errs, "; ")
	if a.status != status {
		m.t.Errorf("%s %s: %d %s, want %d", method, shorten(path), a.status, shorten(said), status)
		return
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			m.t.Errorf("%s %s: %q does not say %q", method, shorten(path), shorten(said), word)
		}
	}
}

func shorten(s string) string {
	const most = 300
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

func (m *mount) read(path string) map[string]any {
	m.t.Helper()
	return m.must(http.MethodGet, path, nil)
}

func (m *mount) write(path string, body map[string]any) map[string]any {
	m.t.Helper()
	if body == nil {
		body = map[string]any{}
	}
	return m.must(http.MethodPost, path, body)
}

// role writes a role; pairs are its fields.
func (m *mount) role(name string, pairs ...any) {
	m.t.Helper()
	m.write("roles/"+name, fields(pairs...))
}

// key makes a key and returns its first API key.
func (m *mount) key(name, role string, pairs ...any) string {
	m.t.Helper()
	body := fields(pairs...)
	body["role"] = role
	apiKey, _ := m.write("keys/"+name, body)["api_key"].(string)
	if apiKey == "" {
		m.t.Fatalf("creating key %q answered no api_key", name)
	}
	return apiKey
}

// rotate rotates a key and returns the new API key.
func (m *mount) rotate(name string, pairs ...any) string {
	m.t.Helper()
	apiKey, _ := m.write("rotate/"+name, fields(pairs...))["api_key"].(string)
	if apiKey == "" {
		m.t.Fatalf("rotating key %q answered no api_key", name)
	}
	return apiKey
}

func fields(pairs ...any) map[string]any {
	body := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		body[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	return body
}

// verdict is the answer of verify.
type verdict struct {
	Valid         bool      `json:"valid"`
	Code          string    `json:"code"`
	KeyID         string    `json:"key_id"`
	Name          string    `json:"name"`
	Role          string    `json:"role"`
	Version       int       `json:"version"`
	State         string    `json:"state"`
	Scopes        []string  `json:"scopes"`
	SupersededBy  int       `json:"superseded_by"`
	OverlapEnds   time.Time `json:"overlap_ends"`
	AcceptedUntil time.Time `json:"accepted_until"`
	ExpireTime    time.Time `json:"expire_time"`
}

// tryVerify asks whether a key is accepted, where the server may be away.
func (m *mount) tryVerify(apiKey string, pairs ...any) (verdict, error) {
	body := fields(pairs...)
	body["api_key"] = apiKey
	a, err := m.send(http.MethodPost, m.path+"/verify", body)
	if err != nil {
		return verdict{}, err
	}
	if !a.ok() {
		return verdict{}, fmt.Errorf("verify: %d %v", a.status, a.errs)
	}
	return convert[verdict](a.data)
}

func (m *mount) verify(apiKey string, pairs ...any) verdict {
	m.t.Helper()
	v, err := m.tryVerify(apiKey, pairs...)
	if err != nil {
		m.t.Fatal(err)
	}
	return v
}

func (m *mount) accepts(apiKey string, pairs ...any) verdict {
	m.t.Helper()
	v := m.verify(apiKey, pairs...)
	if !v.Valid || v.Code != "VALID" {
		m.t.Errorf("version %d: %s, want VALID", v.Version, v.Code)
	}
	return v
}

func (m *mount) rejects(code, apiKey string, pairs ...any) {
	m.t.Helper()
	v := m.verify(apiKey, pairs...)
	if v.Valid || v.Code != code {
		m.t.Errorf("version %d: %s, want %s", v.Version, v.Code, code)
	}
}

// keyInfo is what keys/<name> reads.
type keyInfo struct {
	KeyID          string        `json:"key_id"`
	Enabled        bool          `json:"enabled"`
	Imported       bool          `json:"imported"`
	CurrentVersion int           `json:"current_version"`
	PendingVersion int           `json:"pending_version"`
	NextRotation   time.Time     `json:"next_vault_rotation"`
	LastRotation   time.Time     `json:"last_vault_rotation"`
	Versions       []versionInfo `json:"versions"`
}

type versionInfo struct {
	Version       int       `json:"version"`
	State         string    `json:"state"`
	ActivatedTime time.Time `json:"activated_time"`
	OverlapEnds   time.Time `json:"overlap_ends"`
	AcceptedUntil time.Time `json:"accepted_until"`
	ExpireTime    time.Time `json:"expire_time"`
	Reason        string    `json:"reason"`
	UseCount      int       `json:"use_count"`
}

func (m *mount) info(name string) keyInfo {
	m.t.Helper()
	info, err := convert[keyInfo](m.read("keys/" + name))
	if err != nil {
		m.t.Fatal(err)
	}
	return info
}

// tryInfo is info where the server may be away.
func (m *mount) tryInfo(name string) (keyInfo, error) {
	a, err := m.send(http.MethodGet, m.path+"/keys/"+name, nil)
	if err != nil {
		return keyInfo{}, err
	}
	if !a.ok() {
		return keyInfo{}, fmt.Errorf("read key %q: %d %v", name, a.status, a.errs)
	}
	return convert[keyInfo](a.data)
}

func (k keyInfo) version(number int) versionInfo { //nolint:unparam // callers say which
	i := slices.IndexFunc(k.Versions, func(v versionInfo) bool { return v.Version == number })
	if i < 0 {
		return versionInfo{State: "absent"}
	}
	return k.Versions[i]
}

// transition is an entry of history/<name>.
type transition struct {
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`
	Version int       `json:"version"`
	Actor   string    `json:"actor"`
	Reason  string    `json:"reason"`
	Detail  string    `json:"detail"`
}

// history is what happened to a key, oldest first.
func (m *mount) history(name string) []transition {
	m.t.Helper()
	h, err := convert[struct {
		Transitions []transition `json:"transitions"`
	}](m.read("history/" + name))
	if err != nil {
		m.t.Fatal(err)
	}
	slices.Reverse(h.Transitions)
	return h.Transitions
}

// activations are the versions that became active, in order.
func activations(history []transition) []transition {
	return slices.DeleteFunc(slices.Clone(history), func(e transition) bool { return e.Type != "version.activated" })
}

// list is a LIST request.
func (m *mount) list(path string) []string {
	m.t.Helper()
	a := m.call("LIST", path, nil)
	if a.status == http.StatusNotFound {
		return nil
	}
	if !a.ok() {
		m.t.Fatalf("LIST %s: %d %v", path, a.status, a.errs)
	}
	return texts(a.data["keys"])
}

// cli runs a command that has to succeed, as a user types it, and returns what
// it printed.
func (m *mount) cli(args ...string) string {
	m.t.Helper()
	out := m.srv.MustCLI(m.t, m.token, args...)
	noteKeysInText(out)
	return out
}

// cliJSON is cli with -format=json, and returns the data.
func (m *mount) cliJSON(args ...string) map[string]any {
	m.t.Helper()
	out := m.cli(append([]string{args[0], "-format=json"}, args[1:]...)...)
	var body map[string]any
	if err := json.Unmarshal([]byte(out), &body); err != nil {
		m.t.Fatalf("vault %s: %v", strings.Join(args, " "), err)
	}
	noteKeys(body)
	data, _ := body["data"].(map[string]any)
	return data
}

// noteKeysInText registers what the CLI prints in its table.
func noteKeysInText(out string) {
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == "api_key" {
			issued.add(strings.TrimSpace(value), "a key that was given out")
		}
	}
}

// convert reads data into a T by way of JSON.
func convert[T any](data any) (T, error) {
	var out T
	raw, err := json.Marshal(data)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	return out, err
}

// newToken makes a token with policies, the default one included.
func newToken(t testing.TB, srv *harness.Server, request api.TokenCreateRequest) *api.SecretAuth {
	t.Helper()
	secret, err := srv.Client.Auth().Token().Create(&request)
	if err != nil {
		t.Fatalf("create a token: %v", err)
	}
	return secret.Auth
}

// eventually is harness.Eventually with the rhythm that most tests want.
func eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	harness.Eventually(t, timeout, 100*time.Millisecond, check)
}

// reaches waits for a moment that the server has told of, and a bit more.
func reaches(t testing.TB, moment time.Time) {
	t.Helper()
	left := time.Until(moment)
	eventually(t, left+10*time.Second, func() error {
		if time.Now().After(moment) {
			return nil
		}
		return fmt.Errorf("it is not %s yet", moment)
	})
}
