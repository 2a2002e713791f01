// SPDX-License-Identifier: MPL-2.0

package usage

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
