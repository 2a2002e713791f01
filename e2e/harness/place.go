// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Place is where a node of a cluster runs. The zero value is this machine's
// loopback and a folder of the node's own.
type Place struct {
	// Command is what runs the server, such as `ip netns exec NAME`; the
	// server's program and arguments are added to it. It must become that program.
	Command []string
	// Host is the address of the API, ClusterHost that of what nodes tell each
	// other.
	Host, ClusterHost string
	// Front, if there is one, is told where the node listens for the API and for
	// other nodes, and answers at which addresses they all are to reach it, the
	// harness too: those of a proxy. It is asked before the node starts first,
	// and again if it has to listen elsewhere.
	Front func(s *Server, api, cluster string) (frontAPI, frontCluster string)
	// Data is the folder of the Raft storage. It outlives the server.
	Data string
}

func (o Options) place(node int) Place {
	if node < len(o.Places) {
		return o.Places[node]
	}
	return Place{}
}

// front is where others reach a node that listens at these addresses.
func (p Place) front(s *Server, api, cluster string) (frontAPI, frontCluster string) {
	if p.Front == nil {
		return api, cluster
	}
	return p.Front(s, api, cluster)
}

func hostPort(host string, port int) string {
	if host == "" {
		return loopback(port)
	}
	return fmt.Sprintf("%s:%d", host, port)
}

// Running tells whether the server's process is there, be it stopped or sealed.
func (s *Server) Running() bool { return s.proc.alive() }

// Active tells whether the server says that it is the active node.
func (s *Server) Active() bool { return s.Running() && s.health(healthActive) == nil }

// Serving tells whether the server is unsealed and knows its place: active or
// standby.
func (s *Server) Serving() bool {
	return s.Running() && s.health(healthActive, healthStandby, healthPerfStandby) == nil
}

// Signal sends a signal to the server's own process, not to its plugins.
func (s *Server) Signal(sig syscall.Signal) error {
	pid := s.proc.pid()
	if pid == 0 {
		return errors.New("the server does not run")
	}
	return syscall.Kill(pid, sig)
}

// PluginPIDs are the processes of the plugins of a server that have a name.
func (s *Server) PluginPIDs(name string) []int {
	parent := s.proc.pid()
	if parent == 0 {
		return nil
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	var pids []int
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		// pid (comm) state ppid ...; comm may hold anything.
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		dir := filepath.Dir(stat)
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		program, _, _ := strings.Cut(string(args), "\x00")
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && strings.HasPrefix(filepath.Base(program), name) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}
