// SPDX-License-Identifier: MPL-2.0

// Package jsonkeep reads and writes stored JSON objects without losing the
// fields that this version of the code does not know.
//
// A newer minor version may add fields to an entry. When an older binary runs
// again after a downgrade, it must carry those fields through a
// read-change-write, or the next upgrade finds them gone.
package jsonkeep

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// Extra holds the fields of an object that its Go type does not declare, as
// they were read.
type Extra map[string]json.RawMessage

// Unmarshal decodes the object data into v, a pointer to a struct without
// UnmarshalJSON of its own, and returns the fields that v does not declare.
// It returns nil where there are none. The names are compared exactly.
func Unmarshal(data []byte, v any) (Extra, error) {
	if err := json.Unmarshal(data, v); err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	known := fieldNames(reflect.TypeOf(v).Elem())
	var extra Extra
	for name, raw := range all {
		if known[name] {
			continue
		}
		if extra == nil {
			extra = Extra{}
		}
		extra[name] = raw
	}
	return extra, nil
}

// Marshal encodes v, a struct without MarshalJSON of its own, as an object
// that also holds extra. A field that v declares wins over one in extra.
func Marshal(v any, extra Extra) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil || len(extra) == 0 {
		return data, err
	}
	known := fieldNames(reflect.TypeOf(v))
	rest := make(Extra, len(extra))
	for name, raw := range extra {
		if !known[name] {
			rest[name] = raw
		}
	}
	if len(rest) == 0 {
		return data, nil
	}
	tail, err := json.Marshal(rest)
	if err != nil {
		return nil, fmt.Errorf("encode kept fields: %w", err)
	}
	if len(data) == len("{}") {
		return tail, nil
	}
	joined := append(data[:len(data)-1:len(data)-1], ',')
	return append(joined, tail[1:]...), nil
}

// CheckSchema refuses a stored object whose schema is not from 1 to newest. It
// is asked first: an object of a newer schema may hold anything else.
func CheckSchema(data []byte, newest int) error {
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	if head.Schema < 1 || head.Schema > newest {
		return fmt.Errorf("schema %d is not one that this plugin reads (1 to %d): run the newer plugin that wrote it", head.Schema, newest)
	}
	return nil
}

var nameCache sync.Map // reflect.Type -> map[string]bool

// fieldNames returns the JSON names of the fields of the struct type t,
// those of embedded structs included.
func fieldNames(t reflect.Type) map[string]bool {
	if cached, ok := nameCache.Load(t); ok {
		if names, ok := cached.(map[string]bool); ok {
			return names
		}
	}
	names := map[string]bool{}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch name {
		case "-":
			continue
		case "":
			name = f.Name
		}
		names[name] = true
	}
	nameCache.Store(t, names)
	return names
}
