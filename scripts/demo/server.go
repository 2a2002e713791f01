// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	pluginName   = "vault-plugin-secrets-apikeys"
	startTimeout = 60 * time.Second
	stopGrace    = 10 * time.Second
)

// server is the dev server of the demo. All that it writes is below dir.
type server struct {
	bin, dir, addr, token string

	cmd    *exec.Cmd
	ended  chan struct{}
	reaper *exec.Cmd
	hold   *os.File // the reaper's standard input
}

// startServer builds the plugin, starts a dev server on a free loopback port
// and returns when it answers.
func startServer(ctx context.Context, root, bin, dir string) (*server, error) {
	s := &server{bin: bin, dir: dir, token: "root-" + rand.Text()}
	for _, sub := range []string{"plugins", "home", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "plugins", pluginName), "./cmd/"+pluginName)
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	var err error
	for range 5 { // somebody may take the port between the look and the start
		if err = s.start(ctx); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

var errPortTaken = errors.New("the port was taken")

func (s *server) start(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	s.addr = fmt.Sprintf("http://127.0.0.1:%d", port)
	log, err := os.Create(s.logPath())
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	// Not with the context: an interrupt is to end it in good order.
	s.cmd = exec.Command(s.bin, "server", "-dev", fmt.Sprintf("-dev-listen-address=127.0.0.1:%d", port),
		"-dev-root-token-id="+s.token, "-dev-plugin-dir="+filepath.Join(s.dir, "plugins"))
	s.cmd.Env, s.cmd.Dir = s.env(""), s.dir
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// A group of its own: Ctrl-C is for the demo, which then stops the server.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.bin, err)
	}
	s.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
	}(s.cmd, s.ended)
	if err := s.startReaper(); err != nil {
		s.stop()
		return err
	}
	if err := s.ready(ctx); err != nil {
		s.stop()
		return err
	}
	return nil
}

// startReaper starts a shell that ends the server if the demo is killed
// before it could do so: then the pipe that it reads from closes.
func (s *server) startReaper() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	s.reaper = exec.Command("/bin/sh", "-c", `read -r _; kill -s KILL -- "-$1"`, "sh", fmt.Sprint(s.cmd.Process.Pid))
	s.reaper.Stdin, s.reaper.SysProcAttr = r, &syscall.SysProcAttr{Setpgid: true}
	if err := s.reaper.Start(); err != nil {
		_ = w.Close()
		s.reaper = nil
		return fmt.Errorf("start the reaper: %w", err)
	}
	s.hold = w
	return nil
}

// ready waits until the server takes our token, which proves that it is ours.
func (s *server) ready(ctx context.Context) error {
	client, err := s.client(s.token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err = client.Auth().Token().LookupSelfWithContext(ctx); err == nil {
			return nil
		}
		select {
		case <-s.ended:
			text, _ := os.ReadFile(s.logPath())
			if bytes.Contains(text, []byte("address already in use")) {
				return errPortTaken
			}
			return fmt.Errorf("the server ended at once:\n%s", text)
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the server and what it started, nothing else. It may be called
// again.
func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopGrace):
	}
	// Its plugins share its group.
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.ended
	s.cmd = nil
	if s.reaper != nil {
		// Before its pipe closes, so that it signals nobody.
		_ = s.reaper.Process.Kill()
		_ = s.reaper.Wait()
		_ = s.hold.Close()
		s.reaper = nil
	}
}

func (s *server) logPath() string { return filepath.Join(s.dir, "server.log") }

// env is the whole environment of the server and of the CLI: nothing of the
// user's but PATH. OpenBao reads both spellings.
func (s *server) env(token string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(s.dir, "home"), "TMPDIR=" + filepath.Join(s.dir, "tmp"),
		"VAULT_ADDR=" + s.addr, "BAO_ADDR=" + s.addr, "VAULT_CLI_NO_COLOR=1", "VAULT_MAX_RETRIES=0", "BAO_MAX_RETRIES=0",
	}
	if token != "" {
		env = append(env, "VAULT_TOKEN="+token, "BAO_TOKEN="+token)
	}
	return env
}

// client returns an API client with a token. It does not retry by itself: the
// demo counts every answer.
func (s *server) client(token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	config.Address, config.AgentAddress, config.MaxRetries, config.Timeout = s.addr, "", 0, 30*time.Second
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	client.ClearNamespace()
	client.SetToken(token)
	return client, nil
}

// tokenFor makes a token that may do one thing to one path of the engine.
func (s *server) tokenFor(ctx context.Context, policy, path, capability string) (string, error) {
	root, err := s.client(s.token)
	if err != nil {
		return "", err
	}
	rule := fmt.Sprintf("path %q { capabilities = [%q] }", path, capability)
	if err := root.Sys().PutPolicyWithContext(ctx, policy, rule); err != nil {
		return "", err
	}
	secret, err := root.Auth().Token().CreateWithContext(ctx, &api.TokenCreateRequest{Policies: []string{policy}, NoDefaultPolicy: true, TTL: "1h"})
	if err != nil {
		return "", err
	}
	return secret.Auth.ClientToken, nil
}

// freePort finds a port that is free together with the next one, which a dev
// server takes too. It lies below those of outgoing connections.
func freePort() (int, error) {
	for range 1000 {
		n, err := rand.Int(rand.Reader, big.NewInt(6000))
		if err != nil {
			return 0, err
		}
		port := 20000 + 2*int(n.Int64())
		if canListen(port) && canListen(port+1) {
			return port, nil
		}
	}
	return 0, errors.New("no two free neighbouring ports on 127.0.0.1 in 1000 tries")
}

func canListen(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	return err == nil && l.Close() == nil
}

// cli runs the server's own binary with exactly these arguments.
func (s *server) cli(ctx context.Context, args ...string) (stdout, stderr string, code int, err error) {
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env, cmd.Dir = s.env(s.token), filepath.Join(s.dir, "home")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return "", "", 0, err
	}
	if ctx.Err() != nil {
		return "", "", 0, ctx.Err()
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode(), nil
}
