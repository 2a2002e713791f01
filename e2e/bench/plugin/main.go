// SPDX-License-Identifier: MPL-2.0

// Command plugin is the engine with two paths more, for benchmarks alone, that
// what verify costs is measured against: noop, a path as the engine's others
// are, which takes the fields of verify and does nothing with them, and floor,
// which is answered before the engine looks at the request.
//
// Built with the tag apikeys_uncounted, verify does not count use.
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
	return &bare{engine}, nil
}

// bare is the engine behind floor.
type bare struct{ *backend.Backend }

const floor = "floor"

// HandleExistenceCheck says that floor has none.
func (b *bare) HandleExistenceCheck(ctx context.Context, req *logical.Request) (found, exists bool, err error) {
	if req.Path == floor {
		return false, false, nil
	}
	return b.Backend.HandleExistenceCheck(ctx, req)
}

// HandleRequest answers floor.
func (b *bare) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if req.Path == floor {
		return nothing(), nil
	}
	return b.Backend.HandleRequest(ctx, req)
}

func nothing() *logical.Response { return &logical.Response{Data: map[string]any{"ok": true}} }

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
					return nothing(), nil
				},
			},
		},
	}
}
