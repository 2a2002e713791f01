// SPDX-License-Identifier: MPL-2.0

package docstest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/sdk/token"
)

// commandTimeout bounds one command, and how long one is repeated.
const commandTimeout = 90 * time.Second

// runPages lists the pages whose blocks are run, with what is special.
func runPages(t *testing.T) []string {
	t.Helper()
	root := repoRoot(t)
	pages := []string{"README.md"}
	for _, dir := range []string{"docs/tutorial", "docs/how-to", "docs/reference", "docs/explanation"} {
		found, err := filepath.Glob(filepath.Join(root, dir, "*.md"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no pages in %s: %v", dir, err)
		}
		for _, path := range found {
			page, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			pages = append(pages, page)
		}
	}
	return pages
}

func TestDocsCommandsRun(t *testing.T) {
	t.Parallel()
	var ran, left atomic.Int64
	pages := runPages(t)
	t.Cleanup(func() {
		t.Logf("%d commands of %d pages run; %d blocks not run, each listed with its reason", ran.Load(), len(pages), left.Load())
	})
	for _, page := range pages {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			t.Parallel()
			r, l := runPage(t, page)
			ran.Add(int64(r))
			left.Add(int64(l))
		})
	}
}

// runPage runs the blocks of a page and counts the commands that it ran, and
// the blocks that it left out.
func runPage(t *testing.T, page string) (ran, left int) {
	all := blocks(t, page, readFile(t, repoRoot(t), page))
	var content strings.Builder // of the blocks that are run
	for _, b := range all {
		if b.marks.notRun == "" {
			content.WriteString(strings.Join(b.body, "\n") + "\n")
		}
	}
	var sh *shell
	for _, b := range all {
		switch {
		case b.marks.notRun != "":
			left++
			t.Logf("%s:%d: not run: %s", page, b.line, b.marks.notRun)
			continue
		case b.lang != "shell" && b.lang != "console":
			if b.lang == "bash" || b.lang == "sh" || b.lang == "" && strings.Contains(strings.Join(b.body, "\n"), "vault ") {
				t.Errorf("%s:%d: commands stand in shell or console blocks, or the test does not see them", page, b.line)
			}
			continue
		}
		if sh == nil {
			sh = newShell(t, content.String())
		}
		for _, c := range b.commands(t) {
			sh.check(c)
			ran++
		}
		if t.Failed() {
			return ran, left
		}
	}
	t.Logf("%s: %d commands run, %d blocks not run", page, ran, left)
	return ran, left
}

// shell is a bash in which the commands of a page run.
type shell struct {
	t     *testing.T
	dir   string
	in    io.Writer
	lines chan string
	count int
}

const (
	firstVersion  = "v0.1.0"
	secondVersion = "v0.2.0"
)

// newShell starts a server and a bash beside it. The working directory looks
// like a checkout after a build: bin/ with the plugin, and docs/.
func newShell(t *testing.T, content string) *shell {
	t.Helper()
	srv := harness.StartDev(t, harness.Options{})
	plugin := harness.Plugin(t, harness.PluginOptions{Version: firstVersion})
	root := repoRoot(t)
	dir, tools := filepath.Join(srv.Dir, "page"), filepath.Join(srv.Dir, "tools")
	for _, d := range []string{dir, tools, filepath.Join(dir, "bin")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link(t, harness.Binary(t), filepath.Join(tools, "vault"))
	link(t, filepath.Join(root, "docs"), filepath.Join(dir, "docs"))
	if strings.Contains(content, "bin/apikeys ") {
		link(t, harness.Apikeys(t), filepath.Join(dir, "bin", "apikeys"))
	}

	// A page that tells how to install the plugin does it itself; others find
	// the engine registered, and enabled unless they do that.
	if strings.Contains(content, "vault plugin register") {
		builds := filepath.Join(srv.Dir, "builds")
		if err := os.MkdirAll(builds, 0o700); err != nil {
			t.Fatal(err)
		}
		link(t, plugin.Path, filepath.Join(builds, firstVersion))
		second := harness.Plugin(t, harness.PluginOptions{Version: secondVersion})
		link(t, second.Path, filepath.Join(builds, secondVersion))
		// Stands for `make build VERSION=...`, which builds into the checkout.
		script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = build ] || exit 1\ncp -L \"%s/${2#VERSION=}\" bin/%s\n", builds, harness.PluginName)
		if err := os.WriteFile(filepath.Join(tools, "make"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	} else {
		srv.RegisterPlugin(t, harness.PluginName, "", plugin.Path, plugin.SHA256)
		if !strings.Contains(content, "vault secrets enable -path=apikeys") {
			srv.EnableEngine(t, "apikeys", harness.PluginName)
		}
	}

	for _, example := range []string{consumerDir, verifierDir} {
		command := "go build -o bin/ ./" + example + "/..."
		if !strings.Contains(content, command) {
			continue
		}
		builds := filepath.Join(srv.Dir, "builds")
		buildExamples(t, example, builds)
		script := fmt.Sprintf("#!/bin/sh\n[ \"go $*\" = %q ] || exit 1\ncp \"%s\"/* bin/\n", command, builds)
		if err := os.WriteFile(filepath.Join(tools, "go"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}

	client := srv.Command(srv.RootToken)
	cmd := exec.Command("bash", "--noprofile", "--norc")
	cmd.Dir = dir
	cmd.Env = append(client.Env, "PATH="+tools+":"+os.Getenv("PATH"), "PLUGIN_DIR="+srv.PluginDir, "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatalf("start bash: %v", err)
	}
	_ = w.Close()
	s := &shell{t: t, dir: dir, in: in, lines: make(chan string, 1024)}
	go func() {
		defer close(s.lines)
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadString('\n')
			if line != "" {
				s.lines <- strings.TrimRight(line, "\n")
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		// Agents that the page left running stop what they supervise first.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = out.Close()
	})
	return s
}

func link(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Symlink(from, to); err != nil {
		t.Fatal(err)
	}
}

// check runs a command and compares its code, and the output if the page shows one.
func (s *shell) check(c command) {
	s.t.Helper()
	if c.background {
		s.background(c)
		return
	}
	deadline := time.Now().Add(commandTimeout)
	for {
		got, code, err := s.run(c.text)
		if err != nil {
			s.t.Fatalf("%s: %s\n%v; so far:\n%s", c.at(), c.text, err, strings.Join(got, "\n"))
		}
		fits := code == c.exit && (len(trimBlank(c.want)) == 0 || matches(c.want, got))
		switch {
		case fits:
			return
		case c.until && time.Now().Before(deadline):
			time.Sleep(200 * time.Millisecond)
		case code != c.exit:
			s.t.Fatalf("%s: %s\nexit %d, want %d:\n%s", c.at(), c.text, code, c.exit, strings.Join(got, "\n"))
		default:
			s.t.Fatalf("%s: %s\nthe page shows:\n%s\nand it was:\n%s", c.at(), c.text, strings.Join(c.want, "\n"), strings.Join(got, "\n"))
		}
	}
}

// run sources the command, so that its variables stay, without an input of
// its own, and waits for its end.
func (s *shell) run(text string) (out []string, code int, err error) {
	s.count++
	file := filepath.Join(s.dir, fmt.Sprintf("../command-%d.sh", s.count))
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		return nil, 0, err
	}
	mark := fmt.Sprintf("@@end-%d@@", s.count)
	if _, err := fmt.Fprintf(s.in, "source %s </dev/null\nprintf '\\n%s %%d\\n' $?\n", file, mark); err != nil {
		return nil, 0, err
	}
	timeout := time.After(commandTimeout)
	for {
		select {
		case line, open := <-s.lines:
			if !open {
				return out, 0, errors.New("bash has ended")
			}
			if rest, ended := strings.CutPrefix(line, mark+" "); ended {
				_, err := fmt.Sscan(rest, &code)
				return out, code, err
			}
			out = append(out, line)
		case <-timeout:
			return out, 0, fmt.Errorf("no end after %s", commandTimeout)
		}
	}
}

// background starts a command that stays, with its output in a file, which is
// shown if the test fails.
func (s *shell) background(c command) {
	log := filepath.Join(s.dir, fmt.Sprintf("../background-%d.log", s.count))
	if _, _, err := s.run(fmt.Sprintf("{ %s\n} >%s 2>&1 &", c.text, log)); err != nil {
		s.t.Fatalf("%s: %v", c.at(), err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			content, _ := os.ReadFile(log)
			s.t.Logf("%s: %s\n%s", c.at(), c.text, content)
		}
	})
}

// TestDocsShowNoKeys refuses a page with a token whose checksum is right: it
// could be a real one.
func TestDocsShowNoKeys(t *testing.T) {
	t.Parallel()
	root := repoRoot(t)
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == ".cache"):
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		for i, line := range strings.Split(readFile(t, path), "\n") {
			for _, word := range strings.FieldsFunc(line, func(r rune) bool {
				return r != '_' && !('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
			}) {
				if _, err := token.Parse(word); err == nil {
					t.Errorf("%s:%d shows an API key with a right checksum", path, i+1)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
