// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"strconv"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
)

const importPattern = "import"

func (b *Backend) pathImport() []*framework.Path {
	return []*framework.Path{{
		Pattern:      importPattern,
		DisplayAttrs: display("keys"),
		Fields: fields{fieldBatchInput: itemsField(
			"At most 1000 maps, each with name, role, import_key or import_sha256, and optionally scopes, bound_cidrs, custom_metadata and enabled.")},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.importKeys, "Import a batch of keys.", "import", answers("What became of each, in order.", fields{
				fieldBatchResults: always(itemsField("For each item its name with key_id and version, or an error.")),
				"imported":        always(intField("How many were imported.")),
				"failed":          always(intField("How many were not.")),
			})),
		},
		HelpSynopsis: "Import keys that were made elsewhere, a batch at a time.",
		HelpDescription: `Each item is answered for itself: a bad one leaves the others alone. Importing the
same token under the same name again succeeds and changes nothing, so a batch
can be repeated.`,
	}}
}

func (b *Backend) importKeys(ctx context.Context, c *call) (*logical.Response, error) {
	if !c.has(fieldBatchInput) {
		return nil, badInput("batch_input is required: a list of at most %d maps", maxItems)
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	results := []any{}
	imported, failed := 0, 0
	for i, item := range c.items(fieldBatchInput) {
		result, err := b.importItem(ctx, c, i, item, cause)
		if err != nil {
			resp, err := respond(err)
			if err != nil {
				return nil, err // storage failed: what was imported stays, and may be repeated
			}
			result["error"] = resp.Data["error"]
			failed++
		} else {
			imported++
		}
		results = append(results, result)
	}
	return &logical.Response{Data: map[string]any{fieldBatchResults: results, "imported": imported, "failed": failed}}, nil
}

// importItem imports one item. The result names the item even with an error.
func (b *Backend) importItem(ctx context.Context, c *call, i int, item any, cause keyring.Cause) (map[string]any, error) {
	result := map[string]any{}
	raw, ok := item.(map[string]any)
	if !ok {
		return result, badInput("batch_input: item %s is not a map", strconv.Itoa(i+1))
	}
	in, err := decodeFields(keyInputFields(), raw, false)
	if err != nil {
		return result, err
	}
	one := &call{engine: c.engine, req: c.req, in: &framework.FieldData{Raw: in.values, Schema: keyInputFields()}}
	name := one.text(fieldName)
	if err := checkName(fieldName, name); err != nil {
		return result, err
	}
	result[fieldName] = name
	if !one.has(fieldImportKey) && !one.has(fieldImportSHA256) {
		return result, badInput("import_key or import_sha256 is required")
	}
	spec, err := b.keySpec(ctx, one)
	if err != nil {
		return result, err
	}
	made, err := c.keeper.Create(ctx, spec, cause)
	if errors.Is(err, lifecycle.ErrExists) {
		return result, b.importedAlready(ctx, one, name, result)
	}
	if err != nil {
		return result, b.createError(err, spec.Role)
	}
	result[fieldKeyID], result[fieldVersion] = made.Key.ID, made.Version
	return result, nil
}

// importedAlready accepts an item that an earlier try has imported.
func (b *Backend) importedAlready(ctx context.Context, one *call, name string, result map[string]any) error {
	k, err := one.store.KeyByName(ctx, name)
	if err != nil {
		return err
	}
	if k == nil {
		return badInput("key %q was deleted at the same time", name)
	}
	if err := one.checkUnchangeable(ctx, k.ID); err != nil {
		return err
	}
	result[fieldKeyID], result[fieldVersion] = k.ID, 1
	return nil
}
