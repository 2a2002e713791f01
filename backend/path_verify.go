// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	verifyPattern = "verify"

	fieldSourceIP = "source_ip"
	fieldSource   = "source"
)

// verifyItemFields are those of one item, verifyFields those of a request.
var (
	verifyItemFields = fields{
		fieldAPIKey:   secret(textField("The API key that a request presented.")),
		fieldScopes:   listField("Scopes that the request needs, all of them."),
		fieldSourceIP: textField("Address that the request came from. Needed where the key is bound to addresses."),
		fieldSource:   textField("Where the request arrived, such as a region or a gateway, for the count of use."),
	}
	verifyFields = join(verifyItemFields, fields{
		fieldBatchInput: itemsField("Instead of the other fields, at most 1000 maps of them."),
	})
)

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
		Fields:       verifyFields,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.verify, "Check an API key, or a batch of them.", "verify", answers("The verdict.", answer)),
		},
		HelpSynopsis: "Check an API key.",
		HelpDescription: `Answers whether a request that presented this key may go on, and what is known of
the key. The answer to a refused key is no error: valid is false, and code says
why. Of an unknown key nothing is told.`,
	}}
}

// handleVerify answers a verification without the SDK, which would compare the
// path with every route, convert each field again, and ask Vault twice, over
// the plugin's connection, whether to forward the request. That would take
// longer than the verification.
func (b *Backend) handleVerify(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if b.mustForward() {
		return nil, logical.ErrReadOnly
	}
	in, err := decodeFields(verifyFields, req.Data, true)
	if err != nil {
		return respond(err)
	}
	resp, err := b.handle(b.verify)(ctx, req, &framework.FieldData{Raw: in.values, Schema: verifyFields})
	if resp != nil && len(in.ignored) > 0 && !resp.IsError() {
		resp.AddWarning(ignoredWarning(in.ignored))
	}
	return resp, err
}

// forwarding is whether this node must leave verifications to another one, as
// it was at a moment of the clock.
type forwarding struct {
	at   time.Duration
	must bool
}

// forwardingAge is how long the answer is kept. Vault makes a new backend when
// the role of the node changes, so this is for a Vault that does not.
const forwardingAge = time.Second

// mustForward tells what the SDK would find out for each request of an
// operation with ForwardPerformanceStandby and ForwardPerformanceSecondary.
func (b *Backend) mustForward() bool {
	now := b.clock.Elapsed()
	if f := b.forwarding.Load(); f != nil && now-f.at < forwardingAge {
		return f.must
	}
	view := b.System()
	state := view.ReplicationState()
	must := state.HasState(consts.ReplicationPerformanceStandby) || state.HasState(consts.ReplicationPerformanceSecondary) && !view.LocalMount()
	b.forwarding.Store(&forwarding{now, must})
	return must
}

func (b *Backend) verify(ctx context.Context, c *call) (*logical.Response, error) {
	resp, err := b.verdicts(ctx, c)
	// Where storage fails the clients go on all the same, and only a crash before
	// the next use, or flush, would hide the source. The log tells of it.
	_ = c.keeper.Book.Remember(ctx, c.firsts...)
	if c.fence != nil && c.fence.InDoubt() {
		return nil, errSuperseded // that write has shown that another node leads
	}
	return resp, err
}

func (b *Backend) verdicts(ctx context.Context, c *call) (*logical.Response, error) {
	if !c.has(fieldBatchInput) {
		answer, err := b.verifyOne(ctx, c, presentedIn(c))
		if err != nil {
			return nil, err
		}
		return &logical.Response{Data: answer.data()}, nil
	}
	for field := range verifyItemFields {
		if c.has(field) {
			return nil, badInput("batch_input and %s exclude each other: put %s into the items", field, field)
		}
	}
	items := c.items(fieldBatchInput)
	results := make([]any, 0, len(items))
	var ignored []string
	for i, item := range items {
		result, unknown, err := b.verifyItem(ctx, c, i, item)
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
func (b *Backend) verifyItem(ctx context.Context, c *call, i int, item any) (result any, ignored []string, err error) {
	raw, ok := item.(map[string]any)
	if !ok {
		return map[string]any{"error": badInput("batch_input: item %d is not a map", i+1).Error()}, nil, nil
	}
	p, plain := plainItem(raw)
	if !plain {
		in, err := decodeFields(verifyItemFields, raw, true)
		if err != nil {
			return itemError(err, nil)
		}
		ignored, p = in.ignored, presentedIn(&call{in: &framework.FieldData{Raw: in.values, Schema: verifyItemFields}})
	}
	answer, err := b.verifyOne(ctx, c, p)
	if err != nil {
		return itemError(err, ignored)
	}
	return answer, ignored, nil
}

func itemError(err error, ignored []string) (any, []string, error) {
	var input *inputError
	if errors.As(err, &input) || errors.Is(err, errTooManyMisses) {
		return map[string]any{"error": err.Error()}, ignored, nil
	}
	return nil, nil, err
}

// presented is what a request is asked about. absent tells that there is no
// api_key.
type presented struct {
	absent   bool
	apiKey   string
	scopes   []string
	sourceIP string
	source   string
}

func presentedIn(c *call) presented {
	return presented{
		absent: !c.has(fieldAPIKey), apiKey: c.text(fieldAPIKey), scopes: c.list(fieldScopes),
		sourceIP: c.text(fieldSourceIP), source: c.text(fieldSource),
	}
}

// plainItem reads an item that holds nothing but texts under known names, as
// nearly all do, without the maps that decodeFields makes. It tells whether
// the item is one.
func plainItem(raw map[string]any) (presented, bool) {
	p := presented{absent: true}
	for name, value := range raw {
		text, ok := value.(string)
		switch {
		case !ok:
			return p, false
		case name == fieldAPIKey:
			p.absent, p.apiKey = false, text
		case name == fieldSource:
			p.source = text
		case name == fieldSourceIP:
			p.sourceIP = text
		default:
			return p, false
		}
	}
	return p, true
}

func (b *Backend) verifyOne(ctx context.Context, c *call, p presented) (*verdictAnswer, error) {
	if p.absent {
		return nil, badInput("api_key is required: the key that the request presented")
	}
	query := record.Query{Scopes: p.scopes, Digest: token.Sum(p.apiKey)}
	if err := role.CheckRequired(fieldScopes, query.Scopes); err != nil {
		return nil, badInput("%s", err)
	}
	if p.sourceIP != "" {
		addr, err := netip.ParseAddr(p.sourceIP)
		if err != nil {
			return nil, badInput("source_ip must be an IPv4 or IPv6 address without a port")
		}
		query.SourceIP = addr
	}
	if err := checkLabel(fieldSource, p.source); err != nil {
		return nil, err
	}
	k, code, err := b.find(ctx, c, p.apiKey, query.Digest)
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
	now := b.clock.Now()
	verdict := k.Verify(now, limits, query)
	if verdict.Version == 0 {
		b.metrics.Unknown(record.CodeNotFound)
		return refused(record.CodeNotFound), nil
	}
	if countsUse {
		if first := c.watch.used(now, k, verdict, usage.SourceName(c.caller(), p.source)); first != nil {
			c.firsts = append(c.firsts, first)
		}
	}
	b.metrics.Verified(k.Role, verdict.Code)
	return answerOf(k, verdict, now), nil
}

// refused is all that is told of a key that is not known.
func refused(code record.Code) *verdictAnswer { return &verdictAnswer{Code: string(code)} }

// find returns the key that presented may belong to, or the code for none. A
// token of our form is found by the id in it, others, and those that another
// mount made, only by their digest and only where the mount has imports.
//
// How often a caller may have storage read for nothing is limited. A read that
// finds a key costs it nothing: after a start every key is read once.
func (b *Backend) find(ctx context.Context, c *call, presented string, digest token.Digest) (*keyring.Key, record.Code, error) {
	imports, err := c.store.HasImports(ctx)
	if err != nil {
		return nil, "", err
	}
	imports = imports && token.ImportableForm(presented) == nil
	code := record.CodeMalformed
	if parsed, err := token.Parse(presented); err == nil {
		code = record.CodeNotFound
		k := c.store.CachedKey(parsed.KeyID)
		if k == nil && imports {
			if imported := c.store.CachedImport(digest); imported != nil {
				return imported, "", nil
			}
		}
		if k == nil {
			if k, err = b.readID(ctx, c, parsed.KeyID); err != nil {
				return nil, "", err
			}
		}
		if k != nil && hasDigest(k, digest) {
			return k, "", nil
		}
		if k != nil && k.Deleted.IsZero() {
			c.watch.wrongSecret(b.clock.Now(), k.ID)
		}
	}
	if !imports {
		return nil, code, nil
	}
	read := false
	k, err := c.store.KeyByImport(ctx, digest, func() error {
		read = true
		return b.misses.check(c.caller())
	})
	if k == nil && read && err == nil {
		b.misses.spend(c.caller())
	}
	return k, record.CodeNotFound, err
}

// readID reads the key with an id that a stranger chose. Ids are random, so
// one that is unknown stays so, and is remembered without another read.
func (b *Backend) readID(ctx context.Context, c *call, id string) (*keyring.Key, error) {
	if c.unknownIDs.Contains(id) {
		return nil, nil
	}
	if err := b.misses.check(c.caller()); err != nil {
		return nil, err
	}
	// The id is part of the presented token: a copy keeps the rest of the
	// token out of the caches.
	id = strings.Clone(id)
	k, err := c.store.Key(ctx, id)
	if err == nil && k == nil {
		b.misses.spend(c.caller())
		c.unknownIDs.Add(id, struct{}{})
	}
	return k, err
}

func hasDigest(k *keyring.Key, d token.Digest) bool {
	found := false
	for i := range k.Versions {
		found = k.Versions[i].Digest.Equal(d) || found
	}
	return found
}

// verdictAnswer is the answer to one key, as it stands in a batch. Where the
// key is not known only valid and code are set. Its slices and maps belong to
// the key: they are only to be read.
type verdictAnswer struct {
	Valid         bool              `json:"valid"`
	Code          string            `json:"code"`
	KeyID         string            `json:"key_id,omitempty"`
	Name          string            `json:"name,omitempty"`
	Role          string            `json:"role,omitempty"`
	Version       int               `json:"version,omitempty"`
	State         string            `json:"state,omitempty"`
	Scopes        []string          `json:"scopes,omitzero"` // empty is not absent
	Metadata      map[string]string `json:"custom_metadata,omitzero"`
	SupersededBy  int               `json:"superseded_by,omitempty"`
	OverlapEnds   time.Time         `json:"overlap_ends,omitzero"`
	AcceptedUntil time.Time         `json:"accepted_until,omitzero"`
	ExpireTime    time.Time         `json:"expire_time,omitzero"`
}

func answerOf(k *keyring.Key, verdict record.Verdict, now time.Time) *verdictAnswer {
	v, _ := k.Version(verdict.Version)
	scopes := verdict.Scopes
	if scopes == nil {
		scopes = []string{}
	}
	return &verdictAnswer{
		Valid: verdict.Code == record.CodeValid, Code: string(verdict.Code),
		KeyID: k.ID, Name: k.Name, Role: k.Role, Version: v.Number, State: v.StateAt(k.Now(now)).String(),
		Scopes: scopes, Metadata: metadata(k.CustomMetadata), SupersededBy: v.SupersededBy,
		OverlapEnds: v.OverlapEnds.UTC(), AcceptedUntil: v.AcceptedUntil.UTC(), ExpireTime: v.ExpireTime.UTC(),
	}
}

// data is the answer to a single key.
func (a *verdictAnswer) data() map[string]any {
	data := map[string]any{"valid": a.Valid, "code": a.Code}
	if a.KeyID == "" {
		return data
	}
	data[fieldKeyID], data[fieldRole], data[fieldVersion], data[fieldState] = a.KeyID, a.Role, a.Version, a.State
	data[fieldScopes], data[fieldMetadata] = a.Scopes, a.Metadata
	if a.Name != "" {
		data[fieldName] = a.Name
	}
	if a.SupersededBy > 0 {
		data["superseded_by"] = a.SupersededBy
	}
	putTime(data, fieldOverlapEnds, a.OverlapEnds)
	putTime(data, fieldAcceptedUntil, a.AcceptedUntil)
	putTime(data, fieldExpireTime, a.ExpireTime)
	return data
}
