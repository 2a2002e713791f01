// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// Limits of what a request may hold. Vault itself refuses bodies over 32 MiB.
const (
	maxText  = 4096
	maxItems = 1000
)

var fieldShape = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// input is the body of a request after decodeFields: every value has the one
// Go type of its field, so that the SDK, which quotes values that it cannot
// decode in errors, logs and the audit, never meets such a value.
type input struct {
	values map[string]any
	// nulls are the fields that were null: PATCH sets them back to their
	// defaults.
	nulls []string
	// ignored are unknown fields, where the path ignores them.
	ignored []string
}

// decodeFields checks raw against a schema. Unknown fields are an error, or
// noted where lenient. No error holds a value.
func decodeFields(schema map[string]*framework.FieldSchema, raw map[string]any, lenient bool) (*input, error) {
	in := &input{values: make(map[string]any, len(raw))}
	for _, name := range sortedNames(raw) {
		field, known := schema[name]
		switch {
		case !known && lenient:
			in.ignored = append(in.ignored, safeFieldName(name))
		case !known:
			return nil, badInput("%s is not a field of this path; accepted: %s", safeFieldName(name), acceptedNames(schema))
		case raw[name] == nil:
			in.nulls = append(in.nulls, name)
		default:
			value, err := decodeValue(field.Type, raw[name])
			if err != nil {
				return nil, badInput("%s must be %s", name, err)
			}
			in.values[name] = value
		}
	}
	return in, nil
}

func acceptedNames(schema map[string]*framework.FieldSchema) string {
	if len(schema) == 0 {
		return "none"
	}
	return strings.Join(sortedNames(schema), ", ")
}

// safeFieldName returns the name of an unknown field if it looks like one: a
// secret may have been put where a name belongs.
func safeFieldName(name string) string {
	if fieldShape.MatchString(name) {
		return strconv.Quote(name)
	}
	return "a field (name withheld)"
}

// ignoredWarning tells which fields were ignored, up to ten of them.
func ignoredWarning(names []string) string {
	const most = 10
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	more := ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
	}
	return "ignored fields that this path does not have: " + strings.Join(names, ", ") + more
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// decodeValue returns v as the Go type of kind. Its error completes the
// sentence "<field> must be ...".
func decodeValue(kind framework.FieldType, v any) (any, error) {
	switch kind {
	case framework.TypeString:
		return decodeText(v)
	case framework.TypeBool:
		return decodeBool(v)
	case framework.TypeInt:
		return decodeInt(v)
	case framework.TypeInt64:
		return decodeLong(v)
	case framework.TypeDurationSecond:
		return decodeDuration(v)
	case framework.TypeCommaStringSlice:
		return decodeList(v)
	case framework.TypeCommaIntSlice:
		return decodeInts(v)
	case framework.TypeKVPairs:
		return decodePairs(v)
	case framework.TypeSlice:
		return decodeItems(v)
	default:
		return nil, fmt.Errorf("of a type that this path can read")
	}
}

func decodeText(v any) (any, error) {
	s, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("a text, got %s", kindName(v))
	}
	return s, nil
}

func decodeBool(v any) (any, error) {
	switch b := v.(type) {
	case bool:
		return b, nil
	case string:
		if parsed, err := strconv.ParseBool(b); err == nil {
			return parsed, nil
		}
	}
	return nil, fmt.Errorf("true or false, got %s", kindName(v))
}

func decodeInt(v any) (any, error) {
	return parseInt(v)
}

// decodeLong returns an int64.
func decodeLong(v any) (any, error) {
	n, err := decodeInt64(v)
	if text, ok := v.(string); ok {
		n, err = strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	}
	if err != nil {
		return nil, fmt.Errorf("a whole number, got %s", kindName(v))
	}
	return n, nil
}

func parseInt(v any) (int, error) {
	text := ""
	switch n := v.(type) {
	case json.Number:
		text = n.String()
	case string:
		text = strings.TrimSpace(n)
	case int:
		return n, nil
	case int64:
		return int(n), nil
	case float64:
		if n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return int(n), nil
		}
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("a whole number, got %s", kindName(v))
	}
	return int(n), nil
}

const durationRule = `a duration in whole seconds, such as "24h", "90s" or 3600, from 0 to 100 years`

// decodeDuration returns whole seconds as an int, as the SDK's duration
// fields hold them.
func decodeDuration(v any) (any, error) {
	fault := fmt.Errorf("%s, got %s that is none", durationRule, kindName(v))
	var seconds int64
	switch d := v.(type) {
	case string:
		parsed, err := parseDurationText(d)
		if err != nil {
			return nil, fault
		}
		seconds = parsed
	default:
		n, err := decodeInt64(v)
		if err != nil {
			return nil, fault
		}
		seconds = n
	}
	if seconds < 0 {
		return nil, fmt.Errorf("%s, got a negative one", durationRule)
	}
	if seconds > int64(role.MaxDuration/time.Second) {
		return nil, fmt.Errorf("%s, got a longer one", durationRule)
	}
	return int(seconds), nil
}

func decodeInt64(v any) (int64, error) {
	switch n := v.(type) {
	case json.Number:
		return strconv.ParseInt(n.String(), 10, 64)
	case int:
		return int64(n), nil
	case int64:
		return n, nil
	case float64:
		if n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return int64(n), nil
		}
	}
	return 0, fmt.Errorf("not a whole number")
}

func parseDurationText(s string) (int64, error) {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > 32 {
		return 0, fmt.Errorf("not a duration")
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	d, err := parseutil.ParseDurationSecond(s)
	if err != nil || d%time.Second != 0 {
		return 0, fmt.Errorf("not a duration in whole seconds")
	}
	return int64(d / time.Second), nil
}

// decodeList accepts a JSON list of texts, or, as the CLI sends it, one text
// with commas. The order is kept.
func decodeList(v any) (any, error) {
	list := []string{}
	switch l := v.(type) {
	case string:
		if strings.TrimSpace(l) == "" {
			return list, nil
		}
		for _, item := range strings.Split(l, ",") {
			list = append(list, strings.TrimSpace(item))
		}
	case []string:
		list = append(list, l...)
	case []any:
		for _, item := range l {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("a list of texts, got a list that holds %s", kindName(item))
			}
			list = append(list, s)
		}
	default:
		return nil, fmt.Errorf("a list of texts, got %s", kindName(v))
	}
	if len(list) > maxItems {
		return nil, fmt.Errorf("a list of at most %d texts, got %d", maxItems, len(list))
	}
	for _, item := range list {
		if item == "" || len(item) > maxText {
			return nil, fmt.Errorf("a list of texts of 1 to %d bytes", maxText)
		}
	}
	return list, nil
}

func decodeInts(v any) (any, error) {
	var items []any
	switch l := v.(type) {
	case []any:
		items = l
	case []int:
		return l, nil
	case string:
		if strings.TrimSpace(l) != "" {
			for _, item := range strings.Split(l, ",") {
				items = append(items, item)
			}
		}
	default:
		items = []any{v}
	}
	numbers := []int{}
	for _, item := range items {
		n, err := parseInt(item)
		if err != nil || len(numbers) >= maxItems {
			return nil, fmt.Errorf("a list of whole numbers, got %s", kindName(v))
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// decodePairs accepts a JSON map of texts, or, as the CLI sends it, name=value
// once or several times.
func decodePairs(v any) (any, error) {
	pairs := map[string]string{}
	add := func(item string) bool {
		name, value, ok := strings.Cut(item, "=")
		_, twice := pairs[name]
		pairs[name] = value
		return ok && name != "" && !twice
	}
	fault := fmt.Errorf("a map of texts, or name=value pairs, got %s", kindName(v))
	switch m := v.(type) {
	case map[string]string:
		return m, nil
	case map[string]any:
		for name, item := range m {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("a map of texts, got a map that holds %s", kindName(item))
			}
			pairs[name] = s
		}
	case string:
		if strings.TrimSpace(m) == "" {
			return pairs, nil
		}
		for _, item := range strings.Split(m, ",") {
			if !add(strings.TrimSpace(item)) {
				return nil, fault
			}
		}
	case []any:
		for _, item := range m {
			s, ok := item.(string)
			if !ok || !add(s) {
				return nil, fault
			}
		}
	default:
		return nil, fault
	}
	return pairs, nil
}

func decodeItems(v any) (any, error) {
	items, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("a list of maps, got %s", kindName(v))
	}
	if len(items) > maxItems {
		return nil, fmt.Errorf("a list of at most %d maps, got %d", maxItems, len(items))
	}
	return items, nil
}

// kindName names what v is, never its value.
func kindName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "a text"
	case bool:
		return "true or false"
	case json.Number, int, int64, float64:
		return "a number"
	case []any, []string, []int:
		return "a list"
	case map[string]any, map[string]string:
		return "a map"
	}
	return "something else"
}

var nameShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// checkName checks the name of a role or a key.
func checkName(field, name string) error {
	if !nameShape.MatchString(name) || strings.Contains(name, "..") {
		return badInput("%s must be 1 to 128 of A-Z a-z 0-9 _ . - beginning with a letter or digit, without two dots in a row", field)
	}
	return nil
}

var labelShape = regexp.MustCompile(`^[A-Za-z0-9_.:/-]{0,128}$`)

// checkLabel checks a short text that a caller chooses to name something.
func checkLabel(field, s string) error {
	if !labelShape.MatchString(s) {
		return badInput("%s must be at most 128 of A-Z a-z 0-9 _ . : / -", field)
	}
	return nil
}

// checkReason checks a text for people that is kept in a key's history.
func checkReason(s string) error {
	if len(s) > 256 {
		return badInput("reason must be at most 256 bytes, got %d", len(s))
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return badInput("reason must be one line of printable text")
		}
	}
	return nil
}
