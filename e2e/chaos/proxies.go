// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// proxies are a network on this machine's loopback. A front stands before each
// address at which a node listens, and before whatever listens for the nodes;
// the nodes and their clients know no other address. Each connection to a front
// is a flow. Nothing passes through one whose link is cut, not even that an end
// has gone: its bytes wait where they are, in the buffers of the kernel, and
// pass when it is mended, as what TCP sends again would.
type proxies struct {
	t      testing.TB
	origin origin
	nodes  [][2]*front
	tell   sync.Once // of somebody who is not known

	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup // every goroutine

	mu      sync.Mutex
	changed sync.Cond // something was cut or mended, or all is closed
	closed  bool
	dirs    []string // where each node runs
	fronts  []*front
	flows   map[*flow]bool
	links   [][2]bool // of each node, whether it is cut
	pairs   map[[2]int]bool
}

// origin tells which node has the other end of a connection: the number of the
// folder that it runs in.
type origin func(conn net.Conn, dirs []string) (node int, err error)

// front is where others reach a node by one of its links, or what is outside.
type front struct {
	listener   *net.TCPListener
	node, link int
	behind     string // the address that it stands before
}

// outside is where clients and the receiver are. It is not a node.
const outside = -1

// The ends of a flow.
const (
	dialed = 0 // of whoever has connected
	served = 1 // of what is behind the front
)

// flow is one connection through a front.
type flow struct {
	from int
	to   *front
	ends [2]*net.TCPConn
	// writing is held while something is written to an end.
	writing [2]sync.Mutex
}

func newProxies(t testing.TB, nodes int) (*proxies, error) {
	t.Helper()
	if err := tryOwner(); err != nil {
		return nil, err
	}
	return startProxies(t, nodes, owner)
}

func startProxies(t testing.TB, nodes int, origin origin) (*proxies, error) {
	t.Helper()
	p := &proxies{t: t, origin: origin, dirs: make([]string, nodes), links: make([][2]bool, nodes), flows: map[*flow]bool{}, pairs: map[[2]int]bool{}}
	p.changed.L = &p.mu
	// Nodes are still reached while the test cleans up.
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(p.close)
	for node := range nodes {
		var fronts [2]*front
		for link := range fronts {
			var err error
			if fronts[link], err = p.front(node, link, ""); err != nil {
				return nil, err
			}
		}
		p.nodes = append(p.nodes, fronts)
	}
	return p, nil
}

func (p *proxies) String() string { return "TCP proxies" }

func (p *proxies) place(node int) harness.Place {
	return harness.Place{Front: func(s *harness.Server, api, cluster string) (frontAPI, frontCluster string) {
		fronts := p.nodes[node]
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dirs[node] = s.Dir
		fronts[toClients].behind, fronts[toNodes].behind = api, cluster
		return fronts[toClients].addr(), fronts[toNodes].addr()
	}}
}

func (p *proxies) listen() (l net.Listener, addr string, err error) {
	if l, err = listenLoopback(); err != nil {
		return nil, "", err
	}
	f, err := p.front(outside, toClients, l.Addr().String())
	if err != nil {
		return nil, "", errors.Join(err, l.Close())
	}
	return l, f.addr(), nil
}

func (p *proxies) setLink(node, link int, up bool) error {
	p.change(func() { p.links[node][link] = !up })
	return nil
}

func (p *proxies) setPair(a, b int, up bool) error {
	p.change(func() { p.pairs[pair(a, b)] = !up })
	return nil
}

// change cuts or mends something. When it returns, nothing passes that was cut.
func (p *proxies) change(what func()) {
	p.mu.Lock()
	what()
	var cut []*flow
	for f := range p.flows {
		interrupt := time.Time{}
		if !p.passes(f) {
			cut, interrupt = append(cut, f), time.Unix(1, 0)
		}
		for _, end := range f.ends {
			if end != nil {
				_ = end.SetWriteDeadline(interrupt) // an error says that it is closed
			}
		}
	}
	p.changed.Broadcast()
	p.mu.Unlock()
	for _, f := range cut {
		for end := range f.writing {
			f.writing[end].Lock()
			f.writing[end].Unlock() //nolint:staticcheck // what was being written is over now
		}
	}
}

func pair(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

// passes tells whether nothing that is cut is on the way of a flow; p.mu is held.
func (p *proxies) passes(f *flow) bool {
	from, to, link := f.from, f.to.node, f.to.link
	if from == to {
		return true // a node reaches itself
	}
	for _, node := range []int{from, to} {
		if node != outside && p.links[node][link] {
			return false
		}
	}
	return link != toNodes || !p.pairs[pair(from, to)]
}

func listenLoopback() (*net.TCPListener, error) {
	return net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
}

func (f *front) addr() string { return f.listener.Addr().String() }

// front begins to listen before an address; with "" there is nobody yet.
func (p *proxies) front(node, link int, behind string) (*front, error) {
	l, err := listenLoopback()
	if err != nil {
		return nil, err
	}
	f := &front{listener: l, node: node, link: link, behind: behind}
	p.mu.Lock()
	p.fronts = append(p.fronts, f)
	p.mu.Unlock()
	p.all.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			switch {
			case err == nil:
				p.all.Go(func() { p.carry(f, conn) })
			case errors.Is(err, net.ErrClosed):
				return
			default: // too many files are open
				pause(p.ctx, 10*time.Millisecond)
			}
		}
	})
	return f, nil
}

// carry serves one connection to a front, until it has ended.
func (p *proxies) carry(to *front, conn *net.TCPConn) {
	defer func() { _ = conn.Close() }()
	from, err := p.from(conn, to)
	if err != nil {
		if errors.Is(err, errUnknownOwner) {
			p.tell.Do(func() { p.t.Logf("a proxy hangs up on somebody: %v", err) })
		}
		_ = reset(conn)
		return
	}
	f := &flow{from: from, to: to}
	f.ends[dialed] = conn
	if !p.begin(f) {
		return
	}
	defer p.end(f)
	behind, ok := p.await(f)
	if !ok {
		return
	}
	var d net.Dialer
	far, err := d.DialContext(p.ctx, "tcp4", behind)
	server, ok := far.(*net.TCPConn)
	if err != nil || !ok {
		_ = p.do(f, dialed, reset)
		return
	}
	defer func() { _ = server.Close() }()
	p.mu.Lock()
	f.ends[served] = server
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	var both sync.WaitGroup
	for end := range f.ends {
		both.Go(func() { p.pump(f, end) })
	}
	both.Wait()
}

// from tells who has connected to a front.
func (p *proxies) from(conn net.Conn, to *front) (int, error) {
	if to.node != outside && to.link == toClients {
		// A node asks another one's API only to join it, before anything is cut.
		return outside, nil
	}
	p.mu.Lock()
	dirs := slices.Clone(p.dirs)
	p.mu.Unlock()
	return p.origin(conn, dirs)
}

func (p *proxies) begin(f *flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.flows[f] = true
	}
	return !p.closed
}

func (p *proxies) end(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flows, f)
}

// await waits until a flow passes, and tells what is behind its front; it is not
// ok if all is closed.
func (p *proxies) await(f *flow) (behind string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && !p.passes(f) {
		p.changed.Wait()
	}
	return f.to.behind, !p.closed
}

// pump passes on to one end of a flow what comes from the other, until that one
// ends.
func (p *proxies) pump(f *flow, to int) {
	from := f.ends[1-to]
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if p.pass(f, to, buffer[:n]) != nil {
			_ = p.do(f, 1-to, reset)
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = p.do(f, to, (*net.TCPConn).CloseWrite) // an error says that it is closed
			return
		case err != nil:
			_ = p.do(f, to, reset)
			return
		}
	}
}

// pass writes bytes to an end of a flow, while it passes. An error says that the
// end has gone.
func (p *proxies) pass(f *flow, to int, bytes []byte) error {
	for len(bytes) > 0 {
		err := p.do(f, to, func(end *net.TCPConn) error {
			n, err := end.Write(bytes)
			bytes = bytes[n:]
			return err
		})
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // it was cut meanwhile
			return err
		}
	}
	return nil
}

// do does something to an end of a flow as soon as that passes.
func (p *proxies) do(f *flow, to int, what func(end *net.TCPConn) error) error {
	for {
		if _, ok := p.await(f); !ok {
			return net.ErrClosed
		}
		if done, err := p.try(f, to, what); done {
			return err
		}
	}
}

func (p *proxies) try(f *flow, to int, what func(end *net.TCPConn) error) (done bool, err error) {
	f.writing[to].Lock()
	defer f.writing[to].Unlock()
	p.mu.Lock()
	passes := p.passes(f)
	p.mu.Unlock()
	if !passes {
		return false, nil
	}
	return true, what(f.ends[to])
}

// reset closes a connection as that of a process that was killed is, or one that
// nobody accepts.
func reset(conn *net.TCPConn) error {
	_ = conn.SetLinger(0) // an error says that it is closed
	return conn.Close()
}

// close ends all flows and waits for every goroutine.
func (p *proxies) close() {
	p.cancel()
	p.mu.Lock()
	p.closed = true
	for _, f := range p.fronts {
		_ = f.listener.Close()
	}
	for f := range p.flows {
		for _, end := range f.ends {
			if end != nil {
				_ = end.Close()
			}
		}
	}
	p.changed.Broadcast()
	p.mu.Unlock()
	p.all.Wait()
}
