// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"testing"
	"unsafe"
)

func TestWhatAHitTakesLiesInFewCacheLines(t *testing.T) {
	t.Parallel()
	if n := unsafe.Sizeof(slot{}); n != 2*cacheLine {
		t.Errorf("a slot has %d bytes", n)
	}
	if n := unsafe.Offsetof(slot{}.entry); n != cacheLine {
		t.Errorf("what decides takes %d bytes", n)
	}
	if n := unsafe.Sizeof(entry{}); n != 3*cacheLine {
		t.Errorf("an entry has %d bytes", n)
	}
	var e entry
	if n := unsafe.Offsetof(e.first) + unsafe.Offsetof(e.first.counter) + unsafe.Offsetof(e.first.of); n > cacheLine {
		t.Errorf("what counting takes has %d bytes", n)
	}
}
