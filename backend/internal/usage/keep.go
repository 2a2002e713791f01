// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"encoding/json"
	"maps"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

// Pages, and the records of keys on them, keep the fields that this code does not
// know. Of one source of one version they do not: there are many.

// keepField adds a field that this code does not know.
func keepField(extra *jsonkeep.Extra, name string, value []byte) error {
	if !json.Valid(value) {
		return errDamaged
	}
	if *extra == nil {
		*extra = jsonkeep.Extra{}
	}
	(*extra)[name] = value
	return nil
}

// decodeKey reads the stored record of a key.
func decodeKey(data []byte) (*keyPage, error) {
	k := &keyPage{}
	err := members(data, func(name string, value []byte) error {
		switch name {
		case "v":
			return json.Unmarshal(value, &k.Versions)
		case "t":
			return json.Unmarshal(value, &k.Totals)
		case "s":
			return json.Unmarshal(value, &k.Since)
		case "x":
			return json.Unmarshal(value, &k.Lost)
		}
		return keepField(&k.extra, name, value)
	})
	if err != nil {
		return nil, err
	}
	for _, sources := range k.Versions {
		maps.DeleteFunc(sources, func(_ string, s *sourcePage) bool { return s == nil })
	}
	if len(k.Totals) == 0 {
		k.Totals = k.sum()
	}
	k.begin()
	return k, nil
}

// encode returns what decodeKey reads.
func (k *keyPage) encode() ([]byte, error) { return jsonkeep.Marshal(*k, k.extra) }

// decodeUses reads of the stored record of a key only what an outline has.
func decodeUses(data []byte) (*keyPage, error) {
	var stored struct {
		Versions map[int]map[string]*struct {
			Count uint64 `json:"c"`
		} `json:"v"`
		Lost int `json:"x"`
	}
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, err
	}
	k := &keyPage{Lost: stored.Lost, Versions: map[int]map[string]*sourcePage{}}
	for number, sources := range stored.Versions {
		k.Versions[number] = map[string]*sourcePage{}
		for name, s := range sources {
			if s != nil {
				k.Versions[number][name] = &sourcePage{Count: s.Count}
			}
		}
	}
	return k, nil
}
