// SPDX-License-Identifier: MPL-2.0

package store

import "context"

// WorkIDs returns the jobs under way: one List, whatever the number of keys.
func (s *Store) WorkIDs(ctx context.Context) ([]string, error) { return s.list(ctx, workPrefix) }

// Work reads a job under way into v and tells whether there is one.
func (s *Store) Work(ctx context.Context, id string, v any) (bool, error) {
	return s.get(ctx, workPrefix+id, v)
}

// PutWork writes a job under way.
func (s *Store) PutWork(ctx context.Context, id string, v any) error {
	return s.put(ctx, workPrefix+id, v)
}

// FinishWork keeps v as the last result of a job and ends it. A crash between
// the two writes leaves a finished job under way, which is finished again.
func (s *Store) FinishWork(ctx context.Context, id string, v any) error {
	ctx, cancel, err := detach(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if err := s.put(ctx, donePrefix+id, v); err != nil {
		return err
	}
	return s.remove(ctx, workPrefix+id)
}

// Done reads the last result of a job into v and tells whether there is one.
func (s *Store) Done(ctx context.Context, id string, v any) (bool, error) {
	return s.get(ctx, donePrefix+id, v)
}

// DropWork removes a job and its last result.
func (s *Store) DropWork(ctx context.Context, id string) error {
	if err := s.remove(ctx, workPrefix+id); err != nil {
		return err
	}
	return s.remove(ctx, donePrefix+id)
}
