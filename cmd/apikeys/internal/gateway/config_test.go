// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

const wholeConfig = `
vault {
  address   = "https://vault.example.com:8200"
  namespace = "team"
  mount     = "partners/apikeys"
  timeout   = 5
  auth "approle" {
    role_id_file   = "/etc/apikeys/role-id"
    secret_id_file = "/etc/apikeys/secret-id"
  }
}
verifier {
  name            = "edge-1"
  source          = "eu-west"
  cache_size      = 1000
  poll_interval   = "500ms"
  max_stale       = "5m"
  report_interval = "30"
  first_fill      = true
}
listener "http" {
  address     = "unix:/run/apikeys/gateway.sock"
  socket_mode = "0600"
}
listener "grpc" {
  address            = ":9181"
  tls_cert_file      = "cert.pem"
  tls_key_file       = "key.pem"
  tls_client_ca_file = "ca.pem"
  max_connections    = 7
}
listener "admin" {
  address = "systemd:admin"
}
drain_delay   = "1s"
drain_timeout = "1m"
decision_timeout = 2
trusted_proxies = []
key {
  headers = ["X-Token"]
}
route "any" {}
`

func TestLoadReadsAllOfIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	parts := strings.SplitAfter(wholeConfig, "first_fill      = true\n}\n")
	for i, name := range []string{"a.hcl", "b.hcl"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(parts[i]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := Static{
		Vault: Vault{
			Address: "https://vault.example.com:8200", Namespace: "team", Mount: "partners/apikeys", Timeout: 5 * time.Second,
			Auth: vaultclient.AppRole{RoleIDFile: "/etc/apikeys/role-id", SecretIDFile: "/etc/apikeys/secret-id"},
		},
		Verifier: Verifier{
			Name: "edge-1", Source: "eu-west", CacheSize: 1000, PollInterval: 500 * time.Millisecond, MaxStale: 5 * time.Minute,
			ReportInterval: 30 * time.Second, FirstFill: true,
		},
		Listeners: []Listener{
			{Type: "http", Address: "unix:/run/apikeys/gateway.sock", SocketMode: 0o600, MaxConnections: 10_000, MaxHeaderBytes: 64 << 10, ReadTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute},
			{Type: "grpc", Address: ":9181", CertFile: "cert.pem", KeyFile: "key.pem", ClientCA: "ca.pem", SocketMode: 0o660, MaxConnections: 7, MaxHeaderBytes: 64 << 10, ReadTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute},
			{Type: "admin", Address: "systemd:admin", SocketMode: 0o660, MaxConnections: 10_000, MaxHeaderBytes: 64 << 10, ReadTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute},
		},
		DecisionTimeout: 2 * time.Second, DrainDelay: time.Second, DrainTimeout: time.Minute,
	}
	for _, paths := range [][]string{{dir}, {filepath.Join(dir, "a.hcl"), filepath.Join(dir, "b.hcl")}} {
		c, err := Load(paths...)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(c.Static, want) {
			t.Errorf("%v: got %+v\nwant %+v", paths, c.Static, want)
		}
		if got := c.Static.verifier(); got.RequestTimeout != 5*time.Second || got.VerifyTimeout != 2*time.Second || got.Name != "edge-1" {
			t.Errorf("the verifier gets %+v", got)
		}
		if p := c.Policy; len(p.Proxies) != 0 || p.Places.Bearer || p.Places.Fields[0] != "X-Token" || p.Routes[0].Path != "/" || p.AccessLog != LogRefused {
			t.Errorf("got %+v", p)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	c, err := parse([]source{{"x", []byte(`listener "http" { address = "127.0.0.1:9180" }`)}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Static.verifier().RequestTimeout != 0 || c.Static.Verifier.Name == "" || c.Static.DrainTimeout != 20*time.Second || c.Static.DecisionTimeout != 5*time.Second || len(c.Policy.Proxies) != 2 || !c.Policy.Places.Bearer || len(c.Policy.Places.Fields) != 1 {
		t.Errorf("got %+v", c)
	}
}

// TestFaultsAreNamed has each fault that a file may have, and what is said of it.
func TestFaultsAreNamed(t *testing.T) {
	t.Parallel()
	const listener = `listener "http" { address = "127.0.0.1:9180" }` + "\n"
	for file, want := range map[string]string{
		`nonsense`:                                                        "x.hcl:1",
		listener + `nonsense = 1`:                                         `"nonsense" is not expected`,
		listener + `vault { adress = "x" }`:                               `Did you mean "address"`,
		listener + "vault {}\nvault {}":                                   "Duplicate",
		listener + `vault { timeout = "1y" }`:                             `vault: timeout must be a duration between 100ms and 1m0s, got "1y"`,
		listener + `vault { timeout = 3600 }`:                             `vault: timeout must be a duration between 100ms and 1m0s, got 3600`,
		listener + `vault { timeout = [1] }`:                              `vault: timeout must be a duration between 100ms and 1m0s, got something else`,
		listener + `vault { timeout = x }`:                                `vault: timeout: x.hcl:2`,
		listener + "vault {\nauth \"github\" {}\n}":                       `auth must be approle, kubernetes or token_file, got "github"`,
		listener + "vault {\nauth \"approle\" {}\n}":                      `one of role_id and role_id_file is required`,
		listener + "vault {\nauth \"approle\" {\nrole_id = \"x\"\n}\n}":   `one of secret_id_file and secret_id_env is required`,
		listener + "vault {\nauth \"approle\" {\nsecret_id = \"x\"\n}\n}": `"secret_id" is not expected`,
		listener + "vault {\nauth \"kubernetes\" {}\n}":                   `The argument "role" is required`,
		listener + `verifier { cache_size = 0 }`:                          `verifier: cache_size must be at least 1, got 0`,
		listener + `verifier { poll_interval = 0 }`:                       `verifier: poll_interval must be a duration between 100ms and 1m0s, got 0`,
		``:                                         `a listener of type http or grpc is required`,
		`listener "admin" { address = ":1" }`:      `a listener of type http or grpc is required`,
		`listener "htp" { address = ":1" }`:        `listener must be http, grpc or admin, got "htp"`,
		`listener "http" {}`:                       `The argument "address" is required`,
		`listener "http" { address = "x" }`:        `listener "http": address must be host:port`,
		`listener "http" { address = "unix:x" }`:   `must be unix: and an absolute path`,
		`listener "http" { address = "systemd:" }`: `must be systemd: and the FileDescriptorName`,
		listener + listener:                        `address 127.0.0.1:9180 is used twice`,
		"listener \"http\" {\naddress = \":1\"\ntls_cert_file = \"x\"\n}":      `tls_cert_file and tls_key_file must be set together`,
		"listener \"http\" {\naddress = \":1\"\ntls_client_ca_file = \"x\"\n}": `tls_client_ca_file needs tls_cert_file`,
		"listener \"http\" {\naddress = \":1\"\nsocket_mode = \"rw\"\n}":       `socket_mode must be permissions in octal`,
		"listener \"http\" {\naddress = \":1\"\nmax_connections = 0\n}":        `max_connections must be at least 1, got 0`,
		"listener \"http\" {\naddress = \":1\"\nmax_header_bytes = 1\n}":       `max_header_bytes must be between 4096 and 1048576, got 1`,
		"listener \"http\" {\naddress = \":1\"\nread_timeout = 0\n}":           `read_timeout must be a duration`,
		listener + `decision_timeout = "1m"`:                                   `decision_timeout must be a duration between 100ms and 20s, got "1m"`,
		listener + `drain_timeout = "soon"`:                                    `drain_timeout must be a duration between 1s and 1h0m0s, got "soon"`,
		listener + `trusted_proxies = ["10.0.0.0/33"]`:                         `trusted_proxies must be addresses or ranges in CIDR notation, got "10.0.0.0/33"`,
		listener + `access_log = "some"`:                                       `access_log must be off, refused or all, got "some"`,
		listener + `deprecation_link = "a b"`:                                  `deprecation_link must be a URL`,
		listener + `key { headers = [] }`:                                      `no place is named`,
		listener + `key { headers = ["X Key"] }`:                               `a header field must have a name of letters, digits and hyphens, got "X Key"`,
		listener + `route "a b" {}`:                                            `route "a b": a name must be`,
		listener + "route \"a\" {}\nroute \"a\" {}":                            `route "a": the name is used twice`,
		listener + `route "a" { host = "x:80/" }`:                              `host must be a name`,
		listener + `route "a" { path = "v1" }`:                                 `path must begin with /`,
		listener + `route "a" { path = "/a/../b" }`:                            `path must begin with /`,
		listener + `route "a" { path = "/a%2fb" }`:                             `path must begin with /`,
		listener + `route "a" { path = "/a?b" }`:                               `route "a": path must begin with /`,
		listener + `route "a" { path = "/v1/café" }`:                           `route "a": path must begin with / and have only ASCII letters, digits and -._~`,
		listener + `route "a" { path = "/caf%C3%A9" }`:                         `without escapes`,
		listener + `route "a" { path = "/a b" }`:                               `got "/a b"`,
		listener + `route "a" { path = "/a{b}" }`:                              `got "/a{b}"`,
		listener + `route "a" { path = "/a;b" }`:                               `got "/a;b"`,
		listener + `route "a" { path = "/a//b" }`:                              `without escapes, empty segments or dot segments, got "/a//b"`,
		listener + `route "a" { path = "//" }`:                                 `got "//"`,
		listener + `route "a" { path = "/a/." }`:                               `got "/a/."`,
		listener + `route "a" { path = "" }`:                                   `route "a": path must begin with /`,
		listener + "route \"a\" {\n  path = \"/Users\"\n}\nroute \"b\" {\n  path = \"/users/x\"\n  scopes = [\"s\"]\n}": `route "b": every request to it would be refused: route "a" is tried first`,
		listener + `route "a" { methods = ["get"] }`:                   `methods must be in upper case`,
		listener + `route "a" { scopes = ["a b"] }`:                    `a scope must be`,
		listener + `route "a" { scopes = ["orders:*"] }`:               `a scope must be`,
		listener + `route "a" { source = "a b" }`:                      `source must be`,
		listener + "route \"a\" {\npublic = true\nscopes = [\"x\"]\n}": `a public route asks for no key`,
	} {
		_, err := parse([]source{{"x.hcl", []byte(file)}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %q", file, err, want)
		}
	}
	for _, p := range []string{"/", "/a", "/a/b/", "/.well-known/", "/v1/x-y_z~1/a:b@c,d=(e)*!$&'+"} {
		if _, err := parse([]source{{"x.hcl", []byte(listener + `route "a" { path = "` + p + `" }`)}}); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "missing.hcl")); err == nil || !strings.Contains(err.Error(), "missing.hcl") {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no *.hcl") {
		t.Errorf("an empty folder: %v", err)
	}
}
