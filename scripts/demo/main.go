// SPDX-License-Identifier: MPL-2.0

// Command demo shows on a real Vault how a key rolls over without a refused
// request. `make demo` runs it.
//
// It starts a dev server of its own, with a plugin built from this checkout,
// and stops it at the end. Two clients present their keys all the while: one
// that reads its key again by its ttl, as Vault Agent does, and one that does
// not. Every command that it shows is run as it is shown.
//
// It exits with 1 if the story does not go as told, and that includes a single
// refused verification of the first client in a planned rollover, or a single
// request of it that fails after its one retry in the emergency.
//
//	VAULT_BIN   the server to use; else what scripts/vault.sh finds or builds
//	NO_COLOR    no colours, even on a terminal
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	fast := flag.Bool("fast", false, "no pauses for a reader, shorter overlaps and no animation")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *fast)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		fmt.Println("\nInterrupted; the server of the demo is stopped.")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, fast bool) (err error) {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	bin, err := vaultBinary(ctx, root)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "apikeys-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // Vault refuses links in a plugin directory
		return err
	}
	p := newPage(os.Stdout, fast)
	p.say("Building the plugin and starting a Vault of its own for this demo ...")
	srv, err := startServer(ctx, root, bin, dir)
	if err != nil {
		return err
	}
	defer srv.stop()
	s := &story{page: p, srv: srv, fast: fast}
	defer s.end()
	return s.tell(ctx)
}

const modulePath = "github.com/vault-apikeys/vault-plugin-secrets-apikeys"

// moduleRoot is the folder of the module's go.mod, at or above the working
// directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(mod), "module "+modulePath+"\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("run the demo inside a checkout: there is no go.mod of " + modulePath + " here or above")
		}
		dir = up
	}
}

// vaultBinary is VAULT_BIN, or what scripts/vault.sh finds or builds.
func vaultBinary(ctx context.Context, root string) (string, error) {
	if bin := os.Getenv("VAULT_BIN"); bin != "" {
		path, err := exec.LookPath(bin)
		if err != nil {
			return "", fmt.Errorf("VAULT_BIN=%s cannot be run: %w", bin, err)
		}
		return filepath.Abs(path)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts", "vault.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("scripts/vault.sh: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
