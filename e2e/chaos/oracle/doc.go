// SPDX-License-Identifier: MPL-2.0

// Package oracle judges what verifiers answered while a cluster was tortured.
//
// It knows nothing of the engine's inside. What it knows of a version comes
// from the answers of the calls that changed it, each with the interval from
// when it was sent to when it was answered, because the change happened
// somewhere in between. So each version has two sets of times:
//
//	must  in which it was accepted for certain: a definite refusal of a call
//	      that was made wholly within is a false refusal
//	may   in which it can have been accepted: an acceptance by a call that
//	      lies wholly outside, and later than the verifier's published bound
//	      allows, is a late acceptance
//
// Beside them stands the promise itself, which does not depend on what the engine
// answered about deadlines: a client that reads its key when its ttl is over is
// not refused, unless somebody has ended the version since it did, see
// [Verification]; and what it reads is the active version, see [Oracle.Fetched].
//
// A call whose outcome is unknown, because the connection broke or the server
// answered that it could not tell, takes times out of must and adds them to
// may, until the key has been read again.
//
// Whoever changes a key says so before the call is sent, see [Oracle.Begin]:
// a verification that is answered before the change is must already be judged
// with it. One caller at a time changes one key. Keys that others change, the
// engine's schedule or a bulk job, are known from reading them alone, and from
// the promise that a version which was active is accepted at least for an
// overlap from then on, see [Oracle.Foreign].
//
// All times are of one wall clock, which the servers share.
package oracle
