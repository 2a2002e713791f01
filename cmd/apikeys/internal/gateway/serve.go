// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// maxMessage bounds a message of Envoy, which holds the header of a request.
	maxMessage = 1 << 20
	// maxStreams bounds the requests at a time of one Envoy.
	maxStreams = 4096
	// writeTimeout bounds a request from the end of its header, a miss that asks
	// Vault included.
	writeTimeout = 30 * time.Second
	// reportTimeout bounds the last report of use, whatever the number of its
	// parts.
	reportTimeout = 5 * time.Second
)

// server is a listener that is served.
type server struct {
	settings Listener
	listener net.Listener
	http     *http.Server // or
	grpc     *grpc.Server
}

// Run listens and serves until ctx ends, then drains: readiness fails, requests
// are taken for as long as DrainDelay, those under way are answered, and what
// was used is reported. A text on reload reloads; it may be nil. Ready is called
// once all addresses are listened on.
func (g *Gateway) Run(ctx context.Context, reload <-chan os.Signal, ready func()) error {
	servers, err := g.listen(ctx)
	if err != nil {
		return err
	}
	// Whatever uses Vault goes on during the drain, and until use is reported.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { g.report("the connection to Vault ended", g.client(background)) })
	running.Go(func() { g.report("the verifier ended", g.run(background)) })

	watched, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { g.watch(watched, reload) })

	var serving errgroup.Group
	failed := make(chan struct{}, len(servers))
	for _, s := range servers {
		serving.Go(func() error {
			err := s.serve()
			if err != nil {
				err = fmt.Errorf("listener %q on %s: %w", s.settings.Type, s.settings.Address, err)
				failed <- struct{}{}
			}
			return err
		})
	}
	for _, s := range servers {
		g.log.Info("listening", "type", s.settings.Type, "address", s.settings.Address)
	}
	tellReady()
	if ready != nil {
		ready()
	}
	select {
	case <-ctx.Done():
	case <-failed:
	}
	stopWatching()
	watch.Wait()
	g.drain(servers)
	g.closeVerifier()
	stop()
	waitFor(&running, time.Second)
	return serving.Wait()
}

// closeVerifier has what was used reported.
func (g *Gateway) closeVerifier() {
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	if err := g.close(ctx); err != nil {
		g.log.Warn("the verifier did not end well; use that it could not report is lost", "error", err)
	}
}

func (g *Gateway) report(what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		g.log.Error(what, "error", err)
	}
}

// waitFor waits for at most so long.
func waitFor(group *sync.WaitGroup, most time.Duration) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		group.Wait()
	}()
	select {
	case <-done:
	case <-time.After(most):
	}
}

// watch reloads on signals and when a file has changed.
func (g *Gateway) watch(ctx context.Context, reload <-chan os.Signal) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reload:
			_ = g.Reload() // it logs its error
		case <-ticker.C:
			_ = g.reloadIfChanged()
		}
	}
}

// drain stops serving. Requests that are under way after DrainTimeout are cut
// off.
func (g *Gateway) drain(servers []*server) {
	g.draining.Store(true)
	tellStopping()
	g.log.Info("draining", "delay", g.static.DrainDelay.String(), "timeout", g.static.DrainTimeout.String())
	if g.static.DrainDelay > 0 {
		for _, s := range servers {
			if s.http != nil && s.settings.Type != ListenAdmin {
				s.http.SetKeepAlivesEnabled(false)
			}
		}
		<-time.After(g.static.DrainDelay)
	}
	deadline, cancel := context.WithTimeout(context.Background(), g.static.DrainTimeout)
	defer cancel()
	var group sync.WaitGroup
	for _, s := range servers {
		if s.settings.Type != ListenAdmin {
			group.Go(func() { s.shutdown(deadline, g.log) })
		}
	}
	group.Wait()
	// Probes and the last scrape are answered as long as there is anybody.
	for _, s := range servers {
		if s.settings.Type == ListenAdmin {
			_ = s.http.Close()
		}
	}
	g.log.Info("drained")
}

// listen takes all addresses, or none.
func (g *Gateway) listen(ctx context.Context) ([]*server, error) {
	var servers []*server
	secured := 0
	for _, l := range g.static.Listeners {
		s := &server{settings: l}
		var config *tls.Config
		if l.CertFile != "" {
			config = g.serveTLS(secured)
			secured++
		}
		listener, err := listenOn(ctx, l)
		if err != nil {
			for _, s := range servers {
				_ = s.listener.Close()
			}
			return nil, fmt.Errorf("listener %q: %w", l.Type, err)
		}
		s.listener = netutil.LimitListener(listener, l.MaxConnections)
		if l.Type == ListenGRPC {
			s.grpc = g.grpcServer(l, config)
		} else {
			s.http = g.httpServer(l, config)
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// listenOn takes an address: of TCP, or a Unix socket, where one that nobody
// answers is replaced; or a socket that the service manager holds.
func listenOn(ctx context.Context, l Listener) (net.Listener, error) {
	if name, held := strings.CutPrefix(l.Address, systemdPrefix); held {
		return inherited(name)
	}
	var config net.ListenConfig
	path, unix := strings.CutPrefix(l.Address, unixPrefix)
	if !unix {
		return config.Listen(ctx, "tcp", l.Address)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		dialer := net.Dialer{Timeout: time.Second}
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("somebody answers at %s already", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replace a socket that was left: %w", err)
		}
	}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, l.SocketMode); err != nil {
		_ = listener.Close()
		return nil, err
	}
	return listener, nil
}

func (g *Gateway) httpServer(l Listener, config *tls.Config) *http.Server {
	s := &http.Server{
		Handler: g, TLSConfig: config, MaxHeaderBytes: l.MaxHeaderBytes,
		ReadTimeout: l.ReadTimeout, IdleTimeout: l.IdleTimeout, WriteTimeout: writeTimeout,
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	if l.Type == ListenAdmin {
		s.Handler = g.admin()
	}
	return s
}

func (g *Gateway) grpcServer(l Listener, config *tls.Config) *grpc.Server {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(l.ReadTimeout),
		grpc.MaxHeaderListSize(uint32(l.MaxHeaderBytes)), //nolint:gosec // build bounds it to a megabyte
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: max(l.IdleTimeout, time.Minute)}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	s := grpc.NewServer(options...)
	authv3.RegisterAuthorizationServer(s, &extAuthz{gateway: g})
	return s
}

// serve returns nil once the server is shut down.
func (s *server) serve() error {
	var err error
	switch {
	case s.grpc != nil:
		err = s.grpc.Serve(s.listener)
	case s.http.TLSConfig != nil:
		err = s.http.ServeTLS(s.listener, "", "")
	default:
		err = s.http.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// shutdown takes no more connections and waits for the requests under way,
// until ctx ends.
func (s *server) shutdown(ctx context.Context, log *slog.Logger) {
	if s.http != nil {
		if err := s.http.Shutdown(ctx); err != nil {
			log.Warn("requests were cut off", "address", s.settings.Address, "error", err)
			_ = s.http.Close()
		}
		return
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		log.Warn("requests were cut off", "address", s.settings.Address)
		s.grpc.Stop()
		<-stopped
	}
}
