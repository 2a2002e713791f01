// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/chaos/oracle"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// Size is how much happens.
type Size struct {
	// Time is how long faults strike.
	Time time.Duration
	// Manual keys are changed by calls, Bulk keys by jobs that rotate their
	// role, Scheduled keys by the engine, and Imported ones by nobody.
	Manual, Bulk, Scheduled, Imported int
	// Rotations are the changes of manual keys to attempt, and Verifications
	// the keys to present to each class of verifiers, in a second.
	Rotations, Verifications float64
	// Faults selects faults by name; nil is all.
	Faults *regexp.Regexp
	Seed   uint64
	// Proxies partition the cluster also where there could be network namespaces.
	Proxies bool
}

const (
	nodes = 3
	mount = "apikeys"

	older = "v0.1.0"
	newer = "v0.2.0"

	manualOverlap = 45 * time.Second
	bulkOverlap   = 40 * time.Second
	autoOverlap   = 5 * time.Minute
	autoPeriod    = 4 * time.Minute
	refresh       = 5 * time.Second

	autoJitter = 20 // percent
	// scheduleBound is how long after it is due a key is rotated where nothing
	// is broken off: within a minute or two, as docs/adr/0001-due-index.md has
	// it, and what that takes.
	scheduleBound = 2*time.Minute + 10*time.Second

	// auditLog is relative to a node's own folder, in which it runs.
	auditLog = "audit.log"

	// mutateTimeout is longer than any fault, so that most calls are answered;
	// no call may arrive late at a node that was stopped.
	mutateTimeout = 60 * time.Second
	verifyTimeout = 8 * time.Second
	healTimeout   = 60 * time.Second
)

// world is the cluster and all that goes on around it.
type world struct {
	t       testing.TB
	size    Size
	cluster *harness.Cluster
	calls   *calls
	net     network // nil where there can be no partitions
	disks   []*disk
	secrets *harness.Secrets
	missing []string // what the machine does not allow

	oracle   oracle.Oracle
	receiver *receiver
	fleet    *fleet
	edges    []*edge

	begun   time.Time
	keys    []*key // the manual ones first
	version atomic.Value
	leased  atomic.Int64
	jobs    atomic.Int64
	ops     counter
	mu      sync.Mutex
	spells  spells
	strikes []Strike
	// living are keys that came after the beginning, and deleted those that went.
	living, deleted []*key
}

// key is a key of the engine.
type key struct {
	name, id string
	role     string
	busy     sync.Mutex  // who changes it
	gone     atomic.Bool // it is about to be deleted

	mu      sync.Mutex
	tokens  map[int]string
	current int
}

func (k *key) learn(version int, token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if token != "" {
		k.tokens[version] = token
	}
	k.current = max(k.current, version)
}

func (k *key) setCurrent(version int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = version
}

func (k *key) now() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// token returns the token of a version; "" if it is not known here.
func (k *key) token(version int) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tokens[version]
}

// any returns some version whose token is known.
func (k *key) any() (version int, token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for version, token = range k.tokens {
		break
	}
	return version, token
}

// counter counts by name.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counter) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
}

func (c *counter) all() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]int{}
	for name, n := range c.n {
		all[name] = n
	}
	return all
}

// newWorld starts the cluster, the engine on it, and makes the keys.
func newWorld(t testing.TB, size Size) *world {
	t.Helper()
	harness.Binary(t)
	w := &world{t: t, size: size, secrets: &harness.Secrets{}}
	places := w.places()
	w.cluster = harness.StartCluster(t, nodes, harness.Options{
		LogLevel: "info", Places: places, Patience: 3,
		// A node that is stopped or cut off is found out soon.
		Config: "default_max_request_duration = \"60s\"\n",
	})
	leader := w.cluster.Leader(t)
	w.calls = newCalls(w.cluster.Nodes, leader.RootToken)
	t.Cleanup(w.calls.http.CloseIdleConnections)
	for _, node := range w.cluster.Nodes {
		t.Cleanup(func() { w.secrets.Search(t, node, 1) })
	}
	for _, version := range []string{older, newer} {
		plugin := harness.Plugin(t, harness.PluginOptions{Version: version, Commit: "chaos"})
		command := ""
		for _, node := range w.cluster.Nodes {
			command = node.InstallPlugin(t, harness.PluginName, version, plugin.Path)
		}
		w.must(http.MethodPut, "sys/plugins/catalog/secret/"+harness.PluginName, fields{"version": version, "command": command, "sha256": plugin.SHA256})
	}
	// The folder of whichever node leads holds its audit log.
	w.must(http.MethodPut, "sys/audit/file", fields{"type": "file", "options": fields{"file_path": auditLog}})
	w.must(http.MethodPost, "sys/mounts/"+mount, fields{"type": harness.PluginName, "config": fields{"plugin_version": older}})
	w.version.Store(older)
	for _, m := range w.missing {
		t.Logf("SKIP: this machine lacks %s", m)
	}
	w.receiver = startReceiver(t, w.net)
	w.setUp()
	return w
}

// places gives each node what the machine allows, and notes what it does not.
func (w *world) places() []harness.Place {
	w.t.Helper()
	places := make([]harness.Place, nodes)
	if w.net = w.network(); w.net != nil {
		for i := range places {
			places[i] = w.net.place(i)
		}
	}
	dir := diskFolder(w.t)
	for i := range places {
		d, err := newDisk(w.t, dir, i)
		if err != nil {
			w.lacks("file systems of their own, so no full, slow or hanging disks", err)
			w.disks = nil
			break
		}
		w.disks = append(w.disks, d)
	}
	for i, d := range w.disks {
		places[i].Data = d.data()
		if err := mkdir(places[i].Data); err != nil {
			w.t.Fatal(err)
		}
	}
	return places
}

// lacks notes what the machine does not allow.
func (w *world) lacks(what string, err error) {
	w.t.Helper()
	w.mayLack(what, err)
	w.missing = append(w.missing, fmt.Sprintf("%s: %v", what, err))
}

// mayLack ends the test where the machine must allow something and does not.
// Where all is required, and asked for as root, only the kernel may refuse it.
func (w *world) mayLack(what string, err error) {
	w.t.Helper()
	if os.Getenv("APIKEYS_E2E_REQUIRE") == "1" && os.Geteuid() == 0 && !kernelRefuses(err) {
		w.t.Fatalf("no %s: %v; on Debian: apt-get install iproute2 e2fsprogs mount util-linux", what, err)
	}
}

// kernelRefuses tells whether an error of a program says that the kernel does not
// have, or allow, what it was asked for.
func kernelRefuses(err error) bool {
	text := strings.ToLower(err.Error())
	for _, words := range []string{
		"operation not permitted", "permission denied", "operation not supported", "unknown device type",
		"unknown filesystem type", "failed to setup loop device", "could not find any free loop device", "could not find any device",
	} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// must makes a call that has to succeed, before faults strike.
func (w *world) must(method, path string, body any) answer {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	a, _ := w.calls.until(ctx, 20*time.Second, method, path, body)
	if !a.ok() {
		w.t.Fatalf("%s %s: %s", method, path, a)
	}
	return a
}

type fields = map[string]any

const (
	roleManual    = "manual"
	roleBulk      = "bulk"
	roleScheduled = "scheduled"
	roleLeased    = "leased"
)

func (w *world) setUp() {
	w.t.Helper()
	common := fields{"prefix": "tm_live", "rollback_window": "2m", "refresh_interval": refresh.String(), "max_accepted_versions": 16, "max_versions": 24}
	role := func(name string, more fields) {
		body := fields{}
		for k, v := range common {
			body[k] = v
		}
		for k, v := range more {
			body[k] = v
		}
		w.must(http.MethodPost, mount+"/roles/"+name, body)
	}
	role(roleManual, fields{"overlap_period": manualOverlap.String(), "max_overlap_period": "10m"})
	role(roleBulk, fields{"overlap_period": bulkOverlap.String(), "max_overlap_period": "10m"})
	role(roleScheduled, fields{"overlap_period": autoOverlap.String(), "rotation_period": autoPeriod.String(), "rotation_jitter": autoJitter})
	role(roleLeased, fields{"overlap_period": "30s", "ttl": "10m", "max_ttl": "1h"})
	created := w.must(http.MethodPost, mount+"/webhooks/chaos", fields{"url": w.receiver.url(), "allow_private": true})
	var hook struct {
		Secret string `json:"secret"`
	}
	if err := created.decode(&hook); err != nil || hook.Secret == "" {
		w.t.Fatalf("a webhook without a secret: %v", err)
	}
	w.secrets.Add(hook.Secret, "the secret of a webhook")
	w.receiver.setSecret(hook.Secret)

	for _, group := range []struct {
		role string
		n    int
	}{{roleManual, w.size.Manual}, {roleBulk, w.size.Bulk}, {roleScheduled, w.size.Scheduled}} {
		for i := range group.n {
			k := &key{name: fmt.Sprintf("%s-%d", group.role, i), role: group.role, tokens: map[int]string{}}
			switch group.role {
			case roleBulk:
				w.oracle.Foreign(k.name, bulkOverlap)
			case roleScheduled:
				w.oracle.Foreign(k.name, autoOverlap)
			}
			w.born(k, w.must(http.MethodPost, mount+"/keys/"+k.name, fields{"role": group.role}))
		}
	}
	w.importKeys()
}

func (w *world) born(k *key, a answer) {
	w.t.Helper()
	var made newVersion
	if err := a.decode(&made); err != nil || made.Version != 1 {
		w.t.Fatalf("a new key %s: %v, version %d", k.name, err, made.Version)
	}
	k.id = made.KeyID
	w.noteToken(k, 1, made.APIKey)
	w.oracle.Born(k.name, 1, a.sent, a.answered)
	w.keys = append(w.keys, k)
}

// newVersion is the answer of what makes one.
type newVersion struct {
	APIKey      string    `json:"api_key"`
	KeyID       string    `json:"key_id"`
	Version     int       `json:"version"`
	State       string    `json:"state"`
	OverlapEnds time.Time `json:"overlap_ends"`
	TTL         int       `json:"ttl"`
	LeaseID     string    `json:"lease_id"`
}

func (w *world) noteToken(k *key, version int, token string) {
	w.secrets.Add(token, fmt.Sprintf("version %d of %s", version, k.name))
	k.learn(version, token)
}

// importKeys imports keys that nobody changes: they must never be refused.
func (w *world) importKeys() {
	w.t.Helper()
	var batch []fields
	var keys []*key
	for i := range w.size.Imported {
		k := &key{name: fmt.Sprintf("imported-%d", i), role: roleManual, tokens: map[int]string{}}
		token := fmt.Sprintf("legacy-%016x%016x", rand.Uint64(), rand.Uint64())
		w.noteToken(k, 1, token)
		keys = append(keys, k)
		batch = append(batch, fields{"name": k.name, "role": roleManual, "import_key": token})
	}
	if len(batch) == 0 {
		return
	}
	a := w.must(http.MethodPost, mount+"/import", fields{"batch_input": batch})
	var result struct {
		Results []struct {
			KeyID string `json:"key_id"`
			Error string `json:"error"`
		} `json:"batch_results"`
	}
	if err := a.decode(&result); err != nil || len(result.Results) != len(keys) {
		w.t.Fatalf("import: %v", err)
	}
	for i, k := range keys {
		if k.id = result.Results[i].KeyID; k.id == "" {
			w.t.Fatalf("import %s: %s", k.name, result.Results[i].Error)
		}
		w.oracle.Born(k.name, 1, a.sent, a.answered)
		w.keys = append(w.keys, k)
	}
}

// keyInfo is what a key reads as.
type keyInfo struct {
	KeyID          string        `json:"key_id"`
	CurrentVersion int           `json:"current_version"`
	PendingVersion int           `json:"pending_version"`
	Enabled        bool          `json:"enabled"`
	Versions       []versionInfo `json:"versions"`
}

type versionInfo struct {
	Version       int       `json:"version"`
	State         string    `json:"state"`
	CreatedTime   time.Time `json:"created_time"`
	AcceptedUntil time.Time `json:"accepted_until"`
}

// observe reads a key until it is answered, and tells the oracle.
func (w *world) observe(ctx context.Context, k *key) (keyInfo, error) {
	a, _ := w.calls.until(ctx, mutateTimeout, http.MethodGet, mount+"/keys/"+k.name, nil)
	if a.status == http.StatusNotFound && a.refused() {
		w.oracle.Missing(k.name, a.answered)
	}
	var info keyInfo
	if err := a.decode(&info); err != nil {
		return info, fmt.Errorf("read %s: %w", k.name, err)
	}
	var seen []oracle.Seen
	for _, v := range info.Versions {
		s := oracle.Seen{Version: v.Version, Until: v.AcceptedUntil, Active: v.State == "active"}
		switch v.State {
		case "pending", "active":
			s.Accepted, s.Until = info.Enabled, time.Time{}
		case "retiring":
			s.Accepted = info.Enabled
		case "revoked", "compromised":
			s.Final = true
		}
		seen = append(seen, s)
	}
	w.oracle.Observe(k.name, a.sent, a.answered, seen)
	if info.CurrentVersion != 0 {
		k.setCurrent(info.CurrentVersion)
	}
	return info, nil
}

// errOver says that the run is over.
var errOver = errors.New("the run is over")

// whenCalm waits until no fault has been on for a moment, so that nothing that
// was sent before can still be under way.
func (w *world) whenCalm(ctx context.Context) error {
	for ctx.Err() == nil {
		if at := now(); w.calm(at, at) {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
	return errOver
}
