// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	verifyPattern = "verify"

	fieldSourceIP = "source_ip"
	fieldSource   = "source"
)

func verifyItemFields() fields {
	return fields{
		fieldAPIKey:   secret(textField("The API key that a request presented.")),
		fieldScopes:   listField("Scopes that the request needs, all of them."),
		fieldSourceIP: textField("Address that the request came from. Needed where the key is bound to addresses."),
		fieldSource:   textField("Where the request arrived, such as a region or a gateway, for the count of use."),
	}
}

func verdictFields() fields {
	return fields{
		"valid":            always(boolField("Whether the request may go on.")),
		"code":             always(textField("VALID, or why not: MALFORMED, NOT_FOUND, COMPROMISED, REVOKED, DISABLED, RETIRED, EXPIRED, FORBIDDEN_SOURCE, INSUFFICIENT_SCOPE.")),
		fieldKeyID:         textField("Id of the key."),
		fieldName:          textField("Name of the key; leased keys have none."),
		fieldRole:          textField("Role of the key."),
		fieldVersion:       intField("Number of the version."),
		fieldState:         textField("State of the version."),
		fieldScopes:        listField("Scopes in force."),
		fieldMetadata:      pairsField("Names and values of the key."),
		"superseded_by":    intField("Number of the version to change over to."),
		fieldOverlapEnds:   timeField("When to have changed over."),
		fieldAcceptedUntil: timeField("When this version is no longer accepted."),
		fieldExpireTime:    timeField("When this version reaches its hard age, or its lease ends."),
	}
}

func (b *Backend) pathVerify() []*framework.Path {
	answer := verdictFields()
	for name := range answer {
		answer[name].Required = false // a batch answers batch_results alone
	}
	answer[fieldBatchResults] = itemsField("For a batch, the answers in order; an item that cannot be read has an error instead.")
	return []*framework.Path{{
		Pattern:      verifyPattern,
		DisplayAttrs: display("key"),
		Fields: join(verifyItemFields(), fields{
			fieldBatchInput: itemsField("Instead of the other fields, at most 1000 maps of them."),
		}),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.verify, "Check an API key, or a batch of them.", "verify", answers("The verdict.", answer)),
		},
		HelpSynopsis: "Check an API key.",
		HelpDescription: `Answers whether a request that presented this key may go on, and what is known of
the key. The answer to a refused key is no error: valid is false, and code says
why. Of an unknown key nothing is told.`,
	}}
}

func (b *Backend) verify(ctx context.Context, c *call) (*logical.Response, error) {
	if !c.has(fieldBatchInput) {
		verdict, err := b.verifyOne(ctx, c)
		if err != nil {
			return nil, err
		}
		return &logical.Response{Data: verdict}, nil
	}
	for field := range verifyItemFields() {
		if c.has(field) {
			return nil, badInput("batch_input and %s exclude each other: put %s into the items", field, field)
		}
	}
	schema := verifyItemFields()
	items := c.items(fieldBatchInput)
	results := make([]any, 0, len(items))
	var ignored []string
	for i, item := range items {
		result, unknown, err := b.verifyItem(ctx, c, schema, i, item)
		if err != nil {
			return nil, err
		}
		results = append(results, result)
		ignored = append(ignored, unknown...)
	}
	if len(ignored) > 0 {
		c.warn(ignoredWarning(ignored))
	}
	return &logical.Response{Data: map[string]any{fieldBatchResults: results}}, nil
}

// verifyItem answers one item, and names the unknown fields in it. A bad item
// has an error of its own; a failure of storage fails the batch, because not to
// know is not to refuse.
func (b *Backend) verifyItem(ctx context.Context, c *call, schema fields, i int, item any) (result map[string]any, ignored []string, err error) {
	raw, ok := item.(map[string]any)
	if !ok {
		return map[string]any{"error": badInput("batch_input: item %d is not a map", i+1).Error()}, nil, nil
	}
	in, err := decodeFields(schema, raw, true)
	if err == nil {
		ignored = in.ignored
		one := &call{engine: c.engine, req: c.req, in: &framework.FieldData{Raw: in.values, Schema: schema}}
		var verdict map[string]any
		if verdict, err = b.verifyOne(ctx, one); err == nil {
			return verdict, ignored, nil
		}
	}
	var input *inputError
	if errors.As(err, &input) || errors.Is(err, errTooManyMisses) {
		return map[string]any{"error": err.Error()}, ignored, nil
	}
	return nil, nil, err
}

func (b *Backend) verifyOne(ctx context.Context, c *call) (map[string]any, error) {
	if !c.has(fieldAPIKey) {
		return nil, badInput("api_key is required: the key that the request presented")
	}
	if err := role.CheckRequired(fieldScopes, c.list(fieldScopes)); err != nil {
		return nil, badInput("%s", err)
	}
	query := keyring.Query{Scopes: c.list(fieldScopes)}
	if ip := c.text(fieldSourceIP); ip != "" {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, badInput("source_ip must be an IPv4 or IPv6 address without a port")
		}
		query.SourceIP = addr
	}
	source := c.text(fieldSource)
	if err := checkLabel(fieldSource, source); err != nil {
		return nil, err
	}
	presented := c.text(fieldAPIKey)
	k, code, err := b.find(ctx, c, presented)
	if err != nil {
		return nil, err
	}
	if k == nil {
		b.metrics.Unknown(code)
		return refused(code), nil
	}
	r, err := c.store.Role(ctx, k.Role)
	if err != nil {
		return nil, err
	}
	limits := keyring.Limits{}
	if r != nil {
		limits = r.Limits()
	} else if k.Deleted.IsZero() {
		return nil, errors.New("the role of a key is missing from storage")
	}
	query.Digest = token.Sum(presented)
	now := b.clock.Now()
	verdict := k.Verify(now, limits, query)
	if verdict.Version == 0 {
		b.metrics.Unknown(keyring.CodeNotFound)
		return refused(keyring.CodeNotFound), nil
	}
	c.watch.used(now, k, verdict, usage.SourceName(c.caller(), source))
	b.metrics.Verified(k.Role, verdict.Code)
	return verdictAnswer(k, verdict, now), nil
}

// refused is all that is told of a key that is not known.
func refused(code keyring.Code) map[string]any {
	return map[string]any{"valid": false, "code": string(code)}
}

// find returns the key that presented may belong to, or the code for none. A
// token of our form is found by the id in it, others only by their digest and
// only where the mount has imports.
func (b *Backend) find(ctx context.Context, c *call, presented string) (*keyring.Key, keyring.Code, error) {
	ask := func() error { return b.misses.allow(c.caller()) }
	parsed, malformed := token.Parse(presented)
	if malformed == nil {
		k, err := b.byID(ctx, c, parsed.KeyID, ask)
		if err != nil {
			return nil, "", err
		}
		if k != nil && hasDigest(k, token.Sum(presented)) {
			return k, "", nil
		}
		if k != nil && k.Deleted.IsZero() {
			c.watch.wrongSecret(b.clock.Now(), k.ID)
		}
	}
	code := keyring.CodeNotFound
	if malformed != nil {
		code = keyring.CodeMalformed
	}
	imports, err := c.store.HasImports(ctx)
	if err != nil || !imports || token.ImportableForm(presented) != nil {
		return nil, code, err
	}
	k, err := c.store.KeyByImport(ctx, token.Sum(presented), ask)
	return k, keyring.CodeNotFound, err
}

// byID returns the key with an id that a stranger chose: whether a miss may
// read storage is limited for each caller.
func (b *Backend) byID(ctx context.Context, c *call, id string, ask func() error) (*keyring.Key, error) {
	if k := c.store.CachedKey(id); k != nil {
		return k, nil
	}
	if err := ask(); err != nil {
		return nil, err
	}
	// The id is part of the presented token: a copy keeps the rest of the
	// token out of the cache.
	return c.store.Key(ctx, strings.Clone(id))
}

func hasDigest(k *keyring.Key, d token.Digest) bool {
	found := false
	for i := range k.Versions {
		found = k.Versions[i].Digest.Equal(d) || found
	}
	return found
}

func verdictAnswer(k *keyring.Key, verdict keyring.Verdict, now time.Time) map[string]any {
	v, _ := k.Version(verdict.Version)
	data := map[string]any{
		"valid": verdict.Code == keyring.CodeValid, "code": string(verdict.Code),
		fieldKeyID: k.ID, fieldRole: k.Role, fieldVersion: v.Number, fieldState: v.StateAt(k.Now(now)).String(),
		fieldScopes: append([]string{}, verdict.Scopes...), fieldMetadata: metadata(k.CustomMetadata),
	}
	if k.Name != "" {
		data[fieldName] = k.Name
	}
	if v.SupersededBy > 0 {
		data["superseded_by"] = v.SupersededBy
	}
	putTime(data, fieldOverlapEnds, v.OverlapEnds)
	putTime(data, fieldAcceptedUntil, v.AcceptedUntil)
	putTime(data, fieldExpireTime, v.ExpireTime)
	return data
}
