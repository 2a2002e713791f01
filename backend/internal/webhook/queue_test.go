// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestAStreamKeepsTheOrderOfItsEvents in whatever order they come, each once,
// while its first one is being sent or not.
func TestAStreamKeepsTheOrderOfItsEvents(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		q := newQueue(nil, "ops")
		var all []uint64
		sent := uint64(math.MaxUint64) // the first one, while it is sent
		for range 12 {
			if s := q.byID["k"]; s != nil && sent == math.MaxUint64 && random.IntN(4) == 0 {
				sent, s.index = s.seqs[0], -1
				q.ready = nil
			}
			seq := random.Uint64N(10)
			if random.IntN(8) == 0 {
				seq = math.MaxUint64 - 1
			}
			q.add("k", seq, time.Second)
			if !slices.Contains(all, seq) {
				all = append(all, seq)
			}
			if !q.has("k", seq) || q.has("k", 11) {
				t.Fatalf("%v has %d: %t", q.byID["k"].seqs, seq, q.has("k", seq))
			}
		}
		slices.Sort(all)
		if sent != math.MaxUint64 { // it stays the first
			all = slices.Concat([]uint64{sent}, slices.DeleteFunc(all, func(n uint64) bool { return n == sent }))
		}
		if s := q.byID["k"]; !slices.Equal(s.seqs, all) || q.pending != len(all) {
			t.Fatalf("the stream is %v of %d, want %v", s.seqs, q.pending, all)
		}
	}
}
