// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
)

const (
	// ClaimLife is the longest life of a code from the attempt that carries it.
	ClaimLife = 24 * time.Hour
	// claimKeep is how long a code is known after its life, so that its
	// second use is seen.
	claimKeep = 7 * 24 * time.Hour
	// claimSweep is the time between two looks for claims to forget,
	// claimSweepAgain that where some could not be looked at, and maxSwept the
	// number that one look removes.
	claimSweep      = 24 * time.Hour
	claimSweepAgain = time.Hour
	maxSwept        = 1000

	claimSchema   = 1
	claimPrefix   = "claim_"
	claimKeySize  = 32
	claimIDLength = 32 // of the 64 hex digits of the digest
	claimLocks    = 64
	maxUnsure     = 1024
)

// ErrClaim answers a code that is not known, has expired or is no code at all.
var ErrClaim = errors.New("there is no such claim, or it has expired")

// ErrClaimReused answers a code that has been redeemed before.
var ErrClaimReused = errors.New("this claim has been redeemed before")

var errDamagedClaim = errors.New("the stored claim is not readable")

// Claim is what a code stands for.
type Claim struct {
	KeyID   string
	Version int
	// Hook is the one that delivered the code, EventID the message.
	Hook, EventID string
	Expires       time.Time
	// Redeemed is when the code was first redeemed.
	Redeemed time.Time
	// Sealed is the encrypted key, where it was kept nowhere else and the code
	// has just been redeemed or could be.
	Sealed Sealed
}

// claimEntry is a Claim as stored. It holds the digest of the code and not
// the code.
type claimEntry struct {
	Schema  int       `json:"schema"`
	Digest  string    `json:"digest"`
	KeyID   string    `json:"key_id"`
	Version int       `json:"version"`
	Hook    string    `json:"hook"`
	EventID string    `json:"event_id"`
	Expires time.Time `json:"expires"`

	Redeemed time.Time `json:"redeemed,omitzero"`
	// Redemption is random and tells redemptions apart.
	Redemption string `json:"redemption,omitempty"`
	// Untold says that the redemption may not have been told yet. Such a claim
	// is filed with the ends of claims, for Sweep to find.
	Untold bool `json:"untold,omitempty"`
	// Sealed is gone with the redemption, and soon after the end.
	Sealed Sealed `json:"sealed,omitempty"`

	extra jsonkeep.Extra
}

type claimFields claimEntry

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (c claimEntry) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(claimFields(c), c.extra) }

// UnmarshalJSON reads a stored claim and refuses one of a newer schema.
func (c *claimEntry) UnmarshalJSON(data []byte) error {
	if err := checkSchema(data, claimSchema); err != nil {
		return err
	}
	extra, err := jsonkeep.Unmarshal(data, (*claimFields)(c))
	if err != nil {
		return err
	}
	c.extra = extra
	return nil
}

func (c *claimEntry) claim() Claim {
	return Claim{KeyID: c.KeyID, Version: c.Version, Hook: c.Hook, EventID: c.EventID, Expires: c.Expires, Redeemed: c.Redeemed, Sealed: c.Sealed}
}

// MessageID is the webhook-id of the message that carried the code.
func (c Claim) MessageID() string { return messageID(c.EventID) }

// Claims issues codes and redeems each once. It is safe for concurrent use.
//
// A code is "claim_<day>_" and 256 bits: the HMAC-SHA-256 of the event's id
// under a random key of the hook. So all attempts to deliver an event, before
// and after a crash, carry the same code, and no code need be stored.
type Claims struct {
	storage ClaimStorage
	clock   clock.Clock
	rand    io.Reader
	// OnRedeemed, where set before first use, tells of a redemption again that
	// whoever redeemed may not have told of. It must do so once for each claim.
	OnRedeemed func(ctx context.Context, claim Claim) error
	locks      [claimLocks]sync.Mutex
	// unsure holds redemptions whose write failed: it may have taken effect,
	// but nobody was given the key.
	unsure *lru.Cache[string, redemption]

	sweepMu sync.Mutex
	swept   time.Duration
	// ends are the minutes in which the life of a claim ends that may hold a
	// key; nil until they have been listed. Its own lock guards it.
	endsMu sync.Mutex
	ends   map[int64]struct{}
}

// redemption is one whose write failed, and the key that it took away.
type redemption struct {
	mark   string
	sealed Sealed
}

// NewClaims returns Claims that are kept in storage.
func NewClaims(storage ClaimStorage, c clock.Clock, rand io.Reader) *Claims {
	unsure, err := lru.New[string, redemption](maxUnsure)
	if err != nil {
		panic(err) // the library refuses only a size below one
	}
	return &Claims{storage: storage, clock: c, rand: rand, unsure: unsure, swept: c.Elapsed()}
}

// claimPath is where a code is kept.
type claimPath struct{ day, id, digest string }

func pathOf(day, code string) claimPath {
	sum := sha256.Sum256([]byte(code))
	digest := hex.EncodeToString(sum[:])
	return claimPath{day: day, id: digest[:claimIDLength], digest: digest}
}

// parseCode tells whether text has the form of a code, and where it is kept.
func parseCode(text string) (claimPath, bool) {
	rest, ok := strings.CutPrefix(text, claimPrefix)
	if !ok || len(rest) < 6 || len(rest) > 64 {
		return claimPath{}, false
	}
	day, bits, ok := strings.Cut(rest, "_")
	n, err := strconv.ParseUint(day, 10, 20)
	if !ok || err != nil || strconv.FormatUint(n, 10) != day {
		return claimPath{}, false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(bits)
	if err != nil || len(raw) != sha256.Size || strings.ContainsAny(bits, "\r\n") {
		return claimPath{}, false
	}
	return pathOf(day, text), true
}

func claimDay(t time.Time) int64 { return t.Unix() / (24 * 60 * 60) }

// codeOf is the code of an event for a hook.
func codeOf(h *Hook, e *entry) (string, claimPath) {
	mac := hmac.New(sha256.New, h.ClaimKey)
	_, _ = fmt.Fprintf(mac, "claim\x00%s\x00%s", h.Name, e.ID)
	day := strconv.FormatInt(claimDay(e.Time), 10)
	code := claimPrefix + day + "_" + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	return code, pathOf(day, code)
}

func (c *Claims) lock(p claimPath) func() {
	n, err := strconv.ParseUint(p.digest[:2], 16, 8)
	if err != nil {
		n = 0
	}
	m := &c.locks[n%claimLocks]
	m.Lock()
	return m.Unlock
}

func (c *Claims) get(ctx context.Context, p claimPath) (*claimEntry, error) {
	raw, err := c.storage.GetClaim(ctx, p.day, p.id)
	if err != nil || raw == nil {
		return nil, err
	}
	entry := &claimEntry{}
	if err := json.Unmarshal(raw, entry); err != nil {
		if errors.Is(err, errNewer) {
			return nil, err
		}
		return nil, errDamagedClaim
	}
	if subtle.ConstantTimeCompare([]byte(entry.Digest), []byte(p.digest)) != 1 {
		return nil, nil
	}
	return entry, nil
}

func (c *Claims) put(ctx context.Context, p claimPath, entry *claimEntry) error {
	raw, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	return c.storage.PutClaim(ctx, p.day, p.id, raw)
}

// offer makes sure that the code of an event can be redeemed, and returns it
// with the end of its life. A code whose life is more than half over, because
// attempts before this one failed, gets a full one.
func (c *Claims) offer(ctx context.Context, h *Hook, e *entry) (string, time.Time, error) {
	code, path := codeOf(h, e)
	defer c.lock(path)()
	entry, err := c.get(ctx, path)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("read a claim: %w", err)
	}
	life := ClaimLife
	if e.Claim.Overlap > 0 {
		life = min(life, e.Claim.Overlap)
	}
	now := c.clock.Now().UTC().Truncate(time.Millisecond)
	if entry != nil && !entry.Redeemed.IsZero() {
		e.Claim.Sealed = nil // nobody will need it again
		return code, entry.Expires, nil
	}
	if entry != nil && entry.Expires.Sub(now) > life/2 {
		return code, entry.Expires, nil
	}
	if entry == nil {
		entry = &claimEntry{Schema: claimSchema, Digest: path.digest, KeyID: e.KeyID, Version: e.Claim.Version, Hook: h.Name, EventID: e.ID}
	}
	entry.Expires = now.Add(life)
	if entry.Sealed = e.Claim.Sealed; len(entry.Sealed) > 0 {
		if err := c.noteEnd(ctx, path, entry.Expires); err != nil {
			return "", time.Time{}, fmt.Errorf("note the end of a claim: %w", err)
		}
	}
	if err := c.put(ctx, path, entry); err != nil {
		return "", time.Time{}, fmt.Errorf("write a claim: %w", err)
	}
	return code, entry.Expires, nil
}

// Peek returns what Redeem would, and redeems nothing: for a caller to make
// sure that it can hand out the key before the code is used up.
func (c *Claims) Peek(ctx context.Context, code string) (Claim, error) {
	path, ok := parseCode(code)
	if !ok {
		return Claim{}, ErrClaim
	}
	defer c.lock(path)()
	entry, _, err := c.find(ctx, path)
	if entry == nil {
		return Claim{}, err
	}
	return entry.claim(), err
}

// Redeem returns what a code stands for, once. Later calls return it with
// ErrClaimReused, which is for the caller to raise an alarm and not to answer
// with. Any other code is ErrClaim. The redemption is written before it is
// returned: a crash in between leaves the code used up. A redemption whose
// write failed does not count. It is for the caller to tell of it, and to call
// Told then: else Sweep has OnRedeemed tell, soon.
func (c *Claims) Redeem(ctx context.Context, code string) (Claim, error) {
	path, ok := parseCode(code)
	if !ok {
		return Claim{}, ErrClaim
	}
	defer c.lock(path)()
	entry, written, err := c.find(ctx, path)
	switch {
	case entry == nil:
		return Claim{}, err
	case err != nil:
		return entry.claim(), err
	case written:
		c.unsure.Remove(path.digest)
		return entry.claim(), nil
	}
	mark := make([]byte, 16)
	if _, err := io.ReadFull(c.rand, mark); err != nil {
		return Claim{}, fmt.Errorf("redeem a claim: %w", err)
	}
	sealed, now := entry.Sealed, c.clock.Now().UTC().Truncate(time.Millisecond)
	if err := c.noteEnd(ctx, path, now); err != nil {
		return Claim{}, fmt.Errorf("redeem a claim: %w", err)
	}
	entry.Redeemed, entry.Redemption, entry.Sealed, entry.Untold = now, hex.EncodeToString(mark), nil, true
	if err := c.put(ctx, path, entry); err != nil {
		c.unsure.Add(path.digest, redemption{entry.Redemption, sealed})
		return Claim{}, fmt.Errorf("redeem a claim: %w", err)
	}
	c.unsure.Remove(path.digest)
	entry.Sealed = sealed
	return entry.claim(), nil
}

// Told notes that the redemption of a code was told.
func (c *Claims) Told(ctx context.Context, code string) error {
	path, ok := parseCode(code)
	if !ok {
		return nil
	}
	defer c.lock(path)()
	entry, err := c.get(ctx, path)
	if err == nil && entry != nil && entry.Untold {
		entry.Untold = false
		err = c.put(ctx, path, entry)
	}
	if err != nil {
		return fmt.Errorf("note that a redemption was told: %w", err)
	}
	return nil
}

// find returns the claim at path if it can be redeemed, and whether a
// redemption that was never answered is written in it already. With
// ErrClaimReused it returns the claim too. The caller holds its lock.
func (c *Claims) find(ctx context.Context, path claimPath) (entry *claimEntry, written bool, err error) {
	entry, err = c.get(ctx, path)
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("read a claim: %w", err)
	case entry == nil:
		return nil, false, ErrClaim
	case !entry.Redeemed.IsZero():
		mine, ok := c.unsure.Get(path.digest)
		if !ok || mine.mark != entry.Redemption {
			return entry, false, ErrClaimReused
		}
		entry.Sealed, written = mine.sealed, true
	}
	if !c.clock.Now().Before(entry.Expires) {
		return nil, false, ErrClaim
	}
	return entry, written, nil
}

// Sweep removes the keys of claims whose life is over, and forgets claims a
// week after that. It may be called at any time. It costs a List the first
// time, one in each minute in which the life of a claim with a key ends, once a
// day one and a Get for each claim that is a week old, and else nothing. What
// fails is tried again, and holds up nothing else.
func (c *Claims) Sweep(ctx context.Context) error {
	return errors.Join(c.sweepEnds(ctx), c.sweepOld(ctx))
}

// sweepOld forgets claims of old.
func (c *Claims) sweepOld(ctx context.Context) error {
	c.sweepMu.Lock()
	defer c.sweepMu.Unlock()
	if c.clock.Elapsed()-c.swept < claimSweep {
		return nil
	}
	days, err := c.storage.ListClaimDays(ctx)
	if err != nil {
		return fmt.Errorf("list claims: %w", err)
	}
	old := claimDay(c.clock.Now().Add(-claimKeep))
	removed := 0
	var failed failures
	for _, name := range days {
		day := strings.TrimSuffix(name, "/")
		if n, err := strconv.ParseInt(day, 10, 64); err != nil || n >= old {
			continue
		}
		if removed += c.sweepDay(ctx, day, maxSwept-removed, &failed); removed >= maxSwept {
			return failed.err() // the next call goes on
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	c.swept = c.clock.Elapsed()
	if failed.count > 0 {
		c.swept -= claimSweep - claimSweepAgain
	}
	return failed.err()
}

func (c *Claims) sweepDay(ctx context.Context, day string, most int, failed *failures) (removed int) {
	ids, err := c.storage.ListClaims(ctx, day)
	if err != nil {
		failed.add(fmt.Errorf("list claims: %w", err))
		return 0
	}
	for _, id := range ids {
		if removed >= most || ctx.Err() != nil {
			return removed
		}
		raw, err := c.storage.GetClaim(ctx, day, id)
		if err != nil {
			failed.add(fmt.Errorf("read a claim: %w", err))
			continue
		}
		var entry claimEntry
		err = json.Unmarshal(raw, &entry)
		if errors.Is(err, errNewer) || err == nil && c.clock.Now().Before(entry.Expires.Add(claimKeep)) {
			continue
		}
		if err := c.storage.DeleteClaim(ctx, day, id); err != nil {
			failed.add(fmt.Errorf("delete a claim: %w", err))
			continue
		}
		removed++
	}
	return removed
}
