// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

func (f *fixture) startRotation() *Job {
	f.t.Helper()
	job, err := f.bulk.StartRotation(f.t.Context(), "r", lifecycle.RotateWish{}, keyring.Cause{Actor: "test", Reason: "why"})
	if err != nil {
		f.t.Fatal(err)
	}
	return job
}

func (f *fixture) run() {
	f.t.Helper()
	if err := f.bulk.Run(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) rotation() *Job {
	f.t.Helper()
	job, err := f.bulk.Rotation(f.t.Context(), "r")
	if err != nil {
		f.t.Fatal(err)
	}
	return job
}

func TestAJobHasAnIDOfItsOwn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	if job := f.rotation(); job != nil {
		t.Errorf("before the first one the job is %+v", job)
	}
	first := f.startRotation()
	if _, err := f.bulk.StartRotation(t.Context(), "r", lifecycle.RotateWish{}, keyring.Cause{}); !errors.Is(err, ErrJobRunning) {
		t.Errorf("a second start says %v", err)
	}
	f.run()
	if second := f.startRotation(); second.ID == first.ID || len(first.ID) != 16 {
		t.Errorf("the ids are %q and %q", first.ID, second.ID)
	}
}

func TestAJobThatWasRestartedGoesOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(50)
	job := f.startRotation()
	f.faulty.Inject(storetest.Fault{At: 60, Rest: true})
	if err := f.bulk.Run(t.Context()); !errors.Is(err, storetest.ErrInjected) {
		t.Fatalf("the run says %v", err)
	}
	next := f.restart()
	half := next.rotated(50)
	if half == 0 || half == 50 {
		t.Fatalf("the crash came after %d of 50 keys", half)
	}
	if got := next.rotation(); got.ID != job.ID || got.State != JobRunning || got.NextShard == 0 || got.NextShard == store.Shards {
		t.Errorf("after the restart the job is %+v", got)
	}
	next.run()
	got := next.rotation()
	if got.ID != job.ID || got.State != JobFinished || got.Finished.IsZero() || next.rotated(50) != 50 || got.Done+got.Skipped != 50 {
		t.Errorf("the job is %+v, and %d keys are rotated", got, next.rotated(50))
	}
	if got := next.restart().rotation(); got == nil || got.State != JobFinished {
		t.Errorf("after another restart the job is %+v", got)
	}
	if left := next.memory.Paths("work/"); len(left) != 0 {
		t.Errorf("there is %v left", left)
	}
}

func TestAllFailuresAreCountedAndAHundredDescribed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(func(r *role.Role) {
		r.RotationPeriod, r.MaxAcceptedVersions, r.OverlapPeriod, r.ActivationDelay = 0, 2, time.Hour, time.Hour
	})
	f.keys(120)
	f.startRotation()
	f.run()
	f.startRotation() // while the first one's versions are pending
	f.run()
	job := f.rotation()
	if job.Failed != 120 || len(job.Failures) != 100 || job.Done != 0 {
		t.Errorf("%d failed, %d described, %d done", job.Failed, len(job.Failures), job.Done)
	}
	if !strings.HasPrefix(job.Failures[0].Key, "k") || !strings.Contains(job.Failures[0].Error, "pending") {
		t.Errorf("a failure is %+v", job.Failures[0])
	}
	if !strings.Contains(f.log.String(), "failed=120") {
		t.Error("the log does not tell of the failures")
	}
}

func TestARescheduleThatIsStartedAgainBeginsAnew(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = 100*time.Hour, time.Hour })
	f.keys(40)
	period := 50 * time.Hour
	change := func() {
		t.Helper()
		defer f.store.LockRole("r")()
		if err := f.bulk.StartReschedule(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		f.role(func(r *role.Role) { r.RotationPeriod, r.OverlapPeriod = period, time.Hour })
	}
	change()
	var once sync.Once
	lists := 0
	f.faulty.Before(func(op storetest.Op) {
		if op.Kind == storetest.List && strings.HasPrefix(op.Path, "member/") {
			if lists++; lists == 100 {
				once.Do(func() { period = 2 * time.Hour; change() })
			}
		}
	})
	f.run() // notices that it was started again
	f.run()
	f.faulty.Before(nil)
	for i := range 40 {
		want := epoch.Add(2*time.Hour).Unix() / 60
		if got := f.key(i).NextTick; got != want {
			t.Errorf("key %d is filed at minute %d, want %d", i, got, want)
		}
	}
	if left := f.memory.Paths("work/"); len(left) != 0 {
		t.Errorf("there is %v left", left)
	}
}

func TestADroppedJobIsNotFinished(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(10)
	f.startRotation()
	var once sync.Once
	f.faulty.Before(func(op storetest.Op) {
		if op.Kind == storetest.List && strings.HasPrefix(op.Path, "member/") {
			once.Do(func() {
				if err := f.bulk.Drop(t.Context(), "r"); err != nil {
					t.Error(err)
				}
			})
		}
	})
	f.run()
	if left := append(f.memory.Paths("work/"), f.memory.Paths("done/")...); len(left) != 0 || f.rotation() != nil {
		t.Errorf("there is %v left", left)
	}
}

// TestRunsDoNotShareAJob is for requests that wait for the jobs while the
// worker runs them.
func TestRunsDoNotShareAJob(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(30)
	f.startRotation()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := f.bulk.Run(t.Context()); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if job, err := f.bulk.Rotation(t.Context(), "r"); err != nil || job == nil {
				t.Errorf("progress is %v, %v", job, err)
			}
		})
	}
	all.Wait()
	if job := f.rotation(); job.Done != 30 || f.rotated(30) != 30 {
		t.Errorf("the job is %+v", job)
	}
}

func TestADamagedJobDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(5)
	f.startRotation()
	if err := f.memory.Put(t.Context(), &logical.StorageEntry{Key: "work/reschedule-other", Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	f = f.restart()
	if err := f.bulk.Run(t.Context()); err != nil || !strings.Contains(f.log.String(), "reschedule-other") {
		t.Errorf("the run says %v, and the log %s", err, f.log)
	}
	if f.rotated(5) != 5 {
		t.Errorf("%d of 5 keys are rotated", f.rotated(5))
	}
}

// TestAJobOfANewerPlugin: what it added is kept, and a newer schema is refused.
func TestAJobOfANewerPlugin(t *testing.T) {
	t.Parallel()
	var job Job
	if err := json.Unmarshal([]byte(`{"schema":1,"id":"a","kind":"reschedule","added":{"x":1}}`), &job); err != nil {
		t.Fatal(err)
	}
	if data, err := json.Marshal(job.copy()); err != nil || !strings.Contains(string(data), `"added":{"x":1}`) {
		t.Errorf("the job is written as %s: %v", data, err)
	}
	if err := json.Unmarshal([]byte(`{"schema":2,"id":["?"]}`), &job); err == nil || !strings.Contains(err.Error(), "newer plugin") {
		t.Errorf("a newer schema: %v", err)
	}
	// What it would not know how to do, it does not begin.
	for _, stored := range []string{`{"schema":1,"kind":"retire"}`, `{"schema":1,"kind":"rotate"}`, `{"schema":1,"kind":"reschedule","next_shard":257}`} {
		if err := json.Unmarshal([]byte(stored), &Job{}); err == nil {
			t.Errorf("%s is taken for a job", stored)
		}
	}
}

// TestADamagedJobMakesRoom: the rotation of a role can be started again.
func TestADamagedJobMakesRoom(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(5)
	if err := f.memory.Put(t.Context(), &logical.StorageEntry{Key: "work/rotate-r", Value: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	f = f.restart()
	f.startRotation()
	if err := f.bulk.Run(t.Context()); err != nil || f.rotated(5) != 5 {
		t.Errorf("%d of 5 keys are rotated: %v", f.rotated(5), err)
	}
}

// TestAJobThatWasCutOffCountsWhatItDid before storage failed.
func TestAJobThatWasCutOffCountsWhatItDid(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.role(nil)
	f.keys(40)
	f.startRotation()
	for range 60 {
		f.faulty.Inject(storetest.Fault{At: 9, WritesOnly: true})
		if f.bulk.Run(t.Context()) == nil {
			break
		}
	}
	f.faulty.Heal()
	if err := f.bulk.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if job := f.rotation(); job.Done != 40 || job.Skipped != 0 || f.rotated(40) != 40 {
		t.Errorf("the job is %+v", job)
	}
}
