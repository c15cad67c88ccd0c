// Package atomicfile replaces files so that a reader sees the old content or the new, whole, and never anything
// else: not half a file, not one with the wrong owner, and not, after a crash, an empty one.
//
// It serves files that stand alone. Files that must agree with each other need one switch for all of them:
// package mtls has that.
package atomicfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Write makes data the content of the file at path, with exactly the permissions perm, whatever the umask. The
// file belongs to the caller. A symbolic link at path is replaced, not followed.
//
// When Write fails, path is as it was and the directory holds nothing new. The one exception is an error of the
// last step, which says so: the new content is in place, but may not survive a power failure.
func Write(path string, data []byte, perm fs.FileMode) error {
	return WriteOwned(path, data, perm, -1, -1)
}

// WriteOwned is Write for a file that belongs to uid and gid; -1 leaves either as it comes.
func WriteOwned(path string, data []byte, perm fs.FileMode, uid, gid int) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, "."+base+".tmp-*") // O_EXCL, 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fill(f, data, perm, uid, gid); err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("written, but not flushed, %s: %w", path, err)
	}
	return nil
}

// fill gives f its owner and permissions first and its content last, so that nobody reads what they should not,
// and closes it.
func fill(f *os.File, data []byte, perm fs.FileMode, uid, gid int) (err error) {
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	// In this order CAP_CHOWN is enough: fchmod of a file that belongs to someone else needs CAP_FOWNER too.
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if uid != -1 || gid != -1 {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// syncDir makes a rename in dir durable. Windows flushes a rename by itself, and lets nobody flush a directory.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
