// SPDX-License-Identifier: MPL-2.0

package vaultclient

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestABodyIsBoundedToTheByte(t *testing.T) {
	for _, chunk := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.DataErrReader} {
		for length, fits := range map[int]bool{0: true, 9: true, 10: true, 11: false, 1000: false} {
			body := &boundedBody{ReadCloser: io.NopCloser(chunk(strings.NewReader(strings.Repeat("x", length)))), left: 10}
			got, err := io.ReadAll(body)
			if fits && (err != nil || len(got) != length) || !fits && (!errors.Is(err, errTooLarge) || len(got) != 10) {
				t.Errorf("of %d bytes %d were read: %v", length, len(got), err)
			}
		}
	}
}
