// SPDX-License-Identifier: MPL-2.0

package bench_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

const (
	// leastOfBare is the budget: requests per second of nginx with the gateway,
	// against nginx with a server that always says yes.
	leastOfBare = 0.8
	// nginxRounds are pairs of turns: many and short, so that whatever else the
	// machine does hits both.
	nginxRounds = 15
	nginxTurn   = "1s"
)

// BenchmarkNginxWithGateway loads nginx with the file of the docs twice: once
// with the gateway behind its auth_request, and once with a server that answers
// 204 whatever it is asked. What is behind nginx answers at once. Both run all
// the time, and take turns.
func BenchmarkNginxWithGateway(b *testing.B) {
	wrk := harness.Tool(b, "wrk", "on Debian: apt-get install wrk")
	nginx := harness.Tool(b, "nginx", "on Debian: apt-get install nginx")
	t := start(b)
	dir := harness.NewDir(b)
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}

	gateway, admin, bare := harness.FreeAddr(b), harness.FreeAddr(b), harness.FreeAddr(b)
	config := file("gateway.hcl", fmt.Sprintf(`
vault { address = %q }
listener "http" { address = %q }
listener "admin" { address = %q }
route "orders" {
  path    = "/v1/orders"
  methods = ["GET"]
  scopes  = ["orders:read"]
}`, t.addr, gateway, admin))
	harness.StartProgram(b, harness.ProgramOptions{
		Bin: harness.Apikeys(b), Args: []string{"gateway", "-config=" + config}, Env: []string{"VAULT_TOKEN=" + t.token}, Dir: dir,
		Ready: func() error { return answersOK("http://" + admin + "/-/ready") },
	})
	bareBin := filepath.Join(dir, "bare")
	build := exec.Command("go", "build", "-trimpath", "-o", bareBin, "./bare")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build ./bare: %v\n%s", err, out)
	}
	harness.StartProgram(b, harness.ProgramOptions{
		Bin: bareBin, Args: []string{bare}, Dir: dir, Ready: func() error { return answersOK("http://" + bare) },
	})

	withGateway, withBare, upstream := harness.FreeAddr(b), harness.FreeAddr(b), harness.FreeAddr(b)
	docs, err := os.ReadFile("../../docs/how-to/gateway/nginx.conf")
	if err != nil {
		b.Fatal(err)
	}
	fit := func(name, listen, auth string) string {
		content := strings.NewReplacer("127.0.0.1:8000", listen, "127.0.0.1:9180", auth, "127.0.0.1:8080", upstream,
			"apikeys_gateway", "auth_"+name, "upstream api ", "upstream api_"+name+" ", "http://api;", "http://api_"+name+";").Replace(string(docs))
		return file(name+".conf", content)
	}
	main := file("nginx-main.conf", fmt.Sprintf(`
daemon off;
pid nginx.pid;
worker_processes 2;
events { worker_connections 1024; }
http {
	access_log off;
	keepalive_requests 1000000;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server { listen %s; location / { empty_gif; } }
	include %s;
	include %s;
}`, upstream, fit("gateway", withGateway, gateway), fit("bare", withBare, bare)))
	harness.StartProgram(b, harness.ProgramOptions{
		Bin: nginx, Args: []string{"-p", dir, "-e", "stderr", "-c", main}, Dir: dir,
		Ready: func() error { return answersOK("http://" + upstream) },
	})

	run := func(addr string) float64 {
		b.Helper()
		out, err := exec.Command(wrk, "-t1", "-c32", "-d"+nginxTurn, "-H", "X-API-Key: "+t.keys[0], "http://"+addr+"/v1/orders/17").CombinedOutput()
		text := string(out)
		_, rest, found := strings.Cut(text, "Requests/sec:")
		var perSecond float64
		if _, scan := fmt.Sscan(rest, &perSecond); err != nil || !found || scan != nil || strings.Contains(text, "Non-2xx") || strings.Contains(text, "Socket errors") {
			b.Fatalf("wrk: %v\n%s", err, text)
		}
		return perSecond
	}
	run(withGateway) // both warm
	run(withBare)
	var ratios []float64
	for i := range nginxRounds {
		var ours, theirs float64
		if i%2 == 0 {
			ours, theirs = run(withGateway), run(withBare)
		} else {
			theirs, ours = run(withBare), run(withGateway)
		}
		ratios = append(ratios, ours/theirs)
	}
	slices.Sort(ratios)
	median := ratios[nginxRounds/2]
	verdict := "ok"
	if median < leastOfBare {
		verdict = "UNDER"
		b.Errorf("nginx with the gateway: %.2f of nginx with a bare server, budget %.1f", median, leastOfBare)
	}
	_, _ = fmt.Fprintf(os.Stdout, "\nnginx with the gateway against nginx with a server that always answers 204, requests per second: %.2f (median of %d runs in turn, %.2f to %.2f) | budget at least %.1f | %s\n",
		median, nginxRounds, ratios[0], ratios[nginxRounds-1], leastOfBare, verdict)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median, "ratio")
}

func answersOK(url string) error {
	answer, err := http.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return nil
}
