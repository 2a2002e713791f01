// SPDX-License-Identifier: MPL-2.0

package usage_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// BenchmarkRecord counts verifications of 10,000 keys on 8 goroutines for
// each processor.
func BenchmarkRecord(b *testing.B) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	tracker := usage.New(start)
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = fmt.Sprintf("key%09d", i)
	}
	var goroutines atomic.Int64
	b.SetParallelism(8)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		i := int(goroutines.Add(1)) * 7919
		for pb.Next() {
			i++
			tracker.Record(start, ids[i%len(ids)], 1, "caller|source", true)
		}
	})
}
