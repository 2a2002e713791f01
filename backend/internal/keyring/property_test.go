// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// fact is something that befell a version.
type fact struct {
	what  string
	until time.Duration
}

const always = time.Duration(1<<63 - 1)

// twin is a key as one would keep it on paper: for each version what befell
// it, in order. It knows no states and records no retirements; it was told
// what was asked, never what the key made of it.
type twin struct {
	facts    map[int][]fact
	expire   map[int]time.Duration
	active   int // 0: none
	pending  int
	plan     time.Duration // of the pending version: its overlap
	planAt   time.Duration // and its promotion
	forced   bool          // somebody left the key without an active version
	disabled bool
	seen     time.Duration
	p        keyring.Policy
}

func (w *twin) befall(version int, what string, until time.Duration) {
	w.facts[version] = append(w.facts[version], fact{what, until})
}

// until is when version stops being accepted if nothing else befalls it.
func (w *twin) until(version int) time.Duration {
	until := always
	for _, f := range w.facts[version] {
		switch f.what {
		case "made", "activated":
			until = always
		case "superseded", "extended":
			until = f.until
		case "retired":
			until = min(until, f.until)
		case "ended":
			return 0
		}
	}
	if expire, aged := w.expire[version]; aged {
		until = min(until, expire)
	}
	return until
}

func (w *twin) accepted(at time.Duration) (versions []int) {
	at = max(at, w.seen)
	for version := range w.facts {
		if at < w.until(version) {
			versions = append(versions, version)
		}
	}
	slices.Sort(versions)
	return versions
}

func (w *twin) activate(version int, now time.Duration) {
	w.befall(version, "activated", 0)
	if _, before := w.expire[version]; !before && w.p.VersionTTL > 0 {
		w.expire[version] = now + w.p.VersionTTL
	}
	if version == w.pending {
		w.pending = 0
	}
	w.active, w.forced = version, false
}

// supersede gives the active version the overlap that clients are told, or the
// maximum where drain is waited for.
func (w *twin) supersede(now, overlap time.Duration) {
	if w.active == 0 {
		return
	}
	if w.p.ExtendUntilDrained && overlap > 0 {
		overlap = w.p.MaxOverlap
	}
	w.befall(w.active, "superseded", now+overlap)
	w.active = 0
}

// age forgets an active version whose age is over.
func (w *twin) age(now time.Duration) {
	if w.active != 0 && w.until(w.active) <= now {
		w.active = 0
	}
}

// machine plays random transitions on a key and on its twin.
type machine struct {
	*rapid.T
	k     *keyring.Key
	w     *twin
	clock time.Duration
	made  int
}

func (m *machine) now() time.Duration { return max(m.clock, m.w.seen) }

func start(t *rapid.T) *machine {
	p := keyring.Policy{
		MaxOverlap:         48 * time.Hour,
		ExtendUntilDrained: rapid.Bool().Draw(t, "extend_until_drained"),
		RollbackWindow:     rapid.SampledFrom([]time.Duration{0, time.Hour, 24 * time.Hour}).Draw(t, "rollback_window"),
		VersionTTL:         rapid.SampledFrom([]time.Duration{0, 0, 60 * time.Hour}).Draw(t, "version_ttl"),
		MaxAccepted:        rapid.IntRange(1, 4).Draw(t, "max_accepted_versions"),
	}
	p.MaxVersions = rapid.IntRange(p.MaxAccepted, 6).Draw(t, "max_versions")
	k := keyring.Create(keyring.Key{ID: "EXAMPLEkey01", Name: "billing"}, at(0), p, material(1))
	w := &twin{facts: map[int][]fact{}, expire: map[int]time.Duration{}, p: p}
	w.befall(1, "made", 0)
	w.activate(1, 0)
	return &machine{T: t, k: k, w: w, made: 1}
}

func (m *machine) drawVersion() int { return rapid.IntRange(1, m.made).Draw(m.T, "version") }

func (m *machine) drawOverlap() time.Duration {
	return rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 24 * time.Hour, 48 * time.Hour}).Draw(m.T, "overlap")
}

// apply commits the outcome of a transition, and reports whether there was a
// change that the twin has to follow.
func (m *machine) apply(next *keyring.Key, err error, before []byte) bool {
	if after := m.encode(m.k); string(after) != string(before) {
		m.Fatalf("a transition changed its receiver from\n%s\nto\n%s", before, after)
	}
	if err != nil || next == m.k {
		return false
	}
	m.finalStaysFinal(m.k, next)
	m.w.seen = m.now()
	m.w.age(m.w.seen)
	m.k = next
	return true
}

func (m *machine) encode(k *keyring.Key) []byte {
	data, err := json.Marshal(k)
	if err != nil {
		m.Fatal(err)
	}
	return data
}

func (m *machine) finalStaysFinal(before, after *keyring.Key) {
	for _, old := range before.Versions {
		v, kept := after.Version(old.Number)
		switch {
		case old.State == compromised && (!kept || v.State != compromised):
			m.Fatalf("version %d was compromised and is %s (kept: %t)", old.Number, v.State, kept)
		case old.State == revoked && kept && !v.State.Final():
			m.Fatalf("version %d was revoked and is %s", old.Number, v.State)
		}
	}
}

func (m *machine) rotate() {
	o := keyring.RotateOptions{
		Overlap: m.drawOverlap(), Force: rapid.Bool().Draw(m.T, "force"),
		ActivationDelay: rapid.SampledFrom([]time.Duration{0, 0, time.Hour}).Draw(m.T, "delay"),
	}
	w := m.w
	before := m.encode(m.k)
	next, err := m.k.Rotate(at(m.clock), w.p, material(m.made+1), o)
	now := m.now()
	accepted := len(w.accepted(now))
	alive := w.active != 0 && w.until(w.active) > now
	if !alive {
		o.ActivationDelay = 0
	}
	cutOver := alive && o.Overlap == 0 && o.ActivationDelay == 0
	if o.Force { // all that retire can be made to
		accepted = 0
		if alive {
			accepted = 1
		}
	}
	if want := !w.disabled && w.pending == 0 && (cutOver || accepted < w.p.MaxAccepted); want != (err == nil) {
		m.Fatalf("rotate: %v, but the twin would do it: %t", err, want)
	}
	// What was forced out to make room is the one thing that the key decides.
	forced := m.forcedOut(next)
	if !m.apply(next, err, before) {
		return
	}
	for _, version := range forced {
		w.befall(version, "retired", now)
	}
	m.made++
	w.befall(m.made, "made", 0)
	if o.ActivationDelay > 0 {
		w.pending, w.plan, w.planAt = m.made, o.Overlap, now+o.ActivationDelay
		if expire, aged := w.expire[w.active]; aged {
			w.planAt = min(w.planAt, expire-min(max(o.Overlap, 3*time.Minute), (expire-now)/2))
		}
		return
	}
	w.supersede(now, o.Overlap)
	w.activate(m.made, now)
}

// forcedOut lists what next says was retired early to make room, oldest first,
// and checks that it was the oldest that went.
func (m *machine) forcedOut(next *keyring.Key) (versions []int) {
	if next == nil {
		return nil
	}
	spared := false
	for _, version := range m.w.accepted(m.now()) {
		v, kept := next.Version(version)
		switch {
		case kept && v.Reason == "retired early to make room" && !spared, !kept && !spared:
			versions = append(versions, version)
		case kept && v.State == retiring && v.Number != m.w.active:
			spared = true
		case kept && v.Reason == "retired early to make room":
			m.Fatalf("version %d was retired to make room, and an older one was spared", version)
		}
	}
	return versions
}

func (m *machine) promote() {
	before := m.encode(m.k)
	next, err := m.k.Promote(at(m.clock), m.w.p, 0)
	if want := m.w.pending != 0 && !m.w.disabled; want != (err == nil) {
		m.Fatalf("promote: %v, but the twin would do it: %t", err, want)
	}
	if m.apply(next, err, before) {
		m.w.supersede(m.w.seen, m.w.plan)
		m.w.activate(m.w.pending, m.w.seen)
	}
}

func (m *machine) rollback() {
	w, version := m.w, m.drawVersion()
	o := keyring.RollbackOptions{
		Version: version, Overlap: m.drawOverlap(), RevokeNewer: rapid.Bool().Draw(m.T, "revoke_newer"), Force: rapid.Bool().Draw(m.T, "force"),
	}
	before := m.encode(m.k)
	next, err := m.k.Rollback(at(m.clock), w.p, o)
	forced := m.forcedOut(next)
	if !m.apply(next, err, before) {
		return
	}
	if !o.RevokeNewer && o.Force {
		for _, n := range forced {
			if n != w.pending && n != w.active {
				w.befall(n, "retired", w.seen)
			}
		}
	}
	if w.pending != 0 {
		w.befall(w.pending, "retired", 0)
		w.pending = 0
	}
	if o.RevokeNewer {
		for n := version + 1; n <= m.made; n++ {
			w.befall(n, "ended", 0)
		}
		if w.active != 0 {
			w.befall(w.active, "ended", 0)
		}
		w.active = 0
	}
	w.supersede(w.seen, o.Overlap)
	w.activate(version, w.seen)
}

func (m *machine) extend() {
	w, version, by := m.w, m.drawVersion(), m.drawOverlap()
	before := m.encode(m.k)
	was := w.until(version)
	next, err := m.k.Extend(at(m.clock), w.p, version, by)
	if m.apply(next, err, before) {
		if was > w.seen { // it waits for its drain longer than for this
			by = max(by, was-w.seen)
		}
		w.befall(version, "extended", w.seen+by)
		if w.until(version) < was {
			m.Fatalf("extend moved the end of version %d from %s to %s", version, was, w.until(version))
		}
	}
}

func (m *machine) retire() {
	version, check := m.drawVersion(), neverDrained
	if rapid.Bool().Draw(m.T, "drained") {
		check = drained
	}
	before := m.encode(m.k)
	next, err := m.k.Retire(at(m.clock), version, check, rapid.Bool().Draw(m.T, "force"))
	if m.apply(next, err, before) {
		m.w.befall(version, "retired", m.w.seen)
	}
}

func (m *machine) revoke() {
	w := m.w
	o := keyring.RevokeOptions{
		Version: m.drawVersion(), All: rapid.IntRange(0, 9).Draw(m.T, "all") == 0,
		Compromised: rapid.Bool().Draw(m.T, "compromised"), Force: rapid.Bool().Draw(m.T, "force"),
	}
	if rapid.Bool().Draw(m.T, "rotate") {
		successor := material(m.made + 1)
		o.Successor = &successor
	}
	before := m.encode(m.k)
	next, err := m.k.Revoke(at(m.clock), w.p, o)
	if _, kept := m.k.Version(o.Version); err != nil && (o.Successor != nil || o.Force) && (kept || o.All) {
		m.Fatalf("an emergency failed: %v", err)
	}
	if !m.apply(next, err, before) {
		return
	}
	former := w.active
	for n := range m.made {
		if version := n + 1; o.All || version == o.Version {
			w.befall(version, "ended", 0)
			if version == w.pending {
				w.pending = 0
			}
			if version == w.active {
				w.active = 0
			}
		}
	}
	switch {
	case w.active != 0 || former == 0 && (!o.All || o.Successor == nil):
		w.forced = w.forced || o.All
	case o.Successor == nil:
		w.forced = true
	case w.pending != 0:
		w.activate(w.pending, w.seen)
	default:
		m.made++
		w.befall(m.made, "made", 0)
		w.activate(m.made, w.seen)
	}
}

func (m *machine) tick() {
	w, check := m.w, neverDrained
	if rapid.Bool().Draw(m.T, "drained") {
		check = drained
	}
	before := m.encode(m.k)
	was := m.k
	next := m.k.Advance(at(m.clock), w.p, check)
	if !m.apply(next, nil, before) {
		return
	}
	w.age(w.seen)
	if w.pending != 0 && !w.disabled && !w.forced && (w.planAt <= w.seen || w.active == 0) {
		w.supersede(w.seen, w.plan)
		w.activate(w.pending, w.seen)
	}
	if check(1).Drained {
		for _, v := range was.Versions {
			if v.State == retiring && !v.OverlapEnds.After(t0.Add(w.seen)) {
				w.befall(v.Number, "retired", w.seen)
			}
		}
	}
	if due := m.k.NextDue(t0.Add(m.clock), w.p, neverDrained); !due.IsZero() && !due.After(t0.Add(w.seen)) {
		m.Fatalf("right after a tick at %s the key is due at %s", t0.Add(w.seen), due)
	}
}

func (m *machine) toggle() {
	m.w.disabled = !m.w.disabled
	m.k = m.k.Clone()
	m.k.Disabled = m.w.disabled
}

func (m *machine) restart() {
	var k keyring.Key
	if err := json.Unmarshal(m.encode(m.k), &k); err != nil {
		m.Fatal(err)
	}
	m.k = &k
}

func (m *machine) moveClock() {
	if instants := m.instants(); rapid.Bool().Draw(m.T, "to an instant") {
		m.clock = rapid.SampledFrom(instants).Draw(m.T, "clock")
		return
	}
	m.clock += time.Duration(rapid.Int64Range(-5*int64(time.Hour), 30*int64(time.Hour)).Draw(m.T, "by"))
}

// instants are now and a millisecond around every deadline to come, and the
// far future.
func (m *machine) instants() []time.Duration {
	instants := []time.Duration{m.clock, m.clock + 10000*time.Hour}
	add := func(d time.Duration) {
		if d > m.clock && d < always {
			instants = append(instants, d-time.Millisecond, d, d+time.Millisecond)
		}
	}
	for version := range m.w.facts {
		add(m.w.until(version))
	}
	for _, v := range m.k.Versions {
		for _, at := range []time.Time{v.PromoteAt, v.OverlapEnds, v.RestorableUntil, v.ExpireTime} {
			if !at.IsZero() {
				add(at.Sub(t0))
			}
		}
	}
	slices.Sort(instants)
	return instants
}

// check holds after every step.
func (m *machine) check() {
	m.checkShape()
	for _, when := range m.instants() {
		want, got := m.w.accepted(when), m.k.Accepted(t0.Add(when))
		if !slices.Equal(want, got) {
			m.Fatalf("accepted after %s: %v, the twin says %v", when, got, want)
		}
		if len(got) > m.w.p.MaxAccepted {
			m.Fatalf("accepted after %s: %v, more than %d", when, got, m.w.p.MaxAccepted)
		}
		aged := m.w.p.VersionTTL > 0 && (m.w.active == 0 || m.w.until(m.w.active) <= max(when, m.w.seen))
		if len(got) == 0 && !m.w.forced && !aged {
			m.Fatalf("a gap: nothing is accepted after %s", when)
		}
		m.checkVerdicts(when)
	}
	m.checkQuietUntilDue()
}

func (m *machine) checkShape() {
	count := map[keyring.State]int{}
	for i, v := range m.k.Versions {
		count[v.State]++
		if i > 0 && v.Number <= m.k.Versions[i-1].Number {
			m.Fatalf("numbers do not ascend: %d after %d", v.Number, m.k.Versions[i-1].Number)
		}
		if keep := v.State == revoked || v.State == compromised; keep && len(v.Sealed) > 0 {
			m.Fatalf("version %d is %s, and its plaintext is kept", v.Number, v.State)
		}
	}
	if m.k.Latest() != m.made {
		m.Fatalf("the latest version is %d, want %d", m.k.Latest(), m.made)
	}
	if count[pending] > 1 || count[active] > 1 {
		m.Fatalf("%d pending, %d active", count[pending], count[active])
	}
	if a, ok := m.k.Active(); ok && a.Number != m.w.active {
		m.Fatalf("version %d is active, the twin says %d", a.Number, m.w.active)
	} else if !ok && m.w.active != 0 || !ok && !m.w.forced && m.w.p.VersionTTL == 0 {
		m.Fatalf("no version is active, the twin says %d", m.w.active)
	}
	if m.k.Dormant() != m.w.forced {
		m.Fatalf("dormant %t, the twin says %t", m.k.Dormant(), m.w.forced)
	}
}

// checkVerdicts compares what is answered at an instant before and after a
// tick at that instant. Only a promotion may show.
func (m *machine) checkVerdicts(when time.Duration) {
	after := m.k.Advance(at(when), m.w.p, neverDrained)
	promoted := m.w.pending != 0 && after.Latest() == m.w.pending && func() bool { _, still := after.Pending(); return !still }()
	edge := m.edge()
	for _, v := range m.k.Versions {
		q := record.Query{Digest: v.Digest}
		a, b := m.k.Verify(t0.Add(when), keyring.Limits{}, q), after.Verify(t0.Add(when), keyring.Limits{}, q)
		valid := slices.Contains(m.w.accepted(when), v.Number) && !m.w.disabled
		if valid != (a.Code == record.CodeValid) {
			m.Fatalf("version %d after %s is %s, the twin says valid: %t", v.Number, when, a.Code, valid)
		}
		if !v.Imported && !reflect.DeepEqual(edge.Verify(t0.Add(when), q), a) {
			m.Fatalf("version %d after %s: %+v, and %+v by a verifier elsewhere", v.Number, when, a, edge.Verify(t0.Add(when), q))
		}
		if promoted && v.Number == m.w.active {
			continue // its overlap has just begun
		}
		if _, kept := after.Version(v.Number); kept && a.Code != b.Code {
			m.Fatalf("version %d after %s: %s before the tick, %s after", v.Number, when, a.Code, b.Code)
		}
	}
}

// edge is what a verifier elsewhere knows of the key, by way of JSON.
func (m *machine) edge() *record.Record {
	data, err := json.Marshal(m.k.VerifierRecord(keyring.Limits{}, nil))
	if err != nil {
		m.Fatal(err)
	}
	r := &record.Record{}
	if err := json.Unmarshal(data, r); err != nil {
		m.Fatal(err)
	}
	return r
}

// checkQuietUntilDue: before NextDue a tick has nothing to do.
func (m *machine) checkQuietUntilDue() {
	due := m.k.NextDue(t0.Add(m.clock), m.w.p, neverDrained)
	quiet := 10000 * time.Hour
	if !due.IsZero() {
		quiet = due.Sub(t0) - time.Millisecond
	}
	if quiet <= m.now() {
		return
	}
	if next := m.k.Advance(at(quiet), m.w.p, neverDrained); next != m.k {
		m.Fatalf("due at %s, and a tick at %s had something to do:\n%s\n%s", due, t0.Add(quiet), m.encode(m.k), m.encode(next))
	}
}

// TestKeyBehavesAsItsTwin plays random transitions, ticks and moves of the
// clock, backwards too. After each step it looks at every instant at which
// something changes.
func TestKeyBehavesAsItsTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := start(t)
		m.check()
		step := func(do func()) func(*rapid.T) {
			return func(*rapid.T) { do() }
		}
		t.Repeat(map[string]func(*rapid.T){
			"rotate": step(m.rotate), "rotate again": step(m.rotate), "promote": step(m.promote), "rollback": step(m.rollback),
			"extend": step(m.extend), "retire": step(m.retire), "revoke": step(m.revoke), "tick": step(m.tick), "toggle": step(m.toggle),
			"restart": step(m.restart), "move the clock": step(m.moveClock), "move it again": step(m.moveClock),
			"": step(m.check),
		})
	})
}

// TestScopesIntersectAsTheirMeaning: a scope is granted by the intersection
// exactly where both sides grant it.
func TestScopesIntersectAsTheirMeaning(t *testing.T) {
	t.Parallel()
	scope := rapid.StringMatching(`[ab]{0,3}`)
	granted := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
		s := scope.Draw(t, "scope")
		if s == "" || rapid.Bool().Draw(t, "wild") {
			s += "*"
		}
		return s
	}), 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		a, b, s := granted.Draw(t, "a"), granted.Draw(t, "b"), scope.Draw(t, "asked")
		both := record.Intersect(a, b)
		want := record.CoversAll(a, []string{s}) && record.CoversAll(b, []string{s})
		if got := record.CoversAll(both, []string{s}); got != want {
			t.Fatal(fmt.Sprintf("%v and %v give %v, which grants %q: %t", a, b, both, s, got))
		}
	})
}
