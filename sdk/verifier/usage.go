// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
)

const (
	// reportEntries bounds the entries of one report; the engine takes 1000.
	reportEntries = 1000
	// maxCount bounds one count of a report.
	maxCount = 1_000_000_000
	// counting is how long a use may be judged and not yet counted.
	counting = time.Second
	// maxSources bounds the sources that one version is counted under; further
	// ones count under the Source of the Config.
	maxSources = 32
	// stripeUses is how many uses are counted at once.
	stripeUses = 128
	// drained is how many counters are taken in at once.
	drained   = 1024
	cacheLine = 64
)

// useKey is what uses are counted by.
type useKey struct {
	key     string
	version int
	source  string
}

type use struct {
	count, refused uint64
	last           mono
}

// counter counts the uses of one version. It lies in the entry of its key;
// entries that are evicted live on until their counts are drained.
type counter struct {
	// last is the tick of the last use.
	last atomic.Uint32
	// listed tells that it is in the list of what is to be drained.
	listed  atomic.Bool
	n       atomic.Uint64
	sources atomic.Pointer[sources]
	next    *counter
	in      *entry
	of      *record.Version
}

// sources are the counters of the sources that Checks named, or, for one of
// them, its name.
type sources struct {
	name   string
	others []*counter
}

// stripe holds uses that are not counted yet. Each core tends to have its own,
// so that a hit writes nothing that another core writes, and nothing far away.
type stripe struct {
	mu   sync.Mutex
	n    int
	uses [stripeUses]oneUse
	_    [cacheLine - 16]byte
}

type oneUse struct {
	of     *version
	slot   *slot  // where it was found, nil if it is not counted there
	source string // empty for that of the Config
	at     tick
}

// slots are those that have counted since the last drain.
type slots struct {
	mu          sync.Mutex
	used, spare []*slot
}

func (s *slots) add(used []*slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = append(s.used, used...)
}

// take returns them. It is called by one at a time, who is done with what it
// returned before.
func (s *slots) take() []*slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.used
	s.used, s.spare = s.spare[:0], taken
	return taken
}

// usage counts uses and reports them.
type usage struct {
	v       *Verifier
	stripes []stripe
	hands   sync.Pool // of *stripe
	turn    atomic.Uint32
	// listed are the counters that were used since the last drain.
	listed atomic.Pointer[counter]
	length atomic.Int64
	full   chan struct{}
	found  slots
	// collecting is held by the one who collects.
	collecting sync.Mutex

	// boot is that of the reports that are made next. The feed tells it with each
	// question, and waits for nobody who counts.
	boot atomic.Pointer[string]

	// failing tells that reports fail, and refused is the sequence of the one that
	// the engine refused last. Both belong to the one who reports.
	failing bool
	refused uint64

	mu      sync.Mutex
	pending map[useKey]use
	// unsent are the reports that failed, with those after them. They stay as
	// they are, because the engine may have counted them, but for times that
	// Vault's clock has gone back behind.
	unsent     []Report
	sequence   uint64
	through    time.Time
	unreported uint64 // uses, in pending, in unsent, and on the way between them
	lost       uint64
	losing     bool
	counted    uint64 // drained so far
	fetched    uint64 // of these, judged by a fresh record
}

func newUsage(v *Verifier) *usage {
	u := &usage{v: v, pending: map[useKey]use{}, full: make(chan struct{}, 1), stripes: make([]stripe, 2*min(runtime.GOMAXPROCS(0), 64))}
	u.reboot()
	u.hands.New = func() any { return &u.stripes[u.turn.Add(1)%uint32(len(u.stripes))] } //nolint:gosec // there are at most 128
	v.cache.index.uncounted = u.credit
	return u
}

func (u *usage) reboot() {
	var b [12]byte
	_, _ = rand.Read(b[:]) // it never fails
	boot := hex.EncodeToString(b[:])
	u.boot.Store(&boot)
}

func (u *usage) bootID() string { return *u.boot.Load() }

// used notes an accepted use. It allocates nothing, but for the first use at a
// source.
func (u *usage) used(v *version, at *slot, source string, now mono) {
	if source == u.v.config.Source {
		source = ""
	}
	if source != "" {
		at = nil
	}
	s, _ := u.hands.Get().(*stripe)
	u.note(s, oneUse{v, at, source, now.tick()})
	u.hands.Put(s)
}

func (u *usage) note(s *stripe, one oneUse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses[s.n] = one
	if s.n++; s.n == stripeUses {
		u.count(s)
	}
}

// settle counts all uses that were noted.
func (u *usage) settle() {
	for i := range u.stripes {
		u.settleOne(&u.stripes[i])
	}
}

func (u *usage) settleOne(s *stripe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u.count(s)
}

// count counts what a stripe holds. The caller locks the stripe.
func (u *usage) count(s *stripe) {
	uses := s.uses[:s.n]
	s.n = 0
	defer clear(uses) // they keep nothing alive
	// What is far away is read first: these reads wait for memory together, and
	// atomic additions would one after the other. The slots have just been read.
	for i := range uses {
		if uses[i].slot == nil {
			uses[i].of.n.Load()
		}
	}
	var found [stripeUses]*slot
	fresh := 0
	for len(uses) > 0 {
		one, n := uses[0], 1
		for n < len(uses) && uses[n] == one {
			n++
		}
		uses = uses[n:]
		if one.slot != nil {
			counted, first := one.slot.count(one.of, uint64(n), one.at)
			if first {
				found[fresh] = one.slot
				fresh++
			}
			if counted {
				continue
			}
		}
		c := &one.of.counter
		if one.source != "" {
			c = c.at(one.source)
		}
		u.list(c, uint64(n), one.at)
		u.v.cache.touch(c.in, one.at)
	}
	if fresh > 0 {
		u.found.add(found[:fresh])
		u.lengthen(fresh)
	}
}

// credit counts uses of the first version of an entry that left its slot.
func (u *usage) credit(e *entry, n uint64, last tick) { u.list(&e.first.counter, n, last) }

// list counts n uses, and has their counter drained.
func (u *usage) list(c *counter, n uint64, at tick) {
	c.add(n, at)
	if c.listed.Load() || c.listed.Swap(true) {
		return
	}
	for {
		head := u.listed.Load()
		c.next = head
		if u.listed.CompareAndSwap(head, c) {
			break
		}
	}
	u.lengthen(1)
}

// lengthen has all drained at once where too much waits for it.
func (u *usage) lengthen(by int) {
	if u.length.Add(int64(by)) > int64(u.v.config.MaxUnreported) {
		select {
		case u.full <- struct{}{}:
		default:
		}
	}
}

// add counts n uses, the last of them at a tick. That comes first: whoever takes
// the count must not miss when it was.
func (c *counter) add(n uint64, at tick) {
	for last := c.last.Load(); tick(last) < at && !c.last.CompareAndSwap(last, uint32(at)); last = c.last.Load() {
	}
	c.n.Add(n)
}

// take returns the uses that were counted since the last time, and the tick of
// the last use.
func (c *counter) take() (n uint64, last tick) {
	n = c.n.Swap(0)
	return n, tick(c.last.Load())
}

// at returns the counter of a source. That of the Config counts for one that the
// engine would not take, as it does for one of too many.
func (c *counter) at(source string) *counter {
	for {
		known := c.sources.Load()
		var others []*counter
		if known != nil {
			others = known.others
		}
		for _, other := range others {
			if other.sources.Load().name == source {
				return other
			}
		}
		if len(others) >= maxSources || !isLabel(source) {
			return c
		}
		added := &counter{in: c.in, of: c.of}
		added.sources.Store(&sources{name: strings.Clone(source)})
		if c.sources.CompareAndSwap(known, &sources{others: append(slices.Clone(others), added)}) {
			return added
		}
	}
}

// lastUse is the tick of the last use that was counted of any version.
func (e *entry) lastUse() tick {
	last := e.first.lastUse()
	if e.more != nil {
		for i := range *e.more {
			last = max(last, (*e.more)[i].lastUse())
		}
	}
	return last
}

func (c *counter) lastUse() tick {
	last := tick(c.last.Load())
	if s := c.sources.Load(); s != nil {
		for _, other := range s.others {
			last = max(last, other.lastUse())
		}
	}
	return last
}

// add counts uses that were judged by a fresh record.
func (u *usage) add(k useKey, now mono, count, refused uint64) {
	if k.source == "" {
		k.source = u.v.config.Source
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.counted += count
	u.fetched += count
	u.put(k, use{count, refused, now})
}

// put adds to what is pending. Where there is no room for another key, what is
// least worth is coarsened: the source. Where that does not help the use is
// lost. So is a source coarsened that the engine would not take. The caller
// locks.
func (u *usage) put(k useKey, more use) {
	p, known := u.pending[k]
	if !known && !isLabel(k.source) {
		k.source = u.v.config.Source
		p, known = u.pending[k]
	}
	if !known && len(u.pending) >= u.v.config.MaxUnreported {
		k.source = u.v.config.Source
		if p, known = u.pending[k]; !known {
			u.lost += more.count + more.refused
			u.losing = true
			return
		}
	}
	if !known {
		k.key, k.source = strings.Clone(k.key), strings.Clone(k.source)
	}
	p.count += more.count
	p.refused += more.refused
	u.unreported += more.count + more.refused
	p.last = max(p.last, more.last)
	u.pending[k] = p
}

// collect takes in what was counted.
func (u *usage) collect() {
	u.collecting.Lock()
	defer u.collecting.Unlock()
	u.settle()
	for _, s := range u.found.take() {
		u.length.Add(-1)
		if e, n, last := s.take(); n > 0 {
			u.credit(e, n, last)
			u.v.cache.touch(e, last)
		}
	}
	for c := u.listed.Swap(nil); c != nil; {
		c = u.drainSome(c)
	}
}

// drainSome takes in what some counters have, and returns the one after them:
// there may be a million, and whoever was judged by a fresh record waits.
func (u *usage) drainSome(c *counter) *counter {
	u.mu.Lock()
	defer u.mu.Unlock()
	for range drained {
		if c == nil {
			break
		}
		next := c.next
		c.next = nil
		u.length.Add(-1)
		// Whoever counts from here on lists it again.
		c.listed.Store(false)
		u.drain(c)
		c = next
	}
	return c
}

// drain takes in what a counter has. The caller locks.
func (u *usage) drain(c *counter) {
	n, last := c.take()
	if n == 0 {
		return
	}
	k := useKey{key: c.in.record.KeyID, version: c.of.Number, source: u.v.config.Source}
	if s := c.sources.Load(); s != nil && s.name != "" {
		k.source = s.name
	}
	u.counted += n
	u.put(k, use{count: n, last: (last + 1).start()})
}

// total is what came of uses so far: of those accepted, hits were by cached
// records.
type total struct{ accepted, hits, unreported, lost uint64 }

func (u *usage) total() total {
	u.collect()
	u.mu.Lock()
	defer u.mu.Unlock()
	return total{u.counted, u.counted - u.fetched, u.unreported, u.lost}
}

// left is how many kinds of use are not reported, and how many uses.
func (u *usage) left() (kinds int, uses uint64) {
	u.collect()
	u.mu.Lock()
	defer u.mu.Unlock()
	kinds = len(u.pending)
	for i := range u.unsent {
		kinds += len(u.unsent[i].Entries)
	}
	return kinds, u.unreported
}

// gather takes in what was counted until ctx ends: at once where there is much,
// and now and then, since the cache hears of uses by that. It waits for no
// report: what waits to be taken in keeps its entries alive.
func (u *usage) gather(ctx context.Context) {
	touching := time.NewTicker(time.Duration(touchEvery.start()))
	defer touching.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.full:
		case <-touching.C:
		}
		u.collect()
	}
}

// run reports until ctx ends.
func (u *usage) run(ctx context.Context) {
	ticker := time.NewTicker(u.v.config.ReportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			u.report(ctx)
		}
	}
}

// report sends what failed before, as it was, and what has been counted since.
// What cannot be sent stays pending, where uses of the same kind add up.
func (u *usage) report(ctx context.Context) bool {
	if !u.send(ctx) {
		return false
	}
	u.prepare()
	return u.send(ctx)
}

// prepare makes reports of what is pending. They are complete up to a moment
// ago, unless something was lost: then a new boot tells so.
func (u *usage) prepare() {
	now := u.v.now()
	u.collect()
	collected := u.v.now()
	f, pending := u.takePending()
	if f.generation == 0 && len(pending) == 0 {
		return // nothing has happened, and Vault's time is not known
	}
	// There may be a million, and nobody waits for this: what is counted meanwhile
	// is for the next reports.
	u.ready(entriesOf(pending, f, collected), f, now)
}

// ready has entries sent, in as many reports as it takes. By the clock of f they
// are complete up to a little before now.
func (u *usage) ready(entries []Use, f *feedState, now mono) {
	u.mu.Lock()
	defer u.mu.Unlock()
	through := time.Time{}
	if f.generation > 0 {
		through = vaultTime(f.earliest(now) - int64(counting)).Truncate(time.Millisecond)
	}
	for first := true; first || len(entries) > 0; first = false {
		part := entries[:min(len(entries), reportEntries)]
		entries = entries[len(part):]
		u.sequence++
		if len(entries) == 0 {
			u.through = through
		} else if u.through.After(through) {
			u.through = time.Time{} // the clock has gone back a little
		}
		u.unsent = append(u.unsent, Report{
			Verifier: u.v.config.Name, Boot: u.bootID(), Sequence: u.sequence, ReportedThrough: u.through, Entries: part,
		})
	}
	// The clock may have gone back since f, by a reset. If it does from here on,
	// wentBack finds these reports.
	if latest := u.v.feed.Load(); latest.generation != f.generation && f.behind(vaultTime(latest.read), latest.sent) > 0 {
		u.goBack(latest)
	}
}

// takePending takes what is pending, and the clock that it is reported by.
func (u *usage) takePending() (*feedState, map[useKey]use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	pending := u.pending
	u.pending = map[useKey]use{}
	if u.losing {
		u.losing = false
		u.reboot()
		u.sequence, u.through = 0, time.Time{}
	}
	return u.v.feed.Load(), pending
}

// entriesOf are the entries that report what was collected up to a moment.
func entriesOf(pending map[useKey]use, f *feedState, collected mono) []Use {
	entries := make([]Use, 0, len(pending))
	for k, p := range pending {
		last := time.Time{}
		if f.generation > 0 {
			last = vaultTime(f.earliest(min(p.last, collected))).Truncate(time.Millisecond)
		}
		for first := true; first || p.count > 0 || p.refused > 0; first = false {
			e := Use{KeyID: k.key, Version: k.version, Source: k.source, Count: min(p.count, maxCount), Refused: min(p.refused, maxCount), LastUsed: last}
			p.count -= e.Count
			p.refused -= e.Refused
			entries = append(entries, e)
		}
	}
	return entries
}

// wentBack has nothing said of times that, by f, have yet to come: how much of
// them is reported is not known before they have.
func (u *usage) wentBack(f *feedState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.goBack(f)
}

// goBack is wentBack for who locks.
func (u *usage) goBack(f *feedState) {
	u.through = time.Time{}
	now := vaultTime(f.earliest(u.v.now())).Truncate(time.Millisecond)
	for i := range u.unsent {
		r := &u.unsent[i]
		r.ReportedThrough = time.Time{}
		r.Entries = slices.Clone(r.Entries)
		for j := range r.Entries {
			if e := &r.Entries[j]; e.LastUsed.After(now) {
				e.LastUsed = now
			}
		}
	}
}

// judged tells whether the engine has refused what a report says, as it would
// each time it is sent.
func judged(err error) bool {
	status := (*vaultclient.StatusError)(nil)
	if !errors.As(err, &status) || vaultclient.IsUnavailable(err) {
		return false
	}
	switch status.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// giveUp counts the first report as lost, so that those after it are sent.
func (u *usage) giveUp(r *Report) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lost += u.done(r)
	u.losing = true
}

// done is over with the first report, and tells how many uses are in it. The
// caller locks.
func (u *usage) done(r *Report) (uses uint64) {
	for _, e := range r.Entries {
		uses += e.Count + e.Refused
	}
	u.unreported -= uses
	u.unsent[0] = Report{} // else its entries would be kept until all are sent
	if u.unsent = u.unsent[1:]; len(u.unsent) == 0 {
		u.unsent = nil
	}
	return uses
}

// taken is done with the first report. Entries that the engine has refused are
// lost: it would refuse them again. No new boot has to tell it: where one may tell
// of the use of a version that there is, the engine does not take the report for
// complete.
func (u *usage) taken(r *Report, errs []EntryError) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done(r)
	dropped := map[int]bool{}
	for _, e := range errs {
		if e.Index < 0 || e.Index >= len(r.Entries) || dropped[e.Index] {
			continue
		}
		dropped[e.Index] = true
		entry := &r.Entries[e.Index]
		u.lost += entry.Count + entry.Refused
		if len(dropped) == 1 {
			u.v.log.Warn("the engine does not count some use", "key_id", entry.KeyID, "version", entry.Version, "of", len(errs))
		}
	}
}

// send sends the reports that are ready, in order, until one fails. One that
// the engine refuses twice, for what is in it, is given up.
func (u *usage) send(ctx context.Context) bool {
	for {
		u.mu.Lock()
		if len(u.unsent) == 0 {
			u.mu.Unlock()
			return true
		}
		r := u.unsent[0]
		u.mu.Unlock()
		bounded, cancel := context.WithTimeout(ctx, u.v.config.RequestTimeout)
		answer, err := u.v.engine.Report(bounded, r)
		cancel()
		former := u.refused
		u.refused = 0
		if err != nil {
			if ctx.Err() == nil { // else it was cut off, which is no failure
				u.failed(err)
			}
			if !judged(err) {
				return false
			}
			if former != r.Sequence {
				u.refused = r.Sequence
				return false
			}
			u.v.log.Error("a report of use is refused and given up; what it told is lost", "sequence", r.Sequence, "error", err)
			u.giveUp(&r)
			continue
		}
		u.v.stats.reports.Add(1)
		u.taken(&r, answer.Errors)
		if u.failing {
			u.failing = false
			u.v.log.Info("use is reported again")
		}
	}
}

func (u *usage) failed(err error) {
	u.v.stats.reportFailures.Add(1)
	if !u.failing {
		u.failing = true
		u.v.log.Warn("use cannot be reported; it is kept, and adds up", "error", err)
	}
}
