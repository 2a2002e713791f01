// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// watchInterval is how often the files of the configuration are looked at.
const watchInterval = 2 * time.Second

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
	client   func(context.Context) error // of the way to Vault

	certs    []*certificate
	metrics  *metrics
	draining atomic.Bool

	reloading sync.Mutex
	paths     []string
	seen      [sha256.Size]byte // of the files as they were last read
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
	g, err := newGateway(config, log, access)
	if err != nil {
		return nil, err
	}
	g.paths, g.seen = paths, sumOf(sources)

	client, err := vaultclient.New(vaultclient.Config{
		Address: config.Static.Vault.Address, Namespace: config.Static.Vault.Namespace, Mount: config.Static.Vault.Mount,
		Auth: config.Static.Vault.Auth, Timeout: config.Static.Vault.Timeout, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	c := config.Static.Verifier
	v, err := verifier.New(verifier.Config{
		Vault: client, Name: c.Name, Source: c.Source, CacheSize: c.CacheSize, PollInterval: c.PollInterval,
		MaxStale: c.MaxStale, ReportInterval: c.ReportInterval, FirstFill: c.FirstFill, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("verifier: %w", err)
	}
	g.verifier, g.health, g.run, g.client = v, v.Health, v.Run, client.Run
	g.metrics.watchVerifier(v)
	return g, nil
}

// newGateway makes one that cannot verify yet.
func newGateway(config Config, log, access *slog.Logger) (*Gateway, error) {
	g := &Gateway{log: log, access: access, clock: time.Now, static: config.Static, metrics: newMetrics()}
	for _, l := range config.Static.Listeners {
		if l.CertFile == "" {
			continue
		}
		cert, err := loadCertificate(l)
		if err != nil {
			return nil, fmt.Errorf("listener %q: %w", l.Type, err)
		}
		g.certs = append(g.certs, cert)
	}
	g.policy.Store(newPolicy(config.Policy))
	g.metrics.reloaded(g.clock())
	return g, nil
}

// Reload reads the configuration again and puts its policy, and the
// certificates, in force. Where it cannot be used, all stays as it was, the log
// says why, and so does the error.
func (g *Gateway) Reload() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	sources, err := readSources(g.paths)
	if err != nil {
		return g.reloadFailed(err)
	}
	g.seen = sumOf(sources)
	return g.reload(sources)
}

// reloadIfChanged is Reload where the content of a file changed since it was
// last looked at. A file that is gone for a moment is one that is being replaced.
func (g *Gateway) reloadIfChanged() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	sources, err := readSources(g.paths)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return g.reloadFailed(err)
	}
	if sum := sumOf(sources); sum != g.seen {
		g.seen = sum
		return g.reload(sources)
	}
	return nil
}

func (g *Gateway) reload(sources []source) error {
	config, err := parse(sources)
	if err != nil {
		return g.reloadFailed(err)
	}
	for _, c := range g.certs {
		if err := c.reload(); err != nil {
			return g.reloadFailed(err)
		}
	}
	if !reflect.DeepEqual(config.Static, g.static) {
		g.log.Warn("the configuration changed in what needs a restart: vault, verifier, listeners or the drain; those parts stay as they were")
	}
	g.policy.Store(newPolicy(config.Policy))
	g.metrics.reloaded(g.clock())
	g.log.Info("the configuration is reloaded", "routes", len(config.Policy.Routes))
	return nil
}

func (g *Gateway) reloadFailed(err error) error {
	g.metrics.reloadFailed()
	g.log.Error("the configuration cannot be used; the one in force stays", "error", err)
	return err
}

func sumOf(sources []source) [sha256.Size]byte {
	h := sha256.New()
	for _, s := range sources {
		_, _ = fmt.Fprintf(h, "%q %d\n", s.name, len(s.content)) // a hash never fails
		_, _ = h.Write(s.content)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
