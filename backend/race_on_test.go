// SPDX-License-Identifier: MPL-2.0

//go:build race

package backend

// raceDetector makes tests smaller: it slows them down.
const raceDetector = true
