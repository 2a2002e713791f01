// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// namespaces gives each node a namespace with two links: one to its clients, and
// one to the other nodes.
type namespaces struct {
	id    string // begins the names of all that is made
	block int    // the addresses are 10.<block>.0.0/24 and 10.<block>.1.0/24
	nodes int
}

// prefix begins the names of namespaces and links; the process id follows, so
// that what a killed run has left can be told.
const prefix = "akc"

func newNamespaces(t testing.TB, nodes int) (*namespaces, error) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, err
	}
	removeLeftNamespaces()
	n := &namespaces{id: prefix + strconv.Itoa(os.Getpid()), block: 64 + os.Getpid()%128, nodes: nodes}
	t.Cleanup(n.remove)
	steps := [][]string{}
	for link := range 2 {
		bridge := n.bridge(link)
		steps = append(steps, []string{"link", "add", bridge, "type", "bridge"},
			[]string{"addr", "add", n.host(link) + "/24", "dev", bridge}, []string{"link", "set", bridge, "up"})
	}
	for node := range nodes {
		ns := n.namespace(node)
		steps = append(steps, []string{"netns", "add", ns}, []string{"-n", ns, "link", "set", "lo", "up"},
			// What is routed to the sink is lost without a word.
			[]string{"-n", ns, "link", "add", "sink", "type", "veth", "peer", "name", "drain"},
			[]string{"-n", ns, "link", "set", "sink", "arp", "off"}, []string{"-n", ns, "link", "set", "sink", "up"}, []string{"-n", ns, "link", "set", "drain", "up"})
		for link := range 2 {
			steps = append(steps, []string{"link", "add", n.link(node, link), "type", "veth", "peer", "name", "eth" + strconv.Itoa(link), "netns", ns},
				[]string{"link", "set", n.link(node, link), "master", n.bridge(link)},
				[]string{"link", "set", n.link(node, link), "up"},
				[]string{"-n", ns, "addr", "add", n.address(node, link) + "/24", "dev", "eth" + strconv.Itoa(link)},
				[]string{"-n", ns, "link", "set", "eth" + strconv.Itoa(link), "up"})
		}
	}
	for _, step := range steps {
		if err := run("ip", step...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *namespaces) bridge(link int) string     { return fmt.Sprintf("%sb%d", n.id, link) }
func (n *namespaces) link(node, link int) string { return fmt.Sprintf("%sv%d%d", n.id, node, link) }
func (n *namespaces) namespace(node int) string  { return fmt.Sprintf("%sn%d", n.id, node) }
func (n *namespaces) host(link int) string       { return fmt.Sprintf("10.%d.%d.1", n.block, link) }
func (n *namespaces) address(node, link int) string {
	return fmt.Sprintf("10.%d.%d.%d", n.block, link, 10+node)
}

func (n *namespaces) String() string { return "network namespaces" }

func (n *namespaces) place(node int) harness.Place {
	return harness.Place{
		Command: []string{"ip", "netns", "exec", n.namespace(node)},
		Host:    n.address(node, toClients), ClusterHost: n.address(node, toNodes),
	}
}

func (n *namespaces) listen() (l net.Listener, addr string, err error) {
	if l, err = net.Listen("tcp", net.JoinHostPort(n.host(toClients), "0")); err != nil {
		return nil, "", err
	}
	return l, l.Addr().String(), nil
}

func (n *namespaces) setLink(node, link int, up bool) error {
	state := "down"
	if up {
		state = "up"
	}
	return run("ip", "link", "set", n.link(node, link), state)
}

func (n *namespaces) setPair(a, b int, up bool) error {
	verb := "replace"
	if up {
		verb = "del"
	}
	err := run("ip", "-n", n.namespace(a), "route", verb, n.address(b, toNodes)+"/32", "dev", "sink")
	return errors.Join(err, run("ip", "-n", n.namespace(b), "route", verb, n.address(a, toNodes)+"/32", "dev", "sink"))
}

func (n *namespaces) remove() {
	for node := range n.nodes {
		_ = run("ip", "netns", "del", n.namespace(node)) // its links go with it
	}
	for link := range 2 {
		_ = run("ip", "link", "del", n.bridge(link))
	}
}

// removeLeftNamespaces removes what runs have left that were killed.
func removeLeftNamespaces() {
	spaces, _ := filepath.Glob("/var/run/netns/" + prefix + "*")
	for _, path := range spaces {
		if name := filepath.Base(path); leftBehind(name, prefix) {
			_ = run("ip", "netns", "del", name)
		}
	}
	links, _ := filepath.Glob("/sys/class/net/" + prefix + "*b[01]")
	for _, path := range links {
		if name := filepath.Base(path); leftBehind(name, prefix) {
			_ = run("ip", "link", "del", name)
		}
	}
}
