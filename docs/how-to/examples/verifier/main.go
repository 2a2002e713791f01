// SPDX-License-Identifier: MPL-2.0

// Command verifier is the API of docs/how-to/verify-with-the-sdk.md: it checks
// the keys of its clients by itself.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierhttp"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier/verifierprom"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("the API ends", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	vault, err := vaultclient.New(vaultclient.Config{
		Auth:   vaultclient.AppRole{RoleIDFile: "verifier-role-id", SecretIDFile: "verifier-secret-id"}, //nolint:gosec // they are names of files
		Logger: slog.Default(),
	})
	if err != nil {
		return err
	}
	v, err := verifier.New(verifier.Config{
		Vault:     vault,
		Name:      "orders-1", // one for each process
		Source:    "eu",       // as usage and rollovers name it
		FirstFill: true,
		Logger:    slog.Default(),
	})
	if err != nil {
		return err
	}
	go func() { _ = vault.Run(ctx) }() // logs in, renews, logs in again
	go func() { _ = v.Run(ctx) }()     // follows what changes, reports use

	guard, err := verifierhttp.New(v, verifierhttp.Options{
		DeprecationLink: "https://example.com/docs/rotate-your-key",
	})
	if err != nil {
		return err
	}
	orders := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := verifierhttp.FromContext(r.Context())
		_, _ = fmt.Fprintf(w, "hello %s\n", key.Key.Name)
	})
	prometheus.MustRegister(verifierprom.NewCollector(v))
	mux := http.NewServeMux()
	mux.Handle("GET /orders", guard.Require("orders:read")(orders))
	mux.Handle("POST /orders", guard.Require("orders:write")(orders))
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !v.Health().Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile("orders.url", []byte("http://"+listener.Addr().String()), 0o600); err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { <-ctx.Done(); _ = server.Close() }()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return v.Close(last) // reports what is left
}
