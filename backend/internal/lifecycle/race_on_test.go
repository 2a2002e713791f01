// SPDX-License-Identifier: MPL-2.0

//go:build race

package lifecycle_test

// raceEnabled makes tests smaller: the race detector slows them down.
const raceEnabled = true
