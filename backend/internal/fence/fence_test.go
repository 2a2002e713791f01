// SPDX-License-Identifier: MPL-2.0

package fence

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
)

// names is a storage of several processes. It fails and hangs where it is told to.
type names struct {
	mu               sync.Mutex
	all              []string
	lists, puts      int
	noList, noWrite  error
	panics           bool
	hang             chan struct{} // a list waits until it is closed
	listed           chan struct{} // a list that is about to hang says so
	beforeFirstWrite func()
}

func (n *names) Charges(ctx context.Context) ([]string, error) {
	n.mu.Lock()
	n.lists++
	hang, panics := n.hang, n.panics
	n.mu.Unlock()
	if panics {
		panic("a secret")
	}
	if hang != nil {
		n.listed <- struct{}{}
		<-hang
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.all), errors.Join(n.noList, ctx.Err())
}

func (n *names) PutCharge(_ context.Context, name string) error {
	if do := n.beforeFirstWrite; do != nil {
		n.beforeFirstWrite = nil
		do()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.puts++
	if n.noWrite != nil {
		return n.noWrite
	}
	n.all = append(n.all, name)
	return nil
}

func (n *names) DropCharge(_ context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.noWrite != nil {
		return n.noWrite
	}
	n.all = slices.DeleteFunc(n.all, func(s string) bool { return s == name })
	return nil
}

func (n *names) set(do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	do()
}

func (n *names) has(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	got := slices.Clone(n.all)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("storage has %q, want %q", got, want)
	}
}

var errStorage = errors.New("storage is down")

type process struct {
	*Fence
	t    *testing.T
	over chan struct{}
	log  *bytes.Buffer
}

// start is a process that has taken charge, where it could.
func start(t *testing.T, n *names, c clock.Clock, boot string) *process {
	t.Helper()
	p := &process{t: t, over: make(chan struct{}, 9), log: &bytes.Buffer{}}
	p.Fence = New(n, c, boot, hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: p.log}), func() { p.over <- struct{}{} })
	t.Cleanup(p.Close)
	if p.Superseded(t.Context()) {
		t.Errorf("%s is superseded when it starts", boot)
	}
	return p
}

// ended waits for a look that is under way.
func (p *process) ended() {
	if l := p.last.Load(); l.done != nil {
		<-l.done
	}
}

// settled is the answer once storage was asked, after some time without requests.
func (p *process) settled(c *clock.Manual) bool {
	p.ended()
	c.Advance(Fresh)
	p.Superseded(p.t.Context())
	p.ended()
	return p.Over()
}

func TestTheLaterProcessIsInCharge(t *testing.T) {
	t.Parallel()
	n, c := &names{}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	n.has(t, "0000000001-a")
	if a.settled(c) {
		t.Error("a process alone is superseded")
	}
	b := start(t, n, c, "B") // sorts before the other
	n.has(t, "0000000001-a", "0000000002-B")
	c.Advance(Every)
	a.Superseded(t.Context())
	<-a.over
	if !a.Superseded(t.Context()) || b.settled(c) {
		t.Error("the first goes on, or the second stands down")
	}
	b.Tidy(t.Context())
	n.has(t, "0000000002-B")
	lists := n.lists
	if !a.settled(c) || n.lists != lists || len(a.over) > 0 {
		t.Error("who is superseded asks again, or says so twice")
	}
}

func TestStorageIsAskedOnceASecondAtMost(t *testing.T) {
	t.Parallel()
	n, c := &names{}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	n.lists = 0
	for range 1000 {
		c.Advance(10 * time.Millisecond)
		a.Superseded(t.Context())
		a.ended()
	}
	if n.lists != 10 || n.puts != 1 {
		t.Errorf("%d lists and %d writes in 10 seconds", n.lists, n.puts)
	}
}

// TestAnIdleProcessAsksBeforeItAnswers because its last answer may be of
// yesterday.
func TestAnIdleProcessAsksBeforeItAnswers(t *testing.T) {
	t.Parallel()
	n, c := &names{}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	start(t, n, c, "b")
	c.Advance(Fresh)
	if !a.Superseded(t.Context()) {
		t.Error("the first request after a pause is answered by what was known before")
	}
}

func TestNumbersAreComparedAndNotTexts(t *testing.T) {
	t.Parallel()
	n, c := &names{all: []string{"9-z", "0000000010-y", "folder/", "x", "-3-x", "99999999999999999999-x"}}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	if a.settled(c) || !slices.Contains(n.all, "0000000011-a") {
		t.Errorf("over: %v, storage has %q", a.Over(), n.all)
	}
}

// TestOfTwoThatStartedAtOnceOneStays: each has listed before the other wrote,
// or one has ended and what it wrote came late.
func TestOfTwoThatStartedAtOnceOneStays(t *testing.T) {
	t.Parallel()
	for _, boot := range []string{"a", "c"} {
		n, c := &names{}, clock.NewManual(time.Time{})
		var late *process
		n.beforeFirstWrite = func() { late = start(t, n, c, "b") }
		p := start(t, n, c, boot)
		n.has(t, slices.Sorted(slices.Values([]string{"0000000001-b", "0000000001-" + boot}))...)
		if p.settled(c) {
			t.Error("a process stands down for one that may have ended")
		}
		if !late.settled(c) || p.settled(c) {
			t.Error("both go on, or none")
		}
	}
}

func TestWhatIsGoneIsWrittenAgain(t *testing.T) {
	t.Parallel()
	n, c := &names{}, clock.NewManual(time.Time{})
	start(t, n, c, "before")
	a := start(t, n, c, "a")
	n.set(func() { n.all = []string{"0000000001-before"} }) // a snapshot was restored
	if a.settled(c) {
		t.Error("a process stands down because its entry is gone")
	}
	n.has(t, "0000000001-before", "0000000002-a")
	a.Tidy(t.Context())
	n.has(t, "0000000002-a")
}

func TestAStorageThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	n, c := &names{noList: errStorage}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a") // nothing is known
	n.set(func() { n.noList, n.noWrite = nil, errStorage })
	if a.settled(c) || n.puts != 1 {
		t.Errorf("over: %v after %d writes that failed", a.Over(), n.puts)
	}
	n.set(func() { n.noWrite = nil })
	if a.settled(c) {
		t.Error("superseded by nobody")
	}
	n.has(t, "0000000001-a")
	n.set(func() { n.panics = true })
	if a.settled(c) {
		t.Error("a panic of storage ends the process")
	}
	n.set(func() { n.panics, n.noList = false, errStorage })
	start(t, &names{}, c, "elsewhere")
	n.set(func() { n.all = append(n.all, "0000000002-b") })
	if a.settled(c) {
		t.Error("a failing storage ends the process")
	}
	n.set(func() { n.noList = nil })
	if !a.settled(c) {
		t.Error("not superseded when storage answers again")
	}
	a.ended()
	if said := a.log.String(); strings.Contains(said, "WARN") || strings.Contains(said, "a secret") {
		t.Errorf("it is not quiet about it: %s", said)
	}
}

// TestAStorageThatHangsHoldsRequestsUpOnce, for the time that it is given.
func TestAStorageThatHangsHoldsRequestsUpOnce(t *testing.T) {
	t.Parallel()
	n, c := &names{listed: make(chan struct{}, 9)}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	hang := make(chan struct{})
	n.set(func() { n.hang = hang })
	c.Advance(Fresh)
	answered := make(chan bool)
	go func() { answered <- a.Superseded(t.Context()) }()
	<-n.listed
	gone, leave := context.WithCancel(t.Context())
	leave()
	if a.Superseded(gone) {
		t.Error("superseded for who does not wait")
	}
	for waiting := true; waiting; {
		select {
		case over := <-answered:
			waiting = false
			if over {
				t.Error("superseded by a storage that hangs")
			}
		case <-clock.System().After(time.Millisecond): // until it waits for the clock
			c.Advance(Patience / 4)
		}
	}
	for range 100 {
		c.Advance(time.Minute)
		if a.Superseded(t.Context()) { // does not wait: nobody moves the clock
			t.Fatal("superseded by a storage that hangs")
		}
	}
	n.set(func() { n.hang, n.noList = nil, errStorage })
	close(hang)
	a.ended()
	// That look has failed: nobody waits for the next.
	hang = make(chan struct{})
	n.set(func() { n.hang = hang })
	c.Advance(time.Minute)
	if a.Superseded(t.Context()) {
		t.Error("superseded by a storage that fails")
	}
	close(hang)
}

func TestAskingBetweenLooksAllocatesNothing(t *testing.T) {
	n, c := &names{}, clock.System()
	a := start(t, n, c, "a")
	a.last.Store(&look{began: c.Elapsed() + time.Hour})
	if got := testing.AllocsPerRun(1000, func() { a.Superseded(t.Context()) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

func TestAProcessThatStopsWritesNothing(t *testing.T) {
	t.Parallel()
	n, c := &names{noWrite: errStorage}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	n.set(func() { n.noWrite = nil })
	a.Close()
	if a.settled(c) {
		t.Error("superseded by nobody")
	}
	n.has(t)
}

// TestWhoIsRefusedAWriteForWantOfTheLeadIsInDoubt until a write of its own is
// taken, which is tried once a second at most.
func TestWhoIsRefusedAWriteForWantOfTheLeadIsInDoubt(t *testing.T) {
	t.Parallel()
	n, c := &names{}, clock.NewManual(time.Time{})
	a := start(t, n, c, "a")
	n.set(func() { n.noWrite = errStorage })
	a.Doubt()
	a.Doubt()
	if !a.Superseded(t.Context()) || a.Over() {
		t.Error("not in doubt at once, or over for good")
	}
	for range 20 {
		c.Advance(Every / 10)
		if !a.Superseded(t.Context()) {
			t.Fatal("no doubt while no write is taken")
		}
		a.ended()
	}
	if n.puts != 3 {
		t.Errorf("%d writes, want the first and one in each of 2 seconds", n.puts)
	}
	n.set(func() { n.noWrite = nil })
	c.Advance(Every)
	a.Superseded(t.Context())
	a.ended()
	if a.Superseded(t.Context()) {
		t.Error("in doubt after a write")
	}
	n.has(t, "0000000001-a", "0000000001-a")
	if said := strings.Count(a.log.String(), "does not lead"); said != 1 {
		t.Errorf("it is said %d times", said)
	}
	a.Doubt()
	if !a.Superseded(t.Context()) {
		t.Error("not in doubt a second time")
	}
}
