// SPDX-License-Identifier: MPL-2.0

package verifier

// Settle counts all uses that were noted.
func (v *Verifier) Settle() { v.usage.settle() }

// Uncollected is how many counters wait to be taken in.
func (v *Verifier) Uncollected() int64 { return v.usage.length.Load() }
