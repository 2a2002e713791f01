// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run runs a program of the system for its effect.
func run(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// network gives each node a namespace with two links: one to its clients, and
// one to the other nodes.
type network struct {
	id    string // begins the names of all that is made
	block int    // the addresses are 10.<block>.0.0/24 and 10.<block>.1.0/24
	nodes int
}

// prefix begins the names of namespaces and links; the process id follows, so
// that what a killed run has left can be told.
const prefix = "akc"

func newNetwork(t testing.TB, nodes int) (*network, error) {
	t.Helper()
	for _, program := range []string{"ip"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	removeLeftNetworks()
	n := &network{id: prefix + strconv.Itoa(os.Getpid()), block: 64 + os.Getpid()%128, nodes: nodes}
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

const (
	toClients = 0
	toNodes   = 1
)

func (n *network) bridge(link int) string     { return fmt.Sprintf("%sb%d", n.id, link) }
func (n *network) link(node, link int) string { return fmt.Sprintf("%sv%d%d", n.id, node, link) }
func (n *network) namespace(node int) string  { return fmt.Sprintf("%sn%d", n.id, node) }
func (n *network) host(link int) string       { return fmt.Sprintf("10.%d.%d.1", n.block, link) }
func (n *network) address(node, link int) string {
	return fmt.Sprintf("10.%d.%d.%d", n.block, link, 10+node)
}

// setLink cuts a link of a node, or mends it. What is sent over a cut link is
// lost without a word.
func (n *network) setLink(node, link int, up bool) error {
	state := "down"
	if up {
		state = "up"
	}
	return run("ip", "link", "set", n.link(node, link), state)
}

// setPair cuts two nodes from each other, or mends that. Others reach both.
func (n *network) setPair(a, b int, up bool) error {
	verb := "replace"
	if up {
		verb = "del"
	}
	err := run("ip", "-n", n.namespace(a), "route", verb, n.address(b, toNodes)+"/32", "dev", "sink")
	return errors.Join(err, run("ip", "-n", n.namespace(b), "route", verb, n.address(a, toNodes)+"/32", "dev", "sink"))
}

func (n *network) remove() {
	for node := range n.nodes {
		_ = run("ip", "netns", "del", n.namespace(node)) // its links go with it
	}
	for link := range 2 {
		_ = run("ip", "link", "del", n.bridge(link))
	}
}

// leftBehind tells whether what has a name was left by a run that was killed: prefix,
// process id, anything.
func leftBehind(name, prefix string) bool {
	rest, ours := strings.CutPrefix(name, prefix)
	if !ours {
		return false
	}
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	pid, err := strconv.Atoi(digits)
	return err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// removeLeftNetworks removes what runs have left that were killed.
func removeLeftNetworks() {
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

// disk is a file system of its own, in a file.
type disk struct{ image, dir string }

// diskPrefix begins the names of folders of disks; the process id follows.
const diskPrefix = "apikeys-chaos-"

// diskFolder makes a folder for disks, and removes those of runs that were
// killed.
func diskFolder(t testing.TB) string {
	t.Helper()
	folders, _ := filepath.Glob(filepath.Join(os.TempDir(), diskPrefix+"*")) //nolint:usetesting // where other runs left theirs
	for _, folder := range folders {
		if !leftBehind(filepath.Base(folder), diskPrefix) {
			continue
		}
		mounts, _ := filepath.Glob(filepath.Join(folder, "disk?"))
		for _, dir := range mounts {
			_ = run("umount", "-l", dir) // an error says that it is no mount
		}
		_ = os.RemoveAll(folder)
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", diskPrefix, os.Getpid())) //nolint:usetesting // its name tells whose it is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// diskSize is what a disk holds. The file of it is sparse.
const diskSize = 3 << 30

func newDisk(t testing.TB, dir string, number int) (*disk, error) {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	d := &disk{image: filepath.Join(dir, fmt.Sprintf("disk%d.img", number)), dir: filepath.Join(dir, fmt.Sprintf("disk%d", number))}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return nil, err
	}
	if err := run("mkfs.ext4", "-q", "-F", "-m", "0", d.image); err != nil {
		return nil, err
	}
	if err := run("mount", "-o", "loop", d.image, d.dir); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = run("fsfreeze", "-u", d.dir) // an error says that it is not frozen
		if err := run("umount", d.dir); err != nil {
			_ = run("umount", "-l", d.dir)
		}
	})
	return d, nil
}

// data is the folder for the node.
func (d *disk) data() string { return filepath.Join(d.dir, "data") }

// ballast is the file that fills the disk.
func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill leaves no block free.
func (d *disk) fill() error {
	var free syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &free); err != nil {
		return err
	}
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Blocks for the map of the file itself are needed too: so in ever smaller
	// pieces until none fits.
	offset := int64(0)
	for size := int64(free.Bavail) * free.Bsize; size >= 4096; {
		if err := syscall.Fallocate(int(f.Fd()), 0, offset, size); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return err
			}
			size /= 2
			continue
		}
		offset += size
	}
	return nil
}

func (d *disk) empty() error {
	err := os.Remove(d.ballast())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// freeze makes every write wait until thaw.
func (d *disk) freeze() error { return run("fsfreeze", "-f", d.dir) }
func (d *disk) thaw() error   { return run("fsfreeze", "-u", d.dir) }
