package directory

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// fsImmutable is FS_IMMUTABLE_FL of linux/fs.h, the attribute i of chattr(1). It stops what permissions do not stop
// root from, even in a container: writing, chmod, unlink, hard links, and any change in a directory. Taking it off
// needs CAP_LINUX_IMMUTABLE, which Docker does not grant. Renaming ..data over is no change of a generation.
const fsImmutable = 0x10

// noImmutable are the errors of a file system, or of a process, that cannot have the attribute.
var noImmutable = []error{unix.ENOTTY, unix.EOPNOTSUPP, unix.EPERM, unix.EINVAL, unix.ENOSYS}

// setImmutable sets or clears the attribute of an open file or directory. It reports false where there is no such
// thing.
func setImmutable(fd int, on bool) (bool, error) {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && (flags&fsImmutable != 0) != on {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags^fsImmutable)
	}
	if slices.ContainsFunc(noImmutable, func(e error) bool { return errors.Is(err, e) }) {
		return false, nil
	}
	return err == nil, err
}

// clearImmutable clears the attribute of a generation and of everything in it, as far as possible: where it stays, the
// change that it prevents fails and says so.
func clearImmutable(root *os.Root, generation string) {
	changeAll(root, generation, func(fd int) error {
		setImmutable(fd, false)
		return nil
	})
}

// makeImmutable sets the attribute, and reports whether everything has it.
func makeImmutable(root *os.Root, generation string) bool {
	all := true
	err := changeAll(root, generation, func(fd int) error {
		ok, err := setImmutable(fd, true)
		all = all && ok
		return err
	})
	return all && err == nil
}

// changeAll calls do with everything in a generation, and with its directory.
func changeAll(root *os.Root, generation string, do func(fd int) error) error {
	g, err := openGeneration(root, generation)
	if err != nil {
		return err
	}
	defer g.close()
	return g.each(do)
}

// removeGeneration removes a generation that no link leads to.
func removeGeneration(root *os.Root, generation string) error {
	clearImmutable(root, generation)
	return root.RemoveAll(generation)
}
