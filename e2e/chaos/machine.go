// SPDX-License-Identifier: MPL-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run runs a program of the system for its effect.
func run(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// leftBehind tells whether what has a name was left by a run that was killed: prefix,
// process id, anything.
func leftBehind(name, prefix string) bool {
	rest, ours := strings.CutPrefix(name, prefix)
	if !ours {
		return false
	}
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	pid, err := strconv.Atoi(digits)
	return err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// disk is a file system of its own, in a file.
type disk struct{ image, dir string }

// diskPrefix begins the names of folders of disks; the process id follows.
const diskPrefix = "apikeys-chaos-"

// diskFolder makes a folder for disks, and removes those of runs that were
// killed.
func diskFolder(t testing.TB) string {
	t.Helper()
	folders, _ := filepath.Glob(filepath.Join(os.TempDir(), diskPrefix+"*")) //nolint:usetesting // where other runs left theirs
	for _, folder := range folders {
		if !leftBehind(filepath.Base(folder), diskPrefix) {
			continue
		}
		mounts, _ := filepath.Glob(filepath.Join(folder, "disk?"))
		for _, dir := range mounts {
			_ = run("umount", "-l", dir) // an error says that it is no mount
		}
		_ = os.RemoveAll(folder)
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", diskPrefix, os.Getpid())) //nolint:usetesting // its name tells whose it is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// diskSize is what a disk holds. The file of it is sparse.
const diskSize = 3 << 30

func newDisk(t testing.TB, dir string, number int) (*disk, error) {
	t.Helper()
	for _, program := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	d := &disk{image: filepath.Join(dir, fmt.Sprintf("disk%d.img", number)), dir: filepath.Join(dir, fmt.Sprintf("disk%d", number))}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return nil, err
	}
	if err := run("mkfs.ext4", "-q", "-F", "-m", "0", d.image); err != nil {
		return nil, err
	}
	if err := run("mount", "-o", "loop", d.image, d.dir); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = run("fsfreeze", "-u", d.dir) // an error says that it is not frozen
		if err := run("umount", d.dir); err != nil {
			_ = run("umount", "-l", d.dir)
		}
	})
	return d, nil
}

// data is the folder for the node.
func (d *disk) data() string { return filepath.Join(d.dir, "data") }

// ballast is the file that fills the disk.
func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill leaves no block free.
func (d *disk) fill() error {
	var free syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &free); err != nil {
		return err
	}
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// Blocks for the map of the file itself are needed too: so in ever smaller
	// pieces until none fits.
	offset := int64(0)
	for size := int64(free.Bavail) * free.Bsize; size >= 4096; {
		if err := syscall.Fallocate(int(f.Fd()), 0, offset, size); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return err
			}
			size /= 2
			continue
		}
		offset += size
	}
	return nil
}

func (d *disk) empty() error {
	err := os.Remove(d.ballast())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// freeze makes every write wait until thaw.
func (d *disk) freeze() error { return run("fsfreeze", "-f", d.dir) }
func (d *disk) thaw() error   { return run("fsfreeze", "-u", d.dir) }
