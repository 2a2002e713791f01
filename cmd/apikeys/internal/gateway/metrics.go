// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/internal/version"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierprom"
)

// metrics are those of the gateway itself. No label holds what a stranger can
// choose.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	reloads  *prometheus.CounterVec
	current  prometheus.Gauge
	lastGood prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apikeys_gateway_requests_total", Help: "Requests that were judged, by protocol, route and code.",
		}, []string{"protocol", "route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apikeys_gateway_request_duration_seconds", Help: "Time to judge a request.",
			Buckets: []float64{0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10},
		}, []string{"protocol"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apikeys_gateway_config_reloads_total", Help: "Times the configuration was read again, by result.",
		}, []string{"result"}),
		current: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "apikeys_gateway_config_last_reload_successful", Help: "Whether the files as they were last read are in force.",
		}),
		lastGood: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "apikeys_gateway_config_last_reload_timestamp_seconds", Help: "When the configuration in force was read.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "apikeys_gateway_build_info", Help: "Always 1; the labels tell the build.",
		ConstLabels: prometheus.Labels{"version": version.Version, "commit": version.Commit},
	})
	build.Set(1)
	m.reloads.WithLabelValues("success")
	m.reloads.WithLabelValues("failure")
	m.registry.MustRegister(m.requests, m.seconds, m.reloads, m.current, m.lastGood, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watchVerifier adds the metrics of the verifier.
func (m *metrics) watchVerifier(v *verifier.Verifier) {
	m.registry.MustRegister(verifierprom.NewCollector(v))
}

func (m *metrics) reloaded(now time.Time) {
	m.reloads.WithLabelValues("success").Inc()
	m.current.Set(1)
	m.lastGood.Set(float64(now.UnixMilli()) / 1000)
}

func (m *metrics) reloadFailed() {
	m.reloads.WithLabelValues("failure").Inc()
	m.current.Set(0)
}

// observe counts a request, and logs it if it is one of those to be logged.
// Neither holds a key, a path, or a text that the client chose.
func (g *Gateway) observe(ctx context.Context, p *policy, protocol string, q *question, d *decision, took time.Duration) {
	status := d.reason.Status()
	route := "none"
	if d.route != nil {
		route = d.route.Name
	}
	g.metrics.requests.WithLabelValues(protocol, route, string(d.reason)).Inc()
	g.metrics.seconds.WithLabelValues(protocol).Observe(took.Seconds())

	if p.AccessLog == LogOff || p.AccessLog == LogRefused && status == http.StatusOK {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("protocol", protocol), slog.Int("status", status), slog.String("code", string(d.reason)), slog.String("route", route))
	if isMethod(q.method) {
		attrs = append(attrs, slog.String("method", q.method))
	}
	if q.client.IsValid() {
		attrs = append(attrs, slog.String("client", q.client.String()))
	}
	if key := d.result.Key; key != nil {
		attrs = append(attrs, slog.String("key_id", key.KeyID), slog.String("name", key.Name))
	}
	if v := d.result.Version; v != nil {
		attrs = append(attrs, slog.Int("version", v.Number), slog.String("state", d.result.State.String()))
	}
	attrs = append(attrs, slog.Int64("microseconds", took.Microseconds()))
	g.access.LogAttrs(ctx, slog.LevelInfo, "request", attrs...)
}
