// SPDX-License-Identifier: MPL-2.0

package consumer

import (
	"testing"
	"testing/synctest"
)

// TestKeysThatWereToldAreNotKept by what waited to tell of them: old keys are
// secrets, too.
func TestKeysThatWereToldAreNotKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		s, err := New(Config{Origin: File("none"), OnChange: func(Key, Key) { <-slow }})
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"first", "second", "third"} {
			k, err := NewKey(secret, 1)
			if err != nil {
				t.Fatal(err)
			}
			s.take(k)
		}
		synctest.Wait() // the first is being told
		s.mu.Lock()
		waiting := s.changes
		s.mu.Unlock()
		if len(waiting) != 2 || waiting[1].next.IsZero() {
			t.Fatalf("%d changes wait", len(waiting))
		}
		close(slow)
		synctest.Wait()
		if waiting[0] != (change{}) || waiting[1] != (change{}) || s.changes != nil {
			t.Errorf("kept %v, and %d that wait", waiting, len(s.changes))
		}
	})
}
