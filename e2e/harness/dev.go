// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"errors"
	"path/filepath"
	"testing"
)

// StartDev starts `vault server -dev` on a free port: unsealed, in memory, with
// a root token and an empty plugin directory, and stops it when the test ends.
func StartDev(t testing.TB, opts Options) *Server {
	t.Helper()
	s := newServer(t, opts)
	s.RootToken = opts.RootToken
	if s.RootToken == "" {
		s.RootToken = "root-" + randomHex(8)
	}
	config := filepath.Join(s.Dir, "dev.hcl")
	writeFile(t, config, extraConfig(t, opts))

	err := errPortTaken
	for attempt := 0; attempt < 5 && errors.Is(err, errPortTaken); attempt++ {
		var port int
		if port, _, err = freePorts(); err != nil {
			break
		}
		if err = s.reachAt(loopback(port)); err != nil {
			break
		}
		s.proc.args = []string{
			"server", "-dev",
			"-dev-listen-address=" + loopback(port),
			"-dev-root-token-id=" + s.RootToken,
			"-dev-plugin-dir=" + s.PluginDir,
			"-config=" + config,
			"-log-level=" + logLevel(opts),
		}
		err = s.run(func() error {
			if err := s.health(healthActive); err != nil {
				return err
			}
			// That the token works proves that this is our server.
			_, err := s.Client.Auth().Token().LookupSelf()
			return err
		})
	}
	if err != nil {
		t.Fatalf("start a dev server: %v", err)
	}
	return s
}

// extraConfig is what both kinds of server get in their configuration.
func extraConfig(t testing.TB, opts Options) string {
	t.Helper()
	config := opts.Config + "\n"
	if IsOpenBao(t) {
		// OpenBao refuses audit devices made through the API unless told so.
		config += "unsafe_allow_api_audit_creation = true\n"
	}
	return config
}
