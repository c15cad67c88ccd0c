package mtls

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fsImmutable is FS_IMMUTABLE_FL of linux/fs.h, the attribute i of chattr(1). It stops what permissions do not stop
// root from, be it in a container: writing, chmod, unlink, hard links, and any change in a directory. Taking it off
// needs CAP_LINUX_IMMUTABLE, which Docker does not grant. Renaming ..data over is no change of a generation.
const fsImmutable = 0x10

// noImmutable are the errors of a file system, or of a process, that cannot have the attribute.
var noImmutable = []error{unix.ENOTTY, unix.EOPNOTSUPP, unix.EPERM, unix.EINVAL, unix.ENOSYS}

// setImmutable sets or clears the attribute of an open file or directory. Where it cannot be had it says false.
func setImmutable(f *os.File, on bool) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var ioErr error
	if err := conn.Control(func(fd uintptr) { ioErr = changeImmutable(int(fd), on) }); err != nil {
		return false, err
	}
	if slices.ContainsFunc(noImmutable, func(e error) bool { return errors.Is(ioErr, e) }) {
		return false, nil
	}
	if ioErr != nil {
		return false, &fs.PathError{Op: "set the immutable attribute", Path: f.Name(), Err: ioErr}
	}
	return true, nil
}

func changeImmutable(fd int, on bool) error {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	want := flags &^ fsImmutable
	if on {
		want |= fsImmutable
	}
	if want == flags {
		return nil
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, want)
}

// soften clears the attribute of a generation and of all that is in it, as far as that can be done: what it would
// keep from being changed says so itself.
func soften(root *os.Root, generation string) {
	changeAll(root, generation, false)
}

// harden sets it, and reports whether all has it.
func harden(root *os.Root, generation string) bool {
	return changeAll(root, generation, true)
}

func changeAll(root *os.Root, generation string, on bool) (all bool) {
	gen, err := root.OpenRoot(generation)
	if err != nil {
		return false
	}
	defer gen.Close()
	names, err := readNames(gen)
	if err != nil {
		return false
	}
	all = true
	for _, name := range append(names, ".") {
		f, err := gen.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			all = false
			continue
		}
		ok, err := setImmutable(f, on)
		f.Close()
		all = all && ok && err == nil
	}
	return all
}

// softenAll clears it everywhere in the published directory. The attribute is for as long as the agent runs: without
// it nobody would put back what is changed, the next start looks at everything anyway, and whoever removes the agent
// should not need chattr(1) to remove what it has left.
func softenAll(path string) error {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer root.Close()
	names, err := readNames(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, genPrefix) {
			soften(root, name)
		}
	}
	return nil
}

// removeGeneration removes a generation that no link leads to.
func removeGeneration(root *os.Root, generation string) error {
	soften(root, generation)
	return root.RemoveAll(generation)
}
