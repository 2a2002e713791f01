// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// patience bounds how long the story waits for something that it tells.
const patience = 30 * time.Second

// story is what the demo tells, in acts that go on from one another.
type story struct {
	*page
	srv     *server
	watcher *watcher
	// web reads its key again by its ttl, as Vault Agent does; batch was given
	// its key once.
	web, batch *client
	fast       bool
	// keys are the tokens of the versions, by number.
	keys map[int]string
}

func (s *story) tell(ctx context.Context) error {
	s.keys = map[int]string{}
	for _, act := range []func(context.Context) error{s.setUp, s.rollOver, s.drain, s.overlapEnds, s.rollBack, s.cutOver} {
		if err := act(ctx); err != nil {
			return err
		}
		if err := s.rest(ctx, 1500*time.Millisecond); err != nil {
			return err
		}
	}
	return s.sum()
}

// end stops whoever is still at work.
func (s *story) end() {
	for _, c := range []*client{s.web, s.batch} {
		if c != nil {
			c.stop()
		}
	}
	if s.watcher != nil {
		s.watcher.stop()
	}
}

func (s *story) setUp(ctx context.Context) error {
	s.title("1. A role, a key and its client")
	s.say("A role says how its keys roll over. Short periods, so that you can watch.")
	if _, err := s.vault(ctx, nil, "secrets", "enable", "-path=apikeys", pluginName); err != nil {
		return err
	}
	if _, err := s.vault(ctx, nil, "write", "apikeys/roles/partner", "prefix=tm_live", "overlap_period=1m",
		"refresh_interval="+s.refresh(), "drain_quiet_period="+s.quiet()); err != nil {
		return err
	}
	made, err := s.vault(ctx, []string{"api_key", "key_id", "state", "version"}, "write", "apikeys/keys/acme", "role=partner")
	if err != nil {
		return err
	}
	s.keys[1] = field(made, "api_key")
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.say("",
		"From here on the client \"web\" sends 20 requests a second with its key. The API",
		"server asks Vault about each one (apikeys/verify). Like Vault Agent, web reads",
		"apikeys/static-creds/acme again after each ttl, here "+s.refresh()+", and does nothing else.")
	return s.watch(ctx, s.beat(2*time.Second), nil)
}

// begin starts the clients, each with tokens that can do their job and
// nothing else.
func (s *story) begin(ctx context.Context) error {
	verifier, err := s.srv.tokenFor(ctx, "api-server", "apikeys/verify", "update")
	if err != nil {
		return err
	}
	reader, err := s.srv.tokenFor(ctx, "acme", "apikeys/static-creds/acme", "read")
	if err != nil {
		return err
	}
	server, err := s.srv.client(verifier)
	if err != nil {
		return err
	}
	creds, err := s.srv.client(reader)
	if err != nil {
		return err
	}
	root, err := s.srv.client(s.srv.token)
	if err != nil {
		return err
	}
	s.web, s.batch = newClient("web", server, creds), newClient("batch", server, nil)
	s.watcher = newWatcher(root)
	s.watcher.start(ctx)
	return s.web.start(ctx, "")
}

func (s *story) rollOver(ctx context.Context) error {
	s.title("2. Rotate: both versions are accepted")
	made, err := s.vault(ctx, []string{"api_key", "overlap_ends", "state", "version"}, "write", "-f", "apikeys/rotate/acme")
	if err != nil {
		return err
	}
	s.keys[2] = field(made, "api_key")
	s.say("", "Version 2 is the current one. Version 1 stays accepted for the overlap, in which", "clients change over in their own time:")
	if err := s.verify(ctx, 2, "VALID"); err != nil {
		return err
	}
	if err := s.verify(ctx, 1, "VALID"); err != nil {
		return err
	}
	s.say("", "Ending the overlap by mistake while version 1 is in use is refused:")
	return s.refused(ctx, "is not drained", "write", "-f", "apikeys/retire/acme")
}

func (s *story) drain(ctx context.Context) error {
	s.title("3. The drain: use moves from the old version to the new")
	s.say("web comes across version 2 the next time it reads its key.", s.style(faint, legend), "")
	quiet, err := time.ParseDuration(s.quiet())
	if err != nil {
		return err
	}
	err = s.watch(ctx, 0, func(ctx context.Context) (bool, error) {
		versions, err := s.watcher.look(ctx)
		if err != nil || len(versions) != 2 {
			return false, err
		}
		// Half a second more than needed, so that the command that follows
		// finds it drained.
		return s.web.verdict().version == 2 && time.Since(versions[0].LastUsedTime) > quiet+500*time.Millisecond, nil
	})
	if err != nil {
		return err
	}
	s.say("", "Version 1 has been unused for "+s.quiet()+", and all who used it were seen on version 2:")
	if _, err := s.vault(ctx, []string{"{", "last_used_time", "state", "use_count", "version", "}"}, "read", "-format=json", "-field=versions", "apikeys/keys/acme"); err != nil {
		return err
	}
	s.say("", "Now its overlap can be ended early:")
	_, err = s.vault(ctx, []string{"state", "version", "accepted_until"}, "write", "-f", "apikeys/retire/acme")
	return err
}

func (s *story) overlapEnds(ctx context.Context) error {
	s.title("4. An overlap ends, and one client was left behind")
	s.say("A second client, \"batch\", was given version 2 by hand and never reads it again.",
		"The next rotation has an overlap of only "+s.short()+":")
	if err := s.batch.start(ctx, s.keys[2]); err != nil {
		return err
	}
	made, err := s.vault(ctx, []string{"overlap_ends", "state", "version"}, "write", "apikeys/rotate/acme", "overlap_period="+s.short())
	if err != nil {
		return err
	}
	s.keys[3] = field(made, "api_key")
	s.say("")
	if err := s.watch(ctx, s.beat(2*time.Second), func(context.Context) (bool, error) {
		return s.batch.verdict().code == "RETIRED", nil
	}); err != nil {
		return err
	}
	s.say("", "The verifier refused version 2 from the second in which its overlap ended. web had",
		"changed over; batch had not. Its rescue, without a new key:")
	if _, err := s.vault(ctx, []string{"accepted_until", "state", "version"}, "write", "apikeys/extend/acme", "version=2"); err != nil {
		return err
	}
	s.say("")
	if err := s.watch(ctx, s.beat(2*time.Second), func(context.Context) (bool, error) {
		return s.batch.verdict().valid(), nil
	}); err != nil {
		return err
	}
	s.say("", "The people who run batch now put version 3 into its configuration.")
	s.batch.use(s.keys[3])
	return s.until(ctx, func() bool { return s.batch.verdict() == verdict{"VALID", 3} })
}

func (s *story) rollBack(ctx context.Context) error {
	s.title("5. Roll back")
	s.say("Suppose that version 3 was a mistake. Version 2 becomes the current one again, and",
		"version 3 gets a full overlap, because clients use it already:")
	if _, err := s.vault(ctx, []string{"state", "version"}, "write", "-f", "apikeys/rollback/acme"); err != nil {
		return err
	}
	s.say("")
	return s.watch(ctx, s.beat(2*time.Second), func(context.Context) (bool, error) {
		return s.web.verdict() == verdict{"VALID", 2}, nil
	})
}

func (s *story) cutOver(ctx context.Context) error {
	s.title("6. Emergency: version 2 has leaked")
	s.say("A leaked key must be refused at once, so here nobody gets an overlap. One command",
		"ends it and makes its successor in the same step:")
	s.web.enter(emergency)
	s.batch.enter(emergency)
	made, err := s.vault(ctx, []string{"api_key", "revoked", "state", "version"}, "write", "apikeys/revoke/acme", "version=2", "compromised=true", "rotate=true", "reason=found in a public repository")
	if err != nil {
		return err
	}
	s.keys[4] = field(made, "api_key")
	s.say("", "The leaked key, from now on and for ever:")
	if err := s.verify(ctx, 2, "COMPROMISED"); err != nil {
		return err
	}
	s.say("", "web is answered COMPROMISED, reads its new key and repeats that request, as the SDK's",
		"client will do. batch, on version 3, notices nothing.", "")
	return s.watch(ctx, s.beat(3*time.Second), func(context.Context) (bool, error) {
		return s.web.verdict() == verdict{"VALID", 4} && s.web.tally(emergency).requests > 20, nil
	})
}

// sum ends the clients and tells what came of their requests. An error says
// that a promise was broken.
func (s *story) sum() error {
	s.end()
	calm, storm := s.web.tally(planned), s.web.tally(emergency)
	s.title("What the well-behaved client saw")
	s.say(fmt.Sprintf("planned: two rotations, an early end, an overlap's end, a rollback   %5d verifications   %3d refused", calm.requests, calm.refusals()))
	again := storm.refusals()
	s.say(fmt.Sprintf("emergency: the first attempts of its requests                        %5d verifications   %3d refused", storm.requests, again),
		fmt.Sprintf("emergency: requests that failed after the client's one retry         %5d retried         %3d failed", again, storm.failed))
	s.say("", "The emergency refuses on purpose: whoever presents the leaked key, the client too, is",
		"answered COMPROMISED until it has read the new one. That is not counted as planned.")
	err := broken(calm, storm)
	if n := s.batch.tally(emergency).refusals(); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d verifications of batch were refused in the emergency, which was none of its business", n))
	}
	if err != nil {
		s.say("", s.style(red, "FAIL"))
		return err
	}
	s.say("", s.style(green, fmt.Sprintf("PASS: %d verifications of the well-behaved client in planned rollovers, 0 refused.", calm.requests)))
	return nil
}

// broken tells which promise to the well-behaved client was broken, if any.
func broken(calm, storm tally) error {
	var errs []error
	if calm.requests == 0 || storm.requests == 0 {
		errs = append(errs, errors.New("the well-behaved client made no requests"))
	}
	if n := calm.refusals(); n > 0 {
		errs = append(errs, fmt.Errorf("%d verifications were refused in planned rollovers: %v", n, calm.refused))
	}
	if n := calm.failed + storm.failed; n > 0 {
		errs = append(errs, fmt.Errorf("%d requests failed after the client's one retry", n))
	}
	if n := storm.refusals() - storm.refused["COMPROMISED"]; n > 0 {
		errs = append(errs, fmt.Errorf("%d first attempts in the emergency were refused for another reason than COMPROMISED: %v", n, storm.refused))
	}
	return errors.Join(errs...)
}

// vault shows a command, runs it and shows the lines of its output that begin
// with one of the words in show, all of them if show is nil.
func (s *story) vault(ctx context.Context, show []string, args ...string) (string, error) {
	stdout, stderr, code, err := s.command(ctx, args)
	if err != nil {
		return "", err
	}
	if code != 0 {
		return "", fmt.Errorf("the command ended with exit status %d:\n%s%s", code, stdout, stderr)
	}
	s.output(excerpt(stdout, show...)...)
	return stdout, s.rest(ctx, 1500*time.Millisecond)
}

// refused is vault for a command that must fail, with an error that says why.
func (s *story) refused(ctx context.Context, why string, args ...string) error {
	stdout, stderr, code, err := s.command(ctx, args)
	if err != nil {
		return err
	}
	if code == 0 || !strings.Contains(stderr, why) {
		return fmt.Errorf("the command should have been refused with %q, and ended with exit status %d:\n%s%s", why, code, stdout, stderr)
	}
	s.output(wrap(strings.Join(excerpt(stderr, "*"), " "), 84)...)
	return s.rest(ctx, 3*time.Second)
}

// verify shows what verify answers to a version's key.
func (s *story) verify(ctx context.Context, version int, code string) error {
	out, err := s.vault(ctx, []string{"code", "valid", "state", "version", "superseded_by"}, "write", "apikeys/verify", "api_key="+s.keys[version])
	if err != nil {
		return err
	}
	if got := field(out, "code"); got != code {
		return fmt.Errorf("version %d should have been answered %s, got %s", version, code, got)
	}
	return nil
}

func (s *story) command(ctx context.Context, args []string) (stdout, stderr string, code int, err error) {
	words := []string{"$ " + filepath.Base(s.srv.bin)}
	for _, a := range args {
		words = append(words, shellWord(a))
	}
	s.line("")
	s.line(s.style(bold, strings.Join(words, " ")))
	if err := s.rest(ctx, 500*time.Millisecond); err != nil {
		return "", "", 0, err
	}
	return s.srv.cli(ctx, args...)
}

func (s *story) output(lines ...string) {
	for _, l := range lines {
		s.line(s.style(faint, l))
	}
}

// watch shows the versions and the clients until done, and linger longer. A
// nil done is done at once.
func (s *story) watch(ctx context.Context, linger time.Duration, done func(context.Context) (bool, error)) error {
	deadline := time.Now().Add(patience)
	var since time.Time
	return s.animate(ctx, func() []string {
		now := time.Now()
		lines := append(s.watcher.draw(now), "", s.web.status(now))
		if s.batch.verdict().code != "" {
			lines = append(lines, s.batch.status(now))
		}
		return lines
	}, func() (bool, error) {
		if since.IsZero() {
			ok := done == nil
			if !ok {
				var err error
				if ok, err = done(ctx); err != nil {
					return false, err
				}
			}
			switch {
			case ok:
				since = time.Now()
			case time.Now().After(deadline):
				return false, fmt.Errorf("what was to be seen here did not happen within %s", patience)
			}
		}
		return !since.IsZero() && time.Since(since) >= linger, nil
	})
}

// until waits without a picture.
func (s *story) until(ctx context.Context, done func() bool) error {
	for deadline := time.Now().Add(patience); !done(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("what was to happen here did not within %s", patience)
		}
		if err := sleep(ctx, watchEvery); err != nil {
			return err
		}
	}
	return nil
}

// beat is a pause for a reader in a picture.
func (s *story) beat(d time.Duration) time.Duration {
	if s.fast {
		return 500 * time.Millisecond
	}
	return d
}

func (s *story) refresh() string { return s.pick("1s", "3s") }
func (s *story) quiet() string   { return s.pick("3s", "4s") }
func (s *story) short() string   { return s.pick("6s", "10s") }

func (s *story) pick(fast, slow string) string {
	if s.fast {
		return fast
	}
	return slow
}

// field is a value in the CLI's table.
func field(table, name string) string {
	for l := range strings.SplitSeq(table, "\n") {
		if words := strings.Fields(l); len(words) == 2 && words[0] == name {
			return words[1]
		}
	}
	return ""
}

// wrap breaks a text into lines of at most width.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = " "
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
