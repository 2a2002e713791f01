// SPDX-License-Identifier: MPL-2.0

package verifier

import (
	"sync"
	"testing"
)

// TestWhoTakesACountKnowsItsLastUse has uses counted while others are taken: a
// report that tells of a use and not of its time would have the version look
// unused, and drained.
func TestWhoTakesACountKnowsItsLastUse(t *testing.T) {
	t.Parallel()
	const uses = 200_000
	var c counter
	var adding sync.WaitGroup
	adding.Go(func() {
		for i := range uses {
			c.add(1, tick(i+1)) //nolint:gosec // it is small
		}
	})
	for taken := uint64(0); taken < uses; {
		n, last := c.take()
		if taken += n; uint64(last) < taken {
			t.Fatalf("%d uses were taken, and the last is that of tick %d", taken, last)
		}
	}
	adding.Wait()
}

// TestTheLastUseNeverGoesBack has older uses counted beside newer ones.
func TestTheLastUseNeverGoesBack(t *testing.T) {
	t.Parallel()
	var c counter
	var adding sync.WaitGroup
	for first := range 4 {
		adding.Go(func() {
			for i := first; i < 100_000; i += 4 {
				c.add(1, tick(i+1))                        //nolint:gosec // it is small
				if last := c.lastUse(); last < tick(i+1) { //nolint:gosec // it is small
					t.Errorf("the last use is that of tick %d after one at %d", last, i+1)
					return
				}
			}
		})
	}
	adding.Wait()
	if n, last := c.take(); n != 100_000 || last != 100_000 {
		t.Errorf("%d uses, the last at tick %d; want 100000 of both", n, last)
	}
}
