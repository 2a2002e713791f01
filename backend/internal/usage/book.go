// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

const (
	// maxWrites bounds the pages that one flush writes. What is left keeps its
	// counts in memory for the next one, which begins where this one ended.
	maxWrites = 64
	// splitWrites is how many pages a flush of one page writes at most.
	splitWrites = 2
	// maxFailed is after how many pages that fail a flush gives up.
	maxFailed = 3
)

// errDamaged says that a page cannot be read. The others go on.
var errDamaged = errors.New("a page of usage is damaged")

// Book keeps what a Tracker counts in pages in storage.
type Book struct {
	tracker *Tracker
	pages   PageStore
	clock   clock.Clock
	logger  hclog.Logger

	// flushing is held during a flush, and paging while one page is worked on.
	flushing sync.Mutex
	paging   turn
	// known are the pages that there are; nil until they were listed. It is
	// replaced, not changed: dir shares it with those who do not hold paging.
	known directory
	dir   atomic.Pointer[directory]
	// notes are the first uses that no page has, and rest is when storage is not
	// asked to take any.
	notes *notes
	rest  rest
	// recovered is when notes were last read, or tried to be, plus 1; 0 before.
	recovered atomic.Int64
	// outlines are what pages have. Those that are missing are read by loading,
	// as many at once as loads has room for.
	outlines *outlines
	loading  flights
	loads    turn
	// retention is how long hours are kept.
	retention time.Duration
	mu        sync.Mutex
	// forgotten are deleted keys whose records are still on pages; mu guards it.
	forgotten map[string]struct{}
	// unsure are the writes of pages that failed: they may have reached storage
	// all the same, which the next read of the page finds out.
	unsure map[string]attempt
	// last is the page that the last flush wrote last.
	last string

	// Reports are those of verifiers elsewhere.
	Reports *Reports
	// OnHour, where set before first use, is given the hour that ended last of
	// each key on a page that was used in the last day, where it and the two hours
	// before it were counted in full: the hours of the last four weeks before it,
	// oldest first, and its count of accepted uses.
	OnHour func(keyID string, before []uint64, end time.Time, count uint64)
	// OnUse, where set before first use, is given the accepted uses that a flush
	// adds to the page of a key. stored sums up what the page has without them. If
	// it returns true, they are kept for the next flush, which gives them again.
	OnUse func(keyID string, stored func() Stored, used []Use) (wait bool)
	// OnFull, where set before first use, is called when many first uses wait for
	// a flush. It must not wait.
	OnFull func()
	// KeepUntold, where set before first use, keeps the notes of first uses until
	// Told was called of them, also where pages have them.
	KeepUntold bool
	// Deleted, where set before first use, tells of the key of a note that a crash
	// has left whether it was deleted.
	Deleted func(ctx context.Context, keyID string) bool
	// counting tells since when all uses are counted.
	counting counting
	// watched are the pages that were used in the last day.
	watched map[string]*watch
	// trimmed is the first hour that was kept when all keys of a page were last
	// trimmed, by page.
	trimmed map[string]int64
}

// attempt is a write of a page of which is not known whether it was stored.
type attempt struct {
	// serial is that of the page as it was to be stored.
	serial uint64
	// split tells that the page was to be replaced by its halves.
	split bool
	taken map[string]delta
}

// NewBook returns the book of t. What pages do not have yet of first uses it
// keeps in notes, under names of digits.
func NewBook(t *Tracker, pages, notes PageStore, c clock.Clock, logger hclog.Logger) *Book {
	b := &Book{
		tracker: t, pages: pages, clock: c, logger: logger, paging: make(turn, 1),
		outlines: newOutlines(maxOutlined), loading: flights{named: map[string]*flight{}}, loads: make(turn, maxLoads),
		retention: 168 * time.Hour, forgotten: map[string]struct{}{},
		unsure: map[string]attempt{}, Reports: NewReports(nil, time.Time{}), trimmed: map[string]int64{},
		counting: counting{since: t.start, wall: c.Now(), elapsed: c.Elapsed()}, watched: map[string]*watch{},
	}
	b.notes = newNotes(t, notes, logger, func() {
		if b.OnFull != nil {
			b.OnFull()
		}
	})
	return b
}

// Idle tells, without storage access, that there is nothing to flush, and no page
// to look at.
func (b *Book) Idle() bool {
	if b.hasForgotten() || !b.notes.idle() || b.tracker.isDirty() {
		return false
	}
	select {
	case b.paging <- struct{}{}:
		defer b.paging.give()
		return len(b.unsure) == 0 && len(b.unjudged(b.clock.Now())) == 0
	default:
		return false
	}
}

// Flush adds what was counted since the last flush to the pages, with at most
// maxWrites writes, and splits those that have grown. Its cost is a read and a
// write for each page whose keys were used, and once an hour a read of at most
// maxVisits of those that were used in the last day. A failure keeps the counts.
func (b *Book) Flush(ctx context.Context, now time.Time, retention time.Duration) error {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	if err := b.begin(ctx, retention); err != nil {
		return err
	}
	paged := func(f *First) bool { return b.outlined(f.KeyID).knows(b.tracker.seed, f) }
	noted, err := b.notes.close(ctx, paged)
	if err != nil {
		return err
	}
	var errs []error
	failed := 0
	dirty := append(b.tracker.dirtyKeys(), noted...)
	slices.Sort(dirty)
	dirty = slices.Compact(dirty)
	for writes := maxWrites; writes >= splitWrites && (len(dirty) > 0 || b.hasForgotten()); {
		work, err := b.sort(ctx, dirty)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		dirty = nil
		before := writes
		for _, w := range work {
			if writes < splitWrites {
				break
			}
			n, rest, err := b.flushPage(ctx, w, now)
			writes -= n
			dirty = append(dirty, rest...)
			if errs = append(errs, err); err != nil && !errors.Is(err, errDamaged) {
				b.last = w.name // the next flush does not begin with it
				if failed++; failed == maxFailed {
					writes = 0 // no further page
				}
			}
		}
		if writes == before {
			break
		}
	}
	b.notes.settle(paged, b.KeepUntold)
	return errors.Join(append(errs, b.visit(ctx, now), b.notes.sweep(ctx))...)
}

// Recover reads the notes of first uses that a crash, or another node, has left
// behind. Until it has, no version counts as drained. It costs nothing once all
// are read; what fails is logged, and tried again by the next call.
func (b *Book) Recover(ctx context.Context) {
	b.recovered.Store(int64(b.clock.Elapsed()) + 1)
	if err := b.notes.recover(ctx); err != nil {
		b.logger.Warn("the notes of first uses could not be read; until they are, no version counts as drained", "error", err)
	}
}

// recoverSoon is Recover for who asks before the first tick does it: it waits for
// noteTime at most, and tries no more than once in restTime.
func (b *Book) recoverSoon(ctx context.Context) {
	if last := b.recovered.Load(); b.notes.isKnown() || last > 0 && b.clock.Elapsed()-time.Duration(last) < restTime {
		return
	}
	_ = b.loading.do(ctx, NotePrefix, func(ctx context.Context) error {
		b.Recover(ctx)
		return nil
	})
}

// list replaces what is known of the pages that there are; nil has them listed
// anew.
func (b *Book) list(known directory) {
	b.known = known
	if known == nil {
		b.dir.Store(nil)
		return
	}
	b.dir.Store(&known)
}

// begin finds out what became of writes that had failed.
func (b *Book) begin(ctx context.Context, retention time.Duration) error {
	if err := b.paging.take(ctx); err != nil {
		return err
	}
	defer b.paging.give()
	b.retention = retention
	b.counting.look(b.clock)
	if len(b.unsure) == 0 {
		return nil
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	failed := 0
	for _, name := range slices.Sorted(maps.Keys(b.unsure)) {
		if _, err := b.fetch(ctx, name); err != nil {
			// It stays unsure: whoever flushes that page looks again.
			if failed++; failed == maxFailed {
				break
			}
		}
	}
	return nil
}

func (b *Book) hasForgotten() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.forgotten) > 0
}

// work is what is to be done with one page: counts to be added, and deleted
// keys to be removed.
type work struct {
	name    string
	dirty   []string
	deleted []string
}

// sort assigns keys to their pages, in the order in which they are flushed:
// from the page after the last one on, so that all get their turn.
func (b *Book) sort(ctx context.Context, dirty []string) ([]*work, error) {
	if err := b.paging.take(ctx); err != nil {
		return nil, err
	}
	defer b.paging.give()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	byPage := map[string]*work{}
	on := func(id string) *work {
		name := b.known.of(id)
		if byPage[name] == nil {
			byPage[name] = &work{name: name}
		}
		return byPage[name]
	}
	for _, id := range dirty {
		w := on(id)
		w.dirty = append(w.dirty, id)
	}
	b.mu.Lock()
	for id := range b.forgotten {
		w := on(id)
		w.deleted = append(w.deleted, id)
	}
	b.mu.Unlock()
	names := slices.Sorted(maps.Keys(byPage))
	first, _ := slices.BinarySearch(names, b.last+"\x00")
	list := make([]*work, 0, len(names))
	for _, name := range append(names[first:], names[:first]...) {
		list = append(list, byPage[name])
	}
	return list, nil
}

// flushPage does the work of one page. It returns how many pages it wrote, and
// the keys that it had no room for: they are flushed once the page is split.
func (b *Book) flushPage(ctx context.Context, w *work, now time.Time) (writes int, rest []string, err error) {
	if err := b.paging.take(ctx); err != nil {
		return 0, nil, err
	}
	defer b.paging.give()
	if b.known == nil {
		return 0, nil, nil // to be listed anew: the next flush goes on
	}
	p, outline, err := b.loadOutlined(ctx, w.name)
	if err != nil {
		return 0, nil, err
	}
	oldest := b.oldest(now)
	if b.trimmed[w.name] < oldest.hours {
		p.trim(oldest) // as much as a full decoding, so once an hour
	}
	p.note(b.counting.since, now)
	changed := false
	for _, id := range w.deleted {
		if _, on := p.keys[id]; on {
			k, _ := p.key(id)
			outline.changes(id, k)
			delete(p.keys, id)
			changed = true
		}
	}
	taken := map[string]delta{}
	var damaged error
	size := p.size()
	for i, id := range w.dirty {
		if size >= fullSize {
			rest, changed = w.dirty[i:], true // to be split
			break
		}
		k, err := p.key(id)
		if err != nil {
			damaged = err // its counts stay in memory
			continue
		}
		d := b.toAdd(ctx, k, id)
		if len(d) == 0 {
			continue
		}
		if used := d.accepted(); b.OnUse != nil && len(used) > 0 && b.OnUse(id, k.stored, used) {
			b.tracker.putBack(id, d)
			continue
		}
		taken[id], changed = d, true
		size -= p.sizeOf(id)
		outline.changes(id, k)
		p.add(id, d, oldest)
		size += p.sizeOf(id)
	}
	if len(taken) > 0 {
		b.used(w.name, now)
	}
	if len(rest) == 0 {
		b.judge(w.name, p, now)
	}
	if changed {
		p.at = now.Unix()
		if writes, err = b.save(ctx, w.name, p, outline, taken); err != nil {
			return writes, nil, err
		}
		b.last = w.name
		b.trimmed[w.name] = oldest.hours
	}
	b.mu.Lock()
	for _, id := range w.deleted {
		delete(b.forgotten, id)
	}
	b.mu.Unlock()
	return writes, rest, damaged
}

// toAdd returns what is to be added to a key on its page: what was counted, and
// of first uses that were noted those that are neither counted nor on the page.
func (b *Book) toAdd(ctx context.Context, k *keyPage, id string) delta {
	d := b.tracker.take(id)
	if b.notes.isGone(id) {
		return nil // it was used while it was deleted
	}
	missing := k.missing(d, b.notes.closedOf(id))
	if len(missing) == 0 {
		return d
	}
	if d == nil {
		if b.Deleted != nil && b.Deleted(ctx, id) {
			b.Forget(id)
			return nil
		}
		d = delta{}
	}
	for _, f := range missing {
		d.add(f.Version, f.Source, addition{counts{count: 1}, f.At})
	}
	return d
}

// oldest are the first hours that are kept.
func (b *Book) oldest(now time.Time) oldest {
	return oldest{hours: now.Add(-b.retention).Unix() / 3600, totals: now.Unix()/3600 - 1 - keepTotals}
}

// save writes a page, or its halves where it has grown too large, and returns
// how many pages it wrote. Until the page itself is removed it is what holds,
// and halves beside it do not: a crash between loses only what was taken.
func (b *Book) save(ctx context.Context, name string, p *page, outline *changing, taken map[string]delta) (writes int, err error) {
	p.serial++
	data, err := encodePage(p)
	if err == nil && (len(data) > splitSize || p.size() >= fullSize) && len(name) < maxDepth && len(p.keys) > 1 && b.known.has(name) {
		return b.split(ctx, name, p, taken)
	}
	if err == nil {
		if err = b.pages.PutPage(ctx, name, data); err == nil {
			if !b.known.has(name) {
				known := maps.Clone(b.known)
				known[name] = struct{}{}
				b.list(known)
			}
			b.outlines.put(name, outline.done(p, data))
			return 1, nil
		}
	}
	b.unsure[name] = attempt{serial: p.serial, taken: taken}
	return 1, err
}

func (b *Book) split(ctx context.Context, name string, p *page, taken map[string]delta) (writes int, err error) {
	halves := p.split(name)
	stored := map[string][]byte{}
	for _, half := range slices.Sorted(maps.Keys(halves)) {
		stored[half], err = encodePage(halves[half])
		if err == nil {
			writes++
			err = b.pages.PutPage(ctx, half, stored[half])
		}
		if err != nil {
			b.tracker.putBackAll(taken) // the page stands as it was
			return writes, err
		}
	}
	if err := b.pages.DeletePage(ctx, name); err != nil {
		// Which of them holds is found out by listing them.
		b.unsure[name] = attempt{split: true, taken: taken}
		b.list(nil)
		return writes, err
	}
	known := maps.Clone(b.known)
	w := b.watched[name]
	for half, p := range halves {
		known[half] = struct{}{}
		if w != nil {
			b.watched[half] = &watch{w.used, w.judged}
		}
		b.outlines.put(half, outlineOf(b.tracker.seed, p, stored[half]))
	}
	delete(known, name)
	b.list(known)
	b.outlines.remove(name)
	delete(b.watched, name)
	delete(b.trimmed, name)
	return writes, nil
}

// open lists the pages. Where a page stands beside its halves, a crash came
// between: the page holds, and its halves are removed.
func (b *Book) open(ctx context.Context) error {
	if b.known != nil {
		return nil
	}
	names, err := b.pages.ListPages(ctx)
	if err != nil {
		return err
	}
	known := directory{}
	for _, n := range names {
		known[n] = struct{}{}
	}
	for _, n := range names {
		for _, half := range halvesOf(n) {
			if !known.has(n) || !known.has(half) {
				continue
			}
			if err := b.pages.DeletePage(ctx, half); err != nil {
				return err
			}
			delete(known, half)
		}
	}
	b.list(known)
	for name, a := range b.unsure {
		if !a.split {
			continue
		}
		if known.has(name) {
			b.tracker.putBackAll(a.taken)
		}
		delete(b.unsure, name)
	}
	return nil
}

// Reopen lets the pages be listed anew: another node has written some.
func (b *Book) Reopen() {
	b.paging <- struct{}{}
	defer b.paging.give()
	b.list(nil)
	b.outlines.purge()
	b.notes.reopen()
}

func (d directory) has(name string) bool {
	_, ok := d[name]
	return ok
}

// fetch reads a page as it is stored, and settles whether a write of it that
// failed was stored.
func (b *Book) fetch(ctx context.Context, name string) ([]byte, error) {
	data, err := b.pages.GetPage(ctx, name)
	if err != nil {
		return nil, err
	}
	if a, unsure := b.unsure[name]; unsure && !a.split {
		delete(b.unsure, name)
		if p, err := decodePage(data); err != nil || p.serial != a.serial {
			b.tracker.putBackAll(a.taken)
		}
	}
	return data, nil
}

// loadOutlined reads a page that is to be changed. Its outline is made only where
// the one that is known is of something else.
func (b *Book) loadOutlined(ctx context.Context, name string) (*page, *changing, error) {
	data, err := b.fetch(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	p, err := decodePage(data)
	if err != nil {
		return nil, nil, err
	}
	seed := b.tracker.seed
	o := b.outlines.get(name)
	if o == nil || o.of != maphash.Bytes(seed, data) {
		o = outlineOf(seed, p, data)
		b.outlines.put(name, o)
	}
	return p, &changing{seed: seed, old: o}, nil
}

// Forget removes a deleted key from its page at the next flush.
func (b *Book) Forget(keyID string) {
	b.tracker.Forget(keyID)
	b.notes.forgetKey(keyID)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.forgotten) < maxKeys {
		b.forgotten[keyID] = struct{}{}
	}
}

// Read returns what is known of the use of a key by version: what is stored
// and what has not been flushed yet. It costs one read of storage.
func (b *Book) Read(ctx context.Context, keyID string, now time.Time) (map[int]Version, error) {
	use, _, err := b.read(ctx, keyID, now)
	return use, err
}

// read is Read, and the number up to which versions had to make room.
func (b *Book) read(ctx context.Context, keyID string, now time.Time) (use map[int]Version, lost int, err error) {
	at, err := b.look(ctx, keyID, now)
	if err != nil {
		return nil, 0, err
	}
	p, err := decodePage(at.page)
	if err != nil {
		return nil, 0, err
	}
	k, err := p.key(keyID)
	if err != nil {
		return nil, 0, err
	}
	use = at.live
	of := func(number int) Version {
		if v, ok := use[number]; ok {
			return v
		}
		return Version{Sources: map[string]Source{}}
	}
	if k != nil {
		lost = k.Lost
		for number, sources := range k.Versions {
			v := of(number)
			for name, s := range sources {
				v.add(name, Source{Count: s.Count, Refused: s.Refused, Stale: s.Stale, LastUsed: s.lastUsed(), Hours: slots(s.Hours)})
			}
			use[number] = v
		}
	}
	for _, f := range at.noted {
		v := of(f.Version)
		if v.Sources[f.Source].Count == 0 {
			v.add(f.Source, Source{Count: 1, LastUsed: f.At})
		}
		use[f.Version] = v
	}
	for _, v := range use {
		for _, s := range v.Sources {
			dropHours(s.Hours, at.oldest)
		}
	}
	return use, lost, nil
}

// looked is what is known of a key at a moment at which no flush moves any of it.
type looked struct {
	page   []byte
	live   map[int]Version
	noted  []First
	oldest int64
}

// look reads the page of a key, which is for others to decode: a flush waits for it.
func (b *Book) look(ctx context.Context, keyID string, now time.Time) (looked, error) {
	if err := b.paging.take(ctx); err != nil {
		return looked{}, err
	}
	defer b.paging.give()
	if err := b.open(ctx); err != nil {
		return looked{}, err
	}
	data, err := b.fetch(ctx, b.known.of(keyID))
	if err != nil {
		return looked{}, err
	}
	at := looked{page: data, live: map[int]Version{}, noted: b.notes.of(keyID), oldest: b.oldest(now).hours}
	b.tracker.addLive(keyID, at.live, now)
	return at, nil
}

// Live returns what memory alone knows of the use of a key by version.
func (b *Book) Live(keyID string, now time.Time) map[int]Version {
	use := map[int]Version{}
	b.tracker.addLive(keyID, use, now)
	return use
}

// add adds to what is known of a source.
func (v *Version) add(name string, s Source) {
	v.Count += s.Count
	v.Refused += s.Refused
	v.LastUsed = later(v.LastUsed, s.LastUsed)
	old := v.Sources[name]
	old.Count += s.Count
	old.Refused += s.Refused
	old.Stale += s.Stale
	old.LastUsed = later(old.LastUsed, s.LastUsed)
	old.Hours = addSlots(old.Hours, s.Hours)
	old.Minutes = addSlots(old.Minutes, s.Minutes)
	v.Sources[name] = old
}

func addSlots(a, b map[string]uint64) map[string]uint64 {
	if len(b) == 0 {
		return a
	}
	sum := maps.Clone(a)
	if sum == nil {
		sum = map[string]uint64{}
	}
	for slot, n := range b {
		sum[slot] += n
	}
	return sum
}

func slots(s series) map[string]uint64 {
	m := make(map[string]uint64, len(s))
	for _, b := range s {
		m[strconv.FormatInt(b.slot, 10)] = b.count
	}
	return m
}

func dropHours(hours map[string]uint64, before int64) {
	maps.DeleteFunc(hours, func(h string, _ uint64) bool {
		slot, err := strconv.ParseInt(h, 10, 64)
		return err != nil || slot < before
	})
}
