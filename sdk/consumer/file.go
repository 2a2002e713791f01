// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	// maxFile bounds the file that holds a key, in bytes.
	maxFile = 64 << 10
	// pollFile is how often a file is read while all is well. Reading a short file
	// costs less than it takes to be told of changes reliably: what renders it
	// replaces it, Kubernetes moves a symbolic link far from it, and file systems
	// on a network or mounted into a container tell nothing.
	pollFile = time.Second
	// filePatience covers Agent, which looks every 2 seconds at its quickest.
	filePatience = 5 * time.Second
)

// FileOrigin reads a key from a file; see [File].
type FileOrigin struct{ path string }

// File reads the key from a file that Vault Agent renders, or anything else that
// replaces its content in one step. The file holds the API key alone, or the
// answer of static-creds as JSON, {{ .Data | toJSON }} in a template of Agent,
// which tells the version too. It is read every second, and at once when a
// server refuses the key.
func File(path string) *FileOrigin { return &FileOrigin{path: path} }

// String names the file.
func (f *FileOrigin) String() string { return f.path }

func (*FileOrigin) patience() time.Duration { return filePatience }

// Fetch reads the file.
func (f *FileOrigin) Fetch(context.Context) (Fetched, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return Fetched{}, err
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return Fetched{}, err
	}
	key, err := parseFile(content)
	if err != nil {
		return Fetched{}, fmt.Errorf("%s: %w", f.path, err)
	}
	return Fetched{Key: key, Next: pollFile}, nil
}

var (
	errEmptyFile = errors.New("the file is empty")
	errLongFile  = fmt.Errorf("the file is longer than %d bytes", maxFile)
	errJSONFile  = errors.New("the file begins with { and is not one JSON object with the text api_key and, if at all, the number version")
)

// parseFile reads what File describes. No error says what stands in the file.
func parseFile(content []byte) (Key, error) {
	if len(content) > maxFile {
		return Key{}, errLongFile
	}
	content = bytes.TrimSpace(content)
	switch {
	case len(content) == 0:
		return Key{}, errEmptyFile
	case content[0] != '{':
		return NewKey(string(content), 0)
	}
	var creds struct {
		APIKey  *string     `json:"api_key"`
		KeyID   string      `json:"key_id"`
		Version json.Number `json:"version"`
	}
	if err := json.Unmarshal(content, &creds); err != nil || creds.APIKey == nil {
		return Key{}, errJSONFile
	}
	version := int64(0)
	if creds.Version != "" {
		var err error
		if version, err = creds.Version.Int64(); err != nil || version < 0 || version > 1<<31-1 {
			return Key{}, errJSONFile
		}
	}
	key, err := NewKey(*creds.APIKey, int(version))
	if err != nil {
		return Key{}, err
	}
	if key.id == "" {
		key.id = printableID(creds.KeyID)
	}
	return key, nil
}

// printableID is an id that may be logged, or nothing.
func printableID(id string) string {
	const longest = 64
	if len(id) > longest {
		return ""
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	return id
}
