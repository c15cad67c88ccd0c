package directory

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sevagent/internal/mtls/certset"
	"sevagent/internal/mtls/guard"
)

// Config says which directory to publish into.
type Config struct {
	// Path must be on a tmpfs, so that no private key reaches a disk, unless AllowDisk is set.
	Path      string
	AllowDisk bool
	// Consumer names the consumer whose directory it is, below the node's own. Empty: it is the node's own.
	Consumer string
	Log      *slog.Logger
}

// Directory is one published directory. It has one owner at a time.
type Directory struct {
	path      string
	allowDisk bool
	consumer  string
	log       *slog.Logger
	opens     *opens
	opened    bool        // Open has looked at the disk
	current   *Generation // nil: nothing that may be served

	// testOnlyBefore is called before each step. Its error ends the publication there and then, as a crash would.
	testOnlyBefore func(step string) error
	// testOnlyFail is called after each step, which fails with its error.
	testOnlyFail func(step string) error
}

// New returns a Directory that has not looked at the disk yet.
func New(c Config) *Directory {
	return &Directory{path: c.Path, allowDisk: c.AllowDisk, consumer: c.Consumer, log: c.Log, opens: newOpens()}
}

// Path returns where the directory is.
func (d *Directory) Path() string { return d.path }

// Opened reports whether Open has been able to look at the disk.
func (d *Directory) Opened() bool { return d.opened }

// Current returns the current generation; nil: there is none that may be served.
func (d *Directory) Current() *Generation { return d.current }

// Generation returns the name of the current generation. Empty: there is none.
func (d *Directory) Generation() string {
	if d.current == nil {
		return ""
	}
	return d.current.Name()
}

// Open looks at the directory for the first time, and takes over what an earlier run has published if it is good,
// although it may have expired: readers have nothing better. An error means that the directory cannot be used.
func (d *Directory) Open() error {
	root, err := d.open()
	if err != nil {
		return d.failed(err)
	}
	defer root.Close()
	d.opened = true

	g, err := d.restore(root)
	switch {
	case g == nil && errors.Is(err, errEmpty):
		d.log.Info("starting with an empty directory", "path", d.path)
		return nil
	case g == nil:
		d.log.Warn("cannot reuse the published generation", "path", d.path, "err", err)
		return nil
	case g.Damaged:
		d.log.Warn("published files were modified; publishing again",
			"path", d.path, "generation", g.Name(), "err", err)
	default:
		d.log.Info("reusing the published generation",
			"path", d.path, "generation", g.Name(), "not_after", g.manifest.NotAfter)
	}
	d.setCurrent(g)
	return nil
}

// Publish makes s the current generation, with evidence.json unless evidence is nil, or leaves the current one and says
// why. It takes a fraction of a millisecond beside the wait for a gap between reads.
func (d *Directory) Publish(s *certset.Set, evidence []byte, a Access, now time.Time) error {
	g, err := d.publish(s, evidence, a, now)
	if err != nil {
		return d.failed(err)
	}
	d.setCurrent(g)
	return nil
}

func (d *Directory) failed(err error) error { return fmt.Errorf("publish to %s: %w", d.path, err) }

func (d *Directory) setCurrent(g *Generation) {
	d.current = g
	d.opens.follow(filepath.Join(d.path, g.Name()))
}

// TakeOver notes that s gives the files of the current generation, which has to hold it.
func (d *Directory) TakeOver(s *certset.Set) {
	next := *d.current
	next.Set = s
	d.current = &next
}

// Collect removes retired generations that no reader can still be using.
func (d *Directory) Collect(now time.Time) error {
	d.opens.drain(nil) // those that no switch has waited for do not pile up
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	return collect(root, maxRetired, now)
}

// Close stops protecting the directory. Its files stay.
func (d *Directory) Close() {
	d.opens.close()
	if !d.opened {
		return
	}
	if err := clearAllImmutable(d.path); err != nil {
		d.log.Warn("published files may stay immutable", "path", d.path, "err", err)
	}
}

// Capture records what the current generation and the links to it should be. Allowed are the names of consumers'
// directories.
func (d *Directory) Capture(allowed []string) (*guard.Tree, error) {
	g := d.current
	l := guard.Layout{Generation: g.Name(), Links: map[string]string{dataLink: g.Name()}, Allowed: allowed}
	if previous, err := os.Readlink(filepath.Join(d.path, prevLink)); err == nil {
		l.Links[prevLink] = previous
	}
	for _, name := range g.manifest.links() {
		l.Links[name] = dataLink + "/" + name
	}
	uid, gid := g.access.Owner.UID, g.access.Owner.GID
	l.Files = append(l.Files, guard.File{
		Name: manifestFile, Size: len(g.encoded), SHA256: sha256.Sum256(g.encoded),
		Mode: g.access.CertMode, UID: uid, GID: gid,
	})
	for _, e := range g.manifest.Files {
		mode, err := strconv.ParseUint(e.Mode, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("%s: mode in %s: %w", e.File, manifestFile, err)
		}
		f := guard.File{Name: e.File, Size: e.Size, Mode: fs.FileMode(mode), UID: uid, GID: gid}
		if _, err := hex.Decode(f.SHA256[:], []byte(e.SHA256)); err != nil {
			return nil, fmt.Errorf("%s: SHA-256 in %s: %w", e.File, manifestFile, err)
		}
		l.Files = append(l.Files, f)
	}
	return guard.Capture(d.path, l)
}

// Consumers lists the consumers that have a published directory in this one, by the manifests there.
func (d *Directory) Consumers() (list []string) {
	root, err := d.open()
	if err != nil {
		return nil // it was open a moment ago; the guard will report it
	}
	defer root.Close()
	names, err := readNames(root)
	if err != nil {
		return nil
	}
	for _, name := range names {
		if strings.HasPrefix(name, "..") {
			continue
		}
		if fi, err := root.Lstat(name); err != nil || !fi.IsDir() {
			continue
		}
		sub, err := root.OpenRoot(name)
		if err != nil {
			continue
		}
		m, err := readManifestOf(sub, linkedGeneration(sub, dataLink))
		sub.Close()
		if err == nil && m.Consumer == name {
			list = append(list, name)
		}
	}
	return list
}

// Withdraw removes a consumer's directory. The current generation goes after the others and before the links: by its
// manifest the next start recognises what a crash has left.
func (d *Directory) Withdraw() error {
	if _, err := os.Lstat(d.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	current := linkedGeneration(root, dataLink)
	errs := []error{repairLinks(root, nil), removeIfThere(root, prevLink)}
	names, err := readNames(root)
	errs = append(errs, err)
	for _, name := range names {
		if name != current && (strings.HasPrefix(name, genPrefix) || isTmpName(name)) {
			errs = append(errs, removeGeneration(root, name))
		}
	}
	if current != "" {
		errs = append(errs, removeGeneration(root, current))
	}
	return errors.Join(append(errs, removeIfThere(root, dataLink), os.Remove(d.path))...)
}
