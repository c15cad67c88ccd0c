package atomicfile

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sevagent/internal/must"
)

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ecs.config")
	old := syscall.Umask(0o077) // must not matter
	defer syscall.Umask(old)
	for _, c := range []struct {
		data string
		perm fs.FileMode
	}{{"first", 0o644}, {"second, longer", 0o600}, {"", 0o444}, {"after a read-only one", 0o640}} {
		must.Do(t, Write(path, []byte(c.data), c.perm), "write a file")
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.data {
			t.Errorf("content %q, %v; want %q", got, err, c.data)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode() != c.perm {
			t.Errorf("mode %v, %v; want %v", fi.Mode(), err, c.perm)
		}
	}
	onlyFile(t, path)
}

func TestWriteOwned(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	path := filepath.Join(t.TempDir(), "client.key")
	must.Do(t, WriteOwned(path, []byte("x"), 0o440, 1234, 5678), "write a file")
	fi := must.Get(os.Stat(path))(t, "inspect a file")
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 5678 || fi.Mode() != 0o440 {
		t.Errorf("file is %v %d:%d, want 0440 1234:5678", fi.Mode(), st.Uid, st.Gid)
	}
}

func TestWriteReplacesLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	must.Do(t, os.WriteFile(target, []byte("not yours"), 0o644), "write a file")
	must.Do(t, os.Symlink(target, link), "make a link")
	must.Do(t, Write(link, []byte("mine"), 0o644), "write a file")
	if got, _ := os.ReadFile(target); string(got) != "not yours" {
		t.Errorf("the target of the link now holds %q", got)
	}
	if fi, err := os.Lstat(link); err != nil || !fi.Mode().IsRegular() {
		t.Errorf("link is now %v, %v; want a regular file", fi.Mode(), err)
	}
}

func TestWriteFailures(t *testing.T) {
	dir := t.TempDir()
	t.Run("no directory", func(t *testing.T) {
		err := Write(filepath.Join(dir, "missing", "f"), nil, 0o644)
		if err == nil || !strings.Contains(err.Error(), "missing/f") {
			t.Errorf("error %v, want one that names the path", err)
		}
	})
	t.Run("rename refused", func(t *testing.T) {
		path := filepath.Join(dir, "is-a-directory")
		must.Do(t, os.Mkdir(path, 0o755), "make a directory")
		if err := Write(path, []byte("x"), 0o644); err == nil {
			t.Error("a directory was replaced by a file")
		}
		onlyFile(t, path)
	})
	t.Run("disk full", func(t *testing.T) {
		small := filepath.Join(dir, "is-a-directory")
		if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=8k"); err != nil {
			t.Skipf("needs to mount a small tmpfs: %v", err)
		}
		defer syscall.Unmount(small, 0)
		path := filepath.Join(small, "f")
		must.Do(t, Write(path, []byte("old"), 0o644), "write a file")
		if err := Write(path, make([]byte, 64<<10), 0o644); err == nil {
			t.Error("64 KiB fitted a file system of 8 KiB")
		}
		if got, _ := os.ReadFile(path); string(got) != "old" {
			t.Errorf("content %q, want the old one", got)
		}
		onlyFile(t, path)
	})
}

// A reader never sees anything but one of the two contents.
func TestWriteIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	contents := [][]byte{bytes.Repeat([]byte("a"), 10000), bytes.Repeat([]byte("b"), 20000)}
	must.Do(t, Write(path, contents[0], 0o644), "write a file")
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
				t.Errorf("read %d bytes, %v: neither of the two contents", len(got), err)
				return
			}
		}
	})
	for i := range 200 {
		if err := Write(path, contents[i%2], 0o644); err != nil {
			t.Errorf("replace the file that is being read, time %d: %v", i, err)
		}
	}
	close(done)
	wg.Wait()
}

// onlyFile fails the test unless path is alone in its directory.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries := must.Get(os.ReadDir(filepath.Dir(path)))(t, "list the directory")
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory holds %v, want only %s", entries, filepath.Base(path))
	}
}
