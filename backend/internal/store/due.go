// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// minuteLimit is how many keys one minute of the due index takes before the
// next ones spill into later minutes. It bounds the answer of one List.
const minuteLimit = 5000

// dueIndex finds the keys that are due without looking at any other.
//
// A key is filed at due/<minute>/<id>, and dueh/<hour> holds a bit for each
// minute of that hour that may hold something. Filing never chooses the
// present minute or one that has been closed. An entry that was being written
// while its minute was closed marks the minute again, and a minute is unmarked
// before it is listed, so that none is missed.
type dueIndex struct {
	storage logical.Storage

	mu sync.Mutex
	// hours has every hour that storage or this process knows something of.
	hours map[int64]*dueHour
	// closed is the highest minute that takes no more entries.
	closed int64
	// counts holds how many entries a minute has, where that is known.
	counts map[int64]int
}

// allMinutes has the bit of every minute of an hour.
const allMinutes = 1<<60 - 1

// dueHour is what is known of one hour. stored is what its marker holds, todo
// the minutes that may hold something, listed those of them whose list is
// being worked off.
type dueHour struct {
	mu     sync.Mutex
	loaded bool
	stored uint64
	todo   uint64
	listed uint64
	// gone is set once the marker has been removed: look the hour up again.
	gone bool
}

func newDueIndex(storage logical.Storage) *dueIndex {
	return &dueIndex{storage: storage, hours: map[int64]*dueHour{}, counts: map[int64]int{}}
}

// minuteOf is the first minute at whose beginning t is past.
func minuteOf(t time.Time) int64 {
	return (t.UnixMilli() + 59_999) / 60_000
}

// open lists the hours with markers. Their minutes are read when they come.
func (d *dueIndex) open(ctx context.Context) error {
	names, err := d.storage.List(ctx, dueHourPrefix)
	if err != nil {
		return fmt.Errorf("list due hours: %w", err)
	}
	d.mu.Lock()
	for _, name := range names {
		hour, err := strconv.ParseInt(name, 10, 64)
		if err != nil || hour < 0 {
			continue
		}
		d.hours[hour] = &dueHour{}
	}
	d.mu.Unlock()
	return nil
}

// file writes an entry for id at the minute of due, or at the first later one
// that may take it, and returns that minute; 0 where due is zero. filed is
// where the key is filed now: nothing is written where that is right.
func (d *dueIndex) file(ctx context.Context, id string, due time.Time, filed int64, now time.Time) (int64, error) {
	if due.IsZero() {
		return 0, nil
	}
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	d.follow(now)
	first := max(minuteOf(due), now.Unix()/60+1)
	if d.stays(filed, minuteOf(due), first) {
		return filed, nil
	}
	minute, err := d.reserve(ctx, first)
	if err != nil {
		return 0, err
	}
	if err := d.mark(ctx, minute); err != nil {
		return 0, err
	}
	if err := d.storage.Put(ctx, &logical.StorageEntry{Key: dueMinutePrefix(minute) + id, Value: []byte{}}); err != nil {
		return 0, fmt.Errorf("file a key in the due index: %w", err)
	}
	if !d.isOpen(minute) {
		// The minute was closed, and perhaps worked off, while this was
		// written: mark it once more, so that the next tick looks again.
		if err := d.mark(ctx, minute); err != nil {
			return 0, err
		}
	}
	return minute, nil
}

// farAhead is how many minutes closed may be ahead of the clock, as a small
// step back leaves it, before it comes down.
const farAhead = 120

// follow lets closed come down to the present where the wall clock was far
// ahead and has been set back: nothing would be filed for so long otherwise. What
// was filed in between stays marked, and comes up in its minute.
func (d *dueIndex) follow(now time.Time) {
	present := now.Unix() / 60
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed > present+farAhead {
		d.closed = present
	}
}

// stays tells whether what is filed at filed may stay there, where it is due at
// due and would be filed at first or where that spills: a key that is changed
// again and again before the tick comes would never come up else.
func (d *dueIndex) stays(filed, due, first int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if filed <= d.closed || filed < due {
		return false
	}
	for minute := first; minute < filed; minute++ {
		if minute > d.closed && d.counts[minute] < minuteLimit {
			return false
		}
	}
	return true
}

func (d *dueIndex) isOpen(minute int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return minute > d.closed
}

// reserve finds the first open minute from start on that has room, and takes
// a place in it.
func (d *dueIndex) reserve(ctx context.Context, start int64) (int64, error) {
	minute := start
	for {
		if err := d.count(ctx, minute); err != nil {
			return 0, err
		}
		d.mu.Lock()
		if minute > d.closed && d.counts[minute] < minuteLimit {
			d.counts[minute]++
			d.mu.Unlock()
			return minute, nil
		}
		minute = max(minute, d.closed) + 1
		d.mu.Unlock()
	}
}

// count makes counts[minute] known. It lists the minute once where an earlier
// process may have filed something there.
func (d *dueIndex) count(ctx context.Context, minute int64) error {
	d.mu.Lock()
	_, known := d.counts[minute]
	d.mu.Unlock()
	if known {
		return nil
	}
	h, err := d.hour(ctx, minute/60)
	if err != nil {
		return err
	}
	h.mu.Lock()
	marked := h.stored&bitOf(minute) != 0
	h.mu.Unlock()
	n := 0
	if marked {
		ids, err := d.storage.List(ctx, dueMinutePrefix(minute))
		if err != nil {
			return fmt.Errorf("count a minute of the due index: %w", err)
		}
		n = len(ids)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.counts[minute]; !known {
		d.counts[minute] = n
	}
	return nil
}

// hour returns what is known of an hour, reading its marker where that has
// not been done.
func (d *dueIndex) hour(ctx context.Context, hour int64) (*dueHour, error) {
	d.mu.Lock()
	h, ok := d.hours[hour]
	if !ok {
		h = &dueHour{loaded: true}
		d.hours[hour] = h
	}
	d.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.loaded {
		return h, nil
	}
	entry, err := d.storage.Get(ctx, dueHourPath(hour))
	if err != nil {
		return nil, fmt.Errorf("read a marker of the due index: %w", err)
	}
	if entry != nil {
		var bits uint64
		if err := json.Unmarshal(entry.Value, &bits); err != nil || bits == 0 || bits > allMinutes {
			// A damaged marker means that any minute may hold something.
			bits = allMinutes
		}
		h.stored |= bits
		h.todo |= bits
	}
	h.loaded = true
	return h, nil
}

// mark sets the bit of a minute in its hour's marker.
func (d *dueIndex) mark(ctx context.Context, minute int64) error {
	h, err := d.hour(ctx, minute/60)
	if err != nil {
		return err
	}
	h.mu.Lock()
	if h.gone {
		h.mu.Unlock()
		return d.mark(ctx, minute)
	}
	defer h.mu.Unlock()
	bit := bitOf(minute)
	h.todo |= bit
	if h.stored&bit != 0 {
		return nil
	}
	value, err := json.Marshal(h.stored | bit)
	if err != nil {
		return fmt.Errorf("encode a marker of the due index: %w", err)
	}
	if err := d.storage.Put(ctx, &logical.StorageEntry{Key: dueHourPath(minute / 60), Value: value}); err != nil {
		return fmt.Errorf("write a marker of the due index: %w", err)
	}
	h.stored |= bit
	return nil
}

// unfile removes an entry that the commit made stale. A failure leaves it to
// be removed when its minute comes, or, where that is being worked off or is
// over, by the next tick.
func (d *dueIndex) unfile(ctx context.Context, minute int64, id string) {
	if err := d.storage.Delete(ctx, dueMinutePrefix(minute)+id); err != nil {
		_ = d.mark(ctx, minute) // in memory at least, and mostly it is marked in storage
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts[minute] > 0 {
		d.counts[minute]--
	}
}

func bitOf(minute int64) uint64 { return 1 << (minute % 60) }

// DueMinutes returns the minutes up to now that may hold something, oldest
// first, and closes them. With nothing due it touches no storage; in a new
// hour it reads that hour's marker.
func (s *Store) DueMinutes(ctx context.Context) ([]int64, error) {
	d := s.due
	now := s.clock.Now()
	present := now.Unix() / 60
	d.follow(now)
	d.mu.Lock()
	d.closed = max(d.closed, present)
	hours := slices.Sorted(maps.Keys(d.hours))
	d.mu.Unlock()
	var minutes []int64
	for _, hour := range hours {
		if hour > present/60 {
			break
		}
		h, err := d.hour(ctx, hour)
		if err != nil {
			return minutes, err
		}
		h.mu.Lock()
		todo := h.todo | h.listed
		h.mu.Unlock()
		for minute := hour * 60; minute < hour*60+60 && minute <= present; minute++ {
			if todo&bitOf(minute) != 0 {
				minutes = append(minutes, minute)
			}
		}
	}
	return minutes, nil
}

// PresentMinute is the open minute in which what is due by now may be filed.
func (s *Store) PresentMinute() int64 { return s.clock.Now().Unix()/60 + 1 }

// DueIn returns the ids that are filed in a minute.
func (s *Store) DueIn(ctx context.Context, minute int64) ([]string, error) {
	d := s.due
	d.mu.Lock()
	h, known := d.hours[minute/60]
	d.mu.Unlock()
	if !known {
		return nil, nil
	}
	h.mu.Lock()
	marked := !h.loaded || (h.todo|h.listed)&bitOf(minute) != 0
	if marked && h.loaded {
		// Whoever marks the minute from now on may have come too late for the
		// list, so MinuteDone must not take that mark for worked off.
		h.listed |= bitOf(minute)
		h.todo &^= bitOf(minute)
	}
	h.mu.Unlock()
	if !marked {
		return nil, nil
	}
	return s.list(ctx, dueMinutePrefix(minute))
}

// MinuteDone notes that all that DueIn returned for a closed minute has been
// worked off.
func (s *Store) MinuteDone(ctx context.Context, minute int64) error {
	d := s.due
	h, err := d.hour(ctx, minute/60)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.listed &^= bitOf(minute)
	h.mu.Unlock()
	d.mu.Lock()
	delete(d.counts, minute)
	d.mu.Unlock()
	return nil
}

// SweepMarkers removes the markers of past hours in which nothing is left.
func (s *Store) SweepMarkers(ctx context.Context) error {
	d := s.due
	present := s.clock.Now().Unix() / 3600
	d.mu.Lock()
	var over []int64
	for hour := range d.hours {
		// The last minute of an hour is closed only when the next one began.
		if hour < present && hour*60+59 <= d.closed {
			over = append(over, hour)
		}
	}
	d.mu.Unlock()
	for _, hour := range over {
		if err := d.removeMarker(ctx, hour); err != nil {
			return err
		}
	}
	return nil
}

func (d *dueIndex) removeMarker(ctx context.Context, hour int64) error {
	h, err := d.hour(ctx, hour)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone || h.todo|h.listed != 0 {
		return nil
	}
	if h.stored != 0 {
		if err := d.storage.Delete(ctx, dueHourPath(hour)); err != nil {
			return fmt.Errorf("delete a marker of the due index: %w", err)
		}
	}
	h.gone = true
	d.mu.Lock()
	delete(d.hours, hour)
	d.mu.Unlock()
	return nil
}

// DropDue removes an entry that no key answers for.
func (s *Store) DropDue(ctx context.Context, minute int64, id string) error {
	return s.remove(ctx, dueMinutePrefix(minute)+id)
}

// Postpone files id again at due without touching its key, for a key that
// cannot be read or written, and removes its entry at minute. It returns where
// it is filed now.
func (s *Store) Postpone(ctx context.Context, id string, minute int64, due time.Time) (int64, error) {
	filed, err := s.due.file(ctx, id, due, 0, s.clock.Now())
	if err != nil {
		return 0, err
	}
	return filed, s.DropDue(ctx, minute, id)
}

// LostFiling tells whether a key's entry in the due index must be gone: its
// minute is long over and has been worked off.
func (s *Store) LostFiling(minute int64) bool {
	const grace = 5
	if minute == 0 || minute+grace >= s.clock.Now().Unix()/60 {
		return false
	}
	d := s.due
	d.mu.Lock()
	open := minute > d.closed
	h, known := d.hours[minute/60]
	d.mu.Unlock()
	if open {
		return false
	}
	if !known {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.loaded && (h.todo|h.listed)&bitOf(minute) == 0
}

// Misfiled tells whether minute is so much later than due that the key must
// have been filed when the clock was ahead.
func (s *Store) Misfiled(minute int64, due time.Time) bool {
	return !due.IsZero() && minute > max(minuteOf(due), s.PresentMinute())+farAhead
}

// mayBeMisfiled tells whether it is worth the while to ask what is due.
func (s *Store) mayBeMisfiled(minute int64) bool {
	return minute > s.PresentMinute()+24*60
}

// FiledAt tells whether filing at minute is right for what is due at due.
func (s *Store) FiledAt(minute int64, due time.Time) bool {
	if due.IsZero() || minute == 0 {
		return due.IsZero() && minute == 0
	}
	return minute == minuteOf(due) && s.due.isOpen(minute)
}
