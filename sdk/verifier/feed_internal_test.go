// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"testing"
	"time"
)

// TestAResetLeavesTheMarksOfBefore: a reader may hold the feed of before while
// a reset is taken in, and must not accept by limits that have changed.
func TestAResetLeavesTheMarksOfBefore(t *testing.T) {
	v, err := New(Config{Engine: OnVault(nil), Name: "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	v.apply(v.feed.Load(), &SyncAnswer{Epoch: "e", Seq: 1, Now: now, Reset: true}, 0, 0)
	e := &entry{age: newAge(1, 0), seq: 1, role: v.role("trading")}
	v.apply(v.feed.Load(), &SyncAnswer{Epoch: "e", Seq: 2, Now: now, Roles: []string{"trading"}}, 0, 0)
	held := v.feed.Load()
	if e.usable(held) {
		t.Fatal("the role has changed, and its key is used as it was")
	}
	v.apply(held, &SyncAnswer{Epoch: "f", Seq: 0, Now: now, Reset: true}, 0, 0)
	if e.usable(held) {
		t.Error("a reset makes a key usable again for who holds the feed of before")
	}
	if e.usable(v.feed.Load()) {
		t.Error("a key of the epoch before is used")
	}
}
