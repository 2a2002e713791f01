// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	mathbits "math/bits"
	"slices"
	"strconv"
)

// series counts by time slot, sparse and in ascending order of the slots.
type series []bucket

// bucket is the count of one slot: a minute or an hour since 1970.
type bucket struct {
	slot  int64
	count uint64
}

const (
	// keepMinutes and keepHours are how many slots before the newest one a
	// series in memory keeps at most; the hours wait there for a flush only.
	keepMinutes = 60
	keepHours   = 31 * 24
	// lastSlot bounds the slots of a page.
	lastSlot = 1 << 40
)

// add counts n in a slot, and forgets slots that lie over keep before the
// newest one. Slots come in any order: reports can be late.
func (s *series) add(slot int64, n uint64, keep int64) {
	list := *s
	least := slot - keep
	if len(list) > 0 {
		least = max(least, list[len(list)-1].slot-keep)
	}
	cut := 0
	for cut < len(list) && list[cut].slot < least {
		cut++
	}
	list = list[cut:]
	i := len(list)
	for i > 0 && list[i-1].slot > slot {
		i--
	}
	switch {
	case i > 0 && list[i-1].slot == slot:
		list[i-1].count += n
	case slot >= least:
		list = append(list, bucket{})
		copy(list[i+1:], list[i:])
		list[i] = bucket{slot, n}
	}
	*s = list
}

// from returns the slots from least on.
func (s series) from(least int64) series {
	for i, b := range s {
		if b.slot >= least {
			return s[i:]
		}
	}
	return nil
}

// seriesOf is the series of counts by slot.
func seriesOf(counts map[int64]uint64) series {
	s := make(series, 0, len(counts))
	for slot, n := range counts {
		if n > 0 && slot >= 0 && slot <= lastSlot {
			s = append(s, bucket{slot, n})
		}
	}
	slices.SortFunc(s, func(a, b bucket) int { return cmp.Compare(a.slot, b.slot) })
	return s
}

// MarshalJSON returns one string: in base64, as uvarints, the first slot, and the
// counts from it on, where a 0 is followed by how many slots in a row have none.
func (s series) MarshalJSON() ([]byte, error) {
	if len(s) == 0 {
		return []byte(`""`), nil
	}
	packed := make([]byte, 0, s.packed())
	next := s[0].slot
	packed = binary.AppendUvarint(packed, uint64(next)) //nolint:gosec // a slot is not negative
	for _, b := range s {
		if b.slot > next {
			packed = binary.AppendUvarint(append(packed, 0), uint64(b.slot-next)) //nolint:gosec // it is positive
		}
		packed = binary.AppendUvarint(packed, b.count)
		next = b.slot + 1
	}
	data := make([]byte, 0, s.size())
	data = append(data, '"')
	data = base64.StdEncoding.AppendEncode(data, packed)
	return append(data, '"'), nil
}

// UnmarshalJSON reads what MarshalJSON returns, and the object of counts by slot
// that pages of schema 1 have. What it takes in memory is at most 16 times what it
// reads, whatever that claims.
func (s *series) UnmarshalJSON(data []byte) error {
	*s = nil
	switch {
	case string(data) == "null":
		return nil
	case len(data) > 0 && data[0] == '{':
		var named map[string]uint64
		if err := json.Unmarshal(data, &named); err != nil {
			return err
		}
		counts := make(map[int64]uint64, len(named))
		for name, n := range named {
			if slot, err := strconv.ParseInt(name, 10, 64); err == nil {
				counts[slot] = n
			}
		}
		*s = seriesOf(counts)
		return nil
	case len(data) < 2 || data[0] != '"' || data[len(data)-1] != '"':
		return errDamaged
	}
	packed, err := base64.StdEncoding.AppendDecode(nil, data[1:len(data)-1])
	if err != nil {
		return errDamaged
	}
	if len(packed) == 0 {
		return nil
	}
	ok := true
	next := func() uint64 {
		n, length := binary.Uvarint(packed)
		if length <= 0 {
			ok = false
			return 0
		}
		packed = packed[length:]
		return n
	}
	slot := next()
	list := make(series, 0, len(packed))
	for len(packed) > 0 && ok && slot <= lastSlot {
		if n := next(); n > 0 {
			list = append(list, bucket{int64(slot), n})
			slot++
		} else if skip := next(); skip == 0 || skip > lastSlot {
			ok = false
		} else {
			slot += skip
		}
	}
	if !ok || len(packed) > 0 || len(list) == 0 {
		return errDamaged
	}
	*s = slices.Clip(list)
	return nil
}

// size is what MarshalJSON returns, in bytes.
func (s series) size() int { return base64.StdEncoding.EncodedLen(s.packed()) + len(`""`) }

func (s series) packed() int {
	if len(s) == 0 {
		return 0
	}
	next := s[0].slot
	size := uvarint(uint64(next)) //nolint:gosec // a slot is not negative
	for _, b := range s {
		if b.slot > next {
			size += 1 + uvarint(uint64(b.slot-next)) //nolint:gosec // it is positive
		}
		size += uvarint(b.count)
		next = b.slot + 1
	}
	return size
}

// uvarint is how many bytes a number takes.
func uvarint(n uint64) int { return (max(mathbits.Len64(n), 1) + 6) / 7 }
