// SPDX-License-Identifier: MPL-2.0

package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// certificate is that of a listener, and who may connect to it. Both are read
// again by a reload.
type certificate struct {
	listener Listener
	config   atomic.Pointer[tls.Config]
}

func loadCertificate(l Listener) (*certificate, error) {
	c := &certificate{listener: l}
	return c, c.reload()
}

func (c *certificate) reload() error {
	pair, err := tls.LoadX509KeyPair(c.listener.CertFile, c.listener.KeyFile)
	if err != nil {
		return fmt.Errorf("read the certificate: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.listener.ClientCA != "" {
		pem, err := os.ReadFile(c.listener.ClientCA)
		if err != nil {
			return fmt.Errorf("read the CA of clients: %w", err)
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return errors.New("read the CA of clients: there is no certificate in " + c.listener.ClientCA)
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	c.config.Store(config)
	return nil
}

// serve is the configuration that takes the present certificate for each
// connection.
func (c *certificate) serve() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.config.Load(), nil },
	}
}
