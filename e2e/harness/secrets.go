// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Secrets are what must not turn up where it does not belong. The zero value
// is ready, and safe for concurrent use.
type Secrets struct {
	mu    sync.Mutex
	tails map[[tailLen]byte]string // → what to call it in a failure
}

// tailLen is how much of a secret's end is searched for: the part that is
// random whatever stands before it.
const tailLen = 16

// Add notes a secret and what to call it; what is shorter than 16 bytes is none.
func (r *Secrets) Add(secret, name string) {
	if len(secret) < tailLen {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tails == nil {
		r.tails = map[[tailLen]byte]string{}
	}
	r.tails[[tailLen]byte([]byte(secret[len(secret)-tailLen:]))] = name
}

// Any tells whether there is a secret to search for.
func (r *Secrets) Any() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tails) > 0
}

// FindIn names the secrets that text holds.
func (r *Secrets) FindIn(text []byte) []string {
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

// Search looks through everything that a server and its agents have written,
// storage included, and fails the test for each secret that it finds. There must
// be at least so many logs, or the search proves nothing.
func (r *Secrets) Search(t testing.TB, srv *Server, wantLogs int) {
	t.Helper()
	if !r.Any() {
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
		for _, name := range r.FindIn(text) {
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
