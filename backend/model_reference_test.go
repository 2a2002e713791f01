// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The reference model is the mount as one would keep it on paper: what the
// design says of each request, written down naively, with no storage, no index
// and no background work. It knows of a key only what was asked and answered.

// refRole is what a role lays down.
type refRole struct {
	overlap, maxOverlap, rollback, delay, ttl time.Duration
	// period is that of automatic rotation, 0 for none.
	period         time.Duration
	accepted, keep int
	drain          bool
	scopes         []string
	// daily is the time of day at which keys rotate by a schedule, 0 for none,
	// jitter the percent of the period by which that may be later, and manual
	// stops it.
	daily  time.Duration
	jitter int
	manual bool
	// late are the scopes left past the end of an overlap, nil for all, ranges
	// what bounds the source, and secret tells that no plaintext is kept.
	late, ranges []string
	secret       bool
	// claimable tells that somebody could claim a new key just now.
	claimable bool
}

// wholeDay is the interval of the schedules that the model knows.
const wholeDay = 24 * time.Hour

func (r refRole) automatic() bool { return (r.period > 0 || r.daily > 0) && !r.manual }

// unattended tells whether a rotation that nobody asked for leaves its key with
// somebody who can get it.
func (r refRole) unattended() bool { return !r.secret || r.claimable }

// next is the earliest time at which the rotation after that of last is due:
// jitter only makes it later. Times of schedules are whole seconds.
func (r refRole) next(last time.Time) time.Time {
	last = last.Truncate(time.Second)
	if r.daily == 0 {
		return last.Add(r.period)
	}
	next := last.Truncate(wholeDay).Add(r.daily)
	if !next.After(last) {
		next = next.Add(wholeDay)
	}
	return next
}

// refVersion is one version. state is what was last recorded of it; what time
// has done since follows from the other fields.
type refVersion struct {
	number   int
	token    string // "" where nobody has seen it
	state    string
	readable bool // its plaintext is stored
	handover bool // it is stored only until it is told, for whoever claims it
	by       int  // what superseded it

	activated, promoteAt      time.Time
	superseded, overlapEnds   time.Time
	until, expire, restorable time.Time
	ended                     time.Time
	plannedOverlap, window    time.Duration
	narrowed, plannedNarrowed []string
	used, refused             int
	lastUsed                  time.Time
}

// refKey is one key.
type refKey struct {
	id         string // "" until it is first told of
	name, role string
	disabled   bool
	scopes     []string // nil: those of the role
	ranges     []string
	note       string // custom_metadata of the name "note", "" for none
	imported   string // the token that it was made from
	versions   []*refVersion
	dormant    bool // ended by force
	leased     bool
	maxExpire  time.Time
	// recorded is the time below which the key's does not run.
	recorded, rotated time.Time
	requests          map[string]refRequest
	// job is the last rotation of the whole role that has rotated it.
	job int
	// waits tells that a rotation was due when the role's schedule was changed:
	// one that was put off is judged anew only by the job that the change has
	// started, which comes after the keys that are due.
	waits bool
	// owed are the versions that have become active and are still to be told.
	owed []int
}

type refRequest struct {
	asked   string
	version int
	at      time.Time
}

// reference is the whole mount.
type reference struct {
	roles map[string]refRole
	keys  map[string]*refKey // by name; leased ones by id
	// buried are the tokens of compromised versions of deleted keys.
	buried map[string]bool
	// imports tells that the mount has seen an import.
	imports bool
	// leakRate is that of the configuration.
	leakRate int
	// hook is the one webhook, nil for none.
	hook *refHook
	// claims are the codes of the webhook, delivered or on their way.
	claims []refClaim
}

// refHook is a webhook.
type refHook struct {
	enabled         bool
	events, deliver string
	roles           []string // whose keys it is told of, none for all
}

// wants tells whether the webhook is told that a version of a role's key has become
// active.
func (h *refHook) wants(role string) bool {
	return h != nil && h.events != "key.*" && (len(h.roles) == 0 || slices.Contains(h.roles, role))
}

// claims tells whether it hands over keys, too.
func (h *refHook) claims(role string) bool {
	return h.wants(role) && h.enabled && h.deliver == "claim"
}

// misses tells whether nobody hands over the keys of the role t any more once the
// webhook is next.
func (m *reference) misses(next *refHook) bool {
	return m.hook.claims("t") && !next.claims("t") && m.roles["t"].automatic()
}

// refClaim is the message that a version has become active, and the code in it.
type refClaim struct {
	id      string // of the key
	version int
	life    time.Duration
	// handed tells that the code is good for the key though that is not stored,
	// and passed that the version was superseded before it was told: whether a code
	// comes depends on when it was copied in between, and is not followed.
	handed, passed bool
	// message is its id, and code the code in it, "" before they have come, or
	// where it has come without a code.
	message, code string
	expires       time.Time
	// used tells that it was redeemed, and reused that somebody has tried again.
	used, reused bool
	// unsure is the process, counted from 1, in which a redemption failed: until
	// that has ended it has not counted.
	unsure int
}

func (m *reference) clone() *reference {
	c := &reference{roles: maps.Clone(m.roles), keys: map[string]*refKey{}, buried: maps.Clone(m.buried), imports: m.imports, leakRate: m.leakRate, claims: slices.Clone(m.claims)}
	if m.hook != nil {
		hook := *m.hook
		c.hook = &hook
	}
	for name, k := range m.keys {
		c.keys[name] = k.clone()
	}
	return c
}

func (k *refKey) clone() *refKey {
	c := *k
	c.versions = nil
	for _, v := range k.versions {
		one := *v
		c.versions = append(c.versions, &one)
	}
	c.requests, c.owed = maps.Clone(k.requests), slices.Clone(k.owed)
	return &c
}

// role is what the role of this name lays down now.
func (m *reference) role(name string) refRole {
	r := m.roles[name]
	r.claimable = m.hook.claims(name)
	return r
}

// now is the time of the key: never below what was recorded.
func (k *refKey) now(t time.Time) time.Time {
	if t.Before(k.recorded) {
		return k.recorded
	}
	return t
}

func soonest(t, limit time.Time) time.Time {
	if !limit.IsZero() && limit.Before(t) {
		return limit
	}
	return t
}

// over is when time alone ends the version, zero for never.
func (v *refVersion) over() time.Time {
	switch v.state {
	case "pending", "active":
		return v.expire
	case "retiring":
		return soonest(v.until, v.expire)
	}
	return time.Time{}
}

func (v *refVersion) at(now time.Time) string {
	if end := v.over(); !end.IsZero() && !now.Before(end) {
		return "retired"
	}
	return v.state
}

func (v *refVersion) accepted(now time.Time) bool {
	return slices.Contains([]string{"pending", "active", "retiring"}, v.at(now))
}

func (v *refVersion) final() bool { return v.state == "revoked" || v.state == "compromised" }

// agedOut tells of a retired version whether its age or its lease has ended it.
func (v *refVersion) agedOut(now time.Time) bool {
	end := v.ended
	if over := v.over(); !over.IsZero() {
		end = over
	}
	expired := !v.expire.IsZero() && !end.Before(v.expire)
	return v.at(now) == "retired" && expired && (v.superseded.IsZero() || end.Before(v.overlapEnds))
}

func (v *refVersion) restorableAt(now time.Time) bool {
	end := v.restorable
	if v.state == "retiring" {
		end = soonest(soonest(v.until, v.expire).Add(v.window), v.expire)
	}
	return v.at(now) == "retired" && now.Before(end) && (v.expire.IsZero() || now.Before(v.expire))
}

func (v *refVersion) retire(at time.Time) {
	v.state, v.ended = "retired", at
	if v.until.IsZero() || v.until.After(at) {
		v.until = at
	}
	v.restorable, v.handover = time.Time{}, false
	if !v.activated.IsZero() && v.window > 0 && (v.expire.IsZero() || at.Before(v.expire)) {
		v.restorable = soonest(at.Add(v.window), v.expire)
	} else {
		v.readable = false
	}
}

func (v *refVersion) end(state string, at time.Time) {
	if v.ended.IsZero() || v.ended.After(at) {
		v.ended = at
	}
	v.state, v.readable, v.handover, v.restorable = state, false, false, time.Time{}
	if v.until.After(at) {
		v.until = at
	}
}

// settle records what time has ended by now.
func (k *refKey) settle(now time.Time) {
	for _, v := range k.versions {
		if end := v.over(); !end.IsZero() && !now.Before(end) {
			v.retire(end)
		}
		if v.state == "retired" && !now.Before(v.restorable) {
			v.readable = false
		}
	}
	k.recorded = now
}

func (k *refKey) version(number int) *refVersion {
	for _, v := range k.versions {
		if v.number == number {
			return v
		}
	}
	return nil
}

func (k *refKey) in(state string) *refVersion {
	for _, v := range k.versions {
		if v.state == state {
			return v
		}
	}
	return nil
}

func (k *refKey) latest() int { return k.versions[len(k.versions)-1].number }

func (k *refKey) acceptedAt(now time.Time) (n int) {
	for _, v := range k.versions {
		if v.accepted(now) {
			n++
		}
	}
	return n
}

// makeRoom retires the oldest retiring versions by force until one more fits.
func (k *refKey) makeRoom(now time.Time, r refRole, force bool) bool {
	for k.acceptedAt(now)+1 > r.accepted {
		i := slices.IndexFunc(k.versions, func(v *refVersion) bool { return v.at(now) == "retiring" })
		if i < 0 || !force {
			return false
		}
		k.versions[i].retire(now)
		k.versions[i].overlapEnds = soonest(k.versions[i].overlapEnds, now)
	}
	return true
}

func (k *refKey) add(r refRole) *refVersion {
	v := &refVersion{number: 1, state: "pending", readable: !r.secret, handover: r.secret && r.claimable && !k.leased}
	if len(k.versions) > 0 {
		v.number = k.latest() + 1
	}
	k.versions = append(k.versions, v)
	return v
}

func (k *refKey) activate(now time.Time, r refRole, v *refVersion) {
	if v.activated.IsZero() && r.ttl > 0 && !k.leased {
		v.expire = now.Add(r.ttl)
	}
	*v = refVersion{
		number: v.number, token: v.token, state: "active", readable: v.readable, handover: v.handover, activated: now, expire: v.expire, window: v.window,
		used: v.used, refused: v.refused, lastUsed: v.lastUsed,
	}
	k.dormant = false
	k.owed = append(k.owed, v.number)
}

func (k *refKey) supersede(now time.Time, r refRole, v *refVersion, by int, overlap time.Duration, narrowed []string) {
	v.superseded, v.by, v.window, v.narrowed = now, by, r.rollback, narrowed
	v.overlapEnds = now.Add(overlap)
	v.until = v.overlapEnds
	if k.leased {
		v.window = 0
		v.until = soonest(v.until, k.maxExpire)
	} else {
		if r.drain && overlap > 0 && r.maxOverlap > overlap {
			v.until = now.Add(r.maxOverlap)
		}
		v.until = soonest(v.until, v.expire)
	}
	v.overlapEnds = soonest(v.overlapEnds, v.until)
	if !v.until.After(now) {
		v.retire(v.until)
		return
	}
	v.state = "retiring"
}

func (k *refKey) promote(now time.Time, r refRole) {
	v := k.in("pending")
	if active := k.in("active"); active != nil {
		k.supersede(now, r, active, v.number, v.plannedOverlap, v.plannedNarrowed)
	}
	k.activate(now, r, v)
}

// prune forgets the oldest ended versions beyond what is kept.
func (k *refKey) prune(now time.Time, r refRole) {
	over := len(k.versions) - r.keep
	last := k.latest()
	k.versions = slices.DeleteFunc(k.versions, func(v *refVersion) bool {
		goes := over > 0 && v.number != last && (v.state == "retired" || v.state == "revoked") && !now.Before(v.restorable)
		if goes {
			over--
		}
		return goes
	})
}

// lastChance is when a key has to rotate so that its active version, whose age
// ends it, is in its overlap by then. final is when even a full window does not
// keep it from that.
func (k *refKey) lastChance(r refRole) (last, final time.Time) {
	active := k.in("active")
	if active == nil || active.expire.IsZero() || k.in("pending") != nil {
		return time.Time{}, time.Time{}
	}
	interval := r.period
	if r.daily > 0 {
		interval = wholeDay
	}
	life := active.expire.Sub(active.activated)
	lead := min(max(r.overlap, 3*time.Minute)+r.delay, max(life/2, life-interval))
	return active.expire.Add(-lead), active.expire.Add(-min(3*time.Minute, life/2))
}

// overdue tells whether the schedule wants the key rotated, and due whether it
// may be rotated by itself.
func (k *refKey) overdue(t time.Time, r refRole) bool {
	now := k.now(t)
	last, _ := k.lastChance(r)
	return r.automatic() && (!now.Before(r.next(k.rotated)) || k.in("active") == nil || !last.IsZero() && !now.Before(last))
}

func (k *refKey) due(t time.Time, r refRole) bool {
	return r.automatic() && r.unattended() && !k.disabled && !k.dormant && !k.leased && (k.waits || k.overdue(t, r))
}

// rotation is what is asked of a rotation; nil follows the role.
type rotation struct {
	overlap, delay *time.Duration
	narrowed       []string
	force          bool
	// room is how many versions more than the role says are accepted.
	room int
}

// rotate makes the next version. It tells whether that is allowed.
func (k *refKey) rotate(t time.Time, r refRole, o rotation) (*refVersion, bool) {
	now := k.now(t)
	k.settle(now)
	overlap, delay := r.overlap, r.delay
	if o.overlap != nil {
		overlap = *o.overlap
		if overlap == 0 {
			delay = 0
		}
	}
	if o.delay != nil {
		delay = *o.delay
	}
	r.accepted += o.room
	active := k.in("active")
	if active == nil || k.leased {
		delay = 0
	}
	if k.disabled || k.leased && k.acceptedAt(now) == 0 || k.in("pending") != nil || overlap > r.maxOverlap {
		return nil, false
	}
	if cutOver := active != nil && delay == 0 && overlap == 0; !cutOver && !k.makeRoom(now, r, o.force) {
		return nil, false
	}
	v := k.add(r)
	k.rotated, k.waits = now, false
	if delay > 0 {
		v.promoteAt, v.plannedOverlap, v.plannedNarrowed = now.Add(delay), overlap, o.narrowed
		if !active.expire.IsZero() {
			left := active.expire.Sub(now)
			v.promoteAt = soonest(v.promoteAt, active.expire.Add(-min(max(overlap, 3*time.Minute), left/2)))
		}
	} else {
		if active != nil {
			k.supersede(now, r, active, v.number, overlap, o.narrowed)
		}
		k.activate(now, r, v)
	}
	k.prune(now, r)
	return v, true
}

func (k *refKey) rollback(t time.Time, r refRole, number int, revokeNewer, force bool) bool {
	now := k.now(t)
	k.settle(now)
	former := k.in("active")
	if k.disabled {
		return false
	}
	var target *refVersion
	if number != 0 {
		target = k.version(number)
	} else {
		for _, v := range slices.Backward(k.versions) {
			if former != nil && v.number >= former.number || v.state == "pending" {
				continue
			}
			if target == nil {
				target = v
			}
			if v.state == "retiring" || v.restorableAt(now) {
				target = v
				break
			}
		}
	}
	if target == nil || target.final() || target.state == "active" || target.state == "pending" ||
		!target.expire.IsZero() && !now.Before(target.expire) || target.state == "retired" && !target.restorableAt(now) || !target.readable && !force {
		return false
	}
	if pending := k.in("pending"); pending != nil && !revokeNewer {
		pending.retire(now)
	}
	if revokeNewer {
		for _, v := range k.versions {
			if (v == former || v.number > target.number) && !v.final() {
				v.end("revoked", now)
			}
		}
	}
	leaves := former != nil && (revokeNewer || r.overlap == 0)
	if target.state == "retired" && !leaves && !k.makeRoom(now, r, force) {
		return false
	}
	if former != nil && former.state == "active" {
		k.supersede(now, r, former, target.number, r.overlap, nil)
	}
	k.activate(now, r, target)
	k.rotated, k.waits = now, false
	k.prune(now, r)
	return true
}

func (k *refKey) candidate(number int, fits func(*refVersion) bool) *refVersion {
	if number != 0 {
		return k.version(number)
	}
	var found *refVersion
	for _, v := range k.versions {
		if fits(v) {
			if found != nil {
				return nil
			}
			found = v
		}
	}
	return found
}

func (k *refKey) extend(t time.Time, r refRole, number int, by time.Duration) bool {
	now := k.now(t)
	k.settle(now)
	v := k.candidate(number, func(v *refVersion) bool { return v.state == "retiring" || v.restorableAt(now) })
	if v == nil || v.final() || v.state == "active" || v.state == "pending" || v.state == "retired" && !v.restorableAt(now) {
		return false
	}
	end := now.Add(by)
	limit := soonest(v.superseded.Add(r.maxOverlap), v.expire)
	if end.After(limit) || !end.After(now) || v.state == "retiring" && !end.After(v.overlapEnds) {
		return false
	}
	if v.state == "retired" {
		if !k.makeRoom(now, r, false) {
			return false
		}
		v.until = time.Time{}
	}
	v.state, v.ended, v.restorable, v.overlapEnds = "retiring", time.Time{}, time.Time{}, end
	if v.until.Before(end) {
		v.until = end
	}
	return true
}

func (k *refKey) retireNow(t time.Time, number int) bool {
	now := k.now(t)
	k.settle(now)
	v := k.candidate(number, func(v *refVersion) bool { return v.state == "retiring" })
	if v == nil || v.state != "retiring" {
		return false
	}
	v.retire(now)
	v.overlapEnds = soonest(v.overlapEnds, now)
	return true
}

// revoke ends versions. made is the one that a successor was made of.
func (k *refKey) revoke(t time.Time, r refRole, number int, all, compromised, rotate, force bool) (made *refVersion, ok bool) {
	now := k.now(t)
	before := k.clone()
	k.settle(now)
	state := "revoked"
	if compromised {
		state = "compromised"
	}
	if !all && k.version(number) == nil {
		return nil, false
	}
	active := k.in("active")
	endsActive, changed := false, false
	for _, v := range k.versions {
		if !all && v.number != number || v.state == "compromised" || v.state == state {
			continue
		}
		changed = true
		endsActive = endsActive || v == active
		v.end(state, now)
	}
	revives := all && active == nil && rotate && !k.leased
	if !changed && !revives {
		*k = *before // nothing is recorded
		return nil, true
	}
	if endsActive || revives {
		switch {
		case !rotate || k.leased:
			if !force && !rotate {
				return nil, false
			}
			k.dormant = true
		case k.in("pending") != nil:
			k.waits = false
			k.promote(now, r)
		default:
			made = k.add(r)
			k.rotated, k.waits = now, false
			k.activate(now, r, made)
		}
	} else if all && !rotate {
		k.dormant = true
	}
	k.prune(now, r)
	return made, true
}

// tick does what is due, but for drains and automatic rotations. What can only be
// claimed takes the place of no other version while nobody could claim it.
func (k *refKey) tick(t time.Time, r refRole) {
	now := k.now(t)
	k.settle(now)
	if v := k.in("pending"); v != nil && !k.disabled && !k.dormant &&
		(k.in("active") == nil || !v.promoteAt.After(now) && (!v.handover || r.claimable)) {
		k.promote(now, r)
	}
	k.prune(now, r)
}

// refSpec is what a new key is to be.
type refSpec struct {
	name, role     string
	imported       string // the token, "" for a new one
	hashed         bool   // of which only the hash is told
	scopes, ranges []string
	note           string
}

// create makes a key, or finds that the same import has made it before. It
// tells whether that is allowed.
func (m *reference) create(now time.Time, s refSpec) bool {
	_, there := m.roles[s.role]
	r := m.role(s.role)
	if !there || slices.ContainsFunc(s.scopes, func(one string) bool { return !slices.Contains(r.scopes, one) }) {
		return false
	}
	if old := m.keys[s.name]; old != nil {
		return s.imported != "" && old.imported == s.imported && old.role == s.role
	}
	if _, used := m.find(s.imported); s.imported != "" && (used != nil || m.buried[s.imported]) {
		return false
	}
	k := &refKey{
		name: s.name, role: s.role, scopes: s.scopes, ranges: s.ranges, note: s.note, imported: s.imported,
		recorded: now, rotated: now, requests: map[string]refRequest{},
	}
	k.activate(now, r, k.add(r))
	first := k.versions[0]
	first.token, first.readable, first.handover = s.imported, first.readable && !s.hashed, first.handover && s.imported == ""
	m.imports = m.imports || s.imported != ""
	m.keys[s.name] = k
	return true
}

// scopesOf are the scopes in force for a version at a time of the key.
func (m *reference) scopesOf(k *refKey, v *refVersion, now time.Time) []string {
	granted := m.roles[k.role].scopes
	var late []string
	if v.at(now) == "retiring" && !now.Before(v.overlapEnds) {
		late = m.roles[k.role].late
	}
	for _, limit := range [][]string{k.scopes, v.narrowed, late} {
		if limit != nil {
			granted = slices.DeleteFunc(slices.Clone(granted), func(s string) bool { return !slices.Contains(limit, s) })
		}
	}
	return granted
}

// find returns the key and the version of a token.
func (m *reference) find(token string) (*refKey, *refVersion) {
	for _, k := range m.keys {
		for _, v := range k.versions {
			if v.token == token {
				return k, v
			}
		}
	}
	return nil, nil
}

// allowed tells whether a request from ip, "" for nowhere, is inside ranges.
func allowed(ranges []string, ip string) bool {
	return len(ranges) == 0 || slices.ContainsFunc(ranges, func(r string) bool { return ip != "" && strings.HasPrefix(ip, modelRanges[r]) })
}

// modelRanges are the ranges that keys are bound to, with what the addresses in
// them begin with.
var modelRanges = map[string]string{"10.0.0.0/8": "10.", "10.1.0.0/16": "10.1."}

// refAsk is what a verification asks.
type refAsk struct {
	token    string
	imported bool
	scopes   []string
	ip       string
}

// verdict is the code of a token, and what else is told.
func (m *reference) verdict(t time.Time, ask refAsk) (string, *refKey, *refVersion) {
	token, imported, scopes := ask.token, ask.imported, ask.scopes
	k, v := m.find(token)
	if v == nil {
		switch {
		case m.buried[token]:
			return "COMPROMISED", nil, nil
		case imported && !m.imports:
			return "MALFORMED", nil, nil
		}
		return "NOT_FOUND", nil, nil
	}
	now := k.now(t)
	switch state := v.at(now); {
	case state == "compromised":
		return "COMPROMISED", k, v
	case state == "revoked":
		return "REVOKED", k, v
	case k.disabled:
		return "DISABLED", k, v
	case state == "retired" && v.agedOut(now):
		return "EXPIRED", k, v
	case state == "retired":
		return "RETIRED", k, v
	}
	if !allowed(k.ranges, ask.ip) || !allowed(m.roles[k.role].ranges, ask.ip) {
		return "FORBIDDEN_SOURCE", k, v
	}
	granted := m.scopesOf(k, v, now)
	for _, s := range scopes {
		if !slices.Contains(granted, s) {
			return "INSUFFICIENT_SCOPE", k, v
		}
	}
	return "VALID", k, v
}

// remove deletes a key. Its compromised versions are remembered.
func (m *reference) remove(name string) {
	for _, v := range m.keys[name].versions {
		if v.state == "compromised" {
			m.buried[v.token] = true
		}
	}
	delete(m.keys, name)
}

// served is what static-creds answers: a status, and the version.
func (k *refKey) served(t time.Time) (int, *refVersion) {
	v := k.in("active")
	if v == nil || v.at(k.now(t)) != "active" || !v.readable {
		return http.StatusNotFound, nil
	}
	return http.StatusOK, v
}

// tell has it told of k what versions have become active. Which of them can be
// claimed, and for how long, is settled then; what only a claim was to hand over
// is not kept any more. Leased keys are answered to who reads them, and to nobody else.
func (m *reference) tell(k *refKey) {
	for _, number := range k.owed {
		v, one := k.version(number), refClaim{id: k.id, version: number, life: wholeDay}
		one.passed = v == nil || v.state != "active"
		if !m.hook.wants(k.role) || k.leased || !one.passed && !v.readable && !v.handover {
			continue
		}
		one.handed = !one.passed && v.handover && m.hook.deliver == "claim"
		var begun time.Time
		for _, former := range k.versions {
			if former.by == number && former.state == "retiring" && !former.superseded.Before(begun) {
				begun, one.life = former.superseded, min(wholeDay, former.until.Sub(former.superseded))
			}
		}
		m.claims = append(m.claims, one)
	}
	k.owed = nil
	for _, v := range k.versions {
		v.handover = v.handover && v.state == "pending"
	}
}

// claim is the delivered claim of a code, or nil.
func (m *reference) claim(code string) *refClaim {
	for i := range m.claims {
		if code != "" && m.claims[i].code == code {
			return &m.claims[i]
		}
	}
	return nil
}

// byID is the key with this id, or nil.
func (m *reference) byID(id string) *refKey {
	for _, k := range m.keys {
		if k.id == id {
			return k
		}
	}
	return nil
}

// redeem is what claim answers to a code: a status, with the version that it
// hands out, or why not. StatusAccepted stands for the refusal of a code that was
// used before, which is told.
func (m *reference) redeem(t time.Time, process int, code string) (status int, why string, k *refKey, v *refVersion) {
	c := m.claim(code)
	if c == nil {
		return http.StatusBadRequest, "unknown", nil, nil
	}
	if k = m.byID(c.id); k != nil {
		v = k.version(c.version)
	}
	switch {
	case c.used:
		why = "used before"
	case k == nil:
		why = "of a deleted key"
	case !t.Before(c.expires):
		why = "past its life"
	case v == nil || !v.accepted(k.now(t)):
		why = "of a version that has ended"
	case !v.readable && !c.handed:
		why = "of a version that is not stored"
	}
	switch lost := c.unsure != 0 && c.unsure != process; { // whoever redeemed it was not answered
	case c.used, lost && why != "":
		status = http.StatusAccepted
	case lost:
		status = undecided
	case why != "":
		return http.StatusBadRequest, why, k, v
	default:
		status = http.StatusOK
	}
	c.used, c.reused = true, c.used
	return status, why, k, v
}
