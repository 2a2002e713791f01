// SPDX-License-Identifier: MPL-2.0

package usage

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
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
	data, err := encodePage(p)
	if err != nil || !strings.Contains(string(data), `"schema":2`) || !strings.Contains(string(data), `"later":1`) || !strings.Contains(string(data), `"later":{"a":1}`) {
		t.Fatalf("it is stored as %s, %v", data, err)
	}
	if p, err = decodePage(data); err != nil {
		t.Fatal(err)
	}
	k := p.Keys["k"]
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
	if before, count := k.hours(490_004); !slices.Equal(before, []uint64{7, 0, 0, 6}) || count != 2 {
		t.Errorf("before the last hour %v, in it %d", before, count)
	}
}

// FuzzPage decodes anything as a page: it is damaged, or is stored, after a flush
// has added to each of its keys, as what reads the same.
func FuzzPage(f *testing.F) {
	for _, page := range []string{
		`{"schema":2,"serial":7,"keys":{"k":{"v":{"1":{"c|eu":{"c":12,"r":1,"e":1,"l":1767574200000,"f":490992,"h":"8Psdx+bTBQ=="}}},"t":"8Psdx+bTBQ==","x":3,"later":[1]}},"later":2}`,
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
		for id := range p.Keys {
			p.add(id, delta{7: {"c|us": addition{counts: counts{count: 3, hours: series{{491_000, 3}}}}}}, now)
			k := p.Keys[id]
			if before, _ := k.hours(491_001); len(before) > keepTotals || k.Totals.from(491_000)[0].count < 3 {
				t.Errorf("%d hours are judged, totals are %v", len(before), k.Totals)
			}
		}
		unknown := len(p.extra) > 0
		for _, k := range p.Keys {
			unknown = unknown || len(k.extra) > 0
		}
		stored, err := encodePage(p)
		if err != nil {
			t.Fatalf("it cannot be stored: %v", err)
		}
		if unknown {
			return // they may differ from known ones by case only
		}
		again, err := decodePage(stored)
		if err != nil {
			t.Fatalf("stored as %s it is damaged", stored)
		}
		twice, err := encodePage(again)
		if err != nil || string(twice) != string(stored) {
			t.Errorf("%s\nis stored anew as\n%s, %v", stored, twice, err)
		}
	})
}
