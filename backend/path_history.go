// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const historyPattern = "history/(?P<name>.+)"

func (b *Backend) pathHistory() []*framework.Path {
	return []*framework.Path{{
		Pattern:      historyPattern,
		DisplayAttrs: display("key-history"),
		Fields:       nameFields(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.local(b.readHistory, "Read what happened to a key.", "read", answers("The transitions.", fields{
				fieldKeyID:    always(textField("Id of the key.")),
				"transitions": always(itemsField("The last 100, newest first: time, type, version, actor (a display name), entity_id or the accessor of a token without an entity, reason, detail.")),
			})),
		},
		HelpSynopsis: "Read what happened to a key, when, by whom and why.",
		HelpDescription: `The last 100 transitions, those that happened by themselves included, which never
reach Vault's audit log.`,
	}}
}

func (b *Backend) readHistory(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	transitions := []any{}
	for _, e := range slices.Backward(k.History) {
		entry := map[string]any{"time": stamp(e.Time), "type": string(e.Type), "actor": e.Actor}
		if e.Version > 0 {
			entry[fieldVersion] = e.Version
		}
		for field, text := range map[string]string{"entity_id": e.EntityID, "accessor": e.Accessor, fieldReason: e.Reason, "detail": e.Detail} {
			if text != "" {
				entry[field] = text
			}
		}
		transitions = append(transitions, entry)
	}
	return &logical.Response{Data: map[string]any{fieldKeyID: k.ID, "transitions": transitions}}, nil
}
