// SPDX-License-Identifier: MPL-2.0

// Command database-engine is Vault's own database secrets engine as an external
// plugin, for comparisons: the server that the tests build is without it. Beside
// PostgreSQL it has a database, "noop", that does nothing, so that what the
// engine costs by itself can be told from what PostgreSQL does.
//
// The databases run in the process of the engine, as built-in ones do in Vault.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/database/dbplugin/v5"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/pluginutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"
)

func main() {
	meta := &api.PluginAPIClientMeta{}
	if err := meta.FlagSet().Parse(os.Args[1:]); err != nil {
		os.Exit(2)
	}
	err := plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: func(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
			conf.System = system{SystemView: conf.System}
			return database.Factory(ctx, conf)
		},
		TLSProviderFunc: api.VaultPluginTLSProvider(meta.GetTLSConfig()),
	})
	if err != nil {
		os.Exit(1)
	}
}

// databases are those that the engine can be configured with.
var databases = map[string]func() (any, error){
	"postgresql-database-plugin": postgresql.New,
	"noop":                       func() (any, error) { return noop{}, nil },
}

// system is what an external plugin has of Vault, and the databases.
type system struct {
	logical.SystemView
	never
}

// never is the rest of an ExtendedSystemView, which the database engine does
// not ask for.
type never struct{ logical.ExtendedSystemView }

func runner(name string) (*pluginutil.PluginRunner, error) {
	factory, ok := databases[name]
	if !ok {
		return nil, errors.New("no such database")
	}
	return &pluginutil.PluginRunner{Name: name, Type: consts.PluginTypeDatabase, Builtin: true, BuiltinFactory: factory}, nil
}

func (system) LookupPlugin(_ context.Context, name string, _ consts.PluginType) (*pluginutil.PluginRunner, error) {
	return runner(name)
}

func (system) LookupPluginVersion(_ context.Context, name string, _ consts.PluginType, _ string) (*pluginutil.PluginRunner, error) {
	return runner(name)
}

func (system) ListVersionedPlugins(context.Context, consts.PluginType) ([]pluginutil.VersionedPlugin, error) {
	return nil, nil
}

func (system) GetPinnedPluginVersion(context.Context, consts.PluginType, string) (*pluginutil.PinnedVersion, error) {
	return nil, pluginutil.ErrPinnedVersionNotFound
}

// noop is a database in which every user exists and has every password.
type noop struct{}

func (noop) Initialize(_ context.Context, req dbplugin.InitializeRequest) (dbplugin.InitializeResponse, error) {
	return dbplugin.InitializeResponse{Config: req.Config}, nil
}

func (noop) NewUser(context.Context, dbplugin.NewUserRequest) (dbplugin.NewUserResponse, error) {
	return dbplugin.NewUserResponse{Username: "noop"}, nil
}

func (noop) UpdateUser(context.Context, dbplugin.UpdateUserRequest) (dbplugin.UpdateUserResponse, error) {
	return dbplugin.UpdateUserResponse{}, nil
}

func (noop) DeleteUser(context.Context, dbplugin.DeleteUserRequest) (dbplugin.DeleteUserResponse, error) {
	return dbplugin.DeleteUserResponse{}, nil
}

func (noop) Type() (string, error) { return "noop", nil }

func (noop) Close() error { return nil }
