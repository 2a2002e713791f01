// SPDX-License-Identifier: MPL-2.0

// Package vaultclient speaks to one mount of the secrets engine: it logs in to
// Vault, keeps its token alive, and reads and writes below the mount. The other
// packages of the SDK, sdk/verifier and sdk/consumer, are given a Client.
//
//	client, err := vaultclient.New(vaultclient.Config{
//		Auth: vaultclient.AppRole{RoleID: id, SecretIDFile: "/run/secrets/secret-id"},
//	})
//	...
//	go client.Run(ctx) // logs in, renews, logs in again
//	err = client.Read(ctx, "static-creds/acme", nil, &answer)
//
// # Configuration
//
// The zero Config is Vault's own convention: the address, the TLS settings, the
// namespace and the token come from the environment variables that Vault's
// command line reads (VAULT_ADDR, VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT,
// VAULT_CLIENT_KEY, VAULT_TLS_SERVER_NAME, VAULT_SKIP_VERIFY, VAULT_NAMESPACE,
// VAULT_PROXY_ADDR, VAULT_TOKEN, VAULT_CLIENT_TIMEOUT, VAULT_MAX_RETRIES), by way
// of github.com/hashicorp/vault/api. What differs: requests time out after 10
// seconds and are not repeated unless the last two variables say otherwise,
// because those who use a Client decide when to ask again.
//
// # Tokens
//
// Run logs in and holds the token: it is renewed by Vault's LifetimeWatcher, and
// when renewal ends there is a new login, before the token dies. A request that
// is answered with 403 makes the client look its token up; if the token is dead,
// revoked for example, it logs in anew, once for all requests in need, and the
// request is sent again with the new token. Failed logins are repeated after
// growing pauses with jitter, at most 30 seconds, for as long as Run runs.
//
//   - [Token] is a static token. It is used with or without Run; Run renews it
//     where Vault lets it, and cannot replace it when it dies.
//   - [AppRole] and [Kubernetes] log in.
//   - [TokenFile] is the sink file of a Vault Agent, which renews that token
//     itself. The file is read again every few seconds and when the token is
//     refused.
//   - [Anonymous] has no token, for the paths that need none, such as claim.
//
// # What it keeps quiet about
//
// No error and no log line holds a token, a login's secret, or anything that was
// in the body of a request or of an answer, but for texts of Vault that cannot
// repeat a secret: see [StatusError]. Answers of over 16 MiB are refused.
package vaultclient
