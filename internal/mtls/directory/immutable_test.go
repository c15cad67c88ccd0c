package directory

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sevagent/internal/mtls/mtlstest"
	"sevagent/internal/must"
)

// immutableHere reports whether a file can have the attribute where path is.
func immutableHere(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Create(filepath.Join(filepath.Dir(path), "try"))
	must.Do(t, err, "make a file")
	defer f.Close()
	ok, err := setImmutable(int(f.Fd()), true)
	must.Do(t, err, "set the attribute")
	setImmutable(int(f.Fd()), false)
	return ok
}

func TestImmutable(t *testing.T) {
	ca := mtlstest.NewCA(t, "ca", nil)
	d := newDirectory(t)
	s := mustSet(t, ca.ClientSecret(t, "first"))
	if os.Getuid() != 0 || !immutableHere(t, d.path) {
		t.Skip("needs root and a file system with the immutable attribute")
	}
	first := d.mustPublish(s)
	if !first.Immutable {
		t.Error("the generation does not know that it is immutable")
	}
	file := filepath.Join(d.path, first.Name(), "client.key")
	refused := func(when string) {
		t.Helper()
		for what, err := range map[string]error{
			"write":  os.WriteFile(file, []byte("x"), 0o600),
			"chmod":  os.Chmod(file, 0o644),
			"remove": os.Remove(file),
			"link":   os.Link(file, filepath.Join(d.path, "link")),
			"rename": os.Rename(file, file+"2"),
			"create": os.WriteFile(filepath.Join(filepath.Dir(file), "new"), nil, 0o600),
		} {
			if !errors.Is(err, syscall.EPERM) {
				t.Errorf("%s: %s: %v, want that it is not permitted", when, what, err)
			}
		}
	}
	refused("current")
	New(Config{Path: d.path, AllowDisk: true, Log: d.log}).Close() // of a directory that it has never opened
	refused("closed by one that was not open")
	next := mustSet(t, ca.ClientSecret(t, "second"))
	d.mustPublish(next)
	must.Do(t, clearAllImmutable(d.path), "clear the attribute")
	if err := os.Chmod(filepath.Join(d.path, "..data", "client.key"), 0o440); err != nil {
		t.Errorf("when the agent has stopped: %v", err)
	}
	g, err := d.restore()
	if err != nil || !g.Immutable {
		t.Errorf("recovered: %v", err)
	}
	file = filepath.Join(d.path, g.Name(), "client.key")
	refused("after a restart")
	for range maxRetired + 2 { // until the first is removed
		next := mustSet(t, ca.ClientSecret(t, "more"))
		d.mustPublish(next)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an old generation is still there: %v", err)
	}
}
