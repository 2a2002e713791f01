// SPDX-License-Identifier: MPL-2.0

package anomaly

import "time"

// Kind is what a finding is about; the API and the events use these names.
type Kind string

// The kinds of findings.
const (
	// WrongSecretBurst is many well-formed tokens with the id of a real key and
	// a secret that none of its versions has.
	WrongSecretBurst Kind = "wrong_secret_burst"
	// EndedVersionUse is a token of a version that is retired, revoked or
	// compromised.
	EndedVersionUse Kind = "ended_version_use"
	// UnseenSource is an accepted use from a source that this key never had.
	UnseenSource Kind = "unseen_source"
	// UnusualRate is an hour far off the key's own history.
	UnusualRate Kind = "rate_unusual"
)

// Kinds lists every kind.
func Kinds() []Kind {
	return []Kind{WrongSecretBurst, EndedVersionUse, UnseenSource, UnusualRate}
}

// Finding is one cause, reported once, and again only after a cool-down if it
// goes on.
type Finding struct {
	Time  time.Time
	KeyID string
	Kind  Kind
	// Version is 0 where the finding is not about one version.
	Version int
	// Source is as it was handed in, and empty where there is none.
	Source string
	// Evidence says in words and numbers what was seen and what was expected.
	// It has neither secrets nor sources in it.
	Evidence string
	// Score orders findings of one kind: wrong secrets in the burst; uses of an
	// ended version since the last finding about them; days between new sources
	// as this key usually has them; for rates, standard deviations.
	Score float64
}
