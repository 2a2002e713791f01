// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/cli"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/cmd/apikeys/internal/gateway"
)

// gatewayCommand is `apikeys gateway`.
type gatewayCommand struct {
	ui             cli.Ui
	stdout, stderr io.Writer
}

func (*gatewayCommand) Synopsis() string {
	return "Answers proxies that ask whether a request may pass"
}

func (*gatewayCommand) Help() string {
	return `
Usage: apikeys gateway [options]

  Verifies the API keys of requests for a proxy: over HTTP for nginx, Caddy,
  Traefik and HAProxy, and over gRPC for Envoy.

      $ apikeys gateway -config=/etc/apikeys/gateway.hcl

  Vault's address, TLS settings and, unless the configuration has an auth
  block, token come from the environment variables of Vault's own command line.

  SIGHUP reads routes, trusted proxies, places of keys and certificates again,
  as a change of their files does. SIGTERM and SIGINT drain and end the program.

Command Options:

  -config=<string>
      Path of a configuration file, or of a folder with *.hcl files. It may be
      given several times; the files are read as if they were one.

  -log-level=<string>
      Log verbosity: debug, info, warn or error. The default is info. It can
      also be set by the environment variable APIKEYS_LOG_LEVEL.

  -validate
      Check the configuration and the certificates that it names, and end. The
      default is false.
`
}

// texts are the values of a flag that may be given several times.
type texts []string

func (t *texts) String() string     { return strings.Join(*t, ",") }
func (t *texts) Set(s string) error { *t = append(*t, s); return nil }

func (c *gatewayCommand) Run(args []string) int {
	flags := flag.NewFlagSet("gateway", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var configs texts
	flags.Var(&configs, "config", "")
	level := os.Getenv("APIKEYS_LOG_LEVEL")
	if level == "" {
		level = "info"
	}
	flags.StringVar(&level, "log-level", level, "")
	validate := flags.Bool("validate", false, "")
	if err := flags.Parse(args); err != nil {
		return c.wrong(err.Error())
	}
	if flags.NArg() > 0 {
		return c.wrong(fmt.Sprintf("Too many arguments (expected 0, got %d)", flags.NArg()))
	}
	if len(configs) == 0 {
		return c.wrong("Must specify at least one configuration file with -config")
	}
	var logLevel slog.Level
	if err := logLevel.UnmarshalText([]byte(level)); err != nil {
		return c.wrong(fmt.Sprintf("-log-level must be debug, info, warn or error, got %q", level))
	}
	if *validate {
		if err := gateway.Validate(configs); err != nil {
			c.ui.Error(fmt.Sprintf("The configuration cannot be used:\n%s", err))
			return exitUsage
		}
		c.ui.Output("Success! The configuration is valid.")
		return exitOK
	}

	// What the gateway does goes to standard error, requests to standard output.
	log := slog.New(slog.NewJSONHandler(c.stderr, &slog.HandlerOptions{Level: logLevel}))
	access := slog.New(slog.NewJSONHandler(c.stdout, nil))
	g, err := gateway.New(configs, log, access)
	if err != nil {
		c.ui.Error(fmt.Sprintf("The configuration cannot be used:\n%s", err))
		return exitUsage
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	if err := g.Run(ctx, reload, nil); err != nil {
		c.ui.Error(fmt.Sprintf("Error: %s", err))
		return exitFailed
	}
	return exitOK
}

// wrong is the end of a command that was called wrongly.
func (c *gatewayCommand) wrong(message string) int {
	c.ui.Error(message)
	c.ui.Error("See apikeys gateway -h")
	return exitUsage
}
