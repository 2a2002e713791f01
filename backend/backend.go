// SPDX-License-Identifier: MPL-2.0

// Package backend is the secrets engine: it gives out API keys, rotates them
// with an overlap in which the old version is still accepted, and verifies
// them.
//
// A file path_<resource>.go holds one route. A handler reads as four steps:
// parse the request, load, ask the keyring for the transition, save and
// answer. What the rules are stands in the internal packages: keyring (the
// versions of one key), role, schedule, store, lifecycle and jobs.
package backend

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/anomaly"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/feed"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/fence"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/metrics"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/internal/version"
)

// operationPrefix begins the names of the engine's operations in OpenAPI.
const operationPrefix = "api-keys"

const backendHelp = `
The API keys engine gives out API keys and rotates them without downtime.

A role says what keys look like and how they rotate. Each client has a key
with numbered versions: a rotation makes a new version while the old one stays
accepted for an overlap. API servers check keys at "verify"; clients read
their current key at "static-creds/<name>". "creds/<role>" gives out keys that
live by a lease.
`

// Backend is the engine of one mount.
type Backend struct {
	*framework.Backend
	clock clock.Clock
	rand  io.Reader

	// opening is held while an engine is opened, which reads storage; mu never
	// is, so that clean does not wait for storage.
	opening sync.Mutex
	mu      sync.Mutex
	open    *engine
	closed  bool
	// former is the store that the next one takes the place of.
	former *store.Store

	misses     *missLimiter
	metrics    *metrics.Metrics
	forwarding atomic.Pointer[forwarding]
	// named has the patterns of the routes that name parts of the URL.
	named map[*framework.Path]*regexp.Regexp
}

// engine is what a mount needs at work: it exists once storage was read.
type engine struct {
	store  *store.Store
	keeper *lifecycle.Keeper
	ticker *jobs.Ticker
	bulk   *jobs.Bulk
	// fence, ticks, work, heal and telling are nil on a node that may not write.
	fence *fence.Fence
	ticks *jobs.Worker
	work  *jobs.Worker
	heal  *jobs.Worker
	// lost are ids of keys whose entry in the due index is gone.
	lost chan string
	// unknownIDs are ids that verify was asked for and that no key has.
	unknownIDs *lru.Cache[string, struct{}]

	// verifiers are those at the edge that ask what changed.
	verifiers *feed.Verifiers

	// watch tells of what happens; telling works off what waits to be told.
	watch   *watcher
	telling *jobs.Worker
}

// Factory makes the engine for one mount. It touches no storage.
func Factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	return newBackend(ctx, conf, clock.System(), rand.Reader)
}

func newBackend(ctx context.Context, conf *logical.BackendConfig, c clock.Clock, random io.Reader) (*Backend, error) {
	if conf == nil {
		return nil, errors.New("the engine needs a configuration")
	}
	b := &Backend{clock: c, rand: random, misses: newMissLimiter(c), metrics: metrics.New(c, version.Version, version.Commit)}
	b.Backend = &framework.Backend{
		Help:           strings.TrimSpace(backendHelp),
		BackendType:    logical.TypeLogical,
		RunningVersion: version.Version,
		PathsSpecial:   &logical.Paths{SealWrapStorage: store.SealWrapped(), Unauthenticated: []string{claimPattern}},
		Paths: slices.Concat(
			b.pathConfig(), b.pathRoleRotate(), b.pathRoles(), b.pathKeys(), b.pathImport(),
			b.pathStaticCreds(), b.pathCreds(), b.pathRotateLeased(),
			b.pathRotate(), b.pathPromote(), b.pathRollback(), b.pathExtend(), b.pathRetire(), b.pathRevoke(),
			b.pathHistory(), b.pathVerify(), b.pathSweep(), b.pathInfo(),
			b.pathSync(), b.pathLookup(), b.pathVerifiers(), b.pathUsage(), b.pathConfirm(), b.pathRollovers(), b.pathWebhookTest(), b.pathWebhooks(), b.pathClaim(), b.pathMetrics(),
		),
		Secrets:        []*framework.Secret{b.leasedKey()},
		InitializeFunc: b.initialize,
		PeriodicFunc:   b.periodic,
		Clean:          b.clean,
		Invalidate:     b.invalidate,
	}
	b.named = namedParts(b.Paths)
	if err := b.Setup(ctx, conf); err != nil {
		return nil, err
	}
	return b, nil
}

// lenientPaths ignore unknown fields with a warning, so that a server can be
// upgraded after its clients; all others refuse them.
var lenientPaths = map[string]bool{verifyPattern: true, usageReportPattern: true, confirmPattern: true, syncPattern: true, lookupPattern: true}

// HandleRequest checks the request's data before the SDK sees it, because the
// SDK quotes values that it cannot decode; see decodeFields. It also keeps a
// panic from ending the process, in which other mounts live.
func (b *Backend) HandleRequest(ctx context.Context, req *logical.Request) (resp *logical.Response, err error) {
	defer func() {
		if b.recovered(recover(), "a request", string(req.Operation)) {
			resp, err = nil, errInternal
		}
	}()
	switch req.Operation {
	case logical.CreateOperation, logical.UpdateOperation, logical.PatchOperation,
		logical.ReadOperation, logical.ListOperation, logical.DeleteOperation:
	default:
		return b.Backend.HandleRequest(ctx, req)
	}
	if req.Operation == logical.UpdateOperation && req.Path == verifyPattern {
		return b.handleVerify(ctx, req)
	}
	path := b.Route(req.Path)
	if path == nil {
		return nil, logical.ErrUnsupportedPath
	}
	lenient := lenientPaths[strings.Trim(path.Pattern, "^$")]
	in, err := b.decodeRequest(path, req, lenient)
	if err != nil {
		return respond(err)
	}
	checked := *req
	checked.Data = in.values
	resp, err = b.Backend.HandleRequest(context.WithValue(ctx, nullsKey{}, in.nulls), &checked)
	if resp != nil && len(in.ignored) > 0 && !resp.IsError() {
		resp.AddWarning(ignoredWarning(in.ignored))
	}
	return resp, err
}

func (b *Backend) decodeRequest(path *framework.Path, req *logical.Request, lenient bool) (*input, error) {
	captures := b.captures(path, req.Path)
	raw := req.Data
	for name, inURL := range captures {
		if err := checkCapture(name, inURL); err != nil {
			return nil, err
		}
		inBody, both := raw[name]
		if !both {
			continue
		}
		if inBody != inURL {
			return nil, badInput("%s in the body differs from the one in the path: leave it out", name)
		}
		raw = maps.Clone(raw)
		delete(raw, name)
	}
	if _, asked := raw["list"]; asked && req.Operation == logical.ListOperation {
		// `vault read path list=true` may leave the parameter in.
		raw = maps.Clone(raw)
		delete(raw, "list")
	}
	return decodeFields(path.Fields, raw, lenient)
}

// HandleExistenceCheck looks at the path alone. The data are checked later,
// by HandleRequest: what an existence check cannot decode would be logged.
func (b *Backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (checkFound, exists bool, err error) {
	defer func() {
		if b.recovered(recover(), "an existence check", string(req.Operation)) {
			checkFound, exists, err = false, false, errInternal
		}
	}()
	if req.Path == verifyPattern {
		return false, false, nil // Vault asks before every verification
	}
	bare := *req
	bare.Data = nil
	if path := b.Route(req.Path); path != nil {
		for name, value := range b.captures(path, req.Path) {
			if checkCapture(name, value) != nil {
				return true, false, nil
			}
		}
	}
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// errInternal is all that is told of a panic.
var errInternal = errors.New("internal error")

// recovered logs what recover returned and tells whether there was a panic,
// which must not end the process: other mounts live in it. The value may hold a
// secret; its type and place do not.
func (b *Backend) recovered(r any, where, operation string) bool {
	if r == nil {
		return false
	}
	b.Logger().Error("panic in "+where, "operation", operation, "type", fmt.Sprintf("%T", r), "stack", string(debug.Stack()))
	return true
}

func (b *Backend) initialize(ctx context.Context, req *logical.InitializationRequest) (err error) {
	defer func() {
		if b.recovered(recover(), "the initialization", "") {
			err = errInternal
		}
	}()
	_, err = b.engine(ctx, req.Storage)
	if errors.Is(err, store.ErrReadOnly) {
		return nil // a standby of a mount that has not been used: the active node sets it up
	}
	return err
}

// engine returns the mount's engine, opening it where that has not been done
// or has failed before.
func (b *Backend) engine(ctx context.Context, storage logical.Storage) (*engine, error) {
	if e := b.opened(); e != nil {
		return e, nil
	}
	b.opening.Lock()
	defer b.opening.Unlock()
	if e := b.opened(); e != nil {
		return e, nil
	}
	writable := b.WriteSafeReplicationState()
	var charge *fence.Fence // nil on a node that may not write
	storage = store.Leading(storage, func() {
		if charge != nil {
			charge.Doubt()
		}
	})
	s, err := store.Open(ctx, storage, b.clock, b.rand, writable)
	if err != nil {
		return nil, err
	}
	reports, err := s.Reports(ctx)
	if err == nil {
		err = usage.CheckReports(reports)
	}
	if err != nil {
		return nil, err
	}
	e := &engine{store: s, lost: make(chan string, 1024), unknownIDs: newSet[string](maxUnknownIDs), verifiers: feed.NewVerifiers(b.clock)}
	tracker := usage.New(b.clock.Now())
	e.keeper = &lifecycle.Keeper{
		Store: s, Clock: b.clock, Rand: b.rand, Usage: tracker, Book: usage.NewBook(tracker, s.UsagePages(), s.FirstUses(), b.clock, b.Logger()), Logger: b.Logger(),
	}
	e.keeper.Book.Deleted = e.keeper.IsDeleted
	e.keeper.Book.Reports = usage.NewReports(reports, b.clock.Now())
	b.startWatching(e)
	e.ticker = jobs.NewTicker(e.keeper, b.Logger())
	e.bulk = jobs.NewBulk(e.keeper, b.Logger())
	b.measure(e)
	if writable {
		if err := e.bulk.Open(ctx); err != nil {
			return nil, err
		}
		s.OnLost = e.refile
		charge = fence.New(s, b.clock, s.Feed().Position().Epoch, b.Logger(), func() { b.standDown(e) })
		e.fence = charge
		charge.Superseded(ctx) // takes charge, now or when storage allows
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		if charge != nil {
			charge.Close()
		}
		return nil, errors.New("the engine is shutting down")
	}
	if b.former != nil {
		s.Succeed(b.former)
	}
	if writable {
		b.startWorkers(e)
	}
	b.open, b.former = e, nil
	return e, nil
}

// opened returns the mount's engine, or nil where it is not open yet.
func (b *Backend) opened() *engine {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}

// startWorkers begins what runs by itself. The first call of periodic, within
// a minute, wakes it: a start does no work of its own.
func (b *Backend) startWorkers(e *engine) {
	e.ticks = jobs.StartWorker("tick", b.Logger(), e.tick)
	e.keeper.Book.OnFull = e.ticks.Wake
	e.work = jobs.StartWorker("jobs", b.Logger(), e.bulk.Run)
	e.heal = jobs.StartWorker("refile", b.Logger(), e.refileLost)
	e.telling = jobs.StartWorker("tell", b.Logger(), e.watch.tell)
	e.watch.hooks.Start()
}

// tick does what is due, and beside that what is done about once a minute.
func (e *engine) tick(ctx context.Context) error {
	_, err := e.ticker.Tick(ctx)
	e.fence.Tidy(ctx)
	if errors.Is(err, jobs.ErrClockLeapt) { // logged once, when it leapt
		return e.watch.flush(ctx)
	}
	return errors.Join(err, e.watch.flush(ctx), e.watch.endClaims(ctx))
}

// startWatching makes what tells of events. It touches no storage.
func (b *Backend) startWatching(e *engine) {
	claims := webhook.NewClaims(e.store.Claims(), b.clock, b.rand)
	w := &watcher{
		engine: e, claims: claims, reused: newSet[string](queued), held: map[string]bool{}, detector: anomaly.New(b.clock.Now()), send: b.sendEvent,
		owed: make(chan string, queued), unpaid: newSet[string](4 * queued), notices: make(chan notice, queuedNotices), events: make(chan told, queued),
		hooks: webhook.New(webhook.Options{Storage: e.store.Webhooks(), Claims: claims, Clock: b.clock, Rand: b.rand, Logger: b.Logger()}),
	}
	claims.OnRedeemed = func(ctx context.Context, claim webhook.Claim) error {
		return e.noteClaim(ctx, claim, keyring.EventClaimRedeemed)
	}
	e.watch = w
	e.keeper.Outbox = w
	e.keeper.Book.OnHour, e.keeper.Book.OnUse, e.keeper.Book.KeepUntold = w.fullHour, w.usedFrom, true
}

// refileLost files again the keys that requests came across.
func (e *engine) refileLost(ctx context.Context) error {
	for {
		select {
		case id := <-e.lost:
			if err := e.keeper.Refile(ctx, id); err != nil {
				select {
				case e.lost <- id: // the next periodic wakes this again
				default:
				}
				return err
			}
		default:
			return nil
		}
	}
}

// periodic is called by Vault once a minute, under a lock that delays every
// request of the mount: it only wakes the workers.
func (b *Backend) periodic(ctx context.Context, req *logical.Request) (err error) {
	defer func() {
		if b.recovered(recover(), "the periodic function", "") {
			err = errInternal
		}
	}()
	if !b.WriteSafeReplicationState() {
		return nil
	}
	b.mu.Lock()
	if b.open != nil && b.open.ticks == nil {
		// A standby that became active knows nothing that still holds; but what
		// it has begun must not run beside what comes next without its locks.
		b.former, b.open = b.open.store, nil
	}
	b.mu.Unlock()
	e, err := b.engine(ctx, req.Storage)
	if err != nil {
		return err
	}
	if e.ticks != nil && !e.fence.Over() {
		e.ticks.Wake()
		e.work.Wake()
		e.telling.Wake()
		e.heal.Wake()
	}
	return nil
}

// cleanTime bounds clean, which Vault calls under a lock that all mounts share.
const cleanTime = time.Second

// clean stops the workers, and stores what was counted since the last flush,
// for as long as is left of cleanTime. On a node that steps down the writes
// fail, and the counts are lost as in a crash.
func (b *Backend) clean(context.Context) {
	over := clock.System().After(cleanTime)
	b.mu.Lock()
	e := b.open
	b.closed = true
	b.mu.Unlock()
	if e == nil || e.ticks == nil {
		return
	}
	e.fence.Close()
	e.stopWorkers()
	if e.fence.Over() {
		return // what it has counted is no longer to be trusted
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		defer func() { b.recovered(recover(), "the last flush", "") }()
		if err := e.watch.flushLast(ctx); err != nil {
			b.Logger().Debug("what was counted since the last flush could not be stored", "error", err)
		}
	}()
	select {
	case <-flushed:
	case <-over:
	}
}

// stopWorkers ends what runs by itself, within a second.
func (e *engine) stopWorkers() {
	var all sync.WaitGroup
	for _, w := range []*jobs.Worker{e.ticks, e.work, e.heal, e.telling} {
		all.Go(func() { w.Stop(clock.System().After) })
	}
	all.Go(e.watch.hooks.Stop)
	all.Wait()
}

// standDown ends what this process does: another one has taken charge.
func (b *Backend) standDown(e *engine) {
	defer func() { b.recovered(recover(), "standing down", "") }()
	b.Logger().Warn("another process has taken charge of this mount since this one started, so this one answers nothing but 503 from now on: " +
		"if this node says that it is active, two nodes do; restart the one that is not Raft's leader")
	e.stopWorkers()
	e.store.Forget()
}

func (b *Backend) invalidate(_ context.Context, key string) {
	defer func() { b.recovered(recover(), "an invalidation", "") }()
	if e := b.opened(); e != nil {
		e.store.Invalidate(key)
		if store.IsUsagePage(key) {
			e.keeper.Book.Reopen()
		}
	}
}

// refile files a key again whose entry in the due index is lost, in the
// background: the request that came across it does not wait.
func (e *engine) refile(id string) {
	select {
	case e.lost <- id:
		e.heal.Wake()
	default: // the next load finds it again
	}
}
