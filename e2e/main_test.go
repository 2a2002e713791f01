// SPDX-License-Identifier: MPL-2.0

// Package e2e tests the engine on real servers, through the HTTP API and the
// CLI, with the plugin registered by its SHA-256 as in production.
//
// Tests share one dev server and one Raft server, each on a mount of its own;
// those that stop, seal or kill something have a server for themselves. Every
// API key that a server ever answers is noted, and whatever the servers,
// agents and audit devices have written is searched for it in the end.
package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
var issued = &registry{tails: map[[tailLen]byte]string{}}

// tailLen is how much of a secret's end is searched for: the part that is
// random whatever stands before it.
const tailLen = 16

type registry struct {
	mu    sync.Mutex
	tails map[[tailLen]byte]string // → what to call it in a failure
}

// add notes a secret; what is shorter than a tail is none.
func (r *registry) add(secret, name string) {
	if len(secret) < tailLen {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tails[[tailLen]byte([]byte(secret[len(secret)-tailLen:]))] = name
}

func (r *registry) any() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tails) > 0
}

// findIn names the secrets that text holds.
func (r *registry) findIn(text []byte) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []string
	for i := 0; i+tailLen <= len(text); i++ {
		if name, ok := r.tails[[tailLen]byte(text[i:i+tailLen])]; ok && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	return found
}

// searchForSecrets looks through everything that a server and its agents have
// written, storage included, for keys that were given out. There must be at
// least so many logs, or the search proves nothing.
func searchForSecrets(t testing.TB, srv *harness.Server, wantLogs int) {
	t.Helper()
	if !issued.any() {
		t.Error("no key was given out: there is nothing to search for")
	}
	logs := 0
	files := os.DirFS(srv.Dir)
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasPrefix(filepath.Join(srv.Dir, path), srv.PluginDir) {
			return err
		}
		text, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		for _, name := range issued.findIn(text) {
			t.Errorf("%s has %s in clear", path, name)
		}
		if strings.HasSuffix(path, ".log") && len(text) > 0 {
			logs++
		}
		return nil
	})
	if err != nil {
		t.Errorf("search for secrets: %v", err)
	}
	if logs < wantLogs {
		t.Errorf("searched %d logs in %s, want %d: of the server and of its audit device", logs, srv.Dir, wantLogs)
	}
}

func TestSearchFindsASecretWhereverItStands(t *testing.T) {
	t.Parallel()
	r := &registry{tails: map[[tailLen]byte]string{}}
	r.add("key_0123456789ab_theSecretPartOfAKey000000", "the key")
	r.add("tooshort", "not a secret")
	for text, want := range map[string]int{
		"key_0123456789ab_theSecretPartOfAKey000000":                  1,
		`{"x":"key_0123456789ab_theSecretPartOfAKey000000"} and more`: 1,
		"theSecretPartOfAKey000000":                                   1,
		"key_0123456789ab tooshort":                                   0,
		"":                                                            0,
	} {
		if got := r.findIn([]byte(text)); len(got) != want {
			t.Errorf("in %q found %v, want %d", text, got, want)
		}
	}
}
