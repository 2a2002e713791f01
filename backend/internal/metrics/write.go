// SPDX-License-Identifier: MPL-2.0

package metrics

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	dto "github.com/prometheus/client_model/go"
)

// ContentType is that of what Write writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// maxHooks bounds the webhooks that are told apart; the others are added up.
const maxHooks = 1000

// Write writes all metrics. Where the rollovers cannot be read, they are left
// out and incomplete says why; all else is written.
func (m *Metrics) Write(ctx context.Context, w io.Writer, r Rollovers) (incomplete, err error) {
	incomplete = m.judgeRollovers(ctx, r)
	families, err := m.gather()
	if err != nil {
		return incomplete, fmt.Errorf("gather the metrics: %w", err)
	}
	encoder := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return incomplete, fmt.Errorf("write the metrics: %w", err)
		}
	}
	return incomplete, nil
}

func (m *Metrics) gather() ([]*dto.MetricFamily, error) { return m.registry.Gather() }

// gauges are read when they are asked for.
type gauges struct{ m *Metrics }

var (
	rolloversDesc = prometheus.NewDesc(prefix+"rollovers",
		fmt.Sprintf("Rollovers under way by health, at most %s old. Those beyond the first %d, or %s of judging, are unknown.", sampleLife, maxJudged, maxTime),
		[]string{"health"}, nil)
	overlapDesc = prometheus.NewDesc(prefix+"overlap_seconds_left_min",
		"Time until the first superseded version is no longer accepted, of the rollovers that were judged. Absent where no overlap is under way.", nil, nil)
	outboxDesc = prometheus.NewDesc(prefix+"outbox_depth",
		"Events that wait to be delivered, by webhook.", []string{"hook"}, nil)
	verifiersDesc = prometheus.NewDesc(prefix+"verifiers_live",
		"Verifiers at the edge that have asked within the last minute what has changed.", nil, nil)
	cachesDesc = prometheus.NewDesc(prefix+"cache_requests_total",
		"Look-ups in the caches before storage.", []string{"cache", "result"}, nil)
)

// Describe implements prometheus.Collector.
func (g gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{rolloversDesc, overlapDesc, outboxDesc, verifiersDesc, cachesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(ch chan<- prometheus.Metric) {
	tell := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	if s := g.m.lastSample(); s != nil {
		for _, h := range healths {
			tell(rolloversDesc, float64(s.byHealth[h]), h)
		}
		if !s.ends.IsZero() {
			tell(overlapDesc, max(0, s.ends.Sub(g.m.clock.Now()).Seconds()))
		}
	}
	if depth := g.m.outbox.Load(); depth != nil {
		hooks := (*depth)()
		rest := 0
		for i, hook := range slices.Sorted(maps.Keys(hooks)) {
			if i < maxHooks {
				tell(outboxDesc, float64(hooks[hook]), hook)
			} else {
				rest += hooks[hook]
			}
		}
		if len(hooks) > maxHooks {
			tell(outboxDesc, float64(rest), "")
		}
	}
	if live := g.m.verifiers.Load(); live != nil {
		tell(verifiersDesc, float64((*live)()))
	}
	if use := g.m.caches.Load(); use != nil {
		for _, c := range (*use)() {
			ch <- prometheus.MustNewConstMetric(cachesDesc, prometheus.CounterValue, float64(c.Hits), c.Cache, "hit")
			ch <- prometheus.MustNewConstMetric(cachesDesc, prometheus.CounterValue, float64(c.Misses), c.Cache, "miss")
		}
	}
}

func (m *Metrics) lastSample() *sample {
	m.rolloverMu.Lock()
	defer m.rolloverMu.Unlock()
	return m.rollover
}
