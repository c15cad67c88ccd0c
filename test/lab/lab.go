// Package lab is what the labs under test/ share: programs that run until a test ends, the agent among them; waiting;
// files; certificates; and a reader's view of what is published. What one lab alone needs stays with that lab. The
// script test/run prepares what has to be there before a lab's tests can run: namespaces, packages, binaries.
package lab

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sevagent/internal/must"
)

// Paths of a node, the defaults of the product.
const (
	Published = "/etc/ecs/mtls"
	ConfigDir = "/etc/sevagent"
	ECSConfig = "/etc/ecs/ecs.config"
)

// Hang is far longer than anything takes that works, even on a slow machine. It keeps a test from hanging, and says
// nothing about speed.
const Hang = 3 * time.Minute

// Repository is the root of the source tree.
func Repository() string { return os.Getenv("SEVAGENT_REPO") }

// Work is a directory of this run, which is removed when it ends.
func Work() string { return os.Getenv("SEVAGENT_WORK") }

// Bin is the path of one of the product's programs, which make build has made.
func Bin(name string) string { return filepath.Join(Repository(), "bin", name) }

// Python is the path of a program that the Python requirements of the tests install.
func Python(name string) string { return filepath.Join(Repository(), ".cache/venv/bin", name) }

// Poll waits until check returns nil, and returns its last error if that does not come.
func Poll(check func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Hang); ; <-tick.C {
		if err := check(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// Until waits until check returns nil, or ends the test with its last error. what names the thing waited for.
func Until(t testing.TB, what string, check func() error) {
	t.Helper()
	must.Do(t, Poll(check), "wait for %s", what)
}

// Write makes a file, and the directories that lead to it.
func Write(t testing.TB, path, text string) {
	t.Helper()
	must.Do(t, os.MkdirAll(filepath.Dir(path), 0o755), "make the directory of %s", path)
	must.Do(t, os.WriteFile(path, []byte(text), 0o644), "write a file")
}

// WriteProgram is Write for a file that can be executed.
func WriteProgram(t testing.TB, path, text string) {
	t.Helper()
	Write(t, path, text)
	must.Do(t, os.Chmod(path, 0o755), "make a program")
}

// Replace changes a file in one step, so that no reader sees half of it.
func Replace(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Read returns what a file contains.
func Read(t testing.TB, path string) string {
	t.Helper()
	return string(must.Get(os.ReadFile(path))(t, "read a file"))
}

// Mount mounts an empty tmpfs, as the package does for what is published, until the test ends.
func Mount(t testing.TB, dir string) {
	t.Helper()
	const flags = syscall.MS_NODEV | syscall.MS_NOSUID | syscall.MS_NOEXEC
	must.Do(t, syscall.Mount("tmpfs", dir, "tmpfs", flags, "size=16m,mode=0755"), "mount a tmpfs on %s", dir)
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// Tail returns the end of a text that may be long.
func Tail(text string) string { return text[max(0, len(text)-6000):] }
