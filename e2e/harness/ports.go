// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// ports hands out pairs of neighbouring loopback ports: Vault's API and, next
// to it, its cluster port, as a dev server insists on. They lie below the range
// from which the kernel takes the ports of outgoing connections, so that a
// server finds its ports free again when it is restarted.
var ports = struct {
	sync.Mutex
	given map[int]bool
}{given: map[int]bool{}}

const (
	firstPort = 20000
	lastPort  = 32000
)

func freePorts() (api, cluster int, err error) {
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		port := firstPort + 2*rand.IntN((lastPort-firstPort)/2)
		if ports.given[port] || !canListen(port) || !canListen(port+1) {
			continue
		}
		ports.given[port] = true
		return port, port + 1, nil
	}
	return 0, 0, errors.New("no two free neighbouring ports on 127.0.0.1 in 1000 tries")
}

func canListen(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
