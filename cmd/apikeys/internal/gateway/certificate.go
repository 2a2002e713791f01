// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// readCertificates reads the certificates of the listeners that have one, as
// they are now: for each the files of the certificate, of the key and, if there
// is one, of the CA of clients.
func readCertificates(listeners []Listener) ([][]source, error) {
	var all [][]source
	for _, l := range listeners {
		if l.CertFile == "" {
			continue
		}
		var files []source
		for _, name := range []string{l.CertFile, l.KeyFile, l.ClientCA} {
			if name == "" {
				continue
			}
			content, err := os.ReadFile(name) //nolint:gosec // the operator names the file
			if err != nil {
				return nil, fmt.Errorf("listener %q: read the certificate: %w", l.Type, err)
			}
			files = append(files, source{name, content})
		}
		all = append(all, files)
	}
	return all, nil
}

// newCertificates turns what readCertificates has read into what is served. Its
// error holds nothing of a key.
func newCertificates(all [][]source) ([]*tls.Config, error) {
	var configs []*tls.Config
	for _, files := range all {
		pair, err := tls.X509KeyPair(files[0].content, files[1].content)
		if err != nil {
			return nil, fmt.Errorf("read the certificate %s with the key %s: %w", files[0].name, files[1].name, err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: protocols}
		if len(files) > 2 {
			config.ClientCAs = x509.NewCertPool()
			if !config.ClientCAs.AppendCertsFromPEM(files[2].content) {
				return nil, fmt.Errorf("read the CA of clients: there is no certificate in %s", files[2].name)
			}
			config.ClientAuth = tls.RequireAndVerifyClientCert
			// A session of a client of the CA before would be taken up again.
			config.SessionTicketsDisabled = true
		}
		configs = append(configs, config)
	}
	return configs, nil
}

var protocols = []string{"h2", "http/1.1"}

// serveTLS is the configuration of the n-th listener with a certificate. It
// takes the present one for each connection.
func (g *Gateway) serveTLS(n int) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return g.policy.Load().certificates[n], nil },
	}
}
