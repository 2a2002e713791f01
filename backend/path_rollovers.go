// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/health"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
)

const (
	rolloversPattern = "rollovers/?"
	rolloverPattern  = "rollovers/(?P<name>.+)"
)

func rolloverFields() fields {
	return fields{
		fieldKeyID:         always(textField("Id of the key.")),
		"from":             always(intField("Number of the version that is being left.")),
		"to":               always(intField("Number of the version that takes over.")),
		"traffic_moved":    always(&framework.FieldSchema{Type: framework.TypeFloat, Description: "Share of the traffic of the last half hour on the new version, from 0 to 1."}),
		"sources":          always(itemsField("Where the key is used from: source, and for the old and the new version the uses in the last half hour and the last use.")),
		"instances":        always(itemsField("What client instances have confirmed: instance, version, time.")),
		"laggards":         always(itemsField("Sources and instances that are still on the old version.")),
		"left_at_deadline": always(listField("Sources that, at the present rate, will not have moved by the deadline.")),
		"deadline":         timeField("When the old version is no longer accepted."),
		fieldOverlapEnds:   timeField("The end of the overlap that clients were told."),
		"health":           always(textField("on_track, stalled, at_risk or failed.")),
		"evidence":         always(listField("Why, in words and numbers.")),
	}
}

func (b *Backend) pathRollovers() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      rolloversPattern,
			DisplayAttrs: display("rollovers"),
			Fields:       pageFields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.forwarded(b.listRollovers, "List the keys with a rollover under way.", "list", listAnswer("Names of keys.")),
			},
			HelpSynopsis:    "List the keys with a rollover under way.",
			HelpDescription: "A rollover is under way while a version is pending, is superseded and still accepted, or has been retired so lately that it could be restored for clients left behind.",
		},
		{
			Pattern:      rolloverPattern,
			DisplayAttrs: display("rollover"),
			Fields:       nameFields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.forwarded(b.readRollover, "Read how far a rollover is, and who is left.", "read", answers("The rollover.", rolloverFields())),
			},
			HelpSynopsis: "Read how far a rollover is, and who is left.",
			HelpDescription: `on_track: nothing speaks against everybody having moved by the deadline. stalled:
the old version still carries most of the traffic late in the overlap. at_risk:
at the present rate clients will be left behind. failed: clients were refused
with the retired version, or the new one was never used.`,
		},
	}
}

func (b *Backend) listRollovers(ctx context.Context, c *call) (*logical.Response, error) {
	ids, err := c.store.Rollovers(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, id := range ids {
		k, err := c.store.Key(ctx, id)
		if errors.Is(err, store.ErrDamaged) {
			c.keeper.Logger.Error("a rollover cannot be listed: what is stored of its key is damaged", "key_id", id, "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if k != nil && k.RollingOver() {
			names = append(names, k.Name)
			continue
		}
		// A crash has left the entry. A failure leaves it for the next time.
		_ = c.store.DropRollover(ctx, id)
	}
	slices.Sort(names)
	if names, err = c.page(names); err != nil {
		return nil, err
	}
	return logical.ListResponse(names), nil
}

func (b *Backend) readRollover(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	r, report, underWay, err := c.keeper.Rollover(ctx, k, c.store.Now())
	if err != nil {
		return nil, err
	}
	if !underWay {
		return nil, missing("key %q has no rollover under way", k.Name)
	}
	return &logical.Response{Data: rolloverAnswer(k.ID, r, report)}, nil
}

func rolloverAnswer(keyID string, r health.Rollover, report health.Report) map[string]any {
	sources, instances, laggards := []any{}, []any{}, []any{}
	for _, s := range r.Sources {
		data := map[string]any{fieldSource: s.Name, "old_recent": s.Old.Recently, "new_recent": s.New.Recently, "old_refused": s.Old.Refused}
		putTime(data, "old_last_used_time", s.Old.LastUsed)
		putTime(data, "new_last_used_time", s.New.LastUsed)
		sources = append(sources, data)
	}
	for _, i := range r.Instances {
		instances = append(instances, map[string]any{fieldInstance: i.Name, fieldVersion: i.Version, "time": stamp(i.Time)})
	}
	for _, l := range report.Laggards {
		data := map[string]any{}
		if l.Source != "" {
			data[fieldSource] = l.Source
			data["recent"] = l.Recently
		} else {
			data[fieldInstance] = l.Instance
		}
		putTime(data, "last_used_time", l.LastUsed)
		laggards = append(laggards, data)
	}
	data := map[string]any{
		fieldKeyID: keyID, "from": r.From, "to": r.To, "traffic_moved": report.Moved,
		"sources": sources, "instances": instances, "laggards": laggards,
		"left_at_deadline": append([]string{}, report.Left...), "health": string(report.Status), "evidence": report.Evidence,
	}
	putTime(data, "deadline", r.Deadline)
	putTime(data, fieldOverlapEnds, r.Planned)
	return data
}
