package guard

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sevagent/client"
)

// Finding is one difference between what is there and what should be.
type Finding struct {
	client.Finding
	// Repairable reports whether a new publication puts it right for every reader. It cannot do so for the directory
	// itself, whose inode containers hold, nor for a name in it that is mounted over, which cannot be renamed to.
	Repairable bool
}

// maxExtra bounds what is named of a directory that someone has filled, maxEntries how far it is read.
const (
	maxExtra   = 16
	maxEntries = 1024
)

// findings collects what is wrong.
type findings []Finding

func (fs *findings) add(path string, what client.FindingKind, format string, args ...any) {
	*fs = append(*fs, Finding{client.Finding{Path: path, What: what, Detail: fmt.Sprintf(format, args...)}, true})
}

func (fs findings) last() *Finding { return &fs[len(fs)-1] }

// verify looks at the directory from the top. If that is not the expected one, nothing below it matters.
func (t *Tree) verify(path string) []Finding {
	var found findings
	dir, st, err := openDir(unix.AT_FDCWD, path, 0)
	if err != nil {
		found.failed(".", err, client.FoundOtherDirectory)
		found.last().Repairable = false
		return found
	}
	defer unix.Close(dir)
	if found.place(t.dir, st, t.dir.mount, client.FoundOtherDirectory); len(found) > 0 {
		for i := range found {
			found[i].Repairable = false
		}
		if w := found.last().What; w == client.FoundMount || w == client.FoundOtherDirectory {
			return found
		}
	}
	for _, l := range t.links {
		found.link(dir, st.Mnt_id, l)
	}
	found.extra(dir, ".", true, func(name string) bool {
		ours := slices.ContainsFunc(t.links, func(l link) bool { return l.name == name })
		return ours || strings.HasPrefix(name, "..") || slices.Contains(t.allowed, name)
	})

	gen, genStat, err := openDir(dir, t.gen.name, unix.O_NOFOLLOW)
	if err != nil {
		found.failed(t.gen.name, err, client.FoundReplaced)
		return found
	}
	defer unix.Close(gen)
	before := len(found)
	found.place(t.gen, genStat, st.Mnt_id, client.FoundReplaced)
	if len(found) > before && (found.last().What == client.FoundMount || found.last().What == client.FoundReplaced) {
		return found
	}
	buf := make([]byte, t.largest+1)
	for _, f := range t.files {
		found.file(gen, t.gen.name, genStat.Mnt_id, f, buf)
	}
	found.extra(gen, t.gen.name, false, func(name string) bool {
		return slices.ContainsFunc(t.files, func(f expectedFile) bool { return f.Name == name })
	})
	return found
}

// place compares a directory, which should be on mount. A directory that is mounted over itself serves the same files.
func (fs *findings) place(p place, st *unix.Statx_t, mount uint64, replaced client.FindingKind) {
	switch {
	case identityOf(st) == p.id:
		fs.access(p.name, st, p.mode, p.uid, p.gid)
	case st.Mnt_id == mount:
		fs.add(p.name, replaced, "another directory is in its place")
	default:
		if _, there := mountedAs(mount); !there {
			fs.add(p.name, replaced, "the file system it was on has been unmounted")
			return
		}
		fs.mounted(p.name, st)
	}
}

func (fs *findings) mounted(path string, st *unix.Statx_t) {
	as, _ := mountedAs(st.Mnt_id)
	fs.add(path, client.FoundMount, "by %s", as)
}

func (fs *findings) access(path string, st *unix.Statx_t, mode, uid, gid uint32) {
	if got := uint32(st.Mode) & 0o7777; got != mode {
		fs.add(path, client.FoundMode, "%04o, want %04o", got, mode)
	}
	if st.Uid != uid || st.Gid != gid {
		fs.add(path, client.FoundOwner, "%d:%d, want %d:%d", st.Uid, st.Gid, uid, gid)
	}
}

// failed adds the finding for an error of opening a name: it is not there, or it is of another type than it should be.
func (fs *findings) failed(path string, err error, replaced client.FindingKind) {
	switch {
	case errors.Is(err, unix.ENOENT):
		fs.add(path, client.FoundRemoved, "is not there")
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		fs.add(path, replaced, "something else is in its place")
	default:
		fs.add(path, client.FoundUnreadable, "%v", err)
		fs.last().Warning = true
	}
}

func (fs *findings) link(dir int, mount uint64, l link) {
	target := make([]byte, len(l.target)+1)
	n, err := unix.Readlinkat(dir, l.name, target)
	if err == nil && string(target[:n]) == l.target {
		return
	}
	st, statErr := stat(dir, l.name)
	switch {
	case statErr != nil:
		fs.failed(l.name, statErr, client.FoundReplaced)
	case st.Mnt_id != mount: // a link can be mounted over, by way of /proc/self/fd
		fs.mounted(l.name, st)
		fs.last().Repairable = false
	case err == nil:
		fs.add(l.name, client.FoundRetargeted, "does not lead to %q", l.target)
	default:
		fs.add(l.name, client.FoundReplaced, "something else is in its place")
		// The owner removes an empty directory where a link for users should be, but renames over ..data.
		fs.last().Repairable = st.Mode&unix.S_IFMT != unix.S_IFDIR || !strings.HasPrefix(l.name, "..")
	}
}

// file compares a file, by name before it is opened, since opening a device or a FIFO can have effects.
func (fs *findings) file(gen int, genName string, mount uint64, f expectedFile, buf []byte) {
	path := filepath.Join(genName, f.Name)
	st, err := stat(gen, f.Name)
	switch {
	case err != nil:
		fs.failed(path, err, client.FoundReplaced)
		return
	case identityOf(st) == f.id:
	case st.Mnt_id != mount:
		fs.mounted(path, st)
		return
	default:
		fs.add(path, client.FoundReplaced, "something else is in its place")
		return
	}
	fs.access(path, st, uint32(f.Mode.Perm()), uint32(f.UID), uint32(f.GID))
	if st.Nlink != 1 {
		fs.add(path, client.FoundHardLink, "has %d names", st.Nlink)
	}
	fd, err := unix.Openat(gen, f.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		fs.failed(path, err, client.FoundReplaced)
		return
	}
	defer unix.Close(fd)
	if st, err := fstat(fd); err != nil || identityOf(st) != f.id {
		fs.add(path, client.FoundReplaced, "something else is in its place")
		return
	}
	if _, err := unix.Fgetxattr(fd, "system.posix_acl_access", nil); err == nil {
		fs.add(path, client.FoundMode, "has an access control list")
	}
	n, err := readFull(fd, buf[:f.Size+1])
	switch {
	case err != nil:
		fs.failed(path, err, client.FoundReplaced)
	case n != f.Size:
		fs.add(path, client.FoundContent, "is not %d bytes long", f.Size)
	case sha256.Sum256(buf[:n]) != f.SHA256:
		fs.add(path, client.FoundContent, "does not have the SHA-256 %x", f.SHA256)
	}
}

// extra adds the entries of a directory that are not ours.
func (fs *findings) extra(dir int, path string, warning bool, ours func(name string) bool) {
	names, all, err := readNames(dir)
	if err != nil {
		fs.failed(path, err, client.FoundReplaced)
		return
	}
	names = slices.DeleteFunc(names, ours)
	before := len(*fs)
	for _, name := range names[:min(len(names), maxExtra)] {
		fs.add(filepath.Join(path, name), client.FoundExtra, "a name that is not ours")
	}
	if !all || len(names) > maxExtra {
		fs.add(path, client.FoundExtra, "and more names")
	}
	for i := range (*fs)[before:] {
		f := &(*fs)[before+i]
		f.Warning, f.Repairable = warning, !warning
	}
}

// readNames returns at most about maxEntries names, and reports whether those are all.
func readNames(dir int) (names []string, all bool, err error) {
	buf := make([]byte, 8<<10)
	for len(names) < maxEntries {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil || n <= 0 {
			return names, true, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	return names, false, nil
}

func readFull(fd int, buf []byte) (int, error) {
	var read int
	for read < len(buf) {
		n, err := unix.Read(fd, buf[read:])
		if err != nil {
			return read, err
		}
		if n == 0 {
			break
		}
		read += n
	}
	return read, nil
}

// mountedAs describes a mount as an operator would look for it, and reports whether it is in the mount table.
func mountedAs(id uint64) (string, bool) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "a mount", true
	}
	defer table.Close()
	for s := bufio.NewScanner(table); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		where, what := strings.Fields(before), strings.Fields(after) // proc_pid_mountinfo(5)
		if len(where) > 3 && len(what) > 1 && where[0] == fmt.Sprint(id) {
			return fmt.Sprintf("%s of %s (%s)", where[3], what[0], what[1]), true
		}
	}
	return "a mount", false
}
