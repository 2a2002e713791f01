// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// call is one request at work.
type call struct {
	*engine
	req   *logical.Request
	in    *framework.FieldData
	nulls []string
	// warnings are added to the answer, if there is one.
	warnings []string
	// who is what caller returns, once it was asked.
	who string
	// firsts are uses of which storage is to know before the answer is given.
	firsts []*usage.First
}

type nullsKey struct{}

// handlerFunc does one operation. Its errors are for respond.
type handlerFunc func(ctx context.Context, c *call) (*logical.Response, error)

// handle makes a handler into what the SDK calls.
func (b *Backend) handle(h handlerFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
		e, err := b.engine(ctx, req.Storage)
		if err != nil {
			return nil, err
		}
		if e.fence != nil && e.fence.Superseded(ctx) {
			return nil, errSuperseded
		}
		nulls, _ := ctx.Value(nullsKey{}).([]string)
		c := &call{engine: e, req: req, in: data, nulls: nulls}
		resp, err := h(ctx, c)
		if err != nil {
			return respond(err)
		}
		for _, w := range c.warnings {
			if resp == nil {
				resp = &logical.Response{}
			}
			resp.AddWarning(w)
		}
		return resp, nil
	}
}

// cause says at whose wish this call changes something.
func (c *call) cause() (keyring.Cause, error) {
	reason := ""
	if _, has := c.in.Schema["reason"]; has {
		reason = c.text("reason")
	}
	if err := checkReason(reason); err != nil {
		return keyring.Cause{}, err
	}
	actor := c.req.DisplayName
	if actor == "" {
		actor = "unknown"
	}
	cause := keyring.Cause{Actor: actor, EntityID: c.req.EntityID, Reason: reason}
	if cause.EntityID == "" {
		cause.Accessor = c.req.ClientTokenAccessor
	}
	return cause, nil
}

// caller names the entity, or else the token, that makes the request.
func (c *call) caller() string {
	switch {
	case c.who != "":
	case c.req.EntityID != "":
		c.who = "entity:" + c.req.EntityID
	case c.req.ClientTokenAccessor != "":
		c.who = "token:" + c.req.ClientTokenAccessor
	default:
		c.who = "display:" + c.req.DisplayName
	}
	return c.who
}

func (c *call) has(field string) bool {
	_, ok := c.in.Raw[field]
	return ok
}

// reset tells whether a PATCH set the field to null. In a plain write null is
// the same as absent.
func (c *call) reset(field string) bool {
	return c.req.Operation == logical.PatchOperation && slices.Contains(c.nulls, field)
}

// valueOf returns a field, or its default, or the zero value. decodeFields has
// given every field the one Go type of its kind.
func valueOf[T any](data *framework.FieldData, field string) T {
	v, ok := data.Raw[field].(T)
	if !ok {
		v, _ = data.Get(field).(T)
	}
	return v
}

func (c *call) text(field string) string { return valueOf[string](c.in, field) }

func (c *call) flag(field string) bool { return valueOf[bool](c.in, field) }

func (c *call) number(field string) int { return valueOf[int](c.in, field) }

func (c *call) number64(field string) int64 { return valueOf[int64](c.in, field) }

func (c *call) numbers(field string) []int { return valueOf[[]int](c.in, field) }

func (c *call) list(field string) []string { return valueOf[[]string](c.in, field) }

func (c *call) pairs(field string) map[string]string { return valueOf[map[string]string](c.in, field) }

func (c *call) items(field string) []any { return valueOf[[]any](c.in, field) }

func (c *call) duration(field string) time.Duration {
	return time.Duration(c.number(field)) * time.Second
}

// optionalDuration is nil where the field was not given.
func (c *call) optionalDuration(field string) *time.Duration {
	if !c.has(field) {
		return nil
	}
	d := c.duration(field)
	return &d
}

func (c *call) warn(text string) { c.warnings = append(c.warnings, text) }

// key returns the key that the path names.
func (c *call) key(ctx context.Context) (*keyring.Key, error) {
	name := c.text(fieldName)
	k, err := c.store.KeyByName(ctx, name)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, noKey(name)
	}
	return k, nil
}

// page cuts a sorted list to what after and limit ask for.
func (c *call) page(names []string) ([]string, error) {
	limit := c.number(fieldLimit)
	if limit < 0 {
		return nil, badInput("limit must be 0 (no limit) or a positive whole number")
	}
	if after := c.text(fieldAfter); after != "" {
		i, found := slices.BinarySearch(names, after)
		if found {
			i++
		}
		names = names[i:]
	}
	if limit > 0 && len(names) > limit {
		names = names[:limit]
	}
	return names, nil
}

// stamp is how times are shown: RFC 3339 in UTC.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// putTime adds a time that is set.
func putTime(data map[string]any, field string, t time.Time) {
	if !t.IsZero() {
		data[field] = stamp(t)
	}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// answers declares the answer of an operation.
func answers(description string, fields map[string]*framework.FieldSchema) map[int][]framework.Response {
	return map[int][]framework.Response{http.StatusOK: {{Description: description, Fields: fields}}}
}

// empty declares an operation that answers nothing.
func empty(description string) map[int][]framework.Response {
	return map[int][]framework.Response{http.StatusNoContent: {{Description: description}}}
}

// orEmpty declares an operation that answers something or nothing.
func orEmpty(something map[int][]framework.Response, description string) map[int][]framework.Response {
	maps.Copy(something, empty(description))
	return something
}

// local makes an operation that any node may answer: plain reads of metadata.
func (b *Backend) local(h handlerFunc, summary, verb string, responses map[int][]framework.Response) *framework.PathOperation {
	return &framework.PathOperation{
		Callback: b.handle(h), Summary: summary, Responses: responses,
		DisplayAttrs: &framework.DisplayAttributes{OperationVerb: verb},
	}
}

// forwarded makes an operation that only the active node of the primary
// cluster answers: all that writes, and all that depends on what is only in
// that node's memory.
func (b *Backend) forwarded(h handlerFunc, summary, verb string, responses map[int][]framework.Response) *framework.PathOperation {
	op := b.local(h, summary, verb, responses)
	op.ForwardPerformanceStandby, op.ForwardPerformanceSecondary = true, true
	return op
}

func display(suffix string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationSuffix: suffix}
}

// captures returns the parts of a URL path that the route's pattern names.
func (b *Backend) captures(path *framework.Path, urlPath string) map[string]string {
	re := b.named[path]
	if re == nil {
		return nil
	}
	captures := map[string]string{}
	match := re.FindStringSubmatch(urlPath)
	for i, name := range re.SubexpNames() {
		if name != "" && i < len(match) {
			captures[name] = match[i]
		}
	}
	return captures
}

// namedParts compiles the patterns that name parts of the URL.
func namedParts(paths []*framework.Path) map[*framework.Path]*regexp.Regexp {
	named := map[*framework.Path]*regexp.Regexp{}
	for _, p := range paths {
		if re := regexp.MustCompile("^" + p.Pattern + "$"); re.NumSubexp() > 0 {
			named[p] = re
		}
	}
	return named
}

// checkCapture checks a name or an id in the URL.
func checkCapture(field, value string) error {
	if field == fieldKeyID {
		if !token.ValidID(value) {
			return badInput("key_id must be %d letters and digits", token.IDLength)
		}
		return nil
	}
	if field == fieldID {
		return checkVerifierID(value)
	}
	return checkName(field, value)
}
