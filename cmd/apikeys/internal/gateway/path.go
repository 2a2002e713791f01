// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"encoding/hex"
	"net/url"
	"path"
	"slices"
	"strings"
)

// readings are the ways in which servers may take the path of a request. They
// differ in whether they decode it once or twice, all of it or all but slashes,
// resolve dot segments, merge slashes, cut parameters off segments (;a=b), and
// take a backslash for a slash. It tells false for a path that no server should
// be given. A plain path has one reading, and no allocation.
func readings(raw string) (first string, more []string, ok bool) {
	if raw == "" || raw[0] != '/' {
		return "", nil, false
	}
	plain := true
	for i := range len(raw) {
		switch c := raw[i]; {
		case c <= ' ' || c == 0x7f || c == '#':
			return "", nil, false
		case c == '%' || c == ';' || c == '\\' || c >= 0x80:
			plain = false
		case c == '/' && i+1 < len(raw) && (raw[i+1] == '/' || raw[i+1] == '.'):
			plain = false
		}
	}
	if plain {
		return raw, nil, true
	}
	if _, err := url.PathUnescape(raw); err != nil {
		return "", nil, false
	}
	texts := []string{raw}
	for range maxDecodings {
		var decoded []string
		for _, text := range texts {
			more = append(more, variants(text)...)
			for _, next := range []string{decode(text, true), decode(text, false)} {
				if next != text && !slices.Contains(decoded, next) {
					decoded = append(decoded, next)
				}
			}
		}
		if len(decoded) == 0 {
			slices.Sort(more)
			return raw, slices.Compact(more), true
		}
		if slices.ContainsFunc(decoded, func(s string) bool { return strings.ContainsAny(s, "\x00\r\n") }) {
			return "", nil, false
		}
		texts = decoded
	}
	// Still more to decode.
	return "", nil, false
}

// maxDecodings is how often a path may be encoded upon itself, plus the last
// look that finds nothing more to decode.
const maxDecodings = 3

// decode replaces every escape that is one, as lenient readers do, or all but
// those of slashes: these then stay a part of their segment.
func decode(text string, slashes bool) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			c, err := hex.DecodeString(text[i+1 : i+3])
			if err == nil && (slashes || c[0] != '/' && c[0] != '\\') {
				b.Write(c)
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// variants are the readings of a path that is not decoded any further. A proxy
// that hands a decoded path on makes a query or a fragment of what follows a
// decoded ? or #.
func variants(text string) []string {
	var readings []string
	slashed := strings.ReplaceAll(text, `\`, "/")
	for _, p := range []string{text, slashed, withoutParameters(text), withoutParameters(slashed)} {
		readings = append(readings, p, merged(p), path.Clean(p))
	}
	if end := strings.IndexAny(text, "?#"); end >= 0 {
		readings = append(readings, variants(text[:end])...)
	}
	return readings
}

// merged makes one slash of several.
func merged(p string) string {
	for strings.Contains(p, "//") {
		p = strings.ReplaceAll(p, "//", "/")
	}
	return p
}

// withoutParameters cuts each segment off at its first semicolon.
func withoutParameters(p string) string {
	if !strings.Contains(p, ";") {
		return p
	}
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

// below tells whether p is prefix, or below it by whole segments. A prefix that
// ends in a slash holds only what is below it.
func below(p, prefix string) bool {
	if !strings.HasPrefix(p, prefix) {
		return false
	}
	return len(p) == len(prefix) || strings.HasSuffix(prefix, "/") || p[len(prefix)] == '/'
}
