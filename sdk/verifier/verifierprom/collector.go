// SPDX-License-Identifier: MPL-2.0

// Package verifierprom shows a verifier's health and counts to Prometheus.
//
//	prometheus.MustRegister(verifierprom.NewCollector(v))
//
// No label holds anything of a key: series do not grow with the keys.
package verifierprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// Verifier is what is shown, such as a *verifier.Verifier.
type Verifier interface {
	Health() verifier.Health
	Stats() verifier.Stats
}

// NewCollector shows v.
func NewCollector(v Verifier) prometheus.Collector { return &collector{v} }

type collector struct{ v Verifier }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("apikeys_verifier_"+name, help, labels, nil)
}

var (
	verifications  = describe("verifications_total", "Requests that were judged, by code; UNAVAILABLE has none.", "code")
	hits           = describe("cache_hits_total", "Requests that were accepted from cache.")
	negatives      = describe("negative_hits_total", "Requests that were refused from memory, since their key was known to be nobody's.")
	lookups        = describe("lookups_total", "Requests for records.")
	lookupFailures = describe("lookup_failures_total", "Requests for records that failed.")
	records        = describe("records_total", "Records that were fetched.")
	limited        = describe("limited_total", "Requests that were not allowed a look-up.")
	syncs          = describe("syncs_total", "Good answers of the feed.")
	syncFailures   = describe("sync_failures_total", "Polls of the feed without a good answer.")
	resets         = describe("resets_total", "Answers of the feed after which all records were revalidated.")
	reports        = describe("reports_total", "Reports of use that were taken.")
	reportFailures = describe("report_failures_total", "Reports of use that failed; they are sent again.")
	lost           = describe("lost_uses_total", "Uses that Vault has not counted: there was no room for them, or it refused them.")
	unreported     = describe("unreported_uses", "Uses that have not been reported yet.")
	cached         = describe("cached_keys", "Keys that are cached.")
	ready          = describe("ready", "Whether cached keys are accepted.")
	age            = describe("feed_age_seconds", "Time since the last good answer of the feed; -1 if there was none.")
	skew           = describe("clock_skew_seconds", "How far the wall clock is ahead of Vault's.")
)

// unavailable stands for a code where there is none.
const unavailable = "UNAVAILABLE"

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s, h := c.v.Stats(), c.v.Health()
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	for _, code := range record.Codes() {
		count(verifications, s.Codes[code], string(code))
	}
	count(verifications, s.Unavailable, unavailable)
	count(hits, s.Hits)
	count(negatives, s.Negatives)
	count(lookups, s.Lookups)
	count(lookupFailures, s.LookupFailures)
	count(records, s.Records)
	count(limited, s.Limited)
	count(syncs, s.Syncs)
	count(syncFailures, s.SyncFailures)
	count(resets, s.Resets)
	count(reports, s.Reports)
	count(reportFailures, s.ReportFailures)
	count(lost, h.LostUses)
	gauge(unreported, float64(h.UnreportedUses))
	gauge(cached, float64(h.CachedKeys))
	gauge(skew, h.Skew.Seconds())
	if h.FeedAge < 0 {
		gauge(age, -1)
	} else {
		gauge(age, h.FeedAge.Seconds())
	}
	if h.Ready {
		gauge(ready, 1)
	} else {
		gauge(ready, 0)
	}
}
