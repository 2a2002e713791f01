// SPDX-License-Identifier: MPL-2.0

package verifierprom_test

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierprom"
)

type shown struct{}

func (shown) Health() verifier.Health {
	return verifier.Health{Ready: true, FeedAge: 1500 * time.Millisecond, Skew: -2 * time.Second, CachedKeys: 7, UnreportedUses: 3, LostUses: 1}
}

func (shown) Stats() verifier.Stats {
	return verifier.Stats{Codes: map[record.Code]uint64{record.CodeValid: 41, record.CodeRevoked: 2}, Unavailable: 5, Hits: 40}
}

func TestCollector(t *testing.T) {
	t.Parallel()
	c := verifierprom.NewCollector(shown{})
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	want := `
# HELP apikeys_verifier_cache_hits_total Requests that were accepted from cache.
# TYPE apikeys_verifier_cache_hits_total counter
apikeys_verifier_cache_hits_total 40
# HELP apikeys_verifier_clock_skew_seconds How far the wall clock is ahead of Vault's.
# TYPE apikeys_verifier_clock_skew_seconds gauge
apikeys_verifier_clock_skew_seconds -2
# HELP apikeys_verifier_feed_age_seconds Time since the last good answer of the feed; -1 if there was none.
# TYPE apikeys_verifier_feed_age_seconds gauge
apikeys_verifier_feed_age_seconds 1.5
# HELP apikeys_verifier_ready Whether cached keys are accepted.
# TYPE apikeys_verifier_ready gauge
apikeys_verifier_ready 1
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "apikeys_verifier_cache_hits_total", "apikeys_verifier_clock_skew_seconds", "apikeys_verifier_feed_age_seconds", "apikeys_verifier_ready"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(c, "apikeys_verifier_verifications_total"); n != len(record.Codes())+1 {
		t.Errorf("%d series of verifications", n)
	}
}
