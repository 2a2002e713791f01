// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

const (
	// maxMessage bounds the body of a webhook, in bytes; the engine's are far
	// shorter.
	maxMessage = 64 << 10
	// remembered is how many messages are known again when they are repeated.
	remembered = 256
)

// Handler receives the engine's webhooks (Standard Webhooks) and redeems the
// claim codes in them. Serve it where a webhook with deliver=claim and
// events=version.activated leads. The secrets, whsec_..., are those of the
// webhook, two of them while one replaces the other.
//
// It answers 401 to what is not signed, 503 when Vault cannot be reached, so that
// the engine delivers again, and 204 otherwise, also for messages without a code
// and for codes that are no good, which are logged.
func (c *Claims) Handler(log *slog.Logger, secrets ...string) (http.Handler, error) {
	h := &claimHandler{claims: c, log: log, done: map[string]struct{}{}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	for _, secret := range secrets {
		verifier, err := standardwebhooks.NewWebhook(secret)
		if secret == "" || err != nil {
			return nil, errors.New("consumer: the secret of a webhook must be like whsec_ and base64")
		}
		h.verifiers = append(h.verifiers, verifier)
	}
	if len(h.verifiers) == 0 {
		return nil, errors.New("consumer: a handler of claims needs the secret of its webhook")
	}
	return h, nil
}

type claimHandler struct {
	claims    *Claims
	log       *slog.Logger
	verifiers []*standardwebhooks.Webhook

	mu    sync.Mutex // held while a code is redeemed: messages are repeated in parallel
	done  map[string]struct{}
	order []string // of done, the oldest first
}

func (h *claimHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		http.Error(w, "the body cannot be read or is too long", http.StatusBadRequest)
		return
	}
	if !h.signed(r.Header, body) {
		http.Error(w, "not signed with the secret of the webhook, or too long ago", http.StatusUnauthorized)
		return
	}
	var message struct {
		Data struct {
			ClaimCode string `json:"claim_code"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &message); err != nil {
		http.Error(w, "the body is not a message of the engine", http.StatusBadRequest)
		return
	}
	if message.Data.ClaimCode != "" && !h.redeem(r, message.Data.ClaimCode) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "vault cannot be reached", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *claimHandler) signed(header http.Header, body []byte) bool {
	for _, v := range h.verifiers {
		if v.Verify(body, header) == nil {
			return true
		}
	}
	return false
}

// redeem redeems the code of a message that was not seen before, and tells
// whether that is done with: redeeming a code again raises an alarm.
func (h *claimHandler) redeem(r *http.Request, code string) bool {
	id := r.Header.Get(standardwebhooks.HeaderWebhookID)
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, again := h.done[id]; again {
		return true
	}
	key, err := h.claims.Redeem(r.Context(), code)
	switch {
	case vaultclient.IsUnavailable(err):
		h.log.Warn("cannot redeem a claim now", "webhook_id", id, "error", err)
		return false
	case err != nil:
		h.log.Error("cannot redeem a claim: the key has to be rotated again", "webhook_id", id, "error", err)
	default:
		h.log.Info("redeemed a claim", "webhook_id", id, "key", key)
	}
	h.done[id] = struct{}{}
	if h.order = append(h.order, id); len(h.order) > remembered {
		delete(h.done, h.order[0])
		h.order = h.order[1:]
	}
	return true
}
