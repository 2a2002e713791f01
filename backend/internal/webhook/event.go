// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

// Event is what happened, ready to be told. It holds no secret.
type Event struct {
	// ID is "<key_id>.<seq>", as EventID makes it, so that a repetition has
	// the same one. What stands before the full stop is the stream: the events
	// of one stream are delivered in order of Seq. An event that is of no key
	// has a stream of its own, such as the id of an incident.
	ID   string
	Type string
	Time time.Time

	KeyID, KeyName, Role string
	// Metadata is the custom metadata of the key.
	Metadata map[string]string
	Seq      uint64
	// Data is what the type adds to the data of the message.
	Data map[string]any
	// Claim, where set, has hooks that deliver claims add a code for this
	// version of the key.
	Claim *Offer
}

// Offer is a version that can be claimed.
type Offer struct {
	Version int `json:"version"`
	// Overlap bounds the life of the code where it is set and short.
	Overlap time.Duration `json:"overlap,omitempty"`
	// Sealed is the encrypted key where it is kept nowhere else. It goes with
	// the event to hooks that deliver claims and with the code to who redeems
	// it, and is not kept after that. This package never looks inside it.
	Sealed Sealed `json:"sealed,omitempty"`
}

// Sealed is an encrypted key.
type Sealed []byte

// String keeps it out of whatever prints an event.
func (Sealed) String() string { return "[sealed]" }

// GoString keeps it out of whatever prints an event.
func (Sealed) GoString() string { return "[sealed]" }

// Types are the events that a hook can ask for.
var Types = []string{
	"key.created", "key.updated", "key.deleted", "key.rolled_back",
	"version.created", "version.activated", "version.first_used", "version.retiring", "version.drained",
	"version.retired", "version.revoked", "version.compromised", "version.stale_use",
	"overlap.extended", "rotation.upcoming", "rotation.blocked",
	"rollover.reminder", "rollover.stalled", "rollover.at_risk", "rollover.failed", "rollover.completed",
	"anomaly.detected", "claim.redeemed", "claim.reused", "incident.opened", "incident.completed",
}

// typeTest is the type of the message that Test sends.
const typeTest = "webhook.test"

// ErrBadEvent says that an event cannot be stored, now or later.
var ErrBadEvent = errors.New("the event is not valid")

var (
	streamForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	typeForm   = regexp.MustCompile(`^[a-z_]+\.[a-z_]+$`)
)

// EventID is the id of the event number seq of a stream.
func EventID(stream string, seq uint64) string {
	return stream + "." + strconv.FormatUint(seq, 10)
}

// stream returns the stream of the event, or ErrBadEvent.
func (e *Event) stream() (string, error) {
	name, _, _ := strings.Cut(e.ID, ".")
	switch {
	case !streamForm.MatchString(name):
		return "", fmt.Errorf("%w: its id does not begin with the id of a key", ErrBadEvent)
	case e.ID != EventID(name, e.Seq):
		return "", fmt.Errorf("%w: its id does not end with its number", ErrBadEvent)
	case !typeForm.MatchString(e.Type):
		return "", fmt.Errorf("%w: its type is not of the form noun.verb", ErrBadEvent)
	}
	return name, nil
}

// messageID is the webhook-id of an event. The specification wants no full
// stop in it, because it delimits what is signed.
func messageID(eventID string) string { return strings.ReplaceAll(eventID, ".", "_") }

// position names an event in an outbox: 20 digits make the order of names
// that of numbers.
func position(stream string, seq uint64) string { return fmt.Sprintf("%s.%020d", stream, seq) }

func parsePosition(p string) (stream string, seq uint64, ok bool) {
	stream, digits, _ := strings.Cut(p, ".")
	seq, err := strconv.ParseUint(digits, 10, 64)
	return stream, seq, err == nil && len(digits) == 20 && streamForm.MatchString(stream)
}

const (
	entrySchema = 1
	// maxData bounds the data of a message, in bytes. The specification
	// recommends to stay below 20 KB.
	maxData = 64 << 10
)

// entry is an event in an outbox, with what is known of its attempts.
type entry struct {
	Schema int             `json:"schema"`
	ID     string          `json:"id"`
	Type   string          `json:"type"`
	Time   time.Time       `json:"time"`
	KeyID  string          `json:"key_id,omitempty"`
	Data   json.RawMessage `json:"data"`
	Claim  *Offer          `json:"claim,omitempty"`
	// Unfiltered tells that the hook could not be read when the event was
	// stored, so that its filters have still to be asked.
	Unfiltered bool `json:"unfiltered,omitempty"`

	Attempts int       `json:"attempts,omitempty"`
	Began    time.Time `json:"began,omitzero"`
	Tried    time.Time `json:"tried,omitzero"`
	Next     time.Time `json:"next,omitzero"`

	extra jsonkeep.Extra
}

type entryFields entry

// errNewer says that a newer plugin wrote an entry.
var errNewer = errors.New("run the newer plugin that wrote it")

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (e entry) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(entryFields(e), e.extra) }

// UnmarshalJSON reads a stored entry and refuses one of a newer schema.
func (e *entry) UnmarshalJSON(data []byte) error {
	if err := checkSchema(data, entrySchema); err != nil {
		return err
	}
	extra, err := jsonkeep.Unmarshal(data, (*entryFields)(e))
	if err != nil {
		return err
	}
	e.extra = extra
	return nil
}

func checkSchema(data []byte, known int) error {
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	if head.Schema < 1 || head.Schema > known {
		return fmt.Errorf("schema %d is not one that this plugin reads (1 to %d): %w", head.Schema, known, errNewer)
	}
	return nil
}

// newEntry is the first stored form of an event. Data that cannot be told, or
// is too long, is left out: the event itself must not be lost for it.
// sealed tells that the hook may deliver claims: others are not given the key,
// not even encrypted.
func newEntry(e *Event, unfiltered, sealed bool) ([]byte, error) {
	claim := e.Claim
	if claim != nil && len(claim.Sealed) > 0 && !sealed {
		claim = &Offer{Version: claim.Version, Overlap: claim.Overlap}
	}

	data := make(map[string]any, len(e.Data)+4)
	for name, value := range e.Data {
		data[name] = value
	}
	identify(data, e)
	raw, err := json.Marshal(data)
	if err != nil || len(raw) > maxData {
		data = map[string]any{"truncated": true}
		identify(data, e)
		if raw, err = json.Marshal(data); err != nil || len(raw) > maxData {
			raw = []byte(`{"truncated":true}`)
		}
	}
	return json.Marshal(entry{
		Schema: entrySchema, ID: e.ID, Type: e.Type, Time: e.Time.UTC().Truncate(time.Millisecond), KeyID: e.KeyID, Data: raw, Claim: claim,
		Unfiltered: unfiltered,
	})
}

// event is what the filters of a hook ask of an entry.
func (e *entry) event() Event {
	var of struct {
		Name     string            `json:"name"`
		Role     string            `json:"role"`
		Metadata map[string]string `json:"custom_metadata"`
	}
	_ = json.Unmarshal(e.Data, &of) // what is not there matches no filter
	return Event{ID: e.ID, Type: e.Type, KeyID: e.KeyID, KeyName: of.Name, Role: of.Role, Metadata: of.Metadata}
}

// identify adds what every message says of its key, over whatever else claims
// these names.
func identify(data map[string]any, e *Event) {
	for name, value := range map[string]string{"key_id": e.KeyID, "name": e.KeyName, "role": e.Role} {
		delete(data, name)
		if value != "" {
			data[name] = value
		}
	}
	delete(data, "custom_metadata")
	if len(e.Metadata) > 0 {
		data["custom_metadata"] = e.Metadata
	}
}

// message is the body of a request.
type message struct {
	Type      string          `json:"type"`
	Timestamp time.Time       `json:"timestamp"`
	Data      json.RawMessage `json:"data"`
}

// body is what is sent for an entry, with a claim code if there is one.
func (e *entry) body(code string, expires time.Time) ([]byte, error) {
	data := e.Data
	if code != "" {
		fields := map[string]json.RawMessage{}
		if err := json.Unmarshal(data, &fields); err != nil {
			return nil, err
		}
		for name, value := range map[string]any{"claim_code": code, "claim_expires": expires} {
			raw, err := json.Marshal(value)
			if err != nil {
				return nil, err
			}
			fields[name] = raw
		}
		raw, err := json.Marshal(fields)
		if err != nil {
			return nil, err
		}
		data = raw
	}
	return json.Marshal(message{Type: e.Type, Timestamp: e.Time, Data: data})
}
