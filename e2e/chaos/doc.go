// SPDX-License-Identifier: MPL-2.0

// Package chaos tortures a real cluster while clients use their keys, and proves
// that no client was refused that should not have been, and none accepted.
//
// Three Vaults on Raft run the plugin, each in a network namespace or behind
// proxies, and on a disk of its own where the machine allows. Clients fetch and use keys,
// operators rotate, roll back, extend, retire, revoke and disable them, jobs
// rotate whole roles, the schedule rotates others, and keys are made, imported and
// deleted; a webhook receiver is told of it all. Verifiers check every use: Vault itself, through any node, and
// sdk/verifier at the edge. Meanwhile one fault after the other strikes, is
// healed, and there is time to recover. Package oracle judges every answer.
//
//	make chaos                    40 minutes
//	make chaos CHAOS_TIME=5m
//
// Without CHAOS_TIME it runs in a small size.
//
//	CHAOS_TIME    how long faults strike, such as 40m (default 75s)
//	CHAOS_REPORT  a folder for chaos.md and chaos.json (default: the test's log)
//	CHAOS_FAULTS  only faults whose names match this regular expression
//	CHAOS_SEED    a number from which the order of faults and changes comes
//	CHAOS_NETWORK proxy: partitions are made with proxies, also as root
//
// # What the machine must allow
//
// As root on Linux, nodes get namespaces (ip, of iproute2) and disks (mkfs.ext4,
// mount -o loop, fsfreeze). Where there can be no namespaces, TCP proxies in this
// process stand before the nodes and the receiver: they need no root, but a /proc
// in which the nodes' open files can be read, to tell which of them connects.
// Without disks or both kinds of network, the faults that need it are left out
// and the report names them; with APIKEYS_E2E_REQUIRE=1, root may lack only what
// the kernel refuses. It leaves no namespace, link or mount behind, and removes
// those of a run that was killed.
//
// # What is judged how
//
// See package oracle. What a fault excuses is a field of the fault: see reach.
// Errors and "unavailable" are no refusals: they are counted apart and have a
// budget, and a small one while no fault is on. How much a run has to reach
// stands in acceptance.go. The last act, restoring a snapshot, is outside the
// oracle: it takes the mount back in time, which is what it is for.
package chaos
