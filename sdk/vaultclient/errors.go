// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/hashicorp/vault/api"
)

var (
	errTooLarge = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	errNotJSON  = errors.New("the answer is not the JSON that was expected")
)

// StatusError is an answer with an error status. Nothing in it is secret: the
// body of the answer is dropped, because Vault repeats bad values in its
// errors, except for the texts in Reason.
type StatusError struct {
	Op     string // read, write, list, login or renew
	Path   string // of the request, the mount included
	Status int    // of HTTP
	// Reason is why, in Vault's words. It is there when the request was a read or
	// list, which carries no secret that a text could repeat, and otherwise only
	// for the texts of a short list. It may be empty.
	Reason string

	again bool // a login may help
}

// Error names the operation, the path, the status and, where it is known to be
// harmless, the reason.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s %s: vault answered %d", e.Op, e.Path, e.Status)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// unavailableError is a request without a usable answer.
type unavailableError struct {
	op, path string
	err      error
}

func (e *unavailableError) Error() string { return fmt.Sprintf("%s %s: %v", e.op, e.path, e.err) }
func (e *unavailableError) Unwrap() error { return e.err }

// IsUnavailable tells whether asking again, later, may help: no connection, no
// or no intelligible answer in time, a sealed or overloaded Vault, a rate limit,
// or a token that died while another login is possible. It is false for nil and
// for requests that Vault has judged.
func IsUnavailable(err error) bool {
	if status := (*StatusError)(nil); errors.As(err, &status) {
		switch {
		case status.again, status.Status >= http.StatusInternalServerError, status.Status < http.StatusBadRequest:
			return true
		case status.Status == http.StatusTooManyRequests, status.Status == http.StatusRequestTimeout, status.Status == http.StatusPreconditionFailed:
			return true // 412: a standby that has not caught up
		case status.Status == 472, status.Status == 473: // standbys of Vault Enterprise
			return true
		}
		return false
	}
	unavailable := (*unavailableError)(nil)
	return errors.As(err, &unavailable)
}

func forbidden(err error) *StatusError {
	if status := (*StatusError)(nil); errors.As(err, &status) && status.Status == http.StatusForbidden {
		return status
	}
	return nil
}

// fail makes an error that may be shown of one of Vault's client.
func (c *Client) fail(op, path string, err error) error {
	answer := (*api.ResponseError)(nil)
	if !errors.As(err, &answer) {
		if errors.Is(err, errTooLarge) {
			return &unavailableError{op: op, path: path, err: errTooLarge}
		}
		// The URL is told already, and a proxy's may have a password.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return &unavailableError{op: op, path: path, err: err}
	}
	status := &StatusError{Op: op, Path: path, Status: answer.StatusCode}
	if !answer.RawError {
		status.Reason = c.reason(op, answer.Errors)
	}
	return status
}

// harmless are texts of Vault that say nothing but themselves.
var harmless = []string{
	"permission denied",
	"invalid token",
	"missing client token",
	"Vault is sealed",
	"no handler for route",
	"unsupported path",
	"unsupported operation",
	"invalid role or secret ID",
	"invalid role ID",
	"invalid secret id",
	"internal error",
	"local node not active but active cluster node not found",
	"rate limit quota exceeded",
	"namespace not authorized",
	"claim that can be redeemed",
}

// reason joins those texts of an answer that may be shown.
func (c *Client) reason(op string, texts []string) string {
	const most = 500 // bytes; Vault's own are far shorter
	var shown []string
	for _, text := range texts {
		if op != "read" && op != "list" {
			i := slices.IndexFunc(harmless, func(h string) bool { return strings.Contains(text, h) })
			if i < 0 {
				continue
			}
			text = harmless[i]
		}
		text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
		if token := c.vault.Token(); token != "" && strings.Contains(text, token) || len(text) > most {
			continue
		}
		shown = append(shown, text)
	}
	return strings.Join(slices.Compact(shown), "; ")
}
