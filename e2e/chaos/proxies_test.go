// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

const (
	// soon is more than what is to happen takes, on a machine that is very busy.
	soon = 30 * time.Second
	// meanwhile is how long is waited for what is not to happen.
	meanwhile = 100 * time.Millisecond
)

// lab has proxies before nodes that only echo, or do what a test says.
type lab struct {
	t     *testing.T
	p     *proxies
	nodes []*echo
	out   *echo // what listens for the nodes
	where []string

	mu    sync.Mutex
	known sync.Cond
	who   map[string]int // who has dialed, by its address
}

// echo answers what it gets, at an address that it keeps.
type echo struct {
	addr string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	served   int
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, who: map[string]int{}}
	l.known.L = &l.mu
	p, err := startProxies(t, 3, func(conn net.Conn, _ []string) (int, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for {
			if who, ok := l.who[conn.RemoteAddr().String()]; ok {
				return who, nil
			}
			l.known.Wait() // until it is told, just after it has dialed
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	l.p = p
	for node := range 3 {
		api, cluster := startEcho(t, harness.FreeAddr(t)), startEcho(t, harness.FreeAddr(t))
		frontAPI, frontCluster := p.place(node).Front(&harness.Server{}, "127.0.0.1:1", "127.0.0.1:2")
		// Its ports were taken, so it listens at others. Those of its fronts stay.
		if a, b := p.place(node).Front(&harness.Server{}, api.addr, cluster.addr); a != frontAPI || b != frontCluster {
			t.Fatal("a node has to be reached elsewhere than before")
		}
		l.nodes, l.where = append(l.nodes, api, cluster), append(l.where, frontAPI, frontCluster)
	}
	listener, addr, err := p.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.out = &echo{}
	l.out.serve(listener)
	t.Cleanup(l.out.stop)
	l.where = append(l.where, addr)
	return l
}

// at is what a node has on one of its links; outside is what listens for nodes.
func (l *lab) at(node, link int) (behind *echo, front string) {
	if node == outside {
		return l.out, l.where[6]
	}
	return l.nodes[2*node+link], l.where[2*node+link]
}

// dial connects to a front as somebody.
func (l *lab) dial(as, node, link int) *net.TCPConn {
	l.t.Helper()
	_, front := l.at(node, link)
	addr, err := net.ResolveTCPAddr("tcp4", front)
	must(l.t, err)
	conn, err := net.DialTCP("tcp4", nil, addr)
	must(l.t, err)
	l.mu.Lock()
	l.who[conn.LocalAddr().String()] = as
	l.mu.Unlock()
	l.known.Broadcast()
	l.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func startEcho(t testing.TB, addr string) *echo {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{}
	e.serve(l)
	t.Cleanup(e.stop)
	return e
}

func (e *echo) serve(l net.Listener) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listener, e.addr = l, l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.conns = append(e.conns, conn)
			e.served++
			e.mu.Unlock()
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
}

// stop is what happens when a process is killed.
func (e *echo) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	_ = e.listener.Close()
	for _, conn := range e.conns {
		_ = conn.Close()
	}
	e.conns = nil
}

func (e *echo) connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.served
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// get expects to read a text.
func get(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(soon))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q and %v, want %q", got[:n], err, want)
	}
}

// silent expects that nothing comes, not even the end.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(meanwhile))
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %d bytes and %v through what is cut", n, err)
	}
}

// ended expects the end of a connection, of whatever kind.
func ended(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(soon))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %d bytes and %v, want the end", n, err)
	}
}

// hangsUp expects that who connects is hung up on at once.
func hangsUp(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		return // so soon
	}
	defer func() { _ = conn.Close() }()
	ended(t, conn)
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) flows() int {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	return len(l.p.flows)
}

// hasFlows waits until there are so many flows.
func (l *lab) hasFlows(want int) {
	l.t.Helper()
	harness.Eventually(l.t, soon, time.Millisecond, func() error {
		if n := l.flows(); n != want {
			return fmt.Errorf("%d flows, want %d", n, want)
		}
		return nil
	})
}

func TestWhatIsCutPassesWhenItIsMended(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	conn := l.dial(0, 1, toNodes)
	send(t, conn, "before")
	get(t, conn, "before")

	must(t, l.p.setLink(1, toNodes, false))
	send(t, conn, "during")
	silent(t, conn)
	later := l.dial(2, 1, toNodes)
	send(t, later, "later")
	silent(t, later)
	behind, _ := l.at(1, toNodes)
	if n := behind.connections(); n != 1 {
		t.Errorf("a node that is cut off has got %d connections, want the one from before", n)
	}

	must(t, l.p.setLink(1, toNodes, true))
	send(t, conn, " and after")
	get(t, conn, "during and after")
	get(t, later, "later")
}

func TestWhichWaysAreCut(t *testing.T) {
	t.Parallel()
	type route struct{ from, to, link int }
	routes := []route{
		{outside, 0, toClients}, {outside, 1, toClients}, {0, outside, toClients}, {1, outside, toClients},
		{0, 1, toNodes}, {1, 0, toNodes}, {0, 2, toNodes}, {2, 1, toNodes}, {0, 0, toNodes},
	}
	for _, test := range []struct {
		name string
		set  func(p *proxies, up bool) error
		cut  []route
	}{
		{"nothing", func(*proxies, bool) error { return nil }, nil},
		{"node 0 from clients", func(p *proxies, up bool) error { return p.setLink(0, toClients, up) }, []route{{outside, 0, toClients}, {0, outside, toClients}}},
		{"node 0 from nodes", func(p *proxies, up bool) error { return p.setLink(0, toNodes, up) }, []route{{0, 1, toNodes}, {1, 0, toNodes}, {0, 2, toNodes}}},
		{"nodes 0 and 1", func(p *proxies, up bool) error { return p.setPair(0, 1, up) }, []route{{0, 1, toNodes}, {1, 0, toNodes}}},
		{"nodes 1 and 0", func(p *proxies, up bool) error { return p.setPair(1, 0, up) }, []route{{0, 1, toNodes}, {1, 0, toNodes}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			conns := map[route]net.Conn{}
			for _, r := range routes {
				conns[r] = l.dial(r.from, r.to, r.link)
				send(t, conns[r], "1")
				get(t, conns[r], "1")
			}
			must(t, test.set(l.p, false))
			for _, r := range routes {
				fresh := l.dial(r.from, r.to, r.link)
				send(t, conns[r], "2")
				send(t, fresh, "3")
				if slices.Contains(test.cut, r) {
					silent(t, conns[r])
					silent(t, fresh)
				} else {
					get(t, conns[r], "2")
					get(t, fresh, "3")
				}
			}
			must(t, test.set(l.p, true))
			for _, r := range routes {
				if slices.Contains(test.cut, r) {
					get(t, conns[r], "2")
				}
				send(t, conns[r], "4")
				get(t, conns[r], "4")
			}
		})
	}
}

func TestAFrontOutlivesWhatIsBehindIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	behind, front := l.at(1, toClients)
	conn := l.dial(outside, 1, toClients)
	send(t, conn, "1")
	get(t, conn, "1")
	behind.stop()
	ended(t, conn)
	must(t, conn.Close())
	hangsUp(t, front)
	l.hasFlows(0)

	startEcho(t, behind.addr)
	conn = l.dial(outside, 1, toClients)
	send(t, conn, "2")
	get(t, conn, "2")
}

func TestAnEndThatGoesIsNotNoticedThroughACut(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	behind, _ := l.at(1, toNodes)
	stays, goes, resets := l.dial(0, 1, toNodes), l.dial(0, 1, toNodes), l.dial(0, 1, toNodes)
	for _, conn := range []net.Conn{stays, goes, resets} {
		send(t, conn, "1")
		get(t, conn, "1")
	}
	must(t, l.p.setLink(0, toNodes, false))
	send(t, goes, "2")
	must(t, goes.Close())
	must(t, reset(resets))
	isNew := l.dial(0, 1, toNodes)
	send(t, isNew, "3")
	must(t, isNew.Close())
	behind.stop()
	silent(t, stays)
	silent(t, l.dial(0, 1, toNodes)) // nor that nobody listens
	must(t, l.p.setLink(0, toNodes, true))
	ended(t, stays)
	must(t, stays.Close())
	l.hasFlows(0)
}

func TestWhoHalfClosesStillGetsTheAnswer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	conn := l.dial(0, 1, toNodes)
	send(t, conn, "all")
	must(t, conn.CloseWrite())
	get(t, conn, "all")
	ended(t, conn)
	l.hasFlows(0)
}

// Who does not read is not read from, so little is held; a cut takes hold at once
// of what waits, and nothing of it is lost or comes twice.
func TestACutInterruptsWhatIsWaiting(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = listener.Close() }()
	l.p.place(1).Front(&harness.Server{}, listener.Addr().String(), "")
	conn := l.dial(outside, 1, toClients)
	behind, err := listener.Accept()
	must(t, err)
	defer func() { _ = behind.Close() }()

	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7 >> 3)
	}
	sent := 0
	for sent < 256<<20 {
		_ = conn.SetWriteDeadline(time.Now().Add(20 * meanwhile))
		at := sent % len(block)
		n, err := conn.Write(block[at:])
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
	}
	if sent >= 256<<20 {
		t.Fatalf("%d bytes are held that nobody reads", sent)
	}
	for range 3 {
		must(t, l.p.setLink(1, toClients, false))
		must(t, l.p.setLink(1, toClients, true))
	}
	must(t, l.p.setLink(1, toClients, false))
	must(t, conn.CloseWrite())

	// What has passed before can be read, and no more; then comes the rest.
	got, buffer, mended := 0, make([]byte, 1<<16), false
	for {
		wait := meanwhile
		if mended {
			wait = soon
		}
		_ = behind.SetReadDeadline(time.Now().Add(wait))
		n, err := behind.Read(buffer)
		for rest := buffer[:n]; len(rest) > 0; {
			at := got % len(block)
			size := min(len(rest), len(block)-at)
			if !bytes.Equal(rest[:size], block[at:at+size]) {
				t.Fatalf("other bytes came than were sent, after %d of %d", got, sent)
			}
			got, rest = got+size, rest[size:]
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !mended:
			if got == sent {
				t.Fatal("all has passed through what is cut")
			}
			must(t, l.p.setLink(1, toClients, true))
			mended = true
		case errors.Is(err, io.EOF) && mended:
			if got != sent {
				t.Fatalf("%d bytes came of %d", got, sent)
			}
			return
		case err != nil:
			t.Fatalf("after %d bytes of %d: %v", got, sent, err)
		}
	}
}

func TestWhoIsUnknownIsHungUpOn(t *testing.T) {
	t.Parallel()
	p, err := startProxies(t, 1, func(net.Conn, []string) (int, error) { return 0, errUnknownOwner })
	must(t, err)
	behind := startEcho(t, harness.FreeAddr(t))
	client, nodes := p.place(0).Front(&harness.Server{}, behind.addr, behind.addr)
	hangsUp(t, nodes)
	conn, err := net.Dial("tcp4", client)
	must(t, err)
	defer func() { _ = conn.Close() }()
	send(t, conn, "a client")
	get(t, conn, "a client")
}

func TestProxiesLeaveNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	idle, cut := l.dial(0, 1, toNodes), l.dial(0, 2, toNodes)
	for _, conn := range []net.Conn{idle, cut} {
		send(t, conn, "1")
		get(t, conn, "1")
	}
	must(t, l.p.setLink(2, toNodes, false))
	send(t, cut, "2")
	waiting := l.dial(1, 2, toNodes)
	l.hasFlows(3)
	l.p.close() // returns when every goroutine has
	for _, conn := range []net.Conn{idle, cut, waiting} {
		ended(t, conn)
	}
	if n := l.flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
	for _, addr := range l.where {
		if conn, err := net.Dial("tcp4", addr); err == nil {
			_ = conn.Close()
			t.Errorf("%s still listens", addr)
		}
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/net/tcp"); err != nil {
		t.Skipf("SKIP: no Linux: %v", err)
	}
	here, err := os.Getwd()
	must(t, err)
	l, err := listenLoopback()
	must(t, err)
	defer func() { _ = l.Close() }()
	near, err := net.Dial("tcp4", l.Addr().String())
	must(t, err)
	far, err := l.Accept()
	must(t, err)
	defer func() { _ = far.Close() }()
	if number, err := owner(far, []string{"", t.TempDir(), here}); err != nil || number != 2 {
		t.Errorf("the owner is %d and %v, want 2", number, err)
	}
	if _, err := owner(far, []string{"", t.TempDir()}); !errors.Is(err, errUnknownOwner) {
		t.Errorf("nobody that is known: %v", err)
	}
	must(t, near.Close())
	harness.Eventually(t, soon, time.Millisecond, func() error {
		if _, err := owner(far, []string{here}); !errors.Is(err, errEndGone) {
			return fmt.Errorf("an end that has gone: %w", err)
		}
		return nil
	})
}

func TestTheReportNamesTheNetwork(t *testing.T) {
	t.Parallel()
	if text := (&Report{Network: (&proxies{}).String()}).Markdown(); !strings.Contains(text, "Partitions were made with TCP proxies.") {
		t.Error(text)
	}
	if text := (&Report{}).Markdown(); strings.Contains(text, "Partitions") {
		t.Error(text)
	}
}

// A real cluster behind proxies loses its leader to a partition, and is whole
// again when that is mended.
func TestProxiesPartitionACluster(t *testing.T) {
	t.Parallel()
	harness.Binary(t)
	p, err := newProxies(t, nodes)
	switch {
	case err == nil:
	case os.Getenv("APIKEYS_E2E_REQUIRE") == "1":
		t.Fatalf("there are no proxies: %v", err)
	default:
		t.Skipf("SKIP: this machine lacks what proxies need: %v", err)
	}
	places := make([]harness.Place, nodes)
	for i := range places {
		places[i] = p.place(i)
	}
	c := &partitioned{t: t, p: p, nodes: harness.StartCluster(t, nodes, harness.Options{Places: places, Patience: 2}).Nodes}
	leader := c.whole()

	t.Logf("node %d leads, and is cut from the other nodes", leader)
	must(t, p.setLink(leader, toNodes, false))
	c.anotherLeads(leader)
	c.eventually("what was cut off knows it, and answers its clients", func() error {
		if node := c.nodes[leader]; node.Active() || !node.Serving() {
			return fmt.Errorf("node %d leads: %v, serves: %v", leader, node.Active(), node.Serving())
		}
		return nil
	})
	c.eventually("nothing reaches the leader through it", func() error { return c.notThrough(leader) })
	c.eventually("all is well through the others", func() error {
		return errors.Join(c.through((leader+1)%nodes), c.through((leader+2)%nodes))
	})
	must(t, p.setLink(leader, toNodes, true))
	leader = c.whole()

	peer := (leader + 1) % nodes
	t.Logf("node %d leads, and is cut from node %d", leader, peer)
	must(t, p.setPair(leader, peer, false))
	c.eventually("nothing reaches the leader through its peer", func() error { return c.notThrough(peer) })
	c.eventually("all is well through the third", func() error { return c.through((leader + 2) % nodes) })
	must(t, p.setPair(leader, peer, true))
	leader = c.whole()

	t.Logf("node %d leads, and is cut from all", leader)
	must(t, errors.Join(p.setLink(leader, toNodes, false), p.setLink(leader, toClients, false)))
	if err := c.through(leader); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("through a node that is cut from its clients: %v", err)
	}
	c.anotherLeads(leader)
	must(t, errors.Join(p.setLink(leader, toNodes, true), p.setLink(leader, toClients, true)))
	c.whole()
}

// partitioned is a cluster behind proxies.
type partitioned struct {
	t     *testing.T
	p     *proxies
	nodes []*harness.Server
}

func (c *partitioned) eventually(what string, check func() error) {
	c.t.Helper()
	harness.Eventually(c.t, time.Minute, 100*time.Millisecond, func() error {
		if err := check(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

// through asks for what only the leader answers.
func (c *partitioned) through(node int) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Second)
	defer cancel()
	return c.nodes[node].Client.Sys().PutPolicyWithContext(ctx, "through", fmt.Sprintf(`path "node/%d" { capabilities = ["read"] }`, node))
}

func (c *partitioned) notThrough(node int) error {
	if c.through(node) == nil {
		return fmt.Errorf("the leader answers through node %d", node)
	}
	return nil
}

// anotherLeads waits until another node leads than this one.
func (c *partitioned) anotherLeads(than int) {
	c.t.Helper()
	c.eventually("another node leads", func() error {
		for i, node := range c.nodes {
			if i != than && node.Active() {
				return nil
			}
		}
		return fmt.Errorf("none but node %d", than)
	})
}

// whole waits until one node leads, and answers through all.
func (c *partitioned) whole() (leader int) {
	c.t.Helper()
	c.eventually("the cluster is whole", func() error {
		leaders := 0
		for i, node := range c.nodes {
			if node.Active() {
				leaders, leader = leaders+1, i
			}
			if err := c.through(i); err != nil {
				return fmt.Errorf("through node %d: %w", i, err)
			}
		}
		if leaders != 1 {
			return fmt.Errorf("%d nodes lead", leaders)
		}
		return nil
	})
	return leader
}
