// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRotationOfARoleRotatesEachNamedKeyOnce(t *testing.T) {
	t.Parallel()
	m := onRaft(t)
	m.role("trading", "overlap_period", "1h", "ttl", "1h")
	m.role("other")
	const size = 40
	old := map[string]string{}
	for i := range size {
		name := fmt.Sprintf("client-%02d", i)
		old[name] = m.key(name, "trading")
	}
	m.key("disabled", "trading", "enabled", false)
	m.key("stranger", "other")
	leasedKey := m.creds("trading")
	m.key("pending", "trading")
	m.rotate("pending", "activation_delay", "1h")

	job := m.write("roles/trading/rotate", fields("reason", "quarterly"))
	if job["state"] != "running" || job["job_id"] == "" {
		t.Errorf("the job as it starts: %v", job)
	}
	eventually(t, 30*time.Second, func() error {
		if job = m.read("roles/trading/rotate"); job["state"] != "finished" {
			return fmt.Errorf("%v: %v percent", job["state"], job["percent"])
		}
		return nil
	})
	if job["rotated"] != float64(size) || job["failed"] != 1.0 || job["percent"] != 100.0 {
		t.Errorf("the job as it ended: %v", job)
	}
	for name, apiKey := range old {
		if v := m.accepts(apiKey); v.SupersededBy != 2 {
			t.Errorf("%s: version 1 is superseded by %d", name, v.SupersededBy)
		}
		if got := m.info(name).CurrentVersion; got != 2 {
			t.Errorf("%s: the current version is %d", name, got)
		}
	}
	m.accepts(leasedKey.apiKey)
	for name, want := range map[string]int{"disabled": 1, "stranger": 1, "pending": 1} {
		if got := m.info(name); got.CurrentVersion != want {
			t.Errorf("%s: the current version is %d, want %d", name, got.CurrentVersion, want)
		}
	}
	last := activations(m.history("client-00"))
	if e := last[len(last)-1]; !strings.Contains(e.Reason, "quarterly") || e.Actor != "root" {
		t.Errorf("the history does not tell who and why: %+v", e)
	}
	if a := m.call(http.MethodGet, "roles/other/rotate", nil); a.status != http.StatusNotFound {
		t.Errorf("the progress of a rotation that never was: %d", a.status)
	}
}
