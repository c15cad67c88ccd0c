package directory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sevagent/internal/mtls/certset"
)

// errEmpty says that there is no generation yet.
var errEmpty = errors.New("nothing is published")

// restore finishes or undoes what an earlier run left behind, whether it ended well or was killed in the middle of a
// publication, and returns the current generation if it may be served as it is: complete, unchanged, and valid when it
// was published. In a consumer's directory it need only be complete and unchanged: the node's own set says what belongs
// there.
//
// An error means that a new one is needed. With it may come a damaged generation, whose content is good but whose
// owner, modes or links are not what the manifest says: that content need not be fetched again.
func (d *Directory) restore(root *os.Root) (*Generation, error) {
	current := linkedGeneration(root, dataLink)
	if err := removeLeftovers(root, current); err != nil {
		return nil, err
	}
	if current == "" {
		return nil, errEmpty
	}
	g, contents, drift, err := readGeneration(root, current)
	if err == nil && d.consumer == "" {
		g.Set, err = g.manifest.restoreSet(contents)
	}
	if err != nil {
		return nil, fmt.Errorf("generation %s: %w", current, err)
	}
	err = errors.Join(drift, d.finish(root, g))
	g.Damaged = err != nil
	return g, err
}

// removeLeftovers removes what has never been published: half-made links, and generations that were not sealed, or
// sealed but not switched to, which are those later than the current one.
func removeLeftovers(root *os.Root, current string) error {
	names, err := readNames(root)
	if err != nil {
		return err
	}
	unlinked, err := generations(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case isTmpName(name):
		case slices.Contains(unlinked, name):
			fi, err := root.Lstat(name)
			if err != nil {
				return err
			}
			if fi.Mode().Perm() != 0o700 && name < current {
				continue // it was current once
			}
		default:
			continue
		}
		clearImmutable(root, name) // it may be a generation
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// readGeneration reads a generation back. Drift is what differs from its manifest, other than content.
func readGeneration(root *os.Root, name string) (g *Generation, contents map[string][]byte, drift, err error) {
	gen, err := root.OpenRoot(name)
	if err != nil {
		return nil, nil, nil, err
	}
	defer gen.Close()
	g = new(Generation)
	if g.manifest, g.encoded, err = readManifest(gen, name); err != nil {
		return nil, nil, nil, err
	}
	if g.access, err = g.manifest.access(); err != nil {
		return nil, nil, nil, err
	}
	if contents, drift, err = readFiles(gen, g.manifest); err != nil {
		return nil, nil, nil, err
	}
	g.Evidence = contents[evidenceFile]
	return g, contents, drift, nil
}

// restoreSet makes the set again. Without an error, this program would have published the same files from the same
// secrets.
func (m *manifest) restoreSet(contents map[string][]byte) (*certset.Set, error) {
	var files []certset.File
	for _, e := range m.Files {
		if e.File != evidenceFile {
			files = append(files, certset.File{
				Name: e.File, Content: contents[e.File], Origin: m.origin(e), Also: e.Also,
			})
		}
	}
	carried := make(map[string]time.Time)
	for _, o := range m.CAOverlap {
		carried[o.SHA256] = o.Until
	}
	return certset.Restore(m.Secrets, files, carried, m.Warnings, m.Published)
}

// origin returns where a file comes from.
func (m *manifest) origin(e manifestEntry) certset.Origin {
	for _, o := range m.Secrets {
		if o.Secret == e.Secret && o.Version == e.Version {
			return o
		}
	}
	return certset.Origin{Secret: e.Secret, Version: e.Version}
}

// maxFileBytes has room for the anchors of 20 secrets of 1 MiB.
const maxFileBytes = 32 << 20

// readFiles reads the files of a manifest. An error means that the content of one is not what was published; drift is
// what else is not.
func readFiles(gen *os.Root, m *manifest) (contents map[string][]byte, drift, err error) {
	contents = make(map[string][]byte)
	for _, e := range m.Files {
		content, st, err := readBounded(gen, e.File, maxFileBytes)
		if err != nil {
			return nil, nil, err
		}
		if err := e.checkContent(content); err != nil {
			return nil, nil, err
		}
		drift = errors.Join(drift, m.checkAccess(e, st))
		contents[e.File] = content
	}
	return contents, drift, nil
}

// finish does what a crash right after the switch has left undone. Doing it twice does no harm.
func (d *Directory) finish(root *os.Root, g *Generation) error {
	err := errors.Join(checkGenerationDir(root, g.Name()), repairLinks(root, g.manifest.links()), syncRoot(root))
	g.Immutable = makeImmutable(root, g.Name())
	if previous := linkedGeneration(root, prevLink); previous != "" && previous != g.Name() {
		makeImmutable(root, previous)
		if err := wakeReaders(root, previous); err != nil {
			d.log.Warn("cannot wake readers that watch files", "generation", previous, "err", err)
		}
	}
	return err
}

// checkGenerationDir returns an error unless only the agent can change the directory of a generation.
func checkGenerationDir(root *os.Root, name string) error {
	fi, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || fi.Mode().Perm() != 0o755 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s has mode %04o, or another owner than the agent", name, fi.Mode().Perm())
	}
	return nil
}

// checkAccess compares owner and mode with the manifest.
func (m *manifest) checkAccess(e manifestEntry, st *unix.Stat_t) error {
	mode, owner := modeString(fs.FileMode(st.Mode)), Owner{int(st.Uid), int(st.Gid)}.String()
	if mode != e.Mode || owner != m.Owner {
		return fmt.Errorf("%s has mode %s and owner %s, want %s and %s", e.File, mode, owner, e.Mode, m.Owner)
	}
	return nil
}
