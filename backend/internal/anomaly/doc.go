// SPDX-License-Identifier: MPL-2.0

// Package anomaly compares what happens to a key with that key's own history,
// and says when it does not fit: bursts of wrong secrets, the use of an ended
// version, a source that was never seen, an hour that is far too busy or quiet.
//
// A Detector is fed from the verify path and from an hourly job. It takes the
// time as an argument, does no I/O, keeps no secret and no source in plain (only
// seeded hashes of sources), and holds a bounded amount of memory whatever it
// is sent. JudgeHour is pure.
//
// It is a hint for people. Nothing may be refused, ended or rotated because of
// a finding.
//
// # What a restart costs
//
// All of a Detector's memory is lost with the process:
//   - Wrong secrets are counted from nothing: a burst that goes on is found
//     after another 10 of them.
//   - Cool-downs are gone: a cause that goes on is reported once more.
//   - Known sources, and how often there are new ones, come back with Learn,
//     which is handed those that are stored: a restart then makes no source look
//     new and hides none. Without it, and where the stored ones may not be all,
//     a key is not judged for unseen sources until it has been watched for two
//     weeks.
//   - JudgeHour is given its history and loses nothing.
package anomaly
