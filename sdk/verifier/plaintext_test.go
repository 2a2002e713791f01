// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// aHeapOfItsOwn is set in the process that looks through its heap.
const aHeapOfItsOwn = "APIKEYS_TEST_HEAP"

// TestNoPlaintextIsKept presents keys, each in another string, for all that may
// become of them, and looks for them in a dump of the heap.
func TestNoPlaintextIsKept(t *testing.T) {
	if os.Getenv(aHeapOfItsOwn) == "" {
		t.Parallel()
		command := exec.CommandContext(t.Context(), must(os.Executable()), "-test.v", "-test.run=^"+t.Name()+"$")
		command.Env = append(os.Environ(), aHeapOfItsOwn+"=1")
		if told, err := command.CombinedOutput(); err != nil || !bytes.Contains(told, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("%v\n%s", err, told)
		}
		return
	}
	p := &presenter{t: t, engine: newEngine()}
	p.verifier = start(t, p.engine, func(c *verifier.Config) { c.KnownRate, c.UnknownRate = 1e6, 1e6 })
	for !p.verifier.Health().Ready {
		time.Sleep(time.Millisecond)
	}
	var kept map[string]int
	for range 3 { // what is a leftover on some stack is none the next time
		p.all()
		if kept = p.inHeap(); len(kept) == 0 {
			return
		}
	}
	t.Errorf("of %d keys each, the verifier keeps %v", ofEach, kept)
}

// ofEach is how many keys are presented for each outcome.
const ofEach = 20

// presenter presents keys, and keeps them only so that nothing finds them.
type presenter struct {
	t        *testing.T
	engine   *engine
	verifier *edge
	hidden   map[string][][]byte // by what was to come of them
}

func hide(s []byte) []byte {
	hidden := make([]byte, len(s))
	for i := range s {
		hidden[i] = ^s[i]
	}
	return hidden
}

// all presents keys for every outcome.
func (p *presenter) all() {
	p.hidden = map[string][][]byte{}
	done := make(chan struct{})
	go func() { // whose stack ends with it
		defer close(done)
		for range ofEach {
			p.each()
		}
	}()
	<-done
}

func (p *presenter) each() {
	e := p.engine
	id, apiKey := e.key(p.t)
	p.verify("accepted", apiKey, record.CodeValid)
	p.verify("accepted from cache", apiKey, record.CodeValid)
	p.verify("without a scope", apiKey, record.CodeInsufficientScope, "admin")
	p.verify("a wrong secret", newToken(p.t, id), record.CodeNotFound)
	stranger := newToken(p.t, must(token.NewID(strings.NewReader(id+id+id))))
	p.verify("a stranger", stranger, record.CodeNotFound)
	p.verify("a stranger again", stranger, record.CodeNotFound)
	p.verify("cut off", apiKey[:20]+newToken(p.t, id)[20:], record.CodeMalformed)
	p.verify("with a space", newToken(p.t, id)+" ", record.CodeMalformed)
	imported := "legacy." + newToken(p.t, id)[20:]
	p.verify("not imported", imported, record.CodeMalformed)
	imported = "legacy-" + newToken(p.t, id)[20:]
	e.imported(p.t, imported)
	p.verify("imported", imported, record.CodeValid)
	p.verify("imported, from cache", imported, record.CodeValid)
	ended, revoked := e.key(p.t)
	e.revoke(ended)
	p.verify("revoked", revoked, record.CodeRevoked)
	e.set(func() { e.refuse = func(verifier.LookupRequest) bool { return true } })
	p.verify("unavailable", newToken(p.t, id), "")
	e.set(func() { e.refuse = nil })
}

// verify presents a copy of a key.
func (p *presenter) verify(what, apiKey string, want record.Code, scopes ...string) {
	p.t.Helper()
	text := []byte(apiKey)
	p.hidden[what] = append(p.hidden[what], hide(text[len(text)-24:len(text)-8]))
	r, _ := p.verifier.Verify(context.Background(), string(text), verifier.Check{Scopes: scopes})
	if r.Code != want {
		p.t.Errorf("%s: %s %q, want %q", what, r.Verdict, r.Code, want)
	}
}

// inHeap counts the keys in a dump of the heap. One that is kept on purpose has
// to be found.
func (p *presenter) inHeap() map[string]int {
	p.t.Helper()
	control := newToken(p.t, "0123456789ab")
	hiddenControl := hide([]byte(control[30:46]))
	name := filepath.Join(p.t.TempDir(), "heap")
	file := must(os.Create(name))
	runtime.GC()
	debug.WriteHeapDump(file.Fd())
	runtime.KeepAlive(control)
	_ = file.Close()
	dump := must(os.ReadFile(name))
	if !bytes.Contains(dump, hide(hiddenControl)) {
		p.t.Fatal("the dump does not hold what is kept")
	}
	kept := map[string]int{}
	for _, what := range slices.Sorted(maps.Keys(p.hidden)) {
		for _, hidden := range p.hidden[what] {
			if bytes.Contains(dump, hide(hidden)) {
				kept[what]++
			}
		}
	}
	return kept
}
