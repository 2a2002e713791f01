// SPDX-License-Identifier: MPL-2.0

package keyring

import (
	"fmt"
	"slices"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// Schema is the major version of the stored form of a Key. Additions do not
// change it; an entry with a higher one is refused.
const Schema = 1

const (
	// RetainLimit is how many versions a key has at most, compromised ones and
	// those that are accepted aside, however many fall into a rollback window.
	RetainLimit = 400
	// EntryLimit is about how many bytes the entry of a key has at most, on the
	// same terms: half of what Raft storage takes as one entry.
	EntryLimit = 512 << 10
	// HistoryLimit is the number of transitions that a key remembers.
	HistoryLimit = 100
	// RequestLimit is the number of request ids that a key remembers.
	RequestLimit = 16
	// RequestLife is how long it remembers each.
	RequestLife = 24 * time.Hour
	// OwedLimit is how many events a key owes at most. What is beyond that is
	// not told: the oldest go first.
	OwedLimit = 100
	// OwedBytes is about how many bytes they take, on the same terms.
	OwedBytes = 64 << 10
	// LeasedKeepTime is how long an ended leased key can still be read.
	LeasedKeepTime = 24 * time.Hour
)

// Key is one client's credential as it is stored: everything that a
// transition depends on, in one entry. Treat it as immutable; transitions
// return changed copies.
type Key struct {
	Schema int    `json:"schema"`
	ID     string `json:"key_id"`
	// Name is empty for a leased key.
	Name     string `json:"name,omitempty"`
	Role     string `json:"role"`
	Disabled bool   `json:"disabled,omitempty"`
	Imported bool   `json:"imported,omitempty"`
	// ImportDigest is that of the token with which an imported key began. It
	// is kept for as long as the key, so that repeating the import succeeds
	// even when version 1 has been forgotten. Entries of older plugins have
	// none.
	ImportDigest *token.Digest `json:"import_digest,omitempty"`
	// Scopes is nil where the key has those of its role, whatever they are.
	Scopes         *[]string         `json:"scopes,omitempty"`
	BoundCIDRs     []string          `json:"bound_cidrs,omitempty"`
	CustomMetadata map[string]string `json:"custom_metadata,omitempty"`
	CreatedTime    time.Time         `json:"created_time"`
	Lease          *Lease            `json:"lease,omitempty"`

	// Versions are in ascending order of their numbers.
	Versions []Version `json:"versions,omitempty"`

	// LastRotation is what the next automatic rotation counts from.
	LastRotation time.Time `json:"last_rotation,omitzero"`
	// RotateAt, where set, replaces the schedule's next time: a rotation that
	// an outage delayed, or one that waits for room in the window.
	RotateAt time.Time `json:"rotate_at,omitzero"`
	// EndedByForce is set where somebody left the key without an active
	// version, until one is active again.
	EndedByForce bool `json:"ended_by_force,omitempty"`
	// Unclaimed is set where nobody could claim the active version when it was
	// promoted: clients have no key but the one before, until another is active.
	Unclaimed bool `json:"unclaimed,omitempty"`
	// Blocked is the reason that was recorded for a waiting rotation.
	Blocked string `json:"blocked,omitempty"`
	// NextTick is the minute since 1970 under which the key is filed in the
	// due index, 0 where nothing is due.
	NextTick int64 `json:"next_tick,omitempty"`
	// Recorded is the latest time of any transition. Time never runs below it.
	Recorded time.Time `json:"recorded,omitzero"`

	Requests []Request `json:"requests,omitempty"`
	// Job is the last bulk job that rotated the key.
	Job     string  `json:"job,omitempty"`
	History []Event `json:"history,omitempty"`
	// EventSeq is the number of the last event of the key.
	EventSeq uint64 `json:"event_seq,omitempty"`
	// Owed are the events that have not been copied to the outboxes yet: they
	// are committed with the transition that made them.
	Owed []Event `json:"owed,omitempty"`
	// OwedDropped counts the events that were owed and did not fit.
	OwedDropped uint64 `json:"owed_dropped,omitempty"`
	// Announced is the planned rotation that rotation.upcoming has told of.
	Announced time.Time `json:"announced,omitzero"`
	// Confirmations say which instance of the client uses which version.
	Confirmations []Confirmation `json:"confirmations,omitempty"`

	// Deleted marks a tombstone, which keeps Versions that are compromised.
	Deleted time.Time `json:"deleted_time,omitzero"`
	// Cleanup is what a tombstone has still to remove.
	Cleanup *Cleanup `json:"cleanup,omitempty"`

	extra jsonkeep.Extra
}

// Lease says who may rotate a leased key, and how long it can live.
type Lease struct {
	EntityID string `json:"entity_id,omitempty"`
	// Accessor is the token's, where it has no entity.
	Accessor string `json:"accessor,omitempty"`
	// MaxExpireTime is the end of max_ttl, counted from the key's creation.
	MaxExpireTime time.Time `json:"max_expire_time,omitzero"`

	extra jsonkeep.Extra
}

// Request is a rotation that named a request_id, so that a replay is known.
type Request struct {
	ID string `json:"id"`
	// Parameters is a digest of what else was asked.
	Parameters string    `json:"parameters"`
	Version    int       `json:"version"`
	Time       time.Time `json:"time"`

	extra jsonkeep.Extra
}

// Confirmation is a client instance's word that it uses a version.
type Confirmation struct {
	Instance string    `json:"instance"`
	Version  int       `json:"version"`
	Time     time.Time `json:"time"`

	extra jsonkeep.Extra
}

// Cleanup lists the index entries of a deleted key.
type Cleanup struct {
	Name     string   `json:"name,omitempty"`
	Role     string   `json:"role,omitempty"`
	Imported []string `json:"imported,omitempty"`

	extra jsonkeep.Extra
}

type keyFields Key

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (k Key) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(keyFields(k), k.extra) }

// UnmarshalJSON reads a stored key and refuses one that this code must not
// touch: a newer schema, or versions that cannot be.
func (k *Key) UnmarshalJSON(data []byte) error {
	if err := jsonkeep.CheckSchema(data, Schema); err != nil {
		return err
	}
	extra, err := jsonkeep.Unmarshal(data, (*keyFields)(k))
	if err != nil {
		return err
	}
	k.extra = extra
	for i := range k.Versions {
		v := &k.Versions[i]
		if v.State == StateUnknown || v.Number < 1 || i > 0 && v.Number <= k.Versions[i-1].Number {
			return fmt.Errorf("version at position %d is not valid", i)
		}
	}
	return nil
}

// ActorPeriodic is the actor of what happens by itself, because of the time.
const ActorPeriodic = "periodic"

// Cause says when a transition happens, at whose wish, and why.
type Cause struct {
	Now time.Time
	// Actor is the display name of who asked; many may share one.
	Actor string
	// EntityID tells them apart, or Accessor, that of the token, where it has
	// no entity. Neither is there for what happens by itself.
	EntityID string
	Accessor string
	Reason   string
}

// Event is a change that a transition made, as history shows it.
type Event struct {
	// Seq numbers the events of a key from 1, without gaps.
	Seq      uint64    `json:"seq,omitempty"`
	Time     time.Time `json:"time"`
	Type     EventType `json:"type"`
	Version  int       `json:"version,omitempty"`
	Actor    string    `json:"actor,omitempty"`
	EntityID string    `json:"entity_id,omitempty"`
	Accessor string    `json:"accessor,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	// Detail says in words what the type leaves open. It holds no secret.
	Detail string `json:"detail,omitempty"`

	extra jsonkeep.Extra
}

// EventType names a kind of Event.
type EventType string

// The kinds of events that transitions make.
const (
	EventKeyCreated         EventType = "key.created"
	EventKeyUpdated         EventType = "key.updated"
	EventKeyDeleted         EventType = "key.deleted"
	EventKeyRolledBack      EventType = "key.rolled_back"
	EventVersionCreated     EventType = "version.created"
	EventVersionActivated   EventType = "version.activated"
	EventVersionRetiring    EventType = "version.retiring"
	EventVersionDrained     EventType = "version.drained"
	EventVersionRetired     EventType = "version.retired"
	EventVersionRevoked     EventType = "version.revoked"
	EventVersionCompromised EventType = "version.compromised"
	EventOverlapExtended    EventType = "overlap.extended"
	EventRotationBlocked    EventType = "rotation.blocked"
	EventRotationUpcoming   EventType = "rotation.upcoming"
	EventVersionFirstUsed   EventType = "version.first_used"
	EventVersionStaleUse    EventType = "version.stale_use"
	EventRolloverReminder   EventType = "rollover.reminder"
	EventRolloverStalled    EventType = "rollover.stalled"
	EventRolloverAtRisk     EventType = "rollover.at_risk"
	EventRolloverFailed     EventType = "rollover.failed"
	EventRolloverCompleted  EventType = "rollover.completed"
	EventAnomalyDetected    EventType = "anomaly.detected"
	EventClaimRedeemed      EventType = "claim.redeemed"
	EventClaimReused        EventType = "claim.reused"
)

// Policy is what a role lays down for transitions, as it is now.
type Policy struct {
	MaxOverlap         time.Duration
	ExtendUntilDrained bool
	RollbackWindow     time.Duration
	// VersionTTL is the hard age of a version from its promotion; 0 is none.
	VersionTTL  time.Duration
	MaxAccepted int
	MaxVersions int
}

// Label names the key in messages: by its name, or by its id if it has none.
func (k *Key) Label() string {
	if k.Name != "" {
		return fmt.Sprintf("key %q", k.Name)
	}
	return fmt.Sprintf("leased key %q", k.ID)
}

// RollingOver tells whether a rollover of a named key is under way: a version
// is pending, or superseded and still accepted, or retired so lately that it
// could be restored for clients left behind.
func (k *Key) RollingOver() bool {
	if k.Leased() || !k.Deleted.IsZero() {
		return false
	}
	return slices.ContainsFunc(k.Versions, func(v Version) bool {
		return v.State == StatePending || v.State == StateRetiring || v.LeftBehind()
	})
}

// Leased tells whether the key lives by leases.
func (k *Key) Leased() bool { return k.Lease != nil }

// MadeFrom tells whether the key began with the imported token that has this
// digest.
func (k *Key) MadeFrom(d token.Digest) bool {
	if k.ImportDigest != nil {
		return k.ImportDigest.Equal(d)
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Imported && v.Digest.Equal(d) {
			return true
		}
	}
	return false
}

// Now is t, or the time last recorded where the wall clock fell behind it.
func (k *Key) Now(t time.Time) time.Time {
	if t.Before(k.Recorded) {
		return k.Recorded
	}
	return t
}

// Version returns a copy of the version with this number.
func (k *Key) Version(number int) (Version, bool) {
	if i := k.index(number); i >= 0 {
		return k.Versions[i], true
	}
	return Version{}, false
}

// Active returns a copy of the active version. There is none after it was
// ended by force, or by its age.
func (k *Key) Active() (Version, bool) { return k.inState(StateActive) }

// Pending returns a copy of the pending version.
func (k *Key) Pending() (Version, bool) { return k.inState(StatePending) }

// Latest is the highest version number given out so far.
func (k *Key) Latest() int {
	if len(k.Versions) == 0 {
		return 0
	}
	return k.Versions[len(k.Versions)-1].Number
}

// Accepted returns the numbers of the versions that are accepted at now.
func (k *Key) Accepted(now time.Time) []int {
	now = k.Now(now)
	var numbers []int
	for i := range k.Versions {
		if k.Versions[i].AcceptedAt(now) {
			numbers = append(numbers, k.Versions[i].Number)
		}
	}
	return numbers
}

// EndedAll tells whether no version is accepted any more, and when the last
// one ended.
func (k *Key) EndedAll(now time.Time) (bool, time.Time) {
	now = k.Now(now)
	var last time.Time
	for i := range k.Versions {
		v := &k.Versions[i]
		if v.AcceptedAt(now) {
			return false, time.Time{}
		}
		end := v.EndedTime
		if timed, ok := v.timedEnd(); ok {
			end = timed
		}
		if end.After(last) {
			last = end
		}
	}
	return true, last
}

func (k *Key) inState(s State) (Version, bool) {
	for i := range k.Versions {
		if k.Versions[i].State == s {
			return k.Versions[i], true
		}
	}
	return Version{}, false
}

func (k *Key) index(number int) int {
	i, found := slices.BinarySearchFunc(k.Versions, number, func(v Version, n int) int { return v.Number - n })
	if !found {
		return -1
	}
	return i
}

func (k *Key) at(number int) *Version { return &k.Versions[k.index(number)] }

// Clone returns a copy that shares nothing that a transition changes.
func (k *Key) Clone() *Key {
	c := *k
	c.Versions = slices.Clone(k.Versions)
	c.Requests = slices.Clone(k.Requests)
	c.History = slices.Clone(k.History)
	c.Owed = slices.Clone(k.Owed)
	c.Confirmations = slices.Clone(k.Confirmations)
	return &c
}

// begin starts a transition: it returns a copy to change, in which all that
// time has ended is recorded, and the cause with its time never below what was
// recorded.
func (k *Key) begin(c Cause) (*Key, Cause) {
	n, c := k.copyAt(c)
	n.settle(Cause{Now: c.Now, Actor: ActorPeriodic})
	return n, c
}

func (k *Key) copyAt(c Cause) (*Key, Cause) {
	n := k.Clone()
	c.Now = k.Now(c.Now)
	n.Recorded = c.Now
	return n, c
}

// Record adds an event to the history, which keeps the last HistoryLimit, and
// to what is owed to those who want to be told.
func (k *Key) Record(c Cause, t EventType, version int, detail string) {
	if over := len(k.History) + 1 - HistoryLimit; over > 0 {
		k.History = slices.Delete(k.History, 0, over)
	}
	k.EventSeq++
	e := Event{
		Seq: k.EventSeq, Time: c.Now, Type: t, Version: version,
		Actor: c.Actor, EntityID: c.EntityID, Accessor: c.Accessor, Reason: c.Reason, Detail: detail,
	}
	k.History = append(k.History, e)
	k.Owed = append(k.Owed, e)
	k.boundOwed()
}

// boundOwed drops the oldest of what is owed beyond the limits: telling must
// never make an entry so large that the next transition cannot be stored.
func (k *Key) boundOwed() {
	size := 0
	for i := range k.Owed {
		size += k.Owed[i].size()
	}
	for i := 0; i < len(k.Owed)-1 && (len(k.Owed) > OwedLimit || size > OwedBytes); {
		if k.handsOver(&k.Owed[i]) {
			i++
			continue
		}
		size -= k.Owed[i].size()
		k.Owed = slices.Delete(k.Owed, i, i+1)
		k.OwedDropped++
	}
}

// OwesMuch tells whether a key owes a quarter of what it may: whoever copies them
// does not keep up with those who make them.
func (k *Key) OwesMuch() bool {
	size := 0
	for i := range k.Owed {
		size += k.Owed[i].size()
	}
	return len(k.Owed) >= OwedLimit/4 || size >= OwedBytes/4
}

// handsOver tells whether the event is how a version's Handover leaves: it is
// never dropped.
func (k *Key) handsOver(e *Event) bool {
	i := k.index(e.Version)
	return e.Type == EventVersionActivated && i >= 0 && len(k.Versions[i].Handover) > 0
}

// Told returns a copy of k that owes no events.
func (k *Key) Told() *Key {
	n := k.Clone()
	n.ForgetOwed()
	return n
}

// ForgetOwed changes k to owe no events, and with them no handover but that of
// a pending version, whose event is still to come.
func (k *Key) ForgetOwed() {
	k.Owed, k.OwedDropped = nil, 0
	for i := range k.Versions {
		if v := &k.Versions[i]; v.State != StatePending {
			v.Handover = nil
		}
	}
}

// prune drops the oldest ended versions beyond keep, but never the newest
// version (its number must not be given out again), one that can be restored
// or one that is compromised. Beyond RetainLimit or EntryLimit a rollback
// window does not protect any more: the entry of a key must fit Vault's
// storage. The scopes of what has ended for good, which allow nothing, go
// before that.
func (k *Key) prune(now time.Time, keep int) {
	k.drop(keep, func(v *Version) bool { return !now.Before(v.RestorableUntil) })
	k.drop(RetainLimit, func(*Version) bool { return true })
	over := k.size() - EntryLimit
	for i := 0; i < len(k.Versions) && over > 0; i++ {
		if v := &k.Versions[i]; v.State == StateRevoked || v.State == StateCompromised {
			over -= textSize(v.OverlapScopes) + textSize(v.PlannedScopes)
			v.OverlapScopes, v.PlannedScopes = nil, nil
		}
	}
	for i := 0; i < len(k.Versions)-1 && over > 0; {
		v := &k.Versions[i]
		if !v.prunable() {
			i++
			continue
		}
		over -= v.size()
		k.Versions = slices.Delete(k.Versions, i, i+1)
	}
}

// The bytes that the stored form takes beside its texts, rounded up: names of
// fields, numbers and times.
const (
	keyOverhead     = 1024
	versionOverhead = 640
	eventOverhead   = 192
	requestOverhead = 160
)

// size is about how many bytes the entry of the key takes, rather more than
// less.
func (k *Key) size() int {
	n := keyOverhead + len(k.Blocked) + textSize(k.BoundCIDRs)
	if k.Scopes != nil {
		n += textSize(*k.Scopes)
	}
	for name, value := range k.CustomMetadata {
		n += textSize([]string{name, value})
	}
	for i := range k.Versions {
		n += k.Versions[i].size()
	}
	for _, events := range [][]Event{k.History, k.Owed} {
		for i := range events {
			n += events[i].size()
		}
	}
	for i := range k.Confirmations {
		n += eventOverhead + textSize([]string{k.Confirmations[i].Instance})
	}
	for i := range k.Requests {
		n += requestOverhead + textSize([]string{k.Requests[i].ID}) + extraSize(k.Requests[i].extra)
	}
	return n + extraSize(k.extra)
}

func (e *Event) size() int {
	return eventOverhead + textSize([]string{e.Actor, e.EntityID, e.Accessor, e.Reason, e.Detail}) + extraSize(e.extra)
}

func (v *Version) size() int {
	return versionOverhead + (len(v.Sealed)+len(v.Handover))*4/3 + textSize(v.PlannedScopes) + textSize(v.OverlapScopes) +
		textSize([]string{v.Reason}) + extraSize(v.extra)
}

// textSize is about what texts take in JSON: a quote may become two characters,
// and those that take more are rare.
func textSize(texts []string) int {
	n := 0
	for _, text := range texts {
		n += len(text) + len(text)/4 + 4
	}
	return n
}

func extraSize(extra jsonkeep.Extra) int {
	n := 0
	for name, raw := range extra {
		n += len(name) + len(raw) + 4
	}
	return n
}

// drop removes the oldest prunable versions beyond keep that may go.
func (k *Key) drop(keep int, may func(*Version) bool) {
	over := len(k.Versions) - keep
	for i := 0; i < len(k.Versions)-1 && over > 0; {
		if v := &k.Versions[i]; !v.prunable() || !may(v) {
			i++
			continue
		}
		k.Versions = slices.Delete(k.Versions, i, i+1)
		over--
	}
}

// FindRequest returns the remembered rotation with this request id.
func (k *Key) FindRequest(id string, now time.Time) (Request, bool) {
	for _, r := range k.Requests {
		if r.ID == id && k.Now(now).Before(r.Time.Add(RequestLife)) {
			return r, true
		}
	}
	return Request{}, false
}

// RememberRequest returns a copy of k that knows r, and forgets the oldest
// and the expired ones.
func (k *Key) RememberRequest(r Request) *Key {
	n := k.Clone()
	n.Requests = slices.DeleteFunc(n.Requests, func(old Request) bool {
		return old.ID == r.ID || !r.Time.Before(old.Time.Add(RequestLife))
	})
	n.Requests = append(n.Requests, r)
	if over := len(n.Requests) - RequestLimit; over > 0 {
		n.Requests = slices.Delete(n.Requests, 0, over)
	}
	return n
}

// Dormant tells whether the key has been left without an active version by
// force: automation then leaves it alone until somebody rotates it, promotes
// what is pending or rolls back.
func (k *Key) Dormant() bool { return k.EndedByForce }
