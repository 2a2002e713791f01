// SPDX-License-Identifier: MPL-2.0

package jobs

// observe begins the measurement of a tick. The function that it returns is
// deferred and tells of the tick: sum and err are its named results.
func (t *Ticker) observe(sum *Summary, err *error) func() {
	t.lag = 0
	start := t.keeper.Clock.Elapsed()
	*err = errPanic // a tick that returns replaces it
	return func() {
		if t.Observe != nil {
			t.Observe(t.keeper.Clock.Elapsed()-start, t.lag, *sum, *err)
		}
	}
}
