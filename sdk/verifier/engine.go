// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// Engine is what a verifier asks of the secrets engine. [Client] has a way to
// it through Vault; tests and other transports may have their own.
//
// What an Engine answers is not trusted: an answer that contradicts itself or
// an earlier one counts as none.
type Engine interface {
	Sync(ctx context.Context, r SyncRequest) (SyncAnswer, error)
	Lookup(ctx context.Context, r LookupRequest) (LookupAnswer, error)
	Report(ctx context.Context, r Report) (ReportAnswer, error)
}

// Client is what [OnVault] needs of a client of Vault whose paths lie below the
// mount of the engine. A *vaultclient.Client is one.
type Client interface {
	Read(ctx context.Context, path string, query url.Values, out any) error
	Write(ctx context.Context, path string, body, out any) error
}

// SyncRequest asks what has changed.
type SyncRequest struct {
	Verifier, Boot string
	// Epoch and Seq are those of the last good answer; an empty Epoch asks for
	// a reset.
	Epoch string
	Seq   uint64
	// Skew is how far the wall clock here is ahead of Vault's.
	Skew time.Duration
}

// SyncAnswer is the answer to it.
type SyncAnswer struct {
	Epoch string `json:"epoch"`
	Seq   uint64 `json:"seq"`
	// Now is Vault's clock, in milliseconds.
	Now time.Time `json:"now"`
	// Changed are the ids of keys that changed after the Seq of the request,
	// and Roles the roles whose limits did.
	Changed []string `json:"changed"`
	Roles   []string `json:"roles"`
	// Reset tells that everything must be revalidated.
	Reset bool `json:"reset"`
}

// LookupRequest asks for records, by id and digest, or, for a first fill, page
// by page: After is then the Next of the page before.
type LookupRequest struct {
	KeyIDs  []string       `json:"key_ids,omitempty"`
	Digests []token.Digest `json:"digests,omitempty"`
	After   string         `json:"after,omitempty"`
	Limit   int            `json:"limit,omitempty"`
}

// LookupAnswer is the answer to it.
type LookupAnswer struct {
	Epoch string `json:"epoch"`
	// Seq was read before the records were.
	Seq     uint64           `json:"seq"`
	Now     time.Time        `json:"now"`
	Records []*record.Record `json:"records"`
	// Missing are the ids and digests, as given, that belong to no key. What is
	// in neither list could not be looked up now.
	Missing []string `json:"missing"`
	Next    string   `json:"next"`
}

// Report is the use of keys. Verifier, Boot and Sequence name it: the engine
// counts a report that is sent again once.
type Report struct {
	Verifier string `json:"verifier"`
	Boot     string `json:"boot"`
	Sequence uint64 `json:"sequence"`
	// ReportedThrough is up to when nothing is missing from this report and
	// those before it. It is zero where that cannot be said.
	ReportedThrough time.Time `json:"reported_through,omitzero"`
	Entries         []Use     `json:"entries"`
}

// Use is the use of one version of a key at one source.
type Use struct {
	KeyID    string    `json:"key_id"`
	Version  int       `json:"version"`
	Source   string    `json:"source,omitempty"`
	Count    uint64    `json:"count"`
	Refused  uint64    `json:"refused,omitempty"`
	LastUsed time.Time `json:"last_used,omitzero"`
}

// ReportAnswer is the answer to a Report that was taken.
type ReportAnswer struct {
	// Errors are the entries that were not counted, for what is in them.
	Errors []EntryError `json:"errors"`
}

// EntryError is why an entry was not counted. Index is its place in the report.
type EntryError struct {
	Index int    `json:"index"`
	Error string `json:"error"`
}

// OnVault is the engine behind a client.
func OnVault(c Client) Engine { return onVault{c} }

type onVault struct{ client Client }

func (v onVault) Sync(ctx context.Context, r SyncRequest) (SyncAnswer, error) {
	query := url.Values{
		"verifier": {r.Verifier},
		"boot":     {r.Boot},
		"epoch":    {r.Epoch},
		"seq":      {strconv.FormatUint(r.Seq, 10)},
		"skew":     {strconv.FormatInt(r.Skew.Milliseconds(), 10)},
	}
	var answer SyncAnswer
	err := v.client.Read(ctx, "sync", query, &answer)
	return answer, err
}

func (v onVault) Lookup(ctx context.Context, r LookupRequest) (LookupAnswer, error) {
	var answer LookupAnswer
	err := v.client.Write(ctx, "lookup", r, &answer)
	return answer, err
}

func (v onVault) Report(ctx context.Context, r Report) (ReportAnswer, error) {
	var answer ReportAnswer
	err := v.client.Write(ctx, "usage", r, &answer)
	return answer, err
}
