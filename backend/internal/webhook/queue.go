// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// stream is what waits for one key at one hook. Its first event is sent until
// it is delivered or given up on; then comes the next.
type stream struct {
	id string
	// seqs ascend, but for the first one: it may be being sent when one comes
	// that should have come before it.
	seqs []uint64
	// next is when the first event may be tried.
	next time.Duration
	// known tells that attempts and next are those of the first event.
	// Otherwise its entry is read for them.
	known    bool
	attempts int
	began    time.Time
	// settled tells that the first event only has to be removed from storage.
	settled bool
	// unstored counts the failures of storage in a row with the first event,
	// from unstoredSince. seenWorking is what the hook's working was at the last.
	unstored      int
	unstoredSince time.Duration
	seenWorking   uint64
	// index is the place in the heap, or -1 while the stream is being sent.
	index int
}

// streams is a heap of those that are not being sent, by next.
type streams []*stream

func (s streams) Len() int           { return len(s) }
func (s streams) Less(i, j int) bool { return s[i].next < s[j].next }
func (s streams) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push is for package heap.
func (s *streams) Push(x any) {
	if one, ok := x.(*stream); ok {
		one.index = len(*s)
		*s = append(*s, one)
	}
}

// Pop is for package heap.
func (s *streams) Pop() any {
	last := (*s)[len(*s)-1]
	last.index = -1
	(*s)[len(*s)-1] = nil
	*s = (*s)[:len(*s)-1]
	return last
}

// queue is one hook with what waits for it.
type queue struct {
	d    *Deliverer
	name string
	wake chan struct{}
	// cancel stops its goroutine and attempts. The Deliverer's mu guards it.
	cancel context.CancelFunc

	// entry keeps writes to the outbox apart from a change of the hook's own
	// entry, so that nothing is written to the outbox of a deleted hook. It is
	// taken before mu and held during storage calls; mu never is.
	entry sync.RWMutex

	mu sync.Mutex
	// changed is signalled when a stream is given back, or nothing is to do.
	changed *sync.Cond
	// hook is replaced, never changed. It is nil where the stored one cannot
	// be read, for the reason in unread.
	hook   *Hook
	unread *unreadHook
	// unsaved tells that hook has news that storage does not have.
	unsaved bool
	// unanswered tells that the write that made the hook failed, and none has
	// succeeded since: if storage has it, nobody was answered its secret. The
	// Deliverer's admin guards it.
	unanswered bool

	byID    map[string]*stream
	ready   streams
	pending int
	sending int

	// failures in a row, and the wait that they lead to.
	failures int
	holdTo   time.Duration
	// storageFailures in a row; working counts the changes that storage took.
	storageFailures int
	working         uint64
	// fresh is when the receiver last came back: what was put off before may
	// be tried again.
	fresh time.Time

	delivered uint64
	failed    uint64 // attempts
	log       []Attempt
	logNext   int
}

func newQueue(d *Deliverer, name string) *queue {
	q := &queue{d: d, name: name, wake: make(chan struct{}, 1), byID: map[string]*stream{}}
	q.changed = sync.NewCond(&q.mu)
	return q
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// alive tells whether there is a hook to speak of. The caller holds mu.
func (q *queue) alive() bool { return q.hook != nil && !q.hook.Deleted }

// add puts an event into the queue unless it is there. The caller holds mu.
func (q *queue) add(id string, seq uint64, now time.Duration) {
	s := q.byID[id]
	if s == nil {
		s = &stream{id: id, seqs: []uint64{seq}, next: now}
		q.byID[id] = s
		heap.Push(&q.ready, s)
		q.pending++
		return
	}
	i, waits := s.find(seq)
	if waits {
		return
	}
	q.pending++
	if head := s.seqs[0]; i == 1 && seq < head && s.index >= 0 { // it is not being sent
		to, _ := slices.BinarySearch(s.seqs[1:], head)
		s.seqs = slices.Insert(s.seqs, to+1, head)
		s.seqs[0] = seq
		s.begin(now)
		heap.Fix(&q.ready, s.index)
		return
	}
	s.seqs = slices.Insert(s.seqs, i, seq)
}

// find tells whether an event waits, or else its place after the first one.
func (s *stream) find(seq uint64) (i int, waits bool) {
	i, waits = slices.BinarySearch(s.seqs[1:], seq)
	return i + 1, waits || s.seqs[0] == seq
}

// begin turns to an event that has just become the first one.
func (s *stream) begin(now time.Duration) {
	s.next, s.known, s.attempts, s.began, s.settled = now, false, 0, time.Time{}, false
	s.unstored = 0
}

// has tells whether an event waits. The caller holds mu.
func (q *queue) has(id string, seq uint64) bool {
	s := q.byID[id]
	if s == nil || len(s.seqs) == 0 {
		return false
	}
	_, waits := s.find(seq)
	return waits
}

// take returns the stream to be sent now, or how long to wait: negative where
// something else must happen first.
func (q *queue) take() (*stream, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s, wait := q.peek(q.d.clock.Elapsed())
	if s == nil {
		q.changed.Broadcast()
		return nil, wait
	}
	heap.Pop(&q.ready)
	q.sending++
	return s, 0
}

func (q *queue) peek(now time.Duration) (*stream, time.Duration) {
	parallel := q.d.parallel
	if q.failures >= breakAfter {
		parallel = 1
	}
	if !q.alive() || !q.hook.Enabled || len(q.ready) == 0 || q.sending >= parallel {
		return nil, -1
	}
	if wait := max(q.ready[0].next, q.holdTo) - now; wait > 0 {
		return nil, wait
	}
	return q.ready[0], 0
}

// run sends what is due until ctx ends.
func (q *queue) run(ctx context.Context) {
	for {
		s, wait := q.take()
		if s != nil {
			q.d.running.Go(func() {
				defer q.poke()
				q.handle(ctx, s)
			})
			continue
		}
		var timer <-chan time.Time
		if wait >= 0 {
			timer = q.d.clock.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		case <-timer:
		}
	}
}

// handle makes one attempt for the first event of a stream, and gives the
// stream back.
func (q *queue) handle(ctx context.Context, s *stream) {
	// What follows from an attempt is written even while the plugin stops.
	var then func(context.Context)
	if err := recovered(func() error {
		then = q.attempt(ctx, s)
		return nil
	}); err != nil {
		q.d.logger.Error("a webhook delivery panicked", "webhook", q.name, "error", err)
		then = func(context.Context) { q.putOff(s, maxPause) }
	}
	if err := recovered(func() error {
		then(context.WithoutCancel(ctx))
		return nil
	}); err != nil {
		q.d.logger.Error("a webhook delivery panicked", "webhook", q.name, "error", err)
		q.putOff(s, maxPause)
	}
}

// giveBack ends the sending of a stream. change may change it.
func (q *queue) giveBack(s *stream, change func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.index >= 0 || q.byID[s.id] != s {
		return // it was given back before a panic, or the hook was deleted
	}
	change()
	q.sending--
	if len(s.seqs) == 0 {
		delete(q.byID, s.id)
	} else {
		heap.Push(&q.ready, s)
	}
	q.changed.Broadcast()
}

func (q *queue) putOff(s *stream, delay time.Duration) {
	q.giveBack(s, func() { s.next = q.d.clock.Elapsed() + delay })
}

// storageFailed waits for storage to come back: with the whole hook, unless
// storage has worked for others since it last failed for this stream. One
// entry that cannot be read must not hold up the rest; after the time of the
// schedule its event is given up on.
func (q *queue) storageFailed(ctx context.Context, s *stream, err error) {
	if !errors.Is(err, context.Canceled) {
		q.d.logger.Warn("storage failed; webhook deliveries wait", "webhook", q.name, "error", err)
	}
	q.mu.Lock()
	now, seq := q.d.clock.Elapsed(), s.seqs[0]
	own := s.unstored > 0 && q.working > s.seenWorking
	s.seenWorking = q.working
	if s.unstored == 0 {
		s.unstoredSince = now
	}
	s.unstored++
	giveUp := own && !s.settled && now-s.unstoredSince >= span
	if giveUp {
		s.settled = true
	}
	q.mu.Unlock()
	if giveUp {
		id := messageID(EventID(s.id, seq))
		q.d.logger.Error("storage does not give an event, which is given up on", "webhook", q.name, "event", id)
		q.note(func(h *Hook) { h.Failed++ })
		q.settle(ctx, s, seq)
		return
	}
	q.giveBack(s, func() {
		if own {
			s.next = now + min(maxReread, minPause<<min(s.unstored, 10))
			return
		}
		wait := min(maxPause, minPause<<min(q.storageFailures, 6))
		q.storageFailures++
		s.next = now + wait
		q.holdTo = max(q.holdTo, s.next)
	})
}

// attempt sends the first event of s and returns what has to be recorded.
func (q *queue) attempt(ctx context.Context, s *stream) func(context.Context) {
	// The first one does not change while s is being sent.
	q.mu.Lock()
	h, alive, seq, settled := q.hook, q.alive(), s.seqs[0], s.settled
	q.mu.Unlock()
	if !alive { // since it was taken
		return func(context.Context) { q.putOff(s, 0) }
	}
	if settled {
		return func(ctx context.Context) { q.settle(ctx, s, seq) }
	}
	raw, err := q.d.storage.GetOutbox(ctx, q.name, position(s.id, seq))
	if err != nil {
		return func(ctx context.Context) { q.storageFailed(ctx, s, err) }
	}
	if raw == nil {
		return func(context.Context) { q.advance(s, nil) }
	}
	e := &entry{}
	if err := json.Unmarshal(raw, e); err != nil {
		return q.unreadableEntry(s, seq, err)
	}
	if e.Unfiltered && !h.Wants(e.event()) {
		return func(ctx context.Context) { q.settle(ctx, s, seq) }
	}
	if wait := q.recall(s, h, e); wait > 0 {
		return func(context.Context) { q.putOff(s, wait) }
	}
	var code string
	var expires time.Time
	if e.Claim != nil && h.Deliver == DeliverClaim && q.d.claims != nil {
		code, expires, err = q.d.claims.offer(ctx, h, e)
		switch {
		case errors.Is(err, errDamagedClaim):
			// It may have been redeemed, so it is not made again. The event
			// itself can be told.
			q.d.logger.Error("a stored claim is not readable; its event goes without a code", "webhook", q.name, "event", messageID(e.ID))
		case errors.Is(err, errNewer):
			return q.unreadableEntry(s, seq, err)
		case err != nil:
			return func(ctx context.Context) { q.storageFailed(ctx, s, err) }
		}
	}
	body, err := e.body(code, expires)
	if err != nil {
		return q.unreadableEntry(s, seq, err)
	}
	a := q.d.sender.send(ctx, h, messageID(e.ID), e.Type, body)
	a.Number = s.attempts + 1
	if a.Failure == FailureStopped {
		return func(context.Context) { q.putOff(s, 0) }
	}
	return func(ctx context.Context) { q.judge(ctx, s, seq, e, a) }
}

// unreadableEntry gives up on an entry that is damaged. One that a newer
// plugin wrote waits for that plugin, and its key with it.
func (q *queue) unreadableEntry(s *stream, seq uint64, err error) func(context.Context) {
	id := messageID(EventID(s.id, seq))
	if errors.Is(err, errNewer) {
		q.d.logger.Error("a stored event waits for a newer plugin", "webhook", q.name, "event", id)
		return func(context.Context) { q.putOff(s, maxDelay) }
	}
	q.d.logger.Error("a stored event is not readable and is given up on", "webhook", q.name, "event", id)
	return func(ctx context.Context) {
		q.note(func(h *Hook) { h.Failed++ })
		q.settle(ctx, s, seq)
	}
}

// recall takes up what storage knows of the attempts at an event that this
// process has not tried yet, and returns how long to wait for the next.
func (q *queue) recall(s *stream, h *Hook, e *entry) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.known {
		return 0
	}
	s.known = true
	if !h.EnabledTime.IsZero() && !e.Tried.After(h.EnabledTime) {
		return 0
	}
	s.attempts, s.began = e.Attempts, e.Began
	if e.Tried.Before(q.fresh) {
		return 0
	}
	return min(e.Next.Sub(q.d.clock.Now()), maxDelay)
}

// judge records the outcome of an attempt.
func (q *queue) judge(ctx context.Context, s *stream, seq uint64, e *entry, a Attempt) {
	q.remember(a)
	if a.Delivered() {
		if q.succeeded() {
			q.save(ctx)
		}
		q.settle(ctx, s, seq)
		return
	}
	if a.Status == 410 {
		q.disable(goneReason)
		q.save(ctx)
		q.putOff(s, 0)
		return
	}
	if q.failedAgain(a) {
		q.save(ctx)
	}
	began := s.began
	if began.IsZero() || began.After(a.Time) {
		began = a.Time
	}
	delay, more := retryDelay(q.name, e.ID, a.Number, a.Time.Sub(began))
	if !more {
		q.d.logger.Warn("an event ran out of retries", "webhook", q.name, "event", a.EventID, "failure", a.Summary())
		q.exhausted(a)
		q.save(ctx)
		q.settle(ctx, s, seq)
		return
	}
	delay = max(delay, a.retryAfter)
	if a.Number > 1 || delay > schedule[0]*2 {
		e.Began = began.UTC().Truncate(time.Millisecond)
		q.saveAttempt(ctx, s.id, seq, e, a, delay)
	}
	q.giveBack(s, func() {
		s.attempts, s.began = a.Number, began
		s.next = q.d.clock.Elapsed() + delay
		if a.Time.Before(q.fresh) {
			s.next = q.d.clock.Elapsed() // what was wrong may have been put right since it began
		}
	})
}

// saveAttempt writes what a crash should not make forgotten. It is no harm if
// it cannot: the event is then tried sooner and more often.
func (q *queue) saveAttempt(ctx context.Context, id string, seq uint64, e *entry, a Attempt, delay time.Duration) {
	q.entry.RLock()
	defer q.entry.RUnlock()
	q.mu.Lock()
	alive := q.alive()
	q.mu.Unlock()
	if !alive {
		return
	}
	now := q.d.clock.Now().UTC().Truncate(time.Millisecond)
	e.Attempts, e.Tried, e.Next = a.Number, now, now.Add(delay)
	raw, err := json.Marshal(e)
	if err == nil {
		err = q.d.storage.PutOutbox(ctx, q.name, position(id, seq), raw)
	}
	if err != nil {
		q.d.logger.Warn("the attempts at an event could not be stored", "webhook", q.name, "event", a.EventID, "error", err)
	}
}

// settle removes an event that needs no more attempts.
func (q *queue) settle(ctx context.Context, s *stream, seq uint64) {
	if err := q.d.storage.DeleteOutbox(ctx, q.name, position(s.id, seq)); err != nil {
		q.mu.Lock()
		s.settled = true
		q.mu.Unlock()
		q.storageFailed(ctx, s, err)
		return
	}
	q.d.settled.Add(q.name+"\x00"+position(s.id, seq), struct{}{})
	q.advance(s, func() {
		q.storageFailures = 0
		q.working++
	})
}

// advance turns to the next event of a stream.
func (q *queue) advance(s *stream, also func()) {
	q.giveBack(s, func() {
		s.seqs = s.seqs[1:]
		q.pending--
		s.begin(q.d.clock.Elapsed())
		if also != nil {
			also()
		}
	})
}

// note changes the hook in memory. Storage follows with the next save.
func (q *queue) note(change func(*Hook)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.noteLocked(change)
}

func (q *queue) noteLocked(change func(*Hook)) {
	if q.hook == nil {
		return
	}
	h := *q.hook
	change(&h)
	q.hook, q.unsaved = &h, true
}

// succeeded lets all that waits go, if the receiver was down, and tells
// whether there is something to save.
func (q *queue) succeeded() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.delivered++
	wasDown := q.failures >= breakAfter
	q.failures = 0
	if wasDown {
		q.hurry()
	}
	if q.hook == nil || q.hook.FailingSince.IsZero() && q.hook.Exhausted == 0 {
		return false
	}
	// A failure or two between successes are not worth a write.
	save := wasDown || q.hook.Exhausted > 0
	unsaved := q.unsaved
	q.noteLocked(func(h *Hook) { h.FailingSince, h.Exhausted = time.Time{}, 0 })
	q.unsaved = unsaved || save
	return save
}

// hurry lets all that was put off be tried at once. The caller holds mu.
func (q *queue) hurry() {
	now := q.d.clock.Elapsed()
	q.fresh, q.holdTo = q.d.clock.Now(), 0
	for _, s := range q.ready {
		s.next = min(s.next, now)
	}
	heap.Init(&q.ready)
}

// failedAgain counts a failure, and tells whether there is something to save.
func (q *queue) failedAgain(a Attempt) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failed++
	q.failures++
	now := q.d.clock.Elapsed()
	hold := pause(q.name, q.failures)
	if a.Status == 429 || a.Status == 503 {
		hold = max(hold, min(a.retryAfter, maxHold))
	}
	q.holdTo = max(q.holdTo, now+hold)
	if q.hook == nil {
		return false
	}
	save := q.failures == breakAfter
	if q.hook.FailingSince.IsZero() {
		unsaved := q.unsaved
		q.noteLocked(func(h *Hook) { h.FailingSince = a.Time.UTC().Truncate(time.Millisecond) })
		q.unsaved = unsaved
	}
	q.unsaved = q.unsaved || save
	if q.failures >= disableAfterAttempts && a.Time.Sub(q.hook.FailingSince) >= disableAfterTime {
		q.disableLocked(failingReason(q.hook.FailingSince, a.Summary()))
		save = true
	}
	return save
}

// exhausted counts an event that ran out of retries.
func (q *queue) exhausted(a Attempt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.noteLocked(func(h *Hook) {
		h.Failed++
		h.Exhausted++
	})
	if q.hook != nil && q.hook.Exhausted >= disableAfterEvents {
		q.disableLocked(exhaustedReason(q.hook.Exhausted, a.Summary()))
	}
}

func (q *queue) disable(reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.disableLocked(reason)
}

func (q *queue) disableLocked(reason string) {
	if !q.alive() || !q.hook.Enabled {
		return
	}
	q.noteLocked(func(h *Hook) {
		h.Enabled, h.DisabledReason, h.DisabledTime = false, reason, q.d.clock.Now().UTC().Truncate(time.Millisecond)
	})
	q.d.logger.Warn("a webhook was disabled", "webhook", q.name, "reason", reason)
}

// save writes the hook if it has news. Where that fails, Recover does it.
func (q *queue) save(ctx context.Context) {
	if err := q.trySave(ctx); err != nil {
		q.d.logger.Warn("the state of a webhook could not be stored", "webhook", q.name, "error", err)
	}
}

func (q *queue) trySave(ctx context.Context) error {
	q.entry.Lock()
	defer q.entry.Unlock()
	q.mu.Lock()
	h, unsaved := q.hook, q.unsaved && q.alive()
	q.mu.Unlock()
	if !unsaved {
		return nil
	}
	if err := q.put(ctx, h); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.hook == h {
		q.unsaved = false
	}
	return nil
}

func (q *queue) put(ctx context.Context, h *Hook) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode webhook %q: %w", q.name, err)
	}
	if err := q.d.storage.PutHook(ctx, q.name, raw); err != nil {
		return fmt.Errorf("store webhook %q: %w", q.name, err)
	}
	return nil
}

// remember adds an attempt to the log.
func (q *queue) remember(a Attempt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.log) < logSize {
		q.log = append(q.log, a)
		return
	}
	q.log[q.logNext] = a
	q.logNext = (q.logNext + 1) % logSize
}

// attemptsLogged returns the log, newest first. The caller holds mu.
func (q *queue) attemptsLogged() []Attempt {
	log := slices.Concat(q.log[q.logNext:], q.log[:q.logNext])
	slices.Reverse(log)
	return log
}

// enqueue stores an event for this hook, if it wants it.
func (q *queue) enqueue(ctx context.Context, e *Event, id string, encoded encoder) error {
	if q.isDeleted() {
		return nil // its outbox is being removed, which takes long and holds the lock
	}
	q.entry.RLock()
	defer q.entry.RUnlock()
	accepted, unfiltered, sealed := q.accepts(e, id)
	if !accepted {
		return nil
	}
	raw, err := encoded(unfiltered, sealed)
	if err != nil {
		return err
	}
	if err := q.d.storage.PutOutbox(ctx, q.name, position(id, e.Seq), raw); err != nil {
		return fmt.Errorf("store an event for webhook %q: %w", q.name, err)
	}
	q.mu.Lock()
	q.add(id, e.Seq, q.d.clock.Elapsed())
	q.working++
	q.mu.Unlock()
	q.poke()
	return nil
}

// accepts tells whether an event is to be stored for this hook, whether its
// filters have still to be asked because the hook cannot be read now, and
// whether the hook delivers claims, or may.
func (q *queue) accepts(e *Event, id string) (accepted, unfiltered, sealed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	most := q.d.keptDisabled
	switch {
	case q.unread != nil && q.unread.keeps:
		unfiltered, sealed = true, true
	case !q.alive() || !q.hook.Wants(*e):
		return false, false, false
	default:
		sealed = q.hook.Deliver == DeliverClaim
		if q.hook.Enabled {
			most = q.d.keptEnabled
		}
	}
	if q.has(id, e.Seq) || q.d.settled.Contains(q.name+"\x00"+position(id, e.Seq)) {
		return false, false, false
	}
	// A key that is nowhere else is kept beyond the bound: what makes such
	// events waits while the outbox is full (Claimable).
	if q.pending < most || sealed && !unfiltered && e.Claim != nil && len(e.Claim.Sealed) > 0 {
		return true, unfiltered, sealed
	}
	if unfiltered {
		q.unread.dropped++
	}
	q.noteLocked(func(h *Hook) { h.Dropped++ })
	return false, false, false
}

// recover lists the outbox. Nothing is sent meanwhile: the queue is not in use
// yet, or its hook could not be read.
func (q *queue) recover(ctx context.Context) error {
	names, err := q.d.storage.ListOutbox(ctx, q.name)
	if err != nil {
		return fmt.Errorf("list the outbox of webhook %q: %w", q.name, err)
	}
	now := q.d.clock.Elapsed()
	type place struct {
		stream string
		seq    uint64
	}
	places := make([]place, 0, len(names))
	for _, name := range names {
		if id, seq, ok := parsePosition(name); ok {
			places = append(places, place{id, seq})
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.stream, b.stream), cmp.Compare(a.seq, b.seq))
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range places {
		q.add(p.stream, p.seq, now)
	}
	return nil
}

// purge removes what is left of a deleted hook, at most so many events, and
// tells whether that was all. The caller holds entry.
func (q *queue) purge(ctx context.Context, most int) (bool, error) {
	names, err := q.d.storage.ListOutbox(ctx, q.name)
	if err != nil {
		return false, fmt.Errorf("list the outbox of webhook %q: %w", q.name, err)
	}
	for i, name := range names {
		if i >= most {
			return false, nil
		}
		if err := q.d.storage.DeleteOutbox(ctx, q.name, name); err != nil {
			return false, fmt.Errorf("empty the outbox of webhook %q: %w", q.name, err)
		}
	}
	if err := q.d.storage.DeleteHook(ctx, q.name); err != nil {
		return false, fmt.Errorf("delete webhook %q: %w", q.name, err)
	}
	return true, nil
}
