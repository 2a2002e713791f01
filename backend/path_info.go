// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/internal/version"
)

const infoPattern = "info"

// VersionString tells which build this is.
func VersionString() string { return version.String() }

func (b *Backend) pathInfo() []*framework.Path {
	return []*framework.Path{{
		Pattern:      infoPattern,
		DisplayAttrs: display("info"),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: b.local(b.readInfo, "Read which plugin answers.", "read", answers("The plugin.", fields{
				fieldVersion: always(textField("Version of the plugin.")),
				"commit":     always(textField("Commit that it was built from.")),
				"schema":     always(intField("Major version of the entries that it stores.")),
			})),
		},
		HelpSynopsis:    "Read the version of the plugin.",
		HelpDescription: "Version and commit of the plugin that answers, and the major version of what it stores.",
	}}
}

func (b *Backend) readInfo(context.Context, *call) (*logical.Response, error) {
	return &logical.Response{Data: map[string]any{fieldVersion: version.Version, "commit": version.Commit, "schema": keyring.Schema}}, nil
}
