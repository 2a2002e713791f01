// SPDX-License-Identifier: MPL-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/health"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// open are rollovers under way, by the id of their key.
type open struct {
	ids   []string
	err   error
	judge func(ctx context.Context, id string) (Rollover, error)
	asked int
}

func (o *open) IDs(context.Context) ([]string, error) { return o.ids, o.err }

func (o *open) Judge(ctx context.Context, id string) (Rollover, error) {
	o.asked++
	return o.judge(ctx, id)
}

func none() *open { return &open{} }

func text(t *testing.T, m *Metrics, r Rollovers) string {
	t.Helper()
	var b strings.Builder
	incomplete, err := m.Write(t.Context(), &b, r)
	if err != nil || incomplete != nil {
		t.Fatalf("Write: %v, %v", incomplete, err)
	}
	return b.String()
}

// wants fails the test unless each line stands in the text as a whole.
func wants(t *testing.T, text string, lines ...string) {
	t.Helper()
	has := strings.Split(text, "\n")
	for _, line := range lines {
		if !slices.Contains(has, line) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}

func TestVerificationsAreCountedByRoleAndCode(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "v1.2.3", "abc")
	m.Verified("trading", record.CodeValid)
	m.Verified("trading", record.CodeValid)
	m.Verified("trading", record.CodeRetired)
	m.Verified("trading", record.CodeNotFound) // tells nothing of the role
	m.Unknown(record.CodeMalformed)
	wants(t, text(t, m, none()),
		`apikeys_verifications_total{code="VALID",role="trading"} 2`,
		`apikeys_verifications_total{code="RETIRED",role="trading"} 1`,
		`apikeys_verifications_total{code="COMPROMISED",role="trading"} 0`,
		`apikeys_verifications_total{code="NOT_FOUND",role=""} 1`,
		`apikeys_verifications_total{code="MALFORMED",role=""} 1`,
		`apikeys_rotations_total{role="trading",trigger="scheduled"} 0`,
		`apikeys_build_info{commit="abc",version="v1.2.3"} 1`,
	)
}

func TestACountedVerificationAllocatesNothing(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "", "")
	role := "trading"
	m.Verified(role, record.CodeValid)
	// Other tests run at the same time, so allocations are counted by a benchmark.
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.Verified(role, record.CodeInsufficientScope)
			m.Unknown(record.CodeNotFound)
		}
	})
	if result.N > 1000 && result.AllocsPerOp() > 0 {
		t.Errorf("%d allocations for two verifications", result.AllocsPerOp())
	}
}

func BenchmarkVerified(b *testing.B) {
	m := New(clock.NewManual(epoch), "", "")
	for i := range 100 {
		m.Verified(fmt.Sprint("role", i), record.CodeValid)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Verified("role50", record.CodeValid)
		}
	})
}

func TestRolesAreBounded(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "", "")
	for i := range MaxRoles + 50 {
		m.Verified(fmt.Sprint("role", i), record.CodeValid)
	}
	m.Verified("role0", record.CodeValid)
	out := text(t, m, none())
	wants(t, out,
		`apikeys_verifications_total{code="VALID",role="role0"} 2`,
		`apikeys_verifications_total{code="VALID",role="other"} 50`,
	)
	if n := strings.Count(out, `code="VALID"`); n != MaxRoles+1 {
		t.Errorf("%d roles are told apart, want %d and the rest", n, MaxRoles)
	}
}

func TestRotationsAreCountedByWhatMadeThem(t *testing.T) {
	t.Parallel()
	created := keyring.Event{Type: keyring.EventVersionCreated, Actor: "token-ops"}
	periodic := keyring.Event{Type: keyring.EventVersionCreated, Actor: keyring.ActorPeriodic}
	retired := keyring.Event{Type: keyring.EventVersionRetired, Actor: keyring.ActorPeriodic}
	revoked := keyring.Event{Type: keyring.EventVersionRevoked}
	compromised := keyring.Event{Type: keyring.EventVersionCompromised}
	before := &keyring.Key{Role: "r", Job: "first"}
	for name, tt := range map[string]struct {
		prev   *keyring.Key
		job    string
		events []keyring.Event
		want   string
	}{
		"a new key":                  {nil, "", []keyring.Event{created}, ""},
		"no new version":             {before, "first", []keyring.Event{retired}, ""},
		"by hand":                    {before, "first", []keyring.Event{created}, "manual"},
		"by the schedule":            {before, "first", []keyring.Event{retired, periodic}, "scheduled"},
		"by a job":                   {before, "second", []keyring.Event{created}, "job"},
		"by the end of a version":    {before, "first", []keyring.Event{revoked, created}, "emergency"},
		"by a leak":                  {before, "first", []keyring.Event{created, compromised}, "emergency"},
		"by a leak, found by a tick": {before, "first", []keyring.Event{compromised, periodic}, "emergency"},
		"the end of a version alone": {before, "first", []keyring.Event{revoked}, ""},
		"by hand, after a job":       {&keyring.Key{Role: "r"}, "", []keyring.Event{created}, "manual"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := New(clock.NewManual(epoch), "", "")
			m.Committed(tt.prev, &keyring.Key{Role: "r", Job: tt.job}, tt.events)
			out := text(t, m, none())
			for _, trigger := range triggers {
				n := 0
				if trigger == tt.want {
					n = 1
				}
				wants(t, out, fmt.Sprintf(`apikeys_rotations_total{role="r",trigger="%s"} %d`, trigger, n))
			}
			for _, e := range tt.events {
				wants(t, out, fmt.Sprintf(`apikeys_transitions_total{type="%s"} 1`, e.Type))
			}
		})
	}
}

// constants returns the values that constants of a type have in a file of keyring.
func constants(t *testing.T, file, kind string) []string {
	t.Helper()
	source, err := os.ReadFile(filepath.Join("..", "keyring", file))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, match := range regexp.MustCompile(`(?m)^\s+\w+\s+`+kind+`\s+= "([^"]+)"$`).FindAllStringSubmatch(string(source), -1) {
		found = append(found, match[1])
	}
	if len(found) == 0 {
		t.Fatalf("no %s in %s", kind, file)
	}
	return slices.Sorted(slices.Values(found))
}

func TestEveryEventAndEveryCodeBeginsAtZero(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "", "")
	m.role("r")
	out := text(t, m, none())
	for _, event := range constants(t, "key.go", "EventType") {
		wants(t, out, fmt.Sprintf(`apikeys_transitions_total{type="%s"} 0`, event))
	}
	for _, code := range record.Codes() {
		role := "r"
		if code == record.CodeNotFound || code == record.CodeMalformed {
			role = ""
		}
		wants(t, out, fmt.Sprintf(`apikeys_verifications_total{code="%s",role="%s"} 0`, code, role))
	}
}

func TestTicksAreMeasured(t *testing.T) {
	t.Parallel()
	c := clock.NewManual(epoch)
	m := New(c, "", "")
	wants(t, text(t, m, none()), `apikeys_tick_last_success_timestamp_seconds 1.7675712e+09`)
	c.Advance(time.Minute)
	m.Ticked(20*time.Millisecond, 45*time.Second, jobs.Summary{Keys: 7, Damaged: 1}, nil)
	done := text(t, m, none())
	wants(t, done,
		`apikeys_tick_duration_seconds_bucket{le="0.005"} 0`, `apikeys_tick_duration_seconds_bucket{le="0.025"} 1`,
		`apikeys_tick_duration_seconds_count 1`, `apikeys_tick_lag_seconds 45`, `apikeys_tick_keys_total 7`,
		`apikeys_tick_damaged_keys_total 1`, `apikeys_ticks_total{result="ok"} 1`,
		`apikeys_tick_last_success_timestamp_seconds 1.76757126e+09`,
	)
	c.Advance(time.Minute)
	m.Ticked(time.Second, 7*time.Minute, jobs.Summary{}, errors.New("storage is away"))
	m.Ticked(0, 0, jobs.Summary{}, jobs.ErrClockLeapt)
	m.Ticked(0, 0, jobs.Summary{}, fmt.Errorf("stop: %w", context.Canceled))
	wants(t, text(t, m, none()),
		`apikeys_ticks_total{result="ok"} 1`, `apikeys_ticks_total{result="failed"} 1`, `apikeys_ticks_total{result="suspended"} 1`,
		`apikeys_tick_duration_seconds_count 2`, `apikeys_tick_lag_seconds 420`,
		`apikeys_tick_last_success_timestamp_seconds 1.76757126e+09`,
	)
}

func TestRolloversAreJudgedAtMostEveryHalfMinute(t *testing.T) {
	t.Parallel()
	c := clock.NewManual(epoch)
	m := New(c, "", "")
	found := map[string]Rollover{
		"a": {Health: health.OnTrack, Ends: epoch.Add(3 * time.Hour)},
		"b": {Health: health.Stalled, Ends: epoch.Add(time.Hour)},
		"c": {Health: health.OnTrack}, // pending: no overlap yet
		"d": {Over: true, Health: health.Failed, Ends: epoch.Add(time.Second)},
		"e": {},
	}
	r := &open{ids: []string{"a", "b", "c", "d", "e", "f"}}
	r.judge = func(_ context.Context, id string) (Rollover, error) {
		if judged, ok := found[id]; ok {
			return judged, nil
		}
		return Rollover{}, errors.New("the entry is damaged")
	}
	out := text(t, m, r)
	wants(t, out, `apikeys_rollovers{health="on_track"} 2`, `apikeys_rollovers{health="stalled"} 1`, `apikeys_rollovers{health="at_risk"} 0`,
		`apikeys_rollovers{health="failed"} 0`, `apikeys_rollovers{health="unknown"} 2`, `apikeys_overlap_seconds_left_min 3600`)

	c.Advance(29 * time.Second)
	found["b"] = Rollover{Health: health.Failed}
	wants(t, text(t, m, r), `apikeys_rollovers{health="stalled"} 1`, `apikeys_overlap_seconds_left_min 3571`)
	if r.asked != 6 {
		t.Errorf("judged %d times, want 6", r.asked)
	}
	c.Advance(time.Second)
	wants(t, text(t, m, r), `apikeys_rollovers{health="failed"} 1`, `apikeys_rollovers{health="stalled"} 0`, `apikeys_overlap_seconds_left_min 10770`)

	// No overlap, no time left of it.
	c.Advance(time.Minute)
	if out := text(t, m, none()); strings.Contains(out, "overlap_seconds_left_min ") {
		t.Errorf("time is left where there is no rollover:\n%s", out)
	}
}

func TestJudgingRolloversIsBounded(t *testing.T) {
	t.Parallel()
	judged := func(context.Context, string) (Rollover, error) { return Rollover{Health: health.OnTrack}, nil }
	named := func(n int) (ids []string) {
		for i := range n {
			ids = append(ids, fmt.Sprintf("key%04d", i))
		}
		return ids
	}
	many := &open{ids: named(maxJudged + 200), judge: judged}
	wants(t, text(t, New(clock.NewManual(epoch), "", ""), many), `apikeys_rollovers{health="on_track"} 1000`, `apikeys_rollovers{health="unknown"} 200`)

	c := clock.NewManual(epoch)
	slow := &open{ids: named(100), judge: func(ctx context.Context, id string) (Rollover, error) {
		c.Advance(time.Second)
		return judged(ctx, id)
	}}
	m := New(c, "", "")
	wants(t, text(t, m, slow), `apikeys_rollovers{health="on_track"} 3`, `apikeys_rollovers{health="unknown"} 97`)

	// The next samples go on with the others, and what is over is forgotten.
	for range 33 {
		c.Advance(sampleLife)
		text(t, m, slow)
	}
	c.Advance(sampleLife)
	slow.ids = slow.ids[10:]
	wants(t, text(t, m, slow), `apikeys_rollovers{health="on_track"} 90`, `apikeys_rollovers{health="unknown"} 0`)
}

func TestRolloversThatCannotBeReadAreLeftOut(t *testing.T) {
	t.Parallel()
	c := clock.NewManual(epoch)
	m := New(c, "", "")
	r := &open{ids: []string{"a"}, judge: func(context.Context, string) (Rollover, error) { return Rollover{Health: health.AtRisk}, nil }}
	text(t, m, r)
	c.Advance(time.Minute)
	r.err = errors.New("storage is away")
	var b strings.Builder
	incomplete, err := m.Write(t.Context(), &b, r)
	if !errors.Is(incomplete, r.err) || err != nil {
		t.Errorf("Write: %v, %v", incomplete, err)
	}
	if strings.Contains(b.String(), "apikeys_rollovers{") || !strings.Contains(b.String(), "apikeys_build_info{") {
		t.Errorf("wrote\n%s", b.String())
	}
	r.err = nil
	wants(t, text(t, m, r), `apikeys_rollovers{health="at_risk"} 1`)
}

func TestOutboxesAndCachesAreReadWhenAsked(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "", "")
	if out := text(t, m, none()); strings.Contains(out, "apikeys_outbox_depth{") || strings.Contains(out, "apikeys_cache_requests_total{") {
		t.Errorf("told of what nobody has set:\n%s", out)
	}
	depth := map[string]int{"crm": 3, "siem": 0}
	m.SetOutbox(func() map[string]int { return depth })
	m.SetCaches(func() []store.CacheUse { return []store.CacheUse{{Cache: "keys", Hits: 5, Misses: 2}} })
	wants(t, text(t, m, none()), `apikeys_outbox_depth{hook="crm"} 3`, `apikeys_outbox_depth{hook="siem"} 0`,
		`apikeys_cache_requests_total{cache="keys",result="hit"} 5`, `apikeys_cache_requests_total{cache="keys",result="miss"} 2`)

	clear(depth)
	for i := range maxHooks + 5 {
		depth[fmt.Sprintf("hook%06d", i)] = 2
	}
	wants(t, text(t, m, none()), `apikeys_outbox_depth{hook="hook000999"} 2`, `apikeys_outbox_depth{hook=""} 10`)
}

func TestWhatVerifiersAskIsCounted(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "", "")
	wants(t, text(t, m, none()), `apikeys_syncs_total{result="reset"} 0`, `apikeys_lookups_total{result="limited"} 0`)
	m.SetVerifiers(func() int { return 3 })
	m.Synced(true, true)
	m.Synced(false, true)
	m.Synced(false, false)
	m.Synced(false, false)
	m.LookedUp(5, 4, 3, 2)
	wants(t, text(t, m, none()), `apikeys_verifiers_live 3`,
		`apikeys_syncs_total{result="first"} 1`, `apikeys_syncs_total{result="reset"} 1`, `apikeys_syncs_total{result="changes"} 2`,
		`apikeys_lookups_total{result="found"} 5`, `apikeys_lookups_total{result="missing"} 4`,
		`apikeys_lookups_total{result="limited"} 3`, `apikeys_lookups_total{result="unreadable"} 2`)
}

func TestConcurrentUseCountsEverything(t *testing.T) {
	t.Parallel()
	m := New(clock.NewManual(epoch), "", "")
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 500 {
				m.Verified(fmt.Sprint("role", i%50), record.CodeValid)
				if i%100 == worker {
					_ = text(t, m, none())
				}
			}
		})
	}
	all.Wait()
	out := text(t, m, none())
	for i := range 50 {
		wants(t, out, fmt.Sprintf(`apikeys_verifications_total{code="VALID",role="role%d"} 40`, i))
	}
}

// full are the metrics of a mount that has something to tell of each.
func full(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	m := New(clock.NewManual(epoch), "v1", "c")
	m.role("trading")
	m.SetOutbox(func() map[string]int { return map[string]int{"crm": 1} })
	m.SetCaches(func() []store.CacheUse { return []store.CacheUse{{Cache: "keys"}} })
	m.SetVerifiers(func() int { return 3 })
	_ = text(t, m, &open{ids: []string{"a"}, judge: func(context.Context, string) (Rollover, error) {
		return Rollover{Health: health.OnTrack, Ends: epoch.Add(time.Hour)}, nil
	}})
	families, err := m.gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	problems, err := promlint.NewWithMetricFamilies(full(t)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// page is the documentation of the metrics.
const page = "../../../docs/how-to/monitor-with-prometheus.md"

func TestThePageHasEveryMetric(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ kind, labels string }
	got := map[string]row{}
	for _, match := range regexp.MustCompile("(?m)^\\| `(apikeys_\\w+)` \\| (\\w+) \\|([^|]*)\\| ([^|]+) \\|$").FindAllStringSubmatch(string(source), -1) {
		if _, twice := got[match[1]]; twice {
			t.Errorf("the page has %s twice", match[1])
		}
		if strings.TrimSpace(match[4]) == "" {
			t.Errorf("the page does not say what %s means", match[1])
		}
		labels := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(match[3], -1)
		var names []string
		for _, l := range labels {
			names = append(names, l[1])
		}
		slices.Sort(names)
		got[match[1]] = row{match[2], strings.Join(names, ",")}
	}
	for _, family := range full(t) {
		var names []string
		for _, pair := range family.GetMetric()[0].GetLabel() {
			names = append(names, pair.GetName())
		}
		slices.Sort(names)
		want := row{strings.ToLower(family.GetType().String()), strings.Join(names, ",")}
		name := family.GetName()
		if have, ok := got[name]; !ok {
			t.Errorf("the page has no row for %s", name)
		} else if have != want {
			t.Errorf("the page says of %s %+v, the registry %+v", name, have, want)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("the page has %s, the registry not", name)
	}
}
