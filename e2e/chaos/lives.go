// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

// lives has keys come, be used, be rotated, and go, one after the other.
func (w *world) lives(ctx context.Context, rng *rand.Rand, name string) {
	for number := 1; ctx.Err() == nil; number++ {
		k := &key{name: fmt.Sprintf("%s-%d", name, number), role: roleManual, tokens: map[int]string{}}
		if err := w.live(ctx, rng, k); err != nil && ctx.Err() == nil {
			w.t.Errorf("the life of %s: %v", k.name, err)
		}
	}
}

// live is the life of one key. Where ctx ends before that, the last look finds the
// key, or it was about to be deleted.
func (w *world) live(ctx context.Context, rng *rand.Rand, k *key) error {
	if err := w.come(ctx, rng, k); err != nil {
		return err
	}
	w.fleet.join(k, agentLike, leftover)
	defer w.fleet.leave(k)
	for range rng.IntN(3) {
		pause(ctx, time.Second+rand.N(4*time.Second))
		w.rotate(ctx, rng, k, k.now(), time.Duration(8+rng.IntN(40))*time.Second)
	}
	pause(ctx, 2*time.Second+rand.N(10*time.Second))
	if ctx.Err() != nil {
		return nil
	}
	return w.deleteKey(ctx, k)
}

// come makes a key, or imports it. To ask for that again is to ask for it once.
func (w *world) come(ctx context.Context, rng *rand.Rand, k *key) error {
	what, body := "create", fields{"role": roleManual}
	if rng.IntN(3) == 0 {
		token := fmt.Sprintf("legacy-%016x%016x", rng.Uint64(), rng.Uint64())
		w.secrets.Add(token, "an imported key")
		k.tokens[1] = token
		what, body["import_key"] = "import", token
	}
	sent := now()
	a, attempts := w.calls.until(ctx, mutateTimeout, http.MethodPost, mount+"/keys/"+k.name, body)
	if !a.ok() {
		return fmt.Errorf("%s: %s", what, a)
	}
	w.oracle.Born(k.name, 1, sent, a.answered)
	k.setCurrent(1)
	var made newVersion
	_ = a.decode(&made) // the answer of a call that was repeated may have nothing
	if k.tokens[1] == "" && made.APIKey != "" {
		w.noteToken(k, 1, made.APIKey)
	}
	if attempts > 1 {
		what += ", repeated"
		if err := w.whenCalm(ctx); err != nil {
			return err
		}
	} else if made.Version != 1 || k.tokens[1] == "" {
		return fmt.Errorf("%s answered version %d, its key there: %v", what, made.Version, k.tokens[1] != "")
	}
	w.ops.add(what)
	info, err := w.observe(ctx, k)
	if err != nil {
		return err
	}
	k.id = info.KeyID
	w.mu.Lock()
	w.living = append(w.living, k)
	w.mu.Unlock()
	w.fetchCurrent(ctx, k, info)
	if k.token(1) == "" && ctx.Err() == nil {
		return errors.New("its first version cannot be read")
	}
	return nil
}

// deleteKey deletes a key. Its clients that read it end before that; what was left
// over is still tried for a while.
func (w *world) deleteKey(ctx context.Context, k *key) error {
	k.gone.Store(true)
	w.mu.Lock()
	w.living = slices.DeleteFunc(w.living, func(other *key) bool { return other == k })
	w.mu.Unlock()
	var all []int
	for version := 1; version <= k.now()+2; version++ {
		all = append(all, version)
	}
	op := w.oracle.Begin(k.name, now(), oracle.Intent{Ends: all})
	a, _ := w.calls.until(ctx, mutateTimeout, http.MethodDelete, mount+"/keys/"+k.name, nil)
	if !a.ok() {
		op.Unknown()
		return fmt.Errorf("delete: %s", a)
	}
	op.Done(a.answered, oracle.Outcome{Ended: all, Final: true})
	w.ops.add("delete")
	w.mu.Lock()
	w.deleted = append(w.deleted, k)
	w.mu.Unlock()
	pause(ctx, 4*time.Second)
	a, _ = w.calls.until(ctx, mutateTimeout, http.MethodGet, mount+"/keys/"+k.name, nil)
	if a.ok() && !w.struck(a.sent, a.answered, twoLeaders) {
		w.oracle.Add(oracle.Violation{Kind: oracle.Revived, Key: k.name, Time: a.answered, Detail: "it was deleted, and can be read"})
	}
	return nil
}

// untold are what was not told of the keys that were deleted: a history goes
// with its key.
func (w *world) untold() []oracle.Violation {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []oracle.Violation
	for _, k := range w.deleted {
		found = append(found, w.receiver.events.Life(k.id, k.now(), now())...)
	}
	return found
}
