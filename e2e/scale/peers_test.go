// SPDX-License-Identifier: MPL-2.0

package scale

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vault-apikeys/vault-plugin-secrets-apikeys/e2e/harness"
)

// mostRoles bounds the static roles, and mostUsers those of PostgreSQL: the
// engine makes them one by one, each with a rotation. Where there are fewer keys,
// there is a tenth as many roles. The report says how many there were.
const mostRoles, mostUsers = 5_000, 500

// peers measures other engines on the same server, with as many entries.
func peers(t *testing.T, r *Report, l *load, srv *harness.Server, n int) {
	t.Helper()
	note := func(operation string, keys int, took time.Duration) {
		add(&r.Peers, operation, "key", Point{Keys: n, Seconds: took.Seconds() / float64(keys)})
	}
	l.must(http.MethodPost, "sys/mounts/kv", fields{"type": "kv", "options": fields{"version": "2"}})
	harness.Eventually(t, time.Minute, 50*time.Millisecond, func() error { // it upgrades itself first
		_, err := l.send(http.MethodPost, "kv/data/first", fields{"data": fields{"api_key": "x"}})
		return err
	})
	began := time.Now()
	l.parallel(n, func(i int) error {
		_, err := l.send(http.MethodPost, fmt.Sprintf("kv/data/client-%07d", i), fields{"data": fields{"api_key": imported("client", i)}})
		return err
	})
	note(peerStore, n, time.Since(began))
	const some = 200
	note(peerRead, some, l.each(some, func(i int) { l.must(http.MethodGet, fmt.Sprintf("kv/data/client-%07d", i*(n/some)), nil) }))

	l.must(http.MethodPost, "sys/mounts/transit", fields{"type": "transit"})
	l.must(http.MethodPost, "transit/keys/peer", fields{"type": "aes256-gcm96"})
	input := base64.StdEncoding.EncodeToString([]byte(imported("client", 1)))
	hmac := l.text(l.must(http.MethodPost, "transit/hmac/peer", fields{"input": input}), "hmac")
	note(peerHMAC, some, l.each(some, func(int) {
		if l.must(http.MethodPost, "transit/verify/peer", fields{"input": input, "hmac": hmac})["valid"] != true {
			t.Fatal("Transit refuses its own HMAC")
		}
	}))
	items := make([]any, 100)
	for i := range items {
		items[i] = fields{"input": input, "hmac": hmac}
	}
	note(peerHMACBatch, 20*len(items), l.each(20, func(int) { l.must(http.MethodPost, "transit/verify/peer", fields{"batch_input": items}) }))

	if err := databases(t, r, l, srv, n); err != nil {
		missing := fmt.Sprintf("the database engine: %v", err)
		if os.Getenv("APIKEYS_E2E_REQUIRE") == "1" {
			t.Error(missing)
		}
		t.Logf("SKIP: %s", missing)
		if len(r.Missing) == 0 || r.Missing[len(r.Missing)-1] != missing {
			r.Missing = append(r.Missing, missing)
		}
	}
}

const engineName = "database-engine"

// databases measures scheduled rotation by the database engine's static roles.
func databases(t *testing.T, r *Report, l *load, srv *harness.Server, n int) error {
	t.Helper()
	engine := os.Getenv("DATABASE_ENGINE")
	if engine == "" {
		return errors.New("DATABASE_ENGINE names no build of scripts/vault/database-engine; make scale builds one")
	}
	sum, err := harness.FileSHA256(engine)
	if err != nil {
		return err
	}
	srv.RegisterPlugin(t, engineName, "", engine, sum)
	srv.EnableEngine(t, "db", engineName)
	loads := func() int { return strings.Count(srv.Log(), "starting periodic ticker") }
	harness.Eventually(t, time.Minute, 20*time.Millisecond, func() error { // roles that are made meanwhile are enqueued twice
		if loads() == 0 {
			return errors.New("the engine has not begun")
		}
		return nil
	})
	roles := min(n/10, mostRoles)
	note := func(operation, unit string, units, roles int, took time.Duration) {
		add(&r.Peers, operation, unit, Point{Keys: n, Seconds: took.Seconds() / float64(units), Roles: roles})
	}

	l.must(http.MethodPost, "db/config/noop", fields{"plugin_name": "noop", "allowed_roles": "*", "verify_connection": false})
	note(peerRotateNoop, "role", roles, roles, l.staticRoles("noop", roles))

	loaded := loads()
	for _, pid := range srv.PluginPIDs(engineName) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
	}
	began := time.Now()
	harness.Eventually(t, 10*time.Minute, 20*time.Millisecond, func() error {
		_, _ = l.send(http.MethodGet, "db/static-roles/noop-0", nil) // wakes it
		if loads() == loaded {
			return errors.New("the roles are not loaded yet")
		}
		return nil
	})
	note(peerStartNoop, "start", 1, roles, time.Since(began))
	l.dropStaticRoles("noop", roles)

	few := min(roles, mostUsers)
	addr, err := startPostgres(t, few)
	if err != nil {
		return fmt.Errorf("with PostgreSQL: %w", err)
	}
	if _, err := l.send(http.MethodPost, "db/config/pg", fields{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*",
		"connection_url": "postgresql://{{username}}:{{password}}@" + addr + "/postgres?sslmode=disable", "username": "vault", "password": "vault",
	}); err != nil {
		return fmt.Errorf("with PostgreSQL: %w", err)
	}
	note(peerRotatePostgres, "role", few, few, l.staticRoles("pg", few))
	l.dropStaticRoles("pg", few)
	return nil
}

// staticRoles makes static roles that are all due at the same minute, and
// returns how long it took from the first one's rotation until the last one's: not
// from when they were due, because the engine looks every few seconds only.
func (l *load) staticRoles(db string, n int) time.Duration {
	l.t.Helper()
	l.parallel(n, func(i int) error {
		_, err := l.send(http.MethodPost, fmt.Sprintf("db/static-roles/%s-%d", db, i), fields{
			"db_name": db, "username": fmt.Sprintf("%s%d", db, i), "rotation_schedule": "*/2 * * * *", "rotation_window": "1h",
			"rotation_statements": `ALTER USER "{{name}}" WITH PASSWORD '{{password}}';`,
		})
		return err
	})
	due := time.Now().Truncate(2 * time.Minute).Add(2 * time.Minute)
	time.Sleep(time.Until(due))
	var first, last time.Time
	harness.Eventually(l.t, 20*time.Minute, time.Second, func() error {
		first, last = time.Time{}, time.Time{}
		for i := 0; i < n; i += max(1, n/50) {
			data, err := l.send(http.MethodGet, fmt.Sprintf("db/static-creds/%s-%d", db, i), nil)
			if err != nil {
				return err
			}
			at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(data["last_vault_rotation"]))
			if err != nil {
				return err
			}
			if at.Before(due) {
				return fmt.Errorf("role %d is not rotated yet", i)
			}
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		}
		return nil
	})
	return last.Sub(first)
}

// dropStaticRoles deletes what staticRoles made, so that nothing else is measured
// beside their rotations.
func (l *load) dropStaticRoles(db string, n int) {
	l.t.Helper()
	l.parallel(n, func(i int) error {
		_, err := l.send(http.MethodDelete, fmt.Sprintf("db/static-roles/%s-%d", db, i), nil)
		return err
	})
}

// startPostgres starts a PostgreSQL with so many users, for this test alone.
func startPostgres(t *testing.T, users int) (addr string, err error) {
	t.Helper()
	bin := postgresBin()
	if bin == "" {
		return "", errors.New("there are no postgres and initdb; on Debian: apt install postgresql")
	}
	owner, err := user.Lookup("postgres")
	if err != nil {
		return "", err
	}
	uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
	gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
	dir, err := os.MkdirTemp("", "apikeys-pg-") //nolint:usetesting // another user has to reach it
	if err != nil {
		return "", err
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chown(dir, int(uid), int(gid)), os.Chmod(dir, 0o700)); err != nil {
		return "", err
	}
	as := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + dir}
		if os.Geteuid() == 0 { // PostgreSQL refuses to be root
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := as("initdb", "-D", data, "-A", "trust", "-U", "vault", "--no-sync").CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := l.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener has a TCP address
	_ = l.Close()
	server := as("postgres", "-D", data, "-p", strconv.Itoa(port), "-k", dir, "-c", "listen_addresses=127.0.0.1")
	if err := server.Start(); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
	})
	var sql strings.Builder
	for i := range users {
		fmt.Fprintf(&sql, "CREATE USER \"pg%d\";\n", i)
	}
	harness.Eventually(t, time.Minute, 200*time.Millisecond, func() error {
		psql := as("psql", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "vault", "-d", "postgres", "-q", "-v", "ON_ERROR_STOP=1")
		psql.Stdin = strings.NewReader("BEGIN;\n" + sql.String() + "COMMIT;\n")
		out, err := psql.CombinedOutput()
		if err != nil {
			return fmt.Errorf("psql: %w: %s", err, out)
		}
		return nil
	})
	return fmt.Sprintf("127.0.0.1:%d", port), nil
}

// postgresBin is the folder of PostgreSQL's programs, where Debian hides them;
// "" if there is none.
func postgresBin() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(resolved)
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well formed
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}
