// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"fmt"
	"net"
	"sync"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// held are the sockets that systemd passed to this process, by name. They stay
// open while the program is replaced, so that no connection is refused.
var held = sync.OnceValues(activation.ListenersWithNames)

func inherited(name string) (net.Listener, error) {
	listeners, err := held()
	if err != nil {
		return nil, fmt.Errorf("take the sockets of systemd: %w", err)
	}
	if len(listeners[name]) != 1 {
		return nil, fmt.Errorf("systemd passed %d sockets named %q, want 1: see FileDescriptorName in the socket unit", len(listeners[name]), name)
	}
	return listeners[name][0], nil
}

// The states that a service manager is told; without one they do nothing.
func tellReady()    { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }
func tellStopping() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }
