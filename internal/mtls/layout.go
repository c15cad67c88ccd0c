package mtls

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names in the published directory. What begins with two dots is not a user's file, as with Kubernetes' volumes.
const (
	dataLink  = "..data" // the current generation
	prevLink  = "..prev" // the one before
	genPrefix = "..gen-"
	tmpSuffix = "_tmp"
	// asidePrefix is for what someone has put where a link should be; it is kept.
	asidePrefix = "..foreign-"
)

// grace is how long a generation stays after its successor has taken over: a reader may have resolved ..data just
// before. To keep a number of generations is not enough: with one kept and a rotation every millisecond, one reader
// in a thousand found its files gone.
const grace = 10 * time.Minute

// maxRetired bounds what fast rotations may pile up in a tmpfs of 16 MiB, whatever grace says: a generation is about 15
// pages. Hints allow 70 rotations in ten minutes, so that only local files get there.
const maxRetired = 128

// open opens the published directory, which is made if it can be and refused unless its files stay in memory:
// a disk is outside what SEV-SNP encrypts. Everything below goes through the os.Root, so that a link planted by a
// container that can write here leads nowhere.
//
// The path of a consumer's directory ends in a published directory, where others may be able to make links: there, a
// link is removed, and never gone through.
func (p *publisher) open() (*os.Root, error) {
	if p.consumer == "" {
		return openDir(p.path, p.allowDisk)
	}
	fi, err := os.Lstat(p.path)
	if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		if err = os.Remove(p.path); err == nil {
			err = fs.ErrNotExist
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	root, openErr := openDir(p.path, p.allowDisk)
	if openErr != nil {
		return nil, openErr
	}
	if err == nil {
		var there fs.FileInfo
		if there, err = root.Stat("."); err == nil && os.SameFile(fi, there) {
			return root, nil
		}
	} else if fi, err = os.Lstat(p.path); err == nil { // it was made a moment ago
		var there fs.FileInfo
		if there, err = root.Stat("."); err == nil && os.SameFile(fi, there) {
			return root, nil
		}
	}
	root.Close()
	return nil, fmt.Errorf("%s has been replaced meanwhile (%v)", p.path, err)
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
		if held := heldUp(path); held != "" {
			err = fmt.Errorf("%w; %s", err, held)
		}
		return nil, err
	}
	return root, nil
}

// heldUp says what keeps the package's mount unit from mounting a tmpfs over a directory: it hides nobody's files.
func heldUp(path string) string {
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) == 0 {
		return ""
	}
	name := entries[0].Name()
	if n := len(entries) - 1; n > 0 {
		name = fmt.Sprintf("%s and %d more", name, n)
	}
	return fmt.Sprintf("no tmpfs is mounted over the files that it has, %s: move them away, and restart sevagent.service", name)
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

// linkedGeneration returns the name of the generation that a link leads to; empty if it leads nowhere of ours.
func linkedGeneration(root *os.Root, link string) string {
	target, err := root.Readlink(link)
	if err != nil || !strings.HasPrefix(target, genPrefix) || strings.Contains(target, "/") {
		return ""
	}
	if fi, err := root.Lstat(target); err != nil || !fi.IsDir() {
		return ""
	}
	return target
}

// setLink makes name a link to target, by one rename if there is something already.
func setLink(root *os.Root, name, target string) error {
	if now, err := root.Readlink(name); err == nil && now == target {
		return nil
	}
	tmp := tmpName(name)
	if err := stageLink(root, tmp, target); err != nil {
		return err
	}
	if err := renameOver(root, tmp, name); err != nil {
		root.Remove(tmp)
		return err
	}
	return nil
}

// renameOver renames a link over what is there. A directory, which someone must have put there, cannot be renamed over,
// and goes out of the way.
func renameOver(root *os.Root, tmp, name string) error {
	err := root.Rename(tmp, name)
	if fi, e := root.Lstat(name); err == nil || e != nil || !fi.IsDir() {
		return err
	}
	return errors.Join(moveAside(root, name), root.Rename(tmp, name))
}

// moveAside keeps what someone has put where something of ours belongs, under a name that readers do not look at.
func moveAside(root *os.Root, name string) error {
	return root.Rename(name, asidePrefix+strings.TrimLeft(name, ".")+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
}

// stageLink makes a link, in place of one that a crash may have left.
func stageLink(root *os.Root, name, target string) error {
	err := root.Symlink(target, name)
	if errors.Is(err, fs.ErrExist) {
		if err = clearTmp(root, name); err == nil {
			err = root.Symlink(target, name)
		}
	}
	return err
}

// tmpName is where a link is made before it is renamed: out of sight, and recognisable after a crash.
func tmpName(name string) string { return ".." + strings.TrimPrefix(name, "..") + tmpSuffix }

func isTmpName(name string) bool {
	return strings.HasPrefix(name, "..") && strings.HasSuffix(name, tmpSuffix)
}

// clearTmp removes what lies at a temporary name, whatever it is and whoever has put it there.
func clearTmp(root *os.Root, name string) error {
	soften(root, name)
	return root.RemoveAll(name)
}

func removeIfThere(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncRoot(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// userLinks compares the entries of the directory with the links for users that there should be. Only links of our own making are
// unwanted. A directory where a link should be is an error if it has something in it; an empty one is what Docker
// leaves when it finds nothing to bind, and is removed.
//
// ours are the names of which links of ours have been there: a directory in the place of one was put there by someone else,
// and goes out of the way.
func userLinks(root *os.Root, entries, names, ours []string) (missing, unwanted []string, err error) {
	there := make(map[string]bool)
	for _, name := range entries {
		if strings.HasPrefix(name, "..") {
			continue
		}
		wanted := slices.Contains(names, name)
		if target, err := root.Readlink(name); err == nil {
			there[name] = target == dataLink+"/"+name
			if !wanted && strings.HasPrefix(target, dataLink+"/") {
				unwanted = append(unwanted, name)
			}
			continue
		}
		if fi, err := root.Lstat(name); err == nil && fi.IsDir() && wanted {
			err := root.Remove(name)
			if err != nil && slices.Contains(ours, name) {
				err = moveAside(root, name)
			}
			if err != nil {
				return nil, nil, fmt.Errorf("make room for a link: %w", err)
			}
		}
	}
	for _, name := range names {
		if !there[name] {
			missing = append(missing, name)
		}
	}
	return missing, unwanted, nil
}

// mendLinks makes the links for users what they should be.
func mendLinks(root *os.Root, names []string) error {
	entries, err := readNames(root)
	if err != nil {
		return err
	}
	missing, unwanted, err := userLinks(root, entries, names, names)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range missing {
		errs = append(errs, setLink(root, name, dataLink+"/"+name))
	}
	for _, name := range unwanted {
		errs = append(errs, removeIfThere(root, name))
	}
	return errors.Join(errs...)
}

// readNames lists a directory. (os.File.ReadDir would look at every entry, which takes longer than all the rest.)
func readNames(root *os.Root) ([]string, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// wake gives the files of a generation that is no longer current an attribute change. Its files are kept, so those
// who watch a file and not the directory would otherwise never hear of the switch: fsnotify saw 50 of 100 rotations
// without this, and 100 with it. From then on they are not immutable any more.
func wake(root *os.Root, generation string) error {
	return changeAll(root, generation, func(fd int) error { return poke(fd, setImmutable) })
}

// poke is told how to take the attribute off.
func poke(fd int, set func(fd int, on bool) (bool, error)) error {
	if _, err := set(fd, false); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	return unix.Fchmod(fd, st.Mode&0o7777) // fchown(2) with -1 and -1 changes as little, and tells nobody
}

// retire notes, as its modification time, when a generation stopped being current.
func retire(root *os.Root, generation string, now time.Time) error {
	g, err := openGeneration(root, generation)
	if err != nil {
		return err
	}
	defer g.close()
	return g.retire(now)
}

func (g *genDir) retire(now time.Time) error {
	if _, err := setImmutable(g.fd, false); err != nil {
		return err
	}
	at := unix.NsecToTimeval(now.UnixNano())
	return unix.Futimes(g.fd, []unix.Timeval{at, at})
}

// collect removes the generations that neither ..data nor ..prev leads to, grace after they were retired, and those
// above the newest keep at once.
func collect(root *os.Root, keep int, now time.Time) error {
	names, err := generations(root)
	if err != nil {
		return err
	}
	var retired []fs.FileInfo
	for _, name := range names {
		fi, err := root.Lstat(name)
		if err != nil {
			return err
		}
		retired = append(retired, fi)
	}
	slices.SortFunc(retired, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var errs []error
	for i, fi := range retired {
		if i >= keep || now.Sub(fi.ModTime()) >= grace {
			errs = append(errs, removeGeneration(root, fi.Name()))
		}
	}
	return errors.Join(errs...)
}

// generations lists those that are neither current nor previous.
func generations(root *os.Root) ([]string, error) {
	names, err := readNames(root)
	if err != nil {
		return nil, err
	}
	current, previous := linkedGeneration(root, dataLink), linkedGeneration(root, prevLink)
	return slices.DeleteFunc(names, func(name string) bool {
		return !strings.HasPrefix(name, genPrefix) || name == current || name == previous
	}), nil
}

// readBounded reads a regular file that has no second name.
func readBounded(gen *os.Root, name string, limit int64) ([]byte, *unix.Stat_t, error) {
	f, err := gen.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st := new(unix.Stat_t)
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		return nil, nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size > limit {
		return nil, nil, fmt.Errorf("%s is not a plain file of at most %d bytes", name, limit)
	}
	content, err := io.ReadAll(io.LimitReader(f, limit))
	return content, st, err
}

// generationName makes names that sort by time. The version is that of the only secret, or stands for all of them.
func generationName(sources []sourceVersion, now time.Time) string {
	var version string
	if len(sources) == 1 {
		version = sources[0].Version
	}
	keep := func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}
	if version = strings.Map(keep, version); len(version) < 8 {
		h := sha256.New()
		for _, s := range sources {
			fmt.Fprintf(h, "%d:%s%d:%s", len(s.Secret), s.Secret, len(s.Version), s.Version)
		}
		version = hex.EncodeToString(h.Sum(nil))
	}
	return genPrefix + now.UTC().Format("20060102T150405.000000Z") + "-" + version[:8]
}
