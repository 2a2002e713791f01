// SPDX-License-Identifier: MPL-2.0

package webhook

import "context"

// Storage keeps hooks and outboxes. Each method is one operation on the
// storage of the mount. A Get of what is not there returns nil and no error; a
// Delete of it succeeds. Names are safe in paths. The entries of hooks hold
// signing secrets.
type Storage interface {
	ListHooks(ctx context.Context) ([]string, error)
	GetHook(ctx context.Context, name string) ([]byte, error)
	PutHook(ctx context.Context, name string, entry []byte) error
	DeleteHook(ctx context.Context, name string) error

	// ListOutbox lists the outbox of one hook and nothing else.
	ListOutbox(ctx context.Context, hook string) ([]string, error)
	GetOutbox(ctx context.Context, hook, position string) ([]byte, error)
	PutOutbox(ctx context.Context, hook, position string, entry []byte) error
	DeleteOutbox(ctx context.Context, hook, position string) error
}

// ClaimStorage keeps claims, in a folder per day, on the same terms. Ids are
// parts of hashes.
type ClaimStorage interface {
	// ListClaimDays lists the folders, with or without a slash at their end.
	ListClaimDays(ctx context.Context) ([]string, error)
	ListClaims(ctx context.Context, day string) ([]string, error)
	GetClaim(ctx context.Context, day, id string) ([]byte, error)
	PutClaim(ctx context.Context, day, id string, entry []byte) error
	DeleteClaim(ctx context.Context, day, id string) error

	// The ends of claims: empty entries in a folder per minute.
	ListClaimEnds(ctx context.Context) ([]string, error)
	ListClaimEnd(ctx context.Context, minute string) ([]string, error)
	PutClaimEnd(ctx context.Context, minute, name string) error
	DeleteClaimEnd(ctx context.Context, minute, name string) error
}
