// SPDX-License-Identifier: MPL-2.0

package verifier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/vaultclient"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/verifier"
)

// reported adds up what was reported, by key, version and source, and checks
// the reports.
func (e *engine) reported(t testing.TB) map[string]uint64 {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	sums := map[string]uint64{}
	through, sequence, boot := time.Time{}, uint64(0), ""
	for _, r := range e.reports {
		if r.Boot != boot {
			boot, sequence, through = r.Boot, 0, time.Time{}
		}
		if r.Verifier != "edge-1" || r.Boot == "" || r.Sequence != sequence+1 {
			t.Errorf("report %s of boot %s, sequence %d after %d", r.Verifier, r.Boot, r.Sequence, sequence)
		}
		if r.ReportedThrough.Before(through) || r.ReportedThrough.After(e.now()) {
			t.Errorf("reported through %s after %s, at %s", r.ReportedThrough, through, e.now())
		}
		if len(r.Entries) > 1000 {
			t.Errorf("%d entries", len(r.Entries))
		}
		sequence, through = r.Sequence, r.ReportedThrough
		for _, u := range r.Entries {
			if u.LastUsed.After(e.now()) || u.Count == 0 && u.Refused == 0 {
				t.Errorf("entry %+v at %s", u, e.now())
			}
			sums[fmt.Sprintf("%s v%d %s", u.KeyID, u.Version, u.Source)] += u.Count
			sums[fmt.Sprintf("%s v%d %s refused", u.KeyID, u.Version, u.Source)] += u.Refused
		}
	}
	return sums
}

// toldOf checks that no version is told to have been unused since a use of it.
func (e *engine) toldOf(t testing.TB, used map[string]time.Time) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	told := map[string]time.Time{}
	for _, r := range e.reports {
		for _, u := range r.Entries {
			if of := fmt.Sprintf("%s v%d", u.KeyID, u.Version); u.Count > 0 && u.LastUsed.After(told[of]) {
				told[of] = u.LastUsed
			}
		}
	}
	for of, at := range used {
		// Times are told in milliseconds, of a clock that may drift.
		if told[of].Before(at.Add(-10 * time.Millisecond)) {
			t.Errorf("%s was used at %s, and is told to have been at %s for the last time", of, at, told[of])
		}
	}
}

func TestEveryUseIsReportedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, first := e.key(t)
		v := start(t, e)
		synctest.Wait()
		second := e.rotate(t, id, time.Hour)
		time.Sleep(poll + 700*time.Millisecond)
		var last time.Time // the use of both by all, at the same time
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for i := range 500 {
					v.accepts(first)
					v.accepts(second, verifier.Check{Source: "us"})
					if i == 499 {
						e.set(func() { last = time.Now() })
					}
					if i%100 == 0 {
						v.refuses(record.CodeInsufficientScope, second, verifier.Check{Scopes: []string{"admin"}})
						time.Sleep(3 * time.Second) // over several reports, and revalidations
					}
				}
			})
		}
		all.Wait()
		time.Sleep(40 * time.Second) // over reports
		v.stop()
		got := e.reported(t)
		e.toldOf(t, map[string]time.Time{id + " v1": last, id + " v2": last})
		for name, want := range map[string]uint64{
			id + " v1 eu": 4000, id + " v2 us": 4000, id + " v2 eu refused": 40, id + " v2 eu": 0, id + " v1 eu refused": 0,
		} {
			if got[name] != want {
				t.Errorf("%s: %d, want %d", name, got[name], want)
			}
		}
		if h := v.Health(); h.UnreportedUses != 0 || h.LostUses != 0 {
			t.Errorf("health %+v", h)
		}
	})
}

// TestASourceThatCannotBeReportedIsThatOfTheConfig: the engine would refuse its
// entry, and the use would be lost. It is the same where the use is accepted from
// cache, and where a fresh record judges it.
func TestASourceThatCannotBeReportedIsThatOfTheConfig(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		synctest.Wait()
		const others = 20
		bad := []string{"eu west", "\u00e9u", "eu\n", "eu|", "eu,us", "eu;", strings.Repeat("x", 129), "\xff"}
		for i := range 40 { // none of them takes the place of one that is good
			bad = append(bad, fmt.Sprint("bad ", i))
		}
		good := []string{strings.Repeat("x", 128), "AZaz09_.:/-", "eu"}
		for range others {
			for _, source := range slices.Concat(bad, good) {
				v.accepts(apiKey, verifier.Check{Source: source})
			}
			time.Sleep(time.Second)
		}
		for range others {
			for _, source := range slices.Concat(bad, good) {
				v.refuses(record.CodeInsufficientScope, apiKey, verifier.Check{Source: source, Scopes: []string{"admin"}})
			}
			time.Sleep(time.Second)
		}
		v.stop()
		got := e.reported(t)
		for i, source := range good {
			want := uint64(others)
			if i == len(good)-1 {
				want *= uint64(1 + len(bad))
			}
			for _, kind := range []string{" v1 " + source, " v1 " + source + " refused"} {
				if got[id+kind] != want {
					t.Errorf("%s: %d, want %d", kind, got[id+kind], want)
				}
			}
		}
		if len(got) != 2*len(good) {
			t.Errorf("reported %v", got)
		}
		if err := verifier.CheckSource(good[0]); err != nil {
			t.Error(err)
		}
		for _, source := range bad {
			if verifier.CheckSource(source) == nil {
				t.Errorf("%q may be named", source)
			}
		}
	})
}

// TestReportedThroughIsHonest: when a report arrives, every use up to what it
// says has arrived, also where it is one of many that an outage held back.
func TestReportedThroughIsHonest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		const kinds = 2500 // a report holds 1000
		var keys []string
		for range kinds {
			_, apiKey := e.key(t)
			keys = append(keys, apiKey)
		}
		var made []time.Time // guarded by the engine's lock
		arrived, said := 0, 0
		e.set(func() {
			e.spoilReport = func(r verifier.Report, _ *verifier.ReportAnswer) {
				for _, u := range r.Entries {
					arrived += int(u.Count)
				}
				due := 0
				for due < len(made) && !made[due].After(r.ReportedThrough) {
					due++
				}
				if due > arrived {
					t.Errorf("report %d says that all is told up to %s, when %d uses of %d have arrived", r.Sequence, r.ReportedThrough, arrived, due)
				}
				if !r.ReportedThrough.IsZero() {
					said++
				}
			}
		})
		v := start(t, e, func(c *verifier.Config) { c.FirstFill = true })
		time.Sleep(poll)
		for second := range 60 {
			e.set(func() { e.noReports = second >= 15 && second < 45 })
			for i := range kinds / 10 {
				e.set(func() { made = append(made, time.Now()) })
				v.accepts(keys[(second*kinds/10+i)%kinds])
			}
			time.Sleep(time.Second)
		}
		time.Sleep(25 * time.Second)
		e.set(func() {
			last := e.reports[len(e.reports)-1]
			if age := time.Since(last.ReportedThrough); age < time.Second || age > 12*time.Second {
				t.Errorf("reported through %s ago", age)
			}
			if arrived != len(made) || said < 5 {
				t.Errorf("%d of %d uses arrived, in %d reports that say up to when", arrived, len(made), said)
			}
		})
	})
}

// TestReportsSurviveAnOutage of ten minutes: what it holds back is counted once,
// up to the bound.
func TestReportsSurviveAnOutage(t *testing.T) {
	for name, c := range map[string]struct{ bound, keys, lost int }{
		"within the bound": {bound: 100, keys: 100},
		"beyond it":        {bound: 80, keys: 100, lost: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				var keys []string
				for range c.keys {
					_, apiKey := e.key(t)
					keys = append(keys, apiKey)
				}
				v := start(t, e, func(config *verifier.Config) { config.FirstFill, config.MaxUnreported = true, c.bound })
				time.Sleep(11 * time.Second) // it has reported that nothing was used
				e.set(func() { e.noReports = true })
				uses := uint64(0)
				for range 10 {
					for _, apiKey := range keys {
						v.accepts(apiKey)
						uses++
					}
					time.Sleep(time.Minute)
				}
				h := v.Health()
				if (h.LostUses > 0) != (c.lost > 0) || h.UnreportedUses+h.LostUses != uses {
					t.Errorf("%d lost and %d unreported of %d", h.LostUses, h.UnreportedUses, uses)
				}
				e.set(func() { e.noReports = false })
				time.Sleep(11 * time.Second)
				total := uint64(0)
				for _, n := range e.reported(t) {
					total += n
				}
				if total+h.LostUses != uses || v.Health().UnreportedUses != 0 {
					t.Errorf("%d were reported and %d lost of %d", total, h.LostUses, uses)
				}
			})
		})
	}
}

func TestAnEntryThatIsRefusedIsDroppedAndCounted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		bad, first := e.key(t)
		_, second := e.key(t)
		refused := 0
		e.set(func() {
			e.spoilReport = func(r verifier.Report, a *verifier.ReportAnswer) {
				for i, u := range r.Entries {
					if u.KeyID == bad {
						refused++
						a.Errors = append(a.Errors, verifier.EntryError{Index: i, Error: "no such key"})
					}
				}
				// Garbage counts for nothing.
				a.Errors = append(a.Errors, verifier.EntryError{Index: -1}, verifier.EntryError{Index: len(r.Entries)})
			}
		})
		v := start(t, e)
		synctest.Wait()
		v.accepts(first)
		v.accepts(first)
		v.accepts(second)
		time.Sleep(time.Minute)
		if h := v.Health(); h.LostUses != 2 || h.UnreportedUses != 0 || refused != 1 {
			t.Errorf("%d lost, %d unreported, told %d times; want 2, none, once", h.LostUses, h.UnreportedUses, refused)
		}
	})
}

// TestAReportThatMayHaveArrivedIsSentAgainAsItWas: its answer was lost.
func TestAReportThatMayHaveArrivedIsSentAgainAsItWas(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		lossy := &lossyReports{engine: e}
		v := start(t, e, func(c *verifier.Config) { c.Engine = lossy })
		synctest.Wait()
		for range 10 {
			v.accepts(apiKey)
			time.Sleep(5 * time.Second)
		}
		v.stop()
		byName := map[string]verifier.Report{}
		total := uint64(0)
		e.set(func() {
			for _, r := range e.reports {
				name := fmt.Sprint(r.Boot, r.Sequence)
				former, twice := byName[name]
				if twice && (!former.ReportedThrough.Equal(r.ReportedThrough) || !slices.Equal(former.Entries, r.Entries)) {
					t.Errorf("report %s came as %+v, then as %+v", name, former, r)
				}
				byName[name] = r
				if !twice {
					for _, u := range r.Entries {
						total += u.Count
					}
				}
			}
			if len(byName) == len(e.reports) {
				t.Error("no report was sent again")
			}
		})
		if total != 10 {
			t.Errorf("%d uses were counted, want 10", total)
		}
	})
}

// lossyReports takes every other report, and loses the answer.
type lossyReports struct {
	*engine
	n int
}

func (l *lossyReports) Report(ctx context.Context, r verifier.Report) (verifier.ReportAnswer, error) {
	r.Entries = slices.Clone(r.Entries)
	a, err := l.engine.Report(ctx, r)
	if l.n++; err == nil && l.n%2 == 1 {
		err = errDown
	}
	return a, err
}

// refusing refuses the reports that it does not like, as the engine does.
type refusing struct {
	*engine
	like func(verifier.Report) bool
}

func (e refusing) Report(ctx context.Context, r verifier.Report) (verifier.ReportAnswer, error) {
	if !e.like(r) {
		return verifier.ReportAnswer{}, &vaultclient.StatusError{Op: "write", Path: "apikeys/usage", Status: 400}
	}
	return e.engine.Report(ctx, r)
}

func TestAReportThatIsRefusedHoldsNoneUp(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		bad, first := e.key(t)
		good, second := e.key(t)
		v := start(t, e, func(c *verifier.Config) {
			c.Engine = refusing{e, func(r verifier.Report) bool {
				return !slices.ContainsFunc(r.Entries, func(u verifier.Use) bool { return u.KeyID == bad })
			}}
		})
		synctest.Wait()
		v.accepts(first)
		v.accepts(first)
		time.Sleep(15 * time.Second)
		v.accepts(second)
		time.Sleep(30 * time.Second)
		if h := v.Health(); h.LostUses != 2 || h.UnreportedUses != 0 {
			t.Errorf("%d lost and %d unreported, want 2 and none", h.LostUses, h.UnreportedUses)
		}
		e.set(func() {
			total, boot := uint64(0), e.syncs[0].Boot
			for _, r := range e.reports {
				for _, u := range r.Entries {
					if u.KeyID == good {
						total += u.Count
					}
				}
			}
			if total != 1 {
				t.Errorf("%d uses of the other key were reported, want 1", total)
			}
			if last := e.reports[len(e.reports)-1]; last.Boot == boot {
				t.Error("no new boot tells of the loss")
			}
		})
	})
}

func TestUseIsReportedAfterVaultsClockWentBack(t *testing.T) {
	for _, back := range []time.Duration{2 * time.Minute, time.Hour} {
		t.Run(back.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				id, apiKey := e.key(t)
				var went time.Time
				v := start(t, e, func(c *verifier.Config) {
					c.Engine = refusing{e, func(r verifier.Report) bool {
						e.mu.Lock()
						defer e.mu.Unlock()
						latest := r.ReportedThrough
						for _, u := range r.Entries {
							if u.LastUsed.After(latest) {
								latest = u.LastUsed
							}
						}
						if !went.IsZero() && time.Since(went) > 2*poll && latest.After(e.now()) {
							t.Errorf("reported through %s, last used %s, at %s", r.ReportedThrough, latest, e.now())
						}
						return latest.Sub(e.now()) <= 5*time.Minute
					}}
				})
				synctest.Wait()
				for i := range 60 {
					switch i {
					case 20: // a report fails, and has to be sent again
						e.set(func() { e.noReports = true })
					case 35:
						e.set(func() { e.ahead, went = -back, time.Now() })
					case 40:
						e.set(func() { e.noReports = false })
					}
					v.accepts(apiKey)
					time.Sleep(time.Second)
				}
				time.Sleep(20 * time.Second)
				if h := v.Health(); h.LostUses != 0 || h.UnreportedUses != 0 {
					t.Errorf("%d lost and %d unreported", h.LostUses, h.UnreportedUses)
				}
				total := uint64(0)
				e.set(func() {
					for _, r := range e.reports {
						for _, u := range r.Entries {
							if u.KeyID == id {
								total += u.Count
							}
						}
					}
					last := e.reports[len(e.reports)-1].ReportedThrough
					if age := e.now().Sub(last); age < time.Second || age > 12*time.Second {
						t.Errorf("reported through %s ago", age)
					}
				})
				if total != 60 {
					t.Errorf("%d uses were reported, want 60", total)
				}
			})
		})
	}
}

func TestWhatIsLostIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		var keys []string
		for range 500 {
			_, apiKey := e.key(t)
			keys = append(keys, apiKey)
		}
		v := start(t, e, func(c *verifier.Config) { c.MaxUnreported, c.FirstFill = 64, true })
		time.Sleep(poll)
		e.set(func() { e.noReports = true })
		for _, k := range keys {
			for _, source := range []string{"a", "b"} {
				v.accepts(k, verifier.Check{Source: source})
			}
			time.Sleep(50 * time.Millisecond)
		}
		h := v.Health()
		if h.LostUses == 0 || h.UnreportedUses+h.LostUses != 1000 {
			t.Errorf("%d lost and %d unreported of 1000", h.LostUses, h.UnreportedUses)
		}
		boot := ""
		e.set(func() { e.noReports = false; boot = e.syncs[0].Boot })
		time.Sleep(time.Minute)
		sums := e.reported(t)
		total := uint64(0)
		for _, n := range sums {
			total += n
		}
		if total+h.LostUses != 1000 {
			t.Errorf("%d reported and %d lost of 1000", total, h.LostUses)
		}
		e.set(func() {
			if last := e.reports[len(e.reports)-1]; last.Boot == boot {
				t.Error("no new boot tells of the loss")
			}
		})
	})
}

func TestEvictedKeysAreCounted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		var keys, ids []string
		for range 400 {
			id, apiKey := e.key(t)
			ids, keys = append(ids, id), append(keys, apiKey)
		}
		v := start(t, e, func(c *verifier.Config) { c.CacheSize = 16 })
		time.Sleep(poll)
		used := map[string]time.Time{}
		for range 3 {
			for i, k := range keys {
				v.accepts(k)
				time.Sleep(97 * time.Millisecond)
				v.accepts(k)
				used[ids[i]+" v1"] = time.Now()
			}
		}
		if n := v.Health().CachedKeys; n > 16 {
			t.Errorf("%d keys are cached, want at most 16", n)
		}
		v.stop()
		got := e.reported(t)
		e.toldOf(t, used)
		for _, id := range ids {
			if got[id+" v1 eu"] != 6 {
				t.Errorf("%s: %d uses, want 6", id, got[id+" v1 eu"])
			}
		}
	})
}

// slowReports takes its time for each report.
type slowReports struct {
	*engine
	takes time.Duration
}

func (s slowReports) Report(ctx context.Context, r verifier.Report) (verifier.ReportAnswer, error) {
	select {
	case <-time.After(s.takes):
		return s.engine.Report(ctx, r)
	case <-ctx.Done():
		return verifier.ReportAnswer{}, ctx.Err()
	}
}

// TestWhatCannotBeReportedAtTheEndIsLogged: the last report has the time of one
// request, whatever the number of its parts.
func TestWhatCannotBeReportedAtTheEndIsLogged(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration // each part
		pause time.Duration // in which a report is due
		told  string
	}{
		"all in time": {takes: 500 * time.Millisecond},
		"some":        {takes: 1500 * time.Millisecond, told: "kinds=1500 uses=3000"},
		"none":        {takes: time.Hour, pause: 15 * time.Second, told: "kinds=2500 uses=5000"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				var keys []string
				for range 2500 {
					_, apiKey := e.key(t)
					keys = append(keys, apiKey)
				}
				var logged bytes.Buffer
				v := start(t, e, func(config *verifier.Config) {
					config.Engine, config.FirstFill = slowReports{e, c.takes}, true
					config.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
				})
				time.Sleep(poll)
				for i, apiKey := range keys {
					if i == len(keys)/2 {
						time.Sleep(c.pause)
					}
					v.accepts(apiKey)
					v.accepts(apiKey)
				}
				v.stop()
				const lost = "not all use could be reported"
				if n := strings.Count(logged.String(), lost); (n > 0) != (c.told != "") || n > 1 || !strings.Contains(logged.String(), c.told) {
					t.Errorf("logged, want %q once:\n%s", c.told, logged.String())
				}
				if slices.ContainsFunc(keys, func(apiKey string) bool { return strings.Contains(logged.String(), apiKey) }) {
					t.Error("a key was logged")
				}
			})
		})
	}
}

// TestAReportThatIsCutOffIsNoFailure: the end of the verifier cuts it off, and it
// is sent again at once.
func TestAReportThatIsCutOffIsNoFailure(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		var logged bytes.Buffer
		v := start(t, e, func(c *verifier.Config) {
			c.Engine, c.RequestTimeout = slowReports{e, time.Minute}, time.Hour
			c.Logger = slog.New(slog.NewTextHandler(&logged, nil))
		})
		synctest.Wait()
		v.accepts(apiKey)
		time.Sleep(15 * time.Second) // it is under way
		v.stop()
		if logged.Len() > 0 || v.Stats().ReportFailures != 0 || len(e.reports) == 0 {
			t.Errorf("%d failures, %d reports, logged %s", v.Stats().ReportFailures, len(e.reports), logged.String())
		}
	})
}

// deaf heeds no context.
type deaf struct {
	*engine
	takes time.Duration
}

func (d deaf) Report(_ context.Context, r verifier.Report) (verifier.ReportAnswer, error) {
	time.Sleep(2 * d.takes)
	return d.engine.Report(context.Background(), r)
}

func (d deaf) Sync(ctx context.Context, r verifier.SyncRequest) (verifier.SyncAnswer, error) {
	if len(d.syncs) > 10 {
		time.Sleep(d.takes)
	}
	return d.engine.Sync(context.WithoutCancel(ctx), r)
}

// TestCloseTakesNoLongerThanItsContext, whatever the engine does, and nothing is
// accepted after it.
func TestCloseTakesNoLongerThanItsContext(t *testing.T) {
	for name, runs := range map[string]bool{"while it runs": true, "where it never ran": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				e := newEngine()
				_, apiKey := e.key(t)
				v, err := verifier.New(verifier.Config{Engine: deaf{e, 5 * time.Minute}, Name: "edge-1"})
				if err != nil {
					t.Fatal(err)
				}
				ran := make(chan struct{})
				go func() {
					defer close(ran)
					if runs {
						_ = v.Run(t.Context())
					}
				}()
				synctest.Wait()
				if r, err := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict != verifier.Accepted {
					t.Fatalf("%s %v", r.Verdict, err)
				}
				time.Sleep(20 * time.Second) // a report is under way, and a question, whose answer comes late
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				err = v.Close(ctx)
				if took := time.Since(began); took != 3*time.Second || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "1 uses could not be reported") {
					t.Errorf("Close took %s: %v", took, err)
				}
				time.Sleep(6 * time.Minute) // the question is answered, and the report is not
				if r, _ := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict != verifier.Unavailable {
					t.Errorf("%s after Close", r.Verdict)
				}
				<-ran
				synctest.Wait()
				if r, _ := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict != verifier.Unavailable {
					t.Errorf("%s after Run", r.Verdict)
				}
				time.Sleep(20 * time.Minute) // what the engine still does is over
			})
		})
	}
}

// TestCloseReportsWhatIsLeft, in the time that it has, also where it ends Run.
func TestCloseReportsWhatIsLeft(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		_, apiKey := e.key(t)
		var logged bytes.Buffer
		v, err := verifier.New(verifier.Config{
			Engine: slowReports{e, time.Minute}, Name: "edge-1", Source: "eu", RequestTimeout: time.Hour,
			Logger: slog.New(slog.NewTextHandler(&logged, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error, 1)
		go func() { ran <- v.Run(t.Context()) }()
		synctest.Wait()
		if r, err := v.Verify(t.Context(), apiKey, verifier.Check{}); r.Verdict != verifier.Accepted {
			t.Fatalf("%s %v", r.Verdict, err)
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := v.Close(ctx); err != nil || time.Since(began) != time.Minute {
			t.Errorf("Close took %s: %v", time.Since(began), err)
		}
		if err := <-ran; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		if len(e.reports) != 1 || logged.Len() > 0 {
			t.Errorf("%d reports, logged %s", len(e.reports), logged.String())
		}
	})
}

// TestCountersAreTakenInWhileAReportIsUnderWay: until then they keep the entries
// of evicted keys alive.
func TestCountersAreTakenInWhileAReportIsUnderWay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		const kinds, bound = 400, 50
		var keys []string
		for range kinds {
			_, apiKey := e.key(t)
			keys = append(keys, apiKey)
		}
		v := start(t, e, func(c *verifier.Config) {
			c.Engine = slowReports{e, time.Minute}
			c.CacheSize, c.MaxUnreported, c.RequestTimeout = 16, bound, time.Hour
		})
		time.Sleep(11 * time.Second) // the first report is under way
		for _, apiKey := range keys {
			v.accepts(apiKey)
			v.accepts(apiKey)
		}
		v.Settle()
		synctest.Wait()
		if n := v.Uncollected(); n > bound {
			t.Errorf("%d counters wait to be taken in, want at most %d", n, bound)
		}
		if h := v.Health(); h.UnreportedUses+h.LostUses != 2*kinds || len(e.reports) > 0 {
			t.Errorf("%d unreported and %d lost after %d reports, want %d together and none", h.UnreportedUses, h.LostUses, len(e.reports), 2*kinds)
		}
	})
}

// TestWhatIsInUseIsFetchedAtOnceAfterAReset, also where its use was counted in
// the cache alone.
func TestWhatIsInUseIsFetchedAtOnceAfterAReset(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		e := newEngine()
		id, apiKey := e.key(t)
		v := start(t, e)
		time.Sleep(poll)
		v.accepts(apiKey)
		time.Sleep(2 * time.Minute) // the question for it is long ago
		v.accepts(apiKey)
		var before int
		e.set(func() { before = len(e.lookups) })
		e.restart()
		time.Sleep(2 * poll)
		e.set(func() {
			if since := e.lookups[before:]; len(since) != 1 || !slices.Contains(since[0].KeyIDs, id) {
				t.Errorf("after a reset, without a request: %v", since)
			}
		})
	})
}
