// SPDX-License-Identifier: MPL-2.0

// Command api is the other side of the example: an API that takes orders from
// whoever has an API key. It asks Vault about each, with the token of the
// environment; one that is busy embeds sdk/verifier instead.
package main

import (
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

func main() {
	vault, err := vaultclient.New(vaultclient.Config{})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("api.url", []byte("http://"+l.Addr().String()+"/orders\n"), 0o600); err != nil {
		log.Fatal(err)
	}
	server := &http.Server{ReadTimeout: 15 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		apiKey, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		var answer struct {
			Valid bool `json:"valid"`
		}
		err := vault.Write(r.Context(), "verify", map[string]string{"api_key": apiKey, "source": "api"}, &answer)
		switch {
		case err != nil:
			w.WriteHeader(http.StatusServiceUnavailable) // nobody knows
		case !answer.Valid:
			w.WriteHeader(http.StatusUnauthorized)
		}
	})}
	log.Fatal(server.Serve(l))
}
