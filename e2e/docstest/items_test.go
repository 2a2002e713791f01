// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocsVerifyCodesAreThoseOfTheCode compares the table of codes, and its
// order, with what the engine declares.
func TestDocsVerifyCodesAreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	var declared []string
	for _, p := range paths(t) {
		if p.Pattern != "^verify$" && p.Pattern != "verify" {
			continue
		}
		for _, op := range p.Operations {
			declared = regexp.MustCompile(`[A-Z][A-Z_]{3,}`).FindAllString(op.Properties().Responses[200][0].Fields["code"].Description, -1)
		}
	}
	if len(declared) < 2 || declared[0] != "VALID" {
		t.Fatalf("verify declares the codes %v", declared)
	}
	declared = append(declared[1:], "VALID") // named first, decided last
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| (?:yes|no) ").FindAllStringSubmatch(readFile(t, repoRoot(t), referencePage), -1) {
		listed = append(listed, m[1])
	}
	if !slices.Equal(declared, listed) {
		t.Errorf("%s lists the codes\n%v, the engine has\n%v", referencePage, listed, declared)
	}
}

// TestDocsReferenceNamesWhatListsHold drives a key through its verbs and finds
// every field and type that then stands in versions and transitions, which no
// schema declares, in the reference.
func TestDocsReferenceNamesWhatListsHold(t *testing.T) {
	t.Parallel()
	_, page, ok := strings.Cut(readFile(t, repoRoot(t), referencePage), "\n## Items of lists\n")
	if !ok {
		t.Fatalf("%s has no items of lists", referencePage)
	}
	page, _, _ = strings.Cut(page, "\n## ")
	events := readFile(t, repoRoot(t), eventsPage)
	srv, write := engineAt(t)
	seen := map[string]bool{}
	look := func() {
		t.Helper()
		for path, list := range map[string]string{"keys/acme": "versions", "history/acme": "transitions"} {
			secret, err := srv.Client.Logical().ReadWithContext(t.Context(), "apikeys/"+path)
			if err != nil || secret == nil {
				t.Fatalf("read %s: %v, %v", path, secret, err)
			}
			items, ok := secret.Data[list].([]any)
			if !ok || len(items) == 0 {
				t.Fatalf("%s has no %s: %v", path, list, secret.Data)
			}
			for _, item := range items {
				fields, ok := item.(map[string]any)
				if !ok {
					t.Fatalf("%s of %s holds a %T", list, path, item)
				}
				for name := range fields {
					seen[name] = true
				}
				if kind, ok := fields["type"].(string); ok {
					seen[kind] = true
				}
			}
		}
	}
	lists := func(path string, names ...string) {
		t.Helper()
		secret, err := srv.Client.Logical().ReadWithContext(t.Context(), "apikeys/"+path)
		if err != nil || secret == nil {
			t.Fatalf("read %s: %v, %v", path, secret, err)
		}
		for _, list := range names {
			items, ok := secret.Data[list].([]any)
			if !ok || len(items) == 0 {
				t.Fatalf("%s has no %s: %v", path, list, secret.Data)
			}
			for _, item := range items {
				fields, ok := item.(map[string]any)
				if !ok {
					t.Fatalf("%s of %s holds a %T", list, path, item)
				}
				for name := range fields {
					seen[name] = true
				}
			}
		}
	}
	write("webhooks/tickets", map[string]any{"url": "http://127.0.0.1:1/", "allow_private": true})
	write("webhooks/tickets/test", nil)
	lists("webhooks/tickets", "deliveries")
	write("roles/partner", map[string]any{"overlap_period": "1h", "version_ttl": "48h"})
	key := write("keys/acme", map[string]any{"role": "partner"})["api_key"]
	write("verify", map[string]any{"api_key": key})
	write("rotate/acme", map[string]any{"reason": "test", "activation_delay": "1h"})
	look()
	write("promote/acme", nil)
	write("verify", map[string]any{"api_key": key, "source": "eu-west"})
	write("confirm/acme", map[string]any{"instance": "host-1", "version": 1})
	lists("rollovers/acme", "sources", "instances", "laggards")
	write("extend/acme", map[string]any{"overlap_period": "2h"})
	look()
	write("retire/acme", map[string]any{"force": true})
	look()
	write("rollback/acme", nil)
	write("keys/acme", map[string]any{"custom_metadata": map[string]any{"a": "b"}})
	look()
	write("revoke/acme", map[string]any{"version": 2})
	write("revoke/acme", map[string]any{"version": 2, "compromised": true})
	look()
	for name := range seen {
		if !strings.Contains(page, "`"+name+"`") && !strings.Contains(events, "`"+name+"`") {
			t.Errorf("%s does not tell of %q in its items of lists", referencePage, name)
		}
	}
	versions, _, _ := strings.Cut(page, "`transitions` of")
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)`(?:, `([a-z_]+)`)? \\|").FindAllStringSubmatch(versions, -1) {
		for _, name := range m[1:] {
			if name != "" && !seen[name] {
				t.Errorf("%s tells of the field %q of a version, which none had", referencePage, name)
			}
		}
	}
}
