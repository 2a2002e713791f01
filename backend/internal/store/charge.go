// SPDX-License-Identifier: MPL-2.0

package store

import "context"

// Charges lists the names of those who took charge of the mount; see package
// fence.
func (s *Store) Charges(ctx context.Context) ([]string, error) { return s.list(ctx, chargePrefix) }

// PutCharge adds a name to them.
func (s *Store) PutCharge(ctx context.Context, name string) error {
	return s.put(ctx, chargePrefix+name, struct{}{})
}

// DropCharge removes one.
func (s *Store) DropCharge(ctx context.Context, name string) error {
	return s.remove(ctx, chargePrefix+name)
}

// Forget drops all that is cached, without publishing it.
func (s *Store) Forget() {
	s.keys.purge()
	s.names.purge()
	s.roles.purge()
	s.imported.purge()
}
