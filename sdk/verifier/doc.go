// SPDX-License-Identifier: MPL-2.0

// Package verifier verifies API keys without asking Vault for each.
//
//	vault, err := vaultclient.New(vaultclient.Config{Auth: ...})
//	v, err := verifier.New(verifier.Config{Vault: vault, Name: "orders-1", Source: "eu"})
//	go vault.Run(ctx)
//	go v.Run(ctx)
//	result, err := v.Verify(ctx, apiKey, verifier.Check{Scopes: []string{"orders:read"}})
//
// verifierhttp and verifiergrpc put that in front of handlers; verifierprom
// shows it to Prometheus.
//
// # Verdicts
//
// A key is Accepted from cache, by the decision that the engine makes, too. It
// is Refused only by a record that was asked for after the request had arrived,
// so that a key or a version made a moment ago works; by what is known for up to
// 5 seconds of a key that is nobody's; or because no key can look so. All else
// is Unavailable, with when to ask again: a client that is told that its key is
// refused throws it away.
//
// # How late it can be
//
// Run asks the feed of changes each PollInterval. What the feed names is not
// accepted any more until it has been fetched again, which is done at once. So
// a revocation is refused after the poll interval and a round trip. When the
// feed does not answer, cached keys are accepted for MaxStale since the last
// good answer. An answer that contradicts itself or the one before is none, and
// the next question is for a reset. Records are fetched again within 5 minutes
// in any case.
//
// Deadlines are judged by Vault's clock, which lies between two bounds: it was
// read after the question and before the answer. A version is accepted where it
// is at the upper bound, and refused where it is at the lower bound of a fresh
// answer; between them Verify waits, for a round trip at most. The wall clock
// is used for nothing but the skew that Health tells.
//
// # What it holds
//
// The cache holds CacheSize keys, of about 900 bytes each: digests, deadlines,
// scopes and the rest of the record, never a key, nor a part of one. What
// strangers can send is bounded: keys that are nobody's (20,000 digests),
// questions that wait (5,000), and how many of them a second are asked. Keys
// that are cached have a budget and requests of their own.
//
// # Use
//
// Accepted uses are counted by key, version and source, refused ones of known
// versions beside them, and reported each ReportInterval. A report
// that fails is sent again as it was; what comes after it adds up, by at most
// MaxUnreported kinds of use. Beyond that sources are merged, then uses are
// lost, which the next report tells by a new boot. What is reported as complete
// is: the engine lets no version count as drained by what it has not heard.
package verifier
