// SPDX-License-Identifier: MPL-2.0

// Package e2e tests the engine on real servers, through the HTTP API and the
// CLI, with the plugin registered by its SHA-256 as in production.
//
// Tests share one dev server and one Raft server, each on a mount of its own;
// those that stop, seal or kill something have a server for themselves. Every
// API key that a server ever answers is noted. Every answer and every message to
// a webhook is searched for them at once, and whatever the servers, agents and
// audit devices have written in the end.
package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// pluginVersion is the build that most tests run.
const pluginVersion = "v0.1.0"

func TestMain(m *testing.M) {
	code := m.Run()
	if !shared.close() && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// shared holds the servers that tests have in common. They start when the
// first test wants them and stop when the last one is over.
var shared suite

type suite struct {
	mu       sync.Mutex
	failed   bool
	cleanups []func()
	dev      lazyServer
	raft     lazyServer
}

type lazyServer struct {
	once sync.Once
	srv  *harness.Server
}

// devServer is the dev server that tests share.
func devServer(t testing.TB) *harness.Server {
	t.Helper()
	return shared.dev.get(t, func(t testing.TB) *harness.Server {
		return withEngine(t, harness.StartDev(t, harness.Options{LogLevel: "trace"}))
	})
}

// raftServer is the Raft server that tests share.
func raftServer(t testing.TB) *harness.Server {
	t.Helper()
	return shared.raft.get(t, func(t testing.TB) *harness.Server {
		return withEngine(t, harness.StartRaft(t, harness.Options{LogLevel: "trace"}))
	})
}

// ownRaft is a Raft server for one test, which may do to it what it likes.
func ownRaft(t testing.TB) *harness.Server {
	t.Helper()
	return withEngine(t, harness.StartRaft(t, harness.Options{LogLevel: "debug"}))
}

// withEngine registers the plugin, turns on an audit device and has the server
// searched for secrets when the test ends.
func withEngine(t testing.TB, srv *harness.Server) *harness.Server {
	t.Helper()
	plugin := harness.Plugin(t, harness.PluginOptions{Version: pluginVersion, Commit: "e2e"})
	srv.RegisterPlugin(t, harness.PluginName, plugin.Version, plugin.Path, plugin.SHA256)
	srv.Audit(t)
	t.Cleanup(func() { searchForSecrets(t, srv, 2) })
	return srv
}

func (l *lazyServer) get(t testing.TB, start func(testing.TB) *harness.Server) *harness.Server {
	t.Helper()
	harness.Binary(t) // skips this test, not the one that came first
	l.once.Do(func() { l.srv = start(&sharedTB{TB: t}) })
	if l.srv == nil {
		t.Fatal("the shared server did not start: see the test that tried first")
	}
	return l.srv
}

// close stops the shared servers and tells whether all went well.
func (s *suite) close() bool {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
	return !s.failed
}

// sharedTB lets what it starts live until the end of all tests. Failures
// during the start are those of the test that came first; later ones have no
// test and fail the run.
type sharedTB struct{ testing.TB }

func (s *sharedTB) Cleanup(f func()) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.cleanups = append(shared.cleanups, f)
}

func (s *sharedTB) Helper() {}

func (s *sharedTB) Failed() bool { return shared.failed }

func (s *sharedTB) Errorf(format string, args ...any) {
	shared.failed = true
	s.Logf(format, args...)
}

func (s *sharedTB) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "shared servers: "+format+"\n", args...)
}

// issued are the secrets that must not turn up where they do not belong.
var issued = &registry{}

// registry is what the tests note secrets in.
type registry struct{ harness.Secrets }

func (r *registry) add(secret, name string) { r.Add(secret, name) }

// aClaimCode is what claim codes are called: a webhook may tell those.
const aClaimCode = "a claim code"

// straysIn names the secrets that an answer or a message holds where none is
// meant to be: in whatever is not api_key, or the new secret of a webhook.
func (r *registry) straysIn(text []byte) []string {
	var body any
	if json.Unmarshal(text, &body) == nil {
		if rest, err := json.Marshal(withoutSecrets(body)); err == nil {
			text = rest
		}
	}
	return slices.DeleteFunc(r.FindIn(text), func(name string) bool { return name == aClaimCode })
}

func withoutSecrets(v any) any {
	switch v := v.(type) {
	case map[string]any:
		rest := map[string]any{}
		for name, item := range v {
			if _, isText := item.(string); !isText || name != "api_key" && name != "secret" {
				rest[name] = withoutSecrets(item)
			}
		}
		return rest
	case []any:
		rest := make([]any, len(v))
		for i, item := range v {
			rest[i] = withoutSecrets(item)
		}
		return rest
	}
	return v
}

// searchForSecrets looks through everything that a server and its agents have
// written, storage included, for keys that were given out. There must be at
// least so many logs, or the search proves nothing.
func searchForSecrets(t testing.TB, srv *harness.Server, wantLogs int) {
	t.Helper()
	issued.Search(t, srv, wantLogs)
}

func TestSearchFindsASecretWhereverItStands(t *testing.T) {
	t.Parallel()
	r := &registry{}
	r.add("key_0123456789ab_theSecretPartOfAKey000000", "the key")
	r.add("tooshort", "not a secret")
	for text, want := range map[string]int{
		"key_0123456789ab_theSecretPartOfAKey000000":                  1,
		`{"x":"key_0123456789ab_theSecretPartOfAKey000000"} and more`: 1,
		"theSecretPartOfAKey000000":                                   1,
		"key_0123456789ab tooshort":                                   0,
		"":                                                            0,
	} {
		if got := r.FindIn([]byte(text)); len(got) != want {
			t.Errorf("in %q found %v, want %d", text, got, want)
		}
	}
}

func TestAnswersAndMessagesAreSearchedForKeys(t *testing.T) {
	t.Parallel()
	const key = "key_0123456789ab_theSecretPartOfAKey000000"
	r := &registry{}
	r.add(key, "the key")
	r.add("the-claim-code-of-a-webhook", aClaimCode)
	for text, want := range map[string]int{
		`{"data":{"api_key":"` + key + `","version":1}}`:                    0,
		`{"data":{"batch_results":[{"api_key":"` + key + `"}]}}`:            0,
		`{"data":{"secret":"` + key + `"}}`:                                 0,
		`{"data":{"claim_code":"the-claim-code-of-a-webhook"}}`:             0,
		`{"errors":["cannot read ` + key + `"]}`:                            1,
		`{"data":{"transitions":[{"reason":"` + key + `"}]}}`:               1,
		`{"data":{"api_key":{"value":"` + key + `"}}}`:                      1,
		"# HELP x y\napikeys_verifications_total{role=\"" + key + "\"} 1\n": 1,
	} {
		if got := r.straysIn([]byte(text)); len(got) != want {
			t.Errorf("in %q found %v, want %d", text, got, want)
		}
	}
}
