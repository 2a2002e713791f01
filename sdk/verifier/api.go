// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

// ErrUnavailable means that a key can be neither accepted nor refused now: the
// caller answers 503, not 401.
var ErrUnavailable = errors.New("verification is unavailable")

// Config is how a verifier works. Its zero value needs only an Engine or a
// Vault, and a Name.
type Config struct {
	// Vault is the way to the engine, as a *vaultclient.Client is.
	Vault Client
	// Engine replaces Vault.
	Engine Engine

	// Name is that of this verifier among those of the mount, such as its
	// host's. Two that run at the same time must have two.
	Name string
	// Source is where the requests arrive, such as a region, for the count of
	// use: at most 128 of A-Z a-z 0-9 _ . : / -. A Check may name another.
	Source string

	// CacheSize is the greatest number of keys that are cached; 100,000 if zero.
	CacheSize int
	// PollInterval is how often the feed of changes is asked; a second if zero.
	PollInterval time.Duration
	// MaxStale is how long after the last good answer of the feed cached keys
	// are accepted; 10 minutes if zero.
	MaxStale time.Duration
	// ReportInterval is how often use is reported; 10 seconds if zero.
	ReportInterval time.Duration
	// RequestTimeout bounds a request to the engine; 2 seconds if zero.
	RequestTimeout time.Duration
	// VerifyTimeout bounds how long a Verify waits for the engine, beside its
	// context; no bound if zero. What is decided from cache waits for nothing and
	// costs no timer.
	VerifyTimeout time.Duration
	// UnknownRate is how many requests with keys that are not cached may ask the
	// engine in a second and be refused; KnownRate how many with a secret that
	// is cached, and, apart from those, with the id of a cached key and another
	// secret; 500 and 5000 if zero. Twice as many may be at once. What is
	// accepted does not count. Whoever presents a key beyond that is told to
	// try again, not refused.
	UnknownRate, KnownRate float64
	// MaxUnreported bounds the kinds of use (key, version, source) that are
	// kept while they cannot be reported, beside as many in the reports that are
	// under way: the greater of 100,000 and CacheSize if zero. Each takes about
	// 150 bytes. About as many may wait to be taken in, for a minute at most; each
	// of these keeps the record of its key, about 900 bytes, also where the cache
	// has dropped it.
	MaxUnreported int
	// FirstFill loads keys page by page at the start, until all are cached or
	// the cache is full.
	FirstFill bool
	// WallClock is the clock whose skew against Vault's is reported, and that
	// nothing else is asked of; the system's if nil.
	WallClock func() time.Time
	// Logger is told what goes wrong, once, and that it is well again. Nil
	// discards.
	Logger *slog.Logger
}

// Verdict is what to do with a request.
type Verdict uint8

// The verdicts. The zero value is VerdictUnknown, which no Result has.
const (
	VerdictUnknown Verdict = iota
	// Accepted lets the request go on.
	Accepted
	// Refused does not: 401, or 403 for CodeForbiddenSource and
	// CodeInsufficientScope.
	Refused
	// Unavailable means that nobody knows: 503.
	Unavailable
)

func (v Verdict) String() string {
	switch v {
	case Accepted:
		return "accepted"
	case Refused:
		return "refused"
	case Unavailable:
		return "unavailable"
	case VerdictUnknown:
	}
	return "unknown"
}

// Check is what a request needs besides a key.
type Check struct {
	// Scopes are all required.
	Scopes []string
	// SourceIP is where the request came from. It is needed where keys are
	// bound to addresses.
	SourceIP netip.Addr
	// Source is where the request arrived, for the count of use: at most 128 of
	// A-Z a-z 0-9 _ . : / -. Where it is empty or anything else, or one of too
	// many, the use counts under that of the Config.
	Source string
}

// Result is the answer to one request. What it points to is shared, and only
// to be read.
type Result struct {
	Verdict Verdict
	// Code tells why. It is empty for Unavailable.
	Code record.Code
	// State is that of the version, at the time of the answer.
	State record.State
	// Scopes are those in force for the version.
	Scopes []string
	// Key and Version are nil where nothing is known of the key.
	Key     *record.Record
	Version *record.Version
	// RetryAfter is when to ask again, for Unavailable.
	RetryAfter time.Duration
}

// Health is the state of a verifier at a moment.
type Health struct {
	// Ready tells whether cached keys are accepted now: the feed has answered
	// well within MaxStale.
	Ready bool
	// FeedAge is the time since the request of the last good answer of the
	// feed; negative if there was none.
	FeedAge time.Duration
	Epoch   string
	Seq     uint64
	// CachedKeys is about how many keys are cached.
	CachedKeys int
	// Skew is how far the wall clock here is ahead of Vault's.
	Skew time.Duration
	// UnreportedUses is about how many uses have not been reported yet, and
	// LostUses how many never will be counted: there was no room for them, or
	// the engine has refused them.
	UnreportedUses uint64
	LostUses       uint64
	// LastError is the last failure of the feed; nil while it is well.
	LastError error
}

// Stats are counts since the start.
type Stats struct {
	// Codes counts answers by code; Unavailable those without one.
	Codes       map[record.Code]uint64
	Unavailable uint64
	// Hits were accepted from cache, and Negatives refused from it.
	Hits      uint64
	Negatives uint64
	// Lookups and LookupFailures count requests, Records the keys in their
	// answers, Limited the misses that were not allowed one.
	Lookups        uint64
	LookupFailures uint64
	Records        uint64
	Limited        uint64
	// Syncs, SyncFailures and Resets are those of the feed.
	Syncs        uint64
	SyncFailures uint64
	Resets       uint64
	// Reports and ReportFailures are those of use.
	Reports        uint64
	ReportFailures uint64
}
