// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"fmt"
	"time"
)

// EventClaimed is the type of event that carries a claim code.
const EventClaimed = "version.activated"

// failingLong is how long a hook may fail before what only it could hand over
// waits for it.
const failingLong = 5 * time.Minute

// Claimable tells whether an enabled hook delivers claims and wants this event,
// so that what it offers can be claimed. Where why is not empty, it says why
// nobody can, or that all who could have been failing for some time and still
// have something to tell, or have a full outbox: then what only a claim can
// hand over should wait.
func (d *Deliverer) Claimable(ctx context.Context, e Event) (can bool, why string, err error) {
	if err := d.load(ctx); err != nil {
		return false, "", err
	}
	why = "no enabled webhook with deliver=claim wants " + EventClaimed + " of this key"
	fits := false
	for _, q := range d.all() {
		wants, trouble := q.claimable(&e)
		if trouble != "" && !fits {
			why = trouble
		}
		can = can || wants
		fits = fits || wants && trouble == ""
	}
	if fits {
		why = ""
	}
	return can, why, nil
}

func (q *queue) claimable(e *Event) (can bool, trouble string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.unread != nil:
		return false, fmt.Sprintf("webhook %q cannot be read", q.name)
	case !q.alive() || q.hook.Deliver != DeliverClaim || !q.hook.Wants(*e):
		return false, ""
	case !q.hook.Enabled:
		return false, fmt.Sprintf("webhook %q is disabled", q.name)
	case q.pending >= q.d.keptEnabled:
		return true, fmt.Sprintf("too many events wait for webhook %q", q.name)
	case q.pending > 0 && !q.hook.FailingSince.IsZero() && q.d.clock.Now().Sub(q.hook.FailingSince) >= failingLong:
		return true, fmt.Sprintf("webhook %q has been failing since %s", q.name, q.hook.FailingSince.UTC().Format(time.RFC3339))
	}
	return true, ""
}

// Claiming tells whether an enabled hook delivers claims for keys of a role, and
// whether each that does is for some of them only.
func (d *Deliverer) Claiming(ctx context.Context, role string) (found, some bool, err error) {
	if err := d.load(ctx); err != nil {
		return false, false, err
	}
	some = true
	for _, q := range d.all() {
		q.mu.Lock()
		h := q.hook
		if q.alive() && h.ClaimsFor(role) {
			found = true
			some = some && (len(h.Keys) > 0 || len(h.Metadata) > 0)
		}
		q.mu.Unlock()
	}
	return found, found && some, nil
}

// ClaimsFor tells whether an enabled hook delivers claims for keys of a role, be
// it for some of them only.
func (h *Hook) ClaimsFor(role string) bool {
	return h.Enabled && h.Deliver == DeliverClaim && matches(h.Events, EventClaimed) && (len(h.Roles) == 0 || matches(h.Roles, role))
}
