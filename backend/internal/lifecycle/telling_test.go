// SPDX-License-Identifier: MPL-2.0

package lifecycle_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// outbox takes events, or does not.
type outbox struct {
	fails   error
	tried   int
	told    []keyring.Event
	dropped uint64
	// nobody is why new keys cannot be claimed, unsure the failure to find out.
	nobody string
	unsure error
	// offered are the handovers that were copied, by version.
	offered map[int][]byte
}

func (*outbox) Wanted() bool { return true }

func (o *outbox) Claimable(context.Context, *keyring.Key) (bool, string, error) {
	return o.nobody == "", o.nobody, o.unsure
}

func (*outbox) Committed(*keyring.Key, []keyring.Event, bool) {}

func (o *outbox) Copy(_ context.Context, k *keyring.Key, events []keyring.Event) error {
	o.tried++
	if o.fails != nil {
		return o.fails
	}
	o.dropped += k.OwedDropped
	for _, e := range events {
		if v, ok := k.Version(e.Version); ok && e.Type == keyring.EventVersionActivated && len(v.Handover) > 0 {
			if o.offered == nil {
				o.offered = map[int][]byte{}
			}
			o.offered[e.Version] = v.Handover
		}
		if !slices.ContainsFunc(o.told, func(t keyring.Event) bool { return t.Seq == e.Seq }) {
			o.told = append(o.told, e)
		}
	}
	return nil
}

// TestWhatCannotBeToldHoldsNoTransitionUp: for ten days no event can be copied;
// the key rotates every day and its versions retire on time; then all that it
// owes is told, in order.
func TestWhatCannotBeToldHoldsNoTransitionUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &outbox{fails: errors.New("outbox is down")}
	w.keeper.Outbox = o
	id := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	const days = 10
	for day := 1; day <= days; day++ {
		w.run(24*time.Hour+10*time.Minute, nil)
		k := w.key(id)
		if active, ok := k.Active(); !ok || active.Number != day+1 {
			t.Fatalf("on day %d version %d is active", day, active.Number)
		}
		if late := k.LastRotation.Sub(w.clock.Now()); late < -24*time.Hour {
			t.Errorf("on day %d the last rotation was at %s", day, k.LastRotation)
		}
		for _, v := range k.Versions {
			if v.State == keyring.StateRetired && !v.EndedTime.Equal(v.AcceptedUntil) {
				t.Errorf("version %d ended at %s, not at %s", v.Number, v.EndedTime, v.AcceptedUntil)
			}
		}
		w.check()
	}
	// About every hour, and at each transition and reminder; not each minute.
	if most := days * 24 * 3; o.tried > most {
		t.Errorf("it was tried %d times, want at most %d", o.tried, most)
	}
	last := w.key(id).EventSeq
	o.fails = nil
	w.run(2*time.Hour, nil)
	if k := w.key(id); len(k.Owed) != 0 || k.OwedDropped != 0 {
		t.Errorf("%d events are still owed", len(k.Owed))
	}
	if uint64(len(o.told))+o.dropped < last {
		t.Errorf("%d events of %d were told and %d counted as dropped", len(o.told), last, o.dropped)
	}
	if !slices.IsSortedFunc(o.told, func(a, b keyring.Event) int { return int(a.Seq) - int(b.Seq) }) {
		t.Error("they were not told in order")
	}
}

// TestTheLastTransitionsAreToldWhereMoreIsOwedThanFits, and how many are not;
// the entry of the key stays small.
func TestTheLastTransitionsAreToldWhereMoreIsOwedThanFits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &outbox{fails: errors.New("outbox is down")}
	w.keeper.Outbox = o
	id := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	for i := range 500 {
		reason := strings.Repeat("x", 256)
		if err := w.keeper.Emit(t.Context(), id, "test", func(k *keyring.Key, _ *role.Role, c keyring.Cause) bool {
			c.Reason = reason
			k.Record(c, keyring.EventAnomalyDetected, 1, strings.Repeat("y", i*4))
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	k := w.key(id)
	data, err := json.Marshal(k.Owed)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Owed) > keyring.OwedLimit || len(data) > keyring.OwedBytes {
		t.Errorf("%d events of %d bytes are owed", len(k.Owed), len(data))
	}
	if k.Owed[len(k.Owed)-1].Seq != k.EventSeq {
		t.Error("the last event is not owed")
	}
	if uint64(len(k.Owed))+k.OwedDropped != k.EventSeq {
		t.Errorf("%d owed and %d dropped of %d", len(k.Owed), k.OwedDropped, k.EventSeq)
	}
	o.fails = nil
	w.run(10*time.Minute, nil)
	if uint64(len(o.told))+o.dropped != k.EventSeq || w.key(id).OwedDropped != 0 {
		t.Errorf("told %d, dropped %d of %d", len(o.told), o.dropped, k.EventSeq)
	}
}

// TestWhoChangesAKeyFasterThanItIsToldPays: nobody copies what is owed but those
// who make it, and nothing is dropped.
func TestWhoChangesAKeyFasterThanItIsToldPays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &outbox{}
	w.keeper.Outbox = o
	id := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	for range 3 * keyring.OwedLimit {
		if err := w.keeper.Emit(t.Context(), id, "test", func(k *keyring.Key, _ *role.Role, c keyring.Cause) bool {
			k.Record(c, keyring.EventAnomalyDetected, 1, "")
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	k := w.key(id)
	if len(k.Owed) > keyring.OwedLimit/2 {
		t.Errorf("%d events are owed", len(k.Owed))
	}
	if told := uint64(len(o.told)); o.dropped != 0 || k.OwedDropped != 0 || told+uint64(len(k.Owed)) != k.EventSeq {
		t.Errorf("%d are told, %d owed, %d dropped of %d", told, len(k.Owed), o.dropped+k.OwedDropped, k.EventSeq)
	}
	if most := int(k.EventSeq) / 10; o.tried > most {
		t.Errorf("they were copied %d times, want at most %d", o.tried, most)
	}
	w.check()
}

// TestWhatIsOnlyLateIsToldByTheNextTick: nobody has copied what a key owes for an
// hour, and nothing says that it could not be.
func TestWhatIsOnlyLateIsToldByTheNextTick(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &outbox{}
	w.keeper.Outbox = o
	id := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	w.clock.Advance(time.Hour)
	if err := w.keeper.Emit(t.Context(), id, "test", func(k *keyring.Key, _ *role.Role, c keyring.Cause) bool {
		k.Record(c, keyring.EventAnomalyDetected, 1, "")
		return true
	}); err != nil {
		t.Fatal(err)
	}
	w.run(2*time.Minute, nil)
	if k := w.key(id); len(k.Owed) != 0 {
		t.Errorf("%d events are owed two minutes later", len(k.Owed))
	}
}

// TestADeletionIsToldOnceItCanBe: the tombstone waits, and the name is free.
func TestADeletionIsToldOnceItCanBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &outbox{fails: errors.New("outbox is down")}
	w.keeper.Outbox = o
	id := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	if err := remove(w, id); err != nil {
		t.Fatal(err)
	}
	next := w.create(lifecycle.Spec{Name: "client"}).Key.ID
	o.fails = nil
	w.run(10*time.Minute, nil)
	if w.has("key/"+id) || !w.has("key/"+next) {
		t.Error("the tombstone is still there, or the new key is not")
	}
	if !slices.ContainsFunc(o.told, func(e keyring.Event) bool { return e.Type == keyring.EventKeyDeleted }) {
		t.Error("nobody was told of the deletion")
	}
}
