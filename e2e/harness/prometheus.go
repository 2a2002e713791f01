// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Tool returns the path of a program that a test needs beside Vault. Where
// there is none, or in -short mode, the test is skipped; with
// APIKEYS_E2E_REQUIRE=1 it fails instead. hint says how to get the program.
func Tool(t testing.TB, name, hint string) string {
	t.Helper()
	if testing.Short() {
		t.Skipf("SKIP: -short leaves out what needs %s", name)
	}
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("APIKEYS_E2E_REQUIRE") == "1":
		t.Fatalf("no %s to test with: %v; %s", name, err, hint)
	default:
		t.Skipf("SKIP: no %s to test with (%v); %s", name, err, hint)
	}
	return ""
}

const prometheusHint = "on Debian: apt-get install prometheus"

// Promtool runs promtool, with input if that is not empty, in a folder. It
// returns what it wrote and whether it was content.
func Promtool(t testing.TB, dir, input string, args ...string) (output string, err error) {
	t.Helper()
	cmd := exec.Command(Tool(t, "promtool", prometheusHint), args...)
	cmd.Dir, cmd.Env = dir, []string{"HOME=" + t.TempDir()}
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Prometheus is a running Prometheus server.
type Prometheus struct {
	Addr string // http://127.0.0.1:port
	Dir  string // its configuration and data
	proc *process
}

// StartPrometheus runs Prometheus on a free port, with the files of a folder
// beside prometheus.yml in it, and stops it when the test ends.
func StartPrometheus(t testing.TB, files map[string]string) *Prometheus {
	t.Helper()
	bin := Tool(t, "prometheus", prometheusHint)
	dir := tempDir(t)
	for name, content := range files {
		writeFile(t, filepath.Join(dir, name), content)
	}
	p := &Prometheus{Dir: dir, proc: &process{
		bin: bin, dir: dir, log: filepath.Join(dir, "prometheus.log"),
		env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir},
	}}
	t.Cleanup(func() {
		p.proc.stop(0)
		p.proc.dumpOnFailure(t, "prometheus")
	})
	err := errPortTaken
	for attempt := 0; attempt < 5 && errors.Is(err, errPortTaken); attempt++ {
		var port int
		if port, _, err = freePorts(); err != nil {
			break
		}
		p.Addr = "http://" + loopback(port)
		p.proc.args = []string{
			"--config.file=" + filepath.Join(dir, "prometheus.yml"),
			"--storage.tsdb.path=" + filepath.Join(dir, "data"),
			"--web.listen-address=" + loopback(port),
		}
		err = p.run()
	}
	if err != nil {
		t.Fatalf("start prometheus: %v", err)
	}
	return p
}

func (p *Prometheus) run() error {
	before := len(p.proc.readLog())
	if err := p.proc.start(); err != nil {
		return err
	}
	err := poll(startTimeout, pollEvery, func() error {
		if !p.proc.alive() {
			return nil
		}
		resp, err := http.Get(p.Addr + "/-/ready")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/-/ready answers %s", resp.Status)
		}
		return nil
	})
	if err == nil && p.proc.alive() {
		return nil
	}
	p.proc.stop(0)
	if log := p.proc.readLog()[before:]; strings.Contains(log, "address already in use") {
		return errPortTaken
	} else if err == nil {
		err = fmt.Errorf("it ended at once:\n%s", log)
	}
	return err
}

// Get asks an API of Prometheus below /api/v1/ and reads its data into out.
func (p *Prometheus) Get(path string, query url.Values, out any) error {
	client := http.Client{Timeout: 30 * time.Second}
	resp, err := client.Get(p.Addr + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus: %s", answer.Error)
	}
	return json.Unmarshal(answer.Data, out)
}

// Sample is one series of the answer to a query.
type Sample struct {
	Labels map[string]string
	Value  string
}

// Query answers a PromQL query at the present moment.
func (p *Prometheus) Query(expr string) ([]Sample, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := p.Get("query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, err
	}
	var samples []Sample
	for _, r := range data.Result {
		samples = append(samples, Sample{Labels: r.Metric, Value: fmt.Sprint(r.Value[1])})
	}
	return samples, nil
}
