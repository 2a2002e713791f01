// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/clock"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/backend/internal/storetest"
)

// bus is Vault's event bus, or one that does not take events.
type bus struct {
	refuse error

	mu   sync.Mutex
	sent []string
}

func (b *bus) SendEvent(_ context.Context, kind logical.EventType, event *logical.EventData) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse == nil {
		fields := event.Metadata.GetFields()
		b.sent = append(b.sent, string(kind)+" "+fields[logical.EventMetadataDataPath].GetStringValue()+" "+fields["event_id"].GetStringValue())
	}
	return b.refuse
}

// rotateOn makes and rotates a key on a server with this bus, and returns the
// key's id and what was logged.
func rotateOn(t *testing.T, sender logical.EventSender) (string, string) {
	t.Helper()
	storage, logs := storetest.NewMemory(), &logRecord{}
	b, err := newBackend(t.Context(), &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: logs}), StorageView: storage, EventsSender: sender,
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: time.Hour, PluginEnvironment: &logical.PluginEnvironment{}},
	}, clock.NewManual(epoch), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Cleanup(context.WithoutCancel(t.Context())) })
	id := ""
	for _, r := range []struct {
		path string
		data object
	}{{"roles/r", object{}}, {"keys/acme", object{"role": "r"}}, {"rotate/acme", object{}}} {
		resp, err := b.HandleRequest(t.Context(), &logical.Request{Operation: logical.UpdateOperation, Path: r.path, Data: r.data, Storage: storage})
		if err != nil || resp.IsError() {
			t.Fatalf("%s: %v %v", r.path, resp, err)
		}
		if resp != nil {
			id, _ = resp.Data["key_id"].(string)
		}
	}
	e, err := b.engine(t.Context(), storage)
	if err != nil {
		t.Fatal(err)
	}
	e.telling.Stop(clock.System().After)
	if err := e.watch.tell(t.Context()); err != nil {
		t.Fatal(err)
	}
	return id, logs.String()
}

func TestEventsGoToVaultsBusWhereThereIsOne(t *testing.T) {
	t.Parallel()
	b := &bus{}
	id, _ := rotateOn(t, b)
	b.mu.Lock()
	defer b.mu.Unlock()
	want := []string{
		"apikeys/key.created keys/acme " + id + ".1", "apikeys/version.created keys/acme " + id + ".2", "apikeys/version.activated keys/acme " + id + ".3",
		"apikeys/version.created keys/acme " + id + ".4", "apikeys/version.retiring keys/acme " + id + ".5", "apikeys/version.activated keys/acme " + id + ".6",
	}
	if got := strings.Join(b.sent, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the bus got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestAServerWithoutEventsIsMetWithSilence(t *testing.T) {
	t.Parallel()
	for name, sender := range map[string]logical.EventSender{
		"none":          nil,
		"unimplemented": &bus{refuse: status.Error(codes.Unimplemented, "no events here")},
		"failing":       &bus{refuse: errors.New("the bus is down")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, logs := rotateOn(t, sender); logs != "" {
				t.Errorf("it was logged: %s", logs)
			}
		})
	}
}
