// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	modulePath = "github.com/vault-apikeys/vault-plugin-secrets-apikeys"

	// PluginName is the plugin's name in Vault's catalogue.
	PluginName = "vault-plugin-secrets-apikeys"
)

// PluginOptions are what may differ between two builds of the plugin.
type PluginOptions struct {
	// Version is stamped into the plugin and is the one to register it under,
	// like v0.1.0; empty leaves the version that a plain `go build` has.
	Version string
	// Commit is stamped beside it.
	Commit string
}

// BuiltPlugin is a build of the plugin.
type BuiltPlugin struct {
	Version string
	Path    string
	SHA256  string // of the file, as the catalogue wants it
}

var builds = struct {
	sync.Mutex
	done map[PluginOptions]BuiltPlugin
}{done: map[PluginOptions]BuiltPlugin{}}

// Plugin builds cmd/vault-plugin-secrets-apikeys as a release does, once in a
// test process for each set of options. The file is named by its content and
// kept for a day, so that test processes neither disturb nor outgrow each other.
func Plugin(t testing.TB, opts PluginOptions) BuiltPlugin {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if built, ok := builds.done[opts]; ok {
		return built
	}
	built, err := buildPlugin(opts)
	if err != nil {
		t.Fatalf("build the plugin: %v", err)
	}
	builds.done[opts] = built
	return built
}

func buildPlugin(opts PluginOptions) (BuiltPlugin, error) {
	root, err := repoRoot()
	if err != nil {
		return BuiltPlugin{}, err
	}
	cache := os.Getenv("APIKEYS_CACHE")
	if cache == "" {
		cache = filepath.Join(root, ".cache")
	}
	dir := filepath.Join(cache, "e2e-plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return BuiltPlugin{}, err
	}
	dropOld(dir, 24*time.Hour)

	ldflags := "-s -w"
	if opts.Version != "" {
		ldflags += " -X " + modulePath + "/internal/version.Version=" + opts.Version
	}
	if opts.Commit != "" {
		ldflags += " -X " + modulePath + "/internal/version.Commit=" + opts.Commit
	}
	fresh := filepath.Join(dir, "build-"+randomHex(8))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", ldflags, "-o", fresh, "./cmd/"+PluginName)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return BuiltPlugin{}, fmt.Errorf("%w\n%s", err, out)
	}
	sum, err := FileSHA256(fresh)
	if err != nil {
		return BuiltPlugin{}, err
	}
	path := filepath.Join(dir, "plugin-"+sum[:16])
	if err := os.Rename(fresh, path); err != nil {
		return BuiltPlugin{}, err
	}
	return BuiltPlugin{Version: opts.Version, Path: path, SHA256: sum}, nil
}

func dropOld(dir string, age time.Duration) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > age {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}

// FileSHA256 is the SHA-256 of a file in hex, as the catalogue wants it.
func FileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// RegisterPlugin puts the file at path into the plugin directory and registers
// it as a secrets engine in the catalogue by its SHA-256, as in production. An
// empty version registers it unversioned.
func (s *Server) RegisterPlugin(t testing.TB, name, version, path, sha256 string) {
	t.Helper()
	command := s.InstallPlugin(t, name, version, path)
	err := s.Client.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name: name, Type: api.PluginTypeSecrets, Version: version, Command: command, SHA256: sha256,
	})
	if err != nil {
		t.Fatalf("register plugin %s %s: %v", name, version, err)
	}
}

// InstallPlugin puts the file at path into the plugin directory, and returns the
// command to register it under. Each node of a cluster needs the file; the
// catalogue is one.
func (s *Server) InstallPlugin(t testing.TB, name, version, path string) (command string) {
	t.Helper()
	command = name
	if version != "" {
		command += "-" + version
	}
	if err := copyProgram(path, filepath.Join(s.PluginDir, command)); err != nil {
		t.Fatalf("install plugin %s: %v", name, err)
	}
	return command
}

// installPluginsOf installs what another node has: the catalogue is one.
func (s *Server) installPluginsOf(t testing.TB, other *Server) {
	t.Helper()
	programs, err := os.ReadDir(other.PluginDir)
	for _, program := range programs {
		err = errors.Join(err, copyProgram(filepath.Join(other.PluginDir, program.Name()), filepath.Join(s.PluginDir, program.Name())))
	}
	if err != nil {
		t.Fatalf("install the plugins of %s: %v", other.Addr, err)
	}
}

// copyProgram replaces to in one step: the old file may be running.
func copyProgram(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	fresh := to + ".new"
	if err := os.WriteFile(fresh, content, 0o755); err != nil {
		return err
	}
	return os.Rename(fresh, to)
}

// EnableEngine mounts a registered plugin, at most one version of it named.
func (s *Server) EnableEngine(t testing.TB, mountPath, plugin string, version ...string) {
	t.Helper()
	input := &api.MountInput{Type: plugin}
	if len(version) > 0 {
		input.Config.PluginVersion = version[0]
	}
	if err := s.Client.Sys().Mount(mountPath, input); err != nil {
		t.Fatalf("enable %s at %s/: %v", plugin, mountPath, err)
	}
}

// ReloadPlugin restarts every mount of the plugin.
func (s *Server) ReloadPlugin(t testing.TB, plugin string) {
	t.Helper()
	if _, err := s.Client.Sys().ReloadPlugin(&api.ReloadPluginInput{Plugin: plugin}); err != nil {
		t.Fatalf("reload %s: %v", plugin, err)
	}
}

// UpgradeEngine moves a mount to another registered version of its plugin, in
// place: it sets plugin_version and reloads the mount.
func (s *Server) UpgradeEngine(t testing.TB, mountPath, version string) {
	t.Helper()
	if err := s.Client.Sys().TuneMountAllowNil(mountPath, api.TuneMountConfigInput{PluginVersion: &version}); err != nil {
		t.Fatalf("set plugin_version of %s/ to %s: %v", mountPath, version, err)
	}
	if _, err := s.Client.Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{mountPath + "/"}}); err != nil {
		t.Fatalf("reload %s/: %v", mountPath, err)
	}
}
