// SPDX-License-Identifier: MPL-2.0

// Command webhook-receiver is a receiver of webhooks to start from, with the
// library of Standard Webhooks. It does what receiver.mjs beside it does: see
// there.
package main

import (
	"cmp"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const maxBody = 1 << 20

// verify returns nil if one of the secrets has signed the message, and lately.
func verify(secrets []string, header http.Header, body []byte) error {
	err := errors.New("there is no secret")
	for _, secret := range secrets {
		var wh *standardwebhooks.Webhook
		if wh, err = standardwebhooks.NewWebhook(secret); err != nil {
			continue
		}
		if err = wh.Verify(body, header); err == nil {
			return nil
		}
	}
	return err
}

type receiver struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	w.WriteHeader(r.receive(req.Header, body))
}

func (r *receiver) receive(header http.Header, body []byte) int {
	secrets, err := os.ReadFile("webhook-secret")
	if err != nil {
		return http.StatusServiceUnavailable
	}
	if err := verify(strings.Fields(string(secrets)), header, body); err != nil {
		return http.StatusUnauthorized
	}
	id := header.Get(standardwebhooks.HeaderWebhookID)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[id] {
		return http.StatusNoContent
	}
	if err := note(body); err != nil {
		return http.StatusServiceUnavailable
	}
	r.seen[id] = true
	return http.StatusNoContent
}

func note(body []byte) error {
	f, err := os.OpenFile("events.log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(body, '\n'))
	return errors.Join(err, f.Close())
}

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "0"))
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("receiver.url", []byte("http://"+l.Addr().String()+"/\n"), 0o600); err != nil { //nolint:gosec // the path is fixed
		log.Fatal(err)
	}
	server := &http.Server{Handler: &receiver{seen: map[string]bool{}}, ReadTimeout: 15 * time.Second}
	log.Fatal(server.Serve(l))
}
