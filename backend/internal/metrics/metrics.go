// SPDX-License-Identifier: MPL-2.0

package metrics

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// prefix begins the name of every metric.
const prefix = "apikeys_"

// Metrics are the counts of one mount. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	clock    clock.Clock

	rotations     *prometheus.CounterVec
	verifications *prometheus.CounterVec
	reported      *prometheus.CounterVec
	transitions   *prometheus.CounterVec

	ticks        *prometheus.CounterVec
	tickDuration prometheus.Histogram
	tickLag      prometheus.Gauge
	tickKeys     prometheus.Counter
	tickDamaged  prometheus.Counter
	tickLast     prometheus.Gauge

	syncs   *prometheus.CounterVec
	lookups *prometheus.CounterVec

	// roles is replaced, never changed, so that it is read without a lock.
	roles   atomic.Pointer[map[string]*roleCounters]
	rolesMu sync.Mutex
	// unknown are the verifications that belong to no role.
	unknown [codeCount]prometheus.Counter

	// Where the gauges come from; nil where there is nothing to tell.
	outbox    atomic.Pointer[func() map[string]int]
	verifiers atomic.Pointer[func() int]
	caches    atomic.Pointer[func() []store.CacheUse]

	rolloverMu sync.Mutex
	rollover   *sample
	// judged are the rollovers as each was last judged, by key, and judgeNext is
	// where the next sample goes on. rolloverMu guards them.
	judged    map[string]Rollover
	judgeNext string
}

// New returns the metrics of a mount that starts now.
func New(c clock.Clock, version, commit string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		clock:    c,
		rotations: counters("rotations_total", "Rotations, counted when the new version is made, by what made it happen.",
			"role", "trigger"),
		verifications: counters("verifications_total", "Verifications by their verdict. The role is empty where no key is known.",
			"role", "code"),
		reported: counters("reported_refusals_total", "Refused uses of ended versions that verifiers elsewhere have reported, by the verdict.",
			"role", "code"),
		transitions: counters("transitions_total", "Events of keys, by the type that history shows.",
			"type"),
		ticks: counters("ticks_total", "Runs of the periodic work, by how they ended: ok, failed, or suspended after a leap of the clock.",
			"result"),
		tickDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "tick_duration_seconds", Help: "How long a run of the periodic work took, suspended ones left out.",
			// An idle run takes microseconds; one with thousands of keys minutes.
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 5, 15, 60, 300},
		}),
		tickLag: gauge("tick_lag_seconds", "How late the last run dealt with the oldest minute in which something was due."),
		tickKeys: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "tick_keys_total", Help: "Keys that the periodic work changed.",
		}),
		tickDamaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "tick_damaged_keys_total", Help: "Keys that were due and could not be processed; each is tried again an hour later.",
		}),
		syncs: counters("syncs_total", "Questions of verifiers what has changed, by what was answered: first, changes, or reset where that was not known any more.",
			"result"),
		lookups: counters("lookups_total", "Keys that verifiers looked up: found, missing, limited because of too many in vain or too much for one answer, or unreadable.",
			"result"),
		tickLast: gauge("tick_last_success_timestamp_seconds", "When the periodic work last ran without a failure; the start of the plugin before the first time."),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: prefix + "build_info", Help: "Always 1, with the build of the plugin that answers.",
	}, []string{"version", "commit"})
	build.WithLabelValues(version, commit).Set(1)
	m.registry.MustRegister(
		m.rotations, m.verifications, m.reported, m.transitions,
		m.ticks, m.tickDuration, m.tickLag, m.tickKeys, m.tickDamaged, m.tickLast,
		m.syncs, m.lookups, build, gauges{m},
	)
	// What is 0 is told, so that Prometheus sees the first increase.
	m.roles.Store(&map[string]*roleCounters{})
	for i, code := range codes {
		if code == record.CodeMalformed || code == record.CodeNotFound {
			m.unknown[i] = m.verifications.WithLabelValues("", string(code))
		}
	}
	for _, t := range eventTypes {
		m.transitions.WithLabelValues(string(t))
	}
	for _, result := range []string{tickOK, tickFailed, tickSuspended} {
		m.ticks.WithLabelValues(result)
	}
	for _, result := range []string{syncFirst, syncChanges, syncReset} {
		m.syncs.WithLabelValues(result)
	}
	for _, result := range []string{lookupFound, lookupMissing, lookupLimited, lookupUnreadable} {
		m.lookups.WithLabelValues(result)
	}
	m.tickLast.Set(unix(c.Now()))
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// eventTypes are the kinds of events that keys have.
var eventTypes = []keyring.EventType{
	keyring.EventKeyCreated, keyring.EventKeyUpdated, keyring.EventKeyDeleted, keyring.EventKeyRolledBack,
	keyring.EventVersionCreated, keyring.EventVersionActivated, keyring.EventVersionFirstUsed, keyring.EventVersionRetiring,
	keyring.EventVersionDrained, keyring.EventVersionRetired, keyring.EventVersionRevoked, keyring.EventVersionCompromised, keyring.EventVersionStaleUse,
	keyring.EventOverlapExtended, keyring.EventRotationUpcoming, keyring.EventRotationBlocked,
	keyring.EventRolloverReminder, keyring.EventRolloverStalled, keyring.EventRolloverAtRisk, keyring.EventRolloverFailed, keyring.EventRolloverCompleted,
	keyring.EventAnomalyDetected, keyring.EventClaimRedeemed, keyring.EventClaimReused,
}

// What made a rotation happen.
const (
	triggerScheduled = iota
	triggerManual
	triggerJob
	triggerEmergency
	triggerCount
)

var triggers = [triggerCount]string{"scheduled", "manual", "job", "emergency"}

// Committed counts the events of a transition that was stored: prev is nil for
// a new key.
func (m *Metrics) Committed(prev, next *keyring.Key, events []keyring.Event) {
	for i := range events {
		m.transitions.WithLabelValues(string(events[i].Type)).Inc()
	}
	counters := m.role(next.Role) // from the first key on the role is told, with zeros
	if t, rotated := trigger(prev, next, events); rotated {
		counters.rotated[t].Inc()
	}
}

// trigger tells whether a transition was a rotation, and what made it happen.
func trigger(prev, next *keyring.Key, events []keyring.Event) (t int, rotated bool) {
	if prev == nil {
		return 0, false
	}
	t = triggerManual
	for i := range events {
		e := &events[i]
		//nolint:exhaustive // all other events say nothing about a rotation
		switch e.Type {
		case keyring.EventVersionCreated:
			rotated = true
			if e.Actor == keyring.ActorPeriodic && t == triggerManual {
				t = triggerScheduled
			}
		case keyring.EventVersionRevoked, keyring.EventVersionCompromised:
			t = triggerEmergency
		}
	}
	if t != triggerEmergency && next.Job != "" && next.Job != prev.Job {
		t = triggerJob
	}
	return t, rotated
}

// How a run of the periodic work ended.
const (
	tickOK        = "ok"
	tickFailed    = "failed"
	tickSuspended = "suspended"
)

// Ticked counts a run of the periodic work: how long it took, and how late the
// oldest minute was that it found due.
func (m *Metrics) Ticked(took, lag time.Duration, sum jobs.Summary, err error) {
	if errors.Is(err, context.Canceled) {
		return // the plugin stops
	}
	if errors.Is(err, jobs.ErrClockLeapt) {
		m.ticks.WithLabelValues(tickSuspended).Inc()
		return
	}
	m.tickDuration.Observe(took.Seconds())
	m.tickLag.Set(max(0, lag).Seconds())
	m.tickKeys.Add(float64(sum.Keys))
	m.tickDamaged.Add(float64(sum.Damaged))
	if err != nil {
		m.ticks.WithLabelValues(tickFailed).Inc()
		return
	}
	m.ticks.WithLabelValues(tickOK).Inc()
	m.tickLast.Set(unix(m.clock.Now()))
}

// SetOutbox says how to learn how many events wait for each webhook. The
// function is called by every scrape and must not read storage.
func (m *Metrics) SetOutbox(depth func() map[string]int) { m.outbox.Store(&depth) }

// SetCaches says how to learn how the caches of the store are used.
func (m *Metrics) SetCaches(use func() []store.CacheUse) { m.caches.Store(&use) }

// SetVerifiers says how to learn how many verifiers are alive.
func (m *Metrics) SetVerifiers(live func() int) { m.verifiers.Store(&live) }

// What a verifier was answered that asked what has changed.
const (
	syncFirst   = "first"
	syncChanges = "changes"
	syncReset   = "reset"
)

// Synced counts a question of a verifier: its first one, or one that had to be
// answered by a reset, or neither.
func (m *Metrics) Synced(first, reset bool) {
	result := syncChanges
	switch {
	case first:
		result = syncFirst
	case reset:
		result = syncReset
	}
	m.syncs.WithLabelValues(result).Inc()
}

// What became of a key that was looked up.
const (
	lookupFound      = "found"
	lookupMissing    = "missing"
	lookupLimited    = "limited"
	lookupUnreadable = "unreadable"
)

// LookedUp counts what became of the keys that a verifier looked up.
func (m *Metrics) LookedUp(found, missing, limited, unreadable int) {
	m.lookups.WithLabelValues(lookupFound).Add(float64(found))
	m.lookups.WithLabelValues(lookupMissing).Add(float64(missing))
	m.lookups.WithLabelValues(lookupLimited).Add(float64(limited))
	m.lookups.WithLabelValues(lookupUnreadable).Add(float64(unreadable))
}
