// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"maps"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

// Pages, and the records of keys on them, keep the fields that this code does
// not know. Of one source of one version they do not: there are many.
type (
	pageFields    page
	keyPageFields keyPage
)

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (p page) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(pageFields(p), p.extra) }

// UnmarshalJSON reads a stored page and refuses one of a newer schema.
func (p *page) UnmarshalJSON(data []byte) (err error) {
	if err := jsonkeep.CheckSchema(data, pageSchema); err != nil {
		return err
	}
	p.extra, err = jsonkeep.Unmarshal(data, (*pageFields)(p))
	return err
}

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (k keyPage) MarshalJSON() ([]byte, error) {
	return jsonkeep.Marshal(keyPageFields(k), k.extra)
}

// UnmarshalJSON reads the stored record of a key.
func (k *keyPage) UnmarshalJSON(data []byte) (err error) {
	if k.extra, err = jsonkeep.Unmarshal(data, (*keyPageFields)(k)); err != nil {
		return err
	}
	for _, sources := range k.Versions {
		maps.DeleteFunc(sources, func(_ string, s *sourcePage) bool { return s == nil })
	}
	if len(k.Totals) == 0 {
		k.Totals = k.sum()
	}
	return nil
}
