// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// findings are what the history of a key says of anomalies, oldest first.
func (m *mount) findings(name string) []string {
	m.t.Helper()
	m.tell()
	var found []string
	for _, e := range list(m.t, m.read("history/" + name)["transitions"]) {
		if event := aMap(m.t, e); event["type"] == "anomaly.detected" {
			found = append([]string{text(m.t, event["detail"])}, found...)
		}
	}
	return found
}

// wantFindings checks that each finding has all the words that are wanted of it.
func (m *mount) wantFindings(name string, want ...[]string) {
	m.t.Helper()
	found := m.findings(name)
	if len(found) != len(want) {
		m.t.Fatalf("at %s %d findings about %s, want %d: %q", m.clock.Now().Format(time.DateTime), len(found), name, len(want), found)
	}
	for i, words := range want {
		for _, word := range words {
			if !strings.Contains(found[i], word) {
				m.t.Errorf("%s: %q does not say %q", name, found[i], word)
			}
		}
	}
}

// TestWrongSecretsForARealIDAreTold, many as one, again only hours later, and none
// where the checksum is wrong.
func TestWrongSecretsForARealIDAreTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(nil)
	v1 := m.key("acme", nil)
	m.key("globex", nil)
	guess := func(n int) {
		t.Helper()
		for range n {
			guessed, err := token.New(rand.Reader, token.Format{}, m.keyID("acme"))
			if err != nil {
				t.Fatal(err)
			}
			m.wantCodes("NOT_FOUND", guessed)
		}
	}
	for range 50 {
		m.wantCodes("MALFORMED", v1[:len(v1)-1]+"~") // a typing error
	}
	guess(5)
	m.wantFindings("acme")
	guess(200)
	burst := []string{"wrong_secret_burst", "this key's id"}
	m.wantFindings("acme", burst)
	m.wantFindings("globex")
	m.pass(time.Hour)
	guess(20)
	m.wantFindings("acme", burst)
	m.pass(6 * time.Hour)
	guess(20)
	m.wantFindings("acme", burst, burst)
	m.wantCodes("VALID", v1)
}

// TestTheUseOfAnEndedVersionIsTold: of a retired one where it goes on after its
// end, of a compromised one at once, with its source, and each once.
func TestTheUseOfAnEndedVersionIsTold(t *testing.T) {
	t.Parallel()
	m := newMount(t)
	m.role(object{"overlap_period": "1h"})
	v1 := m.key("acme", nil)
	v2 := m.rotate("acme", nil)
	m.use(v1, "left-behind")
	m.use(v2, "eu")
	m.pass(time.Hour + 2*time.Minute)
	refused := func(token, source, code string) {
		t.Helper()
		for range 10 {
			if got := m.use(token, source); got != code {
				t.Fatalf("%s, want %s", got, code)
			}
		}
		m.flush()
	}
	refused(v1, "left-behind", "RETIRED") // on its way when the version ended
	m.wantFindings("acme")
	m.wantTold("version.stale_use", "")
	m.pass(10 * time.Minute)
	refused(v1, "left-behind", "RETIRED")
	retired := []string{"ended_version_use", "version 1, retired", "(source left-behind)"}
	m.wantFindings("acme", retired)
	m.wantTold("version.stale_use", "version.stale_use")
	refused(v1, "left-behind", "RETIRED")
	m.wantFindings("acme", retired)

	v3 := m.rotate("acme", nil)
	m.use(v3, "eu")
	m.write("revoke/acme", object{fieldVersion: 2, "compromised": true})
	m.wantFindings("acme", retired)
	refused(v2, "elsewhere", "COMPROMISED")
	compromised := []string{"ended_version_use", "version 2, reported as leaked", "(source elsewhere)"}
	m.wantFindings("acme", retired, compromised)
	m.wantTold("version.stale_use", "version.stale_use version.stale_use")
}

// rated is a mount whose keys are used at a rate, with the default
// usage_retention.
type rated struct {
	*mount
	t        *testing.T
	sequence int
	ids      map[string]string
}

func newRated(t *testing.T, names ...string) *rated {
	t.Helper()
	memory := storetest.NewMemory()
	r := &rated{mount: newMountOn(t, memory, memory, clock.NewManual(epoch)), t: t, ids: map[string]string{}}
	r.role(nil)
	for _, name := range names {
		r.key(name, nil)
		r.ids[name] = r.keyID(name)
	}
	return r
}

func (r *rated) restart() { r.mount = r.reopen() }

// use counts uses of keys, as a verifier elsewhere reports them, and stores them.
func (r *rated) use(n int, names ...string) {
	r.t.Helper()
	if len(names) > 0 {
		r.sequence++
		var entries []any
		for _, name := range names {
			entries = append(entries, object{fieldKeyID: r.ids[name], fieldVersion: 1, fieldSource: "eu", "count": n})
		}
		r.write("usage", object{"verifier": "edge", "boot": "1", "sequence": r.sequence, "reported_through": stamp(r.clock.Now()), "entries": entries})
	}
	r.flush()
}

// hours lets time pass, up to the end of an hour at last, in which keys are used n
// times an hour.
func (r *rated) hours(hours, n int, names ...string) {
	r.t.Helper()
	for range hours {
		for {
			r.clock.Advance(20*time.Minute - time.Duration(r.clock.Now().Minute()%20)*time.Minute)
			if r.clock.Now().Minute() == 0 {
				break
			}
			r.use(n/2, names...)
		}
		r.use(0)
	}
}

// TestAnHourThatIsFarTooBusyIsTold once, against hours from before
// usage_retention, whatever restarts there were.
func TestAnHourThatIsFarTooBusyIsTold(t *testing.T) {
	t.Parallel()
	r := newRated(t, "acme", "globex")
	for day := range 16 {
		r.hours(24, 600, "acme", "globex")
		if day%5 == 3 {
			r.restart()
		}
	}
	r.hours(6, 10_000, "acme")
	r.wantFindings("acme", []string{"rate_unusual", "uses in the hour", "at this hour of the week", "by 384 hours of history"})
	r.wantFindings("globex", []string{"rate_unusual", "uses in the 3 hours"}) // it stopped
}

// TestAKeyThatFallsSilentIsTold once, also where no other key is used.
func TestAKeyThatFallsSilentIsTold(t *testing.T) {
	t.Parallel()
	for name, others := range map[string][]string{"alone": nil, "among others": {"globex"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRated(t, append(others, "acme")...)
			r.hours(9*24, 600, append(others, "acme")...)
			r.restart()
			r.hours(1, 600, append(others, "acme")...)
			r.hours(2, 600, others...)
			r.wantFindings("acme")
			r.hours(24, 600, others...)
			r.wantFindings("acme", []string{"rate_unusual", "0 uses in the 3 hours", "at least 1800"})
			for _, other := range others {
				r.wantFindings(other)
			}
		})
	}
}

// TestAnOutageOfVaultIsNoFinding: keys are not silent where nobody counts them,
// and one that is silent after that is found all the same.
func TestAnOutageOfVaultIsNoFinding(t *testing.T) {
	t.Parallel()
	for name, outage := range map[string]func(r *rated, d time.Duration){
		"stopped": func(r *rated, d time.Duration) {
			r.Cleanup(r.t.Context())
			r.clock.Advance(d)
			r.mount = newMountOn(r.t, r.memory, r.storage, r.clock)
		},
		"crashed": func(r *rated, d time.Duration) {
			r.clock.Advance(d)
			r.mount = r.crash()
		},
		"asleep": func(r *rated, d time.Duration) { r.clock.Leap(d) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			names := []string{"acme", "globex", "initech"}
			r := newRated(t, names...)
			r.hours(9*24, 600, names...)
			for _, lasts := range []time.Duration{3*time.Hour + 49*time.Minute, 30 * time.Hour, 20 * time.Minute} {
				r.clock.Advance(time.Minute)
				r.use(10, names...)
				outage(r, lasts)
				r.use(100, names...)
				r.hours(12, 600, names...)
				for _, name := range names {
					r.wantFindings(name)
				}
			}
			outage(r, 4*time.Hour)
			r.hours(2, 600, names...)
			r.hours(6, 600, names[1:]...)
			r.wantFindings("acme", []string{"rate_unusual"})
			r.wantFindings("globex")
		})
	}
}

// TestAMountThatIsNoLongerUsedCostsAReadAnHourForADay, and then nothing.
func TestAMountThatIsNoLongerUsedCostsAReadAnHourForADay(t *testing.T) {
	t.Parallel()
	memory := storetest.NewMemory()
	counting := storetest.NewCounting(memory)
	m := newMountOn(t, memory, counting, clock.NewManual(epoch))
	m.role(nil)
	m.use(m.key("acme", nil), "eu")
	m.pass(time.Minute)
	m.flush()
	for hour := range 30 {
		reads := 0
		for range 60 {
			m.clock.Advance(time.Minute)
			counting.Reset()
			m.flush()
			got := counting.Total()
			reads += got.Get
			if got.All() != got.Get {
				t.Errorf("a minute of hour %d costs %s", hour, got)
			}
		}
		want := 1
		if hour > 24 {
			want = 0
		}
		if reads != want {
			t.Errorf("hour %d costs %d reads, want %d", hour, reads, want)
		}
	}
}
