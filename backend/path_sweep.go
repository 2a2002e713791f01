// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
)

const sweepPattern = "sweep"

func (b *Backend) pathSweep() []*framework.Path {
	return []*framework.Path{{
		Pattern:      sweepPattern,
		DisplayAttrs: display("due-work"),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.sweep, "Do now what is due, and wait for it.", "sweep", answers("What was done.", fields{
				"keys":      always(intField("Keys that changed.")),
				"damaged":   always(intField("Keys that could not be read and are tried again later.")),
				"failed":    always(intField("Keys that could not be changed and are tried again later.")),
				"suspended": always(boolField("Whether automatic transitions are suspended because the wall clock leapt.")),
			})),
		},
		HelpSynopsis: "Do now what is due, and wait for it.",
		HelpDescription: `What is due happens by itself within about a minute or two. This does it at once:
promotions, rotations, retirements, clean-up and bulk jobs. What was counted of
use is stored.`,
	}}
}

func (b *Backend) sweep(ctx context.Context, c *call) (*logical.Response, error) {
	sum, err := c.ticker.Sweep(ctx)
	suspended := errors.Is(err, jobs.ErrClockLeapt)
	if err != nil && !suspended {
		return nil, err
	}
	if suspended {
		c.warn(jobs.ErrClockLeapt.Error())
	} else if err := c.bulk.Run(ctx); err != nil {
		return nil, err
	}
	if err := c.watch.flush(ctx); err != nil {
		return nil, err
	}
	if !suspended {
		if err := c.watch.endClaims(ctx); err != nil {
			return nil, err
		}
	}
	return &logical.Response{Data: map[string]any{"keys": sum.Keys, "damaged": sum.Damaged, "failed": sum.Failed, "suspended": suspended}}, nil
}
