// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
)

const (
	webhooksPattern    = "webhooks/?"
	webhookPattern     = "webhooks/(?P<name>.+)"
	webhookTestPattern = "webhooks/(?P<name>.+)/test"

	fieldURL          = "url"
	fieldSecret       = "secret"
	fieldEvents       = "events"
	fieldRoles        = "roles"
	fieldKeys         = "keys"
	fieldHookMetadata = "metadata"
	fieldDeliver      = "deliver"
	fieldAllowPrivate = "allow_private"
	fieldSecretPeriod = "secret_overlap_period"

	defaultSecretOverlap = 24 * time.Hour
)

func webhookInputFields() fields {
	return fields{
		fieldName:         textField("Name of the webhook."),
		fieldURL:          textField("Where to send: https, and with allow_private also http."),
		fieldSecret:       secret(textField("What signs messages, whsec_ and base64 of 24 to 64 bytes. It is made, and shown once, where it is absent. A new one signs beside the old one for secret_overlap_period.")),
		fieldSecretPeriod: byDefault(durationField("How long messages are signed with the former secret too after this write."), int(seconds(defaultSecretOverlap))),
		fieldEvents:       listField("Types of events to be told, with * for any text; by default all."),
		fieldRoles:        listField("Roles whose keys to tell of, with * for any text; by default all."),
		fieldKeys:         listField("Names or ids of keys to tell of, with * for any text; by default all."),
		fieldHookMetadata: pairsField("Custom metadata that a key must have, with * for any text."),
		fieldDeliver:      byDefault(textField("event, or claim to add a code for each new version that can be redeemed at claim."), "event"),
		fieldAllowPrivate: boolField("Allows loopback, private addresses and plain http."),
		fieldEnabled:      byDefault(boolField("Whether it is told anything. What it misses is kept up to a cap."), true),
	}
}

func webhookAnswerFields() fields {
	return fields{
		fieldName:         always(textField("Name of the webhook.")),
		fieldURL:          always(textField("Where to send.")),
		fieldEvents:       always(listField("Types of events.")),
		fieldRoles:        always(listField("Roles.")),
		fieldKeys:         always(listField("Keys.")),
		fieldHookMetadata: always(pairsField("Custom metadata.")),
		fieldDeliver:      always(textField("event or claim.")),
		fieldAllowPrivate: always(boolField("Whether private addresses and plain http are allowed.")),
		fieldEnabled:      always(boolField("Whether it is told anything.")),
		"disabled_reason": always(textField("Why it was disabled, where it was not by a write.")),
		"created_time":    always(timeField("When it was made.")),
		"pending":         always(intField("Events that wait to be delivered.")),
		"dropped":         always(intField("Events that were not kept because too many waited.")),
		"failed":          always(intField("Events that ran out of retries.")),
		"failing_since":   timeField("Since when every attempt has failed."),
		"deliveries":      always(itemsField("The last 100 attempts, newest first: event_id, type, time, attempt, status, result, milliseconds.")),
	}
}

// changedWebhook declares the answer of a change: nothing, but where the write
// that made the webhook failed, and its answer with it.
func changedWebhook() map[int][]framework.Response {
	return orEmpty(answers("The secret, where the write that made the webhook failed and took effect; shown once.",
		fields{fieldSecret: secret(textField("What signs messages."))}), "Changed.")
}

func (b *Backend) pathWebhooks() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      webhooksPattern,
			DisplayAttrs: display("webhooks"),
			Fields:       pageFields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.forwarded(b.listWebhooks, "List the webhooks.", "list", listAnswer("The webhooks.")),
			},
			HelpSynopsis:    "List the webhooks.",
			HelpDescription: "Webhooks are told of what happens to keys.",
		},
		{
			Pattern:        webhookPattern,
			DisplayAttrs:   display("webhook"),
			Fields:         webhookInputFields(),
			ExistenceCheck: b.webhookExists,
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.CreateOperation: b.forwarded(b.writeWebhook, "Create a webhook.", "write", answers("The secret, where it was made; shown once.", fields{fieldSecret: secret(textField("What signs messages."))})),
				logical.UpdateOperation: b.forwarded(b.writeWebhook, "Change a webhook; absent fields keep their value.", "write", changedWebhook()),
				logical.PatchOperation:  b.forwarded(b.writeWebhook, "Change a webhook; null sets a field to its default.", "patch", changedWebhook()),
				logical.ReadOperation:   b.forwarded(b.readWebhook, "Read a webhook and its last deliveries, without its secret.", "read", answers("The webhook.", webhookAnswerFields())),
				logical.DeleteOperation: b.forwarded(b.deleteWebhook, "Delete a webhook and what it was still to be told.", "delete", empty("Deleted.")),
			},
			HelpSynopsis: "Create, read, change and delete webhooks.",
			HelpDescription: `Messages are signed as Standard Webhooks 1.0.0 says. Each event is delivered at
least once, in the order of its key, with retries over three days. An answer of
410, or failure for long, disables the webhook, and disabled_reason says why.`,
		},
	}
}

func (b *Backend) pathWebhookTest() []*framework.Path {
	return []*framework.Path{{
		Pattern:      webhookTestPattern,
		DisplayAttrs: display("webhook"),
		Fields:       fields{fieldName: textField("Name of the webhook.")},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.testWebhook, "Send a test message now.", "test", answers("What became of it.", fields{
				"delivered":    always(boolField("Whether the receiver accepted it.")),
				"status":       always(intField("Status of the answer, 0 where there was none.")),
				"result":       always(textField("delivered, or why not.")),
				"milliseconds": always(intField("How long it took.")),
			})),
		},
		HelpSynopsis:    "Send a test message to a webhook now.",
		HelpDescription: "Sends webhook.test once, even to a webhook that is disabled, and answers what became of it.",
	}}
}

func (b *Backend) webhookExists(ctx context.Context, req *logical.Request, data *framework.FieldData) (bool, error) {
	e, err := b.engine(ctx, req.Storage)
	if err != nil {
		return false, err
	}
	h, err := e.watch.hooks.Hook(ctx, valueOf[string](data, fieldName))
	return h != nil, err
}

func (b *Backend) listWebhooks(ctx context.Context, c *call) (*logical.Response, error) {
	names, err := c.watch.hooks.Names(ctx)
	if err != nil {
		return nil, err
	}
	if names, err = c.page(names); err != nil {
		return nil, err
	}
	return logical.ListResponse(names), nil
}

func (b *Backend) writeWebhook(ctx context.Context, c *call) (*logical.Response, error) {
	name := c.text(fieldName)
	before, err := c.watch.hooks.Hook(ctx, name)
	if c.req.Operation == logical.PatchOperation {
		switch {
		case err != nil:
			return nil, err
		case before == nil:
			return nil, missing("there is no webhook named %q", name)
		}
	}
	made := ""
	_, err = c.watch.hooks.Update(ctx, name, func(h *webhook.Hook) error {
		var err error
		if made, err = b.changeWebhook(c, h); err != nil {
			return err
		}
		if err := h.Validate(); err != nil {
			return err
		}
		return c.store.MarkHooks(ctx) // before the first webhook is stored, and not for one that is refused
	})
	var refusal *webhook.Refusal
	if errors.As(err, &refusal) {
		return nil, badInput("%s", refusal.Text)
	}
	if err != nil {
		return nil, err
	}
	c.warnUnclaimed(ctx, before)
	if made == "" {
		return nil, nil
	}
	return &logical.Response{Data: map[string]any{fieldSecret: made}}, nil
}

// changeWebhook writes the fields of a request to a hook. It returns the
// secret that it made, if any.
func (b *Backend) changeWebhook(c *call, h *webhook.Hook) (made string, err error) {
	given := func(field string) bool { return c.has(field) || c.reset(field) }
	if c.has(fieldURL) {
		h.URL = c.text(fieldURL)
	}
	for field, list := range map[string]*[]string{fieldEvents: &h.Events, fieldRoles: &h.Roles, fieldKeys: &h.Keys} {
		if given(field) {
			*list = c.list(field)
		}
	}
	if given(fieldEvents) && len(h.Events) == 0 || len(h.Events) == 0 {
		h.Events = []string{"*"}
	}
	if given(fieldHookMetadata) {
		h.Metadata = c.pairs(fieldHookMetadata)
	}
	if given(fieldDeliver) {
		h.Deliver = c.text(fieldDeliver)
	}
	if given(fieldAllowPrivate) {
		h.AllowPrivate = c.flag(fieldAllowPrivate)
	}
	if given(fieldEnabled) {
		h.Enabled = c.flag(fieldEnabled)
	}
	switch {
	case c.has(fieldSecret):
		if _, err := webhook.ParseSecret(c.text(fieldSecret)); err != nil {
			return "", err
		}
		h.SetSecret(c.text(fieldSecret), b.clock.Now(), c.duration(fieldSecretPeriod))
	case len(h.Secrets) == 0:
		if made, err = webhook.NewSecret(b.rand); err != nil {
			return "", err
		}
		h.SetSecret(made, b.clock.Now(), 0)
	}
	return made, nil
}

func (b *Backend) readWebhook(ctx context.Context, c *call) (*logical.Response, error) {
	status, err := c.watch.hooks.Status(ctx, c.text(fieldName))
	if errors.Is(err, webhook.ErrNoHook) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if status.Unreadable != nil {
		return nil, status.Unreadable
	}
	h := status.Hook
	log := []any{}
	for _, a := range status.Log {
		log = append(log, map[string]any{
			"event_id": a.EventID, "type": a.EventType, "time": stamp(a.Time), "attempt": a.Number,
			"status": a.Status, "result": a.Summary(), "milliseconds": a.Duration.Milliseconds(),
		})
	}
	data := map[string]any{
		fieldName: h.Name, fieldURL: h.URL, fieldEvents: append([]string{}, h.Events...), fieldRoles: append([]string{}, h.Roles...),
		fieldKeys: append([]string{}, h.Keys...), fieldHookMetadata: metadata(h.Metadata), fieldDeliver: h.Deliver,
		fieldAllowPrivate: h.AllowPrivate, fieldEnabled: h.Enabled, "disabled_reason": h.DisabledReason,
		"pending": status.Pending, "dropped": h.Dropped, "failed": h.Failed, "deliveries": log,
	}
	putTime(data, "created_time", h.CreatedTime)
	putTime(data, "failing_since", h.FailingSince)
	return &logical.Response{Data: data}, nil
}

func (b *Backend) deleteWebhook(ctx context.Context, c *call) (*logical.Response, error) {
	before, err := c.watch.hooks.Hook(ctx, c.text(fieldName))
	if err != nil {
		before = nil // one that cannot be read can be deleted
	}
	if err := c.watch.hooks.Delete(ctx, c.text(fieldName)); err != nil {
		return nil, err
	}
	c.warnUnclaimed(ctx, before)
	return nil, nil
}

// warnUnclaimed warns of roles whose new keys nobody can claim any more, once
// the webhook is no longer what it was before; nil where it is not known.
func (c *call) warnUnclaimed(ctx context.Context, before *webhook.Hook) {
	if before == nil || !before.Enabled || before.Deliver != webhook.DeliverClaim {
		return
	}
	names, err := c.store.Roles(ctx)
	if err != nil {
		return // what was asked for is done
	}
	var left []string
	for _, name := range names {
		r, err := c.store.Role(ctx, name)
		if err != nil || r == nil || !r.NeedsClaims() || !before.ClaimsFor(name) {
			continue
		}
		if found, _, err := c.watch.hooks.Claiming(ctx, name); err == nil && !found {
			left = append(left, name)
		}
	}
	if len(left) == 0 {
		return
	}
	if over := len(left) - maxNamed; over > 0 {
		left = append(left[:maxNamed], fmt.Sprintf("and %d more", over))
	}
	c.warn("no enabled webhook with deliver=claim is left for the roles " + strings.Join(left, ", ") + ": rotations of their keys wait until one is")
}

func (b *Backend) testWebhook(ctx context.Context, c *call) (*logical.Response, error) {
	attempt, err := c.watch.hooks.Test(ctx, c.text(fieldName))
	if errors.Is(err, webhook.ErrNoHook) {
		return nil, missing("there is no webhook named %q", c.text(fieldName))
	}
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"delivered": attempt.Delivered(), "status": attempt.Status, "result": attempt.Summary(), "milliseconds": attempt.Duration.Milliseconds(),
	}}, nil
}
