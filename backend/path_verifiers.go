// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/feed"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

const (
	verifiersPattern = "verifiers/?"
	verifierPattern  = "verifiers/(?P<id>.+)"

	fieldID = "id"

	// maxNamed is how many verifiers a warning names.
	maxNamed = 5
)

func (b *Backend) pathVerifiers() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      verifiersPattern,
			DisplayAttrs: display("verifiers"),
			Fields:       pageFields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.forwarded(b.listVerifiers, "List the verifiers that ask what has changed.", "list", listAnswer("Ids of verifiers.")),
			},
			HelpSynopsis: "List the verifiers that ask what has changed.",
			HelpDescription: `Those that have asked at "sync" under a name in the last day, since the plugin
started. The id is the name; where several callers use the same one, each has a
part of its own after a ~.`,
		},
		{
			Pattern:      verifierPattern,
			DisplayAttrs: display("verifier"),
			Fields:       fields{fieldID: textField("Id of the verifier, as the list shows it.")},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.forwarded(b.readVerifier, "Read how far a verifier has followed.", "read", answers("The verifier.", fields{
					fieldID:            always(textField("Id of the verifier; it stays the same whoever else uses the name.")),
					fieldVerifier:      always(textField("What it calls itself.")),
					"caller":           always(textField("The entity that it asks as; of a token without one, a text that is always the same for it.")),
					"live":             always(boolField("Whether it has asked within the last minute.")),
					"last_seen_time":   always(timeField("When it last asked.")),
					fieldBoot:          always(textField("Its present start; empty where it does not say.")),
					fieldEpoch:         always(textField("The epoch up to which it has what changed; empty where it has only begun.")),
					fieldSeq:           always(int64Field("The number within that.")),
					"behind":           always(int64Field("How many changes it has still to ask for; -1 where that is not known.")),
					"reported_through": timeField("Up to when it has reported all use. Absent where it never has."),
					fieldSkew:          always(&framework.FieldSchema{Type: framework.TypeFloat, Description: "By how many seconds its wall clock is ahead of Vault's, as it says."}),
				})),
			},
			HelpSynopsis:    "Read how far a verifier has followed.",
			HelpDescription: "When it last asked, which changes it has, up to when it has reported use, and how far its clock is off.",
		},
	}
}

func (b *Backend) listVerifiers(_ context.Context, c *call) (*logical.Response, error) {
	all := c.verifiers.All()
	shared := map[string]int{}
	for _, v := range all {
		shared[v.Name]++
	}
	ids := make([]string, 0, len(all))
	for _, v := range all {
		if shared[v.Name] == 1 {
			ids = append(ids, v.Name)
		} else {
			ids = append(ids, verifierID(v))
		}
	}
	slices.Sort(ids)
	ids, err := c.page(ids)
	if err != nil {
		return nil, err
	}
	return logical.ListResponse(ids), nil
}

// verifierID names a verifier apart from those of other callers.
func verifierID(v feed.Verifier) string {
	const length = 4 // bytes
	sum := sha256.Sum256([]byte(v.Caller))
	return v.Name + "~" + hex.EncodeToString(sum[:length])
}

var verifierIDShape = regexp.MustCompile(`^[A-Za-z0-9_.:/-]{1,128}(~[0-9a-f]{8})?$`)

// checkVerifierID checks what a URL names a verifier by.
func checkVerifierID(id string) error {
	if !verifierIDShape.MatchString(id) {
		return badInput("id must be the name of a verifier, 1 to 128 of A-Z a-z 0-9 _ . : / -, and may end in ~ and 8 hexadecimal digits")
	}
	return nil
}

func (b *Backend) readVerifier(_ context.Context, c *call) (*logical.Response, error) {
	id := c.text(fieldID)
	var found []feed.Verifier
	for _, v := range c.verifiers.All() {
		if v.Name == id || verifierID(v) == id {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return nil, missing("no verifier %q has asked since the plugin started, or in the last day", id)
	case 1:
	default:
		return nil, badInput("id: several callers use this name, see LIST verifiers: %s", verifierID(found[0]))
	}
	v := found[0]
	now := c.store.Feed().Position()
	behind := int64(-1)
	if v.Synced.Epoch == now.Epoch && v.Synced.Seq <= now.Seq {
		behind = int64(now.Seq - v.Synced.Seq) //nolint:gosec // both are numbers of changes, which fit
	}
	data := map[string]any{
		fieldID: verifierID(v), fieldVerifier: v.Name, "caller": usage.DisplayCaller(v.Caller), "live": v.Live, "last_seen_time": stamp(v.LastSeen),
		fieldBoot: v.Boot, fieldEpoch: v.Synced.Epoch, fieldSeq: v.Synced.Seq, "behind": behind, fieldSkew: v.Skew.Seconds(),
	}
	if reported, known := c.keeper.Book.Reports.Verifier(verifierName(v.Caller, v.Name)); known {
		putTime(data, "reported_through", reported.ReportedThrough)
	}
	return &logical.Response{Data: data}, nil
}

// warnOfPromotion warns where verifiers that are alive may not know the
// pending version yet, before it is promoted.
func (c *call) warnOfPromotion(k *keyring.Key) {
	pending, ok := k.Pending()
	if !ok {
		return
	}
	behind, live := c.verifiers.Behind(c.store.Feed().LastOf(k.ID))
	if len(behind) == 0 {
		return
	}
	names := make([]string, 0, maxNamed)
	for _, v := range behind[:min(len(behind), maxNamed)] {
		names = append(names, v.Name)
	}
	more := ""
	if n := len(behind) - len(names); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	c.warn(fmt.Sprintf("%d of %d verifiers that were heard from in the last %s had not followed the changes up to version %d when it was promoted: %s%s. "+
		"They ask Vault about it when they meet it; without Vault they answer that they do not know",
		len(behind), live, feed.LiveTime/time.Minute*time.Minute, pending.Number, strings.Join(names, ", "), more))
}
