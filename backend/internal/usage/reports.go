// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

const (
	// maxVerifiers bounds the verifiers that are remembered, maxBoots the starts
	// of each, and maxReports what is stored of them, in bytes.
	maxVerifiers = 1000
	maxBoots     = 3
	maxReports   = 448 << 10
	// window is how far behind the highest sequence of a boot a late report may
	// be and still count.
	window = 128
	// verifierLife is how long a verifier that is silent is remembered.
	verifierLife = 31 * 24 * time.Hour
	// gapLife is how long a report that is missing is waited for.
	gapLife = 15 * time.Minute
	// seenEvery is how often it is stored that a verifier was heard from which
	// does not report, and seenLag how far what is stored can lag behind: that
	// and two flushes.
	seenEvery = 15 * time.Minute
	seenLag   = seenEvery + 2*time.Minute
	// cacheLife is how long whoever asks without a name can go on accepting what
	// it was told: as long as the cache of a verifier outlives its last answer.
	cacheLife = 10 * time.Minute
)

// Reports remembers which reports of verifiers were counted, so that a
// retried one counts once, and up to when each verifier has reported. It is
// safe for concurrent use.
//
// A report is remembered in storage before what it counted is: a crash between
// loses counts. Only a report that comes during a flush, and whose answer is
// lost in a crash right then, may count twice.
//
// Nothing that is forgotten counts as having reported. What had to make room,
// and what storage gave back damaged, lives on in one entry that stands for all
// of it: a version that was superseded before then is not known to be unused.
//
// Who asks without a name cannot report. Until its cache is over, nothing is
// known; and what it accepted until then is lost.
type Reports struct {
	mu        sync.Mutex
	verifiers map[string]*verifier
	// callers are those of the verifiers.
	callers map[string]*caller
	// unnamed is the last that asked without a name; nil where none has.
	unnamed *unnamed
	// forgotten stands for the verifiers that are not remembered any more; nil
	// while there are none. It is never dropped.
	forgotten *verifier
	dirty     bool
	// extra are the stored fields that this code does not know.
	extra jsonkeep.Extra
}

// reportsSchema is the major version of the stored form.
const reportsSchema = 1

// storedReports is what is stored of Reports.
type storedReports struct {
	Schema    int                  `json:"schema"`
	Verifiers map[string]*verifier `json:"verifiers"`
	Unnamed   *unnamed             `json:"unnamed,omitempty"`
}

// unnamed is who asked last without a name. As it is stored, LastSeen lags
// behind by seenLag at most.
type unnamed struct {
	Caller   string    `json:"caller"`
	LastSeen time.Time `json:"last_seen"`

	stored time.Time
}

// caller is an entity, or a token, under which there are verifiers.
type caller struct {
	verifiers int
	// heard is when any of them was last heard from.
	heard time.Time
}

// callerOf is the caller in the name of a verifier, whose label has no bar.
func callerOf(name string) string { return name[:max(0, strings.LastIndexByte(name, '|'))] }

// CheckReports refuses reports that a newer major version has stored. Damaged
// ones are for NewReports.
func CheckReports(data []byte) error {
	var head struct {
		Schema int `json:"schema"`
	}
	if json.Unmarshal(data, &head) != nil || head.Schema <= reportsSchema {
		return nil
	}
	return fmt.Errorf("the stored reports of verifiers: %w", jsonkeep.CheckSchema(data, reportsSchema))
}

// Verifier is what is known of one verifier.
type Verifier struct {
	// Name is the one that it was accepted, or heard, under.
	Name string
	// Boot is its present start; empty where it never said.
	Boot string
	// LastSeen is when it was last heard from.
	LastSeen time.Time
	// ReportedThrough is the time up to which it has reported all that it saw;
	// zero where it never did.
	ReportedThrough time.Time
}

type verifier struct {
	// Boots are the last starts, the present one last.
	Boots    []*boot   `json:"boots,omitempty"`
	LastSeen time.Time `json:"last_seen"`
	// Through is the time up to which nothing is missing, except what was seen
	// before Since and is lost: with the memory of a former boot, with a report
	// that never came, or with one that cannot be counted as a whole.
	Through time.Time `json:"reported_through,omitzero"`
	Since   time.Time `json:"since,omitzero"`
	// Silent is set once it was heard from otherwise than by a report: then
	// LastSeen as it is stored lags behind, by seenLag at most.
	Silent bool `json:"silent,omitempty"`

	// stored is LastSeen as it was stored last, and perhaps the time up to which
	// it may have been heard from before a crash.
	stored, perhaps time.Time
	// caller is that of its name.
	caller *caller
}

// boot is what is known of the reports of one start.
type boot struct {
	ID string `json:"boot"`
	// Highest is the highest sequence, and bit i of Seen says that the one i
	// below it was counted.
	Highest uint64              `json:"highest"`
	Seen    [window / 64]uint64 `json:"seen,omitzero"`
	// Low is the sequence up to which none is missing, or waited for any more;
	// Gap is since when one is missing.
	Low uint64    `json:"low,omitempty"`
	Gap time.Time `json:"gap,omitzero"`
	// Through is the latest time that any report said it was complete up to.
	Through time.Time `json:"through,omitzero"`
	// Heard is when this start was last heard from. As it is stored it lags
	// behind, like LastSeen.
	Heard time.Time `json:"heard,omitzero"`
}

// forgottenName is that of the entry of forgotten verifiers in the stored
// form. No verifier is called so: a name begins with its caller.
const forgottenName = ""

// NewReports returns what data, as Encode made it, remembers at now. What of it
// is damaged counts as verifiers that were heard from until now and never
// reported: no version that was superseded before is known to be unused, and
// reports that were counted may count twice.
func NewReports(data []byte, now time.Time) *Reports {
	r := &Reports{verifiers: map[string]*verifier{}, callers: map[string]*caller{}}
	if data == nil {
		return r
	}
	var stored storedReports
	extra, err := jsonkeep.Unmarshal(data, &stored)
	if r.extra = extra; stored.Verifiers != nil {
		r.verifiers = stored.Verifiers
	} else { // null, or not there
		err = errDamaged
	}
	r.forgotten = r.verifiers[forgottenName]
	_, had := r.verifiers[forgottenName]
	delete(r.verifiers, forgottenName)
	for name, v := range r.verifiers {
		if v == nil || slices.Contains(v.Boots, nil) {
			err = errDamaged
			delete(r.verifiers, name)
			continue
		}
		v.stored = v.LastSeen
		if v.Silent {
			v.perhaps = earliest(now, v.LastSeen.Add(seenLag))
		}
		for _, b := range v.Boots {
			b.restore()
		}
		r.join(name, v)
		v.caller.heard = later(v.caller.heard, later(v.LastSeen, v.perhaps))
	}
	if r.unnamed = stored.Unnamed; r.unnamed != nil {
		r.unnamed.stored = r.unnamed.LastSeen
		r.unnamed.LastSeen = earliest(now, r.unnamed.LastSeen.Add(seenLag))
	}
	if err != nil || had && r.forgotten == nil {
		r.forget(&verifier{LastSeen: now, Since: now})
		r.dirty = true
	}
	return r
}

// forget adds a verifier to those that are not remembered any more.
func (r *Reports) forget(v *verifier) {
	seen := later(v.LastSeen, v.perhaps)
	if r.forgotten == nil {
		r.forgotten = &verifier{LastSeen: seen, Through: v.Through, Since: v.Since}
		return
	}
	f := r.forgotten
	f.LastSeen, f.Since = later(f.LastSeen, seen), later(f.Since, v.Since)
	if v.Through.Before(f.Through) {
		f.Through = v.Through
	}
}

// Heard notes that a verifier is at work, as its polls tell: until it reports,
// what it may have seen is unknown. boot is its present start, empty where that
// was not said. It may be called each second: there is something to store only
// where the verifier or the boot is new, or once in seenEvery.
func (r *Reports) Heard(name, bootID string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.verifiers[name]
	if v == nil {
		v = r.add(name, now)
	}
	v.seen(now)
	if !v.Silent || now.Sub(v.stored) >= seenEvery {
		v.Silent, r.dirty = true, true
	}
	if bootID == "" {
		return
	}
	if n := len(v.Boots); n > 0 && v.Boots[n-1].ID == bootID {
		v.Boots[n-1].Heard = now
		return
	}
	v.boot(bootID, now)
	r.dirty = true
}

// HeardUnnamed notes that a caller follows what changes without a name: what it
// accepts it does not report. It may be called as often as Heard.
func (r *Reports) HeardUnnamed(callerName string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heardUnnamed(callerName, now)
}

// LookedUp notes that a caller was told of keys. Those are taken to be for its
// verifier, where one was heard from within cacheLife; else it asks without a
// name.
func (r *Reports) LookedUp(callerName string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.callers[callerName]; c == nil || now.Sub(c.heard) > cacheLife {
		r.heardUnnamed(callerName, now)
	}
}

func (r *Reports) heardUnnamed(callerName string, now time.Time) {
	if r.unnamed == nil {
		r.unnamed = &unnamed{}
	}
	u := r.unnamed
	if u.LastSeen.After(now) {
		return
	}
	u.Caller, u.LastSeen = callerName, now
	if now.Sub(u.stored) >= seenEvery {
		r.dirty = true
	}
}

// seen notes that it was heard from now.
func (v *verifier) seen(now time.Time) {
	v.LastSeen = later(v.LastSeen, now)
	v.caller.heard = later(v.caller.heard, now)
}

// join counts a verifier among those of its caller.
func (r *Reports) join(name string, v *verifier) {
	of := callerOf(name)
	if r.callers[of] == nil {
		r.callers[of] = &caller{}
	}
	v.caller = r.callers[of]
	v.caller.verifiers++
}

// add remembers a verifier, and makes room for it.
func (r *Reports) add(name string, now time.Time) *verifier {
	r.makeRoom(now)
	v := &verifier{LastSeen: now}
	r.verifiers[name] = v
	r.join(name, v)
	r.dirty = true
	return v
}

// Verifiers returns what is known of all verifiers that are remembered, by
// name.
func (r *Reports) Verifiers() []Verifier {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Verifier, 0, len(r.verifiers))
	for name, v := range r.verifiers {
		all = append(all, v.public(name))
	}
	slices.SortFunc(all, func(a, b Verifier) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Verifier returns what is known of one verifier. It reports false where it
// was never heard from, or is forgotten.
func (r *Reports) Verifier(name string) (Verifier, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.verifiers[name]
	if v == nil {
		return Verifier{}, false
	}
	return v.public(name), true
}

func (v *verifier) public(name string) Verifier {
	p := Verifier{Name: name, LastSeen: v.LastSeen, ReportedThrough: v.Through}
	if n := len(v.Boots); n > 0 {
		p.Boot = v.Boots[n-1].ID
	}
	return p
}

// Accept tells whether a report is new, and remembers it. A report that is
// too far behind the highest of its boot to be told apart counts as a
// repetition. through is the time up to which it is complete, zero where that
// was not said; what is still to come it cannot tell of.
func (r *Reports) Accept(name, bootID string, sequence uint64, through, now time.Time, count func()) (fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.verifiers[name]
	if v == nil {
		v = r.add(name, now)
	}
	r.dirty = true
	v.seen(now)
	b := v.boot(bootID, now)
	if fresh = b.count(sequence); fresh {
		count() // before anybody can take the report for counted
	}
	if v.Through.After(now) {
		v.Through = time.Time{} // the clock went back: this report says it anew
	}
	if through = earliest(through, now); through.After(b.Through) || b.Through.After(now) {
		b.Through = through
	}
	if b == v.Boots[len(v.Boots)-1] {
		v.advance(b, now)
	}
	return fresh
}

// Lost notes that a verifier tells of use that cannot be counted: of what it saw
// until now some is lost.
func (r *Reports) Lost(name string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.verifiers[name]
	if v == nil {
		v = r.add(name, now)
	}
	v.Since, r.dirty = now, true
}

// boot returns what is known of a start, which was heard from now. What a
// verifier had seen and not reported when it started again is lost; where two
// report under one name, it is not known which of them is complete. Once the
// present one was silent for gapLife, another that speaks takes its place.
func (v *verifier) boot(id string, now time.Time) *boot {
	last := len(v.Boots) - 1
	i := slices.IndexFunc(v.Boots, func(b *boot) bool { return b.ID == id })
	if i != last {
		v.Since = now
	}
	switch {
	case i < 0:
		v.Boots = append(v.Boots, &boot{ID: id})
		if over := len(v.Boots) - maxBoots; over > 0 {
			v.Boots = slices.Delete(v.Boots, 0, over)
		}
		i = len(v.Boots) - 1
	case i != last && now.Sub(v.Boots[last].Heard) >= gapLife:
		b := v.Boots[i]
		v.Boots = append(slices.Delete(v.Boots, i, i+1), b)
		i = last
	}
	v.Boots[i].Heard = now
	return v.Boots[i]
}

// count notes a sequence and tells whether it is new.
func (b *boot) count(sequence uint64) bool {
	if sequence > b.Highest {
		b.shift(sequence - b.Highest)
		b.Highest = sequence
	}
	behind := b.Highest - sequence
	if behind >= window || b.Seen[behind/64]&(1<<(behind%64)) != 0 {
		return false
	}
	b.Seen[behind/64] |= 1 << (behind % 64)
	return true
}

func (b *boot) shift(n uint64) {
	for ; n >= 64; n -= 64 {
		copy(b.Seen[1:], b.Seen[:])
		b.Seen[0] = 0
		if b.Seen == [window / 64]uint64{} {
			return
		}
	}
	if n == 0 {
		return
	}
	for i := len(b.Seen) - 1; i > 0; i-- {
		b.Seen[i] = b.Seen[i]<<n | b.Seen[i-1]>>(64-n)
	}
	b.Seen[0] <<= n
}

// advance moves the time up to which nothing is missing. A report that has not
// come after gapLife is given up: what it would have told is lost.
func (v *verifier) advance(b *boot, now time.Time) {
	for b.Low < b.Highest && b.Highest-b.Low <= window {
		behind := b.Highest - b.Low - 1
		if b.Seen[behind/64]&(1<<(behind%64)) == 0 {
			break
		}
		b.Low++
	}
	if b.Low < b.Highest {
		if b.Gap.IsZero() {
			b.Gap = now
		}
		if b.Highest-b.Low <= window && now.Sub(b.Gap) < gapLife {
			return
		}
		b.Low = b.Highest
		v.Since = now
	}
	b.Gap = time.Time{}
	v.Through = later(v.Through, b.Through)
}

// makeRoom forgets those that were silent for verifierLife, or else one.
func (r *Reports) makeRoom(now time.Time) {
	if len(r.verifiers) < maxVerifiers {
		return
	}
	for name, v := range r.verifiers {
		if now.Sub(v.LastSeen) > verifierLife {
			r.drop(name)
		}
	}
	if len(r.verifiers) >= maxVerifiers {
		r.dropOldest()
	}
}

// dropOldest forgets, of the caller with the most verifiers, the one that was
// silent longest: nobody pushes out those of others.
func (r *Reports) dropOldest() {
	most := 0
	for _, c := range r.callers {
		most = max(most, c.verifiers)
	}
	oldest := ""
	for name, v := range r.verifiers {
		if v.caller.verifiers < most {
			continue
		}
		if o := r.verifiers[oldest]; o == nil || cmp.Or(v.LastSeen.Compare(o.LastSeen), strings.Compare(name, oldest)) < 0 {
			oldest = name
		}
	}
	r.drop(oldest)
}

// drop forgets a verifier.
func (r *Reports) drop(name string) {
	v := r.verifiers[name]
	r.forget(v)
	delete(r.verifiers, name)
	if v.caller.verifiers--; v.caller.verifiers == 0 {
		delete(r.callers, callerOf(name))
	}
	r.dirty = true
}

// Known is the time up to which use is known: now, or earlier where a
// verifier that was heard from since has not reported up to now, which why
// tells then. Before from, such a verifier may have seen use that it never
// reported.
func (r *Reports) Known(since, now time.Time) (through, from time.Time, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	through = now
	slowest := ""
	look := func(name string, v *verifier) {
		if later(v.LastSeen, v.perhaps).Before(since) {
			return
		}
		if reported := v.reported(now); reported.Before(through) || why != "" && reported.Equal(through) && name < slowest {
			through, slowest, why = reported, name, v.behind(name, now)
		}
		from = later(from, v.Since)
	}
	for name, v := range r.verifiers {
		look(name, v)
	}
	if r.forgotten != nil {
		look(forgottenName, r.forgotten)
	}
	if u := r.unnamed; u != nil {
		switch over := u.LastSeen.Add(cacheLife); {
		case over.Before(since):
		case over.After(now):
			if !through.IsZero() {
				through, why = time.Time{}, DisplayCaller(u.Caller)+" asks without the name of a verifier, and may still accept from its cache"
			}
		default:
			from = later(from, over)
		}
	}
	return through, from, why
}

// reported is the time up to which it has reported. One that is still to come
// was told before the clock went back, and tells nothing of the time until then.
func (v *verifier) reported(now time.Time) time.Time {
	if v.Through.After(now) {
		return time.Time{}
	}
	return v.Through
}

// behind says up to when a verifier has reported.
func (v *verifier) behind(name string, now time.Time) string {
	who := "a verifier that is not remembered any more, last heard from at " + v.LastSeen.UTC().Format(time.RFC3339) + ","
	if name != forgottenName {
		who = "verifier " + printable(name)
	}
	switch {
	case v.Through.IsZero():
		return who + " has not reported"
	case v.Through.After(now):
		return who + " has not reported since the clock went back"
	}
	return who + " has reported only up to " + v.Through.UTC().Format(time.RFC3339)
}

// Encode returns what is to be stored, nil where nothing changed since the
// last time.
func (r *Reports) Encode() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dirty {
		return nil, nil
	}
	stored := storedReports{Schema: reportsSchema, Verifiers: r.stored(), Unnamed: r.unnamed}
	for brief := false; ; brief = true {
		if brief {
			stored.Verifiers = r.stored()
			for name, v := range stored.Verifiers {
				stored.Verifiers[name] = v.brief()
			}
		}
		data, err := jsonkeep.Marshal(stored, r.extra)
		if err != nil {
			return nil, fmt.Errorf("encode usage reports: %w", err)
		}
		if len(data) <= maxReports {
			r.dirty = false
			for _, v := range r.verifiers {
				v.stored = v.LastSeen
			}
			if r.unnamed != nil {
				r.unnamed.stored = r.unnamed.LastSeen
			}
			return data, nil
		}
		for range 1 + len(r.verifiers)/20 {
			if brief && len(r.verifiers) > 0 {
				r.dropOldest()
			}
		}
	}
}

// brief is what is stored of a verifier where all of them, as they are, take
// too much: the present start alone, in whole seconds, without what restore
// knows. Of the others, reports that are sent again after a restart count twice.
func (v *verifier) brief() *verifier {
	up := func(t time.Time) time.Time {
		if whole := t.Truncate(time.Second); whole.Before(t) {
			return whole.Add(time.Second)
		}
		return t
	}
	s := &verifier{LastSeen: up(v.LastSeen), Through: v.Through.Truncate(time.Second), Since: up(v.Since), Silent: v.Silent}
	if n := len(v.Boots); n > 0 {
		b := *v.Boots[n-1]
		b.Heard, b.Gap, b.Through = time.Time{}, b.Gap.Truncate(time.Second), b.Through.Truncate(time.Second)
		if !b.Through.After(s.Through) {
			b.Through = time.Time{} // it would not move that of the verifier
		}
		if b.Low == b.Highest {
			b.Seen = [window / 64]uint64{}
		}
		s.Boots = []*boot{&b}
	}
	return s
}

// restore fills in what brief has left out: none is waited for any more.
func (b *boot) restore() {
	if b.Highest > 0 && b.Seen == [window / 64]uint64{} {
		for i := range b.Seen {
			b.Seen[i] = ^uint64(0)
		}
	}
}

func (r *Reports) stored() map[string]*verifier {
	all := maps.Clone(r.verifiers)
	if r.forgotten != nil {
		all[forgottenName] = r.forgotten
	}
	return all
}

// Unsaved notes that what Encode returned could not be stored.
func (r *Reports) Unsaved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = true
}
