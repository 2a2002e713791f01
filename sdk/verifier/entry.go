// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// keyID is a key id by value: nothing that is kept shares memory with a token.
type keyID [token.IDLength]byte

func (k keyID) String() string { return string(k[:]) }

// parseID reads a key id of an answer.
func parseID(s string) (keyID, bool) {
	var id keyID
	if !token.ValidID(s) {
		return id, false
	}
	copy(id[:], s)
	return id, true
}

// words is a digest in four words, which compare in constant time in a few
// instructions.
type words [4]uint64

func wordsOf(d *token.Digest) words {
	return words{
		binary.LittleEndian.Uint64(d[0:]), binary.LittleEndian.Uint64(d[8:]),
		binary.LittleEndian.Uint64(d[16:]), binary.LittleEndian.Uint64(d[24:]),
	}
}

func (w *words) equal(o *words) bool {
	return (w[0]^o[0])|(w[1]^o[1])|(w[2]^o[2])|(w[3]^o[3]) == 0
}

// entry is what the cache keeps of a key: its record, and what decides about
// the versions that may be accepted, ready to use. Nothing in it changes, but
// that it may become stale, and the counts. The index has a copy of what a hit
// reads; what counting reads and writes lies in the first cache line.
type entry struct {
	id keyID
	// stale is set once the feed names the key; the index then has it no more.
	stale atomic.Bool
	// touched is the tick in which the cache was told of a use.
	touched atomic.Uint32
	first   version
	more    *[]version
	role    *roleMark
	record  *record.Record
	// ranges are the addresses that key and role are bound to; nil if none.
	ranges *[2][]netip.Prefix
	age    age
	// seq is the place in the feed that the record is as new as.
	seq uint64
	_   [2]uint64
}

// version is one that may be accepted.
type version struct {
	counter
	digest words
	// until is when it must be looked at more closely, in Unix nanoseconds.
	until  int64
	scopes *[]string
	state  record.State
}

// age is the generation of the feed that a record belongs to, and when it was
// asked for.
type age uint64

func newAge(generation uint32, fetched tick) age { return age(generation)<<32 | age(fetched) }

func (a age) generation() uint32 { return uint32(a >> 32) }
func (a age) fetched() tick      { return tick(a) } //nolint:gosec // the lower half

// roleMark holds the seq of the last change of a role's limits in the present
// epoch. All entries of its keys share it, its name, and their scopes.
type roleMark struct {
	changed atomic.Uint64
	name    string
	scopes  []*[]string
}

// maxShared bounds the lists of scopes that the keys of a role share. Others
// are their own, and take a hit another read of memory.
const maxShared = 16

// share returns the list that stands for scopes. The caller holds v.records.
func (m *roleMark) share(scopes []string) *[]string {
	for _, known := range m.scopes {
		if slices.Equal(*known, scopes) {
			return known
		}
	}
	if len(m.scopes) < maxShared {
		m.scopes = append(m.scopes, &scopes)
	}
	return &scopes
}

// current tells whether a record of this age is as new as what the feed has
// told of its role and of everything.
func (f *feedState) current(a age, role *roleMark, seq uint64) bool {
	return a.generation() == f.generation && a.fetched() >= f.oldest && role.changed.Load() <= seq
}

// usable tells whether the entry is as new as what the feed has told.
func (e *entry) usable(f *feedState) bool {
	return f.current(e.age, e.role, e.seq) && !e.stale.Load()
}

// find returns the version with this digest. It compares all of them.
func (e *entry) find(w *words) *version {
	var found *version
	if e.first.digest.equal(w) {
		found = &e.first
	}
	if e.more != nil {
		for i := range *e.more {
			if v := &(*e.more)[i]; v.digest.equal(w) {
				found = v
			}
		}
	}
	return found
}

// allowed tells whether the address lies in the ranges of key and role.
func allowed(both *[2][]netip.Prefix, ip netip.Addr) bool {
	if both == nil {
		return true
	}
	for _, ranges := range both {
		if ranges == nil {
			continue
		}
		inside := false
		plain := ip.Unmap().WithZone("")
		for _, r := range ranges {
			inside = inside || ip.IsValid() && r.Contains(plain)
		}
		if !inside {
			return false
		}
	}
	return true
}

var errBadRecord = errors.New("a record that contradicts itself")

// checkRecord refuses records that no engine answers.
func checkRecord(r *record.Record) error {
	if r == nil || !token.ValidID(r.KeyID) || len(r.Versions) > maxVersions {
		return errBadRecord
	}
	for i := range r.Versions {
		v := &r.Versions[i]
		if v.Number < 1 || v.State == record.StateUnknown || i > 0 && v.Number <= r.Versions[i-1].Number {
			return errBadRecord
		}
		if v.State == record.StateRetiring && v.AcceptedUntil.IsZero() {
			return errBadRecord
		}
	}
	return nil
}

// maxVersions bounds what is taken for a record; the engine keeps far fewer
// beside the compromised ones.
const maxVersions = 10_000

// newEntry makes an entry of a record, or nil where no version of it can be
// accepted: what is refused is asked for each time. It takes the digests of
// imported versions, which are told only to those who present them, from the
// entry before.
func newEntry(r *record.Record, role *roleMark, former *entry) *entry {
	if !r.Enabled || r.Deleted {
		return nil
	}
	id, _ := parseID(r.KeyID)
	kept := *r
	kept.Versions = nil
	for i := range r.Versions {
		v := r.Versions[i]
		if v.Imported && v.Digest.IsZero() && former != nil {
			if known := former.record.Version(v.Number); known != nil {
				v.Digest = known.Digest
			}
		}
		if !v.State.Ended() && !v.Digest.IsZero() {
			kept.Versions = append(kept.Versions, v)
		}
	}
	if len(kept.Versions) == 0 {
		return nil
	}
	kept.Role = role.name
	shared := role.share(kept.Scopes)
	kept.Scopes = *shared
	e := &entry{id: id, record: &kept, role: role}
	if len(r.BoundCIDRs)+len(r.RoleBoundCIDRs) > 0 {
		e.ranges = new([2][]netip.Prefix)
		e.ranges[0], e.ranges[1] = rangesOf(r.BoundCIDRs), rangesOf(r.RoleBoundCIDRs)
	}
	if n := len(kept.Versions); n > 1 {
		more := make([]version, n-1)
		e.more = &more
	}
	// The active version is mostly the last, and the one that is used.
	for i := range kept.Versions {
		v := &kept.Versions[len(kept.Versions)-1-i]
		into := &e.first
		if i > 0 {
			into = &(*e.more)[i-1]
		}
		into.digest, into.until, into.scopes = wordsOf(&v.Digest), closerLook(&kept, v), shared
		if v.Scopes != nil {
			into.scopes = v.Scopes
		}
		into.in, into.of, into.state = e, v, v.State
	}
	return e
}

// rangesOf parses a list of addresses; what cannot be parsed allows nothing.
func rangesOf(cidrs []string) []netip.Prefix {
	if len(cidrs) == 0 {
		return nil
	}
	ranges := make([]netip.Prefix, 0, len(cidrs))
	for _, cidr := range cidrs {
		if p, err := record.ParseRange(cidr); err == nil {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// closerLook is until when time changes nothing about v.
func closerLook(r *record.Record, v *record.Version) int64 {
	until := int64(math.MaxInt64)
	earlier := func(t time.Time) {
		ns := t.UnixNano()
		if t.Before(firstNano) || !t.After(r.Recorded) {
			ns = math.MinInt64 // time never runs below what was recorded
		} else if t.After(lastNano) {
			ns = math.MaxInt64
		}
		until = min(until, ns)
	}
	if end, timed := v.TimedEnd(); timed {
		earlier(end)
	}
	if v.LateScopes != nil && v.State == record.StateRetiring {
		earlier(v.OverlapEnds)
	}
	return until
}

// The times that fit into nanoseconds of an int64.
var (
	firstNano = time.Unix(0, 0)
	lastNano  = time.Unix(0, math.MaxInt64)
)

// idIn finds the key id of a token by the right end, without looking closer: a
// digest that matches proves the rest.
func idIn(s string) (id keyID, ok bool) {
	n := len(s)
	if n > defaultTail && s[n-defaultSecret] == '_' && s[n-defaultTail] == '_' {
		copy(id[:], s[n-defaultTail+1:])
		return id, true
	}
	j := strings.LastIndexByte(s, '_')
	if j <= token.IDLength || s[j-token.IDLength-1] != '_' {
		return id, false
	}
	copy(id[:], s[j-token.IDLength:j])
	return id, true
}

// What follows the prefix of a token with a secret of the default length.
const (
	defaultSecret = 1 + token.DefaultSecretLength + token.ChecksumLength
	defaultTail   = defaultSecret + 1 + token.IDLength
)
