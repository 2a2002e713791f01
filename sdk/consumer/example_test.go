// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

func ExampleVault() {
	vault, err := vaultclient.New(vaultclient.Config{
		Address: "https://vault.example.com:8200",
		Auth:    vaultclient.AppRole{RoleIDFile: "/etc/app/role-id", SecretIDFile: "/run/secrets/secret-id"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	source, err := consumer.New(consumer.Config{Origin: consumer.Vault(vault, "acme"), Instance: "eu-1"})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = vault.Run(ctx) }()
	go func() { _ = source.Run(ctx) }()

	transport, err := consumer.NewTransport(source, consumer.TransportConfig{Hosts: []string{"api.example.com"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	api := &http.Client{Transport: transport}
	_, err = api.Get("https://other.example.com/") //nolint:bodyclose // there is none
	fmt.Println(err)
	// Output: Get "https://other.example.com/": consumer: https://other.example.com is not one of the hosts that may be given the API key
}

// A key that Vault Agent renders, sent in a header of another name.
func ExampleFile() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	rendered := filepath.Join(dir, "creds.json")
	if err := os.WriteFile(rendered, []byte(`{"api_key":"not-a-real-key-of-anyone","version":7}`), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "the header has %d bytes", len(r.Header.Get("X-API-Key"))) //nolint:gosec // a number
	}))
	defer server.Close()

	source, err := consumer.New(consumer.Config{Origin: consumer.File(rendered)})
	if err != nil {
		fmt.Println(err)
		return
	}
	transport, err := consumer.NewTransport(source, consumer.TransportConfig{
		Hosts:  []string{server.URL},
		SetKey: consumer.Header("X-API-Key"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	api := &http.Client{Transport: transport}
	resp, err := api.Post(server.URL, "application/json", strings.NewReader("{}"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(string(body), err)
	fmt.Println(source.Current())
	// Output:
	// the header has 24 bytes <nil>
	// key ? version 7
}

// A client without a Vault token receives claim codes by a webhook. What it
// claims it stores, because no code brings the same key twice.
func ExampleClaims() {
	vault, err := vaultclient.New(vaultclient.Config{Address: "https://vault.example.com:8200", Auth: vaultclient.Anonymous{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	stored, err := consumer.NewKey("the-key-that-was-stored-before", 3)
	if err != nil {
		fmt.Println(err)
		return
	}
	claims := consumer.NewClaims(vault)
	source, err := consumer.New(consumer.Config{
		Origin:   claims,
		Initial:  stored,
		OnChange: func(_, next consumer.Key) { _ = next.Reveal() /* and store it */ },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	receiver, err := claims.Handler(nil, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		fmt.Println(err)
		return
	}
	http.Handle("/webhooks/apikeys", receiver)
	fmt.Println(source.Current())
	// Output: key ? version 3
}

func ExampleKey() {
	key, err := consumer.NewKey("not-a-real-key-of-anyone", 2)
	fmt.Println(key, err)
	fmt.Printf("%v %+v %q\n", key, key, key)
	// Output:
	// key ? version 2 <nil>
	// key ? version 2 key ? version 2 key ? version 2
}
