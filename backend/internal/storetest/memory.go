// SPDX-License-Identifier: MPL-2.0

package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

var _ logical.Storage = (*Memory)(nil)

// Memory is a logical.Storage in memory. Unlike the one in Vault's SDK, List
// costs what it returns and not the whole subtree. It is safe for concurrent
// use.
//
// As Vault does, it refuses paths with "..", and it answers a cancelled
// context with its error. A List must name a folder: "" or a prefix that ends
// in a slash.
type Memory struct {
	mu   sync.RWMutex
	root *folder
	// owner tells folders of this Memory from those that it shares with a
	// clone, which are copied before a change.
	owner *byte
	size  int
}

// folder is what lies below one prefix.
type folder struct {
	owner   *byte
	entries map[string]logical.StorageEntry
	folders map[string]*folder
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	owner := new(byte)
	return &Memory{owner: owner, root: newFolder(owner)}
}

func newFolder(owner *byte) *folder {
	return &folder{owner: owner, entries: map[string]logical.StorageEntry{}, folders: map[string]*folder{}}
}

// Clone returns a Memory that holds the same now and changes apart from m. It
// takes the same time however much there is; a folder that is changed
// afterwards is copied first.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owner = new(byte)
	return &Memory{owner: new(byte), root: m.root, size: m.size}
}

// Len is the number of entries.
func (m *Memory) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}

// Get returns the entry at key, or nil.
func (m *Memory) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	prefix, name := split(key)
	f := m.find(prefix)
	if f == nil {
		return nil, nil
	}
	entry, ok := f.entries[name]
	if !ok {
		return nil, nil
	}
	return &logical.StorageEntry{Key: key, Value: bytes.Clone(entry.Value), SealWrap: entry.SealWrap}, nil
}

// Put writes an entry.
func (m *Memory) Put(ctx context.Context, entry *logical.StorageEntry) error {
	if entry == nil {
		return errors.New("there is no entry to put")
	}
	if err := check(ctx, entry.Key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix, name := split(entry.Key)
	if name == "" {
		return fmt.Errorf("the path of an entry must not end in a slash: %q", entry.Key)
	}
	f := m.own(prefix)
	if _, there := f.entries[name]; !there {
		m.size++
	}
	f.entries[name] = logical.StorageEntry{Value: bytes.Clone(entry.Value), SealWrap: entry.SealWrap}
	return nil
}

// Delete removes the entry at key. It is no error if there is none.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	prefix, name := split(key)
	f := m.find(prefix)
	if f == nil {
		return nil
	}
	if _, there := f.entries[name]; !there {
		return nil
	}
	f = m.own(prefix)
	delete(f.entries, name)
	m.size--
	if len(f.entries)+len(f.folders) == 0 {
		m.prune(prefix)
	}
	return nil
}

// List returns the names of the entries and, with a slash at their end, of the
// folders directly below prefix, in order.
func (m *Memory) List(ctx context.Context, prefix string) ([]string, error) {
	if err := check(ctx, prefix); err != nil {
		return nil, err
	}
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		return nil, fmt.Errorf("the prefix of a list must end in a slash: %q", prefix)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	f := m.find(prefix)
	if f == nil {
		return nil, nil
	}
	names := make([]string, 0, len(f.entries)+len(f.folders))
	for name := range f.entries {
		names = append(names, name)
	}
	for name := range f.folders {
		names = append(names, name+"/")
	}
	slices.Sort(names)
	return names, nil
}

// Paths returns the paths of all entries below prefix, a folder, in order.
func (m *Memory) Paths(prefix string) []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var paths []string
	var walk func(prefix string, f *folder)
	walk = func(prefix string, f *folder) {
		for name := range f.entries {
			paths = append(paths, prefix+name)
		}
		for name, below := range f.folders {
			walk(prefix+name+"/", below)
		}
	}
	if f := m.find(prefix); f != nil {
		walk(prefix, f)
	}
	slices.Sort(paths)
	return paths
}

// find returns the folder of prefix, or nil.
func (m *Memory) find(prefix string) *folder {
	f := m.root
	for prefix != "" && f != nil {
		var name string
		name, prefix, _ = strings.Cut(prefix, "/")
		f = f.folders[name]
	}
	return f
}

// own returns the folder of prefix as one that may be changed, and makes it
// where there is none.
func (m *Memory) own(prefix string) *folder {
	m.root = m.mine(m.root)
	f := m.root
	for prefix != "" {
		var name string
		name, prefix, _ = strings.Cut(prefix, "/")
		below := f.folders[name]
		if below == nil {
			below = newFolder(m.owner)
		} else {
			below = m.mine(below)
		}
		f.folders[name] = below
		f = below
	}
	return f
}

func (m *Memory) mine(f *folder) *folder {
	if f.owner == m.owner {
		return f
	}
	return &folder{owner: m.owner, entries: maps.Clone(f.entries), folders: maps.Clone(f.folders)}
}

// prune removes the folder of prefix, which is empty, and those above it that
// are empty then.
func (m *Memory) prune(prefix string) {
	for prefix != "" {
		above, name := split(strings.TrimSuffix(prefix, "/"))
		f := m.own(above)
		delete(f.folders, name)
		if len(f.entries)+len(f.folders) > 0 {
			return
		}
		prefix = above
	}
}

// split cuts a path into its folder, which ends in a slash, and its name.
func split(path string) (prefix, name string) {
	i := strings.LastIndexByte(path, '/') + 1
	return path[:i], path[i:]
}

func check(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if strings.Contains(path, "..") {
		return fmt.Errorf("relative paths are not supported: %q", path)
	}
	return nil
}
