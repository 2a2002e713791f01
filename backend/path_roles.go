// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/keyring"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/lifecycle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/role"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/store"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/webhook"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

const (
	rolesPattern = "roles/?"
	rolePattern  = "roles/(?P<role>.+)"

	fieldScanPattern = "scan_pattern"
)

// roleField is one field of a role: how it is declared, read and written. A
// field is added to the API by adding a line to roleSchema.
type roleField struct {
	schema *framework.FieldSchema
	read   func(*role.Role) any
	write  func(*call, string, *role.Role)
	// reset sets the field to its default.
	reset func(*role.Role, *role.Role)
}

func roleText(description string, at func(*role.Role) *string) roleField {
	return roleField{
		schema: byDefault(textField(description), *at(role.New(""))),
		read:   func(r *role.Role) any { return *at(r) },
		write:  func(c *call, f string, r *role.Role) { *at(r) = c.text(f) },
		reset:  func(r, d *role.Role) { *at(r) = *at(d) },
	}
}

func roleInt(description string, at func(*role.Role) *int) roleField {
	return roleField{
		schema: byDefault(intField(description), *at(role.New(""))),
		read:   func(r *role.Role) any { return *at(r) },
		write:  func(c *call, f string, r *role.Role) { *at(r) = c.number(f) },
		reset:  func(r, d *role.Role) { *at(r) = *at(d) },
	}
}

func roleBool(description string, at func(*role.Role) *bool) roleField {
	return roleField{
		schema: byDefault(boolField(description), *at(role.New(""))),
		read:   func(r *role.Role) any { return *at(r) },
		write:  func(c *call, f string, r *role.Role) { *at(r) = c.flag(f) },
		reset:  func(r, d *role.Role) { *at(r) = *at(d) },
	}
}

func roleDuration(description string, at func(*role.Role) *time.Duration) roleField {
	return roleField{
		schema: byDefault(durationField(description), int(seconds(*at(role.New(""))))),
		read:   func(r *role.Role) any { return seconds(*at(r)) },
		write:  func(c *call, f string, r *role.Role) { *at(r) = c.duration(f) },
		reset:  func(r, d *role.Role) { *at(r) = *at(d) },
	}
}

func roleList(description string, at func(*role.Role) *[]string) roleField {
	return roleField{
		schema: listField(description),
		read:   func(r *role.Role) any { return append([]string{}, *at(r)...) },
		write:  func(c *call, f string, r *role.Role) { *at(r) = c.list(f) },
		reset:  func(r, d *role.Role) { *at(r) = *at(d) },
	}
}

// roleDerived is a duration that follows other fields until it is written.
func roleDerived(description string, at func(*role.Role) **time.Duration, derived func(*role.Role) time.Duration) roleField {
	return roleField{
		schema: durationField(description),
		read:   func(r *role.Role) any { return seconds(derived(r)) },
		write:  func(c *call, f string, r *role.Role) { *at(r) = c.optionalDuration(f) },
		reset:  func(r, _ *role.Role) { *at(r) = nil },
	}
}

var roleSchema = map[string]roleField{
	"prefix":        roleText("First part of each token: [a-z][a-z0-9_]{0,31}.", func(r *role.Role) *string { return &r.Prefix }),
	"secret_length": roleInt("Length of the random part, from 22 to 128 base62 characters.", func(r *role.Role) *int { return &r.SecretLength }),
	fieldScopes:     roleList("Scopes that keys of the role may have, each of A-Z a-z 0-9 _ . : / - with an optional trailing * that covers all that begin so.", func(r *role.Role) *[]string { return &r.Scopes }),
	fieldOverlapScopes: roleList("Scopes to which a superseded version is cut between its overlap_ends and its accepted_until; empty does not cut.",
		func(r *role.Role) *[]string { return &r.OverlapScopes }),
	fieldRotationPeriod:          roleDuration("Time from one automatic rotation to the next; 0 is none. Not together with rotation_schedule.", func(r *role.Role) *time.Duration { return &r.RotationPeriod }),
	"rotation_schedule":          roleText("When keys rotate automatically: a cron expression of five fields, in UTC. Not together with rotation_period.", func(r *role.Role) *string { return &r.RotationSchedule }),
	"rotation_window":            roleDuration("How long after its scheduled time a rotation may still happen; later it waits for the next one. 0 is any time. Only with rotation_schedule.", func(r *role.Role) *time.Duration { return &r.RotationWindow }),
	"disable_automated_rotation": roleBool("Stops automatic rotation without forgetting its schedule.", func(r *role.Role) *bool { return &r.DisableAutomatedRotation }),
	"rotation_jitter":            roleInt("Spreads rotations by up to so many percent of the period, from 0 to 50, fixed for each key.", func(r *role.Role) *int { return &r.RotationJitter }),
	fieldOverlapPeriod:           roleDuration("How long a superseded version is still accepted. Automatic rotation needs at least 5m, or 0 for none. For as long after a change as clients may sleep by the former refresh_interval, rotations by schedule or of a whole role accept it until they have woken, or wait for that where max_overlap_period leaves no room.", func(r *role.Role) *time.Duration { return &r.OverlapPeriod }),
	"max_overlap_period":         roleDuration("The most that an overlap can be, extensions included, counted from the promotion that began it.", func(r *role.Role) *time.Duration { return &r.MaxOverlapPeriod }),
	"extend_until_drained":       roleBool("Accepts a superseded version until it is no longer used, at most for max_overlap_period.", func(r *role.Role) *bool { return &r.ExtendUntilDrained }),
	"drain_quiet_period":         roleDuration("How long a version must be unused to count as drained.", func(r *role.Role) *time.Duration { return &r.DrainQuietPeriod }),
	fieldActivationDelay:         roleDuration("How long a new version is pending before it becomes the current one.", func(r *role.Role) *time.Duration { return &r.ActivationDelay }),
	"max_accepted_versions":      roleInt("How many versions of a key may be accepted at once, from 2 to 16; 1 only with overlap_period=0.", func(r *role.Role) *int { return &r.MaxAcceptedVersions }),
	"max_versions":               roleInt("How many versions are remembered, from max_accepted_versions to 100.", func(r *role.Role) *int { return &r.MaxVersions }),
	"rollback_window":            roleDuration("How long a retired version can be restored, and its plaintext is kept.", func(r *role.Role) *time.Duration { return &r.RollbackWindow }),
	"version_ttl":                roleDuration("The hard age of a version from its promotion; 0 is none.", func(r *role.Role) *time.Duration { return &r.VersionTTL }),
	"ttl":                        roleDuration("Default life of a leased key's lease; 0 follows the mount.", func(r *role.Role) *time.Duration { return &r.TTL }),
	"max_ttl":                    roleDuration("Longest life of a leased key; 0 follows the mount.", func(r *role.Role) *time.Duration { return &r.MaxTTL }),
	"refresh_interval": roleDerived("How often clients look for a new version; by default the lesser of 1h and a quarter of the overlap.",
		func(r *role.Role) **time.Duration { return &r.RefreshInterval }, (*role.Role).Refresh),
	"retrievable":   roleBool("Whether plaintext is kept, encrypted, so that static-creds can return it.", func(r *role.Role) *bool { return &r.Retrievable }),
	fieldBoundCIDRs: roleList("Addresses and ranges from which keys of the role are accepted; empty is everywhere.", func(r *role.Role) *[]string { return &r.BoundCIDRs }),
	"notify_before": roleDerived("How long before a rotation it is announced; by default a tenth of the period.",
		func(r *role.Role) **time.Duration { return &r.NotifyBefore }, (*role.Role).Notify),
	"reminders": {
		schema: byDefault(&framework.FieldSchema{Type: framework.TypeCommaIntSlice, Description: "Percents of an overlap at which clients left behind are named, ascending."}, role.New("").Reminders),
		read:   func(r *role.Role) any { return append([]int{}, r.Reminders...) },
		write:  func(c *call, f string, r *role.Role) { r.Reminders = c.numbers(f) },
		reset:  func(r, d *role.Role) { r.Reminders = d.Reminders },
	},
	"leak_response": roleText("What a reported leak does: alert, revoke or rotate.", func(r *role.Role) *string { return &r.LeakResponse }),
	fieldMetadata: {
		schema: pairsField("Names and values for people and filters, at most 64."),
		read:   func(r *role.Role) any { return metadata(r.CustomMetadata) },
		write:  func(c *call, f string, r *role.Role) { r.CustomMetadata = c.pairs(f) },
		reset:  func(r, d *role.Role) { r.CustomMetadata = d.CustomMetadata },
	},
}

func metadata(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func roleInputFields() fields {
	all := roleFields()
	for name, f := range roleSchema {
		all[name] = f.schema
	}
	return all
}

func roleAnswerFields() fields {
	all := fields{
		fieldName:        always(textField("Name of the role.")),
		fieldScanPattern: always(textField("A regular expression for secret scanners that finds tokens of the role.")),
	}
	for name, f := range roleSchema {
		all[name] = always(&framework.FieldSchema{Type: f.schema.Type, Description: f.schema.Description})
	}
	return all
}

func listAnswer(description string) map[int][]framework.Response {
	return answers(description, fields{"keys": {Type: framework.TypeStringSlice, Description: "Names in order."}})
}

func (b *Backend) pathRoles() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      rolesPattern,
			DisplayAttrs: display("roles"),
			Fields:       pageFields(),
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.local(b.listRoles, "List the roles.", "list", listAnswer("The roles.")),
			},
			HelpSynopsis:    "List the roles.",
			HelpDescription: "Roles are templates and policies for keys.",
		},
		{
			Pattern:        rolePattern,
			DisplayAttrs:   display("role"),
			Fields:         roleInputFields(),
			ExistenceCheck: b.roleExists,
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.CreateOperation: b.forwarded(b.writeRole, "Create a role.", "write", empty("Created.")),
				logical.UpdateOperation: b.forwarded(b.writeRole, "Change a role; absent fields keep their value.", "write", empty("Changed.")),
				logical.PatchOperation:  b.forwarded(b.patchRole, "Change a role; null sets a field to its default.", "patch", empty("Changed.")),
				logical.ReadOperation:   b.local(b.readRole, "Read a role.", "read", answers("The role.", roleAnswerFields())),
				logical.DeleteOperation: b.forwarded(b.deleteRole, "Delete a role that has no keys.", "delete", empty("Deleted.")),
			},
			HelpSynopsis: "Create, read, change and delete roles.",
			HelpDescription: `A role says what the tokens of its keys look like, what they may do, when they
rotate and how long a superseded version stays accepted. A change holds for all
keys of the role: schedules at once, deadlines that exist do not move, and
scopes and addresses in force are always what role and key both allow.`,
		},
	}
}

func (b *Backend) roleExists(ctx context.Context, req *logical.Request, data *framework.FieldData) (bool, error) {
	e, err := b.engine(ctx, req.Storage)
	if err != nil {
		return false, err
	}
	r, err := e.store.Role(ctx, valueOf[string](data, fieldRole))
	return r != nil, err
}

func (b *Backend) listRoles(ctx context.Context, c *call) (*logical.Response, error) {
	names, err := c.store.Roles(ctx)
	if err != nil {
		return nil, err
	}
	if names, err = c.page(names); err != nil {
		return nil, err
	}
	return logical.ListResponse(names), nil
}

func (b *Backend) readRole(ctx context.Context, c *call) (*logical.Response, error) {
	r, err := c.store.Role(ctx, c.text(fieldRole))
	if err != nil || r == nil {
		return nil, err
	}
	data := map[string]any{fieldName: r.Name, fieldScanPattern: token.ScanPattern(r.Format())}
	for name, f := range roleSchema {
		data[name] = f.read(r)
	}
	return &logical.Response{Data: data}, nil
}

func (b *Backend) writeRole(ctx context.Context, c *call) (*logical.Response, error) {
	return b.saveRole(ctx, c, true)
}

func (b *Backend) patchRole(ctx context.Context, c *call) (*logical.Response, error) {
	return b.saveRole(ctx, c, false)
}

// saveRole writes a role. Where that moves the due times of its keys, a job
// that files them anew is stored first: a crash between the two leaves a job
// that finds nothing to do.
func (b *Backend) saveRole(ctx context.Context, c *call, create bool) (*logical.Response, error) {
	name := c.text(fieldRole)
	defer c.store.LockRole(name)()
	old, err := c.store.Role(ctx, name)
	if err != nil {
		return nil, err
	}
	next := role.New(name)
	switch {
	case old != nil:
		next = old.Clone()
	case !create:
		return nil, noRole(name)
	}
	defaults := role.New(name)
	for field, f := range roleSchema {
		switch {
		case c.has(field):
			f.write(c, field, next)
		case c.reset(field):
			f.reset(next, defaults)
		}
	}
	if err := next.Validate(); err != nil {
		return nil, badInput("%s", err)
	}
	if err := c.checkClaims(ctx, old, next); err != nil {
		return nil, err
	}
	if old != nil {
		next.Succeed(old, c.store.Now())
	}
	moved := old != nil && !old.SameSchedule(next)
	if moved {
		if err := c.bulk.StartReschedule(ctx, name); err != nil {
			return nil, err
		}
	}
	if err := c.store.PutRole(ctx, next); err != nil {
		return nil, err
	}
	if moved {
		c.wakeWork()
	}
	return nil, nil
}

// checkClaims refuses a role whose new keys nobody could get, and warns of
// those that will wait. A role that was so before can still be changed: its
// webhook may be away for a while.
func (c *call) checkClaims(ctx context.Context, old, next *role.Role) error {
	if !next.NeedsClaims() {
		return nil
	}
	found, some, err := c.watch.hooks.Claiming(ctx, next.Name)
	switch {
	case err != nil:
		return err
	case !found && (old == nil || !old.NeedsClaims()):
		return badInput("retrievable=false with automatic rotation needs somebody to claim new keys: first make a webhook with deliver=claim whose events match %s and whose roles match %q, or set retrievable=true or disable_automated_rotation=true",
			webhook.EventClaimed, next.Name)
	case !found:
		c.warn("no enabled webhook with deliver=claim is for keys of this role: their rotations wait until one is")
	case some:
		c.warn("the webhooks that deliver claims for this role filter by keys or metadata: rotations of keys that none of them matches wait")
	}
	return nil
}

// wakeWork lets the jobs go on now instead of at the next tick.
func (e *engine) wakeWork() {
	if e.work != nil {
		e.work.Wake()
	}
}

func (b *Backend) deleteRole(ctx context.Context, c *call) (*logical.Response, error) {
	name := c.text(fieldRole)
	defer c.store.LockRole(name)()
	r, err := c.store.Role(ctx, name)
	if err != nil || r == nil {
		return nil, err
	}
	members, err := b.countMembers(ctx, c, name)
	if err != nil {
		return nil, err
	}
	if members.named+members.leased > 0 {
		return nil, badInput("role %q has %s and cannot be deleted: %s", name, members.count(), members.remedy(name))
	}
	if err := c.bulk.Drop(ctx, name); err != nil {
		return nil, err
	}
	return nil, c.store.DeleteRole(ctx, name)
}

// maxCounted bounds how many keys of a role are read, under its lock, to say
// why it cannot be deleted, and maxNamedIDs how many leased ones are named.
const (
	maxCounted  = 1000
	maxNamedIDs = 5
)

// members are the keys that keep a role from being deleted.
type members struct {
	named, leased int
	// ids are those of the first leased keys.
	ids []string
	// more tells that there may be others.
	more bool
}

var errEnough = errors.New("enough keys have been counted")

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// count says how many there are: "1 key", "at least 1000 keys (998 named and
// 2 leased)".
func (m *members) count() string {
	text := plural(m.named+m.leased, "key")
	if m.more {
		text = "at least " + text
	}
	if m.named > 0 && m.leased > 0 {
		text += fmt.Sprintf(" (%d named and %d leased)", m.named, m.leased)
	}
	return text
}

// remedy says how to find and end them.
func (m *members) remedy(role string) string {
	var steps []string
	if m.named > 0 {
		steps = append(steps, fmt.Sprintf("list the named ones with LIST keys and role=%s, and delete them", role))
	}
	if m.leased > 0 {
		steps = append(steps, fmt.Sprintf("end the leased ones with `vault lease revoke -prefix` on creds/%s, and on rotate-leased/<key_id> for those that were rotated; the first are %s",
			role, strings.Join(m.ids, ", ")))
	}
	return strings.Join(steps, "; ")
}

// countMembers counts the keys of a role, up to maxCounted of them. On the way
// it removes leased keys that have ended, and entries that a crash left without
// a key.
func (b *Backend) countMembers(ctx context.Context, c *call, name string) (*members, error) {
	m := &members{}
	err := eachMember(ctx, c.store, name, func(id string) error {
		k, err := c.store.Key(ctx, id)
		if err != nil {
			return err
		}
		if k == nil || !k.Deleted.IsZero() {
			return c.store.DropMember(ctx, name, id)
		}
		if ended, _ := k.EndedAll(c.store.Now()); ended && k.Leased() {
			// Kept for a day to be read, but not a reason to keep the role.
			return c.keeper.Delete(ctx, id, keyring.Cause{Actor: lifecycle.ActorLease})
		}
		if m.named+m.leased == maxCounted {
			m.more = true
			return errEnough
		}
		if !k.Leased() {
			m.named++
			return nil
		}
		m.leased++
		if len(m.ids) < maxNamedIDs {
			m.ids = append(m.ids, k.ID)
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return m, err
}

// eachMember calls do for the id of each key of a role, and of some that are
// gone.
func eachMember(ctx context.Context, s *store.Store, name string, do func(id string) error) error {
	shards, err := s.MemberShards(ctx, name)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		ids, err := s.Members(ctx, name, shard)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := do(id); err != nil {
				return err
			}
		}
	}
	return nil
}
