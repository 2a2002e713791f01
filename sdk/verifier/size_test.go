// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"testing"
	"unsafe"
)

func TestAnEntryIsThreeCacheLines(t *testing.T) {
	t.Parallel()
	if n := unsafe.Sizeof(entry{}); n != 3*cacheLine {
		t.Errorf("an entry has %d bytes", n)
	}
	if n := unsafe.Sizeof(bucket{}); n != cacheLine {
		t.Errorf("a bucket has %d bytes", n)
	}
	var e entry
	if n := unsafe.Offsetof(e.first) + unsafe.Offsetof(e.first.counter) + unsafe.Sizeof(e.first.n); n != cacheLine {
		t.Errorf("what decides and the count take %d bytes", n)
	}
}
