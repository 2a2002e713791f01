// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readiness is the answer of /-/ready.
type readiness struct {
	Ready    bool `json:"ready"`
	Draining bool `json:"draining"`
	// FeedAge is in seconds since the last good answer of Vault; -1 if there
	// was none.
	FeedAge    float64 `json:"feed_age_seconds"`
	CachedKeys int     `json:"cached_keys"`
	// ConfigCurrent is false while the files cannot be used, and older ones are
	// in force. It makes nothing unready.
	ConfigCurrent bool `json:"config_current"`
}

// admin answers probes and scrapes. It belongs on an address that clients do
// not reach.
func (g *Gateway) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("healthy\n"))
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		health := g.health()
		answer := readiness{
			Draining: g.draining.Load(), FeedAge: health.FeedAge.Seconds(), CachedKeys: health.CachedKeys,
			ConfigCurrent: !g.outdated.Load(),
		}
		if health.FeedAge < 0 {
			answer.FeedAge = -1
		}
		answer.Ready = health.Ready && !answer.Draining
		w.Header().Set("Content-Type", "application/json")
		if !answer.Ready {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer) // whoever asked is gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{Timeout: 10 * time.Second}))
	return mux
}
