// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	// recordLife is how long a record is used without being fetched again,
	// however well the feed is.
	recordLife = 5 * time.Minute
	// maxChanged bounds the ids of one answer that are dealt with one by one;
	// more of them are as good as a reset.
	maxChanged = 200_000
	// changesKept is how long changes are remembered for records that were
	// asked for before they were told. No lookup takes longer.
	changesKept = time.Minute
	// maxSkew is from where on the skew of the wall clock is worth a word.
	maxSkew = 2 * time.Second
	// maxStepBack is by how much Vault's clock may go back without a reset:
	// further back is the answer to an earlier request. It is no longer than
	// counting, so that reported_through never lies ahead.
	maxStepBack = counting
	// usedLately is for how many ticks a key counts as in use.
	usedLately = 10
	// maxEpoch bounds the length of an epoch.
	maxEpoch = 128
)

// feedState is what the last good answer of the feed has led to. It is
// immutable.
type feedState struct {
	vaultClock
	// generation counts the resets: records of an earlier one are revalidated
	// before they are used. It is 0 before the first good answer.
	generation uint32
	epoch      string
	seq        uint64
	// good is until when cached keys are accepted.
	good mono
	// oldest is how old a record may be that is used. The clock that it is
	// held against stands while the feed is lost, when records cannot be
	// fetched anyway: MaxStale bounds that.
	oldest tick
}

// behind is by how much now, as an answer to a request that was sent then,
// lies before what the clock of the last good answer leaves possible.
func (f *feedState) behind(now time.Time, sent mono) time.Duration {
	if f.generation == 0 {
		return 0
	}
	return time.Duration(f.earliest(sent) - now.UnixNano() - int64(answerGrain))
}

// oldestAt is the tick in which a record must have been asked for to be used.
// Ticks are coarse: it is one too many rather than one too few.
func oldestAt(now mono) tick {
	if now < mono(recordLife) {
		return 0
	}
	return (now - mono(recordLife)).tick() + 1
}

// changes remembers which ids the feed has named lately, for records that were
// asked for before that. The caller locks.
type changes struct {
	now, before map[keyID]uint64
	// floor is the least seq that a record must have for the memory to be
	// complete.
	floor   uint64
	next    uint64 // the floor after the next turn
	turned  mono
	maximum int
}

func (c *changes) reset(seq uint64, now mono) {
	c.now, c.before = map[keyID]uint64{}, nil
	c.floor, c.next, c.turned = seq, seq, now
}

// turn forgets what is old. seq is that of the feed before the changes that
// are added next.
func (c *changes) turn(seq uint64, now mono) {
	if now-c.turned < mono(changesKept) && len(c.now) < c.maximum {
		return
	}
	c.before, c.now = c.now, map[keyID]uint64{}
	c.floor, c.next, c.turned = c.next, seq, now
}

func (c *changes) add(id keyID, seq uint64) { c.now[id] = seq }

// changedAfter tells whether a record of this id with this seq is out of date,
// or may be.
func (c *changes) changedAfter(id keyID, seq uint64) bool {
	return seq < c.floor || c.now[id] > seq || c.before[id] > seq
}

// follow polls until ctx ends.
func (v *Verifier) follow(ctx context.Context) {
	ticker := time.NewTicker(v.config.PollInterval)
	defer ticker.Stop()
	for {
		v.poll(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-v.kick:
		}
	}
}

// poll asks the feed once.
func (v *Verifier) poll(ctx context.Context) {
	f := v.feed.Load()
	request := SyncRequest{Verifier: v.config.Name, Boot: v.usage.bootID(), Epoch: f.epoch, Seq: f.seq, Skew: time.Duration(v.skew.Load())}
	if v.distrust {
		request.Epoch, request.Seq = "", 0
	}
	bounded, cancel := context.WithTimeout(ctx, v.config.RequestTimeout)
	defer cancel()
	sent := v.now()
	answer, err := v.engine.Sync(bounded, request)
	received, wall := v.now(), v.wall()
	if err == nil {
		err = checkSync(f, request, &answer, sent)
		v.distrust = err != nil
	}
	if err != nil {
		if ctx.Err() == nil {
			v.feedFailed(err)
		}
		return
	}
	v.stats.syncs.Add(1)
	v.apply(f, &answer, sent, received)
	v.feedWorks()
	v.noteSkew(wall.Sub(answer.Now.Add((time.Duration(received - sent)) / 2)))
}

var errBadAnswer = errors.New("an answer that contradicts itself or the one before")

// checkSync refuses answers that no working engine gives. The next request
// then asks for a reset.
func checkSync(f *feedState, r SyncRequest, a *SyncAnswer, sent mono) error {
	switch {
	case a.Epoch == "" || len(a.Epoch) > maxEpoch:
		return fmt.Errorf("%w: no epoch", errBadAnswer)
	case a.Now.Before(firstNano) || a.Now.After(lastNano):
		return fmt.Errorf("%w: now is %s", errBadAnswer, a.Now.Format(time.RFC3339))
	case !a.Reset && f.behind(a.Now, sent) > maxStepBack:
		return fmt.Errorf("%w: vault's clock went back, or the answer is old", errBadAnswer)
	case !a.Reset && a.Epoch != r.Epoch:
		return fmt.Errorf("%w: a new epoch without a reset", errBadAnswer)
	case !a.Reset && a.Seq < f.seq:
		return fmt.Errorf("%w: seq went back from %d to %d", errBadAnswer, f.seq, a.Seq)
	case !a.Reset && a.Seq == f.seq && len(a.Changed)+len(a.Roles) > 0:
		return fmt.Errorf("%w: changes at the seq before them", errBadAnswer)
	}
	for _, id := range a.Changed {
		if !token.ValidID(id) {
			return fmt.Errorf("%w: changed holds what is no key_id", errBadAnswer)
		}
	}
	for _, role := range a.Roles {
		if role == "" || len(role) > 128 {
			return fmt.Errorf("%w: roles holds what is no role", errBadAnswer)
		}
	}
	return nil
}

// apply takes a good answer in.
func (v *Verifier) apply(f *feedState, a *SyncAnswer, sent, received mono) {
	next := &feedState{
		vaultClock: vaultClock{read: a.Now.UnixNano(), sent: sent, received: received},
		generation: f.generation, epoch: a.Epoch, seq: a.Seq,
		good:   sent + mono(v.config.MaxStale),
		oldest: oldestAt(sent),
	}
	back := f.behind(a.Now, sent) > 0
	if back && !a.Reset {
		// The clock goes on from where it was: by small steps, or answers that
		// repeat, it could be held back for ever.
		next.vaultClock = f.vaultClock
	}
	reset := a.Reset || len(a.Changed) > maxChanged
	var again []keyID
	v.records.Lock()
	if reset {
		next.generation++
		v.changes.reset(a.Seq, received)
		// The marks of before stay as they are: whoever still reads the feed of
		// before goes by them.
		v.roles = map[string]*roleMark{}
	} else {
		if len(a.Changed)+len(a.Roles) > 0 {
			v.changes.turn(f.seq, received)
		}
		for _, name := range a.Roles {
			v.role(name).changed.Store(a.Seq)
		}
		for _, text := range a.Changed {
			id, _ := parseID(text)
			v.changes.add(id, a.Seq)
			if e := v.cache.peek(id); e != nil && (e.age.generation() != next.generation || e.seq < a.Seq) {
				v.cache.outdate(e)
				again = append(again, id)
			}
		}
	}
	if v.life.Err() != nil {
		next.good = -1 // it was closed while it asked
	}
	v.feed.Store(next)
	v.records.Unlock()
	if back && a.Reset {
		v.usage.wentBack(next)
	}
	if reset {
		v.stats.resets.Add(1)
		// To go through all keys takes a while, and the next poll must not wait.
		v.background.Go(func() { v.known.refetch(v.inUse(received)) })
	}
	if f.generation == 0 {
		close(v.synced)
	}
	if len(again) > 0 {
		v.known.refetch(again)
	}
}

// inUse returns the keys that have just been used. After a reset they are
// fetched together, before each of their next uses would.
func (v *Verifier) inUse(now mono) []keyID {
	v.usage.collect()
	var ids []keyID
	for e := range v.cache.index.part(0, 1) {
		if last := e.lastUse(); last > 0 && last+usedLately >= now.tick() {
			if ids = append(ids, e.id); len(ids) == knownQueue/2 {
				break
			}
		}
	}
	return ids
}

// role returns the mark of a role. The caller holds v.records.
func (v *Verifier) role(name string) *roleMark {
	mark := v.roles[name]
	if mark == nil {
		mark = &roleMark{name: strings.Clone(name)}
		v.roles[name] = mark
	}
	return mark
}

func (v *Verifier) feedFailed(err error) {
	v.stats.syncFailures.Add(1)
	v.status.Lock()
	first := v.status.feedError == nil
	v.status.feedError = err
	v.status.Unlock()
	if first {
		v.log.Warn("the feed of changes is lost; cached keys are accepted for a while", slog.Any("error", err), slog.Duration("max_stale", v.config.MaxStale))
	}
}

func (v *Verifier) feedWorks() {
	v.status.Lock()
	former := v.status.feedError
	v.status.feedError = nil
	v.status.Unlock()
	if former != nil {
		v.log.Info("the feed of changes is back")
	}
}

// noteSkew tells once that the wall clock is off, and once that it is no more.
func (v *Verifier) noteSkew(skew time.Duration) {
	former := time.Duration(v.skew.Swap(int64(skew)))
	switch was, is := former.Abs() > maxSkew, skew.Abs() > maxSkew; {
	case is && !was:
		v.log.Warn("the wall clock differs from vault's, which is the one that counts", slog.Duration("ahead", skew))
	case was && !is:
		v.log.Info("the wall clock agrees with vault's again", slog.Duration("ahead", skew))
	}
}
