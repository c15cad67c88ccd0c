package guard

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Layout is what the owner has published, as the owner knows it: none of it is read back from a disk that someone may
// have written to since.
type Layout struct {
	Generation string            // the directory in Path that has the files
	Files      []File            // all that is in it
	Links      map[string]string // every link in Path, those that begin with two dots included, and where it leads
	// Allowed lists names in Path that are neither links nor foreign, such as directories of consumers. Names that
	// begin with two dots are always allowed: earlier generations, and links that are being made.
	Allowed []string
}

// File is a file of the generation.
type File struct {
	Name     string
	Size     int
	SHA256   [sha256.Size]byte
	Mode     fs.FileMode // permission bits
	UID, GID int
}

// Tree is what should be there: a Layout, and from the disk what distinguishes its directories and files from others of
// the same name. It does not change.
type Tree struct {
	dir, gen place
	files    []expectedFile
	links    []link // sorted
	allowed  []string
	largest  int // file
}

// place is a directory. Its owner and mode are as Capture found them.
type place struct {
	name     string
	id       identity
	mount    uint64 // what it was found on
	mode     uint32
	uid, gid uint32
}

type expectedFile struct {
	File
	id identity
}

type link struct{ name, target string }

// identity distinguishes a file from every other. Some file systems give the number of a removed inode to the next one,
// but with another time of birth (zero where the file system does not record it).
type identity struct {
	major, minor uint32
	ino          uint64
	birth        unix.StatxTimestamp
}

// Capture records a publication. The owner calls it right after the last write.
func Capture(path string, l Layout) (*Tree, error) {
	dir, st, err := openDir(unix.AT_FDCWD, path, 0)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", path, err)
	}
	defer unix.Close(dir)
	t := &Tree{dir: placeOf(".", st), allowed: slices.Clone(l.Allowed)}
	gen, st, err := openDir(dir, l.Generation, unix.O_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", filepath.Join(path, l.Generation), err)
	}
	defer unix.Close(gen)
	t.gen = placeOf(l.Generation, st)
	for _, f := range l.Files {
		st, err := stat(gen, f.Name)
		if err != nil {
			return nil, fmt.Errorf("capture %s: %w", filepath.Join(path, l.Generation, f.Name), err)
		}
		t.files = append(t.files, expectedFile{f, identityOf(st)})
		t.largest = max(t.largest, f.Size)
	}
	for name, target := range l.Links {
		t.links = append(t.links, link{name, target})
	}
	slices.SortFunc(t.links, func(a, b link) int { return strings.Compare(a.name, b.name) })
	return t, nil
}

// SameDirectory reports whether both were captured from the same directory, not merely from the same path.
func (t *Tree) SameDirectory(o *Tree) bool { return t.dir.id == o.dir.id }

// Allow returns the same tree with other allowed names.
func (t *Tree) Allow(names []string) *Tree {
	same := *t
	same.allowed = slices.Clone(names)
	return &same
}

func placeOf(name string, st *unix.Statx_t) place {
	return place{name, identityOf(st), st.Mnt_id, uint32(st.Mode) & 0o7777, st.Uid, st.Gid}
}

func identityOf(st *unix.Statx_t) identity {
	return identity{st.Dev_major, st.Dev_minor, st.Ino, st.Btime}
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// stat looks at a name without following it, or at what is mounted over it.
func stat(dir int, name string) (*unix.Statx_t, error) {
	st := new(unix.Statx_t)
	return st, unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, st)
}

func fstat(fd int) (*unix.Statx_t, error) {
	st := new(unix.Statx_t)
	return st, unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, st)
}

// openDir opens a directory, and nothing else: a FIFO in its place is refused at once.
func openDir(at int, name string, flags int) (int, *unix.Statx_t, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return -1, nil, err
	}
	st, err := fstat(fd)
	if err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, st, nil
}
