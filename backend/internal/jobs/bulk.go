// SPDX-License-Identifier: MPL-2.0

package jobs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jsonkeep"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
)

// maxFailures bounds the failures that a job describes; it counts them all.
const maxFailures = 100

// The kinds of jobs, which begin their ids.
const (
	kindRotate     = "rotate"
	kindReschedule = "reschedule"
)

// The states of a job.
const (
	JobRunning  = "running"
	JobFinished = "finished"
)

// ErrJobRunning says that the role has such a job under way.
var ErrJobRunning = errors.New("a rotation of this role is under way")

// Job is the progress of work over the members of a role, as stored.
type Job struct {
	Schema int    `json:"schema"`
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	Role   string `json:"role"`
	State  string `json:"state"`
	// NextShard is the first shard of members that is not done.
	NextShard int       `json:"next_shard"`
	Started   time.Time `json:"started_time"`
	Finished  time.Time `json:"finished_time,omitzero"`

	Actor    string                `json:"actor,omitempty"`
	EntityID string                `json:"entity_id,omitempty"`
	Accessor string                `json:"accessor,omitempty"`
	Reason   string                `json:"reason,omitempty"`
	Wish     *lifecycle.RotateWish `json:"wish,omitempty"`

	// Done keys were changed; Skipped ones were leased, disabled or without an
	// active version.
	Done     int       `json:"done"`
	Skipped  int       `json:"skipped"`
	Failed   int       `json:"failed"`
	Failures []Failure `json:"failures,omitempty"`

	extra jsonkeep.Extra
}

// jobSchema is the major version of the stored form of a Job.
const jobSchema = 1

type jobFields Job

// MarshalJSON keeps the fields that UnmarshalJSON did not know.
func (j Job) MarshalJSON() ([]byte, error) { return jsonkeep.Marshal(jobFields(j), j.extra) }

// UnmarshalJSON reads a stored job and refuses a newer schema, and a job that
// it would not know how to do.
func (j *Job) UnmarshalJSON(data []byte) error {
	if err := jsonkeep.CheckSchema(data, jobSchema); err != nil {
		return err
	}
	extra, err := jsonkeep.Unmarshal(data, (*jobFields)(j))
	if err != nil {
		return err
	}
	j.extra = extra
	switch {
	case j.Kind != kindRotate && j.Kind != kindReschedule:
		return errors.New("a job of a kind that this plugin does not know: run the newer plugin that wrote it")
	case j.Kind == kindRotate && j.Wish == nil, j.NextShard < 0 || j.NextShard > store.Shards:
		return errors.New("the job does not say what is left to do")
	}
	return nil
}

// Failure says why a job could not change a key.
type Failure struct {
	Key   string `json:"key"`
	Error string `json:"error"`
}

// Bulk runs the jobs of one mount.
type Bulk struct {
	keeper *lifecycle.Keeper
	logger hclog.Logger

	mu sync.Mutex
	// jobs holds every job under way; nil until they have been listed.
	jobs map[string]*Job
	// running keeps two runs from working on the same jobs.
	running sync.Mutex
}

// NewBulk returns the runner of the jobs of keeper's mount.
func NewBulk(keeper *lifecycle.Keeper, logger hclog.Logger) *Bulk {
	return &Bulk{keeper: keeper, logger: logger}
}

// Open finds the jobs that an earlier process left under way.
func (b *Bulk) Open(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open(ctx)
}

func (b *Bulk) open(ctx context.Context) error {
	if b.jobs != nil {
		return nil
	}
	ids, err := b.keeper.Store.WorkIDs(ctx)
	if err != nil {
		return err
	}
	jobs := map[string]*Job{}
	for _, id := range ids {
		jobs[id] = nil // read when it runs
	}
	b.jobs = jobs
	return nil
}

func workID(kind, role string) string { return kind + "-" + role }

// StartRotation begins to rotate every named key of a role. The caller wakes
// the worker. The error is ErrJobRunning while an earlier one is under way.
func (b *Bulk) StartRotation(ctx context.Context, role string, wish lifecycle.RotateWish, cause keyring.Cause) (*Job, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	id := workID(kindRotate, role)
	switch running, err := b.load(ctx, id); {
	case errors.Is(err, store.ErrDamaged):
		b.logger.Error("a job that cannot be read makes room for a new one", "job", id, "error", err)
	case err != nil:
		return nil, err
	case running != nil:
		return nil, ErrJobRunning
	}
	job, err := b.newJob(kindRotate, role)
	if err != nil {
		return nil, err
	}
	job.Wish, job.Actor, job.EntityID, job.Accessor, job.Reason = &wish, cause.Actor, cause.EntityID, cause.Accessor, cause.Reason
	return job.copy(), b.begin(ctx, id, job)
}

// StartReschedule begins to file the members of a role anew. It is called
// under the role's lock, before the changed role is written: a crash between
// the two leaves a job that changes nothing. One that is under way starts
// again.
func (b *Bulk) StartReschedule(ctx context.Context, role string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(ctx); err != nil {
		return err
	}
	job, err := b.newJob(kindReschedule, role)
	if err != nil {
		return err
	}
	return b.begin(ctx, workID(kindReschedule, role), job)
}

func (b *Bulk) newJob(kind, role string) (*Job, error) {
	unique := make([]byte, 8)
	if _, err := io.ReadFull(b.keeper.Rand, unique); err != nil {
		return nil, fmt.Errorf("make a job id: %w", err)
	}
	return &Job{Schema: jobSchema, ID: hex.EncodeToString(unique), Kind: kind, Role: role, State: JobRunning, Started: b.keeper.Store.Now()}, nil
}

func (b *Bulk) begin(ctx context.Context, id string, job *Job) error {
	if err := b.keeper.Store.PutWork(ctx, id, job); err != nil {
		b.jobs = nil // storage knows whether it was written
		return err
	}
	b.jobs[id] = job
	return nil
}

// Rotation returns the progress of the present, or else of the last, rotation
// of a role, or nil if there was none.
func (b *Bulk) Rotation(ctx context.Context, role string) (*Job, error) {
	id := workID(kindRotate, role)
	job, err := b.current(ctx, id)
	if err != nil || job != nil {
		return job, err
	}
	var last Job
	found, err := b.keeper.Store.Done(ctx, id, &last)
	if err != nil || !found {
		return nil, err
	}
	return &last, nil
}

// Drop forgets the jobs of a role that is deleted. The caller holds its lock.
func (b *Bulk) Drop(ctx context.Context, role string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, kind := range []string{kindRotate, kindReschedule} {
		if err := b.keeper.Store.DropWork(ctx, workID(kind, role)); err != nil {
			return err
		}
		delete(b.jobs, workID(kind, role))
	}
	return nil
}

// current returns a copy of a job under way, or nil.
func (b *Bulk) current(ctx context.Context, id string) (*Job, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	job, err := b.load(ctx, id)
	if err != nil || job == nil {
		return nil, err
	}
	return job.copy(), nil
}

// load returns a job under way, or nil. mu is held.
func (b *Bulk) load(ctx context.Context, id string) (*Job, error) {
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	job, ok := b.jobs[id]
	if !ok {
		return nil, nil
	}
	if job == nil {
		job = &Job{}
		found, err := b.keeper.Store.Work(ctx, id, job)
		if err != nil {
			return nil, err
		}
		if !found {
			delete(b.jobs, id)
			return nil, nil
		}
		b.jobs[id] = job
	}
	return job, nil
}

func (j *Job) copy() *Job {
	c := *j
	c.Failures = append([]Failure(nil), j.Failures...)
	return &c
}

// Run works on all jobs until they are finished, ctx ends, or storage fails.
// A job goes on where it was at the next Run.
func (b *Bulk) Run(ctx context.Context) error {
	b.running.Lock()
	defer b.running.Unlock()
	b.mu.Lock()
	err := b.open(ctx)
	ids := make([]string, 0, len(b.jobs))
	for id := range b.jobs {
		ids = append(ids, id)
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		err := b.run(ctx, id)
		if errors.Is(err, store.ErrDamaged) {
			b.logger.Error("a job cannot be read and is left alone", "job", id, "error", err)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("job %q: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Bulk) run(ctx context.Context, id string) error {
	job, err := b.current(ctx, id)
	if err != nil || job == nil {
		return err
	}
	// Whoever wrote the role for which the job was started is done with it.
	b.keeper.Store.RLockRole(job.Role)()
	for job.NextShard < store.Shards {
		if err := b.shard(ctx, job); err != nil {
			return err
		}
		job.NextShard++
		replaced, err := b.save(ctx, id, job)
		if err != nil || replaced {
			return err
		}
	}
	return b.finish(ctx, id, job)
}

// save stores the progress of a job. It reports whether the job was started
// anew, or dropped, in the meantime; the progress is then of no use.
func (b *Bulk) save(ctx context.Context, id string, job *Job) (replaced bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.jobs[id]; now == nil || now.ID != job.ID {
		return true, nil
	}
	// Empty shards are common in small roles; their progress need not last.
	if job.NextShard%16 == 0 || job.Done+job.Failed > b.jobs[id].Done+b.jobs[id].Failed {
		if err := b.keeper.Store.PutWork(ctx, id, job); err != nil {
			return false, err
		}
	}
	b.jobs[id] = job.copy()
	return false, nil
}

func (b *Bulk) finish(ctx context.Context, id string, job *Job) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.jobs[id]; now == nil || now.ID != job.ID {
		return nil
	}
	job.State = JobFinished
	job.Finished = b.keeper.Store.Now()
	if err := b.keeper.Store.FinishWork(ctx, id, job); err != nil {
		b.jobs = nil // storage knows how far that went
		return err
	}
	delete(b.jobs, id)
	if job.Failed > 0 {
		b.logger.Warn("a job has finished with failures", "kind", job.Kind, "role", job.Role, "done", job.Done, "failed", job.Failed)
	}
	return nil
}

// shard works on one shard of members. A key that cannot be changed is noted
// and the rest goes on; a failure of storage ends the run.
func (b *Bulk) shard(ctx context.Context, job *Job) error {
	ids, err := b.keeper.Store.Members(ctx, job.Role, job.NextShard)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, id := range ids {
		group.Go(func() error {
			changed, label, err := b.member(groupCtx, job, id)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && changed:
				job.Done++
			case err == nil:
				job.Skipped++
			case isOwnFault(err):
				job.Failed++
				if errors.Is(err, errPanic) {
					b.logger.Error("a job cannot change a key", "job", job.ID, "key_id", id, "error", err)
				}
				if len(job.Failures) < maxFailures {
					// Of a panic, the trace below the first line is for the log.
					text, _, _ := strings.Cut(err.Error(), "\n")
					job.Failures = append(job.Failures, Failure{Key: label, Error: text})
				}
			default:
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// isOwnFault tells whether a key itself cannot be changed, and trying the
// same again will not help.
func isOwnFault(err error) bool {
	return errors.As(err, new(*keyring.Refusal)) || errors.Is(err, store.ErrDamaged) || errors.Is(err, errPanic)
}

func (b *Bulk) member(ctx context.Context, job *Job, id string) (changed bool, label string, err error) {
	label = id
	defer recoverTo(&err)
	if job.Kind == kindReschedule {
		return true, label, b.keeper.Reschedule(ctx, id)
	}
	k, err := b.keeper.Store.Key(ctx, id)
	if err != nil {
		return false, label, err
	}
	if k == nil || !k.Deleted.IsZero() || k.Leased() || k.Disabled || k.Dormant() {
		return false, label, nil
	}
	label = k.Name
	cause := keyring.Cause{Actor: job.Actor, EntityID: job.EntityID, Accessor: job.Accessor, Reason: strings.TrimSpace("bulk rotation " + job.ID + " " + job.Reason)}
	changed, err = b.keeper.RotateForJob(ctx, id, job.ID, cause, *job.Wish)
	if errors.Is(err, lifecycle.ErrNoKey) {
		return false, label, nil
	}
	return changed, label, err
}
