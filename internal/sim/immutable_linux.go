package sim

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ClearImmutable clears the immutable attribute of everything below dir, where it can: the agent sets it on what it
// publishes as root.
func ClearImmutable(dir string) {
	const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return nil
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&immutable != 0 {
			unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
		}
		return nil
	})
}

// RemoveAll is os.RemoveAll for a directory that an agent has published to.
func RemoveAll(dir string) error {
	ClearImmutable(dir)
	return os.RemoveAll(dir)
}
