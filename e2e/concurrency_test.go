// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// together is how many requests atOnce makes.
const together = 20

// atOnce writes the same to a path many times at the same time.
func (m *mount) atOnce(path string, body map[string]any) []*answer {
	m.t.Helper()
	answers := make([]*answer, together)
	errs := make([]error, together)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range together {
		all.Go(func() {
			<-start
			answers[i], errs[i] = m.send(http.MethodPost, m.path+"/"+path, body)
		})
	}
	close(start)
	all.Wait()
	for _, err := range errs {
		if err != nil {
			m.t.Fatal(err)
		}
	}
	return answers
}

func TestConcurrentRotationsWithOneRequestIDAreOne(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	v1 := m.key("acme", "trading")
	var apiKey string
	for _, a := range m.atOnce("rotate/acme", fields("request_id", "deploy-7")) {
		if !a.ok() || a.data["version"] != 2.0 {
			t.Fatalf("%d %v: version %v", a.status, a.errs, a.data["version"])
		}
		answered, _ := a.data["api_key"].(string)
		if apiKey == "" {
			apiKey = answered
		}
		if answered == "" || answered != apiKey {
			t.Error("two replays answered two keys")
		}
	}
	if got := m.info("acme"); got.CurrentVersion != 2 || len(got.Versions) != 2 {
		t.Errorf("one request_id made %d versions", len(got.Versions))
	}
	m.accepts(v1)
	m.accepts(apiKey)
	m.refuses(http.StatusBadRequest, http.MethodPost, "rotate/acme", fields("request_id", "deploy-7", "overlap_period", 60), "request_id", "other parameters")
}

func TestConcurrentRotationsLoseNone(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading", "max_accepted_versions", 4)
	keys := map[float64]string{1: m.key("acme", "trading")}
	for _, a := range m.atOnce("rotate/acme", map[string]any{}) {
		switch {
		case a.ok():
			version, _ := a.data["version"].(float64)
			if keys[version] != "" {
				t.Errorf("version %v was answered twice", version)
			}
			keys[version], _ = a.data["api_key"].(string)
		case a.status != http.StatusBadRequest || !strings.Contains(strings.Join(a.errs, ""), "max_accepted_versions"):
			t.Errorf("neither a version nor a clear refusal: %d %v", a.status, a.errs)
		}
	}
	// The window holds four: three rotations, and not one of them lost.
	if len(keys) != 4 {
		t.Errorf("%d versions, want 4", len(keys))
	}
	for _, apiKey := range keys {
		m.accepts(apiKey)
	}
	if got := m.info("acme"); len(got.Versions) != 4 || got.CurrentVersion != 4 {
		t.Errorf("the key reads %d versions, current %d", len(got.Versions), got.CurrentVersion)
	}
}

func TestConcurrentCreationsMakeOneKey(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("trading")
	var made []string
	for _, a := range m.atOnce("keys/acme", fields("role", "trading")) {
		if !a.ok() {
			t.Errorf("%d %v", a.status, a.errs)
		}
		if apiKey, ok := a.data["api_key"].(string); ok {
			made = append(made, apiKey)
		}
	}
	if len(made) != 1 {
		t.Fatalf("%d keys were answered for one name", len(made))
	}
	m.accepts(made[0])

	imported := legacyToken()
	ids := []string{}
	for _, a := range m.atOnce("keys/legacy", fields("role", "trading", "import_key", imported)) {
		if id, ok := a.data["key_id"].(string); ok {
			ids = append(ids, id)
		} else if !a.ok() && a.status != http.StatusBadRequest {
			t.Errorf("%d %v", a.status, a.errs)
		}
	}
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("one token was imported as %v", ids)
	}
	m.accepts(imported)
}
