// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// stats are the counts of what is not on the way of a hit; hits are counted by
// the use of their keys.
type stats struct {
	codes [16]atomic.Uint64 // refusals, in the order of record.Codes

	unavailable, negatives                    atomic.Uint64
	lookups, lookupFailures, records, limited atomic.Uint64
	syncs, syncFailures, resets               atomic.Uint64
	reports, reportFailures                   atomic.Uint64
}

var codes = record.Codes()

func (s *stats) code(code record.Code) {
	for i := range codes {
		if codes[i] == code {
			s.codes[i].Add(1)
		}
	}
}

// Health tells how the verifier is.
func (v *Verifier) Health() Health {
	f, now := v.feed.Load(), v.now()
	uses := v.usage.total()
	h := Health{
		Ready: f.generation > 0 && now < f.good, FeedAge: -1, Epoch: f.epoch, Seq: f.seq,
		CachedKeys: v.cache.len(), Skew: time.Duration(v.skew.Load()), UnreportedUses: uses.unreported, LostUses: uses.lost,
	}
	if f.generation > 0 && f.good >= 0 {
		h.FeedAge = time.Duration(now - f.good + mono(v.config.MaxStale))
	}
	v.status.Lock()
	defer v.status.Unlock()
	h.LastError = v.status.feedError
	return h
}

// Stats tells what the verifier did.
func (v *Verifier) Stats() Stats {
	uses := v.usage.total()
	s := Stats{
		Codes: map[record.Code]uint64{}, Unavailable: v.stats.unavailable.Load(),
		Hits: uses.hits, Negatives: v.stats.negatives.Load(),
		Lookups: v.stats.lookups.Load(), LookupFailures: v.stats.lookupFailures.Load(), Records: v.stats.records.Load(), Limited: v.stats.limited.Load(),
		Syncs: v.stats.syncs.Load(), SyncFailures: v.stats.syncFailures.Load(), Resets: v.stats.resets.Load(),
		Reports: v.stats.reports.Load(), ReportFailures: v.stats.reportFailures.Load(),
	}
	for i, code := range codes {
		if n := v.stats.codes[i].Load(); n > 0 {
			s.Codes[code] = n
		}
	}
	if uses.accepted > 0 {
		s.Codes[record.CodeValid] = uses.accepted
	}
	return s
}
