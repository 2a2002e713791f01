// SPDX-License-Identifier: MPL-2.0

package anomaly

import "time"

// pace spaces out the findings of one cause: at first each `first`, then
// doubling up to `most`. After a silence of `most` the cause counts as new.
// Times are durations since the Detector's start. The zero pace has not begun.
type pace struct {
	last, next, wait time.Duration
	// held counts what was not reported since the last finding.
	held  uint32
	begun bool
}

// due tells whether to report an occurrence, and how many were held back
// before it.
func (p *pace) due(now, first, most time.Duration) (held uint32, ok bool) {
	fresh := !p.begun || now-p.last > most
	p.last = max(p.last, now)
	switch {
	case fresh:
		*p = pace{last: now, next: now + first, wait: first, begun: true}
		return 0, true
	case now >= p.next:
		held = p.held
		p.wait = min(2*p.wait, most)
		p.next, p.held = now+p.wait, 0
		return held, true
	default:
		if p.held < ^uint32(0) {
			p.held++
		}
		return 0, false
	}
}

// idle tells whether the cause is over, so that its pace can be dropped.
func (p *pace) idle(now, most time.Duration) bool { return !p.begun || now-p.last > most }
