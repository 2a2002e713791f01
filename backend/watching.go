// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/anomaly"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

const (
	// queued bounds what waits to be told. What does not fit is found again
	// (events that are owed, first uses), or happens again (anomalies).
	queued = 4096
	// queuedNotices is more: a finding is not made again while it cools down, and
	// all clients may fall silent in one hour. That takes 2 MB.
	queuedNotices = 32_768

	actorVerify  = "verify"
	actorAnomaly = "anomaly detection"
)

// notice is something that verification saw and that a key's history should
// tell. Requests do not wait for it.
type notice struct {
	keyID   string
	version int
	// first tells that the version was used for the first time, and stale that
	// it was refused after its end.
	first, stale bool
	finding      *anomaly.Finding
}

// watcher tells of what happens to keys: by webhooks, by Vault's events, and
// in the history of keys.
type watcher struct {
	engine   *engine
	hooks    *webhook.Deliverer
	claims   *webhook.Claims
	detector *anomaly.Detector
	// send offers an event to Vault's own bus.
	send func(ctx context.Context, k *keyring.Key, e keyring.Event) error

	// noting are the first uses, and the first refusals after an end, that are on
	// their way to the key's history.
	noting sync.Map
	// held are the keys whose uses wait to be stored until the new source in them was
	// told of, and whether it was; heldMu guards it.
	heldMu sync.Mutex
	held   map[string]bool
	// reused are claims whose reuse was told.
	reused *lru.Cache[string, struct{}]

	owed chan string
	// unpaid are the keys whose events could not be copied. They are tried again
	// each time that something is told, and so at each tick.
	unpaid *lru.Cache[string, struct{}]

	notices chan notice
	events  chan told

	// flushing keeps the tick and a sweep from storing reports out of order.
	flushing sync.Mutex
}

// told is an event on its way to Vault's own bus.
type told struct {
	key   *keyring.Key
	event keyring.Event
}

// Wanted implements lifecycle.Outbox.
func (w *watcher) Wanted() bool { return w.engine.store.HasHooks() }

// Copy implements lifecycle.Outbox.
func (w *watcher) Copy(ctx context.Context, k *keyring.Key, events []keyring.Event) error {
	list := make([]webhook.Event, 0, len(events))
	for _, e := range events {
		list = append(list, hookEvent(k, e))
	}
	if k.OwedDropped > 0 && len(list) > 0 {
		list[0].Data["events_missed"] = k.OwedDropped
	}
	err := w.hooks.Enqueue(ctx, list...)
	if errors.Is(err, webhook.ErrBadEvent) {
		// It will not become better: the rest must not wait for it.
		w.engine.keeper.Logger.Error("an event cannot be told", "key_id", k.ID, "error", err)
		return nil
	}
	return err
}

// Claimable implements lifecycle.Outbox.
func (w *watcher) Claimable(ctx context.Context, k *keyring.Key) (can bool, why string, err error) {
	return w.hooks.Claimable(ctx, hookEvent(k, keyring.Event{Type: keyring.EventVersionActivated}))
}

// Committed implements lifecycle.Outbox.
func (w *watcher) Committed(k *keyring.Key, events []keyring.Event, owed bool) {
	for _, e := range events {
		select {
		case w.events <- told{k, e}:
		default: // Vault's events promise nothing
		}
	}
	if owed {
		select {
		case w.owed <- k.ID:
		default: // the next tick copies it
		}
	}
	w.engine.wakeTelling()
}

// hookEvent is an event of a key as webhooks tell it.
func hookEvent(k *keyring.Key, e keyring.Event) webhook.Event {
	data := map[string]any{}
	if e.Version > 0 {
		data[fieldVersion] = e.Version
	}
	if e.Actor != "" {
		data["actor"] = e.Actor
	}
	if e.Reason != "" {
		data[fieldReason] = e.Reason
	}
	if e.Detail != "" {
		data["detail"] = e.Detail
	}
	event := webhook.Event{
		ID: webhook.EventID(k.ID, e.Seq), Type: string(e.Type), Time: e.Time,
		KeyID: k.ID, KeyName: k.Name, Role: k.Role, Metadata: k.CustomMetadata, Seq: e.Seq, Data: data,
	}
	v, ok := k.Version(e.Version)
	if !ok {
		return event
	}
	putTime(data, fieldOverlapEnds, v.OverlapEnds)
	putTime(data, fieldAcceptedUntil, v.AcceptedUntil)
	// Who has a lease is answered the key: nobody else is to have it.
	if e.Type == keyring.EventVersionActivated && !k.Leased() && len(v.Sealed)+len(v.Handover) > 0 {
		event.Claim = &webhook.Offer{Version: v.Number, Overlap: overlapLeft(k, v.Number), Sealed: v.Handover}
	}
	return event
}

// overlapLeft is how long the version that number has last superseded is accepted:
// after a rollback it may have superseded another one before.
func overlapLeft(k *keyring.Key, number int) time.Duration {
	var last keyring.Version
	for _, v := range k.Versions {
		if v.SupersededBy == number && v.State == keyring.StateRetiring && !v.SupersededTime.Before(last.SupersededTime) {
			last = v
		}
	}
	return last.AcceptedUntil.Sub(last.SupersededTime)
}

// wakeTelling lets what is owed be told now.
func (e *engine) wakeTelling() {
	if e.telling != nil {
		e.telling.Wake()
	}
}

// maxUntold is how many keys may fail in a row before telling pauses.
const maxUntold = 8

// tell works off what waits to be told, then what failed before, and then the first
// uses that have notes, which stay until that: nearly all were told at once, and
// that costs no storage but a read of keys that are not cached. What fails with
// storage stays owed, or is tried again. One key that fails, or one webhook, does
// not keep what others have to tell. It tries nothing twice.
func (w *watcher) tell(ctx context.Context) error {
	var failed error
	var again []notice
	unpaid, firsts := w.unpaid.Keys(), w.engine.keeper.Book.Noted()
	pay := func(id string) error {
		err := w.engine.keeper.CopyOwed(ctx, id)
		if err == nil || errors.Is(err, store.ErrDamaged) {
			w.unpaid.Remove(id)
		} else {
			w.unpaid.Add(id, struct{}{})
		}
		return err
	}
	defer func() {
		for _, n := range again {
			if !w.offer(n) {
				w.noted(n)
			}
		}
	}()
	for row := 0; row < maxUntold && ctx.Err() == nil; {
		var err error
		select {
		case id := <-w.owed:
			err = pay(id)
		case n := <-w.notices:
			if err = w.tellOf(ctx, n); err != nil && !errors.Is(err, store.ErrDamaged) {
				again = append(again, n) // it may not happen again
			} else {
				w.noted(n)
			}
		case t := <-w.events:
			if err := w.send(ctx, t.key, t.event); err != nil {
				w.engine.keeper.Logger.Debug("Vault did not take an event", "type", t.event.Type, "error", err)
			}
			continue
		default:
			switch {
			case len(unpaid) > 0:
				err, unpaid = pay(unpaid[0]), unpaid[1:]
			case len(firsts) > 0:
				one := firsts[0]
				firsts = firsts[1:]
				if _, queued := w.noting.Load(onItsWay{keyID: one.KeyID, version: one.Version}); queued {
					continue // it has just failed, and waits with the other notices
				}
				err = w.tellFirst(ctx, one.KeyID, one.Version)
			default:
				return failed
			}
		}
		if err == nil {
			row = 0
			continue
		}
		row++
		if failed == nil {
			failed = err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return failed
}

// tellOf notes what a notice says.
func (w *watcher) tellOf(ctx context.Context, n notice) error {
	if n.stale {
		return w.engine.keeper.NoteStale(ctx, n.keyID, n.version)
	}
	err := w.note(ctx, n)
	if n.first && (err == nil || errors.Is(err, store.ErrDamaged)) {
		w.engine.keeper.Book.Told(n.keyID, n.version)
	}
	return err
}

// noted is over with a notice: what it says may be noted anew, and what waited for
// it goes on.
func (w *watcher) noted(n notice) {
	if n.finding == nil {
		w.noting.Delete(onItsWay{n.keyID, n.version, n.stale})
	} else if n.finding.Kind == anomaly.UnseenSource {
		w.release(n.keyID)
	}
}

// tellFirst tells of the first use of a version, if nobody did.
func (w *watcher) tellFirst(ctx context.Context, keyID string, number int) error {
	k, err := w.engine.store.Key(ctx, keyID)
	if err == nil && k != nil && k.Deleted.IsZero() && !k.Leased() {
		if v, ok := k.Version(number); ok && v.FirstUsedTime.IsZero() {
			return w.tellOf(ctx, notice{keyID: keyID, version: number, first: true})
		}
	}
	if err == nil || errors.Is(err, store.ErrDamaged) {
		w.engine.keeper.Book.Told(keyID, number)
	}
	return err
}

// note records in a key's history what verification saw.
func (w *watcher) note(ctx context.Context, n notice) error {
	actor := actorVerify
	if n.finding != nil {
		actor = actorAnomaly
	}
	return w.engine.keeper.Emit(ctx, n.keyID, actor, func(k *keyring.Key, _ *role.Role, c keyring.Cause) bool {
		if n.finding != nil {
			k.Record(c, keyring.EventAnomalyDetected, n.finding.Version, string(n.finding.Kind)+": "+evidenceOf(n.finding))
		}
		for i := range k.Versions {
			v := &k.Versions[i]
			if v.Number != n.version {
				continue
			}
			if n.first && v.FirstUsedTime.IsZero() {
				v.FirstUsedTime = c.Now
				k.Record(c, keyring.EventVersionFirstUsed, v.Number, "")
				return true
			}
			if n.finding != nil && n.finding.Kind == anomaly.EndedVersionUse {
				k.Record(c, keyring.EventVersionStaleUse, v.Number, n.finding.Evidence)
			}
		}
		return n.finding != nil
	})
}

// evidenceOf adds where a finding came from.
func evidenceOf(f *anomaly.Finding) string {
	if f.Source == "" {
		return f.Evidence
	}
	return f.Evidence + " (source " + usage.DisplayNames(map[string]bool{f.Source: true})[f.Source] + ")"
}

// notify has a notice told soon, and reports whether there was room for it.
func (w *watcher) notify(n notice) bool {
	if !w.offer(n) {
		return false
	}
	w.engine.wakeTelling()
	return true
}

func (w *watcher) offer(n notice) bool {
	select {
	case w.notices <- n:
		return true
	default:
		return false
	}
}

// onItsWay names what is noted of a version once.
type onItsWay struct {
	keyID   string
	version int
	stale   bool
}

// notifyOnce is notify for a notice of which one is enough. What cannot be noted
// now is noted with the next use.
func (w *watcher) notifyOnce(n notice) {
	one := onItsWay{n.keyID, n.version, n.stale}
	if _, noting := w.noting.LoadOrStore(one, struct{}{}); noting {
		return
	}
	if !w.notify(n) {
		w.noting.Delete(one)
	}
}

// usedFirst notes the first use of a version.
func (w *watcher) usedFirst(k *keyring.Key, number int) {
	v, ok := k.Version(number)
	if !ok || !v.FirstUsedTime.IsZero() || k.Leased() || w.engine.telling == nil {
		return
	}
	w.notifyOnce(notice{keyID: k.ID, version: number, first: true})
}

// refusedStale notes that a version was refused because it had ended: a client
// was left behind.
func (w *watcher) refusedStale(k *keyring.Key, v *keyring.Version, now time.Time) {
	if !k.Leased() && w.engine.telling != nil && lifecycle.Failing(v, k.Now(now)) {
		w.notifyOnce(notice{keyID: k.ID, version: v.Number, stale: true})
	}
}

// used counts a verification, and notes what is remarkable about it. It
// touches no storage and takes no lock of a key. It returns what remember is to
// be given.
func (w *watcher) used(now time.Time, k *keyring.Key, verdict record.Verdict, source string) *usage.First {
	if verdict.Code == record.CodeValid {
		first := w.engine.keeper.Usage.Add(now, k.ID, verdict.Version, source, usage.Uses{Accepted: 1})
		w.usedFirst(k, verdict.Version)
		if k.Leased() {
			return nil // nobody asks whether it has drained
		}
		return first
	}
	uses := usage.Uses{Refused: 1}
	if isStale(verdict.Code) {
		uses.Stale = 1
	}
	if k.Deleted.IsZero() { // else nothing would ever remove it
		w.engine.keeper.Usage.Add(now, k.ID, verdict.Version, source, uses)
	}
	if hasEnded(verdict.Code) {
		v, _ := k.Version(verdict.Version)
		w.refusedEnded(now, now, k, &v, verdict.Code, source)
	}
	return nil
}

// isStale tells whether the code is that of clients that were left behind by
// the end of a version which time has ended.
func isStale(code record.Code) bool {
	return code == record.CodeRetired || code == record.CodeExpired
}

// hasEnded tells whether the code is that of a version which has ended.
func hasEnded(code record.Code) bool {
	return isStale(code) || code == record.CodeRevoked || code == record.CodeCompromised
}

// refusedEnded notes what is remarkable about a use at the time at, from source,
// of a version that had ended and was refused with code, here or elsewhere.
// That a lease has run out is not.
func (w *watcher) refusedEnded(now, at time.Time, k *keyring.Key, v *keyring.Version, code record.Code, source string) {
	if isStale(code) {
		w.refusedStale(k, v, now)
	}
	if code == record.CodeExpired && k.Leased() {
		return
	}
	recorded := k.Now(at)
	if f, found := w.detector.EndedUse(now, k.ID, v.Number, v.StateAt(recorded).String(), source, at.Sub(v.EndedAt(recorded))); found {
		w.notify(notice{keyID: k.ID, version: v.Number, finding: &f})
	}
}

// wrongSecret notes a token with the id of a real key and a secret that none
// of its versions has.
func (w *watcher) wrongSecret(now time.Time, keyID string) {
	if f, found := w.detector.WrongSecret(now, keyID); found {
		w.notify(notice{keyID: keyID, finding: &f})
	}
}

// usedFrom looks at where a key was used from since the last flush. What is stored
// of its sources is learned where this process knows none: a restart makes no
// source look new, and hides none that is, for what is found is told before the
// page shows the source.
func (w *watcher) usedFrom(keyID string, stored func() usage.Stored, used []usage.Use) (found bool) {
	if !w.detector.Knows(keyID) {
		all := stored()
		past := make([]anomaly.Past, 0, len(all.Sources))
		for _, s := range all.Sources {
			past = append(past, anomaly.Past{Name: s.Name, First: s.First, Last: s.Last, Uses: s.Count})
		}
		w.detector.Learn(keyID, past, all.Complete)
	}
	w.heldMu.Lock()
	defer w.heldMu.Unlock()
	if told, held := w.held[keyID]; held && !told {
		return true
	}
	delete(w.held, keyID)
	for _, u := range used {
		f, unseen := w.detector.Uses(u.LastUsed, keyID, u.Version, u.Source, u.Count)
		if unseen && w.notify(notice{keyID: keyID, version: u.Version, finding: &f}) && len(w.held) < queuedNotices {
			w.held[keyID] = false
			found = true
		}
	}
	return found
}

// release lets the uses of a key be stored, whose new source was told of.
func (w *watcher) release(keyID string) {
	w.heldMu.Lock()
	defer w.heldMu.Unlock()
	if _, held := w.held[keyID]; held {
		w.held[keyID] = true
	}
}

// fullHour judges an hour of a key against its earlier ones.
func (w *watcher) fullHour(keyID string, before []uint64, end time.Time, count uint64) {
	if f, found := w.detector.Hour(end, keyID, before, count); found {
		w.notify(notice{keyID: keyID, finding: &f})
	}
}

// flush stores what was counted, and lets webhooks go on after a failure.
func (w *watcher) flush(ctx context.Context) error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	err := w.flushUse(ctx)
	if !w.engine.store.HasHooks() {
		return err
	}
	return errors.Join(err, w.hooks.Recover(ctx))
}

// endClaims removes the keys of claims whose life is over. That cannot be undone,
// so it is not for a time in which the clock is not trusted.
func (w *watcher) endClaims(ctx context.Context) error {
	if !w.engine.store.HasHooks() {
		return nil
	}
	return w.claims.Sweep(ctx)
}

// flushLast stores what was counted, where nothing stores it already.
func (w *watcher) flushLast(ctx context.Context) error {
	if !w.flushing.TryLock() {
		return nil // a storage call of the worker that was stopped still hangs
	}
	defer w.flushing.Unlock()
	return w.flushUse(ctx)
}

// flushUse stores what was counted.
func (w *watcher) flushUse(ctx context.Context) error {
	book := w.engine.keeper.Book
	// Reports are noted before the counts: a crash between loses counts, and
	// never counts twice.
	data, err := book.Reports.Encode()
	if err != nil {
		return err
	}
	if data != nil {
		if err := w.engine.store.PutReports(ctx, data); err != nil {
			book.Reports.Unsaved()
			return err
		}
	}
	if !book.Idle() {
		conf, err := w.engine.store.Config(ctx)
		if err != nil {
			return err
		}
		return book.Flush(ctx, w.engine.keeper.Clock.Now(), conf.UsageRetention)
	}
	return nil
}

// sendEvent offers an event to Vault's own bus. Vault Community does not take
// any, and OpenBao has none: both are silence, not errors.
func (b *Backend) sendEvent(ctx context.Context, k *keyring.Key, e keyring.Event) error {
	event, err := logical.NewEvent()
	if err != nil {
		return err
	}
	path := "keys/" + k.Name
	if k.Leased() {
		path = "creds/" + k.Role
	}
	pairs := map[string]string{
		logical.EventMetadataDataPath: path, "path": path, logical.EventMetadataOperation: string(e.Type),
		fieldKeyID: k.ID, fieldRole: k.Role, "event_id": webhook.EventID(k.ID, e.Seq),
	}
	event.Metadata = eventMetadata(pairs)
	err = b.SendEvent(ctx, logical.EventType("apikeys/"+string(e.Type)), event)
	if err == nil || errors.Is(err, errNoEvents) || unimplemented(err) {
		return nil
	}
	return err
}
