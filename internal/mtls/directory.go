package mtls

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"sevagent/internal/mtls/guard"
)

// directory is one published directory: the node's own, or that of a consumer below it. Owned by Run.
type directory struct {
	consumer Consumer // Name is empty for the node's own, which has every file
	pub      *publisher
	log      *slog.Logger
	access   access
	opens    *opens
	guard    sentinel
	suspect  atomic.Bool // guard wants it looked at
	watched  bool        // guard runs
	stop     context.CancelFunc

	opened  bool        // recover has run
	current *generation // nil: nothing that may be served
	publish attempt
	repairs []time.Time // of the last repairWindow
	state   GuardStatus
	adopted Adoption
	missing []string // of the consumer's files
	allowed []string // the names of consumers' directories in it
}

// sentinel is what a directory wants of a guard.Guard.
type sentinel interface {
	Run(context.Context) error
	Changed() <-chan struct{}
	Expect(*guard.Tree)
	Verify() []guard.Finding
}

// Consumer is a directory of its own below the published one, for containers that are to see no more than they need.
type Consumer struct {
	// Name of the directory: letters, digits and dashes, so that it is no file's.
	Name  string
	Owner Owner
	// Files to publish there, such as client.pem.
	Files []string
}

// close ends what watches and protects the directory.
func (d *directory) close() {
	if d.stop != nil {
		d.stop()
	}
	d.opens.close()
	if d.opened {
		if err := softenAll(d.pub.path); err != nil {
			d.log.Warn("published files may stay immutable", "path", d.pub.path, "err", err)
		}
	}
}

func (d *directory) generation() string {
	if d.current == nil {
		return ""
	}
	return d.current.name()
}

// intact: is what the manifest of the current generation says what lies there, as far as is known?
func (d *directory) intact() bool {
	return d.current != nil && d.current.set != nil && !d.current.damaged
}

// open looks at the directory for the first time.
func (d *directory) open(now time.Time) error {
	root, err := openDir(d.pub.path, d.pub.allowDisk)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", d.pub.path, err)
	}
	defer root.Close()
	d.opened = true
	d.publish = attempt{}
	var g *generation
	if d.consumer.Name == "" {
		g, err = d.pub.recover(root, now)
	} else {
		g, err = d.pub.recoverFiles(root)
	}
	switch {
	case g == nil && errors.Is(err, errNothing):
		d.log.Info("starting with an empty directory", "path", d.pub.path)
		return nil
	case g == nil:
		d.log.Warn("what an earlier run has published is of no use", "path", d.pub.path, "err", err)
		return nil
	case g.damaged:
		d.log.Warn("what an earlier run has published was changed, it will be published afresh", "path", d.pub.path, "generation", g.name(), "err", err)
	default:
		d.log.Info("serving what an earlier run has published", "path", d.pub.path, "generation", g.name(), "not_after", g.manifest.NotAfter)
	}
	d.current = g
	if !g.damaged {
		d.expect()
	}
	return nil
}

// serves reports whether s is what the directory holds already, whatever the versions are called, and notes it then.
func (d *directory) serves(s *set, bundles []*bundle, withEvidence bool) bool {
	g := d.current
	if g == nil || g.damaged || withEvidence && g.evidence == nil || !g.manifest.describes(s, d.access) {
		return false
	}
	next := *g
	next.set, next.bundles = s, bundles
	d.current = &next
	return true
}

// switchTo makes s the current generation.
func (d *directory) switchTo(s *set, bundles []*bundle, evidence []byte, now time.Time) error {
	d.adopted.Opens += d.opens.drain()
	g, err := d.pub.publish(s, bundles, evidence, d.access, now)
	if err != nil {
		d.expect() // it may be another generation after all
		return fmt.Errorf("publish to %s: %w", d.pub.path, err)
	}
	d.current = g
	d.adopted = Adoption{}
	d.opens.follow(filepath.Join(d.pub.path, g.name()))
	d.expect()
	return nil
}

// expect tells the guard what lies there now, as it should be.
func (d *directory) expect() {
	if d.guard == nil || d.current == nil {
		return
	}
	tree, err := d.capture()
	if err != nil {
		d.log.Warn("the published files are not guarded until the next look", "path", d.pub.path, "err", err)
		return
	}
	d.guard.Expect(tree)
}

// capture records what the current generation and the links to it should be.
func (d *directory) capture() (*guard.Tree, error) {
	g := d.current
	l := guard.Layout{Generation: g.name(), Links: map[string]string{dataLink: g.name()}, Allowed: d.allowed}
	if previous, err := os.Readlink(filepath.Join(d.pub.path, prevLink)); err == nil {
		l.Links[prevLink] = previous
	}
	for _, name := range g.manifest.links() {
		l.Links[name] = dataLink + "/" + name
	}
	l.Files = append(l.Files, guard.File{
		Name: manifestFile, Size: len(g.encoded), SHA256: sha256.Sum256(g.encoded), Mode: d.access.certMode, UID: d.access.owner.UID, GID: d.access.owner.GID,
	})
	for _, e := range g.manifest.Files {
		f := guard.File{Name: e.File, Size: e.Size}
		var err error
		if f.Mode, f.UID, f.GID, err = e.access(); err != nil {
			return nil, err
		}
		if _, err := hex.Decode(f.SHA256[:], []byte(e.SHA256)); err != nil {
			return nil, fmt.Errorf("%s: SHA-256 in %s: %w", e.File, manifestFile, err)
		}
		l.Files = append(l.Files, f)
	}
	return guard.Capture(d.pub.path, l)
}

// withdraw ends a consumer's directory: nothing tends it any more, so nothing must be left in it. The directory itself
// stays, since containers may hold it.
func (d *directory) withdraw() error {
	d.close()
	root, err := os.OpenRoot(d.pub.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer root.Close()
	var errs []error
	for _, link := range []string{dataLink, prevLink} {
		errs = append(errs, removeIfThere(root, link))
	}
	errs = append(errs, mendLinks(root, nil))
	names, err := generations(root)
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, removeGeneration(root, name))
	}
	return errors.Join(append(errs, syncRoot(root))...)
}

// subset is what a consumer gets of s, and the files that it would like and that are not there.
func (c Consumer) subset(s *set) (*set, []string) {
	if c.Name == "" {
		return s, nil
	}
	sub := &set{sources: s.sources, carried: s.carried, leaves: make(map[string]*x509.Certificate)}
	var missing []string
	for _, name := range c.Files {
		i := slices.IndexFunc(s.files, func(f file) bool { return f.name == name })
		if i < 0 {
			missing = append(missing, name)
			continue
		}
		sub.files = append(sub.files, s.files[i])
		for kind, l := range s.leaves {
			if name == kind+".crt" || name == kind+".pem" {
				sub.leaves[kind] = l
			}
		}
	}
	slices.SortFunc(sub.files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	return sub, missing
}
