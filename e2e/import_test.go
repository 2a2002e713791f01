// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"testing"
)

// legacyToken is a token as somebody else's system made it.
func legacyToken() string {
	b := make([]byte, 20)
	_, _ = rand.Read(b)
	apiKey := "legacy-" + hex.EncodeToString(b)
	issued.add(apiKey, "a key that was imported")
	return apiKey
}

func digest(apiKey string) string {
	sum := sha256.Sum256([]byte(apiKey))
	return hex.EncodeToString(sum[:])
}

func TestImportedKeysGoOnWorkingAndRotate(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("partner", "overlap_period", "1h")
	plain, hashed := legacyToken(), legacyToken()
	m.rejects("MALFORMED", plain)
	if data := m.write("keys/plain", fields("role", "partner", "import_key", plain)); data["api_key"] != nil {
		t.Error("the answer to an import holds the key")
	}
	m.write("keys/hashed", fields("role", "partner", "import_sha256", digest(hashed)))
	if v := m.accepts(plain); v.Name != "plain" || v.Version != 1 || v.State != "active" {
		t.Errorf("plain: %+v", v)
	}
	m.accepts(hashed)
	if !m.info("plain").Imported || !m.info("hashed").Imported {
		t.Error("the keys do not read as imported")
	}
	m.rejects("NOT_FOUND", legacyToken())

	if m.read("static-creds/plain")["api_key"] != plain {
		t.Error("static-creds answers another key")
	}
	m.refuses(http.StatusNotFound, http.MethodGet, "static-creds/hashed", nil, "imported by its hash", "not stored")

	// The same token twice, under another name or its own.
	for _, body := range []map[string]any{
		fields("role", "partner", "import_key", plain), fields("role", "partner", "import_sha256", digest(plain)),
	} {
		m.refuses(http.StatusBadRequest, http.MethodPost, "keys/thief", body, "belongs to a key of this mount")
	}
	m.refuses(http.StatusNotFound, http.MethodGet, "keys/thief", nil)
	m.write("keys/plain", fields("role", "partner", "import_key", plain))
	m.refuses(http.StatusBadRequest, http.MethodPost, "keys/plain", fields("role", "partner", "import_key", legacyToken()), "was not made with this token")
	m.refuses(http.StatusBadRequest, http.MethodPost, "keys/ours", fields("role", "partner", "import_key", m.key("made", "partner")), "belongs to a key of this mount")

	// A rotation replaces what was imported, without a gap.
	for name, old := range map[string]string{"plain": plain, "hashed": hashed} {
		fresh := m.rotate(name)
		m.accepts(old)
		m.accepts(fresh)
		if m.read("static-creds/" + name)["api_key"] != fresh {
			t.Errorf("static-creds/%s answers another key", name)
		}
	}
	m.refuses(http.StatusBadRequest, http.MethodPost, "rollback/hashed", nil, "force=true")
	m.write("rollback/plain", nil)
	m.write("revoke/plain", fields("version", 1, "compromised", true, "rotate", true))
	m.must(http.MethodDelete, "keys/plain", nil)
	m.rejects("COMPROMISED", plain)
	m.refuses(http.StatusBadRequest, http.MethodPost, "keys/again", fields("role", "partner", "import_key", plain), "compromised")
}

func TestImportOfABatch(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("partner")
	const size = 1000
	tokens := make([]string, size)
	items := make([]any, size)
	for i := range items {
		tokens[i] = legacyToken()
		item := fields("name", fmt.Sprintf("client-%04d", i), "role", "partner")
		if i%2 == 0 {
			item["import_key"] = tokens[i]
		} else {
			item["import_sha256"] = digest(tokens[i])
		}
		items[i] = item
	}
	m.refuses(http.StatusBadRequest, http.MethodPost, "import", fields("batch_input", append(items, fields("name", "x"))), "batch_input", "at most 1000", "1001")
	if names := m.list("keys"); len(names) != 0 {
		t.Fatalf("a refused batch left %d keys", len(names))
	}

	first := m.write("import", fields("batch_input", items))
	if first["imported"] != float64(size) || first["failed"] != 0.0 {
		t.Fatalf("imported %v, failed %v", first["imported"], first["failed"])
	}
	queries := make([]any, size)
	for i := range queries {
		queries[i] = fields("api_key", tokens[i])
	}
	answers, _ := m.write("verify", fields("batch_input", queries))["batch_results"].([]any)
	if len(answers) != size {
		t.Fatalf("%d verdicts, want %d", len(answers), size)
	}
	for i, a := range answers {
		v, err := convert[verdict](a)
		if err != nil || !v.Valid || v.Name != fmt.Sprintf("client-%04d", i) {
			t.Fatalf("item %d: %+v, %v", i, v, err)
		}
	}

	// The same again changes nothing, and says the same.
	second := m.write("import", fields("batch_input", items))
	if fmt.Sprint(second) != fmt.Sprint(first) {
		t.Errorf("the same batch again: imported %v, failed %v", second["imported"], second["failed"])
	}
	got := slices.DeleteFunc(m.history("client-0000"), func(e transition) bool { return e.Type == "version.first_used" })
	if len(got) != 3 {
		t.Errorf("the history after a repeated import: %+v", got)
	}

	// LIST in pages, by either way of asking.
	page := m.cliJSON("read", m.path+"/keys", "list=true", "after=client-0100", "limit=5")
	if got := texts(page["keys"]); fmt.Sprint(got) != "[client-0101 client-0102 client-0103 client-0104 client-0105]" {
		t.Errorf("a page by the CLI: %v", got)
	}
	a := m.call(http.MethodGet, "keys?list=true&after=client-0997&limit=5", nil)
	if got := texts(a.data["keys"]); fmt.Sprint(got) != "[client-0998 client-0999]" {
		t.Errorf("the last page by HTTP: %v", got)
	}
}

func TestOneBadItemOfABatchErrsAlone(t *testing.T) {
	t.Parallel()
	m := onDev(t)
	m.role("partner", "scopes", []string{"orders:read"})
	good, taken := legacyToken(), legacyToken()
	m.write("keys/taken", fields("role", "partner", "import_key", taken))
	bad := []map[string]any{
		fields("name", "bad1", "role", "nobody", "import_key", legacyToken()),
		fields("name", "bad2", "role", "partner", "import_key", "short"),
		fields("name", "bad3", "role", "partner", "import_key", legacyToken()+"\n"),
		fields("name", "bad4", "role", "partner", "import_sha256", "abc"),
		fields("name", "bad5", "role", "partner", "import_key", taken),
		fields("name", "bad6", "role", "partner"),
		fields("name", "bad/7", "role", "partner", "import_key", legacyToken()),
		fields("name", "bad8", "role", "partner", "import_key", legacyToken(), "scopes", []string{"admin"}),
		fields("name", "bad9", "role", "partner", "import_key", legacyToken(), "colour", "red"),
		fields("name", "bad10", "role", "partner", "import_key", []string{legacyToken()}),
	}
	items := []any{fields("name", "good", "role", "partner", "import_key", good)}
	for _, item := range bad {
		items = append(items, item)
	}
	items = append(items, legacyToken())
	data := m.write("import", fields("batch_input", items))
	if data["imported"] != 1.0 || data["failed"] != float64(len(bad)+1) {
		t.Errorf("imported %v, failed %v", data["imported"], data["failed"])
	}
	results, _ := data["batch_results"].([]any)
	for i, result := range results {
		r, _ := result.(map[string]any)
		if text, _ := r["error"].(string); (text == "") != (i == 0) {
			t.Errorf("item %d: %v", i, r)
		}
	}
	m.accepts(good)
	if got := fmt.Sprint(m.list("keys")); got != "[good taken]" {
		t.Errorf("keys: %s", got)
	}
}
