// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

const (
	// noteUses is how many first uses a note has before the next one begins,
	// and maxNoteUses how many a single write may bring it to: about 150 KB.
	noteUses    = 64
	maxNoteUses = 1024
	// noteTime bounds how long a verification waits for storage.
	noteTime = 2 * time.Second
	// maxOutlines bounds the pages whose sources are remembered: those of
	// 800,000 keys, in about 30 MB.
	maxOutlines = 1024
	// noteSchema is the major version of the stored form.
	noteSchema = 1
)

// First is the first accepted use of a version from a source, as far as the
// process knows.
type First struct {
	KeyID   string
	Version int
	// Source is the name under which it is counted: its own or Other.
	Source string
	At     time.Time
}

// storedNote is what is stored of first uses until pages have them.
type storedNote struct {
	Schema int         `json:"schema"`
	Uses   []storedUse `json:"uses"`
}

type storedUse struct {
	KeyID   string `json:"k"`
	Version int    `json:"v"`
	Source  string `json:"s"`
	At      int64  `json:"l"`
}

// note is an entry of first uses.
type note struct {
	name string
	uses []First
	// left are those that no page has, and closed tells that no more are added.
	left   int
	closed bool
}

// place is a source of a version of a key.
type place struct {
	keyID   string
	version int
	source  string
}

func (f *First) place() place { return place{f.KeyID, f.Version, f.Source} }

type notedUse struct {
	First
	note *note
}

// notes keep the first uses that no page has. One write at a time stores all
// that came during the one before it.
type notes struct {
	store PageStore
	// writing is full while an entry is written, deleted or listed.
	writing chan struct{}

	mu    sync.Mutex
	batch *batch
	// all are the entries that there are, the last of them perhaps not closed,
	// and uses what is left of them, by key.
	all  []*note
	uses map[string]map[place]notedUse
	next uint64
	// damaged tells that an entry cannot be read: whom it would name is not known.
	damaged bool
}

func newNotes(store PageStore) *notes {
	return &notes{store: store, writing: make(chan struct{}, 1), uses: map[string]map[place]notedUse{}}
}

// begin waits until no entry is written, deleted or listed.
func (n *notes) begin(ctx context.Context) error {
	select {
	case n.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *notes) end() { <-n.writing }

// batch are first uses that are stored with one write.
type batch struct {
	uses []*First
	done chan struct{}
	err  error
}

// Remember has storage know of first uses before it returns: what is counted
// of them may be lost with the process, that there was a use may not. Where
// storage knows of them already it costs no write. An error leaves them counted,
// and to be remembered with the next use or the next flush.
func (b *Book) Remember(ctx context.Context, firsts ...*First) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTime)
	defer cancel()
	var fresh []*First
	var errs []error
	for _, f := range firsts {
		switch known, err := b.isStored(ctx, f); {
		case err != nil && !errors.Is(err, errDamaged):
			errs = append(errs, err)
		case known || err != nil: // on a page that is damaged nothing counts as drained
			b.tracker.kept(f)
		default:
			fresh = append(fresh, f)
		}
	}
	if len(fresh) > 0 {
		errs = append(errs, b.notes.add(ctx, fresh, b.tracker.kept))
	}
	return errors.Join(errs...)
}

// isStored tells whether the page of a key, or a note, has a use.
func (b *Book) isStored(ctx context.Context, f *First) (bool, error) {
	if b.notes.has(f) {
		return true, nil
	}
	if dir := b.dir.Load(); dir != nil {
		if o, ok := b.outlines.Get(dir.of(f.KeyID)); ok {
			return o.has(b.tracker.seed, f), nil
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(ctx); err != nil {
		return false, err
	}
	name := b.known.of(f.KeyID)
	if _, err := b.load(ctx, name); err != nil {
		return false, err
	}
	o, _ := b.outlines.Get(name)
	return o.has(b.tracker.seed, f) || b.notes.has(f), nil
}

// add stores first uses. Whoever comes first writes for all who come until then.
func (n *notes) add(ctx context.Context, uses []*First, kept func(*First)) error {
	n.mu.Lock()
	own := n.batch
	leads := own == nil
	if leads {
		own = &batch{done: make(chan struct{})}
		n.batch = own
	}
	own.uses = append(own.uses, uses...)
	n.mu.Unlock()
	if leads {
		own.err = n.write(ctx, own, kept)
		close(own.done)
		return own.err
	}
	select {
	case <-own.done:
		return own.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *notes) write(ctx context.Context, b *batch, kept func(*First)) error {
	err := n.begin(ctx)
	n.mu.Lock()
	n.batch = nil
	n.mu.Unlock()
	if err != nil {
		return err
	}
	defer n.end()
	for part := range slices.Chunk(b.uses, maxNoteUses-noteUses) {
		if err := n.put(ctx, part); err != nil {
			return err
		}
		for _, f := range part {
			kept(f)
		}
	}
	return nil
}

// put adds uses to the note that is not closed.
func (n *notes) put(ctx context.Context, uses []*First) error {
	n.mu.Lock()
	to := n.last()
	all := slices.Clone(to.uses)
	seen := map[place]bool{}
	for _, f := range uses {
		if !n.lists(f) && !seen[f.place()] {
			seen[f.place()] = true
			all = append(all, *f)
		}
	}
	n.mu.Unlock()
	if len(all) == len(to.uses) {
		return nil
	}
	data, err := encodeNote(all)
	if err == nil {
		err = n.store.PutPage(ctx, to.name, data)
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	added := all[len(to.uses):]
	to.uses = all
	n.list(to, added)
	to.closed = len(all) >= noteUses
	return nil
}

// last returns the note that takes more.
func (n *notes) last() *note {
	if last := len(n.all) - 1; last >= 0 && !n.all[last].closed {
		return n.all[last]
	}
	n.next++
	to := &note{name: fmt.Sprintf("%016d", n.next)}
	n.all = append(n.all, to)
	return to
}

// list notes that uses are in a note.
func (n *notes) list(in *note, uses []First) {
	for _, f := range uses {
		of := n.uses[f.KeyID]
		if of == nil {
			of = map[place]notedUse{}
			n.uses[f.KeyID] = of
		}
		if _, twice := of[f.place()]; !twice {
			of[f.place()] = notedUse{f, in}
			in.left++
		}
	}
}

func (n *notes) lists(f *First) bool {
	_, has := n.uses[f.KeyID][f.place()]
	return has
}

func (n *notes) has(f *First) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lists(f)
}

// of returns the uses of a key that no page has.
func (n *notes) of(keyID string) []First {
	n.mu.Lock()
	defer n.mu.Unlock()
	uses := make([]First, 0, len(n.uses[keyID]))
	for _, u := range n.uses[keyID] {
		uses = append(uses, u.First)
	}
	return uses
}

// closedOf returns those uses of a key that were noted before the flush began.
func (n *notes) closedOf(keyID string) []First {
	n.mu.Lock()
	defer n.mu.Unlock()
	var uses []First
	for _, u := range n.uses[keyID] {
		if u.note.closed {
			uses = append(uses, u.First)
		}
	}
	return uses
}

// close lets a flush take over what is noted by now, and names its keys.
func (n *notes) close(ctx context.Context) ([]string, error) {
	if err := n.begin(ctx); err != nil { // a write under way adds to the last note
		return nil, err
	}
	defer n.end()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, one := range n.all {
		one.closed = true
	}
	return slices.Collect(maps.Keys(n.uses)), nil
}

// forget drops the uses for which gone tells so.
func (n *notes) forget(gone func(*First) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, of := range n.uses {
		for at, u := range of {
			if gone(&u.First) {
				u.note.left--
				delete(of, at)
			}
		}
		if len(of) == 0 {
			delete(n.uses, id)
		}
	}
}

// sweep deletes the closed notes of which nothing is left.
func (n *notes) sweep(ctx context.Context) error {
	if err := n.begin(ctx); err != nil {
		return err
	}
	defer n.end()
	n.mu.Lock()
	over := slices.DeleteFunc(slices.Clone(n.all), func(one *note) bool { return !one.closed || one.left > 0 })
	n.mu.Unlock()
	for _, one := range over {
		if err := n.store.DeletePage(ctx, one.name); err != nil {
			return err
		}
		n.mu.Lock()
		n.all = slices.DeleteFunc(n.all, func(other *note) bool { return other == one })
		n.mu.Unlock()
	}
	return nil
}

// idle tells that there are no notes.
func (n *notes) idle() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.all) == 0
}

func (n *notes) isDamaged() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.damaged
}

// recover reads the notes that a crash, or another node, has left behind.
func (n *notes) recover(ctx context.Context) error {
	if err := n.begin(ctx); err != nil {
		return err
	}
	defer n.end()
	names, err := n.store.ListPages(ctx)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if slices.ContainsFunc(n.all, func(one *note) bool { return one.name == name }) {
			continue
		}
		data, err := n.store.GetPage(ctx, name)
		if err != nil {
			return err
		}
		n.take(name, data)
	}
	return nil
}

func (n *notes) take(name string, data []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if number, err := strconv.ParseUint(name, 10, 64); err == nil {
		n.next = max(n.next, number)
	}
	if data == nil {
		return // gone since it was listed
	}
	uses, err := decodeNote(data)
	if err != nil {
		n.damaged = true
		return
	}
	from := &note{name: name, uses: uses, closed: true}
	n.all = slices.Insert(n.all, 0, from)
	n.list(from, uses)
}

func encodeNote(uses []First) ([]byte, error) {
	stored := storedNote{Schema: noteSchema, Uses: make([]storedUse, 0, len(uses))}
	for _, f := range uses {
		stored.Uses = append(stored.Uses, storedUse{f.KeyID, f.Version, f.Source, f.At.UnixMilli()})
	}
	data, err := json.Marshal(stored)
	if err != nil {
		return nil, fmt.Errorf("encode a note of first uses: %w", err)
	}
	return data, nil
}

func decodeNote(data []byte) ([]First, error) {
	var stored storedNote
	if err := jsonkeep.CheckSchema(data, noteSchema); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, errDamaged
	}
	uses := make([]First, 0, len(stored.Uses))
	for _, u := range stored.Uses {
		uses = append(uses, First{u.KeyID, u.Version, u.Source, time.UnixMilli(u.At).UTC()})
	}
	return uses, nil
}

// outline is which versions of which keys a page knows to be used from where,
// by sorted hashes.
type outline struct {
	uses []uint64
	// lost is Lost of the keys that have it.
	lost map[string]int
}

func outlineOf(seed maphash.Seed, p *page) *outline {
	o := &outline{}
	for id, k := range p.Keys {
		if k.Lost > 0 {
			if o.lost == nil {
				o.lost = map[string]int{}
			}
			o.lost[id] = k.Lost
		}
		for number, sources := range k.Versions {
			for name, s := range sources {
				if s.Count > 0 {
					o.uses = append(o.uses, maphash.Comparable(seed, place{id, number, name}))
				}
			}
		}
	}
	slices.Sort(o.uses)
	return o
}

// has tells whether a loss of f could not lead to a wrong drained: the page has
// it, or says that it does not know all of the version.
func (o *outline) has(seed maphash.Seed, f *First) bool {
	if o == nil {
		return false
	}
	for _, name := range []string{f.Source, Other} {
		if _, has := slices.BinarySearch(o.uses, maphash.Comparable(seed, place{f.KeyID, f.Version, name})); has {
			return true
		}
	}
	return f.Version <= o.lost[f.KeyID]
}

func newOutlines() *lru.Cache[string, *outline] {
	outlines, err := lru.New[string, *outline](maxOutlines)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return outlines
}
