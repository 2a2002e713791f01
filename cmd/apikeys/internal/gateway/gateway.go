// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// watchInterval is how often the files of the configuration, and certificates,
// are looked at. A change is taken by the second look that sees it.
const watchInterval = time.Second

// Gateway is one process: a verifier and the listeners in front of it.
type Gateway struct {
	log    *slog.Logger
	access *slog.Logger
	clock  timeOf

	static   Static
	policy   atomic.Pointer[policy]
	verifier keyVerifier
	health   func() verifier.Health
	run      func(context.Context) error // of the verifier
	close    func(context.Context) error // likewise
	client   func(context.Context) error // of the way to Vault

	metrics  *metrics
	draining atomic.Bool
	// outdated tells that the files cannot be used, so that older ones are in force.
	outdated atomic.Bool

	reloading   sync.Mutex
	paths       []string
	seen, acted look // the last one, and that which the last reload was made of
}

// New makes a gateway from the configuration in paths. It does no network I/O.
// Log hears of what goes wrong, and access of requests.
func New(paths []string, log, access *slog.Logger) (*Gateway, error) {
	sources, err := readSources(paths)
	if err != nil {
		return nil, err
	}
	config, err := parse(sources)
	if err != nil {
		return nil, err
	}
	certificates, err := readCertificates(config.Static.Listeners)
	if err != nil {
		return nil, err
	}
	g, err := newGateway(config, certificates, log, access)
	if err != nil {
		return nil, err
	}
	g.paths = paths
	g.acted = lookOf(files{sources, certificates}, nil)

	client, err := vaultclient.New(vaultclient.Config{
		Address: config.Static.Vault.Address, Namespace: config.Static.Vault.Namespace, Mount: config.Static.Vault.Mount,
		Auth: config.Static.Vault.Auth, Timeout: config.Static.Vault.Timeout, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	settings := config.Static.verifier()
	settings.Vault, settings.Logger = client, log
	v, err := verifier.New(settings)
	if err != nil {
		return nil, fmt.Errorf("verifier: %w", err)
	}
	g.verifier, g.health, g.run, g.close, g.client = v, v.Health, v.Run, v.Close, client.Run
	g.metrics.watchVerifier(v)
	return g, nil
}

// verifier are the settings of the verifier but for its way to the engine.
func (s *Static) verifier() verifier.Config {
	c := s.Verifier
	return verifier.Config{
		Name: c.Name, Source: c.Source, CacheSize: c.CacheSize, PollInterval: c.PollInterval, MaxStale: c.MaxStale,
		ReportInterval: c.ReportInterval, FirstFill: c.FirstFill, RequestTimeout: s.Vault.Timeout, VerifyTimeout: s.DecisionTimeout,
	}
}

// Validate tells what is wrong with the configuration in paths, or with the
// certificates that it names. It asks neither Vault nor for addresses.
func Validate(paths []string) error {
	config, err := Load(paths...)
	if err != nil {
		return err
	}
	certificates, err := readCertificates(config.Static.Listeners)
	if err != nil {
		return err
	}
	_, err = newCertificates(certificates)
	return err
}

// newGateway makes one that cannot verify yet.
func newGateway(config Config, certificates [][]source, log, access *slog.Logger) (*Gateway, error) {
	served, err := newCertificates(certificates)
	if err != nil {
		return nil, err
	}
	g := &Gateway{log: log, access: access, clock: time.Now, static: config.Static, metrics: newMetrics()}
	g.policy.Store(newPolicy(config.Policy, served))
	g.metrics.reloaded(g.clock())
	return g, nil
}

// files is what the files of the configuration, and of certificates, hold.
type files struct {
	config       []source
	certificates [][]source
}

// read reads all files as they are now.
func (g *Gateway) read() (files, error) {
	config, err := readSources(g.paths)
	if err != nil {
		return files{}, err
	}
	certificates, err := readCertificates(g.static.Listeners)
	return files{config, certificates}, err
}

// look is what a look at the files saw: a hash of them, or why they could not be
// read.
type look struct {
	sum [sha256.Size]byte
	err string
}

func lookOf(f files, err error) look {
	if err != nil {
		return look{err: err.Error()}
	}
	h := sha256.New()
	for _, group := range append([][]source{f.config}, f.certificates...) {
		for _, s := range group {
			_, _ = fmt.Fprintf(h, "%q %d\n", s.name, len(s.content)) // a hash never fails
			_, _ = h.Write(s.content)
		}
	}
	return look{sum: [sha256.Size]byte(h.Sum(nil))}
}

// Reload reads the files again and puts the policy and the certificates in
// force, both at once. Where any of it cannot be used, no routes are left of some,
// or a file has lost all of its own, all stays as it was; the log, the metrics and
// readiness say so, and the error why.
func (g *Gateway) Reload() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	f, err := g.read()
	g.seen = lookOf(f, err)
	return g.reload(f, err)
}

// reloadIfChanged is Reload where the files are others than those of the last
// one, and the same as when they were last looked at: a file that is being
// written or replaced, or a certificate whose key is yet to come, is waited for.
func (g *Gateway) reloadIfChanged() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	f, err := g.read()
	now := lookOf(f, err)
	if now != g.seen || now == g.acted {
		g.seen = now
		return nil
	}
	return g.reload(f, err)
}

// reload makes everything of f before any of it is in force.
func (g *Gateway) reload(f files, err error) error {
	g.acted = g.seen
	var config Config
	if err == nil {
		config, err = parse(f.config)
	}
	if err == nil {
		err = keepsRoutes(g.policy.Load().Policy, config.Policy, f.config)
	}
	var served []*tls.Config
	if err == nil {
		served, err = newCertificates(f.certificates)
	}
	g.outdated.Store(err != nil)
	if err != nil {
		g.metrics.reloadFailed()
		g.log.Error("the configuration cannot be used; the one in force stays", "error", err)
		return err
	}
	if !reflect.DeepEqual(config.Static, g.static) {
		g.log.Warn("the configuration changed in what needs a restart: vault, verifier, listeners, decision_timeout or the drain; those parts stay as they were")
	}
	g.policy.Store(newPolicy(config.Policy, served))
	g.metrics.reloaded(g.clock())
	g.log.Info("the configuration is reloaded", "routes", len(config.Policy.Routes))
	return nil
}

// keepsRoutes tells what is wrong with next, read from sources, after now: a file
// that is emptied in place would open what its routes protect.
func keepsRoutes(now, next Policy, sources []source) error {
	if len(next.Routes) == 0 && len(now.Routes) > 0 {
		return fmt.Errorf("there are no routes any more, so that every valid key would do for every request; before there were %d: restart if that is meant", len(now.Routes))
	}
	for _, s := range sources {
		if slices.Contains(now.RouteFiles, s.name) && !slices.Contains(next.RouteFiles, s.name) {
			return fmt.Errorf("%s has no routes any more, so that others would decide about what they protect: delete the file or restart if that is meant", s.name)
		}
	}
	return nil
}
