// SPDX-License-Identifier: MPL-2.0

package store

import (
	"context"
	"fmt"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
)

// Role returns the role of this name, or nil. The result is shared: clone it
// before a change.
func (s *Store) Role(ctx context.Context, name string) (*role.Role, error) {
	if r, ok := s.roles.get(name); ok {
		return r, nil
	}
	fill := s.roles.reading(name)
	r := &role.Role{}
	found, err := s.get(ctx, rolePrefix+name, r)
	if err != nil {
		return nil, fmt.Errorf("load role %q: %w", name, err)
	}
	if !found {
		return nil, nil
	}
	fill(r)
	return r, nil
}

// PutRole writes a role. The caller holds its lock.
func (s *Store) PutRole(ctx context.Context, r *role.Role) error {
	former, known := s.roles.peek(r.Name)
	write := s.roles.writing(r.Name)
	if err := s.put(ctx, rolePrefix+r.Name, r); err != nil {
		write.done(err)
		return fmt.Errorf("store role %q: %w", r.Name, err)
	}
	write.stored(r, !known || !former.Limits().Equal(r.Limits()))
	return nil
}

// DeleteRole removes a role. The caller holds its lock and has seen that it
// has no members.
func (s *Store) DeleteRole(ctx context.Context, name string) error {
	write := s.roles.writing(name)
	err := s.remove(ctx, rolePrefix+name)
	write.done(err)
	return err
}

// Roles returns the names of all roles in order.
func (s *Store) Roles(ctx context.Context) ([]string, error) { return s.list(ctx, rolePrefix) }

// Config is the configuration of the mount.
type Config struct {
	ReportLeak     bool          `json:"report_leak"`
	LeakRate       int           `json:"leak_rate"`
	UsageRetention time.Duration `json:"usage_retention"`
}

// storedConfig is a Config with the fields that this code does not know.
type storedConfig struct {
	Config
	extra jsonkeep.Extra
}

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (c storedConfig) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(c.Config, c.extra) }

// UnmarshalJSON reads a stored configuration over what c holds.
func (c *storedConfig) UnmarshalJSON(data []byte) (err error) {
	c.extra, err = jsonkeep.Unmarshal(data, &c.Config)
	return err
}

// DefaultConfig is what holds where nothing was written.
func DefaultConfig() Config {
	return Config{LeakRate: 60, UsageRetention: 168 * time.Hour}
}

// Config returns the configuration of the mount.
func (s *Store) Config(ctx context.Context) (Config, error) {
	s.configMu.Lock()
	defer s.configMu.Unlock()
	if s.config == nil {
		c := storedConfig{Config: DefaultConfig()}
		if _, err := s.get(ctx, configPath, &c); err != nil {
			return Config{}, err
		}
		if s.clock.Elapsed() < s.configDoubt {
			return c.Config, nil
		}
		s.config = &c.Config
	}
	return *s.config, nil
}

// UpdateConfig changes the configuration of the mount. An error of change is
// returned as it is, and nothing is written.
func (s *Store) UpdateConfig(ctx context.Context, change func(*Config) error) error {
	s.configMu.Lock()
	defer s.configMu.Unlock()
	c := storedConfig{Config: DefaultConfig()}
	if _, err := s.get(ctx, configPath, &c); err != nil {
		return err
	}
	if err := change(&c.Config); err != nil {
		return err
	}
	s.config = nil
	if err := s.put(ctx, configPath, c); err != nil {
		s.configDoubt = s.clock.Elapsed() + settle
		return err
	}
	s.config, s.configDoubt = &c.Config, 0
	return nil
}
