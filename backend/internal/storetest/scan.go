// SPDX-License-Identifier: MPL-2.0

package storetest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// scanWindow is the number of bytes by which Scan finds where a secret may
// begin. Shorter secrets cannot be looked for.
const scanWindow = 8

// needle is one form of a secret.
type needle struct {
	text   []byte
	secret int
	form   string
}

// Scan looks for secrets in the path and the value of every entry: as they
// are, as JSON writes them, in hex and in base64 wherever it may begin. The
// error says where one stands, by the number of the secret, from 1. It takes
// time by what is stored, hardly by how many secrets there are.
func Scan(storage logical.Storage, secrets ...string) error {
	index := map[string][]needle{}
	for i, s := range secrets {
		if len(s) < scanWindow {
			return fmt.Errorf("secret %d is shorter than %d bytes and would be found anywhere", i+1, scanWindow)
		}
		for _, n := range forms(i+1, s) {
			start := string(n.text[:scanWindow])
			index[start] = append(index[start], n)
		}
	}
	return scan(context.Background(), storage, "", index)
}

func scan(ctx context.Context, storage backing, prefix string, index map[string][]needle) error {
	names, err := storage.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	for _, name := range names {
		path := prefix + name
		if strings.HasSuffix(name, "/") {
			if err := scan(ctx, storage, path, index); err != nil {
				return err
			}
			continue
		}
		if n := find([]byte(path), index); n != nil {
			return fmt.Errorf("secret %d stands %s in the path %q", n.secret, n.form, path)
		}
		entry, err := storage.Get(ctx, path)
		if err != nil {
			return fmt.Errorf("read %q: %w", path, err)
		}
		if entry == nil {
			continue
		}
		if n := find(entry.Value, index); n != nil {
			return fmt.Errorf("secret %d stands %s in the value of %q", n.secret, n.form, path)
		}
	}
	return nil
}

func find(in []byte, index map[string][]needle) *needle {
	for i := 0; i+scanWindow <= len(in); i++ {
		for _, n := range index[string(in[i:i+scanWindow])] {
			if bytes.HasPrefix(in[i:], n.text) {
				return &n
			}
		}
	}
	return nil
}

// forms returns the ways in which a secret may have been written down.
func forms(number int, secret string) []needle {
	raw := []byte(secret)
	found := []needle{
		{raw, number, "as it is"},
		{[]byte(hex.EncodeToString(raw)), number, "in hex"},
		{[]byte(strings.ToUpper(hex.EncodeToString(raw))), number, "in hex"},
	}
	if quoted, err := json.Marshal(secret); err == nil {
		found = append(found, needle{quoted[1 : len(quoted)-1], number, "in JSON"})
	}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		// Base64 takes three bytes at a time: what a secret looks like depends
		// on how many bytes stand before it. The characters that it shares
		// with its neighbours are cut off.
		for before := range 3 {
			text := encoding.EncodeToString(append(make([]byte, before), raw...))
			text = text[(before*8+5)/6:]
			if cut := (before + len(raw)) % 3; cut != 0 {
				text = text[:len(text)-1]
			}
			if len(text) >= scanWindow {
				found = append(found, needle{[]byte(text), number, "in base64"})
			}
		}
	}
	return found
}
