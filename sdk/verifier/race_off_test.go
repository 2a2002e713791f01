// SPDX-License-Identifier: MPL-2.0

//go:build !race

package verifier_test

const raceEnabled = false
