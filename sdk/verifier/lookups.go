// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	// batchItems bounds the ids and digests of one lookup. The engine takes
	// 1000; smaller ones hold nobody up for long.
	batchItems = 500
)

// The reasons of ErrUnavailable.
var (
	errLimited  = fmt.Errorf("%w: too many keys that are not cached", ErrUnavailable)
	errNoAnswer = fmt.Errorf("%w: the engine does not answer", ErrUnavailable)
	errNotTold  = fmt.Errorf("%w: the engine could not look the key up", ErrUnavailable)
	errClosed   = fmt.Errorf("%w: the verifier is closed", ErrUnavailable)
)

// subject is what a flight asks for: an id, or the digest of what may be an
// imported token. The other is zero.
type subject struct {
	id     keyID
	digest token.Digest
}

// flight is one question that goes with the next lookup. Whoever arrives before
// it is sent shares it: the answer is younger than the request. Once done is
// closed nothing in it changes.
type flight struct {
	subject
	waiting int
	done    chan struct{}

	outcome outcome
	record  *record.Record // where it is found
	clock   vaultClock
	// generation and seq are the place in the feed of the answer.
	generation uint32
	seq        uint64
	err        error
}

// outcome is what became of a subject.
type outcome uint8

const (
	untold outcome = iota
	found
	missing
)

// lane sends lookups, a few at a time. Keys that are cached have another than
// strangers, so that a flood of unknown keys holds up none that is known.
type lane struct {
	v       *Verifier
	senders int // at most so many lookups at a time
	queue   int // at most so many flights wait
	patient int // at most so many requests wait

	mu       sync.Mutex
	flights  map[subject]*flight // not sent yet
	urgent   []*flight
	quiet    []*flight
	sending  int  // senders that run
	coming   bool // one of them has not taken its first lookup yet
	waiting  int
	stopping bool
}

func newLane(v *Verifier, senders, queue int) *lane {
	return &lane{v: v, senders: senders, queue: queue, patient: min(queue, maxWaiting), flights: map[subject]*flight{}}
}

// ask returns the answer to a question that is sent from now on, and that by
// pays for.
func (l *lane) ask(ctx context.Context, s subject, by *fare, from *budget) (*flight, error) {
	f, err := l.join(s, by, from)
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	l.mu.Lock()
	l.waiting--
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f, f.err
}

func (l *lane) join(s subject, by *fare, from *budget) (*flight, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping {
		return nil, errClosed
	}
	if l.waiting >= l.patient {
		l.v.stats.limited.Add(1)
		return nil, errLimited
	}
	f := l.flights[s]
	if f == nil {
		if len(l.flights) >= l.queue || !by.pay(from, l.v.now()) {
			l.v.stats.limited.Add(1)
			return nil, errLimited
		}
		f = &flight{subject: s, done: make(chan struct{})}
		l.flights[s] = f
	}
	if f.waiting == 0 {
		l.urgent = append(l.urgent, f)
	}
	f.waiting++
	l.waiting++
	l.start()
	return f, nil
}

// refetch fetches records that nobody waits for. Where there are too many of
// those the next use of a key fetches it.
func (l *lane) refetch(ids []keyID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		s := subject{id: id}
		if l.stopping || len(l.flights) >= l.queue {
			break
		}
		if l.flights[s] == nil {
			f := &flight{subject: s, done: make(chan struct{})}
			l.flights[s] = f
			l.quiet = append(l.quiet, f)
		}
	}
	l.start()
}

// budgets bound what Vault is asked for whoever is refused. Who presents a
// secret that is cached has another than who presents but an id, which is
// public: so nobody without a key holds up those with one.
type budgets struct{ holders, guessers, strangers budget }

// budget bounds how many requests a second ask for what is refused. It holds
// what twice a second's worth is at most.
type budget struct {
	mu              sync.Mutex
	perSecond, left float64
	at              mono
}

func (b *budget) open(perSecond float64) {
	b.perSecond, b.left = perSecond, max(1, 2*perSecond)
}

func (b *budget) take(now mono) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.left+b.perSecond*time.Duration(now-b.at).Seconds(), max(1, 2*b.perSecond))
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

func (b *budget) give() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.left+1, max(1, 2*b.perSecond))
}

// fare is what one request has paid for its questions: once to each budget,
// however many they are.
type fare []*budget

func (f *fare) pay(b *budget, now mono) bool {
	if slices.Contains(*f, b) {
		return true
	}
	if !b.take(now) {
		return false
	}
	*f = append(*f, b)
	return true
}

// change has another budget pay what one has, if it can.
func (f *fare) change(from, to *budget, now mono) {
	if slices.Contains(*f, from) && f.pay(to, now) {
		from.give()
		*f = slices.DeleteFunc(*f, func(b *budget) bool { return b == from })
	}
}

// refund is for requests that are accepted: they cost nothing, so that a start
// with an empty cache is not held up.
func (f *fare) refund() {
	for _, b := range *f {
		b.give()
	}
	*f = nil
}

// start has another sender run, where there is something to ask and none is
// about to: those whose lookup is under way may be long. The caller locks.
func (l *lane) start() {
	if l.sending < l.senders && !l.coming && len(l.urgent)+len(l.quiet) > 0 && !l.stopping {
		l.sending++
		l.coming = true
		l.v.background.Add(1)
		go l.send()
	}
}

// send sends lookups while there is something to ask.
func (l *lane) send() {
	defer l.v.background.Done()
	for first := true; ; first = false {
		batch := l.next(first)
		if batch == nil {
			return
		}
		l.v.lookUp(batch)
	}
}

// next takes the flights of one lookup, those that somebody waits for first,
// and leaves what is over to another sender. first tells that it is the first
// lookup of this one.
func (l *lane) next(first bool) []*flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first {
		l.coming = false
	}
	var batch []*flight
	for _, queue := range []*[]*flight{&l.urgent, &l.quiet} {
		n := 0
		for _, f := range *queue {
			if l.flights[f.subject] == f { // else it has been sent by the other queue
				if len(batch) == batchItems {
					break
				}
				delete(l.flights, f.subject)
				batch = append(batch, f)
			}
			n++
		}
		*queue = slices.Delete(*queue, 0, n)
	}
	if len(batch) == 0 {
		l.sending--
	}
	l.start()
	return batch
}

// stop has no more flights begin. Those that wait fail.
func (l *lane) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping = true
	for s, f := range l.flights {
		delete(l.flights, s)
		f.err = errClosed
		close(f.done)
	}
	l.urgent, l.quiet = nil, nil
}

// lookUp asks for the subjects of a batch and lets go whoever waits.
func (v *Verifier) lookUp(batch []*flight) {
	request := requestFor(batch)
	ctx, cancel := context.WithTimeout(v.life, v.config.RequestTimeout)
	defer cancel()
	v.stats.lookups.Add(1)
	sent := v.now()
	answer, err := v.engine.Lookup(ctx, request)
	received := v.now()
	var told *answered
	if err == nil {
		told, err = v.takeIn(&answer, sent)
	}
	v.lookupDone(err)
	for _, f := range batch {
		if err != nil {
			f.err = errNoAnswer
		} else {
			f.clock = vaultClock{read: answer.Now.UnixNano(), sent: sent, received: received}
			f.seq, f.generation = answer.Seq, told.generation
			told.fill(f)
		}
		close(f.done)
	}
}

func requestFor(batch []*flight) LookupRequest {
	var r LookupRequest
	for _, f := range batch {
		if f.id != (keyID{}) {
			r.KeyIDs = append(r.KeyIDs, f.id.String())
		} else {
			r.Digests = append(r.Digests, f.digest)
		}
	}
	return r
}

// answered is the answer to a lookup, by what was asked.
type answered struct {
	generation uint32
	records    map[keyID]*record.Record
	byDigest   map[token.Digest]*record.Record // imported versions
	missing    map[string]struct{}
	// outdated are the ids that the feed says have changed since: what was
	// answered about them decides nothing.
	outdated map[keyID]bool
}

// fill gives a flight what was answered about it.
func (a *answered) fill(f *flight) {
	asked := f.id.String()
	if f.id != (keyID{}) {
		f.record = a.records[f.id]
	} else {
		f.record = a.byDigest[f.digest]
		asked = f.digest.Hex()
	}
	id := f.id
	if f.record != nil {
		id, _ = parseID(f.record.KeyID)
	}
	if a.outdated[id] {
		return
	}
	if f.record != nil {
		f.outcome = found
	} else if _, none := a.missing[asked]; none {
		f.outcome = missing
	}
}

// takeIn checks an answer and caches what is in it.
func (v *Verifier) takeIn(a *LookupAnswer, sent mono) (*answered, error) {
	if a.Epoch == "" || len(a.Epoch) > maxEpoch || a.Now.Before(firstNano) || a.Now.After(lastNano) {
		return nil, errBadAnswer
	}
	told := &answered{
		records:  make(map[keyID]*record.Record, len(a.Records)),
		byDigest: map[token.Digest]*record.Record{},
		missing:  make(map[string]struct{}, len(a.Missing)),
		outdated: map[keyID]bool{},
	}
	for _, m := range a.Missing {
		told.missing[m] = struct{}{}
	}
	for _, r := range a.Records {
		if err := checkRecord(r); err != nil {
			return nil, err
		}
		id, _ := parseID(r.KeyID)
		if told.records[id] != nil {
			return nil, fmt.Errorf("%w: a key twice", errBadAnswer)
		}
		told.records[id] = r
		for i := range r.Versions {
			if version := &r.Versions[i]; version.Imported && !version.Digest.IsZero() {
				told.byDigest[version.Digest] = r
			}
		}
	}
	v.stats.records.Add(uint64(len(a.Records)))
	v.records.Lock()
	f := v.feed.Load()
	if f.generation > 0 && a.Epoch == f.epoch {
		told.generation = f.generation
	}
	outdated := func(id keyID) {
		if told.generation > 0 && v.changes.changedAfter(id, a.Seq) {
			told.outdated[id] = true
		}
	}
	for id, r := range told.records {
		v.keep(f, id, r, told.generation, a.Seq, sent)
		outdated(id)
	}
	for m := range told.missing {
		if id, ok := parseID(m); ok {
			v.drop(id, a)
			outdated(id)
		}
	}
	v.records.Unlock()
	if told.generation == 0 {
		v.pollNow() // the feed does not know this epoch yet
	}
	return told, nil
}

// keep caches a record, unless one is cached that is newer. The caller holds
// v.records.
func (v *Verifier) keep(f *feedState, id keyID, r *record.Record, generation uint32, seq uint64, sent mono) {
	former := v.cache.peek(id)
	current := former != nil && former.age.generation() == f.generation
	if current && generation == f.generation && (former.seq > seq || former.seq == seq && former.age.fetched() > sent.tick()) {
		return
	}
	if current && generation != f.generation {
		return // of an epoch that is over, or has not begun for the feed
	}
	e := newEntry(r, v.role(r.Role), former)
	if e == nil {
		if former != nil {
			v.cache.remove(id)
		}
		return
	}
	e.age, e.seq = newAge(generation, sent.tick()), seq
	e.touched.Store(uint32(sent.tick()))
	e.stale.Store(v.changes.changedAfter(id, seq))
	v.cache.put(e)
	if r.Imported {
		for i := range e.record.Versions {
			if version := &e.record.Versions[i]; version.Imported {
				v.aliases.put(version.Digest, id)
			}
		}
	}
}

// drop forgets a key that is no more, unless what is cached is newer. The
// caller holds v.records.
func (v *Verifier) drop(id keyID, a *LookupAnswer) {
	if e := v.cache.peek(id); e != nil && (e.seq <= a.Seq || e.age.generation() != v.feed.Load().generation) {
		v.cache.remove(id)
	}
}

// lookupDone notes how lookups fare.
func (v *Verifier) lookupDone(err error) {
	if err == nil {
		v.lookupsFail.Store(false)
		return
	}
	v.stats.lookupFailures.Add(1)
	if v.life.Err() == nil && !v.lookupsFail.Swap(true) {
		v.log.Warn("keys cannot be looked up", "error", redacted(err))
	}
}

// redacted is an error for the log. What an engine answers is not repeated
// where it could be anything.
func redacted(err error) error {
	if errors.Is(err, errBadRecord) {
		return errBadRecord
	}
	return err
}
