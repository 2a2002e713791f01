// SPDX-License-Identifier: MPL-2.0

package store_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"crypto/rand"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// agedKey is a key after n rotations.
func agedKey(id string, n int) *keyring.Key {
	r := role.New("r")
	c := keyring.Cause{Now: start, Actor: "periodic"}
	material := func(i int) keyring.Material {
		return keyring.Material{Digest: token.Sum(fmt.Sprint(id, i)), Sealed: make([]byte, 80)}
	}
	k := keyring.Create(keyring.Key{ID: id, Name: "client-" + id, Role: "r"}, c, r.Policy(), material(1))
	for i := range n {
		c.Now = c.Now.Add(48 * time.Hour)
		k = k.Advance(c, r.Policy(), func(int) keyring.DrainVerdict { return keyring.DrainVerdict{} })
		next, err := k.Rotate(c, r.Policy(), material(i+2), keyring.RotateOptions{Overlap: 24 * time.Hour})
		if err != nil {
			panic(err)
		}
		k = next
	}
	return k
}

// BenchmarkLoadKey decodes a key, as the first verification after a start
// does, and reports what it takes in storage and in the cache.
func BenchmarkLoadKey(b *testing.B) {
	for name, rotations := range map[string]int{"fresh": 0, "aged": 100} {
		b.Run(name, func(b *testing.B) {
			text, err := json.Marshal(agedKey("k", rotations))
			if err != nil {
				b.Fatal(err)
			}
			const sample = 256
			keys := make([]*keyring.Key, sample)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := range keys {
				keys[i] = &keyring.Key{}
				if err := json.Unmarshal(text, keys[i]); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			for b.Loop() {
				if err := json.Unmarshal(text, &keyring.Key{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(text)), "stored-B")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/sample, "cached-B")
			runtime.KeepAlive(keys)
		})
	}
}

// BenchmarkCachedVerify is what a verification asks of the store, on 8
// goroutines for each processor.
func BenchmarkCachedVerify(b *testing.B) {
	s, err := store.Open(b.Context(), storetest.NewMemory(), clock.NewManual(start), rand.Reader, true)
	if err != nil {
		b.Fatal(err)
	}
	r := role.New("r")
	if err := s.PutRole(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprintf("key%09d", i)
		if err := s.CreateKey(b.Context(), agedKey(ids[i], 3), minutes(5)); err != nil {
			b.Fatal(err)
		}
	}
	digest := token.Sum("unknown")
	b.ResetTimer()
	var goroutines atomic.Int64
	b.SetParallelism(8)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		i := int(goroutines.Add(1)) * 7919
		for pb.Next() {
			i++
			k, err := s.Key(b.Context(), ids[i%len(ids)])
			if err != nil {
				b.Error(err)
				return
			}
			r, err := s.Role(b.Context(), k.Role)
			if err != nil {
				b.Error(err)
				return
			}
			if v := k.Verify(start, r.Limits(), record.Query{Digest: digest}); v.Code != record.CodeNotFound {
				b.Error(v)
				return
			}
		}
	})
}
