// SPDX-License-Identifier: MPL-2.0

//go:build !linux

package verifier

func inHugePages([]slot) {}
