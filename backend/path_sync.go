// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/feed"
)

const (
	syncPattern = "sync"

	fieldVerifier = "verifier"
	fieldBoot     = "boot"
	fieldEpoch    = "epoch"
	fieldSeq      = "seq"
	fieldSkew     = "skew"
	fieldNow      = "now"

	// clockFormat is RFC 3339 with milliseconds: what verifiers set their
	// clocks by.
	clockFormat = "2006-01-02T15:04:05.000Z07:00"
)

// positionFields are in every answer to a verifier.
func positionFields() fields {
	return fields{
		fieldEpoch: always(textField("Text that is new each time the engine starts. Changes are numbered within it.")),
		fieldSeq:   always(int64Field("Number of the last change.")),
		fieldNow:   always(textField("Vault's time, RFC 3339 with milliseconds.")),
	}
}

func positionAnswer(p feed.Position, now time.Time) map[string]any {
	return map[string]any{fieldEpoch: p.Epoch, fieldSeq: p.Seq, fieldNow: now.UTC().Format(clockFormat)}
}

func (b *Backend) pathSync() []*framework.Path {
	return []*framework.Path{{
		Pattern:      syncPattern,
		DisplayAttrs: display("changes"),
		Fields: fields{
			fieldEpoch:    inQuery(textField("The epoch of the last answer; empty or absent the first time.")),
			fieldSeq:      inQuery(int64Field("The seq of the last answer.")),
			fieldVerifier: inQuery(textField("Name of the verifier that asks, as in its usage reports. Without it the caller cannot report: it delays drained.")),
			fieldBoot:     inQuery(textField("A text that is new each time the verifier starts.")),
			fieldSkew:     inQuery(int64Field("By how many milliseconds the verifier's wall clock is ahead of Vault's.")),
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.forwarded(b.sync, "Ask which keys and roles have changed.", "sync", answers("What has changed.", join(positionFields(), fields{
				"changed": always(listField("Ids of the keys that have changed since epoch and seq.")),
				"roles":   always(listField("Names of the roles whose limits have: all records of their keys are to be looked up again.")),
				"reset":   always(boolField("Whether it is not known what has changed: then every record is to be looked up again before it is used.")),
			}))),
		},
		HelpSynopsis: "Ask which keys and roles have changed.",
		HelpDescription: `A verifier that checks keys without asking Vault asks here, each second, which of
the records that it keeps have changed. The answer comes from memory. A change
is told before whoever made it has its answer. A verifier that asks under a
name counts as at work: what it has not reported yet at "usage" is unknown. One
without a name cannot report: until 10 minutes after it last asked, nothing
counts as drained, and quiet time begins anew then.`,
	}}
}

func (b *Backend) sync(_ context.Context, c *call) (*logical.Response, error) {
	after, err := c.position()
	if err != nil {
		return nil, err
	}
	name, boot := c.text(fieldVerifier), c.text(fieldBoot)
	for field, value := range map[string]string{fieldVerifier: name, fieldBoot: boot} {
		if err := checkLabel(field, value); err != nil {
			return nil, err
		}
	}
	now := b.clock.Now()
	delta := c.store.Feed().Since(after)
	if name != "" {
		c.verifiers.Note(feed.Verifier{
			Caller: c.caller(), Name: name, Boot: boot, Synced: after, Skew: time.Duration(c.number64(fieldSkew)) * time.Millisecond,
		})
		c.keeper.Book.Reports.Heard(verifierName(c.caller(), name), boot, now)
	} else if !delta.Reset { // after a reset it has nothing to accept but what it looks up
		c.keeper.Book.Reports.HeardUnnamed(c.caller(), now)
	}
	b.metrics.Synced(after.Epoch == "", delta.Reset)
	data := positionAnswer(delta.Position, now)
	data["changed"], data["roles"], data["reset"] = append([]string{}, delta.Keys...), append([]string{}, delta.Roles...), delta.Reset
	return &logical.Response{Data: data}, nil
}

// position is the place in the feed that a request names.
func (c *call) position() (feed.Position, error) {
	p := feed.Position{Epoch: c.text(fieldEpoch)}
	if err := checkLabel(fieldEpoch, p.Epoch); err != nil {
		return p, err
	}
	seq := c.number64(fieldSeq)
	if seq < 0 {
		return p, badInput("seq must be the seq of an answer, from 0")
	}
	p.Seq = uint64(seq)
	if skew := c.number64(fieldSkew); skew > maxToldSkew || skew < -maxToldSkew {
		return p, badInput("skew must be milliseconds, between -%d and %d", maxToldSkew, maxToldSkew)
	}
	return p, nil
}

// maxToldSkew is the most that a verifier's clock can be said to be off, in
// milliseconds: a hundred years.
const maxToldSkew = 100 * 366 * 24 * 3600 * 1000

// verifierName names a verifier under the entity, or token, of its caller.
func verifierName(caller, name string) string { return caller + "|" + name }
