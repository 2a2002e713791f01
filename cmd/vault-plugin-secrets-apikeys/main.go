// SPDX-License-Identifier: MPL-2.0

// Command vault-plugin-secrets-apikeys is the API keys secrets engine as a
// plugin that Vault starts. It is not run by hand, except with -version.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/plugin"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend"
)

func main() {
	logger := hclog.New(&hclog.LoggerOptions{})
	meta := &api.PluginAPIClientMeta{}
	flags := meta.FlagSet()
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(os.Args[1:]); err != nil {
		logger.Error("the arguments are not understood", "error", err)
		os.Exit(2)
	}
	if *showVersion {
		fmt.Println(backend.VersionString())
		return
	}
	err := plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: backend.Factory,
		TLSProviderFunc:    api.VaultPluginTLSProvider(meta.GetTLSConfig()),
		Logger:             logger,
	})
	if err != nil {
		logger.Error("the plugin is shutting down", "error", err)
		os.Exit(1)
	}
}
