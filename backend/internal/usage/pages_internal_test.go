// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestASeriesIsOneString which reads back as it was, and takes what size says.
func TestASeriesIsOneString(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		counts := map[int64]uint64{}
		first := random.Int64N(600_000)
		for range random.IntN(200) {
			counts[first+random.Int64N(1+random.Int64N(9000))] = 1 + random.Uint64N(1+random.Uint64N(math.MaxUint64))
		}
		s := seriesOf(counts)
		data, err := json.Marshal(s)
		if err != nil || len(data) != s.size() || data[0] != '"' {
			t.Fatalf("%v is %s, %v; size says %d of %d", s, data, err, s.size(), len(data))
		}
		var read series
		if err := json.Unmarshal(data, &read); err != nil || !slices.Equal(read, s) {
			t.Fatalf("%s reads %v, %v; it was %v", data, read, err, s)
		}
	}
}

// TestHoursAreCompact: a full week of some hundred uses in each hour, and what is
// sparse, however long it is kept.
func TestHoursAreCompact(t *testing.T) {
	t.Parallel()
	full := map[int64]uint64{}
	for h := range int64(168) {
		full[490_000+h] = 350
	}
	if size := seriesOf(full).size(); size > 460 {
		t.Errorf("a full week takes %d bytes", size)
	}
	if size := seriesOf(map[int64]uint64{490_000: 1, 498_760: 1}).size(); size > 20 {
		t.Errorf("two hours, a year apart, take %d bytes", size)
	}
}

// TestAPageOfSchema1IsRead, its hours as they were and the totals of them, and is
// stored as what an older plugin refuses.
func TestAPageOfSchema1IsRead(t *testing.T) {
	t.Parallel()
	p, err := decodePage([]byte(`{"schema":1,"serial":3,"keys":{"k":{"v":{
		"1":{"c|eu":{"c":12,"f":490000,"h":{"490003":5,"490000":7}},"c|us":{"c":1,"h":{"490003":1}},"c|none":null},
		"2":{"c|eu":{"c":2,"h":{"490004":2,"":9,"x":9,"-4":9}}}},"later":1}},"later":{"a":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	p.trim(oldest{})
	data, err := encodePage(p)
	if err != nil || !strings.Contains(string(data), `"schema":2`) || !strings.Contains(string(data), `"later":1`) || !strings.Contains(string(data), `"later":{"a":1}`) || strings.Contains(string(data), `490000":`) {
		t.Fatalf("it is stored as %s, %v", data, err)
	}
	if p, err = decodePage(data); err != nil {
		t.Fatal(err)
	}
	k, err := p.key("k")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ got, want series }{
		"totals":  {k.Totals, series{{490_000, 7}, {490_003, 6}, {490_004, 2}}},
		"1 in eu": {k.Versions[1]["c|eu"].Hours, series{{490_000, 7}, {490_003, 5}}},
		"1 in us": {k.Versions[1]["c|us"].Hours, series{{490_003, 1}}},
		"2 in eu": {k.Versions[2]["c|eu"].Hours, series{{490_004, 2}}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
	if before, count := k.hours(490_004, nil); !slices.Equal(before, []uint64{7, 0, 0, 6}) || count != 2 {
		t.Errorf("before the last hour %v, in it %d", before, count)
	}
}

// FuzzMembers takes objects apart as encoding/json does, and anything else without
// harm.
func FuzzMembers(f *testing.F) {
	for _, object := range []string{
		`{}`, ` { "a" : 1 , "b":[ "}" , {"c":"\\"} ] ,"\u0061":"\"," , "":null, "é":-1e5 } `, `{"a":{"b":[]}`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{"a":"x\"}`, `{} {}`, `[]`, `{"a":1]`, `{"a":[}}`,
	} {
		f.Add([]byte(object))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := map[string]string{}
		err := members(data, func(name string, value []byte) error {
			got[name] = string(value)
			return nil
		})
		var want map[string]json.RawMessage
		if json.Unmarshal(data, &want) != nil || want == nil {
			return // whoever decodes the members finds what is wrong
		}
		if err != nil || len(got) != len(want) {
			t.Fatalf("%q has %q, %v", data, got, err)
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Errorf("%q of %q is %q, want %q", name, data, got[name], value)
			}
		}
	})
}

// FuzzPage decodes anything as a page: it is damaged, or is stored, after a flush
// has added to each of its keys that is not, as what reads the same.
func FuzzPage(f *testing.F) {
	for _, page := range []string{
		`{"schema":2,"serial":7,"keys":{"k":{"v":{"1":{"c|eu":{"c":12,"r":1,"e":1,"l":1767574200000,"f":490992,"h":"8Psdx+bTBQ=="}}},"t":"8Psdx+bTBQ==","x":3,"later":[1]}},"later":2}`,
		`{"schema":2,"keys":{"k":{"t":"8Psdx+bTBQ==","s":490900}},"at":1767570000,"gaps":[[490950,490960],[490999,9000000000000000000]]}`,
		`{"schema":1,"keys":{"k":{"v":{"1":{"c|eu":{"c":12,"h":{"490992":12,"0":3}},"other":null},"2":null}},"gone":null}}`,
		`{"schema":2,"keys":{"k":{"v":{"1":{"c|eu":{"h":"AAAAAA=="}}}}}}`, `{"schema":2,"keys":{"k":{"t":"gICAgICAgICAgAE="}}}`,
		`{"schema":3}`, `{"schema":2,"keys":[]}`, `{}`, `null`, ``, `{"schema":2,"keys":{"k":{"v":{"x":{}}}}}`,
	} {
		f.Add([]byte(page))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodePage(data)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatalf("it is refused with %v", err)
			}
			return
		}
		now := oldest{hours: 490_900, totals: 490_300}
		p.note(time.Unix(491_000*3600, 0), time.Unix(491_000*3600, 0))
		p.each(func(id string, _ *keyPage) bool {
			p.add(id, delta{7: {"c|us": addition{counts: counts{count: 3, hours: series{{491_000, 3}}}}}}, now)
			k := p.keys[id].key
			if before, _ := k.hours(491_001, p.gaps); len(before) > keepTotals || k.Totals.from(491_000)[0].count < 3 {
				t.Errorf("%d hours are judged, totals are %v", len(before), k.Totals)
			}
			return true
		})
		stored, err := encodePage(p)
		if err != nil {
			t.Fatalf("it cannot be stored: %v", err)
		}
		again, err := decodePage(stored)
		if err != nil {
			t.Fatalf("stored as %s it is damaged", stored)
		}
		again.each(func(string, *keyPage) bool { return true })
		twice, err := encodePage(again)
		if err != nil || string(twice) != string(stored) {
			t.Errorf("%s\nis stored anew as\n%s, %v", stored, twice, err)
		}
	})
}

// fullWeek is a page of keys that were used in each hour of a week, from two
// sources, and of four weeks.
func fullWeek(keys int) *page {
	p := newPage()
	var week series
	for h := range int64(keepTotals) {
		week.add(490_000+h, 350+uint64(h), lastSlot)
	}
	for i := range keys {
		add := addition{counts{count: 1000, hours: week}, time.UnixMilli(1_767_574_200_000)}
		p.add(fmt.Sprintf("key%09d", i), delta{1: {"entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|eu": add, "entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|us": add}},
			oldest{hours: 490_000 + keepTotals - 168})
	}
	return p
}

// TestAReadDecodesOneKey: the whole page costs many times as much.
func TestAReadDecodesOneKey(t *testing.T) { //nolint:paralleltest // it compares times
	const keys = 80
	data, err := encodePage(fullWeek(keys))
	if err != nil {
		t.Fatal(err)
	}
	timed := func(f func(*page)) time.Duration {
		best := time.Duration(math.MaxInt64)
		for range 20 {
			began := time.Now()
			p, err := decodePage(data)
			if err != nil {
				t.Fatal(err)
			}
			f(p)
			best = min(best, time.Since(began))
		}
		return best
	}
	one := timed(func(p *page) {
		if k, err := p.key("key000000007"); err != nil || len(k.Totals) != keepTotals {
			t.Fatalf("%v, %v", k, err)
		}
	})
	all := timed(func(p *page) { p.each(func(string, *keyPage) bool { return false }) })
	t.Logf("of a page of %d KiB with %d keys one takes %s, all %s", len(data)>>10, keys, one, all)
	if all < 10*one {
		t.Errorf("one key takes %s, all %s", one, all)
	}
}

// TestAMonthOf100000KeysIsBounded measures what the package comment says of 100,000
// keys that were used in each hour of a week, and of four, each from two sources.
func TestAMonthOf100000KeysIsBounded(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIP: -short leaves out what encodes and decodes some hundred megabytes")
	}
	const keys = 100_000
	for _, hours := range []int64{168, keepTotals} {
		d, tracker, b := drawered()
		now := noon.Unix() / 3600
		var used series
		for h := now - hours; h < now; h++ {
			used.add(h, 350, lastSlot)
		}
		add := addition{counts{count: 350 * uint64(hours), hours: used}, noon}
		one := newPage()
		one.add("", delta{1: {"entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|eu": add, "entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|us": add}}, b.oldest(noon))
		record, err := one.keys[""].key.encode()
		if err != nil {
			t.Fatal(err)
		}
		all := newPage()
		for i := range keys {
			all.keys[fmt.Sprintf("key%09d", i)] = &onPage{stored: record}
		}
		// As flushes would have split it.
		var store func(name string, p *page)
		store = func(name string, p *page) {
			if p.size() > splitSize {
				for half, p := range p.split(name) {
					store(half, p)
				}
				return
			}
			if d[name], err = encodePage(p); err != nil {
				t.Fatal(err)
			}
		}
		store(root, all)
		for i := range keys {
			tracker.Record(noon, fmt.Sprintf("key%09d", i), 1, "entity:0f5c3e9a-7d10-4c1b-9f0e-1c2d3e4f5a6b|eu", true)
		}
		flushes := 0
		for ; !b.Idle(); flushes++ {
			if err := b.Flush(t.Context(), noon, 168*time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		largest, sum := 0, 0
		for _, data := range d {
			largest, sum = max(largest, len(data)), sum+len(data)
		}
		t.Logf("%d hours of %d keys: %d pages, the largest of %d KiB, %d MiB together; what all of them count is stored after %d flushes; outlines take %d KiB",
			hours, keys, len(d), largest>>10, sum>>20, flushes, b.outlines.size>>10)
		if largest >= 512<<10 || sum > 400<<20 || flushes != (len(d)+maxWrites-1)/maxWrites && flushes > 30 {
			t.Errorf("%d flushes, %d bytes, a page has %d", flushes, sum, largest)
		}
		use, err := b.Read(t.Context(), "key000077777", noon)
		if got := use[1].Count; err != nil || got != 700*uint64(hours)+1 {
			t.Errorf("a key was used %d times, %v", got, err)
		}
	}
}
