// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/zclconf/go-cty/cty"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// file is what stands in the configuration's files. Every field is optional
// unless it says otherwise; docs/reference/gateway.md describes them all.
type file struct {
	Vault           *vaultBlock     `hcl:"vault,block"`
	Verifier        *verifierBlock  `hcl:"verifier,block"`
	Listeners       []listenerBlock `hcl:"listener,block"`
	Key             *keyBlock       `hcl:"key,block"`
	Routes          []routeBlock    `hcl:"route,block"`
	TrustedProxies  *[]string       `hcl:"trusted_proxies,optional"`
	AccessLog       *string         `hcl:"access_log,optional"`
	DeprecationLink *string         `hcl:"deprecation_link,optional"`
	DecisionTimeout hcl.Expression  `hcl:"decision_timeout,optional"`
	DrainDelay      hcl.Expression  `hcl:"drain_delay,optional"`
	DrainTimeout    hcl.Expression  `hcl:"drain_timeout,optional"`
}

type vaultBlock struct {
	Address   *string        `hcl:"address,optional"`
	Namespace *string        `hcl:"namespace,optional"`
	Mount     *string        `hcl:"mount,optional"`
	Timeout   hcl.Expression `hcl:"timeout,optional"`
	Auth      *authBlock     `hcl:"auth,block"`
}

type authBlock struct {
	Method string   `hcl:"method,label"`
	Rest   hcl.Body `hcl:",remain"`
}

type appRoleBlock struct {
	Mount        *string `hcl:"mount,optional"`
	RoleID       *string `hcl:"role_id,optional"`
	RoleIDFile   *string `hcl:"role_id_file,optional"`
	SecretIDFile *string `hcl:"secret_id_file,optional"`
	SecretIDEnv  *string `hcl:"secret_id_env,optional"`
	Wrapped      *bool   `hcl:"wrapped,optional"`
}

type kubernetesBlock struct {
	Mount     *string `hcl:"mount,optional"`
	Role      string  `hcl:"role"`
	TokenFile *string `hcl:"token_file,optional"`
}

type tokenFileBlock struct {
	Path string `hcl:"path"`
}

type verifierBlock struct {
	Name           *string        `hcl:"name,optional"`
	Source         *string        `hcl:"source,optional"`
	CacheSize      *int           `hcl:"cache_size,optional"`
	PollInterval   hcl.Expression `hcl:"poll_interval,optional"`
	MaxStale       hcl.Expression `hcl:"max_stale,optional"`
	ReportInterval hcl.Expression `hcl:"report_interval,optional"`
	FirstFill      *bool          `hcl:"first_fill,optional"`
}

type listenerBlock struct {
	Type            string         `hcl:"type,label"`
	Address         string         `hcl:"address"`
	TLSCertFile     *string        `hcl:"tls_cert_file,optional"`
	TLSKeyFile      *string        `hcl:"tls_key_file,optional"`
	TLSClientCAFile *string        `hcl:"tls_client_ca_file,optional"`
	SocketMode      *string        `hcl:"socket_mode,optional"`
	MaxConnections  *int           `hcl:"max_connections,optional"`
	MaxHeaderBytes  *int           `hcl:"max_header_bytes,optional"`
	ReadTimeout     hcl.Expression `hcl:"read_timeout,optional"`
	IdleTimeout     hcl.Expression `hcl:"idle_timeout,optional"`
}

type keyBlock struct {
	Headers *[]string `hcl:"headers,optional"`
	Query   *string   `hcl:"query,optional"`
	Hide    *bool     `hcl:"hide,optional"`
}

type routeBlock struct {
	Name    string    `hcl:"name,label"`
	Host    *string   `hcl:"host,optional"`
	Path    *string   `hcl:"path,optional"`
	Methods *[]string `hcl:"methods,optional"`
	Scopes  *[]string `hcl:"scopes,optional"`
	Source  *string   `hcl:"source,optional"`
	Public  *bool     `hcl:"public,optional"`
}

// Load reads configuration files, and the *.hcl files of folders, as if they
// were one. Its error names each fault, by file and line where it can.
func Load(paths ...string) (Config, error) {
	sources, err := readSources(paths)
	if err != nil {
		return Config{}, err
	}
	return parse(sources)
}

type source struct {
	name    string
	content []byte
}

// maxFile bounds what is read of a configuration file, in bytes.
const maxFile = 4 << 20

func readSources(paths []string) ([]source, error) {
	if len(paths) == 0 {
		return nil, errors.New("no configuration file is named")
	}
	var names []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		if !info.IsDir() {
			names = append(names, p)
			continue
		}
		found, err := filepath.Glob(filepath.Join(p, "*.hcl"))
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("read the configuration: no *.hcl in %s", p)
		}
		slices.Sort(found)
		names = append(names, found...)
	}
	var sources []source
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		if info.Size() > maxFile {
			return nil, fmt.Errorf("read the configuration: %s is larger than %d bytes", name, maxFile)
		}
		content, err := os.ReadFile(name) //nolint:gosec // the operator names the file
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		sources = append(sources, source{name, content})
	}
	return sources, nil
}

func parse(sources []source) (Config, error) {
	parser := hclparse.NewParser()
	var bodies []hcl.Body
	var routeFiles []string
	for _, s := range sources {
		parsed, diags := parser.ParseHCL(s.content, s.name)
		if diags.HasErrors() {
			return Config{}, faultsOf(diags)
		}
		bodies = append(bodies, parsed.Body)
		if givesRoutes(parsed.Body) {
			routeFiles = append(routeFiles, s.name)
		}
	}
	var f file
	if diags := gohcl.DecodeBody(hcl.MergeBodies(bodies), nil, &f); diags.HasErrors() {
		return Config{}, faultsOf(diags)
	}
	c, err := f.build()
	c.Policy.RouteFiles = routeFiles
	return c, err
}

func givesRoutes(body hcl.Body) bool {
	content, _, _ := body.PartialContent(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "route", LabelNames: []string{"name"}}}}) // faults are found by who decodes
	return len(content.Blocks) > 0
}

// faultsOf lists all of diags, not only the first. They hold no values.
func faultsOf(diags hcl.Diagnostics) error {
	var all []error
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			all = append(all, d)
		}
	}
	return errors.Join(all...)
}

// read decodes the fields of an auth method.
func (b *authBlock) read() (vaultclient.Auth, error) {
	decode := func(into any) error {
		if diags := gohcl.DecodeBody(b.Rest, nil, into); diags.HasErrors() {
			return faultsOf(diags)
		}
		return nil
	}
	switch b.Method {
	case "approle":
		var f appRoleBlock
		if err := decode(&f); err != nil {
			return nil, err
		}
		if (f.RoleID == nil) == (f.RoleIDFile == nil) {
			return nil, errors.New(`auth "approle": one of role_id and role_id_file is required`)
		}
		if (f.SecretIDFile == nil) == (f.SecretIDEnv == nil) {
			return nil, errors.New(`auth "approle": one of secret_id_file and secret_id_env is required; the secret itself never stands here`)
		}
		return vaultclient.AppRole{
			Mount: valueOf(f.Mount), RoleID: valueOf(f.RoleID), RoleIDFile: valueOf(f.RoleIDFile),
			SecretIDFile: valueOf(f.SecretIDFile), SecretIDEnv: valueOf(f.SecretIDEnv), Wrapped: valueOf(f.Wrapped),
		}, nil
	case "kubernetes":
		var f kubernetesBlock
		if err := decode(&f); err != nil {
			return nil, err
		}
		return vaultclient.Kubernetes{Mount: valueOf(f.Mount), Role: f.Role, TokenFile: valueOf(f.TokenFile)}, nil
	case "token_file":
		var f tokenFileBlock
		if err := decode(&f); err != nil {
			return nil, err
		}
		return vaultclient.TokenFile(f.Path), nil
	}
	return nil, fmt.Errorf("auth must be approle, kubernetes or token_file, got %q; without one, VAULT_TOKEN is used", b.Method)
}

type faultFunc func(format string, args ...any)

// duration reads a duration by Vault's convention: text such as "24h", or
// seconds.
func (f *file) duration(fault faultFunc, field string, x hcl.Expression, unset, least, most time.Duration) time.Duration {
	if x == nil {
		return unset
	}
	value, diags := x.Value(nil)
	if diags.HasErrors() {
		fault("%s: %w", field, faultsOf(diags))
		return unset
	}
	if value.IsNull() {
		return unset
	}
	d, shown, ok := durationOf(value)
	if !ok || d < least || d > most {
		fault("%s must be a duration between %s and %s, got %s", field, least, most, shown)
		return unset
	}
	return d
}

func durationOf(v cty.Value) (d time.Duration, shown string, ok bool) {
	switch {
	case !v.IsKnown():
	case v.Type() == cty.String:
		text := v.AsString()
		d, err := time.ParseDuration(text)
		if err != nil {
			seconds, err := time.ParseDuration(strings.TrimSpace(text) + "s")
			return seconds, fmt.Sprintf("%q", text), err == nil
		}
		return d, fmt.Sprintf("%q", text), true
	case v.Type() == cty.Number:
		n := v.AsBigFloat()
		seconds, accuracy := n.Int64()
		ok := accuracy == big.Exact && seconds < int64(1<<62/time.Second) && seconds > -int64(1<<62/time.Second)
		return time.Duration(seconds) * time.Second, n.String(), ok
	}
	return 0, "something else", false
}

func valueOf[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
