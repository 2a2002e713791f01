// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// attemptTimeout bounds an attempt from the look-up to the end of the
	// answer. The specification recommends 15 to 30 seconds.
	attemptTimeout = 15 * time.Second
	// maxAnswer and maxAnswerHeader bound what is read of an answer.
	maxAnswer       = 64 << 10
	maxAnswerHeader = 16 << 10

	userAgent = "vault-plugin-secrets-apikeys"
)

// Attempt is one try to deliver a message, as the log of a hook shows it.
type Attempt struct {
	// EventID is the webhook-id that the receiver saw.
	EventID   string
	EventType string
	Time      time.Time
	// Number counts the attempts of this event from 1; 0 is a test.
	Number int
	// Status is that of the answer, or 0 where there was none.
	Status int
	// Failure is empty where the message was delivered, or says in a word why
	// not: one of the Failure constants.
	Failure  string
	Duration time.Duration

	retryAfter time.Duration
}

// Why an attempt failed.
const (
	FailureStatus   = "status"           // an answer other than 2xx
	FailureRedirect = "redirect"         // a redirect, which is not followed
	FailureTimeout  = "timeout"          // no answer within 15 seconds
	FailureDNS      = "dns"              // the name does not resolve
	FailureAddress  = "address"          // the address is not public, and allow_private is off
	FailureConnect  = "connect"          // no connection
	FailureTLS      = "tls"              // no agreement on TLS, or no valid certificate
	FailureHeader   = "header_too_large" // the header of the answer is over 16 KiB
	FailureAnswer   = "bad_answer"       // what came is not HTTP
	FailureLost     = "connection_lost"  // the connection ended before the answer
	FailureStopped  = "stopped"          // the plugin, or the caller, stopped
	FailureInternal = "internal"         // the message could not be made
)

// Delivered tells whether the receiver has accepted the message.
func (a *Attempt) Delivered() bool { return a.Failure == "" }

// Summary says in a few words how the attempt ended.
func (a *Attempt) Summary() string {
	switch {
	case a.Delivered():
		return "delivered"
	case a.Status != 0:
		return a.Failure + " " + strconv.Itoa(a.Status)
	}
	return a.Failure
}

// sender makes requests. Hooks that may reach private addresses have a client
// of their own, so that no connection of theirs is used by others.
type sender struct {
	clock         clock.Clock
	guarded, open *http.Client
}

func newSender(o *Options) *sender {
	return &sender{clock: o.Clock, guarded: newClient(o, false), open: newClient(o, true)}
}

func newClient(o *Options, allowPrivate bool) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            newGuard(o.Resolver, o.Dial, allowPrivate).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
			TLSHandshakeTimeout:    10 * time.Second,
			DisableCompression:     true,
			MaxIdleConns:           64,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxAnswerHeader,
			Protocols:              &protocols,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (s *sender) close() {
	s.guarded.CloseIdleConnections()
	s.open.CloseIdleConnections()
}

var errTimeout = errors.New("the attempt took too long")

// send makes one attempt.
func (s *sender) send(ctx context.Context, h *Hook, id, eventType string, body []byte) Attempt {
	now, start := s.clock.Now(), s.clock.Elapsed()
	a := Attempt{EventID: id, EventType: eventType, Time: now}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout := s.clock.After(attemptTimeout)
	go func() {
		select {
		case <-timeout:
			cancel(errTimeout)
		case <-ctx.Done():
		}
	}()
	s.post(ctx, h, &a, body)
	a.Duration = s.clock.Elapsed() - start
	return a
}

func (s *sender) post(ctx context.Context, h *Hook, a *Attempt, body []byte) {
	signature, err := h.sign(a.EventID, a.Time, body)
	if err != nil {
		a.Failure = FailureInternal
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		a.Failure = FailureInternal
		return
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, a.EventID)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(a.Time.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)

	client := s.guarded
	if h.AllowPrivate {
		client = s.open
	}
	res, err := client.Do(req)
	if err != nil {
		a.Failure = classify(ctx, err)
		return
	}
	defer func() { _ = res.Body.Close() }()
	a.Status = res.StatusCode
	a.retryAfter = retryAfter(res.Header, a.Time)
	switch {
	case a.Status >= 200 && a.Status <= 299:
		// Read to its end, a short answer leaves the connection usable.
		_, _ = io.CopyN(io.Discard, res.Body, maxAnswer)
	case a.Status >= 300 && a.Status <= 399:
		a.Failure = FailureRedirect
	default:
		a.Failure = FailureStatus
	}
}

// classify keeps of an error only what kind it is: the text of these errors
// holds the URL.
func classify(ctx context.Context, err error) string {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return FailureTimeout
	}
	if ctx.Err() != nil {
		return FailureStopped
	}
	var dns *net.DNSError
	var op *net.OpError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var unknown x509.UnknownAuthorityError
	switch text := err.Error(); {
	case errors.Is(err, errAddress):
		return FailureAddress
	case errors.As(err, &dns):
		return FailureDNS
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &unknown),
		strings.Contains(text, "tls: "), strings.Contains(text, "TLS handshake"), strings.Contains(text, "HTTP response to HTTPS"):
		return FailureTLS
	case errors.As(err, &op) && op.Op == "dial":
		return FailureConnect
	case strings.Contains(text, "headers exceeded"):
		return FailureHeader
	case strings.Contains(text, "malformed"):
		return FailureAnswer
	}
	return FailureLost
}
