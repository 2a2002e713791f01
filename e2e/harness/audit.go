// SPDX-License-Identifier: MPL-2.0

package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// Audit is a file audit device.
type Audit struct {
	Path string
}

// Audit enables a file audit device that hashes secrets, which is the default
// and what people run.
func (s *Server) Audit(t testing.TB) *Audit {
	t.Helper()
	s.audits++
	name := fmt.Sprintf("file%d", s.audits)
	a := &Audit{Path: filepath.Join(s.Dir, name+".audit.log")}
	err := s.Client.Sys().EnableAuditWithOptions(name, &api.EnableAuditOptions{
		Type:    "file",
		Options: map[string]string{"file_path": a.Path, "log_raw": "false"},
	})
	if err != nil {
		t.Fatalf("enable an audit device: %v", err)
	}
	return a
}

// Text is all that was written so far: Vault answers a request only after its
// lines are in the file.
func (a *Audit) Text(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(a.Path)
	if err != nil {
		t.Fatalf("read the audit log: %v", err)
	}
	return string(b)
}

// Lines is Text by line, each a JSON object.
func (a *Audit) Lines(t testing.TB) []string {
	t.Helper()
	text := strings.TrimRight(a.Text(t), "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
