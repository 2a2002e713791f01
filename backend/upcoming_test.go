// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"
	"time"
)

// TestAPlannedRotationIsToldBeforehand by notify_before: once for each, not
// earlier, and not again after a restart.
func TestAPlannedRotationIsToldBeforehand(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"rotation_period": "24h", "overlap_period": "1h", "notify_before": "2h", "rotation_jitter": 0, "reminders": []any{}})
	m.key("acme", nil)
	m.clock.Advance(21*time.Hour + 50*time.Minute)
	m.tick()
	m.wantTold("rotation.", "")
	m.pass(15 * time.Minute) // 22:05
	m.wantTold("rotation.", "rotation.upcoming")
	m = m.reopen()
	m.pass(time.Hour)
	m.wantTold("rotation.", "rotation.upcoming")
	m.clock.Advance(time.Hour) // 24:05
	m.tick()
	m.wantStates("acme", "retiring active")
	m.pass(2 * time.Hour)
	m.wantTold("rotation.", "rotation.upcoming")
	m.clock.Advance(20 * time.Hour) // 46:05
	m.tick()
	m.wantTold("rotation.", "rotation.upcoming rotation.upcoming")
}
