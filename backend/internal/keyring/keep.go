// SPDX-License-Identifier: MPL-2.0

package keyring

import "github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"

// The parts of a stored Key keep the fields that this code does not know, as
// the Key itself does.
type (
	leaseFields   Lease
	requestFields Request
	cleanupFields Cleanup
	eventFields   Event

	confirmationFields Confirmation
)

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (l Lease) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(leaseFields(l), l.extra) }

// UnmarshalJSON reads a stored lease.
func (l *Lease) UnmarshalJSON(data []byte) (err error) {
	l.extra, err = jsonkeep.Unmarshal(data, (*leaseFields)(l))
	return err
}

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (r Request) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(requestFields(r), r.extra) }

// UnmarshalJSON reads a stored request.
func (r *Request) UnmarshalJSON(data []byte) (err error) {
	r.extra, err = jsonkeep.Unmarshal(data, (*requestFields)(r))
	return err
}

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (c Cleanup) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(cleanupFields(c), c.extra) }

// UnmarshalJSON reads what a tombstone has still to remove.
func (c *Cleanup) UnmarshalJSON(data []byte) (err error) {
	c.extra, err = jsonkeep.Unmarshal(data, (*cleanupFields)(c))
	return err
}

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (c Confirmation) MarshalJSON() ([]byte, error) {
	return jsonkeep.Marshal(confirmationFields(c), c.extra)
}

// UnmarshalJSON reads a stored confirmation.
func (c *Confirmation) UnmarshalJSON(data []byte) (err error) {
	c.extra, err = jsonkeep.Unmarshal(data, (*confirmationFields)(c))
	return err
}

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (e Event) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(eventFields(e), e.extra) }

// UnmarshalJSON reads a stored event.
func (e *Event) UnmarshalJSON(data []byte) (err error) {
	e.extra, err = jsonkeep.Unmarshal(data, (*eventFields)(e))
	return err
}
