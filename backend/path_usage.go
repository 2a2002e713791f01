// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	usageReportPattern = "usage"
	usagePattern       = "usage/(?P<name>.+)"

	// maxReported bounds one count of a report.
	maxReported = 1_000_000_000
	// maxSkew is how far in the future a verifier's times may lie.
	maxSkew = 5 * time.Minute
)

func usageEntryFields() fields {
	return fields{
		fieldKeyID:   textField("Id of the key."),
		fieldVersion: intField("Number of the version."),
		fieldSource:  textField("Where the requests arrived, such as a region or a gateway."),
		"count":      intField("Accepted uses since the last report."),
		"refused":    intField("Refused uses since the last report."),
		"last_used":  textField("When it was last used, RFC 3339."),
	}
}

func (b *Backend) pathUsage() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      usageReportPattern,
			DisplayAttrs: display("usage"),
			Fields: fields{
				"verifier":         textField("Name of the verifier that reports."),
				"boot":             textField("A text that is new each time the verifier starts."),
				"sequence":         intField("Number of the report since then, from 1. A repeated number counts once."),
				"reported_through": textField("Up to when nothing is missing from this report and those before it, RFC 3339. Without it no version counts as drained."),
				"entries":          itemsField("At most 1000 maps of key_id, version, source, count, refused and last_used."),
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.forwarded(b.reportUsage, "Report the use of keys that were verified elsewhere.", "report", answers("What was counted.", fields{
					"counted":   always(intField("Entries that were counted.")),
					"duplicate": always(boolField("Whether the report had been counted before.")),
					"errors":    always(itemsField("For each entry that was not counted, its index from 0 and the error.")),
				})),
			},
			HelpSynopsis: "Report the use of keys that were verified elsewhere.",
			HelpDescription: `A verifier that checks keys without asking Vault reports what it saw. verifier, boot
and sequence name a report: one that is sent again counts once. Reports may be
late and out of order. One that is answered with an error of storage, or with
status 429 after too many unknown ids, is to be sent again as it was, though it
may have been counted. Refused uses of a version that had ended when it was last
used raise the alarms that they raise at "verify", also where the key is deleted
and the version compromised; these are not counted. Of tokens that no version has,
such as those with a wrong secret, nothing is to be reported. Where an entry with
accepted uses cannot be counted, for another reason than that there is no such key
or version, reported_through counts for nothing, and quiet time begins anew. The
use of a key whose entry in storage is damaged is counted as it is reported.`,
		},
		{
			Pattern:      usagePattern,
			DisplayAttrs: display("key-usage"),
			Fields:       nameFields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.forwarded(b.readUsage, "Read the use of a key by version and source.", "read", answers("The use.", fields{
					fieldKeyID:    always(textField("Id of the key.")),
					"versions":    always(&framework.FieldSchema{Type: framework.TypeMap, Description: "By number: use_count, refused, last_used_time, and by source in sources: count, refused, last_used_time, minutes of the last hour and hours, by their beginning, of accepted uses."}),
					"known_since": always(timeField("Since when this process has counted all uses of the key.")),
				})),
			},
			HelpSynopsis:    "Read the use of a key by version and source.",
			HelpDescription: "What is stored, and what was counted since the last flush, which is about once a minute.",
		},
	}
}

func (b *Backend) readUsage(ctx context.Context, c *call) (*logical.Response, error) {
	k, err := c.key(ctx)
	if err != nil {
		return nil, err
	}
	use, err := c.keeper.Book.Read(ctx, k.ID, b.clock.Now())
	if err != nil {
		return nil, err
	}
	versions := map[string]any{}
	for number, v := range use {
		names := map[string]bool{}
		for name := range v.Sources {
			names[name] = true
		}
		shown := usage.DisplayNames(names)
		sources := map[string]any{}
		for name, s := range v.Sources {
			data := map[string]any{
				"count": s.Count, "refused": s.Refused,
				"minutes": series(s.Minutes, time.Minute), "hours": series(s.Hours, time.Hour),
			}
			putTime(data, "last_used_time", s.LastUsed)
			sources[shown[name]] = data
		}
		data := map[string]any{"use_count": v.Count, "refused": v.Refused, "sources": sources}
		putTime(data, "last_used_time", v.LastUsed)
		versions[strconv.Itoa(number)] = data
	}
	return &logical.Response{Data: map[string]any{
		fieldKeyID: k.ID, "versions": versions, "known_since": stamp(c.keeper.Usage.KnownSince(k.ID)),
	}}, nil
}

// series shows counts by the beginning of their slots.
func series(counts map[string]uint64, slot time.Duration) map[string]any {
	shown := map[string]any{}
	for number, count := range counts {
		if n, err := strconv.ParseInt(number, 10, 64); err == nil {
			shown[time.Unix(n*int64(slot/time.Second), 0).UTC().Format(time.RFC3339)] = count
		}
	}
	return shown
}

func (b *Backend) reportUsage(ctx context.Context, c *call) (*logical.Response, error) {
	now := b.clock.Now()
	verifier, boot := c.text("verifier"), c.text("boot")
	if verifier == "" || boot == "" || c.number("sequence") < 1 {
		return nil, badInput("verifier, boot and a sequence from 1 are required: they name the report")
	}
	for field, value := range map[string]string{"verifier": verifier, "boot": boot} {
		if err := checkLabel(field, value); err != nil {
			return nil, err
		}
	}
	var through time.Time
	if given := c.text("reported_through"); given != "" {
		var err error
		if through, err = reportTime("reported_through", given, now); err != nil {
			return nil, err
		}
	}
	// The keys are read before the report is noted, so that a failure of
	// storage leaves it to be sent again.
	entries, faults, lost, err := b.usageEntries(ctx, c, now)
	if err != nil {
		return nil, err
	}
	name := verifierName(c.caller(), verifier)
	switch {
	case lost:
		// Before the report is noted, so that use is at no moment taken for known.
		through = time.Time{}
		c.keeper.Book.Reports.Lost(name, now)
		c.warn("reported_through counts for nothing, because accepted uses in this report cannot be counted, see errors: no version that this verifier may have seen counts as drained before its quiet time has passed anew")
	case through.IsZero():
		c.warn("reported_through is absent: while it is, no version that this verifier may have seen counts as drained")
	}
	count := func() {
		for _, e := range entries {
			if e.key.Deleted.IsZero() {
				c.keeper.Usage.Add(e.lastUsed, e.key.ID, e.version.Number, e.source, usage.Uses{Accepted: e.count, Refused: e.refused, Stale: e.stale()})
			}
		}
	}
	counted := c.keeper.Book.Reports.Accept(name, boot, uint64(c.number("sequence")), through, now, count) //nolint:gosec // it is at least 1
	if counted {
		for _, e := range entries {
			if e.count > 0 {
				c.watch.usedFirst(e.key, e.version.Number)
			}
			if code := e.ended(); code != "" {
				b.metrics.Reported(e.key.Role, code, e.refused)
				c.watch.refusedEnded(now, e.lastUsed, e.key, &e.version, code, e.source)
			}
		}
	}
	// Also a report that comes again: it may do so because this failed. Who
	// reports would not tell again what is answered, so that a crash would hide
	// the source.
	if err := c.keeper.Book.Insist(ctx, firstsOf(c.keeper.Usage, entries)...); err != nil {
		return nil, fmt.Errorf("what the report says was counted and could not be stored, send it again: %w", err)
	}
	answer := map[string]any{"counted": 0, "duplicate": !counted, "errors": faults}
	if counted {
		answer["counted"] = len(entries)
	}
	return &logical.Response{Data: answer}, nil
}

// firstsOf are those entries of which storage may not know yet.
func firstsOf(t *usage.Tracker, entries []usageEntry) []*usage.First {
	var firsts []*usage.First
	for _, e := range entries {
		if e.count == 0 || e.key.Leased() {
			continue
		}
		if first := t.First(e.lastUsed, e.key.ID, e.version.Number, e.source); first != nil {
			firsts = append(firsts, first)
		}
	}
	return firsts
}

type usageEntry struct {
	key            *keyring.Key
	version        keyring.Version
	source         string
	count, refused uint64
	lastUsed       time.Time
}

// ended is the code with which verify refuses the version because it has ended,
// where there were refused uses and the last use came after the end: which of
// them did is not reported. Else it is empty.
func (e *usageEntry) ended() record.Code {
	end := e.version.EndedAt(e.lastUsed)
	if e.refused == 0 || end.IsZero() || e.lastUsed.Before(end) {
		return ""
	}
	code := e.key.Verify(e.lastUsed, keyring.Limits{}, record.Query{Digest: e.version.Digest}).Code
	if !hasEnded(code) {
		return ""
	}
	return code
}

// stale are the refused uses of clients that an end has left behind.
func (e *usageEntry) stale() uint64 {
	if isStale(e.ended()) {
		return e.refused
	}
	return 0
}

// usageEntries are the entries of a report that can be counted. Lost tells that
// one of the others may tell of accepted uses.
func (b *Backend) usageEntries(ctx context.Context, c *call, now time.Time) (entries []usageEntry, faults []any, lost bool, err error) {
	faults = []any{}
	for i, item := range c.items("entries") {
		entry, err := b.usageEntry(ctx, c, item, now)
		if err != nil {
			resp, err := respond(err)
			if err != nil {
				return nil, nil, false, err
			}
			faults = append(faults, map[string]any{"index": i, "error": resp.Data["error"]})
			lost = lost || entry.count > 0
			continue
		}
		entries = append(entries, entry)
	}
	return entries, faults, lost, nil
}

// usageEntry reads an entry of a report. Where it cannot be counted, there is
// an error, and a count where accepted uses may be lost by that.
func (b *Backend) usageEntry(ctx context.Context, c *call, item any, now time.Time) (usageEntry, error) {
	told := usageEntry{count: 1} // nobody knows how many
	raw, ok := item.(map[string]any)
	if !ok {
		return told, badInput("entries must hold maps, got %s", kindName(item))
	}
	schema := usageEntryFields()
	in, err := decodeFields(schema, raw, true)
	if err != nil {
		return told, err
	}
	one := &call{engine: c.engine, req: c.req, in: &framework.FieldData{Raw: in.values, Schema: schema}}
	id, source := one.text(fieldKeyID), one.text(fieldSource)
	count, refused := one.number("count"), one.number("refused")
	if count == 0 {
		told.count = 0
	}
	switch {
	case !token.ValidID(id):
		return told, badInput("key_id must be %d letters and digits", token.IDLength)
	case count < 0 || count > maxReported || refused < 0 || refused > maxReported:
		return told, badInput("count and refused must be between 0 and %d", maxReported)
	}
	if err := checkLabel(fieldSource, source); err != nil {
		return told, err
	}
	lastUsed, err := reportTime("last_used", one.text("last_used"), now)
	if err != nil {
		return told, err
	}
	k := c.store.CachedKey(id)
	if k == nil {
		k, err = b.readID(ctx, c, id)
	}
	switch {
	case errors.Is(err, store.ErrDamaged):
		c.keeper.Logger.Warn("the use of a key is counted as it is reported: what is stored of the key is damaged", "key_id", id, "error", err)
		k = damagedKey(id, one.number(fieldVersion), now)
	case err != nil:
		return usageEntry{}, err
	case k != nil && !k.Deleted.IsZero() && refused > 0:
		// That a compromised version is still tried is told; nothing is counted.
		count = 0
	case k == nil || !k.Deleted.IsZero():
		return usageEntry{}, badInput("key_id: there is no such key")
	}
	version, ok := k.Version(one.number(fieldVersion))
	if !ok || version.Number < 1 {
		return usageEntry{}, badInput("version: the key has no version %d", one.number(fieldVersion))
	}
	return usageEntry{
		key: k, version: version, source: usage.SourceName(c.caller(), source),
		count: uint64(count), refused: uint64(refused), lastUsed: lastUsed,
	}, nil
}

// damagedKey stands in for a key whose entry in storage cannot be read. A version
// with this number may be in use: where that were not counted, it would look
// unused once the entry is mended. Of such a version no end is known, and its
// first use is nothing that could be told.
func damagedKey(id string, number int, now time.Time) *keyring.Key {
	return &keyring.Key{ID: id, Versions: []keyring.Version{{Number: number, FirstUsedTime: now}}}
}

// reportTime reads a time of a verifier: now where it is absent, and never
// after now.
func reportTime(field, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return now, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, badInput("%s must be a time as in RFC 3339", field)
	}
	if t.Sub(now) > maxSkew {
		return time.Time{}, badInput("%s lies more than %s in the future: check the verifier's clock", field, maxSkew)
	}
	if t.After(now) {
		t = now
	}
	return t.UTC(), nil
}
