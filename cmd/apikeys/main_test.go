// SPDX-License-Identifier: MPL-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.hcl"), filepath.Join(dir, "bad.hcl")
	if err := os.WriteFile(good, []byte(`listener "http" { address = "127.0.0.1:9180" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, []byte("nonsense = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(dir, "taken.hcl")
	if err := os.WriteFile(taken, []byte(`listener "http" { address = "unix:`+dir+`/no/such/folder" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	certless := filepath.Join(dir, "certless.hcl")
	if err := os.WriteFile(certless, []byte(`listener "http" {
  address       = "127.0.0.1:9180"
  tls_cert_file = "`+dir+`/absent.pem"
  tls_key_file  = "`+bad+`"
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	pairless := filepath.Join(dir, "pairless.hcl")
	if err := os.WriteFile(pairless, []byte(`listener "http" {
  address       = "127.0.0.1:9180"
  tls_cert_file = "`+good+`"
  tls_key_file  = "`+bad+`"
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VAULT_TOKEN", "not-a-token")
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	for _, c := range []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"", 1, "", "Available commands"},
		{"-h", 0, "Available commands", ""},
		{"version", 0, "apikeys v", ""},
		{"-version", 0, "apikeys v", ""},
		{"version -h", 0, "Usage: apikeys version", ""},
		{"version x", 1, "", "Too many arguments (expected 0, got 1)"},
		{"nonsense", 1, "", "Available commands"},
		{"gateway -h", 0, "-validate", ""},
		{"gateway", 1, "", "Must specify at least one configuration file with -config"},
		{"gateway -nonsense", 1, "", "-nonsense"},
		{"gateway -config=" + good + " x", 1, "", "Too many arguments"},
		{"gateway -config=" + good + " -log-level=loud", 1, "", `-log-level must be debug, info, warn or error, got "loud"`},
		{"gateway -config=" + good + " -validate", 0, "Success! The configuration is valid.", ""},
		{"gateway -validate -config " + good, 0, "Success! The configuration is valid.", ""},
		{"gateway -config=" + bad + " -validate", 1, "", "bad.hcl:1"},
		{"gateway -config=" + certless + " -validate", 1, "", "absent.pem"},
		{"gateway -config=" + pairless + " -validate", 1, "", "read the certificate " + good},
		{"gateway -config=" + bad, 1, "", "bad.hcl:1"},
		{"gateway -config=" + dir + "/missing.hcl", 1, "", "missing.hcl"},
		{"gateway -config=" + taken, 2, "", `listener "http"`},
	} {
		var stdout, stderr strings.Builder
		code := run(strings.Fields(c.args), &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("apikeys %s: exit %d, want %d\nstdout: %s\nstderr: %s", c.args, code, c.code, &stdout, &stderr)
		}
	}
}
