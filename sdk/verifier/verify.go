// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	// negativeLife is how long a digest that belongs to no key is refused
	// without asking again.
	negativeLife = 5 * time.Second
	// retryAfter is when to ask again after a failure.
	retryAfter = time.Second
	// attempts bounds how often one request asks: again where an answer left
	// out what was asked.
	attempts = 3
)

// Verify judges a request that presents apiKey. Its error is nil unless the
// verdict is Unavailable; it then is an ErrUnavailable.
//
// A key is accepted from cache. It is refused only by what the engine answered
// to a question that was asked after Verify was called, or because it cannot
// belong to any key.
func (v *Verifier) Verify(ctx context.Context, apiKey string, check Check) (Result, error) {
	// The clock is read first: its instruction waits for all before it.
	now := v.now()
	f := v.feed.Load()
	if id, ok := idIn(apiKey); ok && now < f.good {
		// The memory is on its way while the token is hashed.
		at := v.cache.index.place(&id)
		v.cache.index.approach(at)
		digest := sum(apiKey)
		w := wordsOf(&digest)
		var h held
		if v.cache.index.find(at, &w, &h) && f.current(h.age, h.role, h.seq) && f.latest(now) < h.until &&
			allowed(h.ranges, check.SourceIP) && record.CoversAll(*h.scopes, check.Scopes) {
			v.usage.used(h.version, h.slot, check.Source, now)
			return Result{
				Verdict: Accepted, Code: record.CodeValid, State: h.state,
				Scopes: *h.scopes, Key: h.record, Version: h.of,
			}, nil
		}
	}
	return v.verifySlowly(ctx, apiKey, check, now)
}

// sum is token.Sum without a copy of the token.
func sum(s string) token.Digest {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(s), len(s))) //nolint:gosec // it is only read
}

// presented is a key that a request presents, without its plaintext.
type presented struct {
	id     keyID // zero where there is none in it
	digest token.Digest
	words  words
	query  record.Query
	source string
	// unknown is the code where it belongs to no key.
	unknown record.Code
	paid    fare
}

func (v *Verifier) verifySlowly(ctx context.Context, apiKey string, check Check, arrived mono) (Result, error) {
	p := presented{unknown: record.CodeMalformed, source: check.Source}
	if parsed, err := token.Parse(apiKey); err == nil {
		copy(p.id[:], parsed.KeyID)
		p.unknown = record.CodeNotFound
	} else if token.ImportableForm(apiKey) != nil {
		return v.refuse(record.CodeMalformed), nil
	}
	p.digest = token.Sum(apiKey)
	p.words = wordsOf(&p.digest)
	p.query = record.Query{Digest: p.digest, Scopes: check.Scopes, SourceIP: check.SourceIP}

	id, imported := v.aliases.get(p.digest)
	if !imported {
		id = p.id
	}
	cached := v.cache.find(id)
	if cached != nil {
		if result, ok := v.fromCache(cached, &p, arrived); ok {
			return result, nil
		}
	} else if v.isNegative(&p, arrived) {
		v.stats.negatives.Add(1)
		return v.refuse(p.unknown), nil
	}
	if v.config.VerifyTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, v.config.VerifyTimeout)
		defer cancel()
	}
	var reason error
	for range attempts {
		result, err := v.ask(ctx, &p, cached, imported)
		if err == nil {
			if result.Verdict == Accepted {
				p.paid.refund()
			}
			return result, nil
		}
		if reason = err; !errors.Is(err, errNotTold) {
			break
		}
	}
	return v.unavailable(reason)
}

// fromCache accepts what the short way leaves to a closer look: imported keys,
// and versions past the overlap that their clients were told.
func (v *Verifier) fromCache(e *entry, p *presented, now mono) (Result, bool) {
	f := v.feed.Load()
	if now >= f.good || !e.usable(f) {
		return Result{}, false
	}
	found := e.find(&p.words)
	if found == nil {
		return Result{}, false
	}
	verdict := e.record.Judge(vaultTime(f.latest(now)), found.of, p.query)
	if verdict.Code != record.CodeValid {
		return Result{}, false
	}
	v.usage.used(found, nil, p.source, now)
	return Result{
		Verdict: Accepted, Code: record.CodeValid, State: verdict.State,
		Scopes: verdict.Scopes, Key: e.record, Version: found.of,
	}, true
}

// ask has the engine answer, first about the id in what was presented, then
// about its digest, as the engine does itself. cached is the key, if it is, and
// imported tells that its digest is known to be an imported one. Keys that are
// cached have a lane of their own.
func (v *Verifier) ask(ctx context.Context, p *presented, cached *entry, imported bool) (Result, error) {
	noSuchID := true
	if p.id != (keyID{}) && !imported {
		l, from := v.unknown, &v.budgets.strangers
		if cached != nil {
			l, from = v.known, &v.budgets.guessers
			if cached.find(&p.words) != nil {
				from = &v.budgets.holders
			}
		}
		f, err := l.ask(ctx, subject{id: p.id}, &p.paid, from)
		if err != nil {
			return Result{}, err
		}
		switch f.outcome {
		case untold:
			return Result{}, errNotTold
		case missing:
		case found:
			if version := f.record.Find(p.digest); version != nil {
				// It was no guess, but a version made a moment ago.
				p.paid.change(&v.budgets.guessers, &v.budgets.holders, v.now())
				return v.judge(ctx, f, version, p)
			}
			noSuchID = false
		}
	}
	l, from := v.unknown, &v.budgets.strangers
	if imported {
		l, from = v.known, &v.budgets.holders
	}
	f, err := l.ask(ctx, subject{digest: p.digest}, &p.paid, from)
	if err != nil {
		return Result{}, err
	}
	switch f.outcome {
	case untold:
		return Result{}, errNotTold
	case missing:
		if imported {
			v.aliases.remove(p.digest)
		}
		if noSuchID {
			v.negatives.put(p.digest, negative{id: p.id, generation: f.generation, seq: f.seq, until: f.clock.sent + mono(negativeLife)})
		}
		return v.refuse(p.unknown), nil
	case found:
	}
	return v.judge(ctx, f, f.record.Find(p.digest), p)
}

// judge decides by a record that was asked for after the request arrived. Time
// must not be what refuses before it is known to have come.
func (v *Verifier) judge(ctx context.Context, f *flight, version *record.Version, p *presented) (Result, error) {
	now := v.now()
	late := f.record.Judge(vaultTime(f.clock.latest(now)), version, p.query)
	if late.Code == record.CodeValid {
		v.usage.add(useKey{key: f.record.KeyID, version: version.Number, source: p.source}, now, 1, 0)
		return Result{
			Verdict: Accepted, Code: record.CodeValid, State: late.State, Scopes: late.Scopes, Key: f.record, Version: version,
		}, nil
	}
	early := f.record.Judge(vaultTime(f.clock.earliest(now)), version, p.query)
	if early.Code == record.CodeValid {
		// Its end lies between the bounds of Vault's time: when the lower one has
		// reached it, it has come. That takes no longer than the answer did.
		v.pause(ctx, wait(version, f.clock.earliest(now)))
		if ctx.Err() != nil {
			return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		early = f.record.Judge(vaultTime(f.clock.earliest(v.now())), version, p.query)
		if early.Code == record.CodeValid {
			return Result{}, errNotTold
		}
	}
	v.stats.code(early.Code)
	v.usage.add(useKey{key: f.record.KeyID, version: version.Number, source: p.source}, now, 0, 1)
	return Result{
		Verdict: Refused, Code: early.Code, State: early.State, Scopes: early.Scopes, Key: f.record, Version: version,
	}, nil
}

// wait is how long it is from now, in Unix nanoseconds, to the next moment at
// which time changes something about the version, and a little more.
func wait(version *record.Version, now int64) time.Duration {
	next := time.Duration(0)
	ends := []time.Time{version.OverlapEnds}
	if end, timed := version.TimedEnd(); timed {
		ends = append(ends, end)
	}
	for _, end := range ends {
		if d := end.Sub(vaultTime(now)); d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	return next + next>>(driftShift-1) + time.Microsecond
}

// isNegative tells whether the digest is known to belong to no key.
func (v *Verifier) isNegative(p *presented, now mono) bool {
	n, ok := v.negatives.get(p.digest)
	if !ok {
		return false
	}
	f := v.feed.Load()
	if now >= n.until || now >= f.good || n.generation != f.generation {
		v.negatives.remove(p.digest)
		return false
	}
	if n.id == (keyID{}) {
		return true
	}
	v.records.Lock()
	defer v.records.Unlock()
	return !v.changes.changedAfter(n.id, n.seq)
}

func (v *Verifier) refuse(code record.Code) Result {
	v.stats.code(code)
	return Result{Verdict: Refused, Code: code}
}

func (v *Verifier) unavailable(reason error) (Result, error) {
	v.stats.unavailable.Add(1)
	return Result{Verdict: Unavailable, RetryAfter: retryAfter}, reason
}

// pause waits, for so long or until ctx ends.
func (v *Verifier) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-v.life.Done():
	}
}
