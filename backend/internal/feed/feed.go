// SPDX-License-Identifier: MPL-2.0

package feed

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

const (
	// Size is how many changes are remembered. A verifier that asks every
	// second outruns it only where more keys change in that second.
	Size = 65_536
	// maxDoubts bounds the failed writes that are told apart.
	maxDoubts = 4096
	// firstRenewal is when a failed write is published for the second time.
	firstRenewal = time.Second
	// epochBytes is the length of the random part of an epoch.
	epochBytes = 16
)

// change names what has changed: a key by its id, or a role.
type change struct {
	name string
	role bool
}

// doubt is a failed write that may still take effect. Times are those of the
// elapsed clock.
type doubt struct {
	since, next time.Duration
}

// Position is a place in the feed.
type Position struct {
	Epoch string
	Seq   uint64
}

// Delta is what changed between two places in the feed.
type Delta struct {
	// Position is the place that the delta leads to.
	Position
	// Keys are ids, Roles names; each stands there once.
	Keys, Roles []string
	// Reset says that what changed cannot be told: it may be everything.
	Reset bool
}

// Feed is the feed of one mount. It is safe for concurrent use.
type Feed struct {
	elapsed func() time.Duration
	settle  time.Duration
	// start is the random part of every epoch of this feed.
	start string

	mu     sync.Mutex
	epochs uint64
	epoch  string
	// seq is the number of the last change, which stands at (seq-1) % Size.
	seq  uint64
	ring []change
	// doubts are due from next on; all, where set, is about every key and role.
	doubts map[change]doubt
	all    *doubt
	next   time.Duration
}

// New returns a feed in an epoch of its own. elapsed is the time that has
// passed since some fixed moment, and settle the time after which a write that
// failed can no longer take effect. It fails where random does.
func New(random io.Reader, elapsed func() time.Duration, settle time.Duration) (*Feed, error) {
	raw := make([]byte, epochBytes)
	if _, err := io.ReadFull(random, raw); err != nil {
		return nil, fmt.Errorf("make an epoch of the feed: %w", err)
	}
	f := &Feed{elapsed: elapsed, settle: settle, start: hex.EncodeToString(raw), doubts: map[change]doubt{}}
	f.restart()
	return f, nil
}

// Restart begins a new epoch: everything may have changed.
func (f *Feed) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restart()
}

// restart needs the lock.
func (f *Feed) restart() {
	f.epochs++
	f.epoch = f.start + "." + strconv.FormatUint(f.epochs, 10)
	f.seq, f.ring = 0, nil
}

// Keys is where changes of keys are published, by id.
func (f *Feed) Keys() Channel { return Channel{feed: f} }

// Roles is where changes of roles are published, by name.
func (f *Feed) Roles() Channel { return Channel{feed: f, role: true} }

// Channel publishes the changes of one kind.
type Channel struct {
	feed *Feed
	role bool
}

// Changed publishes a change that is stored. What was doubtful about the name
// is settled by it.
func (c Channel) Changed(name string) {
	f := c.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	what := change{name, c.role}
	delete(f.doubts, what)
	f.publish(what)
}

// Unchanged is for a write that is stored and changes nothing that a verifier
// is told. It is published where an earlier write was doubtful.
func (c Channel) Unchanged(name string) {
	f := c.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	what := change{name, c.role}
	if _, doubtful := f.doubts[what]; !doubtful {
		return
	}
	delete(f.doubts, what)
	f.publish(what)
}

// Forgotten publishes that what another node has written must be read again.
func (c Channel) Forgotten(name string) {
	f := c.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish(change{name, c.role})
}

// Doubtful publishes a write that failed and may still take effect, now and
// until that is over.
func (c Channel) Doubtful(name string) {
	f := c.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	what := change{name, c.role}
	f.publish(what)
	now := f.elapsed()
	d := doubt{since: now, next: now + firstRenewal}
	if _, known := f.doubts[what]; !known && len(f.doubts) >= maxDoubts {
		if f.all != nil {
			d.next = f.all.next // however many come
		}
		f.all = &d
	} else {
		f.doubts[what] = d
	}
	if len(f.doubts) == 1 && f.all == nil || d.next < f.next {
		f.next = d.next
	}
}

// publish needs the lock.
func (f *Feed) publish(c change) {
	if len(f.ring) < Size {
		f.ring = append(f.ring, c)
	} else {
		f.ring[f.seq%Size] = c
	}
	f.seq++
}

// renew publishes the doubtful writes that are due. It needs the lock.
func (f *Feed) renew() {
	if len(f.doubts) == 0 && f.all == nil {
		return
	}
	now := f.elapsed()
	if now < f.next {
		return
	}
	f.next = now + f.settle
	for what, d := range f.doubts {
		if d.next <= now {
			f.publish(what)
			if now-d.since >= f.settle {
				delete(f.doubts, what)
				continue
			}
			d.next = f.after(d, now)
			f.doubts[what] = d
		}
		f.next = min(f.next, d.next)
	}
	if f.all == nil {
		return
	}
	if f.all.next <= now {
		f.restart()
		if now-f.all.since >= f.settle {
			f.all = nil
			return
		}
		f.all.next = f.after(*f.all, now)
	}
	f.next = min(f.next, f.all.next)
}

// after is when a doubt that was published at now is published again: after as
// much time as has passed, and once that is over.
func (f *Feed) after(d doubt, now time.Duration) time.Duration {
	return min(now+max(firstRenewal, now-d.since), d.since+f.settle)
}

// Position is the present place in the feed. Whoever reads it first, and a key
// or role then, has a state that is at least as new.
func (f *Feed) Position() Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Position{f.epoch, f.seq}
}

// Since returns what changed after p. It touches no storage.
func (f *Feed) Since(p Position) Delta {
	changes, d := f.since(p)
	// Told apart outside of the lock, for which every write waits.
	seen := make(map[change]struct{}, len(changes))
	for _, c := range changes {
		if _, twice := seen[c]; twice {
			continue
		}
		seen[c] = struct{}{}
		if c.role {
			d.Roles = append(d.Roles, c.name)
		} else {
			d.Keys = append(d.Keys, c.name)
		}
	}
	return d
}

func (f *Feed) since(p Position) ([]change, Delta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renew()
	d := Delta{Position: Position{f.epoch, f.seq}}
	if p.Epoch != f.epoch || p.Seq > f.seq || f.seq-p.Seq > uint64(len(f.ring)) {
		d.Reset = true
		return nil, d
	}
	changes := make([]change, 0, f.seq-p.Seq)
	for seq := p.Seq; seq < f.seq; seq++ {
		changes = append(changes, f.ring[seq%Size])
	}
	return changes, d
}

// LastOf is the place of the last change of a key, or the beginning of what is
// remembered where it has not changed since.
func (f *Feed) LastOf(keyID string) Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	seq := f.seq
	for oldest := f.seq - uint64(len(f.ring)); seq > oldest; seq-- {
		if c := &f.ring[(seq-1)%Size]; !c.role && c.name == keyID {
			break
		}
	}
	return Position{f.epoch, seq}
}
