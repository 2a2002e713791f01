// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/kubernetes"
)

// maxCredential bounds files that hold a token, a secret id or a JWT, in bytes.
const maxCredential = 64 << 10

// Auth is who a client is: a Token, TokenFile, AppRole, Kubernetes or Anonymous.
type Auth interface {
	// name is what errors and logs call it.
	name() string
	// check says what is wrong with the configuration.
	check() error
	// fixed is the token of those that need no login.
	fixed() (string, bool)
	// login gets a token, and how long it lives.
	login(ctx context.Context, c *Client) (*api.Secret, error)
	// again tells whether login may bring another token than the last one.
	again() bool
}

// Token is a static token.
type Token string

func (Token) name() string { return "token" }

func (t Token) check() error {
	if t == "" {
		return errors.New("auth: there is no token: set Config.Auth, or the environment variable VAULT_TOKEN")
	}
	return checkToken(string(t))
}

func (t Token) fixed() (string, bool) { return string(t), true }
func (t Token) again() bool           { return false }

// String keeps the token out of logs.
func (t Token) String() string { return "Token(***)" }

// GoString keeps the token out of logs.
func (t Token) GoString() string { return t.String() }

// login looks the token up, to know whether and when to renew it.
func (t Token) login(ctx context.Context, c *Client) (*api.Secret, error) {
	found, err := c.vault.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return nil, err
	}
	ttl, err := found.TokenTTL()
	if err != nil {
		return nil, errNotJSON
	}
	renewable, err := found.TokenIsRenewable()
	if err != nil {
		return nil, errNotJSON
	}
	return &api.Secret{Auth: &api.SecretAuth{ClientToken: string(t), LeaseDuration: int(ttl.Seconds()), Renewable: renewable}}, nil
}

// TokenFile is the path of a file that holds a token and is kept up to date by
// somebody else: the sink of a Vault Agent.
type TokenFile string

func (TokenFile) name() string { return "token file" }

func (f TokenFile) check() error {
	if f == "" {
		return errors.New("auth: the path of the token file is empty")
	}
	return nil
}

func (f TokenFile) fixed() (string, bool) { return "", false }
func (f TokenFile) again() bool           { return true }

func (f TokenFile) login(context.Context, *Client) (*api.Secret, error) {
	token, err := readCredential(string(f))
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(token, "{") {
		return nil, fmt.Errorf("%s holds a wrapped token; take wrap_ttl out of the sink", string(f))
	}
	if err := checkToken(token); err != nil {
		return nil, fmt.Errorf("%s: %w", string(f), err)
	}
	return &api.Secret{Auth: &api.SecretAuth{ClientToken: token}}, nil // Agent renews it
}

// AppRole logs in with a role id and a secret id. One of RoleID and RoleIDFile,
// and one of SecretID, SecretIDFile and SecretIDEnv are required; files and the
// environment are read anew at each login.
type AppRole struct {
	Mount        string // of the auth method; approle if it is empty
	RoleID       string
	RoleIDFile   string
	SecretID     string
	SecretIDFile string
	SecretIDEnv  string // name of an environment variable
	// Wrapped says that what is given as the secret id is a wrapping token. It
	// works once, so whoever uses it has to bring a new one for each login.
	Wrapped bool
}

func (AppRole) name() string { return "approle" }

func (a AppRole) check() error {
	if (a.RoleID == "") == (a.RoleIDFile == "") {
		return errors.New("auth: AppRole takes one of RoleID and RoleIDFile")
	}
	given := 0
	for _, s := range []string{a.SecretID, a.SecretIDFile, a.SecretIDEnv} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return errors.New("auth: AppRole takes one of SecretID, SecretIDFile and SecretIDEnv")
	}
	return checkAuthMount(a.Mount)
}

func (a AppRole) fixed() (string, bool) { return "", false }
func (a AppRole) again() bool           { return true }

// String keeps the secret id out of logs.
func (a AppRole) String() string { return "AppRole(***)" }

// GoString keeps the secret id out of logs.
func (a AppRole) GoString() string { return a.String() }

func (a AppRole) login(ctx context.Context, c *Client) (*api.Secret, error) {
	role := a.RoleID
	if a.RoleIDFile != "" {
		var err error
		if role, err = readCredential(a.RoleIDFile); err != nil {
			return nil, err
		}
	}
	secret := &approle.SecretID{FromString: a.SecretID, FromEnv: a.SecretIDEnv}
	if a.SecretIDFile != "" {
		var err error
		if secret.FromString, err = readCredential(a.SecretIDFile); err != nil {
			return nil, err
		}
	}
	var options []approle.LoginOption
	if a.Mount != "" {
		options = append(options, approle.WithMountPath(strings.Trim(a.Mount, "/")))
	}
	if a.Wrapped {
		options = append(options, approle.WithWrappingToken())
	}
	method, err := approle.NewAppRoleAuth(role, secret, options...)
	if err != nil {
		return nil, errors.New("the role id or the secret id is empty")
	}
	return method.Login(ctx, c.login)
}

// Kubernetes logs in with the JWT of a service account.
type Kubernetes struct {
	Mount string // of the auth method; kubernetes if it is empty
	Role  string
	// TokenFile is where the JWT is, read anew at each login because Kubernetes
	// replaces it; its usual place in a pod if it is empty.
	TokenFile string
}

func (Kubernetes) name() string { return "kubernetes" }

func (k Kubernetes) check() error {
	if k.Role == "" {
		return errors.New("auth: Kubernetes takes a Role")
	}
	return checkAuthMount(k.Mount)
}

func (k Kubernetes) fixed() (string, bool) { return "", false }
func (k Kubernetes) again() bool           { return true }

func (k Kubernetes) login(ctx context.Context, c *Client) (*api.Secret, error) {
	file := k.TokenFile
	if file == "" {
		file = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	}
	jwt, err := readCredential(file)
	if err != nil {
		return nil, err
	}
	options := []kubernetes.LoginOption{kubernetes.WithServiceAccountToken(jwt)}
	if k.Mount != "" {
		options = append(options, kubernetes.WithMountPath(strings.Trim(k.Mount, "/")))
	}
	method, err := kubernetes.NewKubernetesAuth(k.Role, options...)
	if err != nil {
		return nil, errors.New("the role or the JWT is empty")
	}
	return method.Login(ctx, c.login)
}

// Anonymous has no token. It may use the paths that need none.
type Anonymous struct{}

func (Anonymous) name() string          { return "anonymous" }
func (Anonymous) check() error          { return nil }
func (Anonymous) fixed() (string, bool) { return "", true }
func (Anonymous) again() bool           { return false }
func (Anonymous) login(context.Context, *Client) (*api.Secret, error) { //nolint:unparam // as the interface says
	return &api.Secret{Auth: &api.SecretAuth{}}, nil
}

// readCredential reads a small file without the white space around its content.
func readCredential(file string) (string, error) {
	f, err := os.Open(file) //nolint:gosec // the file that the configuration names
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err != nil {
		return "", err
	}
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0:
		return "", fmt.Errorf("%s is empty", file)
	case len(b) > maxCredential:
		return "", fmt.Errorf("%s is longer than %d bytes", file, maxCredential)
	}
	return string(b), nil
}

func checkToken(token string) error {
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("auth: the token has spaces or characters that are not printable ASCII")
	}
	return nil
}

func checkAuthMount(mount string) error {
	if mount = strings.Trim(mount, "/"); mount == "" {
		return nil
	}
	if err := checkPath(mount); err != nil {
		return fmt.Errorf("auth: mount: %w", err)
	}
	return nil
}
