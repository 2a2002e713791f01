// SPDX-License-Identifier: MPL-2.0

// Package metrics counts what one mount does, and writes it in the exposition
// format of Prometheus.
//
// Every mount has a registry of its own: one plugin process may hold several
// mounts, and none may read of another. For the same reason there is nothing
// about the process in it. Counts are of this process: they begin at 0 after
// each start, as Prometheus expects of counters.
//
// Labels are bounded. Roles are told apart, up to MaxRoles; keys never are.
// Nothing here counts all keys: gauges are for what is open.
package metrics
