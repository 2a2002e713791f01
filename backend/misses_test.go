// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// codesOf verifies keys in batches and counts what was answered.
func codesOf(t *testing.T, m *mount, keys []string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for len(keys) > 0 {
		n := min(len(keys), maxItems)
		items := make([]any, n)
		for i, k := range keys[:n] {
			items[i] = object{"api_key": k}
		}
		results, ok := m.write("verify", object{"batch_input": items})["batch_results"].([]any)
		if !ok {
			t.Fatal("no batch_results")
		}
		for _, r := range results {
			answer, ok := r.(object)
			if !ok {
				t.Fatalf("an answer of type %T", r)
			}
			if code, ok := answer["code"].(string); ok {
				counts[code]++
			} else {
				counts[fmt.Sprint(answer["error"])]++
			}
		}
		keys = keys[n:]
	}
	return counts
}

func unknownTokens(t *testing.T, n int) []string {
	t.Helper()
	tokens := make([]string, n)
	for i := range tokens {
		id, err := token.NewID(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if tokens[i], err = token.New(rand.Reader, token.Format{}, id); err != nil {
			t.Fatal(err)
		}
	}
	return tokens
}

func TestAReadThatFindsAKeyCostsItsCallerNothing(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	keys := make([]string, 300)
	for i := range keys {
		keys[i] = m.key(fmt.Sprintf("k%d", i), nil)
	}
	cold := m.reopen()
	if got := codesOf(t, cold, unknownTokens(t, missBurst-50)); got["NOT_FOUND"] != missBurst-50 {
		t.Fatalf("unknown keys: %v", got)
	}
	if got := codesOf(t, cold, keys); got["VALID"] != len(keys) {
		t.Errorf("valid keys after a start: %v", got)
	}
	if got := codesOf(t, cold, unknownTokens(t, 100)); got["NOT_FOUND"] != 50 {
		t.Errorf("unknown keys beyond the limit: %v", got)
	}
}

func TestAnUnknownIDIsReadOnce(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	unknown := unknownTokens(t, 1)
	codesOf(t, m, unknown)
	counting.Reset()
	codesOf(t, m, unknown)
	if n := counting.Total().All(); n != 0 {
		t.Errorf("the second look took %d storage operations", n)
	}
}

func TestATokenOfAnotherMountThatWasImportedIsVerifiedFromTheCache(t *testing.T) {
	t.Parallel()
	other := newMount(t)
	other.role(nil)
	foreign := other.key("x", nil)
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	m.write("keys/imported", object{"role": "r", "import_key": foreign})
	codesOf(t, m, []string{foreign, foreign})
	counting.Reset()
	many := make([]string, 2*missBurst)
	for i := range many {
		many[i] = foreign
	}
	if got := codesOf(t, m, many); got["VALID"] != len(many) {
		t.Errorf("verified: %v", got)
	}
	if n := counting.Total().All(); n != 0 {
		t.Errorf("it took %d storage operations", n)
	}
}
