// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"fmt"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
)

const (
	// fullTime is how long a run lasts that is to show all, and longTime one in
	// which each fault comes often enough for the share of what is lost to be
	// that of all of them.
	fullTime = 40 * time.Minute
	longTime = 9 * time.Minute
)

// budget is in how many of 100 verifications a class of verifiers may not know:
// in all, and while no fault was on.
type budget struct{ all, calm float64 }

var budgets = map[string]budget{
	// A leader is missing for a good part of the time: 20 to 22 were measured.
	"Vault": {all: 25, calm: 1},
	// The edge has its cache: 5 to 14 were.
	"edge": {all: 17, calm: 1},
}

// shortfalls are what a run was to reach and has not, the violations apart.
func (r *Report) shortfalls(s Size) []string {
	var found []string
	least := func(got, want int, what string) {
		if got < want {
			found = append(found, fmt.Sprintf("%d %s, want at least %d", got, what, want))
		}
	}
	vault := r.class("Vault")
	least(len(r.Strikes), 1, "faults")
	least(vault.Accepted, 1, "keys accepted by Vault")
	least(vault.Refused, 1, "keys refused by Vault")
	least(r.Rotations, 1, "rotations")
	least(r.Events, 1, "events")
	least(r.Compared, 1, "histories compared")
	least(r.Fetches, 1, "keys read by clients")
	least(r.InTime, 1, "uses of a key in its time")
	least(r.Deleted, 1, "keys that were made and deleted")
	if r.BadMessages > 0 {
		found = append(found, fmt.Sprintf("%d messages with a wrong signature or form", r.BadMessages))
	}
	allFaults := s.Faults == nil
	if allFaults && s.Time >= fullTime {
		least(len(r.Strikes), 100, "faults")
		least(r.Verifications(), 1_000_000, "verifications")
		least(r.Rotations, 5_000, "rotations")
		least(int(r.Jobs), 3, "bulk jobs")
		least(r.Deleted, 100, "keys that were made and deleted")
		struck := map[string]int{}
		for _, strike := range r.Strikes {
			struck[strike.Fault]++
		}
		for _, name := range r.Usable {
			least(struck[name], 2, "times "+name)
		}
	}
	for name, most := range budgets {
		if !allFaults || s.Time < longTime {
			most.all = 50
		}
		found = append(found, most.exceeded(name, r.class(name))...)
	}
	return found
}

func (b budget) exceeded(name string, c oracle.Class) []string {
	var found []string
	check := func(when string, lost, of int, most float64) {
		if float64(lost)*100 > most*float64(of) {
			found = append(found, fmt.Sprintf("%s could not tell for %d of %d verifications %s; the budget is %g of 100", name, lost, of, when, most))
		}
	}
	check("in all", c.Unavailable+c.Errors, c.Verifications, b.all)
	check("while no fault was on", c.CalmLost, c.Calm, b.calm)
	return found
}
