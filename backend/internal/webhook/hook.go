// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	glob "github.com/ryanuber/go-glob"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

// Schema is the major version of the stored form of a Hook.
const Schema = 1

// What a hook delivers.
const (
	DeliverEvent = "event"
	DeliverClaim = "claim"
)

// Bounds of what a hook holds.
const (
	maxURL      = 2048
	maxGlobs    = 64
	maxGlob     = 128
	maxMetadata = 64
	maxValue    = 512
)

// Hook is one receiver and what it wants to be told, as stored. Treat the one
// that a Deliverer returns as immutable.
type Hook struct {
	Schema int    `json:"schema"`
	Name   string `json:"name"`
	URL    string `json:"url"`
	// Secrets begin with the current one.
	Secrets []Secret `json:"secrets,omitempty"`

	// Events, Roles and Keys are globs in which * stands for any text. Keys
	// match names and ids. No roles or keys means all. Metadata are globs that
	// the custom metadata of a key must all match.
	Events   []string          `json:"events,omitempty"`
	Roles    []string          `json:"roles,omitempty"`
	Keys     []string          `json:"keys,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`

	Deliver string `json:"deliver"`
	// AllowPrivate lets the URL be plain http and lead to any address.
	AllowPrivate bool `json:"allow_private,omitempty"`

	Enabled        bool      `json:"enabled"`
	DisabledReason string    `json:"disabled_reason,omitempty"`
	DisabledTime   time.Time `json:"disabled_time,omitzero"`
	// EnabledTime is when it was last enabled. Earlier attempts do not count.
	EnabledTime time.Time `json:"enabled_time,omitzero"`
	CreatedTime time.Time `json:"created_time,omitzero"`

	Health

	// ClaimKey makes the claim codes of this hook.
	ClaimKey ClaimKey `json:"claim_key,omitempty"`
	// Deleted marks a hook whose outbox is still being removed.
	Deleted bool `json:"deleted,omitempty"`

	extra jsonkeep.Extra
}

// Health is what became of deliveries.
type Health struct {
	// FailingSince is the first of the failures in a row up to now.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Exhausted counts events in a row that ran out of retries.
	Exhausted int `json:"exhausted,omitempty"`
	// Failed counts all events that did.
	Failed uint64 `json:"failed,omitempty"`
	// Dropped counts events that were not kept because the outbox was full.
	Dropped uint64 `json:"dropped,omitempty"`
}

// ClaimKey is a key of 256 bits.
type ClaimKey []byte

// String keeps the key out of whatever prints a hook.
func (ClaimKey) String() string { return "[secret]" }

// GoString keeps the key out of whatever prints a hook.
func (ClaimKey) GoString() string { return "[secret]" }

type hookFields Hook

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (h Hook) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(hookFields(h), h.extra) }

// UnmarshalJSON reads a stored hook and refuses one of a newer schema.
func (h *Hook) UnmarshalJSON(data []byte) error {
	if err := checkSchema(data, Schema); err != nil {
		return err
	}
	extra, err := jsonkeep.Unmarshal(data, (*hookFields)(h))
	if err != nil {
		return err
	}
	h.extra = extra
	return nil
}

// newHook is a hook with the defaults of a new one.
func newHook(name string) *Hook {
	return &Hook{Schema: Schema, Name: name, Events: []string{"*"}, Deliver: DeliverEvent, Enabled: true}
}

// clone returns a copy that shares nothing that a change could reach.
func (h *Hook) clone() *Hook {
	c := *h
	c.Secrets = slices.Clone(h.Secrets)
	c.Events, c.Roles, c.Keys = slices.Clone(h.Events), slices.Clone(h.Roles), slices.Clone(h.Keys)
	c.Metadata = maps.Clone(h.Metadata)
	return &c
}

// Refusal says why a hook or a secret is not accepted: the field, the fault
// and what is accepted, and neither a URL nor a secret.
type Refusal struct{ Text string }

func (r *Refusal) Error() string { return r.Text }

func refuse(format string, args ...any) error { return &Refusal{Text: fmt.Sprintf(format, args...)} }

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	hostForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?$`)
	globForm = regexp.MustCompile(`^[A-Za-z0-9_.:*-]{1,128}$`)
)

// Validate returns a Refusal if the hook cannot be accepted.
func (h *Hook) Validate() error {
	if !nameForm.MatchString(h.Name) {
		return refuse("name must be 1 to 128 of A-Z, a-z, 0-9, _, . and -, the first one a letter or a digit")
	}
	if err := checkURL(h.URL, h.AllowPrivate); err != nil {
		return err
	}
	if len(h.Secrets) == 0 || len(h.Secrets) > maxSecrets {
		return refuse("secret must be one, and at most %d that are superseded, got %d in all", maxSecrets-1, len(h.Secrets))
	}
	for _, s := range h.Secrets {
		if _, err := ParseSecret(s.Value); err != nil {
			return err
		}
	}
	if h.Deliver != DeliverEvent && h.Deliver != DeliverClaim {
		return refuse("deliver must be %s or %s", DeliverEvent, DeliverClaim)
	}
	if len(h.Events) == 0 {
		return refuse("events must name at least one event; * stands for all")
	}
	for field, globs := range map[string][]string{"events": h.Events, "roles": h.Roles, "keys": h.Keys} {
		if err := checkGlobs(field, globs); err != nil {
			return err
		}
	}
	for _, g := range h.Events {
		if !slices.ContainsFunc(Types, func(t string) bool { return glob.Glob(g, t) }) {
			return refuse("events: %q matches no event; there are %s", g, strings.Join(Types, ", "))
		}
	}
	return checkMetadata(h.Metadata)
}

func checkGlobs(field string, globs []string) error {
	if len(globs) > maxGlobs {
		return refuse("%s must be at most %d, got %d", field, maxGlobs, len(globs))
	}
	seen := map[string]bool{}
	for i, g := range globs {
		if !globForm.MatchString(g) {
			return refuse("%s: each must be 1 to %d of A-Z, a-z, 0-9, _, ., :, - and *, number %d is not", field, maxGlob, i+1)
		}
		if seen[g] {
			return refuse("%s: %q stands there twice", field, g)
		}
		seen[g] = true
	}
	return nil
}

func checkMetadata(metadata map[string]string) error {
	if len(metadata) > maxMetadata {
		return refuse("metadata must be at most %d pairs, got %d", maxMetadata, len(metadata))
	}
	for name, value := range metadata {
		if name == "" || len(name) > maxGlob || len(value) > maxValue {
			return refuse("metadata: names must have 1 to %d bytes and values at most %d", maxGlob, maxValue)
		}
	}
	return nil
}

// checkURL never repeats the URL: it may hold a token.
func checkURL(raw string, allowPrivate bool) error {
	if raw == "" || len(raw) > maxURL {
		return refuse("url must have 1 to %d bytes, got %d", maxURL, len(raw))
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return refuse("url must be printable ASCII without spaces; write other names in punycode")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return refuse("url must be an absolute https URL")
	}
	switch {
	case u.Scheme == "http" && !allowPrivate:
		return refuse("url must begin with https://; plain http takes allow_private")
	case u.Scheme != "https" && u.Scheme != "http":
		return refuse("url must begin with https://")
	case u.Opaque != "" || u.Hostname() == "":
		return refuse("url must name a host")
	case u.User != nil:
		return refuse("url must not hold credentials; receivers check the signature")
	case strings.Contains(raw, "#"):
		return refuse("url must not have a fragment")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return refuse("url: the port must be between 1 and 65535")
		}
	}
	return checkHost(u.Hostname(), allowPrivate)
}

func checkHost(host string, allowPrivate bool) error {
	ip, err := netip.ParseAddr(host)
	switch {
	case err == nil && ip.Zone() != "":
		return refuse("url: the address must not have a zone")
	case err == nil:
		if !allowPrivate && !public(ip) {
			return refuse("url must not lead to a private, local or reserved address without allow_private")
		}
		return nil
	case !hostForm.MatchString(host) || strings.Contains(host, ".."):
		return refuse("url: the host must be a DNS name or an address")
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if !allowPrivate && (name == "localhost" || strings.HasSuffix(name, ".localhost")) {
		return refuse("url must not lead to localhost without allow_private")
	}
	return nil
}

// Wants tells whether the filters of the hook let an event through.
func (h *Hook) Wants(e Event) bool {
	if !matches(h.Events, e.Type) {
		return false
	}
	if len(h.Roles) > 0 && !matches(h.Roles, e.Role) {
		return false
	}
	if len(h.Keys) > 0 && !matches(h.Keys, e.KeyName) && !matches(h.Keys, e.KeyID) {
		return false
	}
	for name, pattern := range h.Metadata {
		value, ok := e.Metadata[name]
		if !ok || !glob.Glob(pattern, value) {
			return false
		}
	}
	return true
}

// matches tells whether a glob fits text. No glob fits the empty text, which
// stands for a thing that an event does not have.
func matches(globs []string, text string) bool {
	return text != "" && slices.ContainsFunc(globs, func(g string) bool { return glob.Glob(g, text) })
}
