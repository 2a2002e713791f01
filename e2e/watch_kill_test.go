// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// All that was answered survives a kill -9 of the plugin, but the counts since
// the last flush; where a version was used from is not forgotten either. The receiver
// is down while most of it happens, so that the outbox has it to keep.
func TestWhatWasAnsweredSurvivesAKillOfThePlugin(t *testing.T) {
	t.Parallel()
	srv := ownRaft(t)
	m := enable(t, srv, "apikeys")
	var down atomic.Bool
	receiver := startReceiver(t, func(message, int) int {
		if down.Load() {
			return hangUp
		}
		return http.StatusNoContent
	})
	receiver.hook(m, "all", "deliver", "claim")
	m.role("trading", "overlap_period", "1h", "max_accepted_versions", 16, "max_versions", 20)
	kill := func() {
		t.Helper()
		killPlugin(t, srv)
		eventually(t, 30*time.Second, func() error { _, err := m.tryInfo("acme"); return err })
	}

	v1 := m.key("acme", "trading")
	receiver.tellsHistoryOf(m, 30*time.Second, "acme")
	kill() // with nothing to tell

	down.Store(true)
	var history []transition
	for i := range 4 {
		m.rotate("acme")
		instance := fmt.Sprintf("host-%d", i)
		m.write("confirm/acme", fields("version", i+2, "instance", instance))
		if i%2 == 0 {
			m.write("extend/acme", fields("version", 1, "overlap_period", fmt.Sprintf("%dh", i+2)))
		}
		m.accepts(v1, "source", "eu")
		m.write("sweep", nil) // counts are stored
		late := fmt.Sprintf("late-%d", i)
		m.accepts(v1, "source", late)
		before := m.history("acme")
		kill()
		history = m.history("acme")
		if len(history) < len(before) {
			t.Fatalf("kill %d: %d transitions are left of %d", i, len(history), len(before))
		}
		for n := range before {
			if before[n] != history[n] {
				t.Errorf("kill %d: transition %d was %+v and is %+v", i, n, before[n], history[n])
			}
		}
		if got := m.use("acme").version(1).Sources["eu"].Count; got != i+1 {
			t.Errorf("kill %d: %d uses of version 1 are counted, want %d", i, got, i+1)
		}
		m.write("sweep", nil) // reads the note that is left of it, as the first tick does
		if got := m.use("acme").version(1).Sources[late].Count; got != 1 {
			t.Errorf("kill %d: a source all of whose uses came after the flush has used version 1 %d times", i, got)
		}
		r := m.rollover("acme")
		if last := r.Instances[len(r.Instances)-1]; len(r.Instances) != i+1 || last.Instance != instance || last.Version != i+2 {
			t.Errorf("kill %d: confirmed %+v", i, r.Instances)
		}
		if h := m.hookInfo("all"); !h.Enabled || h.Pending == 0 || h.Dropped != 0 {
			t.Errorf("kill %d: the webhook %+v", i, h)
		}
	}
	down.Store(false)
	m.must(http.MethodPatch, "webhooks/all", fields("enabled", false))
	m.must(http.MethodPatch, "webhooks/all", fields("enabled", true)) // what was put off goes now
	receiver.tellsHistoryOf(m, 60*time.Second, "acme")

	// A code that was redeemed stays so, one that was not can be.
	codes := map[float64]string{}
	for _, told := range receiver.messages() {
		if code := told.text("claim_code"); code != "" {
			issued.add(code, "a claim code")
			version, _ := told.Data["version"].(float64)
			codes[version] = code
		}
	}
	stranger := m.as("")
	stranger.write("claim", fields("code", codes[4]))
	kill()
	stranger.refuses(http.StatusBadRequest, http.MethodPost, "claim", fields("code", codes[4]), "code")
	if got := stranger.write("claim", fields("code", codes[5])); got["version"] != 5.0 {
		t.Errorf("a code redeemed after a kill answers version %v", got["version"])
	}
	m.write("sweep", nil)
	receiver.tellsHistoryOf(m, 60*time.Second, "acme")
	receiver.waitFor("claim.reused")
	if h := m.hookInfo("all"); h.Failed != 0 || h.Dropped != 0 {
		t.Errorf("the webhook in the end: %+v", h)
	}
	m.accepts(v1)
}
