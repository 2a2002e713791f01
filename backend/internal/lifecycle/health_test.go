// SPDX-License-Identifier: MPL-2.0

package lifecycle

import (
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/health"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

// TestHealthThatChangesToAndFroIsToldOnce in an hour, or in a twelfth of a
// shorter overlap; what becomes worse is told at once.
func TestHealthThatChangesToAndFroIsToldOnce(t *testing.T) {
	t.Parallel()
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for overlap, wait := range map[time.Duration]time.Duration{24 * time.Hour: time.Hour, time.Hour: 5 * time.Minute} {
		k := &keyring.Key{ID: "k", Versions: []keyring.Version{{Number: 1, State: keyring.StateRetiring, SupersededTime: start, OverlapEnds: start.Add(overlap)}}}
		now := start
		judged := func(want string, statuses ...health.Status) {
			t.Helper()
			k.History = nil
			for _, s := range statuses {
				now = now.Add(time.Second)
				(&Keeper{}).noteHealth(k, &k.Versions[0], keyring.Cause{Now: now}, health.Report{Status: s})
			}
			var told []string
			for _, e := range k.History {
				told = append(told, strings.TrimPrefix(string(e.Type), "rollover."))
			}
			if got := strings.Join(told, " "); got != want {
				t.Errorf("of an overlap of %s, for %v was told %q, want %q", overlap, statuses, got, want)
			}
		}
		judged("stalled", health.OnTrack, health.Stalled, health.OnTrack, health.Stalled, health.OnTrack)
		judged("at_risk", health.AtRisk, health.Stalled, health.OnTrack, health.AtRisk)
		judged("failed", health.Failed, health.AtRisk, health.Failed)
		now = now.Add(wait)
		judged("at_risk", health.OnTrack, health.AtRisk, health.OnTrack, health.AtRisk)
		now = now.Add(wait)
		judged("stalled", health.Stalled, health.OnTrack, health.Stalled)
	}
}
