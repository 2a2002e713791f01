// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"encoding/hex"
	"net/url"
	"path"
	"strings"
)

// readings are the ways in which servers may take the path of a request: all
// that come of the steps below and of decoding, in any order and any number. It
// tells false for a path that no server should be given, or that has too many
// readings. A plain path has one reading, and no allocation.
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
	if len(raw) > maxOddPath {
		return "", nil, false
	}
	if _, err := url.PathUnescape(raw); err != nil {
		return "", nil, false
	}
	all, ok := closure(raw)
	if !ok {
		return "", nil, false
	}
	return raw, all[1:], true
}

// What a path may come to. A stranger chooses it, so the work is bounded.
const (
	// maxOddPath bounds a path that is not plain, in bytes.
	maxOddPath = 8 << 10
	// maxDecodings is how often a path may be encoded upon itself.
	maxDecodings = 2
	maxReadings  = 64
	// maxReadingBytes bounds all readings of a path together.
	maxReadingBytes = 32 << 10
)

// steps are what servers do to a path beside decoding it.
var steps = []func(string) string{
	path.Clean, resolved, merged, slashed, withoutParameters, withoutQuery, withoutAuthority, asciiCase.Replace,
}

// asciiCase makes of the letters beyond ASCII whose other case lies in ASCII
// that one: the Kelvin sign, the long s and the dotted I.
var asciiCase = strings.NewReplacer("\u212a", "k", "\u017f", "s", "\u0130", "i")

// closure are raw and all that steps and decoding make of it, until they make
// nothing new. It tells false where that takes more than maxDecodings, comes to
// too much, or to a control character, which some drop and some take for an end.
func closure(raw string) (all []string, ok bool) {
	known := map[string]bool{}
	size := 0
	ok = true
	add := func(text string) {
		if !ok || known[text] {
			return
		}
		size += len(text)
		ok = len(all) < maxReadings && size <= maxReadingBytes && !strings.ContainsFunc(text, isControl)
		known[text] = true
		all = append(all, text)
	}
	add(raw)
	for begin, decodings := 0, 0; ok && begin < len(all); decodings++ {
		if decodings > maxDecodings {
			return nil, false
		}
		for i := begin; ok && i < len(all); i++ {
			for _, step := range steps {
				add(step(all[i]))
			}
		}
		level := all[begin:]
		begin = len(all)
		for _, text := range level {
			add(decode(text, true))
			add(decode(text, false))
		}
	}
	return all, ok
}

// decode replaces every escape that is one, as lenient readers do, or all but
// those of slashes: these then stay a part of their segment. So does a backslash
// until slashed.
func decode(text string, slashes bool) string {
	if !strings.Contains(text, "%") {
		return text
	}
	var b strings.Builder
	b.Grow(len(text))
	var c [1]byte
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			if _, err := hex.Decode(c[:], []byte(text[i+1:i+3])); err == nil && (slashes || c[0] != '/') {
				b.WriteByte(c[0])
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// resolved has dot segments removed as RFC 3986, section 5.2.4 does: unlike
// path.Clean it takes nothing between two slashes for a segment, which .. takes
// away.
func resolved(p string) string {
	segments := strings.Split(p[1:], "/")
	kept := segments[:0]
	for i, s := range segments {
		switch s {
		case ".":
		case "..":
			kept = kept[:max(len(kept)-1, 0)]
		default:
			kept = append(kept, s)
			continue
		}
		if i == len(segments)-1 {
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

// merged makes one slash of several.
func merged(p string) string {
	for strings.Contains(p, "//") {
		p = strings.ReplaceAll(p, "//", "/")
	}
	return p
}

// slashed takes backslashes for slashes.
func slashed(p string) string { return strings.ReplaceAll(p, `\`, "/") }

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

func isControl(r rune) bool { return r < ' ' }

// withoutQuery ends at a decoded ?, # or space: a proxy that hands a decoded path
// on makes a query, a fragment or the protocol of what follows.
func withoutQuery(p string) string {
	if end := strings.IndexAny(p, "?# "); end >= 0 {
		return p[:end]
	}
	return p
}

// withoutAuthority takes what follows two slashes or more for a host, as those
// do who resolve a path as a reference.
func withoutAuthority(p string) string {
	if !strings.HasPrefix(p, "//") {
		return p
	}
	_, rest, _ := strings.Cut(strings.TrimLeft(p, "/"), "/")
	return "/" + rest
}

// below tells whether p is prefix, or below it by whole segments, whatever the
// case of ASCII letters. A prefix is ASCII; one that ends in a slash holds only
// what is below it.
func below(p, prefix string) bool {
	n := len(prefix)
	if len(p) < n || len(p) > n && prefix[n-1] != '/' && p[n] != '/' {
		return false
	}
	return strings.EqualFold(p[:n], prefix)
}

// isPrefix tells whether a route may have p as its path: only what clients send
// as it is and all servers take alike.
func isPrefix(p string) bool {
	return isWord(p, maxOddPath, prefixMarks) && p[0] == '/' && p != "//" && (p == "/" || path.Clean(p) == strings.TrimSuffix(p, "/"))
}

// prefixMarks are what a route's path may have beside letters and digits: the
// pchar of RFC 3986 but escapes and semicolons, and slashes.
const prefixMarks = "-._~!$&'()*+,=:@/"
