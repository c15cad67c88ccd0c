package directory

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/mtls/certset"
)

// grace is how long a generation stays after its successor has taken over: a reader may have resolved ..data just
// before. To keep a number of generations is not enough: with one kept and a rotation every millisecond, one reader
// in a thousand found its files gone.
const grace = 10 * time.Minute

// maxRetired bounds what fast rotations may pile up in a tmpfs of 16 MiB, whatever grace says: a generation is about 15
// pages. Hints allow 70 rotations in ten minutes, so that only local files get there.
const maxRetired = 128

// Generation is a set as it lies in the directory.
type Generation struct {
	// Set is nil after a restart in a consumer's directory, until TakeOver: the node's own set says what belongs there.
	Set      *certset.Set
	Evidence []byte // evidence.json; nil: none
	// Immutable reports whether nobody without CAP_LINUX_IMMUTABLE can change it.
	Immutable bool
	// Damaged reports whether it was found at the start with good content, but not as its manifest describes it.
	Damaged bool

	manifest *manifest
	encoded  []byte // manifest.json
	access   Access
}

// Name returns the name of the generation.
func (g *Generation) Name() string { return g.manifest.Generation }

// Published returns when it was published.
func (g *Generation) Published() time.Time { return g.manifest.Published }

// Files lists its files, without manifest.json.
func (g *Generation) Files() []string { return g.manifest.links()[1:] }

// Holds reports whether it has the files of s under a, whatever their versions are called, and evidence if that is
// wanted.
func (g *Generation) Holds(s *certset.Set, a Access, withEvidence bool) bool {
	return !g.Damaged && (g.Evidence != nil || !withEvidence) && g.manifest.describes(s, a)
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

// generationName makes names that sort by time. The version is that of the only secret, or stands for all of them.
func generationName(origins []certset.Origin, now time.Time) string {
	var version string
	if len(origins) == 1 {
		version = origins[0].Version
	}
	keep := func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}
	if version = strings.Map(keep, version); len(version) < 8 {
		h := sha256.New()
		for _, s := range origins {
			fmt.Fprintf(h, "%d:%s%d:%s", len(s.Secret), s.Secret, len(s.Version), s.Version)
		}
		version = hex.EncodeToString(h.Sum(nil))
	}
	return genPrefix + now.UTC().Format("20060102T150405.000000Z") + "-" + version[:8]
}

// wakeReaders gives the files of a generation that is no longer current an attribute change. Its files are kept, so
// readers that watch a file and not the directory would otherwise never hear of the switch: fsnotify saw 50 of 100
// rotations without this, and 100 with it. From then on they are no longer immutable.
func wakeReaders(root *os.Root, generation string) error { return changeAll(root, generation, touch) }

// touch changes an attribute of a file to what it is already, and clears the immutable one.
func touch(fd int) error {
	if _, err := setImmutable(fd, false); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	return unix.Fchmod(fd, st.Mode&0o7777) // fchown(2) with -1 and -1 changes as little, and causes no event
}

// retire records when a generation stopped being current, as its modification time.
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
	at := unix.NsecToTimespec(now.UnixNano())
	return unix.UtimesNanoAt(g.fd, ".", []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

// collect removes the generations that neither ..data nor ..prev leads to: those retired for grace, and at once those
// above the newest keep.
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

// generations lists the generations that are neither current nor previous.
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

// clearAllImmutable clears it everywhere in the published directory. The attribute is for as long as the agent runs:
// when it does not, nobody puts back what is changed, the next start looks at everything anyway, and removing what the
// agent has left should not need chattr(1).
func clearAllImmutable(path string) error {
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
			clearImmutable(root, name)
		}
	}
	return nil
}
