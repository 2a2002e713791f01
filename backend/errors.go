// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
)

// inputError is a caller's mistake: its text names the field, the fault and
// what is accepted, and never holds a value that could be a secret.
type inputError struct{ text string }

func (e *inputError) Error() string { return e.text }

func badInput(format string, args ...any) error {
	return &inputError{text: fmt.Sprintf(format, args...)}
}

// notFound is answered with 404 and its text.
type notFound struct{ text string }

func (e *notFound) Error() string { return e.text }

func missing(format string, args ...any) error {
	return &notFound{text: fmt.Sprintf(format, args...)}
}

func noKey(name string) error { return missing("there is no key named %q", name) }

func noRole(name string) error { return missing("there is no role named %q", name) }

// respond turns an error into what Vault answers: 400 for a caller's mistake,
// 403, 404 and 429 where they fit, and a failure of storage as it is, which
// is never blamed on the caller. No other place does this.
func respond(err error) (*logical.Response, error) {
	var input *inputError
	var refusal *keyring.Refusal
	var gone *notFound
	switch {
	case errors.As(err, &input):
		return logical.ErrorResponse(input.text), nil
	case errors.As(err, &refusal):
		return logical.ErrorResponse(refusal.Text), nil
	case errors.As(err, &gone):
		return nil, logical.CodedError(http.StatusNotFound, gone.text)
	case errors.Is(err, lifecycle.ErrNoKey):
		return nil, logical.CodedError(http.StatusNotFound, "there is no such key")
	case errors.Is(err, lifecycle.ErrImported):
		return logical.ErrorResponse("import_key, import_sha256: this token belongs to a key of this mount, or did and is compromised"), nil
	case errors.Is(err, lifecycle.ErrRequestDiffers):
		return logical.ErrorResponse("request_id was used in the last 24 hours with other parameters: repeat them, or choose another request_id"), nil
	case errors.Is(err, jobs.ErrJobRunning):
		return logical.ErrorResponse("a rotation of this role is under way: read this path for its progress"), nil
	case errors.Is(err, errNotYours):
		return nil, logical.ErrPermissionDenied
	case errors.Is(err, errTooManyMisses):
		return nil, logical.CodedError(http.StatusTooManyRequests, errTooManyMisses.Error())
	}
	return nil, err
}

// errSuperseded is the answer of a process that is not in charge any more: it
// does not know what holds now.
var errSuperseded = logical.CodedError(http.StatusServiceUnavailable, "another process has taken charge of this mount, or may have: ask again, and another node")

// errNotYours says that a leased key was made by another caller.
var errNotYours = errors.New("the key belongs to another caller")
