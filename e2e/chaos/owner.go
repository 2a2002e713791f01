// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

var (
	errUnknownOwner = errors.New("no process that works in a node's folder, and whose /proc/PID/fd can be read, has that connection open")
	errEndGone      = errors.New("the other end of the connection has gone")
)

// owner finds the process of this machine that has the other end of a
// connection, and returns the number of the folder that it works in. A node and
// its plugins work in a folder of their own. All come from 127.0.0.1, so there is
// nothing else by which to tell them; but who connects has had the socket open
// since before. See proc_pid_cwd(5) and proc_pid_fd(5).
func owner(conn net.Conn, dirs []string) (int, error) {
	socket, err := otherEnd(conn)
	if err != nil {
		return 0, err
	}
	all, _ := filepath.Glob("/proc/[0-9]*/cwd") // the pattern is well formed
	for _, cwd := range all {
		dir, err := os.Readlink(cwd)
		number := slices.Index(dirs, dir)
		if err != nil || number < 0 {
			continue // it has ended, or is another's
		}
		files, _ := filepath.Glob(filepath.Join(filepath.Dir(cwd), "fd", "*"))
		for _, file := range files {
			if open, err := os.Readlink(file); err == nil && open == socket {
				return number, nil
			}
		}
	}
	return 0, errUnknownOwner
}

// otherEnd is the other end of a connection as an open file. See proc_pid_net(5).
func otherEnd(conn net.Conn) (string, error) {
	local, err := kernelAddr(conn.RemoteAddr())
	if err != nil {
		return "", err
	}
	remote, err := kernelAddr(conn.LocalAddr())
	if err != nil {
		return "", err
	}
	// The kernel may leave one out where others come and go as it writes the list.
	for range 5 {
		list, err := os.ReadFile("/proc/self/net/tcp")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(list)) {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			if !strings.Contains(line, local) {
				continue
			}
			if fields := strings.Fields(line); len(fields) > 9 && fields[1] == local && fields[2] == remote && fields[9] != "0" {
				return "socket:[" + fields[9] + "]", nil
			}
		}
	}
	return "", errEndGone
}

// kernelAddr is an address as the kernel lists it: the number that the bytes make
// on this machine, and the port.
func kernelAddr(addr net.Addr) (string, error) {
	a, err := netip.ParseAddrPort(addr.String())
	if err != nil || !a.Addr().Is4() {
		return "", fmt.Errorf("%s is not an IPv4 address", addr)
	}
	bytes := a.Addr().As4()
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(bytes[:]), a.Port()), nil
}

// tryOwner tells why owner does not work on this machine, if it does not.
func tryOwner() error {
	here, err := os.Readlink("/proc/self/cwd")
	if err != nil {
		return err
	}
	l, err := listenLoopback()
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	near, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	defer func() { _ = near.Close() }()
	far, err := l.Accept()
	if err != nil {
		return err
	}
	defer func() { _ = far.Close() }()
	_, err = owner(far, []string{here})
	return err
}
