// SPDX-License-Identifier: MPL-2.0

package metrics

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/record"
)

const (
	// MaxRoles bounds the roles that are told apart since the start; all others
	// share OtherRole. A role has 16 series.
	MaxRoles = 1000
	// OtherRole is the label of the rest. A role of that name shares it.
	OtherRole = "other"
)

const codeCount = 10

// codes are the verdicts of a verification.
var codes = [codeCount]record.Code{
	record.CodeValid, record.CodeMalformed, record.CodeNotFound, record.CodeCompromised, record.CodeRevoked,
	record.CodeDisabled, record.CodeRetired, record.CodeExpired, record.CodeForbiddenSource, record.CodeInsufficientScope,
}

// roleCounters are the counters of one role, looked up once.
type roleCounters struct {
	// verified has nothing for the verdicts on unknown keys.
	verified [codeCount]prometheus.Counter
	// reported has something for the verdicts on ended versions alone.
	reported [codeCount]prometheus.Counter
	rotated  [triggerCount]prometheus.Counter
}

// Verified counts a verification of a key of this role. It allocates nothing
// once the role is known.
func (m *Metrics) Verified(role string, code record.Code) {
	for i := range codes {
		if codes[i] != code {
			continue
		}
		if c := m.unknown[i]; c != nil {
			c.Inc() // nothing is told of the key
			return
		}
		m.role(role).verified[i].Inc()
		return
	}
}

// Reported counts refused uses of an ended version, of a key of this role, that
// a verifier has reported: those of other codes are not told apart.
func (m *Metrics) Reported(role string, code record.Code, n uint64) {
	for i := range codes {
		if codes[i] == code && ends(code) {
			m.role(role).reported[i].Add(float64(n))
		}
	}
}

// ends tells whether the code is that of a version which has ended.
func ends(code record.Code) bool {
	switch code { //nolint:exhaustive // all others are of versions that are accepted, or of none
	case record.CodeCompromised, record.CodeRevoked, record.CodeRetired, record.CodeExpired:
		return true
	}
	return false
}

// Unknown counts a verification of a key that does not exist.
func (m *Metrics) Unknown(code record.Code) { m.Verified("", code) }

// role returns the counters of a role.
func (m *Metrics) role(name string) *roleCounters {
	if c, ok := (*m.roles.Load())[name]; ok {
		return c
	}
	return m.addRole(name)
}

func (m *Metrics) addRole(name string) *roleCounters {
	m.rolesMu.Lock()
	defer m.rolesMu.Unlock()
	known := *m.roles.Load()
	if c, ok := known[name]; ok {
		return c
	}
	if len(known) >= MaxRoles {
		name = OtherRole
		if c, ok := known[name]; ok {
			return c
		}
	}
	c := &roleCounters{}
	for i, code := range codes {
		if m.unknown[i] == nil {
			c.verified[i] = m.verifications.WithLabelValues(name, string(code))
		}
		if ends(code) {
			c.reported[i] = m.reported.WithLabelValues(name, string(code))
		}
	}
	for i, trigger := range triggers {
		c.rotated[i] = m.rotations.WithLabelValues(name, trigger)
	}
	next := maps.Clone(known)
	next[name] = c
	m.roles.Store(&next)
	return c
}
