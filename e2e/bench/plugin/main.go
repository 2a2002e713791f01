// SPDX-License-Identifier: MPL-2.0

// Command plugin is the engine with one path more, for benchmarks alone: noop,
// a write that takes the fields of verify and does nothing with them. What
// verify costs is measured against it.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend"
)

func main() {
	meta := &api.PluginAPIClientMeta{}
	if err := meta.FlagSet().Parse(os.Args[1:]); err != nil {
		os.Exit(2)
	}
	err := plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: factory,
		TLSProviderFunc:    api.VaultPluginTLSProvider(meta.GetTLSConfig()),
		Logger:             hclog.New(&hclog.LoggerOptions{}),
	})
	if err != nil {
		os.Exit(1)
	}
}

func factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	made, err := backend.Factory(ctx, conf)
	if err != nil {
		return nil, err
	}
	engine, ok := made.(*backend.Backend)
	if !ok {
		return nil, errors.New("the engine is not a *backend.Backend")
	}
	// In front of the others, so that no path is found sooner. The SDK looks at
	// the paths when the first request arrives.
	engine.Paths = append([]*framework.Path{noop()}, engine.Paths...)
	return engine, nil
}

func noop() *framework.Path {
	return &framework.Path{
		Pattern: "noop",
		Fields: map[string]*framework.FieldSchema{
			"api_key": {Type: framework.TypeString},
			"source":  {Type: framework.TypeString},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{
				Callback: func(context.Context, *logical.Request, *framework.FieldData) (*logical.Response, error) {
					return &logical.Response{Data: map[string]any{"ok": true}}, nil
				},
			},
		},
	}
}
