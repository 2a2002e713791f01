// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

func mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

// receiver takes what the webhook tells. Now and then it fails, or takes a
// message and hangs up, the first time that it gets it.
type receiver struct {
	addr   string
	events oracle.Events

	mu     sync.Mutex
	secret string
	tried  map[string]bool
	bad    int // messages whose signature or form was wrong
	bodies []byte
}

func startReceiver(t testing.TB, n network) *receiver {
	t.Helper()
	l, addr := listenFor(t, n)
	r := &receiver{addr: addr, tried: map[string]bool{}}
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }() // until Close
	t.Cleanup(func() { _ = server.Close() })
	return r
}

func (r *receiver) url() string { return "http://" + r.addr + "/hook" }

func (r *receiver) setSecret(secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secret = secret
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		return // the sender was killed
	}
	switch status := r.take(req.Header, body); status {
	case 0:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = conn.Close()
		}
	default:
		w.WriteHeader(status)
	}
}

// take returns the status of the answer; 0 is to hang up.
func (r *receiver) take(header http.Header, body []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	verifier, err := standardwebhooks.NewWebhook(r.secret)
	if err == nil {
		err = verifier.Verify(body, header)
	}
	var m struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
	}
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	id := header.Get(standardwebhooks.HeaderWebhookID)
	keyID, number, _ := strings.Cut(id, "_")
	seq, convErr := strconv.Atoi(number)
	if err != nil || convErr != nil {
		r.bad++
		return http.StatusBadRequest
	}
	status := http.StatusNoContent
	if !r.tried[id] {
		r.tried[id] = true
		switch dice := rand.IntN(1000); {
		case dice < 15:
			return http.StatusInternalServerError
		case dice < 25:
			status = 0 // taken, but the sender does not learn it
		}
	}
	r.bodies = append(r.bodies, body...)
	r.events.Take(keyID, seq, oracle.Told{Type: m.Type, Time: m.Timestamp}, body, now())
	return status
}
