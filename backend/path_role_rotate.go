// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/jobs"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
)

const roleRotatePattern = "roles/(?P<role>.+)/rotate"

func jobAnswerFields() fields {
	return fields{
		"job_id":        always(textField("Id of the job. It stands in the history of each key that it rotates.")),
		fieldState:      always(textField("running or finished.")),
		"rotated":       always(intField("Keys that it rotated.")),
		"skipped":       always(intField("Keys that it left alone: leased, disabled or without an active version.")),
		"failed":        always(intField("Keys that it could not rotate.")),
		"failures":      always(itemsField("Of up to 100 of those, the key and the error.")),
		"percent":       always(intField("How much of the role it has been through.")),
		"started_time":  always(timeField("When it began.")),
		"finished_time": timeField("When it ended."),
	}
}

func (b *Backend) pathRoleRotate() []*framework.Path {
	return []*framework.Path{{
		Pattern:      roleRotatePattern,
		DisplayAttrs: display("role-rotation"),
		Fields:       join(roleFields(), wishFields(), reasonFields()),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: b.forwarded(b.rotateRole, "Begin to rotate every named key of a role.", "start", answers("The job.", jobAnswerFields())),
			logical.ReadOperation:   b.forwarded(b.readRoleRotation, "Read the progress of the last rotation of a role.", "read", answers("The job.", jobAnswerFields())),
		},
		HelpSynopsis: "Rotate every named key of a role.",
		HelpDescription: `Starts a job that rotates each named key of the role once, and answers at once.
It goes on after a crash or a failover where it was. Reading tells its
progress, and which keys could not be rotated and why.`,
	}}
}

func (b *Backend) rotateRole(ctx context.Context, c *call) (*logical.Response, error) {
	name := c.text(fieldRole)
	unlock := c.store.LockRole(name)
	defer unlock()
	r, err := c.store.Role(ctx, name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, noRole(name)
	}
	cause, err := c.cause()
	if err != nil {
		return nil, err
	}
	wish, err := c.wish(r)
	if err != nil {
		return nil, err
	}
	job, err := c.bulk.StartRotation(ctx, name, wish, cause)
	if err != nil {
		return nil, err
	}
	if now := c.store.Now(); wish.Overlap != nil && *wish.Overlap < r.RefreshTold(now) {
		c.warn(fmt.Sprintf("the former versions are accepted for another %s only, and clients were told to look for a new one every %s: those that have not will be refused", *wish.Overlap, r.RefreshTold(now)))
	}
	c.wakeWork()
	return jobAnswer(job), nil
}

func (b *Backend) readRoleRotation(ctx context.Context, c *call) (*logical.Response, error) {
	job, err := c.bulk.Rotation(ctx, c.text(fieldRole))
	if err != nil || job == nil {
		return nil, err
	}
	return jobAnswer(job), nil
}

func jobAnswer(job *jobs.Job) *logical.Response {
	failures := []any{}
	for _, f := range job.Failures {
		failures = append(failures, map[string]any{"key": f.Key, "error": f.Error})
	}
	data := map[string]any{
		"job_id": job.ID, fieldState: job.State, "rotated": job.Done, "skipped": job.Skipped, "failed": job.Failed,
		"failures": failures, "percent": job.NextShard * 100 / store.Shards,
	}
	putTime(data, "started_time", job.Started)
	putTime(data, "finished_time", job.Finished)
	return &logical.Response{Data: data}
}
