// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// MaxHooks bounds the hooks of a mount, and with them goroutines and the
	// writes of an event.
	MaxHooks = 64
	// defaultParallel is the number of keys for which a hook sends at once.
	defaultParallel = 8
	// What an outbox holds at most. At the higher one, a hook takes about
	// 20 MB of memory.
	defaultKeptEnabled  = 100_000
	defaultKeptDisabled = 10_000
	// logSize is the number of attempts that a hook remembers.
	logSize = 100
	// rememberedSettled bounds the events that are known to be done with, so
	// that a repeated Enqueue does not deliver them again.
	rememberedSettled = 16384
	// Events of a deleted hook that are removed at once, and later at a time.
	purgeAtOnce = 500
	purgeLater  = 5000
	// stopWait bounds how long Stop waits.
	stopWait = time.Second
)

// ErrNoHook says that there is no hook of a name.
var ErrNoHook = errors.New("there is no such webhook")

// Options are what a Deliverer is made of. Storage, Clock, Rand and Logger are
// required.
type Options struct {
	Storage Storage
	// Claims issues codes for hooks that deliver claims. Without it, such
	// hooks are refused.
	Claims *Claims
	Clock  clock.Clock
	Rand   io.Reader
	Logger hclog.Logger

	// Resolver and Dial replace those of the machine. Dial must connect to the
	// address that it is given.
	Resolver Resolver
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	// RootCAs replaces the authorities that the machine trusts.
	RootCAs *x509.CertPool

	// Bounds that replace the default ones where they are set.
	Parallel, KeptEnabled, KeptDisabled int
}

// Deliverer keeps the hooks of a mount and delivers events to them. All
// changes of hooks go through it. It is safe for concurrent use.
type Deliverer struct {
	storage  Storage
	claims   *Claims
	clock    clock.Clock
	rand     io.Reader
	logger   hclog.Logger
	sender   *sender
	parallel int

	keptEnabled, keptDisabled int

	// settled are events of hooks that need no more attempts.
	settled *lru.Cache[string, struct{}]

	// admin is held while hooks are loaded, made, changed or deleted. It is
	// taken before all other locks.
	admin sync.Mutex

	mu     sync.Mutex
	loaded bool
	queues map[string]*queue
	// ctx is set while the Deliverer runs.
	ctx     context.Context
	cancel  context.CancelFunc
	stopped bool

	running sync.WaitGroup
}

// New returns a Deliverer that keeps what it is given and delivers nothing
// before Start.
func New(o Options) *Deliverer {
	settled, err := lru.New[string, struct{}](rememberedSettled)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	or := func(n, otherwise int) int {
		if n > 0 {
			return n
		}
		return otherwise
	}
	return &Deliverer{
		storage: o.Storage, claims: o.Claims, clock: o.Clock, rand: o.Rand, logger: o.Logger, sender: newSender(&o), settled: settled,
		parallel: or(o.Parallel, defaultParallel), keptEnabled: or(o.KeptEnabled, defaultKeptEnabled), keptDisabled: or(o.KeptDisabled, defaultKeptDisabled),
		queues: map[string]*queue{},
	}
}

// Start lets deliveries begin. It touches no storage.
func (d *Deliverer) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx != nil || d.stopped {
		return
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	for _, q := range d.queues {
		d.startQueue(q)
	}
}

// startQueue starts the goroutine of a hook. The caller holds mu.
func (d *Deliverer) startQueue(q *queue) {
	if d.ctx == nil || d.stopped {
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	q.cancel = cancel
	d.running.Go(func() { q.run(ctx) })
}

// Stop ends all deliveries. It waits at most a second for those under way to
// notice.
func (d *Deliverer) Stop() {
	d.mu.Lock()
	d.stopped = true
	if d.cancel != nil {
		d.cancel()
	}
	d.mu.Unlock()
	done := make(chan struct{})
	go func() {
		d.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-d.clock.After(stopWait):
		d.logger.Warn("a storage call is still under way; webhook deliveries end with it")
	}
	d.sender.close()
}

// Forget drops all hooks from memory, because another node has written one.
// It does nothing while deliveries run: then this node is the one that writes.
func (d *Deliverer) Forget() {
	d.admin.Lock()
	defer d.admin.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil {
		d.loaded, d.queues = false, map[string]*queue{}
	}
}

// load reads the hooks and their outboxes unless that is done: one List, and
// for each hook a Get and a List.
func (d *Deliverer) load(ctx context.Context) error {
	d.mu.Lock()
	loaded := d.loaded
	d.mu.Unlock()
	if loaded {
		return nil
	}
	d.admin.Lock()
	defer d.admin.Unlock()
	return d.loadLocked(ctx)
}

func (d *Deliverer) loadLocked(ctx context.Context) error {
	d.mu.Lock()
	loaded := d.loaded
	d.mu.Unlock()
	if loaded {
		return nil
	}
	names, err := d.storage.ListHooks(ctx)
	if err != nil {
		return fmt.Errorf("list webhooks: %w", err)
	}
	queues := map[string]*queue{}
	for _, name := range names {
		q, err := d.loadQueue(ctx, name)
		if err != nil {
			return err
		}
		if q != nil {
			queues[name] = q
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues, d.loaded = queues, true
	for _, q := range queues {
		d.startQueue(q)
	}
	return nil
}

// loadQueue returns nil where there is no hook of this name, and an error only
// where ctx has ended.
func (d *Deliverer) loadQueue(ctx context.Context, name string) (*queue, error) {
	q := newQueue(d, name)
	there, err := q.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("load webhook %q: %w", name, err)
	}
	if !there {
		return nil, nil
	}
	return q, nil
}

// Recover does what is left to do after a crash or a storage failure: it loads
// hooks and outboxes, reads again what could not be read, stores what could not
// be stored, and goes on removing deleted hooks. It is for the periodic
// function, and touches no storage where there is nothing of the kind.
func (d *Deliverer) Recover(ctx context.Context) error {
	if err := d.load(ctx); err != nil {
		return err
	}
	var errs []error
	for _, q := range d.all() {
		errs = append(errs, d.readAgain(ctx, q))
		if q.isDeleted() {
			errs = append(errs, d.purge(ctx, q, purgeLater))
			continue
		}
		errs = append(errs, q.trySave(ctx))
		q.poke()
	}
	return errors.Join(errs...)
}

func (d *Deliverer) readAgain(ctx context.Context, q *queue) error {
	d.admin.Lock()
	defer d.admin.Unlock()
	if d.queue(q.name) != q {
		return nil
	}
	return d.reread(ctx, q, false)
}

// all returns the queues in order of their names.
func (d *Deliverer) all() []*queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.SortedFunc(maps.Values(d.queues), func(a, b *queue) int { return strings.Compare(a.name, b.name) })
}

func (d *Deliverer) queue(name string) *queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queues[name]
}

// Enqueue stores events in the outbox of each hook that wants them, from where
// they are delivered: one write per event and hook. Events of one key must be
// given in order. After an error the same events must be given again; those
// that are stored already, or were delivered lately, cost nothing then. An
// ErrBadEvent does not pass with time.
func (d *Deliverer) Enqueue(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	if err := d.load(ctx); err != nil {
		return err
	}
	type prepared struct {
		event   *Event
		stream  string
		encoded encoder
	}
	list := make([]prepared, 0, len(events))
	var bad, errs []error
	for i := range events {
		e := &events[i]
		id, err := e.stream()
		if err != nil {
			bad = append(bad, err)
			continue
		}
		plain := sync.OnceValues(func() ([]byte, error) { return newEntry(e, false, false) })
		list = append(list, prepared{e, id, func(unfiltered, sealed bool) ([]byte, error) {
			if !unfiltered && !sealed {
				return plain()
			}
			return newEntry(e, unfiltered, sealed)
		}})
	}
	for _, q := range d.all() {
		for _, p := range list {
			if err := q.enqueue(ctx, p.event, p.stream, p.encoded); err != nil {
				// What follows might be of the same key and must not overtake.
				errs = append(errs, err)
				break
			}
		}
	}
	if len(errs) == 0 {
		errs = bad
	}
	return errors.Join(errs...)
}

// encoder returns the stored form of an event.
type encoder func(unfiltered, sealed bool) ([]byte, error)

// Names returns the names of all hooks in order.
func (d *Deliverer) Names(ctx context.Context) ([]string, error) {
	if err := d.load(ctx); err != nil {
		return nil, err
	}
	var names []string
	for _, q := range d.all() {
		q.mu.Lock()
		if q.alive() || q.unread != nil {
			names = append(names, q.name)
		}
		q.mu.Unlock()
	}
	return names, nil
}

// Hook returns the hook of this name, or nil. Its secrets are those that sign.
func (d *Deliverer) Hook(ctx context.Context, name string) (*Hook, error) {
	if err := d.load(ctx); err != nil {
		return nil, err
	}
	if err := d.asked(ctx, name); err != nil {
		return nil, err
	}
	q := d.queue(name)
	if q == nil {
		return nil, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.unreadError(); err != nil {
		return nil, err
	}
	if !q.alive() {
		return nil, nil
	}
	return q.hook.clone(), nil
}

// Update changes the hook of this name, or makes it: change is given the hook
// as it is, or one with defaults and no CreatedTime. An error of change, or a
// Refusal, is returned as it is and changes nothing. A hook whose making failed
// and that is there all the same is given without secrets: whoever made it was
// not answered. Enabling a hook lets all
// that waits be tried at once, attempts counted anew.
func (d *Deliverer) Update(ctx context.Context, name string, change func(*Hook) error) (*Hook, error) {
	if !nameForm.MatchString(name) {
		return nil, newHook(name).Validate()
	}
	d.admin.Lock()
	defer d.admin.Unlock()
	if err := d.loadLocked(ctx); err != nil {
		return nil, err
	}
	q := d.queue(name)
	if q != nil {
		if err := d.reread(ctx, q, true); err != nil {
			return nil, err
		}
	}
	if q != nil && q.isDeleted() {
		if err := d.purgeLocked(ctx, q, purgeAtOnce); err != nil {
			return nil, err
		}
		if d.queue(name) != nil {
			return nil, refuse("webhook %q is being deleted, with the events that waited for it: try again in a few minutes", name)
		}
		q = nil
	}
	if q != nil {
		return q.update(ctx, change)
	}
	d.mu.Lock()
	count := len(d.queues)
	d.mu.Unlock()
	if count >= MaxHooks {
		return nil, refuse("there can be at most %d webhooks", MaxHooks)
	}
	q = newQueue(d, name)
	h, err := q.update(ctx, change)
	q.mu.Lock()
	q.unanswered = q.unread != nil
	written := err == nil || q.unanswered
	q.mu.Unlock()
	if written { // or perhaps
		d.mu.Lock()
		defer d.mu.Unlock()
		d.queues[name] = q
		d.startQueue(q)
	}
	return h, err
}

func (q *queue) isDeleted() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hook != nil && q.hook.Deleted
}

func (q *queue) update(ctx context.Context, change func(*Hook) error) (*Hook, error) {
	q.entry.Lock()
	defer q.entry.Unlock()
	q.mu.Lock()
	before, err := q.hook, q.unreadError()
	q.mu.Unlock()
	if err != nil {
		return nil, err
	}
	now := q.d.clock.Now().UTC().Truncate(time.Millisecond)
	h := newHook(q.name)
	if before != nil {
		h = before.clone()
	}
	if q.unanswered {
		h.Secrets = nil
	}
	if err := change(h); err != nil {
		return nil, err
	}
	h.Schema, h.Name = Schema, q.name
	if err := q.d.complete(h, before, now); err != nil {
		return nil, err
	}
	if err := q.put(ctx, h); err != nil {
		q.unsure(err)
		return nil, err
	}
	q.unanswered = false
	q.mu.Lock()
	defer q.mu.Unlock()
	q.install(h, before)
	q.poke()
	return q.hook.clone(), nil
}

// complete checks a changed hook and fills in what is not for a caller to set.
func (d *Deliverer) complete(h, before *Hook, now time.Time) error {
	if err := h.Validate(); err != nil {
		return err
	}
	if h.Deliver == DeliverClaim && d.claims == nil {
		return refuse("deliver=%s is not available", DeliverClaim)
	}
	if len(h.ClaimKey) != claimKeySize {
		h.ClaimKey = make(ClaimKey, claimKeySize)
		if _, err := io.ReadFull(d.rand, h.ClaimKey); err != nil {
			return fmt.Errorf("make a claim key: %w", err)
		}
	}
	if before == nil {
		h.CreatedTime = now
	}
	switch wasEnabled := before == nil || before.Enabled; {
	case h.Enabled && !wasEnabled:
		h.EnabledTime, h.DisabledTime, h.DisabledReason = now, time.Time{}, ""
		h.FailingSince, h.Exhausted = time.Time{}, 0
	case !h.Enabled && wasEnabled:
		h.DisabledTime = now
		if h.DisabledReason == "" {
			h.DisabledReason = "an operator disabled it"
		}
	}
	return nil
}

// install takes up a stored hook. What was noted in memory while it was being
// stored is kept. The caller holds mu.
func (q *queue) install(h, before *Hook) {
	seen := q.hook
	enabled := before != nil && !before.Enabled && h.Enabled
	q.hook, q.unsaved = h, false
	if seen != before && !enabled {
		q.noteLocked(func(h *Hook) {
			h.Health = seen.Health
			if before.Enabled && !seen.Enabled {
				h.Enabled, h.DisabledReason, h.DisabledTime = false, seen.DisabledReason, seen.DisabledTime
			}
		})
	}
	if before == nil {
		return
	}
	if enabled || before.URL != h.URL || before.AllowPrivate != h.AllowPrivate || !slices.EqualFunc(before.Secrets, h.Secrets, Secret.same) {
		// What was wrong may be right now.
		q.failures = 0
		q.hurry()
	}
	if enabled {
		for _, s := range q.ready {
			s.attempts, s.began = 0, time.Time{}
		}
	}
}

// Delete removes a hook and the events that wait for it. It succeeds where
// there is none. The hook is gone when it returns; if many events wait, they
// are removed later.
func (d *Deliverer) Delete(ctx context.Context, name string) error {
	d.admin.Lock()
	defer d.admin.Unlock()
	if err := d.loadLocked(ctx); err != nil {
		return err
	}
	q := d.queue(name)
	if q == nil {
		return nil
	}
	if !q.isDeleted() {
		if err := q.markDeleted(ctx); err != nil {
			return err
		}
	}
	// The hook is gone; what is left is removed now or later.
	if err := d.purgeLocked(ctx, q, purgeAtOnce); err != nil {
		d.logger.Warn("the events of a deleted webhook are removed later", "webhook", name, "error", err)
	}
	return nil
}

func (q *queue) markDeleted(ctx context.Context) error {
	q.entry.Lock()
	defer q.entry.Unlock()
	if err := q.put(ctx, deletedHook(q.name)); err != nil {
		q.unsure(err)
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone()
	return nil
}

func deletedHook(name string) *Hook { return &Hook{Schema: Schema, Name: name, Deleted: true} }

// gone forgets all of a deleted hook. The caller holds mu.
func (q *queue) gone() {
	q.hook, q.unread, q.unsaved = deletedHook(q.name), nil, false
	q.byID, q.ready, q.pending, q.sending = map[string]*stream{}, nil, 0, 0
	q.log, q.logNext = nil, 0
	q.changed.Broadcast()
}

func (d *Deliverer) purge(ctx context.Context, q *queue, most int) error {
	d.admin.Lock()
	defer d.admin.Unlock()
	if d.queue(q.name) != q {
		return nil
	}
	return d.purgeLocked(ctx, q, most)
}

// purgeLocked removes what is left of a deleted hook, which it forgets when
// nothing is. The caller holds admin.
func (d *Deliverer) purgeLocked(ctx context.Context, q *queue, most int) error {
	d.mu.Lock()
	if q.cancel != nil {
		q.cancel()
	}
	d.mu.Unlock()
	q.entry.Lock()
	defer q.entry.Unlock()
	done, err := q.purge(ctx, most)
	if err != nil || !done {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.queues, q.name)
	return nil
}

// Test sends a message of the type webhook.test at once, even to a hook that
// is disabled, and returns what became of it. It is not tried again.
func (d *Deliverer) Test(ctx context.Context, name string) (Attempt, error) {
	h, err := d.Hook(ctx, name)
	if err != nil {
		return Attempt{}, err
	}
	if h == nil {
		return Attempt{}, ErrNoHook
	}
	mark := make([]byte, 12)
	if _, err := io.ReadFull(d.rand, mark); err != nil {
		return Attempt{}, fmt.Errorf("test webhook %q: %w", name, err)
	}
	now := d.clock.Now().UTC().Truncate(time.Millisecond)
	data, err := json.Marshal(map[string]string{"webhook": name})
	if err != nil {
		return Attempt{}, err
	}
	body, err := json.Marshal(message{Type: typeTest, Timestamp: now, Data: data})
	if err != nil {
		return Attempt{}, err
	}
	a := d.sender.send(ctx, h, "test_"+hex.EncodeToString(mark), typeTest, body)
	if q := d.queue(name); q != nil {
		q.remember(a)
	}
	return a, nil
}

// Status is what a hook is doing.
type Status struct {
	Name string
	// Hook is nil where the stored one is not readable, for the reason in
	// Unreadable.
	Hook       *Hook
	Unreadable error
	// Pending is the number of events that wait.
	Pending int
	// Failures are attempts that failed in a row, for any event.
	Failures int
	// Delivered and FailedAttempts count since the plugin started.
	Delivered, FailedAttempts uint64
	// Log holds the last attempts, newest first.
	Log []Attempt
}

// Status returns the state of one hook, or ErrNoHook.
func (d *Deliverer) Status(ctx context.Context, name string) (Status, error) {
	if err := d.load(ctx); err != nil {
		return Status{}, err
	}
	if err := d.asked(ctx, name); err != nil {
		return Status{}, err
	}
	if q := d.queue(name); q != nil {
		if s, ok := q.status(); ok {
			return s, nil
		}
	}
	return Status{}, ErrNoHook
}

// Statuses returns the state of all hooks that are loaded, in order of their
// names, without their logs. It touches no storage.
func (d *Deliverer) Statuses() []Status {
	var found []Status
	for _, q := range d.all() {
		if s, ok := q.status(); ok {
			s.Log = nil
			found = append(found, s)
		}
	}
	return found
}

func (q *queue) status() (Status, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Status{Name: q.name, Pending: q.pending, Failures: q.failures, Delivered: q.delivered, FailedAttempts: q.failed, Log: q.attemptsLogged()}
	if q.hook != nil {
		s.Hook = q.hook.clone()
	}
	s.Unreadable = q.unreadError()
	return s, q.alive() || q.unread != nil
}

// Outstanding is the number of events of a key, or another stream, that hooks
// which are enabled, or cannot be read, have still to be told.
func (d *Deliverer) Outstanding(ctx context.Context, stream string) (int, error) {
	if err := d.load(ctx); err != nil {
		return 0, err
	}
	n := 0
	for _, q := range d.all() {
		q.mu.Lock()
		if s := q.byID[stream]; s != nil && (q.unread != nil || q.alive() && q.hook.Enabled) {
			n += len(s.seqs)
		}
		q.mu.Unlock()
	}
	return n, nil
}

// recovered turns a panic of f into an error. It keeps the place of the panic
// but not its value, which could be a secret.
func recovered(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic (value of type %T withheld) at:\n%s", r, debug.Stack())
		}
	}()
	return f()
}
