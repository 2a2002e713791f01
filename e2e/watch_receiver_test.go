// SPDX-License-Identifier: MPL-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// message is what a webhook told its receiver.
type message struct {
	ID        string         `json:"id"`
	Type      string         `json:"type"`
	Timestamp time.Time      `json:"timestamp"`
	Data      map[string]any `json:"data"`
}

// of is the id of the key that a message is about, and its number among the
// key's events.
func (m message) of() (keyID string, seq int) {
	keyID, number, _ := strings.Cut(m.ID, "_")
	seq, _ = strconv.Atoi(number)
	return keyID, seq
}

func (m message) text(field string) string {
	s, _ := m.Data[field].(string)
	return s
}

// hangUp is the status of a receiver that takes a message and breaks the
// connection instead of answering.
const hangUp = 0

// receiver is a webhook receiver in this process. It checks every signature,
// and that a repeated id tells the same.
type receiver struct {
	t      testing.TB
	server *httptest.Server

	mu      sync.Mutex
	secret  string
	behave  func(m message, attempt int) (status int)
	bodies  map[string]string
	tries   map[string]int
	settled map[string]bool
	got     []message
}

// startReceiver starts a receiver that behaves as told; nil takes everything.
func startReceiver(t testing.TB, behave func(m message, attempt int) (status int)) *receiver {
	t.Helper()
	r := &receiver{t: t, behave: behave, bodies: map[string]string{}, tries: map[string]int{}, settled: map[string]bool{}}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	return r
}

// hook makes a webhook of a mount that tells the receiver.
func (r *receiver) hook(m *mount, name string, pairs ...any) {
	r.t.Helper()
	body := fields(pairs...)
	body["url"], body["allow_private"] = r.server.URL, true
	secret, _ := m.write("webhooks/"+name, body)["secret"].(string)
	if secret == "" {
		r.t.Fatalf("webhook %q was made without a secret", name)
	}
	issued.add(secret, "the secret of a webhook")
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
	case hangUp:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = conn.Close()
		}
	default:
		w.WriteHeader(status)
	}
}

// take notes a message and returns the status of the answer.
func (r *receiver) take(header http.Header, body []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	verifier, err := standardwebhooks.NewWebhook(r.secret)
	if err == nil {
		err = verifier.Verify(body, header)
	}
	var m message
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil {
		r.t.Errorf("a webhook message: %v", err)
		return http.StatusBadRequest
	}
	m.ID = header.Get(standardwebhooks.HeaderWebhookID)
	if before, again := r.bodies[m.ID]; again && before != string(body) {
		r.t.Errorf("the id %s came with two bodies: %s and %s", m.ID, before, body)
	}
	r.bodies[m.ID] = string(body)
	if found := issued.straysIn(body); len(found) > 0 {
		r.t.Errorf("the message %s (%s) holds %v", m.ID, m.Type, found)
	}
	r.tries[m.ID]++
	status := http.StatusNoContent
	if r.behave != nil {
		status = r.behave(m, r.tries[m.ID])
	}
	if status >= 200 && status < 300 && !r.settled[m.ID] {
		r.settled[m.ID] = true
		r.got = append(r.got, m)
	}
	return status
}

// messages are those that the receiver has accepted, each once, in the order
// of their first acceptance.
func (r *receiver) messages() []message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// waitFor waits for a message of a type, and returns it.
func (r *receiver) waitFor(eventType string) message {
	r.t.Helper()
	var found message
	eventually(r.t, 30*time.Second, func() error {
		for _, m := range r.messages() {
			if m.Type == eventType {
				found = m
				return nil
			}
		}
		return fmt.Errorf("no %s among %d messages", eventType, len(r.messages()))
	})
	return found
}

// byKey are the messages of one key.
func byKey(all []message, keyID string) []message {
	return slices.DeleteFunc(slices.Clone(all), func(m message) bool {
		id, _ := m.of()
		return id != keyID
	})
}

// tellsHistoryOf waits until the receiver has been told the history of keys:
// each event once, in the order of the key, under the id with its number.
func (r *receiver) tellsHistoryOf(m *mount, timeout time.Duration, names ...string) {
	r.t.Helper()
	for _, name := range names {
		id := m.info(name).KeyID
		eventually(r.t, timeout, func() error {
			return sameAsHistory(m.history(name), byKey(r.messages(), id))
		})
	}
}

func sameAsHistory(history []transition, got []message) error {
	for i, told := range got {
		if _, seq := told.of(); seq != i+1 {
			return fmt.Errorf("message %d is %s (%s)", i+1, told.ID, told.Type)
		}
		if i < len(history) && (history[i].Type != told.Type || !told.Timestamp.Equal(history[i].Time.Truncate(time.Millisecond))) {
			return fmt.Errorf("message %d is %s of %s, the history has %s of %s", i+1, told.Type, told.Timestamp, history[i].Type, history[i].Time)
		}
	}
	if len(got) < len(history) {
		return fmt.Errorf("%d of %d events were told; the next is %s", len(got), len(history), history[len(got)].Type)
	}
	return nil
}

// hookInfo is what webhooks/<name> reads.
type hookInfo struct {
	Enabled        bool   `json:"enabled"`
	DisabledReason string `json:"disabled_reason"`
	Pending        int    `json:"pending"`
	Dropped        int    `json:"dropped"`
	Failed         int    `json:"failed"`
	Deliveries     []struct {
		EventID string `json:"event_id"`
		Type    string `json:"type"`
		Attempt int    `json:"attempt"`
		Status  int    `json:"status"`
		Result  string `json:"result"`
	} `json:"deliveries"`
}

func (m *mount) hookInfo(name string) hookInfo {
	m.t.Helper()
	info, err := convert[hookInfo](m.read("webhooks/" + name))
	if err != nil {
		m.t.Fatal(err)
	}
	return info
}

// rolloverInfo is what rollovers/<name> reads.
type rolloverInfo struct {
	From         int      `json:"from"`
	To           int      `json:"to"`
	TrafficMoved float64  `json:"traffic_moved"`
	Health       string   `json:"health"`
	Evidence     []string `json:"evidence"`
	Instances    []struct {
		Instance string `json:"instance"`
		Version  int    `json:"version"`
	} `json:"instances"`
	Laggards []struct {
		Source   string `json:"source"`
		Instance string `json:"instance"`
	} `json:"laggards"`
	Sources []struct {
		Source string `json:"source"`
	} `json:"sources"`
}

func (m *mount) rollover(name string) rolloverInfo {
	m.t.Helper()
	info, err := convert[rolloverInfo](m.read("rollovers/" + name))
	if err != nil {
		m.t.Fatal(err)
	}
	return info
}

// left names the laggards: sources, and instances in brackets.
func (r rolloverInfo) left() []string {
	names := []string{}
	for _, l := range r.Laggards {
		if l.Instance != "" {
			names = append(names, "["+l.Instance+"]")
		} else {
			names = append(names, l.Source)
		}
	}
	slices.Sort(names)
	return names
}

// useInfo is what usage/<name> reads.
type useInfo struct {
	Versions map[string]versionUse `json:"versions"`
}

type versionUse struct {
	UseCount int                  `json:"use_count"`
	Refused  int                  `json:"refused"`
	LastUsed time.Time            `json:"last_used_time"`
	Sources  map[string]sourceUse `json:"sources"`
}

type sourceUse struct {
	Count   int            `json:"count"`
	Refused int            `json:"refused"`
	Minutes map[string]int `json:"minutes"`
	Hours   map[string]int `json:"hours"`
}

func (u useInfo) version(number int) versionUse { return u.Versions[strconv.Itoa(number)] }

func (m *mount) use(name string) useInfo { //nolint:unparam // callers say whose
	m.t.Helper()
	info, err := convert[useInfo](m.read("usage/" + name))
	if err != nil {
		m.t.Fatal(err)
	}
	return info
}
