// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	keysPattern = "keys/?"
	keyPattern  = "keys/(?P<name>.+)"
)

// keyInputFields are what describes a key, alone or in a batch of imports.
func keyInputFields() fields {
	return join(nameFields(), fields{
		fieldRole:         textField("Role of the key. It cannot be changed."),
		fieldScopes:       listField("Scopes of the key, each covered by one of the role. Absent: those of the role, whatever they are."),
		fieldBoundCIDRs:   listField("Addresses and ranges from which the key is accepted, within those of the role; empty does not narrow them."),
		fieldMetadata:     pairsField("Names and values for people and filters, at most 64."),
		fieldEnabled:      byDefault(boolField("A key that is not enabled is refused with DISABLED and not rotated."), true),
		fieldImportKey:    secret(textField("A token made elsewhere, of 16 to 512 printable characters, that becomes version 1.")),
		fieldImportSHA256: textField("The SHA-256 of such a token, in 64 hex digits. static-creds cannot return it. Of a token that this mount made itself the hash tells nothing, so one that is compromised is not recognized and must not be imported so; with import_key it is refused."),
	})
}

func versionAnswerSchema() *framework.FieldSchema {
	return always(itemsField("The versions, newest first: version, state, created_time, activated_time, superseded_by, overlap_ends, accepted_until, expire_time, ended_time, reason, last_used_time, use_count, fingerprint."))
}

func keyAnswerFields() fields {
	return fields{
		fieldKeyID:         always(textField("Id of the key. It is public and never changes.")),
		fieldName:          always(textField("Name of the key.")),
		fieldRole:          always(textField("Role of the key.")),
		fieldEnabled:       always(boolField("Whether the key is accepted at all.")),
		"imported":         always(boolField("Whether the key began with a token made elsewhere.")),
		fieldScopes:        always(listField("Scopes of the key.")),
		fieldBoundCIDRs:    always(listField("Addresses and ranges from which the key is accepted.")),
		fieldMetadata:      always(pairsField("Names and values.")),
		"current_version":  intField("Number of the active version; absent where there is none."),
		"pending_version":  intField("Number of the pending version; absent where there is none."),
		"created_time":     always(timeField("When the key was made.")),
		fieldLastRotation:  timeField("When the active version became active."),
		fieldNextRotation:  timeField("When the key is next rotated automatically."),
		"rotation_blocked": textField("Why an automatic rotation that is due waits."),
		"versions":         versionAnswerSchema(),
	}
}

func (b *Backend) pathKeys() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      keysPattern,
			DisplayAttrs: display("keys"),
			Fields:       join(pageFields(), fields{fieldRole: inQuery(textField("List only keys of this role."))}),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.local(b.listKeys, "List the named keys.", "list", listAnswer("Names of keys.")),
			},
			HelpSynopsis:    "List the named keys.",
			HelpDescription: "Leased keys do not appear: they are listed by their leases.",
		},
		{
			Pattern:        keyPattern,
			DisplayAttrs:   display("key"),
			Fields:         keyInputFields(),
			ExistenceCheck: b.keyExists,
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.CreateOperation: b.forwarded(b.createKey, "Create a key, or import one.", "write", orEmpty(answers("The new key, shown once.", newKeyFields()), "Somebody else had made it.")),
				logical.UpdateOperation: b.forwarded(b.updateKey, "Change a key; absent fields keep their value.", "write", orEmpty(answers("The new key, where it had to be created.", newKeyFields()), "Changed.")),
				logical.PatchOperation:  b.forwarded(b.patchKey, "Change a key; null sets a field to its default.", "patch", empty("Changed.")),
				logical.ReadOperation:   b.local(b.readKey, "Read a key and its versions, without any secret.", "read", answers("The key.", keyAnswerFields())),
				logical.DeleteOperation: b.forwarded(b.deleteKey, "Delete a key: all its versions end.", "delete", empty("Deleted.")),
			},
			HelpSynopsis: "Create, read, change and delete keys.",
			HelpDescription: `A key is one client's credential, with numbered versions. Creating it answers the
API key once; later the client reads its current version at static-creds. A
deleted key is unknown from then on, but for its compromised versions, which
stay refused as such.`,
		},
	}
}

func (b *Backend) keyExists(ctx context.Context, req *logical.Request, data *framework.FieldData) (bool, error) {
	e, err := b.engine(ctx, req.Storage)
	if err != nil {
		return false, err
	}
	k, err := e.store.KeyByName(ctx, valueOf[string](data, fieldName))
	return k != nil, err
}

func (b *Backend) listKeys(ctx context.Context, c *call) (*logical.Response, error) {
	var names []string
	var err error
	if r := c.text(fieldRole); r == "" {
		names, err = c.store.Names(ctx)
	} else {
		names, err = b.namesOf(ctx, c, r)
	}
	if err != nil {
		return nil, err
	}
	if names, err = c.page(names); err != nil {
		return nil, err
	}
	return logical.ListResponse(names), nil
}

func (b *Backend) namesOf(ctx context.Context, c *call, roleName string) ([]string, error) {
	if err := checkName(fieldRole, roleName); err != nil {
		return nil, err
	}
	var names []string
	err := eachMember(ctx, c.store, roleName, func(id string) error {
		k, err := c.store.Key(ctx, id)
		if err == nil && k != nil && k.Deleted.IsZero() && !k.Leased() {
			names = append(names, k.Name)
		}
		return err
	})
	slices.Sort(names)
	return names, err
}

func (b *Backend) createKey(ctx context.Context, c *call) (*logical.Response, error) {
	spec, err := b.keySpec(ctx, c)
	if err != nil {
		return nil, err
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	made, err := c.keeper.Create(ctx, spec, cause)
	if errors.Is(err, lifecycle.ErrExists) {
		// Somebody else made it since the existence check.
		return b.updateKey(ctx, c)
	}
	if err != nil {
		return nil, b.createError(err, spec.Role)
	}
	return &logical.Response{Data: madeAnswer(made)}, nil
}

// maxEchoed is the longest name that is repeated in an error where it came in
// a field: a longer one may be an API key that was pasted there. The shortest
// has 43 characters.
const maxEchoed = 32

func (b *Backend) createError(err error, roleName string) error {
	if errors.Is(err, lifecycle.ErrNoRole) {
		if len(roleName) > maxEchoed {
			return badInput("role does not exist: create it with roles/<name>")
		}
		return badInput("role %q does not exist: create it with roles/%s", roleName, roleName)
	}
	return err
}

// keySpec reads what a new key is to be, and checks it against its role.
func (b *Backend) keySpec(ctx context.Context, c *call) (lifecycle.Spec, error) {
	spec := lifecycle.Spec{
		Name: c.text(fieldName), Role: c.text(fieldRole), Disabled: !c.flag(fieldEnabled),
		BoundCIDRs: c.list(fieldBoundCIDRs), CustomMetadata: c.pairs(fieldMetadata),
	}
	if spec.Role == "" {
		return spec, badInput("role is required: the role of the new key")
	}
	if err := checkName(fieldRole, spec.Role); err != nil {
		return spec, err
	}
	r, err := c.store.Role(ctx, spec.Role)
	if err != nil {
		return spec, err
	}
	if r == nil {
		return spec, b.createError(lifecycle.ErrNoRole, spec.Role)
	}
	if c.has(fieldScopes) {
		scopes := c.list(fieldScopes)
		spec.Scopes = &scopes
	}
	if err := checkKey(r, spec.Scopes, spec.BoundCIDRs, spec.CustomMetadata); err != nil {
		return spec, err
	}
	spec.ImportToken, spec.ImportDigest, err = c.importInput()
	return spec, err
}

// importInput reads the token, or the digest of one, that is to be imported.
func (c *call) importInput() (string, *token.Digest, error) {
	switch {
	case c.has(fieldImportKey) && c.has(fieldImportSHA256):
		return "", nil, badInput("import_key and import_sha256 exclude each other: give one of them")
	case c.has(fieldImportKey):
		plaintext := c.text(fieldImportKey)
		if token.ImportableForm(plaintext) != nil {
			return "", nil, badInput("import_key must be 16 to 512 printable characters without spaces or line breaks")
		}
		return plaintext, nil, nil
	case c.has(fieldImportSHA256):
		d, err := token.ParseDigest(c.text(fieldImportSHA256))
		if err != nil {
			return "", nil, badInput("import_sha256 must be the SHA-256 of a token, in 64 hex digits")
		}
		return "", &d, nil
	}
	return "", nil, nil
}

func checkKey(r *role.Role, scopes *[]string, cidrs []string, meta map[string]string) error {
	if scopes != nil {
		if err := role.CheckGrants(fieldScopes, *scopes); err != nil {
			return badInput("%s", err)
		}
		for i, s := range *scopes {
			if !record.CoversAll(r.Scopes, []string{s}) {
				return badInput("scopes: the one at position %d is not covered by the scopes of role %q", i+1, r.Name)
			}
		}
	}
	if err := role.CheckCIDRs(fieldBoundCIDRs, cidrs); err != nil {
		return badInput("%s", err)
	}
	if err := role.CheckMetadata(meta); err != nil {
		return badInput("%s", err)
	}
	return nil
}

func (b *Backend) updateKey(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.store.KeyByName(ctx, c.text(fieldName))
	if err != nil {
		return nil, err
	}
	if k == nil {
		return b.createKey(ctx, c) // deleted since the existence check
	}
	return nil, b.changeKey(ctx, c, k.ID)
}

func (b *Backend) patchKey(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	return nil, b.changeKey(ctx, c, k.ID)
}

func (b *Backend) changeKey(ctx context.Context, c *call, id string) error {
	cause, err := c.cause()
	if err != nil {
		return err
	}
	if err := c.checkUnchangeable(ctx, id); err != nil {
		return err
	}
	_, _, _, err = c.keeper.Update(ctx, id, func(k *keyring.Key, r *role.Role, now time.Time) (*keyring.Key, error) {
		next := k.Clone()
		var changed []string
		set := func(field string, write, reset func()) {
			switch {
			case c.has(field):
				write()
			case c.reset(field):
				reset()
			default:
				return
			}
			changed = append(changed, field)
		}
		set(fieldScopes, func() { scopes := c.list(fieldScopes); next.Scopes = &scopes }, func() { next.Scopes = nil })
		set(fieldBoundCIDRs, func() { next.BoundCIDRs = c.list(fieldBoundCIDRs) }, func() { next.BoundCIDRs = nil })
		set(fieldMetadata, func() { next.CustomMetadata = c.pairs(fieldMetadata) }, func() { next.CustomMetadata = nil })
		set(fieldEnabled, func() { next.Disabled = !c.flag(fieldEnabled) }, func() { next.Disabled = false })
		if len(changed) == 0 {
			return k, nil
		}
		if err := checkKey(r, scopesToCheck(c, next), next.BoundCIDRs, next.CustomMetadata); err != nil {
			return nil, err
		}
		cause.Now = k.Now(now)
		next.Record(cause, keyring.EventKeyUpdated, 0, strings.Join(changed, ", "))
		return next, nil
	})
	return err
}

// scopesToCheck are the scopes of a key where they are being written: a role
// that has lost a scope since does not keep other fields from being changed.
func scopesToCheck(c *call, next *keyring.Key) *[]string {
	if c.has(fieldScopes) {
		return next.Scopes
	}
	return nil
}

// checkUnchangeable refuses another role or import than the key was made
// with; the same ones are accepted, so that a write can be repeated.
func (c *call) checkUnchangeable(ctx context.Context, id string) error {
	k, err := c.store.Key(ctx, id)
	if err != nil {
		return err
	}
	if k == nil {
		return lifecycle.ErrNoKey
	}
	if c.has(fieldRole) && c.text(fieldRole) != k.Role {
		return badInput("role cannot be changed: key %q was made with role %q", k.Name, k.Role)
	}
	plaintext, digest, err := c.importInput()
	if err != nil {
		return err
	}
	if plaintext != "" {
		d := token.Sum(plaintext)
		digest = &d
	}
	if digest != nil && !k.MadeFrom(*digest) {
		return badInput("import_key, import_sha256: key %q exists and was not made with this token; import it under another name", k.Name)
	}
	return nil
}

func (b *Backend) readKey(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.store.KeyByName(ctx, c.text(fieldName))
	if err != nil || k == nil {
		return nil, err
	}
	r, err := c.keeper.RoleOf(ctx, k)
	if err != nil {
		return nil, err
	}
	now := k.Now(c.store.Now())
	scopes := r.Scopes
	if k.Scopes != nil {
		scopes = *k.Scopes
	}
	data := map[string]any{
		fieldKeyID: k.ID, fieldName: k.Name, fieldRole: k.Role, fieldEnabled: !k.Disabled, "imported": k.Imported,
		fieldScopes: append([]string{}, scopes...), fieldBoundCIDRs: append([]string{}, k.BoundCIDRs...),
		fieldMetadata: metadata(k.CustomMetadata), "versions": c.versionsAnswer(ctx, k, now),
	}
	putTime(data, "created_time", k.CreatedTime)
	if active, ok := k.Active(); ok && active.AcceptedAt(now) {
		data["current_version"] = active.Number
		putTime(data, fieldLastRotation, active.ActivatedTime)
	}
	if pending, ok := k.Pending(); ok {
		data["pending_version"] = pending.Number
	}
	if k.Blocked != "" {
		data["rotation_blocked"] = k.Blocked
	}
	putTime(data, fieldNextRotation, c.keeper.PlannedRotation(k, r, now))
	return &logical.Response{Data: data}, nil
}

func (c *call) versionsAnswer(ctx context.Context, k *keyring.Key, now time.Time) []any {
	versions := []any{}
	use, err := c.keeper.Book.Read(ctx, k.ID, now)
	if err != nil {
		c.keeper.Logger.Warn("the stored use of a key could not be read", "key_id", k.ID, "error", err)
		c.warn("the stored use of the key could not be read: use_count and last_used_time are those since the plugin started")
		use = c.keeper.Book.Live(k.ID, now)
	}
	for _, v := range slices.Backward(k.Versions) {
		used := use[v.Number]
		data := map[string]any{
			fieldVersion: v.Number, fieldState: v.StateAt(now).String(), "use_count": used.Count, "fingerprint": v.Digest.Fingerprint(),
		}
		putTime(data, "created_time", v.CreatedTime)
		putTime(data, "promote_time", v.PromoteAt)
		putTime(data, "activated_time", v.ActivatedTime)
		putTime(data, fieldOverlapEnds, v.OverlapEnds)
		putTime(data, fieldAcceptedUntil, v.AcceptedUntil)
		putTime(data, fieldExpireTime, v.ExpireTime)
		putTime(data, "ended_time", v.EndedAt(now))
		putTime(data, "restorable_until", v.RestorableUntil)
		putTime(data, "last_used_time", used.LastUsed)
		if v.SupersededBy > 0 {
			data["superseded_by"] = v.SupersededBy
		}
		if v.Reason != "" {
			data[fieldReason] = v.Reason
		}
		versions = append(versions, data)
	}
	return versions
}

func (b *Backend) deleteKey(ctx context.Context, c *call) (*logical.Response, error) {
	name := c.text(fieldName)
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	defer c.store.LockName(name)()
	k, err := c.store.KeyByName(ctx, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, c.store.ForgetName(ctx, name)
	}
	return nil, c.keeper.Delete(ctx, k.ID, cause)
}

// madeAnswer is the answer of an operation that made a version.
func madeAnswer(m *lifecycle.Made) map[string]any {
	data := map[string]any{fieldKeyID: m.Key.ID, fieldVersion: m.Version}
	if v, kept := m.Key.Version(m.Version); kept {
		data[fieldState] = v.State.String()
	}
	if m.Token != "" {
		data[fieldAPIKey] = m.Token
	}
	for i := range m.Key.Versions {
		if former := &m.Key.Versions[i]; former.SupersededBy == m.Version && former.State == keyring.StateRetiring {
			putTime(data, fieldOverlapEnds, former.OverlapEnds)
		}
	}
	return data
}
