// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
)

// Config is a configuration that can be used.
type Config struct {
	Static Static
	Policy Policy
}

// Static is what a running gateway cannot change.
type Static struct {
	Vault     Vault
	Verifier  Verifier
	Listeners []Listener
	// DecisionTimeout bounds how long a request is judged.
	DecisionTimeout time.Duration
	// DrainDelay is how long requests are still taken after SIGTERM, while
	// readiness fails already; DrainTimeout bounds what comes then.
	DrainDelay, DrainTimeout time.Duration
}

// Vault is where the engine is, and who the gateway is to it.
type Vault struct {
	Address, Namespace, Mount string
	// Timeout bounds a request to Vault. Where it is zero, a log-in has the time
	// that vaultclient gives it, and what the verifier asks that of the verifier.
	Timeout time.Duration
	Auth    vaultclient.Auth
}

// Verifier are the settings of sdk/verifier. What is zero has its default.
type Verifier struct {
	Name, Source                           string
	CacheSize                              int
	PollInterval, MaxStale, ReportInterval time.Duration
	FirstFill                              bool
}

// The types of listeners.
const (
	ListenHTTP  = "http"
	ListenGRPC  = "grpc"
	ListenAdmin = "admin"
)

// Listener is an address that the gateway answers at.
type Listener struct {
	Type string
	// Address is host:port, unix:/path of a socket, or systemd:NAME of one that
	// the service manager holds.
	Address                     string
	CertFile, KeyFile, ClientCA string
	// SocketMode are the permissions of a Unix socket.
	SocketMode     os.FileMode
	MaxConnections int
	// MaxHeaderBytes bounds the header of a request.
	MaxHeaderBytes           int
	ReadTimeout, IdleTimeout time.Duration
}

// Defaults of a listener.
const (
	defaultMaxConnections = 10_000
	defaultMaxHeaderBytes = 64 << 10
	defaultReadTimeout    = 10 * time.Second
	defaultIdleTimeout    = 2 * time.Minute
	defaultSocketMode     = 0o660
)

const (
	defaultDrainTimeout    = 20 * time.Second
	defaultDecisionTimeout = 5 * time.Second
)

// Policy is what a reload replaces.
type Policy struct {
	// Proxies are those who may ask.
	Proxies []netip.Prefix
	// Places are where requests present their key.
	Places verifierhttp.Places
	// Hide has the key taken out of what the upstream gets, where the protocol
	// lets the gateway do that.
	Hide   bool
	Routes []*Route
	// RouteFiles are the names of the files that give routes.
	RouteFiles []string
	// AccessLog says which requests are logged.
	AccessLog AccessLog
	// DeprecationLink is the page that clients on a retiring version are told.
	DeprecationLink string
}

// AccessLog says which requests are logged.
type AccessLog string

// The kinds of access logs.
const (
	LogOff     AccessLog = "off"
	LogRefused AccessLog = "refused"
	LogAll     AccessLog = "all"
)

// maxRoutes bounds the table, which is walked for each request.
const maxRoutes = 1000

// build turns a file into a Config. Its error names each fault.
func (f *file) build() (Config, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	c := Config{
		Static: Static{
			DrainDelay:   f.duration(fault, "drain_delay", f.DrainDelay, 0, 0, time.Hour),
			DrainTimeout: f.duration(fault, "drain_timeout", f.DrainTimeout, defaultDrainTimeout, time.Second, time.Hour),
			// To 20s: the answer is written within writeTimeout.
			DecisionTimeout: f.duration(fault, "decision_timeout", f.DecisionTimeout, defaultDecisionTimeout, 100*time.Millisecond, 20*time.Second),
		},
		Policy: Policy{AccessLog: LogRefused, Places: verifierhttp.DefaultPlaces()},
	}
	f.buildVault(fault, &c.Static.Vault)
	f.buildVerifier(fault, &c.Static.Verifier)
	f.buildListeners(fault, &c.Static)
	f.buildProxies(fault, &c.Policy)
	f.buildKey(fault, &c.Policy)
	f.buildRoutes(fault, &c.Policy)
	if f.AccessLog != nil {
		c.Policy.AccessLog = AccessLog(*f.AccessLog)
		if kinds := []AccessLog{LogOff, LogRefused, LogAll}; !slices.Contains(kinds, c.Policy.AccessLog) {
			fault("access_log must be off, refused or all, got %q", *f.AccessLog)
		}
	}
	if link := valueOf(f.DeprecationLink); link != "" {
		if strings.ContainsFunc(link, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '<' || r == '>' || r == '"' }) {
			fault("deprecation_link must be a URL in ASCII, got %q", link)
		}
		c.Policy.DeprecationLink = link
	}
	return c, errors.Join(faults...)
}

func (f *file) buildVault(fault faultFunc, v *Vault) {
	b := f.Vault
	if b == nil {
		return
	}
	*v = Vault{
		Address: valueOf(b.Address), Namespace: valueOf(b.Namespace), Mount: valueOf(b.Mount),
		Timeout: f.duration(fault, "vault: timeout", b.Timeout, 0, 100*time.Millisecond, time.Minute),
	}
	if b.Auth == nil {
		return
	}
	auth, err := b.Auth.read()
	if err != nil {
		fault("vault: %w", err)
	}
	v.Auth = auth
}

func (f *file) buildVerifier(fault faultFunc, v *Verifier) {
	if b := f.Verifier; b != nil {
		*v = Verifier{
			Name: valueOf(b.Name), Source: valueOf(b.Source), CacheSize: valueOf(b.CacheSize), FirstFill: valueOf(b.FirstFill),
			PollInterval:   f.duration(fault, "verifier: poll_interval", b.PollInterval, 0, 100*time.Millisecond, time.Minute),
			MaxStale:       f.duration(fault, "verifier: max_stale", b.MaxStale, 0, time.Second, 24*time.Hour),
			ReportInterval: f.duration(fault, "verifier: report_interval", b.ReportInterval, 0, 100*time.Millisecond, time.Hour),
		}
		if b.CacheSize != nil && *b.CacheSize < 1 {
			fault("verifier: cache_size must be at least 1, got %d", *b.CacheSize)
		}
	}
	if v.Name == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			fault("verifier: name is required, because the host has none")
		}
		v.Name = host
	}
}

func (f *file) buildListeners(fault faultFunc, s *Static) {
	var asked bool
	addresses := map[string]bool{}
	for _, b := range f.Listeners {
		at := fmt.Sprintf("listener %q", b.Type)
		l := Listener{
			Type: b.Type, Address: b.Address, CertFile: valueOf(b.TLSCertFile), KeyFile: valueOf(b.TLSKeyFile), ClientCA: valueOf(b.TLSClientCAFile),
			SocketMode: defaultSocketMode, MaxConnections: defaultMaxConnections, MaxHeaderBytes: defaultMaxHeaderBytes,
			ReadTimeout: f.duration(fault, at+": read_timeout", b.ReadTimeout, defaultReadTimeout, 100*time.Millisecond, time.Hour),
			IdleTimeout: f.duration(fault, at+": idle_timeout", b.IdleTimeout, defaultIdleTimeout, time.Second, 24*time.Hour),
		}
		switch b.Type {
		case ListenHTTP, ListenGRPC:
			asked = true
		case ListenAdmin:
		default:
			fault("listener must be http, grpc or admin, got %q", b.Type)
		}
		if err := checkAddress(b.Address); err != nil {
			fault("%s: address %w", at, err)
		}
		if addresses[b.Address] {
			fault("%s: address %s is used twice", at, b.Address)
		}
		addresses[b.Address] = true
		if (l.CertFile == "") != (l.KeyFile == "") {
			fault("%s: tls_cert_file and tls_key_file must be set together", at)
		}
		if l.ClientCA != "" && l.CertFile == "" {
			fault("%s: tls_client_ca_file needs tls_cert_file and tls_key_file", at)
		}
		if b.SocketMode != nil {
			if _, err := fmt.Sscanf(*b.SocketMode, "%o", &l.SocketMode); err != nil || l.SocketMode > 0o777 {
				fault(`%s: socket_mode must be permissions in octal such as "0660", got %q`, at, *b.SocketMode)
			}
		}
		if b.MaxConnections != nil {
			if l.MaxConnections = *b.MaxConnections; l.MaxConnections < 1 {
				fault("%s: max_connections must be at least 1, got %d", at, l.MaxConnections)
			}
		}
		if b.MaxHeaderBytes != nil {
			if l.MaxHeaderBytes = *b.MaxHeaderBytes; l.MaxHeaderBytes < 4<<10 || l.MaxHeaderBytes > 1<<20 {
				fault("%s: max_header_bytes must be between 4096 and 1048576, got %d", at, l.MaxHeaderBytes)
			}
		}
		s.Listeners = append(s.Listeners, l)
	}
	if !asked {
		fault("a listener of type http or grpc is required")
	}
}

// loopback are the proxies that are trusted unless the file says otherwise.
var loopback = []string{"127.0.0.1/32", "::1/128"}

func (f *file) buildProxies(fault faultFunc, p *Policy) {
	ranges := loopback
	if f.TrustedProxies != nil {
		ranges = *f.TrustedProxies
	}
	for _, s := range ranges {
		r, err := record.ParseRange(s)
		if err != nil {
			fault("trusted_proxies must be addresses or ranges in CIDR notation, got %q", s)
			continue
		}
		p.Proxies = append(p.Proxies, r.Masked())
	}
}

func (f *file) buildKey(fault faultFunc, p *Policy) {
	b := f.Key
	if b == nil {
		return
	}
	p.Hide = valueOf(b.Hide)
	if b.Headers == nil && b.Query == nil {
		return
	}
	places := verifierhttp.Places{Query: valueOf(b.Query)}
	if b.Headers != nil {
		places.Fields = *b.Headers
	} else {
		places = verifierhttp.DefaultPlaces()
		places.Query = valueOf(b.Query)
	}
	checked, err := verifierhttp.NewPlaces(places)
	if err != nil {
		fault("key: %w", err)
	}
	p.Places = checked
}

func (f *file) buildRoutes(fault faultFunc, p *Policy) {
	if len(f.Routes) > maxRoutes {
		fault("at most %d routes, got %d", maxRoutes, len(f.Routes))
	}
	names := map[string]bool{}
	for _, b := range f.Routes {
		at := fmt.Sprintf("route %q", b.Name)
		r := &Route{
			Name: b.Name, Host: hostName(valueOf(b.Host)), Path: "/", Methods: valueOf(b.Methods), Scopes: valueOf(b.Scopes),
			Source: valueOf(b.Source), Public: valueOf(b.Public),
		}
		if !isName(b.Name) {
			fault("%s: a name must be 1 to 128 letters, digits, or one of _.- and begin with a letter or digit", at)
		}
		if names[b.Name] {
			fault("%s: the name is used twice", at)
		}
		names[b.Name] = true
		if b.Host != nil && (!isHost(r.Host) || r.Host != strings.ToLower(*b.Host)) {
			fault("%s: host must be a name, or *. and a name, without a port, got %q", at, *b.Host)
		}
		if b.Path != nil {
			r.Path = *b.Path
			if !isPrefix(r.Path) {
				fault("%s: path must begin with / and have only ASCII letters, digits and %s, without escapes, empty segments or dot segments, got %q", at, prefixMarks, r.Path)
			}
		}
		for _, m := range r.Methods {
			if !isMethod(m) {
				fault("%s: methods must be in upper case such as GET, got %q", at, m)
			}
		}
		for _, scope := range r.Scopes {
			if !isScope(scope) {
				fault("%s: a scope must be 1 to 128 letters, digits, or some of _.:/- , got %q", at, scope)
			}
		}
		if r.Source != "" && !isName(r.Source) {
			fault("%s: source must be 1 to 128 letters, digits, or some of _.- and begin with a letter or digit, got %q", at, r.Source)
		}
		if r.Public && (len(r.Scopes) > 0 || r.Source != "") {
			fault("%s: a public route asks for no key, so it has neither scopes nor source", at)
		}
		for _, earlier := range p.Routes {
			if earlier.refuses(r) {
				fault("%s: every request to it would be refused: route %q is tried first, has its path in another case, and asks something else", at, earlier.Name)
				break
			}
		}
		p.Routes = append(p.Routes, r)
	}
}

// What an address begins with that is none of TCP.
const (
	unixPrefix    = "unix:"
	systemdPrefix = "systemd:"
)

// checkAddress tells what is wrong with the address of a listener.
func checkAddress(address string) error {
	if name, held := strings.CutPrefix(address, systemdPrefix); held {
		if !isName(name) {
			return fmt.Errorf("must be systemd: and the FileDescriptorName of a socket unit, got %q", address)
		}
		return nil
	}
	if path, unix := strings.CutPrefix(address, unixPrefix); unix {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("must be unix: and an absolute path, got %q", address)
		}
		return nil
	}
	if _, err := netip.ParseAddrPort(address); err == nil {
		return nil
	}
	host, port, found := strings.Cut(address, ":")
	if !found || strings.Contains(port, ":") || port == "" || strings.ContainsAny(host, "/[] ") || strings.Trim(port, "0123456789") != "" {
		return fmt.Errorf("must be host:port, :port, unix: and a path, or systemd: and a name, got %q", address)
	}
	return nil
}

func isWord(s string, most int, others string) bool {
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune(others, r)
	})
}

func isName(s string) bool  { return isWord(s, 128, "_.-") && isWord(s[:1], 1, "") }
func isScope(s string) bool { return isWord(s, 128, "_.:/-") }

func isHost(s string) bool {
	return isWord(strings.TrimPrefix(s, "*."), 253, ".-_:[]")
}

func isMethod(s string) bool {
	return isWord(s, 32, "-_") && strings.ToUpper(s) == s
}
