package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// open opens the published directory, which is made if that is possible, and rejected unless its files stay in memory:
// a disk is outside what SEV-SNP encrypts. Everything below goes through the os.Root, so that a link planted by a
// container that can write here leads nowhere.
//
// The path of a consumer's directory ends in a published directory, where others may be able to make links: there, a
// link is removed and never followed.
func (d *Directory) open() (*os.Root, error) {
	if d.consumer == "" {
		return openDir(d.path, d.allowDisk)
	}
	fi, err := os.Lstat(d.path)
	if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		if err = os.Remove(d.path); err == nil {
			err = fs.ErrNotExist
		}
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, err
	}
	root, err := openDir(d.path, d.allowDisk)
	if err != nil {
		return nil, err
	}
	if missing { // openDir has made it
		fi, err = os.Lstat(d.path)
	}
	if err == nil {
		var opened fs.FileInfo
		if opened, err = root.Stat("."); err == nil && os.SameFile(fi, opened) {
			return root, nil
		}
	}
	root.Close()
	return nil, fmt.Errorf("%s has just been replaced (%v)", d.path, err)
}

// openDir opens a published directory by its path.
func openDir(path string, allowDisk bool) (*os.Root, error) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(path, allowDisk); err != nil {
			return nil, err
		}
		root, err = os.OpenRoot(path)
	}
	if err != nil {
		return nil, err
	}
	if err := checkFileSystem(path, allowDisk); err != nil {
		root.Close()
		if obstacle := mountObstacle(path); obstacle != "" {
			err = fmt.Errorf("%w; %s", err, obstacle)
		}
		return nil, err
	}
	return root, nil
}

// mountObstacle says what keeps the package's mount unit from mounting a tmpfs over a directory: it hides nobody's
// files.
func mountObstacle(path string) string {
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) == 0 {
		return ""
	}
	name := entries[0].Name()
	if n := len(entries) - 1; n > 0 {
		name = fmt.Sprintf("%s and %d more", name, n)
	}
	return "no tmpfs is mounted over the files that it has, " + name + ": move them away, and restart sevagent.service"
}

// makeDir makes a missing directory if what is above it is the right kind of file system.
func makeDir(path string, allowDisk bool) error {
	_, err := os.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(path)
	if err := makeDir(above, allowDisk); err != nil {
		return err
	}
	if err := checkFileSystem(above, allowDisk); err != nil {
		return fmt.Errorf("%s does not exist: %w", path, err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) // whatever the umask
}

// checkFileSystem returns an error unless path is on a file system whose files stay in memory.
func checkFileSystem(path string, allowDisk bool) error {
	if allowDisk {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch int64(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return nil
	}
	return fmt.Errorf("%s is not on a tmpfs (file system type 0x%x): private keys would reach a disk", path, st.Type)
}
