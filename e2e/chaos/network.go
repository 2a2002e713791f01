// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"net"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// network is what the nodes run in, so that they can be cut off. Its String says
// for the report what it is made of.
type network interface {
	String() string
	// place is where a node runs.
	place(node int) harness.Place
	// listen listens for the nodes; they reach it at addr, by their link to clients.
	listen() (l net.Listener, addr string, err error)
	// setLink cuts a link of a node, or mends it. What is sent over a cut link is
	// lost without a word.
	setLink(node, link int, up bool) error
	// setPair cuts two nodes from each other, or mends that. Others reach both.
	setPair(a, b int, up bool) error
}

// The links of a node.
const (
	toClients = 0
	toNodes   = 1
)

// network gives the nodes namespaces where the machine allows them, and else
// proxies. It is nil, and noted as lacking, where it allows neither.
func (w *world) network() network {
	w.t.Helper()
	if !w.size.Proxies {
		n, err := newNamespaces(w.t, nodes)
		if err == nil {
			return n
		}
		w.mayLack("network namespaces", err)
		w.t.Logf("partitions are made with TCP proxies, because this machine lacks network namespaces: %v", err)
	}
	p, err := newProxies(w.t, nodes)
	if err != nil {
		w.lacks("network namespaces, and what proxies need instead, so no partitions", err)
		return nil
	}
	return p
}

// listenFor listens where the nodes of a network reach it; nil is this machine's
// loopback.
func listenFor(t testing.TB, n network) (l net.Listener, addr string) {
	t.Helper()
	var err error
	if n != nil {
		l, addr, err = n.listen()
	} else if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
		addr = l.Addr().String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return l, addr
}
