// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
)

// Whatever stands in a file, a key of it can be sent in a header, and no error
// shows what stands there.
func FuzzParseFile(f *testing.F) {
	for _, seed := range []string{
		"", " ", "key_abc", "key_abc\n", "{", "{}", `{"api_key":"abc"}`, `{"api_key":"abc","version":3}`, `{"api_key":"a\nb"}`, `{"api_key":"\u0000"}`,
		`{"version":1e400,"api_key":"x"}`, "\ufeffkey", "a b", "a\x00b", `{"API_KEY":"abc"}`, `{"api_key":"abc","key_id":"a\nb"}`, strings.Repeat("x", 3000),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		key, err := parseFile(content)
		if err != nil {
			if !key.IsZero() {
				t.Error("an error and a key")
			}
			if text := strings.TrimSpace(string(content)); len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Errorf("the error shows the file: %v", err)
			}
			return
		}
		if key.IsZero() || key.Version() < 0 || !httpguts.ValidHeaderFieldValue(key.Reveal()) {
			t.Errorf("%q is not a key", key.Reveal())
		}
		header := http.Header{}
		Bearer(header, key.Reveal())
		if len(header) != 1 || strings.ContainsAny(key.ID(), " \n{") {
			t.Error("it spoils the header or the log")
		}
		encoded, err := json.Marshal(map[string]any{"api_key": key.Reveal(), "version": key.Version()})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseFile(encoded); err != nil || again.Version() != key.Version() {
			t.Errorf("what was read cannot be rendered as JSON: %v", err)
		}
	})
}
