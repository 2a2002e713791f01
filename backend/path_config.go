// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
)

const (
	configPattern = "config"

	fieldReportLeak     = "report_leak"
	fieldLeakRate       = "leak_rate"
	fieldUsageRetention = "usage_retention"

	maxLeakRate = 6000
)

func configFields() fields {
	d := store.DefaultConfig()
	return fields{
		fieldReportLeak:     byDefault(boolField("Whether the unauthenticated path report-leak answers."), d.ReportLeak),
		fieldLeakRate:       byDefault(intField("How many failed leak reports a minute are looked at, from 1 to 6000."), d.LeakRate),
		fieldUsageRetention: byDefault(durationField("How long the hours of use by version and source are kept, from 1h to 8760h. Those of a key as a whole, which the search for anomalies looks at, are kept for four weeks."), int(seconds(d.UsageRetention))),
	}
}

func configAnswerFields() fields {
	answer := configFields()
	for _, f := range answer {
		always(f)
	}
	return answer
}

func (b *Backend) pathConfig() []*framework.Path {
	return []*framework.Path{{
		Pattern:      configPattern,
		DisplayAttrs: display("configuration"),
		Fields:       configFields(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.local(b.readConfig, "Read the configuration of the mount.", "read", answers("The configuration.", configAnswerFields())),
			logical.UpdateOperation: b.forwarded(b.writeConfig, "Change the configuration of the mount; absent fields keep their value.", "configure", empty("Changed.")),
			logical.PatchOperation:  b.forwarded(b.writeConfig, "Change the configuration of the mount; null sets a field to its default.", "patch", empty("Changed.")),
		},
		HelpSynopsis:    "Configure the mount.",
		HelpDescription: "Settings that hold for all keys of the mount.",
	}}
}

func (b *Backend) readConfig(ctx context.Context, c *call) (*logical.Response, error) {
	conf, err := c.store.Config(ctx)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		fieldReportLeak: conf.ReportLeak, fieldLeakRate: conf.LeakRate, fieldUsageRetention: seconds(conf.UsageRetention),
	}}, nil
}

func (b *Backend) writeConfig(ctx context.Context, c *call) (*logical.Response, error) {
	return nil, c.store.UpdateConfig(ctx, func(conf *store.Config) error {
		if c.has(fieldReportLeak) || c.reset(fieldReportLeak) {
			conf.ReportLeak = c.flag(fieldReportLeak)
		}
		if c.has(fieldLeakRate) || c.reset(fieldLeakRate) {
			conf.LeakRate = c.number(fieldLeakRate)
		}
		if c.has(fieldUsageRetention) || c.reset(fieldUsageRetention) {
			conf.UsageRetention = c.duration(fieldUsageRetention)
		}
		if conf.LeakRate < 1 || conf.LeakRate > maxLeakRate {
			return badInput("leak_rate must be between 1 and %d a minute, got %d", maxLeakRate, conf.LeakRate)
		}
		if conf.UsageRetention < time.Hour || conf.UsageRetention > 8760*time.Hour {
			return badInput("usage_retention must be between 1h and 8760h, got %s", conf.UsageRetention)
		}
		return nil
	})
}
