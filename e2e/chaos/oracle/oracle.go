// SPDX-License-Identifier: MPL-2.0

package oracle

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Kind is what went wrong.
type Kind string

// The kinds of violations.
const (
	// FalseRefusal: a verifier said no to a version that was accepted for the
	// whole call.
	FalseRefusal Kind = "false refusal"
	// ClientRefused: a verifier said no to a client that had read its key
	// within the time that it was told to, though nobody had ended that.
	ClientRefused Kind = "refused in its time"
	// Stale: a client that read its key was given a version that was no longer
	// the active one.
	Stale Kind = "stale key"
	// LateAcceptance: a verifier said yes to a version that had ended longer
	// ago than its bound.
	LateAcceptance Kind = "late acceptance"
	// LostKey: a key or version that was answered, and never ended, is unknown;
	// or a client that reads its key is told that there is no active version.
	LostKey Kind = "lost key"
	// EndedEarly: a key reads as ended that nobody has ended.
	EndedEarly Kind = "ended early"
	// Revived: a revoked version is accepted again, by its state.
	Revived Kind = "revived"
	// DoubleRotation: a key has more versions than it was rotated.
	DoubleRotation Kind = "double rotation"
	// LateRotation: a key was not rotated when its schedule had it due.
	LateRotation Kind = "late rotation"
	// LostRotation: a rotation that was answered is gone.
	LostRotation Kind = "lost rotation"
	// Mistaken: a verifier accepted a key as another key or version.
	Mistaken Kind = "mistaken identity"
	// LostEvent: an event was not delivered.
	LostEvent Kind = "lost event"
	// WrongEvent: an event was delivered out of order, with two bodies, or
	// unlike the history.
	WrongEvent Kind = "wrong event"
)

// Kinds are all kinds of violations.
var Kinds = []Kind{FalseRefusal, ClientRefused, Stale, LateAcceptance, LostKey, EndedEarly, Revived, DoubleRotation, LateRotation, LostRotation, Mistaken, LostEvent, WrongEvent}

// Violation is one thing that went wrong. It holds no secret.
type Violation struct {
	Kind    Kind      `json:"kind"`
	Key     string    `json:"key"`
	Version int       `json:"version,omitempty"`
	Time    time.Time `json:"time"`
	Detail  string    `json:"detail"`
}

func (v Violation) String() string {
	return fmt.Sprintf("%s %s: key %q version %d: %s", v.Time.Format("15:04:05.000"), v.Kind, v.Key, v.Version, v.Detail)
}

// kept bounds how many violations are remembered one by one; all are counted.
const kept = 200

// Oracle is safe for concurrent use. The zero value is ready.
type Oracle struct {
	mu         sync.Mutex
	keys       map[string]*key
	violations []Violation
	byKind     map[Kind]int
	classes    map[string]*Class
	rotations  int
	unknown    int
	fetches    int
	inTime     int
}

// Class is what verifiers of one class answered.
type Class struct {
	Verifications int `json:"verifications"`
	Accepted      int `json:"accepted"`
	Refused       int `json:"refused"`
	// Unavailable are definite answers that nothing can be said now.
	Unavailable int `json:"unavailable"`
	// Errors are calls without an answer.
	Errors int `json:"errors"`
	// Calm are those verifications that no fault can have disturbed, and
	// CalmLost those of them that were unavailable, or errors.
	Calm     int `json:"calm"`
	CalmLost int `json:"calm_lost"`
	// Codes counts the refusals.
	Codes map[string]int `json:"codes"`
	// Late are acceptances of versions that had ended, within the bounds or not,
	// and MaxLate is by how much at most, in milliseconds.
	Late    int     `json:"late"`
	MaxLate float64 `json:"max_late_ms"`
}

type key struct {
	versions map[int]*version
	latest   int
	learnt   time.Time // when latest was answered
	// overlap is not 0 where others than the caller change the key.
	overlap time.Duration
	trail   []string // what was last done to it, for people
	open    bool     // a change is under way, or its outcome unknown
	grows   bool     // it may add a version
}

type version struct {
	must, may spans
	// leads are the times in which it can have been the active one, ended those
	// in which somebody may have ended it before its time.
	leads, ended spans
	final        bool
}

// trailKept bounds the trail of a key.
const trailKept = 30

func (k *key) note(at time.Time, format string, args ...any) {
	k.trail = append(k.trail, at.Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	k.trail = k.trail[max(0, len(k.trail)-trailKept):]
}

// Trail tells what was last done to a key, as the oracle was told.
func (o *Oracle) Trail(name string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.key(name).trail)
}

func (v *version) clone() *version { c := *v; return &c }

func (o *Oracle) key(name string) *key {
	if o.keys == nil {
		o.keys, o.byKind, o.classes = map[string]*key{}, map[Kind]int{}, map[string]*Class{}
	}
	k := o.keys[name]
	if k == nil {
		k = &key{versions: map[int]*version{}}
		o.keys[name] = k
	}
	return k
}

func (k *key) version(number int) *version {
	v := k.versions[number]
	if v == nil {
		v = &version{}
		k.versions[number] = v
	}
	return v
}

func (o *Oracle) violate(kind Kind, key string, version int, at time.Time, format string, args ...any) {
	o.byKind[kind]++
	if len(o.violations) < kept {
		o.violations = append(o.violations, Violation{kind, key, version, at, fmt.Sprintf(format, args...)})
	}
}

// Foreign says that others change a key too: its active version may be
// superseded at any time, and is then accepted for at least an overlap. It is
// to be said before the key's first version.
func (o *Oracle) Foreign(name string, overlap time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.key(name).overlap = overlap
}

// Born notes that a version came to be in a call, as the active one, and is
// accepted until somebody ends it.
func (o *Oracle) Born(name string, number int, sent, answered time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.born(name, number, sent, answered)
}

func (o *Oracle) born(name string, number int, sent, answered time.Time) {
	k := o.key(name)
	k.born(number, sent, answered)
	if k.overlap > 0 && k.latest > 0 && number > k.latest {
		o.rotations += number - k.latest
	}
	if number >= k.latest {
		k.lead(number, sent, answered)
	}
	k.grown(number, answered)
}

func (k *key) born(number int, sent, answered time.Time) {
	v := k.version(number)
	var until time.Time
	if k.overlap > 0 {
		until = sent.Add(k.overlap)
	}
	v.must, v.may = v.must.with(answered, until), v.may.with(sent, time.Time{})
}

// grown notes that there is a version of this number.
func (k *key) grown(number int, answered time.Time) {
	if number > k.latest {
		k.latest, k.learnt = number, answered
	}
}

// lead notes that a version was the active one at some moment of a call, and
// was not before it, if the call made it so.
func (k *key) lead(number int, sent, answered time.Time) {
	if k.overlap > 0 { // others made it so, nobody knows when
		sent = time.Time{}
		for older := k.latest + 1; older < number; older++ {
			v := k.version(older)
			v.leads = v.leads.with(sent, answered)
		}
	}
	for other, v := range k.versions {
		if other != number {
			v.leads = v.leads.cut(answered)
		}
	}
	v := k.version(number)
	v.leads = v.leads.with(sent, time.Time{})
}

// Intent is what a call may do to a key.
type Intent struct {
	// Ends are versions that it may end at once, Revives those that it may
	// accept again or for longer.
	Ends, Revives []int
	// Supersedes is a version that stays accepted for Overlap from the change;
	// 0 is none.
	Supersedes int
	Overlap    time.Duration
	// Adds tells whether it makes a version, Activates is one that there is and
	// that it makes the active one; 0 is none.
	Adds      bool
	Activates int
}

// Op is a change that is under way.
type Op struct {
	o      *Oracle
	name   string
	sent   time.Time
	intent Intent
	before map[int]*version
}

// Begin notes that a change is about to be sent. It has to end in Refused,
// Done, or Unknown and then Observe, before the next one begins.
func (o *Oracle) Begin(name string, sent time.Time, in Intent) *Op {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := o.key(name)
	op := &Op{o: o, name: name, sent: sent, intent: in, before: map[int]*version{}}
	for number, v := range k.versions {
		op.before[number] = v.clone()
	}
	k.open, k.grows = true, in.Adds
	k.note(sent, "begin %+v", in)
	for _, number := range in.Ends {
		v := k.version(number)
		v.must, v.ended = v.must.cut(sent), v.ended.with(sent, time.Time{})
	}
	if in.Supersedes != 0 {
		v := k.version(in.Supersedes)
		v.must = v.must.cut(sent.Add(in.Overlap))
	}
	for _, number := range in.Revives {
		v := k.version(number)
		v.may = v.may.with(sent, time.Time{})
	}
	leads := []int{in.Activates}
	if in.Adds { // a client may fetch it before the answer is here
		leads = append(leads, k.latest+1)
	}
	for _, number := range leads {
		if number != 0 {
			v := k.version(number)
			v.may, v.leads = v.may.with(sent, time.Time{}), v.leads.with(sent, time.Time{})
		}
	}
	return op
}

// Refused says that the change was not made, for certain.
func (op *Op) Refused() {
	op.o.mu.Lock()
	defer op.o.mu.Unlock()
	k := op.o.key(op.name)
	k.open, k.grows = false, false
	k.versions = op.before
	k.note(op.sent, "which was refused")
}

// Unknown says that nobody knows whether the change was made; it may still be
// made until the key is observed.
func (op *Op) Unknown() {
	op.o.mu.Lock()
	defer op.o.mu.Unlock()
	op.o.unknown++
	op.o.key(op.name).note(op.sent, "of which the outcome is unknown")
}

// Outcome is what a change did, by its answer.
type Outcome struct {
	// Added is the version that it made; 0 is none.
	Added int
	// Ended are those that it ended at once; Final says for good.
	Ended []int
	Final bool
	// Until says until when versions are accepted from now on.
	Until map[int]time.Time
	// Active is the version that is the active one from now on; 0 is the one
	// that was.
	Active int
}

// Done says what the change did.
func (op *Op) Done(answered time.Time, out Outcome) {
	o := op.o
	o.mu.Lock()
	defer o.mu.Unlock()
	k := o.key(op.name)
	k.open, k.grows = false, false
	k.versions = op.before
	k.note(answered, "done %+v", out)
	if out.Added != 0 {
		o.rotations++
		switch {
		case out.Added > k.latest+1:
			o.violate(DoubleRotation, op.name, out.Added, answered, "the version before it was %d", k.latest)
		case out.Added <= k.latest:
			o.violate(LostRotation, op.name, out.Added, answered, "a rotation made it, but there was a version %d", k.latest)
		}
		k.born(out.Added, op.sent, answered)
		k.grown(out.Added, answered)
	}
	for _, number := range out.Ended {
		v := k.version(number)
		v.must, v.may = v.must.cut(op.sent), v.may.cut(answered)
		v.ended = v.ended.with(op.sent, time.Time{})
		v.final = v.final || out.Final
	}
	for number, until := range out.Until {
		k.version(number).accepted(op.sent, answered, until)
	}
	if out.Active != 0 {
		k.version(out.Active).accepted(op.sent, answered, time.Time{})
		k.lead(out.Active, op.sent, answered)
	}
}

// accepted says that a version is accepted since some moment of a call, until
// another one; for ever, if that is zero.
func (v *version) accepted(sent, answered, until time.Time) {
	v.ended = v.ended.cut(answered)
	if until.IsZero() {
		v.must, v.may = v.must.with(answered, until), v.may.with(sent, until)
		return
	}
	v.must, v.may = v.must.cut(until).with(answered, until), v.may.cut(until).with(sent, until)
}

// Seen is what reading a key tells of one version.
type Seen struct {
	Version  int
	Accepted bool
	// Until is when it is no longer accepted; zero is never.
	Until time.Time
	// Active says that it is the active one, Final that it was revoked.
	Active, Final bool
}

// Observe notes how a key read. It settles what was unknown. Nothing that the
// caller sent before may still be under way.
func (o *Oracle) Observe(name string, sent, answered time.Time, seen []Seen) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := o.key(name)
	k.note(answered, "read since %s as %+v", sent.Format("15:04:05.000"), seen)
	there := map[int]bool{}
	latest := 0
	for _, s := range seen {
		there[s.Version] = true
		latest = max(latest, s.Version)
		v := k.version(s.Version)
		if s.Active && (k.overlap == 0 || s.Version >= k.latest) { // else it is known already what followed
			k.lead(s.Version, sent, answered)
		}
		switch {
		case s.Accepted && v.final:
			o.violate(Revived, name, s.Version, answered, "it was revoked, and reads as accepted")
		case s.Accepted && k.overlap > 0 && s.Until.IsZero():
			v.must, v.may = v.must.with(answered, sent.Add(k.overlap)), v.may.with(sent, time.Time{})
			v.ended = v.ended.cut(answered)
		case s.Accepted:
			v.accepted(sent, answered, s.Until)
		case v.must.cover(sent, answered):
			o.violate(EndedEarly, name, s.Version, answered, "it reads as ended, and was to be accepted")
		default:
			v.must, v.may = v.must.cut(sent), v.may.cut(answered)
			v.final = v.final || s.Final
		}
	}
	for number, v := range k.versions {
		switch {
		case there[number]:
		case v.must.cover(sent, answered):
			o.violate(LostKey, name, number, answered, "the key has no such version")
		case number > latest && k.learnt.After(sent): // others made it since
		default:
			v.must, v.may = v.must.cut(sent), v.may.cut(answered)
		}
	}
	o.settle(k, name, latest, sent, answered)
}

// settle compares the number of versions with that of rotations.
func (o *Oracle) settle(k *key, name string, latest int, sent, at time.Time) {
	expected := k.latest
	if k.open && k.grows {
		expected++
	}
	switch {
	case latest < k.latest && k.learnt.After(sent):
	case latest < k.latest:
		o.violate(LostRotation, name, k.latest, at, "the latest version reads as %d", latest)
	case latest > expected && k.overlap == 0:
		o.violate(DoubleRotation, name, latest, at, "the latest version was to be %d", expected)
	case latest > k.latest:
		o.rotations += latest - k.latest
	}
	k.grown(latest, at)
	k.open, k.grows = false, false
}

// Fetch is a client's reading of its key, and what it was given.
type Fetch struct {
	Key     string
	Version int // 0: it was told that there is no active version
	// Late is how long after its end as the active one a version may be given.
	Sent, Answered time.Time
	Late           time.Duration
}

// Fetched judges a fetch of a key that nobody leaves without an active version.
func (o *Oracle) Fetched(f Fetch) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fetches++
	k := o.key(f.Key)
	if f.Version == 0 {
		o.violate(LostKey, f.Key, 0, f.Answered, "a client that read it was told that there is no active version")
		return
	}
	if k.overlap > 0 && len(k.version(f.Version).may) == 0 {
		o.born(f.Key, f.Version, f.Sent, f.Answered)
	}
	if v := k.version(f.Version); !v.leads.touch(f.Sent.Add(-f.Late), f.Answered) {
		o.violate(Stale, f.Key, f.Version, f.Answered, "a client that read it was given this version, which was not the active one since %s", v.leads.endBefore(f.Answered).Format("15:04:05.000"))
	}
}

// Missing notes that a key which was never deleted was said not to exist.
func (o *Oracle) Missing(name string, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.key(name)
	o.violate(LostKey, name, 0, at, "there is no such key")
}

// Verdict is what a verifier said.
type Verdict int

// The verdicts. The zero value is none.
const (
	VerdictUnknown Verdict = iota
	Accepted
	Refused
	Unavailable // it cannot say now
	Failed      // no answer
)

// Verification is one question to a verifier, and its answer.
type Verification struct {
	Class    string // of the verifier
	Verifier string
	Key      string // whose token was presented, and which version of it
	Version  int

	Sent, Answered time.Time
	Verdict        Verdict
	Code           string
	// AnsweredKey and AnsweredVersion are whom the verifier took it for, where
	// it accepted and said so.
	AnsweredKey     string
	AnsweredVersion int

	// Late is how long after its end the verifier may still accept a version,
	// by its published bound, and Early how long before a deadline it may
	// refuse it.
	Late, Early time.Duration

	// Fetched is when a client that behaves asked for the version, and Until
	// until when it was to use it; zero for one that does not behave.
	Fetched, Until time.Time
	// Calm says that no fault can have disturbed it.
	Calm bool
}

// inTime tells whether the client has kept to what it was told.
func (v Verification) inTime() bool { return !v.Until.IsZero() && !v.Answered.After(v.Until) }

// notFound are the codes that say that there is no such key.
var notFound = []string{"NOT_FOUND", "MALFORMED"}

// Judge judges a verification.
func (o *Oracle) Judge(v Verification) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := o.key(v.Key)
	class := o.classes[v.Class]
	if class == nil {
		class = &Class{Codes: map[string]int{}}
		o.classes[v.Class] = class
	}
	class.Verifications++
	if v.inTime() {
		o.inTime++
	}
	if v.Calm {
		class.Calm++
	}
	switch v.Verdict {
	case Accepted:
		class.Accepted++
		o.judgeAcceptance(k, class, v)
	case Refused:
		class.Refused++
		class.Codes[v.Code]++
		o.judgeRefusal(k.version(v.Version), v)
	case Unavailable:
		class.Unavailable++
	case Failed, VerdictUnknown:
		class.Errors++
	}
	if v.Calm && v.Verdict != Accepted && v.Verdict != Refused {
		class.CalmLost++
	}
}

func (o *Oracle) judgeRefusal(life *version, v Verification) {
	said := fmt.Sprintf("%s said %s in a call of %s", v.Verifier, v.Code, v.Answered.Sub(v.Sent))
	switch {
	case life.must.cover(v.Sent, v.Answered.Add(v.Early)):
		kind := FalseRefusal
		if slices.Contains(notFound, v.Code) {
			kind = LostKey
		}
		o.violate(kind, v.Key, v.Version, v.Answered, "%s", said)
	case v.inTime() && !life.ended.touch(v.Fetched, v.Answered):
		o.violate(ClientRefused, v.Key, v.Version, v.Answered, "%s; its client read it at %s, and was to use it until %s", said, v.Fetched.Format("15:04:05.000"), v.Until.Format("15:04:05.000"))
	}
}

func (o *Oracle) judgeAcceptance(k *key, class *Class, v Verification) {
	if v.AnsweredKey != "" && v.AnsweredKey != v.Key || v.AnsweredVersion != 0 && v.AnsweredVersion != v.Version {
		o.violate(Mistaken, v.Key, v.Version, v.Answered, "%s took it for version %d of %q", v.Verifier, v.AnsweredVersion, v.AnsweredKey)
	}
	life := k.version(v.Version)
	if life.may.touch(v.Sent, v.Answered) {
		return
	}
	class.Late++
	end := life.may.endBefore(v.Sent)
	late := v.Sent.Sub(end)
	if !end.IsZero() {
		class.MaxLate = max(class.MaxLate, float64(late)/float64(time.Millisecond))
	}
	if !life.may.touch(v.Sent.Add(-v.Late), v.Answered) {
		o.violate(LateAcceptance, v.Key, v.Version, v.Answered, "%s accepted it %s after its end, and may for %s", v.Verifier, late, v.Late)
	}
}

// Certain tells whether a version is accepted for certain from now on for at
// least as long as given, if nobody changes the key.
func (o *Oracle) Certain(name string, number int, now time.Time, least time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.key(name).version(number).must.cover(now, now.Add(least))
}

// Summary is what was seen.
type Summary struct {
	Violations []Violation       `json:"violations"`
	ByKind     map[Kind]int      `json:"violations_by_kind"`
	Classes    map[string]*Class `json:"verifiers"`
	Rotations  int               `json:"rotations"`
	// Unknown counts calls whose outcome was not known at first.
	Unknown int `json:"unknown_outcomes"`
	// Fetches are readings of keys by clients, and InTime those verifications
	// in which a client used a version within the time that it was told.
	Fetches  int `json:"fetches"`
	InTime   int `json:"in_time"`
	Keys     int `json:"keys"`
	Versions int `json:"versions"`
}

// Verifications is how many there were, of all classes.
func (s Summary) Verifications() int {
	n := 0
	for _, c := range s.Classes {
		n += c.Verifications
	}
	return n
}

// Add adds violations that were found elsewhere.
func (o *Oracle) Add(vs ...Violation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, v := range vs {
		o.key(v.Key)
		o.violate(v.Kind, v.Key, v.Version, v.Time, "%s", v.Detail)
	}
}

// Summary returns what was seen so far.
func (o *Oracle) Summary() Summary {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := Summary{
		Violations: slices.Clone(o.violations), ByKind: map[Kind]int{}, Classes: map[string]*Class{},
		Rotations: o.rotations, Unknown: o.unknown, Fetches: o.fetches, InTime: o.inTime, Keys: len(o.keys),
	}
	for _, kind := range Kinds {
		s.ByKind[kind] = o.byKind[kind]
	}
	for name, class := range o.classes {
		c := *class
		c.Codes = maps.Clone(class.Codes)
		s.Classes[name] = &c
	}
	for _, k := range o.keys {
		s.Versions += len(k.versions)
	}
	return s
}
