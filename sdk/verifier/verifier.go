// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Verifier verifies API keys. Its methods may be called from any goroutine.
type Verifier struct {
	config Config
	engine Engine
	log    *slog.Logger
	start  time.Time        // of the monotonic clock
	wall   func() time.Time // for the skew alone

	feed      atomic.Pointer[feedState]
	cache     *cache
	aliases   *aliases
	negatives *negatives
	known     *lane
	unknown   *lane
	budgets   budgets
	usage     *usage
	stats     stats

	// records guards what decides whether a record is as new as the feed: the
	// changes that were told, the marks of roles, and what is cached beside
	// them. A hit does not take it.
	records sync.Mutex
	changes changes
	roles   map[string]*roleMark

	// distrust tells follow to ask for a reset; it alone uses it.
	distrust    bool
	kick        chan struct{}
	synced      chan struct{} // closed by the first good answer
	skew        atomic.Int64
	lookupsFail atomic.Bool
	status      struct {
		sync.Mutex
		feedError error
	}

	// life ends with Close; background are the goroutines that it ends.
	life       context.Context //nolint:containedctx // it is that of the verifier, which outlives every call
	end        context.CancelFunc
	background sync.WaitGroup
	running    atomic.Bool
	ran        chan struct{}
	closing    sync.Once
	closed     error
}

// New makes a verifier. It does no I/O. Its error names the field of c that
// cannot be used.
func New(c Config) (*Verifier, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		config: c, engine: c.Engine, log: c.Logger, start: time.Now(), wall: c.WallClock,
		cache: newCache(c.CacheSize), aliases: newAliases(c.CacheSize), negatives: newNegatives(maxNegatives),
		changes: changes{maximum: maxChanged}, roles: map[string]*roleMark{},
		kick: make(chan struct{}, 1), ran: make(chan struct{}), synced: make(chan struct{}),
	}
	v.changes.reset(0, 0)
	v.feed.Store(&feedState{good: -1})
	v.known = newLane(v, 4, knownQueue)
	v.unknown = newLane(v, 2, unknownQueue)
	v.budgets.holders.open(c.KnownRate)
	v.budgets.guessers.open(c.KnownRate)
	v.budgets.strangers.open(c.UnknownRate)
	v.usage = newUsage(v)
	v.life, v.end = context.WithCancel(context.Background())
	return v, nil
}

const (
	// maxNegatives bounds the digests that are known to belong to no key; each
	// takes about 200 bytes.
	maxNegatives = 20_000
	// knownQueue and unknownQueue bound the questions that wait for a lookup.
	knownQueue   = 50_000
	unknownQueue = 5_000
	// maxWaiting bounds the requests that wait for the answers to the questions of
	// a lane: what each holds, such as its header, is much more than a question.
	maxWaiting = 5_000
)

// isLabel tells whether the engine takes a text for a name or a source.
func isLabel(s string) bool {
	const longest = 128
	return len(s) <= longest && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '-' || r > ':') && r != '_' // from - to : there are . / 0 to 9
	})
}

// CheckSource tells what is wrong with a source that use cannot be counted
// under, as Check has it.
func CheckSource(source string) error {
	if !isLabel(source) {
		return errors.New("source must be at most 128 of A-Z a-z 0-9 _ . : / -")
	}
	return nil
}

func (c Config) withDefaults() (Config, error) {
	if c.Engine == nil {
		if c.Vault == nil {
			return c, errors.New("vault is required: a client of the vault that has the engine")
		}
		c.Engine = OnVault(c.Vault)
	}
	if c.Name == "" || !isLabel(c.Name) {
		return c, errors.New("name must be 1 to 128 of A-Z a-z 0-9 _ . : / -")
	}
	if err := CheckSource(c.Source); err != nil {
		return c, err
	}
	for _, d := range []struct {
		name             string
		value            *time.Duration
		byDefault, least time.Duration
	}{
		{"poll interval", &c.PollInterval, time.Second, 10 * time.Millisecond},
		{"max stale", &c.MaxStale, 10 * time.Minute, time.Second},
		{"report interval", &c.ReportInterval, 10 * time.Second, 10 * time.Millisecond},
		{"request timeout", &c.RequestTimeout, 2 * time.Second, time.Millisecond},
	} {
		if *d.value == 0 {
			*d.value = d.byDefault
		}
		if *d.value < d.least {
			return c, fmt.Errorf("%s must be at least %s, got %s", d.name, d.least, *d.value)
		}
	}
	if c.WallClock == nil {
		c.WallClock = time.Now
	}
	if c.CacheSize == 0 {
		c.CacheSize = 100_000
	}
	if c.MaxUnreported == 0 {
		c.MaxUnreported = max(100_000, c.CacheSize)
	}
	if c.UnknownRate == 0 {
		c.UnknownRate = 500
	}
	if c.KnownRate == 0 {
		c.KnownRate = 5000
	}
	if c.VerifyTimeout < 0 {
		return c, fmt.Errorf("verify timeout must not be negative, got %s", c.VerifyTimeout)
	}
	if c.CacheSize < 0 || c.MaxUnreported < 0 || c.UnknownRate < 0 || c.KnownRate < 0 {
		return c, errors.New("cache size, max unreported and rates must not be negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Run follows the feed and reports use until ctx ends, then reports what is
// left, for as long as RequestTimeout, and logs what it could not. Where Close
// ends it, that is left to Close. Without Run every key is asked for each time.
func (v *Verifier) Run(ctx context.Context) error {
	if v.running.Swap(true) {
		return errors.New("the verifier runs already")
	}
	defer close(v.ran)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(v.life, stop)()
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { v.follow(running); return nil })
	group.Go(func() error { v.usage.gather(running); return nil })
	group.Go(func() error { v.usage.run(running); return nil })
	group.Go(func() error { v.revalidate(running); return nil })
	if v.config.FirstFill {
		group.Go(func() error { v.fill(running); return nil })
	}
	_ = group.Wait() // they end with ctx, and have no errors
	if v.life.Err() == nil {
		v.reportLast(ctx)
	}
	return context.Cause(ctx)
}

func (v *Verifier) reportLast(ctx context.Context) {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.config.RequestTimeout)
	defer cancel()
	if !v.usage.report(last) {
		kinds, uses := v.usage.left()
		v.log.Warn("not all use could be reported at the end; it is lost, unless Close still reports it", "kinds", kinds, "uses", uses)
	}
}

// Close ends what runs, and reports what is left. It takes no longer than ctx,
// also where the Engine heeds no context; its error tells what is not reported.
// Who calls it while another call is under way waits for that one.
// The verifier is then of no more use.
func (v *Verifier) Close(ctx context.Context) error {
	v.closing.Do(func() { v.closed = v.close(ctx) })
	return v.closed
}

func (v *Verifier) close(ctx context.Context) error {
	v.end()
	v.known.stop()
	v.unknown.stop()
	runs := v.running.Swap(true)
	reported := make(chan bool, 1)
	go func() {
		if runs {
			<-v.ran
		}
		v.background.Wait()
		v.acceptNothing()
		reported <- ctx.Err() == nil && v.usage.report(ctx)
	}()
	select {
	case all := <-reported:
		if all {
			return nil
		}
	case <-ctx.Done():
		v.acceptNothing()
		select {
		case all := <-reported: // at the last moment
			if all {
				return nil
			}
		default:
		}
	}
	switch _, uses := v.usage.left(); {
	case uses == 0:
		return ctx.Err()
	case ctx.Err() != nil:
		return fmt.Errorf("%d uses could not be reported: %w", uses, ctx.Err())
	default:
		return fmt.Errorf("%d uses could not be reported", uses)
	}
}

// acceptNothing has cached keys accepted no more. What the feed answers once life
// has ended changes nothing about that.
func (v *Verifier) acceptNothing() {
	v.records.Lock()
	defer v.records.Unlock()
	over := *v.feed.Load()
	over.good = -1
	v.feed.Store(&over)
}

// pollNow has the feed asked before its time.
func (v *Verifier) pollNow() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// revalidateAfter spreads the times at which records are fetched again over
// the third quarter of their life.
func (v *Verifier) revalidateAfter(id keyID) mono {
	h := fnv.New32a()
	_, _ = h.Write(id[:]) // it never fails
	const steps = 1024
	return mono(recordLife/2 + recordLife/4*time.Duration(h.Sum32()%steps)/steps)
}

// revalidate fetches records again before they are too old to be used.
func (v *Verifier) revalidate(ctx context.Context) {
	ticker := time.NewTicker(revalidateEvery)
	defer ticker.Stop()
	for part := 0; ; part++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			v.revalidateDue(part)
		}
	}
}

// Each revalidateEvery a part of the cache is gone through, so that all of it is
// once a minute: to look at a million entries at once would push whatever else
// the processor has in its caches out of them.
const (
	revalidateEvery = 5 * time.Second
	revalidateParts = 12
)

func (v *Verifier) revalidateDue(part int) {
	f, now := v.feed.Load(), v.now()
	var due []keyID
	for e := range v.cache.index.part(part%revalidateParts, revalidateParts) {
		if e.age.generation() == f.generation && e.age.fetched().start()+v.revalidateAfter(e.id) <= now {
			due = append(due, e.id)
		}
	}
	v.known.refetch(due)
}
