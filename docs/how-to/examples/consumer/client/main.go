// SPDX-License-Identifier: MPL-2.0

// Command client is an API client to start from. It sends an order to an API
// again and again, and prints the answer's status and the version of the key
// whenever one of them changes. Vault's environment variables say where Vault is;
// the files role-id and secret-id say who the client is.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

// apiClient returns an http.Client that sends the current key to one API.
func apiClient(ctx context.Context, host string) (*http.Client, *consumer.Source, error) {
	vault, err := vaultclient.New(vaultclient.Config{
		Auth:   vaultclient.AppRole{RoleIDFile: "role-id", SecretIDFile: "secret-id"},
		Logger: slog.Default(),
	})
	if err != nil {
		return nil, nil, err
	}
	source, err := consumer.New(consumer.Config{
		Origin:   consumer.Vault(vault, "acme"),
		Instance: "eu-1", // as rollovers name it
		Logger:   slog.Default(),
	})
	if err != nil {
		return nil, nil, err
	}
	transport, err := consumer.NewTransport(source, consumer.TransportConfig{
		Hosts: []string{host}, // nobody else is sent the key
	})
	if err != nil {
		return nil, nil, err
	}
	go func() { _ = vault.Run(ctx) }()  // logs in, renews, logs in again
	go func() { _ = source.Run(ctx) }() // looks for new versions, confirms them
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}, source, nil
}

// order sends one order. Its body is one that can be sent again.
func order(ctx context.Context, api *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"item":"tea"}`)) //nolint:gosec // the URL of whoever runs it
	if err != nil {
		return 0, err
	}
	resp, err := api.Do(req) //nolint:gosec // the same
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: client URL")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	target, err := url.Parse(os.Args[1])
	if err != nil {
		log.Fatal("the URL cannot be read")
	}
	api, source, err := apiClient(ctx, target.Scheme+"://"+target.Host)
	if err != nil {
		log.Fatal(err)
	}
	last := ""
	for ctx.Err() == nil {
		status, err := order(ctx, api, target.String())
		now := fmt.Sprintf("%d with version %d", status, source.Current().Version())
		if err != nil {
			now = err.Error()
		}
		if now != last {
			fmt.Println(now)
		}
		last = now
		time.Sleep(50 * time.Millisecond)
	}
}
