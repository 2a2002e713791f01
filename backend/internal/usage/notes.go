// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

const (
	// NotePrefix begins the storage paths of notes.
	NotePrefix = "firstuse/"
	// noteUses is how many first uses a note has before the next one begins,
	// and maxNoteUses how many a single write may bring it to: at most about 240 KB.
	noteUses    = 64
	maxNoteUses = 1024
	// maxNoted bounds the first uses that wait for a flush, about 200 bytes each.
	// At each wakeNoted of them a flush is asked for.
	maxNoted  = 100_000
	wakeNoted = 25_000
	// maxGone is how many deleted keys are remembered, so that a use which was
	// under way does not bring them back.
	maxGone = 16_384
	// maxSwept is how many notes one flush deletes.
	maxSwept = 2048
	// noteSchema is the major version of the stored form.
	noteSchema = 1
)

// errFull says that too many first uses wait for a flush.
var errFull = fmt.Errorf("%d first uses wait to be stored with the counts", maxNoted)

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
	// left is how many of them no page has.
	left   int
	closed bool
}

type notedUse struct {
	version int
	source  string
	at      time.Time
	note    *note
}

func (u *notedUse) first(keyID string) First { return First{keyID, u.version, u.source, u.at} }

// notes keep the first uses that no page has. One write at a time stores all
// that came during the one before it.
type notes struct {
	store   PageStore
	tracker *Tracker
	logger  hclog.Logger
	// full is called when many uses wait.
	full func()
	// writing is held while the open note is written.
	writing turn

	mu    sync.Mutex
	batch *batch
	// all are the notes that there are, by name. open is the name of the one that
	// takes more, and stored what it has.
	all    map[string]*note
	open   string
	stored []First
	next   uint64
	// uses are what is left of them, by key, and count is how many.
	uses  map[string][]notedUse
	count int
	// untold are the versions of uses of which nobody was told.
	untold map[Used]struct{}
	// gone are the keys that were deleted last.
	gone *lru.Cache[string, struct{}]
	// known tells that the notes from before the start were read, but for those
	// that are damaged: whom these would name is not known.
	known   bool
	damaged []string
}

func newNotes(t *Tracker, store PageStore, logger hclog.Logger, full func()) *notes {
	gone, err := lru.New[string, struct{}](maxGone)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return &notes{
		store: store, tracker: t, logger: logger, full: full, writing: make(turn, 1),
		all: map[string]*note{}, uses: map[string][]notedUse{}, untold: map[Used]struct{}{}, gone: gone,
		// The notes that are left from before are not known yet: no name is theirs.
		next: t.hash(NotePrefix),
	}
}

// Used is a version that was used.
type Used struct {
	KeyID   string
	Version int
}

// batch are first uses that are stored with one write.
type batch struct {
	*flight
	uses []*First
}

// add stores first uses. The first to come begins a write for all who come
// until it is their turn.
func (n *notes) add(ctx context.Context, uses []*First) error {
	n.mu.Lock()
	own := n.batch
	if own == nil {
		own = &batch{}
		n.batch = own
		own.flight = fly(func() error { return n.write(context.WithoutCancel(ctx), own) })
	}
	own.uses = append(own.uses, uses...)
	n.mu.Unlock()
	return own.wait(ctx)
}

// write stores a batch. Its turn and each of its writes have noteTime, whoever
// of those who wait for it gives up.
func (n *notes) write(ctx context.Context, b *batch) error {
	err := func() error {
		ctx, cancel := context.WithTimeout(ctx, noteTime)
		defer cancel()
		return n.writing.take(ctx)
	}()
	n.mu.Lock()
	n.batch = nil
	n.mu.Unlock()
	if err != nil {
		return err
	}
	defer n.writing.give()
	for part := range slices.Chunk(b.uses, maxNoteUses-noteUses) {
		if err := n.put(ctx, part); err != nil {
			return err
		}
		for _, f := range part {
			n.tracker.kept(f)
		}
	}
	return nil
}

// put adds uses to the open note.
func (n *notes) put(ctx context.Context, uses []*First) error {
	name, stored, added, err := n.toPut(uses)
	if err != nil {
		n.full()
		return err
	}
	if len(added) == 0 {
		return nil
	}
	stored = append(stored, added...)
	data, err := encodeNote(stored)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, noteTime)
		defer cancel()
		err = n.store.PutPage(ctx, name, data)
	}
	if err != nil {
		// It may be written late, over what would be in it by then.
		n.mu.Lock()
		defer n.mu.Unlock()
		n.shut()
		if n.all[name].left == 0 && len(n.all) > maxSwept {
			delete(n.all, name) // what is written late of it is read after the next start
		}
		return err
	}
	n.mu.Lock()
	before := n.count
	n.list(n.all[name], added)
	n.stored = stored
	if len(stored) >= noteUses {
		n.shut()
	}
	wake := n.count/wakeNoted > before/wakeNoted
	n.mu.Unlock()
	if wake {
		n.full()
	}
	return nil
}

// toPut returns the open note, what it has, and what is to be added to it.
func (n *notes) toPut(uses []*First) (name string, stored, added []First, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := map[place]bool{}
	for _, f := range uses {
		if !n.lists(f) && !seen[f.place()] {
			seen[f.place()] = true
			added = append(added, *f)
		}
	}
	if len(added) == 0 {
		return "", nil, nil, nil
	}
	if n.count >= maxNoted {
		return "", nil, nil, errFull
	}
	if n.open == "" {
		n.next++
		n.open = fmt.Sprintf("%020d", n.next)
		n.all[n.open] = &note{}
	}
	return n.open, slices.Clone(n.stored), added, nil
}

// shut closes the open note.
func (n *notes) shut() {
	if n.open != "" {
		n.all[n.open].closed = true
		n.open, n.stored = "", nil
	}
}

// list notes that uses are in a note.
func (n *notes) list(in *note, uses []First) {
	for _, f := range uses {
		if n.lists(&f) {
			continue
		}
		if !hasVersion(n.uses[f.KeyID], f.Version) {
			n.untold[Used{f.KeyID, f.Version}] = struct{}{}
		}
		n.uses[f.KeyID] = append(n.uses[f.KeyID], notedUse{version: f.Version, source: f.Source, at: f.At, note: in})
		n.count++
		in.left++
	}
}

// lists tells whether a use is in a note, or of a key that was deleted.
func (n *notes) lists(f *First) bool {
	return n.gone.Contains(f.KeyID) || slices.ContainsFunc(n.uses[f.KeyID], func(u notedUse) bool { return u.version == f.Version && u.source == f.Source })
}

func (n *notes) has(f *First) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lists(f)
}

func (n *notes) isGone(keyID string) bool { return n.gone.Contains(keyID) }

// of returns the uses of a key that no page has.
func (n *notes) of(keyID string) []First { return n.noted(keyID, false) }

func hasVersion(uses []notedUse, number int) bool {
	return slices.ContainsFunc(uses, func(u notedUse) bool { return u.version == number })
}

// toTell are the versions of uses of which nobody was told.
func (n *notes) toTell() []Used {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.untold))
}

// tell notes that the use of a version was told.
func (n *notes) tell(keyID string, version int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.untold, Used{keyID, version})
}

// closedOf returns those uses of a key that were noted before the flush began.
func (n *notes) closedOf(keyID string) []First { return n.noted(keyID, true) }

func (n *notes) noted(keyID string, closed bool) []First {
	n.mu.Lock()
	defer n.mu.Unlock()
	var uses []First
	for _, u := range n.uses[keyID] {
		if u.note.closed || !closed {
			uses = append(uses, u.first(keyID))
		}
	}
	return uses
}

// close lets a flush take over what is noted by now, and names the keys with uses
// that no page has.
func (n *notes) close(ctx context.Context, paged func(*First) bool) ([]string, error) {
	if err := n.writing.take(ctx); err != nil { // a write under way adds to the open note
		return nil, err
	}
	defer n.writing.give()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shut()
	var ids []string
	for id, uses := range n.uses {
		if slices.ContainsFunc(uses, func(u notedUse) bool { f := u.first(id); return !paged(&f) }) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// settle drops the uses that pages have, but for those of versions that are to be
// told first, while there are not too many.
func (n *notes) settle(paged func(*First) bool, keepUntold bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	keepUntold = keepUntold && n.count <= maxNoted/2
	for id := range n.uses {
		n.drop(id, func(f *First) bool {
			_, untold := n.untold[Used{id, f.Version}]
			return !(untold && keepUntold) && paged(f)
		})
	}
}

// forgetKey drops the uses of a key that was deleted, also those to come.
func (n *notes) forgetKey(keyID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone.Add(keyID, struct{}{})
	n.drop(keyID, func(*First) bool { return true })
}

func (n *notes) drop(keyID string, gone func(*First) bool) {
	var dropped []int
	left := slices.DeleteFunc(n.uses[keyID], func(u notedUse) bool {
		f := u.first(keyID)
		if !gone(&f) {
			return false
		}
		dropped = append(dropped, u.version)
		u.note.left--
		n.count--
		return true
	})
	n.uses[keyID] = left
	if len(left) == 0 {
		delete(n.uses, keyID)
	}
	for _, number := range dropped {
		if !hasVersion(left, number) {
			delete(n.untold, Used{keyID, number})
		}
	}
}

// sweep deletes the closed notes of which nothing is left: nobody writes them.
func (n *notes) sweep(ctx context.Context) error {
	n.mu.Lock()
	var over []string
	for name, one := range n.all {
		if one.closed && one.left == 0 {
			over = append(over, name)
		}
	}
	n.mu.Unlock()
	for _, name := range over[:min(len(over), maxSwept)] {
		if err := n.store.DeletePage(ctx, name); err != nil {
			return err
		}
		n.mu.Lock()
		delete(n.all, name)
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

// unknown tells why it is not known what notes would name, or nothing.
func (n *notes) unknown() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !n.known:
		return "which sources used it before the start is not known yet: their notes are still to be read"
	case len(n.damaged) > 0:
		return "a stored note of first uses could not be read"
	default:
		return ""
	}
}

func (n *notes) isKnown() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known
}

// reopen has the notes read that another node may have left.
func (n *notes) reopen() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = false
}

// recover reads the notes that a crash, or another node, has left behind, where
// that has not been done or some were damaged. Nobody else waits for it.
func (n *notes) recover(ctx context.Context) error {
	n.mu.Lock()
	done, former := n.known && len(n.damaged) == 0, n.damaged
	n.mu.Unlock()
	if done {
		return nil
	}
	names, err := n.store.ListPages(ctx)
	if err != nil {
		return err
	}
	var damaged []string
	for _, name := range names {
		switch err := n.take(ctx, name); {
		case errors.Is(err, errDamaged):
			damaged = append(damaged, name)
			if !slices.Contains(former, name) {
				n.logger.Error("a note of first uses cannot be read: until it can, or is deleted, no version counts as drained", "path", NotePrefix+name, "error", err)
			}
		case err != nil:
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known, n.damaged = true, damaged
	return nil
}

// take reads a note that another process has written.
func (n *notes) take(ctx context.Context, name string) error {
	n.mu.Lock()
	_, own := n.all[name]
	n.mu.Unlock()
	if own {
		return nil
	}
	data, err := n.store.GetPage(ctx, name)
	if err != nil || data == nil {
		return err // gone since it was listed
	}
	uses, err := decodeNote(data)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	from := &note{closed: true}
	n.all[name] = from
	n.list(from, uses)
	return nil
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
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
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
