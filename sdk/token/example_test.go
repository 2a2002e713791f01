// SPDX-License-Identifier: MPL-2.0

package token_test

import (
	"crypto/rand"
	"fmt"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

func Example() {
	id, err := token.NewID(rand.Reader)
	if err != nil {
		panic(err)
	}
	apiKey, err := token.New(rand.Reader, token.Format{Prefix: "tm_live"}, id)
	if err != nil {
		panic(err)
	}
	stored := token.Sum(apiKey) // what a verifier keeps

	p, err := token.Parse(apiKey)
	fmt.Println(p.Prefix, p.KeyID == id, err)
	fmt.Println(token.Sum(apiKey).Equal(stored))

	_, err = token.Parse(apiKey + "!")
	fmt.Println(err)
	// Output:
	// tm_live true <nil>
	// true
	// malformed token: want <prefix>_<key_id>_<secret><checksum> with a matching checksum
}

func ExampleScanPattern() {
	fmt.Println(token.ScanPattern(token.Format{Prefix: "tm_live"}))
	// Output: \btm_live_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}\b
}
