// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

var rewrite = flag.Bool("rewrite", false, "write the timelines with what they answer now")

// TestTimelines plays the stories in testdata/timelines. A line that begins at
// the margin is a command, an indented one what it answered, the rest is left
// as it is. Times are told from the start of the story. With
//
//	go test ./backend/internal/keyring -run Timelines -rewrite
//
// the answers are written anew; the diff is to be read before it is committed.
func TestTimelines(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/timelines/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("found %d timelines: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if got == string(want) {
				return
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s answers otherwise (-rewrite writes it):\n%s", file, got)
		})
	}
}

func play(t *testing.T, text string) string {
	t.Helper()
	s := &story{fixture: fixture{T: t, p: policy()}, overlap: 24 * time.Hour, used: map[int]bool{}}
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, " ") {
			continue
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for _, answer := range s.do(line) {
			fmt.Fprintf(&out, "    %s\n", answer)
		}
	}
	return out.String()
}

// story is a key, its role and a clock.
type story struct {
	fixture
	now            time.Duration
	overlap, delay time.Duration
	limits         keyring.Limits
	used           map[int]bool
}

// words are the arguments of a command: plain ones, versions (v3), durations,
// and settings (name=value).
type words []string

func (w words) has(word string) bool { return slices.Contains(w, word) }

func (w words) version() int {
	for _, word := range w {
		if n, err := strconv.Atoi(strings.TrimPrefix(word, "v")); err == nil && word[0] == 'v' {
			return n
		}
	}
	return 0
}

func (w words) duration(s *story) time.Duration {
	s.Helper()
	for _, word := range w {
		if d, err := time.ParseDuration(word); err == nil {
			return d
		}
	}
	s.Fatalf("%v: a duration is missing", w)
	return 0
}

func (w words) setting(s *story, name string, otherwise time.Duration) time.Duration {
	s.Helper()
	text, ok := w.text(name)
	if !ok {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		s.Fatal(err)
	}
	return d
}

func (w words) text(name string) (string, bool) {
	for _, word := range w {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

func (w words) list(name string) []string {
	if text, ok := w.text(name); ok {
		return strings.Split(text, ",")
	}
	return nil
}

func (s *story) do(line string) []string {
	s.Helper()
	w := words(strings.Fields(line)[1:])
	switch verb := strings.Fields(line)[0]; verb {
	case "role":
		s.role(w)
		return nil
	case "create":
		s.k = named(s.T, s.p).k
	case "lease":
		f := leased(s.T, s.p)
		f.k.Versions[0].ExpireTime = t0.Add(w.setting(s, "ttl", time.Hour))
		f.k.Lease.MaxExpireTime = t0.Add(w.setting(s, "max_ttl", 10*time.Hour))
		s.k = f.k
	case "advance":
		s.now += w.duration(s)
		return []string{"it is " + s.since(t0.Add(s.now))}
	case "enable", "disable":
		s.k = s.k.Clone()
		s.k.Disabled = verb == "disable"
		return nil
	case "used", "unused":
		s.used[w.version()] = verb == "used"
		return nil
	case "verify":
		return s.verify(w)
	case "due":
		if due := s.k.NextDue(t0.Add(s.now), s.p, s.drained); !due.IsZero() {
			return []string{"at " + s.since(due)}
		}
		return []string{"never"}
	default:
		next, err := s.try(s.transition(verb, w))
		if err != nil {
			return []string{"refused: " + err.Error()}
		}
		if next == s.k {
			return []string{"nothing to do"}
		}
		s.k = next
		if ttl, ok := w.text("ttl"); ok {
			d, err := time.ParseDuration(ttl)
			if err != nil {
				s.Fatal(err)
			}
			s.k.Versions[len(s.k.Versions)-1].ExpireTime = t0.Add(s.now + d)
		}
	}
	return s.versions()
}

func (s *story) role(w words) {
	s.Helper()
	s.overlap = w.setting(s, "overlap", s.overlap)
	s.delay = w.setting(s, "delay", s.delay)
	s.p.MaxOverlap = w.setting(s, "max_overlap", s.p.MaxOverlap)
	s.p.RollbackWindow = w.setting(s, "rollback", s.p.RollbackWindow)
	s.p.VersionTTL = w.setting(s, "version_ttl", s.p.VersionTTL)
	s.p.ExtendUntilDrained = s.p.ExtendUntilDrained || w.has("extend_until_drained")
	if most, ok := w.text("max"); ok {
		n, err := strconv.Atoi(most)
		if err != nil {
			s.Fatal(err)
		}
		s.p.MaxAccepted = n
	}
	if scopes := w.list("scopes"); scopes != nil {
		s.limits.Scopes = scopes
	}
	s.limits.OverlapScopes = w.list("overlap_scopes")
}

func (s *story) drained(version int) keyring.DrainVerdict {
	if s.used[version] {
		return neverDrained(version)
	}
	return drained(version)
}

func (s *story) transition(verb string, w words) change {
	s.Helper()
	overlap := w.setting(s, "overlap", s.overlap)
	switch verb {
	case "rotate":
		return s.rotate(s.now, keyring.RotateOptions{
			Overlap: overlap, ActivationDelay: w.setting(s, "delay", s.delay), OverlapScopes: w.list("overlap_scopes"), Force: w.has("force"),
		})
	case "promote":
		return s.promote(s.now, w.version())
	case "rollback":
		return s.rollback(s.now, keyring.RollbackOptions{Version: w.version(), Overlap: overlap, RevokeNewer: w.has("revoke_newer"), Force: w.has("force")})
	case "extend":
		return s.extend(s.now, w.version(), w.duration(s))
	case "retire":
		return s.retire(s.now, w.version(), s.drained, w.has("force"))
	case "revoke":
		o := keyring.RevokeOptions{Version: w.version(), All: w.has("all"), Compromised: w.has("compromised"), Force: w.has("force")}
		if w.has("rotate") {
			return s.revokeRotate(s.now, o)
		}
		return s.revoke(s.now, o)
	case "tick":
		return func(k *keyring.Key) (*keyring.Key, error) {
			return k.Advance(keyring.Cause{Now: t0.Add(s.now), Actor: "periodic"}, s.p, s.drained), nil
		}
	case "renew":
		return s.renew(s.now, w.version(), s.now+w.duration(s))
	case "end-lease":
		return s.endLease(s.now, w.version())
	}
	s.Fatalf("%q is no command", verb)
	return nil
}

func (s *story) verify(w words) []string {
	var out []string
	for _, word := range w {
		n, err := strconv.Atoi(strings.TrimPrefix(word, "v"))
		if err != nil {
			continue
		}
		verdict := s.k.Verify(t0.Add(s.now), s.limits, record.Query{Digest: digest(n), Scopes: w.list("scopes")})
		line := fmt.Sprintf("v%d %s", n, verdict.Code)
		if v, ok := s.k.Version(verdict.Version); ok {
			line += " (" + v.StateAt(t0.Add(s.now)).String() + ")"
		}
		if verdict.Code == record.CodeValid && len(verdict.Scopes) > 0 {
			line += " " + strings.Join(verdict.Scopes, ",")
		}
		out = append(out, line)
	}
	return out
}

// versions tells all versions as they are recorded.
func (s *story) versions() []string {
	var out []string
	for _, v := range s.k.Versions {
		line := fmt.Sprintf("v%d %s", v.Number, v.State)
		switch v.State {
		case pending:
			line += ", promoted at " + s.since(v.PromoteAt)
		case active:
			if !v.ExpireTime.IsZero() {
				line += ", expires at " + s.since(v.ExpireTime)
			}
		case retiring:
			line += fmt.Sprintf(" for v%d until %s", v.SupersededBy, s.since(v.OverlapEnds))
			if !v.AcceptedUntil.Equal(v.OverlapEnds) {
				line += ", accepted until " + s.since(v.AcceptedUntil)
			}
		default:
			line += " since " + s.since(v.EndedTime)
			if !v.RestorableUntil.IsZero() {
				line += ", restorable until " + s.since(v.RestorableUntil)
			}
			if len(v.Sealed) > 0 {
				line += ", plaintext kept"
			}
			if v.Reason != "" {
				line += " (" + v.Reason + ")"
			}
		}
		out = append(out, line)
	}
	return out
}

// since writes a time as the days, hours, minutes and seconds since the start.
func (s *story) since(at time.Time) string {
	d := at.Sub(t0)
	sign := "+"
	if d < 0 {
		sign, d = "-", -d
	}
	out := sign
	for _, unit := range []struct {
		name string
		d    time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if n := d / unit.d; n > 0 {
			out += fmt.Sprintf("%d%s", n, unit.name)
			d -= n * unit.d
		}
	}
	if out == sign {
		return "the start"
	}
	return out
}
