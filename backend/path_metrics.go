// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"bytes"
	"context"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/metrics"
)

const metricsPattern = "metrics"

func (b *Backend) pathMetrics() []*framework.Path {
	return []*framework.Path{{
		Pattern:      metricsPattern,
		DisplayAttrs: display("metrics"),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.forwarded(b.readMetrics, "Read the metrics of this mount for Prometheus.", "read",
				answers("The metrics as text in the exposition format of Prometheus, not as JSON.", nil)),
		},
		HelpSynopsis: "Read the metrics of this mount for Prometheus.",
		HelpDescription: `Counts and gauges of this mount as text, for Prometheus to scrape with a Vault token.
Counts are kept in memory and begin at 0 when the plugin starts. They tell roles
apart, but never keys. On the command line: vault read -format=raw.`,
	}}
}

func (b *Backend) readMetrics(ctx context.Context, c *call) (*logical.Response, error) {
	var text bytes.Buffer
	incomplete, err := b.metrics.Write(ctx, &text, openRollovers{c.engine})
	if err != nil {
		return nil, err
	}
	if incomplete != nil {
		b.Logger().Warn("the metrics are answered without the rollovers", "error", incomplete)
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPContentType: metrics.ContentType,
		logical.HTTPRawBody:     text.Bytes(),
		logical.HTTPStatusCode:  http.StatusOK,
	}}, nil
}

// openRollovers tells the metrics of the rollovers under way.
type openRollovers struct{ *engine }

func (o openRollovers) IDs(ctx context.Context) ([]string, error) { return o.store.Rollovers(ctx) }

func (o openRollovers) Judge(ctx context.Context, id string) (metrics.Rollover, error) {
	k, err := o.store.Key(ctx, id)
	if err != nil {
		return metrics.Rollover{}, err
	}
	if k == nil || !k.RollingOver() {
		return metrics.Rollover{Over: true}, nil
	}
	now := k.Now(o.store.Now())
	_, report, known, err := o.keeper.Rollover(ctx, k, now)
	if err != nil {
		return metrics.Rollover{}, err
	}
	r := metrics.Rollover{Over: !known, Health: report.Status}
	for _, v := range k.Versions {
		if ends := v.AcceptedUntil; ends.After(now) && (r.Ends.IsZero() || ends.Before(r.Ends)) {
			r.Ends = ends
		}
	}
	return r, nil
}

// measure has the parts of a new engine tell the metrics of what they do.
func (b *Backend) measure(e *engine) {
	e.keeper.Observe = b.metrics.Committed
	e.ticker.Observe = b.metrics.Ticked
	b.metrics.SetCaches(e.store.CacheUse)
	b.metrics.SetVerifiers(e.verifiers.Live)
	b.metrics.SetOutbox(func() map[string]int {
		depth := map[string]int{}
		for _, hook := range e.watch.hooks.Statuses() {
			depth[hook.Name] = hook.Pending
		}
		return depth
	})
}
