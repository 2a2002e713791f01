// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func validHook(t *testing.T) *Hook {
	t.Helper()
	secret, err := NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := newHook("ops")
	h.URL = "https://hooks.example.com/in?token=t0ps3cret"
	h.SetSecret(secret, start, 0)
	return h
}

func TestURLsThatAreRefused(t *testing.T) {
	t.Parallel()
	for raw, private := range map[string]bool{
		"":                                true,
		"file:///etc/passwd":              true,
		"ftp://example.com/":              true,
		"gopher://example.com/":           true,
		"https:example.com":               true,
		"https:///path":                   true,
		"//example.com/":                  true,
		"example.com":                     true,
		"https://user:pw@example.com/":    true,
		"https://user@example.com/":       true,
		"https://example.com/#fragment":   true,
		"https://example.com/#":           true,
		"https://example.com:0/":          true,
		"https://example.com:/":           true,
		"https://example.com:65536/":      true,
		"https://example.com:http/":       true,
		"https://exa mple.com/":           true,
		"https://exämple.com/":            true,
		"https://example.com/\x00":        true,
		"https://example.com/\r\nX: y":    true,
		"https://-example.com/":           true,
		"https://example..com/":           true,
		"https://ex%61mple.com/":          true,
		"https://[fe80::1%25eth0]/":       true,
		"https://[::1/":                   true,
		"https://h.example/" + long(2048): true,
		// These are refused only where private addresses are.
		"http://example.com/":               false,
		"https://localhost/":                false,
		"https://LOCALHOST./":               false,
		"https://a.localhost:8443/":         false,
		"https://127.0.0.1/":                false,
		"https://10.1.2.3/":                 false,
		"https://169.254.169.254/latest":    false,
		"https://[::1]/":                    false,
		"https://[::ffff:10.0.0.1]/":        false,
		"https://[64:ff9b::a00:1]/":         false,
		"https://0.0.0.0/":                  false,
		"https://[fd00:ec2::254]/":          false,
		"https://[2002:a00:1::]/":           false,
		"https://100.100.100.200/meta-data": false,
	} {
		h := validHook(t)
		h.URL = raw
		err := h.Validate()
		if err == nil {
			t.Errorf("%.60q is accepted", raw)
			continue
		}
		if !strings.HasPrefix(err.Error(), "url") {
			t.Errorf("%.60q: the error does not name the field: %v", raw, err)
		}
		if len(raw) > 12 && strings.Contains(err.Error(), raw) {
			t.Errorf("%.60q: the error repeats it", raw)
		}
		h.AllowPrivate = true
		if err := h.Validate(); (err != nil) != private {
			t.Errorf("%.60q with allow_private: %v", raw, err)
		}
	}
}

func long(n int) string { return strings.Repeat("x", n) }

func TestURLsThatAreAccepted(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		"https://example.com", "https://example.com:8443/a/b?c=d&e=%20", "https://93.184.216.34/", "https://[2606:2800:220:1::1]:443/x",
		"HTTPS://Example.COM/", "https://xn--exmple-cua.com/", "https://example.com./x", "https://a_b.example.com/",
	} {
		h := validHook(t)
		h.URL = raw
		if err := h.Validate(); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func TestFieldsThatAreRefused(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*Hook){
		"name":          func(h *Hook) { h.Name = "../x" },
		"secret":        func(h *Hook) { h.Secrets = nil },
		"secret must b": func(h *Hook) { h.Secrets[0].Value = "sesame" },
		"deliver":       func(h *Hook) { h.Deliver = "pigeon" },
		"events must":   func(h *Hook) { h.Events = nil },
		`events: "key.`: func(h *Hook) { h.Events = []string{"key.exploded"} },
		`events: "*" s`: func(h *Hook) { h.Events = []string{"*", "*"} },
		"events: each":  func(h *Hook) { h.Events = []string{"key created"} },
		"roles":         func(h *Hook) { h.Roles = []string{""} },
		"keys":          func(h *Hook) { h.Keys = make([]string, 65) },
		"metadata":      func(h *Hook) { h.Metadata = map[string]string{"": "x"} },
	} {
		h := validHook(t)
		change(h)
		err := h.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	e := event("k1", 1)
	for name, test := range map[string]struct {
		change func(*Hook)
		wants  bool
	}{
		"all":                   {func(*Hook) {}, true},
		"its event":             {func(h *Hook) { h.Events = []string{"version.*"} }, true},
		"another event":         {func(h *Hook) { h.Events = []string{"key.*"} }, false},
		"its role":              {func(h *Hook) { h.Roles = []string{"other", "bill*"} }, true},
		"another role":          {func(h *Hook) { h.Roles = []string{"bill"} }, false},
		"its key by name":       {func(h *Hook) { h.Keys = []string{"name-of-*"} }, true},
		"its key by id":         {func(h *Hook) { h.Keys = []string{"k1"} }, true},
		"another key":           {func(h *Hook) { h.Keys = []string{"k2"} }, false},
		"its metadata":          {func(h *Hook) { h.Metadata = map[string]string{"team": "pay*"} }, true},
		"other metadata":        {func(h *Hook) { h.Metadata = map[string]string{"team": "ops"} }, false},
		"metadata it lacks":     {func(h *Hook) { h.Metadata = map[string]string{"region": "*"} }, false},
		"one filter of several": {func(h *Hook) { h.Roles, h.Keys = []string{"billing"}, []string{"k2"} }, false},
	} {
		h := newHook("ops")
		test.change(h)
		if h.Wants(e) != test.wants {
			t.Errorf("%s: %t", name, !test.wants)
		}
	}
	h := newHook("ops")
	h.Roles = []string{"*"}
	if h.Wants(Event{Type: "incident.opened"}) {
		t.Error("an event without a role passes a filter by role")
	}
}

func TestSecretsOverlap(t *testing.T) {
	t.Parallel()
	h := validHook(t)
	first := h.Secrets[0].Value
	second, err := NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signatures := func(now time.Time) int {
		s, err := h.sign("id", now, []byte("body"))
		if err != nil {
			t.Fatal(err)
		}
		return len(strings.Fields(s))
	}
	if n := signatures(start); n != 1 {
		t.Errorf("%d signatures at first", n)
	}
	h.SetSecret(second, start, time.Hour)
	h.SetSecret(second, start, time.Hour)
	if n := signatures(start.Add(time.Hour - 1)); n != 2 || h.Secrets[0].Value != second {
		t.Errorf("%d signatures inside the overlap", n)
	}
	if n := signatures(start.Add(time.Hour)); n != 1 {
		t.Errorf("%d signatures after the overlap", n)
	}
	third, err := NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h.SetSecret(third, start, time.Hour)
	if n := signatures(start); n != 3 {
		t.Errorf("%d signatures inside two overlaps", n)
	}
	h.SetSecret(first, start, 0)
	if n := signatures(start); n != 1 || h.Secrets[0].Value != first {
		t.Errorf("%d signatures after a change without overlap", n)
	}
	for range 5 {
		s, err := NewSecret(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		h.SetSecret(s, start, time.Hour)
	}
	if n := signatures(start); n != maxSecrets || h.Validate() != nil {
		t.Errorf("%d signatures after many changes, %v", n, h.Validate())
	}
}

func TestSecretsThatAreRefused(t *testing.T) {
	t.Parallel()
	encode := func(n int) string {
		return "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xA5}, n))
	}
	for _, n := range []int{24, 32, 64} {
		if raw, err := ParseSecret(encode(n)); err != nil || len(raw) != n {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, s := range []string{"", "whsec_", encode(23), encode(65), encode(32)[6:], "whsec_" + long(43), encode(25) + "=", "whsec_\n" + encode(32)[6:], "whsk_" + encode(32)[6:]} {
		_, err := ParseSecret(s)
		if err == nil {
			t.Errorf("%q is accepted", s)
		} else if len(s) > 20 && strings.Contains(err.Error(), s[7:20]) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func TestPrintedHooksHideSecrets(t *testing.T) {
	t.Parallel()
	h := validHook(t)
	h.ClaimKey = ClaimKey(long(32))
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		text := fmt.Sprintf(format, *h)
		if strings.Contains(text, h.Secrets[0].Value) || strings.Contains(text, long(32)) || strings.Contains(text, "0x78, 0x78") {
			t.Errorf("%s prints a secret: %s", format, text)
		}
	}
}

func TestStoredHooksKeepUnknownFields(t *testing.T) {
	t.Parallel()
	h := &Hook{}
	if err := json.Unmarshal([]byte(`{"schema":1,"name":"x","dropped":7,"colour":"green"}`), h); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(h)
	if err != nil || !strings.Contains(string(raw), `"colour":"green"`) || h.Dropped != 7 || !strings.Contains(string(raw), `"dropped":7`) {
		t.Errorf("%s, %v", raw, err)
	}
	if err := json.Unmarshal([]byte(`{"schema":2}`), &Hook{}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer schema: %v", err)
	}
}

func TestAddressesThatAreNotPublic(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255", "168.63.129.16", "169.254.169.254",
		"172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:a00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
		"64:ff9b:1::a00:1", "100::1", "2001::1", "2001:0:a00:1::", "2001:db8::1", "2002:7f00:1::", "2002:5db8:d822::1", "3fff::1", "fc00::1",
		"fd00:ec2::254", "fd20:ce::254", "fe80::1", "fec0::1", "ff02::1", "4000::1", "fe80::1%eth0", "2606:4700::1%eth0",
	} {
		if public(netip.MustParseAddr(text)) {
			t.Errorf("%s counts as public", text)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address counts as public")
	}
	for _, text := range []string{
		"1.1.1.1", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "169.253.1.1", "223.255.255.255",
		"::ffff:1.1.1.1", "64:ff9b::101:101", "2606:4700::1111", "2a00:1450::1",
	} {
		if !public(netip.MustParseAddr(text)) {
			t.Errorf("%s does not count as public", text)
		}
	}
}
