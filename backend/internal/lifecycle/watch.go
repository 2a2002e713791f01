// SPDX-License-Identifier: MPL-2.0

package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/health"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/usage"
)

// Rollover judges the rollover of a key that is under way. It reports false
// where there is none.
func (kp *Keeper) Rollover(ctx context.Context, k *keyring.Key, now time.Time) (health.Rollover, health.Report, bool, error) {
	now = k.Now(now)
	from, to, ok := rolloverOf(k)
	if !ok {
		return health.Rollover{}, health.Report{}, false, nil
	}
	use, err := kp.Book.Read(ctx, k.ID, now)
	if err != nil {
		return health.Rollover{}, health.Report{}, false, err
	}
	r := kp.rollover(k, from, to, use, now)
	return r, health.Judge(r, now), true, nil
}

// rolloverOf returns the version that is being left, the oldest that is
// accepted or could still be rescued, and the one that takes over.
func rolloverOf(k *keyring.Key) (from keyring.Version, to int, ok bool) {
	if !k.RollingOver() {
		return from, 0, false
	}
	active, hasActive := k.Active()
	for _, v := range k.Versions {
		if v.State == keyring.StateRetiring || v.LeftBehind() {
			if from.Number == 0 || from.State == keyring.StateRetired && v.State == keyring.StateRetiring {
				from = v
			}
		}
	}
	if from.Number != 0 {
		to = from.SupersededBy
		if hasActive {
			to = active.Number
		}
		return from, to, true
	}
	pending, ok := k.Pending()
	return active, pending.Number, ok && hasActive
}

func (kp *Keeper) rollover(k *keyring.Key, from keyring.Version, to int, use map[int]usage.Version, now time.Time) health.Rollover {
	r := health.Rollover{
		From: from.Number, To: to, Promoted: from.SupersededTime, Planned: from.OverlapEnds, Deadline: from.AcceptedUntil,
		KnownSince: kp.Usage.KnownSince(k.ID), StaleBefore: from.StaleBefore,
	}
	if from.StateAt(now).Ended() {
		r.Ended = from.AcceptedUntil
	}
	names := map[string]bool{}
	for number, v := range use {
		if number == from.Number || isSuccessor(k, from.Number, number) {
			for name := range v.Sources {
				names[name] = true
			}
		}
	}
	shown := usage.DisplayNames(names)
	for name := range names {
		s := health.Source{Name: shown[name], Old: useOf(use[from.Number].Sources[name], now)}
		for number, v := range use {
			if isSuccessor(k, from.Number, number) {
				s.New = addUse(s.New, useOf(v.Sources[name], now))
			}
		}
		r.Sources = append(r.Sources, s)
	}
	slices.SortFunc(r.Sources, func(a, b health.Source) int { return strings.Compare(a.Name, b.Name) })
	for _, c := range k.Confirmations {
		r.Instances = append(r.Instances, health.Instance{Name: c.Instance, Version: c.Version, Time: c.Time})
	}
	return r
}

// isSuccessor tells whether number stands in for from.
func isSuccessor(k *keyring.Key, from, number int) bool {
	v, ok := k.Version(number)
	return ok && number != from && (number > from || v.State == keyring.StateActive)
}

func useOf(s usage.Source, now time.Time) health.Use {
	u := health.Use{Total: s.Count, Refused: s.Refused, Stale: s.Stale, LastUsed: s.LastUsed}
	least := now.Add(-health.Recent).Unix() / 60
	for slot, n := range s.Minutes {
		if m, err := strconv.ParseInt(slot, 10, 64); err == nil && m > least {
			u.Recently += n
		}
	}
	return u
}

func addUse(a, b health.Use) health.Use {
	a.Total += b.Total
	a.Recently += b.Recently
	a.Refused += b.Refused
	a.Stale += b.Stale
	if b.LastUsed.After(a.LastUsed) {
		a.LastUsed = b.LastUsed
	}
	return a
}

// watch tells of what is due to be told: a rotation that is coming, laggards
// at the points of reminders, and what became of rollovers. before is the key
// as it was when the tick began.
func (kp *Keeper) watch(ctx context.Context, before, k *keyring.Key, r *role.Role, c keyring.Cause) *keyring.Key {
	next := k.Clone()
	changed := kp.announce(next, r, c)
	for i := range next.Versions {
		changed = kp.watchVersion(ctx, before, next, &next.Versions[i], r, c) || changed
	}
	if !changed {
		return k
	}
	return next
}

// announce tells of the next rotation, once, notify_before it.
func (kp *Keeper) announce(k *keyring.Key, r *role.Role, c keyring.Cause) bool {
	planned := rotationTime(k, r, c.Now)
	if planned.IsZero() || k.Blocked != "" || r.Notify() == 0 || k.Announced.Equal(planned) || c.Now.Before(planned.Add(-r.Notify())) || !planned.After(c.Now) {
		return false
	}
	k.Announced = planned
	k.Record(c, keyring.EventRotationUpcoming, 0, "planned for "+planned.UTC().Format(time.RFC3339))
	return true
}

func (kp *Keeper) watchVersion(ctx context.Context, before, k *keyring.Key, v *keyring.Version, r *role.Role, c keyring.Cause) bool {
	if k.Leased() {
		return false
	}
	if overlapEnded(before, v) {
		kp.noteEnd(k, v, kp.use(ctx, k.ID, c.Now), c)
		return true
	}
	point, look := passed(v, r.Reminders, c.Now), passed(v, looks, c.Now)
	remind := point > v.Reminded
	// Past the end that clients were told, it is judged whenever it is asked
	// whether it has drained.
	heldOpen := v.StateAt(c.Now) == keyring.StateRetiring && !c.Now.Before(v.OverlapEnds)
	if !remind && look <= v.Looked && !heldOpen {
		return false
	}
	use := kp.use(ctx, k.ID, c.Now)
	report := health.Judge(kp.rollover(k, *v, successorOf(k, v), use, c.Now), c.Now)
	if remind && len(report.Laggards) > 0 {
		k.Record(c, keyring.EventRolloverReminder, v.Number, fmt.Sprintf("%d%% of the overlap is over; still on version %d: %s", point, v.Number, laggardNames(report.Laggards)))
	}
	changed := remind || look > v.Looked
	v.Reminded, v.Looked = max(point, v.Reminded), max(look, v.Looked)
	return kp.noteHealth(k, v, c, report) || changed
}

// overlapEnded tells whether v was retiring before and is not accepted any more.
func overlapEnded(before *keyring.Key, v *keyring.Version) bool {
	old, was := before.Version(v.Number)
	return was && old.State == keyring.StateRetiring && v.State.Ended()
}

// successorOf is the version that stands in for v.
func successorOf(k *keyring.Key, v *keyring.Version) int {
	if active, ok := k.Active(); ok {
		return active.Number
	}
	return v.SupersededBy
}

// noteEnd tells how a rollover has ended.
func (kp *Keeper) noteEnd(k *keyring.Key, v *keyring.Version, use map[int]usage.Version, c keyring.Cause) {
	report := health.Judge(kp.rollover(k, *v, successorOf(k, v), use, c.Now), c.Now)
	event := keyring.EventRolloverCompleted
	if report.Status == health.Failed {
		event, v.Health = keyring.EventRolloverFailed, string(report.Status)
	}
	k.Record(c, event, v.Number, strings.Join(report.Evidence, "; "))
}

// NoteStale tells that clients were left behind, where version is retired and
// was refused since: once for each end.
func (kp *Keeper) NoteStale(ctx context.Context, id string, number int) error {
	return kp.Emit(ctx, id, keyring.ActorPeriodic, func(k *keyring.Key, r *role.Role, c keyring.Cause) bool {
		for i := range k.Versions {
			v := &k.Versions[i]
			if v.Number != number || r == nil || !Failing(v, c.Now) {
				continue
			}
			report := health.Judge(kp.rollover(k, *v, successorOf(k, v), kp.use(ctx, k.ID, c.Now), c.Now), c.Now)
			return report.Status == health.Failed && kp.noteHealth(k, v, c, report)
		}
		return false
	})
}

// staleUse is how long after the end of an overlap a refused use is that of a
// client which the rollover left behind, even where nothing can be restored.
const staleUse = 24 * time.Hour

// Failing tells whether a use of v that is refused at now is to be told as a
// failure of its rollover, and was not yet. Where the end is not recorded yet,
// what records it tells of it.
func Failing(v *keyring.Version, now time.Time) bool {
	return v.State == keyring.StateRetired && v.SupersededBy > 0 && v.Health != string(health.Failed) &&
		(v.RestorableAt(now) || now.Before(v.EndedTime.Add(staleUse)))
}

// startOver lets the rollovers of versions that have been brought back from
// their end begin anew: what was refused before does not count any more.
func (kp *Keeper) startOver(ctx context.Context, before, after *keyring.Key, now time.Time) *keyring.Key {
	next := after
	var use map[int]usage.Version
	for i := range after.Versions {
		v := &after.Versions[i]
		old, was := before.Version(v.Number)
		if !was || !old.StateAt(before.Now(now)).Ended() || !v.AcceptedAt(now) || after.Leased() {
			continue
		}
		if next == after {
			next = after.Clone()
			use = kp.use(ctx, next.ID, now)
		}
		next.Versions[i].Health, next.Versions[i].StaleBefore = "", 0
		for _, s := range use[v.Number].Sources {
			next.Versions[i].StaleBefore += s.Stale
		}
	}
	return next
}

// watchEnds tells of the rollovers that a request has ended. It returns after
// itself where there are none. A failure of storage does not keep a version
// from being ended: the judgement then rests on what memory knows.
func (kp *Keeper) watchEnds(ctx context.Context, before, after *keyring.Key, now time.Time) *keyring.Key {
	if after.Leased() {
		return after
	}
	next := after
	var use map[int]usage.Version
	for i := range after.Versions {
		if !overlapEnded(before, &after.Versions[i]) {
			continue
		}
		if next == after {
			next = after.Clone()
			use = kp.use(ctx, next.ID, now)
		}
		kp.noteEnd(next, &next.Versions[i], use, keyring.Cause{Now: next.Now(now), Actor: keyring.ActorPeriodic})
	}
	return next
}

// better is how long health must not have changed before it may become better:
// a twelfth of the overlap, and at most an hour. What changes to and fro is told
// once in that time; what becomes worse, at once.
func better(v *keyring.Version) time.Duration {
	return min(time.Hour, v.OverlapEnds.Sub(v.SupersededTime)/12)
}

// noteHealth tells of a rollover's health where that has become worse or
// better than what was told last, which it reports.
func (kp *Keeper) noteHealth(k *keyring.Key, v *keyring.Version, c keyring.Cause, report health.Report) (changed bool) {
	if v.Health == string(report.Status) || v.Health == "" && report.Status == health.OnTrack {
		return false
	}
	if !report.Status.WorseThan(health.Status(v.Health)) && c.Now.Before(v.HealthTime.Add(better(v))) {
		return false
	}
	v.Health, v.HealthTime = string(report.Status), c.Now
	evidence := strings.Join(report.Evidence, "; ")
	switch report.Status {
	case health.Stalled:
		k.Record(c, keyring.EventRolloverStalled, v.Number, evidence)
	case health.AtRisk:
		k.Record(c, keyring.EventRolloverAtRisk, v.Number, evidence)
	case health.Failed:
		k.Record(c, keyring.EventRolloverFailed, v.Number, evidence)
	case health.OnTrack:
	}
	return true
}

// maxNamed bounds the laggards that one event names.
const maxNamed = 20

func laggardNames(laggards []health.Laggard) string {
	var names []string
	for _, l := range laggards {
		name := l.Source
		if l.Instance != "" {
			name = "instance " + l.Instance
		}
		if !l.LastUsed.IsZero() {
			name += " (" + l.LastUsed.UTC().Format(time.RFC3339) + ")"
		}
		names = append(names, name)
	}
	if over := len(names) - maxNamed; over > 0 {
		names = append(names[:maxNamed], fmt.Sprintf("and %d more", over))
	}
	return strings.Join(names, ", ")
}

// looks are the points, in percent of the overlap, at which a rollover is judged
// beside those of reminders: before half of it is over nothing can be wrong yet.
var looks = []int{50, 60, 70, 80, 90, 95}

// passed is the last of the points that now has passed, in percent of the
// overlap; 0 before the first.
func passed(v *keyring.Version, points []int, now time.Time) int {
	whole := v.OverlapEnds.Sub(v.SupersededTime)
	if v.StateAt(now) != keyring.StateRetiring || whole <= 0 {
		return 0
	}
	reached := 0
	for _, p := range points {
		if !now.Before(v.SupersededTime.Add(whole * time.Duration(p) / 100)) {
			reached = p
		}
	}
	return reached
}

// watchDue is when watch has something to tell next, zero for never.
func watchDue(k *keyring.Key, r *role.Role, now time.Time) time.Time {
	var due time.Time
	want := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	if planned := rotationTime(k, r, now); !planned.IsZero() && planned.After(now) && k.Blocked == "" && r.Notify() > 0 && !k.Announced.Equal(planned) {
		want(planned.Add(-r.Notify()))
	}
	if k.Leased() {
		return due
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		whole := v.OverlapEnds.Sub(v.SupersededTime)
		if v.StateAt(now) != keyring.StateRetiring || whole <= 0 {
			continue
		}
		next := func(points []int, done int) {
			if i := slices.IndexFunc(points, func(p int) bool { return p > done }); i >= 0 {
				want(v.SupersededTime.Add(whole * time.Duration(points[i]) / 100))
			}
		}
		next(r.Reminders, v.Reminded)
		next(looks, v.Looked)
	}
	return due
}

// use is what is known of the use of a key: where its page cannot be read, what
// is in memory alone. What is told of a rollover must not hold it up.
func (kp *Keeper) use(ctx context.Context, keyID string, now time.Time) map[int]usage.Version {
	use, err := kp.Book.Read(ctx, keyID, now)
	if err != nil {
		kp.Logger.Warn("the stored use of a key cannot be read", "key_id", keyID, "error", err)
		return kp.Book.Live(keyID, now)
	}
	return use
}
