// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	mathbits "math/bits"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

const (
	// splitSize is the size in bytes at which a page is split in two, and
	// fullSize the one, by a guess that is never too small, from which on a
	// flush adds no further key to it. With a last record of maxRecord a page
	// stays below 512 KiB.
	splitSize = 256 << 10
	fullSize  = 400 << 10
	// maxRecord bounds one key on its page, in bytes of JSON: beyond it the
	// oldest hours go first, then the oldest versions.
	maxRecord = 32 << 10
	// maxDepth bounds how often pages split: 2^24 pages.
	maxDepth = 24
	// pageSchema is the major version of the stored form. Pages of schema 1, in
	// which hours are objects and have no totals, are read, and stored as 2 once
	// they change: what reads only 1 would take them for damaged.
	pageSchema = 2
	// keepTotals is for how many hours before the last full one the uses of a key
	// in each are kept, whatever usage_retention is: four weeks, which the search for
	// anomalies looks back.
	keepTotals = 28 * 24
)

// PageStore keeps pages by name. A name is a string of 0 and 1: the first bits
// of the hashes of the ids on it; the first page is named "r".
type PageStore interface {
	// GetPage returns nil where there is no such page.
	GetPage(ctx context.Context, name string) ([]byte, error)
	PutPage(ctx context.Context, name string, data []byte) error
	DeletePage(ctx context.Context, name string) error
	ListPages(ctx context.Context) ([]string, error)
}

// page is what is stored of the use of some keys. A key is decoded when it is
// asked for, and one that does not change is stored as it was.
type page struct {
	// schema is the one that it was read with.
	schema int
	// serial grows with each write of the page.
	serial uint64
	// at is when it was written last, in seconds since 1970, 0 where unknown, and
	// gaps are the hours of the last four weeks that were not counted in full.
	at   int64
	gaps gaps
	keys map[string]*onPage
	// extra are the fields that this code does not know.
	extra jsonkeep.Extra
}

// onPage is a key on a page.
type onPage struct {
	// stored is its JSON, nil where it has changed, and key what that says, nil
	// where nobody has asked.
	stored []byte
	key    *keyPage
}

// keyPage is what is stored of one key, by version and source.
type keyPage struct {
	Versions map[int]map[string]*sourcePage `json:"v"`
	// Totals are the accepted uses in each hour over all versions and sources.
	Totals series `json:"t,omitempty"`
	// Since is the hour from which Totals miss none that is young enough.
	Since int64 `json:"s,omitempty"`
	// Lost is the highest version that had to make room.
	Lost int `json:"x,omitempty"`

	extra jsonkeep.Extra
}

// sourcePage is what is stored of one source of one version. Its names are
// short because there are many.
type sourcePage struct {
	Count    uint64 `json:"c,omitempty"`
	Refused  uint64 `json:"r,omitempty"`
	Stale    uint64 `json:"e,omitempty"`
	LastUsed int64  `json:"l,omitempty"`
	// First is the hour since 1970 of its first accepted use, 0 where unknown.
	First int64  `json:"f,omitempty"`
	Hours series `json:"h,omitempty"`
}

func (s *sourcePage) lastUsed() time.Time {
	if s.LastUsed == 0 {
		return time.Time{}
	}
	return time.UnixMilli(s.LastUsed).UTC()
}

const root = "r"

// bits is the hash of an id as a string of 0 and 1.
func bits(keyID string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(keyID))
	// FNV's high bits mix badly for short inputs: fold them.
	sum := h.Sum64()
	sum ^= sum >> 32
	sum *= 0x9E3779B97F4A7C15
	return fmt.Sprintf("%064b", sum)[:maxDepth]
}

// directory knows which pages there are.
type directory map[string]struct{}

// of returns the name of the page that holds a key: the deepest that there is.
func (d directory) of(keyID string) string {
	b := bits(keyID)
	for depth := maxDepth; depth > 0; depth-- {
		if _, ok := d[b[:depth]]; ok {
			return b[:depth]
		}
	}
	return root
}

// halvesOf are the names of the pages into which a page is split.
func halvesOf(name string) []string {
	prefix := strings.TrimPrefix(name, root)
	return []string{prefix + "0", prefix + "1"}
}

func newPage() *page { return &page{schema: pageSchema, keys: map[string]*onPage{}} }

// decodePage reads a page, and leaves its keys as they are stored: what is wrong
// with one of them is nothing to the others. The page refers to data.
func decodePage(data []byte) (*page, error) {
	p := newPage()
	if data == nil {
		return p, nil
	}
	p.schema = 0
	err := members(data, func(name string, value []byte) error {
		switch {
		case name == "schema":
			return json.Unmarshal(value, &p.schema)
		case name == "serial":
			return json.Unmarshal(value, &p.serial)
		case name == "at":
			return json.Unmarshal(value, &p.at)
		case name == "gaps":
			return json.Unmarshal(value, &p.gaps)
		case name == "keys" && string(value) == "null":
			return nil
		case name == "keys":
			return members(value, func(id string, value []byte) error {
				if string(value) != "null" {
					p.keys[id] = &onPage{stored: value}
				}
				return nil
			})
		}
		return keepField(&p.extra, name, value)
	})
	if err != nil || p.schema < 1 || p.schema > pageSchema {
		if newer := jsonkeep.CheckSchema(data, pageSchema); newer != nil && json.Valid(data) {
			return nil, fmt.Errorf("%w: %w", errDamaged, newer)
		}
		return nil, errDamaged
	}
	return p, nil
}

// encodePage returns what decodePage reads.
func encodePage(p *page) ([]byte, error) {
	data := make([]byte, 0, p.size()+256)
	data = fmt.Appendf(data, `{"schema":%d,"serial":%d,"at":%d,`, pageSchema, p.serial, p.at)
	if len(p.gaps) > 0 {
		stored, err := json.Marshal(p.gaps)
		if err != nil {
			return nil, err
		}
		data = append(append(appendName(data, "gaps"), stored...), ',')
	}
	data = append(data, `"keys":{`...)
	for i, id := range slices.Sorted(maps.Keys(p.keys)) {
		stored := p.keys[id].stored
		if stored == nil {
			var err error
			if stored, err = p.keys[id].key.encode(); err != nil {
				return nil, err
			}
		}
		if i > 0 {
			data = append(data, ',')
		}
		data = append(appendName(data, id), stored...)
	}
	data = append(data, '}')
	for _, name := range slices.Sorted(maps.Keys(p.extra)) {
		data = append(appendName(append(data, ','), name), p.extra[name]...)
	}
	return append(data, '}'), nil
}

func appendName(data []byte, name string) []byte {
	quoted, _ := json.Marshal(name) // a string has no error
	return append(append(data, quoted...), ':')
}

// key returns what is stored of a key, nil where nothing is. It is read only,
// unless changed is told.
func (p *page) key(id string) (*keyPage, error) {
	on := p.keys[id]
	if on == nil {
		return nil, nil
	}
	if on.key == nil {
		k, err := decodeKey(on.stored)
		if err != nil {
			return nil, errDamaged
		}
		on.key = k
	}
	return on.key, nil
}

// each calls f with all keys but those that are damaged. Where f tells that it
// has changed one, that is stored.
func (p *page) each(f func(id string, k *keyPage) (changed bool)) {
	for id, on := range p.keys {
		if k, err := p.key(id); err == nil && f(id, k) {
			on.stored = nil
		}
	}
}

// oldest are the first hours that are kept: of each source, and of all together.
type oldest struct{ hours, totals int64 }

// trim drops hours before the oldest, of all keys.
func (p *page) trim(o oldest) {
	p.each(func(_ string, k *keyPage) bool { return k.drop(o) || p.schema < pageSchema })
}

// size is at least what the page takes as JSON, without what this code does not know.
func (p *page) size() int {
	size := 96 + p.gaps.size()
	for id := range p.keys {
		size += p.sizeOf(id)
	}
	return size
}

// sizeOf is what a key takes of it, 0 where it is not there.
func (p *page) sizeOf(id string) int {
	switch on := p.keys[id]; {
	case on == nil:
		return 0
	case on.stored != nil:
		return nameSize(id) + len(`"":,`) + len(on.stored)
	default:
		return nameSize(id) + on.key.size()
	}
}

// has tells whether the record has a use, or says that it does not know all of
// the version.
func (k *keyPage) has(f *First) bool {
	if k == nil {
		return false
	}
	used := func(name string) bool {
		s := k.Versions[f.Version][name]
		return s != nil && s.Count > 0
	}
	return f.Version <= k.Lost || used(f.Source) || used(Other)
}

// missing returns those of first uses that neither the record nor d has.
func (k *keyPage) missing(d delta, noted []First) []First {
	return slices.DeleteFunc(noted, func(f First) bool { return k.has(&f) || d[f.Version][f.Source].count > 0 })
}

// add adds what was counted to a key, which is not damaged.
func (p *page) add(keyID string, d delta, o oldest) {
	k, _ := p.key(keyID)
	if k == nil {
		k = &keyPage{}
	}
	if k.Versions == nil {
		k.Versions = map[int]map[string]*sourcePage{}
	}
	p.keys[keyID] = &onPage{key: k}
	for number, sources := range d {
		stored := k.Versions[number]
		if stored == nil {
			stored = map[string]*sourcePage{}
			k.Versions[number] = stored
		}
		for name, add := range sources {
			if _, known := stored[name]; !known && len(stored) > maxSources {
				name = Other
			}
			s := stored[name]
			if s == nil {
				s = &sourcePage{}
				stored[name] = s
			}
			if s.Count == 0 && add.count > 0 {
				s.First = add.first()
			}
			s.Count += add.count
			s.Refused += add.refused
			s.Stale += add.stale
			if !add.lastUsed.IsZero() {
				s.LastUsed = max(s.LastUsed, add.lastUsed.UnixMilli())
			}
			for _, h := range add.hours {
				if h.slot >= 0 {
					s.Hours.add(h.slot, h.count, lastSlot) // no hour is too old for the newest: a clock may have run ahead
					k.Totals.add(h.slot, h.count, lastSlot)
				}
			}
		}
	}
	k.begin()
	k.trim(o)
}

// begin notes since when the totals are known, where that is not.
func (k *keyPage) begin() {
	if len(k.Totals) > 0 && (k.Since == 0 || k.Totals[0].slot < k.Since) {
		k.Since = max(1, k.Totals[0].slot)
	}
}

// trim drops hours before the oldest, and whatever does not fit maxRecord: hours
// of sources first, a day at a time, then the lowest versions. Totals stay.
func (k *keyPage) trim(o oldest) {
	k.drop(o)
	if first, last, some := k.span(); some && k.size() > maxRecord {
		days := sort.Search(int(last-first)/24+1, func(days int) bool { return k.sizeFrom(first+24*int64(days)) <= maxRecord })
		k.drop(oldest{hours: first + 24*int64(days)})
	}
	for len(k.Versions) > 1 && k.size() > maxRecord {
		lowest := slices.Min(slices.Collect(maps.Keys(k.Versions)))
		dropped := k.Versions[lowest]
		delete(k.Versions, lowest)
		k.keepFirst(dropped)
		k.Lost = max(k.Lost, lowest)
	}
}

// keepFirst lets a version that stays tell when a source was first seen with
// one that is dropped.
func (k *keyPage) keepFirst(dropped map[string]*sourcePage) {
	for _, number := range slices.Sorted(maps.Keys(k.Versions)) {
		for name, s := range k.Versions[number] {
			if d := dropped[name]; d != nil && d.First > 0 && s.First > d.First {
				s.First = d.First
			}
		}
	}
}

// drop drops hours before the oldest, and tells whether there were any.
func (k *keyPage) drop(o oldest) (dropped bool) {
	cut := func(s *series, from int64) {
		if len(*s) > 0 && (*s)[0].slot < from {
			*s, dropped = s.from(from), true
		}
	}
	cut(&k.Totals, o.totals)
	for _, sources := range k.Versions {
		for _, s := range sources {
			cut(&s.Hours, o.hours)
		}
	}
	return dropped
}

// span returns the first and the last hour of any source, and whether there is one.
func (k *keyPage) span() (first, last int64, some bool) {
	first = math.MaxInt64
	for _, sources := range k.Versions {
		for _, s := range sources {
			if len(s.Hours) > 0 {
				first, last, some = min(first, s.Hours[0].slot), max(last, s.Hours[len(s.Hours)-1].slot), true
			}
		}
	}
	return first, last, some
}

// size is at least what the record takes as JSON; 0 for none.
func (k *keyPage) size() int {
	if k == nil {
		return 0
	}
	return k.sizeFrom(math.MinInt64)
}

// sizeFrom is size without the hours of sources before the first one.
func (k *keyPage) sizeFrom(first int64) int {
	size := 64 + digits(uint64(k.Since)) + k.Totals.size() //nolint:gosec // a slot is not negative
	for _, sources := range k.Versions {
		size += 12
		for name, s := range sources {
			size += nameSize(name) + s.sizeFrom(first)
		}
	}
	return size
}

// sizeFrom is at least what the record of a source takes as JSON beside its name.
func (s *sourcePage) sizeFrom(first int64) int {
	const field = len(`,"c":`)
	return 16 + 6*field + digits(s.Count) + digits(s.Refused) + digits(s.Stale) + digits(uint64(s.LastUsed)) + digits(uint64(s.First)) + //nolint:gosec // a negative one is taken for longer than it is
		s.Hours.from(first).size()
}

// digits is at least how many a number has, and at most one more.
func digits(n uint64) int { return mathbits.Len64(n)*3/10 + 1 }

// nameSize is what a name takes as JSON at most.
func nameSize(name string) int {
	size := 0
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || strings.IndexByte(`<>&"\`, c) >= 0 {
			size += 5
		}
		size++
	}
	return size
}

// split divides a page by the next bit of its keys.
func (p *page) split(name string) map[string]*page {
	halves := map[string]*page{}
	length := 0
	for _, half := range halvesOf(name) {
		halves[half] = &page{schema: p.schema, serial: p.serial, at: p.at, gaps: p.gaps, keys: map[string]*onPage{}, extra: p.extra}
		length = len(half)
	}
	for id, on := range p.keys {
		halves[bits(id)[:length]].keys[id] = on
	}
	return halves
}

// sum is the totals of the hours of all sources: what an older plugin stored has
// none.
func (k *keyPage) sum() series {
	sums := map[int64]uint64{}
	for _, sources := range k.Versions {
		for _, s := range sources {
			for _, h := range s.Hours {
				sums[h.slot] += h.count
			}
		}
	}
	return seriesOf(sums)
}

// first is the hour of the first accepted use, as far as it is known.
func (a addition) first() int64 {
	if len(a.hours) > 0 {
		return a.hours[0].slot
	}
	return a.lastUsed.Unix() / 3600
}

// Stored is what pages know of where a key was used from, over all versions.
type Stored struct {
	Sources []StoredSource
	// Complete tells that no source is missing.
	Complete bool
}

// StoredSource is a source from which a key was used.
type StoredSource struct {
	Name string
	// First use, to the hour, and Last.
	First, Last time.Time
	Count       uint64
}

// stored sums up the sources of a key, by name.
func (k *keyPage) stored() Stored {
	if k == nil {
		return Stored{}
	}
	all := map[string]StoredSource{}
	complete := k.Lost == 0
	for _, sources := range k.Versions {
		for name, s := range sources {
			if name == Other {
				complete = complete && s.Count == 0
				continue
			}
			if s.Count == 0 {
				continue
			}
			sum, also := all[name]
			sum.Name = name
			sum.Count += s.Count
			sum.Last = later(sum.Last, s.lastUsed())
			if first := s.firstUse(); !also || first.Before(sum.First) {
				sum.First = first
			}
			all[name] = sum
		}
	}
	stored := Stored{Complete: complete}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		stored.Sources = append(stored.Sources, all[name])
	}
	return stored
}

// firstUse is when the source was first used: where an older plugin did not
// note it, the first hour that is kept, or its last use.
func (s *sourcePage) firstUse() time.Time {
	if s.First > 0 {
		return time.Unix(s.First*3600, 0).UTC()
	}
	first := s.LastUsed / 3600_000
	if len(s.Hours) > 0 {
		first = min(first, s.Hours[0].slot)
	}
	return time.Unix(first*3600, 0).UTC()
}
