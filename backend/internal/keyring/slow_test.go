// SPDX-License-Identifier: MPL-2.0

package keyring_test

import (
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
)

// TestStoredMovesWhatTheChangeHasMoved, by as long as it took to store, and never
// past the age of the version.
func TestStoredMovesWhatTheChangeHasMoved(t *testing.T) {
	t.Parallel()
	const minute = time.Minute
	// version is one that is retiring from the end of its overlap on, until it is
	// not accepted any more; in minutes.
	version := func(ends, until, expires int) keyring.Version {
		v := keyring.Version{Number: 1, State: keyring.StateRetiring, OverlapEnds: t0.Add(time.Duration(ends) * minute), AcceptedUntil: t0.Add(time.Duration(until) * minute)}
		if expires > 0 {
			v.ExpireTime = t0.Add(time.Duration(expires) * minute)
		}
		return v
	}
	active := keyring.Version{Number: 1, State: keyring.StateActive}
	for name, c := range map[string]struct {
		before, after keyring.Version
		late          time.Duration
		ends, until   int
		moved         bool
	}{
		"a rotation":                        {active, version(10, 10, 0), 5 * minute, 15, 15, true},
		"stored at once":                    {active, version(10, 10, 0), 900 * time.Millisecond, 10, 10, false},
		"the clock leapt":                   {active, version(10, 10, 0), 61 * minute, 10, 10, false},
		"it waits for drain":                {active, version(10, 60, 0), 5 * minute, 15, 65, true},
		"its age ends it":                   {active, version(10, 10, 10), 5 * minute, 10, 10, false},
		"its age ends it later":             {active, version(10, 12, 12), 5 * minute, 12, 12, true},
		"another change":                    {version(10, 10, 0), version(10, 10, 0), 5 * minute, 10, 10, false},
		"an extension":                      {version(10, 10, 0), version(20, 20, 0), 5 * minute, 25, 25, true},
		"an extension within the wait":      {version(10, 60, 0), version(20, 60, 0), 5 * minute, 25, 60, true},
		"an extension to the end of a wait": {version(10, 60, 0), version(60, 60, 0), 5 * minute, 60, 60, false},
		"a version that ended at once":      {active, keyring.Version{Number: 1, State: keyring.StateRetired, OverlapEnds: t0, AcceptedUntil: t0}, 5 * minute, 0, 0, false},
	} {
		prev := &keyring.Key{ID: "id", Versions: []keyring.Version{c.before}}
		next := &keyring.Key{ID: "id", Recorded: t0, Versions: []keyring.Version{c.after}}
		moved := next.Stored(prev, t0.Add(c.late))
		v := next.Versions[0]
		if moved != c.moved || !v.OverlapEnds.Equal(t0.Add(time.Duration(c.ends)*minute)) || !v.AcceptedUntil.Equal(t0.Add(time.Duration(c.until)*minute)) {
			t.Errorf("%s: moved %v, the overlap to %s, the end to %s", name, moved, v.OverlapEnds.Sub(t0), v.AcceptedUntil.Sub(t0))
		}
		if told := len(next.History) == 1; told != c.moved || len(next.Owed) > 0 {
			t.Errorf("%s: the history has %d events, of which %d are owed to nobody", name, len(next.History), len(next.Owed))
		}
		for _, e := range next.History {
			if e.Actor != keyring.ActorPeriodic {
				t.Errorf("%s: the history says that %q has moved the end", name, e.Actor)
			}
		}
	}
}
