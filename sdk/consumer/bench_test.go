// SPDX-License-Identifier: MPL-2.0

package consumer_test

import (
	"net/http"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/consumer"
)

// What a request costs more because its key is followed: nothing here waits for
// a lock, so it does not grow with the number of goroutines.
func BenchmarkTransport(b *testing.B) {
	base := roundTrip(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
	})
	w := newWorld(b)
	source := w.source()
	if _, err := source.Key(b.Context()); err != nil {
		b.Fatal(err)
	}
	transport, err := consumer.NewTransport(source, consumer.TransportConfig{Hosts: []string{"api.test"}, Base: base})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "https://api.test/orders", nil)
		if err != nil {
			b.Error(err)
			return
		}
		for pb.Next() {
			resp, err := transport.RoundTrip(req)
			if err != nil {
				b.Error(err)
				return
			}
			_ = resp.Body.Close()
		}
	})
}

func BenchmarkCurrent(b *testing.B) {
	w := newWorld(b)
	source := w.source()
	if _, err := source.Key(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if source.Current().IsZero() {
				b.Error("no key")
			}
		}
	})
}
