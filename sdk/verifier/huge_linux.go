// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"syscall"
	"unsafe"
)

const hugePage = 2 << 20

// inHugePages asks for the slots to lie in huge pages: with usual ones nearly
// each read of a large block waits for the page tables, too. Where that is not
// to be had they stay as they are.
func inHugePages(slots []slot) {
	block := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(slots))), len(slots)*int(unsafe.Sizeof(slot{}))) //nolint:gosec // the memory of the slots, of which nothing is read
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(block)))) & (hugePage - 1)                                //nolint:gosec // an address as a number
	if whole := (len(block) - skip) &^ (hugePage - 1); whole > 0 {
		_ = syscall.Madvise(block[skip:skip+whole], syscall.MADV_HUGEPAGE)
	}
}
