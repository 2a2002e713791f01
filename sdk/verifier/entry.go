// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
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
// that it may become stale, and the counts.
//
// It takes three cache lines, which processors fetch at once; the first holds
// what decides about the key's current version.
type entry struct {
	id keyID
	// stale is set once the feed names the key.
	stale atomic.Bool
	first version
	more  *[]version

	record *record.Record
	role   *roleMark
	// ranges are the addresses that key and role are bound to; nil if none.
	ranges *[2][]netip.Prefix
	// generation and seq are the place in the feed that the record is as new
	// as; fetched is when it was asked for.
	generation uint32
	touched    atomic.Uint32 // when the cache was told of a use, in ticks
	seq        uint64
}

// version is one that may be accepted.
type version struct {
	digest words
	// until is when it must be looked at more closely, in Unix nanoseconds.
	until int64
	counter
	fetched tick // when the record was asked for; it lies here where there is room
	state   record.State
	scopes  []string
}

// roleMark holds the seq of the last change of a role's limits in the present
// epoch. All entries of its keys share it, and its name.
type roleMark struct {
	changed atomic.Uint64
	name    string
}

// usable tells whether the entry is as new as what the feed has told.
func (e *entry) usable(f *feedState) bool {
	return e.generation == f.generation && e.first.fetched >= f.oldest && !e.stale.Load() && e.role.changed.Load() <= e.seq
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

// allowed tells whether the address may present the key.
func (e *entry) allowed(ip netip.Addr) bool {
	if e.ranges == nil {
		return true
	}
	for _, ranges := range e.ranges {
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
func newEntry(r *record.Record, former *entry) *entry {
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
	e := &entry{id: id, record: &kept}
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
		into.digest, into.until, into.scopes = wordsOf(&v.Digest), closerLook(&kept, v), kept.Scopes
		if v.Scopes != nil {
			into.scopes = *v.Scopes
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
