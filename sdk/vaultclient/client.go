// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	// DefaultMount is where the engine is mounted unless the Config says otherwise.
	DefaultMount = "apikeys"
	// DefaultTimeout is how long a request may take, its answer included, unless
	// the Config or VAULT_CLIENT_TIMEOUT says otherwise.
	DefaultTimeout = 10 * time.Second

	// maxAnswer bounds the body of an answer, in bytes. The largest one, a lookup
	// of 1000 keys with all their versions, stays well below.
	maxAnswer = 16 << 20
)

// Config says which mount of which Vault to speak to, and as whom. The zero
// value takes everything from Vault's environment variables.
type Config struct {
	// Address is the URL of Vault, https://vault.example.com:8200 or
	// unix:///run/agent.sock; VAULT_ADDR if it is empty.
	Address string
	// Namespace is Vault Enterprise's or OpenBao's; VAULT_NAMESPACE if it is empty.
	Namespace string
	// Mount is the path at which the engine is mounted; apikeys if it is empty.
	Mount string
	// Auth is who the client is; VAULT_TOKEN if it is nil.
	Auth Auth
	// TLS replaces the TLS settings of the environment; nil leaves them.
	TLS *api.TLSConfig
	// Timeout bounds a request, its answer included. Zero is VAULT_CLIENT_TIMEOUT,
	// or else 10 seconds.
	Timeout time.Duration
	// Logger is told of failed logins and of what became of them; it hears nothing
	// while all is well. Nil discards.
	Logger *slog.Logger
	// Transport replaces the connections to Vault, TLS settings included. It is
	// for tests.
	Transport http.RoundTripper
}

// pingAfter is how long nothing has to come over a connection of HTTP/2 until its
// other end is asked for a sign of life, and how long it has for that.
const pingAfter = 2 * time.Second

// Client speaks to one mount. Its methods may be called from any goroutine.
type Client struct {
	vault   *api.Client // sends the token
	login   *api.Client // never has one
	auth    Auth
	mount   string
	timeout time.Duration
	log     *slog.Logger
	session session
}

// New makes a client. It does no I/O: the first login is Run's.
func New(c Config) (*Client, error) {
	settings := api.DefaultConfig()
	if settings.Error != nil {
		return nil, fmt.Errorf("vault's environment variables: %w", settings.Error)
	}
	if os.Getenv(api.EnvVaultMaxRetries) == "" {
		settings.MaxRetries = 0
	}
	if os.Getenv(api.EnvVaultClientTimeout) == "" {
		settings.Timeout = DefaultTimeout
	}
	if c.Timeout < 0 {
		return nil, fmt.Errorf("timeout must not be negative, got %s", c.Timeout)
	}
	if c.Timeout > 0 {
		settings.Timeout = c.Timeout
	}
	if c.Address != "" {
		settings.Address, settings.AgentAddress = c.Address, ""
	}
	if c.TLS != nil {
		if err := settings.ConfigureTLS(c.TLS); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
	}
	mount := strings.Trim(c.Mount, "/")
	if mount == "" {
		mount = DefaultMount
	}
	if err := checkPath(mount); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	auth := c.Auth
	if auth == nil {
		auth = Token(os.Getenv(api.EnvVaultToken))
	}
	if err := auth.check(); err != nil {
		return nil, err
	}

	client := &Client{auth: auth, mount: mount, timeout: settings.Timeout, log: c.Logger}
	if client.log == nil {
		client.log = slog.New(slog.DiscardHandler)
	}
	// Two clients on the same connections: what logs in has no token to send.
	for _, v := range []**api.Client{&client.vault, &client.login} {
		made, err := api.NewClient(settings)
		if err != nil {
			return nil, errors.New("the address of vault, or VAULT_HEADERS, cannot be used")
		}
		made.ClearToken()
		if c.Namespace != "" {
			made.SetNamespace(c.Namespace)
		}
		*v = made
	}
	if c.Transport != nil {
		settings.HttpClient.Transport = c.Transport
	} else if t, ok := settings.HttpClient.Transport.(*http.Transport); ok {
		// With TLS all requests share one connection, by HTTP/2. Where its other
		// end is gone without a word, nothing but a ping finds that out before
		// the system gives up, after some 15 minutes.
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter}
	}
	settings.HttpClient.Transport = bounded{settings.HttpClient.Transport}

	client.session.init()
	if token, ok := auth.fixed(); ok {
		client.install(token)
	}
	return client, nil
}

// Mount is the path at which the engine is mounted, without slashes around it.
func (c *Client) Mount() string { return c.mount }

// Read reads a path below the mount and decodes the data of the answer into
// out, which is a pointer as for json.Unmarshal, or nil. A query may be nil.
func (c *Client) Read(ctx context.Context, path string, query url.Values, out any) error {
	return c.do(ctx, "read", path, out, func(ctx context.Context, full string) (*api.Response, error) {
		return c.vault.Logical().ReadRawWithDataWithContext(ctx, full, query)
	})
}

// Write writes body, anything that encodes as a JSON object or nil, to a path
// below the mount, and decodes the data of the answer into out. An answer
// without data leaves out as it was.
func (c *Client) Write(ctx context.Context, path string, body, out any) error {
	encoded := []byte("{}")
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			// The error of encoding/json may show the value.
			return fmt.Errorf("write %s: the body cannot be encoded as JSON", c.mount+"/"+path)
		}
	}
	return c.do(ctx, "write", path, out, func(ctx context.Context, full string) (*api.Response, error) {
		// Logical().WriteRawWithContext ends the context that the body is read
		// with when it returns: a body that has not arrived by then is lost.
		r := c.vault.NewRequest(http.MethodPut, "/v1/"+full)
		r.BodyBytes = encoded
		return c.vault.RawRequestWithContext(ctx, r) //nolint:staticcheck // see above; Vault's own ReadRaw uses it
	})
}

// List lists a path below the mount. What is empty is an empty list, no error.
func (c *Client) List(ctx context.Context, path string, query url.Values) ([]string, error) {
	q := url.Values{"list": {"true"}}
	for name, values := range query {
		q[name] = values
	}
	var out struct {
		Keys []string `json:"keys"`
	}
	err := c.do(ctx, "list", path, &out, func(ctx context.Context, full string) (*api.Response, error) {
		return c.vault.Logical().ReadRawWithDataWithContext(ctx, full, q)
	})
	if status := (*StatusError)(nil); errors.As(err, &status) && status.Status == http.StatusNotFound && status.Reason == "" {
		return nil, nil
	}
	return out.Keys, err
}

// do sends a request, and once more where the token was dead and there is
// another now.
func (c *Client) do(ctx context.Context, op, path string, out any, send func(context.Context, string) (*api.Response, error)) error {
	if err := checkPath(path); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	full := c.mount + "/" + path

	held, err := c.session.wait(ctx)
	if err != nil {
		return &unavailableError{op: op, path: full, err: err}
	}
	err = c.once(ctx, op, full, out, send)
	if status := forbidden(err); status != nil {
		switch c.suspect(ctx, held) {
		case tokenAlive:
		case tokenReplaced:
			return c.once(ctx, op, full, out, send)
		case tokenDead:
			status.again = c.auth.again()
		}
	}
	return err
}

func (c *Client) once(ctx context.Context, op, full string, out any, send func(context.Context, string) (*api.Response, error)) error {
	resp, err := send(ctx, full)
	if resp != nil && resp.Response != nil && resp.Body != nil {
		defer func() { _ = resp.Body.Close() }()
	}
	if err != nil {
		return c.fail(op, full, err)
	}
	if out == nil {
		return nil
	}
	envelope := struct {
		Data any `json:"data"`
	}{Data: out}
	switch err := json.NewDecoder(resp.Body).Decode(&envelope); {
	case err == nil, errors.Is(err, io.EOF): // no content
		return nil
	case ctx.Err() != nil:
		return &unavailableError{op: op, path: full, err: ctx.Err()}
	default:
		return &unavailableError{op: op, path: full, err: unread(err)}
	}
}

// unread is why a body could not be decoded. An error of reading it is told, but
// one of encoding/json may show the value.
func unread(err error) error {
	for _, known := range []error{errTooLarge, io.ErrUnexpectedEOF, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known
		}
	}
	if network := net.Error(nil); errors.As(err, &network) {
		return network
	}
	return errNotJSON
}

// checkPath refuses paths that Vault's client would clean into others.
func checkPath(path string) error {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("path %q must not be empty or have an empty, . or .. segment", path)
		}
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '?' || r == '#' || r == '%' }) {
		return fmt.Errorf("path %q must not have spaces, control characters, ?, # or %%", path)
	}
	return nil
}
