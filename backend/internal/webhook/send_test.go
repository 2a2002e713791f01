// SPDX-License-Identifier: MPL-2.0

package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func (r *rig) try(name string) Attempt {
	r.t.Helper()
	a, err := r.Test(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func TestMessagesFollowTheSpecification(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, nil)
	h := r.hook("ops", rc.URL+"/in?a=b")
	first := h.Secrets[0].Value
	second, err := NewSecret(r.rand)
	if err != nil {
		t.Fatal(err)
	}
	r.update("ops", func(h *Hook) { h.SetSecret(second, r.clock.Now(), time.Hour) })
	r.enqueue(event("k1", 1))
	r.quiet()
	r.clock.Advance(time.Hour)
	r.enqueue(event("k1", 2))
	r.quiet()
	got := rc.requests()
	if len(got) != 2 {
		t.Fatalf("%d requests", len(got))
	}
	q := got[0]
	if q.id != "k1_1" || q.contentType != "application/json" || q.timestamp != strconv.FormatInt(start.Unix(), 10) {
		t.Errorf("headers: %q, %q, %q", q.id, q.contentType, q.timestamp)
	}
	if q.message.Type != "version.activated" || !q.message.Timestamp.Equal(start) || !strings.HasPrefix(string(q.body), `{"type":"version.activated","timestamp":"2026-03-01T12:00:00Z","data":{`) {
		t.Errorf("body: %s", q.body)
	}
	if d := q.message.Data; d["key_id"] != "k1" || d["name"] != "name-of-k1" || d["role"] != "billing" || d["version"] != 1.0 {
		t.Errorf("data: %v", d)
	}
	if len(strings.Fields(q.signature)) != 2 || q.verify(first) != nil || q.verify(second) != nil {
		t.Errorf("inside the overlap: %v, %v, %q", q.verify(first), q.verify(second), q.signature)
	}
	if later := got[1]; later.verify(first) == nil || later.verify(second) != nil {
		t.Errorf("after the overlap: %v, %v", later.verify(first), later.verify(second))
	}
	q.body = append(q.body, ' ')
	if q.verify(first) == nil {
		t.Error("a changed body is accepted")
	}
	log := r.status("ops").Log
	if len(log) != 2 || log[0].EventID != "k1_2" || log[0].Status != 200 || log[0].Number != 1 || !log[0].Delivered() || log[1].EventType != "version.activated" {
		t.Errorf("log: %+v", log)
	}
}

func TestATestIsSentAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rc := newReceiver(t, r.clock, nil)
	h := r.hook("ops", rc.URL, func(h *Hook) { h.Enabled = false })
	if a := r.try("ops"); !a.Delivered() || a.Status != 200 || a.EventType != "webhook.test" {
		t.Errorf("%+v", a)
	}
	if q := rc.requests()[0]; q.verify(h.Secrets[0].Value) != nil || q.message.Type != "webhook.test" || q.message.Data["webhook"] != "ops" || strings.Contains(q.id, ".") {
		t.Errorf("%s %s", q.id, q.body)
	}
	if log := r.status("ops").Log; len(log) != 1 || log[0].Number != 0 {
		t.Errorf("log: %+v", log)
	}
	if _, err := r.Test(t.Context(), "none"); !errors.Is(err, ErrNoHook) {
		t.Errorf("no hook: %v", err)
	}
}

// answers that a receiver can give, and what they count as.
func TestAnswers(t *testing.T) {
	t.Parallel()
	hijack := func(w http.ResponseWriter, text string) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = conn.Write([]byte(text))
		_ = conn.Close()
	}
	var redirected atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { redirected.Add(1) }))
	t.Cleanup(inside.Close)
	var endless atomic.Int64
	chunk := []byte(long(4096))
	for name, test := range map[string]struct {
		answer  http.HandlerFunc
		failure string
		status  int
	}{
		"200": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }, "", 200},
		"204": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "", 204},
		"299": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }, "", 299},
		"304": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, FailureRedirect, 304},
		"400": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(400) }, FailureStatus, 400},
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, FailureStatus, 500},
		"600": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(600) }, FailureStatus, 600},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, inside.URL, http.StatusTemporaryRedirect)
		}, FailureRedirect, 307},
		"a redirect that asks for GET": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, http.StatusSeeOther) }, FailureRedirect, 303},
		"an endless body": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				n, err := w.Write(chunk)
				if endless.Add(int64(n)); err != nil {
					return
				}
			}
		}, "", 200},
		"1 GB announced": {func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\nx")
		}, "", 200},
		"a giant header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", long(1<<20)) }, FailureHeader, 0},
		"many headers": {func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 10000)+"\r\n")
		}, FailureHeader, 0},
		"many interim answers": {func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, strings.Repeat("HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n", 5000)+"HTTP/1.1 200 OK\r\n\r\n")
		}, FailureHeader, 0},
		"the end after the header": {func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		}, "", 200},
		"the end in the header": {func(w http.ResponseWriter, _ *http.Request) { hijack(w, "HTTP/1.1 200 OK\r\nContent-Le") }, FailureAnswer, 0},
		"the end":               {func(w http.ResponseWriter, _ *http.Request) { hijack(w, "") }, FailureLost, 0},
		"something else":        {func(w http.ResponseWriter, _ *http.Request) { hijack(w, "SSH-2.0-OpenSSH_9.2\r\n") }, FailureAnswer, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			rc := newReceiver(t, r.clock, func(_ int, _ request, w http.ResponseWriter, q *http.Request) { test.answer(w, q) })
			r.hook("ops", rc.URL)
			a := r.try("ops")
			if a.Failure != test.failure || a.Status != test.status {
				t.Errorf("%q, status %d", a.Failure, a.Status)
			}
			if n := len(rc.requests()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
	t.Cleanup(func() {
		if redirected.Load() != 0 {
			t.Error("a redirect was followed")
		}
		if n := endless.Load(); n > 64<<20 {
			t.Errorf("%d bytes of an endless body were taken", n)
		}
	})
}

func TestNoConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	r.hook("ops", "http://"+address)
	if a := r.try("ops"); a.Failure != FailureConnect {
		t.Errorf("%q", a.Failure)
	}
}

// A receiver that accepts and says nothing, or never ends its header, costs 15
// seconds.
func TestASlowReceiverTimesOut(t *testing.T) {
	t.Parallel()
	for _, begin := range []string{"", "HTTP/1.1 200 OK\r\nX: "} {
		log := held(t, func(w http.ResponseWriter, q *http.Request, there func()) {
			if begin != "" {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					panic(err)
				}
				defer func() { _ = conn.Close() }()
				_, _ = conn.Write([]byte(begin))
				there()
				_, _ = conn.Read(make([]byte, 1)) // until the client gives up
				return
			}
			there()
			<-q.Context().Done()
		})
		if len(log) != 1 || log[0].Failure != FailureTimeout || log[0].Duration != attemptTimeout {
			t.Errorf("after %q: %+v", begin, log)
		}
	}
}

// TestAnAnswerThatNeverEndsHoldsNothingUp for longer than any attempt. Whether
// its header has come by then, and so the event, is up to the network.
func TestAnAnswerThatNeverEndsHoldsNothingUp(t *testing.T) {
	t.Parallel()
	log := held(t, func(w http.ResponseWriter, q *http.Request, there func()) {
		_, _ = w.Write([]byte("a little"))
		_ = http.NewResponseController(w).Flush()
		there()
		<-q.Context().Done()
	})
	if len(log) != 1 || log[0].Duration != attemptTimeout || !log[0].Delivered() && log[0].Failure != FailureTimeout {
		t.Errorf("%+v", log)
	}
}

// held is the log of a delivery to a receiver that answers and holds on. All the
// time of an attempt passes once it is there.
func held(t *testing.T, answer func(w http.ResponseWriter, q *http.Request, there func())) []Attempt {
	t.Helper()
	r := newRig(t)
	there := make(chan struct{})
	rc := newReceiver(t, r.clock, func(_ int, _ request, w http.ResponseWriter, q *http.Request) {
		answer(w, q, func() { close(there) })
	})
	r.hook("ops", rc.URL)
	r.enqueue(event("k1", 1))
	<-there
	r.clock.Advance(attemptTimeout)
	r.quiet()
	return r.status("ops").Log
}

// names is a Resolver that gives one answer after the other, the last one for
// ever.
type names struct {
	mu      sync.Mutex
	answers map[string][][]string
	asked   int
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	answers := n.answers[host]
	if len(answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(answers) > 1 {
		n.answers[host] = answers[1:]
	}
	found := make([]netip.Addr, 0, len(answers[0]))
	for _, text := range answers[0] {
		found = append(found, netip.MustParseAddr(text))
	}
	return found, nil
}

// internet is a dialler that leads every address to one server, and notes it.
type internet struct {
	mu      sync.Mutex
	to      string
	dialled []string
}

func (i *internet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	i.mu.Lock()
	i.dialled = append(i.dialled, address)
	i.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, i.to)
}

func (i *internet) addresses() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.dialled...)
}

// secured returns a rig whose names and addresses are made up, and a receiver
// with a certificate for example.com.
func secured(t *testing.T, answers map[string][][]string, configure func(*tls.Config)) (*rig, *receiver, *internet) {
	t.Helper()
	net := &internet{}
	roots := x509.NewCertPool()
	r := newRig(t, func(o *Options) {
		o.Resolver, o.Dial, o.RootCAs = &names{answers: answers}, net.dial, roots
	})
	rc := newHandler(r.clock, nil)
	rc.Server = httptest.NewUnstartedServer(rc)
	rc.Config.ErrorLog = log.New(io.Discard, "", 0)
	rc.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if configure != nil {
		configure(rc.TLS)
	}
	rc.StartTLS()
	t.Cleanup(rc.Close)
	roots.AddCert(rc.Certificate())
	net.to = rc.Listener.Addr().String()
	return r, rc, net
}

func public443(h *Hook) { h.URL, h.AllowPrivate = "https://example.com/in", false }

func TestTheAddressThatWasJudgedIsDialled(t *testing.T) {
	t.Parallel()
	r, rc, net := secured(t, map[string][][]string{"example.com": {{"93.184.216.34"}, {"169.254.169.254"}}}, nil)
	r.hook("ops", "", public443)
	if a := r.try("ops"); !a.Delivered() {
		t.Fatalf("first: %+v", a)
	}
	if got := net.addresses(); len(got) != 1 || got[0] != "93.184.216.34:443" {
		t.Errorf("dialled %v", got)
	}
	// The connection that was judged may be used again; a new one is judged.
	r.sender.close()
	if a := r.try("ops"); a.Failure != FailureAddress || a.Status != 0 {
		t.Errorf("when the name leads elsewhere: %+v", a)
	}
	if got := net.addresses(); len(got) != 1 || len(rc.requests()) != 1 {
		t.Errorf("dialled %v, %d requests", got, len(rc.requests()))
	}
}

func TestPrivateAddressesAreNotDialled(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "0.0.0.0", "100.64.1.1"} {
		r, rc, net := secured(t, map[string][][]string{"example.com": {{address}}}, nil)
		r.hook("ops", "", public443)
		if a := r.try("ops"); a.Failure != FailureAddress {
			t.Errorf("%s: %+v", address, a)
		}
		if len(net.addresses()) != 0 || len(rc.requests()) != 0 {
			t.Errorf("%s was dialled", address)
		}
	}
	// Of a name with both kinds, only the public ones are.
	r, _, net := secured(t, map[string][][]string{"example.com": {{"10.0.0.1", "93.184.216.34", "::1"}}}, nil)
	r.hook("ops", "", public443)
	if a := r.try("ops"); !a.Delivered() || len(net.addresses()) != 1 || net.addresses()[0] != "93.184.216.34:443" {
		t.Errorf("both kinds: %+v, dialled %v", a, net.addresses())
	}
	// An address that was stored by an older plugin, or under allow_private.
	r, _, net = secured(t, nil, nil)
	r.hook("ops", "https://127.0.0.1/")
	r.queue("ops").note(func(h *Hook) { h.AllowPrivate = false })
	if a := r.try("ops"); a.Failure != FailureAddress || len(net.addresses()) != 0 {
		t.Errorf("a literal address: %+v", a)
	}
}

// The dialler of the machine judges once more what the kernel connects to.
func TestTheDiallerRefusesPrivateAddressesItself(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	g := newGuard(nil, nil, false)
	if conn, err := g.dial(t.Context(), "tcp", address); !errors.Is(err, errAddress) {
		t.Errorf("%v, %v", conn, err)
	}
	conn, err := newGuard(nil, nil, true).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

// A connection of a hook that may reach private addresses is of no use to one
// that may not.
func TestConnectionsAreNotSharedAcrossTheGuard(t *testing.T) {
	t.Parallel()
	r, rc, _ := secured(t, map[string][][]string{"example.com": {{"10.0.0.1"}}}, nil)
	r.hook("inside", "https://example.com/in")
	r.hook("outside", "", public443)
	if a := r.try("inside"); !a.Delivered() {
		t.Fatalf("%+v", a)
	}
	if a := r.try("outside"); a.Failure != FailureAddress || len(rc.requests()) != 1 {
		t.Errorf("%+v", a)
	}
}

func TestUnknownNames(t *testing.T) {
	t.Parallel()
	r, _, _ := secured(t, nil, nil)
	r.hook("ops", "", public443)
	if a := r.try("ops"); a.Failure != FailureDNS {
		t.Errorf("%+v", a)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	known := map[string][][]string{"example.com": {{"93.184.216.34"}}, "other.example": {{"93.184.216.34"}}}
	r, rc, _ := secured(t, known, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	r.hook("ops", "", public443)
	if a := r.try("ops"); a.Failure != FailureTLS || len(rc.requests()) != 0 {
		t.Errorf("TLS 1.1: %+v", a)
	}
	r, _, _ = secured(t, known, nil)
	r.hook("ops", "https://other.example/", func(h *Hook) { h.AllowPrivate = false })
	if a := r.try("ops"); a.Failure != FailureTLS {
		t.Errorf("a certificate of another name: %+v", a)
	}
	r, _, _ = secured(t, known, nil)
	r.hook("ops", "http://example.com/")
	if a := r.try("ops"); a.Delivered() || a.Status != 400 {
		t.Errorf("plain HTTP to a TLS server: %+v", a)
	}
	r, _, net := secured(t, known, nil)
	plain := newReceiver(t, r.clock, nil)
	net.to = plain.Listener.Addr().String()
	r.hook("ops", "", public443)
	if a := r.try("ops"); a.Failure != FailureTLS {
		t.Errorf("TLS to a plain server: %+v", a)
	}
}

func TestProxiesOfTheEnvironmentAreIgnored(t *testing.T) {
	asked := make(chan struct{}, 10)
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
	t.Cleanup(proxy.Close)
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "")
	net := &internet{}
	r := newRig(t, func(o *Options) {
		o.Resolver, o.Dial = &names{answers: map[string][][]string{"example.com": {{"93.184.216.34"}}}}, net.dial
	})
	rc := newReceiver(t, r.clock, nil)
	net.to = rc.Listener.Addr().String()
	r.hook("ops", "http://example.com/")
	if a := r.try("ops"); !a.Delivered() || len(asked) != 0 || len(rc.requests()) != 1 {
		t.Errorf("%+v, %d at the proxy", a, len(asked))
	}
}

func TestRetryAfterIsBounded(t *testing.T) {
	t.Parallel()
	for value, wait := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, "-5": 0, "x": 0, "99999999": maxRetryAfter, "99999999999999999999": 0, "4294967295": maxRetryAfter,
		start.Add(time.Minute).Format(http.TimeFormat): time.Minute, start.Add(-time.Minute).Format(http.TimeFormat): 0,
		start.Add(1000 * time.Hour).Format(http.TimeFormat): maxRetryAfter, "1.5": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, start); got != wait {
			t.Errorf("%q: %s", value, got)
		}
	}
}
