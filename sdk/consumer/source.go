// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fetchTimeout bounds one look at where the key comes from, and how long a
	// request waits for the very first key.
	fetchTimeout = 10 * time.Second
	// defaultPatience is how long a refused request waits for another key.
	defaultPatience = 2 * time.Second
)

// Config says what a Source is made of.
type Config struct {
	// Origin is where the key comes from: [Vault], [File], [Claims], or your own.
	Origin Origin
	// Initial is the key to begin with, if there is one already: it is used until
	// another one is seen, also while the origin cannot be reached. Its version need
	// not be known: the origin's is taken once it shows the same key.
	Initial Key
	// Instance names this instance of the client, a region, cluster or host, for
	// the rollover that waits for it; "default" if it is empty.
	Instance string
	// Confirmer is told which version is in use, if the Origin itself is none.
	Confirmer Confirmer
	// OnChange is called with each new key, the first one included, whose old one
	// is the zero Key. Calls come one at a time and in order, and hold up nothing.
	OnChange func(old, next Key)
	// Patience is how long a request that was refused waits for another key. Zero
	// is 2 seconds, or what suits the Origin: 5 for files and claims.
	Patience time.Duration
	// Logger is told what goes wrong. It never sees a key. Nil discards.
	Logger *slog.Logger
}

// Source holds the current API key. Its methods may be called from any goroutine.
type Source struct {
	origin    Origin
	confirmer Confirmer
	instance  string
	onChange  func(old, next Key)
	patience  time.Duration
	log       *slog.Logger

	current   atomic.Pointer[entry]
	first     chan struct{} // closed when there is a key
	toConfirm atomic.Pointer[entry]
	confirms  chan struct{} // of one: toConfirm was set
	flights   flights

	mu      sync.Mutex
	changes []change // that OnChange has not been told of
	telling bool
}

// entry is a key while it is the current one.
type entry struct {
	secret   string
	told     atomic.Pointer[Key] // of that secret; see relabel
	replaced chan struct{}       // closed when another one is the current one
	worked   atomic.Bool         // a server has accepted it
	queued   atomic.Bool         // to be confirmed, or it was
	vain     vain
}

func newEntry(k Key) *entry {
	e := &entry{secret: k.secret, replaced: make(chan struct{})}
	e.told.Store(&k)
	return e
}

func (e *entry) key() Key { return *e.told.Load() }

type change struct{ old, next Key }

// New makes a Source. It does no I/O.
func New(c Config) (*Source, error) {
	if c.Origin == nil {
		return nil, errors.New("consumer: Config.Origin is required: Vault, File or Claims")
	}
	if c.Patience < 0 {
		return nil, fmt.Errorf("consumer: Config.Patience must not be negative, got %s", c.Patience)
	}
	s := &Source{
		origin: c.Origin, confirmer: c.Confirmer, instance: c.Instance, onChange: c.OnChange, patience: c.Patience, log: c.Logger,
		first: make(chan struct{}), confirms: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.patience == 0 {
		s.patience = defaultPatience
		if o, ok := c.Origin.(interface{ patience() time.Duration }); ok {
			s.patience = o.patience()
		}
	}
	if s.confirmer == nil {
		s.confirmer, _ = c.Origin.(Confirmer)
	}
	s.flights.wake = make(chan struct{}, 1)
	if !c.Initial.IsZero() {
		s.take(c.Initial)
	}
	if o, ok := c.Origin.(interface{ attach(take func(Key)) }); ok {
		o.attach(s.take)
	}
	return s, nil
}

// Current returns the current key without waiting: the zero Key if there has
// been none yet. It takes no lock.
func (s *Source) Current() Key {
	if e := s.current.Load(); e != nil {
		return e.key()
	}
	return Key{}
}

// Key returns the current key. It waits for the first one until ctx ends, and
// then returns an error that says why there is none.
func (s *Source) Key(ctx context.Context) (Key, error) {
	e, err := s.wait(ctx)
	if err != nil {
		return Key{}, err
	}
	return e.key(), nil
}

func (s *Source) wait(ctx context.Context) (*entry, error) {
	for {
		if e := s.current.Load(); e != nil {
			return e, nil
		}
		flight, pause := s.board(s.after(), true)
		var landed <-chan struct{}
		if flight != nil {
			landed = flight.done
		}
		select {
		case <-s.first:
		case <-landed:
		case <-after(pause, landed == nil):
		case <-ctx.Done():
			if err := s.Err(); err != nil {
				return nil, fmt.Errorf("there is no API key yet: %w", err)
			}
			return nil, fmt.Errorf("there is no API key yet: %w", ctx.Err())
		}
	}
}

// Err is why the last look at the origin failed; nil if it did not.
func (s *Source) Err() error {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	return s.flights.err
}

// Refresh looks at the origin now, and returns when it has been looked at.
func (s *Source) Refresh(ctx context.Context) error {
	want := s.after()
	for {
		flight, _ := s.board(want, false)
		if flight == nil {
			return s.Err()
		}
		select {
		case <-flight.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take makes a key the current one. Where it is already, it takes only what is
// told of it.
func (s *Source) take(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	if old != nil && old.secret == k.secret {
		s.relabel(old, k)
		return
	}
	s.current.Store(newEntry(k))
	was := Key{}
	if old != nil {
		was = old.key()
		close(old.replaced)
	} else {
		close(s.first)
	}
	s.flights.calm()
	if s.onChange == nil {
		return
	}
	s.changes = append(s.changes, change{was, k})
	if !s.telling {
		s.telling = true
		go s.tell()
	}
}

// relabel takes the version and the id of a key that is the current one: those of
// a key to begin with, or of a plain file, may be unknown, or not what they are.
// Whoever forgets them changes nothing. OnChange is not called: the key is the
// same.
func (s *Source) relabel(e *entry, k Key) {
	known := e.key()
	if k.version == 0 {
		k.version = known.version
	}
	if k.id == "" {
		k.id = known.id
	}
	e.told.Store(&k)
	if k.version != known.version {
		e.queued.Store(false)
		s.queue(e)
	}
}

// tell calls OnChange for the changes that wait.
func (s *Source) tell() {
	for {
		s.mu.Lock()
		if len(s.changes) == 0 {
			s.changes, s.telling = nil, false
			s.mu.Unlock()
			return
		}
		next := s.changes[0]
		s.changes[0] = change{} // its keys need not be kept
		s.changes = s.changes[1:]
		s.mu.Unlock()
		s.onChange(next.old, next.next)
	}
}

// successor returns the key that follows one which a server has refused at a
// place; nil if there is none in time. A key that is newer already costs nothing. Else the
// origin is looked at, however many requests were refused, by one look that
// began after the refusal: the server knows of the rotation, so the origin does.
// Where that look shows the same key, as when a file is still being rendered or
// a message is on its way, there are more, less and less often, until the
// patience is over; a look that is under way then is waited for.
func (s *Source) successor(ctx context.Context, refused *entry, at place) *entry {
	hopeless := refused.vain.at(at, time.Now())
	over := time.NewTimer(s.patience)
	defer over.Stop()
	want, last := s.after(), false
	for {
		if now := s.current.Load(); now != refused {
			return now
		}
		flight, pause := s.board(want, true)
		var landed <-chan struct{}
		switch {
		case flight != nil:
			landed = flight.done
		case last, pause == 0 && hopeless:
			return nil
		case pause == 0:
			want = s.after()
			continue
		}
		select {
		case <-refused.replaced:
			return s.current.Load()
		case <-landed:
		case <-after(pause, landed == nil):
		case <-ctx.Done():
			return nil
		case <-over.C:
			refused.vain.note(at, time.Now())
			if landed == nil {
				return nil
			}
			last = true
		}
	}
}

// accepted notes that a server has accepted a key at a place. One that is
// replaced already is not confirmed: its answer may be slow, and the newer one
// waits.
func (s *Source) accepted(e *entry, at place) {
	e.vain.accepted(at)
	if e.worked.Load() || s.current.Load() != e || e.worked.Swap(true) {
		return
	}
	s.queue(e)
}

// queue has a key confirmed once a server has accepted it and its version is
// known, whichever is later.
func (s *Source) queue(e *entry) {
	if s.confirmer == nil || !e.worked.Load() || e.key().version == 0 || e.queued.Swap(true) {
		return
	}
	s.toConfirm.Store(e)
	select {
	case s.confirms <- struct{}{}:
	default:
	}
}

// after is a timer where one is wanted, and never otherwise.
func after(d time.Duration, wanted bool) <-chan time.Time {
	if !wanted {
		return nil
	}
	return time.After(d)
}

// held is the current key for a request, which waits for the first one only so
// long.
func (s *Source) held(ctx context.Context) (*entry, error) {
	if e := s.current.Load(); e != nil {
		return e, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	return s.wait(ctx)
}

// refused has the origin looked at, by somebody else, because a server has
// refused a key.
func (s *Source) refused(e *entry) {
	if s.current.Load() == e {
		s.board(s.after(), true)
	}
}
