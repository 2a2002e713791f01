// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"bytes"
	"encoding/json"
)

// members calls f with each member of a JSON object: its name, and its value as it
// stands there. It looks into a value only to find its end, which takes a small
// part of the time of decoding it: what is wrong inside is found by who decodes it.
func members(data []byte, f func(name string, value []byte) error) error {
	i := space(data, 0)
	if i == len(data) || data[i] != '{' {
		return errDamaged
	}
	i = space(data, i+1)
	for first := true; i < len(data) && data[i] != '}'; first = false {
		if !first {
			if data[i] != ',' {
				return errDamaged
			}
			i = space(data, i+1)
		}
		end := stringEnd(data, i)
		if end < 0 {
			return errDamaged
		}
		name, ok := unquote(data[i:end])
		i = space(data, end)
		if !ok || i == len(data) || data[i] != ':' {
			return errDamaged
		}
		i = space(data, i+1)
		if end = valueEnd(data, i); end < 0 {
			return errDamaged
		}
		if err := f(name, data[i:end:end]); err != nil {
			return err
		}
		i = space(data, end)
	}
	if i == len(data) || space(data, i+1) != len(data) {
		return errDamaged
	}
	return nil
}

// space returns where what begins at i is no space any more.
func space(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\t' || data[i] == '\r') {
		i++
	}
	return i
}

// unquote returns the text of a JSON string.
func unquote(quoted []byte) (text string, ok bool) {
	for _, c := range quoted {
		if c < ' ' || c > '~' || c == '\\' {
			err := json.Unmarshal(quoted, &text)
			return text, err == nil
		}
	}
	return string(quoted[1 : len(quoted)-1]), true
}

// stringEnd returns where the string that begins at i ends, -1 where there is none.
func stringEnd(data []byte, i int) int {
	if i >= len(data) || data[i] != '"' {
		return -1
	}
	for i++; ; i++ {
		n := bytes.IndexByte(data[i:], '"')
		if n < 0 {
			return -1
		}
		escaped := false
		for j := i + n - 1; j >= i && data[j] == '\\'; j-- {
			escaped = !escaped
		}
		if i += n; !escaped {
			return i + 1
		}
	}
}

// valueEnd returns where the value that begins at i ends, -1 where there is none.
func valueEnd(data []byte, i int) int {
	begin := i
	for depth := 0; i < len(data); {
		switch data[i] {
		case '"':
			if i = stringEnd(data, i); i < 0 {
				return -1
			}
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']', ',', ' ', '\n', '\t', '\r':
			switch {
			case depth == 0 && i == begin:
				return -1
			case depth == 0:
				return i
			case data[i] == '}' || data[i] == ']':
				depth--
			}
			i++
		default:
			i++
			continue
		}
		if depth == 0 {
			return i
		}
	}
	return -1
}
